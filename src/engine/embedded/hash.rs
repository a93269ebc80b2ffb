//! What stands for a text that a peer has chosen: a keyed hash, so that nobody can choose two texts that are taken for one.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

/// What the text is to the queue. Tells its hashes from every other use of the same secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Text {
    /// What its producer calls a message.
    DedupId,
    /// What messages come one at a time by.
    OrderingKey,
    /// What it says of the property that a queue keeps the last value of.
    LastValue,
}

impl Text {
    fn domain(self) -> &'static [u8] {
        match self {
            Self::DedupId => b"stafett dedup 1\0",
            Self::OrderingKey => b"stafett order 1\0",
            Self::LastValue => b"stafett value 1\0",
        }
    }
}

/// See the module. Stored, and so the same for ever in one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TextHash(pub(super) u128);

impl TextHash {
    /// With the secret of the store.
    pub(super) fn new(secret: &[u8; 16], what: Text, text: &str) -> Self {
        let mut hasher = SipHasher24::new_with_key(secret);
        hasher.write(what.domain());
        hasher.write(text.as_bytes());
        Self(hasher.finish128().as_u128())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_depends_on_all_and_stays_what_it_is() {
        let hash = |key, what, text| TextHash::new(&[key; 16], what, text);
        let first = hash(1, Text::DedupId, "a");
        assert_eq!(first.0, 0x4f72_57a2_e79d_7d50_8a01_929c_d8bd_1eb8);
        for other in
            [hash(2, Text::DedupId, "a"), hash(1, Text::OrderingKey, "a"), hash(1, Text::DedupId, "b")]
        {
            assert_ne!(first, other);
        }
    }
}
