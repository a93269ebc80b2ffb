//! Looking at queues, emptying them, sending dead letters back.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::cli::ClientOptions;
use crate::cli::client::{refused, request};
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::{key_value, payload_text, show_duration};
use crate::cli::out::line;
use crate::grpc::proto::v1;
use crate::types::clock::unix_now;

use super::{Client, leased_json, print_count};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum View {
    /// What can be delivered
    Ready,
    /// What waits for its time
    Delayed,
    /// What a consumer holds
    Leased,
    /// All of these
    All,
}

/// What can be deleted.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Unheld {
    /// What can be delivered
    Ready,
    /// What waits for its time
    Delayed,
    /// Both of these
    All,
}

impl From<Unheld> for v1::QueueView {
    fn from(view: Unheld) -> Self {
        match view {
            Unheld::Ready => Self::Ready,
            Unheld::Delayed => Self::Delayed,
            Unheld::All => Self::All,
        }
    }
}

impl From<View> for v1::QueueView {
    fn from(view: View) -> Self {
        match view {
            View::Ready => Self::Ready,
            View::Delayed => Self::Delayed,
            View::Leased => Self::Leased,
            View::All => Self::All,
        }
    }
}

/// Which messages are meant.
#[derive(Args, Clone, Debug, Default)]
struct Filter {
    /// Only messages with this property; may be given several times, then all must be there
    #[arg(long = "where", value_name = "KEY=VALUE")]
    properties: Vec<String>,
    /// Only messages whose topic matches
    #[arg(long, value_name = "FILTER", default_value = "", hide_default_value = true)]
    topic: String,
    /// Only messages with this sequence or a later one
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0, hide_default_value = true)]
    from: u64,
    /// Only messages with this sequence or an earlier one
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0, hide_default_value = true)]
    through: u64,
    /// Only messages that came to the broker within this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
    /// Only messages that came to the broker before this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Only messages that this queue gave up
    #[arg(long, value_name = "QUEUE", default_value = "", hide_default_value = true)]
    source: String,
}

impl Filter {
    /// None: every message is meant.
    fn filter(&self) -> Result<Option<v1::MessageFilter>, Failure> {
        let property = |pair: &String| {
            let (key, value) = key_value("--where", pair)?;
            Ok(v1::Property { key, value })
        };
        let properties = self.properties.iter().map(property).collect::<anyhow::Result<_>>();
        let filter = v1::MessageFilter {
            properties: properties.map_err(Failure::usage)?,
            topic_filter: self.topic.clone(),
            from_sequence: self.from,
            to_sequence: self.through,
            since: self.newer_than.map(ago),
            before: self.older_than.map(ago),
            source_queue: self.source.clone(),
        };
        Ok(Some(filter).filter(|filter| *filter != v1::MessageFilter::default()))
    }
}

/// What it means that nothing came in time.
pub(in crate::cli) fn late(options: &ClientOptions) -> impl Fn(Elapsed) -> Failure {
    let within = humantime::format_duration(options.timeout).to_string();
    move |_| Failure { exit: Exit::Unreachable, reason: anyhow::anyhow!("no answer within {within}") }
}

/// So long before now.
fn ago(time: Duration) -> prost_types::Timestamp {
    let since_1970 = Duration::from_millis(unix_now().0).saturating_sub(time);
    (SystemTime::UNIX_EPOCH + since_1970).into()
}

/// Prints messages that were looked at.
fn print_seen(options: &ClientOptions, messages: &[v1::LeasedMessage]) -> Result<(), Failure> {
    for seen in messages {
        if options.json {
            line(leased_json(seen))?;
        } else {
            line(format_args!("{}\t{}", seen.sequence, payload_text(seen.message.as_ref())))?;
        }
    }
    Ok(())
}

/// The arguments of `stafett queue peek`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints a line per message: its sequence, a tab, its payload. Exit code 4: there is nothing.
Example: stafett queue peek orders --max 10 --view delayed --json")]
pub(super) struct Peek {
    /// The queue
    name: String,
    /// At most so many messages
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 1)]
    max: u32,
    /// Which messages
    #[arg(long, value_enum, default_value = "ready")]
    view: View,
}

impl Peek {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let view = v1::QueueView::from(self.view).into();
        let question = v1::PeekRequest { queue: self.name.clone(), max_messages: self.max, view };
        let answer = client.peek(request(options, question)).await.map_err(|status| refused(&status))?;
        let messages = answer.into_inner().messages;
        print_seen(options, &messages)?;
        Ok(if messages.is_empty() { Exit::Nothing } else { Exit::Done })
    }
}

/// The arguments of `stafett queue browse`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints a line per message: its sequence, a tab, its payload. Exit code 4: there is nothing.
Examples:
  stafett queue browse dead --json
  stafett queue browse orders --view all --where tenant=7 --older-than 1h")]
pub(super) struct Browse {
    /// The queue
    name: String,
    /// Which messages
    #[arg(long, value_enum, default_value = "ready")]
    view: View,
    #[command(flatten)]
    filter: Filter,
    /// At most so many messages; 0 = all
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    max: u32,
}

impl Browse {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let view = v1::QueueView::from(self.view).into();
        let question = v1::BrowseRequest {
            queue: self.name.clone(),
            view,
            from_sequence: 0,
            filter: self.filter.filter()?,
            max_messages: self.max,
        };
        // A queue may be long: the timeout is for each page.
        let late = late(options);
        let call = timeout(options.timeout, client.browse(question));
        let mut pages = call.await.map_err(&late)?.map_err(|status| refused(&status))?.into_inner();
        let mut seen = false;
        while let Some(page) =
            timeout(options.timeout, pages.message()).await.map_err(&late)?.map_err(|s| refused(&s))?
        {
            seen |= !page.messages.is_empty();
            print_seen(options, &page.messages)?;
        }
        Ok(if seen { Exit::Done } else { Exit::Nothing })
    }
}

/// The arguments of `stafett queue purge`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints how many are gone. What a consumer holds stays. With a filter all messages of the view are looked at, and --timeout is for \
all of that: what was deleted before it ended stays deleted.
Examples:
  stafett queue purge orders --view ready
  stafett queue purge orders --view all --where tenant=7")]
pub(super) struct Purge {
    /// The queue
    name: String,
    /// Which messages
    #[arg(long, value_enum)]
    view: Unheld,
    #[command(flatten)]
    filter: Filter,
}

impl Purge {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question = v1::PurgeRequest {
            queue: self.name.clone(),
            view: v1::QueueView::from(self.view).into(),
            filter: self.filter.filter()?,
        };
        let answer = client.purge(request(options, question)).await.map_err(|status| refused(&status))?;
        print_count(options, "purged", answer.into_inner().purged)?;
        Ok(Exit::Done)
    }
}

/// The arguments of `stafett queue cancel`.
#[derive(Args, Debug)]
#[command(after_help = "\
Messages are named by sequence or id, as `send --json` and `browse --json` print them. Prints how many are gone. Exit code 1: \
one was not there. For an id the messages of the view are looked through, and --timeout is for all of that: what was deleted \
before it ended stays deleted.
Examples:
  stafett queue cancel orders 42
  stafett queue cancel orders 01JD5RW0Z5X3F6Q9K2M8N4T7VB --view ready")]
pub(super) struct Cancel {
    /// The queue
    name: String,
    /// Sequences or ids
    #[arg(required = true, value_name = "MESSAGE")]
    messages: Vec<String>,
    /// Where they wait
    #[arg(long, value_enum, default_value = "delayed")]
    view: Unheld,
}

impl Cancel {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let is_sequence = |text: &&String| text.bytes().all(|byte| byte.is_ascii_digit());
        let (sequences, message_ids): (Vec<_>, Vec<_>) =
            self.messages.iter().partition(|text| is_sequence(text));
        let parsed: Result<Vec<u64>, _> = sequences.iter().map(|text| text.parse()).collect();
        let question = v1::DeleteMessagesRequest {
            queue: self.name.clone(),
            view: v1::QueueView::from(self.view).into(),
            sequences: parsed.map_err(Failure::usage)?,
            message_ids: message_ids.into_iter().cloned().collect(),
        };
        let answer =
            client.delete_messages(request(options, question)).await.map_err(|status| refused(&status))?;
        let deleted = answer.into_inner().deleted_sequences.len();
        print_count(options, "deleted", deleted as u64)?;
        let asked: BTreeSet<_> = self.messages.iter().collect();
        let missing = asked.len().saturating_sub(deleted);
        if missing > 0 {
            eprintln!("error: {missing} of {} were not there", asked.len());
        }
        Ok(if missing > 0 { Exit::Failed } else { Exit::Done })
    }
}

/// The arguments of `stafett queue redrive`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints how many were moved. What cannot be moved stays, for instance because its queue is full: the first errors are told on \
stderr, and the exit code is 1.
Examples:
  stafett queue redrive dead
  stafett queue redrive dead --source orders --where tenant=7 --progress
  stafett queue redrive dead --to inspection --max 100")]
pub(super) struct Redrive {
    /// The dead letter queue
    name: String,
    /// Move them here, instead of each to where it came from
    #[arg(long, value_name = "QUEUE", default_value = "", hide_default_value = true)]
    to: String,
    #[command(flatten)]
    filter: Filter,
    /// At most so many messages; 0 = all
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 0)]
    max: u32,
    /// Say on stderr how far it is
    #[arg(long)]
    progress: bool,
}

impl Redrive {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question = v1::RedriveRequest {
            dead_letter_queue: self.name.clone(),
            destination: self.to.clone(),
            max_messages: self.max,
            filter: self.filter.filter()?,
        };
        let late = late(options);
        let call = timeout(options.timeout, client.redrive_stream(question));
        let mut parts = call.await.map_err(&late)?.map_err(|status| refused(&status))?.into_inner();
        let mut sum = v1::RedriveProgress::default();
        while let Some(part) =
            timeout(options.timeout, parts.message()).await.map_err(&late)?.map_err(|s| refused(&s))?
        {
            for error in &part.errors {
                let why = error.error.as_ref().map(|error| error.message.as_str()).unwrap_or_default();
                eprintln!("error: {}: {why}", error.sequence);
            }
            if self.progress {
                let v1::RedriveProgress { moved, stayed, looked_at, .. } = &part;
                eprintln!("{moved} moved, {stayed} stay, {looked_at} looked at");
            }
            sum = part;
        }
        print_count(options, "moved", sum.moved)?;
        Ok(if sum.stayed > 0 { Exit::Failed } else { Exit::Done })
    }
}

/// The arguments of `stafett queue stats`.
#[derive(Args, Debug)]
#[command(after_help = "Example: stafett queue stats orders --json")]
pub(super) struct Stats {
    /// The queue
    name: String,
}

impl Stats {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question = request(options, v1::GetQueueStatsRequest { name: self.name.clone() });
        let answer = client.get_queue_stats(question).await.map_err(|status| refused(&status))?;
        let stats = answer.into_inner().stats.unwrap_or_default();
        if options.json {
            line(stats_json(&stats))?;
            return Ok(Exit::Done);
        }
        let oldest_age = stats.oldest_age.as_ref().map(show_duration);
        for (name, value) in [
            ("ready", stats.ready.to_string()),
            ("delayed", stats.delayed.to_string()),
            ("leased", stats.leased.to_string()),
            ("bytes", stats.bytes.to_string()),
            ("oldest age", oldest_age.unwrap_or_else(|| "none".to_owned())),
            ("enqueued", stats.enqueued_total.to_string()),
            ("acknowledged", stats.acked_total.to_string()),
            ("dead lettered", stats.dead_lettered_total.to_string()),
            ("expired", stats.expired_total.to_string()),
            ("consumers", stats.consumers.to_string()),
            ("dropped", stats.dropped_total.to_string()),
            ("replaced", stats.replaced_total.to_string()),
        ] {
            line(format_args!("{name:<14} {value}"))?;
        }
        Ok(Exit::Done)
    }
}

/// The counts of a queue as one JSON object.
pub(super) fn stats_json(stats: &v1::QueueStats) -> Value {
    json!({
        "ready": stats.ready,
        "delayed": stats.delayed,
        "leased": stats.leased,
        "bytes": stats.bytes,
        "oldest_age": stats.oldest_age.as_ref().map(show_duration),
        "enqueued_total": stats.enqueued_total,
        "acked_total": stats.acked_total,
        "dead_lettered_total": stats.dead_lettered_total,
        "expired_total": stats.expired_total,
        "consumers": stats.consumers,
        "dropped_total": stats.dropped_total,
        "replaced_total": stats.replaced_total,
    })
}
