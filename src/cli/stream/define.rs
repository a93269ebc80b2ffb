//! Making, changing and deleting streams.

use std::time::Duration;

use clap::Args;

use crate::cli::ClientOptions;
use crate::cli::client::{pages, refused, request};
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::duration;
use crate::cli::out::{line, text};
use crate::cli::queue::{bytes, print_count};
use crate::grpc::proto::v1beta1;

use super::{Client, state_json, state_text, stream_json, stream_text};

/// Settings of a stream, as far as they are said.
#[derive(Args, Debug)]
struct Settings {
    /// Append every publish that matches; may be given several times
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// What was appended longer ago goes: 1s to 10 years
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
    /// At most so many messages: the oldest go for new ones
    #[arg(long, value_name = "COUNT")]
    max_messages: Option<u64>,
    /// At most so many bytes of them: 1000000, 64MiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    max_bytes: Option<u64>,
}

impl Settings {
    /// The stream that they describe, and the names of the fields that were said.
    fn stream(&self, name: &str) -> (v1beta1::Stream, Vec<&'static str>) {
        let fields = [
            ("filters", !self.filters.is_empty()),
            ("max_age", self.max_age.is_some()),
            ("max_messages", self.max_messages.is_some()),
            ("max_bytes", self.max_bytes.is_some()),
        ];
        let stream = v1beta1::Stream {
            name: name.to_owned(),
            filters: self.filters.clone(),
            max_age: self.max_age.map(duration),
            max_messages: self.max_messages.unwrap_or_default(),
            max_bytes: self.max_bytes.unwrap_or_default(),
        };
        (stream, fields.into_iter().filter(|(_, said)| *said).map(|(field, _)| field).collect())
    }
}

fn print_stream(options: &ClientOptions, stream: Option<v1beta1::Stream>) -> Result<Exit, Failure> {
    let stream = stream.unwrap_or_default();
    if options.json {
        line(stream_json(&stream))?
    } else {
        text(&stream_text(&stream))?
    }
    Ok(Exit::Done)
}

/// The arguments of `stafett stream create`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  stafett stream create readings --filter 'site/#' --max-age 7d
  stafett stream create audit --max-messages 1000000")]
pub(super) struct Create {
    /// 1 to 128 of A-Z a-z 0-9 . _ -
    name: String,
    #[command(flatten)]
    settings: Settings,
    /// A stream with the same settings is fine
    #[arg(long)]
    if_not_exists: bool,
}

impl Create {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let (stream, _) = self.settings.stream(&self.name);
        let question =
            v1beta1::CreateStreamRequest { stream: Some(stream), if_not_exists: self.if_not_exists };
        let answer =
            client.create_stream(request(options, question)).await.map_err(|status| refused(&status))?;
        print_stream(options, answer.into_inner().stream)
    }
}

/// The arguments of `stafett stream update`.
#[derive(Args, Debug)]
#[command(after_help = "\
What is not said stays as it is. --filter replaces all filters. What is beyond a lower bound goes soon after.
Examples:
  stafett stream update readings --max-age 1d
  stafett stream update readings --unset max_age --max-bytes 10GiB")]
pub(super) struct Update {
    /// The stream
    name: String,
    #[command(flatten)]
    settings: Settings,
    /// Give a setting its default again; may be given several times
    #[arg(long, value_name = "SETTING", value_parser = ["filters", "max_age", "max_messages", "max_bytes"])]
    unset: Vec<String>,
}

impl Update {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let (stream, fields) = self.settings.stream(&self.name);
        if let Some(both) = self.unset.iter().find(|field| fields.contains(&field.as_str())) {
            return Err(Failure::usage(anyhow::anyhow!("{both} is both set and unset")));
        }
        let paths: Vec<_> = fields.into_iter().map(str::to_owned).chain(self.unset.iter().cloned()).collect();
        if paths.is_empty() {
            return Err(Failure::usage(anyhow::anyhow!("there is nothing to change: give a setting")));
        }
        let update_mask = Some(prost_types::FieldMask { paths });
        let question = v1beta1::UpdateStreamRequest { stream: Some(stream), update_mask };
        let answer =
            client.update_stream(request(options, question)).await.map_err(|status| refused(&status))?;
        print_stream(options, answer.into_inner().stream)
    }
}

/// The arguments of `stafett stream list`.
#[derive(Args, Debug)]
#[command(after_help = "Example: stafett stream list --prefix site. --json")]
pub(super) struct List {
    /// Only names that begin so
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
}

impl List {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let ask = async |page_token| {
            let name_prefix = self.prefix.clone();
            let question = v1beta1::ListStreamsRequest { name_prefix, page_size: 1000, page_token };
            client.list_streams(request(options, question)).await
        };
        pages(ask, |page| {
            for stream in &page.streams {
                if options.json { line(stream_json(stream))? } else { line(&stream.name)? }
            }
            Ok(page.next_page_token)
        })
        .await
    }
}

/// The arguments of `stafett stream info`.
#[derive(Args, Debug)]
#[command(after_help = "Example: stafett stream info readings")]
pub(super) struct Info {
    /// The stream
    name: String,
}

impl Info {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question = request(options, v1beta1::GetStreamRequest { name: self.name.clone() });
        let answer = client.get_stream(question).await.map_err(|status| refused(&status))?.into_inner();
        let (stream, state) = (answer.stream.unwrap_or_default(), answer.state.unwrap_or_default());
        if options.json {
            let mut all = stream_json(&stream);
            if let Some(all) = all.as_object_mut() {
                all.insert("state".to_owned(), state_json(&state));
            }
            line(all)?;
        } else {
            text(&format!("{}{}", stream_text(&stream), state_text(&state)))?;
        }
        Ok(Exit::Done)
    }
}

/// The arguments of `stafett stream delete`.
#[derive(Args, Debug)]
#[command(after_help = "Prints how many messages went with it. Example: stafett stream delete readings")]
pub(super) struct Delete {
    /// The stream
    name: String,
}

impl Delete {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question = v1beta1::DeleteStreamRequest { name: self.name.clone() };
        let answer =
            client.delete_stream(request(options, question)).await.map_err(|status| refused(&status))?;
        print_count(options, "deleted_messages", answer.into_inner().deleted_messages)?;
        Ok(Exit::Done)
    }
}
