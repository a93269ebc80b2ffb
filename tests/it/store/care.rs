//! `stafett store stats`, `import` and `compact`: what comes back is what was there, whatever comes in between.

use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use stafett::engine::{
    BacklogSpec, ConsumerOptions, Cursor, GroupSpec, LeaseRef, Leased, Outgoing, OutgoingState,
    RetainHandling, StreamAppend, StreamSpec,
};
use stafett::types::{CursorName, DeadLetter, MessageId, Sequence, StreamName};

use super::*;
use crate::below::{Chance, Disk, setting};
use crate::harness::stafett_in;

const DEAD: TargetId = TargetId(3);
const GROUP: TargetId = TargetId(4);
const CALLS: TargetId = TargetId(5);
const EMPTY: TargetId = TargetId(6);
const LOG: TargetId = TargetId(7);

/// Takes the first messages of a target.
pub(super) async fn take(engine: &Embedded, target: TargetId, count: usize) -> Vec<Leased> {
    let options = ConsumerOptions { keep_leases: true, ..ConsumerOptions::default() };
    let consumer = engine.consumer(target, options).unwrap();
    let mut taken = Vec::new();
    while taken.len() < count {
        consumer.take(count - taken.len(), usize::MAX, &mut taken).unwrap();
        if taken.len() < count {
            tokio::time::timeout(Duration::from_secs(10), consumer.ready().heard()).await.unwrap();
        }
    }
    taken
}

fn lease(taken: &Leased) -> [LeaseRef; 1] {
    [LeaseRef::of(taken.sequence)]
}

fn stream() -> Definition {
    Definition::Stream(StreamSpec {
        name: StreamName::parse("readings").unwrap(),
        filters: ["log/#", "shop/+/log"].map(|it| TopicFilter::parse(it.into()).unwrap()).into(),
        max_age: Some(Duration::from_millis(315_360_000_123)),
        max_messages: 10,
        max_bytes: 1 << 30,
        created_at: UnixMillis(1_700_000_000_000),
    })
}

/// A store with everything that an export knows.
pub(super) async fn various() -> TempDir {
    let directory = filled().await;
    let engine = open(directory.path());
    let Definition::Queue(plain) = queue("dead") else { unreachable!() };
    let dead = QueueSpec { bindings: Vec::new(), max_deliveries: NonZeroU32::new(7), ..plain.clone() };
    let orders = QueueSpec {
        name: QueueName::parse("orders").unwrap(),
        dead_letter: Some(dead.name.clone()),
        dead_letter_expired: true,
        max_deliveries: NonZeroU32::new(3),
        default_ttl: Some(Duration::from_millis(86_400_123)),
        retry_min_backoff: Some(Duration::from_millis(1_500)),
        retry_max_backoff: Some(Duration::from_secs(90)),
        overflow: Overflow::DropOldest,
        ordered_by_key: true,
        dedup_window: Some(Duration::from_secs(86_400)),
        last_value_key: Some("sensor".into()),
        expires_after: Some(Duration::from_secs(1 << 30)),
        ..plain
    };
    let filter = |text: &str| FilterSpec::parse(&text.into()).unwrap();
    let group = GroupSpec { filter: filter("$share/g/a/#"), max_messages: 9, max_bytes: u64::MAX };
    let options = SubscribeOptions {
        max_qos: Qos::ExactlyOnce,
        upgrade_qos: true,
        no_local: true,
        retain_as_published: true,
        retain_handling: RetainHandling::SendIfNew,
        identifier: NonZeroU32::new(77),
    };
    let ops = vec![
        Op::Define(ORDERS, Definition::Queue(orders)),
        Op::Define(DEAD, Definition::Queue(dead)),
        Op::Define(GROUP, Definition::Group(group)),
        Op::Define(CALLS, Definition::Backlog(BacklogSpec { name: "requests".into() })),
        Op::Define(EMPTY, queue("empty")),
        Op::Define(LOG, stream()),
        Op::Subscribe(DOOR, filter("exact/#"), options),
    ];
    done(&engine, ops).await;
    // Delayed, with priorities, with an expiry of its own and one of the queue.
    for level in 0..10_u8 {
        let mut message = message("shop/late", format!("late {level}"));
        message.qos = Qos::ExactlyOnce;
        message.expires_at = (level % 2 == 0).then_some(UnixMillis(4_000_000_000_000));
        message.extras_mut().ordering_key = (level % 3 == 0).then(|| "key".into());
        message.extras_mut().dedup_id = Some(format!("late {level}").into());
        let mut append = Append::to(ORDERS);
        append.priority = Priority::new(level).unwrap();
        append.not_before = Some(UnixMillis(3_000_000_000_000 + u64::from(level)));
        append.expires_at = (level > 4).then_some(UnixMillis(3_900_000_000_000));
        append.retain = level == 3;
        let targets = smallvec![append];
        let publish = Publish { message, targets, retain: false, newest_only: false, incoming: None };
        done(&engine, vec![Op::Publish(publish)]).await;
    }
    // Settled, leased at the end, failed, lost, dead.
    let taken = take(&engine, ORDERS, 40).await;
    let settled: Vec<_> = taken[..10].iter().map(|it| LeaseRef::of(it.sequence)).collect();
    engine.settle(ORDERS, &settled).unwrap().durable.await.unwrap();
    let delay = Some(Duration::from_secs(86_400));
    let nack = async |taken: &Leased, how, delay| {
        engine.nack(ORDERS, &lease(taken), how, delay).unwrap().durable.await.unwrap();
    };
    nack(&taken[10], Nack::Failed(Some("why".into())), delay).await;
    nack(&taken[11], Nack::Lost, delay).await;
    nack(&taken[12], Nack::DeadLetter("unreadable".into()), None).await;
    // A session in the midst of QoS 2, both ways.
    for (n, incoming) in [(1, Some(40_000)), (2, None), (3, Some(17))] {
        let mut append = Append::to(DOOR);
        append.qos = Qos::ExactlyOnce;
        let mut message = message("exact/one", format!("exactly {n}"));
        message.extras_mut().subscription = Some(77);
        message.extras_mut().publisher = Some(ClientId::parse("someone").unwrap());
        let incoming = incoming.map(|id| (DOOR, id));
        let targets = smallvec![append];
        let publish = Publish { message, targets, retain: false, newest_only: false, incoming };
        done(&engine, vec![Op::Publish(publish)]).await;
    }
    let backlog = take(&engine, DOOR, 4).await;
    let states = [
        (1, 5, OutgoingState::Sent),
        (2, 6, OutgoingState::Received),
        // A client that came to the other door settled it.
        (3, 7, OutgoingState::Settled),
    ];
    for (at, packet_id, state) in states {
        let outgoing = Outgoing { packet_id, state };
        done(&engine, vec![Op::Outgoing { target: DOOR, sequence: backlog[at].sequence, outgoing }]).await;
    }
    // What few messages carry.
    let mut rare = message("shop/rare", vec![0, 255]);
    *rare.extras_mut() = stafett::types::Extras {
        payload_is_utf8: true,
        content_type: Some("text/plain".into()),
        reply_to: queue_topic(&QueueName::parse("answers").unwrap()),
        correlation_data: Some(Bytes::from_static(b"\0c")),
        properties: vec![("k".into(), "1".into()), ("k".into(), "\u{1F980} \"2\"".into())],
        publisher: None,
        ordering_key: None,
        dedup_id: None,
        dead_letter: Some(DeadLetter {
            source: QueueName::parse("orders").unwrap(),
            reason: "expired".into(),
            attempts: 3,
            at: UnixMillis(1_700_000_000_123),
        }),
        subscription: None,
    };
    done(&engine, vec![publish(rare, &[DEAD, GROUP, CALLS, LOG])]).await;
    // A stream that keeps the last ten of what came later than its messages say, and who reads it.
    for n in 0..20 {
        let mut message = message("log/one", format!("reading {n}"));
        message.id = MessageId::unguessable(UnixMillis(1_700_000_000_000 + 7 * n));
        message.expires_at = (n % 2 == 0).then_some(UnixMillis(4_000_000_000_000));
        let append = StreamAppend { target: LOG, messages: vec![message], expected: None };
        done(&engine, vec![Op::AppendStream(append)]).await;
    }
    // The last one is where a crash may leave a cursor.
    for (name, sequence) in [("billing", 15), ("alarms", 3), ("ahead", 9_999)] {
        let committed_at = UnixMillis(1_700_000_000_000 + sequence);
        let cursor = Cursor { sequence: Sequence(sequence), committed_at };
        let name = CursorName::parse(name).unwrap();
        done(&engine, vec![Op::SetCursor(LOG, name, Some(cursor))]).await;
    }
    for (topic, payload) in
        [("doors/8/state", "open"), ("doors/7/state", "open"), ("gone", "x"), ("gone", "")]
    {
        let mut message = message(topic, payload);
        message.retain = true;
        message.expires_at = (topic == "doors/8/state").then_some(UnixMillis(4_000_000_000_000));
        let targets = smallvec![];
        let publish = Publish { message, targets, retain: true, newest_only: false, incoming: None };
        done(&engine, vec![Op::Publish(publish)]).await;
    }
    engine.close().unwrap();
    directory
}

pub(super) async fn export(directory: &Path) -> String {
    let ended = store("export", directory, &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.stdout
}

pub(super) async fn import(from: &Path, into: &Path, more: &[&str]) -> Ended {
    let mut args = vec!["store", "import", from.to_str().unwrap(), "--data-dir", into.to_str().unwrap()];
    args.extend(more);
    stafett(args).await
}

/// A file with the lines of an export, beside which a store may be made.
fn written(text: &str) -> (TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("export.jsonl");
    fs::write(&file, text).unwrap();
    let data = directory.path().join("data");
    (directory, file, data)
}

#[tokio::test]
async fn what_was_exported_and_imported_is_exported_again_as_it_was() {
    let directory = various().await;
    let first = export(directory.path()).await;
    for needed in [
        "\"type\":\"group\"",
        "\"type\":\"backlog\"",
        "\"state\":\"sent\"",
        "\"state\":\"received\"",
        "\"state\":\"settled\"",
        "\"type\":\"stream\"",
        "\"sequence\":9999",
        "\"appended_at\"",
        "\"rests\":true",
        "\"packet_id\":40000",
        "\"losses\":1",
        "\"reason\":\"unreadable\"",
        "\"message_expires_at\"",
        "\"subscription\":77",
        "\"retain_handling\":1",
        "\"not_before\"",
        "\"ordering_key\"",
        "\"dedup_id\"",
        "\"attempts\":1",
    ] {
        assert!(first.contains(needed), "the store has no {needed}:\n{first}");
    }
    let (_kept, file, data) = written(&first);
    let ended = import(&file, &data, &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("imported 7 targets, 2 retained values"), "{}", ended.stderr);
    assert!(export(&data).await == first, "it is not what it was");
    let ended = store("check", &data, &[]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);

    // The broker's own view of it.
    let before = open(directory.path());
    let after = open(&data);
    for target in [ORDERS, DOOR, DEAD, GROUP, CALLS, EMPTY] {
        let (before, after) = (before.stats(target).unwrap(), after.stats(target).unwrap());
        let seen = |it: &stafett::engine::TargetStats| (it.ready, it.delayed, it.bytes, it.last);
        assert_eq!(seen(&after), seen(&before), "{target:?}");
    }
    // A stream begins, ends and was appended to where and when it did, and its readers are where they were.
    let read = |engine: &Embedded| {
        let stats = engine.stream_stats(LOG).unwrap();
        assert_eq!((stats.ends.first.0, stats.ends.next.0, stats.messages), (12, 22, 10));
        let at = |at: Option<UnixMillis>| engine.stream_at(LOG, at.unwrap()).unwrap();
        (stats.bytes, stats.first_at, stats.last_at, at(stats.first_at), at(stats.last_at))
    };
    assert_eq!(read(&after), read(&before));
    // What comes again is known, and keys are those that later messages have.
    for engine in [&before, &after] {
        let mut again = message("shop/late", "again");
        again.extras_mut().dedup_id = Some("late 3".into());
        let outcomes = engine.commit(vec![publish(again, &[ORDERS])]).await.unwrap();
        assert!(matches!(outcomes[..], [Outcome::Duplicate { .. }]), "{outcomes:?}");
    }
    let (mut before, mut after) = (before.stored(), after.stored());
    assert_eq!(after.retained, before.retained);
    assert_eq!(after.queues, before.queues);
    let (one, other) = (after.streams.remove(0), before.streams.remove(0));
    assert_eq!((one.id, &one.spec, &one.cursors), (other.id, &other.spec, &other.cursors));
    assert_eq!(one.cursors.len(), 3);
    let (before, mut after) = (before.sessions.remove(0), after.sessions.remove(0));
    assert_eq!((&after.spec, &after.subscriptions), (&before.spec, &before.subscriptions));
    after.incoming.sort_unstable();
    assert_eq!(after.incoming, [17, 40_000]);
}

#[tokio::test]
async fn numbers_go_on_behind_those_that_were_given_out() {
    let directory = filled().await;
    let engine = open(directory.path());
    let all: Vec<_> = take(&engine, ORDERS, 201).await.iter().map(|it| LeaseRef::of(it.sequence)).collect();
    engine.settle(ORDERS, &all).unwrap().durable.await.unwrap();
    engine.close().unwrap();
    drop(engine);
    let (_kept, file, data) = written(&export(directory.path()).await);
    assert_eq!(import(&file, &data, &[]).await.code, Some(0));
    let engine = open(&data);
    done(&engine, vec![publish(message("shop/orders", "new"), &[ORDERS])]).await;
    assert_eq!(take(&engine, ORDERS, 1).await[0].sequence.0, 202);
}

#[tokio::test]
async fn a_line_that_is_wrong_is_named_and_nothing_is_imported() {
    let directory = various().await;
    let sound = export(directory.path()).await;
    let lines: Vec<&str> = sound.lines().collect();
    let message = lines.iter().position(|line| line.contains("\"type\":\"message\"")).unwrap();
    let number = message + 1;
    let replaced = |from: &str, to: &str| sound.replacen(from, to, 1);
    let without = |at: usize| [&lines[..at], &lines[at + 1..]].concat().join("\n");
    let cut = &sound[..sound.len() / 2];
    let cases = [
        (
            replaced("\"version\":1", "\"version\":2"),
            "line 1: the export has version 2, this program reads up to 1",
        ),
        (without(0), "line 1: an export begins with a line of the type export"),
        (without(lines.len() - 1), &format!("line {}: the end of the export is missing", lines.len())),
        (without(message), "messages should stand before it, but"),
        (cut[..cut.rfind('\n').unwrap() + 1].to_owned(), "the end of the export is missing"),
        (format!("{sound}{}\n", lines[message]), "something follows the end of the export"),
        (format!("{}\n{sound}", lines[0]), "line 2: another export begins"),
        (replaced("\"type\":\"queue\"", "\"type\":\"cue\""), "line 2: unknown variant `cue`"),
        (replaced("\"paused\":", "\"pause\":"), "line 2: unknown field `pause`"),
        (replaced("\"lease_seconds\":30.0", "\"lease_seconds\":-1.0"), "line 2: lease_seconds: "),
        (replaced("\"name\":\"orders\"", "\"name\":\"or ders\""), "line 2: name: "),
        (replaced("\"overflow\":\"drop-oldest\"", "\"overflow\":\"drop\""), "line 2: unknown variant `drop`"),
        (replaced("shop/#", "shop/#/x"), "line 2: bindings: "),
        (replaced("\"created_at\":\"2023", "\"created_at\":\"23"), "line 2: created_at: "),
        (replaced("\"name\":\"dead\"", "\"name\":\"orders\""), "line 4: queue orders is there already"),
        (
            replaced("\"queue\":\"orders\"", "\"queue\":\"other\""),
            &format!("line {number}: queue other is not there"),
        ),
        (
            replaced("\"queue\":\"orders\"", "\"target\":9"),
            "the definition of target 9 is lost; --skip-lost leaves such messages out",
        ),
        (replaced("\"queue\":\"orders\",", ""), &format!("line {number}: it says nowhere to wait")),
        (
            replaced("\"queue\":\"orders\"", "\"queue\":\"orders\",\"group\":\"a\""),
            "it waits in more than one place",
        ),
        (replaced("\"name\":\"billing\"", "\"name\":\"bil ling\""), "cursors: "),
        (replaced("\"filters\":[\"log/#\"", "\"filters\":[\"log/#/x\""), "filters: "),
        (
            replaced("\"queue\":\"orders\"", "\"stream\":\"readings\""),
            &format!("line {number}: message 11 of stream readings does not say when it was appended"),
        ),
        (
            replaced("\"appended_at\":\"2", "\"appended_at\":\"3"),
            "message 13 of stream readings does not follow those before it",
        ),
        (replaced("\"payload_base64\":\"", "\"payload_base64\":\"*"), "payload_base64: "),
        (replaced("\"message_id\":\"", "\"message_id\":\"*"), "message_id: is no ULID"),
        (replaced("\"priority\":4", "\"priority\":10"), "priority: is 10, must be 0 to 9"),
        (replaced("\"granted_qos\":1", "\"granted_qos\":3"), "granted_qos: is 3, must be 0, 1 or 2"),
        (
            [lines[..=message].join("\n"), lines[message..].join("\n")].join("\n"),
            "does not follow those before it",
        ),
        (replaced("\"next_sequence\":", "\"next_sequence\":1,\"x\":"), "line 2: unknown field `x`"),
        (String::new(), "line 1: an export begins with"),
        ("{\n".to_owned(), "line 1: EOF"),
    ];
    for (text, said) in cases {
        let (_kept, file, data) = written(&text);
        let ended = import(&file, &data, &[]).await;
        assert_eq!(ended.code, Some(2), "{said}: {}", ended.stderr);
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
        for left in ["store", "store.new", "state"] {
            assert!(!data.join(left).exists(), "{said}: {left} is left");
        }
    }
    let lost = sound.replacen("\"queue\":\"orders\"", "\"target\":9", 1);
    let (_kept, file, data) = written(&lost);
    let ended = import(&file, &data, &["--skip-lost"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("left out 1 messages"), "{}", ended.stderr);
}

#[tokio::test]
async fn an_import_into_a_store_is_refused() {
    let directory = filled().await;
    let text = export(directory.path()).await;
    let (_kept, file, _) = written(&text);
    let ended = import(&file, directory.path(), &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("is not empty: it has store"), "{}", ended.stderr);
    assert!(export(directory.path()).await == text, "it is not what it was");
    let broker = Broker::start().await;
    let ended = import(&file, broker.data().path(), &[]).await;
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    let ended = import(&directory.path().join("absent"), &directory.path().join("data"), &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
}

#[tokio::test]
async fn a_store_is_imported_as_it_is() {
    let directory = various().await;
    let before = export(directory.path()).await;
    let target = tempfile::tempdir().unwrap();
    let data = target.path().join("data");
    let ended = import(directory.path(), &data, &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(export(&data).await == before, "it is not what it was");
    assert!(export(directory.path()).await == before, "the source was changed");
    let (from, to) = (open(directory.path()), open(&data));
    assert_ne!(from.secret(), to.secret(), "tokens of the one are good for the other");
}

#[tokio::test]
async fn an_import_that_is_killed_leaves_nothing_and_is_done_again() {
    let directory = various().await;
    let text = export(directory.path()).await;
    let (_kept, file, _) = written(&text);
    let first = setting("STAFETT_SEED", 1);
    let mut chance = Chance(first);
    let mut whole = 0;
    for round in 0..setting("STAFETT_CUTS", 8) {
        let mut disk = Disk::new(first);
        let order = format!("{} any {}", if round % 2 == 0 { "cut" } else { "kill" }, 1 + chance.below(60));
        disk.order(&order);
        let data = disk.data();
        let args = ["store", "import", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
        let ended = stafett_in(&disk.environment(first + round), args).await;
        disk.restart();
        if store("stats", &data, &[]).await.code == Some(2) {
            assert_ne!(ended.code, Some(0), "{order}: it was done, and nothing is there");
            assert_eq!(import(&file, &data, &[]).await.code, Some(0), "{order}");
        } else {
            whole += 1;
        }
        assert!(export(&data).await == text, "{order}");
    }
    println!("{whole} of the imports were whole");
}

#[tokio::test]
async fn the_stats_are_what_is_there() {
    let directory = various().await;
    let engine = open(directory.path());
    done(&engine, (0..20).map(|n| publish(message("shop/orders", marked(n)), &[EMPTY])).collect()).await;
    let settled: Vec<_> = take(&engine, EMPTY, 10).await.iter().map(|it| LeaseRef::of(it.sequence)).collect();
    engine.settle(EMPTY, &settled).unwrap().durable.await.unwrap();
    engine.close().unwrap();
    drop(engine);
    let ended = store("stats", directory.path(), &["--json"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let stats: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&stats["closed"], &stats["boot"]), (&true.into(), &3.into()), "{stats}");
    let named = |name: &str| {
        let targets = stats["targets"].as_array().unwrap();
        targets.iter().find(|it| it["name"] == name).unwrap_or_else(|| panic!("no {name}: {stats}")).clone()
    };
    let orders = named("orders");
    // 201 and 10 late ones, without 10 that are settled and one that is dead; two rest.
    assert_eq!((&orders["kind"], &orders["messages"]), (&"queue".into(), &200.into()), "{orders}");
    assert_eq!(orders["delayed"], 12, "{orders}");
    let door = named("door-7");
    assert_eq!(
        (&door["kind"], &door["messages"], &door["subscriptions"]),
        (&"session".into(), &4.into(), &2.into())
    );
    assert_eq!(
        (&named("$share/g/a/#")["kind"], &named("requests")["kind"]),
        (&"group".into(), &"backlog".into())
    );
    let log = named("readings");
    assert_eq!((&log["kind"], &log["messages"]), (&"stream".into(), &10.into()), "{log}");
    assert_eq!((&stats["retained"], &stats["unreleased"]), (&2.into(), &2.into()), "{stats}");
    let payload = 200 * marked(0).len() as u64 + LARGE as u64;
    let live = stats["live_bytes"].as_u64().unwrap();
    assert!((payload..payload + 30_000).contains(&live), "{live} of {payload}");
    let dead = stats["dead_bytes"].as_u64().unwrap();
    let settled = 10 * marked(0).len() as u64;
    // Those that were settled before may be removed or not.
    assert!((settled..2 * settled + 5_000).contains(&dead), "{dead} of {settled}");
    let file = fs::metadata(directory.path().join("store/db")).unwrap().len();
    assert_eq!(stats["file_bytes"], file);
    let text = store("stats", directory.path(), &[]).await.stdout;
    for said in ["queues           3\n", "streams          1\n", "12 delayed\n"] {
        assert!(text.contains(said), "{text}");
    }
}

/// A store whose file is much larger than what it holds.
async fn mostly_dead() -> TempDir {
    let directory = various().await;
    let engine = open(directory.path());
    done(&engine, vec![Op::Define(TargetId(20), queue("once"))]).await;
    for n in 0..40 {
        let op = |m: usize| publish(message("shop/orders", marked(n * 100 + m).repeat(8)), &[TargetId(20)]);
        done(&engine, (0..100).map(op).collect()).await;
    }
    let all: Vec<_> =
        take(&engine, TargetId(20), 4000).await.iter().map(|it| LeaseRef::of(it.sequence)).collect();
    engine.settle(TargetId(20), &all[..3990]).unwrap().durable.await.unwrap();
    engine.close().unwrap();
    directory
}

#[tokio::test]
async fn a_file_that_is_mostly_dead_is_rewritten() {
    let directory = mostly_dead().await;
    let before = export(directory.path()).await;
    let length = || fs::metadata(directory.path().join("store/db")).unwrap().len();
    let long = length();
    let ended = store("compact", directory.path(), &["--json"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    // To open it may fill its last segment.
    let reported = report["before_bytes"].as_u64().unwrap();
    assert!((long..long + (8 << 20)).contains(&reported), "{reported} of {long}");
    assert_eq!(report["after_bytes"], length());
    assert!(length() < long / 2, "{length} of {long} bytes", length = length());
    assert!(export(directory.path()).await == before, "it is not what it was");
    let ended = store("check", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    for left in ["store.new", "store.old"] {
        assert!(!directory.path().join(left).exists(), "{left} is left");
    }
    let engine = open(directory.path());
    assert_eq!(engine.stats(TargetId(20)).unwrap().ready, 10);
    done(&engine, vec![publish(message("shop/orders", "new"), &[ORDERS])]).await;
}

#[tokio::test]
async fn what_the_journal_alone_has_is_kept_by_a_rewrite() {
    let broker = Broker::start().await;
    let data = broker.data();
    let server = broker.url();
    let run = async |args: &[&str]| {
        let ended = stafett([args, &["--server", &server]].concat()).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    };
    run(&["queue", "create", "orders"]).await;
    for payload in ["a", "b", "c"] {
        run(&["queue", "send", "orders", payload]).await;
    }
    broker.kill9().await;
    let before = export(data.path()).await;
    assert_eq!(of_type(&lines(&before), "message").len(), 3);
    assert_eq!(store("compact", data.path(), &[]).await.code, Some(0));
    assert!(export(data.path()).await == before, "it is not what it was");
    let broker = Broker::start_in(data.clone(), &[]).await;
    assert_eq!(broker.count("messages_stored").await, 3);
}

#[tokio::test]
async fn a_rewrite_that_is_killed_leaves_the_old_store_or_the_new_one() {
    let directory = mostly_dead().await;
    let whole = export(directory.path()).await;
    let first = setting("STAFETT_SEED", 1);
    let mut chance = Chance(first);
    let mut swapped = 0;
    let cuts = setting("STAFETT_CUTS", 12);
    for round in 0..cuts {
        let mut disk = Disk::new(first);
        copy(directory.path(), &disk.data());
        // Half of them at the change of names, which is what matters most.
        let kind = if round % 2 == 0 { "any" } else { "rename" };
        let at = 1 + chance.below(if round % 2 == 0 { 250 } else { 2 });
        let order = format!("{} {kind} {at}", if round % 4 < 2 { "cut" } else { "kill" });
        disk.order(&order);
        let data = disk.data();
        let args = ["store", "compact", data.to_str().unwrap()];
        let ended = stafett_in(&disk.environment(first + round), args).await;
        let report = disk.restart();
        assert!(ended.code.is_none() || ended.code == Some(0), "{order}: {}", ended.stderr);
        swapped += u64::from(report.of("rename") > 1);
        assert!(export(&data).await == whole, "{order}: {report:?}");
        let ended = store("check", &data, &[]).await;
        assert_eq!(ended.code, Some(0), "{order}: {}{}", ended.stdout, ended.stderr);
        drop(open(&data));
        assert!(!data.join("store.old").exists() && !data.join("store.new").exists(), "{order}");
    }
    assert!(cuts < 4 || swapped > 0, "no cut came so late that names changed");
}

#[tokio::test]
async fn a_large_file_of_which_little_is_in_use_is_rewritten_at_start() {
    let directory = Arc::new(filled().await);
    let engine = open(directory.path());
    done(&engine, vec![Op::Define(EMPTY, queue("empty"))]).await;
    for _ in 0..70 {
        done(&engine, vec![publish(message("shop/orders", vec![7; 1 << 20]), &[EMPTY])]).await;
    }
    done(&engine, vec![publish(message("shop/orders", "last"), &[ORDERS])]).await;
    let all: Vec<_> = take(&engine, EMPTY, 70).await.iter().map(|it| LeaseRef::of(it.sequence)).collect();
    engine.settle(EMPTY, &all).unwrap().durable.await.unwrap();
    engine.close().unwrap();
    drop(engine);
    let before = export(directory.path()).await;
    let path = directory.path().join("store/db");
    let length = || fs::metadata(&path).unwrap().len();
    let long = tempfile::tempdir().unwrap();
    copy(directory.path(), long.path());
    let environment = [("STAFETT_STORE_COMPACT_AT_START", "off".to_owned())];
    let broker = Broker::try_start(directory.path(), &[], &environment).await.unwrap();
    assert_eq!(broker.terminate().await.code, Some(0));
    assert!(length() >= 64 << 20, "it was rewritten though that is off");
    let mut broker = Broker::start_in(directory.clone(), &[]).await;
    broker.process().says("rewrote the store's file, of which little was in use").await;
    assert!(length() < 32 << 20, "{} bytes", length());
    assert_eq!(broker.terminate().await.code, Some(0));
    let kept = |text: &str| lines(text).into_iter().filter(|it| it["type"] == "message").collect::<Vec<_>>();
    assert!(kept(&export(directory.path()).await) == kept(&before), "messages are not what they were");

    // Cut off in the middle of that, it is as it was, and the next start does it.
    let first = setting("STAFETT_SEED", 1);
    let mut chance = Chance(first);
    for round in 0..setting("STAFETT_CUTS", 4) {
        let mut disk = Disk::new(first);
        copy(long.path(), &disk.data());
        let kind = ["any", "rename", "sync"][usize::try_from(round % 3).unwrap()];
        let order = format!("cut {kind} {}", 1 + chance.below(if kind == "any" { 60 } else { 5 }));
        disk.order(&order);
        let mut environment = disk.environment(first + round);
        environment.push(("STAFETT_STORE_BALLAST_BYTES", "8MiB".to_owned()));
        if let Ok(broker) = Broker::try_start(&disk.data(), &[], &environment).await {
            broker.kill9().await;
            continue;
        }
        disk.restart();
        let broker = Broker::try_start(&disk.data(), &[], &[]).await;
        let broker = broker.unwrap_or_else(|ended| panic!("{order}: {}", ended.stderr));
        assert_eq!(broker.terminate().await.code, Some(0));
        assert!(
            kept(&export(&disk.data()).await) == kept(&before),
            "{order}: messages are not what they were"
        );
    }
}

#[tokio::test]
async fn a_large_file_of_which_all_is_in_use_is_left_alone() {
    let directory = filled().await;
    let engine = open(directory.path());
    for _ in 0..70 {
        // A start reads the heads of their packs, not their bodies.
        let some = (0..150).map(|_| publish(message("shop/orders", vec![7; 7000]), &[ORDERS]));
        done(&engine, some.collect()).await;
    }
    engine.close().unwrap();
    drop(engine);
    let file = || fs::metadata(directory.path().join("store/db")).unwrap();
    let before = file();
    assert!(before.len() >= 64 << 20);
    drop(open(directory.path()));
    assert_eq!(file().ino(), before.ino(), "it was rewritten");
}

/// All that is below a directory.
fn copy(from: &Path, to: &Path) {
    for found in fs::read_dir(from).unwrap() {
        let (from, to) = (found.as_ref().unwrap().path(), to.join(found.unwrap().file_name()));
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

#[tokio::test]
async fn a_rewrite_that_finds_no_room_changes_nothing() {
    let directory = mostly_dead().await;
    let before = export(directory.path()).await;
    const ENOSPC: u32 = 28;
    let mut disk = Disk::new(1);
    copy(directory.path(), &disk.data());
    let data = disk.data();
    let args = ["store", "compact", data.to_str().unwrap()];
    assert_eq!(stafett_in(&disk.environment(1), args).await.code, Some(0));
    let writes = disk.restart().of("write");
    let mut copying = 0;
    for at in 1..writes {
        fs::remove_dir_all(&data).unwrap();
        fs::create_dir(&data).unwrap();
        copy(directory.path(), &data);
        disk.order(&format!("fail write {at} {ENOSPC} 0"));
        let ended = stafett_in(&disk.environment(1), args).await;
        assert!(matches!(ended.code, Some(1 | 2)), "write {at}: {ended:?}");
        assert!(ended.stderr.contains("No space left on device"), "write {at}: {}", ended.stderr);
        copying += u64::from(ended.stderr.contains("cannot copy the store"));
        assert!(export(&data).await == before, "write {at}");
    }
    assert!(copying > 0, "none of {writes} writes was one of the copy");
}
