//! When what failed is delivered again, and when no more.

use std::hash::Hasher;
use std::num::NonZeroU32;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::engine::QueueSpec;
use crate::types::UnixMillis;

/// The rules of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Retries {
    /// After so many counted deliveries a message is given up.
    pub(super) max: Option<NonZeroU32>,
    pub(super) backoff: Option<Backoff>,
}

/// How long a message rests after a delivery that counts, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backoff {
    min: u64,
    /// Not below `min`.
    max: u64,
}

impl From<&QueueSpec> for Retries {
    fn from(queue: &QueueSpec) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let backoff = queue.retry_min_backoff.map(|min| {
            let min = millis(min);
            let max = millis(queue.retry_max_backoff.unwrap_or(QueueSpec::MAX_BACKOFF));
            Backoff { min, max: max.max(min) }
        });
        Self { max: queue.max_deliveries, backoff }
    }
}

impl Retries {
    /// When a message may come again after its `attempts`th counted delivery, in milliseconds since 1970; 0: at once.
    pub(super) fn due(&self, sequence: u64, attempts: u32, now: UnixMillis) -> u64 {
        let Some(backoff) = self.backoff else { return 0 };
        // What fails together does not come together.
        let mut chance = SipHasher13::new_with_keys(now.0, attempts.into());
        chance.write_u64(sequence);
        now.0.saturating_add(backoff.rest(attempts, chance.finish()))
    }
}

impl Backoff {
    /// Between half of what doubling has come to and the whole; never less than the shortest rest, never more than the
    /// longest.
    fn rest(self, attempts: u32, chance: u64) -> u64 {
        let doubled = self.min.saturating_mul(1_u64.checked_shl(attempts).unwrap_or(u64::MAX));
        let most = doubled.min(self.max);
        let least = (most / 2).max(self.min);
        least + chance % (most - least + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_doubles_by_chance_and_stays_within_its_bounds() {
        let backoff = Backoff { min: 100, max: 1_000 };
        for (attempts, least, most) in [
            (1, 100, 200),
            (2, 200, 400),
            (3, 400, 800),
            (4, 500, 1_000),
            (63, 500, 1_000),
            (u32::MAX, 500, 1_000),
        ] {
            assert_eq!(backoff.rest(attempts, 0), least, "{attempts}");
            assert_eq!(backoff.rest(attempts, most - least), most, "{attempts}");
            assert!((0..10_000).all(|chance| (least..=most).contains(&backoff.rest(attempts, chance))));
        }
        let always = Backoff { min: 300, max: 300 };
        assert!((0..100).all(|chance| always.rest(7, chance) == 300));
        let longest = Backoff { min: u64::MAX, max: u64::MAX };
        assert_eq!(longest.rest(2, 5), u64::MAX);
    }

    #[test]
    fn messages_that_fail_together_come_apart() {
        let retries = Retries { max: None, backoff: Some(Backoff { min: 1_000, max: 60_000 }) };
        let now = UnixMillis(1_000_000);
        let due: std::collections::HashSet<_> =
            (0..1_000).map(|sequence| retries.due(sequence, 3, now)).collect();
        assert!(due.len() > 500, "{}", due.len());
        assert_eq!(Retries::default().due(1, 3, now), 0);
    }
}
