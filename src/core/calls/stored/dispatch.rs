//! The one task that finds responders for stored calls, and ends what is over.
//!
//! It takes every call from the disk into the line of its service, and hands out as many as the service has room for, the
//! oldest first, whenever somebody says that it may have room: a responder that joins or answers, a subscriber that comes.
//! What waits for its answer in memory goes first. It is asked again by time in one case only, where a responder has room
//! and takes nothing: an MQTT client that does not read ([`looks`](super::looks)), or a bound of synchronous calls that is
//! reached ([`carry`](super::carry)).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use super::looks::Watch;
use super::places::{Due, Waiting};
use super::{Targets, record};
use crate::core::Broker;
use crate::core::calls::published::late;
use crate::core::calls::shared::weight_of;
use crate::core::calls::{CallError, Counts};
use crate::engine::{EngineError, Health, Leased, View};
use crate::types::{Sequence, UnixMillis, clock};

/// Calls that are taken from the disk at once, and their bytes.
const TAKEN: (usize, usize) = (256, 4 << 20);
/// Replies that are looked at together when the broker starts.
const PAGE: usize = 64;
/// Services that are looked at together.
const LOOKED_AT: usize = 256;
/// How many requests a service is handed at once.
const AT_ONCE: usize = 1024;
/// The wall clock is looked at so often.
const LONGEST: Duration = Duration::from_secs(60);

/// Runs until the broker drains.
pub(super) async fn run(broker: Arc<Broker>, targets: Targets) {
    broker.calls.stored.there.cancelled().await;
    let ended = broker.dispatch(&targets).await;
    let stored = &broker.calls.stored;
    if let Err(error) = ended {
        tracing::error!(%error, "asynchronous calls are not made any more");
        stored.failed.get_or_init(|| error);
    }
    // Nobody waits in vain for what cannot be known.
    stored.known.cancel();
}

impl Broker {
    async fn dispatch(self: &Arc<Self>, targets: &Targets) -> Result<(), EngineError> {
        let stored = &self.calls.stored;
        self.restore_replies(targets).await?;
        let mut taken = Vec::new();
        let mut health = self.engine.health();
        while !self.draining.is_cancelled() {
            targets.consumer.take(TAKEN.0, TAKEN.1, &mut taken)?;
            let is_all = taken.is_empty() && !targets.consumer.is_reading();
            taken.drain(..).for_each(|leased| self.take_in(leased));
            if is_all {
                stored.known.cancel();
            }
            let next = self.end_due(targets);
            let mut goes_on = !is_all && !targets.consumer.is_reading();
            goes_on |= stored.looks.search_on(&stored.places.lock());
            // Replies need room on the disk. What is to be looked at stays so: when there is room the bell rings.
            let low_disk = matches!(*health.borrow_and_update(), Health::LowDisk { .. });
            if !low_disk && !stored.passing.is_full() {
                stored.looks.take(LOOKED_AT).iter().for_each(|watch| self.hand_out(watch));
                goes_on |= stored.looks.are_there();
            }
            if goes_on {
                tokio::task::yield_now().await;
                continue;
            }
            let next = next.map(|at| at.since(clock::unix_now()));
            let next = next.into_iter().chain(stored.looks.wake()).fold(LONGEST, Duration::min);
            tokio::select! {
                biased;
                () = self.draining.cancelled() => {}
                Ok(()) = health.changed() => {}
                () = targets.consumer.ready().heard() => {}
                () = stored.looks.bell.heard() => {}
                () = tokio::time::sleep(next) => {}
            }
        }
        Ok(())
    }

    /// Notes the replies that are kept, and publishes those that were to be.
    async fn restore_replies(self: &Arc<Self>, targets: &Targets) -> Result<(), EngineError> {
        let mut from = Sequence(0);
        let mut unpublished = Vec::new();
        loop {
            let page = match self.engine.browse(targets.replies, View::Ready, from, PAGE, TAKEN.1).await {
                Err(EngineError::Damaged(error)) => {
                    tracing::error!(%error, sequence = from.0, "a reply that is kept cannot be read");
                    from = Sequence(from.0.saturating_add(1));
                    continue;
                }
                page => page?,
            };
            let mut places = self.calls.stored.places.lock();
            for found in page.messages {
                let (weight, sequence) = (weight_of(&found.message), found.sequence);
                match record::reply_of(found.message) {
                    Ok(kept) if kept.topic.is_some() => {
                        places.restore_reply(kept.id, 0);
                        unpublished.push(sequence);
                    }
                    Ok(kept) => {
                        places.restore_reply(kept.id, weight);
                        places.keep(kept.id, sequence, kept.until);
                    }
                    Err(error) => {
                        tracing::error!(%error, sequence = sequence.0, "a reply that is kept cannot be read");
                    }
                }
            }
            drop(places);
            let Some(next) = page.next else { break };
            from = next;
        }
        if !unpublished.is_empty() {
            let (broker, replies) = (Arc::clone(self), targets.replies);
            self.tasks.spawn(async move { broker.publish_again(replies, unpublished).await });
        }
        Ok(())
    }

    /// Puts a call that is on disk into its line.
    fn take_in(self: &Arc<Self>, leased: Leased) {
        let stored = &self.calls.stored;
        let Leased { sequence, message, outgoing, .. } = leased;
        let weight = weight_of(&message);
        let (request, reply_to) = match record::call_of(&message) {
            Ok(call) => call,
            Err(error) => {
                tracing::error!(%error, id = %message.id, "a stored call cannot be read and is not made");
                return;
            }
        };
        let marked = outgoing.is_some_and(|outgoing| outgoing.packet_id == super::carry::WITH_SOMEBODY);
        let id = message.id;
        let call = Arc::new(Waiting {
            id,
            sequence,
            request,
            reply_to,
            marked: AtomicBool::new(marked),
            tries: AtomicUsize::new(0),
        });
        let mut places = stored.places.lock();
        if !places.has(id) {
            places.restore(id, weight);
        }
        if marked {
            drop(places);
            Counts::add(&stored.counts.interrupted);
            let said = Err(CallError::Broker(super::carry::interrupted(&call)));
            self.tasks.spawn(Arc::clone(self).answer_stored(call, said));
        } else {
            self.calls.watch(places.wait(call, &stored.looks));
        }
    }

    /// Ends what is over. Returns when something is next.
    fn end_due(self: &Arc<Self>, targets: &Targets) -> Option<UnixMillis> {
        let stored = &self.calls.stored;
        loop {
            let mut places = stored.places.lock();
            let Some((due, line)) = places.due(clock::unix_now()) else { return places.next_end() };
            if let Some(service) = line {
                self.calls.unwatch(&service);
            }
            drop(places);
            match due {
                Due::Late(call) => {
                    Counts::add(&stored.counts.expired);
                    self.tasks.spawn(Arc::clone(self).answer_stored(call, Err(late())));
                }
                Due::Over(sequence) => {
                    Counts::add(&stored.counts.forgotten);
                    let (broker, replies) = (Arc::clone(self), targets.replies);
                    self.tasks.spawn(async move {
                        if let Err(error) = broker.drop_reply(replies, sequence).await {
                            tracing::debug!(%error, "a reply that is over stays until the next start");
                        }
                    });
                }
            }
        }
    }

    /// Begins as many calls of a service as it has room for.
    fn hand_out(self: &Arc<Self>, watch: &Arc<Watch>) {
        let stored = &self.calls.stored;
        let name = &watch.service;
        if stored.places.lock().waits(name) == 0 {
            return;
        }
        let found = self.find_devices(name);
        let service = self.calls.service(name);
        let room = service.as_ref().map_or(0, |service| service.room(AT_ONCE));
        if room == 0 && service.is_some_and(|service| service.rests()) {
            watch.look_later();
        }
        // Somebody would answer and is not taken: one call finds out when that is over.
        let room = if found.is_err() { room.max(1) } else { room };
        let taken = stored.places.lock().take(name, room);
        if !taken.is_empty() {
            self.tasks.spawn(Arc::clone(self).begin_all(name.clone(), taken));
        }
    }
}
