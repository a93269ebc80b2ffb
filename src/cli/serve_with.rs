//! `stafett serve-with`: a responder that runs a program per request.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::pin;
use std::process::Stdio;

use anyhow::Context;
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::grpc::proto::v1;
use crate::grpc::proto::v1::serve_request::Action;
use crate::grpc::proto::v1::serve_response::Event;

use super::ClientOptions;
use super::client::{calls, refused};
use super::exit::{Exit, Failure};
use super::taking::say;

/// Programs at the same time when nobody says.
const CONCURRENCY: u32 = 8;

/// The arguments of `stafett serve-with`.
#[derive(Args, Debug)]
#[command(after_help = "\
Runs the program for each request: the payload on stdin, the reply from stdout. It finds CALL_SERVICE, CALL_CALLER, \
CALL_ATTEMPT and CALL_CONTENT_TYPE in its environment, and CALL_PART and CALL_PARTS when it is asked one of the parts of a \
request. Another end than 0 is an error reply. A program whose caller waits \
no more is killed. Ends with ctrl-c, when what runs is answered; a second one cuts.
Examples:
  stafett serve-with text/upper -- tr a-z A-Z
  stafett serve-with math/square --concurrency 2 -- sh -c 'read n; echo $((n * n))'
  stafett serve-with resize --group thumbnails -- convert - -resize 200x200 -")]
pub(super) struct ServeWith {
    /// The service
    service: String,
    /// The program and its arguments
    #[arg(required = true, value_name = "COMMAND", trailing_var_arg = true)]
    command: Vec<String>,
    /// Programs at the same time: 1 to 65535
    #[arg(
        long, value_name = "COUNT", default_value_t = CONCURRENCY,
        value_parser = clap::value_parser!(u32).range(1..=65_535)
    )]
    concurrency: u32,
    /// The group of responders that it belongs to
    #[arg(long, default_value = "", hide_default_value = true)]
    group: String,
    /// The name of this responder
    #[arg(long, default_value = "", hide_default_value = true)]
    id: String,
}

impl ServeWith {
    pub(super) async fn run(&self, options: &ClientOptions) -> Result<Exit, Failure> {
        let mut client = calls(options).await?;
        let open = v1::ServeOpen {
            service: self.service.clone(),
            group: self.group.clone(),
            responder_id: self.id.clone(),
            max_concurrent_requests: self.concurrency,
            ..Default::default()
        };
        let (send, frames) = mpsc::channel(16);
        say(&send, v1::ServeRequest { action: Some(Action::Open(open)) }).await;
        let events = client.serve(ReceiverStream::new(frames)).await;
        let mut events = events.map_err(|status| refused(&status))?.into_inner();
        let mut running = JoinSet::new();
        let mut handles: HashMap<u64, AbortHandle> = HashMap::new();
        let mut interrupted = pin!(tokio::signal::ctrl_c());
        let mut draining = false;
        // What waited for room instead would not read meanwhile, and then the broker would not either.
        let mut due: VecDeque<Action> = VecDeque::new();
        loop {
            tokio::select! {
                Ok(room) = send.reserve(), if !due.is_empty() => {
                    room.send(v1::ServeRequest { action: due.pop_front() });
                }
                event = events.message() => {
                    let Some(event) = event.map_err(|status| refused(&status))? else { return Ok(Exit::Done) };
                    match event.event {
                        Some(Event::Opened(opened)) => {
                            eprintln!("serving {} as {}", self.service, opened.responder_id);
                        }
                        Some(Event::Requests(frame)) => for request in frame.requests {
                            let id = request.request_id;
                            let run = run(self.service.clone(), self.command.clone(), request);
                            handles.insert(id, running.spawn(run));
                        },
                        Some(Event::Cancelled(cancelled)) => for id in cancelled.request_ids {
                            if let Some(handle) = handles.remove(&id) {
                                handle.abort();
                            }
                        },
                        Some(Event::Refused(refused)) => for reply in refused.replies {
                            let why = reply.error.map(|error| error.message).unwrap_or_default();
                            eprintln!("warning: a reply was not taken: {why}");
                        },
                        Some(Event::Closing(closing)) => {
                            let why = closing.status.map(|status| status.message).unwrap_or_default();
                            eprintln!("the broker ends the stream: {why}");
                        }
                        Some(Event::Heartbeat(_)) | None => {}
                    }
                }
                Some(ended) = running.join_next(), if due.is_empty() => {
                    // One that was aborted has nobody to answer.
                    let Ok(reply) = ended else { continue };
                    handles.remove(&reply.request_id);
                    due.push_back(Action::Replies(v1::ServeReplies { replies: vec![reply] }));
                }
                stop = interrupted.as_mut() => {
                    stop.map_err(Failure::failed)?;
                    if draining {
                        return Ok(Exit::Failed);
                    }
                    draining = true;
                    interrupted.set(tokio::signal::ctrl_c());
                    due.push_back(Action::Drain(v1::Drain {}));
                }
            }
        }
    }
}

/// Runs the program for one request.
async fn run(service: String, command: Vec<String>, request: v1::IncomingRequest) -> v1::ServeReply {
    let request_id = request.request_id;
    match output(&service, &command, request).await {
        Ok(payload) => {
            let message = Some(v1::Message { payload: payload.into(), ..Default::default() });
            v1::ServeReply { request_id, message, ..Default::default() }
        }
        Err(error) => {
            eprintln!("warning: {error:#}");
            let code = Code::Unknown.into();
            let error = tonic_types::pb::Status { code, message: format!("{error:#}"), details: Vec::new() };
            v1::ServeReply { request_id, error: Some(error), ..Default::default() }
        }
    }
}

/// Which part of a larger request it is.
fn part(part: Option<v1::RequestPart>) -> Vec<(&'static str, String)> {
    let said = |v1::RequestPart { index, count }| [("CALL_PART", index), ("CALL_PARTS", count)];
    part.into_iter().flat_map(said).map(|(name, number)| (name, number.to_string())).collect()
}

/// What the program says to a request. Dropping the future kills it.
async fn output(service: &str, command: &[String], request: v1::IncomingRequest) -> anyhow::Result<Vec<u8>> {
    let (program, args) = command.split_first().context("no program")?;
    let message = request.message.unwrap_or_default();
    let mut child = Command::new(program)
        .args(args)
        .env("CALL_SERVICE", service)
        .env("CALL_CALLER", request.caller_id)
        .env("CALL_ATTEMPT", request.attempt.to_string())
        .env("CALL_CONTENT_TYPE", message.content_type)
        .envs(part(request.part))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let (stdin, mut stdout) = (child.stdin.take(), child.stdout.take());
    let payload = message.payload;
    let feed = async move {
        // Dropped at the end: the program reads to it. It need not read all that it is told.
        let Some(mut stdin) = stdin else { return Ok(()) };
        match stdin.write_all(&payload).await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    };
    let mut payload = Vec::new();
    let read = async {
        match &mut stdout {
            Some(stdout) => stdout.read_to_end(&mut payload).await,
            None => Ok(0),
        }
    };
    let (fed, read) = tokio::join!(feed, read);
    fed.and(read.map(drop)).with_context(|| format!("cannot talk to {program}"))?;
    let status = child.wait().await.with_context(|| format!("cannot wait for {program}"))?;
    anyhow::ensure!(status.success(), "{program} has ended with {status}");
    Ok(payload)
}
