//! One of the consumers of a target.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::body::decode_message;
use super::burial;
use super::index::Take;
use super::keeper::{self, Job, follow_up};
use super::returns::Return;
use super::shared::Shared;
use super::target::Target;
use crate::bell::Bell;
use crate::engine::{Consumer, EngineError, Leased};
use crate::types::clock::unix_now;
use crate::types::{Sequence, TargetId, UnixMillis};

/// See [`Consumer`].
pub(super) struct EmbeddedConsumer {
    pub(super) shared: Arc<Shared>,
    pub(super) target: Arc<Target>,
    pub(super) id: u64,
    pub(super) bell: Arc<Bell>,
    pub(super) lease: Option<Duration>,
    pub(super) keep_leases: bool,
    /// See [`Consumer::is_reading`].
    pub(super) reading: AtomicBool,
    /// See [`Consumer::is_preferred`].
    pub(super) preferred: AtomicBool,
}

impl fmt::Debug for EmbeddedConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedConsumer")
            .field("target", &self.target.id)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Consumer for EmbeddedConsumer {
    fn take(&self, max: usize, max_bytes: usize, out: &mut Vec<Leased>) -> Result<(), EngineError> {
        let now = unix_now();
        let lease_ends = self.lease.map_or(u64::MAX, |lease| now.after(lease).0);
        let mut taken = Vec::with_capacity(max.min(256));
        let placing = self.shared.lanes.placing();
        let not = {
            let mut bodies = self.shared.bodies.reader();
            let mut state = self.target.state.lock();
            if state.gone {
                return Err(EngineError::NoSuchTarget(self.target.id));
            }
            let (max_deliveries, buries_expired, single_active) = {
                let settings = self.target.settings.load();
                (settings.retries.max, settings.buries_expired, settings.single_active)
            };
            let consumer = self.id;
            let how = Take {
                consumer,
                max,
                max_bytes,
                now,
                lease_ends,
                max_deliveries,
                buries_expired,
                single_active,
            };
            let not = state.take(how, |entry| bodies.get(entry), &mut taken);
            self.preferred.store(max > 0 && state.members.is_ranked(), Ordering::Relaxed);
            if self.lease.is_some() {
                self.shared.tasks.register(&self.target, &mut state, now);
            }
            not
        };
        keeper::run_out(&self.shared, &self.target, not.over);
        keeper::give_up(&self.shared, &self.target, not.exhausted, None);
        drop(placing);
        self.reading.store(!not.missing.is_empty(), Ordering::Relaxed);
        if !not.missing.is_empty() {
            self.shared.tasks.push(Job::Load { target: self.target.clone(), entries: not.missing });
        }
        out.reserve(taken.len());
        let earlier = self.target.earlier.load(Ordering::Relaxed);
        for taken in taken {
            let entry = taken.entry;
            let mut message = match decode_message(taken.body) {
                Ok(message) => message,
                Err(error) => {
                    keeper::discard(&self.target, entry.sequence, &EngineError::Damaged(error.to_string()));
                    continue;
                }
            };
            message.expires_at = message.expires_at.or_else(|| entry.expires_at());
            out.push(Leased {
                sequence: Sequence(entry.sequence),
                attempt: taken.attempt,
                qos: entry.qos(),
                retain: entry.retain(),
                priority: entry.priority(),
                lease_expires: taken.lease_ends,
                outgoing: taken.outgoing,
                earlier_boot: entry.sequence < earlier,
                message,
            });
        }
        Ok(())
    }

    fn is_active(&self) -> bool {
        !self.target.settings.load().single_active || self.target.state.lock().members.is_active(self.id)
    }

    fn is_preferred(&self) -> bool {
        self.preferred.load(Ordering::Relaxed)
    }

    fn is_reading(&self) -> bool {
        self.reading.load(Ordering::Relaxed)
    }

    fn ready(&self) -> &Bell {
        &self.bell
    }

    fn outgoing(&self) -> Vec<u16> {
        let state = self.target.state.lock();
        state.marks.values().filter_map(|mark| mark.outgoing.map(|outgoing| outgoing.packet_id)).collect()
    }

    fn release_all(&self, counted: bool) {
        let retries = self.target.settings.load().retries;
        let at: UnixMillis = unix_now();
        let _placing = self.shared.lanes.placing();
        let due = {
            let mut state = self.target.state.lock();
            let how = if counted { Return::Lost } else { Return::Released };
            let due = state.release_all(self.id, how, retries, at);
            self.shared.tasks.register(&self.target, &mut state, at);
            due
        };
        if counted {
            self.shared.counts.leases_lost.add(due.ended);
        }
        follow_up(&self.shared, &self.target, due, burial::LOST);
    }

    fn target(&self) -> TargetId {
        self.target.id
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        if !self.keep_leases {
            self.release_all(false);
        }
        self.target.state.lock().members.leave(self.id);
    }
}
