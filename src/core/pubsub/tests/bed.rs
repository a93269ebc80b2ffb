//! What the tests stand on: a broker over a store in a directory of its own, an inbox in place of a connection, and
//! an engine whose tickets a test can hold back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::{Notify, watch};

use crate::core::share::ShareGroup;
use crate::core::{
    Broker, CloseReason, CoreError, Inbound, Limits, Offer, OpenSession, Opened, Outbox, Publisher,
    PublisherInfo, Receipt, Session, SessionDelivery,
};
use crate::engine::backup::{BackingUp, BackupError};
use crate::engine::embedded::Embedded;
use crate::engine::settings::EngineSettings;
use crate::engine::{
    Capabilities, Consumer, ConsumerOptions, Durability, Engine, EngineError, Health, LeaseError, LeaseRef,
    Nack, Op, Outcome, Page, Pending, QueueSpec, Removed, Settled, Stored, StreamReader, StreamStats,
    SubscribeOptions, TargetStats, Ticket, Usage, View,
};
use crate::types::topic::FilterSpec;
use crate::types::{
    BackupName, ClientId, Message, MessageId, Qos, QueueName, Sequence, TargetId, TopicFilter, TopicName,
    UnixMillis,
};

pub(in crate::core) fn topic(text: &str) -> TopicName {
    text.parse().unwrap()
}

pub(in crate::core) fn filter(text: &str) -> FilterSpec {
    text.parse().unwrap()
}

pub(in crate::core) fn options(max_qos: Qos) -> SubscribeOptions {
    SubscribeOptions { max_qos, ..SubscribeOptions::default() }
}

pub(in crate::core) fn message(to: &str, payload: &str, qos: Qos) -> Message {
    Message {
        id: MessageId::from_u128(0),
        topic: topic(to),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        qos,
        retain: false,
        expires_at: None,
        extras: None,
    }
}

pub(in crate::core) fn qos1(to: &str, payload: &str) -> Message {
    message(to, payload, Qos::AtLeastOnce)
}

/// Fails the test when something takes too long.
pub(in crate::core) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("took too long")
}

/// Keeps a paused clock from running on its own while the store is at work.
pub(in crate::core) struct StillClock(
    #[expect(dead_code, reason = "its drop ends the task")] std::sync::mpsc::Sender<()>,
);

impl StillClock {
    pub(in crate::core) fn new() -> Self {
        let (end, ended) = std::sync::mpsc::channel();
        drop(tokio::task::spawn_blocking(move || ended.recv().is_err()));
        Self(end)
    }
}

/// A delivery as an inbox got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::core) struct Got {
    pub(in crate::core) topic: String,
    pub(in crate::core) payload: String,
    pub(in crate::core) qos: Qos,
    pub(in crate::core) retain: bool,
    pub(in crate::core) identifiers: Vec<u32>,
}

/// Stands for a connection.
#[derive(Default)]
pub(in crate::core) struct Inbox {
    pub(in crate::core) got: Mutex<Vec<Got>>,
    pub(in crate::core) shared: Mutex<Vec<(Arc<ShareGroup>, Message)>>,
    pub(in crate::core) calls: Mutex<usize>,
    pub(in crate::core) closed: Mutex<Option<CloseReason>>,
    /// Beyond it deliveries are dropped.
    pub(in crate::core) bound: Option<usize>,
    pub(in crate::core) backlog: Mutex<usize>,
    pub(in crate::core) changed: Notify,
}

impl Outbox for Inbox {
    fn offer(&self, deliveries: &[Offer<'_>]) -> usize {
        assert!(!deliveries.is_empty());
        *self.calls.lock() += 1;
        let mut got = self.got.lock();
        let room = self.bound.map_or(usize::MAX, |bound| bound.saturating_sub(got.len()));
        for offer in deliveries.iter().take(room) {
            got.push(Got {
                topic: offer.message.topic.to_string(),
                payload: String::from_utf8(offer.message.payload.to_vec()).unwrap(),
                qos: offer.qos,
                retain: offer.retain,
                identifiers: offer.identifiers.iter().map(|id| id.get()).collect(),
            });
            if let Some(group) = offer.share {
                self.shared.lock().push((Arc::clone(group), offer.message.clone()));
            }
        }
        self.changed.notify_one();
        deliveries.len().saturating_sub(room)
    }

    fn close(&self, reason: CloseReason) {
        self.closed.lock().get_or_insert(reason);
        self.changed.notify_one();
    }

    fn backlog(&self) -> usize {
        *self.backlog.lock()
    }
}

impl Inbox {
    pub(in crate::core) fn take(&self) -> Vec<Got> {
        std::mem::take(&mut self.got.lock())
    }

    pub(in crate::core) fn payloads(&self) -> Vec<String> {
        self.take().into_iter().map(|got| got.payload).collect()
    }

    /// Waits until there are so many, and takes them.
    pub(in crate::core) async fn next(&self, count: usize) -> Vec<Got> {
        within(async {
            while self.got.lock().len() < count {
                self.changed.notified().await;
            }
        })
        .await;
        self.take()
    }

    pub(in crate::core) async fn closed(&self) -> CloseReason {
        within(async {
            loop {
                if let Some(reason) = *self.closed.lock() {
                    return reason;
                }
                self.changed.notified().await;
            }
        })
        .await
    }
}

/// A broker in a directory.
pub(in crate::core) struct Bed {
    pub(in crate::core) broker: Arc<Broker>,
    pub(in crate::core) engine: Arc<Held>,
    pub(in crate::core) dir: Arc<TempDir>,
    limits: Limits,
}

impl Bed {
    pub(in crate::core) async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub(in crate::core) async fn with(limits: Limits) -> Self {
        Self::open(Arc::new(tempfile::tempdir().unwrap()), limits, None).await
    }

    async fn open(dir: Arc<TempDir>, limits: Limits, damaged: Option<Sequence>) -> Self {
        let settings = EngineSettings {
            data_dir: dir.path().to_owned(),
            durability: Durability::Memory,
            watermark_free_bytes: 0,
            ballast_bytes: 0,
            ..EngineSettings::default()
        };
        let engine = Arc::new(Held::new(Embedded::open(settings).unwrap(), damaged));
        let broker = Broker::open(engine.clone(), limits.clone()).await.unwrap();
        Self { broker, engine, dir, limits }
    }

    /// Stops everything and starts it again on what is stored.
    pub(in crate::core) async fn again(self) -> Self {
        self.broker.drain();
        within(self.broker.drained()).await;
        drop(self.broker);
        let engine = self.engine;
        let damaged = *engine.damaged.lock();
        let closing = tokio::task::spawn_blocking(move || {
            engine.close().unwrap();
            drop(engine);
        });
        closing.await.unwrap();
        Self::open(self.dir, self.limits, damaged).await
    }

    pub(in crate::core) async fn open_as(
        &self,
        client: &str,
        clean_start: bool,
        expiry: Duration,
        inbox: &Arc<Inbox>,
    ) -> Result<Opened, CoreError> {
        let open = OpenSession {
            client_id: Some(ClientId::parse(client.to_owned()).unwrap()),
            clean_start,
            expiry,
            principal: "p".into(),
            outbox: inbox.clone(),
            will: None,
        };
        within(self.broker.open_session(open)).await
    }

    /// A session that ends with its connection.
    pub(in crate::core) async fn transient(&self, client: &str) -> (Session, Arc<Inbox>) {
        let inbox = Arc::new(Inbox::default());
        let opened = self.open_as(client, true, Duration::ZERO, &inbox).await.unwrap();
        assert!(!opened.present && !opened.session.is_durable());
        (opened.session, inbox)
    }

    /// A session that outlives its connection by an hour, new or not.
    pub(in crate::core) async fn durable(&self, client: &str) -> (Session, Arc<Inbox>, bool) {
        let inbox = Arc::new(Inbox::default());
        let opened = self.open_as(client, false, Duration::from_secs(3600), &inbox).await.unwrap();
        assert!(opened.session.is_durable());
        (opened.session, inbox, opened.present)
    }

    pub(in crate::core) fn publisher(&self) -> Publisher {
        self.broker.publisher(PublisherInfo::default())
    }

    pub(in crate::core) async fn queue(&self, name: &str, change: impl FnOnce(&mut QueueSpec)) {
        let name = QueueName::parse(name.to_owned()).unwrap();
        let mut spec = crate::core::queues::define::plain_queue(name, &self.limits, UnixMillis(0));
        change(&mut spec);
        within(self.broker.create_queue(spec, false)).await.unwrap();
    }

    pub(in crate::core) fn ready_in(&self, queue: &str) -> u64 {
        let queue = self.broker.queues().get(queue).unwrap();
        self.engine.stats(queue.id()).unwrap().ready
    }
}

pub(in crate::core) async fn subscribe(
    session: &Session,
    filters: &[(&str, SubscribeOptions)],
) -> Vec<Result<Qos, CoreError>> {
    let filters = filters.iter().map(|(text, options)| (filter(text), *options)).collect();
    within(session.subscribe(filters)).await
}

/// Publishes and waits for all receipts.
pub(in crate::core) async fn publish(publisher: &mut Publisher, messages: Vec<Message>) -> Vec<Receipt> {
    let count = messages.len();
    publisher
        .publish(messages.into_iter().zip(1..).map(|(message, tag)| Inbound::new(message, tag)).collect());
    receipts(publisher, count).await
}

pub(in crate::core) async fn receipts(publisher: &mut Publisher, count: usize) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    within(async {
        while receipts.len() < count {
            publisher.completed(&mut receipts).await;
        }
    })
    .await;
    receipts
}

/// Takes so many stored messages.
pub(in crate::core) async fn take(session: &Session, count: usize) -> Vec<SessionDelivery> {
    let mut taken = Vec::new();
    within(async {
        loop {
            session.take(count - taken.len(), usize::MAX, &mut taken).unwrap();
            if taken.len() >= count {
                return;
            }
            session.ready().await;
        }
    })
    .await;
    taken
}

pub(in crate::core) fn texts(deliveries: &[SessionDelivery]) -> Vec<String> {
    let text =
        |delivery: &SessionDelivery| String::from_utf8(delivery.leased.message.payload.to_vec()).unwrap();
    deliveries.iter().map(text).collect()
}

/// An engine that holds back the completion of commits while it is told to.
#[derive(Debug)]
pub(in crate::core) struct Held {
    inner: Embedded,
    holding: Mutex<Option<VecDeque<HeldTicket>>>,
    pub(in crate::core) health: watch::Sender<Health>,
    /// Looking at messages fails, with this.
    pub(in crate::core) blind: Mutex<Option<EngineError>>,
    /// What is at this place cannot be looked at, in whatever target.
    pub(in crate::core) damaged: Mutex<Option<Sequence>>,
}

type HeldTicket = (Ticket, tokio::sync::oneshot::Sender<Result<Vec<Outcome>, EngineError>>);

impl Held {
    fn new(inner: Embedded, damaged: Option<Sequence>) -> Self {
        Self {
            inner,
            holding: Mutex::default(),
            health: watch::Sender::new(Health::Ok),
            blind: Mutex::default(),
            damaged: Mutex::new(damaged),
        }
    }

    /// From now on tickets do not complete.
    pub(in crate::core) fn hold(&self) {
        self.holding.lock().get_or_insert_default();
    }

    /// All tickets complete, and later ones as they do.
    pub(in crate::core) async fn release(&self) {
        let held = self.holding.lock().take().unwrap_or_default();
        for (ticket, reply) in held {
            reply.send(ticket.await).ok();
        }
    }
}

impl Engine for Held {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }
    fn boot(&self) -> u64 {
        self.inner.boot()
    }
    fn secret(&self) -> [u8; 16] {
        self.inner.secret()
    }
    fn stored(&self) -> Stored {
        self.inner.stored()
    }
    fn next_target(&self) -> TargetId {
        self.inner.next_target()
    }
    fn commit(&self, ops: Vec<Op>) -> Ticket {
        let mut holding = self.holding.lock();
        let ticket = self.inner.commit(ops);
        let Some(held) = &mut *holding else { return ticket };
        let (reply, outer) = Ticket::new();
        held.push_back((ticket, reply));
        outer
    }
    fn consumer(&self, target: TargetId, options: ConsumerOptions) -> Result<Box<dyn Consumer>, EngineError> {
        self.inner.consumer(target, options)
    }
    fn stream_reader(
        &self,
        target: TargetId,
        filter: Option<TopicFilter>,
    ) -> Result<Box<dyn StreamReader>, EngineError> {
        self.inner.stream_reader(target, filter)
    }
    fn stream_stats(&self, target: TargetId) -> Result<StreamStats, EngineError> {
        self.inner.stream_stats(target)
    }
    fn stream_at(&self, target: TargetId, time: UnixMillis) -> Result<Sequence, EngineError> {
        self.inner.stream_at(target, time)
    }
    fn settle(&self, target: TargetId, leases: &[LeaseRef]) -> Result<Settled, EngineError> {
        self.inner.settle(target, leases)
    }
    fn nack(
        &self,
        target: TargetId,
        leases: &[LeaseRef],
        how: Nack,
        delay: Option<Duration>,
    ) -> Result<Settled, EngineError> {
        self.inner.nack(target, leases, how, delay)
    }
    fn extend(
        &self,
        target: TargetId,
        leases: &[LeaseRef],
        lease: Duration,
    ) -> Result<Vec<(usize, LeaseError)>, EngineError> {
        self.inner.extend(target, leases, lease)
    }
    fn browse(
        &self,
        target: TargetId,
        view: View,
        from: Sequence,
        max: usize,
        max_bytes: usize,
    ) -> Pending<Page> {
        if let Some(error) = self.blind.lock().clone() {
            return Box::pin(std::future::ready(Err(error)));
        }
        let page = self.inner.browse(target, view, from, max, max_bytes);
        let damaged = *self.damaged.lock();
        Box::pin(async move {
            let mut page = page.await?;
            let at = page.messages.iter().position(|found| Some(found.sequence) == damaged);
            if let Some((at, damaged)) = at.zip(damaged) {
                if damaged == from {
                    return Err(EngineError::Damaged("on purpose".to_owned()));
                }
                page.messages.truncate(at);
                page.next = Some(damaged);
            }
            Ok(page)
        })
    }
    fn purge(&self, target: TargetId, view: View) -> Result<Ticket<u64>, EngineError> {
        self.inner.purge(target, view)
    }
    fn remove(&self, target: TargetId, view: View, sequences: &[Sequence]) -> Result<Removed, EngineError> {
        self.inner.remove(target, view, sequences)
    }
    fn stats(&self, target: TargetId) -> Result<TargetStats, EngineError> {
        self.inner.stats(target)
    }
    fn oldest(&self, target: TargetId) -> Pending<Option<UnixMillis>> {
        self.inner.oldest(target)
    }

    fn usage(&self, target: TargetId) -> Result<Usage, EngineError> {
        self.inner.usage(target)
    }

    fn back_up(&self, name: &BackupName) -> Result<BackingUp, BackupError> {
        self.inner.back_up(name)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.inner.counters()
    }
    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }
    fn close(&self) -> Result<(), EngineError> {
        self.inner.close()
    }
}

pub(in crate::core) fn binding(text: &str) -> TopicFilter {
    text.parse().unwrap()
}
