//! Subscriptions as the contract writes them.

use bytestring::ByteString;

use crate::core::CoreError;
use crate::engine::{RetainHandling, SubscribeOptions};
use crate::grpc::convert::qos_of;
use crate::grpc::proto::v1;
use crate::grpc::status;
use crate::types::Qos;
use crate::types::topic::FilterSpec;

/// The largest identifier that MQTT can carry.
const MAX_IDENTIFIER: u32 = 268_435_455;

/// A filter with what is wanted of it.
pub(super) type Wanted = (FilterSpec, SubscribeOptions);

/// A filter's name, plain or shared.
///
/// # Errors
/// [`CoreError::Invalid`] naming the field.
pub(super) fn spec_of(filter: &str, share_group: &str) -> Result<FilterSpec, CoreError> {
    let text =
        if share_group.is_empty() { filter.to_owned() } else { format!("$share/{share_group}/{filter}") };
    let field = if share_group.is_empty() { "filter" } else { "share_group" };
    FilterSpec::parse(&ByteString::from(text)).map_err(|error| CoreError::topic(field, &error))
}

/// A filter and its options.
///
/// # Errors
/// [`CoreError::Invalid`] naming the field.
pub(super) fn wanted_of(filter: &v1::TopicFilter) -> Result<Wanted, CoreError> {
    let spec = spec_of(&filter.filter, &filter.share_group)?;
    let max_qos = match filter.max_qos() {
        v1::Qos::Unspecified | v1::Qos::AtLeastOnce => Qos::AtLeastOnce,
        v1::Qos::AtMostOnce => Qos::AtMostOnce,
        v1::Qos::ExactlyOnce => {
            return Err(CoreError::invalid("max_qos", "exactly once is for MQTT sessions"));
        }
    };
    let retain_handling = match filter.retain_handling() {
        v1::RetainHandling::Unspecified | v1::RetainHandling::Send => RetainHandling::Send,
        v1::RetainHandling::SendIfNew => RetainHandling::SendIfNew,
        v1::RetainHandling::DoNotSend => RetainHandling::DoNotSend,
    };
    if filter.no_local && matches!(spec, FilterSpec::Shared { .. }) {
        return Err(CoreError::invalid("no_local", "a shared subscription cannot leave out its own"));
    }
    if filter.subscription_id > MAX_IDENTIFIER {
        let what = format!("{} is more than {MAX_IDENTIFIER}", filter.subscription_id);
        return Err(CoreError::invalid("subscription_id", what));
    }
    let options = SubscribeOptions {
        max_qos,
        upgrade_qos: false,
        no_local: filter.no_local,
        retain_as_published: filter.retain_as_published,
        retain_handling,
        identifier: filter.subscription_id.try_into().ok(),
    };
    Ok((spec, options))
}

/// A filter and its options, as the contract writes them.
pub(in crate::grpc) fn filter_of(spec: &FilterSpec, options: &SubscribeOptions) -> v1::TopicFilter {
    let SubscribeOptions { max_qos, no_local, retain_as_published, retain_handling, identifier, .. } =
        *options;
    let retain_handling = match retain_handling {
        RetainHandling::Send => v1::RetainHandling::Send,
        RetainHandling::SendIfNew => v1::RetainHandling::SendIfNew,
        RetainHandling::DoNotSend => v1::RetainHandling::DoNotSend,
    };
    let share_group = match spec {
        FilterSpec::Plain(_) => String::new(),
        FilterSpec::Shared { group, .. } => group.to_string(),
    };
    v1::TopicFilter {
        filter: spec.filter().to_string(),
        max_qos: qos_of(max_qos).into(),
        share_group,
        retain_handling: retain_handling.into(),
        no_local,
        subscription_id: identifier.map_or(0, std::num::NonZeroU32::get),
        retain_as_published,
    }
}

/// What became of a filter.
pub(super) fn told(
    filter: String,
    share_group: String,
    result: Result<Option<Qos>, CoreError>,
) -> v1::FilterResult {
    let (granted, error) = match result {
        Ok(granted) => (granted.map_or(v1::Qos::Unspecified, qos_of), None),
        Err(error) => (v1::Qos::Unspecified, Some(status::item(&error))),
    };
    v1::FilterResult { filter, granted_qos: granted.into(), error, share_group }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(change: impl FnOnce(&mut v1::TopicFilter)) -> String {
        let mut filter = v1::TopicFilter { filter: "a/+".to_owned(), ..Default::default() };
        change(&mut filter);
        match wanted_of(&filter) {
            Err(CoreError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_error_names_the_field() {
        assert_eq!(wrong(|f| f.filter.clear()), "filter");
        assert_eq!(wrong(|f| f.filter = "a/#/b".to_owned()), "filter");
        assert_eq!(wrong(|f| f.filter = "$share/g".to_owned()), "filter");
        assert_eq!(wrong(|f| f.share_group = "a/b#".to_owned()), "share_group");
        assert_eq!(wrong(|f| f.max_qos = v1::Qos::ExactlyOnce.into()), "max_qos");
        assert_eq!(wrong(|f| f.subscription_id = 1 << 28), "subscription_id");
        assert_eq!(
            wrong(|f| {
                f.no_local = true;
                f.share_group = "g".to_owned();
            }),
            "no_local"
        );
    }

    #[test]
    fn what_is_told_of_a_filter_makes_the_same_again() {
        let filter = v1::TopicFilter {
            filter: "a/+".to_owned(),
            max_qos: v1::Qos::AtMostOnce.into(),
            retain_handling: v1::RetainHandling::SendIfNew.into(),
            no_local: true,
            subscription_id: 7,
            retain_as_published: true,
            ..Default::default()
        };
        let shared = v1::TopicFilter { no_local: false, share_group: "g".to_owned(), ..filter.clone() };
        for filter in [filter, shared] {
            let (spec, options) = wanted_of(&filter).unwrap();
            assert_eq!(filter_of(&spec, &options), filter);
        }
    }

    #[test]
    fn a_share_is_written_either_way() {
        let shared =
            v1::TopicFilter { filter: "a".to_owned(), share_group: "g".to_owned(), ..Default::default() };
        let mqtt = v1::TopicFilter { filter: "$share/g/a".to_owned(), ..Default::default() };
        assert_eq!(wanted_of(&shared).unwrap(), wanted_of(&mqtt).unwrap());
        assert_eq!(wanted_of(&shared).unwrap().1.max_qos, Qos::AtLeastOnce);
    }
}
