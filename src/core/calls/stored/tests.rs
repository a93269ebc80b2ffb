//! Stored calls on the embedded engine, whose commits a test can hold back.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use super::*;
use crate::core::calls::{Answer, Asked, Caller, Responder, Said, Serve};
use crate::core::pubsub::tests::bed::{self, Bed, options, subscribe, within};
use crate::core::queues::consumer::Window;
use crate::engine::embedded::Embedded;
use crate::engine::{Engine, EngineSettings, Health};
use crate::types::{Message, Qos};

const KIB: usize = 1024;
const HOUR: Duration = Duration::from_secs(3600);

fn topic(name: &'static str) -> TopicName {
    TopicName::parse(name.into()).unwrap()
}

fn message(payload: Vec<u8>) -> Message {
    Message { payload: payload.into(), ..bed::message("s", "", Qos::AtLeastOnce) }
}

fn request() -> Request {
    Request {
        message: message(b"asked".to_vec()),
        deadline: Some(clock::unix_now().after(HOUR)),
        caller: Caller::default(),
        metadata: Arc::default(),
        idempotent: true,
        takes_parts: false,
        part: None,
    }
}

impl Bed {
    async fn store(&self, reply_to: ReplyTo) -> Result<MessageId, CoreError> {
        within(self.broker.call_async(request(), reply_to)).await
    }

    fn responder(&self, credit: usize) -> Responder {
        let serve = Serve {
            service: topic("s"),
            group: "".into(),
            id: Some("r".into()),
            credit,
            metadata: Vec::new(),
        };
        self.broker.serve(serve).unwrap()
    }

    fn count(&self, name: &str) -> u64 {
        self.broker.calls.counters().into_iter().find(|(counter, _)| *counter == name).unwrap().1
    }

    async fn counts(&self, name: &str, is: impl Fn(u64) -> bool) {
        within(async {
            while !is(self.count(name)) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

fn take(responder: &Responder) -> Vec<Asked> {
    responder.take(Window { messages: usize::MAX, bytes: usize::MAX }).0
}

/// So many requests.
async fn taken(responder: &Responder, count: usize) -> Vec<Asked> {
    let mut asked = take(responder);
    within(async {
        while asked.len() < count {
            responder.ready().await;
            asked.extend(take(responder));
        }
    })
    .await;
    asked
}

/// Answers each with so many bytes.
fn reply(responder: &Responder, asked: &[Asked], bytes: usize) {
    let said = |asked: &Asked| Answer { number: asked.number, said: Said::Last(message(vec![7; bytes])) };
    assert!(responder.reply(asked.iter().map(said).collect()).is_empty());
}

/// Whatever can go on without the disk has.
async fn turns() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn no_more_is_handed_out_than_the_disk_takes_replies() {
    let bed = Bed::with(Limits { commit_pending_bytes: 64 * KIB, ..Limits::default() }).await;
    bed.queue("q", |_| {}).await;
    for _ in 0..12 {
        bed.store(ReplyTo::Queue(QueueName::parse("q").unwrap())).await.unwrap();
    }
    let responder = bed.responder(4);
    let asked = taken(&responder, 4).await;
    bed.engine.hold();
    reply(&responder, &asked, 40 * KIB);
    bed.counts("async_replies_on_their_way_bytes", |bytes| bytes >= 160 * KIB as u64).await;
    turns().await;
    // Room that came before the replies were counted may have been given away, once.
    let early = take(&responder);
    reply(&responder, &early, 40 * KIB);
    let on_their_way = 40 * (4 + early.len()) * KIB;
    bed.counts("async_replies_on_their_way_bytes", |bytes| bytes >= on_their_way as u64).await;
    turns().await;
    assert_eq!(take(&responder).len(), 0, "{on_their_way} bytes wait for the disk");
    assert!(!bed.broker.has_room_for_replies());
    bed.engine.release().await;
    within(bed.broker.room_for_replies()).await;
    let mut left = 8 - early.len();
    while left > 0 {
        let asked = taken(&responder, 1).await;
        reply(&responder, &asked, 40 * KIB);
        left -= asked.len();
    }
    bed.counts("async_calls", |calls| calls == 0).await;
    bed.counts("async_replies_on_their_way_bytes", |bytes| bytes == 0).await;
    assert_eq!(bed.ready_in("q"), 12);
}

#[tokio::test]
async fn replies_on_their_way_to_a_topic_need_no_room_to_be_kept() {
    let bed = Bed::with(Limits { async_call_bytes: 100 * KIB, ..Limits::default() }).await;
    let (listening, inbox) = bed.transient("listening").await;
    subscribe(&listening, &[("replies", options(Qos::AtMostOnce))]).await;
    for _ in 0..5 {
        bed.store(ReplyTo::Topic(topic("replies"))).await.unwrap();
    }
    let responder = bed.responder(5);
    let asked = taken(&responder, 5).await;
    bed.engine.hold();
    reply(&responder, &asked, 40 * KIB);
    bed.counts("async_replies_on_their_way_bytes", |bytes| bytes >= 200 * KIB as u64).await;
    turns().await;
    bed.engine.release().await;
    let heard = within(inbox.next(5)).await;
    assert!(heard.iter().all(|got| got.payload.len() == 40 * KIB), "one was replaced");
    bed.counts("async_reply_bytes", |bytes| bytes == 0).await;
    assert_eq!(bed.count("async_calls_refused_total"), 0);
}

#[tokio::test]
async fn a_reply_that_is_stored_and_not_published_is_published_at_the_next_start() {
    let bed = Bed::new().await;
    let (away, _, _) = bed.durable("away").await;
    subscribe(&away, &[("replies", options(Qos::AtLeastOnce))]).await;
    drop(away);
    let id = bed.store(ReplyTo::Caller).await.unwrap();
    // As it lies there when the power fails between the two.
    let replies = bed.broker.calls.stored.targets.get().unwrap().replies;
    let said = Ok(Reply {
        responder: "r".into(),
        message: message(b"said".to_vec()),
        more: false,
        latency: Duration::ZERO,
    });
    let other = MessageId::unguessable(clock::unix_now());
    let kept = Kept {
        id: other,
        service: topic("s"),
        until: clock::unix_now().after(HOUR),
        said,
        topic: Some(topic("replies")),
    };
    let publish = Publish {
        message: record::reply_message(&kept),
        targets: smallvec![Append::to(replies)],
        retain: false,
        newest_only: false,
        incoming: None,
    };
    within(bed.engine.commit(vec![Op::Publish(publish)])).await.unwrap();
    let bed = bed.again().await;
    bed.counts("async_reply_bytes", |bytes| bytes == 0).await;
    assert!(matches!(within(bed.broker.await_reply(other, HOUR)).await, Err(CoreError::NotFound { .. })));
    let (away, _, present) = bed.durable("away").await;
    assert!(present);
    let heard = bed::take(&away, 1).await;
    assert_eq!(bed::texts(&heard), ["said"]);
    // The others are there too.
    assert!(matches!(within(bed.broker.await_reply(id, Duration::ZERO)).await, Ok(None)));
}

#[tokio::test]
async fn no_call_is_made_whose_reply_has_no_room_on_the_disk() {
    let bed = Bed::new().await;
    bed.store(ReplyTo::Caller).await.unwrap();
    let low = Health::LowDisk { free_bytes: 1, watermark_bytes: 2 };
    bed.engine.health.send_replace(low);
    turns().await;
    let responder = bed.responder(1);
    turns().await;
    assert_eq!(take(&responder).len(), 0);
    bed.engine.health.send_replace(Health::Ok);
    assert_eq!(taken(&responder, 1).await.len(), 1);
}

#[tokio::test]
async fn a_dispatcher_that_has_failed_promises_nothing() {
    let bed = Bed::new().await;
    *bed.engine.blind.lock() = Some(EngineError::Failed("on purpose".to_owned()));
    let failed = CoreError::Engine(EngineError::Failed("on purpose".to_owned()));
    // It fails beside the first one.
    let first = bed.store(ReplyTo::Caller).await;
    within(async {
        while bed.broker.calls.stored.failed.get().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(bed.store(ReplyTo::Caller).await, Err(failed.clone()));
    let id = first.unwrap_or(MessageId::unguessable(clock::unix_now()));
    assert_eq!(within(bed.broker.await_reply(id, HOUR)).await, Err(failed));
}

#[tokio::test]
async fn a_reply_that_cannot_be_read_takes_no_others_with_it() {
    let bed = Bed::new().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(bed.store(ReplyTo::Caller).await.unwrap());
    }
    let responder = bed.responder(3);
    reply(&responder, &taken(&responder, 3).await, KIB);
    bed.counts("async_replies", |replies| replies == 3).await;
    drop(responder);
    let replies = bed.broker.calls.stored.targets.get().unwrap().replies;
    let page = within(bed.engine.browse(replies, View::Ready, Sequence(0), 9, usize::MAX)).await.unwrap();
    let damaged = page.messages[1].message.id;
    *bed.engine.damaged.lock() = Some(page.messages[1].sequence);
    let bed = bed.again().await;
    for id in ids {
        let said = within(bed.broker.await_reply(id, Duration::ZERO)).await;
        match id == damaged {
            true => assert!(matches!(said, Err(CoreError::NotFound { .. })), "{said:?}"),
            false => assert_eq!(said.unwrap().unwrap().unwrap().message.payload.len(), KIB),
        }
    }
    bed.store(ReplyTo::Caller).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_is_no_broken_store() {
    let directory = tempfile::tempdir().unwrap();
    let open = |watermark_free_bytes| {
        let data_dir = directory.path().to_owned();
        Embedded::open(EngineSettings {
            data_dir,
            watermark_free_bytes,
            ballast_bytes: 0,
            ..Default::default()
        })
    };
    // A crash came between the two definitions.
    let engine = open(0).unwrap();
    let half = Definition::Backlog(BacklogSpec { name: CALLS.into() });
    engine.commit(vec![Op::Define(engine.next_target(), half)]).await.unwrap();
    engine.close().unwrap();
    drop(engine);
    let broker = Broker::open(Arc::new(open(u64::MAX).unwrap()), Limits::default()).await.unwrap();
    let refused = within(broker.call_async(request(), ReplyTo::Caller)).await;
    assert!(matches!(refused, Err(CoreError::LowDisk { .. })), "{refused:?}");
    assert!(matches!(
        within(broker.await_reply(MessageId::from_u128(7), HOUR)).await,
        Err(CoreError::NotFound { .. })
    ));
}
