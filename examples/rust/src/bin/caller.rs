//! Calls a service, whoever serves it, over gRPC or MQTT: cargo run --bin caller -- text/upper hello

use clap::Parser;
use stafett_examples::pb::{CallRequest, Message, call_service_client::CallServiceClient};
use stafett_examples::{Client, fail};

/// Calls a service
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    client: Client,
    service: String,
    text: String,
}

#[tokio::main]
async fn main() {
    let Args { client, service, text } = Args::parse();
    let message = Message { payload: text.into(), ..Message::default() };
    // Idempotent: if its responder is lost, another one may do it again.
    let request = CallRequest { service, request: Some(message), idempotent: true };
    // The deadline of the RPC is that of the call; the responder is told of it.
    match CallServiceClient::new(client.channel()).call(client.request(request)).await {
        Ok(answer) => {
            let reply = answer.into_inner().reply.unwrap_or_default();
            let message = reply.message.unwrap_or_default();
            println!("{} (from {})", String::from_utf8_lossy(&message.payload), reply.responder_id);
        }
        Err(status) => fail(&status),
    }
}
