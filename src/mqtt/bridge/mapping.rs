//! Which topics a bridge carries, which way, and what they are called on each side.
//!
//! Invariant: a topic that is mapped to the other side and back is the same; the first topic of the list that fits decides.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::core::{CloseReason, Offer, Outbox};
use crate::engine::{RetainHandling, SubscribeOptions};
use crate::mqtt::codec;
use crate::mqtt::outbox::Mailbox;
use crate::mqtt::translate;
use crate::types::topic::{FilterSpec, TopicError};
use crate::types::{Message, Qos, TopicFilter, TopicName};

/// Which way messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the other broker to this one.
    In,
    /// From this broker to the other one.
    Out,
    /// Both ways.
    Both,
}

/// The text is no [`Direction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of in, out, both")]
pub struct UnknownDirection;

impl FromStr for Direction {
    type Err = UnknownDirection;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "in" => Self::In,
            "out" => Self::Out,
            "both" => Self::Both,
            _ => return Err(UnknownDirection),
        })
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Both => "both",
        })
    }
}

/// What of the topics a bridge carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Without either prefix.
    pub filter: String,
    /// Which way.
    pub direction: Direction,
    /// The highest level: 0 to 2.
    pub qos: u64,
    /// What stands before it on this broker.
    pub local_prefix: String,
    /// What stands before it on the other broker.
    pub remote_prefix: String,
}

impl Default for Topic {
    fn default() -> Self {
        let none = String::new;
        Self {
            filter: none(),
            direction: Direction::Both,
            qos: 1,
            local_prefix: none(),
            remote_prefix: none(),
        }
    }
}

/// A name of one side and what it is on the other.
#[derive(Clone, Debug)]
struct Route {
    filter: TopicFilter,
    from: String,
    to: String,
    qos: Qos,
    /// What `filter` is called on the other side.
    there: TopicFilter,
    /// The same goes the other way, too.
    both: bool,
    /// Retained messages go over when the subscription is new, and not each time.
    once: bool,
}

/// All topics of a bridge.
#[derive(Clone, Debug, Default)]
pub struct Mapping {
    inward: Vec<Route>,
    outward: Vec<Route>,
}

/// What begins a filter that is a command and no part of the topics.
const COMMANDS: [&str; 4] = ["$share/", "$queue/", "$delayed/", "$replay/"];

/// What a broker says of itself.
const OWN: &str = "$SYS/";

impl Mapping {
    /// Of these topics.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub fn new(topics: &[Topic]) -> Result<Self, String> {
        let mut mapping = Self::default();
        for topic in topics {
            let Topic { filter, direction, qos, local_prefix, remote_prefix } = topic;
            let parse = |prefix: &str| {
                let text = format!("{prefix}{filter}");
                TopicFilter::parse(text.clone().into())
                    .map_err(|error: TopicError| format!("{text:?}: {error}"))
            };
            let (local, remote) = (parse(local_prefix)?, parse(remote_prefix)?);
            for (prefix, set) in [("local_prefix", local_prefix), ("remote_prefix", remote_prefix)] {
                if set.contains(['+', '#']) {
                    return Err(format!("{prefix} {set:?}: wildcards belong into the filter"));
                }
            }
            // Nobody publishes what a broker says of itself.
            let (there, prefix) = match direction {
                Direction::In => ([Some(&local), None], "local_prefix"),
                Direction::Out => ([Some(&remote), None], "remote_prefix"),
                Direction::Both => ([Some(&local), Some(&remote)], "local_prefix and remote_prefix"),
            };
            if let Some(own) = there.into_iter().flatten().find(|filter| filter.as_str().starts_with(OWN)) {
                return Err(format!(
                    "`{own}` is a broker's own: give a {prefix} under which it is published"
                ));
            }
            let qos = match qos {
                0 => Qos::AtMostOnce,
                1 => Qos::AtLeastOnce,
                _ => Qos::ExactlyOnce,
            };
            let both = *direction == Direction::Both;
            let route = |filter: &TopicFilter, there: &TopicFilter, from: &str, to: &str| Route {
                filter: filter.clone(),
                there: there.clone(),
                from: from.to_owned(),
                to: to.to_owned(),
                qos,
                both,
                once: both,
            };
            if *direction != Direction::In {
                if COMMANDS.iter().any(|command| local.as_str().starts_with(command)) {
                    return Err(format!("`{local}` is a command, and no topic to be sent"));
                }
                mapping.outward.push(route(&local, &remote, local_prefix, remote_prefix));
            }
            if *direction != Direction::Out {
                mapping.inward.push(route(&remote, &local, remote_prefix, local_prefix));
            }
        }
        for routes in [&mapping.inward, &mapping.outward] {
            for (at, route) in routes.iter().enumerate() {
                if routes.iter().take(at).any(|earlier| earlier.filter == route.filter) {
                    return Err(format!("`{}` stands twice the same way", route.filter));
                }
            }
        }
        mapping.hand_over_once_what_comes_back();
        for route in &mapping.outward {
            let back = |other: &&Route| other.from == route.to && other.to == route.from && !other.both;
            let same = |other: &Route| other.filter.as_str().get(other.from.len()..) == route.rest();
            if !route.both && mapping.inward.iter().filter(back).any(same) {
                let filter = &route.filter;
                return Err(format!("`{filter}` goes out and comes back in: that is direction = \"both\""));
            }
        }
        Ok(mapping)
    }

    /// Where a topic that goes out may be one that came in, its retained message is handed over once alone: each time, it
    /// would put an older value over the newer one of the other side.
    fn hand_over_once_what_comes_back(&mut self) {
        let there = |routes: &[Route]| routes.iter().map(|route| route.there.clone()).collect::<Vec<_>>();
        let (came_in, went_out) = (there(&self.inward), there(&self.outward));
        for (routes, others) in [(&mut self.outward, came_in), (&mut self.inward, went_out)] {
            for route in routes {
                route.once |= others.iter().any(|other| other.overlaps(&route.filter));
            }
        }
    }

    /// What a topic of the other broker is called here; `None`: it is not carried.
    pub(in crate::mqtt) fn inward(&self, topic: &TopicName) -> Option<TopicName> {
        self.inward.iter().find(|route| route.filter.matches(topic))?.apply(topic)
    }

    /// What a topic of ours is called there; `None`: it is not carried.
    pub(in crate::mqtt) fn outward(&self, topic: &TopicName) -> Option<TopicName> {
        self.outward.iter().find(|route| route.filter.matches(topic))?.apply(topic)
    }

    /// The filters that the other broker is asked for, in order.
    pub(in crate::mqtt) fn subscribed(&self) -> impl Iterator<Item = &TopicFilter> {
        self.inward.iter().map(|route| &route.filter)
    }

    /// The same as SUBSCRIBE says it. What we publish does not come back, and retained messages stay retained; 3.1.1 has no
    /// words for either. Where topics go both ways, retained messages come when the subscription is new, else each time:
    /// neither side's older value is to overwrite the other's newer one.
    pub(super) fn remote_filters(&self, version: codec::Version) -> Vec<codec::SubscribeFilter> {
        let filters = self.inward.iter().map(|route| {
            let qos = translate::wire_qos(route.qos);
            let options = match version {
                codec::Version::V311 => codec::SubscribeOptions { qos, ..Default::default() },
                codec::Version::V5 => codec::SubscribeOptions {
                    qos,
                    no_local: true,
                    retain_as_published: true,
                    retain_handling: if route.once {
                        codec::RetainHandling::SendIfNew
                    } else {
                        codec::RetainHandling::Send
                    },
                },
            };
            codec::SubscribeFilter { filter: route.filter.to_byte_string(), options }
        });
        filters.collect()
    }

    /// The subscriptions of the bridge on this broker; `fresh` says that they are new, `connected` whether there is
    /// somebody to take retained messages.
    pub(super) fn local_filters(&self, fresh: bool, connected: bool) -> Vec<(FilterSpec, SubscribeOptions)> {
        let filters = self.outward.iter().map(|route| {
            let options = SubscribeOptions {
                max_qos: route.qos,
                no_local: true,
                retain_as_published: true,
                retain_handling: if connected && (fresh || !route.once) {
                    RetainHandling::Send
                } else {
                    RetainHandling::DoNotSend
                },
                identifier: None,
                upgrade_qos: false,
            };
            (FilterSpec::Plain(route.filter.clone()), options)
        });
        filters.collect()
    }
}

impl Route {
    fn rest(&self) -> Option<&str> {
        self.filter.as_str().get(self.from.len()..)
    }

    fn apply(&self, topic: &TopicName) -> Option<TopicName> {
        if self.from == self.to {
            return Some(topic.clone());
        }
        // A filter that ends in `/#` also fits the name without the slash, which may be shorter than the prefix.
        let rest = topic.as_str().strip_prefix(&self.from)?;
        TopicName::parse(format!("{}{rest}", self.to).into()).ok()
    }
}

/// What the other broker takes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mqtt) struct Grants {
    pub(in crate::mqtt) max_qos: Qos,
    pub(in crate::mqtt) retain: bool,
}

/// The way out of live deliveries: mapped, then into the mailbox of the connection.
pub(super) struct Outward {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) mapping: Arc<Mapping>,
    pub(super) grants: Grants,
}

impl Outbox for Outward {
    fn offer(&self, deliveries: &[Offer<'_>]) -> usize {
        let carried = |offer: &Offer<'_>| -> Option<(Message, Qos, bool)> {
            let topic = self.mapping.outward(&offer.message.topic)?;
            let message = Message { topic, ..offer.message.clone() };
            Some((message, offer.qos.min(self.grants.max_qos), offer.retain && self.grants.retain))
        };
        let mapped: Vec<_> = deliveries.iter().filter_map(carried).collect();
        let offers: Vec<Offer<'_>> = mapped
            .iter()
            .map(|(message, qos, retain)| Offer {
                message,
                qos: *qos,
                retain: *retain,
                identifiers: &[],
                share: None,
                publisher: None,
            })
            .collect();
        if offers.is_empty() { 0 } else { self.mailbox.offer(&offers) }
    }

    fn close(&self, reason: CloseReason) {
        self.mailbox.close(reason);
    }

    fn backlog(&self) -> usize {
        self.mailbox.backlog()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(filter: &str, direction: Direction, local: &str, remote: &str) -> Topic {
        let (local_prefix, remote_prefix) = (local.to_owned(), remote.to_owned());
        Topic { filter: filter.to_owned(), direction, local_prefix, remote_prefix, qos: 1 }
    }

    fn name(text: &str) -> TopicName {
        text.parse().unwrap()
    }

    #[test]
    fn retained_messages_that_may_come_back_go_over_once() {
        let handling = |topics: &[Topic]| {
            let mapping = Mapping::new(topics).unwrap();
            let sent = mapping.local_filters(false, true);
            let sent = sent.iter().map(|(_, options)| options.retain_handling == RetainHandling::DoNotSend);
            let asked = mapping.remote_filters(codec::Version::V5);
            let if_new = codec::RetainHandling::SendIfNew;
            let asked = asked.iter().map(|filter| filter.options.retain_handling == if_new);
            (sent.collect::<Vec<_>>(), asked.collect::<Vec<_>>())
        };
        let (out, into) = (Direction::Out, Direction::In);
        let each = [topic("a/#", out, "", ""), topic("b/#", into, "", "")];
        assert_eq!(handling(&each), (vec![false], vec![false]));
        let overlapping = [topic("#", out, "", ""), topic("commands/#", into, "", "")];
        assert_eq!(handling(&overlapping), (vec![true], vec![true]));
        // Apart by their prefixes on one side alone: what goes out there does not come back here.
        let apart = [topic("#", out, "x/", "y/"), topic("#", into, "z/", "y/")];
        assert_eq!(handling(&apart), (vec![false], vec![true]));
        let both = [topic("a/#", Direction::Both, "", "")];
        assert_eq!(handling(&both), (vec![true], vec![true]));
    }

    #[test]
    fn prefixes_are_exchanged_both_ways() {
        use Direction::{Both, In, Out};
        let mapping = Mapping::new(&[
            topic("temp/+", Both, "house/", "cloud/1/"),
            topic("#", Out, "log/", "logs/house/"),
            topic("cmd/#", In, "", "to/house/"),
        ]);
        let mapping = mapping.unwrap();
        let out = |text: &str| mapping.outward(&name(text)).map(|topic| topic.to_string());
        let inward = |text: &str| mapping.inward(&name(text)).map(|topic| topic.to_string());
        assert_eq!(out("house/temp/k").as_deref(), Some("cloud/1/temp/k"));
        assert_eq!(inward("cloud/1/temp/k").as_deref(), Some("house/temp/k"));
        assert_eq!(out("log/a/b").as_deref(), Some("logs/house/a/b"));
        assert_eq!(inward("to/house/cmd").as_deref(), Some("cmd"));
        for gone in ["log", "temp/k", "cmd/x", "house/temp/k/l"] {
            assert_eq!(out(gone), None, "{gone}");
        }
        assert_eq!(inward("logs/house/a"), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        use Direction::{Both, In, Out};
        let refused = |topics: &[Topic]| Mapping::new(topics).unwrap_err();
        assert!(refused(&[topic("a/#/b", Both, "", "")]).contains("a/#/b"));
        assert!(refused(&[topic("", Out, "", "x")]).starts_with("\"\": "));
        for command in ["$share/g/", "$queue/", "$delayed/5/", "$replay/first/"] {
            assert!(refused(&[topic("q", Out, command, "")]).contains("command"), "{command}");
        }
        assert!(refused(&[topic("a", Out, "", ""), topic("a", Both, "", "")]).contains("twice"));
        let loops = [topic("a/#", Out, "l/", "r/"), topic("a/#", In, "l/", "r/")];
        assert!(refused(&loops).contains("both"));
        assert!(refused(&[topic("a", In, "l/+/", "")]).contains("local_prefix \"l/+/\""));
        assert!(refused(&[topic("a", In, "", "r/+/")]).contains("remote_prefix \"r/+/\""));
        assert!(refused(&[topic("$SYS/#", In, "", "")]).contains("give a local_prefix"));
        assert!(refused(&[topic("$SYS/#", Out, "", "")]).contains("give a remote_prefix"));
        assert!(refused(&[topic("$SYS/#", Both, "here/", "")]).contains("`$SYS/#` is a broker's own"));
        assert!(Mapping::new(&[topic("$SYS/#", In, "there/", "")]).is_ok());
        let crossed = [topic("a/#", Out, "l/", "r/"), topic("a/#", In, "m/", "r/")];
        assert!(Mapping::new(&crossed).is_ok());
    }
}
