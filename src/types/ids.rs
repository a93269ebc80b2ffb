//! Names and numbers that identify things, each a type of its own: parsed once, never checked again.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use bytestring::ByteString;

use super::clock::{self, UnixMillis};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name has no characters.
    #[error("the {what} is empty")]
    Empty {
        /// What kind of name it is.
        what: &'static str,
    },
    /// The name has more bytes than allowed.
    #[error("the {what} has {len} bytes, at most {max} are allowed")]
    TooLong {
        /// What kind of name it is.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The longest permitted, in bytes.
        max: usize,
    },
    /// The name holds a character that is not allowed.
    #[error("the {what} `{name}` holds {found:?} at byte {at}; allowed are {allowed}")]
    Character {
        /// What kind of name it is.
        what: &'static str,
        /// The name as given.
        name: String,
        /// The offending character.
        found: char,
        /// Its byte offset.
        at: usize,
        /// What is allowed, in words.
        allowed: &'static str,
    },
}

fn check(
    what: &'static str,
    name: &str,
    max: usize,
    allowed: &'static str,
    permitted: impl Fn(char) -> bool,
) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    if name.len() > max {
        return Err(NameError::TooLong { what, len: name.len(), max });
    }
    match name.char_indices().find(|&(_, c)| !permitted(c)) {
        Some((at, found)) => Err(NameError::Character { what, name: name.to_owned(), found, at, allowed }),
        None => Ok(()),
    }
}

/// A name that stands in topics and on command lines as it is.
fn plain(what: &'static str, name: ByteString) -> Result<ByteString, NameError> {
    check(what, &name, QueueName::MAX_BYTES, "letters, digits, '.', '_' and '-'", |c| {
        c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
    })?;
    Ok(name)
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(ByteString);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name as shared text.
            #[must_use]
            pub fn to_byte_string(&self) -> ByteString {
                self.0.clone()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type! {
    /// The name of a queue: 1 to 128 of `A-Z a-z 0-9 . _ -`.
    QueueName
}

impl QueueName {
    /// The longest queue name, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// # Errors
    /// [`NameError`] if the name is empty, too long or holds another character.
    pub fn parse(name: impl Into<ByteString>) -> Result<Self, NameError> {
        plain("queue name", name.into()).map(Self)
    }
}

name_type! {
    /// The name of a stream: 1 to 128 of `A-Z a-z 0-9 . _ -`.
    StreamName
}

impl StreamName {
    /// The longest stream name, in bytes.
    pub const MAX_BYTES: usize = QueueName::MAX_BYTES;

    /// # Errors
    /// [`NameError`] if the name is empty, too long or holds another character.
    pub fn parse(name: impl Into<ByteString>) -> Result<Self, NameError> {
        plain("stream name", name.into()).map(Self)
    }
}

name_type! {
    /// The name of a reader's place in a stream: 1 to 128 of `A-Z a-z 0-9 . _ -`.
    CursorName
}

impl CursorName {
    /// The longest cursor name, in bytes.
    pub const MAX_BYTES: usize = QueueName::MAX_BYTES;

    /// # Errors
    /// [`NameError`] if the name is empty, too long or holds another character.
    pub fn parse(name: impl Into<ByteString>) -> Result<Self, NameError> {
        plain("cursor name", name.into()).map(Self)
    }
}

name_type! {
    /// The name of a backup: 1 to 128 of `A-Z a-z 0-9 . _ -`, the first of which is no `.`.
    BackupName
}

impl BackupName {
    /// The longest name of a backup, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// # Errors
    /// [`NameError`] if the name is empty, too long or holds another character.
    pub fn parse(name: impl Into<ByteString>) -> Result<Self, NameError> {
        let name = name.into();
        let allowed = "letters, digits, '.', '_' and '-', and no '.' at the beginning";
        // A directory has this name, and one whose name begins so is not whole.
        let hidden = name.starts_with('.');
        check("name of a backup", &name, Self::MAX_BYTES, allowed, |c| {
            c.is_ascii_alphanumeric() || matches!(c, '_' | '-') || c == '.' && !hidden
        })?;
        Ok(Self(name))
    }
}

name_type! {
    /// The identifier of a client: 1 to 65 535 bytes of UTF-8 without control characters.
    ClientId
}

impl ClientId {
    /// The longest client id, in bytes [MQTT-1.5.4].
    pub const MAX_BYTES: usize = 65_535;

    /// # Errors
    /// [`NameError`] if the id is empty, too long or holds a control character.
    pub fn parse(name: impl Into<ByteString>) -> Result<Self, NameError> {
        let name = name.into();
        check("client id", &name, Self::MAX_BYTES, "all but control characters", |c| !c.is_control())?;
        Ok(Self(name))
    }
}

/// Identifies a durable target (queue, session, share group, stream) within one store; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u32);

/// The place of a message in its target: ascending, not necessarily without gaps, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(pub u64);

/// Identifies a message over all its targets and doors: 26 characters, ordered by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u128);

impl MessageId {
    /// The length of an id as text.
    pub const TEXT_BYTES: usize = ulid::ULID_LEN;

    /// The id as text, without an allocation.
    pub fn write(self, to: &mut [u8; Self::TEXT_BYTES]) -> &str {
        ulid::Ulid(self.0).array_to_str(to)
    }

    /// An id that nobody can guess: 48 bits of time, 80 random ones. Who has it has a right.
    #[must_use]
    pub fn unguessable(at: UnixMillis) -> Self {
        Self(ulid::Ulid::from_parts(at.0, ulid::Ulid::generate().random()).0)
    }

    /// The id of 26 characters.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        ulid::Ulid::from_string(text).ok().map(|id| Self(id.0))
    }

    /// The id of 16 stored bytes.
    #[must_use]
    pub const fn from_u128(id: u128) -> Self {
        Self(id)
    }

    /// The id as 16 bytes to store.
    #[must_use]
    pub const fn to_u128(self) -> u128 {
        self.0
    }

    /// When the message was accepted.
    #[must_use]
    pub fn time(self) -> UnixMillis {
        UnixMillis(ulid::Ulid(self.0).timestamp_ms())
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&ulid::Ulid(self.0), f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes message ids: 48 bits of time, 24 random bits of this process, 56 bits that count.
#[derive(Debug)]
pub struct MessageIds {
    process: u128,
    count: AtomicU64,
}

impl MessageIds {
    /// Ids that differ from every other process's.
    #[must_use]
    pub fn new() -> Self {
        let random = ulid::Ulid::generate().random();
        Self { process: (random & 0xff_ffff) << 56, count: AtomicU64::new(0) }
    }

    /// The next id, at the given time.
    pub fn next(&self, at: UnixMillis) -> MessageId {
        let count = u128::from(self.count.fetch_add(1, Ordering::Relaxed)) & 0xff_ffff_ffff_ffff;
        MessageId((u128::from(at.0) << 80) | self.process | count)
    }

    /// The next id, now.
    pub fn next_now(&self) -> MessageId {
        self.next(clock::unix_now())
    }
}

impl Default for MessageIds {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_names_name_what_is_wrong() {
        for (name, wrong) in [
            ("", "the queue name is empty"),
            ("a b", "the queue name `a b` holds ' ' at byte 1"),
            ("a/b", "the queue name `a/b` holds '/' at byte 1"),
        ] {
            let error = QueueName::parse(name).unwrap_err().to_string();
            assert!(error.starts_with(wrong), "{error}");
        }
        assert!(QueueName::parse("x".repeat(129)).unwrap_err().to_string().contains("129 bytes"));
        assert_eq!(QueueName::parse("orders.v1_x-2").unwrap().as_str(), "orders.v1_x-2");
    }

    #[test]
    fn message_ids_ascend_and_hold_their_time() {
        let ids = MessageIds::new();
        let (a, b) = (ids.next(UnixMillis(1_700_000_000_123)), ids.next(UnixMillis(1_700_000_000_123)));
        assert!(a < b);
        assert_eq!(b.time(), UnixMillis(1_700_000_000_123));
        assert_eq!(a.to_string().len(), 26);
        assert_eq!(MessageId::parse(&a.to_string()), Some(a));
        assert_eq!(MessageId::parse("no id"), None);
    }

    #[test]
    fn ids_that_nobody_can_guess_have_80_bits_by_chance() {
        let at = UnixMillis(1_700_000_000_123);
        let ids: Vec<_> = (0..200).map(|_| MessageId::unguessable(at)).collect();
        assert!(ids.iter().all(|id| id.time() == at));
        for bit in 0..80 {
            let set = ids.iter().filter(|id| id.to_u128() >> bit & 1 == 1).count();
            assert!((40..160).contains(&set), "bit {bit} is set in {set} of 200");
        }
    }
}
