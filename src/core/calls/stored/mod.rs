//! Asynchronous calls: stored when they are made, made when somebody serves, their replies sent or kept.
//!
//! ```text
//! call_async ─▶ requests (on disk) ─▶ line of its service ─▶ Broker::call ─▶ reply ─┬─▶ a queue
//!                                                                                  └─▶ replies (on disk) ─▶ a topic, await_reply
//! ```
//!
//! `places` has where each one is, `looks` which services may have room, `dispatch` takes them from the disk and begins them
//! when theirs has, `carry` has those in its hands that somebody may have, `answer` what is said to them until it is where it goes, `passing` counts
//! that, `record` is how they are stored.
//!
//! Invariants: a request is on disk until its reply is, and the step from one to the other is one act of the engine; one that
//! is not idempotent is marked on disk before anyone gets it, and one that is marked at the start of the broker is answered
//! with that, never made again; every call is answered, at the latest when its time is over.
//! Lock order: the places, then the services of calls.

mod answer;
mod carry;
mod dispatch;
mod looks;
mod passing;
mod places;
mod record;
#[cfg(all(test, feature = "embedded"))]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::smallvec;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use super::shared::weight_of;
use super::{Audience, CallError, Calls, Counts, Reply, Request};
use crate::core::{Broker, CoreError, Limits};
use crate::engine::{
    Append, BacklogSpec, Consumer, ConsumerOptions, Definition, EngineError, LeaseRef, Op, Outcome, Publish,
    View,
};
use crate::types::topic::FilterSpec;
use crate::types::{MessageId, QueueName, Sequence, TargetId, TopicName, clock};

pub(super) use looks::Watch;

use looks::Looks;
use passing::Passing;
use places::{Look, NoRoom, Places, Room};
use record::Kept;

/// What the engine knows the calls by.
const CALLS: &str = "asynchronous calls";
/// What it knows their replies by.
const REPLIES: &str = "replies to asynchronous calls";
/// A reply that was fetched may be fetched again for so long: the answer may have been lost.
const FETCHED: Duration = Duration::from_secs(60);

/// Where the reply to an asynchronous call goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyTo {
    /// Nowhere: it is kept until its caller fetches it.
    Caller,
    /// It is published there.
    Topic(TopicName),
    /// It is put there.
    Queue(QueueName),
}

/// All that is known of asynchronous calls.
#[derive(Debug)]
pub(super) struct Stored {
    room: Room,
    reply_ttl: Duration,
    places: Mutex<Places>,
    passing: Arc<Passing>,
    looks: Arc<Looks>,
    /// What the engine had when it opened.
    found: Mutex<Vec<(TargetId, BacklogSpec)>>,
    targets: OnceCell<Targets>,
    /// Cancelled when `targets` are there.
    there: CancellationToken,
    /// Cancelled when all that was stored is known.
    known: CancellationToken,
    /// Why no call is made any more.
    failed: OnceLock<EngineError>,
    counts: StoredCounts,
}

/// What is counted.
#[derive(Debug, Default)]
struct StoredCounts {
    begun: AtomicU64,
    refused: AtomicU64,
    expired: AtomicU64,
    interrupted: AtomicU64,
    diverted: AtomicU64,
    forgotten: AtomicU64,
}

/// Where they are stored.
#[derive(Debug, Clone)]
struct Targets {
    requests: TargetId,
    replies: TargetId,
    /// Has every call that is under way, until the broker ends.
    consumer: Arc<dyn Consumer>,
}

impl Stored {
    pub(super) fn new(limits: &Limits) -> Self {
        let looks = Arc::<Looks>::default();
        Self {
            room: Room { calls: limits.async_calls, bytes: limits.async_call_bytes },
            reply_ttl: limits.async_reply_ttl,
            places: Mutex::default(),
            passing: Passing::new(limits.commit_pending_bytes, Arc::clone(&looks)),
            looks,
            found: Mutex::default(),
            targets: OnceCell::new(),
            there: CancellationToken::new(),
            known: CancellationToken::new(),
            failed: OnceLock::new(),
            counts: StoredCounts::default(),
        }
    }

    pub(super) fn counters(&self) -> [(&'static str, u64); 12] {
        let sizes = self.places.lock().sizes();
        let total = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        [
            ("async_calls", sizes.calls as u64),
            ("async_calls_waiting", sizes.waiting as u64),
            ("async_call_bytes", sizes.call_bytes as u64),
            ("async_replies", sizes.replies as u64),
            ("async_reply_bytes", sizes.reply_bytes as u64),
            ("async_replies_on_their_way_bytes", self.passing.bytes() as u64),
            ("async_calls_total", total(&counts.begun)),
            ("async_calls_refused_total", total(&counts.refused)),
            ("async_calls_expired_total", total(&counts.expired)),
            ("async_calls_interrupted_total", total(&counts.interrupted)),
            ("async_replies_diverted_total", total(&counts.diverted)),
            ("async_replies_forgotten_total", total(&counts.forgotten)),
        ]
    }

    /// # Errors
    /// [`CoreError::Engine`] when no call is made any more.
    fn works(&self) -> Result<(), CoreError> {
        self.failed.get().map_or(Ok(()), |error| Err(CoreError::Engine(error.clone())))
    }

    fn refused(&self, why: &NoRoom) -> CoreError {
        Counts::add(&self.counts.refused);
        let (what, max) = match why {
            NoRoom::Calls => (
                "too many asynchronous calls and replies that are kept (limits.async_calls)",
                self.room.calls,
            ),
            NoRoom::Bytes => {
                ("too many bytes of asynchronous calls (limits.async_call_bytes)", self.room.bytes)
            }
        };
        CoreError::Limit { what: what.to_owned(), max: max as u64 }
    }
}

impl Calls {
    /// Subscribers may answer what they did not answer before, or are there again.
    pub(crate) fn subscribed(&self, filters: impl FnOnce() -> Vec<FilterSpec>) {
        if self.stored.places.lock().sizes().waiting == 0 {
            return;
        }
        let filters = filters();
        let places = self.stored.places.lock();
        for spec in &filters {
            match spec {
                FilterSpec::Plain(filter) => places.look_at(filter.as_str()),
                FilterSpec::Shared { filter, .. } => self.stored.looks.search(filter),
            }
        }
    }

    /// A line has come to be: its service says when it has room.
    fn watch(self: &Arc<Self>, watch: Option<Arc<Watch>>) {
        if let Some(watch) = watch {
            let name = watch.service.clone();
            self.service_with(Audience::Serving, &name, |service| service.watch(Some(watch)));
        }
    }

    /// A line is over.
    fn unwatch(&self, name: &TopicName) {
        if let Some(service) = self.service(name) {
            service.watch(None);
            if service.is_empty() {
                self.forget(&service);
            }
        }
    }
}

impl Broker {
    /// Takes up the asynchronous calls that the engine has stored. Where none can be stored yet nothing is done.
    pub(in crate::core) async fn restore_calls(
        self: &Arc<Self>,
        found: Vec<(TargetId, BacklogSpec)>,
    ) -> Result<(), EngineError> {
        let is_there = |name: &str| found.iter().any(|(_, spec)| *spec.name == *name);
        let begins = is_there(CALLS) && is_there(REPLIES);
        *self.calls.stored.found.lock() = found;
        if !begins {
            self.calls.stored.known.cancel();
            return Ok(());
        }
        match self.stored_calls().await {
            Ok(_) => Ok(()),
            Err(CoreError::Engine(error)) => Err(error),
            Err(other) => Err(EngineError::Failed(other.to_string())),
        }
    }

    /// Where asynchronous calls are stored; the first time that is made, and what is there is taken up.
    async fn stored_calls(self: &Arc<Self>) -> Result<&Targets, CoreError> {
        let stored = &self.calls.stored;
        let targets = stored.targets.get_or_try_init(|| self.begin_stored()).await?;
        stored.there.cancel();
        Ok(targets)
    }

    async fn begin_stored(self: &Arc<Self>) -> Result<Targets, CoreError> {
        let mut ops = Vec::new();
        let found = self.calls.stored.found.lock().clone();
        let mut target = |name: &'static str| {
            let there = found.iter().find(|(_, spec)| *spec.name == *name);
            there.map_or_else(
                || {
                    let id = self.engine.next_target();
                    ops.push(Op::Define(id, Definition::Backlog(BacklogSpec { name: name.into() })));
                    id
                },
                |(id, _)| *id,
            )
        };
        let (requests, replies) = (target(CALLS), target(REPLIES));
        if !ops.is_empty() {
            for outcome in self.engine.commit(ops).await? {
                match outcome {
                    Outcome::Done => {}
                    Outcome::Refused(refusal) => {
                        return Err(CoreError::refused(refusal, |_| CALLS.to_owned()));
                    }
                    other => {
                        let what = format!("no place for asynchronous calls: {other:?}");
                        return Err(EngineError::Failed(what).into());
                    }
                }
            }
        }
        let consumer = Arc::from(self.engine.consumer(requests, ConsumerOptions::default())?);
        let targets = Targets { requests, replies, consumer };
        self.tasks.spawn(dispatch::run(Arc::clone(self), targets.clone()));
        Ok(targets)
    }

    /// Stores a call that is made when its service is served, at the latest by its deadline, and gives its id when it is on
    /// disk. The request is within [`Limits`], as the door has checked, and has a deadline.
    ///
    /// Dropping the future, once polled, does not take the call back.
    ///
    /// # Errors
    /// [`CoreError::Limit`] naming the setting, [`CoreError::NotFound`] for the queue of its reply, [`CoreError::LowDisk`],
    /// [`CoreError::Draining`], [`CoreError::Engine`].
    pub async fn call_async(
        self: &Arc<Self>,
        request: Request,
        reply_to: ReplyTo,
    ) -> Result<MessageId, CoreError> {
        if self.draining.is_cancelled() {
            return Err(CoreError::Draining);
        }
        if let ReplyTo::Queue(queue) = &reply_to {
            self.queue(queue)?;
        }
        let broker = Arc::clone(self);
        self.to_the_end(async move { broker.store_call(&request, &reply_to).await }).await
    }

    async fn store_call(
        self: &Arc<Self>,
        request: &Request,
        reply_to: &ReplyTo,
    ) -> Result<MessageId, CoreError> {
        let requests = self.stored_calls().await?.requests;
        let stored = &self.calls.stored;
        stored.known.cancelled().await;
        stored.works()?;
        self.calls.fits(request)?;
        let mut message = record::call_message(request, reply_to);
        // Who has it may fetch the reply: others' ids are not to lead to it.
        message.id = MessageId::unguessable(clock::unix_now());
        let (id, weight) = (message.id, weight_of(&message));
        stored.places.lock().begin(id, weight, stored.room).map_err(|why| stored.refused(&why))?;
        let publish = Publish {
            message,
            targets: smallvec![Append::to(requests)],
            retain: false,
            newest_only: false,
            incoming: None,
        };
        let admitted = self.admission.admit(weight).await;
        let outcome = admitted.until(self.engine.commit_alone(publish)).await;
        let refused = match outcome.map(|mut outcomes| outcomes.pop()) {
            Ok(Some(Outcome::Published(_))) => {
                Counts::add(&stored.counts.begun);
                return Ok(id);
            }
            Ok(Some(Outcome::Refused(refusal))) => CoreError::refused(refusal, |_| CALLS.to_owned()),
            Ok(_) => CoreError::Engine(EngineError::Stopped),
            Err(error) => CoreError::Engine(error),
        };
        stored.places.lock().forget(id);
        Err(refused)
    }

    /// The reply to an asynchronous call, as soon as it is there; none when `wait` is over before, or the broker stops. What
    /// was fetched is forgotten a minute later.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] when there is no such call, or its reply has gone elsewhere or was kept no longer,
    /// [`CoreError::Engine`].
    pub async fn await_reply(
        &self,
        id: MessageId,
        wait: Duration,
    ) -> Result<Option<Result<Reply, CallError>>, CoreError> {
        let stored = &self.calls.stored;
        let over = tokio::time::sleep(wait);
        tokio::pin!(over);
        // Just after a start: what is read back takes its time, and is not waited for by the clock of the caller.
        tokio::select! {
            () = stored.known.cancelled() => {}
            () = self.draining.cancelled() => return Ok(None),
        }
        stored.works()?;
        loop {
            let look = stored.places.lock().find(id);
            let changed = match look {
                Look::UnderWay(changed) => changed,
                Look::Unknown => return Err(no_such_call(id)),
                Look::Kept(sequence) => return self.fetch_reply(id, sequence).await.map(Some),
            };
            tokio::select! {
                biased;
                () = changed => {}
                () = &mut over => return Ok(None),
                () = self.draining.cancelled() => return Ok(None),
            }
        }
    }

    async fn fetch_reply(
        &self,
        id: MessageId,
        sequence: Sequence,
    ) -> Result<Result<Reply, CallError>, CoreError> {
        let stored = &self.calls.stored;
        let replies = stored.targets.get().ok_or_else(|| no_such_call(id))?.replies;
        let kept = self.kept_reply(replies, sequence).await?.ok_or_else(|| no_such_call(id))?;
        stored.places.lock().fetched(id, clock::unix_now().after(FETCHED));
        stored.looks.bell.ring();
        Ok(kept.said)
    }

    /// The reply that is kept in this place, if it is.
    async fn kept_reply(&self, replies: TargetId, sequence: Sequence) -> Result<Option<Kept>, EngineError> {
        let mut page = self.engine.browse(replies, View::Ready, sequence, 1, usize::MAX).await?;
        let found = page.messages.pop().filter(|found| found.sequence == sequence);
        let kept = found.map(|found| record::reply_of(found.message)).transpose();
        kept.map_err(|error| EngineError::Damaged(error.to_string()))
    }

    /// Removes a reply that is kept. Completes when that is durable.
    async fn drop_reply(&self, replies: TargetId, sequence: Sequence) -> Result<(), EngineError> {
        // Nobody has leased it.
        let ready = LeaseRef { earlier_boot: true, ..LeaseRef::of(sequence) };
        self.engine.settle(replies, &[ready])?.durable.await
    }
}

fn no_such_call(id: MessageId) -> CoreError {
    CoreError::NotFound { kind: "asynchronous call", name: id.to_string() }
}
