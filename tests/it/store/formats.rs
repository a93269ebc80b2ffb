//! Stores that earlier programs have left, byte by byte: `tests/data/store/`. Each was made with the same content by the program
//! of its time, and closed or killed; `README.md` there says how.

use std::process::Command;

use stafett::engine::StreamStats;
use stafett::types::CursorName;

use super::care::{export, take};
use super::*;

// What stores of format 3 have beside.
const KEYS: TargetId = TargetId(5);
const IDS: TargetId = TargetId(6);
const BATCH: TargetId = TargetId(7);
const LOG: TargetId = TargetId(8);
const CALLS: TargetId = TargetId(9);

/// A store of this name, unpacked.
fn unpacked(name: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/store/{name}.tar.gz"));
    let unpacked = Command::new("tar").arg("-xzf").arg(packed).arg("-C").arg(directory.path()).status();
    assert!(unpacked.expect("tar").success(), "{name} cannot be unpacked");
    directory
}

async fn format_of(directory: &Path) -> u64 {
    let ended = store("stats", directory, &["--json"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_str::<Value>(&ended.stdout).unwrap()["format"].as_u64().unwrap()
}

/// Compares an export with what every one of these stores was given.
fn compare(text: &str, name: &str) {
    let lines = lines(text);
    let messages = of_type(&lines, "message");
    let of = |kind: &str, name: &str| {
        messages.iter().copied().filter(|line| line[kind] == name).collect::<Vec<_>>()
    };
    let sequences =
        |lines: &[&Value]| lines.iter().map(|it| it["sequence"].as_u64().unwrap()).collect::<Vec<_>>();
    let orders = of("queue", "orders");
    let left: Vec<u64> = (6..=12).chain(21..=44).collect();
    assert_eq!(sequences(&orders), left, "{name}");
    for (line, n) in orders.iter().zip(&left) {
        let expected = match n {
            ..=12 => format!("order {n}").into_bytes(),
            13..=42 => format!("order {n} ").repeat(30).into_bytes(),
            43 => vec![7; LARGE],
            _ => b"late".to_vec(),
        };
        assert!(payload(line) == expected, "{name}: order {n}");
    }
    assert_eq!((&orders[0]["attempts"], orders[0]["not_before"].is_string()), (&1.into(), true), "{name}");
    let late = orders[30];
    assert_eq!((&late["priority"], &late["content_type"]), (&9.into(), &"text/plain".into()), "{name}");
    assert_eq!(late["expires_at"], "2096-10-02T07:06:40.000Z", "{name}");
    assert_eq!(late["not_before"], "2065-01-24T05:20:00.000Z", "{name}");
    assert_eq!(late["properties"], serde_json::json!([["k", "1"], ["k", "2"]]), "{name}");
    let door = of("session", "door-7");
    let outgoing: Vec<_> =
        door.iter().map(|it| (&it["outgoing"]["packet_id"], &it["outgoing"]["state"])).collect();
    let (none, sent, received) = (Value::Null, Value::from("sent"), Value::from("received"));
    let (five, six) = (Value::from(5), Value::from(6));
    assert_eq!(outgoing, [(&none, &none), (&five, &sent), (&six, &received), (&none, &none)], "{name}");
    assert_eq!(payload(door[3]), b"exactly 3", "{name}");
    assert_eq!(of("group", "$share/g/a/#").len(), 1, "{name}");
    let dead = of("queue", "dead")[0];
    assert_eq!(dead["dead_letter"]["reason"], "max deliveries", "{name}");
    let session = of_type(&lines, "session")[0];
    assert_eq!(session["subscriptions"][0]["max_qos"], 2, "{name}");
    let mut unreleased: Vec<_> = session["unreleased"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["packet_id"].as_u64().unwrap())
        .collect();
    unreleased.sort_unstable();
    assert_eq!(unreleased, [17, 40_000], "{name}");
    let mut retained: Vec<_> = of_type(&lines, "retained")
        .iter()
        .map(|it| (it["topic"].as_str().unwrap().to_owned(), payload(it)))
        .collect();
    retained.sort_unstable();
    let values = [("doors/7/state", "ajar"), ("doors/8/state", "open")];
    assert_eq!(retained, values.map(|(topic, value)| (topic.to_owned(), value.into())), "{name}");
    assert_eq!(of_type(&lines, "queue")[0]["labels"]["team"], "blue", "{name}");
}

/// The same of what a store has since format 3.
fn compare_newer(text: &str, name: &str) {
    let lines = lines(text);
    let messages = of_type(&lines, "message");
    let of = |kind: &str, name: &str| {
        messages.iter().copied().filter(|line| line[kind] == name).collect::<Vec<_>>()
    };
    let said =
        |lines: &[&Value]| lines.iter().map(|it| String::from_utf8(payload(it)).unwrap()).collect::<Vec<_>>();
    let keys = of("queue", "keys");
    assert_eq!(said(&keys), ["a1", "a2", "b1", "c1", "c2"], "{name}");
    let (rests, delayed) = (&keys[0], &keys[3]);
    assert_eq!((&rests["rests"], &rests["attempts"]), (&true.into(), &1.into()), "{name}");
    assert!(rests["not_before"].is_string() && delayed["not_before"].is_string(), "{name}");
    assert_eq!((&delayed["rests"], &keys[2]["losses"]), (&Value::Null, &1.into()), "{name}");
    assert_eq!(keys[1]["ordering_key"], "a", "{name}");
    let ids = of("queue", "ids");
    assert_eq!((said(&ids), &ids[0]["dedup_id"]), (vec!["i2".to_owned()], &"i2".into()), "{name}");
    assert!(
        said(&of("queue", "batch")).into_iter().eq((0..40).map(|n| format!("{n} ").repeat(400))),
        "{name}"
    );
    let readings = of("stream", "readings");
    assert!(said(&readings).into_iter().eq((10..20).map(|n| format!("reading {n}"))), "{name}");
    assert!(readings.iter().all(|line| line["appended_at"].is_string()), "{name}");
    let cursors = &of_type(&lines, "stream")[0]["cursors"];
    let at =
        |cursor: &Value| (cursor["name"].as_str().unwrap().to_owned(), cursor["sequence"].as_u64().unwrap());
    let cursors: Vec<_> = cursors.as_array().unwrap().iter().map(at).collect();
    assert_eq!(cursors, [("alarms".to_owned(), 3), ("billing".to_owned(), 15)], "{name}");
    assert_eq!(said(&of("backlog", "requests")), ["asked"], "{name}");
    let phone = of("session", "phone");
    assert_eq!(said(&phone), ["settled", "waits"], "{name}");
    let outgoing = [&phone[0]["outgoing"]["packet_id"], &phone[0]["outgoing"]["state"]];
    assert_eq!(outgoing, [&Value::from(9), &"settled".into()], "{name}");
}

/// The engine's own view of it.
async fn serves(engine: &Embedded, knows_settled: bool, name: &str) {
    // What rests holds its key up, what is delayed does not.
    let (keys, count) = (take(engine, KEYS, 2).await, engine.stats(KEYS).unwrap());
    assert_eq!(keys.iter().map(|it| it.sequence.0).collect::<Vec<_>>(), [3, 5], "{name}");
    assert_eq!((count.delayed, count.last.0), (2, 5), "{name}");
    for (id, known) in [("i1", knows_settled), ("i2", true)] {
        let mut again = message("known", "again");
        again.extras_mut().dedup_id = Some(id.into());
        let outcomes = engine.commit(vec![publish(again, &[IDS])]).await.unwrap();
        assert_eq!(matches!(outcomes[..], [Outcome::Duplicate { .. }]), known, "{name}: {id}: {outcomes:?}");
    }
    assert_eq!((engine.stats(BATCH).unwrap().ready, engine.stats(CALLS).unwrap().ready), (40, 1), "{name}");
    let StreamStats { ends, messages, .. } = engine.stream_stats(LOG).unwrap();
    assert_eq!((ends.first.0, ends.next.0, messages), (11, 21, 10), "{name}");
    let cursors = engine.stored().streams.remove(0).cursors;
    assert!(
        cursors
            .iter()
            .map(|(name, at)| (name, at.sequence.0))
            .eq([(&CursorName::parse("alarms").unwrap(), 3), (&CursorName::parse("billing").unwrap(), 15)]),
        "{name}: {cursors:?}"
    );
}

#[tokio::test]
async fn stores_of_every_format_are_read_served_rewritten_and_imported() {
    let newest = format_of(filled().await.path()).await;
    for (name, format) in [
        ("format-1", 1),
        ("format-1-killed", 1),
        ("format-2", 2),
        ("format-2-killed", 2),
        ("format-3", 3),
        ("format-3-killed", 3),
        ("format-4", 4),
        ("format-4-killed", 4),
    ] {
        let compare = |text: &str, name: &str| {
            compare(text, name);
            if format > 2 {
                compare_newer(text, name);
            }
        };
        let directory = unpacked(name);
        let path = directory.path();
        assert_eq!(format_of(path).await, format, "{name}");
        let ended = store("check", path, &[]).await;
        assert_eq!(ended.code, Some(0), "{name}: {}{}", ended.stdout, ended.stderr);
        let before = export(path).await;
        compare(&before, name);

        // As it was, elsewhere.
        let beside = tempfile::tempdir().unwrap();
        let file = beside.path().join("export.jsonl");
        fs::write(&file, &before).unwrap();
        for (from, to) in [(file.as_path(), "of-lines"), (path, "of-rows")] {
            let to = beside.path().join(to);
            let args = ["store", "import", from.to_str().unwrap(), "--data-dir", to.to_str().unwrap()];
            let ended = stafett(args).await;
            assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
            compare(&export(&to).await, name);
            let engine = open(&to);
            if format > 2 {
                serves(&engine, from == path, name).await;
            }
            engine.close().unwrap();
        }

        // Rewritten as it was, then served: only that makes it a store of the newest format.
        let again = unpacked(name);
        assert_eq!(store("compact", again.path(), &[]).await.code, Some(0), "{name}");
        assert_eq!(format_of(again.path()).await, format, "{name}");
        for path in [path, again.path()] {
            let engine = open(path);
            let stats = engine.stats(ORDERS).unwrap();
            assert_eq!((stats.ready + stats.delayed, stats.last.0), (31, 44), "{name}");
            done(&engine, vec![publish(message("shop/orders", "new"), &[ORDERS])]).await;
            assert_eq!(engine.stats(ORDERS).unwrap().last.0, 45, "{name}");
            if format > 2 {
                serves(&engine, true, name).await;
            }
            engine.close().unwrap();
            drop(engine);
            assert_eq!(format_of(path).await, newest, "{name}");
            let after = export(path).await;
            let kept: Vec<&str> = after.lines().filter(|line| !line.contains("\"sequence\":45,")).collect();
            compare(&kept.join("\n"), name);
        }
    }
}
