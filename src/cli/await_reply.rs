//! `stafett await-reply`.

use std::time::Duration;

use clap::Args;
use tonic::{Code, Request};

use crate::grpc::proto::v1;

use super::ClientOptions;
use super::call::show;
use super::client::{calls, refused};
use super::exit::{Exit, Failure};
use super::message::{duration, wait};

/// The arguments of `stafett await-reply`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints the reply to a call that `stafett call --async` has stored. Exit codes: 1 the reply is an error, or there is no such \
call; 3 the call's time was over, or the broker cannot be reached; 4 there is no reply yet.
Examples:
  stafett await-reply 01KAQ5G3B6M8E9R3ZT0Y6Q4W7X
  stafett await-reply 01KAQ5G3B6M8E9R3ZT0Y6Q4W7X --wait 10m --json")]
pub(super) struct AwaitReply {
    /// What `stafett call --async` has printed
    request_id: String,
    /// How long to wait for the reply, at most 1h
    #[arg(long, value_name = "TIME", value_parser = wait, default_value = "0s")]
    wait: Duration,
}

impl AwaitReply {
    pub(super) async fn run(&self, options: &ClientOptions) -> Result<Exit, Failure> {
        let mut client = calls(options).await?;
        let mut request = Request::new(v1::AwaitReplyRequest {
            request_id: self.request_id.clone(),
            wait: Some(duration(self.wait)),
        });
        request.set_timeout(options.timeout.saturating_add(self.wait));
        let answer = client.await_reply(request).await.map_err(|status| refused(&status))?.into_inner();
        if !answer.done {
            return Ok(Exit::Nothing);
        }
        match answer.reply.as_ref().and_then(|reply| reply.error.as_ref()) {
            // What is said, and not that it could not be asked for.
            Some(error) => {
                let code = Code::from(error.code);
                let exit = if code == Code::DeadlineExceeded { Exit::Unreachable } else { Exit::Failed };
                Err(Failure { exit, reason: anyhow::anyhow!("{code:?}: {}", error.message) })
            }
            None => {
                show(options, answer.reply)?;
                Ok(Exit::Done)
            }
        }
    }
}
