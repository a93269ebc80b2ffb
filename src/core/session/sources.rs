//! What a connection takes stored messages from: its session's backlog, durable share groups, queues.

use std::future::poll_fn;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tokio::task::coop;

use super::entry::Attachment;
use super::entry::State;
use super::{Session, SessionDelivery};
use crate::core::delivery::{Offer, passed};
use crate::core::share::ShareGroup;
use crate::core::streams::subscription::{self, StreamSubscription};
use crate::core::{Broker, CoreError};
use crate::counters::Passed;
use crate::engine::{
    Append, Consumer, ConsumerOptions, EngineError, LeaseRef, Leased, Levels, Nack, Op, Outcome, Outgoing,
    OutgoingState, Publish, Settled, SubscribeOptions, Ticket, View,
};
use crate::types::topic::FilterSpec;
use crate::types::{Qos, Sequence, TargetId, clock};

/// All that one connection takes from.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    list: Vec<Arc<Source>>,
    /// Which is asked first next time.
    turn: usize,
}

/// One target and the part in it.
#[derive(Debug)]
pub(crate) struct Source {
    consumer: Box<dyn Consumer>,
    pub(crate) kind: Kind,
}

/// What a source is.
#[derive(Debug)]
pub(crate) enum Kind {
    /// The session's own backlog.
    Backlog,
    /// A share group.
    Group(Arc<ShareGroup>),
    /// A queue, by what was subscribed to. Its leases end, so a settlement says which attempt it means.
    Queue(FilterSpec, Mutex<FxHashMap<Sequence, u32>>),
    /// A stream, by what was subscribed to. Nothing of it is leased or settled, also when it is read no more.
    Stream(FilterSpec, SubscribeOptions),
}

impl Kind {
    /// What the subscription to this source takes, and its identifier; `None` for the backlog, which is of many.
    fn part(&self, state: &State) -> Option<(Levels, Option<NonZeroU32>)> {
        let (spec, at_most) = match self {
            Self::Backlog => return None,
            Self::Stream(_, options) => {
                return Some((options.levels().within(Qos::AtLeastOnce), options.identifier));
            }
            Self::Group(group) => (&group.spec, Qos::ExactlyOnce),
            Self::Queue(spec, _) => (spec, Qos::AtLeastOnce),
        };
        let options = state.subscriptions.get(spec).map(|subscription| subscription.options)?;
        Some((options.levels().within(at_most), options.identifier))
    }
}

impl Source {
    pub(crate) fn target(&self) -> TargetId {
        self.consumer.target()
    }

    /// The numbers that the session's peer knows unsettled deliveries by.
    pub(super) fn outgoing(&self) -> Vec<u16> {
        self.consumer.outgoing()
    }

    /// The lease of a message that was taken here.
    fn lease(&self, sequence: Sequence, forget: bool) -> LeaseRef {
        let attempt = match &self.kind {
            Kind::Queue(_, attempts) if forget => attempts.lock().remove(&sequence),
            Kind::Queue(_, attempts) => attempts.lock().get(&sequence).copied(),
            _ => None,
        };
        LeaseRef { attempt, ..LeaseRef::of(sequence) }
    }
}

impl Sources {
    /// Adds a source, unless there is one of this target.
    fn put(&mut self, source: Source) {
        if !self.list.iter().any(|old| old.target() == source.target()) {
            self.list.push(Arc::new(source));
        }
    }

    /// Removes sources; what was taken there goes back.
    pub(crate) fn remove(&mut self, mut which: impl FnMut(&Kind) -> bool) {
        self.list.retain(|source| !which(&source.kind));
    }

    /// All sources, each time another one first: the backlog, which was added first, the first time, so that what has a
    /// packet id from an earlier connection comes before anything new.
    fn in_turn(&mut self) -> SmallVec<[Arc<Source>; 2]> {
        let (first, rest) = self.list.split_at(self.turn.min(self.list.len()));
        let sources = rest.iter().chain(first).cloned().collect();
        self.turn = (self.turn + 1) % self.list.len().max(1);
        sources
    }

    /// Adds a stream in the place of one that was subscribed to before, or says how many there may be.
    fn put_stream(&mut self, spec: &FilterSpec, source: Source, max: usize) -> Result<(), CoreError> {
        self.remove_stream(spec);
        if self.list.iter().filter(|source| matches!(source.kind, Kind::Stream(..))).count() >= max {
            let what = "too many streams that one connection reads".to_owned();
            return Err(CoreError::Limit { what, max: max as u64 });
        }
        self.put(source);
        Ok(())
    }

    /// Whether there was one.
    fn remove_stream(&mut self, spec: &FilterSpec) -> bool {
        let before = self.list.len();
        self.remove(|kind| matches!(kind, Kind::Stream(own, _) if own == spec));
        self.list.len() < before
    }

    fn find(&self, target: TargetId) -> Option<Arc<Source>> {
        self.list.iter().find(|source| source.target() == target).cloned()
    }
}

impl Broker {
    /// Joins the consumers of a target.
    pub(crate) fn source(
        &self,
        target: TargetId,
        lease: Option<Duration>,
        kind: Kind,
    ) -> Result<Source, EngineError> {
        let options = ConsumerOptions { lease, ..ConsumerOptions::default() };
        Ok(Source { consumer: self.engine.consumer(target, options)?, kind })
    }
}

impl Attachment {
    pub(crate) fn add_source(&self, source: Source) {
        // Under this lock, so that a connection that goes away meanwhile keeps no lease.
        let mut sources = self.sources.lock();
        if !self.detached.load(Ordering::Acquire) {
            sources.put(source);
            self.changed.ring();
        }
    }

    /// Adds a stream; see [`Sources::put_stream`].
    pub(crate) fn add_stream(
        &self,
        spec: &FilterSpec,
        options: SubscribeOptions,
        subscription: StreamSubscription,
        max: usize,
    ) -> Result<(), CoreError> {
        let mut sources = self.sources.lock();
        if !self.detached.load(Ordering::Acquire) {
            let kind = Kind::Stream(spec.clone(), options);
            sources.put_stream(spec, Source { consumer: Box::new(subscription), kind }, max)?;
            self.changed.ring();
        }
        Ok(())
    }

    /// Ends reading a stream; whether it was read.
    pub(crate) fn end_stream(&self, spec: &FilterSpec) -> bool {
        self.sources.lock().remove_stream(spec)
    }

    /// Gives back everything that was taken; `counted`: as deliveries that failed.
    pub(crate) fn give_back(&self, counted: bool) {
        let mut sources = self.sources.lock();
        self.detached.store(true, Ordering::Release);
        if counted {
            sources.list.iter().for_each(|source| source.consumer.release_all(true));
        }
        sources.list.clear();
        drop(sources);
        self.changed.ring();
    }
}

impl Session {
    /// Leases stored messages: at most `max`, and no more after `max_bytes` (one may overdraw). Retained values that
    /// did not fit in the outbox at once are offered to it, counted against `max`. Never waits.
    ///
    /// When it gives less than asked, [`ready`](Self::ready) wakes as soon as there may be more. A connection that has
    /// no room any more asks for 0 once: then what it would be woken for goes to other consumers.
    ///
    /// # Errors
    /// [`CoreError::Engine`].
    pub fn take(
        &self,
        max: usize,
        max_bytes: usize,
        out: &mut Vec<SessionDelivery>,
    ) -> Result<(), CoreError> {
        let mut room = max.saturating_sub(self.replay(max));
        let mut bytes = max_bytes;
        let mut given = Passed::default();
        let sources = self.attachment.sources.lock().in_turn();
        if max == 0 && sources.iter().all(|source| matches!(source.kind, Kind::Backlog)) {
            return Ok(());
        }
        let mut taken: Vec<Leased> = Vec::new();
        if room == 0 || bytes == 0 {
            self.pass_on(&sources);
            return Ok(());
        }
        for (at, source) in sources.iter().enumerate() {
            match source.consumer.take(room, bytes, &mut taken) {
                Ok(()) => {}
                Err(EngineError::NoSuchTarget(_)) => {
                    self.attachment.sources.lock().list.retain(|other| !Arc::ptr_eq(other, source));
                }
                Err(error) => return Err(CoreError::Engine(error)),
            }
            room = room.saturating_sub(taken.len());
            let weight: usize = taken.iter().map(|leased| leased.message.weight()).sum();
            bytes = bytes.saturating_sub(weight);
            let from = out.len();
            self.tell(source, &mut taken, out);
            let new = out.get(from..).unwrap_or_default().iter().filter(|delivery| !delivery.is_settled());
            given += Passed::of(new.map(|delivery| delivery.leased.message.payload.len()));
            if room == 0 || bytes == 0 {
                // It may be registered from an earlier look.
                self.pass_on(sources.get(at..).unwrap_or_default());
                break;
            }
        }
        self.broker.traffic.sent(given);
        Ok(())
    }

    /// These are not asked for want of room: what they would be woken for goes to other consumers, and they are looked
    /// at when there is room.
    fn pass_on(&self, sources: &[Arc<Source>]) {
        for source in sources.iter().filter(|source| !matches!(source.kind, Kind::Backlog)) {
            // Gives nothing; that the target is gone is seen when there is room.
            source.consumer.take(0, 0, &mut Vec::new()).ok();
        }
        self.attachment.changed.ring();
    }

    /// Turns what was taken from one source into deliveries.
    fn tell(&self, source: &Source, taken: &mut Vec<Leased>, out: &mut Vec<SessionDelivery>) {
        let mut dropped_before = self.dropped_since(source, taken);
        let mut moves = Vec::new();
        let state = self.entry.state.lock();
        let part = source.kind.part(&state);
        for mut leased in taken.drain(..) {
            let identifiers = match part {
                None => match leased.message.extras.as_ref().and_then(|extras| extras.subscription) {
                    None => state.identifiers(&leased.message.topic),
                    Some(of_one) => NonZeroU32::new(of_one).into_iter().collect(),
                },
                Some((levels, identifier)) => {
                    leased.qos = levels.of(leased.qos);
                    // 5: [MQTT-4.8.2-4], [MQTT-4.8.2-5]: from its beginning on it is this member's, also over a crash.
                    if let Some(to) = self.entry.target.filter(|_| leased.qos == Qos::ExactlyOnce) {
                        let Leased { sequence, priority, mut message, .. } = leased;
                        message.extras_mut().subscription = Some(identifier.map_or(0, NonZeroU32::get));
                        let (from, view) = (source.target(), View::Leased);
                        moves.push(Op::Move { from, sequence, view, to, message, priority });
                        continue;
                    }
                    identifier.into_iter().collect()
                }
            };
            if let Kind::Queue(_, attempts) = &source.kind {
                attempts.lock().insert(leased.sequence, leased.attempt);
            }
            // What is done with but for its number is not told to every door.
            let dropped_before = if is_settled(&leased) { 0 } else { std::mem::take(&mut dropped_before) };
            let maybe_sent = part.is_none()
                && self.entry.cut_off
                && leased.earlier_boot
                && leased.qos == Qos::AtLeastOnce
                && leased.outgoing.is_none();
            let source = source.target();
            out.push(SessionDelivery { source, leased, identifiers, maybe_sent, dropped_before });
        }
        drop(state);
        if !moves.is_empty() {
            // It comes from the backlog when that is done.
            drop(self.broker.engine.commit(moves));
        }
    }

    /// What the backlog has dropped and nobody was told of, if there is something to tell it with.
    fn dropped_since(&self, source: &Source, taken: &[Leased]) -> u64 {
        if !matches!(source.kind, Kind::Backlog) || taken.iter().all(is_settled) {
            return 0;
        }
        let Ok(stats) = self.broker.engine.stats(source.target()) else { return 0 };
        let told = self.entry.told_dropped.swap(stats.dropped_total, Ordering::Relaxed);
        stats.dropped_total.saturating_sub(told)
    }

    /// Hands on up to `max` retained values. Returns how many went to the outbox: what a session that outlives its
    /// connection gets above QoS 0 becomes a part of its backlog first, and comes from there.
    pub(super) fn replay(&self, max: usize) -> usize {
        let mut replays = self.entry.replays.lock();
        if replays.is_empty() || self.attachment.detached.load(Ordering::Acquire) {
            return 0;
        }
        let outbox = &*self.attachment.outbox;
        let mut offered = 0;
        replays.go_on(&self.broker.pubsub.retained, max, clock::unix_now(), |offers| {
            let stored = |offer: &&Offer<'_>| self.entry.target.is_some() && offer.qos > Qos::AtMostOnce;
            let (stored, live): (Vec<&Offer<'_>>, Vec<_>) = offers.iter().partition(stored);
            let live: SmallVec<[Offer<'_>; 8]> = live.into_iter().copied().collect();
            if !live.is_empty() {
                let taken = live.len().saturating_sub(outbox.offer(&live));
                self.broker.traffic.sent(passed(&live).part(taken));
                offered += live.len();
            }
            let target = self.entry.target.filter(|_| !stored.is_empty())?;
            let ops = stored.into_iter().map(|offer| {
                let append = Append { qos: offer.qos, retain: offer.retain, ..Append::to(target) };
                let mut message = offer.message.clone();
                let identifier = offer.identifiers.first().map_or(0, |id| id.get());
                message.extras_mut().subscription = Some(identifier);
                Op::Publish(Publish {
                    message,
                    targets: SmallVec::from_iter([append]),
                    retain: false,
                    newest_only: false,
                    incoming: None,
                })
            });
            Some(self.broker.engine.commit(ops.collect()))
        });
        offered
    }

    /// Returns when [`take`](Self::take) may give more. Cancel safe.
    pub async fn ready(&self) {
        poll_fn(|cx| self.poll_ready(cx)).await;
    }

    /// The same for one task, which is woken when it is so. A subscription that passes over much is ready for long: it
    /// takes its share of the task's time only.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let turn = ready!(coop::poll_proceed(cx));
        let mut ready = self.attachment.changed.poll_heard(cx).is_ready();
        ready |= self.entry.replays.lock().poll_ready(cx).is_ready();
        for source in &self.attachment.sources.lock().list {
            ready |= source.consumer.ready().poll_heard(cx).is_ready();
        }
        if !ready {
            return Poll::Pending;
        }
        turn.made_progress();
        Poll::Ready(())
    }

    /// The leases of something that this connection took; none: there is nothing to settle.
    pub(super) fn leases(
        &self,
        source: TargetId,
        sequences: &[Sequence],
        forget: bool,
    ) -> Result<Option<Vec<LeaseRef>>, CoreError> {
        if subscription::is_subscription(source) {
            return Ok(None);
        }
        let found = self.attachment.sources.lock().find(source);
        let Some(found) = found else {
            return Err(CoreError::Precondition {
                reason: "SESSION_TAKEN_OVER",
                what: "what was taken has gone back: the session is taken over, or the source is gone"
                    .to_owned(),
            });
        };
        Ok(Some(sequences.iter().map(|&sequence| found.lease(sequence, forget)).collect()))
    }

    /// Takes delivered messages out of their source.
    ///
    /// # Errors
    /// [`CoreError::Engine`]; [`CoreError::Precondition`] `SESSION_TAKEN_OVER`.
    pub fn settle(&self, source: TargetId, sequences: &[Sequence]) -> Result<Settled, CoreError> {
        match self.leases(source, sequences, true)? {
            Some(leases) => Ok(self.broker.engine.settle(source, &leases)?),
            None => Ok(nothing()),
        }
    }

    /// Gives messages back to their source, due again after `delay`; none: as it says.
    ///
    /// # Errors
    /// [`CoreError::Engine`]; [`CoreError::Precondition`] `SESSION_TAKEN_OVER`.
    pub fn nack(
        &self,
        source: TargetId,
        sequences: &[Sequence],
        how: Nack,
        delay: Option<Duration>,
    ) -> Result<Settled, CoreError> {
        match self.leases(source, sequences, true)? {
            Some(leases) => Ok(self.broker.engine.nack(source, &leases, how, delay)?),
            None => Ok(nothing()),
        }
    }

    /// Stores how far an outgoing QoS 1 or 2 delivery of this session is.
    pub fn outgoing(&self, source: TargetId, sequence: Sequence, outgoing: Outgoing) -> Ticket<Vec<Outcome>> {
        self.broker.engine.commit(vec![Op::Outgoing { target: source, sequence, outgoing }])
    }
}

/// Whether it is done with but for the number that a door has given it.
pub(super) fn is_settled(leased: &Leased) -> bool {
    leased.outgoing.is_some_and(|outgoing| outgoing.state == OutgoingState::Settled)
}

/// What was settled where there is nothing to settle.
fn nothing() -> Settled {
    Settled { failed: Vec::new(), durable: Ticket::ready(Ok(())) }
}
