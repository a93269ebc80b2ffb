//! How far readers of a stream are.

use clap::Args;
use serde_json::json;

use crate::cli::ClientOptions;
use crate::cli::client::{pages, refused, request};
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::show_time;
use crate::cli::out::line;
use crate::grpc::proto::v1beta1;

use super::Client;

/// The arguments of `stafett stream cursors`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints a line per cursor: its name, the sequence up to which its reader is done, how many follow, and how many of these were not \
kept long enough.
Example: stafett stream cursors readings --json")]
pub(super) struct Cursors {
    /// The stream
    name: String,
}

impl Cursors {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let ask = async |page_token| {
            let stream = self.name.clone();
            let question = v1beta1::ListCursorsRequest { stream, page_size: 1000, page_token };
            client.list_cursors(request(options, question)).await
        };
        pages(ask, |page| {
            for cursor in &page.cursors {
                let v1beta1::Cursor { name, committed_sequence, lag, lost, commit_time } = cursor;
                if options.json {
                    line(json!({
                        "name": name,
                        "committed_sequence": committed_sequence,
                        "commit_time": commit_time.as_ref().map(show_time),
                        "lag": lag,
                        "lost": lost,
                    }))?;
                } else {
                    line(format_args!("{name}\t{committed_sequence}\t{lag}\t{lost}"))?;
                }
            }
            Ok(page.next_page_token)
        })
        .await
    }
}

/// The arguments of `stafett stream commit`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints the sequence up to which the reader is done.
Examples:
  stafett stream commit readings billing 1700
  stafett stream commit readings billing 0 --rewind")]
pub(super) struct Commit {
    /// The stream
    name: String,
    /// The cursor; it is made if there is none
    cursor: String,
    /// Everything up to this one is done
    sequence: u64,
    /// Move the cursor back, too
    #[arg(long)]
    rewind: bool,
}

impl Commit {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question = v1beta1::CommitCursorRequest {
            stream: self.name.clone(),
            cursor: self.cursor.clone(),
            sequence: self.sequence,
            rewind: self.rewind,
        };
        let answer =
            client.commit_cursor(request(options, question)).await.map_err(|status| refused(&status))?;
        let committed = answer.into_inner().committed_sequence;
        if options.json {
            line(json!({ "committed_sequence": committed }))?
        } else {
            line(committed)?
        }
        Ok(Exit::Done)
    }
}

/// The arguments of `stafett stream forget`.
#[derive(Args, Debug)]
#[command(after_help = "Example: stafett stream forget readings billing")]
pub(super) struct Forget {
    /// The stream
    name: String,
    /// The cursor
    cursor: String,
}

impl Forget {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question =
            v1beta1::DeleteCursorRequest { stream: self.name.clone(), cursor: self.cursor.clone() };
        client.delete_cursor(request(options, question)).await.map_err(|status| refused(&status))?;
        Ok(Exit::Done)
    }
}
