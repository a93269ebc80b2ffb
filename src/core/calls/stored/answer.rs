//! What is said to stored calls, on its way to where it goes: a queue, a topic, or kept for who asks.

use std::sync::Arc;

use super::places::Waiting;
use super::record::{self, Kept};
use super::{Targets, no_such_call};
use crate::core::calls::published::error_message;
use crate::core::calls::shared::{OVERHEAD, weight_of, weight_of_fault};
use crate::core::calls::{CallError, Counts, Reply, ReplyTo};
use crate::core::{Broker, CoreError, Inbound, PublisherInfo};
use crate::engine::{EngineError, Op, Outcome, Refusal, View};
use crate::types::{Message, MessageId, Priority, Qos, QueueName, Sequence, TargetId, TopicName, clock};

impl Broker {
    pub(super) fn targets(&self, id: MessageId) -> Result<&Targets, CoreError> {
        self.calls.stored.targets.get().ok_or_else(|| no_such_call(id))
    }

    /// Sends the answer to a call where it is to go, and takes the call off the disk with it.
    pub(super) async fn answer_stored(self: Arc<Self>, call: Arc<Waiting>, said: Result<Reply, CallError>) {
        let passes = self.calls.stored.passing.begin(weight_of_said(&said));
        let said = said.map(|reply| Reply { latency: clock::unix_now().since(call.id.time()), ..reply });
        if let Err(error) = self.send_answer(&call, said).await {
            // It stays on disk, and is answered after the next start.
            tracing::error!(%error, id = %call.id, "the answer to a stored call cannot be stored");
        }
        drop(passes);
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
        let (until, service) = (clock::unix_now().after(stored.reply_ttl), call.service().clone());
        let mut kept = Kept { id: call.id, service, until, said, topic };
        let message = self.room_for(&mut kept);
        let moved = self.move_reply((requests, call.sequence, View::Leased), replies, message).await?;
        let sequence = moved.map_err(|refusal| CoreError::refused(refusal, |id| id.0.to_string()))?;
        self.publish_reply(replies, sequence, kept).await
    }

    /// Takes room among the replies that are kept, and gives the stored form; one for which there is no room is replaced by
    /// that. What is still to be published takes none.
    fn room_for(&self, kept: &mut Kept) -> Message {
        let stored = &self.calls.stored;
        let message = record::reply_message(kept);
        let mut places = stored.places.lock();
        if kept.topic.is_some() {
            places.restore_reply(kept.id, 0);
            return message;
        }
        if places.reply(kept.id, weight_of(&message), stored.room) {
            return message;
        }
        Counts::add(&stored.counts.refused);
        kept.said = Err(CallError::Broker(CoreError::Limit {
            what: "too many bytes of replies are kept (limits.async_call_bytes)".to_owned(),
            max: stored.room.bytes as u64,
        }));
        let message = record::reply_message(kept);
        places.restore_reply(kept.id, weight_of(&message));
        message
    }

    /// Takes a call, or its reply, off the disk and puts its reply there, in one act.
    async fn move_reply(
        &self,
        (from, sequence, view): (TargetId, Sequence, View),
        to: TargetId,
        message: Message,
    ) -> Result<Result<Sequence, Refusal>, EngineError> {
        let admitted = self.admission.admit(weight_of(&message)).await;
        let priority = Priority::default();
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
                match self.move_reply((requests, call.sequence, View::Leased), queue.id(), message).await? {
                    Ok(_) => return Ok(true),
                    Err(
                        refusal @ (Refusal::Full { .. }
                        | Refusal::Newer { .. }
                        | Refusal::LowDisk { .. }
                        | Refusal::Gone(_)),
                    ) => CoreError::refused(refusal, |_| queue.name().to_string()),
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
        mut sequence: Sequence,
        mut kept: Kept,
    ) -> Result<(), CoreError> {
        let stored = &self.calls.stored;
        if let Some(topic) = kept.topic.take() {
            let mut publisher = self.publisher(PublisherInfo { topics: Some(1), ..PublisherInfo::default() });
            publisher.publish(vec![Inbound::new(callback(kept.id, &kept.said, topic), 0)]);
            let mut receipts = Vec::new();
            publisher.completed(&mut receipts).await;
            match receipts.pop().map(|receipt| receipt.result) {
                Some(Ok(_)) => {
                    self.drop_reply(replies, sequence).await?;
                    stored.places.lock().forget(kept.id);
                    return Ok(());
                }
                Some(Err(CoreError::Engine(error))) => return Err(error.into()),
                Some(Err(error)) => self.diverted(kept.id, &error),
                None => return Err(EngineError::Stopped.into()),
            }
            // The next start is not to publish it again.
            kept.until = clock::unix_now().after(stored.reply_ttl);
            let message = self.room_for(&mut kept);
            let moved = self.move_reply((replies, sequence, View::Ready), replies, message).await?;
            sequence = moved.map_err(|refusal| CoreError::refused(refusal, |id| id.0.to_string()))?;
        }
        stored.places.lock().keep(kept.id, sequence, kept.until);
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

/// What is said takes so many bytes on its way.
fn weight_of_said(said: &Result<Reply, CallError>) -> usize {
    match said {
        Ok(reply) => weight_of(&reply.message),
        Err(CallError::Responder(fault)) => weight_of_fault(fault),
        Err(CallError::Broker(_)) => OVERHEAD,
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
