//! Wills: what is published when a client's connection is lost.
//!
//! A will is published when its delay is over or its session ends, whichever comes first, unless the client comes back
//! to the session before [5: MQTT-3.1.2-8, MQTT-3.1.3-9]. When the broker stops, what waits is published at once. Wills are
//! in memory alone: a crash of the broker publishes none.
//!
//! Invariants: no more wait than there are sessions that outlive their connection; of one client one waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Session;
use super::subscribe::QUEUE_PREFIX;
use crate::core::{CoreError, Inbound, Limits, Publisher, PublisherInfo};
use crate::types::{ClientId, UnixMillis, clock};

/// See the module.
#[derive(Debug, Clone)]
pub struct Will {
    inbound: Inbound,
    delay: Duration,
    expiry: Option<Duration>,
}

impl Will {
    /// Publishes `inbound`, `delay` after the connection's end; it expires `expiry` after it is published, whatever the
    /// message says. Holds no part of the buffer that it came in.
    #[must_use]
    pub fn new(mut inbound: Inbound, delay: Duration, expiry: Option<Duration>) -> Self {
        inbound.message = inbound.message.detached();
        // The broker sees to what waits for the store.
        inbound.receipt = false;
        Self { inbound, delay, expiry }
    }

    /// Whether it can be published when its time comes, as far as that is known before.
    ///
    /// # Errors
    /// [`CoreError::Invalid`], [`CoreError::TooLarge`].
    pub fn check(&self, limits: &Limits) -> Result<(), CoreError> {
        let message = &self.inbound.message;
        let topic = &message.topic;
        if topic.is_reserved() && !topic.as_str().starts_with(QUEUE_PREFIX) {
            let what = format!("`{topic}`: names that begin with `$` are the server's");
            return Err(CoreError::invalid("topic", what));
        }
        limits.check_message(message)
    }

    fn publish(mut self, publisher: &mut Publisher, now: UnixMillis) {
        self.inbound.message.expires_at = self.expiry.map(|expiry| now.after(expiry));
        publisher.publish(vec![self.inbound]);
    }
}

/// Those that wait.
#[derive(Debug, Default)]
pub(crate) struct Wills {
    waiting: Arc<Mutex<Waiting>>,
}

/// Who is told whether the will of a client is published after all.
#[derive(Debug, Default)]
struct Waiting {
    by_client: HashMap<ClientId, (u64, oneshot::Sender<Fate>)>,
    next: u64,
}

/// What becomes of a will before its delay is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The client has come back to the session.
    Withdrawn,
    /// The session has ended.
    Due,
}

impl Wills {
    /// The client has its session again.
    pub(super) fn came_back(&self, client: &ClientId) {
        self.decide(client, Fate::Withdrawn);
    }

    /// The session of the client is at its end.
    pub(super) fn session_ended(&self, client: &ClientId) {
        self.decide(client, Fate::Due);
    }

    fn decide(&self, client: &ClientId, fate: Fate) {
        if let Some((_, told)) = self.waiting.lock().by_client.remove(client) {
            // The task may be publishing already: the delay was over.
            told.send(fate).ok();
        }
    }
}

impl Session {
    /// The connection is lost: its will is published by the rules of the module. `publisher` is that of the connection: a
    /// will without a delay comes behind all that the client itself has published.
    ///
    /// Never waits.
    pub fn leave_will(&self, will: Box<Will>, publisher: &mut Publisher) {
        let (broker, entry) = (&self.broker, &self.entry);
        let mut waiting = broker.pubsub.wills.waiting.lock();
        let lasts = {
            let state = entry.state.lock();
            if state.ended || entry.target.is_none() { Duration::ZERO } else { state.expiry }
        };
        let delay = will.delay.min(lasts);
        if delay.is_zero() || broker.draining.is_cancelled() {
            drop(waiting);
            return will.publish(publisher, clock::unix_now());
        }
        // Whoever has the session now has come back to it already.
        if !entry.has(&self.attachment) {
            return;
        }
        let (told, fate) = oneshot::channel();
        waiting.next += 1;
        let number = waiting.next;
        let client = entry.client_id.clone();
        // One that waits still is of an earlier connection, and would have been told.
        waiting.by_client.insert(client.clone(), (number, told));
        drop(waiting);
        let waits = Arc::clone(&broker.pubsub.wills.waiting);
        let broker = Arc::clone(broker);
        self.broker.tasks.spawn(async move {
            let publishes = tokio::select! {
                biased;
                // Whoever has come back first keeps it, also when the broker stops before this is looked at.
                fate = fate => fate != Ok(Fate::Withdrawn),
                () = tokio::time::sleep(delay) => true,
                () = broker.draining.cancelled() => true,
            };
            {
                let mut waiting = waits.lock();
                if waiting.by_client.get(&client).is_some_and(|(other, _)| *other == number) {
                    waiting.by_client.remove(&client);
                }
            }
            if publishes {
                let info = PublisherInfo { client_id: Some(client), ..PublisherInfo::default() };
                will.publish(&mut broker.publisher(info), clock::unix_now());
            }
        });
    }
}
