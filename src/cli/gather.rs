//! `stafett gather`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncReadExt, stdin};
use tonic::Request;

use crate::grpc::proto::v1;
use crate::grpc::proto::v1::multicast_response::Event;

use super::ClientOptions;
use super::call::{Template, reply_json};
use super::client::{calls, refused};
use super::exit::{Exit, Failure};
use super::message::{duration, payload_text};
use super::out::line;

/// How much longer than the broker gathers its summary may take to come.
const GRACE: Duration = Duration::from_secs(2);

/// The arguments of `stafett gather`.
#[derive(Args, Debug)]
#[command(after_help = "\
Asks everyone who serves, and prints each reply as it comes, behind the name of its responder; how many were asked, errors \
and who has not answered go to stderr, and with --json to stdout. --timeout is how long it gathers. Exit codes: 1 fewer than \
--quorum have replied, without it fewer than were asked or --max allows; 3 nobody serves, or none any more and parts are left, or the
broker cannot be reached, or stops.
With --part or --parts it divides work: each part goes to one of those who serve, who gets the next when that is answered, and \
what a lost one had to another. The number of the part, from 0, is printed behind the name; --quorum and --max count parts.
Examples:
  stafett gather lamps/status
  stafett gather lamps/status --quorum 2 --timeout 500ms
  stafett gather search/lines error --max 10 --json
  stafett gather 'lamps/+/set' off
  stafett gather primes/count --part 0-999999 --part 1000000-1999999
  seq 0 9999 | stafett gather keys/try --parts - --max 1 --timeout 1h")]
pub(super) struct Gather {
    /// The service, or a filter with + or #: everyone is asked whose service or topic it matches
    service: String,
    /// What is asked
    #[arg(default_value = "", hide_default_value = true, conflicts_with_all = ["part", "parts"])]
    body: String,
    /// Ask those too who subscribe to the topic with a wildcard
    #[arg(long, conflicts_with_all = ["part", "parts"])]
    listeners: bool,
    /// A part of what is asked; may be given several times
    #[arg(long, value_name = "TEXT", conflicts_with = "parts")]
    part: Vec<String>,
    /// Each line of a file is a part; - is stdin
    #[arg(long, value_name = "PATH")]
    parts: Option<PathBuf>,
    /// So many parts one responder has in hand at the same time [default: 1]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    parts_in_hand: Option<u32>,
    /// So many replies are enough
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    quorum: Option<u32>,
    /// End after so many replies, also if they are fewer than were asked
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    max: Option<u32>,
    /// End when nothing has come for so long
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    stall: Option<Duration>,
    /// Go on when there are as many replies as --quorum says
    #[arg(long, requires = "quorum")]
    wait_for_all: bool,
    /// End with the first responder that fails
    #[arg(long)]
    stop_on_error: bool,
    #[command(flatten)]
    template: Template,
}

impl Gather {
    pub(super) async fn run(&self, options: &ClientOptions) -> Result<Exit, Failure> {
        let template = self.template.message()?;
        let said = |text: &str| v1::Message { payload: text.to_owned().into(), ..template.clone() };
        let parts: Vec<v1::Message> = match &self.parts {
            Some(path) => read(path).await?.lines().map(said).collect(),
            None => self.part.iter().map(|text| said(text)).collect(),
        };
        if parts.is_empty() && self.parts.is_some() {
            return Err(Failure::usage(anyhow!("--parts: there are none")));
        }
        let request = parts.is_empty().then(|| said(&self.body));
        let policy = v1::GatherPolicy {
            min_replies: self.quorum.unwrap_or_default(),
            max_replies: self.max.unwrap_or_default(),
            stall: self.stall.map(duration),
            wait_for_all: self.wait_for_all,
            stop_on_error: self.stop_on_error,
            timeout: Some(duration(options.timeout)),
            parts_in_hand: self.parts_in_hand.unwrap_or_default(),
        };
        let (service, filter) = match self.service.contains(['+', '#']) {
            true => (String::new(), self.service.clone()),
            false => (self.service.clone(), String::new()),
        };
        let mut request = Request::new(v1::MulticastRequest {
            service,
            request,
            policy: Some(policy),
            parts,
            filter,
            listeners: self.listeners,
        });
        request.set_timeout(options.timeout.saturating_add(GRACE));
        let mut client = calls(options).await?;
        let events = client.multicast(request).await;
        let mut events = events.map_err(|status| refused(&status))?.into_inner();
        while let Some(event) = events.message().await.map_err(|status| refused(&status))? {
            match event.event {
                Some(Event::Opened(opened)) if !options.json => match opened.parts {
                    0 => eprintln!("asked {}", opened.asked),
                    parts => eprintln!("{parts} parts, {} serve", opened.asked),
                },
                Some(Event::Reply(reply)) if options.json => line(reply_json(reply))?,
                Some(Event::Reply(reply)) => show(&reply)?,
                Some(Event::Summary(summary)) => {
                    if options.json {
                        line(summary_json(&summary))?;
                    } else {
                        eprintln!("{}", summary_text(&summary));
                    }
                    return Ok(match summary.end() {
                        _ if summary.quorum_met => Exit::Done,
                        v1::GatherEnd::Stopped | v1::GatherEnd::NoResponders => Exit::Unreachable,
                        _ => Exit::Failed,
                    });
                }
                Some(Event::Opened(_)) | None => {}
            }
        }
        Err(Failure::failed(anyhow!("the broker has ended the stream without a summary")))
    }
}

/// All of a file, or of stdin.
async fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => stdin().read_to_string(&mut text).await.map(drop),
        false => tokio::fs::read_to_string(path).await.map(|all| text = all),
    };
    read.map_err(|error| Failure::usage(anyhow!("--parts {}: {error}", path.display())))?;
    Ok(text)
}

fn show(reply: &v1::Reply) -> Result<(), Failure> {
    let part = reply.part.map(|part| format!(" {part}")).unwrap_or_default();
    let from = format!("{}{part}", reply.responder_id);
    match &reply.error {
        Some(error) => {
            eprintln!("warning: {from}: {}", error.message);
            Ok(())
        }
        None => line(format_args!("{from} {}", payload_text(reply.message.as_ref()))),
    }
}

fn end_of(summary: &v1::GatherSummary) -> String {
    summary.end().as_str_name().trim_start_matches("GATHER_END_").to_ascii_lowercase()
}

fn reason_of(reason: v1::MissingReason) -> String {
    reason.as_str_name().trim_start_matches("MISSING_REASON_").to_ascii_lowercase()
}

fn summary_text(summary: &v1::GatherSummary) -> String {
    let v1::GatherSummary { asked, replied, failed, missing, parts, missing_parts, .. } = summary;
    let end = end_of(summary);
    let mut text = match parts {
        0 => format!("{replied} of {asked} replied, {failed} failed: {end}"),
        _ => format!("{replied} of {parts} parts answered by {asked}, {failed} failed: {end}"),
    };
    for missing in missing {
        text += &format!("; {} {}", missing.responder_id, reason_of(missing.reason()));
    }
    for missing in missing_parts {
        text += &format!("; part {} {}", missing.part, reason_of(missing.reason()));
        if !missing.responder_id.is_empty() {
            text += &format!(" ({})", missing.responder_id);
        }
    }
    text
}

fn summary_json(summary: &v1::GatherSummary) -> serde_json::Value {
    let missing = summary.missing.iter().map(
        |missing| json!({ "responder_id": missing.responder_id, "service": missing.service, "reason": reason_of(missing.reason()) }),
    );
    let mut json = json!({
        "end": end_of(summary),
        "asked": summary.asked,
        "replied": summary.replied,
        "failed": summary.failed,
        "missing": missing.collect::<Vec<_>>(),
        "quorum_met": summary.quorum_met,
    });
    if summary.parts > 0 {
        let parts = summary.missing_parts.iter().map(|missing| {
            let (part, reason) = (missing.part, reason_of(missing.reason()));
            json!({ "part": part, "reason": reason, "responder_id": missing.responder_id })
        });
        json["parts"] = json!(summary.parts);
        json["missing_parts"] = json!(parts.collect::<Vec<_>>());
    }
    json
}
