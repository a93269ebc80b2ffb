//! `stafett stream`: make streams, append to them, read them.

mod cursors;
mod define;
mod read;
mod write;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::grpc::proto::v1beta1;
use crate::grpc::proto::v1beta1::log_service_client::LogServiceClient;

use super::ClientOptions;
use super::client::connect;
use super::exit::{Exit, Failure};
use super::message::{show_duration, show_time};

const EXAMPLES: &str = "\
Examples:
  stafett stream create readings --filter 'site/#' --max-age 7d
  stafett stream read readings
  stafett stream read readings --from 2026-01-31T08:00:00Z --topic 'site/+/power'
  stafett stream read readings --cursor billing --follow --json
  stafett stream append audit 'somebody did something'
  stafett stream cursors readings";

/// The arguments of `stafett stream`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, subcommand_required = true)]
pub(super) struct Stream {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a stream
    Create(define::Create),
    /// Change settings of a stream
    Update(define::Update),
    /// List the streams
    List(define::List),
    /// Show the settings of a stream and what is in it
    Info(define::Info),
    /// Delete a stream with its messages and cursors
    Delete(define::Delete),
    /// Put messages straight into a stream
    Append(write::Append),
    /// Print messages of a stream, as often as you like
    Read(read::Read),
    /// Show how far readers are
    Cursors(cursors::Cursors),
    /// Say how far a reader is
    Commit(cursors::Commit),
    /// Forget how far a reader is
    Forget(cursors::Forget),
}

type Client = LogServiceClient<Channel>;

pub(super) async fn run(stream: &Stream, options: &ClientOptions) -> Result<Exit, Failure> {
    let client = LogServiceClient::new(connect(options).await?)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    match &stream.command {
        Command::Create(create) => create.run(client, options).await,
        Command::Update(update) => update.run(client, options).await,
        Command::List(list) => list.run(client, options).await,
        Command::Info(info) => info.run(client, options).await,
        Command::Delete(delete) => delete.run(client, options).await,
        Command::Append(append) => append.run(client, options).await,
        Command::Read(read) => read.run(client, options).await,
        Command::Cursors(cursors) => cursors.run(client, options).await,
        Command::Commit(commit) => commit.run(client, options).await,
        Command::Forget(forget) => forget.run(client, options).await,
    }
}

/// The settings of a stream as one JSON object.
fn stream_json(stream: &v1beta1::Stream) -> Value {
    json!({
        "name": stream.name,
        "filters": stream.filters,
        "max_age": stream.max_age.as_ref().map(show_duration),
        "max_messages": stream.max_messages,
        "max_bytes": stream.max_bytes,
    })
}

/// What is in it.
fn state_json(state: &v1beta1::StreamState) -> Value {
    json!({
        "first_sequence": state.first_sequence,
        "next_sequence": state.next_sequence,
        "messages": state.messages,
        "bytes": state.bytes,
        "first_time": state.first_time.as_ref().map(show_time),
        "last_time": state.last_time.as_ref().map(show_time),
        "appended_total": state.appended_total,
        "aged_total": state.aged_total,
        "displaced_total": state.displaced_total,
        "readers": state.readers,
    })
}

/// The settings of a stream for people.
fn stream_text(stream: &v1beta1::Stream) -> String {
    let age = stream.max_age.as_ref().map_or_else(|| "none".to_owned(), show_duration);
    let mut text = format!(
        "name               {}\nmax age            {age}\nmax messages       {}\nmax bytes          {}\n",
        stream.name, stream.max_messages, stream.max_bytes,
    );
    for filter in &stream.filters {
        text.push_str(&format!("filter             {filter}\n"));
    }
    text
}

/// What is in it for people.
fn state_text(state: &v1beta1::StreamState) -> String {
    let time = |time: Option<&prost_types::Timestamp>| time.map_or_else(|| "none".to_owned(), show_time);
    format!(
        "messages           {}\nbytes              {}\nfirst sequence     {}\nnext sequence      {}\n\
         oldest             {}\nnewest             {}\nreaders            {}\n",
        state.messages,
        state.bytes,
        state.first_sequence,
        state.next_sequence,
        time(state.first_time.as_ref()),
        time(state.last_time.as_ref()),
        state.readers,
    )
}
