//! Deletes queues that nobody uses any more, where that is asked for.
//!
//! A queue is used by whoever consumes, receives, or has a message of it, by what is put in or moved in, and by the queues
//! whose dead letter queue it is. That messages lie in it is no use. The time counts from when it is first looked at: a
//! restart begins it anew.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::time::Instant;

use crate::bell::Bell;
use crate::core::Broker;
use crate::engine::Usage;
use crate::types::{QueueName, TargetId};

/// Within each time for which a queue may be unused it is looked at so often.
const LOOKS: u32 = 10;

/// What definitions and operators have to do with it.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    /// Rung when a definition has changed.
    pub(super) changed: Bell,
    deleted: AtomicU64,
}

impl Expiry {
    /// How many queues were deleted.
    pub(super) fn deleted(&self) -> u64 {
        self.deleted.load(Ordering::Relaxed)
    }
}

/// A queue as it was when it was last seen in use.
struct Seen {
    usage: Usage,
    at: Instant,
}

/// Looks after queues until the broker drains.
pub(in crate::core) async fn delete_unused(broker: Arc<Broker>) {
    let mut seen = FxHashMap::default();
    loop {
        let next = broker.delete_unused(&mut seen).await;
        let look = async {
            match next {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = broker.draining.cancelled() => return,
            () = broker.queues.expiry.changed.heard() => {}
            () = look => {}
        }
    }
}

impl Broker {
    /// After which time to look again, if there is anything to look at.
    async fn delete_unused(self: &Arc<Self>, seen: &mut FxHashMap<TargetId, Seen>) -> Option<Duration> {
        let all = self.queues().all();
        let watched: Vec<_> =
            all.iter().filter_map(|queue| Some((queue, queue.spec().expires_after?))).collect();
        if watched.is_empty() {
            seen.clear();
            return None;
        }
        let named: HashSet<QueueName> =
            all.iter().filter_map(|queue| queue.spec().dead_letter.clone()).collect();
        let mut before = std::mem::take(seen);
        for &(queue, after) in &watched {
            let Ok(usage) = self.engine.usage(queue.id) else { continue };
            let now = Instant::now();
            let last = before
                .remove(&queue.id)
                .filter(|last| !usage.busy && usage == last.usage && !named.contains(&queue.name));
            let mut last = last.unwrap_or(Seen { usage, at: now });
            if now.duration_since(last.at) >= after {
                match self.delete_if_unused(queue, usage, after).await {
                    Ok(true) => {
                        tracing::info!(queue = %queue.name, unused = ?after, "queue deleted: nobody used it");
                        self.queues.expiry.deleted.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(queue = %queue.name, %error, "the unused queue is not deleted yet");
                    }
                }
                last.at = now;
            }
            seen.insert(queue.id, last);
        }
        watched.iter().map(|&(_, after)| after / LOOKS).min()
    }
}
