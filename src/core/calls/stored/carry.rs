//! Stored calls from the moment when somebody has room for them until they are answered: marked and made.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::places::Waiting;
use crate::core::calls::published::late;
use crate::core::calls::state::UNREAD;
use crate::core::calls::{CallError, Calling, Counts, How, Reply};
use crate::core::{Broker, CoreError};
use crate::engine::{Op, Outcome, Outgoing, OutgoingState};
use crate::types::{TopicName, clock};

/// The mark of a call that somebody may have.
pub(super) const WITH_SOMEBODY: u16 = 1;
/// The mark of one that nobody has got after all.
const WITH_NOBODY: u16 = 0;
/// When a service that has room and takes nothing is asked again.
const RETRY: Duration = UNREAD;

/// What is said of a call that was with somebody when the broker ended.
pub(super) fn interrupted(call: &Waiting) -> CoreError {
    let (service, responder) = (call.service().to_string(), "(unknown: the broker has restarted)".to_owned());
    CoreError::ResponderLost { service, responder }
}

/// Why a call could not be begun, or has to wait again.
fn waits_again(said: &Result<Reply, CallError>) -> bool {
    matches!(said, Err(CallError::Broker(CoreError::NoResponders { .. } | CoreError::Unread { .. })))
}

impl Broker {
    /// Begins calls that were taken out of the line of a service, in their order; from the first on that cannot be begun they
    /// are put back.
    pub(super) async fn begin_all(self: Arc<Self>, service: TopicName, calls: Vec<Arc<Waiting>>) {
        let unmarked = |call: &&Arc<Waiting>| !call.request.idempotent && !call.is_marked();
        if let Err(error) = self.mark(calls.iter().filter(unmarked), WITH_SOMEBODY).await {
            return tracing::error!(%error, %service, "stored calls are not made");
        }
        let mut calls = calls.into_iter();
        let mut back = Vec::new();
        let mut refused = false;
        for call in calls.by_ref() {
            let how = How { tries: call.tries.load(Ordering::Relaxed), waits: false };
            match self.begin(call.request.clone(), how) {
                Ok((calling, true)) => drop(self.tasks.spawn(Arc::clone(&self).carry(call, calling))),
                // It never can be begun.
                Err(error) if self.is_final(&error, &call) => {
                    let said = Err(CallError::Broker(error));
                    self.tasks.spawn(Arc::clone(&self).answer_stored(call, said));
                }
                not_begun => {
                    refused = matches!(not_begun, Err(CoreError::Limit { .. } | CoreError::Unread { .. }));
                    back.push(call);
                    break;
                }
            }
        }
        back.extend(calls);
        self.put_back(back).await;
        if refused {
            self.rest().await;
        }
        let mut places = self.calls.stored.places.lock();
        if places.begun(&service, refused) {
            self.calls.unwatch(&service);
        }
    }

    /// Whether a call cannot be begun later either: no responder takes a request as large, or the bound was higher when it
    /// was stored.
    fn is_final(&self, error: &CoreError, call: &Waiting) -> bool {
        match error {
            CoreError::TooLarge { .. } => true,
            CoreError::Limit { .. } => self.calls.fits(&call.request).is_err(),
            _ => false,
        }
    }

    /// Waits a while where a call could not be begun although somebody has room: nobody says when that is over.
    async fn rest(&self) {
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = self.draining.cancelled() => {}
        }
    }

    /// Has a call that is begun answered, or puts it back.
    async fn carry(self: Arc<Self>, call: Arc<Waiting>, mut calling: Calling) {
        let said = self.reply_in_time(&call, &mut calling).await;
        call.tries.store(calling.call().tries(), Ordering::Relaxed);
        drop(calling);
        if waits_again(&said) {
            return self.put_back(vec![call]).await;
        }
        if matches!(&said, Err(error) if *error == late()) {
            Counts::add(&self.calls.stored.counts.expired);
        }
        self.answer_stored(call, said).await;
    }

    /// The answer to a call, at the latest at its deadline. No device has it for longer than one that somebody waits for.
    async fn reply_in_time(&self, call: &Waiting, calling: &mut Calling) -> Result<Reply, CallError> {
        let limit = self.calls.bounds.late.max(RETRY);
        let mut next = limit;
        loop {
            let left = call.deadline().since(clock::unix_now());
            match tokio::time::timeout(left.min(next), calling.reply()).await {
                Ok(said) => return said,
                Err(_) if left <= next => return Err(late()),
                Err(_) => next = calling.overdue(limit),
            }
        }
    }

    /// Nobody has got these calls: they wait again, where they stood.
    async fn put_back(&self, calls: Vec<Arc<Waiting>>) {
        if let Err(error) = self.mark(calls.iter().filter(|call| call.is_marked()), WITH_NOBODY).await {
            tracing::error!(%error, "stored calls are not made");
            return;
        }
        let stored = &self.calls.stored;
        let mut places = stored.places.lock();
        for call in calls {
            self.calls.watch(places.wait(call, &stored.looks));
        }
    }

    /// Notes on disk whether somebody may have calls.
    async fn mark(
        &self,
        calls: impl Iterator<Item = &Arc<Waiting>> + Clone,
        with: u16,
    ) -> Result<(), CoreError> {
        let mut ops = Vec::new();
        for call in calls.clone() {
            let target = self.targets(call.id)?.requests;
            let outgoing = Outgoing { packet_id: with, state: OutgoingState::Sent };
            ops.push(Op::Outgoing { target, sequence: call.sequence, outgoing });
        }
        if ops.is_empty() {
            return Ok(());
        }
        let refused = self.engine.commit(ops).await?.into_iter().find_map(|outcome| match outcome {
            Outcome::Refused(refusal) => Some(refusal),
            _ => None,
        });
        if let Some(refusal) = refused {
            return Err(CoreError::refused(refusal, |id| id.0.to_string()));
        }
        calls.for_each(|call| call.marked.store(with == WITH_SOMEBODY, Ordering::Relaxed));
        Ok(())
    }
}
