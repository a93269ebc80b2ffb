//! Pairs of topics for devices that know neither response topics nor correlation data.
//!
//! `lamps/+/set -> lamps/+/state`: who is asked on a topic that the first filter matches answers on the second one, with the
//! same levels in the places of `+`. Such a device has one request in hand, and what it publishes next there is the answer.

use std::fmt;
use std::str::FromStr;

use bytestring::ByteString;

use crate::types::topic::TopicError;
use crate::types::{TopicFilter, TopicName};

/// Between the two filters.
const ARROW: &str = "->";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPair {
    request: TopicFilter,
    reply: TopicFilter,
}

/// Why a text is no pair of topics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAPair {
    /// No arrow between two filters.
    #[error("must be REQUEST -> REPLY, as in lamps/+/set -> lamps/+/state")]
    NoArrow,
    /// One is no filter.
    #[error(transparent)]
    Filter(#[from] TopicError),
    /// `#` stands for any number of levels.
    #[error("`{0}`: # is not for pairs of topics")]
    Rest(TopicFilter),
    /// The levels of one cannot be put into the other.
    #[error("`{0}`: both must have the same number of +")]
    Levels(TopicFilter),
    /// A name that is the server's.
    #[error("`{0}`: names that begin with $ are the server's")]
    Reserved(TopicFilter),
}

fn levels(filter: &TopicFilter) -> impl Iterator<Item = &str> {
    filter.as_str().split('/')
}

impl TopicPair {
    /// Where who is asked on `service` answers, if this pair is for it.
    pub(super) fn reply_to(&self, service: &TopicName) -> Option<TopicName> {
        if !self.request.matches(service) {
            return None;
        }
        let named = levels(&self.request).zip(service.levels());
        let mut named = named.filter(|(level, _)| *level == "+").map(|(_, name)| name);
        let reply: Option<Vec<&str>> =
            levels(&self.reply).map(|level| if level == "+" { named.next() } else { Some(level) }).collect();
        TopicName::parse(ByteString::from(reply?.join("/"))).ok()
    }

    /// Whether answers may come on `topic`.
    pub(super) fn has_reply(&self, topic: &TopicName) -> bool {
        self.reply.matches(topic)
    }
}

impl FromStr for TopicPair {
    type Err = NotAPair;

    fn from_str(text: &str) -> Result<Self, NotAPair> {
        let (request, reply) = text.split_once(ARROW).ok_or(NotAPair::NoArrow)?;
        let (request, reply): (TopicFilter, TopicFilter) = (request.trim().parse()?, reply.trim().parse()?);
        let wild = |filter: &TopicFilter| levels(filter).filter(|level| *level == "+").count();
        for filter in [&request, &reply] {
            if levels(filter).any(|level| level == "#") {
                return Err(NotAPair::Rest(filter.clone()));
            }
            if filter.as_str().starts_with('$') {
                return Err(NotAPair::Reserved(filter.clone()));
            }
        }
        if wild(&request) != wild(&reply) {
            return Err(NotAPair::Levels(reply));
        }
        Ok(Self { request, reply })
    }
}

impl fmt::Display for TopicPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {ARROW} {}", self.request, self.reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_go_over_in_their_order() {
        let pair: TopicPair = "lamps/+/set/+ ->  state/+/of/+/x".parse().unwrap();
        assert_eq!(pair.to_string(), "lamps/+/set/+ -> state/+/of/+/x");
        let reply = |service: &str| pair.reply_to(&service.parse().unwrap()).map(|to| to.to_string());
        assert_eq!(reply("lamps/7/set/color").as_deref(), Some("state/7/of/color/x"));
        assert_eq!(reply("lamps//set/").as_deref(), Some("state//of//x"));
        assert_eq!(reply("lamps/7/set"), None);
        assert!(pair.has_reply(&"state/1/of/2/x".parse().unwrap()));
    }

    #[test]
    fn what_is_no_pair_says_why() {
        for (text, why) in [
            ("a/b", "must be REQUEST -> REPLY"),
            ("a -> ", "at least one character"),
            ("a/# -> b/#", "# is not for"),
            ("a/+ -> b", "the same number"),
            ("$x -> b", "begin with $"),
        ] {
            let error = text.parse::<TopicPair>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
