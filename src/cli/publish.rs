//! `stafett pub`.

use bytes::Bytes;
use clap::Args;
use serde_json::json;
use tonic::transport::Channel;

use crate::grpc::proto::v1;
use crate::grpc::proto::v1::pub_sub_service_client::PubSubServiceClient;
use crate::grpc::proto::v1::publish_result::Outcome;

use super::ClientOptions;
use super::client::{connect, refused, request};
use super::exit::{Exit, Failure};
use super::message::QueuedOptions;
use super::out::line;
use super::payload::PayloadOptions;

/// The level of a message or filter.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// At most once
    #[value(name = "0")]
    AtMostOnce,
    /// At least once
    #[value(name = "1")]
    AtLeastOnce,
}

impl From<Level> for v1::Qos {
    fn from(level: Level) -> Self {
        match level {
            Level::AtMostOnce => Self::AtMostOnce,
            Level::AtLeastOnce => Self::AtLeastOnce,
        }
    }
}

/// The arguments of `stafett pub`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints the id of each message and how many subscribers and queues it matched. Exit codes: 0 all were accepted; 1 one \
was refused.
Examples:
  stafett pub sensors/7/temperature 21.5
  stafett pub sensors/7/state online --retain
  stafett pub sensors/7/state '' --retain          # deletes the retained message
  stafett pub logs --qos 0 --lines < app.log
  stafett pub reports/daily --file report.pdf --content-type application/pdf --ttl 1day
  stafett pub test x --count 1000")]
pub(super) struct Publish {
    /// The topic
    topic: String,
    #[command(flatten)]
    payloads: PayloadOptions,
    /// Keep the message as the topic's last value; an empty one deletes it
    #[arg(long)]
    retain: bool,
    /// 0: at most once; 1: at least once
    #[arg(long, value_name = "LEVEL", default_value = "1", hide_possible_values = true)]
    qos: Level,
    /// Publish each message so many times
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 1)]
    count: u64,
    #[command(flatten)]
    message: QueuedOptions,
}

impl Publish {
    pub(super) async fn run(&self, options: &ClientOptions) -> Result<Exit, Failure> {
        let template = v1::Message {
            retain: self.retain,
            qos: v1::Qos::from(self.qos).into(),
            ..self.message.message(&self.topic).map_err(Failure::usage)?
        };
        let mut client =
            PubSubServiceClient::new(connect(options).await?).max_encoding_message_size(usize::MAX);
        self.payloads
            .send(self.count, false, async |payloads| {
                let with = |payload: Bytes| v1::Message { payload, ..template.clone() };
                batch(&mut client, options, payloads.into_iter().map(with).collect()).await
            })
            .await
    }
}

async fn batch(
    client: &mut PubSubServiceClient<Channel>,
    options: &ClientOptions,
    messages: Vec<v1::Message>,
) -> Result<Exit, Failure> {
    let question = request(options, v1::PublishBatchRequest { messages });
    let answer = client.publish_batch(question).await.map_err(|status| refused(&status))?;
    let mut exit = Exit::Done;
    for result in answer.into_inner().results {
        match result.outcome {
            Some(Outcome::Ok(done)) => {
                let v1::PublishResponse {
                    message_id,
                    matched_subscribers,
                    matched_queues,
                    matched_streams,
                    duplicate,
                    ..
                } = done;
                if options.json {
                    line(json!({
                        "message_id": message_id,
                        "matched_subscribers": matched_subscribers,
                        "matched_queues": matched_queues,
                        "duplicate": duplicate,
                        "matched_streams": matched_streams,
                    }))?;
                } else {
                    let streams = match matched_streams {
                        0 => String::new(),
                        streams => format!(" {streams} streams"),
                    };
                    line(format_args!(
                        "{message_id} {matched_subscribers} subscribers {matched_queues} queues{streams}"
                    ))?;
                }
            }
            Some(Outcome::Error(error)) => {
                eprintln!("error: {}", error.message);
                exit = Exit::Failed;
            }
            None => exit = Exit::Failed,
        }
    }
    Ok(exit)
}
