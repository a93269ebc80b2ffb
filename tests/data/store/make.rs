//! Writes the stores of this directory: see README.md.

use bytes::Bytes;
use smallvec::smallvec;
use stafett::engine::embedded::Embedded;
use stafett::engine::*;
use stafett::types::topic::FilterSpec;
use stafett::types::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const ORDERS: TargetId = TargetId(1);
const DOOR: TargetId = TargetId(2);
const DEAD: TargetId = TargetId(3);
const GROUP: TargetId = TargetId(4);
// Of format 3.
const KEYS: TargetId = TargetId(5);
const IDS: TargetId = TargetId(6);
const BATCH: TargetId = TargetId(7);
const LOG: TargetId = TargetId(8);
const CALLS: TargetId = TargetId(9);
const PHONE: TargetId = TargetId(10);

fn queue(name: &str, dead: Option<&str>) -> Definition {
    Definition::Queue(QueueSpec {
        name: QueueName::parse(name.to_owned()).unwrap(),
        bindings: vec![TopicFilter::parse("shop/#".into()).unwrap()],
        lease: Duration::from_secs(30),
        max_deliveries: std::num::NonZeroU32::new(5),
        dead_letter: dead.map(|it| QueueName::parse(it.to_owned()).unwrap()),
        default_ttl: None,
        max_messages: 1_000_000,
        max_bytes: 1 << 40,
        priorities: true,
        last_value_key: None,
        labels: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
        created_at: UnixMillis(1_700_000_000_000),
        retry_min_backoff: None,
        retry_max_backoff: None,
        overflow: Overflow::Reject,
        ordered_by_key: false,
        single_active_consumer: false,
        dedup_window: None,
        paused: false,
        dead_letter_expired: false,
        expires_after: None,
    })
}

fn session(client_id: &str) -> Definition {
    Definition::Session(SessionSpec {
        client_id: ClientId::parse(client_id).unwrap(),
        principal: "guard".into(),
        expiry: Duration::MAX,
        created_at: UnixMillis(1_700_000_000_000),
        last_connected: UnixMillis(1_700_000_000_000),
        max_messages: 1_000,
        max_bytes: 1 << 30,
        connected: false,
    })
}

fn message(topic: &str, payload: impl Into<Bytes>) -> Message {
    Message {
        id: MessageIds::new().next_now(),
        topic: TopicName::parse(topic.to_owned().into()).unwrap(),
        payload: payload.into(),
        qos: Qos::AtLeastOnce,
        retain: false,
        expires_at: None,
        extras: None,
    }
}

async fn done(engine: &Embedded, ops: Vec<Op>) {
    let outcomes = engine.commit(ops).await.unwrap();
    assert!(outcomes.iter().all(|outcome| !matches!(outcome, Outcome::Refused(_))), "{outcomes:?}");
}
fn publish(message: Message, targets: &[TargetId]) -> Op {
    let targets = targets.iter().map(|&target| Append::to(target)).collect();
    Op::Publish(Publish { message, targets, retain: false, newest_only: false, incoming: None })
}
async fn take(engine: &Embedded, target: TargetId, count: usize) -> Vec<Leased> {
    let consumer =
        engine.consumer(target, ConsumerOptions { keep_leases: true, ..ConsumerOptions::default() }).unwrap();
    let mut taken = Vec::new();
    while taken.len() < count {
        consumer.take(count - taken.len(), usize::MAX, &mut taken).unwrap();
        if taken.len() < count {
            tokio::time::timeout(Duration::from_secs(10), consumer.ready().heard()).await.unwrap();
        }
    }
    taken
}

#[tokio::test]
async fn make() {
    let directory = std::env::var("OUT").unwrap();
    let kill = std::env::var("KILL").is_ok();
    let data_dir = Path::new(&directory).to_owned();
    let engine = Embedded::open(EngineSettings {
        data_dir,
        watermark_free_bytes: 0,
        ballast_bytes: 0,
        ..EngineSettings::default()
    })
    .unwrap();
    let filter = |text: &str| FilterSpec::parse(&text.into()).unwrap();
    let group =
        Definition::Group(GroupSpec { filter: filter("$share/g/a/#"), max_messages: 9, max_bytes: 1 << 30 });
    done(
        &engine,
        vec![
            Op::Define(ORDERS, queue("orders", Some("dead"))),
            Op::Define(DOOR, session("door-7")),
            Op::Define(DEAD, queue("dead", None)),
            Op::Define(GROUP, group),
        ],
    )
    .await;
    done(
        &engine,
        vec![Op::Subscribe(
            DOOR,
            filter("doors/+/open"),
            SubscribeOptions { max_qos: Qos::ExactlyOnce, ..SubscribeOptions::default() },
        )],
    )
    .await;
    // 1 to 12: alone; 13 to 42: together; 43: in parts.
    for n in 1..=12 {
        done(&engine, vec![publish(message("shop/orders", format!("order {n}")), &[ORDERS])]).await;
    }
    done(
        &engine,
        (13..=42)
            .map(|n| publish(message("shop/orders", format!("order {n} ").repeat(30)), &[ORDERS]))
            .collect(),
    )
    .await;
    done(&engine, vec![publish(message("doors/7/open", vec![7; 40_000]), &[ORDERS, DOOR, GROUP])]).await;
    // 44: delayed, urgent, with an expiry and all that few messages carry.
    let mut late = message("shop/late", "late");
    late.expires_at = Some(UnixMillis(4_000_000_000_000));
    late.extras_mut().properties = vec![("k".into(), "1".into()), ("k".into(), "2".into())];
    late.extras_mut().content_type = Some("text/plain".into());
    late.extras_mut().correlation_data = Some(Bytes::from_static(b"\0c"));
    let mut append = Append::to(ORDERS);
    append.priority = Priority::new(9).unwrap();
    append.not_before = Some(UnixMillis(3_000_000_000_000));
    done(
        &engine,
        vec![Op::Publish(Publish {
            message: late,
            targets: smallvec![append],
            retain: false,
            newest_only: false,
            incoming: None,
        })],
    )
    .await;
    let taken = take(&engine, ORDERS, 20).await;
    // 1 to 5 and 13 to 20 are settled, 6 has failed once.
    let settled: Vec<_> = taken
        .iter()
        .filter(|it| it.sequence.0 <= 5 || it.sequence.0 >= 13)
        .map(|it| LeaseRef::of(it.sequence))
        .collect();
    assert_eq!(settled.len(), 13);
    engine.settle(ORDERS, &settled).unwrap().durable.await.unwrap();
    let six = [LeaseRef::of(Sequence(6))];
    engine
        .nack(ORDERS, &six, Nack::Failed(None), Some(Duration::from_secs(3600 * 24 * 365 * 50)))
        .unwrap()
        .durable
        .await
        .unwrap();
    // QoS 2 both ways.
    for (n, incoming) in [(1, Some(40_000)), (2, None), (3, Some(17))] {
        let mut append = Append::to(DOOR);
        append.qos = Qos::ExactlyOnce;
        let incoming = incoming.map(|id| (DOOR, id));
        let targets = smallvec![append];
        done(
            &engine,
            vec![Op::Publish(Publish {
                message: message("doors/1/open", format!("exactly {n}")),
                targets,
                retain: false,
                newest_only: false,
                incoming,
            })],
        )
        .await;
    }
    let backlog = take(&engine, DOOR, 4).await;
    for (at, packet_id, state) in [(1, 5, OutgoingState::Sent), (2, 6, OutgoingState::Received)] {
        done(
            &engine,
            vec![Op::Outgoing {
                target: DOOR,
                sequence: backlog[at].sequence,
                outgoing: Outgoing { packet_id, state },
            }],
        )
        .await;
    }
    let mut dead = message("shop/orders", "unreadable");
    dead.extras_mut().dead_letter = Some(DeadLetter {
        source: QueueName::parse("orders").unwrap(),
        reason: "max deliveries".into(),
        attempts: 5,
        at: UnixMillis(1_700_000_000_123),
    });
    done(&engine, vec![publish(dead, &[DEAD])]).await;
    for (topic, payload) in [
        ("doors/7/state", "shut"),
        ("doors/8/state", "open"),
        ("doors/7/state", "ajar"),
        ("gone", "x"),
        ("gone", ""),
    ] {
        let mut value = message(topic, payload);
        value.retain = true;
        done(
            &engine,
            vec![Op::Publish(Publish {
                message: value,
                targets: smallvec![],
                retain: true,
                newest_only: false,
                incoming: None,
            })],
        )
        .await;
    }
    since_format_3(&engine).await;
    if kill {
        std::process::abort()
    }
    engine.close().unwrap();
}

async fn since_format_3(engine: &Embedded) {
    let Definition::Queue(plain) = queue("keys", None) else { unreachable!() };
    let plain = QueueSpec { bindings: Vec::new(), ..plain };
    let keys = QueueSpec { ordered_by_key: true, ..plain.clone() };
    // Longer than anyone may ask for: the store has to remember on the day on which it is read.
    let century = Duration::from_secs(86_400 * 36_525);
    let named = |name: &str| QueueSpec { name: QueueName::parse(name.to_owned()).unwrap(), ..plain.clone() };
    let ids = QueueSpec { dedup_window: Some(century), ..named("ids") };
    let log = StreamSpec {
        name: StreamName::parse("readings").unwrap(),
        filters: vec![TopicFilter::parse("log/#".into()).unwrap()],
        max_age: None,
        max_messages: 10,
        max_bytes: 1 << 30,
        created_at: UnixMillis(1_700_000_000_000),
    };
    let ops = vec![
        Op::Define(KEYS, Definition::Queue(keys)),
        Op::Define(IDS, Definition::Queue(ids)),
        Op::Define(BATCH, Definition::Queue(named("batch"))),
        Op::Define(LOG, Definition::Stream(log)),
        Op::Define(CALLS, Definition::Backlog(BacklogSpec { name: "requests".into() })),
        Op::Define(PHONE, session("phone")),
    ];
    done(engine, ops).await;
    // The first of key a is given back and rests, that of b was lost; the first of c is delayed and has no place yet.
    for (key, payload, not_before) in
        [("a", "a1", None), ("a", "a2", None), ("b", "b1", None), ("c", "c1", Some(3_000_000_000_000)), ("c", "c2", None)]
    {
        let mut keyed = message("keyed", payload);
        keyed.extras_mut().ordering_key = Some(key.into());
        let append = Append { not_before: not_before.map(UnixMillis), ..Append::to(KEYS) };
        let targets = smallvec![append];
        let publish = Publish { message: keyed, targets, retain: false, newest_only: false, incoming: None };
        done(engine, vec![Op::Publish(publish)]).await;
    }
    let taken = take(engine, KEYS, 3).await;
    let lease = |sequence| [LeaseRef::of(Sequence(sequence))];
    assert_eq!(taken.iter().map(|it| it.sequence.0).collect::<Vec<_>>(), [1, 3, 5]);
    let years = Some(Duration::from_secs(86_400 * 365 * 50));
    engine.nack(KEYS, &lease(1), Nack::Failed(None), years).unwrap().durable.await.unwrap();
    engine.nack(KEYS, &lease(3), Nack::Lost, Some(Duration::ZERO)).unwrap().durable.await.unwrap();
    // Of what was remembered one is settled.
    for id in ["i1", "i2"] {
        let mut known = message("known", id);
        known.extras_mut().dedup_id = Some(id.into());
        done(engine, vec![publish(known, &[IDS])]).await;
    }
    take(engine, IDS, 2).await;
    engine.settle(IDS, &lease(1)).unwrap().durable.await.unwrap();
    // A chain of whole packs.
    let all = (0..40).map(|n| (message("batch", format!("{n} ").repeat(400)), Append::to(BATCH))).collect();
    done(engine, vec![Op::AppendAll(all)]).await;
    // The last ten of twenty, and how far their readers are.
    for n in 0..20 {
        let messages = vec![message("log/one", format!("reading {n}"))];
        done(engine, vec![Op::AppendStream(StreamAppend { target: LOG, messages, expected: None })]).await;
    }
    for (name, sequence) in [("alarms", 3), ("billing", 15)] {
        let cursor = Cursor { sequence: Sequence(sequence), committed_at: UnixMillis(1_700_000_000_123) };
        done(engine, vec![Op::SetCursor(LOG, CursorName::parse(name).unwrap(), Some(cursor))]).await;
    }
    done(engine, vec![publish(message("call", "asked"), &[CALLS])]).await;
    // Settled by a door without packet ids, and not told to the other.
    for payload in ["settled", "waits"] {
        done(engine, vec![publish(message("to/phone", payload), &[PHONE])]).await;
    }
    take(engine, PHONE, 2).await;
    let outgoing = Outgoing { packet_id: 9, state: OutgoingState::Settled };
    done(engine, vec![Op::Outgoing { target: PHONE, sequence: Sequence(1), outgoing }]).await;
}
