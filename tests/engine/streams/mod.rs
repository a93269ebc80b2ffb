//! Streams: what is appended, what is kept, who reads it.

mod crash;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stafett::engine::{
    Append, Cursor, Definition, Durability, Engine, EngineError, Found, Logged, Op, Outcome, QueueSpec,
    Refusal, StreamAppend, StreamEnds, StreamPage, StreamReader, StreamSpec,
};
use stafett::types::{CursorName, Message, Sequence, StreamName, TargetId, TopicFilter, UnixMillis};

use crate::bench::{Bench, publish, refusal, spec, stored, within};

fn kept(name: &str) -> StreamSpec {
    StreamSpec {
        name: StreamName::parse(name.to_owned()).unwrap(),
        filters: Vec::new(),
        max_age: None,
        max_messages: u64::MAX,
        max_bytes: u64::MAX,
        created_at: UnixMillis(1),
    }
}

fn number(message: &Message) -> u64 {
    std::str::from_utf8(&message.payload).unwrap().trim_end_matches('.').parse().unwrap()
}

async fn stream(bench: &Bench, spec: StreamSpec) -> TargetId {
    let id = bench.engine.next_target();
    change(bench, id, spec).await;
    id
}

async fn change(bench: &Bench, id: TargetId, spec: StreamSpec) {
    assert_eq!(bench.commit(Op::Define(id, Definition::Stream(spec))).await, Outcome::Done);
}

fn append(bench: &Bench, target: TargetId, numbers: std::ops::Range<u64>, expected: Option<u64>) -> Op {
    let messages = numbers.map(|n| bench.message("t", n.to_string())).collect();
    Op::AppendStream(StreamAppend { target, messages, expected: expected.map(Sequence) })
}

fn ends(bench: &Bench, stream: TargetId) -> (u64, u64) {
    let StreamEnds { first, next } = bench.engine.stream_stats(stream).unwrap().ends;
    (first.0, next.0)
}

fn messages(page: StreamPage) -> Vec<Logged> {
    let message = |found| match found {
        Found::Message(logged) => logged,
        other => panic!("{other:?}"),
    };
    page.found.into_iter().map(message).collect()
}

/// What a reader gets next: waits for it.
async fn next_page(reader: &dyn StreamReader, from: Sequence, max: usize) -> Vec<Logged> {
    within("something to read", async {
        loop {
            let page = reader.read(from, max, 64 << 10).unwrap();
            if !page.found.is_empty() {
                return messages(page);
            }
            reader.ready().heard().await;
        }
    })
    .await
}

/// All that is kept.
async fn all(bench: &Bench, stream: TargetId) -> Vec<Logged> {
    let reader = bench.engine.stream_reader(stream, None).unwrap();
    let StreamEnds { first, next } = bench.engine.stream_stats(stream).unwrap().ends;
    let (mut at, mut read) = (first, Vec::new());
    while at < next {
        read.extend(next_page(&*reader, at, 1000).await);
        at = Sequence(read.last().unwrap().sequence.0 + 1);
    }
    read
}

fn places(read: &[Logged]) -> Vec<(u64, u64)> {
    read.iter().map(|logged| (logged.sequence.0, number(&logged.message))).collect()
}

/// Has the engine do other things until it is so: what goes by itself goes soon.
async fn until(bench: &Bench, what: &str, mut is_so: impl FnMut() -> bool) {
    let side = bench.queue("side").await;
    within(what, async {
        while !is_so() {
            bench.put(side, "").await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_appended_is_read_as_often_as_one_likes_and_after_a_restart() {
    let bench = Bench::new();
    let log = stream(&bench, kept("log")).await;
    let queue = bench.queue("q").await;
    assert_eq!(ends(&bench, log), (1, 1));
    // By a publish, beside a queue; and straight.
    let both = publish(bench.message("t", "0"), [Append::to(queue), Append::to(log)]);
    assert_eq!(stored(&bench.commit(both).await), Sequence(1));
    let Outcome::Published(sequences) = bench.commit(append(&bench, log, 1..500, None)).await else {
        panic!("not stored")
    };
    assert_eq!(sequences.len(), 499);
    let large = "7".repeat(15) + &".".repeat(300_000);
    bench.put(log, large.clone()).await;
    let expected: Vec<(u64, u64)> =
        (0..500).map(|n| (n + 1, n)).chain([(501, 777_777_777_777_777)]).collect();
    for _ in 0..2 {
        assert_eq!(places(&all(&bench, log).await), expected);
    }
    assert_eq!(bench.drain(queue).await, ["0"]);
    let bench = bench.reopen();
    let read = all(&bench, log).await;
    assert_eq!(places(&read), expected);
    assert_eq!(read.last().unwrap().message.payload, large);
    assert!(read.iter().map(|logged| logged.appended_at).is_sorted());
    let stats = bench.engine.stream_stats(log).unwrap();
    assert_eq!((stats.messages, stats.ends.next, stats.readers), (501, Sequence(502), 0));
    assert!(stats.bytes > 300_000 && stats.first_at <= stats.last_at && stats.first_at.is_some());
}

#[tokio::test]
async fn an_append_is_whole_and_only_where_it_is_expected() {
    let bench = Bench::new();
    let log = stream(&bench, StreamSpec { max_messages: 10, ..kept("log") }).await;
    assert!(matches!(bench.commit(append(&bench, log, 0..3, Some(1))).await, Outcome::Published(_)));
    let other = refusal(bench.commit(append(&bench, log, 9..12, Some(3))).await);
    assert_eq!(other, Refusal::OtherNext { target: log, next: Sequence(4), expected: Sequence(3) });
    // More than it keeps at all: nothing goes for it.
    let much = refusal(bench.commit(append(&bench, log, 0..11, None)).await);
    assert_eq!(much, Refusal::Oversize { target: log, bound: "max_messages 10".to_owned() });
    assert_eq!(ends(&bench, log), (1, 4));
    // Room for all of them, by the oldest.
    bench.commit(append(&bench, log, 3..12, Some(4))).await;
    assert_eq!(places(&all(&bench, log).await), (2..12).map(|n| (n + 1, n)).collect::<Vec<_>>());
    let bench = bench.reopen();
    assert_eq!(places(&all(&bench, log).await), (2..12).map(|n| (n + 1, n)).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_oldest_go_for_new_ones_and_for_a_lower_bound() {
    let bench = Bench::new();
    let log = stream(&bench, StreamSpec { max_messages: 100, ..kept("log") }).await;
    let ops = (0..250).map(|n| bench.publish(&[log], n.to_string())).collect();
    within("a commit", bench.engine.commit(ops)).await.unwrap();
    assert_eq!(ends(&bench, log), (151, 251));
    assert_eq!(places(&all(&bench, log).await), (150..250).map(|n| (n + 1, n)).collect::<Vec<_>>());
    assert_eq!(bench.engine.stream_stats(log).unwrap().displaced_total, 150);
    let bytes = bench.engine.stream_stats(log).unwrap().bytes;
    change(&bench, log, StreamSpec { max_messages: 100, max_bytes: bytes / 2, ..kept("log") }).await;
    until(&bench, "the bytes to go", || bench.engine.stream_stats(log).unwrap().bytes <= bytes / 2).await;
    let (first, next) = ends(&bench, log);
    assert!((195..=207).contains(&first) && next == 251, "{first} {next}");
    change(&bench, log, StreamSpec { max_messages: 7, ..kept("log") }).await;
    until(&bench, "the messages to go", || ends(&bench, log) == (244, 251)).await;
    let bench = bench.reopen();
    assert_eq!(places(&all(&bench, log).await), (243..250).map(|n| (n + 1, n)).collect::<Vec<_>>());
    assert_eq!(bench.put(log, "250").await, Sequence(251));
}

#[tokio::test]
async fn a_large_message_has_as_many_small_ones_go_as_it_takes() {
    const BYTES: u64 = 60_000;
    let bench = Bench::new();
    let log = stream(&bench, StreamSpec { max_bytes: BYTES, ..kept("log") }).await;
    let ops = (0..2000).map(|n| bench.publish(&[log], n.to_string())).collect();
    within("a commit", bench.engine.commit(ops)).await.unwrap();
    let stats = || bench.engine.stream_stats(log).unwrap();
    assert!(stats().bytes > BYTES * 9 / 10 && stats().messages > 1000, "{:?}", stats());
    for n in 2001..2004 {
        assert_eq!(bench.put(log, "7".repeat(50_000)).await, Sequence(n));
        assert!(stats().bytes <= BYTES, "{:?}", stats());
    }
    let bench = bench.reopen();
    assert_eq!(ends(&bench, log), (2003, 2004));
}

#[tokio::test]
async fn age_takes_all_and_the_sequences_go_on() {
    let bench = Bench::new();
    let log = stream(&bench, kept("log")).await;
    for n in 0..50 {
        bench.put(log, n.to_string()).await;
    }
    assert!(bench.engine.counters().iter().any(|(name, count)| *name == "messages_stored" && *count == 50));
    // What was appended before is meant too.
    let short = StreamSpec { max_age: Some(Duration::from_millis(1)), ..kept("log") };
    change(&bench, log, short).await;
    until(&bench, "all to go", || ends(&bench, log) == (51, 51)).await;
    let stats = bench.engine.stream_stats(log).unwrap();
    assert_eq!((stats.messages, stats.aged_total, stats.first_at), (0, 50, None));
    until(&bench, "the bytes to go", || bench.engine.stream_stats(log).unwrap().bytes == 0).await;
    let bench = bench.reopen();
    assert_eq!(ends(&bench, log), (51, 51));
    let bench = bench.reopen();
    assert_eq!(bench.put(log, "50").await, Sequence(51));
    until(&bench, "the new one to go", || ends(&bench, log) == (52, 52)).await;
}

#[tokio::test]
async fn a_time_leads_to_the_first_message_since() {
    let bench = Bench::new();
    let log = stream(&bench, kept("log")).await;
    bench.put(log, "0").await;
    let last = |bench: &Bench| bench.engine.stream_stats(log).unwrap().last_at.unwrap();
    let first = last(&bench);
    // Until another tenth of a second has begun.
    let mut newest = Sequence(1);
    while last(&bench) == first {
        newest = bench.put(log, "1").await;
    }
    let later = last(&bench);
    bench.put(log, "2").await;
    let bench = bench.reopen();
    let at = |time| bench.engine.stream_at(log, UnixMillis(time)).unwrap();
    assert_eq!((at(0), at(first.0)), (Sequence(1), Sequence(1)));
    assert_eq!((at(later.0), at(later.0 - 99)), (newest, newest), "to a tenth of a second");
    let end = last(&bench);
    assert!(at(later.0 + 1) > newest && at(end.0 + 1) == Sequence(newest.0 + 2));
}

/// Many write, many read from the beginning while they do, some from memory and some from disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_follow_miss_nothing_and_get_nothing_twice() {
    const WRITERS: u64 = 4;
    const EACH: u64 = 3000;
    let bench = Arc::new(Bench::small_cache());
    let log = stream(&bench, kept("log")).await;
    let mut readers = tokio::task::JoinSet::new();
    for slow in [false, false, true] {
        let bench = bench.clone();
        readers.spawn(async move {
            let reader = bench.engine.stream_reader(log, None).unwrap();
            let mut read = Vec::new();
            while read.len() < (WRITERS * EACH) as usize {
                let from = Sequence(read.len() as u64 + 1);
                read.extend(places(&next_page(&*reader, from, if slow { 7 } else { 500 }).await));
                if slow {
                    tokio::task::yield_now().await;
                }
            }
            read
        });
    }
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let bench = bench.clone();
        writers.spawn(async move {
            let mut said = Vec::new();
            for n in 0..EACH {
                let n = writer * EACH + n;
                // Large enough that memory does not hold them all.
                let payload = format!("{n}{}", ".".repeat(1000));
                said.push((bench.put(log, payload).await.0, n));
            }
            said
        });
    }
    let mut said: Vec<(u64, u64)> = writers.join_all().await.concat();
    said.sort_unstable();
    assert!(said.iter().map(|(sequence, _)| *sequence).eq(1..=WRITERS * EACH));
    for read in readers.join_all().await {
        assert_eq!(read, said);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_follow_one_stream() {
    const READERS: usize = 200;
    let bench = Arc::new(Bench::with(Durability::Memory));
    let log = stream(&bench, kept("log")).await;
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..READERS {
        let reader = bench.engine.stream_reader(log, None).unwrap();
        readers.spawn(async move {
            let mut read = Vec::new();
            while read.len() < 100 {
                read.extend(places(&next_page(&*reader, Sequence(read.len() as u64 + 1), 1000).await));
            }
            read
        });
    }
    assert_eq!(bench.engine.stream_stats(log).unwrap().readers as usize, READERS);
    for n in 0..100 {
        bench.put(log, n.to_string()).await;
    }
    let expected: Vec<(u64, u64)> = (0..100).map(|n| (n + 1, n)).collect();
    for read in readers.join_all().await {
        assert_eq!(read, expected);
    }
    assert_eq!(bench.engine.stream_stats(log).unwrap().readers, 0);
}

#[tokio::test]
async fn a_reader_that_is_overtaken_sees_where_the_stream_begins() {
    let bench = Bench::small_cache();
    let log = stream(&bench, StreamSpec { max_messages: 100, ..kept("log") }).await;
    for n in 0..50 {
        bench.put(log, n.to_string()).await;
    }
    let reader = bench.engine.stream_reader(log, None).unwrap();
    assert_eq!(places(&next_page(&*reader, Sequence(1), 10).await).last(), Some(&(10, 9)));
    let ops = (50..400).map(|n| bench.publish(&[log], n.to_string())).collect();
    within("a commit", bench.engine.commit(ops)).await.unwrap();
    let page = reader.read(Sequence(11), 5, usize::MAX).unwrap();
    assert_eq!(page.ends, StreamEnds { first: Sequence(301), next: Sequence(401) });
    assert_eq!(places(&next_page(&*reader, Sequence(11), 5).await)[0], (301, 300));
    // Its end is told, too.
    bench.commit(Op::Delete(log)).await;
    within("the end", reader.ready().heard()).await;
    assert_eq!(reader.read(Sequence(301), 1, 1).unwrap_err(), EngineError::NoSuchTarget(log));
    assert!(bench.engine.stream_stats(log).is_err());
}

/// The stream is the first of many targets, the last of which has no room: until that is found out, the stream has its oldest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stays_because_another_target_refuses_is_never_told_as_gone() {
    let bench = Bench::with(Durability::Memory);
    let log = stream(&bench, StreamSpec { max_messages: 3, ..kept("log") }).await;
    let full = bench.queue_with(QueueSpec { max_messages: 1, ..spec("full") }).await;
    let mut targets = vec![log];
    for n in 0..200 {
        targets.push(bench.queue(&format!("q{n}")).await);
    }
    targets.push(full);
    bench.put(full, "0").await;
    for n in 0..3 {
        bench.put(log, n.to_string()).await;
    }
    let (engine, over) = (bench.engine.clone(), Arc::new(AtomicBool::new(false)));
    let reading = {
        let over = over.clone();
        std::thread::spawn(move || {
            let reader = engine.stream_reader(log, None).unwrap();
            let mut looks = 0_u64;
            while !over.load(Ordering::Relaxed) {
                assert_eq!(reader.read(Sequence(1), 1, 1).unwrap().ends.first, Sequence(1));
                looks += 1;
            }
            looks
        })
    };
    for n in 0..2000 {
        let refused = refusal(bench.commit(bench.publish(&targets, n.to_string())).await);
        assert!(matches!(refused, Refusal::Full { target, .. } if target == full));
    }
    over.store(true, Ordering::Relaxed);
    assert!(reading.join().unwrap() > 0);
    assert_eq!(ends(&bench, log), (1, 4));
    targets.pop();
    bench.commit(bench.publish(&targets, "3")).await;
    assert_eq!(places(&all(&bench, log).await), [(2, 1), (3, 2), (4, 3)]);
}

#[tokio::test]
async fn a_bound_can_be_lowered_though_the_disk_is_nearly_full() {
    let bench = Bench::new();
    let log = stream(&bench, StreamSpec { max_messages: 100, ..kept("log") }).await;
    bench.commit(append(&bench, log, 0..10, None)).await;
    let bench = bench.reopen_with(|settings| settings.watermark_free_bytes = u64::MAX);
    let define = |spec| Op::Define(log, Definition::Stream(spec));
    for more in [
        append(&bench, log, 10..11, None),
        define(StreamSpec { max_messages: 101, ..kept("log") }),
        define(kept("log")),
        Op::Define(bench.engine.next_target(), Definition::Stream(kept("other"))),
    ] {
        let refused = refusal(bench.commit(more).await);
        assert!(matches!(refused, Refusal::LowDisk { .. }), "{refused:?}");
    }
    let aged = StreamSpec { max_messages: 100, max_age: Some(Duration::from_secs(3600)), ..kept("log") };
    change(&bench, log, aged.clone()).await;
    change(&bench, log, StreamSpec { max_messages: 3, ..aged }).await;
    let cursor = Cursor { sequence: Sequence(1), committed_at: UnixMillis(1) };
    within("the messages to go", async {
        while ends(&bench, log) != (8, 11) {
            let name = CursorName::parse("side").unwrap();
            bench.commit(Op::SetCursor(log, name, Some(cursor))).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_not_wanted_is_passed_over() {
    let bench = Bench::new();
    let log = stream(&bench, kept("log")).await;
    let topics = ["a/1", "a/2", "b", "a/2", "b"];
    let all = topics.map(|topic| publish(bench.message(topic, "0"), [Append::to(log)]));
    within("a commit", bench.engine.commit(all.into())).await.unwrap();
    let wanted = |bench: &Bench| {
        let filter = TopicFilter::parse("a/2".into()).unwrap();
        bench.engine.stream_reader(log, Some(filter)).unwrap()
    };
    let seen = |page: StreamPage| -> Vec<(u64, bool)> {
        let seen = |found: &Found| (found.sequence().0, matches!(found, Found::Message(_)));
        page.found.iter().map(seen).collect()
    };
    let expected = [(1, false), (2, true), (3, false), (4, true), (5, false)];
    assert_eq!(seen(wanted(&bench).read(Sequence(1), 9, 9999).unwrap()), expected);
    // The same from the disk.
    let bench = bench.reopen();
    let reader = wanted(&bench);
    assert_eq!(seen(reader.read(Sequence(1), 9, 9999).unwrap()), []);
    within("a page", reader.ready().heard()).await;
    assert_eq!(seen(reader.read(Sequence(1), 9, 9999).unwrap()), expected);
}

#[tokio::test]
async fn who_has_room_for_one_reads_the_disk_once_for_many() {
    let bench = Bench::new();
    let log = stream(&bench, kept("log")).await;
    bench.commit(append(&bench, log, 0..300, None)).await;
    let bench = bench.reopen();
    let reader = bench.engine.stream_reader(log, None).unwrap();
    assert!(reader.read(Sequence(1), 1, 1).unwrap().found.is_empty());
    within("a page", reader.ready().heard()).await;
    for n in 1..=256 {
        let read = messages(reader.read(Sequence(n), 1, 1).unwrap());
        assert_eq!(places(&read), [(n, n - 1)], "it is here");
    }
    // Who goes elsewhere gets what is there.
    assert_eq!(places(&next_page(&*reader, Sequence(290), 5).await)[0], (290, 289));
    assert_eq!(places(&next_page(&*reader, Sequence(2), 5).await)[0], (2, 1));
}

#[tokio::test]
async fn cursors_are_there_after_a_restart_and_go_with_their_stream() {
    let bench = Bench::new();
    let log = stream(&bench, kept("log")).await;
    let name = |name: &str| CursorName::parse(name.to_owned()).unwrap();
    let cursor = |n| Cursor { sequence: Sequence(n), committed_at: UnixMillis(n) };
    for (of, n) in [("a", 5), ("b", 6), ("a", 7)] {
        bench.commit(Op::SetCursor(log, name(of), Some(cursor(n)))).await;
    }
    let bench = bench.reopen();
    let streams = bench.engine.stored().streams;
    assert_eq!(streams.len(), 1);
    assert_eq!((streams[0].id, &streams[0].spec), (log, &kept("log")));
    assert_eq!(streams[0].cursors, [(name("a"), cursor(7)), (name("b"), cursor(6))]);
    bench.commit(Op::SetCursor(log, name("b"), None)).await;
    let bench = bench.reopen();
    assert_eq!(bench.engine.stored().streams[0].cursors, [(name("a"), cursor(7))]);
    bench.commit(Op::Delete(log)).await;
    assert_eq!(refusal(bench.commit(Op::SetCursor(log, name("a"), None)).await), Refusal::Gone(log),);
    let bench = bench.reopen();
    assert!(bench.engine.stored().streams.is_empty());
    let again = stream(&bench, kept("log")).await;
    let bench = bench.reopen();
    assert_eq!(bench.engine.stored().streams[0].cursors, []);
    assert_eq!(bench.put(again, "0").await, Sequence(1));
}

/// What is settled beside a stream lets old packs be written anew: its messages move, and are read where they lie.
#[tokio::test]
async fn messages_that_are_moved_in_the_store_stay_in_their_places() {
    let bench = Bench::small_cache();
    let log = stream(&bench, kept("log")).await;
    let queue = bench.queue("q").await;
    let pad = ".".repeat(400);
    for round in 0..40 {
        let ops = (0..250)
            .map(|n| {
                let n = round * 250 + n;
                let target = if n % 10 == 0 { log } else { queue };
                bench.publish(&[target], format!("{n}{pad}"))
            })
            .collect();
        within("a commit", bench.engine.commit(ops)).await.unwrap();
    }
    let reader = bench.engine.stream_reader(log, None).unwrap();
    bench.drain(queue).await;
    let expected: Vec<(u64, u64)> = (0..1000).map(|n| (n + 1, n * 10)).collect();
    for _ in 0..20 {
        let mut read = Vec::new();
        while read.len() < 1000 {
            let from = Sequence(read.len() as u64 + 1);
            read.extend(places(&next_page(&*reader, from, 100).await));
        }
        assert_eq!(read, expected);
        bench.put(queue, "more").await;
        bench.drain(queue).await;
    }
    drop(reader);
    let bench = bench.reopen();
    assert_eq!(places(&all(&bench, log).await), expected);
}
