//! Reading a stream.

use std::future::pending;
use std::pin::pin;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};

use crate::cli::ClientOptions;
use crate::cli::client::{refused, request};
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::{message_json, payload_text, show_time, wait};
use crate::cli::out::line;
use crate::cli::queue::late;
use crate::grpc::proto::v1;
use crate::grpc::proto::v1beta1::read_response::Event;
use crate::grpc::proto::v1beta1::{self, SkipReason, StartFrom};

use super::Client;

/// Where reading begins.
#[derive(Clone, Copy, Debug)]
enum From {
    First,
    Last,
    New,
    Sequence(u64),
    Time(SystemTime),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "first" => Ok(Self::First),
            "last" => Ok(Self::Last),
            "new" => Ok(Self::New),
            _ => match text.parse() {
                Ok(sequence) => Ok(Self::Sequence(sequence)),
                Err(_) => humantime::parse_rfc3339_weak(text).map(Self::Time).map_err(|_| {
                    "must be first, last, new, a sequence, or a time as in 2026-01-31T08:00:00Z".to_owned()
                }),
            },
        }
    }
}

/// The arguments of `stafett stream read`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints a message per line: its sequence, a tab, its payload. What was not kept long enough is told on stderr. Ends after what is \
there, or with --follow at ctrl-c, after --count messages, or when none came for --idle. Exit code 4: there was nothing.
With --cursor it begins behind what it came to last time, or with the first message, and commits what it has printed or passed over.
Examples:
  stafett stream read readings
  stafett stream read readings --from 1000 --count 10 --json
  stafett stream read readings --cursor billing --follow")]
pub(super) struct Read {
    /// The stream
    name: String,
    /// first, last, new, a sequence, or a time as in 2026-01-31T08:00:00Z
    #[arg(long, value_name = "START", default_value = "first")]
    from: From,
    /// Begin behind this cursor, and move it on
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    cursor: Option<String>,
    /// Only messages whose topic matches
    #[arg(long, value_name = "FILTER", default_value = "", hide_default_value = true)]
    topic: String,
    /// Go on with what is appended
    #[arg(long, short = 'f')]
    follow: bool,
    /// End after so many messages
    #[arg(long, short = 'n', value_name = "COUNT")]
    count: Option<u64>,
    /// End when nothing has come for so long
    #[arg(long, value_name = "TIME", value_parser = wait, requires = "follow")]
    idle: Option<Duration>,
}

impl Read {
    fn question(&self) -> v1beta1::ReadRequest {
        let mut question = v1beta1::ReadRequest {
            stream: self.name.clone(),
            topic_filter: self.topic.clone(),
            max_messages: self.count.unwrap_or_default(),
            follow: self.follow,
            ..Default::default()
        };
        if let Some(cursor) = &self.cursor {
            question.cursor.clone_from(cursor);
            return question;
        }
        let start = match self.from {
            From::First => StartFrom::First,
            From::Last => StartFrom::Last,
            From::New => StartFrom::New,
            From::Sequence(sequence) => {
                question.sequence = sequence;
                StartFrom::Sequence
            }
            From::Time(time) => {
                question.time = Some(time.into());
                StartFrom::Time
            }
        };
        question.start = start.into();
        question
    }

    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        if self.count == Some(0) {
            return Ok(Exit::Nothing);
        }
        let late = late(options);
        let call = timeout(options.timeout, client.read(self.question())).await.map_err(&late)?;
        let mut events = call.map_err(|status| refused(&status))?.into_inner();
        let mut interrupted = pin!(tokio::signal::ctrl_c());
        let (mut printed, mut committed) = (0_u64, 0);
        let mut until = self.idle.map(|idle| Instant::now() + idle);
        loop {
            let idle = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            let next = tokio::select! {
                biased;
                next = events.message() => next.map_err(|status| refused(&status))?,
                interrupted = interrupted.as_mut() => {
                    interrupted.map_err(Failure::failed)?;
                    break;
                }
                () = idle => break,
            };
            match next.and_then(|response| response.event) {
                Some(Event::Records(v1beta1::Records { records })) => {
                    for record in &records {
                        print(record, options.json)?;
                    }
                    printed += records.len() as u64;
                    until = self.idle.map(|idle| Instant::now() + idle);
                    if let (Some(cursor), Some(last)) = (&self.cursor, records.last()) {
                        self.commit(&mut client, options, cursor, last.sequence).await?;
                        committed = last.sequence;
                    }
                }
                Some(Event::Skipped(skipped)) => {
                    let why = match skipped.reason() {
                        SkipReason::Unreadable => "cannot be read",
                        SkipReason::NotKept | SkipReason::Unspecified => "are not kept any more",
                    };
                    eprintln!("{} to {} {why}", skipped.from_sequence, skipped.to_sequence);
                }
                Some(Event::Closing(closing)) => {
                    let why = closing.status.map(|status| status.message).unwrap_or_default();
                    let reason = anyhow::anyhow!("the broker ends the stream: {why}");
                    return Err(Failure { exit: Exit::Unreachable, reason });
                }
                Some(Event::CaughtUp(v1beta1::CaughtUp { next_sequence })) => {
                    // What was passed over in front of it is not looked at again next time.
                    let last = next_sequence.saturating_sub(1);
                    if let Some(cursor) = self.cursor.as_ref().filter(|_| last > committed) {
                        self.commit(&mut client, options, cursor, last).await?;
                    }
                }
                Some(Event::Opened(_) | Event::Heartbeat(_)) => {}
                None => break,
            }
        }
        Ok(if printed == 0 { Exit::Nothing } else { Exit::Done })
    }

    async fn commit(
        &self,
        client: &mut Client,
        options: &ClientOptions,
        cursor: &str,
        sequence: u64,
    ) -> Result<(), Failure> {
        let question = v1beta1::CommitCursorRequest {
            stream: self.name.clone(),
            cursor: cursor.to_owned(),
            sequence,
            rewind: false,
        };
        client.commit_cursor(request(options, question)).await.map_err(|status| refused(&status))?;
        Ok(())
    }
}

fn print(record: &v1beta1::Record, json: bool) -> Result<(), Failure> {
    if json {
        line(record_json(record))
    } else {
        line(format_args!("{}\t{}", record.sequence, payload_text(record.message.as_ref())))
    }
}

/// A message of a stream as one JSON object.
fn record_json(record: &v1beta1::Record) -> Value {
    let empty = v1::Message::default();
    let mut object = message_json(record.message.as_ref().unwrap_or(&empty), record.origin.as_ref());
    object.insert("sequence".to_owned(), json!(record.sequence));
    if let Some(at) = &record.append_time {
        object.insert("append_time".to_owned(), json!(show_time(at)));
    }
    object.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_a_word_a_number_or_a_time() {
        assert!(matches!("first".parse(), Ok(From::First)));
        assert!(matches!("17".parse(), Ok(From::Sequence(17))));
        assert!(matches!("2026-01-31T08:00:00Z".parse(), Ok(From::Time(_))));
        for wrong in ["", "frist", "-1", "2026"] {
            assert!(!matches!(wrong.parse::<From>(), Ok(From::Time(_))), "{wrong}");
        }
        assert!("frist".parse::<From>().is_err() && "-1".parse::<From>().is_err());
    }
}
