//! One stored message as the index holds it.

use super::format::Location;
use crate::types::{Priority, Qos, UnixMillis};

/// 2026-01-01T00:00:00Z, from where expiry is counted in tenths of a second.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// Expiry as an entry holds it: tenths of a second, rounded up; 0 is never.
pub(super) fn expiry_tenths(at: Option<UnixMillis>) -> u32 {
    at.map_or(0, |at| u32::try_from(at.0.saturating_sub(EPOCH_MS).div_ceil(100)).unwrap_or(u32::MAX).max(1))
}

/// One stored message, 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) sequence: u64,
    /// Where the body lies, and whose ADD it is.
    pub(super) pack: u64,
    pub(super) ordinal: u32,
    pub(super) len: u32,
    /// See [`expiry_tenths`].
    pub(super) expires: u32,
    /// In the pack's bodies, or the slot of a large one.
    pub(super) offset: u16,
    /// qos 2 bits, retain, large, hole.
    flags: u8,
    pub(super) priority: u8,
}

const RETAIN: u8 = 4;
const LARGE: u8 = 8;
const HOLE: u8 = 128;

impl Entry {
    #[expect(clippy::too_many_arguments, reason = "the one place that packs them")]
    pub(super) fn new(
        sequence: u64,
        location: Location,
        offset: u16,
        len: u32,
        large: bool,
        expires_at: Option<UnixMillis>,
        (qos, retain): (Qos, bool),
        priority: Priority,
    ) -> Self {
        let flags = qos as u8 | if retain { RETAIN } else { 0 } | if large { LARGE } else { 0 };
        Self {
            sequence,
            pack: location.pack,
            ordinal: location.ordinal,
            len,
            expires: expiry_tenths(expires_at),
            offset,
            flags,
            priority: priority.level(),
        }
    }

    pub(super) fn location(&self) -> Location {
        Location { pack: self.pack, ordinal: self.ordinal }
    }

    pub(super) fn is_large(&self) -> bool {
        self.flags & LARGE != 0
    }

    /// Whether it was taken out of the midst of a level and stands there only as a mark of its place.
    pub(super) fn is_hole(&self) -> bool {
        self.flags & HOLE != 0
    }

    pub(super) fn make_hole(&mut self) {
        self.flags |= HOLE;
    }

    pub(super) fn retain(&self) -> bool {
        self.flags & RETAIN != 0
    }

    pub(super) fn qos(&self) -> Qos {
        Qos::from_u8(self.flags & 3).unwrap_or(Qos::AtMostOnce)
    }

    pub(super) fn priority(&self) -> Priority {
        Priority::new(self.priority).unwrap_or_default()
    }

    pub(super) fn expires_at(&self) -> Option<UnixMillis> {
        (self.expires != 0).then(|| UnixMillis(EPOCH_MS + u64::from(self.expires) * 100))
    }

    pub(super) fn is_expired(&self, now: UnixMillis) -> bool {
        self.expires_at().is_some_and(|at| at <= now)
    }
}
