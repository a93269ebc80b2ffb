//! The pauses between connections.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use super::Settings;
use crate::types::clock;

/// A connection that lasted so long was a success: the next one is tried soon.
const LASTED: Duration = Duration::from_secs(30);

/// How long to wait before the next connection: twice as long each time, less up to a half by chance, so that bridges that
/// were cut off together do not come back together.
#[derive(Debug)]
pub(super) struct Pause {
    min: Duration,
    max: Duration,
    next: Duration,
    chance: RandomState,
    tries: u64,
}

impl Pause {
    pub(super) fn new(settings: &Settings) -> Self {
        let (min, max) = (settings.reconnect_min, settings.reconnect_max.max(settings.reconnect_min));
        Self { min, max, next: min, chance: RandomState::new(), tries: 0 }
    }

    /// After a connection that was begun at `began`.
    pub(super) fn next(&mut self, began: Instant) -> Duration {
        if clock::now().duration_since(began) >= LASTED {
            self.next = self.min;
        }
        let whole = self.next;
        self.next = (whole * 2).min(self.max);
        self.tries += 1;
        let part = u32::try_from(self.chance.hash_one(self.tries) % 512).unwrap_or(0);
        whole - whole * part / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_vary() {
        let mut settings = Settings::new("b".to_owned(), "mqtt://a".parse().unwrap());
        settings.reconnect_max = Duration::from_secs(5);
        let mut pause = Pause::new(&settings);
        for whole in [1, 2, 4, 5, 5] {
            let whole = Duration::from_secs(whole);
            let wait = pause.next(clock::now());
            assert!(wait > whole / 2 && wait <= whole, "{wait:?} of {whole:?}");
        }
        let lasted = clock::now().checked_sub(LASTED).unwrap();
        assert!(pause.next(lasted) <= Duration::from_secs(1));
    }
}
