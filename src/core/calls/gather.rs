//! One request to everyone who serves, and the replies of all.
//!
//! Each responder has a call of its own, which ends as any other does: answered, failed, or given up when the gathering is
//! over. Invariant: of those asked each has replied, failed, or is missing in the end, and why.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytestring::ByteString;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::call::Shared;
use super::{CallError, Calling, Calls, Counts, Reply, Request};
use crate::core::{Broker, CoreError};

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
    /// It ends so long after it began.
    pub timeout: Option<Duration>,
    /// Replies are kept for who asks: they take room to the end.
    pub keeps: bool,
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
}

/// Why a responder did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It has left.
    Lost,
    /// It took no more requests, or what it said could not be passed on.
    Refused,
    /// It has said nothing.
    Silent,
}

/// How a gathering was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// How it has ended.
    pub end: End,
    /// How many were asked.
    pub asked: usize,
    /// How many have replied.
    pub replied: usize,
    /// How many have answered with an error.
    pub failed: usize,
    /// The others, in the order in which they were asked.
    pub missing: Vec<(ByteString, Missing)>,
    /// Whether enough have replied.
    pub quorum_met: bool,
}

/// What became of one responder.
#[derive(Debug)]
pub struct Gathered {
    /// Who it is.
    pub responder: ByteString,
    /// What it has said, or why it has not.
    pub said: Result<Reply, CallError>,
}

/// A request that is with everyone who serves. Dropping it cancels what is not answered, and the responders are told.
#[derive(Debug)]
pub struct Gathering {
    policy: Policy,
    shared: Arc<Shared>,
    awaited: FuturesUnordered<Awaited>,
    /// The names of those who have not replied, and why not.
    missing: BTreeMap<usize, (ByteString, Missing)>,
    asked: usize,
    replied: usize,
    failed: usize,
    ends: Instant,
    stalls: Instant,
    end: Option<End>,
}

/// The answer of one of them.
#[derive(Debug)]
struct Awaited {
    at: usize,
    calling: Calling,
}

impl Future for Awaited {
    type Output = (usize, Result<Reply, CallError>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let at = self.at;
        // Without parts there is one answer, or an error.
        let nothing = || CallError::Broker(CoreError::invalid("call", "was answered before"));
        self.calling.poll(cx).map(|said| (at, said.unwrap_or_else(|| Err(nothing()))))
    }
}

impl Gathering {
    /// How many were asked; at least one.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// What the next responder has said; `None` when it is over, and [`Self::summary`] says how. Cancel safe.
    pub async fn next(&mut self) -> Option<Gathered> {
        if self.end.is_some() {
            return None;
        }
        let due = self.ends.min(self.stalls);
        tokio::select! {
            biased;
            next = self.awaited.next() => match next {
                Some((at, said)) => return Some(self.gather(at, said)),
                None => self.finish(End::Complete),
            },
            () = sleep_until(due) => self.finish(if self.ends <= due { End::Deadline } else { End::Stall }),
        }
        None
    }

    fn gather(&mut self, at: usize, said: Result<Reply, CallError>) -> Gathered {
        self.stalls = later(self.policy.stall);
        let responder = self.missing.get(&at).map(|(name, _)| name.clone()).unwrap_or_default();
        if !self.policy.keeps {
            self.shared.read(&said);
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
            Err(CallError::Broker(error)) => {
                let why = match error {
                    CoreError::ResponderLost { .. } => Missing::Lost,
                    _ => Missing::Refused,
                };
                self.missing.insert(at, (responder.clone(), why));
            }
        }
        let Policy { min_replies, max_replies, wait_for_all, stop_on_error, .. } = self.policy;
        if said.is_err() && stop_on_error {
            self.finish(End::Error);
        } else if self.awaited.is_empty() {
            self.finish(End::Complete);
        } else if min_replies > 0 && self.replied >= min_replies && !wait_for_all {
            self.finish(End::Quorum);
        } else if max_replies > 0 && self.replied >= max_replies {
            self.finish(End::MaxReplies);
        }
        Gathered { responder, said }
    }

    /// It is over: nobody need answer any more.
    fn finish(&mut self, end: End) {
        self.end = Some(end);
        self.awaited.clear();
    }

    /// How it was, once. One that is not over ends as if its time were.
    #[must_use]
    pub fn summary(&mut self) -> Summary {
        self.finish(self.end.unwrap_or(End::Deadline));
        let enough = match (self.policy.min_replies, self.policy.max_replies) {
            (0, 0) => self.asked,
            (0, max) => max.min(self.asked),
            (min, _) => min,
        };
        Summary {
            end: self.end.unwrap_or(End::Deadline),
            asked: self.asked,
            replied: self.replied,
            failed: self.failed,
            quorum_met: self.replied >= enough,
            missing: std::mem::take(&mut self.missing).into_values().collect(),
        }
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        self.awaited.clear();
        self.shared.forget();
    }
}

fn later(after: Option<Duration>) -> Instant {
    Instant::now() + after.unwrap_or(EVER).min(EVER)
}

impl Calls {
    /// Asks everyone.
    pub(crate) fn gather(self: &Arc<Self>, request: Request, policy: Policy) -> Result<Gathering, CoreError> {
        let Some(service) = self.service(&request.message.topic) else {
            return Err(self.nobody(&request.message.topic));
        };
        let shared = Shared::new(self, Request { takes_parts: false, ..request })?;
        let all = service.ask_all(self, &shared)?;
        Counts::add(&self.counts.multicasts);
        let mut missing = BTreeMap::new();
        let awaited = FuturesUnordered::new();
        for (at, (name, call)) in all.into_iter().enumerate() {
            Counts::add(&self.counts.begun);
            missing.insert(at, (name, Missing::Silent));
            awaited.push(Awaited { at, calling: Calling::new(Arc::clone(&service), call) });
        }
        Ok(Gathering {
            shared,
            asked: awaited.len(),
            awaited,
            missing,
            replied: 0,
            failed: 0,
            ends: later(policy.timeout),
            stalls: later(policy.stall),
            end: None,
            policy,
        })
    }
}

impl Broker {
    /// Asks everyone who serves: each stream, each subscriber of exactly the service's topic, and one member of each share
    /// group. Each has the request, or waits for room for it, when this returns. Never waits. The request is within
    /// [`Limits`](crate::core::Limits), as the door has checked.
    ///
    /// # Errors
    /// [`CoreError::NoResponders`], [`CoreError::Limit`] when there are too many calls or responders,
    /// [`CoreError::Draining`]. Nobody was asked then.
    pub fn gather(&self, request: Request, policy: Policy) -> Result<Gathering, CoreError> {
        if self.draining.is_cancelled() {
            return Err(CoreError::Draining);
        }
        self.find_devices(&request.message.topic).inspect_err(|_| Counts::add(&self.calls.counts.refused))?;
        self.calls.gather(request, policy)
    }
}
