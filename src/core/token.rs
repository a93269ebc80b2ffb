//! Lease tokens: what a peer hands back to settle a message from any connection, also after a restart.
//!
//! ```text
//! [boot: u64 LE][target: u32 LE][sequence: u64 LE][attempt: u32 LE][mac: u64 LE]      32 bytes
//! ```
//!
//! The MAC is SipHash-2-4 over a domain word and the 24 bytes before it, keyed with the store's secret: a peer can
//! neither make a token nor move one to another queue. Invariant: [`TokenKey::open`] gives only what
//! [`TokenKey::seal`] of the same store was given. Knows nothing of leases: whether one still holds is the
//! engine's to say.

use std::fmt;
use std::hash::Hasher;

use siphasher::sip::SipHasher24;

use crate::types::{Sequence, TargetId};

/// Tells these MACs from every other use of the same secret; a new layout takes another word.
const DOMAIN: &[u8] = b"stafett lease 1\0";
const BODY: usize = 24;

/// One delivery of one message, as a token names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseId {
    /// The start of the engine that leased it.
    pub boot: u64,
    /// The queue.
    pub target: TargetId,
    /// The message's place there.
    pub sequence: Sequence,
    /// Which delivery.
    pub attempt: u32,
}

/// The bytes are no token that this store gave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a lease token of this server")]
pub struct NotAToken;

/// Makes and reads tokens.
#[derive(Clone)]
pub struct TokenKey(SipHasher24);

impl TokenKey {
    /// The length of every token, in bytes.
    pub const TOKEN_BYTES: usize = BODY + 8;

    /// For one store.
    #[must_use]
    pub fn new(secret: &[u8; 16]) -> Self {
        let mut keyed = SipHasher24::new_with_key(secret);
        keyed.write(DOMAIN);
        Self(keyed)
    }

    /// The token of a lease.
    #[must_use]
    pub fn seal(&self, lease: &LeaseId) -> [u8; Self::TOKEN_BYTES] {
        let mut token = [0; Self::TOKEN_BYTES];
        let (body, mac) = token.split_at_mut(BODY);
        body[..8].copy_from_slice(&lease.boot.to_le_bytes());
        body[8..12].copy_from_slice(&lease.target.0.to_le_bytes());
        body[12..20].copy_from_slice(&lease.sequence.0.to_le_bytes());
        body[20..].copy_from_slice(&lease.attempt.to_le_bytes());
        mac.copy_from_slice(&self.mac(body).to_le_bytes());
        token
    }

    /// The lease that a token names.
    ///
    /// # Errors
    /// [`NotAToken`] for everything that [`TokenKey::seal`] did not make.
    pub fn open(&self, token: &[u8]) -> Result<LeaseId, NotAToken> {
        let (body, mac) = token.split_at_checked(BODY).ok_or(NotAToken)?;
        // One comparison of a whole word: its time does not tell how much of a guess was right.
        if u64::from_le_bytes(array(mac)?) != self.mac(body) {
            return Err(NotAToken);
        }
        let (boot, rest) = body.split_at_checked(8).ok_or(NotAToken)?;
        let (target, rest) = rest.split_at_checked(4).ok_or(NotAToken)?;
        let (sequence, attempt) = rest.split_at_checked(8).ok_or(NotAToken)?;
        Ok(LeaseId {
            boot: u64::from_le_bytes(array(boot)?),
            target: TargetId(u32::from_le_bytes(array(target)?)),
            sequence: Sequence(u64::from_le_bytes(array(sequence)?)),
            attempt: u32::from_le_bytes(array(attempt)?),
        })
    }

    fn mac(&self, body: &[u8]) -> u64 {
        let mut hasher = self.0;
        hasher.write(body);
        hasher.finish()
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey")
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], NotAToken> {
    bytes.try_into().map_err(|_| NotAToken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: LeaseId = LeaseId { boot: 7, target: TargetId(3), sequence: Sequence(1 << 40), attempt: 2 };

    #[test]
    fn a_token_stays_what_it_was() {
        // Clients hold tokens over restarts and upgrades: these bytes are a promise.
        let token = TokenKey::new(&[1; 16]).seal(&LEASE);
        let hex: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(&hex[..48], "070000000000000003000000000000000001000002000000");
        assert_eq!(&hex[48..], MAC, "the token of every stored lease has changed");
    }
    const MAC: &str = "4b92f1cb0b780fc7";

    #[test]
    fn refuses_what_another_store_made() {
        let token = TokenKey::new(&[1; 16]).seal(&LEASE);
        assert_eq!(TokenKey::new(&[2; 16]).open(&token), Err(NotAToken));
    }

    proptest! {
        #[test]
        fn opens_what_was_sealed(boot: u64, target: u32, sequence: u64, attempt: u32, secret: [u8; 16]) {
            let key = TokenKey::new(&secret);
            let lease = LeaseId { boot, target: TargetId(target), sequence: Sequence(sequence), attempt };
            prop_assert_eq!(key.open(&key.seal(&lease)), Ok(lease));
        }

        #[test]
        fn refuses_one_changed_bit(bit in 0..256_usize) {
            let key = TokenKey::new(&[9; 16]);
            let mut token = key.seal(&LEASE);
            token[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(key.open(&token), Err(NotAToken));
        }

        #[test]
        fn refuses_garbage(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(TokenKey::new(&[9; 16]).open(&bytes), Err(NotAToken));
        }
    }
}
