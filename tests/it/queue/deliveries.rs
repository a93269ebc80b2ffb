//! Leases: settled, given back, ended, given up.

use std::time::Duration;

use bytes::Bytes;
use stafett::grpc::proto::v1;
use tonic::{Code, Request};
use tonic_types::{ErrorDetails, RpcStatusExt, StatusExt};

use super::{Queues, field, got, message, millis, named, payloads, reason, refused, seconds, tokens};
use crate::harness::Broker;

fn details(failure: &v1::AckFailure) -> ErrorDetails {
    failure.error.as_ref().unwrap().get_error_details()
}

fn delayed(payload: &str, delay: Option<prost_types::Duration>) -> v1::Message {
    v1::Message { schedule: delay.map(v1::message::Schedule::Delay), ..message(payload) }
}

#[tokio::test]
async fn what_is_given_back_comes_again() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["x"]).await;
    let first = queues.one("q").await;
    queues.nack("q", &first.lease_token, v1::NackKind::Release).await;
    let second = queues.one("q").await;
    assert_eq!((first.delivery_attempt, second.delivery_attempt), (1, 1));
    queues.nack("q", &second.lease_token, v1::NackKind::Failed).await;
    let third = queues.one("q").await;
    assert_eq!((third.delivery_attempt, third.sequence), (2, first.sequence));

    // The tokens of earlier deliveries are worth nothing any more.
    let failures = queues.acknowledge("q", vec![second.lease_token.clone(), third.lease_token]).await;
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].lease_token, second.lease_token);
    assert_eq!(failures[0].error.as_ref().unwrap().code, Code::FailedPrecondition as i32);
    assert_eq!(reason(&details(&failures[0])), "LEASE_EXPIRED");
    assert_eq!(queues.stats("q").await.leased, 0);
}

#[tokio::test]
async fn a_nack_may_ask_for_rest() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["x"]).await;
    let leased = queues.one("q").await;
    let nack = v1::NackRequest {
        queue: "q".to_owned(),
        lease_tokens: vec![leased.lease_token],
        kind: v1::NackKind::Failed.into(),
        delay: millis(300),
        reason: String::new(),
    };
    assert_eq!(got(queues.0.nack(nack.clone())).await.failures, []);
    assert_eq!(queues.stats("q").await.delayed, 1);
    assert_eq!(queues.one("q").await.delivery_attempt, 2);

    let unspecified = v1::NackRequest { kind: 0, ..nack.clone() };
    assert_eq!(field(&refused(queues.0.nack(unspecified)).await), "kind");
    let long = v1::NackRequest { reason: "x".repeat(1025), ..nack.clone() };
    assert_eq!(field(&refused(queues.0.nack(long)).await), "reason");
    let buried = v1::NackRequest { kind: v1::NackKind::DeadLetter.into(), delay: None, ..nack };
    let status = refused(queues.0.nack(buried)).await;
    assert_eq!(reason(&status.get_error_details()), "NO_DEAD_LETTER_QUEUE");
}

#[tokio::test]
async fn a_lease_that_ends_lets_another_have_it() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["x"]).await;
    let request = v1::ReceiveRequest { queue: "q".to_owned(), lease: seconds(1), ..Default::default() };
    let first = got(queues.0.receive(request)).await.messages.pop().unwrap();
    let second = queues.one("q").await;
    assert_eq!((first.sequence, second.delivery_attempt), (second.sequence, 2));
    let failures = queues.acknowledge("q", vec![first.lease_token]).await;
    assert_eq!(reason(&details(&failures[0])), "LEASE_EXPIRED");
    assert_eq!(queues.acknowledge("q", vec![second.lease_token.clone()]).await, []);
    let failures = queues.acknowledge("q", vec![second.lease_token]).await;
    assert_eq!(reason(&details(&failures[0])), "LEASE_EXPIRED");
}

#[tokio::test]
async fn a_lease_can_be_made_longer() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["x"]).await;
    let leased = queues.one("q").await;
    let extend = v1::ExtendLeaseRequest {
        queue: "q".to_owned(),
        lease_tokens: vec![leased.lease_token],
        lease: seconds(3600),
    };
    assert_eq!(got(queues.0.extend_lease(extend.clone())).await.failures, []);
    let view = v1::QueueView::Leased.into();
    let peek = v1::PeekRequest { queue: "q".to_owned(), max_messages: 1, view };
    let seen = got(queues.0.peek(peek)).await.messages.pop().unwrap();
    let gained = seen.lease_expires.unwrap().seconds - leased.lease_expires.unwrap().seconds;
    assert!((3560..=3580).contains(&gained), "{gained}");
    let short = v1::ExtendLeaseRequest { lease: millis(999), ..extend };
    assert_eq!(field(&refused(queues.0.extend_lease(short)).await), "lease");
}

#[tokio::test]
async fn what_was_given_up_lies_in_the_dead_letter_queue_until_it_is_redriven() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(named("dead")).await;
    let work = v1::Queue { max_deliveries: 2, dead_letter_queue: "dead".to_owned(), ..named("work") };
    queues.create(work).await;

    queues.fill("work", &["poison"]).await;
    for attempt in 1..=2 {
        let leased = queues.one("work").await;
        assert_eq!(leased.delivery_attempt, attempt);
        queues.nack("work", &leased.lease_token, v1::NackKind::Failed).await;
    }
    let dead = queues.one("dead").await;
    let why = dead.dead_letter.as_ref().unwrap();
    assert_eq!((why.source_queue.as_str(), why.attempts), ("work", 2));
    assert_eq!(why.reason, "max deliveries reached");
    assert!(why.time.is_some());
    assert_eq!(payloads(std::slice::from_ref(&dead)), ["poison"]);
    queues.nack("dead", &dead.lease_token, v1::NackKind::Release).await;

    queues.fill("work", &["ugly"]).await;
    let leased = queues.one("work").await;
    let nack = v1::NackRequest {
        queue: "work".to_owned(),
        lease_tokens: vec![leased.lease_token],
        kind: v1::NackKind::DeadLetter.into(),
        reason: "unreadable".to_owned(),
        ..Default::default()
    };
    assert_eq!(got(queues.0.nack(nack)).await.failures, []);
    let mut both = queues.receive("dead", 2).await;
    if both.len() < 2 {
        both.extend(queues.receive("dead", 1).await);
    }
    assert_eq!(both[1].dead_letter.as_ref().unwrap().reason, "unreadable");
    for leased in &both {
        queues.nack("dead", &leased.lease_token, v1::NackKind::Release).await;
    }
    // The second is counted only after it has been seen there.
    assert!((1..=2).contains(&queues.stats("work").await.dead_lettered_total));

    let redrive = |destination: &str, max_messages| v1::RedriveRequest {
        dead_letter_queue: "dead".to_owned(),
        destination: destination.to_owned(),
        max_messages,
        filter: None,
    };
    assert_eq!(got(queues.0.redrive(redrive("", 1))).await.moved, 1);
    let back = queues.one("work").await;
    assert_eq!(
        (payloads(std::slice::from_ref(&back)), back.delivery_attempt),
        (vec!["poison".to_owned()], 1)
    );
    assert_eq!(back.dead_letter, None);

    queues.create(named("elsewhere")).await;
    assert_eq!(got(queues.0.redrive(redrive("elsewhere", 0))).await.moved, 1);
    assert_eq!(payloads(&[queues.one("elsewhere").await]), ["ugly"]);
    assert_eq!(got(queues.0.redrive(redrive("", 0))).await.moved, 0);
    assert_eq!(field(&refused(queues.0.redrive(redrive("dead", 0))).await), "destination");

    queues.fill("dead", &["of nobody"]).await;
    let status = refused(queues.0.redrive(redrive("", 0))).await;
    assert_eq!(reason(&status.get_error_details()), "NO_WAY_BACK");
    assert_eq!(queues.stats("dead").await.ready, 1);
}

#[tokio::test]
async fn a_delayed_message_comes_when_it_is_due() {
    let (_broker, mut queues) = Queues::start().await;
    queues.enqueue("q", delayed("later", millis(400))).await;
    queues.enqueue("q", message("now")).await;
    assert_eq!(queues.stats("q").await.delayed, 1);
    assert_eq!(payloads(&queues.receive("q", 10).await), ["now"]);
    assert_eq!(payloads(&queues.receive("q", 10).await), ["later"]);

    let far =
        v1::EnqueueRequest { queue: "q".to_owned(), message: Some(delayed("x", seconds(366 * 86_400 + 1))) };
    assert_eq!(field(&refused(queues.0.enqueue(far)).await), "message.delay");
    queues.enqueue("q", delayed("in a leap year", seconds(366 * 86_400))).await;
    assert_eq!(queues.stats("q").await.delayed, 1);
}

#[tokio::test]
async fn a_message_whose_time_is_over_does_not_come() {
    let (_broker, mut queues) = Queues::start().await;
    queues.create(v1::Queue { default_ttl: seconds(1), ..named("short") }).await;
    queues.enqueue("q", v1::Message { ttl: seconds(1), ..delayed("over", millis(1300)) }).await;
    queues.enqueue("q", delayed("good", millis(1400))).await;
    queues.enqueue("short", delayed("over", millis(1300))).await;
    queues.enqueue("short", v1::Message { ttl: seconds(60), ..delayed("good", millis(1400)) }).await;
    for queue in ["q", "short"] {
        assert_eq!(payloads(&queues.receive(queue, 10).await), ["good"]);
        assert_eq!(queues.stats(queue).await.expired_total, 1);
    }
    queues.enqueue("short", message("fresh")).await;
    let left = queues.one("short").await.message.unwrap().ttl.unwrap();
    assert!(left.seconds < 1 || (left.seconds, left.nanos) == (1, 0), "{left:?}");
}

#[tokio::test]
async fn higher_priorities_come_first_where_there_are_priorities() {
    let (_broker, mut queues) = Queues::start().await;
    queues.create(v1::Queue { priorities: true, ..named("urgent") }).await;
    for queue in ["q", "urgent"] {
        for (payload, priority) in [("low", Some(0)), ("usual", None), ("high", Some(9)), ("five", Some(5))] {
            queues.enqueue(queue, v1::Message { priority, ..message(payload) }).await;
        }
    }
    assert_eq!(payloads(&queues.receive("q", 10).await), ["low", "usual", "high", "five"]);
    assert_eq!(payloads(&queues.receive("urgent", 10).await), ["high", "five", "usual", "low"]);
}

#[tokio::test]
async fn foreign_tokens_settle_nothing() {
    let (_broker, mut queues) = Queues::start().await;
    queues.create(named("other")).await;
    queues.fill("q", &["x"]).await;
    let leased = queues.one("q").await;
    let mut bent = leased.lease_token.to_vec();
    bent[12] ^= 1;
    let failures = queues.acknowledge("q", vec![Bytes::from_static(b"rubbish"), bent.into()]).await;
    assert_eq!(failures.len(), 2);
    for (at, failure) in failures.iter().enumerate() {
        assert_eq!(failure.error.as_ref().unwrap().code, Code::InvalidArgument as i32);
        let details = details(failure);
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, format!("lease_tokens[{at}]"));
    }
    let failures = queues.acknowledge("other", vec![leased.lease_token.clone()]).await;
    assert_eq!(reason(&details(&failures[0])), "LEASE_EXPIRED");
    assert_eq!(
        field(&{
            let nothing = v1::AcknowledgeRequest { queue: "q".to_owned(), lease_tokens: vec![] };
            refused(queues.0.acknowledge(nothing)).await
        }),
        "lease_tokens"
    );
    assert_eq!(queues.acknowledge("q", vec![leased.lease_token]).await, []);
}

#[tokio::test]
async fn auto_ack_settles_what_it_hands_out() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["1", "2"]).await;
    let request =
        v1::ReceiveRequest { queue: "q".to_owned(), max_messages: 2, auto_ack: true, ..Default::default() };
    let messages = got(queues.0.receive(request)).await.messages;
    assert_eq!(
        (payloads(&messages), tokens(&messages)),
        (vec!["1".into(), "2".into()], vec![Bytes::new(); 2])
    );
    let stats = queues.stats("q").await;
    assert_eq!((stats.ready, stats.leased, stats.acked_total), (0, 0, 2));
}

#[tokio::test]
async fn a_waiting_receive_is_woken_or_meets_its_deadline() {
    let (broker, mut queues) = Queues::start().await;
    let mut waiter = Queues::of(&broker).await;
    let ((), messages) = tokio::join!(queues.fill("q", &["x"]), waiter.receive("q", 1));
    assert_eq!(payloads(&messages), ["x"]);

    let wait = seconds(60);
    let mut request = Request::new(v1::ReceiveRequest { queue: "q".to_owned(), wait, ..Default::default() });
    request.set_timeout(Duration::from_millis(500));
    let status = refused(queues.0.receive(request)).await;
    // The client has a clock too, and says CANCELLED with a source of its own should it be first.
    let own = status.code() == Code::Cancelled && std::error::Error::source(&status).is_some();
    assert!(status.code() == Code::DeadlineExceeded || own, "{status:?}");

    // It took nothing along.
    queues.fill("q", &["y"]).await;
    assert_eq!(payloads(&[queues.one("q").await]), ["y"]);
}
