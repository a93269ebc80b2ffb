//! Putting messages into a queue.

use bytes::Bytes;
use clap::Args;
use serde_json::json;

use crate::cli::ClientOptions;
use crate::cli::client::{refused, request};
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::QueuedOptions;
use crate::cli::out::line;
use crate::cli::payload::PayloadOptions;
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::enqueue_result::Outcome;

use super::Client;

/// The arguments of `stafett queue send`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints the id of each message that is stored; of one whose --dedup-id the queue knows, that of the first.
Exit codes: 0 all are stored; 1 one was refused.
Examples:
  stafett queue send orders 'first' 'second'
  stafett queue send orders --property tenant=7 --delay 10m --stdin < order.json
  stafett queue send orders --dedup-id order-7 'first'
  stafett queue send orders --ordering-key customer-7 'first' 'second'
  stafett queue send orders --lines --atomic < orders.jsonl")]
pub(super) struct Send {
    /// The queue
    name: String,
    #[command(flatten)]
    payloads: PayloadOptions,
    /// The topic that the messages carry, instead of $queue/NAME
    #[arg(long, default_value = "", hide_default_value = true)]
    topic: String,
    /// Store all of them or none; at most 10 000
    #[arg(long)]
    atomic: bool,
    #[command(flatten)]
    message: QueuedOptions,
}

impl Send {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let template = self.message.message(&self.topic).map_err(Failure::usage)?;
        self.payloads
            .send(1, self.atomic, async |payloads| {
                let with = |payload: Bytes| v1::Message { payload, ..template.clone() };
                self.batch(&mut client, options, payloads.into_iter().map(with).collect()).await
            })
            .await
    }

    async fn batch(
        &self,
        client: &mut Client,
        options: &ClientOptions,
        messages: Vec<v1::Message>,
    ) -> Result<Exit, Failure> {
        let question = v1::EnqueueBatchRequest { queue: self.name.clone(), messages, atomic: self.atomic };
        let answer =
            client.enqueue_batch(request(options, question)).await.map_err(|status| refused(&status))?;
        let mut exit = Exit::Done;
        for result in answer.into_inner().results {
            match result.outcome {
                Some(Outcome::Ok(stored)) if options.json => {
                    let v1::EnqueueResponse { message_id, sequence, duplicate } = stored;
                    line(json!({ "message_id": message_id, "sequence": sequence, "duplicate": duplicate }))?;
                }
                Some(Outcome::Ok(stored)) => line(stored.message_id)?,
                Some(Outcome::Error(error)) => {
                    eprintln!("error: {}", error.message);
                    exit = Exit::Failed;
                }
                None => exit = Exit::Failed,
            }
        }
        Ok(exit)
    }
}
