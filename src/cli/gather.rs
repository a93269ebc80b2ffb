//! `stafett gather`.

use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde_json::json;
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
--quorum have replied, without it fewer than were asked or --max allows; 3 nobody serves, or the broker cannot be reached.
Examples:
  stafett gather lamps/status
  stafett gather lamps/status --quorum 2 --timeout 500ms
  stafett gather search/lines error --max 10 --json")]
pub(super) struct Gather {
    /// The service
    service: String,
    /// What is asked
    #[arg(default_value = "", hide_default_value = true)]
    body: String,
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
        let message = v1::Message { payload: self.body.clone().into(), ..self.template.message()? };
        let policy = v1::GatherPolicy {
            min_replies: self.quorum.unwrap_or_default(),
            max_replies: self.max.unwrap_or_default(),
            stall: self.stall.map(duration),
            wait_for_all: self.wait_for_all,
            stop_on_error: self.stop_on_error,
            timeout: Some(duration(options.timeout)),
        };
        let mut request = Request::new(v1::MulticastRequest {
            service: self.service.clone(),
            request: Some(message),
            policy: Some(policy),
        });
        request.set_timeout(options.timeout.saturating_add(GRACE));
        let mut client = calls(options).await?;
        let events = client.multicast(request).await;
        let mut events = events.map_err(|status| refused(&status))?.into_inner();
        while let Some(event) = events.message().await.map_err(|status| refused(&status))? {
            match event.event {
                Some(Event::Opened(opened)) if !options.json => eprintln!("asked {}", opened.asked),
                Some(Event::Reply(reply)) if options.json => line(reply_json(reply))?,
                Some(Event::Reply(reply)) => show(&reply)?,
                Some(Event::Summary(summary)) => {
                    if options.json {
                        line(summary_json(&summary))?;
                    } else {
                        eprintln!("{}", summary_text(&summary));
                    }
                    return Ok(if summary.quorum_met { Exit::Done } else { Exit::Failed });
                }
                Some(Event::Opened(_)) | None => {}
            }
        }
        Err(Failure::failed(anyhow!("the broker has ended the stream without a summary")))
    }
}

fn show(reply: &v1::Reply) -> Result<(), Failure> {
    match &reply.error {
        Some(error) => {
            eprintln!("warning: {}: {}", reply.responder_id, error.message);
            Ok(())
        }
        None => line(format_args!("{} {}", reply.responder_id, payload_text(reply.message.as_ref()))),
    }
}

fn end_of(summary: &v1::GatherSummary) -> String {
    summary.end().as_str_name().trim_start_matches("GATHER_END_").to_ascii_lowercase()
}

fn reason_of(missing: &v1::MissingResponder) -> String {
    missing.reason().as_str_name().trim_start_matches("MISSING_REASON_").to_ascii_lowercase()
}

fn summary_text(summary: &v1::GatherSummary) -> String {
    let v1::GatherSummary { asked, replied, failed, missing, .. } = summary;
    let mut text = format!("{replied} of {asked} replied, {failed} failed: {}", end_of(summary));
    for missing in missing {
        text += &format!("; {} {}", missing.responder_id, reason_of(missing));
    }
    text
}

fn summary_json(summary: &v1::GatherSummary) -> serde_json::Value {
    let missing = summary
        .missing
        .iter()
        .map(|missing| json!({ "responder_id": missing.responder_id, "reason": reason_of(missing) }));
    json!({
        "end": end_of(summary),
        "asked": summary.asked,
        "replied": summary.replied,
        "failed": summary.failed,
        "missing": missing.collect::<Vec<_>>(),
        "quorum_met": summary.quorum_met,
    })
}
