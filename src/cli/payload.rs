//! Payloads on the command line: arguments, stdin, a file.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, stdin};

use super::exit::{Exit, Failure};

/// Messages of one call, when there are many.
const BATCH_MESSAGES: usize = 500;
/// Messages that the broker takes together.
const TOGETHER_MESSAGES: usize = 10_000;
/// No more after so many bytes.
const BATCH_BYTES: usize = 1 << 20;

/// Where payloads come from.
#[derive(Args, Debug)]
pub(super) struct PayloadOptions {
    /// A message each
    #[arg(conflicts_with_all = ["stdin", "lines", "file"])]
    payloads: Vec<String>,
    /// All of stdin is one message
    #[arg(long, conflicts_with_all = ["lines", "file"])]
    stdin: bool,
    /// Each line of stdin is a message
    #[arg(long, conflicts_with = "file")]
    lines: bool,
    /// All of a file is one message
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
}

impl PayloadOptions {
    /// Hands all payloads, each `repeat` times, to `send`, in batches, or in one if `together`; tells whether all went well.
    pub(super) async fn send(
        &self,
        repeat: u64,
        together: bool,
        mut send: impl AsyncFnMut(Vec<Bytes>) -> Result<Exit, Failure>,
    ) -> Result<Exit, Failure> {
        let mut batches = Batches { ready: Vec::new(), bytes: 0, repeat, together, exit: Exit::Done };
        if self.lines {
            let mut lines = BufReader::new(stdin()).lines();
            while let Some(text) = lines.next_line().await.map_err(Failure::failed)? {
                batches.add(text.into(), &mut send).await?;
            }
            return batches.end(&mut send).await;
        }
        let payloads = if self.stdin {
            let mut payload = Vec::new();
            stdin().read_to_end(&mut payload).await.map_err(Failure::failed)?;
            vec![payload.into()]
        } else if let Some(path) = &self.file {
            let unreadable = |error| Failure::usage(anyhow::anyhow!("--file {}: {error}", path.display()));
            vec![tokio::fs::read(path).await.map_err(unreadable)?.into()]
        } else {
            self.payloads.iter().map(|payload| payload.clone().into()).collect()
        };
        if payloads.is_empty() {
            let what = "there is nothing to send: give a payload, --stdin, --lines or --file";
            return Err(Failure::usage(anyhow::anyhow!(what)));
        }
        for payload in payloads {
            batches.add(payload, &mut send).await?;
        }
        batches.end(&mut send).await
    }
}

struct Batches {
    ready: Vec<Bytes>,
    bytes: usize,
    repeat: u64,
    together: bool,
    exit: Exit,
}

impl Batches {
    async fn add(
        &mut self,
        payload: Bytes,
        send: &mut impl AsyncFnMut(Vec<Bytes>) -> Result<Exit, Failure>,
    ) -> Result<(), Failure> {
        for _ in 0..self.repeat {
            self.bytes += payload.len();
            self.ready.push(payload.clone());
            if !self.together {
                if self.ready.len() >= BATCH_MESSAGES || self.bytes >= BATCH_BYTES {
                    self.flush(send).await?;
                }
            } else if self.ready.len() > TOGETHER_MESSAGES {
                let what = format!("at most {TOGETHER_MESSAGES} messages can be sent together");
                return Err(Failure::usage(anyhow::anyhow!(what)));
            }
        }
        Ok(())
    }

    async fn flush(
        &mut self,
        send: &mut impl AsyncFnMut(Vec<Bytes>) -> Result<Exit, Failure>,
    ) -> Result<(), Failure> {
        self.bytes = 0;
        if send(std::mem::take(&mut self.ready)).await? != Exit::Done {
            self.exit = Exit::Failed;
        }
        Ok(())
    }

    async fn end(
        mut self,
        send: &mut impl AsyncFnMut(Vec<Bytes>) -> Result<Exit, Failure>,
    ) -> Result<Exit, Failure> {
        if !self.ready.is_empty() {
            self.flush(send).await?;
        }
        Ok(self.exit)
    }
}
