//! `stafett sub`.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::grpc::proto::v1;
use crate::grpc::proto::v1::pub_sub_service_client::PubSubServiceClient;
use crate::grpc::proto::v1::subscribe_stream_request::Action;
use crate::grpc::proto::v1::subscribe_stream_response::Event;

use super::ClientOptions;
use super::client::connect;
use super::exit::{Exit, Failure};
use super::message::{duration, message_json, payload_text, wait};
use super::publish::Level;
use super::taking::{Deliveries, Heard, Until, print, say};

/// Which retained messages a new filter gets.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Retained {
    /// All that match
    Send,
    /// All that match, if the session did not have the filter
    New,
    /// None
    Never,
}

/// The arguments of `stafett sub`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints a message per line, and settles it then. Ends with ctrl-c, after --count messages, or when none came for --idle. \
Exit codes: 1 a filter was refused; 4 there was nothing.
Examples:
  stafett sub 'sensors/+/temperature'
  stafett sub 'sensors/#' --with-topic --json
  stafett sub 'sensors/#' --count 1 --idle 10s
  stafett sub 'jobs/#' --share workers
  stafett sub 'orders/#' --client-id billing --session-expiry 7days")]
pub(super) struct Subscribe {
    /// What to receive: topics, where + stands for one level and a last # for any number
    #[arg(required = true, value_name = "FILTER")]
    filters: Vec<String>,
    /// End after so many messages
    #[arg(long, short = 'n', value_name = "COUNT")]
    count: Option<u64>,
    /// End when nothing has come for so long
    #[arg(long, value_name = "TIME", value_parser = wait)]
    idle: Option<Duration>,
    /// Begin each line with the topic
    #[arg(long, short = 't')]
    with_topic: bool,
    /// At most: 0, at most once; 1, at least once
    #[arg(long, value_name = "LEVEL", default_value = "1", hide_possible_values = true)]
    qos: Level,
    /// Share the messages with the other members of this group
    #[arg(long, value_name = "GROUP")]
    share: Option<String>,
    /// Retained messages: send, new (if the session did not have the filter) or never
    #[arg(long, value_name = "WHICH", default_value = "send", hide_possible_values = true)]
    retained: Retained,
    /// The name of the session
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// How long the session outlives this command and keeps what comes
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, requires = "client_id")]
    session_expiry: Option<Duration>,
    /// Forget an earlier session of this name first
    #[arg(long, requires = "client_id")]
    clean: bool,
    /// How many messages may be on their way
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    window: u32,
}

impl Subscribe {
    pub(super) async fn run(&self, options: &ClientOptions) -> Result<Exit, Failure> {
        if self.count == Some(0) {
            return Ok(Exit::Nothing);
        }
        let until = Until { count: self.count, idle: self.idle };
        let retain_handling = match self.retained {
            Retained::Send => v1::RetainHandling::Send,
            Retained::New => v1::RetainHandling::SendIfNew,
            Retained::Never => v1::RetainHandling::DoNotSend,
        };
        let filter = |filter: &String| v1::TopicFilter {
            filter: filter.clone(),
            max_qos: v1::Qos::from(self.qos).into(),
            share_group: self.share.clone().unwrap_or_default(),
            retain_handling: retain_handling.into(),
            ..Default::default()
        };
        let open = v1::OpenSession {
            client_id: self.client_id.clone().unwrap_or_default(),
            clean_start: self.clean,
            session_expiry: self.session_expiry.map(duration),
            filters: self.filters.iter().map(filter).collect(),
            window: Some(v1::Window {
                max_outstanding_messages: until.window(self.window),
                max_outstanding_bytes: 0,
            }),
            ..Default::default()
        };
        let mut client =
            PubSubServiceClient::new(connect(options).await?).max_decoding_message_size(usize::MAX);
        let (send, frames) = mpsc::channel(16);
        say(&send, v1::SubscribeStreamRequest { action: Some(Action::Open(open)) }).await;
        print(self, send, client.subscribe_stream(ReceiverStream::new(frames)), until, options).await
    }
}

impl Deliveries for Subscribe {
    type Request = v1::SubscribeStreamRequest;
    type Response = v1::SubscribeStreamResponse;
    type Delivery = v1::Delivery;

    fn ack(ack: v1::AckBatch) -> v1::SubscribeStreamRequest {
        v1::SubscribeStreamRequest { action: Some(Action::Ack(ack)) }
    }

    fn hear(response: v1::SubscribeStreamResponse) -> Heard<v1::Delivery> {
        match response.event {
            Some(Event::Opened(opened)) => opened_as(&opened),
            Some(Event::Deliveries(frame)) => Heard::Deliveries(frame.deliveries),
            Some(Event::AckResults(results)) => Heard::Results(results),
            Some(Event::Closing(closing)) => Heard::Closing(closing),
            Some(Event::Changed(_) | Event::Heartbeat(_)) | None => Heard::Nothing,
        }
    }

    fn number(delivery: &v1::Delivery) -> u64 {
        delivery.delivery_id
    }

    fn json(&self, delivery: &v1::Delivery) -> Value {
        let empty = v1::Message::default();
        let message = delivery.message.as_ref().unwrap_or(&empty);
        let mut object = message_json(message, delivery.origin.as_ref());
        let mut put = |name: &str, value: Value| {
            object.insert(name.to_owned(), value);
        };
        put("qos", json!(level_of(message.qos())));
        put("retained", json!(delivery.retained));
        put("delivery_attempt", json!(delivery.delivery_attempt));
        if !delivery.subscription_ids.is_empty() {
            put("subscription_ids", json!(delivery.subscription_ids));
        }
        if delivery.dropped_before > 0 {
            put("dropped_before", json!(delivery.dropped_before));
        }
        object.into()
    }

    fn text(&self, delivery: &v1::Delivery) -> String {
        let payload = payload_text(delivery.message.as_ref());
        match &delivery.message {
            Some(message) if self.with_topic => format!("{} {payload}", message.topic),
            _ => payload.into_owned(),
        }
    }
}

/// The level as MQTT counts it.
fn level_of(qos: v1::Qos) -> Option<u8> {
    match qos {
        v1::Qos::Unspecified => None,
        v1::Qos::AtMostOnce => Some(0),
        v1::Qos::AtLeastOnce => Some(1),
        v1::Qos::ExactlyOnce => Some(2),
    }
}

/// What became of the filters.
fn opened_as(opened: &v1::SubscribeOpened) -> Heard<v1::Delivery> {
    let refused = opened.filters.iter().find_map(|filter| Some((&filter.filter, filter.error.as_ref()?)));
    if let Some((filter, error)) = refused {
        return Heard::Refused(format!("{filter}: {}", error.message));
    }
    let present = if opened.session_present { ", which was there" } else { "" };
    Heard::Opened(Some(format!("subscribed as {}{present}", opened.session_id)))
}
