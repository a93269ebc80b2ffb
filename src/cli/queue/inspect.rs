//! Looking at queues, emptying them, sending dead letters back.

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::cli::ClientOptions;
use crate::cli::client::{refused, request};
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::{payload_text, show_duration};
use crate::cli::out::line;
use crate::grpc::proto::v1;

use super::{Client, leased_json, print_count};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum View {
    /// What can be delivered
    Ready,
    /// What waits for its time
    Delayed,
    /// What a consumer holds
    Leased,
}

impl From<View> for v1::QueueView {
    fn from(view: View) -> Self {
        match view {
            View::Ready => Self::Ready,
            View::Delayed => Self::Delayed,
            View::Leased => Self::Leased,
        }
    }
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
Example: stafett queue browse dead --json")]
pub(super) struct Browse {
    /// The queue
    name: String,
    /// Which messages
    #[arg(long, value_enum, default_value = "ready")]
    view: View,
    /// Only messages with this sequence or a later one
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    from: u64,
}

impl Browse {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let view = v1::QueueView::from(self.view).into();
        let question = v1::BrowseRequest { queue: self.name.clone(), view, from_sequence: self.from };
        // A queue may be long: the timeout is for each page.
        let late = |_| Failure {
            exit: Exit::Unreachable,
            reason: anyhow::anyhow!("no answer within {}", humantime::format_duration(options.timeout)),
        };
        let call = tokio::time::timeout(options.timeout, client.browse(question));
        let mut pages = call.await.map_err(late)?.map_err(|status| refused(&status))?.into_inner();
        let mut seen = false;
        while let Some(page) = tokio::time::timeout(options.timeout, pages.message())
            .await
            .map_err(late)?
            .map_err(|s| refused(&s))?
        {
            seen = true;
            print_seen(options, &page.messages)?;
        }
        Ok(if seen { Exit::Done } else { Exit::Nothing })
    }
}

/// The arguments of `stafett queue purge`.
#[derive(Args, Debug)]
#[command(after_help = "Prints how many are gone. Example: stafett queue purge orders --view ready")]
pub(super) struct Purge {
    /// The queue
    name: String,
    /// Which messages: ready or delayed
    #[arg(long, value_enum)]
    view: View,
}

impl Purge {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question =
            v1::PurgeRequest { queue: self.name.clone(), view: v1::QueueView::from(self.view).into() };
        let answer = client.purge(request(options, question)).await.map_err(|status| refused(&status))?;
        print_count(options, "purged", answer.into_inner().purged)?;
        Ok(Exit::Done)
    }
}

/// The arguments of `stafett queue redrive`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints how many were moved. What cannot be moved stays.
Examples:
  stafett queue redrive dead
  stafett queue redrive dead --to inspection --max 100")]
pub(super) struct Redrive {
    /// The dead letter queue
    name: String,
    /// Move them here, instead of each to where it came from
    #[arg(long, value_name = "QUEUE", default_value = "", hide_default_value = true)]
    to: String,
    /// At most so many messages; 0 = all
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 0)]
    max: u32,
}

impl Redrive {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question = v1::RedriveRequest {
            dead_letter_queue: self.name.clone(),
            destination: self.to.clone(),
            max_messages: self.max,
        };
        let answer = client.redrive(request(options, question)).await.map_err(|status| refused(&status))?;
        print_count(options, "moved", answer.into_inner().moved)?;
        Ok(Exit::Done)
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
        let oldest_age = stats.oldest_age.as_ref().map(show_duration);
        if options.json {
            let object = json!({
                "ready": stats.ready,
                "delayed": stats.delayed,
                "leased": stats.leased,
                "bytes": stats.bytes,
                "oldest_age": oldest_age,
                "enqueued_total": stats.enqueued_total,
                "acked_total": stats.acked_total,
                "dead_lettered_total": stats.dead_lettered_total,
                "expired_total": stats.expired_total,
                "consumers": stats.consumers,
                "dropped_total": stats.dropped_total,
            });
            line(object)?;
            return Ok(Exit::Done);
        }
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
        ] {
            line(format_args!("{name:<14} {value}"))?;
        }
        Ok(Exit::Done)
    }
}
