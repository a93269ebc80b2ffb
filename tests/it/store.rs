//! `stafett store`: what it says about sound, damaged, locked and newer stores, and what it saves of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;
use smallvec::smallvec;
use stafett::engine::embedded::Embedded;
use stafett::engine::{
    Append, Cursor, Definition, Engine, EngineSettings, Nack, Op, Outcome, Overflow, Publish, QueueSpec,
    SessionSpec, StreamAppend, StreamSpec, SubscribeOptions, queue_topic,
};
use stafett::types::topic::FilterSpec;
use stafett::types::{
    ClientId, CursorName, Message, MessageIds, Priority, Qos, QueueName, Sequence, StreamName, TargetId,
    TopicFilter, TopicName, UnixMillis,
};
use tempfile::TempDir;

mod backup;
mod care;
mod formats;
mod moved;

use crate::harness::{Broker, Ended, Process, stafett};

const ORDERS: TargetId = TargetId(1);
const DOOR: TargetId = TargetId(2);
/// A message of this size lies in parts of its own.
const LARGE: usize = 40_000;

fn open(directory: &Path) -> Embedded {
    let data_dir = directory.to_owned();
    let settings =
        EngineSettings { data_dir, watermark_free_bytes: 0, ballast_bytes: 0, ..EngineSettings::default() };
    Embedded::open(settings).unwrap()
}

fn queue(name: &str) -> Definition {
    Definition::Queue(QueueSpec {
        bindings: vec![TopicFilter::parse("shop/#".into()).unwrap()],
        max_messages: 1_000_000,
        max_bytes: 1 << 40,
        priorities: true,
        labels: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
        ..QueueSpec::new(
            QueueName::parse(name.to_owned()).unwrap(),
            Duration::from_secs(30),
            UnixMillis(1_700_000_000_000),
        )
    })
}

fn session() -> Definition {
    Definition::Session(SessionSpec {
        client_id: ClientId::parse("door-7").unwrap(),
        principal: "guard".into(),
        expiry: Duration::MAX,
        created_at: UnixMillis(1_700_000_000_000),
        last_connected: UnixMillis(1_700_000_000_000),
        connected: false,
        max_messages: 1_000,
        max_bytes: 1 << 30,
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

fn publish(message: Message, targets: &[TargetId]) -> Op {
    let targets = targets.iter().map(|&target| Append::to(target)).collect();
    Op::Publish(Publish { message, targets, retain: false, newest_only: false, incoming: None })
}

async fn done(engine: &Embedded, ops: Vec<Op>) {
    let outcomes = engine.commit(ops).await.unwrap();
    assert!(outcomes.iter().all(|outcome| !matches!(outcome, Outcome::Refused(_))), "{outcomes:?}");
}

/// The payload that is searched for in the file: no other row holds these bytes.
fn marked(n: usize) -> Vec<u8> {
    format!("payload number {n:06} ").into_bytes().repeat(40)
}

/// A store with a queue, a session, a retained value, small messages and a large one.
async fn filled() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    done(&engine, vec![Op::Define(ORDERS, queue("orders")), Op::Define(DOOR, session())]).await;
    let filter = FilterSpec::parse(&"doors/+/open".into()).unwrap();
    done(&engine, vec![Op::Subscribe(DOOR, filter, SubscribeOptions::default())]).await;
    for n in 0..200 {
        done(&engine, vec![publish(message("shop/orders", marked(n)), &[ORDERS])]).await;
    }
    done(&engine, vec![publish(message("doors/7/open", vec![7; LARGE]), &[ORDERS, DOOR])]).await;
    let mut value = message("doors/7/state", "shut");
    value.retain = true;
    let retained =
        Publish { message: value, targets: smallvec![], retain: true, newest_only: false, incoming: None };
    done(&engine, vec![Op::Publish(retained)]).await;
    engine.close().unwrap();
    directory
}

async fn store(command: &str, directory: &Path, more: &[&str]) -> Ended {
    let mut args = vec!["store", command, directory.to_str().unwrap()];
    args.extend(more);
    let ended = stafett(args).await;
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    ended
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of_type<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["type"] == kind).collect()
}

fn payload(line: &Value) -> Vec<u8> {
    STANDARD.decode(line["payload_base64"].as_str().unwrap()).unwrap()
}

/// Turns a bit over behind each place at which `pattern` stands in the file. How many there were.
fn flip(directory: &Path, pattern: &[u8]) -> usize {
    let path = directory.join("store/db");
    let mut bytes = fs::read(&path).unwrap();
    let places: Vec<usize> =
        (0..bytes.len() - pattern.len()).filter(|&at| bytes[at..].starts_with(pattern)).collect();
    places.iter().for_each(|&at| bytes[at + 1] ^= 1);
    fs::write(&path, bytes).unwrap();
    places.len()
}

#[tokio::test]
async fn a_sound_store_is_said_to_be_sound() {
    let directory = filled().await;
    let ended = store("check", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.ends_with("sound\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("queue orders"), "{}", ended.stdout);

    let ended = stafett(["store", "check", "--json", "--data-dir", directory.path().to_str().unwrap()]).await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&report["sound"], &report["messages"]), (&true.into(), &202.into()), "{report}");
    assert_eq!(report["targets"][1]["name"], "queue orders", "{report}");
    assert_eq!(report["targets"][1]["messages"], 201, "{report}");
    assert!(report["part_bytes"].as_u64().unwrap() >= LARGE as u64, "{report}");
}

#[tokio::test]
async fn rows_that_are_only_reserved_are_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    done(&engine, vec![Op::Define(ORDERS, queue("orders"))]).await;
    for n in 0..10 {
        // Fills several rows of bodies; the last one has its body in its head.
        let op = |m: usize| publish(message("shop/orders", marked(n * 100 + m)), &[ORDERS]);
        done(&engine, (0..60).map(op).collect()).await;
        done(&engine, vec![op(60)]).await;
    }
    drop(engine);
    for _ in 0..2 {
        let ended = store("check", directory.path(), &["--json"]).await;
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&report["sound"], &report["messages"]), (&true.into(), &610.into()), "{report}");
        assert!(report["body_bytes"].as_u64().unwrap() > 400_000, "{report}");
        drop(open(directory.path()));
    }
    let ended = store("export", directory.path(), &[]).await;
    assert_eq!(of_type(&lines(&ended.stdout), "message").len(), 610, "{}", ended.stderr);
}

#[tokio::test]
async fn checking_neither_counts_as_a_start_nor_removes_anything() {
    let directory = filled().await;
    let boot = open(directory.path()).boot();
    for _ in 0..2 {
        let ended = store("check", directory.path(), &[]).await;
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    }
    let engine = open(directory.path());
    assert_eq!(engine.boot(), boot + 1);
    assert_eq!(engine.stats(ORDERS).unwrap().ready, 201);
}

#[tokio::test]
async fn an_export_holds_all_that_was_put_in() {
    let directory = filled().await;
    let ended = store("export", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("exported 2 targets, 1 retained values, 202 messages"), "{}", ended.stderr);
    let lines = lines(&ended.stdout);
    assert_eq!(lines.len(), 1 + 2 + 1 + 202 + 1);

    let queue = of_type(&lines, "queue")[0];
    assert_eq!((&queue["name"], &queue["bindings"][0]), (&"orders".into(), &"shop/#".into()));
    assert_eq!((&queue["labels"]["team"], &queue["lease_seconds"]), (&"blue".into(), &30.0.into()));
    assert_eq!(queue["created_at"], "2023-11-14T22:13:20.000Z");
    let session = of_type(&lines, "session")[0];
    assert_eq!((&session["name"], &session["principal"]), (&"door-7".into(), &"guard".into()));
    assert_eq!(session["subscriptions"][0]["filter"], "doors/+/open");
    let retained = of_type(&lines, "retained")[0];
    assert_eq!((&retained["topic"], payload(retained)), (&"doors/7/state".into(), b"shut".to_vec()));

    let messages = of_type(&lines, "message");
    let orders: Vec<&&Value> = messages.iter().filter(|line| line["queue"] == "orders").collect();
    for (n, line) in orders.iter().take(200).enumerate() {
        assert_eq!(payload(line), marked(n));
        assert_eq!((&line["sequence"], &line["topic"]), (&(n + 1).into(), &"shop/orders".into()));
    }
    assert_eq!(payload(orders[200]), vec![7; LARGE]);
    let door: Vec<&&Value> = messages.iter().filter(|line| line["session"] == "door-7").collect();
    assert_eq!((door.len(), payload(door[0])), (1, vec![7; LARGE]));
    assert_eq!(door[0]["message_id"], orders[200]["message_id"]);
}

#[tokio::test]
async fn an_export_holds_what_few_messages_carry() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    let Definition::Queue(plain) = queue("orders") else { unreachable!() };
    let special = QueueSpec {
        overflow: Overflow::DropOldest,
        retry_min_backoff: Some(Duration::from_secs(1)),
        single_active_consumer: true,
        expires_after: Some(Duration::from_secs(60)),
        dead_letter_expired: true,
        paused: false,
        ..plain
    };
    done(&engine, vec![Op::Define(ORDERS, Definition::Queue(special))]).await;
    let mut rare = message("shop/rare", vec![0, 255]);
    rare.expires_at = Some(UnixMillis(4_000_000_000_000));
    rare.extras_mut().properties = vec![("k".into(), "1".into()), ("k".into(), "2".into())];
    rare.extras_mut().content_type = Some("application/octet-stream".into());
    rare.extras_mut().correlation_data = Some(Bytes::from_static(b"\0c"));
    rare.extras_mut().reply_to = queue_topic(&QueueName::parse("answers").unwrap());
    let mut append = Append::to(ORDERS);
    append.priority = Priority::new(9).unwrap();
    let publish = Publish {
        message: rare,
        targets: smallvec![append],
        retain: false,
        newest_only: false,
        incoming: None,
    };
    done(&engine, vec![Op::Publish(publish)]).await;
    let consumer = engine.consumer(ORDERS, Default::default()).unwrap();
    let mut taken = Vec::new();
    consumer.take(1, usize::MAX, &mut taken).unwrap();
    let lease = stafett::engine::LeaseRef::of(taken[0].sequence);
    let nacked = engine.nack(ORDERS, &[lease], Nack::Failed(None), Some(Duration::from_secs(3_600))).unwrap();
    nacked.durable.await.unwrap();
    drop(consumer);
    drop(engine);

    let output = directory.path().join("export.jsonl");
    let ended = store("export", directory.path(), &["--output", output.to_str().unwrap()]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
    let lines = lines(&fs::read_to_string(&output).unwrap());
    let definition = of_type(&lines, "queue")[0];
    for (setting, value) in [
        ("overflow", "drop-oldest".into()),
        ("retry_min_backoff_seconds", 1.0.into()),
        ("retry_max_backoff_seconds", Value::Null),
        ("single_active_consumer", true.into()),
        ("expires_after_seconds", 60.0.into()),
        ("dead_letter_expired", true.into()),
        ("paused", false.into()),
    ] {
        assert_eq!(definition[setting], value, "{setting}");
    }
    let line = of_type(&lines, "message")[0];
    assert_eq!(line["properties"], serde_json::json!([["k", "1"], ["k", "2"]]));
    assert_eq!(line["content_type"], "application/octet-stream");
    assert_eq!(line["correlation_data_base64"], STANDARD.encode(b"\0c"));
    assert_eq!(line["reply_to"], "$queue/answers");
    assert_eq!((&line["priority"], &line["attempts"]), (&9.into(), &1.into()));
    assert_eq!(line["expires_at"], "2096-10-02T07:06:40.000Z");
    assert!(line["not_before"].is_string(), "{line}");

    let again = store("export", directory.path(), &["--output", output.to_str().unwrap()]).await;
    assert_eq!(again.code, Some(2), "{}", again.stderr);
    assert!(again.stderr.contains("--output"), "{}", again.stderr);
}

#[tokio::test]
async fn a_stream_is_exported_with_its_times_and_cursors() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    let spec = StreamSpec {
        name: StreamName::parse("readings").unwrap(),
        filters: Vec::new(),
        max_age: None,
        max_messages: 10,
        max_bytes: 1000,
        created_at: UnixMillis(1),
    };
    let cursor = Cursor { sequence: Sequence(1), committed_at: UnixMillis(2) };
    done(
        &engine,
        vec![
            Op::Define(ORDERS, Definition::Stream(spec)),
            Op::SetCursor(ORDERS, CursorName::parse("billing").unwrap(), Some(cursor)),
        ],
    )
    .await;
    let mut short = message("t", "0");
    short.expires_at = Some(UnixMillis(4_000_000_000_000));
    let messages = vec![short, message("t", "1")];
    done(&engine, vec![Op::AppendStream(StreamAppend { target: ORDERS, messages, expected: None })]).await;
    let last = engine.stream_stats(ORDERS).unwrap().last_at.unwrap().0;
    engine.close().unwrap();
    drop(engine);
    let ended = store("export", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines = lines(&ended.stdout);
    assert_eq!(of_type(&lines, "stream")[0]["cursors"][0]["name"], "billing");
    let messages = of_type(&lines, "message");
    assert_eq!((&messages[0]["stream"], &messages[0]["sequence"]), (&"readings".into(), &1.into()));
    assert_eq!(messages[0]["expires_at"], "2096-10-02T07:06:40.000Z", "the message's own");
    assert_eq!(messages[1]["expires_at"], Value::Null);
    for message in messages {
        let at = humantime::parse_rfc3339(message["appended_at"].as_str().unwrap()).unwrap();
        let at = at.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
        assert!((last.saturating_sub(60_000)..=last).contains(&at), "{at} and {last}");
    }
}

#[tokio::test]
async fn settled_messages_are_not_exported() {
    let directory = filled().await;
    let engine = open(directory.path());
    let consumer = engine.consumer(ORDERS, Default::default()).unwrap();
    let mut taken = Vec::new();
    for _ in 0..100 {
        consumer.take(150, usize::MAX, &mut taken).unwrap();
        if taken.len() >= 150 {
            break;
        }
        tokio::time::timeout(Duration::from_secs(10), consumer.ready().heard()).await.unwrap();
    }
    taken.truncate(150);
    let leases: Vec<_> = taken.iter().map(|it| stafett::engine::LeaseRef::of(it.sequence)).collect();
    engine.settle(ORDERS, &leases).unwrap().durable.await.unwrap();
    drop(consumer);
    drop(engine);
    let ended = store("export", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(of_type(&lines(&ended.stdout), "message").len(), 52);
    let ended = store("check", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

#[tokio::test]
async fn damage_in_the_file_is_found_and_the_rest_is_saved() {
    let directory = filled().await;
    // What sled has taken over at an open is read from the file later, and checked then.
    drop(open(directory.path()));
    // It would bring back what sled drops behind the damage.
    fs::remove_file(directory.path().join("journal")).unwrap();
    let flipped = flip(directory.path(), &marked(77)[..21]);
    assert!(flipped > 0, "the payload is not in the file");

    let ended = store("check", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(5), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.starts_with("damaged: "), "{}{}", ended.stdout, ended.stderr);

    let ended = store("export", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    assert!(ended.stderr.contains("damage"), "{}", ended.stderr);
    let lines = lines(&ended.stdout);
    let messages = of_type(&lines, "message");
    assert!(messages.len() > 20 && messages.len() < 202, "{} of 202 messages are left", messages.len());
    assert!(!messages.iter().any(|line| payload(line) == marked(77)));
    assert_eq!(of_type(&lines, "queue").len(), 1);
}

#[tokio::test]
async fn damage_far_from_the_end_costs_only_what_lies_there() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    done(&engine, vec![Op::Define(ORDERS, queue("orders"))]).await;
    for n in 0..60 {
        let op = |m: usize| publish(message("shop/orders", marked(n * 10 + m).repeat(50)), &[ORDERS]);
        done(&engine, (0..10).map(op).collect()).await;
    }
    drop(engine);
    drop(open(directory.path()));
    // In no segment that sled looks through when it opens the file.
    assert!(flip(directory.path(), &marked(300)[..21]) > 0);

    let ended = store("check", directory.path(), &["--json"]).await;
    assert_eq!(ended.code, Some(5), "{}{}", ended.stdout, ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&report["sound"], &report["messages"]), (&false.into(), &600.into()), "{report}");
    let lost = report["damages"].to_string();
    assert!(lost.contains("messages that cannot be delivered"), "{lost}");
    assert!(lost.contains("of queue orders"), "{lost}");

    let ended = store("export", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    let lines = lines(&ended.stdout);
    let messages = of_type(&lines, "message");
    assert!((580..600).contains(&messages.len()), "{} of 600", messages.len());
    let skipped = format!("{} messages were skipped", 600 - messages.len());
    assert!(ended.stderr.contains(&skipped), "{}", ended.stderr);
}

#[tokio::test]
async fn rows_that_are_not_what_was_written_are_told_one_by_one() {
    let directory = filled().await;
    let db = sled_of(directory.path());
    let rows = |tree: &str| {
        let tree = db.open_tree(tree).unwrap();
        let rows: Vec<_> = tree.iter().map(Result::unwrap).collect();
        (tree, rows)
    };
    let (head, heads) = rows("head");
    let mut broken = heads[4].1.to_vec();
    broken[40] ^= 1;
    head.insert(&heads[4].0, broken).unwrap();
    let (part, parts) = rows("part");
    let mut broken = parts[1].1.to_vec();
    broken[7] ^= 1;
    part.insert(&parts[1].0, broken).unwrap();
    let (object, _) = rows("obj");
    object.insert(DOOR.0.to_be_bytes(), b"\xff").unwrap();
    db.open_tree("body").unwrap().insert(2_u64.to_be_bytes(), b"not bodies").unwrap();
    db.open_tree("done").unwrap().insert(6_u64.to_be_bytes(), b"?").unwrap();
    fs::write(directory.path().join("store/blobs/1"), b"").unwrap();
    db.flush().unwrap();
    drop((db, head, part, object));

    let ended = store("check", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(5), "{}{}", ended.stdout, ended.stderr);
    for said in [
        "the head of pack 5: a head row has a wrong checksum; its messages are lost",
        "the definition of target 2: a definition is not valid",
        "the parts of its body have a wrong checksum; messages that cannot be delivered: 1 of queue orders",
        "the bodies of pack 2: its row has a wrong checksum; messages that cannot be delivered: 1 of queue orders",
        "the checkpoint of pack 6: a settlement checkpoint ends too early",
        "the directory blobs: holds 1 files",
    ] {
        assert!(ended.stdout.contains(said), "{said}:\n{}", ended.stdout);
    }
    let ended = store("export", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    let lines = lines(&ended.stdout);
    // One of a lost head, one of lost bodies, two that refer to the broken part.
    assert_eq!(of_type(&lines, "message").len(), 202 - 4, "{}", ended.stderr);
}

#[tokio::test]
async fn any_damage_ends_in_words() {
    let directory = filled().await;
    drop(open(directory.path()));
    let path = directory.path().join("store/db");
    let sound = fs::read(&path).unwrap();
    let used = sound.iter().rposition(|&byte| byte != 0).unwrap();
    for step in 0..16 {
        let mut bytes = sound.clone();
        let from = used * step / 16;
        bytes[from..used.min(from + 64)].iter_mut().for_each(|byte| *byte ^= 0x55);
        fs::write(&path, bytes).unwrap();
        for command in ["check", "export", "stats"] {
            let ended = store(command, directory.path(), &[]).await;
            assert!(matches!(ended.code, Some(0 | 5)), "{command} at {from}: {:?}", ended);
        }
    }
}

#[tokio::test]
async fn a_store_in_use_is_left_alone() {
    let broker = Broker::start().await;
    let data = broker.data();
    for command in ["check", "export", "stats", "compact"] {
        let ended = store(command, data.path(), &[]).await;
        assert_eq!(ended.code, Some(5), "{}", ended.stderr);
        assert!(ended.stderr.contains("in use by another process"), "{}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
    assert_eq!(broker.terminate().await.code, Some(0));
    let ended = store("check", data.path(), &[]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let directory = filled().await;
    let known = store("stats", directory.path(), &["--json"]).await.stdout;
    let known = serde_json::from_str::<Value>(&known).unwrap()["format"].as_u64().unwrap();
    let newer = u32::try_from(known + 1).unwrap();
    set_format(directory.path(), &newer.to_be_bytes());
    for command in ["check", "export", "stats", "compact"] {
        let ended = store(command, directory.path(), &[]).await;
        assert_eq!(ended.code, Some(5), "{}", ended.stderr);
        let said = format!("has format {newer}, this program knows up to {known}");
        assert!(ended.stderr.contains(&said), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_store_from_before_the_journal_is_served() {
    let directory = filled().await;
    let db = sled_of(directory.path());
    let meta = db.open_tree("meta").unwrap();
    meta.insert("format", &1_u32.to_be_bytes()).unwrap();
    meta.remove("journal").unwrap();
    db.flush().unwrap();
    drop((meta, db));
    fs::remove_file(directory.path().join("journal")).unwrap();
    let ended = store("check", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(!directory.path().join("journal").exists(), "a check made a journal");
    let before = store("export", directory.path(), &[]).await.stdout;
    open(directory.path()).close().unwrap();
    assert!(directory.path().join("journal").exists());
    let after = store("export", directory.path(), &[]).await.stdout;
    assert_eq!(of_type(&lines(&before), "message"), of_type(&lines(&after), "message"));
}

#[tokio::test]
async fn what_a_crash_left_half_written_beside_the_data_is_no_damage() {
    let directory = filled().await;
    let before = store("export", directory.path(), &[]).await.stdout;
    let files = directory.path().join("store");
    fs::write(files.join("snap.FFFFFFFFFFFFFFFF.generating"), "half").unwrap();
    let settings = fs::read(files.join("conf")).unwrap();
    fs::write(files.join("conf"), &settings[..settings.len() - 4]).unwrap();
    let ended = store("check", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let after = store("export", directory.path(), &[]).await.stdout;
    assert_eq!(of_type(&lines(&before), "message"), of_type(&lines(&after), "message"));
}

#[tokio::test]
async fn a_store_without_its_journal_is_refused() {
    let broker = Broker::start().await;
    let data = broker.data();
    broker.kill9().await;
    fs::remove_file(data.path().join("journal")).unwrap();
    let ended = store("check", data.path(), &[]).await;
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    assert!(ended.stdout.contains("the journal: the file journal: it is missing"), "{}", ended.stdout);
}

#[tokio::test]
async fn an_unknown_format_does_not_keep_an_export_from_saving() {
    let directory = filled().await;
    set_format(directory.path(), b"?");
    let ended = store("check", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    assert!(ended.stdout.contains("the format of the store: is not a number"), "{}", ended.stdout);
    let ended = store("export", directory.path(), &[]).await;
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    assert_eq!(of_type(&lines(&ended.stdout), "message").len(), 202);
}

/// Writes the format as another program would.
fn set_format(directory: &Path, format: &[u8]) {
    let db = sled_of(directory);
    db.open_tree("meta").unwrap().insert("format", format).unwrap();
    db.flush().unwrap();
}

fn sled_of(directory: &Path) -> sled::Db {
    // Threads of a store that was just dropped may still hold it.
    let held = fs::File::open(directory.join("store/db")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    drop(held);
    let config = sled::Config::new().path(directory.join("store")).segment_size(8 << 20);
    config.flush_every_ms(None).open().unwrap()
}

#[tokio::test]
async fn what_is_no_store_is_wrong_usage_and_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "text").unwrap();
    let absent = directory.path().join("absent");
    let empty = directory.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for command in ["check", "export", "stats", "compact"] {
        for (path, said) in
            [(&file, "it is a file"), (&absent, "No such file"), (&empty, "there is no store in it")]
        {
            let ended = store(command, path, &[]).await;
            assert_eq!(ended.code, Some(2), "{}", ended.stderr);
            assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
        }
    }
    assert!(!absent.exists());
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
}

#[tokio::test]
async fn flags_of_the_client_commands_are_refused() {
    let ended = stafett(["store", "check", "--server", "http://127.0.0.1:1"]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("--server is for the client commands, not for store"), "{}", ended.stderr);
    let help = Process::start(["store", "export", "--help"]).end().await;
    assert_eq!(help.code, Some(0));
    assert!(help.stdout.contains("Examples:"), "{}", help.stdout);
}
