//! `stafett call`.

use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};
use tonic::transport::Channel;

use crate::grpc::proto::v1;
use crate::grpc::proto::v1::call_async_request::ReplyTo;
use crate::grpc::proto::v1::call_service_client::CallServiceClient;
use crate::grpc::proto::v1::call_stream_response::Event;

use super::ClientOptions;
use super::client::{calls, refused, request};
use super::exit::{Exit, Failure};
use super::message::{duration, key_value, message_json, payload_text, show_duration};
use super::out::line;
use super::payload::PayloadOptions;

/// The arguments of `stafett call`.
#[derive(Args, Debug)]
#[command(after_help = "\
Each payload is a call; prints the reply to each. --timeout is the deadline of one call. Exit codes: 1 the responder \
answered with an error, or was lost; 3 nobody serves, the broker cannot be reached, or the deadline passed.
With --async a call is stored, to be made as soon as the service is served, and its id is printed: for stafett await-reply, \
and as the correlation data of its reply.
Examples:
  stafett call math/square 7
  stafett call lamps/7/set on --timeout 2s
  stafett call resize --file photo.jpg --json
  stafett call search/lines error --stream
  stafett call math/square --lines --idempotent < numbers.txt
  stafett call reports/monthly --file june.json --async --within 1day
  stafett call math/square 7 --async --reply-queue squares")]
pub(super) struct Call {
    /// The service
    service: String,
    #[command(flatten)]
    payloads: PayloadOptions,
    /// Let the broker ask another responder when one is lost with the request
    #[arg(long)]
    idempotent: bool,
    /// Take the reply in parts, each printed as it comes
    #[arg(long)]
    stream: bool,
    /// Store the call, and print its id instead of the reply
    #[arg(long = "async", conflicts_with = "stream")]
    later: bool,
    #[command(flatten)]
    reply: ReplyOptions,
    #[command(flatten)]
    template: Template,
}

/// What becomes of the reply to a call that is stored.
#[derive(Args, Debug)]
struct ReplyOptions {
    /// There is a reply after so long at the latest, with its unit: 30s, 1h, 7days
    #[arg(
        long, value_name = "TIME", requires = "later", default_value = "1h",
        value_parser = humantime::parse_duration
    )]
    within: Duration,
    /// Publish the reply on this topic; without it or --reply-queue it is kept for stafett await-reply
    #[arg(long, value_name = "TOPIC", requires = "later")]
    reply_topic: Option<String>,
    /// Put the reply into this queue
    #[arg(long, value_name = "QUEUE", requires = "later", conflicts_with = "reply_topic")]
    reply_queue: Option<String>,
}

impl ReplyOptions {
    fn reply_to(&self) -> Option<ReplyTo> {
        let topic = self.reply_topic.clone().map(ReplyTo::Topic);
        topic.or_else(|| self.reply_queue.clone().map(ReplyTo::Queue))
    }
}

/// What a request says beside its payload.
#[derive(Args, Debug)]
pub(super) struct Template {
    /// What the payload is, as in application/json
    #[arg(long, value_name = "TYPE", default_value = "", hide_default_value = true)]
    content_type: String,
    /// A property; may be given several times
    #[arg(long = "property", value_name = "KEY=VALUE")]
    properties: Vec<String>,
}

impl Template {
    /// The request without its payload.
    pub(super) fn message(&self) -> Result<v1::Message, Failure> {
        let property = |pair: &String| {
            let (key, value) = key_value("--property", pair)?;
            Ok(v1::Property { key, value })
        };
        let properties = self.properties.iter().map(property).collect::<anyhow::Result<_>>();
        Ok(v1::Message {
            content_type: self.content_type.clone(),
            properties: properties.map_err(Failure::usage)?,
            ..Default::default()
        })
    }
}

impl Call {
    pub(super) async fn run(&self, options: &ClientOptions) -> Result<Exit, Failure> {
        let template = self.template.message()?;
        let mut client = calls(options).await?;
        self.payloads
            .send(1, false, async |payloads| {
                for payload in payloads {
                    self.one(&mut client, options, v1::Message { payload, ..template.clone() }).await?;
                }
                Ok(Exit::Done)
            })
            .await
    }

    async fn one(
        &self,
        client: &mut CallServiceClient<Channel>,
        options: &ClientOptions,
        message: v1::Message,
    ) -> Result<(), Failure> {
        let (service, idempotent) = (self.service.clone(), self.idempotent);
        if self.later {
            let question = v1::CallAsyncRequest {
                service,
                request: Some(message),
                timeout: Some(duration(self.reply.within)),
                reply_to: self.reply.reply_to(),
                idempotent,
            };
            let answer = client.call_async(request(options, question)).await;
            let request_id = answer.map_err(|status| refused(&status))?.into_inner().request_id;
            return if options.json { line(json!({ "request_id": request_id })) } else { line(request_id) };
        }
        if !self.stream {
            let question = v1::CallRequest { service, request: Some(message), idempotent };
            let answer = client.call(request(options, question)).await.map_err(|status| refused(&status))?;
            return show(options, answer.into_inner().reply);
        }
        let question = v1::CallStreamRequest { service, request: Some(message), idempotent };
        let events = client.call_stream(request(options, question)).await;
        let mut events = events.map_err(|status| refused(&status))?.into_inner();
        while let Some(event) = events.message().await.map_err(|status| refused(&status))? {
            if let Some(Event::Reply(reply)) = event.event {
                show(options, Some(reply))?;
            }
        }
        Ok(())
    }
}

/// Prints a reply.
pub(super) fn show(options: &ClientOptions, reply: Option<v1::Reply>) -> Result<(), Failure> {
    let reply = reply.unwrap_or_default();
    if options.json { line(reply_json(reply)) } else { line(payload_text(reply.message.as_ref())) }
}

/// A reply as one JSON object.
pub(super) fn reply_json(reply: v1::Reply) -> Value {
    let v1::Reply { responder_id, message, error, latency, part, service } = reply;
    let mut object = match error {
        Some(error) => Map::from_iter([("error".to_owned(), json!(error.message))]),
        None => message_json(&message.unwrap_or_default(), None),
    };
    object.remove("topic");
    object.insert("responder_id".to_owned(), json!(responder_id));
    if let Some(part) = part {
        object.insert("part".to_owned(), json!(part));
    }
    if !service.is_empty() {
        object.insert("service".to_owned(), json!(service));
    }
    if let Some(latency) = latency {
        object.insert("latency".to_owned(), json!(show_duration(&latency)));
    }
    Value::Object(object)
}
