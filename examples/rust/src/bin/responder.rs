//! Serves a service that makes text upper case: cargo run --bin responder -- text/upper
//!
//! Requests are answered side by side, in any order. Ctrl-c finishes what is in hand first.

use std::collections::HashMap;
use std::time::Duration;

use clap::Parser;
use stafett_examples::pb::serve_request::Action;
use stafett_examples::pb::serve_response::Event;
use stafett_examples::pb::{
    Drain, IncomingRequest, Message, ServeOpen, ServeReplies, ServeReply, ServeRequest,
    call_service_client::CallServiceClient,
};
use stafett_examples::{Client, outgoing, pause_of};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Serves a service that makes text upper case
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    client: Client,
    service: String,
}

/// The service itself. It is dropped when nobody waits for the answer any more.
async fn upper(text: &str) -> Result<String, Status> {
    if text.is_empty() {
        return Err(Status::invalid_argument("there is no text"));
    }
    Ok(text.to_uppercase())
}

/// Answers one request.
async fn answer(request: IncomingRequest, frames: mpsc::Sender<ServeRequest>) {
    let payload = request.message.unwrap_or_default().payload;
    let text = String::from_utf8_lossy(&payload);
    let mut reply = ServeReply { request_id: request.request_id, ..ServeReply::default() };
    match upper(&text).await {
        Ok(said) => {
            println!("answered {text}");
            reply.message = Some(Message { payload: said.into(), ..Message::default() });
        }
        Err(status) => {
            println!("refused: {}", status.message());
            reply.error = Some(error_of(status.code(), status.message()));
        }
    }
    let replies = ServeReplies { replies: vec![reply] };
    // What cannot be sent any more is lost: the broker has given its call to another, or failed it.
    let _ = frames.send(ServeRequest { action: Some(Action::Replies(replies)) }).await;
}

fn error_of(code: Code, message: &str) -> tonic_types::pb::Status {
    tonic_types::pb::Status { code: code.into(), message: message.to_owned(), details: Vec::new() }
}

/// One stream. Returns how long to wait before the next one.
async fn serve(channel: Channel, stop: &CancellationToken, service: &str) -> Result<Duration, Status> {
    let frame = |action| ServeRequest { action: Some(action) };
    let open = ServeOpen { service: service.to_owned(), max_concurrent_requests: 16, ..ServeOpen::default() };
    let (frames, outgoing) = outgoing(stop, frame(Action::Open(open)), frame(Action::Drain(Drain {})));
    let mut events = CallServiceClient::new(channel).serve(outgoing).await?.into_inner();
    let mut in_hand = HashMap::<u64, AbortHandle>::new();
    let mut pause = Duration::from_secs(1);
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Opened(opened)) => println!("serving {service} as {}", opened.responder_id),
            Some(Event::Requests(batch)) => {
                in_hand.retain(|_, task| !task.is_finished());
                for request in batch.requests {
                    let number = request.request_id;
                    in_hand.insert(number, tokio::spawn(answer(request, frames.clone())).abort_handle());
                }
            }
            Some(Event::Cancelled(cancelled)) => {
                for number in cancelled.request_ids {
                    in_hand.get(&number).map(AbortHandle::abort);
                }
            }
            Some(Event::Closing(closing)) => pause = pause_of(&closing),
            Some(Event::Refused(_) | Event::Heartbeat(_)) | None => {}
        }
    }
    Ok(pause)
}

#[tokio::main]
async fn main() {
    let Args { client, service } = Args::parse();
    client.keep_open(async |channel, stop| serve(channel, stop, &service).await).await;
}
