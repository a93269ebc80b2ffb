//! Sending dead letters back: those that are meant, as far as there is room.

use stafett::grpc::proto::v1;
use tonic_types::{RpcStatusExt, StatusExt};

use super::browse::{having, with};
use super::{Queues, field, got, message, named, payloads, reason, refused};
use crate::harness::{Broker, stafett, within};

/// Queues `orders` (of at most `max` messages), `bills` and `dead`, which has what both have given up.
async fn dead_letters(queues: &mut Queues, max_messages: u64) {
    queues.create(named("dead")).await;
    for (name, max_messages) in [("orders", max_messages), ("bills", 0)] {
        queues.create(v1::Queue { dead_letter_queue: "dead".into(), max_messages, ..named(name) }).await;
    }
}

/// Puts a message in and gives it up.
async fn bury(queues: &mut Queues, queue: &str, message: v1::Message) {
    queues.enqueue(queue, message).await;
    let lease_tokens = vec![queues.one(queue).await.lease_token];
    let kind = v1::NackKind::DeadLetter.into();
    let nack = v1::NackRequest { queue: queue.into(), lease_tokens, kind, ..Default::default() };
    let before = queues.stats("dead").await.ready;
    assert_eq!(got(queues.0.nack(nack)).await.failures, []);
    // The answer does not wait for the disk.
    while queues.stats("dead").await.ready == before {}
}

fn redriving(filter: Option<v1::MessageFilter>) -> v1::RedriveRequest {
    v1::RedriveRequest { dead_letter_queue: "dead".into(), filter, ..Default::default() }
}

async fn ready(queues: &mut Queues, queue: &str) -> Vec<String> {
    payloads(&queues.browse(v1::BrowseRequest { queue: queue.into(), ..Default::default() }).await)
}

#[tokio::test]
async fn what_is_meant_goes_back_without_its_reason() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    dead_letters(&mut queues, 0).await;
    for (queue, payload, tenant) in
        [("orders", "a", "7"), ("bills", "b", "7"), ("orders", "c", "8"), ("bills", "d", "8")]
    {
        bury(&mut queues, queue, with(payload, &[("tenant", tenant)])).await;
    }
    let of_bills = v1::MessageFilter { source_queue: "bills".into(), ..having(&[("tenant", "8")]).unwrap() };
    let answer = got(queues.0.redrive(redriving(Some(of_bills)))).await;
    assert_eq!((answer.moved, answer.stayed), (1, 0));
    assert_eq!(ready(&mut queues, "bills").await, ["d"]);
    // Also from a queue that is paused.
    queues.pause("dead", true).await;
    assert_eq!(got(queues.0.redrive(redriving(having(&[("tenant", "7")])))).await.moved, 2);
    assert_eq!(ready(&mut queues, "dead").await, ["c"]);
    let back = queues.one("orders").await;
    assert_eq!((back.dead_letter, back.delivery_attempt), (None, 1));

    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    assert_eq!(ready(&mut queues, "orders").await, ["a"]);
    assert_eq!(ready(&mut queues, "bills").await, ["d", "b"]);
    assert_eq!(ready(&mut queues, "dead").await, ["c"]);
}

#[tokio::test]
async fn a_full_queue_takes_no_more_and_what_stays_is_reported() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    dead_letters(&mut queues, 2).await;
    for payload in ["a", "b", "c", "d"] {
        bury(&mut queues, "orders", message(payload)).await;
    }
    bury(&mut queues, "bills", message("e")).await;
    queues.enqueue("dead", message("of nobody")).await;
    let places: Vec<_> = {
        let browse = v1::BrowseRequest { queue: "dead".into(), ..Default::default() };
        queues.browse(browse).await.iter().map(|shown| shown.sequence).collect()
    };
    let mut parts = got(queues.0.redrive_stream(redriving(None))).await;
    let mut last = v1::RedriveProgress::default();
    let mut errors = Vec::new();
    while let Some(part) = within("a part", parts.message()).await.unwrap() {
        assert!(part.moved >= last.moved && part.through_sequence > last.through_sequence);
        errors.extend(part.errors.clone());
        last = part;
    }
    assert_eq!((last.moved, last.stayed, last.looked_at), (3, 3, 6));
    assert_eq!(last.through_sequence, *places.last().unwrap());
    let told: Vec<_> = errors
        .iter()
        .map(|e| (e.sequence, reason(&e.error.as_ref().unwrap().get_error_details()).to_owned()))
        .collect();
    let full = "QUEUE_FULL".to_owned();
    assert_eq!(told, [(places[2], full.clone()), (places[3], full), (places[5], "NO_WAY_BACK".to_owned())]);
    assert_eq!(ready(&mut queues, "dead").await, ["c", "d", "of nobody"]);
    assert_eq!(ready(&mut queues, "orders").await, ["a", "b"]);
    assert_eq!(ready(&mut queues, "bills").await, ["e"]);

    // What stays is as it was, and none moved is an error of the call.
    let dead = queues.one("dead").await;
    assert_eq!(dead.dead_letter.as_ref().unwrap().source_queue, "orders");
    queues.nack("dead", &dead.lease_token, v1::NackKind::Release).await;
    let request = v1::RedriveRequest { max_messages: 1, ..redriving(None) };
    assert_eq!(reason(&refused(queues.0.redrive(request)).await.get_error_details()), "QUEUE_FULL");
    let leased = queues.receive("orders", 2).await;
    assert_eq!(queues.acknowledge("orders", super::tokens(&leased)).await, []);
    let request = v1::RedriveRequest { max_messages: 1, ..redriving(None) };
    assert_eq!(got(queues.0.redrive(request)).await.moved, 1);
    assert_eq!(ready(&mut queues, "orders").await, ["c"]);

    let wrong = v1::MessageFilter { topic_filter: "#/a".into(), ..Default::default() };
    assert_eq!(field(&refused(queues.0.redrive(redriving(Some(wrong)))).await), "filter.topic_filter");
}

#[tokio::test]
async fn many_for_a_full_queue_do_not_hide_those_behind_them() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    dead_letters(&mut queues, 0).await;
    for (queue, count) in [("orders", 1500), ("bills", 10)] {
        for part in (0..count).collect::<Vec<_>>().chunks(500) {
            let messages = part.iter().map(|n| message(&n.to_string())).collect();
            got(queues.0.enqueue_batch(v1::EnqueueBatchRequest {
                queue: queue.into(),
                messages,
                atomic: false,
            }))
            .await;
            let lease_tokens = super::tokens(&queues.receive(queue, 500).await);
            assert_eq!(lease_tokens.len(), part.len());
            let kind = v1::NackKind::DeadLetter.into();
            let nack = v1::NackRequest { queue: queue.into(), lease_tokens, kind, ..Default::default() };
            assert_eq!(got(queues.0.nack(nack)).await.failures, []);
        }
    }
    while queues.stats("dead").await.ready < 1510 {}
    let fill = async |queues: &mut Queues, queue: &str| {
        queues.enqueue(queue, message("full")).await;
        let bounded = Some(v1::Queue { max_messages: 1, ..named(queue) });
        let update_mask = Some(prost_types::FieldMask { paths: vec!["max_messages".into()] });
        got(queues.0.update_queue(v1::UpdateQueueRequest { queue: bounded, update_mask })).await;
    };
    fill(&mut queues, "orders").await;
    let to_its_end = async |queues: &mut Queues, request| {
        let mut parts = got(queues.0.redrive_stream(request)).await;
        let (mut last, mut errors) = (v1::RedriveProgress::default(), Vec::new());
        while let Some(part) = within("a part", parts.message()).await.unwrap() {
            errors.extend(part.errors.clone());
            last = part;
        }
        (last, errors)
    };
    let request = v1::RedriveRequest { max_messages: 100, ..redriving(None) };
    let (last, errors) = to_its_end(&mut queues, request).await;
    assert_eq!((last.moved, last.stayed, last.looked_at), (10, 1500, 1510));
    assert_eq!(errors.len(), 100);
    let bound = |e: &v1::RedriveError| e.error.as_ref().unwrap().message.contains("max_messages 1");
    assert!(errors.iter().all(bound), "{errors:?}");

    // A queue that is named is no other: all that stay are counted.
    queues.create(named("small")).await;
    fill(&mut queues, "small").await;
    let request = v1::RedriveRequest { destination: "small".into(), ..redriving(None) };
    let (last, _) = to_its_end(&mut queues, request).await;
    assert_eq!((last.moved, last.stayed, last.looked_at), (0, 1500, 1500));
}

#[tokio::test]
async fn a_dead_letter_queue_takes_what_is_given_up_beyond_its_bound() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(v1::Queue { max_messages: 1, ..named("dead") }).await;
    queues.create(v1::Queue { dead_letter_queue: "dead".into(), ..named("orders") }).await;
    for payload in ["a", "b"] {
        bury(&mut queues, "orders", message(payload)).await;
    }
    assert_eq!(ready(&mut queues, "dead").await, ["a", "b"]);
}

#[tokio::test]
async fn dead_letters_are_sent_back_from_the_command_line() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    dead_letters(&mut queues, 1).await;
    for payload in ["a", "b"] {
        bury(&mut queues, "orders", with(payload, &[("tenant", "7")])).await;
    }
    bury(&mut queues, "bills", with("c", &[("tenant", "8")])).await;
    let url = broker.url();
    let redrive = async |args: &[&str]| {
        let all = ["queue", "redrive", "dead", "--server", &url];
        stafett(all.into_iter().chain(args.iter().copied())).await
    };
    let ended = redrive(&["--where", "tenant=8", "--progress"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "moved 1\n"), "{}", ended.stderr);
    assert_eq!(ended.stderr, "1 moved, 0 stay, 3 looked at\n");
    let ended = redrive(&["--source", "orders"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), "moved 1\n"));
    assert!(ended.stderr.contains("the queue `orders` is full (max_messages 1)"), "{}", ended.stderr);
    let ended = redrive(&["--to", "bills"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "moved 1\n"), "{}", ended.stderr);
    assert_eq!(ready(&mut queues, "bills").await, ["c", "b"]);
}
