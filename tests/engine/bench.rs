//! A place for an engine to stand in, and short words for what is asked of it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stafett::engine::embedded::Embedded;
use stafett::engine::{
    Append, Consumer, ConsumerOptions, Definition, Durability, Engine, EngineSettings, LeaseRef, Leased, Op,
    Outcome, Publish, QueueSpec, Refusal, SessionSpec,
};
use stafett::types::{
    ClientId, Message, MessageIds, Qos, QueueName, Sequence, TargetId, TopicName, UnixMillis,
};
use tempfile::TempDir;

/// Nothing here takes longer, whatever else the machine does.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Bench {
    dir: Arc<TempDir>,
    pub(crate) engine: Arc<Embedded>,
    ids: MessageIds,
    durability: Durability,
}

pub(crate) fn settings(dir: &std::path::Path, durability: Durability) -> EngineSettings {
    EngineSettings {
        data_dir: dir.to_owned(),
        durability,
        ballast_bytes: 0,
        watermark_free_bytes: 1 << 20,
        callers_wait: Duration::from_secs(60),
        ..EngineSettings::default()
    }
}

/// What a closed engine leaves.
pub(crate) struct Closed {
    pub(crate) dir: Arc<TempDir>,
    ids: MessageIds,
    durability: Durability,
}

impl Closed {
    pub(crate) fn open(self) -> Bench {
        self.open_with(|_| {})
    }

    pub(crate) fn open_with(self, change: impl FnOnce(&mut EngineSettings)) -> Bench {
        let Self { dir, ids, durability } = self;
        let mut settings = settings(dir.path(), durability);
        change(&mut settings);
        let engine = Arc::new(Embedded::open(settings).unwrap());
        Bench { dir, engine, ids, durability }
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(Durability::Fsync)
    }

    pub(crate) fn with(durability: Durability) -> Self {
        let dir = Arc::new(TempDir::new().unwrap());
        let engine = Arc::new(Embedded::open(settings(dir.path(), durability)).unwrap());
        Self { dir, engine, ids: MessageIds::new(), durability }
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Closes the engine.
    pub(crate) fn close(self) -> Closed {
        let Self { dir, engine, ids, durability } = self;
        engine.close().unwrap();
        drop(Arc::try_unwrap(engine).expect("nobody else holds the engine"));
        Closed { dir, ids, durability }
    }

    /// Closes the engine and opens it again on the same data.
    pub(crate) fn reopen(self) -> Self {
        self.close().open()
    }

    /// The same with other settings.
    pub(crate) fn reopen_with(self, change: impl FnOnce(&mut EngineSettings)) -> Self {
        self.close().open_with(change)
    }

    /// As [`Bench::reopen`] where consumers were forgotten, as a crash forgets them.
    pub(crate) fn reopen_leaking(self) -> Self {
        self.engine.close().unwrap();
        // The lock and sled belong to the leaked engine: look at a copy of its directory.
        let copy = TempDir::new().unwrap();
        let from = self.dir.path().join("store");
        std::fs::create_dir_all(copy.path().join("store/blobs")).unwrap();
        for file in std::fs::read_dir(&from).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_file() {
                std::fs::copy(file.path(), copy.path().join("store").join(file.file_name())).unwrap();
            }
        }
        let engine = Arc::new(Embedded::open(settings(copy.path(), self.durability)).unwrap());
        Self { dir: Arc::new(copy), engine, ids: MessageIds::new(), durability: self.durability }
    }

    /// With the least memory for bodies.
    pub(crate) fn small_cache() -> Self {
        let dir = Arc::new(TempDir::new().unwrap());
        let small = EngineSettings { body_cache_bytes: 1, ..settings(dir.path(), Durability::Memory) };
        let engine = Arc::new(Embedded::open(small).unwrap());
        Self { dir, engine, ids: MessageIds::new(), durability: Durability::Memory }
    }

    /// With other settings, until it is opened again.
    pub(crate) fn with_settings(change: impl FnOnce(&mut EngineSettings)) -> Self {
        let dir = Arc::new(TempDir::new().unwrap());
        let mut settings = settings(dir.path(), Durability::Fsync);
        change(&mut settings);
        let engine = Arc::new(Embedded::open(settings).unwrap());
        Self { dir, engine, ids: MessageIds::new(), durability: Durability::Fsync }
    }

    pub(crate) fn message(&self, topic: &str, payload: impl Into<Bytes>) -> Message {
        Message {
            id: self.ids.next_now(),
            topic: TopicName::parse(topic.into()).unwrap(),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            expires_at: None,
            extras: None,
        }
    }

    pub(crate) async fn commit(&self, op: Op) -> Outcome {
        let ticket = match op {
            Op::Publish(publish) => self.engine.commit_alone(publish),
            op => self.engine.commit(vec![op]),
        };
        let mut outcomes = within("a commit", ticket).await.unwrap();
        assert_eq!(outcomes.len(), 1);
        outcomes.remove(0)
    }

    pub(crate) async fn queue(&self, name: &str) -> TargetId {
        self.queue_with(spec(name)).await
    }

    pub(crate) async fn queue_with(&self, spec: QueueSpec) -> TargetId {
        let id = self.engine.next_target();
        assert_eq!(self.commit(Op::Define(id, Definition::Queue(spec))).await, Outcome::Done);
        id
    }

    pub(crate) async fn session(&self, client: &str, max_messages: u64) -> TargetId {
        let id = self.engine.next_target();
        let spec = SessionSpec {
            client_id: ClientId::parse(client.to_owned()).unwrap(),
            principal: "".into(),
            expiry: Duration::MAX,
            created_at: UnixMillis(1),
            last_connected: UnixMillis(1),
            connected: false,
            max_messages,
            max_bytes: u64::MAX,
        };
        assert_eq!(self.commit(Op::Define(id, Definition::Session(spec))).await, Outcome::Done);
        id
    }

    pub(crate) fn publish(&self, targets: &[TargetId], payload: impl Into<Bytes>) -> Op {
        publish(self.message("t", payload), targets.iter().map(|&target| Append::to(target)))
    }

    /// Stores one message and gives its place.
    pub(crate) async fn put(&self, target: TargetId, payload: impl Into<Bytes>) -> Sequence {
        stored(&self.commit(self.publish(&[target], payload)).await)
    }

    pub(crate) async fn put_with(&self, append: Append, payload: impl Into<Bytes>) -> Sequence {
        stored(&self.commit(publish(self.message("t", payload), [append])).await)
    }

    pub(crate) fn consumer(&self, target: TargetId) -> Box<dyn Consumer> {
        self.engine
            .consumer(
                target,
                ConsumerOptions { lease: Some(Duration::from_secs(60)), ..ConsumerOptions::default() },
            )
            .unwrap()
    }

    pub(crate) async fn settle(&self, target: TargetId, leased: &[Leased]) {
        let leases: Vec<LeaseRef> = leased.iter().map(lease_of).collect();
        let settled = self.engine.settle(target, &leases).unwrap();
        assert_eq!(settled.failed, []);
        within("a settlement", settled.durable).await.unwrap();
    }

    /// Takes and settles until nothing more is ready; the payloads in their order.
    pub(crate) async fn drain(&self, target: TargetId) -> Vec<String> {
        let consumer = self.consumer(target);
        let mut payloads = Vec::new();
        while self.engine.stats(target).unwrap().ready > 0 {
            let leased = take(&*consumer, 1000).await;
            payloads.extend(leased.iter().map(text));
            self.settle(target, &leased).await;
        }
        payloads
    }
}

pub(crate) fn spec(name: &str) -> QueueSpec {
    QueueSpec::new(QueueName::parse(name.to_owned()).unwrap(), Duration::from_secs(30), UnixMillis(1))
}

pub(crate) fn with_dead_letters(name: &str, max_deliveries: u32, dead_letter: &str) -> QueueSpec {
    QueueSpec {
        max_deliveries: NonZeroU32::new(max_deliveries),
        dead_letter: Some(QueueName::parse(dead_letter.to_owned()).unwrap()),
        ..spec(name)
    }
}

pub(crate) fn publish(message: Message, targets: impl IntoIterator<Item = Append>) -> Op {
    let targets = targets.into_iter().collect();
    Op::Publish(Publish { message, targets, retain: false, newest_only: false, incoming: None })
}

/// A message that its producer names.
pub(crate) fn with_dedup_id(mut message: Message, id: &str) -> Message {
    message.extras_mut().dedup_id = Some(id.to_owned().into());
    message
}

/// A message that comes after those with the same key.
pub(crate) fn with_key(mut message: Message, key: &str) -> Message {
    message.extras_mut().ordering_key = Some(key.to_owned().into());
    message
}

pub(crate) fn retain(message: Message) -> Op {
    Op::Publish(Publish {
        message,
        targets: Default::default(),
        retain: true,
        newest_only: false,
        incoming: None,
    })
}

pub(crate) fn stored(outcome: &Outcome) -> Sequence {
    match outcome {
        Outcome::Published(sequences) => sequences[0].expect("stored for its first target"),
        other => panic!("not stored: {other:?}"),
    }
}

pub(crate) fn refusal(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) fn lease_of(leased: &Leased) -> LeaseRef {
    LeaseRef { sequence: leased.sequence, attempt: Some(leased.attempt), earlier_boot: false }
}

pub(crate) fn text(leased: &Leased) -> String {
    String::from_utf8(leased.message.payload.to_vec()).unwrap()
}

/// Takes up to `max`, waiting until there is at least one.
pub(crate) async fn take(consumer: &dyn Consumer, max: usize) -> Vec<Leased> {
    let mut out = Vec::new();
    within("something to take", async {
        loop {
            consumer.take(max, usize::MAX, &mut out).unwrap();
            if !out.is_empty() {
                return;
            }
            consumer.ready().heard().await;
        }
    })
    .await;
    out
}

/// What is ready now.
pub(crate) fn take_now(consumer: &dyn Consumer) -> Vec<Leased> {
    let mut out = Vec::new();
    consumer.take(1000, usize::MAX, &mut out).unwrap();
    out
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited too long for {what}"),
    }
}
