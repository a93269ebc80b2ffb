//! Wakes one waiter, and takes no room in what waits.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// A bell that one task listens to. Rung any number of times before that looks, it is heard once; rung while nobody
/// listens, it is heard by who listens next.
#[derive(Debug, Default)]
pub struct Bell {
    rung: AtomicBool,
    listener: AtomicWaker,
}

impl Bell {
    /// Wakes who listens, or will.
    pub fn ring(&self) {
        // Rung and not heard yet: the listener is awake, or about to be.
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.listener.wake();
        }
    }

    /// Whether it was rung since it was heard; who asks is woken when it is. The newest listener is the one that counts.
    pub fn poll_heard(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.rung.swap(false, Ordering::AcqRel) {
            self.listener.register(cx.waker());
            if !self.rung.swap(false, Ordering::AcqRel) {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Returns when it was rung. Cancel safe.
    pub async fn heard(&self) {
        poll_fn(|cx| self.poll_heard(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_was_rung_before_is_heard_once() {
        let bell = Bell::default();
        assert!(bell.heard().now_or_never().is_none());
        bell.ring();
        bell.ring();
        assert!(bell.heard().now_or_never().is_some());
        assert!(bell.heard().now_or_never().is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_ring_is_lost() {
        let (there, back) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
        let mut other = tokio::task::JoinSet::new();
        other.spawn({
            let (there, back) = (Arc::clone(&there), Arc::clone(&back));
            async move {
                for _ in 0..10_000 {
                    there.heard().await;
                    back.ring();
                }
            }
        });
        for _ in 0..10_000 {
            there.ring();
            back.heard().await;
        }
        other.join_all().await;
    }
}
