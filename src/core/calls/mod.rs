//! Remote calls: a request goes to one responder of a service, its answer to whoever waits for it.
//!
//! ```text
//! Broker::call ─▶ Service: chooses ─▶ Responder (its inbox) ─▶ door
//!      Calling ◀─ parts, end ◀─────── Responder::reply ◀────── door
//! ```
//!
//! `call` is one request with its answer, `service`, `state` and `choice` decide who is asked, `groups` has those who do the same,
//! `direct` asks everyone, `gather` takes the replies of all, `parts` gives parts of a request to responders, `jobs` has those that
//! wait, `responder` is the handle of who answers, `device` a subscriber that answers, `line` what waits, `stored` asynchronous
//! calls, `topics` where one of 3.1.1 answers, `owed` what it owes, `published` what of this comes and goes as a publish, `words`
//! what is said.
//!
//! Invariants: a call is with one responder, waits for one, or is over; one that is for a certain responder goes to no
//! other; whoever waits hears of each of these ends at once; what a responder says reaches only calls that it was asked for.
//! Lock order: the places of stored calls, the services, one service, one call. With a service's lock held a session's state, its outbox or the index of
//! devices may be locked, and nothing else. None is held across an await.

mod call;
mod choice;
mod device;
mod direct;
mod gather;
mod groups;
mod jobs;
mod line;
mod multicast;
mod owed;
mod parts;
mod published;
mod responder;
mod service;
mod shared;
mod state;
mod stored;
#[cfg(test)]
mod tests;
mod topics;
mod words;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Broker, CoreError, Limits, TooLarge};
use crate::types::{TopicFilter, TopicName};

pub use call::Calling;
pub use gather::{Absent, End, Gathered, Gathering, Missing, Policy, Summary};
pub use responder::{Asked, Cancelled, Responder};
pub use stored::ReplyTo;
pub use topics::{NotAPair, TopicPair};
pub use words::{
    Answer, CallError, Caller, Fault, Part, Reply, ReplyRefused, Request, ResponderFacts, Said, Serve,
};

pub(crate) use published::By;

use call::Call;
use device::Index;
use service::Service;
use stored::Stored;

/// Whom a service is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// Those who answer its calls.
    Serving,
    /// Those whose subscription has a wildcard.
    Listening,
}

/// All calls and those who answer them.
#[derive(Debug)]
pub(crate) struct Calls {
    bounds: Bounds,
    /// The names come from peers.
    services: RwLock<HashMap<TopicName, Arc<Service>>>,
    /// Those who only listen to a service's topic, and are asked when that is wanted.
    listening: RwLock<HashMap<TopicName, Arc<Service>>>,
    next_key: AtomicU64,
    next_job: AtomicU64,
    devices: Index,
    /// How often a session came back with its subscriptions.
    reconnects: AtomicU64,
    pub(super) counts: Counts,
    stored: Stored,
    /// What waits for a moment.
    tasks: TaskTracker,
    draining: CancellationToken,
}

/// What of [`Limits`] bounds calls.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    calls: usize,
    bytes: usize,
    reply_bytes: usize,
    gather_responders: usize,
    gather_bytes: usize,
    parts_waiting: usize,
    waiting: usize,
    tries: usize,
    responders: usize,
    late: Duration,
}

/// A request that no device takes that could answer it.
fn too_large(TooLarge { len, max }: TooLarge) -> CoreError {
    let (len, max) = (len as u64, max as u64);
    CoreError::TooLarge { field: "request".to_owned(), len, max, unit: "bytes as a packet" }
}

/// How a call is begun.
#[derive(Debug, Clone, Copy)]
struct How {
    /// So many responders have seen the request before.
    tries: usize,
    /// Whether it waits when nobody has room.
    waits: bool,
}

const FIRST: How = How { tries: 0, waits: true };

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    in_flight: AtomicUsize,
    /// Of requests, and of replies that are not read.
    bytes: AtomicUsize,
    responders: AtomicUsize,
    /// Answers that are on their way to be published.
    answering: AtomicUsize,
    begun: AtomicU64,
    multicasts: AtomicU64,
    no_responders: AtomicU64,
    refused: AtomicU64,
    retried: AtomicU64,
    lost: AtomicU64,
    cancelled: AtomicU64,
    replies_unknown: AtomicU64,
    replies_over: AtomicU64,
    replies_again: AtomicU64,
    replies_wrong: AtomicU64,
    replies_forged: AtomicU64,
    reply_topics_refused: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Calls {
    pub(crate) fn new(limits: &Limits, tasks: TaskTracker, draining: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            tasks,
            draining,
            bounds: Bounds {
                calls: limits.max_calls,
                bytes: limits.call_bytes,
                reply_bytes: limits.call_reply_bytes,
                gather_responders: limits.gather_responders,
                gather_bytes: limits.gather_bytes,
                parts_waiting: limits.parts_waiting,
                waiting: limits.calls_waiting,
                tries: limits.call_tries,
                responders: limits.max_responders,
                late: limits.call_timeout,
            },
            services: RwLock::default(),
            listening: RwLock::default(),
            next_key: AtomicU64::new(1),
            next_job: AtomicU64::new(1),
            devices: Index::default(),
            reconnects: AtomicU64::new(0),
            counts: Counts::default(),
            stored: Stored::new(limits),
        })
    }

    /// Hands a request to a responder. Whether one has it or, if it may, it waits for one.
    fn begin(self: &Arc<Self>, request: Request, how: How) -> Result<(Calling, bool), CoreError> {
        let Some(service) = self.service(&request.message.topic) else {
            return Err(self.nobody(&request.message.topic));
        };
        let call = Arc::new(Call::new(self, call::To::One(request))?.tried(how.tries));
        let taken = service.take_in(&call, how.waits)?;
        if taken {
            Counts::add(&self.counts.begun);
        }
        Ok((Calling::new(service, call), taken))
    }

    /// Adds a responder.
    pub(crate) fn serve(self: &Arc<Self>, mut serve: Serve) -> Result<Responder, CoreError> {
        let key = self.next_key().inspect_err(|_| Counts::add(&self.counts.refused))?;
        serve.id.get_or_insert_with(|| format!("responder-{key}").into());
        let name = serve.service.clone();
        Ok(self.service_with(Audience::Serving, &name, |service| service.join(key, serve)))
    }

    /// A place for a responder more.
    fn next_key(&self) -> Result<u64, CoreError> {
        let max = self.bounds.responders;
        let more = |count: usize| (count < max).then_some(count + 1);
        match self.counts.responders.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(self.next_key.fetch_add(1, Ordering::Relaxed)),
            Err(_) => Err(CoreError::Limit {
                what: "too many responders (limits.max_responders)".to_owned(),
                max: max as u64,
            }),
        }
    }

    /// The number of a job.
    fn next_job(&self) -> u64 {
        self.next_job.fetch_add(1, Ordering::Relaxed)
    }

    /// Nobody can answer a call.
    fn nobody(&self, service: &TopicName) -> CoreError {
        self.nobody_named(service.as_str())
    }

    fn nobody_named(&self, service: &str) -> CoreError {
        Counts::add(&self.counts.no_responders);
        CoreError::NoResponders { service: service.to_owned() }
    }

    /// Whoever could answer a call does not read.
    fn unread(&self, service: &TopicName) -> CoreError {
        Counts::add(&self.counts.refused);
        CoreError::Unread { service: service.as_str().to_owned() }
    }

    /// Something is beyond a bound.
    /// `setting` is that of `limits` which says how many there may be.
    fn refused(&self, what: impl Display, setting: &str, max: usize) -> CoreError {
        Counts::add(&self.counts.refused);
        CoreError::Limit { what: format!("{what} (limits.{setting})"), max: max as u64 }
    }

    fn service(&self, name: &TopicName) -> Option<Arc<Service>> {
        self.service_of(Audience::Serving, name)
    }

    fn service_of(&self, audience: Audience, name: &TopicName) -> Option<Arc<Service>> {
        self.services_of(audience).read().get(name).cloned()
    }

    fn services_of(&self, audience: Audience) -> &RwLock<HashMap<TopicName, Arc<Service>>> {
        match audience {
            Audience::Serving => &self.services,
            Audience::Listening => &self.listening,
        }
    }

    /// The names of services that `filter` matches.
    fn served(&self, filter: &TopicFilter) -> BTreeSet<TopicName> {
        self.services.read().keys().filter(|name| filter.matches(name)).cloned().collect()
    }

    /// Does something with a service, which is made if there is none; nobody forgets it meanwhile.
    fn service_with<T>(
        self: &Arc<Self>,
        audience: Audience,
        name: &TopicName,
        act: impl FnOnce(&Arc<Service>) -> T,
    ) -> T {
        // What is there needs no more than that nobody forgets it: calls of other services go on meanwhile.
        if let Some(service) = self.services_of(audience).read().get(name) {
            return act(service);
        }
        let mut services = self.services_of(audience).write();
        match services.get(name) {
            Some(service) => act(service),
            None => act(services
                .entry(name.detached())
                .or_insert_with_key(|name| Service::new(self, audience, name.clone()))),
        }
    }

    fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Acquire)
    }

    /// A session came back with its subscriptions: it may be asked again.
    pub(crate) fn session_came_back(&self) {
        self.reconnects.fetch_add(1, Ordering::Release);
    }

    /// Forgets a service that nobody serves.
    fn forget(&self, service: &Arc<Service>) {
        let mut services = self.services_of(service.audience()).write();
        let is_there = services.get(service.name()).is_some_and(|there| Arc::ptr_eq(there, service));
        if is_there && service.is_empty() {
            services.remove(service.name());
        }
    }

    /// Responders with a key above `after`, in the order in which they came; at most `max`.
    pub(crate) fn responders(
        &self,
        service: Option<&TopicName>,
        after: u64,
        max: usize,
    ) -> Vec<ResponderFacts> {
        let services: Vec<Arc<Service>> = match service {
            Some(name) => self.service(name).into_iter().collect(),
            None => self.services.read().values().cloned().collect(),
        };
        let mut facts = Vec::new();
        for service in services {
            service.facts(after, &mut facts);
        }
        facts.sort_unstable_by_key(|facts| facts.key);
        facts.truncate(max);
        facts
    }

    /// By the names that operators see.
    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> {
        let counts = &self.counts;
        let now = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) as u64;
        let total = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut counters = vec![
            ("calls_in_flight", now(&counts.in_flight)),
            ("call_bytes", now(&counts.bytes)),
            ("services", self.services.read().len() as u64),
            ("responders", now(&counts.responders)),
            ("calls_total", total(&counts.begun)),
            ("multicasts_total", total(&counts.multicasts)),
            ("calls_no_responders_total", total(&counts.no_responders)),
            ("calls_refused_total", total(&counts.refused)),
            ("calls_retried_total", total(&counts.retried)),
            ("calls_lost_total", total(&counts.lost)),
            ("calls_cancelled_total", total(&counts.cancelled)),
            ("call_replies_unknown_total", total(&counts.replies_unknown)),
            ("call_replies_over_total", total(&counts.replies_over)),
            ("call_replies_again_total", total(&counts.replies_again)),
            ("call_replies_wrong_total", total(&counts.replies_wrong)),
            ("call_replies_forged_total", total(&counts.replies_forged)),
            ("call_reply_topics_refused_total", total(&counts.reply_topics_refused)),
        ];
        counters.extend(self.stored.counters());
        counters
    }
}

impl Broker {
    /// Begins a call: it is with a responder, or waits for one, when this returns. Never waits. The request is within
    /// [`Limits`], as the door has checked.
    ///
    /// # Errors
    /// [`CoreError::NoResponders`], [`CoreError::Limit`] when there are too many calls, or when who would answer is beyond
    /// the bound of responders, [`CoreError::Unread`], [`CoreError::TooLarge`], [`CoreError::Draining`].
    pub fn call(&self, request: Request) -> Result<Calling, CoreError> {
        self.begin(request, FIRST).map(|(calling, _)| calling)
    }

    fn begin(&self, request: Request, how: How) -> Result<(Calling, bool), CoreError> {
        if self.draining.is_cancelled() {
            return Err(CoreError::Draining);
        }
        let found = self.find_devices(&request.message.topic);
        match (self.calls.begin(request, how), found) {
            (Err(CoreError::NoResponders { .. }) | Ok((_, false)), Err(full)) => {
                Counts::add(&self.calls.counts.refused);
                Err(full)
            }
            (called, _) => called,
        }
    }

    /// Serves a service from its return on, until the handle is dropped. Never waits.
    ///
    /// # Errors
    /// [`CoreError::Limit`] when there are too many responders, [`CoreError::Draining`].
    pub fn serve(&self, serve: Serve) -> Result<Responder, CoreError> {
        if self.draining.is_cancelled() {
            return Err(CoreError::Draining);
        }
        self.calls.serve(serve)
    }

    /// Responders of `service`, or of all, whose key is above `after`, in the order in which they came; at most `max`. Of
    /// subscribers that answer, those of all services are there when they were looked for once.
    #[must_use]
    pub fn responders(&self, service: Option<&TopicName>, after: u64, max: usize) -> Vec<ResponderFacts> {
        if let Some(name) = service
            && let Err(error) = self.find_devices(name)
        {
            tracing::debug!(%error, "not every responder is listed");
        }
        self.calls.responders(service, after, max)
    }
}
