//! Makes a call that outlives who makes it: cargo run --bin later -- text/upper hello
//!
//! The broker stores the call and makes it as soon as the service is served; caller, responder and broker may come and go
//! meanwhile. cargo run --bin later -- REQUEST_ID waits for the reply to one that was made before.

use std::time::Duration;

use clap::Parser;
use stafett_examples::pb::{
    AwaitReplyRequest, CallAsyncRequest, Message, Reply, call_service_client::CallServiceClient,
};
use stafett_examples::{Client, fail};
use tonic::Status;
use tonic::transport::Channel;

/// How long one answer to AwaitReply may take, in seconds.
const POLL: i64 = 30;

/// Makes a call that outlives who makes it
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    client: Client,
    /// The service, or the id of a call that was made before
    service: String,
    text: Option<String>,
}

/// Stores a call, and returns its id.
async fn store(
    calls: &mut CallServiceClient<Channel>,
    service: String,
    text: String,
    within: Duration,
) -> Result<String, Status> {
    let request = CallAsyncRequest {
        service,
        request: Some(Message { payload: text.into(), ..Message::default() }),
        timeout: within.try_into().ok(),
        // If its responder is lost, or the broker ends while one has it, it is made again.
        idempotent: true,
        ..CallAsyncRequest::default()
    };
    Ok(calls.call_async(request).await?.into_inner().request_id)
}

/// The reply, which may be an error: there is one in any case, at the latest when its time is over.
async fn wait_for(calls: &mut CallServiceClient<Channel>, request_id: String) -> Result<Reply, Status> {
    let wait = Some(prost_types::Duration { seconds: POLL, nanos: 0 });
    loop {
        let asked = AwaitReplyRequest { request_id: request_id.clone(), wait };
        let answer = calls.await_reply(asked).await?.into_inner();
        if answer.done {
            return Ok(answer.reply.unwrap_or_default());
        }
    }
}

#[tokio::main]
async fn main() {
    let Args { client, service, text } = Args::parse();
    let mut calls = CallServiceClient::new(client.channel());
    let request_id = match text {
        Some(text) => {
            let stored = store(&mut calls, service, text, client.timeout()).await;
            let request_id = stored.unwrap_or_else(|status| fail(&status));
            println!("stored {request_id}");
            request_id
        }
        None => service,
    };
    let reply = wait_for(&mut calls, request_id).await.unwrap_or_else(|status| fail(&status));
    if let Some(error) = reply.error {
        eprintln!("{}", error.message);
        std::process::exit(1);
    }
    let message = reply.message.unwrap_or_default();
    println!("{} (from {})", String::from_utf8_lossy(&message.payload), reply.responder_id);
}
