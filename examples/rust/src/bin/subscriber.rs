//! Prints what is published: cargo run --bin subscriber -- 'room/#'
//!
//! What is published while it is away is missed; SubscribeStream with a client id and a session expiry would get it
//! later.

use std::time::Duration;

use clap::Parser;
use stafett_examples::pb::subscribe_response::Event;
use stafett_examples::pb::{SubscribeRequest, TopicFilter, pub_sub_service_client::PubSubServiceClient};
use stafett_examples::{Client, pause_of};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

/// Prints what is published
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    client: Client,
    /// As room/+ or room/#
    filter: String,
}

/// One stream. Returns how long to wait before the next one.
async fn subscribe(channel: Channel, stop: &CancellationToken, filter: &str) -> Result<Duration, Status> {
    let request = SubscribeRequest {
        filters: vec![TopicFilter { filter: filter.to_owned(), ..TopicFilter::default() }],
    };
    let mut events = PubSubServiceClient::new(channel).subscribe(request).await?.into_inner();
    let mut pause = Duration::from_secs(1);
    // Dropping the stream cancels it.
    while let Some(Some(event)) = stop.run_until_cancelled(events.message()).await.transpose()? {
        match event.event {
            Some(Event::Opened(_)) => println!("subscribed to {filter}"),
            Some(Event::Deliveries(batch)) => {
                for message in batch.deliveries.into_iter().filter_map(|delivery| delivery.message) {
                    println!("{}: {}", message.topic, String::from_utf8_lossy(&message.payload));
                }
            }
            Some(Event::Closing(closing)) => pause = pause_of(&closing),
            Some(Event::Heartbeat(_)) | None => {}
        }
    }
    Ok(pause)
}

#[tokio::main]
async fn main() {
    let Args { client, filter } = Args::parse();
    client.keep_open(async |channel, stop| subscribe(channel, stop, &filter).await).await;
}
