//! What leases count for: over a crash, and when consumers are lost with what they have.

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::consume_request::Action as Ask;

use super::streams::{Consumer, opening, which};
use super::{Queues, named, payloads};
use crate::harness::Broker;

/// What is in `q`, with the number of its delivery.
async fn attempts(queues: &mut Queues, count: usize) -> Vec<(String, u32)> {
    let mut messages = Vec::new();
    while messages.len() < count {
        messages.extend(queues.receive("q", 10).await);
    }
    let attempts = messages.iter().map(|leased| leased.delivery_attempt);
    payloads(&messages).into_iter().zip(attempts).collect()
}

#[tokio::test]
async fn a_lease_older_than_a_second_counts_after_a_kill() {
    let (broker, mut queues) = Queues::start().await;
    queues.fill("q", &["held", "released", "failed"]).await;
    let _held = queues.one("q").await;
    let released = queues.one("q").await;
    let failed = queues.one("q").await;
    broker.counts("leases_written_total", 3).await;
    queues.nack("q", &released.lease_token, v1::NackKind::Release).await;
    queues.nack("q", &failed.lease_token, v1::NackKind::Failed).await;
    // It is on disk after them.
    queues.fill("q", &["last"]).await;
    let data = broker.data();
    broker.kill9().await;

    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    let expected = [("held", 2), ("released", 1), ("failed", 2), ("last", 1)];
    let expected = expected.map(|(payload, attempt)| (payload.to_owned(), attempt));
    assert_eq!(attempts(&mut queues, 4).await, expected);
}

#[tokio::test]
async fn a_lease_that_a_stop_ends_does_not_count() {
    let (broker, mut queues) = Queues::start().await;
    queues.fill("q", &["held"]).await;
    queues.one("q").await;
    broker.counts("leases_written_total", 1).await;
    let data = broker.data();
    let ended = broker.terminate().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    assert_eq!(attempts(&mut queues, 1).await, [("held".to_owned(), 1)]);
}

#[tokio::test]
async fn what_was_lost_with_two_streams_comes_alone_and_its_neighbours_are_not_buried() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(named("dead")).await;
    let queue = v1::Queue { max_deliveries: 3, dead_letter_queue: "dead".to_owned(), ..named("q") };
    queues.create(queue).await;
    queues.fill("q", &["poison", "a", "b"]).await;
    for attempt in 1..=2 {
        let (mut far, line) = Queues::over_a_line(&broker).await;
        let mut lost = Consumer::open(&mut far, opening("q", 10)).await;
        assert!(lost.take(3).await.iter().all(|leased| leased.delivery_attempt == attempt));
        line.cut();
    }
    broker.counts("leases_lost_total", 6).await;
    let (mut far, line) = Queues::over_a_line(&broker).await;
    let mut lost = Consumer::open(&mut far, opening("q", 10)).await;
    assert_eq!(payloads(&lost.take(1).await), ["poison"]);
    line.cut();
    let buried = queues.one("dead").await;
    assert_eq!(payloads(&[buried]), ["poison"]);
    broker.counts("messages_dead_lettered_total", 1).await;

    let mut consumer = Consumer::open(&mut queues, opening("q", 10)).await;
    for (number, payload) in [(1, "a"), (2, "b")] {
        assert_eq!(payloads(&consumer.take_past_results(1).await), [payload]);
        consumer.ask(Ask::Ack(which(number, &[number]))).await;
    }
    assert!(queues.is_empty("dead").await);
}
