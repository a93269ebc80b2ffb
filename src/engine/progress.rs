//! How far the opening of a store has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Told by who opens, asked by whoever keeps people waiting meanwhile; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct OpenProgress {
    percent: Arc<AtomicU8>,
}

impl OpenProgress {
    /// `done` of `total` is read back.
    pub fn tell(&self, done: u64, total: u64) {
        let percent = u128::from(done.min(total)) * 100 / u128::from(total.max(1));
        self.percent.store(u8::try_from(percent).unwrap_or(100), Ordering::Relaxed);
    }

    /// How much is read back, in percent; 0 while that is not known.
    #[must_use]
    pub fn percent(&self) -> u8 {
        self.percent.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_percent_of_anything() {
        let progress = OpenProgress::default();
        let asked = progress.clone();
        assert_eq!(asked.percent(), 0);
        for (done, total, percent) in [(1, 3, 33), (u64::MAX, u64::MAX, 100), (5, 4, 100), (0, 0, 0)] {
            progress.tell(done, total);
            assert_eq!(asked.percent(), percent);
        }
    }
}
