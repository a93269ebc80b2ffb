//! What is stored of streams.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::super::Embedded;
use super::super::disk::Disk;
use super::super::lanes::Work;
use super::super::prepare::prepare_all;
use super::super::testing::{lose_packs, message, publish, settings};
use crate::engine::{Definition, Engine, Found, Op, Outcome, StreamAppend, StreamSpec, Ticket};
use crate::types::{Qos, Sequence, StreamName, TargetId, UnixMillis};

async fn with_stream(directory: &Path) -> (Embedded, TargetId) {
    let engine = Embedded::open(settings(directory)).unwrap();
    let id = engine.next_target();
    let spec = StreamSpec {
        name: StreamName::parse("s").unwrap(),
        filters: Vec::new(),
        max_age: None,
        max_messages: u64::MAX,
        max_bytes: u64::MAX,
        created_at: UnixMillis(1),
    };
    engine.commit(vec![Op::Define(id, Definition::Stream(spec))]).await.unwrap();
    (engine, id)
}

#[tokio::test]
async fn numbers_come_round_and_pass_over_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let (engine, id) = with_stream(directory.path()).await;
    assert_eq!(id, TargetId(1));
    engine.shared.next_target.store((1 << 31) - 1, Ordering::Relaxed);
    assert_eq!(engine.next_target(), TargetId((1 << 31) - 1));
    assert_eq!(engine.next_target(), TargetId(2));
    engine.close().unwrap();
}

/// As when packs go in the commit of a message that a crash takes back.
#[tokio::test]
async fn a_sequence_is_written_down_when_its_message_is_durable() {
    let directory = tempfile::tempdir().unwrap();
    let (engine, id) = with_stream(directory.path()).await;
    append(&engine, id, 3, 1).await;
    let (reply, stored) = Ticket::new();
    let ops = prepare_all(vec![publish(id, "4", Qos::AtLeastOnce)], &engine.shared.hash_secret);
    let written = || engine.shared.disk.trees.seq.get(id.0.to_be_bytes()).unwrap();
    engine.pen.with(|writer| {
        writer.stage(Work::Commit { ops, reply }).unwrap();
        writer.write_sequences().unwrap();
        writer.round(&mut Vec::new()).unwrap();
        assert_eq!(written().unwrap(), 4_u64.to_be_bytes());
        writer.write_sequences().unwrap();
        writer.round(&mut Vec::new()).unwrap();
        assert_eq!(written().unwrap(), 5_u64.to_be_bytes());
    });
    stored.await.unwrap();
    engine.close().unwrap();
}

#[tokio::test]
async fn what_cannot_be_read_is_passed_and_told() {
    let directory = tempfile::tempdir().unwrap();
    let (engine, id) = with_stream(directory.path()).await;
    for _ in 0..3 {
        append(&engine, id, 1, 100_000).await;
    }
    engine.close().unwrap();
    drop(engine);
    let engine = Embedded::open(settings(directory.path())).unwrap();
    // Each has rows of its own, which begin with its pack and its number there.
    let parts = &engine.shared.disk.trees.part;
    let keys: Vec<_> = parts.iter().map(|row| row.unwrap().0).collect();
    let mut messages: Vec<_> = keys.iter().map(|key| &key[..10]).collect();
    messages.dedup();
    for key in keys.iter().filter(|key| key.starts_with(messages[1])) {
        parts.remove(key).unwrap();
    }
    let reader = engine.stream_reader(id, None).unwrap();
    let read = |from| reader.read(Sequence(from), 9, usize::MAX).unwrap().found;
    assert!(read(1).is_empty());
    reader.ready().heard().await;
    let found = read(1);
    let [Found::Message(first), Found::Unreadable(Sequence(2)), Found::Message(last)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!((first.sequence, last.sequence), (Sequence(1), Sequence(3)));
    assert!(engine.counters().contains(&("stream_messages_unreadable_total", 1)));
    drop(reader);
    engine.close().unwrap();
}

async fn append(engine: &Embedded, target: TargetId, count: usize, len: usize) {
    let messages = vec![message(vec![b'x'; len]); count];
    let append = StreamAppend { target, messages, expected: None };
    let outcome = engine.commit(vec![Op::AppendStream(append)]).await.unwrap().remove(0);
    assert!(matches!(&outcome, Outcome::Published(sequences) if sequences.len() == count), "{outcome:?}");
}

/// As when the power is cut while the packs of an append are on their way to the file, whose beginning is left.
#[tokio::test]
async fn an_append_fills_rows_and_is_there_as_a_whole_or_not_at_all() {
    const COUNT: usize = 300;
    let mut missing = 0;
    loop {
        let directory = tempfile::tempdir().unwrap();
        let (engine, id) = with_stream(directory.path()).await;
        append(&engine, id, 1, 1).await;
        append(&engine, id, COUNT, 200).await;
        engine.close().unwrap();
        drop(engine);

        let disk = Disk::open_existing(directory.path(), 1 << 20).unwrap();
        assert!(disk.trees.part.is_empty(), "a row for one message");
        let of_append = lose_packs(disk, missing) - 1;
        assert!((3..10).contains(&of_append), "the append fills {of_append} packs");
        let engine = Embedded::open(settings(directory.path())).unwrap();
        let expected = if missing == 0 { 1 + COUNT } else { 1 };
        let stored = || engine.stream_stats(id).unwrap().messages as usize;
        assert_eq!(stored(), expected, "{missing} of {of_append} packs are missing");
        append(&engine, id, 1, 1).await;
        assert_eq!(stored(), expected + 1);
        if missing == of_append {
            return;
        }
        missing += 1;
    }
}
