//! `$queue/<name>` as topic and as filter, and bindings.

use std::time::Duration;

use super::bed::{binding, publish, subscribe, take, texts};
use super::*;
use crate::core::{CoreError, End, Inbound};
use crate::engine::{Engine, Nack};
use crate::types::{Priority, Qos};

#[tokio::test]
async fn publishing_to_a_queue_enqueues() {
    let bed = Bed::new().await;
    bed.queue("q", |spec| spec.priorities = true).await;
    let (session, inbox) = bed.transient("a").await;
    subscribe(&session, &[("#", options(Qos::AtLeastOnce))]).await;
    let mut publisher = bed.publisher();
    let mut late = Inbound::new(message("$queue/q", "late", Qos::AtMostOnce), 1);
    late.message.retain = true;
    let mut first = Inbound::new(qos1("$queue/q", "first"), 2);
    first.priority = Priority::new(9).unwrap();
    publisher.publish(vec![late, first]);
    let got = super::bed::receipts(&mut publisher, 2).await;
    assert!(got.iter().all(|r| r.result.as_ref().is_ok_and(|p| (p.subscribers, p.queues) == (0, 1))));
    assert_eq!(inbox.take(), []);
    assert_eq!(bed.broker.retained(&topic("$queue/q")), None);
    assert_eq!(bed.ready_in("q"), 2);

    let granted = subscribe(&session, &[("$queue/q", options(Qos::ExactlyOnce))]).await;
    assert_eq!(granted, [Ok(Qos::AtLeastOnce)]);
    let taken = take(&session, 2).await;
    assert_eq!(texts(&taken), ["first", "late"]);
    assert_eq!(taken[0].leased.qos, Qos::AtLeastOnce);
    let source = taken[0].source;
    within(session.settle(source, &[taken[0].leased.sequence]).unwrap().durable).await.unwrap();
    drop(session.nack(source, &[taken[1].leased.sequence], Nack::Failed(None), None).unwrap());
    let again = take(&session, 1).await;
    assert_eq!((texts(&again), again[0].leased.attempt), (vec!["late".into()], 2));
    // What it has goes back when it leaves.
    within(session.unsubscribe(vec![filter("$queue/q")])).await;
    assert_eq!(bed.ready_in("q"), 1);
    let late = session.settle(source, &[again[0].leased.sequence]);
    assert!(matches!(late, Err(CoreError::Precondition { .. })));
}

#[tokio::test]
async fn each_message_of_a_batch_is_asked_whether_its_queue_keeps_what_it_asks_for() {
    let bed = Bed::new().await;
    bed.queue("q", |_| {}).await;
    let named = |payload: &str, id: Option<&str>, key: Option<&str>| {
        let mut message = qos1("$queue/q", payload);
        message.extras_mut().dedup_id = id.map(|id| id.to_owned().into());
        message.extras_mut().ordering_key = key.map(|key| key.to_owned().into());
        message
    };
    let batch = vec![
        named("1", None, None),
        named("2", Some("i"), None),
        named("3", None, Some("k")),
        named("4", None, None),
    ];
    let got = publish(&mut bed.publisher(), batch).await;
    let reasons: Vec<_> = got
        .iter()
        .map(|receipt| match &receipt.result {
            Ok(_) => "",
            Err(CoreError::Precondition { reason, .. }) => reason,
            Err(other) => panic!("{other}"),
        })
        .collect();
    assert_eq!(reasons, ["", "NO_DEDUP_WINDOW", "NOT_ORDERED_BY_KEY", ""]);
    assert_eq!(bed.ready_in("q"), 2);
}

#[tokio::test]
async fn queue_filters_name_one_queue_that_is_there() {
    let bed = Bed::new().await;
    let (session, _, _) = bed.durable("a").await;
    let one = options(Qos::AtLeastOnce);
    let got = subscribe(&session, &[("$queue/none", one), ("$queue/+", one), ("$queue/a/b", one)]).await;
    assert!(matches!(&got[0], Err(CoreError::NotFound { kind: "queue", .. })));
    assert!(matches!(&got[1], Err(CoreError::Invalid { .. })));
    assert!(matches!(&got[2], Err(CoreError::NotFound { .. })));

    // A durable session consumes again when it comes back.
    bed.queue("q", |spec| spec.bindings.push(binding("in/#"))).await;
    subscribe(&session, &[("$queue/q", one)]).await;
    session.close(End::Clean).await;
    publish(&mut bed.publisher(), vec![qos1("in/1", "1"), message("in", "2", Qos::AtMostOnce)]).await;
    let bed = bed.again().await;
    let (session, _, _) = bed.durable("a").await;
    assert_eq!(texts(&take(&session, 2).await), ["1", "2"]);
    // A queue that is deleted under it is no error.
    let name = crate::types::QueueName::parse("q").unwrap();
    within(bed.broker.delete_queue(&name, false)).await.unwrap();
    let mut none = Vec::new();
    session.take(1, 1, &mut none).unwrap();
    assert!(none.is_empty());
    let got = publish(&mut bed.publisher(), vec![qos1("in/1", "")]).await;
    assert_eq!(got[0].result.as_ref().unwrap().queues, 0);
}

#[tokio::test]
async fn a_queue_that_may_be_unused_for_longer_by_now_is_not_deleted() {
    let bed = Bed::new().await;
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
    bed.queue("q", |spec| spec.expires_after = Some(hour)).await;
    let entry = bed.broker.queues().get("q").unwrap();
    let usage = bed.engine.usage(entry.id()).unwrap();
    let after = async |time| within(bed.broker.delete_if_unused(&entry, usage, time)).await.unwrap();
    assert!(!after(second).await);
    assert!(after(hour).await);
    assert!(bed.broker.queues().get("q").is_none());
}
