//! Works on the messages of a queue: cargo run --bin worker -- jobs
//!
//! A message is acknowledged when its work is done, and given back when it fails. Ctrl-c finishes what is in hand first.
//! Work that takes longer than the queue's lease, 30 s by default, would have to extend it.

use std::time::Duration;

use clap::Parser;
use stafett_examples::pb::consume_request::Action;
use stafett_examples::pb::consume_response::Event;
use stafett_examples::pb::{
    AckBatch, ConsumeOpen, ConsumeRequest, Drain, LeasedMessage, NackBatch, NackKind, Window,
    queue_service_client::QueueServiceClient,
};
use stafett_examples::{Client, outgoing, pause_of};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

/// Works on the messages of a queue
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    client: Client,
    queue: String,
}

/// The work itself.
async fn work(text: &str) -> Result<(), String> {
    if text.starts_with("bad") {
        return Err("a bad job".to_owned());
    }
    println!("done: {text}");
    Ok(())
}

/// Does the work, and says what became of the message.
async fn settle(leased: LeasedMessage) -> Action {
    let payload = leased.message.unwrap_or_default().payload;
    let text = String::from_utf8_lossy(&payload);
    // The number of a delivery ascends on its stream: it serves as the number of the frame that settles it.
    let (ack_id, delivery_ids) = (leased.delivery_id, vec![leased.delivery_id]);
    let which = AckBatch { ack_id, delivery_ids, ..AckBatch::default() };
    let Err(reason) = work(&text).await else { return Action::Ack(which) };
    println!("failed: {text} (attempt {}): {reason}", leased.delivery_attempt);
    // Comes again after a second, or goes to the dead letter queue when it has failed too often.
    let delay = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    Action::Nack(NackBatch {
        which: Some(which),
        kind: NackKind::Failed.into(),
        delay,
        ..NackBatch::default()
    })
}

/// One stream. Returns how long to wait before the next one.
async fn consume(channel: Channel, stop: &CancellationToken, queue: &str) -> Result<Duration, Status> {
    let frame = |action| ConsumeRequest { action: Some(action) };
    let window = Some(Window { max_outstanding_messages: 10, ..Window::default() });
    let open = Action::Open(ConsumeOpen { queue: queue.to_owned(), window, ..ConsumeOpen::default() });
    let (frames, outgoing) = outgoing(stop, frame(open), frame(Action::Drain(Drain {})));
    let mut events = QueueServiceClient::new(channel).consume(outgoing).await?.into_inner();
    let mut pause = Duration::from_secs(1);
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Opened(_)) => println!("working on {queue}"),
            Some(Event::Messages(batch)) => {
                for leased in batch.messages {
                    let _ = frames.send(frame(settle(leased).await)).await;
                }
            }
            Some(Event::Results(results)) => {
                for error in results.failures.into_iter().filter_map(|failure| failure.error) {
                    eprintln!("not settled, and comes again: {}", error.message);
                }
            }
            Some(Event::Closing(closing)) => pause = pause_of(&closing),
            Some(Event::LeaseLost(_) | Event::BecameActive(_) | Event::Heartbeat(_)) | None => {}
        }
    }
    Ok(pause)
}

#[tokio::main]
async fn main() {
    let Args { client, queue } = Args::parse();
    client.keep_open(async |channel, stop| consume(channel, stop, &queue).await).await;
}
