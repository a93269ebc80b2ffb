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

/// A topic that is no longer gains nothing.
const SHORT: usize = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Aliases {
    places: Vec<Place>,
    maximum: NonZeroU16,
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
    pub(super) number: NonZeroU16,
    /// The client knows what it stands for.
    pub(super) known: bool,
}

impl Aliases {
    /// Numbers up to `maximum`; none where that is 0.
    pub(super) fn up_to(maximum: u16) -> Option<Box<Self>> {
        let maximum = NonZeroU16::new(maximum)?;
        Some(Box::new(Self { places: Vec::new(), maximum }))
    }

    /// What stands for `topic` from now on, unless another topic has its place.
    pub(super) fn of(&mut self, topic: &str) -> Option<Alias> {
        if topic.len() <= SHORT {
            return None;
        }
        let at = FxBuildHasher.hash_one(topic) % u64::from(self.maximum.get());
        let at = u16::try_from(at).ok()?;
        let number = NonZeroU16::MIN.checked_add(at)?;
        if self.places.is_empty() {
            self.places = vec![Place::default(); usize::from(self.maximum.get())];
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
    pub(super) fn take_back(&mut self, alias: Alias) {
        if let Some(place) = self.places.get_mut(usize::from(alias.number.get()) - 1) {
            *place = Place::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_kept_while_it_is_of_use() {
        let mut aliases = Aliases::up_to(1).unwrap();
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
        assert!(Aliases::up_to(0).is_none());
    }

    #[test]
    fn no_number_is_above_the_maximum() {
        for maximum in [1, 2, 3, 100, u16::MAX] {
            let mut aliases = Aliases::up_to(maximum).unwrap();
            let numbers = (0..1000).filter_map(|n| aliases.of(&format!("topic/{n}")));
            let highest = numbers.map(|alias| alias.number.get()).max().unwrap();
            assert!(highest <= maximum && highest > maximum / 2, "{highest} of {maximum}");
        }
    }
}
