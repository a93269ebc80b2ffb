//! Printing deliveries as they come, each settled when it is printed: `sub` and `queue consume`.

use std::io::Write;
use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Response, Status, Streaming};

use crate::grpc::proto::v1;

use super::ClientOptions;
use super::client::refused;
use super::exit::{Exit, Failure};

/// Longer than anyone waits.
const EVER: Duration = Duration::from_secs(86_400 * 365);

/// A stream of deliveries that are settled by number.
pub(super) trait Deliveries {
    /// What the client says.
    type Request;
    /// What the broker says.
    type Response;
    /// A message on its way.
    type Delivery;

    /// The frame that settles.
    fn ack(ack: v1::AckBatch) -> Self::Request;

    /// What the broker says.
    fn hear(response: Self::Response) -> Heard<Self::Delivery>;

    /// The number of a delivery; 0 when there is nothing to settle.
    fn number(delivery: &Self::Delivery) -> u64;

    /// The delivery as one JSON object.
    fn json(&self, delivery: &Self::Delivery) -> Value;

    /// The delivery for people, on one line.
    fn text(&self, delivery: &Self::Delivery) -> String;
}

/// What the broker says.
pub(super) enum Heard<D> {
    /// The stream is open, as this line tells people.
    Opened(Option<String>),
    /// What was asked is refused, and why.
    Refused(String),
    /// Messages.
    Deliveries(Vec<D>),
    /// What was settled.
    Results(v1::AckResults),
    /// The last event.
    Closing(v1::StreamClosing),
    /// What the client does not mind.
    Nothing,
}

/// When to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Until {
    /// After so many messages.
    pub(super) count: Option<u64>,
    /// When nothing has come for so long.
    pub(super) idle: Option<Duration>,
}

impl Until {
    /// How many may be on their way at a time, of `window` at most.
    pub(super) fn window(&self, window: u32) -> u32 {
        u32::try_from(self.count.unwrap_or(u64::MAX)).unwrap_or(u32::MAX).min(window)
    }
}

/// Prints what comes until it is enough.
pub(super) async fn print<D: Deliveries>(
    deliveries: &D,
    send: mpsc::Sender<D::Request>,
    call: impl Future<Output = Result<Response<Streaming<D::Response>>, Status>>,
    until: Until,
    options: &ClientOptions,
) -> Result<Exit, Failure> {
    let events = match timeout(options.timeout, call).await {
        Ok(events) => events.map_err(|status| refused(&status))?.into_inner(),
        Err(_) => {
            let reason = anyhow::anyhow!("no answer within {}", humantime::format_duration(options.timeout));
            return Err(Failure { exit: Exit::Unreachable, reason });
        }
    };
    let wanted = until.count.unwrap_or(u64::MAX);
    let mut taking = Taking { deliveries, send: Some(send), wanted, printed: 0, frames: 0, done: 0 };
    taking.run(events, until.idle.unwrap_or(EVER), options.json).await?;
    Ok(if taking.printed == 0 { Exit::Nothing } else { Exit::Done })
}

struct Taking<'a, D: Deliveries> {
    deliveries: &'a D,
    /// None when the client has said all.
    send: Option<mpsc::Sender<D::Request>>,
    wanted: u64,
    printed: u64,
    /// Frames that settle, sent and durable.
    frames: u64,
    done: u64,
}

impl<D: Deliveries> Taking<'_, D> {
    async fn run(
        &mut self,
        mut events: Streaming<D::Response>,
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
                    match D::hear(event) {
                        Heard::Deliveries(messages) if !enough => {
                            self.take(&messages, json).await?;
                            until = Instant::now() + idle;
                            enough = self.printed >= self.wanted;
                        }
                        Heard::Results(results) => self.settled(&results),
                        Heard::Closing(closing) => {
                            let why = closing.status.map(|status| status.message).unwrap_or_default();
                            eprintln!("the broker ends the stream: {why}");
                        }
                        Heard::Refused(why) => return Err(Failure::failed(anyhow::anyhow!(why))),
                        Heard::Opened(Some(line)) => eprintln!("{line}"),
                        Heard::Opened(None) | Heard::Deliveries(_) | Heard::Nothing => {}
                    }
                }
                () = sleep_until(until), if !enough => enough = true,
                interrupted = interrupted.as_mut(), if !enough => stopped = Some(interrupted),
            }
        }
    }

    /// Prints messages, then settles what is printed.
    async fn take(&mut self, messages: &[D::Delivery], json: bool) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let mut delivery_ids = Vec::with_capacity(messages.len());
        for delivery in messages {
            if self.printed >= self.wanted {
                break;
            }
            let printed = if json {
                writeln!(out, "{}", self.deliveries.json(delivery))
            } else {
                writeln!(out, "{}", self.deliveries.text(delivery))
            };
            printed.map_err(Failure::failed)?;
            self.printed += 1;
            delivery_ids.extend(Some(D::number(delivery)).filter(|&number| number > 0));
        }
        out.flush().map_err(Failure::failed)?;
        drop(out);
        if delivery_ids.is_empty() {
            return Ok(());
        }
        self.frames += 1;
        let ack = v1::AckBatch { ack_id: self.frames, delivery_ids, lease_tokens: Vec::new() };
        if let Some(send) = &self.send {
            say(send, D::ack(ack)).await;
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

/// Says something to the broker.
pub(super) async fn say<R>(send: &mpsc::Sender<R>, frame: R) {
    // When the stream has ended its events say why.
    send.send(frame).await.ok();
}
