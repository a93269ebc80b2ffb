//! Publishes a message: cargo run --bin publisher -- room/1 "22 degrees"

use clap::Parser;
use stafett_examples::pb::{Message, PublishRequest, pub_sub_service_client::PubSubServiceClient};
use stafett_examples::{Client, fail};

/// Publishes a message
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    client: Client,
    topic: String,
    text: String,
}

#[tokio::main]
async fn main() {
    let Args { client, topic, text } = Args::parse();
    let content_type = "text/plain".to_owned();
    let message = Message { topic, payload: text.into(), content_type, ..Message::default() };
    let request = client.request(PublishRequest { message: Some(message) });
    // The answer says that the message is on disk for everyone durable who takes it.
    match PubSubServiceClient::new(client.channel()).publish(request).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            println!(
                "published to {} subscribers and {} queues",
                answer.matched_subscribers, answer.matched_queues
            );
        }
        Err(status) => fail(&status),
    }
}
