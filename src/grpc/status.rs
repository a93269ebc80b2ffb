//! What the core refuses, in the words of gRPC: the one mapping of this door.
//!
//! Every status carries google.rpc details that a program can act on: which field, which bound, when to try again,
//! which reason. Invariant: the match has no wildcard, so that a new error cannot be forgotten.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt, pb};

use crate::core::CoreError;
use crate::core::calls::{CallError, Fault};
use crate::engine::{EngineError, LeaseError, OpenProgress};

/// The domain of every `ErrorInfo`.
const DOMAIN: &str = "stafett";
/// When a full queue is worth another try.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// When a full disk is.
const DISK_RETRY: Duration = Duration::from_secs(10);
/// When a server that restarts is.
const RESTART_RETRY: Duration = Duration::from_secs(1);

/// The error as the status of a call.
pub(super) fn status(error: &CoreError) -> Status {
    let (code, details) = code_and_details(error);
    Status::with_error_details(code, error.to_string(), details)
}

/// The error as the status of one item.
pub(super) fn item(error: &CoreError) -> pb::Status {
    of_status(&status(error))
}

/// The status of a call as that of one item or event.
pub(super) fn of_status(status: &Status) -> pb::Status {
    // The details of a status are a google.rpc.Status, as `with_error_details` made them.
    match pb::Status::decode(status.details()) {
        Ok(full) if !status.details().is_empty() => full,
        _ => plain(status.code(), status.message()),
    }
}

/// Why a call has no answer, as its status.
pub(super) fn of_call(error: &CallError) -> Status {
    match error {
        CallError::Broker(error) => status(error),
        CallError::Responder(Fault { code, message, details }) => {
            Status::with_details(Code::from(*code), message.to_string(), details.clone())
        }
    }
}

/// What a stream ends with whose session is not its own any more.
pub(super) fn taken_away(reason: &str, message: &str) -> Status {
    let mut details = ErrorDetails::new();
    info(&mut details, reason, []);
    Status::with_error_details(Code::Aborted, message, details)
}

/// A status of our own as the status of one item or event.
pub(super) fn plain(code: Code, message: impl Into<String>) -> pb::Status {
    pb::Status { code: code.into(), message: message.into(), details: Vec::new() }
}

/// What a call ends with that comes before the store is read back.
pub(super) fn recovering(progress: &OpenProgress) -> Status {
    let mut details = ErrorDetails::new();
    details.set_retry_info(Some(RESTART_RETRY));
    let percent = progress.percent().to_string();
    info(&mut details, "RECOVERING", [("percent", percent.as_str())]);
    let message = format!("the store is being read back: {percent} %");
    Status::with_error_details(Code::Unavailable, message, details)
}

fn code_and_details(error: &CoreError) -> (Code, ErrorDetails) {
    let mut details = ErrorDetails::new();
    let code = match error {
        CoreError::Invalid { field, what } => {
            details.add_bad_request_violation(field, what);
            Code::InvalidArgument
        }
        CoreError::TooLarge { field, .. } => {
            details.add_bad_request_violation(field, error.to_string());
            Code::InvalidArgument
        }
        CoreError::Unsupported(_) => {
            info(&mut details, "UNSUPPORTED", []);
            Code::Unimplemented
        }
        CoreError::NotFound { kind, name } => {
            details.set_resource_info(*kind, name, "", error.to_string());
            Code::NotFound
        }
        CoreError::AlreadyExists { kind, name, .. } => {
            details.set_resource_info(*kind, name, "", error.to_string());
            Code::AlreadyExists
        }
        CoreError::Precondition { reason, what } => {
            details.add_precondition_failure_violation(*reason, "", what);
            info(&mut details, reason, []);
            Code::FailedPrecondition
        }
        CoreError::OutOfRange { field, what } => {
            details.add_bad_request_violation(field, what);
            Code::OutOfRange
        }
        CoreError::OtherNext { stream, next, .. } => {
            let next = next.to_string();
            info(&mut details, "OTHER_SEQUENCE", [("stream", stream), ("next_sequence", &next)]);
            Code::Aborted
        }
        CoreError::Denied(_) => {
            info(&mut details, "DENIED", []);
            Code::PermissionDenied
        }
        CoreError::Lease(lease) => {
            // For the holder of a lease both mean the same: the message is not his any more.
            let message = match lease {
                LeaseError::Expired => "returned",
                LeaseError::Unknown => "gone",
            };
            info(&mut details, "LEASE_EXPIRED", [("message", message)]);
            Code::FailedPrecondition
        }
        CoreError::Full { queue, bound } => {
            details.add_quota_failure_violation(format!("queue:{queue}"), bound);
            details.set_retry_info(Some(FULL_RETRY));
            info(&mut details, "QUEUE_FULL", [("queue", queue)]);
            Code::ResourceExhausted
        }
        CoreError::Item { index, error } => {
            let (code, mut details) = code_and_details(error);
            if let Some(mut info) = details.error_info().cloned() {
                info.metadata.insert("index".to_owned(), index.to_string());
                details.set_error_info(info.reason, info.domain, info.metadata);
            }
            return (code, details);
        }
        CoreError::Limit { what, max } => {
            details.add_quota_failure_violation(what, format!("at most {max}"));
            info(&mut details, "LIMIT_REACHED", []);
            Code::ResourceExhausted
        }
        CoreError::LowDisk { .. } => {
            details.add_quota_failure_violation("disk", error.to_string());
            details.set_retry_info(Some(DISK_RETRY));
            info(&mut details, "DISK_NEARLY_FULL", []);
            Code::ResourceExhausted
        }
        CoreError::NoResponders { service } => {
            info(&mut details, "NO_RESPONDERS", [("service", service)]);
            Code::Unavailable
        }
        CoreError::Unread { service } => {
            details.add_quota_failure_violation(format!("service:{service}"), error.to_string());
            details.set_retry_info(Some(FULL_RETRY));
            info(&mut details, "LIMIT_REACHED", [("service", service)]);
            Code::ResourceExhausted
        }
        CoreError::ResponderLost { service, responder } => {
            info(&mut details, "RESPONDER_LOST", [("service", service), ("responder", responder)]);
            Code::Aborted
        }
        CoreError::BadReply { responder, .. } => {
            info(&mut details, "BAD_REPLY", [("responder", responder)]);
            Code::Internal
        }
        CoreError::Draining => {
            details.set_retry_info(Some(RESTART_RETRY));
            Code::Unavailable
        }
        CoreError::Engine(engine) => match engine {
            EngineError::Failed(_) | EngineError::Stopped => {
                details.set_retry_info(Some(RESTART_RETRY));
                Code::Unavailable
            }
            EngineError::NoSuchTarget(_) => Code::NotFound,
            EngineError::Damaged(_) => Code::DataLoss,
        },
    };
    (code, details)
}

fn info<const N: usize>(details: &mut ErrorDetails, reason: &str, metadata: [(&str, &str); N]) {
    let metadata: HashMap<_, _> = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    details.set_error_info(reason, DOMAIN, metadata);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TargetId;

    /// Every variant with what clients rely on; a new variant makes the count below fail.
    fn all() -> Vec<(CoreError, Code, Option<&'static str>)> {
        let text = || "x".to_owned();
        let full = CoreError::Full { queue: "q".to_owned(), bound: "max_messages 1".to_owned() };
        let large = CoreError::TooLarge { field: "payload".to_owned(), len: 2, max: 1, unit: "bytes" };
        let exists =
            CoreError::AlreadyExists { kind: "queue", name: "q".to_owned(), difference: String::new() };
        let precondition =
            CoreError::Precondition { reason: "QUEUE_NOT_EMPTY", what: "3 messages are there".to_owned() };
        vec![
            (CoreError::invalid("queue.name", "empty"), Code::InvalidArgument, None),
            (large, Code::InvalidArgument, None),
            (CoreError::Unsupported("no".to_owned()), Code::Unimplemented, Some("UNSUPPORTED")),
            (CoreError::NotFound { kind: "queue", name: "q".to_owned() }, Code::NotFound, None),
            (exists, Code::AlreadyExists, None),
            (precondition, Code::FailedPrecondition, Some("QUEUE_NOT_EMPTY")),
            (CoreError::OutOfRange { field: text(), what: text() }, Code::OutOfRange, None),
            (
                CoreError::OtherNext { stream: text(), next: 2, expected: 1 },
                Code::Aborted,
                Some("OTHER_SEQUENCE"),
            ),
            (CoreError::Denied("no".to_owned()), Code::PermissionDenied, Some("DENIED")),
            (CoreError::Lease(LeaseError::Expired), Code::FailedPrecondition, Some("LEASE_EXPIRED")),
            (CoreError::Lease(LeaseError::Unknown), Code::FailedPrecondition, Some("LEASE_EXPIRED")),
            (full.clone().of_item(3), Code::ResourceExhausted, Some("QUEUE_FULL")),
            (full, Code::ResourceExhausted, Some("QUEUE_FULL")),
            (
                CoreError::Limit { what: "too many queues".to_owned(), max: 1 },
                Code::ResourceExhausted,
                Some("LIMIT_REACHED"),
            ),
            (
                CoreError::LowDisk { free_bytes: 1, watermark_bytes: 2 },
                Code::ResourceExhausted,
                Some("DISK_NEARLY_FULL"),
            ),
            (CoreError::NoResponders { service: text() }, Code::Unavailable, Some("NO_RESPONDERS")),
            (CoreError::Unread { service: text() }, Code::ResourceExhausted, Some("LIMIT_REACHED")),
            (
                CoreError::ResponderLost { service: text(), responder: text() },
                Code::Aborted,
                Some("RESPONDER_LOST"),
            ),
            (CoreError::BadReply { responder: text(), what: text() }, Code::Internal, Some("BAD_REPLY")),
            (CoreError::Draining, Code::Unavailable, None),
            (CoreError::Engine(EngineError::Failed("x".to_owned())), Code::Unavailable, None),
            (CoreError::Engine(EngineError::Stopped), Code::Unavailable, None),
            (CoreError::Engine(EngineError::NoSuchTarget(TargetId(1))), Code::NotFound, None),
            (CoreError::Engine(EngineError::Damaged("x".to_owned())), Code::DataLoss, None),
        ]
    }

    #[test]
    fn every_error_has_its_code_and_details() {
        for (error, code, reason) in all() {
            let status = status(&error);
            assert_eq!((status.code(), status.message()), (code, error.to_string().as_str()));
            let details = status.get_error_details();
            assert_eq!(details.error_info().map(|info| info.reason.as_str()), reason, "{error:?}");
            let item = item(&error);
            assert_eq!((item.code, item.message), (code.into(), error.to_string()));
        }
    }

    #[test]
    fn a_full_queue_says_which_bound_and_when_to_try_again() {
        let error = CoreError::Full { queue: "orders".to_owned(), bound: "max_messages 100".to_owned() };
        let details = status(&error).get_error_details();
        let quota = &details.quota_failure().unwrap().violations[0];
        assert_eq!(
            (quota.subject.as_str(), quota.description.as_str()),
            ("queue:orders", "max_messages 100")
        );
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(FULL_RETRY));
    }

    #[test]
    fn a_bad_request_names_the_field() {
        let details = status(&CoreError::invalid("queue.lease", "too short")).get_error_details();
        let violation = &details.bad_request().unwrap().field_violations[0];
        assert_eq!((violation.field.as_str(), violation.description.as_str()), ("queue.lease", "too short"));
    }
}
