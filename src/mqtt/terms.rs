//! What a listener grants its clients of all that the protocol has: said in CONNACK, held for each packet.

use std::fmt;
use std::str::FromStr;

use super::codec::{ConnAckProperties, MaximumQos, Publish, Qos, ReasonCode, SubscriptionId, Version, Will};
use super::violation::Violation;
use crate::types::topic::{FilterSpec, TopicError, TopicFilter};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The versions that are served.
    pub versions: Versions,
    /// The highest QoS, 0 to 2: of what is published, and of what is granted to a subscription.
    pub max_qos: u64,
    /// Whether what was published below a subscription's QoS is delivered at that.
    pub upgrade_outgoing_qos: bool,
    /// Whether a publish may be retained.
    pub retain: bool,
    /// Whether filters may have wildcards.
    pub wildcards: bool,
    /// Whether subscriptions may be shared.
    pub shares: bool,
    /// Whether subscriptions may have identifiers.
    pub identifiers: bool,
    /// What may not be subscribed to.
    pub denied: Vec<DeniedFilter>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            versions: Versions::default(),
            max_qos: 2,
            upgrade_outgoing_qos: false,
            retain: true,
            wildcards: true,
            shares: true,
            identifiers: true,
            denied: Vec::new(),
        }
    }
}

/// Which versions are served; one at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    v311: bool,
    v5: bool,
}

impl Default for Versions {
    fn default() -> Self {
        Self { v311: true, v5: true }
    }
}

/// The names are not those of versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one or both of \"3.1.1\" and \"5\"")]
pub struct UnknownVersion;

impl Versions {
    /// From names.
    ///
    /// # Errors
    /// [`UnknownVersion`], also when there is none.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self, UnknownVersion> {
        let mut versions = Self { v311: false, v5: false };
        for name in names {
            match name.as_ref() {
                "3.1.1" => versions.v311 = true,
                "5" => versions.v5 = true,
                _ => return Err(UnknownVersion),
            }
        }
        if versions.v311 || versions.v5 { Ok(versions) } else { Err(UnknownVersion) }
    }

    /// Their names.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        let all = [(self.v311, "3.1.1"), (self.v5, "5")];
        all.into_iter().filter(|(served, _)| *served).map(|(_, name)| name.to_owned()).collect()
    }

    fn serve(self, version: Version) -> bool {
        match version {
            Version::V311 => self.v311,
            Version::V5 => self.v5,
        }
    }
}

/// A filter that may not be subscribed to. Displays as the text that it was parsed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeniedFilter {
    /// `=FILTER`: this one.
    Exactly(TopicFilter),
    /// `FILTER`: each that could select a topic that this one selects.
    Overlapping(TopicFilter),
}

impl FromStr for DeniedFilter {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix('=') {
            Some(filter) => filter.parse().map(Self::Exactly),
            None => text.parse().map(Self::Overlapping),
        }
    }
}

impl fmt::Display for DeniedFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(filter) => write!(f, "={filter}"),
            Self::Overlapping(filter) => write!(f, "{filter}"),
        }
    }
}

impl DeniedFilter {
    fn holds_for(&self, asked: &TopicFilter) -> bool {
        match self {
            Self::Exactly(filter) => filter == asked,
            Self::Overlapping(filter) => filter.overlaps(asked),
        }
    }
}

/// Why one filter of a SUBSCRIBE is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    /// It is on the list.
    #[error("this filter may not be subscribed to here")]
    Filter,
    /// To a 3.1.1 client: a 5.0 client was told before that there are none, and is disconnected.
    #[error("{0}")]
    NotAvailable(Violation),
}

impl Denied {
    /// The code for SUBACK.
    pub(super) const fn code(self) -> ReasonCode {
        match self {
            Self::Filter => ReasonCode::NotAuthorized,
            Self::NotAvailable(violation) => violation.code(),
        }
    }
}

impl Terms {
    fn max_qos(&self) -> Qos {
        match self.max_qos {
            0 => Qos::AtMostOnce,
            1 => Qos::AtLeastOnce,
            _ => Qos::ExactlyOnce,
        }
    }

    /// Says in CONNACK what is not granted [5: MQTT-3.2.2-9].
    pub(super) fn announce(&self, properties: &mut ConnAckProperties) {
        properties.maximum_qos = match self.max_qos() {
            Qos::AtMostOnce => Some(MaximumQos::AtMostOnce),
            Qos::AtLeastOnce => Some(MaximumQos::AtLeastOnce),
            Qos::ExactlyOnce => None,
        };
        let unless = |available: bool| (!available).then_some(false);
        properties.retain_available = unless(self.retain);
        properties.wildcard_subscription_available = unless(self.wildcards);
        properties.shared_subscription_available = unless(self.shares);
        properties.subscription_ids_available = unless(self.identifiers);
    }

    /// Whether a client of this version may connect; else why not.
    pub(super) fn check_version(&self, version: Version) -> Result<(), String> {
        if self.versions.serve(version) {
            return Ok(());
        }
        Err(format!("this listener serves version {} alone", self.versions.names().join(" and ")))
    }

    /// Whether a will may be published when its time comes [5: MQTT-3.2.2-12, MQTT-3.2.2-13].
    pub(super) fn check_will(&self, will: &Will) -> Result<(), Violation> {
        self.check(will.qos, will.retain)
    }

    /// Whether a publish is what was announced [5: MQTT-3.2.2-11, MQTT-3.2.2-14].
    pub(super) fn check_publish(&self, publish: &Publish) -> Result<(), Violation> {
        self.check(publish.qos, publish.retain)
    }

    fn check(&self, qos: Qos, retain: bool) -> Result<(), Violation> {
        if qos > self.max_qos() {
            return Err(Violation::QosAboveMaximum(self.max_qos() as u8));
        }
        if retain && !self.retain { Err(Violation::RetainNotAvailable) } else { Ok(()) }
    }

    /// Whether a SUBSCRIBE asks for nothing that a 5.0 client was told not to ask for.
    pub(super) fn check_subscribe(&self, identifier: Option<SubscriptionId>) -> Result<(), Violation> {
        if identifier.is_some() && !self.identifiers {
            return Err(Violation::IdentifiersNotAvailable);
        }
        Ok(())
    }

    /// What is granted of a filter.
    ///
    /// # Errors
    /// [`Violation`] for a 5.0 client that was told that there is no such thing; the inner error for SUBACK.
    pub(super) fn check_filter(
        &self,
        filter: &FilterSpec,
        version: Version,
    ) -> Result<Result<(), Denied>, Violation> {
        let missing = match filter {
            FilterSpec::Shared { .. } if !self.shares => Some(Violation::SharesNotAvailable),
            filter if !self.wildcards && filter.filter().is_wildcard() => {
                Some(Violation::WildcardsNotAvailable)
            }
            _ => None,
        };
        if let Some(violation) = missing {
            return match version {
                Version::V5 => Err(violation),
                Version::V311 => Ok(Err(Denied::NotAvailable(violation))),
            };
        }
        let denied = self.denied.iter().any(|denied| denied.holds_for(filter.filter()));
        Ok(if denied { Err(Denied::Filter) } else { Ok(()) })
    }

    /// The QoS that a subscription gets of what it asks for [5: MQTT-3.2.2-10].
    pub(super) fn granted(&self, asked: Qos) -> Qos {
        asked.min(self.max_qos())
    }
}
