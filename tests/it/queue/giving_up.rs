//! What is tried again and when, and what is given up and why.

use std::collections::BTreeSet;
use std::process::Stdio;

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::consume_request::Action as Ask;
use stafett::grpc::proto::v1::consume_response::Event as Told;
use stafett::grpc::proto::v1::pub_sub_service_client::PubSubServiceClient;
use stafett::types::clock::unix_now;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tonic::Code;

use super::streams::{Consumer, opening};
use super::{Queues, got, message, millis, named, payloads, seconds, which};
use crate::harness::{Broker, within};

/// A broker with the queues `dead` and `q`, which gives up to it.
async fn start(queue: v1::Queue) -> (Broker, Queues) {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(named("dead")).await;
    queues.create(v1::Queue { dead_letter_queue: "dead".to_owned(), ..queue }).await;
    (broker, queues)
}

async fn fail(
    queues: &mut Queues,
    leased: &v1::LeasedMessage,
    reason: &str,
    delay: Option<prost_types::Duration>,
) {
    let nack = v1::NackRequest {
        queue: "q".to_owned(),
        lease_tokens: vec![leased.lease_token.clone()],
        kind: v1::NackKind::Failed.into(),
        delay,
        reason: reason.to_owned(),
    };
    assert_eq!(got(queues.0.nack(nack)).await.failures, []);
}

#[tokio::test]
async fn what_failed_rests_before_it_comes_again() {
    let backoff = v1::Queue { retry_min_backoff: millis(150), retry_max_backoff: millis(250), ..named("q") };
    let (_broker, mut queues) = start(backoff).await;
    queues.fill("q", &["x"]).await;
    for attempt in 1..=3 {
        let leased = queues.one("q").await;
        assert_eq!(leased.delivery_attempt, attempt);
        let before = unix_now();
        fail(&mut queues, &leased, "", None).await;
        let again = queues.one("q").await;
        let rested = unix_now().since(before).as_millis();
        assert!(rested >= 150, "{rested} ms");
        queues.nack("q", &again.lease_token, v1::NackKind::Release).await;
    }
    // A delay that is said goes before it, none at all too; what is released does not rest.
    for (delay, ready, delayed) in [(seconds(0), 1, 0), (seconds(3600), 0, 1)] {
        let leased = queues.one("q").await;
        fail(&mut queues, &leased, "", delay).await;
        let stats = queues.stats("q").await;
        assert_eq!((stats.ready, stats.delayed), (ready, delayed));
    }
    queues.fill("q", &["y"]).await;
    let leased = queues.one("q").await;
    queues.nack("q", &leased.lease_token, v1::NackKind::Release).await;
    assert_eq!(queues.stats("q").await.ready, 1);
}

#[tokio::test]
async fn a_dead_letter_says_why_it_is_one() {
    let ttl =
        v1::Queue { default_ttl: seconds(1), dead_letter_expired: true, max_deliveries: 1, ..named("q") };
    let (broker, mut queues) = start(ttl).await;
    let before = unix_now();
    queues.fill("q", &["failed"]).await;
    let leased = queues.one("q").await;
    fail(&mut queues, &leased, "no stock", None).await;
    let mut dead = vec![queues.one("dead").await];
    queues.fill("q", &["its time is over"]).await;
    dead.push(queues.one("dead").await);
    queues.enqueue("q", v1::Message { ttl: millis(1500), ..message("its own too") }).await;
    dead.push(queues.one("dead").await);
    let whys = dead.iter().map(|dead| {
        let why = dead.dead_letter.clone().unwrap();
        assert_eq!((why.source_queue.as_str(), &dead.message.as_ref().unwrap().ttl), ("q", &None));
        assert!(why.time.unwrap().seconds.unsigned_abs() * 1000 + 999 >= before.0);
        (why.reason, why.attempts)
    });
    let whys: Vec<_> = whys.collect();
    let expected = [("max deliveries reached: no stock", 1), ("expired", 0), ("expired", 0)];
    assert_eq!(whys, expected.map(|(reason, attempts)| (reason.to_owned(), attempts)));
    assert_eq!(payloads(&dead), ["failed", "its time is over", "its own too"]);
    broker.counts("messages_expired_total", 2).await;
    broker.counts("messages_dead_lettered_total", 3).await;
}

#[tokio::test]
async fn a_consumer_whose_process_is_killed_again_and_again_is_counted() {
    let (broker, mut queues) = start(v1::Queue { max_deliveries: 3, ..named("q") }).await;
    // More than a pipe holds: who prints it gets no further until somebody reads.
    let poison = "x".repeat(1 << 20);
    queues.fill("q", &[&poison, "good"]).await;
    for _ in 0..3 {
        let mut client = Command::new(env!("CARGO_BIN_EXE_stafett"))
            .args(["queue", "consume", "q", "--server", &broker.url()])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut first = [0; 8];
        within("a delivery", client.stdout.as_mut().unwrap().read_exact(&mut first)).await.unwrap();
        assert_eq!(&first, b"xxxxxxxx");
        within("the end of the client", client.kill()).await.unwrap();
    }
    let dead = queues.one("dead").await;
    let why = dead.dead_letter.unwrap();
    assert_eq!((why.reason.as_str(), why.attempts), ("max deliveries reached: its consumer was lost", 3));
    // Twice with its neighbour, then alone.
    broker.counts("leases_lost_total", 5).await;
    let neighbour = queues.one("q").await;
    assert_eq!(
        (payloads(std::slice::from_ref(&neighbour)), neighbour.delivery_attempt),
        (vec!["good".to_owned()], 3)
    );
    assert!(queues.is_empty("q").await);
}

#[tokio::test]
async fn what_never_works_does_not_hold_up_the_rest() {
    let rules = v1::Queue { max_deliveries: 3, retry_min_backoff: millis(20), ..named("q") };
    let (_broker, mut queues) = start(rules).await;
    let is_poison = |n: usize| n.is_multiple_of(10);
    let all: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    queues.fill("q", &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut consumer = Consumer::open(&mut queues, opening("q", 4)).await;
    let (mut done, mut failures, mut frames) = (BTreeSet::new(), 0, 0);
    while done.len() < 54 || failures < 18 {
        let event = consumer.next().await.unwrap().unwrap().event;
        let Some(Told::Messages(frame)) = event else { continue };
        for leased in frame.messages {
            let n: usize = payloads(std::slice::from_ref(&leased))[0].parse().unwrap();
            frames += 1;
            let this = which(frames, &[leased.delivery_id]);
            if is_poison(n) {
                failures += 1;
                let kind = v1::NackKind::Failed.into();
                let reason = "bad".to_owned();
                consumer.ask(Ask::Nack(v1::NackBatch { which: Some(this), kind, delay: None, reason })).await;
            } else {
                assert!(done.insert(n), "{n} came twice");
                consumer.ask(Ask::Ack(this)).await;
            }
        }
    }
    let mut dead = BTreeSet::new();
    while dead.len() < 6 {
        for leased in queues.receive("dead", 10).await {
            let why = leased.dead_letter.clone().unwrap();
            assert_eq!((why.reason.as_str(), why.attempts), ("max deliveries reached: bad", 3));
            assert!(dead.insert(payloads(&[leased])[0].parse::<usize>().unwrap()));
        }
    }
    assert!(dead.into_iter().all(is_poison));
}

#[tokio::test]
async fn a_full_queue_makes_room_where_it_is_to() {
    use v1::OverflowPolicy::{DeadLetter, DropOldest, Reject, Unspecified};
    let full =
        |overflow: v1::OverflowPolicy| v1::Queue { max_messages: 2, overflow: overflow.into(), ..named("q") };
    for (asked, told, left, dropped, dead) in [
        (Unspecified, Reject, ["1", "2"], 0, 0),
        (Reject, Reject, ["1", "2"], 0, 0),
        (DropOldest, DropOldest, ["2", "3"], 1, 0),
        (DeadLetter, DeadLetter, ["2", "3"], 0, 1),
    ] {
        let (broker, mut queues) = start(full(asked)).await;
        let get = v1::GetQueueRequest { name: "q".to_owned() };
        assert_eq!(got(queues.0.get_queue(get)).await.queue.unwrap().overflow(), told);
        queues.fill("q", &["1", "2"]).await;
        let third = v1::EnqueueRequest { queue: "q".to_owned(), message: Some(message("3")) };
        let third = within("an answer", queues.0.enqueue(third)).await;
        assert_eq!(
            third.err().map(|status| status.code()),
            (told == Reject).then_some(Code::ResourceExhausted)
        );
        assert_eq!(payloads(&queues.receive("q", 10).await), left);
        assert_eq!(queues.stats("q").await.dropped_total, dropped);
        broker.counts("messages_dropped_full_total", dropped).await;
        if dead > 0 {
            let letter = queues.one("dead").await;
            assert_eq!(payloads(std::slice::from_ref(&letter)), ["1"]);
            let why = letter.dead_letter.unwrap();
            assert_eq!((why.source_queue.as_str(), why.reason.as_str(), why.attempts), ("q", "overflow", 0));
        }
    }
}

#[tokio::test]
async fn a_copy_by_binding_makes_room_too() {
    let small = v1::Queue {
        max_messages: 1,
        overflow: v1::OverflowPolicy::DropOldest.into(),
        bindings: vec!["news/#".to_owned()],
        ..named("q")
    };
    let (broker, mut queues) = start(small).await;
    let mut topics = PubSubServiceClient::new(broker.grpc().await);
    for payload in ["old", "new"] {
        let message = Some(v1::Message { topic: "news/today".to_owned(), ..message(payload) });
        assert_eq!(got(topics.publish(v1::PublishRequest { message })).await.matched_queues, 1);
    }
    assert_eq!(payloads(&queues.receive("q", 10).await), ["new"]);
    // What a consumer has stays: the publish is refused.
    let message = Some(v1::Message { topic: "news/today".to_owned(), ..message("newer") });
    let refused = within("an answer", topics.publish(v1::PublishRequest { message })).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
}
