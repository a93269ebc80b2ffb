//! `stafett queue`: make queues, put messages in, take them out, look after them.

mod consume;
mod define;
mod inspect;
mod receive;
mod send;
mod watch;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use tonic::transport::Channel;

use crate::grpc::proto::v1;
use crate::grpc::proto::v1::queue_service_client::QueueServiceClient;

use super::ClientOptions;
use super::client::connect;
use super::exit::{Exit, Failure};
use super::message::{message_json, show_duration, show_time, show_token};
use super::out::{line, text};

const EXAMPLES: &str = "\
Examples:
  stafett queue create orders --max-deliveries 5 --dead-letter-queue dead
  stafett queue send orders '{\"id\":7}' --content-type application/json
  stafett queue receive orders --wait 10s
  stafett queue ack orders TOKEN
  stafett queue consume orders --json
  stafett queue redrive dead";

/// The arguments of `stafett queue`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, subcommand_required = true)]
pub(super) struct Queue {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a queue
    Create(define::Create),
    /// List the queues
    List(define::List),
    /// Show the settings of a queue
    Info(define::Info),
    /// Change settings of a queue
    Update(define::Update),
    /// Deliver nothing of a queue until it is resumed
    Pause(define::Pause),
    /// Deliver what a paused queue has
    Resume(define::Resume),
    /// Delete a queue with its messages
    Delete(define::Delete),
    /// Copy every publish that matches a filter into a queue
    Bind(define::Bind),
    /// End bindings of a queue
    Unbind(define::Unbind),
    /// Put messages into a queue
    Send(send::Send),
    /// Take messages out of a queue, each leased for a while
    Receive(receive::Receive),
    /// Take messages as they come, each settled when it is printed
    Consume(consume::Consume),
    /// Settle messages that were received
    Ack(receive::Ack),
    /// Settle a message that was received and put another into a queue, in one act
    Forward(receive::Forward),
    /// Give messages back that were received
    Nack(receive::Nack),
    /// Show the first messages of a queue without taking them
    Peek(inspect::Peek),
    /// Show all messages of a queue without taking them
    Browse(inspect::Browse),
    /// Delete messages of a queue
    Purge(inspect::Purge),
    /// Delete single messages, scheduled ones if not said otherwise
    Cancel(inspect::Cancel),
    /// Move messages of a dead letter queue back to where they came from
    Redrive(inspect::Redrive),
    /// Show the counts of a queue
    Stats(inspect::Stats),
    /// Show the counts of a queue again and again
    Watch(watch::Watch),
}

pub(super) use define::bytes;
pub(super) use inspect::late;

type Client = QueueServiceClient<Channel>;

pub(super) async fn run(queue: &Queue, options: &ClientOptions) -> Result<Exit, Failure> {
    let unlimited = usize::MAX;
    let client = QueueServiceClient::new(connect(options).await?)
        .max_decoding_message_size(unlimited)
        .max_encoding_message_size(unlimited);
    match &queue.command {
        Command::Create(create) => create.run(client, options).await,
        Command::List(list) => list.run(client, options).await,
        Command::Info(info) => info.run(client, options).await,
        Command::Update(update) => update.run(client, options).await,
        Command::Pause(pause) => pause.run(client, options).await,
        Command::Resume(resume) => resume.run(client, options).await,
        Command::Delete(delete) => delete.run(client, options).await,
        Command::Bind(bind) => bind.run(client, options).await,
        Command::Unbind(unbind) => unbind.run(client, options).await,
        Command::Send(send) => send.run(client, options).await,
        Command::Receive(receive) => receive.run(client, options).await,
        Command::Consume(consume) => consume.run(client, options).await,
        Command::Ack(ack) => ack.run(client, options).await,
        Command::Forward(forward) => forward.run(client, options).await,
        Command::Nack(nack) => nack.run(client, options).await,
        Command::Peek(peek) => peek.run(client, options).await,
        Command::Browse(browse) => browse.run(client, options).await,
        Command::Purge(purge) => purge.run(client, options).await,
        Command::Cancel(cancel) => cancel.run(client, options).await,
        Command::Redrive(redrive) => redrive.run(client, options).await,
        Command::Stats(stats) => stats.run(client, options).await,
        Command::Watch(watch) => watch.run(client, options).await,
    }
}

/// Prints a number of things that were done.
pub(super) fn print_count(options: &ClientOptions, name: &str, count: u64) -> Result<(), Failure> {
    if options.json { line(json!({ name: count })) } else { line(format_args!("{name} {count}")) }
}

/// A message of a queue as one JSON object.
fn leased_json(leased: &v1::LeasedMessage) -> Value {
    let empty = v1::Message::default();
    let mut object = message_json(leased.message.as_ref().unwrap_or(&empty), leased.origin.as_ref());
    object.insert("sequence".to_owned(), json!(leased.sequence));
    object.insert("delivery_attempt".to_owned(), json!(leased.delivery_attempt));
    if !leased.lease_token.is_empty() {
        object.insert("lease_token".to_owned(), json!(show_token(&leased.lease_token)));
    }
    let state = match leased.state() {
        v1::QueueView::Unspecified | v1::QueueView::All => None,
        v1::QueueView::Ready => Some("ready"),
        v1::QueueView::Delayed => Some("delayed"),
        v1::QueueView::Leased => Some("leased"),
    };
    if let Some(state) = state {
        object.insert("state".to_owned(), json!(state));
    }
    if let Some(at) = &leased.lease_expires {
        object.insert("lease_expires".to_owned(), json!(show_time(at)));
    }
    if let Some(dead) = &leased.dead_letter {
        let mut why = Map::new();
        why.insert("source_queue".to_owned(), json!(dead.source_queue));
        why.insert("reason".to_owned(), json!(dead.reason));
        why.insert("attempts".to_owned(), json!(dead.attempts));
        if let Some(at) = &dead.time {
            why.insert("time".to_owned(), json!(show_time(at)));
        }
        object.insert("dead_letter".to_owned(), why.into());
    }
    object.into()
}

/// What was asked of deliveries and could not be done is said on stderr.
fn report(failures: &[v1::AckFailure]) -> Exit {
    for failure in failures {
        let why = failure.error.as_ref().map(|error| error.message.as_str()).unwrap_or_default();
        eprintln!("error: {}: {why}", show_token(&failure.lease_token));
    }
    if failures.is_empty() { Exit::Done } else { Exit::Failed }
}

/// The settings of a queue as one JSON object.
fn queue_json(queue: &v1::Queue) -> Value {
    let labels: std::collections::BTreeMap<_, _> = queue.labels.iter().collect();
    json!({
        "name": queue.name,
        "bindings": queue.bindings,
        "lease": queue.lease.as_ref().map(show_duration),
        "max_deliveries": queue.max_deliveries,
        "dead_letter_queue": queue.dead_letter_queue,
        "retry_min_backoff": queue.retry_min_backoff.as_ref().map(show_duration),
        "retry_max_backoff": queue.retry_max_backoff.as_ref().map(show_duration),
        "default_ttl": queue.default_ttl.as_ref().map(show_duration),
        "max_messages": queue.max_messages,
        "max_bytes": queue.max_bytes,
        "overflow": overflow_name(queue),
        "priorities": queue.priorities,
        "ordered_by_key": queue.ordered_by_key,
        "single_active_consumer": queue.single_active_consumer,
        "dedup_window": queue.dedup_window.as_ref().map(show_duration),
        "last_value_key": queue.last_value_key,
        "labels": labels,
        "dead_letter_expired": queue.dead_letter_expired,
        "expires_after": queue.expires_after.as_ref().map(show_duration),
        "paused": queue.paused,
    })
}

fn overflow_name(queue: &v1::Queue) -> &'static str {
    match queue.overflow() {
        v1::OverflowPolicy::Unspecified | v1::OverflowPolicy::Reject => "reject",
        v1::OverflowPolicy::DropOldest => "drop-oldest",
        v1::OverflowPolicy::DeadLetter => "dead-letter",
    }
}

/// The settings of a queue for people.
fn queue_text(queue: &v1::Queue) -> String {
    let or = |text: String, none: &str| if text.is_empty() { none.to_owned() } else { text };
    let time = |time: Option<&prost_types::Duration>| time.map(show_duration).unwrap_or_default();
    let deliveries = match queue.max_deliveries {
        0 => "without end".to_owned(),
        max => max.to_string(),
    };
    let backoff = match (&queue.retry_min_backoff, &queue.retry_max_backoff) {
        (None, _) => "none".to_owned(),
        (Some(min), None) => format!("from {}", show_duration(min)),
        (Some(min), Some(max)) => format!("from {} to {}", show_duration(min), show_duration(max)),
    };
    let mut text = format!(
        "name               {}\nlease              {}\nmax deliveries     {deliveries}\ndead letter queue  {}\n\
         retry backoff      {backoff}\ndefault ttl        {}\nmax messages       {}\nmax bytes          {}\noverflow           {}\npriorities         {}\npaused             {}\n",
        queue.name,
        time(queue.lease.as_ref()),
        or(queue.dead_letter_queue.clone(), "none"),
        or(time(queue.default_ttl.as_ref()), "none"),
        queue.max_messages,
        queue.max_bytes,
        overflow_name(queue),
        if queue.priorities { "yes" } else { "no" },
        if queue.paused { "yes" } else { "no" },
    );
    if queue.ordered_by_key {
        text.push_str("order              by key\n");
    }
    if let Some(window) = &queue.dedup_window {
        text.push_str(&format!("dedup window       {}\n", show_duration(window)));
    }
    if !queue.last_value_key.is_empty() {
        text.push_str(&format!("keeps last         of each {}\n", queue.last_value_key));
    }
    if queue.single_active_consumer {
        text.push_str("consumers          one active at a time\n");
    }
    if queue.dead_letter_expired {
        text.push_str("expired            to the dead letter queue\n");
    }
    if let Some(after) = &queue.expires_after {
        text.push_str(&format!("deleted            when unused for {}\n", show_duration(after)));
    }
    for binding in &queue.bindings {
        text.push_str(&format!("binding            {binding}\n"));
    }
    for (key, value) in queue.labels.iter().collect::<std::collections::BTreeMap<_, _>>() {
        text.push_str(&format!("label              {key}={value}\n"));
    }
    text
}

/// Prints the settings of a queue.
fn print_queue(options: &ClientOptions, queue: &v1::Queue) -> Result<(), Failure> {
    if options.json { line(queue_json(queue)) } else { text(&queue_text(queue)) }
}
