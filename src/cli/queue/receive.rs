//! Taking messages one answer at a time, and settling them.

use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::cli::ClientOptions;
use crate::cli::client::{refused, request};
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::{QueuedOptions, duration, parse_token, payload_text, show_token};
use crate::cli::out::line;
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::forward_result::Outcome;

use super::{Client, leased_json, report};

/// The arguments of `stafett queue receive`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints a line per message: its lease token, a tab, its payload; with --ack the payload alone. Exit code 4: there was \
nothing.
Examples:
  stafett queue receive orders --wait 10s
  stafett queue receive orders --max 100 --ack --json")]
pub(super) struct Receive {
    /// The queue
    name: String,
    /// At most so many messages
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 1)]
    max: u32,
    /// How long to wait for the first, with its unit
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// How long you may hold them; the queue's own lease if not said
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    lease: Option<Duration>,
    /// Settle them at once: none comes again
    #[arg(long, conflicts_with = "lease")]
    ack: bool,
}

impl Receive {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question = v1::ReceiveRequest {
            queue: self.name.clone(),
            max_messages: self.max,
            wait: Some(duration(self.wait)),
            lease: self.lease.map(duration),
            consumer_id: String::new(),
            auto_ack: self.ack,
        };
        // The wait is asked for, the timeout is for the answer.
        let patient = ClientOptions { timeout: options.timeout + self.wait, ..options.clone() };
        let answer = client.receive(request(&patient, question)).await.map_err(|status| refused(&status))?;
        let messages = answer.into_inner().messages;
        for leased in &messages {
            if options.json {
                line(leased_json(leased))?;
            } else if self.ack {
                line(payload_text(leased.message.as_ref()))?;
            } else {
                line(format_args!(
                    "{}\t{}",
                    show_token(&leased.lease_token),
                    payload_text(leased.message.as_ref())
                ))?;
            }
        }
        Ok(if messages.is_empty() { Exit::Nothing } else { Exit::Done })
    }
}

fn tokens(texts: &[String]) -> Result<Vec<Bytes>, Failure> {
    texts.iter().map(|text| parse_token(text)).collect::<anyhow::Result<_>>().map_err(Failure::usage)
}

/// The arguments of `stafett queue ack`.
#[derive(Args, Debug)]
#[command(after_help = "Exit code 1: one could not be settled. Example: stafett queue ack orders TOKEN")]
pub(super) struct Ack {
    /// The queue
    name: String,
    /// What receive printed
    #[arg(required = true, value_name = "TOKEN")]
    tokens: Vec<String>,
}

impl Ack {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question =
            v1::AcknowledgeRequest { queue: self.name.clone(), lease_tokens: tokens(&self.tokens)? };
        let answer =
            client.acknowledge(request(options, question)).await.map_err(|status| refused(&status))?;
        Ok(report(&answer.into_inner().failures))
    }
}

/// The arguments of `stafett queue forward`.
#[derive(Args, Debug)]
#[command(after_help = "\
The message is stored exactly when the delivery is settled: in one durable act. Prints its id. Exit code 1: neither was done.
Example: stafett queue forward orders TOKEN --to bills '{\"order\":7,\"sum\":3}'")]
pub(super) struct Forward {
    /// The queue that was received from
    name: String,
    /// What receive printed
    token: String,
    /// The queue for the message
    #[arg(long, value_name = "QUEUE")]
    to: String,
    /// The payload of the message
    payload: String,
    #[command(flatten)]
    message: QueuedOptions,
}

impl Forward {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let message = self.message.message("").map_err(Failure::usage)?;
        let message = v1::Message { payload: self.payload.clone().into(), ..message };
        let message = v1::ForwardMessage { queue: self.to.clone(), message: Some(message) };
        let lease_token = parse_token(&self.token).map_err(Failure::usage)?;
        let item = v1::ForwardItem { lease_token, messages: vec![message] };
        let question = v1::ForwardRequest { queue: self.name.clone(), items: vec![item] };
        let answer = client.forward(request(options, question)).await.map_err(|status| refused(&status))?;
        match answer.into_inner().results.pop().and_then(|result| result.outcome) {
            Some(Outcome::Ok(stored)) => {
                for stored in stored.messages {
                    if options.json {
                        line(json!({ "message_id": stored.message_id, "sequence": stored.sequence }))?;
                    } else {
                        line(stored.message_id)?;
                    }
                }
                Ok(Exit::Done)
            }
            Some(Outcome::Error(error)) => Err(Failure::failed(anyhow::anyhow!(error.message))),
            None => Err(Failure::failed(anyhow::anyhow!("the broker does not say what became of it"))),
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Not begun: does not count as a delivery
    Release,
    /// Tried in vain: counts
    Failed,
    /// Never going to work: to the dead letter queue at once
    DeadLetter,
}

/// The arguments of `stafett queue nack`.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit code 1: one could not be given back.
Examples:
  stafett queue nack orders TOKEN --delay 30s
  stafett queue nack orders TOKEN --kind dead-letter --reason 'not JSON'")]
pub(super) struct Nack {
    /// The queue
    name: String,
    /// What receive printed
    #[arg(required = true, value_name = "TOKEN")]
    tokens: Vec<String>,
    /// What it means
    #[arg(long, value_enum, default_value = "failed")]
    kind: Kind,
    /// Deliver again not before this has passed; as the queue's back-off says if not said
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    delay: Option<Duration>,
    /// Kept with a dead letter
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

impl Nack {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let kind = match self.kind {
            Kind::Release => v1::NackKind::Release,
            Kind::Failed => v1::NackKind::Failed,
            Kind::DeadLetter => v1::NackKind::DeadLetter,
        };
        let question = v1::NackRequest {
            queue: self.name.clone(),
            lease_tokens: tokens(&self.tokens)?,
            kind: kind.into(),
            delay: self.delay.map(duration),
            reason: self.reason.clone(),
        };
        let answer = client.nack(request(options, question)).await.map_err(|status| refused(&status))?;
        Ok(report(&answer.into_inner().failures))
    }
}
