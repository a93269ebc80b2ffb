//! What is promised holds over a crash.

use std::collections::BTreeSet;

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::consume_request::Action as Ask;
use stafett::grpc::proto::v1::consume_response::Event as Told;
use stafett::grpc::proto::v1::produce_response::Event as Heard;
use tonic_types::RpcStatusExt;

use super::streams::{Consumer, Producer, opening, which};
use super::{Queues, got, message, named, payloads, reason, seconds};
use crate::harness::{Broker, within};

/// The numbers of all messages that are ready, in their order.
async fn numbers(queues: &mut Queues) -> Vec<u64> {
    let browse = v1::BrowseRequest { queue: "q".to_owned(), ..Default::default() };
    let mut pages = got(queues.0.browse(browse)).await;
    let mut numbers = Vec::new();
    while let Some(page) = within("a page", pages.message()).await.unwrap() {
        numbers.extend(payloads(&page.messages).iter().map(|payload| payload.parse::<u64>().unwrap()));
    }
    numbers
}

#[tokio::test]
async fn what_was_acknowledged_on_a_stream_holds_after_a_kill() {
    const BATCH: u64 = 20;
    let (broker, mut queues) = Queues::start().await;
    let mut producer = Producer::open(&mut queues, "q").await;
    let mut acknowledged = 0;
    let mut sent = 0;
    while acknowledged < 40 {
        // Always some in flight, so that the kill comes in the midst of it.
        while sent < acknowledged + 30 {
            sent += 1;
            let first = (sent - 1) * BATCH;
            let messages = (first..first + BATCH).map(|number| message(&number.to_string())).collect();
            producer.batch(sent, messages).await;
        }
        let Heard::Ack(ack) = producer.hear().await else { panic!("not an ack") };
        assert_eq!(ack.errors, []);
        acknowledged = ack.through_batch_id;
    }
    let data = broker.data();
    broker.kill9().await;

    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    let stored = numbers(&mut queues).await;
    assert!(stored.len() as u64 >= acknowledged * BATCH, "{} of {acknowledged} batches", stored.len());
    assert_eq!(stored, (0..stored.len() as u64).collect::<Vec<_>>());

    let mut consumer = Consumer::open(&mut queues, opening("q", 200)).await;
    let mut frames: Vec<Vec<u64>> = Vec::new();
    let mut settled = 0;
    while settled < 3 {
        match consumer.next().await.unwrap().unwrap().event.unwrap() {
            Told::Messages(frame) => {
                let ids: Vec<_> = frame.messages.iter().map(|leased| leased.delivery_id).collect();
                for ids in ids.chunks(10) {
                    // Deliveries are numbered from 1, payloads from 0.
                    frames.push(ids.iter().map(|id| id - 1).collect());
                    consumer.ask(Ask::Ack(which(frames.len() as u64, ids))).await;
                }
            }
            Told::Results(results) => settled = results.acked_through,
            other => panic!("{other:?}"),
        }
    }
    let data = broker.data();
    broker.kill9().await;

    let broker = Broker::start_in(data, &[]).await;
    let left: BTreeSet<_> = numbers(&mut Queues::of(&broker).await).await.into_iter().collect();
    let gone = &frames[..usize::try_from(settled).unwrap()];
    assert!(gone.iter().flatten().all(|number| !left.contains(number)), "settled messages came again");
    let asked: BTreeSet<_> = frames.iter().flatten().copied().collect();
    assert!(stored.iter().all(|number| left.contains(number) || asked.contains(number)), "messages are lost");
}

#[tokio::test]
async fn messages_definitions_and_tokens_survive_a_kill() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(named("dead")).await;
    let defined = v1::Queue {
        lease: seconds(60),
        max_deliveries: 3,
        dead_letter_queue: "dead".to_owned(),
        retry_min_backoff: seconds(600),
        retry_max_backoff: seconds(3600),
        bindings: vec!["a/#".to_owned()],
        priorities: true,
        overflow: v1::OverflowPolicy::DeadLetter.into(),
        labels: [("team".to_owned(), "a".to_owned())].into(),
        dead_letter_expired: true,
        expires_after: seconds(3600),
        ..named("q")
    };
    let defined = queues.create(defined).await;
    queues.fill("q", &["kept", "settled", "leased 1", "leased 2"]).await;
    let later = v1::Message {
        schedule: Some(v1::message::Schedule::Delay(seconds(3600).unwrap())),
        ..message("later")
    };
    queues.enqueue("q", later).await;
    let mut leased = queues.receive("q", 4).await;
    let (second, first) = (leased.pop().unwrap(), leased.pop().unwrap());
    assert_eq!(queues.acknowledge("q", vec![leased[1].lease_token.clone()]).await, []);

    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    let get = v1::GetQueueRequest { name: "q".to_owned() };
    assert_eq!(got(queues.0.get_queue(get)).await.queue, Some(defined));
    let stats = queues.stats("q").await;
    assert_eq!((stats.ready, stats.delayed, stats.leased), (3, 1, 0));

    // A lease of before the crash is good as long as nobody else has the message.
    assert_eq!(queues.acknowledge("q", vec![first.lease_token.clone()]).await, []);
    let mut messages = queues.receive("q", 10).await;
    if messages.len() < 2 {
        messages.extend(queues.receive("q", 10).await);
    }
    assert_eq!(payloads(&messages), ["kept", "leased 2"]);
    for old in [first, second] {
        let failures = queues.acknowledge("q", vec![old.lease_token]).await;
        let error = failures[0].error.as_ref().unwrap();
        assert_eq!(reason(&error.get_error_details()), "LEASE_EXPIRED");
    }
    assert_eq!(queues.acknowledge("q", super::tokens(&messages)).await, []);

    let data = broker.data();
    let ended = broker.terminate().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    assert!(queues.is_empty("q").await);
    assert_eq!(queues.stats("q").await.delayed, 1);
}

#[tokio::test]
async fn a_deleted_queue_stays_deleted() {
    let (broker, mut queues) = Queues::start().await;
    queues.fill("q", &["x"]).await;
    let delete = v1::DeleteQueueRequest { name: "q".to_owned(), only_if_empty: false };
    got(queues.0.delete_queue(delete)).await;
    queues.create(named("r")).await;
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    let listed = got(queues.0.list_queues(v1::ListQueuesRequest::default())).await.queues;
    assert_eq!(listed.iter().map(|queue| queue.name.as_str()).collect::<Vec<_>>(), ["r"]);
    queues.create(named("q")).await;
    assert!(queues.is_empty("q").await);
}

#[tokio::test]
async fn what_is_only_on_disk_is_received_without_waiting() {
    let (broker, mut queues) = Queues::start().await;
    queues.fill("q", &["a"]).await;
    let data = broker.data();
    broker.kill9().await;

    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    let received = queues.receive_for("q", 1, None).await;
    assert_eq!(received.len(), 1);
    assert!(queues.is_empty("q").await);
}
