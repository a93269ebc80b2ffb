//! `Multicast` and `Gather`: everyone who serves is asked, and what each says is passed on.

use std::ops::RangeInclusive;
use std::time::Duration;

use tonic::Extensions;

use crate::core::CoreError;
use crate::core::calls::{self, Gathered, Gathering, Missing, Policy, Summary};
use crate::grpc::convert::optional_duration;
use crate::grpc::deadline::{Deadline, exceeded, passed};
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::multicast_response::Event;
use crate::grpc::status::{of_call, of_status};
use crate::grpc::stream::{Events, Served, run};
use crate::types::TopicName;

use super::{number, reply_of};

/// How long one may wait.
const RANGE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

/// When it is over.
///
/// # Errors
/// [`CoreError::Invalid`] naming the field.
pub(super) fn policy_of(
    policy: Option<v1::GatherPolicy>,
    (has_parts, listeners): (bool, bool),
    keeps: bool,
) -> Result<Policy, CoreError> {
    let policy = policy.unwrap_or_default();
    let v1::GatherPolicy { min_replies, max_replies, wait_for_all, stop_on_error, .. } = policy;
    if max_replies > 0 && max_replies < min_replies {
        return Err(CoreError::invalid("policy.max_replies", "is less than min_replies"));
    }
    if policy.parts_in_hand > 0 && !has_parts {
        return Err(CoreError::invalid("policy.parts_in_hand", "has no meaning without parts"));
    }
    Ok(Policy {
        min_replies: min_replies as usize,
        max_replies: max_replies as usize,
        wait_for_all,
        stop_on_error,
        stall: optional_duration("policy.stall", policy.stall.as_ref(), RANGE)?,
        timeout: optional_duration("policy.timeout", policy.timeout.as_ref(), RANGE)?,
        keeps,
        listeners,
        parts_in_hand: policy.parts_in_hand as usize,
    })
}

/// Waits for all that is said.
pub(super) async fn gather(mut gathering: Gathering) -> v1::GatherResponse {
    let mut replies = Vec::new();
    while let Some(gathered) = gathering.next().await {
        replies.push(gathered_of(gathered));
    }
    v1::GatherResponse { replies, summary: Some(summary_of(gathering.summary())) }
}

/// Serves one stream.
pub(super) fn serve(gathering: Gathering, extensions: &Extensions) -> super::Events<v1::MulticastResponse> {
    let mut events = Events::new();
    let opened = v1::MulticastOpened { asked: number(gathering.asked()), parts: number(gathering.parts()) };
    events.say(v1::MulticastResponse { event: Some(Event::Opened(opened)) });
    let deadline = extensions.get::<Deadline>().copied();
    run(Asking { gathering, deadline, events })
}

struct Asking {
    gathering: Gathering,
    deadline: Option<Deadline>,
    events: Events<v1::MulticastResponse>,
}

impl Served for Asking {
    type Event = v1::MulticastResponse;

    fn said(&mut self) -> &mut Events<v1::MulticastResponse> {
        &mut self.events
    }

    async fn step(&mut self) {
        let Self { gathering, deadline, events } = self;
        let event = tokio::select! {
            biased;
            gathered = gathering.next() => match gathered {
                Some(gathered) => Event::Reply(gathered_of(gathered)),
                None => {
                    events.end();
                    Event::Summary(summary_of(gathering.summary()))
                }
            },
            () = passed(*deadline) => return events.fail(exceeded()),
        };
        events.say(v1::MulticastResponse { event: Some(event) });
    }
}

fn gathered_of(gathered: Gathered) -> v1::Reply {
    let (part, service) = (gathered.part.map(number), named(gathered.service));
    match gathered.said {
        Ok(reply) => v1::Reply { part, service, ..reply_of(reply) },
        Err(error) => v1::Reply {
            responder_id: gathered.responder.into(),
            error: Some(of_status(&of_call(&error))),
            part,
            service,
            ..Default::default()
        },
    }
}

fn named(service: Option<TopicName>) -> String {
    service.map(|service| service.as_str().to_owned()).unwrap_or_default()
}

fn summary_of(summary: Summary) -> v1::GatherSummary {
    let end = match summary.end {
        calls::End::Complete => v1::GatherEnd::Complete,
        calls::End::Quorum => v1::GatherEnd::Quorum,
        calls::End::MaxReplies => v1::GatherEnd::MaxReplies,
        calls::End::Deadline => v1::GatherEnd::Deadline,
        calls::End::Stall => v1::GatherEnd::Stall,
        calls::End::Error => v1::GatherEnd::Error,
        calls::End::Stopped => v1::GatherEnd::Stopped,
        calls::End::NoResponders => v1::GatherEnd::NoResponders,
    };
    let (mut missing, mut missing_parts) = (Vec::new(), Vec::new());
    for calls::Absent { at, responder, service, why } in summary.missing {
        let reason = match why {
            Missing::Lost => v1::MissingReason::Lost,
            Missing::Refused => v1::MissingReason::Refused,
            Missing::Silent => v1::MissingReason::Silent,
            Missing::NotAsked => v1::MissingReason::NotAsked,
        };
        let (responder_id, reason) = (responder.into(), reason.into());
        match summary.parts {
            0 => {
                let service = named(service);
                missing.push(v1::MissingResponder { responder_id, reason, service });
            }
            _ => missing_parts.push(v1::MissingPart { part: number(at), reason, responder_id }),
        }
    }
    v1::GatherSummary {
        end: end.into(),
        asked: number(summary.asked),
        replied: number(summary.replied),
        failed: number(summary.failed),
        missing,
        quorum_met: summary.quorum_met,
        parts: number(summary.parts),
        missing_parts,
    }
}
