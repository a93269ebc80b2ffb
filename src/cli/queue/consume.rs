//! Taking messages as they come.

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::cli::ClientOptions;
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::{duration, payload_text, wait};
use crate::cli::taking::{Deliveries, Heard, Until, print, say};
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::consume_request::Action;
use crate::grpc::proto::v1::consume_response::Event;

use super::{Client, leased_json};

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
    #[arg(long, value_name = "TIME", value_parser = wait)]
    idle: Option<Duration>,
    /// How many messages may be on their way
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    window: u32,
    /// How long one may be on its way; the queue's own lease if not said
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    lease: Option<Duration>,
    /// Consumers with a higher one are served first, as long as they have room
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_hyphen_values = true)]
    priority: i32,
}

impl Consume {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        if self.count == Some(0) {
            return Ok(Exit::Nothing);
        }
        let until = Until { count: self.count, idle: self.idle };
        let open = v1::ConsumeOpen {
            queue: self.name.clone(),
            consumer_id: String::new(),
            window: Some(v1::Window {
                max_outstanding_messages: until.window(self.window),
                max_outstanding_bytes: 0,
            }),
            lease: self.lease.map(duration),
            consumer_priority: self.priority,
            want_tokens: false,
        };
        let (send, frames) = mpsc::channel(16);
        say(&send, v1::ConsumeRequest { action: Some(Action::Open(open)) }).await;
        print(self, send, client.consume(ReceiverStream::new(frames)), until, options).await
    }
}

impl Deliveries for Consume {
    type Request = v1::ConsumeRequest;
    type Response = v1::ConsumeResponse;
    type Delivery = v1::LeasedMessage;

    fn ack(ack: v1::AckBatch) -> v1::ConsumeRequest {
        v1::ConsumeRequest { action: Some(Action::Ack(ack)) }
    }

    fn hear(response: v1::ConsumeResponse) -> Heard<v1::LeasedMessage> {
        match response.event {
            Some(Event::Opened(opened)) => {
                let standing_by = "another consumer is active; this one takes its place when it ends";
                Heard::Opened((!opened.active).then(|| standing_by.to_owned()))
            }
            Some(Event::BecameActive(_)) => Heard::Opened(Some("this consumer is active now".to_owned())),
            Some(Event::Messages(frame)) => Heard::Deliveries(frame.messages),
            Some(Event::Results(results)) => Heard::Results(results),
            Some(Event::Closing(closing)) => Heard::Closing(closing),
            Some(Event::LeaseLost(_) | Event::Heartbeat(_)) | None => Heard::Nothing,
        }
    }

    fn number(leased: &v1::LeasedMessage) -> u64 {
        leased.delivery_id
    }

    fn json(&self, leased: &v1::LeasedMessage) -> Value {
        leased_json(leased)
    }

    fn text(&self, leased: &v1::LeasedMessage) -> String {
        payload_text(leased.message.as_ref()).into_owned()
    }
}
