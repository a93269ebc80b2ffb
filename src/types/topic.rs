//! Topic names and topic filters: parsed once here, trusted from then on.
//!
//! A name says where a message goes; a filter says what a subscriber wants; they are different
//! types, so matching in the wrong direction does not compile. Both keep the text exactly as it was
//! received: empty levels (`a//b`, `/a`, `a/`) are levels like any other and nothing is normalised
//! [MQTT-4.7.3-4]. Cloning shares the bytes; [`TopicName::detached`] and [`TopicFilter::detached`]
//! copy them out of the buffer they were read from, for keepers.
//!
//! Rules are cited by their number in MQTT 5; where 3.1.1 numbers them otherwise, that is said. How
//! many levels or bytes a *client* may use is admission's business: see [`TopicName::level_count`].

use std::fmt;
use std::str::FromStr;

use bytestring::ByteString;

/// The most bytes a topic name or filter may have, as UTF-8 [MQTT-4.7.3-3]: MQTT gives its length
/// in two bytes.
pub const MAX_TOPIC_BYTES: usize = 65_535;

/// What a shared subscription's filter begins with [MQTT-4.8.2-1].
const SHARE_PREFIX: &str = "$share/";

/// Which kind of text a [`TopicError`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicKind {
    /// A [`TopicName`].
    Name,
    /// A [`TopicFilter`], or the filter of a shared subscription.
    Filter,
}

impl fmt::Display for TopicKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "topic name",
            Self::Filter => "topic filter",
        })
    }
}

/// Why a text is no topic name, topic filter or shared filter.
///
/// Levels are counted from 1, bytes from 0. The message shortens a long text and escapes what cannot
/// be printed; the text itself is kept whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// The text is empty [MQTT-4.7.3-1].
    #[error("a {kind} has at least one character")]
    Empty {
        /// What was parsed.
        kind: TopicKind,
    },
    /// The text is longer than [`MAX_TOPIC_BYTES`] [MQTT-4.7.3-3].
    #[error("{kind} of {bytes} bytes: at most {MAX_TOPIC_BYTES} are permitted")]
    TooLong {
        /// What was parsed.
        kind: TopicKind,
        /// The length of the text in bytes.
        bytes: usize,
    },
    /// The text holds U+0000 [MQTT-4.7.3-2].
    #[error("{kind} `{}`: U+0000 at byte {byte} is not permitted", Excerpt(text))]
    Nul {
        /// What was parsed.
        kind: TopicKind,
        /// The text as it was received.
        text: ByteString,
        /// Where the first U+0000 stands.
        byte: usize,
    },
    /// A topic name holds a wildcard ([MQTT-4.7.0-1]; in 3.1.1 [MQTT-4.7.1-1]).
    #[error("topic name `{}`: `{wildcard}` in level {level} is permitted in filters only", Excerpt(text))]
    WildcardInName {
        /// The text as it was received.
        text: ByteString,
        /// `+` or `#`.
        wildcard: char,
        /// The level that holds it.
        level: usize,
    },
    /// A filter has levels behind `#` ([MQTT-4.7.1-1]; in 3.1.1 [MQTT-4.7.1-2]).
    #[error("topic filter `{}`: `#` must be the last level", Excerpt(text))]
    NotLast {
        /// The text as it was received.
        text: ByteString,
        /// The level that is `#`.
        level: usize,
    },
    /// A wildcard shares its level with other characters ([MQTT-4.7.1-1] and [MQTT-4.7.1-2]; in
    /// 3.1.1 [MQTT-4.7.1-2] and [MQTT-4.7.1-3]).
    #[error("topic filter `{}`: `{wildcard}` must fill level {level} alone", Excerpt(text))]
    NotAlone {
        /// The text as it was received.
        text: ByteString,
        /// `+` or `#`.
        wildcard: char,
        /// The level that holds it.
        level: usize,
    },
    /// A shared filter has no share name [MQTT-4.8.2-1].
    #[error("shared filter `{}`: the share name after `$share/` is empty", Excerpt(text))]
    ShareNameEmpty {
        /// The text as it was received.
        text: ByteString,
    },
    /// A share name holds `/`, `+` or `#` [MQTT-4.8.2-2].
    #[error("share name `{}`: `{found}` is not permitted", Excerpt(text))]
    ShareNameInvalid {
        /// The share name as it was received.
        text: ByteString,
        /// The character that is not permitted.
        found: char,
    },
    /// No topic filter follows the share name [MQTT-4.8.2-2].
    #[error("shared filter `{}`: the share name must be followed by `/` and a topic filter", Excerpt(text))]
    ShareFilterMissing {
        /// The text as it was received.
        text: ByteString,
    },
}

/// Shows at most the first 80 characters, escaped: an error message is for people.
struct Excerpt<'a>(&'a str);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.char_indices().nth(80).map_or(self.0.len(), |(at, _)| at);
        let (shown, rest) = self.0.split_at(end);
        write!(f, "{}{}", shown.escape_debug(), if rest.is_empty() { "" } else { "…" })
    }
}

/// What holds for names and filters alike.
fn check_text(kind: TopicKind, text: &ByteString) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty { kind }); // [MQTT-4.7.3-1]
    }
    if text.len() > MAX_TOPIC_BYTES {
        return Err(TopicError::TooLong { kind, bytes: text.len() }); // [MQTT-4.7.3-3]
    }
    match text.find('\0') {
        Some(byte) => Err(TopicError::Nul { kind, text: text.clone(), byte }), // [MQTT-4.7.3-2]
        None => Ok(()),
    }
}

/// What the text newtypes of this file have in common.
macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            /// The text, exactly as it was received.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The text as shared text.
            #[must_use]
            pub fn to_byte_string(&self) -> ByteString {
                self.0.clone()
            }

            /// A copy with bytes of its own, so that keeping it does not keep the buffer it was read
            /// from.
            #[must_use]
            pub fn detached(&self) -> Self {
                Self(ByteString::from(self.as_str()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl FromStr for $name {
            type Err = TopicError;

            fn from_str(text: &str) -> Result<Self, TopicError> {
                Self::parse(ByteString::from(text))
            }
        }

        impl TryFrom<ByteString> for $name {
            type Error = TopicError;

            fn try_from(text: ByteString) -> Result<Self, TopicError> {
                Self::parse(text)
            }
        }
    };
}

/// Where a message is published to: 1 to 65 535 bytes, no wildcard, no U+0000.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName(ByteString);

text_newtype!(TopicName);

impl TopicName {
    /// Parses a name without copying it.
    ///
    /// # Errors
    /// [`TopicError::Empty`], [`TopicError::TooLong`], [`TopicError::Nul`],
    /// [`TopicError::WildcardInName`].
    pub fn parse(text: ByteString) -> Result<Self, TopicError> {
        check_text(TopicKind::Name, &text)?;
        // [MQTT-4.7.0-1], in 3.1.1 [MQTT-4.7.1-1]
        if let Some((before, after)) = text.find(['+', '#']).and_then(|at| text.split_at_checked(at)) {
            let wildcard = if after.starts_with('+') { '+' } else { '#' };
            let level = count_levels(before);
            return Err(TopicError::WildcardInName { wildcard, level, text });
        }
        Ok(Self(text))
    }

    /// The levels from left to right; an empty one is an empty string.
    pub fn levels(&self) -> impl DoubleEndedIterator<Item = &str> + Clone {
        self.0.split('/')
    }

    /// The level before the first `/`, empty for `/a`.
    #[must_use]
    pub fn first_level(&self) -> &str {
        first_level(&self.0)
    }

    /// How many levels there are: one more than slashes.
    #[must_use]
    pub fn level_count(&self) -> usize {
        count_levels(&self.0)
    }

    /// Whether the name begins with `$`: the server's own space, which wildcards in first place do
    /// not reach [MQTT-4.7.2-1].
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with('$')
    }
}

/// Which names a subscriber wants: levels, each a literal, `+` for any one level or, in last place,
/// `#` for any number of them including none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter(ByteString);

text_newtype!(TopicFilter);

impl TopicFilter {
    /// Parses a filter without copying it. `$share/…` has no meaning here: see [`FilterSpec`].
    ///
    /// # Errors
    /// [`TopicError::Empty`], [`TopicError::TooLong`], [`TopicError::Nul`],
    /// [`TopicError::NotLast`], [`TopicError::NotAlone`].
    pub fn parse(text: ByteString) -> Result<Self, TopicError> {
        check_text(TopicKind::Filter, &text)?;
        let mut levels = text.split('/').zip(1..).peekable();
        while let Some((content, level)) = levels.next() {
            if content == "#" {
                // [MQTT-4.7.1-1], in 3.1.1 [MQTT-4.7.1-2]
                if levels.peek().is_some() {
                    return Err(TopicError::NotLast { level, text: text.clone() });
                }
            } else if content != "+" {
                // [MQTT-4.7.1-1] and [MQTT-4.7.1-2], in 3.1.1 [MQTT-4.7.1-2] and [MQTT-4.7.1-3]
                if let Some(wildcard) = content.chars().find(|c| matches!(c, '+' | '#')) {
                    return Err(TopicError::NotAlone { wildcard, level, text: text.clone() });
                }
            }
        }
        Ok(Self(text))
    }

    /// Whether a message to `topic` is wanted. This is the plain reading of the rules; to ask many
    /// filters at once there is the router.
    #[must_use]
    pub fn matches(&self, topic: &TopicName) -> bool {
        if topic.is_reserved() && self.starts_with_wildcard() {
            return false; // [MQTT-4.7.2-1]
        }
        let mut levels = topic.levels();
        for wanted in self.levels() {
            if wanted == "#" {
                return true; // also for no level at all: `a/#` wants `a`
            }
            match levels.next() {
                Some(level) if wanted == "+" || wanted == level => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }

    /// Whether it wants everything that the other wants.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        // [MQTT-4.7.2-1]
        if self.starts_with_wildcard() && other.0.starts_with('$') {
            return false;
        }
        let mut theirs = other.levels();
        for wanted in self.levels() {
            if wanted == "#" {
                return true;
            }
            match theirs.next() {
                Some(level) if wanted == level || wanted == "+" && level != "#" => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }

    /// Whether there is a topic that both want. (`+` and `/#` meet in the empty name, which is none: yes, all the same.)
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        // [MQTT-4.7.2-1]
        let apart = |one: &Self, other: &Self| one.starts_with_wildcard() && other.0.starts_with('$');
        if apart(self, other) || apart(other, self) {
            return false;
        }
        let (mut ours, mut theirs) = (self.levels(), other.levels());
        loop {
            match (ours.next(), theirs.next()) {
                (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
                (Some(one), Some(other)) if one == "+" || other == "+" || one == other => {}
                _ => return false,
            }
        }
    }

    /// The levels from left to right. No literal level is `+` or `#`, so comparing with these tells
    /// the wildcards.
    pub fn levels(&self) -> impl DoubleEndedIterator<Item = &str> + Clone {
        self.0.split('/')
    }

    /// The level before the first `/`: a literal, possibly empty, or a wildcard.
    #[must_use]
    pub fn first_level(&self) -> &str {
        first_level(&self.0)
    }

    /// How many levels there are, `#` counting as one.
    #[must_use]
    pub fn level_count(&self) -> usize {
        count_levels(&self.0)
    }

    /// Whether any level is a wildcard. Without one the filter wants the one name that it spells.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.0.contains(['+', '#'])
    }

    /// Whether the first level is a wildcard.
    #[must_use]
    pub fn starts_with_wildcard(&self) -> bool {
        self.0.starts_with(['+', '#'])
    }

    /// The text that every wanted name begins with: for a scan over sorted names, which then asks
    /// [`matches`](Self::matches) of each.
    ///
    /// `a/b/+` gives `a/b/`, but `a/b/#` gives `a/b`, since it wants `a/b` too.
    #[must_use]
    pub fn literal_prefix(&self) -> &str {
        let Some((literal, wildcard)) = self.0.find(['+', '#']).and_then(|at| self.0.split_at_checked(at))
        else {
            return &self.0;
        };
        match literal.strip_suffix('/') {
            // The parent of `/#` would be the empty name, which there is not.
            Some(parent) if wildcard == "#" && !parent.is_empty() => parent,
            _ => literal,
        }
    }
}

/// The name of a share: the members of one share take turns.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShareName(ByteString);

text_newtype!(ShareName);

impl ShareName {
    /// Parses a share name without copying it.
    ///
    /// # Errors
    /// [`TopicError::ShareNameEmpty`], [`TopicError::ShareNameInvalid`], [`TopicError::TooLong`],
    /// [`TopicError::Nul`].
    pub fn parse(text: ByteString) -> Result<Self, TopicError> {
        if text.is_empty() {
            return Err(TopicError::ShareNameEmpty { text }); // [MQTT-4.8.2-1]
        }
        check_text(TopicKind::Filter, &text)?;
        match text.chars().find(|c| matches!(c, '/' | '+' | '#')) {
            Some(found) => Err(TopicError::ShareNameInvalid { found, text }), // [MQTT-4.8.2-2]
            None => Ok(Self(text)),
        }
    }
}

/// What a SUBSCRIBE asks for: a filter of its own, or a part in a share. Displays as the text that it
/// was parsed from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FilterSpec {
    /// Every matching message comes to this subscriber.
    Plain(TopicFilter),
    /// `$share/<group>/<filter>`: every matching message comes to one member of the group.
    Shared {
        /// The share's name.
        group: ShareName,
        /// What the share wants.
        filter: TopicFilter,
    },
}

impl FilterSpec {
    /// Parses a filter, plain or shared, without copying it.
    ///
    /// # Errors
    /// Those of [`TopicFilter::parse`] and [`ShareName::parse`], and
    /// [`TopicError::ShareFilterMissing`].
    pub fn parse(text: &ByteString) -> Result<Self, TopicError> {
        let Some(shared) = text.strip_prefix(SHARE_PREFIX) else {
            return TopicFilter::parse(text.clone()).map(Self::Plain);
        };
        check_text(TopicKind::Filter, text)?;
        let group = first_level(shared);
        if group.is_empty() {
            return Err(TopicError::ShareNameEmpty { text: text.clone() }); // [MQTT-4.8.2-1]
        }
        let group = ShareName::parse(text.slice_ref(group))?;
        // [MQTT-4.8.2-2]
        match shared.split_once('/') {
            Some((_, filter)) if !filter.is_empty() => {
                Ok(Self::Shared { group, filter: TopicFilter::parse(text.slice_ref(filter))? })
            }
            _ => Err(TopicError::ShareFilterMissing { text: text.clone() }),
        }
    }

    /// The filter that messages are matched against.
    #[must_use]
    pub fn filter(&self) -> &TopicFilter {
        match self {
            Self::Plain(filter) | Self::Shared { filter, .. } => filter,
        }
    }
}

impl fmt::Display for FilterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(filter) => write!(f, "{filter}"),
            Self::Shared { group, filter } => write!(f, "{SHARE_PREFIX}{group}/{filter}"),
        }
    }
}

impl FromStr for FilterSpec {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        Self::parse(&ByteString::from(text))
    }
}

fn first_level(text: &str) -> &str {
    text.split_once('/').map_or(text, |(first, _)| first)
}

fn count_levels(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'/').count() + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> TopicName {
        text.parse().unwrap()
    }

    fn filter(text: &str) -> TopicFilter {
        text.parse().unwrap()
    }

    #[test]
    fn filters_overlap_when_a_topic_is_wanted_by_both() {
        let texts = |levels: &[&str], most: usize| {
            let mut all: Vec<String> = levels.iter().map(|level| (*level).to_owned()).collect();
            let mut begun = 0;
            for _ in 1..most {
                let longer: Vec<_> = all[begun..]
                    .iter()
                    .flat_map(|text| levels.iter().map(move |level| format!("{text}/{level}")))
                    .collect();
                begun = all.len();
                all.extend(longer);
            }
            all
        };
        let names: Vec<TopicName> =
            texts(&["a", "b", "$s", ""], 4).iter().filter_map(|text| text.parse().ok()).collect();
        let filters: Vec<TopicFilter> =
            texts(&["a", "$s", "", "+", "#"], 3).iter().filter_map(|text| text.parse().ok()).collect();
        for (one, other) in filters.iter().flat_map(|one| filters.iter().map(move |other| (one, other))) {
            let both = names.iter().any(|name| one.matches(name) && other.matches(name));
            let meet_in_nothing = matches!((one.as_str(), other.as_str()), ("+", "/#") | ("/#", "+"));
            assert_eq!(one.overlaps(other), both || meet_in_nothing, "{one} {other}");
        }
    }

    #[test]
    fn names_keep_every_character() {
        // [MQTT-4.7.3-4]
        for text in ["a", "/", "//", "/a", "a/", "a//b", "$SYS/x", " ", "Å/å", "A/a", "a\u{301}", "\u{feff}a"]
        {
            assert_eq!(name(text).as_str(), text);
            assert_eq!(name(text).to_string(), text);
            assert_eq!(name(text).detached(), name(text));
            assert_eq!(filter(text).as_str(), text);
        }
        assert_eq!(name("a//b").levels().collect::<Vec<_>>(), ["a", "", "b"]);
        assert_eq!(name("/a/").levels().collect::<Vec<_>>(), ["", "a", ""]);
        for (text, first, count) in [("a", "a", 1), ("/", "", 2), ("a/b", "a", 2), ("//", "", 3)] {
            assert_eq!((name(text).first_level(), name(text).level_count()), (first, count), "{text}");
        }
    }

    #[test]
    fn parsing_shares_the_bytes() {
        let text = ByteString::from("$share/group/a/+");
        let FilterSpec::Shared { group, filter } = FilterSpec::parse(&text).unwrap() else { panic!() };
        let bytes = text.as_bytes().as_ptr_range();
        assert!(bytes.contains(&group.as_str().as_ptr()) && bytes.contains(&filter.as_str().as_ptr()));
        assert!(!bytes.contains(&filter.detached().as_str().as_ptr()));
    }

    #[test]
    fn wrong_texts_are_refused_with_the_reason() {
        let name = |text: &str| text.parse::<TopicName>().map(|_| ()).unwrap_err().to_string();
        let filter = |text: &str| text.parse::<TopicFilter>().map(|_| ()).unwrap_err().to_string();
        let spec = |text: &str| text.parse::<FilterSpec>().map(|_| ()).unwrap_err().to_string();
        // [MQTT-4.7.3-1]
        assert_eq!(name(""), "a topic name has at least one character");
        assert_eq!(filter(""), "a topic filter has at least one character");
        assert_eq!(spec(""), filter(""));
        // [MQTT-4.7.3-2]
        assert_eq!(name("a\0"), r"topic name `a\0`: U+0000 at byte 1 is not permitted");
        assert_eq!(filter("+/\0"), r"topic filter `+/\0`: U+0000 at byte 2 is not permitted");
        // [MQTT-4.7.3-3]
        assert_eq!(name(&"/".repeat(65_536)), "topic name of 65536 bytes: at most 65535 are permitted");
        assert_eq!(filter(&"å".repeat(32_768)), "topic filter of 65536 bytes: at most 65535 are permitted");
        // [MQTT-4.7.0-1], in 3.1.1 [MQTT-4.7.1-1]
        assert_eq!(name("a/b+"), "topic name `a/b+`: `+` in level 2 is permitted in filters only");
        assert_eq!(name("#"), "topic name `#`: `#` in level 1 is permitted in filters only");
        // [MQTT-4.7.1-1], in 3.1.1 [MQTT-4.7.1-2]
        assert_eq!(filter("a/#/b"), "topic filter `a/#/b`: `#` must be the last level");
        assert_eq!(filter("#/"), "topic filter `#/`: `#` must be the last level");
        assert_eq!(filter("a/b#"), "topic filter `a/b#`: `#` must fill level 2 alone");
        assert_eq!(filter("##"), "topic filter `##`: `#` must fill level 1 alone");
        // [MQTT-4.7.1-2], in 3.1.1 [MQTT-4.7.1-3]
        assert_eq!(filter("a+/b"), "topic filter `a+/b`: `+` must fill level 1 alone");
        assert_eq!(filter("a/++"), "topic filter `a/++`: `+` must fill level 2 alone");
        // [MQTT-4.8.2-1]
        let empty = |text| format!("shared filter `{text}`: the share name after `$share/` is empty");
        assert_eq!(spec("$share/"), empty("$share/"));
        assert_eq!(spec("$share//a"), empty("$share//a"));
        // [MQTT-4.8.2-2]
        let missing =
            |t| format!("shared filter `{t}`: the share name must be followed by `/` and a topic filter");
        assert_eq!(spec("$share/g"), missing("$share/g"));
        assert_eq!(spec("$share/g/"), missing("$share/g/"));
        assert_eq!(spec("$share/g+/a"), "share name `g+`: `+` is not permitted");
        assert_eq!(spec("$share/#"), "share name `#`: `#` is not permitted");
        assert_eq!(spec("$share/g/a#"), "topic filter `a#`: `#` must fill level 1 alone");
        // A message stays readable whatever a peer sends.
        assert_eq!(
            filter(&format!("#/{}", "x".repeat(1_000))).len(),
            "topic filter ``: `#` must be the last level".len() + 83
        );
    }

    #[test]
    fn the_longest_texts_are_permitted() {
        let text = ByteString::from("/".repeat(MAX_TOPIC_BYTES));
        assert_eq!(TopicName::parse(text.clone()).unwrap().level_count(), 65_536);
        assert_eq!(TopicFilter::parse(text).unwrap().level_count(), 65_536);
    }

    #[test]
    fn filters_match_as_the_rules_say() {
        let table = [
            // The examples of 4.7.1.2 and 4.7.1.3.
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/tennis/player1/#", "sport/tennis/player2", false),
            ("sport/#", "sport", true),
            ("sport/#", "sports", false),
            ("#", "a/b/c", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("+/tennis/#", "sport/tennis", true),
            // Empty levels are levels; case and form of letters count [MQTT-4.7.3-4].
            ("a//b", "a//b", true),
            ("a/+/b", "a//b", true),
            ("a/b", "a//b", false),
            ("a", "a/", false),
            ("a/#", "a/", true),
            ("/#", "/", true),
            ("#", "/", true),
            ("a", "A", false),
            ("å", "a\u{30a}", false),
            // [MQTT-4.7.2-1] and the examples of 4.7.2
            ("#", "$SYS/monitor/Clients", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/monitor/Clients", true),
            ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
            ("$SYS/#", "$SYS", true),
            ("+", "$", false),
            ("a/+", "a/$b", true),
            ("a/#", "a/$b", true),
        ];
        for (wanted, topic, matches) in table {
            assert_eq!(filter(wanted).matches(&name(topic)), matches, "{wanted} on {topic}");
        }
    }

    #[test]
    fn literal_prefixes() {
        let table = [
            ("a/b", "a/b"),
            ("a/+/b", "a/"),
            ("a/b/#", "a/b"),
            ("a/+/#", "a/"),
            ("a//#", "a/"),
            ("#", ""),
            ("+", ""),
            ("/#", "/"),
            ("/+", "/"),
        ];
        for (text, prefix) in table {
            assert_eq!(filter(text).literal_prefix(), prefix, "{text}");
            assert_eq!(filter(text).is_wildcard(), text.contains(['+', '#']), "{text}");
        }
    }

    #[test]
    fn specs_tell_shared_from_plain() {
        let shared = |text: &str| match text.parse().unwrap() {
            FilterSpec::Plain(_) => None,
            FilterSpec::Shared { group, filter } => Some((group.to_string(), filter.to_string())),
        };
        let part = |group: &str, filter: &str| Some((group.to_owned(), filter.to_owned()));
        assert_eq!(shared("$share/g/a/+/#"), part("g", "a/+/#"));
        assert_eq!(shared("$share/g//"), part("g", "/"));
        assert_eq!(shared("$share/g//a"), part("g", "/a"));
        assert_eq!(shared("$share/$/#"), part("$", "#"));
        assert_eq!(shared("$share"), None);
        assert_eq!(shared("$shared/g/a"), None);
        assert_eq!(shared("/$share/g/a"), None);
        assert_eq!(shared("$Share/g/a"), None);
    }

    /// A text that is often a valid name or filter and often nearly one.
    fn text() -> impl Strategy<Value = String> {
        prop::collection::vec(
            prop_oneof![Just("a"), Just("b"), Just("$"), Just(""), Just("+"), Just("#"), Just("a+")],
            1..5,
        )
        .prop_map(|levels| levels.join("/"))
    }

    proptest! {
        #[test]
        fn specs_display_as_parsed(text in "(\\$share/)?[a+#/$]{0,6}") {
            if let Ok(spec) = text.parse::<FilterSpec>() {
                prop_assert_eq!(spec.to_string(), text);
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in any::<String>()) {
            let plain = !text.is_empty() && !text.contains('\0');
            let wild = text.contains(['+', '#']);
            prop_assert_eq!(text.parse::<TopicName>().is_ok(), plain && !wild);
            if let Err(error) = text.parse::<TopicFilter>() {
                prop_assert!(!plain || wild, "{}", error);
            }
        }

        #[test]
        fn a_match_begins_with_the_literal_prefix(wanted in text(), topic in text()) {
            if let (Ok(wanted), Ok(topic)) = (wanted.parse::<TopicFilter>(), topic.parse::<TopicName>()) {
                if wanted.matches(&topic) {
                    prop_assert!(topic.as_str().starts_with(wanted.literal_prefix()));
                }
                if !wanted.is_wildcard() {
                    prop_assert_eq!(wanted.matches(&topic), wanted.as_str() == topic.as_str());
                }
            }
        }
    }
}
