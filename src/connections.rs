//! How many connections the process holds, over all doors together.
//!
//! Invariant: never more permits are out than the limit; a permit returns when it is dropped. A door takes one before it
//! reads from a socket and keeps it as long as the socket. Knows nothing of sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts connections against a limit, for one door. Clones are the same door; [`ConnectionBudget::door`] makes
/// another one with a share in the same limit.
#[derive(Clone, Debug)]
pub struct ConnectionBudget {
    limit: u64,
    all: Arc<Counts>,
    door: Arc<Counts>,
}

/// How many connections there are and were.
#[derive(Debug, Default)]
pub struct Counts {
    open: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
}

/// The right to hold one connection; returned when dropped.
#[derive(Debug)]
#[must_use = "the connection is counted only while its permit is held"]
pub struct ConnectionPermit {
    all: Arc<Counts>,
    door: Arc<Counts>,
}

impl ConnectionBudget {
    /// A budget for `limit` connections at the same time.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, all: Arc::default(), door: Arc::default() }
    }

    /// Another door, whose own counts begin at zero.
    #[must_use]
    pub fn door(&self) -> Self {
        Self { door: Arc::default(), ..self.clone() }
    }

    /// A permit, or `None` when all are out; a refusal is counted. Never waits.
    pub fn try_acquire(&self) -> Option<ConnectionPermit> {
        let taken = self.all.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
            if open < self.limit { open.checked_add(1) } else { None }
        });
        for counts in [&self.all, &self.door] {
            let count = if taken.is_ok() { &counts.accepted } else { &counts.refused };
            count.fetch_add(1, Ordering::Relaxed);
        }
        taken.ok()?;
        self.door.open.fetch_add(1, Ordering::AcqRel);
        Some(ConnectionPermit { all: Arc::clone(&self.all), door: Arc::clone(&self.door) })
    }

    /// How many connections are allowed at the same time.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Of all doors.
    #[must_use]
    pub fn all(&self) -> &Counts {
        &self.all
    }

    /// Of this door.
    #[must_use]
    pub fn own(&self) -> &Counts {
        &self.door
    }
}

impl Counts {
    /// How many permits are out.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Acquire)
    }

    /// How many permits were handed out since the start.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// How many connections were refused since the start.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.door.open.fetch_sub(1, Ordering::AcqRel);
        self.all.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_beyond_the_limit_and_counts_it() {
        let budget = ConnectionBudget::new(2);
        let first = budget.try_acquire().unwrap();
        let second = budget.try_acquire().unwrap();
        assert!(budget.try_acquire().is_none());
        let counts = |of: &Counts| (of.open(), of.accepted(), of.refused());
        assert_eq!(counts(budget.all()), (2, 2, 1));

        drop(first);
        let third = budget.try_acquire().unwrap();
        assert_eq!(counts(budget.all()), (2, 3, 1));
        // Another door has a part in the same limit, and counts by itself.
        let other = budget.door();
        assert!(other.try_acquire().is_none());
        drop(second);
        let fourth = other.try_acquire().unwrap();
        assert_eq!((counts(other.own()), counts(budget.own())), ((1, 1, 1), (1, 3, 1)));
        assert_eq!(counts(other.all()), (2, 4, 2));
        drop((third, fourth));
        assert_eq!((budget.all().open(), other.own().open()), (0, 0));
    }

    #[test]
    fn never_hands_out_more_than_the_limit_to_threads() {
        let budget = ConnectionBudget::new(3);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let permit = budget.try_acquire();
                        assert!(budget.all().open() <= 3);
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(budget.all().open(), 0);
        assert_eq!(budget.all().accepted() + budget.all().refused(), 8000);
    }
}
