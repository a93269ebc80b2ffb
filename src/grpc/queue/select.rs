//! Which messages a client means.

use crate::core::CoreError;
use crate::core::queues::select::Select;
use crate::engine::View;
use crate::grpc::bounds::at_most_items;
use crate::grpc::convert::moment;
use crate::grpc::proto::v1;
use crate::types::{Sequence, TopicFilter};

use super::definition::queue_name;

/// Properties of one filter.
const MAX_PROPERTIES: usize = 16;

/// The conditions as the core knows them.
///
/// # Errors
/// [`CoreError::Invalid`], [`CoreError::TooLarge`] with the field's path.
pub(super) fn select_of(filter: Option<v1::MessageFilter>) -> Result<Select, CoreError> {
    let Some(filter) = filter else { return Ok(Select::default()) };
    let v1::MessageFilter {
        properties,
        topic_filter,
        from_sequence,
        to_sequence,
        since,
        before,
        source_queue,
    } = filter;
    at_most_items("filter.properties", properties.len(), MAX_PROPERTIES)?;
    let topic = match topic_filter.as_str() {
        "" => None,
        _ => {
            let parsed = TopicFilter::parse(topic_filter.into());
            Some(parsed.map_err(|error| CoreError::topic("filter.topic_filter", &error))?)
        }
    };
    if to_sequence > 0 && to_sequence < from_sequence {
        let what = format!("{to_sequence} comes before from_sequence {from_sequence}");
        return Err(CoreError::invalid("filter.to_sequence", what));
    }
    let (since, before) = (since.as_ref().map(moment), before.as_ref().map(moment));
    if let (Some(since), Some(before)) = (since, before)
        && before <= since
    {
        return Err(CoreError::invalid("filter.before", "is not later than since"));
    }
    let source = match source_queue.as_str() {
        "" => None,
        name => Some(queue_name("filter.source_queue", name)?),
    };
    Ok(Select {
        properties: properties.into_iter().map(|p| (p.key.into(), p.value.into())).collect(),
        topic,
        from: Sequence(from_sequence),
        to: Some(Sequence(to_sequence)).filter(|to| to.0 > 0),
        since,
        before,
        source,
    })
}

/// Where messages wait that may be deleted: what a consumer holds stays. What becomes ready while the delayed ones are
/// looked at is among the ready ones, which come last.
///
/// # Errors
/// [`CoreError::Invalid`] naming `view`.
pub(super) fn waiting(view: v1::QueueView) -> Result<&'static [View], CoreError> {
    match view {
        v1::QueueView::Unspecified => Err(CoreError::invalid("view", "must be given")),
        v1::QueueView::Ready => Ok(&[View::Ready]),
        v1::QueueView::Delayed => Ok(&[View::Delayed]),
        v1::QueueView::All => Ok(&[View::Delayed, View::Ready]),
        v1::QueueView::Leased => Err(CoreError::invalid("view", "what a consumer holds cannot be deleted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_named() {
        let filter = v1::MessageFilter::default;
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let property = v1::Property { key: "k".to_owned(), value: String::new() };
        for (wrong, named) in [
            (v1::MessageFilter { topic_filter: "a/#/b".to_owned(), ..filter() }, "filter.topic_filter"),
            (v1::MessageFilter { properties: vec![property; 17], ..filter() }, "filter.properties"),
            (v1::MessageFilter { from_sequence: 9, to_sequence: 8, ..filter() }, "filter.to_sequence"),
            (v1::MessageFilter { since: at(5), before: at(5), ..filter() }, "filter.before"),
            (v1::MessageFilter { source_queue: "a b".to_owned(), ..filter() }, "filter.source_queue"),
        ] {
            match select_of(Some(wrong.clone())) {
                Err(CoreError::Invalid { field, .. } | CoreError::TooLarge { field, .. }) => {
                    assert_eq!(field, named);
                }
                other => panic!("{wrong:?}: {other:?}"),
            }
        }
        assert_eq!(select_of(Some(filter())).unwrap(), Select::default());
        assert_eq!(select_of(None).unwrap(), Select::default());
    }
}
