//! Which consumer gets what: the single active one, the one of the highest priority.

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::consume_request::Action as Ask;
use stafett::grpc::proto::v1::consume_response::Event as Told;
use tonic::Code;
use tonic_types::StatusExt;

use super::streams::{Consumer, opening};
use super::{Queues, got, message, named, payloads, reason, refused, which};
use crate::harness::Broker;

async fn single() -> (Broker, Queues) {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(v1::Queue { single_active_consumer: true, ..named("q") }).await;
    (broker, queues)
}

/// Opens, and says whether it is active.
async fn open(queues: &mut Queues, open: v1::ConsumeOpen) -> (Consumer, bool) {
    let mut consumer = Consumer::start(queues, Ask::Open(open)).await;
    match consumer.hear().await {
        Told::Opened(opened) => (consumer, opened.active),
        other => panic!("not opened: {other:?}"),
    }
}

#[tokio::test]
async fn one_stream_gets_messages_and_the_next_takes_over() {
    let (broker, mut queues) = single().await;
    let (mut far, line) = Queues::over_a_line(&broker).await;
    let (mut first, active) = open(&mut far, opening("q", 2)).await;
    assert!(active);
    let (mut second, active) = open(&mut queues, opening("q", 10)).await;
    assert!(!active);
    let (mut third, active) =
        open(&mut queues, v1::ConsumeOpen { consumer_priority: 3, ..opening("q", 1) }).await;
    assert!(!active, "it does not take the place of another");
    queues.fill("q", &["1", "2", "3", "4"]).await;
    assert_eq!(payloads(&first.take(2).await), ["1", "2"]);
    line.cut();
    assert!(matches!(third.hear().await, Told::BecameActive(_)), "the highest is next");
    let taken = third.take(1).await;
    assert_eq!((payloads(&taken), taken[0].delivery_attempt), (vec!["1".to_owned()], 2));
    third.ask(Ask::Ack(which(1, &[1]))).await;
    assert_eq!(payloads(&third.take_past_results(1).await), ["2"]);
    third.close();
    assert!(matches!(second.hear().await, Told::BecameActive(_)));
    assert_eq!(payloads(&second.take(3).await), ["2", "3", "4"]);

    let receive = v1::ReceiveRequest { queue: "q".to_owned(), ..Default::default() };
    let status = refused(queues.0.receive(receive)).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(reason(&status.get_error_details()), "SINGLE_ACTIVE_CONSUMER");
}

#[tokio::test]
async fn there_is_one_active_stream_after_a_kill_too() {
    let (mut broker, mut queues) = single().await;
    queues.fill("q", &["1", "2"]).await;
    for _ in 0..3 {
        let (mut one, active) = open(&mut queues, opening("q", 10)).await;
        let (_two, other) = open(&mut queues, opening("q", 10)).await;
        assert_eq!((active, other), (true, false));
        assert_eq!(payloads(&one.take(2).await), ["1", "2"]);
        let data = broker.data();
        broker.kill9().await;
        broker = Broker::start_in(data, &[]).await;
        queues = Queues::of(&broker).await;
    }
}

#[tokio::test]
async fn a_higher_stream_is_served_first_as_long_as_it_has_room() {
    let (_broker, mut queues) = Queues::start().await;
    let (mut high, active) =
        open(&mut queues, v1::ConsumeOpen { consumer_priority: 1, ..opening("q", 2) }).await;
    assert!(active);
    queues.fill("q", &["first"]).await;
    assert_eq!(payloads(&high.take(1).await), ["first"]);
    high.ask(Ask::Ack(which(1, &[1]))).await;
    // When that is answered it has asked for more.
    high.results().await;
    let (mut low, _) = open(&mut queues, opening("q", 10)).await;
    for round in 0..20 {
        let all = [0, 1, 2].map(|n| format!("{round} {n}"));
        // One batch, so that all are ready at once.
        let messages = all.iter().map(|payload| message(payload)).collect();
        got(queues.0.enqueue_batch(v1::EnqueueBatchRequest {
            queue: "q".to_owned(),
            messages,
            atomic: false,
        }))
        .await;
        let taken = high.take(2).await;
        assert_eq!(payloads(&taken), all[..2]);
        let rest = low.take_past_results(1).await;
        assert_eq!(payloads(&rest), all[2..]);
        for (consumer, taken) in [(&low, &rest), (&high, &taken)] {
            let ids: Vec<_> = taken.iter().map(|leased| leased.delivery_id).collect();
            consumer.ask(Ask::Ack(which(round + 2, &ids))).await;
        }
        high.results().await;
    }
}
