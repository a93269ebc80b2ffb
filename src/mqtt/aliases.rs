//! Topic aliases of the server: numbers that stand for topics in deliveries to one client that allows them
//! [5: section 3.3.2.3.4].
//!
//! Each topic has one place that it may be in, by its hash. A place that was of use since it was asked for in vain last
//! keeps its topic then, so that topics which share a place do not drive each other out with every message.
//!
//! Invariant: a client learns what a number stands for before the number stands alone, as long as what was given out is
//! sent in that order, or taken back. No number is above the maximum [5: MQTT-3.1.2-26].

use std::hash::BuildHasher;
use std::num::NonZeroU16;

use rustc_hash::FxBuildHasher;

use super::codec::PublishRef;

/// A topic that is no longer gains nothing.
const SHORT: usize = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Aliases {
    places: Vec<Place>,
    first: NonZeroU16,
    count: NonZeroU16,
}

#[derive(Debug, Clone, Default)]
struct Place {
    /// Empty: none.
    topic: String,
    /// It was of use since another topic asked for the place.
    used: bool,
}

/// The number of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alias {
    number: NonZeroU16,
    /// The client knows what it stands for.
    known: bool,
}

impl Alias {
    /// The packet under this number.
    pub(super) fn put<'a>(self, publish: &PublishRef<'a>) -> PublishRef<'a> {
        let topic = if self.known { "" } else { publish.topic };
        PublishRef { topic, topic_alias: Some(self.number), ..*publish }
    }
}

impl Aliases {
    /// The numbers up to `maximum`, divided between two who do not know of each other in which order they are sent.
    pub(super) fn two_up_to(maximum: u16) -> [Option<Box<Self>>; 2] {
        let half = maximum.div_ceil(2);
        [Self::some(1, half), Self::some(half.saturating_add(1), maximum - half)]
    }

    fn some(first: u16, count: u16) -> Option<Box<Self>> {
        let (first, count) = NonZeroU16::new(first).zip(NonZeroU16::new(count))?;
        Some(Box::new(Self { places: Vec::new(), first, count }))
    }

    /// Encodes something under the number of `topic`, where there is one. `encode` is told the number; what does not
    /// come to anything with a number that is new is encoded without one.
    pub(super) fn apply<T>(
        aliases: Option<&mut Self>,
        topic: &str,
        mut encode: impl FnMut(Option<Alias>) -> Option<T>,
    ) -> Option<T> {
        let Some(aliases) = aliases else { return encode(None) };
        let alias = aliases.of(topic);
        let encoded = encode(alias);
        if encoded.is_some() {
            return encoded;
        }
        aliases.take_back(alias.filter(|alias| !alias.known)?);
        encode(None)
    }

    /// What stands for `topic` from now on, unless another topic has its place.
    fn of(&mut self, topic: &str) -> Option<Alias> {
        if topic.len() <= SHORT {
            return None;
        }
        let at = FxBuildHasher.hash_one(topic) % u64::from(self.count.get());
        let at = u16::try_from(at).ok()?;
        let number = self.first.checked_add(at)?;
        if self.places.is_empty() {
            self.places = vec![Place::default(); usize::from(self.count.get())];
        }
        let place = self.places.get_mut(usize::from(at))?;
        let known = place.topic == topic;
        if !known && std::mem::take(&mut place.used) {
            return None;
        }
        if !known {
            place.topic.clear();
            place.topic.push_str(topic);
        }
        place.used = true;
        Some(Alias { number, known })
    }

    /// It was not sent after all.
    fn take_back(&mut self, alias: Alias) {
        let at = usize::from(alias.number.get() - self.first.get());
        if let Some(place) = self.places.get_mut(at) {
            *place = Place::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_kept_while_it_is_of_use() {
        let [aliases, none] = Aliases::two_up_to(1);
        assert!(none.is_none());
        let mut aliases = aliases.unwrap();
        let number = NonZeroU16::MIN;
        let (new, known) = (Some(Alias { number, known: false }), Some(Alias { number, known: true }));
        assert_eq!(aliases.of("a/long"), new);
        assert_eq!(aliases.of("a/long"), known);
        assert_eq!(aliases.of("other"), None);
        assert_eq!(aliases.of("a/long"), known);
        assert_eq!(aliases.of("other"), None);
        assert_eq!(aliases.of("other"), new);
        assert_eq!(aliases.of("other"), known);
        aliases.take_back(Alias { number, known: true });
        assert_eq!(aliases.of("other"), new);
        assert_eq!(aliases.of("a/b"), None, "too short to gain");
        assert!(Aliases::two_up_to(0).iter().all(Option::is_none));
    }

    #[test]
    fn no_number_is_above_the_maximum() {
        for maximum in [2, 3, 100, u16::MAX] {
            let ranges = Aliases::two_up_to(maximum).map(|aliases| {
                let mut aliases = aliases.unwrap();
                let numbers = (0..1000).filter_map(|n| aliases.of(&format!("topic/{n}")));
                let numbers: Vec<u16> = numbers.map(|alias| alias.number.get()).collect();
                (*numbers.iter().min().unwrap(), *numbers.iter().max().unwrap())
            });
            let [(one, two), (three, four)] = ranges;
            assert!(1 <= one && one <= two && two < three && three <= four && four <= maximum, "{ranges:?}");
        }
    }
}
