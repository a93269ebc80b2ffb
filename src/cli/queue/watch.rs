//! The counts of a queue as they change.

use std::time::Duration;

use clap::Args;
use tokio::time::timeout;

use crate::cli::ClientOptions;
use crate::cli::client::refused;
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::{duration, show_duration};
use crate::cli::out::line;
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::watch_queue_stats_response::Event;

use super::Client;
use super::inspect::{late, stats_json};

/// The arguments of `stafett queue watch`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints a line at once and then one after each interval, until ctrl-c or --count.
Examples:
  stafett queue watch orders
  stafett queue watch orders --every 10s --json >> orders.jsonl")]
pub(super) struct Watch {
    /// The queue
    name: String,
    /// How long after one line the next: 100ms to 1h
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    every: Duration,
    /// End after so many lines
    #[arg(long, short = 'n', value_name = "COUNT")]
    count: Option<u64>,
}

const HEADER: &str = "     ready    delayed     leased  oldest age   enqueued acknowledged  consumers";

impl Watch {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question =
            v1::WatchQueueStatsRequest { name: self.name.clone(), interval: Some(duration(self.every)) };
        let late = late(options);
        let call = timeout(options.timeout, client.watch_queue_stats(question)).await.map_err(&late)?;
        let mut events = call.map_err(|status| refused(&status))?.into_inner();
        let patience = self.every.saturating_add(options.timeout);
        let mut left = self.count.unwrap_or(u64::MAX);
        if left > 0 && !options.json {
            line(HEADER)?;
        }
        while left > 0 {
            let next = tokio::select! {
                next = timeout(patience, events.message()) => next.map_err(&late)?,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted.map_err(Failure::failed)?;
                    break;
                }
            };
            match next.map_err(|status| refused(&status))?.and_then(|response| response.event) {
                Some(Event::Stats(stats)) if options.json => line(stats_json(&stats))?,
                Some(Event::Stats(stats)) => line(row(&stats))?,
                Some(Event::Closing(closing)) => {
                    let why = closing.status.map(|status| status.message).unwrap_or_default();
                    let reason = anyhow::anyhow!("the broker ends the stream: {why}");
                    return Err(Failure { exit: Exit::Unreachable, reason });
                }
                None => break,
            }
            left -= 1;
        }
        Ok(Exit::Done)
    }
}

fn row(stats: &v1::QueueStats) -> String {
    let age = stats.oldest_age.as_ref().map_or_else(|| "none".to_owned(), show_duration);
    let v1::QueueStats { ready, delayed, leased, enqueued_total, acked_total, consumers, .. } = stats;
    format!(
        "{ready:>10} {delayed:>10} {leased:>10} {age:>11} {enqueued_total:>10} {acked_total:>12} {consumers:>10}"
    )
}
