//! Putting messages into a queue.

use bytes::Bytes;
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, stdin};

use crate::cli::ClientOptions;
use crate::cli::client::{refused, request};
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::MessageOptions;
use crate::cli::out::line;
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::enqueue_result::Outcome;

use super::Client;

/// Messages of one call, when there are many.
const BATCH_MESSAGES: usize = 500;
/// No more after so many bytes.
const BATCH_BYTES: usize = 1 << 20;

/// The arguments of `stafett queue send`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints the id of each message that is stored. Exit codes: 0 all are stored; 1 one was refused.
Examples:
  stafett queue send orders 'first' 'second'
  stafett queue send orders --property tenant=7 --delay 10m --stdin < order.json
  stafett queue send orders --lines < orders.jsonl")]
pub(super) struct Send {
    /// The queue
    name: String,
    /// A message each
    #[arg(conflicts_with_all = ["stdin", "lines"])]
    payloads: Vec<String>,
    /// All of stdin is one message
    #[arg(long, conflicts_with = "lines")]
    stdin: bool,
    /// Each line of stdin is a message
    #[arg(long)]
    lines: bool,
    /// The topic that the messages carry, instead of $queue/NAME
    #[arg(long, default_value = "", hide_default_value = true)]
    topic: String,
    #[command(flatten)]
    message: MessageOptions,
}

impl Send {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let template = self.message.message(&self.topic).map_err(Failure::usage)?;
        let with = |payload: Bytes| v1::Message { payload, ..template.clone() };
        if self.stdin {
            let mut payload = Vec::new();
            stdin().read_to_end(&mut payload).await.map_err(Failure::failed)?;
            return self.batch(&mut client, options, vec![with(payload.into())]).await;
        }
        if self.lines {
            return self.lines(&mut client, options, with).await;
        }
        if self.payloads.is_empty() {
            return Err(Failure::usage(anyhow::anyhow!(
                "there is nothing to send: give a payload, --stdin or --lines"
            )));
        }
        let messages = self.payloads.iter().map(|payload| with(payload.clone().into())).collect();
        self.batch(&mut client, options, messages).await
    }

    async fn lines(
        &self,
        client: &mut Client,
        options: &ClientOptions,
        with: impl Fn(Bytes) -> v1::Message,
    ) -> Result<Exit, Failure> {
        let mut lines = BufReader::new(stdin()).lines();
        let (mut batch, mut bytes, mut exit) = (Vec::new(), 0, Exit::Done);
        loop {
            let next = lines.next_line().await.map_err(Failure::failed)?;
            let ended = next.is_none();
            if let Some(text) = next {
                bytes += text.len();
                batch.push(with(text.into()));
            }
            if !batch.is_empty() && (ended || batch.len() >= BATCH_MESSAGES || bytes >= BATCH_BYTES) {
                bytes = 0;
                if self.batch(client, options, std::mem::take(&mut batch)).await? != Exit::Done {
                    exit = Exit::Failed;
                }
            }
            if ended {
                return Ok(exit);
            }
        }
    }

    async fn batch(
        &self,
        client: &mut Client,
        options: &ClientOptions,
        messages: Vec<v1::Message>,
    ) -> Result<Exit, Failure> {
        let question = v1::EnqueueBatchRequest { queue: self.name.clone(), messages };
        let answer =
            client.enqueue_batch(request(options, question)).await.map_err(|status| refused(&status))?;
        let mut exit = Exit::Done;
        for result in answer.into_inner().results {
            match result.outcome {
                Some(Outcome::Ok(stored)) if options.json => {
                    line(json!({ "message_id": stored.message_id, "sequence": stored.sequence }))?;
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
