//! Reading: from where one likes, without a gap or a duplicate, at one's own pace.

use stafett::grpc::proto::v1beta1::StartFrom;
use stafett::grpc::proto::v1beta1::read_response::Event;
use stafett::grpc::proto::{v1, v1beta1};
use tokio::task::JoinSet;

use super::{Logs, counted, from_first, named, said};
use crate::harness::{Broker, within};
use crate::queue::{got, message, seconds};

fn from(start: StartFrom) -> v1beta1::ReadRequest {
    v1beta1::ReadRequest { start: start.into(), ..from_first() }
}

fn skipped(from_sequence: u64, to_sequence: u64) -> v1beta1::Skipped {
    v1beta1::Skipped { from_sequence, to_sequence, reason: v1beta1::SkipReason::NotKept.into() }
}

#[tokio::test]
async fn reading_begins_where_it_is_asked_to() {
    let (_broker, mut logs) = Logs::start().await;
    logs.count("t/a", 0..5).await;
    logs.count("t/b/c", 5..10).await;
    let once = |request| v1beta1::ReadRequest { follow: false, ..request };
    let read = async |logs: &mut Logs, request| logs.read(once(request)).await.rest().await;
    assert_eq!(read(&mut logs, from(StartFrom::First)).await, counted(1, 0..10));
    assert_eq!(read(&mut logs, from(StartFrom::Unspecified)).await, counted(1, 0..10));
    assert_eq!(read(&mut logs, from(StartFrom::Last)).await, counted(10, 9..10));
    assert_eq!(read(&mut logs, from(StartFrom::New)).await, []);
    let seventh = v1beta1::ReadRequest { sequence: 7, ..from(StartFrom::Sequence) };
    assert_eq!(read(&mut logs, seventh.clone()).await, counted(7, 6..10));
    let by_topic = v1beta1::ReadRequest { topic_filter: "t/+".into(), ..from(StartFrom::First) };
    assert_eq!(read(&mut logs, by_topic).await, counted(1, 0..5));
    let three = v1beta1::ReadRequest { max_messages: 3, ..seventh };
    assert_eq!(logs.read(three).await.take(3).await, counted(7, 6..9));

    // A tenth of a second is what is told apart: until the next one has begun.
    let before = logs.state().await.last_time;
    let (mut count, mut time) = (10, before);
    while time == before {
        logs.count("t/a", count..count + 1).await;
        (count, time) = (count + 1, logs.state().await.last_time);
    }
    logs.count("t/a", count..count + 2).await;
    let since = v1beta1::ReadRequest { time, ..from(StartFrom::Time) };
    assert_eq!(read(&mut logs, since).await, counted(count, count - 1..count + 2));
    let future = Some(prost_types::Timestamp { seconds: 32_503_680_000, nanos: 0 });
    let never = v1beta1::ReadRequest { time: future, ..from(StartFrom::Time) };
    assert_eq!(read(&mut logs, never).await, []);
}

#[tokio::test]
async fn a_record_says_what_was_published() {
    let (_broker, mut logs) = Logs::start().await;
    logs.publish("t/x", "payload").await;
    let Event::Records(frame) = logs.read(from_first()).await.hear().await else { panic!("no records") };
    let record = &frame.records[0];
    let (message, origin) = (record.message.as_ref().unwrap(), record.origin.as_ref().unwrap());
    assert_eq!((message.topic.as_str(), &message.payload[..]), ("t/x", &b"payload"[..]));
    assert!(!origin.message_id.is_empty() && record.append_time.is_some() && origin.publish_time.is_some());
    // What was put straight in has the stream's own topic.
    logs.append(&["straight"], None).await.unwrap();
    let last = v1beta1::ReadRequest { start: StartFrom::Last.into(), ..from_first() };
    let Event::Records(frame) = logs.read(last).await.hear().await else { panic!("no records") };
    assert_eq!(frame.records[0].message.as_ref().unwrap().topic, "$stream/s");
}

/// Some publish, some append, and all the while some read from the first on, some of them only now begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_follow_miss_nothing_and_get_nothing_twice() {
    const WRITERS: u64 = 3;
    const EACH: u64 = 150;
    const ALL: usize = (WRITERS * EACH * 2) as usize;
    let (broker, logs) = Logs::start().await;
    let (mut readers, mut writers) = (JoinSet::new(), JoinSet::new());
    for writer in 0..WRITERS {
        let mut logs = logs.clone();
        writers.spawn(async move {
            for n in writer * EACH..(writer + 1) * EACH {
                logs.publish("t/1", format!("p{n}")).await;
                logs.append(&[&format!("a{n}")], None).await.unwrap();
            }
        });
    }
    for reader in 0..4_u64 {
        let mut logs = Logs::of(&broker).await;
        readers.spawn(async move {
            // Each begins when there is something.
            while logs.state().await.messages < reader * 100 {}
            logs.read(from_first()).await.take(ALL).await
        });
    }
    writers.join_all().await;
    let all = logs.clone().all().await;
    assert!(all.iter().map(|(sequence, _)| *sequence).eq(1..=ALL as u64));
    let mut payloads: Vec<_> = all.iter().map(|(_, payload)| payload.clone()).collect();
    payloads.sort();
    payloads.dedup();
    assert_eq!(payloads.len(), ALL, "each once");
    // Each writer's own are in its order.
    for (kind, writer) in ["p", "a"].into_iter().flat_map(|kind| (0..WRITERS).map(move |w| (kind, w))) {
        let own = (writer * EACH..(writer + 1) * EACH).map(|n| format!("{kind}{n}"));
        let places: Vec<_> = own.map(|own| all.iter().position(|(_, payload)| *payload == own)).collect();
        assert!(places.is_sorted(), "{kind} of {writer}");
    }
    for read in readers.join_all().await {
        assert_eq!(read, all);
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_nobody_up_and_is_told_what_it_missed() {
    let broker = Broker::start().await;
    let mut logs = Logs::of(&broker).await;
    logs.create(v1beta1::Stream { max_messages: 50, ..named("s", &["t/#"]) }).await;
    let payload = "x".repeat(100_000);
    logs.publish("t/1", payload.clone()).await;
    let mut slow = logs.read(from_first()).await;
    // Far more than what lies between the two, while the reader does not read.
    for _ in 0..600 {
        logs.publish("t/1", payload.clone()).await;
    }
    let state = logs.state().await;
    assert_eq!((state.messages, state.first_sequence, state.next_sequence), (50, 552, 602));
    let (mut next, mut missed) = (1, 0);
    while next < 602 {
        match slow.hear().await {
            Event::Records(frame) => {
                for (sequence, _) in said(&frame.records) {
                    assert_eq!(sequence, next, "a gap that was not told");
                    next = sequence + 1;
                }
            }
            Event::Skipped(skipped) => {
                assert_eq!(skipped.from_sequence, next);
                assert!(skipped.to_sequence >= skipped.from_sequence);
                missed += skipped.to_sequence - skipped.from_sequence + 1;
                next = skipped.to_sequence + 1;
            }
            Event::CaughtUp(_) | Event::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(missed > 100, "it missed {missed}");
}

#[tokio::test]
async fn who_does_not_follow_is_told_of_nothing_that_came_since() {
    let broker = Broker::start().await;
    let mut logs = Logs::of(&broker).await;
    logs.create(v1beta1::Stream { max_messages: 100, ..named("s", &["t"]) }).await;
    let payload = "x".repeat(100_000);
    for _ in 0..100 {
        logs.publish("t", payload.clone()).await;
    }
    let mut slow = logs.read(v1beta1::ReadRequest { follow: false, ..from_first() }).await;
    // What it was to read goes, and so does some of what came since.
    for _ in 0..250 {
        logs.publish("t", payload.clone()).await;
    }
    assert_eq!(logs.state().await.first_sequence, 251);
    let mut next = 1;
    let told = loop {
        match slow.hear().await {
            Event::Records(frame) => next = said(&frame.records).last().unwrap().0 + 1,
            Event::Skipped(told) => break told,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told, skipped(next, 100));
    assert_eq!(slow.hear().await, Event::CaughtUp(v1beta1::CaughtUp { next_sequence: 101 }));
    assert!(slow.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_place_that_is_gone_is_told_and_one_that_waits_hears_heartbeats() {
    let broker = Broker::start().await;
    let mut logs = Logs::of(&broker).await;
    logs.create(v1beta1::Stream { max_messages: 3, ..named("s", &["t"]) }).await;
    logs.count("t", 0..10).await;
    let request =
        v1beta1::ReadRequest { sequence: 2, heartbeat_interval: seconds(1), ..from(StartFrom::Sequence) };
    let mut reader = logs.read(request).await;
    assert_eq!(reader.hear().await, Event::Skipped(skipped(2, 7)));
    let Event::Records(frame) = reader.hear().await else { panic!("no records") };
    assert_eq!(said(&frame.records), counted(8, 7..10));
    assert_eq!(reader.hear().await, Event::CaughtUp(v1beta1::CaughtUp { next_sequence: 11 }));
    assert!(matches!(reader.hear().await, Event::Heartbeat(_)));
    logs.count("t", 10..11).await;
    assert_eq!(reader.take(1).await, counted(11, 10..11));
    // The end of the broker is told.
    broker.terminate().await;
    loop {
        match reader.hear().await {
            Event::Closing(closing) => {
                assert!(closing.reconnect_after.is_some());
                break;
            }
            Event::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn age_takes_what_is_old() {
    let (_broker, mut logs) = Logs::start().await;
    logs.count("t", 0..5).await;
    let short = v1beta1::UpdateStreamRequest {
        stream: Some(v1beta1::Stream { max_age: seconds(1), ..named("s", &[]) }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["max_age".into()] }),
    };
    got(logs.logs.update_stream(short)).await;
    within("what is old to go", async { while logs.state().await.messages > 0 {} }).await;
    let state = logs.state().await;
    assert_eq!((state.first_sequence, state.next_sequence, state.aged_total), (6, 6, 5));
    assert_eq!((state.bytes, state.first_time), (0, None));
}

#[tokio::test]
async fn a_message_whose_own_time_is_over_is_passed_over() {
    let (_broker, mut logs) = Logs::start().await;
    let append = v1beta1::AppendRequest {
        stream: "s".into(),
        messages: vec![
            v1::Message { ttl: seconds(1), ..message("short") },
            v1::Message { ttl: seconds(3600), ..message("long") },
        ],
        expected_next_sequence: None,
    };
    got(logs.logs.append(append)).await;
    within("the time to be over", async { while logs.all().await.len() > 1 {} }).await;
    assert_eq!(logs.all().await, [(2, "long".to_owned())]);
    assert_eq!(logs.state().await.messages, 2, "it is kept for as long as the others");
}

#[tokio::test]
async fn cursors_move_on_and_back_and_say_how_far_behind_they_are() {
    let broker = Broker::start().await;
    let mut logs = Logs::of(&broker).await;
    logs.create(v1beta1::Stream { max_messages: 10, ..named("s", &["t"]) }).await;
    logs.count("t", 0..8).await;
    assert_eq!(logs.commit("a", 5, false).await, 5);
    assert_eq!(logs.commit("b", 0, false).await, 0);
    assert_eq!(logs.commit("a", 3, false).await, 5, "an older place changes nothing");
    assert_eq!(logs.commit("a", 4, true).await, 4);
    let by = |cursor: &str, start: StartFrom| v1beta1::ReadRequest {
        cursor: cursor.to_owned(),
        follow: false,
        ..from(start)
    };
    assert_eq!(logs.read(by("a", StartFrom::Committed)).await.rest().await, counted(5, 4..8));
    assert_eq!(logs.read(by("new", StartFrom::Unspecified)).await.rest().await, counted(1, 0..8));
    logs.count("t", 8..20).await;
    let (a, b) = (("a".to_owned(), 4, 16, 6), ("b".to_owned(), 0, 20, 10));
    assert_eq!(logs.cursors().await, [a, b]);
    let delete = v1beta1::DeleteCursorRequest { stream: "s".into(), cursor: "a".into() };
    got(logs.logs.delete_cursor(delete)).await;
    assert_eq!(logs.cursors().await.len(), 1);
}
