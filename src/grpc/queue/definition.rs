//! A queue's settings, between the contract and the core.

use std::num::NonZeroU32;

use crate::core::queues::define::plain_queue;
use crate::core::{CoreError, Limits};
use crate::engine::QueueSpec;
use crate::grpc::convert::{duration, duration_of};
use crate::grpc::proto::v1;
use crate::types::{QueueName, TopicFilter, clock};

/// The fields that may be said of a queue, beside its name.
const FIELDS: [&str; 12] = [
    "bindings",
    "lease",
    "max_deliveries",
    "dead_letter_queue",
    "default_ttl",
    "max_messages",
    "max_bytes",
    "priorities",
    "ordered_by_key",
    "dedup_window",
    "labels",
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
/// [`CoreError::Invalid`] for a field that is none or cannot be changed.
pub(super) fn fields_of(mask: Option<prost_types::FieldMask>) -> Result<Vec<&'static str>, CoreError> {
    let paths = mask.map(|mask| mask.paths).unwrap_or_default();
    if paths.is_empty() {
        return Err(CoreError::invalid("update_mask", "names no field"));
    }
    let known = |path: String| {
        let known = FIELDS.into_iter().find(|&field| field == path);
        known.ok_or_else(|| {
            let may = FIELDS.join(", ");
            CoreError::invalid("update_mask", format!("{path:?} is not one of {may}"))
        })
    };
    paths.into_iter().map(known).collect()
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
        "default_ttl" => {
            let ttl = queue.default_ttl.as_ref().map(|ttl| duration("queue.default_ttl", ttl));
            spec.default_ttl = ttl.transpose()?;
        }
        "max_messages" => spec.max_messages = or(queue.max_messages, limits.queue_messages),
        "max_bytes" => spec.max_bytes = or(queue.max_bytes, limits.queue_bytes),
        "priorities" => spec.priorities = queue.priorities,
        "ordered_by_key" => spec.ordered_by_key = queue.ordered_by_key,
        "dedup_window" => {
            let window = queue.dedup_window.as_ref().map(|window| duration("queue.dedup_window", window));
            spec.dedup_window = window.transpose()?;
        }
        "labels" => spec.labels = queue.labels.clone().into_iter().collect(),
        "paused" => spec.paused = queue.paused,
        other => return Err(CoreError::invalid("update_mask", format!("{other:?} is no field of a queue"))),
    }
    Ok(())
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

/// Topic filters.
///
/// # Errors
/// [`CoreError::Invalid`] naming the place in `field`.
pub(super) fn filters(field: &str, filters: &[String]) -> Result<Vec<TopicFilter>, CoreError> {
    let parse = |(at, filter): (usize, &String)| {
        let parsed = TopicFilter::parse(filter.clone().into());
        parsed.map_err(|error| CoreError::topic(format!("{field}[{at}]"), &error))
    };
    filters.iter().enumerate().map(parse).collect()
}

/// The settings as the contract says them.
pub(super) fn queue_of(spec: &QueueSpec) -> v1::Queue {
    v1::Queue {
        name: spec.name.to_string(),
        bindings: spec.bindings.iter().map(|filter| filter.as_str().to_owned()).collect(),
        lease: Some(duration_of(spec.lease)),
        max_deliveries: spec.max_deliveries.map_or(0, NonZeroU32::get),
        dead_letter_queue: spec.dead_letter.as_ref().map(ToString::to_string).unwrap_or_default(),
        default_ttl: spec.default_ttl.map(duration_of),
        max_messages: spec.max_messages,
        max_bytes: spec.max_bytes,
        priorities: spec.priorities,
        ordered_by_key: spec.ordered_by_key,
        dedup_window: spec.dedup_window.map(duration_of),
        labels: spec.labels.clone().into_iter().collect(),
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
            default_ttl: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            max_messages: 10,
            priorities: true,
            ordered_by_key: true,
            dedup_window: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
            labels: [("team".to_owned(), "a".to_owned())].into(),
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
