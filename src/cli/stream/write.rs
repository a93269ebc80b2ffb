//! Putting messages straight into a stream.

use bytes::Bytes;
use clap::Args;
use serde_json::json;

use crate::cli::ClientOptions;
use crate::cli::client::{refused, request};
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::MessageOptions;
use crate::cli::out::line;
use crate::cli::payload::PayloadOptions;
use crate::grpc::proto::{v1, v1beta1};

use super::Client;

/// The arguments of `stafett stream append`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints the sequence of each message. Messages that are sent together, up to 500 and 1 MiB, are stored together or not at all.
Subscribers and queues do not get them: `stafett pub` is for that.
Examples:
  stafett stream append audit 'first' 'second'
  stafett stream append audit --expect 3 'only if it is the third'
  stafett stream append audit --lines < audit.log")]
pub(super) struct Append {
    /// The stream
    name: String,
    #[command(flatten)]
    payloads: PayloadOptions,
    /// The topic that the messages carry, instead of $stream/NAME
    #[arg(long, default_value = "", hide_default_value = true)]
    topic: String,
    /// The sequence that the first message must get
    #[arg(long, value_name = "SEQUENCE")]
    expect: Option<u64>,
    #[command(flatten)]
    message: MessageOptions,
}

impl Append {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let template = self.message.message(&self.topic).map_err(Failure::usage)?;
        let mut expected = self.expect;
        self.payloads
            .send(1, false, async |payloads| {
                let with = |payload: Bytes| v1::Message { payload, ..template.clone() };
                let question = v1beta1::AppendRequest {
                    stream: self.name.clone(),
                    messages: payloads.into_iter().map(with).collect(),
                    expected_next_sequence: expected,
                };
                let answer = client.append(request(options, question)).await;
                let answer = answer.map_err(|status| refused(&status))?.into_inner();
                expected = expected.map(|_| answer.last_sequence + 1);
                for sequence in answer.first_sequence..=answer.last_sequence {
                    if options.json { line(json!({ "sequence": sequence }))? } else { line(sequence)? }
                }
                Ok(Exit::Done)
            })
            .await
    }
}
