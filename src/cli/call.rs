//! `stafett call`.

use clap::Args;
use serde_json::{Map, Value, json};
use tonic::transport::Channel;

use crate::grpc::proto::v1;
use crate::grpc::proto::v1::call_service_client::CallServiceClient;
use crate::grpc::proto::v1::call_stream_response::Event;

use super::ClientOptions;
use super::client::{calls, refused, request};
use super::exit::{Exit, Failure};
use super::message::{key_value, message_json, payload_text, show_duration};
use super::out::line;
use super::payload::PayloadOptions;

/// The arguments of `stafett call`.
#[derive(Args, Debug)]
#[command(after_help = "\
Each payload is a call; prints the reply to each. --timeout is the deadline of one call. Exit codes: 1 the responder \
answered with an error, or was lost; 3 nobody serves, the broker cannot be reached, or the deadline passed.
Examples:
  stafett call math/square 7
  stafett call lamps/7/set on --timeout 2s
  stafett call resize --file photo.jpg --json
  stafett call search/lines error --stream
  stafett call math/square --lines --idempotent < numbers.txt")]
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
    #[command(flatten)]
    template: Template,
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

fn show(options: &ClientOptions, reply: Option<v1::Reply>) -> Result<(), Failure> {
    let reply = reply.unwrap_or_default();
    if options.json { line(reply_json(reply)) } else { line(payload_text(reply.message.as_ref())) }
}

/// A reply as one JSON object.
pub(super) fn reply_json(reply: v1::Reply) -> Value {
    let v1::Reply { responder_id, message, error, latency } = reply;
    let mut object = match error {
        Some(error) => Map::from_iter([("error".to_owned(), json!(error.message))]),
        None => message_json(&message.unwrap_or_default(), None),
    };
    object.remove("topic");
    object.insert("responder_id".to_owned(), json!(responder_id));
    if let Some(latency) = latency {
        object.insert("latency".to_owned(), json!(show_duration(&latency)));
    }
    Value::Object(object)
}
