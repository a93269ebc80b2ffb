//! A queue's settings, between the contract and the core.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::core::queues::define::plain_queue;
use crate::core::{CoreError, Limits};
use crate::engine::{Overflow, QueueSpec};
use crate::grpc::bounds::masked;
use crate::grpc::convert::{duration, duration_of, filters};
use crate::grpc::proto::v1;
use crate::types::{QueueName, clock};

/// The fields that may be said of a queue, beside its name.
const FIELDS: [&str; 19] = [
    "bindings",
    "lease",
    "max_deliveries",
    "dead_letter_queue",
    "retry_min_backoff",
    "retry_max_backoff",
    "default_ttl",
    "max_messages",
    "max_bytes",
    "overflow",
    "priorities",
    "ordered_by_key",
    "single_active_consumer",
    "dedup_window",
    "last_value_key",
    "labels",
    "dead_letter_expired",
    "expires_after",
    "paused",
];

/// The settings of a queue to make; what is not said has its default.
///
/// # Errors
/// [`CoreError::Invalid`] with the path of the field.
pub(super) fn spec_of(queue: &v1::Queue, limits: &Limits) -> Result<QueueSpec, CoreError> {
    let name = queue_name("queue.name", &queue.name)?;
    let mut spec = plain_queue(name, limits, clock::unix_now());
    for field in FIELDS {
        set(&mut spec, field, queue, limits)?;
    }
    Ok(spec)
}

/// The fields of an update, checked to be such.
///
/// # Errors
/// [`CoreError::Invalid`] for a field that is none, or the name.
pub(super) fn fields_of(mask: Option<prost_types::FieldMask>) -> Result<Vec<&'static str>, CoreError> {
    masked(mask, &FIELDS)
}

/// Sets one field of `spec` to what `queue` says.
///
/// # Errors
/// [`CoreError::Invalid`] with the path of the field.
pub(super) fn set(
    spec: &mut QueueSpec,
    field: &str,
    queue: &v1::Queue,
    limits: &Limits,
) -> Result<(), CoreError> {
    match field {
        "bindings" => spec.bindings = filters("queue.bindings", &queue.bindings)?,
        "lease" => {
            spec.lease = match &queue.lease {
                Some(lease) => duration("queue.lease", lease)?,
                None => limits.default_lease,
            };
        }
        "max_deliveries" => spec.max_deliveries = NonZeroU32::new(queue.max_deliveries),
        "dead_letter_queue" => {
            spec.dead_letter = match queue.dead_letter_queue.as_str() {
                "" => None,
                name => Some(queue_name("queue.dead_letter_queue", name)?),
            };
        }
        "retry_min_backoff" => {
            spec.retry_min_backoff = time("queue.retry_min_backoff", &queue.retry_min_backoff)?
        }
        "retry_max_backoff" => {
            spec.retry_max_backoff = time("queue.retry_max_backoff", &queue.retry_max_backoff)?
        }
        "default_ttl" => spec.default_ttl = time("queue.default_ttl", &queue.default_ttl)?,
        "max_messages" => spec.max_messages = or(queue.max_messages, limits.queue_messages),
        "max_bytes" => spec.max_bytes = or(queue.max_bytes, limits.queue_bytes),
        "overflow" => {
            spec.overflow = match v1::OverflowPolicy::try_from(queue.overflow) {
                Ok(v1::OverflowPolicy::Unspecified | v1::OverflowPolicy::Reject) => Overflow::Reject,
                Ok(v1::OverflowPolicy::DropOldest) => Overflow::DropOldest,
                Ok(v1::OverflowPolicy::DeadLetter) => Overflow::DeadLetter,
                Err(_) => {
                    let what = format!("{} is no policy", queue.overflow);
                    return Err(CoreError::invalid("queue.overflow", what));
                }
            };
        }
        "priorities" => spec.priorities = queue.priorities,
        "ordered_by_key" => spec.ordered_by_key = queue.ordered_by_key,
        "single_active_consumer" => spec.single_active_consumer = queue.single_active_consumer,
        "dedup_window" => spec.dedup_window = time("queue.dedup_window", &queue.dedup_window)?,
        "last_value_key" => {
            let property = queue.last_value_key.as_str();
            spec.last_value_key = (!property.is_empty()).then(|| property.into());
        }
        "labels" => spec.labels = queue.labels.clone().into_iter().collect(),
        "dead_letter_expired" => spec.dead_letter_expired = queue.dead_letter_expired,
        "expires_after" => spec.expires_after = time("queue.expires_after", &queue.expires_after)?,
        "paused" => spec.paused = queue.paused,
        other => return Err(CoreError::invalid("update_mask", format!("{other:?} is no field of a queue"))),
    }
    Ok(())
}

fn time(field: &str, said: &Option<prost_types::Duration>) -> Result<Option<Duration>, CoreError> {
    said.as_ref().map(|said| duration(field, said)).transpose()
}

fn or(given: u64, default: u64) -> u64 {
    if given == 0 { default } else { given }
}

/// A queue's name.
///
/// # Errors
/// [`CoreError::Invalid`] naming `field`.
pub(super) fn queue_name(field: &str, name: &str) -> Result<QueueName, CoreError> {
    QueueName::parse(name.to_owned()).map_err(|error| CoreError::name(field, &error))
}

/// The settings as the contract says them.
pub(super) fn queue_of(spec: &QueueSpec) -> v1::Queue {
    v1::Queue {
        name: spec.name.to_string(),
        bindings: spec.bindings.iter().map(|filter| filter.as_str().to_owned()).collect(),
        lease: Some(duration_of(spec.lease)),
        max_deliveries: spec.max_deliveries.map_or(0, NonZeroU32::get),
        dead_letter_queue: spec.dead_letter.as_ref().map(ToString::to_string).unwrap_or_default(),
        retry_min_backoff: spec.retry_min_backoff.map(duration_of),
        retry_max_backoff: spec.retry_max_backoff.map(duration_of),
        default_ttl: spec.default_ttl.map(duration_of),
        max_messages: spec.max_messages,
        max_bytes: spec.max_bytes,
        overflow: match spec.overflow {
            Overflow::Reject => v1::OverflowPolicy::Reject,
            Overflow::DropOldest => v1::OverflowPolicy::DropOldest,
            Overflow::DeadLetter => v1::OverflowPolicy::DeadLetter,
        }
        .into(),
        priorities: spec.priorities,
        ordered_by_key: spec.ordered_by_key,
        single_active_consumer: spec.single_active_consumer,
        dedup_window: spec.dedup_window.map(duration_of),
        last_value_key: spec.last_value_key.as_ref().map(ToString::to_string).unwrap_or_default(),
        labels: spec.labels.clone().into_iter().collect(),
        dead_letter_expired: spec.dead_letter_expired,
        expires_after: spec.expires_after.map(duration_of),
        paused: spec.paused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_comes_back_and_the_rest_has_its_default() {
        let limits = Limits::default();
        let given = v1::Queue {
            name: "orders".to_owned(),
            bindings: vec!["shop/+/order".to_owned()],
            max_deliveries: 5,
            dead_letter_queue: "dead".to_owned(),
            retry_min_backoff: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            retry_max_backoff: Some(prost_types::Duration { seconds: 9, nanos: 500_000_000 }),
            default_ttl: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            max_messages: 10,
            overflow: v1::OverflowPolicy::DropOldest.into(),
            priorities: true,
            ordered_by_key: true,
            single_active_consumer: true,
            dedup_window: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
            last_value_key: "sensor".to_owned(),
            labels: [("team".to_owned(), "a".to_owned())].into(),
            dead_letter_expired: true,
            expires_after: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
            paused: true,
            ..Default::default()
        };
        let back = queue_of(&spec_of(&given, &limits).unwrap());
        let lease = Some(duration_of(limits.default_lease));
        assert_eq!(back, v1::Queue { lease, max_bytes: limits.queue_bytes, ..given });
    }

    #[test]
    fn every_field_can_be_set_by_its_name() {
        let queue = v1::Queue { name: "q".to_owned(), ..Default::default() };
        let limits = Limits::default();
        let mut spec = spec_of(&queue, &limits).unwrap();
        for field in FIELDS {
            assert_eq!(set(&mut spec, field, &queue, &limits), Ok(()));
        }
        let mask = |paths: &[&str]| {
            Some(prost_types::FieldMask { paths: paths.iter().map(|&path| path.to_owned()).collect() })
        };
        assert_eq!(fields_of(mask(&["lease", "labels"])), Ok(vec!["lease", "labels"]));
        for wrong in [None, mask(&[]), mask(&["name"]), mask(&["lease", "nothing"])] {
            assert!(fields_of(wrong).is_err());
        }
    }
}
