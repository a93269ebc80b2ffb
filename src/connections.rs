//! How many connections the process holds, over all doors together, and how many one listener does.
//!
//! Invariant: never more permits are out than the limit; a permit returns when it is dropped. A permit of a part counts in
//! the whole, too. A door takes one before it
//! reads from a socket and keeps it as long as the socket. Knows nothing of sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts connections against a limit. Clones share the count.
#[derive(Clone, Debug)]
pub struct ConnectionBudget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: u64,
    open: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    whole: Option<Arc<Shared>>,
}

/// The right to hold one connection; returned when dropped.
#[derive(Debug)]
#[must_use = "the connection is counted only while its permit is held"]
pub struct ConnectionPermit {
    shared: Arc<Shared>,
}

impl ConnectionBudget {
    /// A budget for `limit` connections at the same time.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { shared: Arc::new(Shared::new(limit, None)) }
    }

    /// A budget for `limit` of these connections, or for all when that is fewer.
    #[must_use]
    pub fn part(&self, limit: u64) -> Self {
        Self { shared: Arc::new(Shared::new(limit.min(self.limit()), Some(Arc::clone(&self.shared)))) }
    }

    /// A permit, or `None` when all are out; a refusal is counted. Never waits.
    pub fn try_acquire(&self) -> Option<ConnectionPermit> {
        self.shared.acquire().then(|| ConnectionPermit { shared: Arc::clone(&self.shared) })
    }

    /// How many connections are allowed at the same time.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.shared.limit
    }

    /// How many permits are out.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::Acquire)
    }

    /// How many permits were handed out since the start.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How many connections were refused since the start.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn new(limit: u64, whole: Option<Arc<Self>>) -> Self {
        Self {
            limit,
            open: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            whole,
        }
    }

    fn acquire(&self) -> bool {
        let limit = self.limit;
        let taken = self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
            if open < limit { open.checked_add(1) } else { None }
        });
        if taken.is_err() {
            self.refuse();
            return false;
        }
        if self.whole.as_ref().is_some_and(|whole| !whole.acquire()) {
            self.open.fetch_sub(1, Ordering::AcqRel);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.accepted.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.refuse();
        }
    }

    fn release(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        if let Some(whole) = &self.whole {
            whole.release();
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.shared.release();
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
        assert_eq!((budget.open(), budget.accepted(), budget.refused()), (2, 2, 1));

        drop(first);
        let third = budget.try_acquire().unwrap();
        assert_eq!((budget.open(), budget.accepted(), budget.refused()), (2, 3, 1));
        drop((second, third));
        assert_eq!(budget.open(), 0);
    }

    #[test]
    fn a_part_counts_in_the_whole() {
        let whole = ConnectionBudget::new(3);
        let (small, large) = (whole.part(1), whole.part(10));
        assert_eq!((small.limit(), large.limit()), (1, 3));
        let one = small.try_acquire().unwrap();
        assert!(small.try_acquire().is_none());
        let two = large.try_acquire().unwrap();
        let three = large.try_acquire().unwrap();
        assert!(large.try_acquire().is_none());
        assert_eq!((whole.open(), whole.accepted(), whole.refused()), (3, 3, 2));
        assert_eq!((small.open(), large.open(), large.refused()), (1, 2, 1));
        drop((one, two, three));
        assert_eq!((whole.open(), small.open(), large.open()), (0, 0, 0));
    }

    #[test]
    fn never_hands_out_more_than_the_limit_to_threads() {
        let budget = ConnectionBudget::new(3);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let permit = budget.try_acquire();
                        assert!(budget.open() <= 3);
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(budget.open(), 0);
        assert_eq!(budget.accepted() + budget.refused(), 8000);
    }
}
