//! A literal level as the key of a trie node's children.
//!
//! Most levels are short, so they lie in the key itself: a search among siblings reads no other
//! memory, and copying them while a writer copies a path touches no shared counter. Longer ones are
//! shared between copies. Either way the bytes are the level's own, so that a trie keeps no buffer
//! that a filter was read from.
//!
//! Levels compare by bytes, which for UTF-8 is the order of the characters.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// As many bytes as make a level three words large.
const INLINE: usize = 22;

#[derive(Clone)]
pub(super) enum Level {
    Inline { len: u8, bytes: [u8; INLINE] },
    Shared(Arc<[u8]>),
}

impl Level {
    pub(super) fn new(text: &str) -> Self {
        let mut bytes = [0; INLINE];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(text.as_bytes());
                Self::Inline { len, bytes }
            }
            _ => Self::Shared(text.as_bytes().into()),
        }
    }

    /// As it was given.
    pub(super) fn as_str(&self) -> Option<&str> {
        str::from_utf8(self.as_bytes()).ok()
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Self::Shared(bytes) => bytes,
        }
    }
}

// As the bytes that it lends, so that a map can be asked with these.
impl Borrow<[u8]> for Level {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Hash for Level {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl PartialEq for Level {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Level {}

impl PartialOrd for Level {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Level {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use super::*;

    #[test]
    fn levels_are_their_bytes() {
        assert_eq!(size_of::<Level>(), 24);
        let hasher = RandomState::new();
        let texts: Vec<_> =
            (0..=64).map(|len| "å".repeat(len)).chain(["".into(), "z".repeat(22), "z".repeat(23)]).collect();
        for text in &texts {
            let level = Level::new(text);
            assert_eq!(level.as_bytes(), text.as_bytes());
            assert_eq!(hasher.hash_one(&level), hasher.hash_one(text.as_bytes()));
            for other in &texts {
                assert_eq!(level.cmp(&Level::new(other)), text.cmp(other));
            }
        }
    }
}
