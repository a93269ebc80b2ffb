//! One request to everyone who serves, or in parts to those who do, and the replies of all.
//!
//! Each responder, or each part, has a call of its own, which ends as any other does: answered, failed, or given up when the
//! gathering is over. Invariant: each of them has replied, failed, or is missing in the end, and why.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytestring::ByteString;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::jobs::Terms;
use super::parts::Begun;
use super::service::{Listening, Service};
use super::shared::Shared;
use super::{CallError, Calling, Calls, Counts, Reply, Request};
use crate::core::CoreError;
use crate::types::{Message, TopicName, clock};

/// Longer than anyone waits.
const EVER: Duration = Duration::from_secs(86_400 * 365);

/// When a gathering ends before everyone has replied, and what becomes of the replies.
#[derive(Debug, Clone, Copy, Default)]
pub struct Policy {
    /// So many replies are enough; 0: as many as were asked, or may come.
    pub min_replies: usize,
    /// No more replies than these; 0: as many as come.
    pub max_replies: usize,
    /// It goes on when there are enough.
    pub wait_for_all: bool,
    /// It ends with the first responder that fails.
    pub stop_on_error: bool,
    /// It ends when so long nothing has come.
    pub stall: Option<Duration>,
    /// It ends so long after it began: what is there then is passed on, and no part is handed out any more.
    pub timeout: Option<Duration>,
    /// Replies are kept for who asks: they take room to the end.
    pub keeps: bool,
    /// Those are asked too who only listen to the topic.
    pub listeners: bool,
    /// So many parts a responder has in hand at the most; 0: one.
    pub parts_in_hand: usize,
}

/// How a gathering has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Each has replied, or failed.
    Complete,
    /// Enough have replied.
    Quorum,
    /// As many have replied as may.
    MaxReplies,
    /// Its time was over.
    Deadline,
    /// Nothing came for too long.
    Stall,
    /// One has failed.
    Error,
    /// The broker stops, and hands no part out any more.
    Stopped,
    /// Nobody serves any more, and parts are left.
    NoResponders,
}

/// Why a responder did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It has left.
    Lost,
    /// It took no more requests, or what it said could not be passed on.
    Refused,
    /// It has said nothing that was passed on.
    Silent,
    /// Nobody has had the part.
    NotAsked,
}

/// How a gathering was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// How it has ended.
    pub end: End,
    /// How many responders were asked.
    pub asked: usize,
    /// How many parts there are; 0 without.
    pub parts: usize,
    /// How many have replied, or are answered.
    pub replied: usize,
    /// How many have answered with an error, or are answered so.
    pub failed: usize,
    /// The other responders in the order in which they were asked, or the other parts with who had them last.
    pub missing: Vec<Absent>,
    /// Whether enough have replied.
    pub quorum_met: bool,
}

/// A responder that did not answer, or a part that is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// The how manieth of those asked it is, or which part; from 0.
    pub at: usize,
    /// Who it is, or had it last.
    pub responder: ByteString,
    /// What it was asked as; none for a part.
    pub service: Option<TopicName>,
    /// Why.
    pub why: Missing,
}

/// What became of one responder, or of one part.
#[derive(Debug)]
pub struct Gathered {
    /// Who it is.
    pub responder: ByteString,
    /// What it was asked as; none for a part.
    pub service: Option<TopicName>,
    /// Which part it had, from 0.
    pub part: Option<usize>,
    /// What it has said, or why it has not.
    pub said: Result<Reply, CallError>,
}

/// A request that is with everyone who serves, or in parts with those who do. Dropping it cancels what is not answered, and the responders are told.
#[derive(Debug)]
pub struct Gathering {
    policy: Policy,
    shared: Arc<Shared>,
    awaited: FuturesUnordered<Awaited>,
    /// Where its parts are.
    job: Option<Job>,
    /// The names of those who have not replied, and why not; those of parts in the end.
    missing: BTreeMap<usize, (ByteString, Missing)>,
    /// What each was asked as.
    asked_as: Vec<TopicName>,
    /// Those who only listen, by the names of what was asked; dropped last.
    listening: Vec<Listening>,
    asked: usize,
    parts: usize,
    replied: usize,
    failed: usize,
    /// Why parts were left that nobody is given any more.
    left: Option<End>,
    ends: Instant,
    stalls: Instant,
    end: Option<End>,
}

#[derive(Debug)]
struct Job {
    service: Arc<Service>,
    number: u64,
}

/// The answer of one of them.
#[derive(Debug)]
struct Awaited {
    at: usize,
    calling: Calling,
}

/// What has become of one of them.
#[derive(Debug)]
struct Ended {
    at: usize,
    /// Who had it last; of a part alone.
    holder: Option<ByteString>,
    /// Why, if it is not answered.
    missing: Missing,
    said: Result<Reply, CallError>,
}

impl Future for Awaited {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let at = self.at;
        // Without parts there is one answer, or an error.
        let nothing = || CallError::Broker(CoreError::invalid("call", "was answered before"));
        self.calling.poll(cx).map(|said| {
            let (holder, missing) = (self.calling.call().holder(), self.calling.call().missing());
            Ended { at, holder, missing, said: said.unwrap_or_else(|| Err(nothing())) }
        })
    }
}

impl Gathering {
    fn new(shared: Arc<Shared>, awaited: FuturesUnordered<Awaited>, policy: Policy) -> Self {
        Self {
            shared,
            job: None,
            missing: BTreeMap::new(),
            asked_as: Vec::new(),
            listening: Vec::new(),
            asked: awaited.len(),
            awaited,
            parts: 0,
            replied: 0,
            failed: 0,
            left: None,
            ends: later(policy.timeout),
            stalls: later(policy.stall),
            end: None,
            policy,
        }
    }

    /// How many were asked, or could be when its parts were handed out; at least one.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// The number of its job.
    #[cfg(test)]
    pub(super) fn number(&self) -> Option<u64> {
        self.job.as_ref().map(|job| job.number)
    }

    /// How many parts there are; 0 without.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// What the next responder has said; `None` when it is over, and [`Self::summary`] says how. Cancel safe.
    pub async fn next(&mut self) -> Option<Gathered> {
        while self.end.is_none() {
            let due = self.ends.min(self.stalls);
            tokio::select! {
                biased;
                next = self.awaited.next() => match next {
                    Some(ended) => match self.gather(ended) {
                        None => {}
                        gathered => return gathered,
                    },
                    None => self.finish_all(),
                },
                () = sleep_until(due) => self.finish(if self.ends <= due { End::Deadline } else { End::Stall }),
            }
        }
        None
    }

    /// None for a part that is left when nobody serves any more, or the broker stops: nobody has said anything.
    fn gather(&mut self, Ended { at, holder, missing, said }: Ended) -> Option<Gathered> {
        if let Err(CallError::Broker(why @ (CoreError::NoResponders { .. } | CoreError::Draining))) = &said
            && self.job.is_some()
        {
            let left = if *why == CoreError::Draining { End::Stopped } else { End::NoResponders };
            self.left.get_or_insert(left);
            self.missing.insert(at, (holder.unwrap_or_default(), missing));
            if self.awaited.is_empty() {
                self.finish_all();
            }
            return None;
        }
        self.stalls = later(self.policy.stall);
        let named = self.missing.get(&at).map(|(name, _)| name.clone());
        let responder = named.or(holder).unwrap_or_default();
        if !self.policy.keeps {
            self.shared.read(&said);
            if let Some(job) = self.job.as_ref().filter(|_| self.shared.is_freed()) {
                job.service.go_on_with_parts();
            }
        }
        match &said {
            Ok(_) => {
                self.replied += 1;
                self.missing.remove(&at);
            }
            Err(CallError::Responder(_)) => {
                self.failed += 1;
                self.missing.remove(&at);
            }
            Err(CallError::Broker(_)) => drop(self.missing.insert(at, (responder.clone(), missing))),
        }
        let Policy { min_replies, max_replies, wait_for_all, stop_on_error, .. } = self.policy;
        if said.is_err() && stop_on_error {
            self.finish(End::Error);
        } else if self.awaited.is_empty() {
            self.finish_all();
        } else if min_replies > 0 && self.replied >= min_replies && !wait_for_all {
            self.finish(End::Quorum);
        } else if max_replies > 0 && self.replied >= max_replies {
            self.finish(End::MaxReplies);
        }
        let service = self.asked_as.get(at).cloned();
        Some(Gathered { responder, service, part: (self.parts > 0).then_some(at), said })
    }

    /// Nobody is awaited any more.
    fn finish_all(&mut self) {
        self.finish(self.left.unwrap_or(End::Complete));
    }

    /// It is over: nobody need answer any more.
    fn finish(&mut self, end: End) {
        self.end = Some(end);
        for Awaited { at, calling } in &self.awaited {
            let (name, missing) = self.missing.entry(*at).or_insert((ByteString::new(), Missing::NotAsked));
            *missing = calling.call().missing();
            if let Some(holder) = calling.call().holder() {
                *name = holder;
            }
        }
        if let Some(Job { service, number }) = self.job.take() {
            self.asked = service.end_parts(number);
        }
        self.awaited.clear();
    }

    /// How it was, once. One that is not over ends as if its time were.
    #[must_use]
    pub fn summary(&mut self) -> Summary {
        self.finish(self.end.unwrap_or(End::Deadline));
        let all = if self.parts > 0 { self.parts } else { self.asked };
        let enough = match (self.policy.min_replies, self.policy.max_replies) {
            (0, 0) => all,
            (0, max) => max.min(all),
            (min, _) => min,
        };
        let missing = std::mem::take(&mut self.missing).into_iter().map(|(at, (responder, why))| {
            let service = self.asked_as.get(at).cloned();
            Absent { at, responder, service, why }
        });
        Summary {
            end: self.end.unwrap_or(End::Deadline),
            asked: self.asked,
            parts: self.parts,
            replied: self.replied,
            failed: self.failed,
            quorum_met: self.replied >= enough,
            missing: missing.collect(),
        }
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        // Its parts first: one that is given up would only make room for the next.
        if let Some(Job { service, number }) = self.job.take() {
            service.end_parts(number);
        }
        self.awaited.clear();
        self.shared.forget();
    }
}

fn later(after: Option<Duration>) -> Instant {
    Instant::now() + after.unwrap_or(EVER).min(EVER)
}

impl Calls {
    /// Asks everyone who serves one of `names`, as each of them.
    pub(super) fn gather(
        self: &Arc<Self>,
        names: &[TopicName],
        request: &Request,
        (policy, listening): (Policy, Vec<Listening>),
    ) -> Result<Gathering, CoreError> {
        let shared = Shared::new(self, request.message.weight())?;
        let mut gathering = Gathering::new(shared, FuturesUnordered::new(), policy);
        let listens = |at: usize| listening.get(at).map(|listening| Arc::clone(listening.service()));
        let services = names.iter().enumerate().flat_map(|(at, name)| [self.service(name), listens(at)]);
        for service in services.flatten() {
            let mut request = Request { takes_parts: false, ..request.clone() };
            request.message.topic = service.name().clone();
            let left = self.bounds.gather_responders - gathering.asked;
            // One that is too many ends what was begun: who was asked is told that nobody waits.
            for (name, call) in service.ask_all(self, (&gathering.shared, &Arc::new(request)), left)? {
                Counts::add(&self.counts.begun);
                let at = gathering.asked;
                gathering.asked += 1;
                gathering.asked_as.push(service.name().clone());
                gathering.missing.insert(at, (name, Missing::Silent));
                gathering.awaited.push(Awaited { at, calling: Calling::new(Arc::clone(&service), call) });
            }
        }
        if gathering.asked == 0 {
            return Err(self.nobody(&request.message.topic));
        }
        Counts::add(&self.counts.multicasts);
        gathering.listening = listening;
        Ok(gathering)
    }

    /// Gives parts of a request to those who serve.
    pub(crate) fn gather_parts(
        self: &Arc<Self>,
        request: Request,
        parts: Vec<Message>,
        policy: Policy,
    ) -> Result<Gathering, CoreError> {
        let Some(service) = self.service(&request.message.topic) else {
            return Err(self.nobody(&request.message.topic));
        };
        let request = Request { takes_parts: false, ..request };
        // What is left of them keeps all of them in memory: they came in one frame.
        let shared = Shared::new(self, parts.iter().map(Message::weight).sum())?;
        let left = request.deadline.map(|deadline| deadline.since(clock::unix_now()));
        let terms = Terms {
            each: policy.parts_in_hand.max(1),
            keeps: policy.keeps,
            ends: later(policy.timeout).min(later(left)),
        };
        let begun = service.begin_parts(self, &shared, (&request, parts), terms)?;
        let Begun { number, parts, responders } = begun;
        Counts::add(&self.counts.multicasts);
        self.counts.begun.fetch_add(parts.len() as u64, std::sync::atomic::Ordering::Relaxed);
        let count = parts.len();
        let awaited = parts.into_iter().enumerate().map(|(at, calling)| Awaited { at, calling });
        let mut gathering = Gathering::new(shared, awaited.collect(), policy);
        gathering.job = Some(Job { service, number });
        (gathering.asked, gathering.parts) = (responders, count);
        Ok(gathering)
    }
}
