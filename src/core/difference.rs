//! What two definitions of one name have different, in words.
//!
//! Invariant: values are compared, not their words; settings that are equal are not told.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::num::NonZeroU32;
use std::time::Duration;

use bytestring::ByteString;

use super::filters;
use crate::engine::Overflow;
use crate::types::{QueueName, TopicFilter};

/// The differences so far.
#[derive(Debug, Default)]
pub(super) struct Differences(String);

impl Differences {
    /// Adds one, if it is one.
    pub(super) fn compare<T: PartialEq + Shown>(&mut self, what: &str, there: &T, asked: &T) {
        if there != asked {
            let lead = if self.0.is_empty() { " with other settings: " } else { ", " };
            let (there, asked) = (there.shown(), asked.shown());
            self.0.push_str(&format!("{lead}{what} is {there}, asked was {asked}"));
        }
    }

    /// The same of filters, whose order says nothing.
    pub(super) fn compare_filters(&mut self, what: &str, there: &[TopicFilter], asked: &[TopicFilter]) {
        self.compare(what, &filters::sorted(there), &filters::sorted(asked));
    }

    /// Empty if there are none.
    pub(super) fn words(self) -> String {
        self.0
    }
}

/// A setting as people write it.
pub(super) trait Shown {
    fn shown(&self) -> String;
}

macro_rules! shown_as_they_are {
    ($($setting:ty),+) => {$(
        impl Shown for $setting {
            fn shown(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

shown_as_they_are!(bool, u64, NonZeroU32, ByteString, QueueName);

impl Shown for Duration {
    fn shown(&self) -> String {
        format!("{self:?}")
    }
}

impl Shown for Overflow {
    fn shown(&self) -> String {
        let word = match self {
            Self::Reject => "reject",
            Self::DropOldest => "drop-oldest",
            Self::DeadLetter => "dead-letter",
        };
        word.to_owned()
    }
}

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> String {
        self.as_ref().map_or_else(|| "none".to_owned(), Shown::shown)
    }
}

impl Shown for Vec<String> {
    fn shown(&self) -> String {
        list(self)
    }
}

impl Shown for BTreeMap<String, String> {
    fn shown(&self) -> String {
        list(self.iter().map(|(key, value)| format!("{key}={value}")))
    }
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut text = String::new();
    for item in items {
        let lead = if text.is_empty() { "" } else { " and " };
        text.push_str(&format!("{lead}{item}"));
    }
    if text.is_empty() { "none".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told<T: PartialEq + Shown>(there: &T, asked: &T) -> String {
        let mut differences = Differences::default();
        differences.compare("it", there, asked);
        differences.words()
    }

    #[test]
    fn settings_are_told_as_people_write_them() {
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(told(&hour, &None), " with other settings: it is 3600s, asked was none");
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let several = told(&texts(&["a/#", "b"]), &texts(&[]));
        assert_eq!(several, " with other settings: it is a/# and b, asked was none");
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>()
        };
        let labels = told(&labels(&[("team", "a")]), &labels(&[("team", "b"), ("x", "")]));
        assert_eq!(labels, " with other settings: it is team=a, asked was team=b and x=");
        let five = told(&NonZeroU32::new(5), &None);
        assert_eq!(five, " with other settings: it is 5, asked was none");
        let overflow = told(&Overflow::Reject, &Overflow::DropOldest);
        assert_eq!(overflow, " with other settings: it is reject, asked was drop-oldest");
        let property = told(&Some(ByteString::from("sensor")), &None);
        assert_eq!(property, " with other settings: it is sensor, asked was none");
    }

    #[test]
    fn what_reads_alike_is_not_taken_for_equal() {
        let one = vec!["a and b".to_owned()];
        let two = vec!["a".to_owned(), "b".to_owned()];
        assert!(!told(&one, &two).is_empty() && told(&two, &two.clone()).is_empty());
    }

    #[test]
    fn several_stand_in_one_line() {
        let mut differences = Differences::default();
        differences.compare("a", &1_u64, &2);
        differences.compare("b", &true, &true);
        differences.compare("c", &true, &false);
        let words = " with other settings: a is 1, asked was 2, c is true, asked was false";
        assert_eq!(differences.words(), words);
    }
}
