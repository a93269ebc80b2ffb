//! Counts primes for whoever asks, one part at a time: cargo run --bin sieve -- primes/count
//!
//! A part is a range of numbers, "LOW HIGH". The work runs in a thread of its own, so that the stream goes on meanwhile.
//! Ctrl-c finishes what is in hand first.

use std::time::Duration;

use clap::Parser;
use stafett_examples::pb::serve_request::Action;
use stafett_examples::pb::serve_response::Event;
use stafett_examples::pb::{
    Drain, IncomingRequest, Message, ServeOpen, ServeReplies, ServeReply, ServeRequest,
    call_service_client::CallServiceClient,
};
use stafett_examples::{Client, outgoing, pause_of};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Counts primes for whoever asks
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    client: Client,
    service: String,
}

/// By trial division: there is to be something to do.
fn is_prime(number: u64) -> bool {
    match number {
        0..4 => number > 1,
        _ => {
            !number.is_multiple_of(2)
                && (3..=number.isqrt()).step_by(2).all(|odd| !number.is_multiple_of(odd))
        }
    }
}

/// How many primes there are from LOW to below HIGH; none if that is not what the caller has said.
fn count(range: &[u8]) -> Option<usize> {
    let (low, high) = str::from_utf8(range).ok()?.split_once(' ')?;
    Some((low.parse().ok()?..high.parse().ok()?).filter(|number| is_prime(*number)).count())
}

/// Answers one request.
async fn answer(request: IncomingRequest) -> ServeRequest {
    let payload = request.message.unwrap_or_default().payload;
    let counted = tokio::task::spawn_blocking(move || count(&payload)).await;
    let mut reply = ServeReply { request_id: request.request_id, ..ServeReply::default() };
    match counted.ok().flatten() {
        Some(counted) => {
            let part = request.part.unwrap_or_default();
            println!("part {} of {}: {counted}", part.index + 1, part.count);
            reply.message = Some(Message { payload: counted.to_string().into(), ..Message::default() });
        }
        None => {
            let (code, message) = (Code::InvalidArgument.into(), "is not LOW HIGH".to_owned());
            reply.error = Some(tonic_types::pb::Status { code, message, details: Vec::new() });
        }
    }
    ServeRequest { action: Some(Action::Replies(ServeReplies { replies: vec![reply] })) }
}

/// One stream. Returns how long to wait before the next one.
async fn serve(channel: Channel, stop: &CancellationToken, service: &str) -> Result<Duration, Status> {
    let frame = |action| ServeRequest { action: Some(action) };
    // One at a time: a second process is what makes use of a second core.
    let open = ServeOpen { service: service.to_owned(), max_concurrent_requests: 1, ..ServeOpen::default() };
    let (frames, outgoing) = outgoing(stop, frame(Action::Open(open)), frame(Action::Drain(Drain {})));
    let mut events = CallServiceClient::new(channel).serve(outgoing).await?.into_inner();
    let mut pause = Duration::from_secs(1);
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Opened(opened)) => println!("serving {service} as {}", opened.responder_id),
            Some(Event::Requests(batch)) => {
                for request in batch.requests {
                    // What cannot be sent any more is lost: the broker has given the part to another.
                    let _ = frames.send(answer(request).await).await;
                }
            }
            Some(Event::Closing(closing)) => pause = pause_of(&closing),
            Some(Event::Cancelled(_) | Event::Refused(_) | Event::Heartbeat(_)) | None => {}
        }
    }
    Ok(pause)
}

#[tokio::main]
async fn main() {
    let Args { client, service } = Args::parse();
    client.keep_open(async |channel, stop| serve(channel, stop, &service).await).await;
}
