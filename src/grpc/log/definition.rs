//! A stream's settings and counts, between the contract and the core.

use crate::core::streams::define::plain_stream;
use crate::core::{CoreError, Limits};
use crate::engine::{StreamSpec, StreamStats};
use crate::grpc::bounds::masked;
use crate::grpc::convert::{duration, duration_of, filters, timestamp};
use crate::grpc::proto::v1beta1;
use crate::types::{CursorName, StreamName, clock};

/// The fields that may be said of a stream, beside its name.
const FIELDS: [&str; 4] = ["filters", "max_age", "max_messages", "max_bytes"];

/// The settings of a stream to make; what is not said has its default.
///
/// # Errors
/// [`CoreError::Invalid`] with the path of the field.
pub(super) fn spec_of(stream: &v1beta1::Stream, limits: &Limits) -> Result<StreamSpec, CoreError> {
    let name = stream_name("stream.name", &stream.name)?;
    let mut spec = plain_stream(name, limits, clock::unix_now());
    for field in FIELDS {
        set(&mut spec, field, stream, limits)?;
    }
    Ok(spec)
}

/// The fields that an update names.
///
/// # Errors
/// [`CoreError::Invalid`] for none, and for one that cannot be changed.
pub(super) fn fields_of(mask: Option<prost_types::FieldMask>) -> Result<Vec<&'static str>, CoreError> {
    masked(mask, &FIELDS)
}

/// Sets one field of `spec` to what `stream` says.
///
/// # Errors
/// [`CoreError::Invalid`] with the path of the field.
pub(super) fn set(
    spec: &mut StreamSpec,
    field: &str,
    stream: &v1beta1::Stream,
    limits: &Limits,
) -> Result<(), CoreError> {
    let or = |given: u64, default: u64| if given == 0 { default } else { given };
    match field {
        "filters" => spec.filters = filters("stream.filters", &stream.filters)?,
        "max_age" => {
            spec.max_age = stream.max_age.as_ref().map(|age| duration("stream.max_age", age)).transpose()?;
        }
        "max_messages" => spec.max_messages = or(stream.max_messages, limits.stream_messages),
        "max_bytes" => spec.max_bytes = or(stream.max_bytes, limits.stream_bytes),
        other => return Err(CoreError::invalid("update_mask", format!("{other:?} is no field of a stream"))),
    }
    Ok(())
}

/// A stream's name.
///
/// # Errors
/// [`CoreError::Invalid`] naming `field`.
pub(super) fn stream_name(field: &str, name: &str) -> Result<StreamName, CoreError> {
    StreamName::parse(name.to_owned()).map_err(|error| CoreError::name(field, &error))
}

/// A cursor's name.
///
/// # Errors
/// [`CoreError::Invalid`] naming `field`.
pub(super) fn cursor_name(field: &str, name: &str) -> Result<CursorName, CoreError> {
    CursorName::parse(name.to_owned()).map_err(|error| CoreError::name(field, &error))
}

/// The settings as the contract says them.
pub(super) fn stream_of(spec: &StreamSpec) -> v1beta1::Stream {
    v1beta1::Stream {
        name: spec.name.to_string(),
        filters: spec.filters.iter().map(|filter| filter.as_str().to_owned()).collect(),
        max_age: spec.max_age.map(duration_of),
        max_messages: spec.max_messages,
        max_bytes: spec.max_bytes,
    }
}

/// The counts as the contract says them.
pub(super) fn state_of(stats: &StreamStats) -> v1beta1::StreamState {
    v1beta1::StreamState {
        first_sequence: stats.ends.first.0,
        next_sequence: stats.ends.next.0,
        messages: stats.messages,
        bytes: stats.bytes,
        first_time: stats.first_at.map(timestamp),
        last_time: stats.last_at.map(timestamp),
        appended_total: stats.appended_total,
        aged_total: stats.aged_total,
        displaced_total: stats.displaced_total,
        readers: stats.readers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_comes_back_and_the_rest_has_its_default() {
        let limits = Limits::default();
        let given = v1beta1::Stream {
            name: "readings".to_owned(),
            filters: vec!["site/#".to_owned()],
            max_age: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            max_messages: 10,
            ..Default::default()
        };
        let back = stream_of(&spec_of(&given, &limits).unwrap());
        assert_eq!(back, v1beta1::Stream { max_bytes: limits.stream_bytes, ..given });
    }

    #[test]
    fn every_field_can_be_set_by_its_name() {
        let stream = v1beta1::Stream { name: "s".to_owned(), ..Default::default() };
        let limits = Limits::default();
        let mut spec = spec_of(&stream, &limits).unwrap();
        for field in FIELDS {
            assert_eq!(set(&mut spec, field, &stream, &limits), Ok(()));
        }
    }
}
