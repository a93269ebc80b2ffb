//! Wills: what is published when a client's connection is lost.
//!
//! A will is published when its delay is over or its session ends, whichever comes first, unless the client comes back
//! to the session before [5: MQTT-3.1.2-8, MQTT-3.1.3-9]. When the broker stops, what waits is published at once. Wills are
//! in memory alone: a crash of the broker publishes none.
//!
//! Invariants: no more wait than there are sessions that outlive their connection; of one client one waits. The will of
//! a connection is with its attachment until it is withdrawn, or left by whoever takes the connection off, the
//! connection itself or another: once, and before the next connection has the session.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Session;
use super::entry::{Attachment, SessionEntry, SessionKey};
use super::subscribe::QUEUE_PREFIX;
use crate::core::{Broker, CoreError, Inbound, Limits, Publisher, PublisherInfo};
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
        limits.check_message(message)?;
        let (len, max) = (message.weight(), limits.max_will_bytes);
        if len > max {
            let (len, max) = (len as u64, max as u64);
            return Err(CoreError::TooLarge { field: "payload".to_owned(), len, max, unit: "bytes" });
        }
        Ok(())
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
#[derive(Debug)]
enum Fate {
    /// The client has its session again, once this says so; if it never does, the session could not be opened.
    Held(oneshot::Receiver<Withdrawn>),
    /// The session has ended.
    Due,
}

/// The client has come back to the session.
#[derive(Debug)]
struct Withdrawn;

/// Keeps the will of a client from being published while its session is opened. Dropping it: it is published.
#[derive(Debug)]
pub(super) struct HeldWill(oneshot::Sender<Withdrawn>);

impl HeldWill {
    /// The client has its session again.
    pub(super) fn withdraw(self) {
        // The broker may have stopped.
        self.0.send(Withdrawn).ok();
    }
}

impl Wills {
    /// The client gets its session again: from now on the delay of the will does not count.
    pub(super) fn hold(&self, client: &ClientId) -> HeldWill {
        let (held, withdrawn) = oneshot::channel();
        self.decide(client, Fate::Held(withdrawn));
        HeldWill(held)
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
    /// The client takes its leave: there is no will any more. Of a connection that was taken off it is left already.
    pub fn withdraw_will(&self) {
        *self.attachment.will.lock() = None;
    }

    /// The connection is lost: its will, if it still has one, is published by the rules of the module. `publisher` gives that
    /// of the connection: a will without a delay comes behind all that the client itself has published.
    ///
    /// Never waits.
    pub fn leave_will<'a>(&self, publisher: impl FnOnce() -> &'a mut Publisher) {
        self.broker.leave_will(&self.entry, &self.attachment, |will, now| will.publish(publisher(), now));
    }
}

impl Broker {
    /// Leaves the will of a connection that is being taken off, if it has one.
    pub(super) fn leave_will_of(self: &Arc<Self>, entry: &SessionEntry, attachment: &Attachment) {
        self.leave_will(entry, attachment, |will, now| {
            will.publish(&mut self.will_publisher(entry.key, entry.client_id.clone()), now);
        });
    }

    /// `publish` publishes one that does not wait.
    fn leave_will(
        self: &Arc<Self>,
        entry: &SessionEntry,
        attachment: &Attachment,
        publish: impl FnOnce(Box<Will>, UnixMillis),
    ) {
        // Under this lock: who finds no will knows that it is left.
        let mut waiting = self.pubsub.wills.waiting.lock();
        let Some(will) = attachment.will.lock().take() else { return };
        let lasts = {
            let state = entry.state.lock();
            if state.ended || entry.target.is_none() { Duration::ZERO } else { state.expiry }
        };
        let delay = will.delay.min(lasts);
        if delay.is_zero() || self.draining.is_cancelled() {
            drop(waiting);
            return publish(will, clock::unix_now());
        }
        let (told, fate) = oneshot::channel();
        waiting.next += 1;
        let number = waiting.next;
        let (key, client) = (entry.key, entry.client_id.clone());
        // One that waits still is of an earlier connection, and would have been told.
        waiting.by_client.insert(client.clone(), (number, told));
        drop(waiting);
        let waits = Arc::clone(&self.pubsub.wills.waiting);
        let broker = Arc::clone(self);
        self.tasks.spawn(async move {
            let publishes = tokio::select! {
                biased;
                // Whoever has come back first keeps it, also when the broker stops before this is looked at.
                fate = fate => match fate {
                    Ok(Fate::Held(withdrawn)) => withdrawn.await.is_err(),
                    Ok(Fate::Due) | Err(_) => true,
                },
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
                will.publish(&mut broker.will_publisher(key, client), clock::unix_now());
            }
        });
    }

    fn will_publisher(self: &Arc<Self>, session: SessionKey, client: ClientId) -> Publisher {
        let (client_id, no_local) = (Some(client), Some(session));
        self.publisher(PublisherInfo { client_id, no_local, ..PublisherInfo::default() })
    }
}
