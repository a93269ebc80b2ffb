//! Stored calls from the moment when somebody has room for them: marked, made, answered.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::places::{Waiting, weight_of};
use super::record::{self, Kept};
use super::{Targets, no_such_call};
use crate::core::calls::published::{answer, error_message, late};
use crate::core::calls::{CallError, Calling, Counts, Reply, ReplyTo};
use crate::core::{Broker, CoreError, Inbound, PublisherInfo};
use crate::engine::{EngineError, Op, Outcome, Outgoing, OutgoingState, Refusal, View};
use crate::types::{Message, MessageId, Priority, Qos, QueueName, Sequence, TargetId, TopicName, clock};

/// The mark of a call that somebody may have.
pub(super) const WITH_SOMEBODY: u16 = 1;
/// The mark of one that nobody has got after all.
const WITH_NOBODY: u16 = 0;
/// When a service that has room and takes nothing is asked again.
const RETRY: Duration = Duration::from_secs(1);

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
        let back = match self.mark(calls.iter().filter(unmarked), WITH_SOMEBODY).await {
            Ok(()) => {
                let mut calls = calls.into_iter();
                let mut back = Vec::new();
                for call in calls.by_ref() {
                    match self.call(call.request.clone()) {
                        Ok(calling) => drop(self.tasks.spawn(Arc::clone(&self).carry(call, calling))),
                        Err(error) => {
                            self.rest(&error, &call).await;
                            back.push(call);
                            break;
                        }
                    }
                }
                back.extend(calls);
                back
            }
            Err(error) => return tracing::error!(%error, %service, "stored calls are not made"),
        };
        self.put_back(back).await;
        let mut places = self.calls.stored.places.lock();
        if places.begun(&service) {
            self.calls.unwatch(&service);
        }
    }

    /// Waits a while where a call could not be begun although somebody has room: nobody says when that is over.
    async fn rest(&self, error: &CoreError, call: &Waiting) {
        if matches!(error, CoreError::Limit { .. } | CoreError::Unread { .. }) {
            let left = call.deadline().since(clock::unix_now());
            tokio::select! {
                () = tokio::time::sleep(RETRY.min(left)) => {}
                () = self.draining.cancelled() => {}
            }
        }
    }

    /// Has a call that is begun answered, or puts it back.
    async fn carry(self: Arc<Self>, call: Arc<Waiting>, calling: Calling) {
        let said = answer(Ok(calling), call.deadline().since(clock::unix_now())).await;
        if waits_again(&said) {
            return self.put_back(vec![call]).await;
        }
        if matches!(&said, Err(error) if *error == late()) {
            Counts::add(&self.calls.stored.counts.expired);
        }
        self.answer_stored(call, said).await;
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

    fn targets(&self, id: MessageId) -> Result<&Targets, CoreError> {
        self.calls.stored.targets.get().ok_or_else(|| no_such_call(id))
    }

    /// Sends the answer to a call where it is to go, and takes the call off the disk with it.
    pub(super) async fn answer_stored(self: Arc<Self>, call: Arc<Waiting>, said: Result<Reply, CallError>) {
        let said = said.map(|reply| Reply { latency: clock::unix_now().since(call.id.time()), ..reply });
        if let Err(error) = self.send_answer(&call, said).await {
            // It stays on disk, and is answered after the next start.
            tracing::error!(%error, id = %call.id, "the answer to a stored call cannot be stored");
        }
    }

    async fn send_answer(
        self: &Arc<Self>,
        call: &Waiting,
        said: Result<Reply, CallError>,
    ) -> Result<(), CoreError> {
        let stored = &self.calls.stored;
        let Targets { requests, replies, .. } = *self.targets(call.id)?;
        if let ReplyTo::Queue(queue) = &call.reply_to
            && self.put_into_queue(requests, call, queue, &said).await?
        {
            stored.places.lock().forget(call.id);
            return Ok(());
        }
        let topic = match &call.reply_to {
            ReplyTo::Topic(topic) => Some(topic.clone()),
            ReplyTo::Caller | ReplyTo::Queue(_) => None,
        };
        let until = clock::unix_now().after(stored.reply_ttl);
        let mut kept = Kept { id: call.id, until, said, topic };
        let mut message = record::reply_message(&kept, call.service());
        let has_room = stored.places.lock().reply(call.id, weight_of(&message), stored.room);
        if !has_room {
            Counts::add(&stored.counts.refused);
            kept.said = Err(CallError::Broker(CoreError::Limit {
                what: "too many bytes of replies are kept (limits.async_call_bytes)".to_owned(),
                max: stored.room.bytes as u64,
            }));
            message = record::reply_message(&kept, call.service());
            stored.places.lock().restore_reply(call.id, weight_of(&message));
        }
        let sequence = match self.move_reply((requests, call.sequence), replies, message).await? {
            Ok(sequence) => sequence,
            Err(refusal) => return Err(CoreError::refused(refusal, |id| id.0.to_string())),
        };
        self.publish_reply(replies, sequence, kept).await?;
        Ok(())
    }

    /// Takes a call off the disk and puts its reply there, in one act.
    async fn move_reply(
        &self,
        (from, sequence): (TargetId, Sequence),
        to: TargetId,
        message: Message,
    ) -> Result<Result<Sequence, Refusal>, EngineError> {
        let admitted = self.admission.admit(weight_of(&message)).await;
        let (view, priority) = (View::Leased, Priority::default());
        let op = Op::Move { from, sequence, view, to, message, priority };
        match admitted.until(self.engine.commit(vec![op])).await?.pop() {
            Some(Outcome::Published(places)) => places.first().copied().flatten().map(Ok),
            Some(Outcome::Refused(refusal)) => Some(Err(refusal)),
            _ => None,
        }
        .ok_or(EngineError::Stopped)
    }

    /// Puts a reply into the queue that it is to go to. False if that is full or gone, or the disk nearly full.
    async fn put_into_queue(
        &self,
        requests: TargetId,
        call: &Waiting,
        queue: &QueueName,
        said: &Result<Reply, CallError>,
    ) -> Result<bool, CoreError> {
        let refused = match self.queue(queue) {
            Ok(queue) => {
                let now = clock::unix_now();
                let mut message = callback(call.id, said, queue.topic().clone());
                message.id = self.ids.next(now);
                message.expires_at = queue.append(&message, Priority::default(), None, now).expires_at;
                match self.move_reply((requests, call.sequence), queue.id(), message).await? {
                    Ok(_) => return Ok(true),
                    Err(refusal @ (Refusal::Full { .. } | Refusal::LowDisk { .. } | Refusal::Gone(_))) => {
                        CoreError::refused(refusal, |_| queue.name().to_string())
                    }
                    Err(refusal) => return Err(CoreError::refused(refusal, |id| id.0.to_string())),
                }
            }
            Err(gone) => gone,
        };
        self.diverted(call.id, &refused);
        Ok(false)
    }

    fn diverted(&self, id: MessageId, error: &CoreError) {
        Counts::add(&self.calls.stored.counts.diverted);
        tracing::debug!(%error, %id, "the reply to an asynchronous call cannot go where it was to go: it is kept");
    }

    /// Publishes a reply that is stored, if it is to be, and forgets it; else, or if that fails, it is there for its caller.
    async fn publish_reply(
        self: &Arc<Self>,
        replies: TargetId,
        sequence: Sequence,
        kept: Kept,
    ) -> Result<(), EngineError> {
        let stored = &self.calls.stored;
        let Kept { id, until, said, topic } = kept;
        if let Some(topic) = topic {
            let mut publisher = self.publisher(PublisherInfo { topics: Some(1), ..PublisherInfo::default() });
            publisher.publish(vec![Inbound::new(callback(id, &said, topic), 0)]);
            let mut receipts = Vec::new();
            publisher.completed(&mut receipts).await;
            match receipts.pop().map(|receipt| receipt.result) {
                Some(Ok(_)) => {
                    self.drop_reply(replies, sequence).await?;
                    stored.places.lock().forget(id);
                    return Ok(());
                }
                Some(Err(CoreError::Engine(error))) => return Err(error),
                Some(Err(error)) => self.diverted(id, &error),
                None => {}
            }
        }
        stored.places.lock().keep(id, sequence, until);
        // It may be over already.
        stored.looks.bell.ring();
        Ok(())
    }

    /// Publishes replies whose publishing an end of the broker has come before.
    pub(super) async fn publish_again(self: &Arc<Self>, replies: TargetId, places: Vec<Sequence>) {
        for sequence in places {
            let published = async {
                match self.kept_reply(replies, sequence).await? {
                    Some(kept) => self.publish_reply(replies, sequence, kept).await,
                    None => Ok(()),
                }
            };
            if let Err(error) = published.await {
                tracing::error!(%error, "the reply to an asynchronous call is not published");
            }
        }
    }
}

/// A reply as others get it; its correlation data is the id of the call.
fn callback(id: MessageId, said: &Result<Reply, CallError>, topic: TopicName) -> Message {
    let mut message = match said {
        Ok(reply) => {
            Message { topic, qos: Qos::AtLeastOnce, retain: false, expires_at: None, ..reply.message.clone() }
        }
        Err(error) => error_message(error, topic, Qos::AtLeastOnce),
    };
    message.extras_mut().correlation_data = Some(id.to_string().into());
    message
}
