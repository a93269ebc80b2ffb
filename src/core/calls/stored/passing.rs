//! Replies to stored calls on their way from who said them to the disk.
//!
//! What a responder has said is taken in any case. Beyond the bound no further call is handed out, and no stream of replies
//! is read, until the disk has taken enough: memory for them is so much, and what streams and devices had sent before.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::looks::Looks;
use crate::core::Broker;

/// See the module.
#[derive(Debug)]
pub(super) struct Passing {
    max: usize,
    bytes: AtomicUsize,
    room: Notify,
    /// Has the dispatcher look when there is room.
    looks: Arc<Looks>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Passes {
    passing: Arc<Passing>,
    weight: usize,
}

impl Passing {
    pub(super) fn new(max: usize, looks: Arc<Looks>) -> Arc<Self> {
        Arc::new(Self { max, bytes: AtomicUsize::new(0), room: Notify::new(), looks })
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes() >= self.max
    }

    /// A reply is on its way.
    pub(super) fn begin(self: &Arc<Self>, weight: usize) -> Passes {
        self.bytes.fetch_add(weight, Ordering::SeqCst);
        Passes { passing: Arc::clone(self), weight }
    }

    /// Returns when it is not full. Cancel safe.
    pub(super) async fn room(&self) {
        loop {
            let freed = self.room.notified();
            if !self.is_full() {
                return;
            }
            freed.await;
        }
    }
}

impl Drop for Passes {
    fn drop(&mut self) {
        let Passing { max, bytes, room, looks } = &*self.passing;
        let before = bytes.fetch_sub(self.weight, Ordering::SeqCst);
        if before >= *max && before - self.weight < *max {
            room.notify_waiters();
            looks.bell.ring();
        }
    }
}

impl Broker {
    /// Whether there is room for replies to stored calls. Where there is none, who reads replies waits for
    /// [`room_for_replies`](Self::room_for_replies).
    #[must_use]
    pub fn has_room_for_replies(&self) -> bool {
        !self.calls.stored.passing.is_full()
    }

    /// Returns when there is room for replies to stored calls: the disk takes them slower than they come. Cancel safe.
    pub async fn room_for_replies(&self) {
        self.calls.stored.passing.room().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn there_is_room_below_the_bound() {
        let passing = Passing::new(100, Arc::default());
        let first = passing.begin(99);
        assert!(!passing.is_full() && passing.room().now_or_never().is_some());
        let second = passing.begin(500);
        assert_eq!(passing.bytes(), 599, "what is said is taken");
        let room = passing.room();
        tokio::pin!(room);
        assert!(passing.is_full() && room.as_mut().now_or_never().is_none());
        drop(first);
        assert!(room.as_mut().now_or_never().is_none());
        drop(second);
        assert!(room.now_or_never().is_some());
        assert_eq!(passing.bytes(), 0);
    }
}
