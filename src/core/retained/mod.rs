//! The retained value of each topic, in memory; the engine has them on disk.
//!
//! Values lie in shards by first level, each a sorted map under a lock. A value is set and pushed to those who
//! subscribe to it under the lock of its shard; a new subscription is in the router before its retained values are
//! read under the same lock. So whoever subscribes sees every value from then on, and none after a newer one.
//!
//! Invariants:
//! - values are set in the order of their commits (see `order`): what is here is what a restart finds;
//! - `busy` of a shard counts the values on their way to the disk; at QoS 0 a value is set at once only while it
//!   is 0, else it takes its turn.

pub(crate) mod order;
pub(crate) mod replay;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::delivery::{self, Lot, Offer};
use super::publisher::batch::Run;
use super::publisher::{Inbound, Sender};
use super::route::{self, Target};
use super::system::may_clear;
use super::{Broker, CoreError, Limits};
use crate::engine::{Op, Publish};
use crate::types::{ClientId, Message, Qos, TopicFilter, TopicName, UnixMillis, clock};
use order::Order;

/// How many shards there are.
const SHARDS: usize = 64;
/// What a value costs in memory beside its [`Message::weight`].
const OVERHEAD: usize = 256;

/// All retained values.
pub(crate) struct Retained {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    count: AtomicUsize,
    bytes: AtomicUsize,
    /// Counts the values that were set.
    version: AtomicU64,
    max: usize,
    max_bytes: usize,
    order: Mutex<Order>,
}

#[derive(Default)]
struct Shard {
    values: BTreeMap<TopicName, Kept>,
    busy: usize,
}

struct Kept {
    message: Message,
    /// When it was set; see [`Retained::version`].
    version: u64,
}

impl Retained {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            version: AtomicU64::new(0),
            max: limits.max_retained,
            max_bytes: limits.max_retained_bytes,
            order: Mutex::default(),
        }
    }

    /// Takes in what was stored.
    pub(crate) fn restore(&self, messages: Vec<Message>) {
        for message in messages {
            let mut shard = self.shard(&message.topic);
            self.set(&mut shard, message);
        }
    }

    fn shard_index(&self, first_level: &str) -> usize {
        (self.hasher.hash_one(first_level) % SHARDS as u64) as usize
    }

    fn shard_at(&self, index: usize) -> Option<MutexGuard<'_, Shard>> {
        self.shards.get(index).map(Mutex::lock)
    }

    #[expect(clippy::indexing_slicing, reason = "the index is below the number of shards")]
    fn shard(&self, topic: &TopicName) -> MutexGuard<'_, Shard> {
        self.shards[self.shard_index(topic.first_level())].lock()
    }

    /// The shards in which a filter can have matches.
    fn shards_of(&self, filter: &TopicFilter) -> std::ops::Range<usize> {
        if filter.starts_with_wildcard() {
            0..SHARDS
        } else {
            let index = self.shard_index(filter.first_level());
            index..index + 1
        }
    }

    /// Whether one more value may be kept. Not exact while others are on their way.
    pub(crate) fn check_room(&self, message: &Message) -> Result<(), CoreError> {
        if message.payload.is_empty() {
            return Ok(());
        }
        let (count, bytes) = (self.count.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        let full = if count >= self.max {
            ("retained values", self.max)
        } else if bytes + message.weight() + OVERHEAD > self.max_bytes {
            ("bytes of retained values", self.max_bytes)
        } else {
            return Ok(());
        };
        if count < self.max || !self.shard(&message.topic).values.contains_key(&message.topic) {
            return Err(CoreError::Limit { what: format!("too many {}", full.0), max: full.1 as u64 });
        }
        Ok(())
    }

    /// Whether a value of the topic's shard is on its way to the disk.
    pub(crate) fn is_busy(&self, topic: &TopicName) -> bool {
        self.shard(topic).busy > 0
    }

    /// Counts values that are about to be committed. Returns whether there are any.
    pub(crate) fn reserve<'a>(&self, messages: impl Iterator<Item = &'a Message>) -> bool {
        messages.map(|message| self.shard(&message.topic).busy += 1).count() > 0
    }

    /// One that was reserved is not set.
    pub(crate) fn give_up(&self, topic: &TopicName) {
        let mut shard = self.shard(topic);
        shard.busy = shard.busy.saturating_sub(1);
    }

    /// Sets the value and offers the message to those of its targets that are live; `stored` says whether it was
    /// reserved and is on disk. One that is not is committed now, and nobody waits.
    pub(crate) fn publish(&self, item: &Inbound, run: &Run, stored: bool, sender: &mut Sender<'_>) {
        let message = &item.message;
        let mut shard = self.shard(&message.topic);
        // First the count, then the routing: a subscription that is not in this routing reads the values after its
        // own look at the count, and so after this one is set.
        self.version.fetch_add(1, Ordering::AcqRel);
        if stored {
            shard.busy = shard.busy.saturating_sub(1);
        } else {
            drop(sender.broker.engine.commit(vec![keep(message.clone(), sender.name)]));
        }
        self.set(&mut shard, detached(message, sender.name));

        let routing = sender.broker.routes.now();
        let messages = std::slice::from_ref(item);
        if routing.epoch(message.topic.first_level()) == run.epoch {
            sender.fan.offer(std::iter::once(Lot { messages, targets: &run.targets }), sender.name);
            return;
        }
        // Subscriptions have changed since it was routed. Who came later is offered it, the engine has nothing
        // of it for them.
        let targets = route::targets(&routing, &message.topic, sender.no_local);
        sender.fan.offer(std::iter::once(Lot { messages, targets: &targets }), sender.name);
        for target in &*targets {
            let Target::Session(session) = target else { continue };
            if session.stores(message.qos) && !run.has(session.entry.key) {
                let offer = Offer {
                    message,
                    qos: session.granted(message.qos),
                    retain: session.retain_as_published,
                    identifiers: &session.identifiers,
                    share: None,
                    publisher: sender.name,
                };
                delivery::offer(&session.entry, &[offer]);
            }
        }
    }

    /// Sets a value that is not stored, and offers it to who subscribes to it.
    pub(crate) fn set_unstored(&self, item: &Inbound, sender: &mut Sender<'_>) {
        let topic = &item.message.topic;
        let mut shard = self.shard(topic);
        // As in `publish`: first the count, then the routing.
        self.version.fetch_add(1, Ordering::AcqRel);
        self.set(&mut shard, item.message.clone());
        let targets = route::targets(&sender.broker.routes.now(), topic, None);
        let messages = std::slice::from_ref(item);
        sender.fan.offer(std::iter::once(Lot { messages, targets: &targets }), None);
    }

    /// Sets a value, or removes it if the payload is empty [MQTT-3.3.1-6].
    fn set(&self, shard: &mut Shard, message: Message) {
        self.remove(shard, &message.topic);
        if message.payload.is_empty() {
            return;
        }
        let version = self.version.load(Ordering::Acquire);
        if !message.topic.is_reserved() {
            self.bytes.fetch_add(message.weight() + OVERHEAD, Ordering::Relaxed);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        shard.values.insert(message.topic.clone(), Kept { message, version });
    }

    /// Removes a value. Returns whether there was one.
    fn remove(&self, shard: &mut Shard, topic: &TopicName) -> bool {
        let Some(old) = shard.values.remove(topic) else { return false };
        if !topic.is_reserved() {
            self.bytes.fetch_sub(old.message.weight() + OVERHEAD, Ordering::Relaxed);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        true
    }

    /// How many there are, and what they take in memory in bytes; those of the server's own aside.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.count.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    fn list(
        &self,
        filter: &TopicFilter,
        after: Option<&TopicName>,
        limit: usize,
        now: UnixMillis,
    ) -> Vec<Message> {
        let mut found: Vec<Message> = Vec::new();
        for index in self.shards_of(filter) {
            let Some(shard) = self.shard_at(index) else { continue };
            let of_shard =
                shard.matches(filter, after).filter(|kept| !kept.message.is_expired(now)).take(limit);
            found.extend(of_shard.map(|kept| kept.message.clone()));
        }
        found.sort_unstable_by(|a, b| a.topic.cmp(&b.topic));
        found.truncate(limit);
        found
    }

    /// Topics of one shard whose values have expired.
    fn expired(&self, index: usize, now: UnixMillis) -> Vec<TopicName> {
        let Some(shard) = self.shard_at(index) else { return Vec::new() };
        let expired = shard.values.values().filter(|kept| kept.message.is_expired(now));
        expired.map(|kept| kept.message.topic.clone()).collect()
    }
}

impl Shard {
    /// The values that a filter matches, by topic, those after `after`.
    fn matches<'a>(
        &'a self,
        filter: &'a TopicFilter,
        after: Option<&TopicName>,
    ) -> impl Iterator<Item = &'a Kept> + 'a {
        let prefix = filter.literal_prefix();
        let from = match after {
            Some(after) if after.as_str() >= prefix => Bound::Excluded(after.as_str().to_owned()),
            _ => Bound::Included(prefix.to_owned()),
        };
        let literal = !filter.is_wildcard();
        self.values
            .range::<str, _>((from.as_ref().map(String::as_str), Bound::Unbounded))
            .take_while(
                move |(topic, _)| {
                    if literal { topic.as_str() == prefix } else { topic.as_str().starts_with(prefix) }
                },
            )
            .filter(|(topic, _)| filter.matches(topic))
            .map(|(_, kept)| kept)
    }
}

/// A message as it is kept: with memory of its own, and its publisher's name.
fn detached(message: &Message, publisher: Option<&ClientId>) -> Message {
    let mut kept = message.detached();
    if let Some(name) = publisher {
        kept.extras_mut().publisher = Some(name.clone());
    }
    kept
}

/// Keeps a value that nobody waits for.
fn keep(mut message: Message, publisher: Option<&ClientId>) -> Op {
    if let Some(name) = publisher {
        message.extras_mut().publisher = Some(name.clone());
    }
    Op::Publish(Publish {
        message,
        targets: Default::default(),
        retain: true,
        newest_only: true,
        incoming: None,
    })
}

/// Removes a value.
fn clear(topic: TopicName, broker: &Broker) -> Op {
    keep(
        Message {
            id: broker.ids.next_now(),
            topic,
            payload: Default::default(),
            qos: Qos::AtMostOnce,
            retain: true,
            expires_at: None,
            extras: None,
        },
        None,
    )
}

/// How many values one commit of [`Broker::delete_retained`] removes.
const DELETE_AT_ONCE: usize = 512;

impl Broker {
    /// The retained value of a topic.
    #[must_use]
    pub fn retained(&self, topic: &TopicName) -> Option<Message> {
        let shard = self.pubsub.retained.shard(topic);
        let message = shard.values.get(topic).map(|kept| kept.message.clone());
        message.filter(|message| !message.is_expired(clock::unix_now()))
    }

    /// The retained values that a filter matches, by topic in byte order, at most `limit`, those after `after`.
    #[must_use]
    pub fn list_retained(
        &self,
        filter: &TopicFilter,
        after: Option<&TopicName>,
        limit: usize,
    ) -> Vec<Message> {
        self.pubsub.retained.list(filter, after, limit, clock::unix_now())
    }

    /// Removes the retained values that a filter matches, and returns how many there were when that is durable.
    /// Nobody is told.
    ///
    /// Dropping the future may leave some.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for the server's own values, [`CoreError::Engine`], [`CoreError::LowDisk`].
    pub async fn delete_retained(self: &Arc<Self>, filter: &TopicFilter) -> Result<u64, CoreError> {
        may_clear(filter)?;
        let mut deleted = 0;
        let mut after: Option<TopicName> = None;
        loop {
            let found = self.pubsub.retained.list(filter, after.as_ref(), DELETE_AT_ONCE, UnixMillis(0));
            let Some(last) = found.last() else { return Ok(deleted) };
            after = Some(last.topic.clone());
            deleted += self.clear_retained(found.into_iter().map(|message| message.topic).collect()).await?;
        }
    }

    /// Removes values whose time is over, and returns the shard to look at next.
    pub(crate) async fn sweep_retained(self: &Arc<Self>, shard: usize) -> usize {
        let expired = self.pubsub.retained.expired(shard, clock::unix_now());
        for topics in expired.chunks(DELETE_AT_ONCE) {
            if let Err(error) = self.clear_retained(topics.to_vec()).await {
                tracing::debug!(%error, "expired retained values stay for now");
            }
        }
        (shard + 1) % SHARDS
    }
}

impl fmt::Debug for Retained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retained").field("count", &self.size().0).finish_non_exhaustive()
    }
}
