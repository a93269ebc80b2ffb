//! Taking messages as they come.

use std::io::Write;
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;

use crate::cli::ClientOptions;
use crate::cli::client::refused;
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::duration;
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::consume_request::Action;
use crate::grpc::proto::v1::consume_response::Event;

use super::{Client, leased_json, payload_text};

/// Longer than anyone waits.
const EVER: Duration = Duration::from_secs(86_400 * 365);

/// The arguments of `stafett queue consume`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints a message per line and settles it then. Ends with ctrl-c, after --count messages, or when none came for --idle. \
Exit code 4: there was nothing.
Examples:
  stafett queue consume orders
  stafett queue consume orders --count 10 --json
  stafett queue consume orders --idle 5s > backlog.txt")]
pub(super) struct Consume {
    /// The queue
    name: String,
    /// End after so many messages
    #[arg(long, short = 'n', value_name = "COUNT")]
    count: Option<u64>,
    /// End when nothing has come for so long
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    idle: Option<Duration>,
    /// How many messages may be on their way
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    window: u32,
    /// How long one may be on its way; the queue's own lease if not said
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    lease: Option<Duration>,
}

impl Consume {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let (send, frames) = mpsc::channel(16);
        let wanted = self.count.unwrap_or(u64::MAX);
        if wanted == 0 {
            return Ok(Exit::Nothing);
        }
        let window = u64::from(self.window).min(wanted);
        let open = v1::ConsumeOpen {
            queue: self.name.clone(),
            consumer_id: String::new(),
            window: Some(v1::Window {
                max_outstanding_messages: u32::try_from(window).unwrap_or(u32::MAX),
                max_outstanding_bytes: 0,
            }),
            lease: self.lease.map(duration),
            want_tokens: false,
        };
        say(&send, Action::Open(open)).await;
        let call = tokio::time::timeout(options.timeout, client.consume(ReceiverStream::new(frames)));
        let events = match call.await {
            Ok(events) => events.map_err(|status| refused(&status))?.into_inner(),
            Err(_) => {
                let reason =
                    anyhow::anyhow!("no answer within {}", humantime::format_duration(options.timeout));
                return Err(Failure { exit: Exit::Unreachable, reason });
            }
        };
        let mut taking = Taking { send: Some(send), wanted, printed: 0, frames: 0, done: 0 };
        taking.run(events, self.idle.unwrap_or(EVER), options.json).await?;
        Ok(if taking.printed == 0 { Exit::Nothing } else { Exit::Done })
    }
}

async fn say(send: &mpsc::Sender<v1::ConsumeRequest>, action: Action) {
    // When the stream has ended its events say why.
    send.send(v1::ConsumeRequest { action: Some(action) }).await.ok();
}

struct Taking {
    /// None when the client has said all.
    send: Option<mpsc::Sender<v1::ConsumeRequest>>,
    wanted: u64,
    printed: u64,
    /// Frames that settle, sent and durable.
    frames: u64,
    done: u64,
}

impl Taking {
    async fn run(
        &mut self,
        mut events: tonic::Streaming<v1::ConsumeResponse>,
        idle: Duration,
        json: bool,
    ) -> Result<(), Failure> {
        // One for all rounds, listening from here on: a ctrl-c in between is not lost.
        let mut interrupted = pin!(tokio::signal::ctrl_c());
        let mut stopped = interrupted.as_mut().now_or_never();
        let mut until = Instant::now() + idle;
        let mut enough = false;
        loop {
            if let Some(interrupted) = stopped.take() {
                interrupted.map_err(Failure::failed)?;
                enough = true;
            }
            if enough && self.done == self.frames {
                // What came beyond it goes back uncounted.
                self.send = None;
            }
            tokio::select! {
                biased;
                event = events.message() => {
                    let Some(event) = event.map_err(|status| refused(&status))? else { return Ok(()) };
                    match event.event {
                        Some(Event::Messages(frame)) if !enough => {
                            self.take(&frame.messages, json).await?;
                            until = Instant::now() + idle;
                            enough = self.printed >= self.wanted;
                        }
                        Some(Event::Results(results)) => self.settled(&results),
                        Some(Event::Closing(closing)) => {
                            let why = closing.status.map(|status| status.message).unwrap_or_default();
                            eprintln!("the broker ends the stream: {why}");
                        }
                        _ => {}
                    }
                }
                () = sleep_until(until), if !enough => enough = true,
                interrupted = interrupted.as_mut(), if !enough => stopped = Some(interrupted),
            }
        }
    }

    /// Prints messages, then settles what is printed.
    async fn take(&mut self, messages: &[v1::LeasedMessage], json: bool) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let mut delivery_ids = Vec::with_capacity(messages.len());
        for leased in messages {
            if self.printed >= self.wanted {
                break;
            }
            let printed = if json {
                writeln!(out, "{}", leased_json(leased))
            } else {
                writeln!(out, "{}", payload_text(leased))
            };
            printed.map_err(Failure::failed)?;
            self.printed += 1;
            delivery_ids.push(leased.delivery_id);
        }
        out.flush().map_err(Failure::failed)?;
        drop(out);
        self.frames += 1;
        let ack = v1::AckBatch { ack_id: self.frames, delivery_ids, lease_tokens: Vec::new() };
        if let Some(send) = &self.send {
            say(send, Action::Ack(ack)).await;
        }
        Ok(())
    }

    fn settled(&mut self, results: &v1::AckResults) {
        self.done = results.acked_through;
        for failure in &results.failures {
            let why = failure.error.as_ref().map(|error| error.message.as_str()).unwrap_or_default();
            eprintln!("warning: a message that was printed may come again: {why}");
        }
    }
}
