//! Order, waiting, receipts.

use std::sync::Arc;
use std::time::Duration;

use super::bed::{binding, publish, receipts, subscribe, take, texts};
use super::*;
use crate::core::{CoreError, Inbound, Limits, PublisherInfo, Receipt};
use crate::engine::{Engine, SubscribeOptions};
use crate::types::Qos;

fn inbound(messages: Vec<crate::types::Message>) -> Vec<Inbound> {
    messages.into_iter().zip(1..).map(|(message, tag)| Inbound::new(message, tag)).collect()
}

fn counts(receipts: &[Receipt]) -> Vec<(u32, u32)> {
    receipts.iter().map(|r| r.result.as_ref().map(|p| (p.subscribers, p.queues)).unwrap()).collect()
}

#[tokio::test]
async fn a_batch_reaches_each_subscriber_once_and_in_order() {
    let bed = Bed::new().await;
    let (a, at_a) = bed.transient("a").await;
    let (b, at_b) = bed.transient("b").await;
    subscribe(&a, &[("x/#", options(Qos::AtMostOnce))]).await;
    subscribe(&b, &[("x/1", options(Qos::AtLeastOnce)), ("y", options(Qos::ExactlyOnce))]).await;

    let mut publisher = bed.publisher();
    let batch: Vec<_> = (0..30).map(|n| qos1(["x/1", "x/2", "y"][n % 3], &n.to_string())).collect();
    let receipts = publish(&mut publisher, batch).await;
    assert_eq!(counts(&receipts)[..3], [(2, 0), (1, 0), (1, 0)]);
    assert_eq!(receipts.iter().map(|r| r.tag).collect::<Vec<_>>(), (1..=30).collect::<Vec<_>>());

    let of = |wanted: &dyn Fn(usize) -> bool| {
        (0..30).filter(|n| wanted(*n)).map(|n| n.to_string()).collect::<Vec<_>>()
    };
    let got = at_a.take();
    assert!(got.iter().all(|got| got.qos == Qos::AtMostOnce && !got.retain));
    assert_eq!(got.into_iter().map(|got| got.payload).collect::<Vec<_>>(), of(&|n| n % 3 != 2));
    assert_eq!(at_b.payloads(), of(&|n| n % 3 != 1));
    assert_eq!((*at_a.calls.lock(), *at_b.calls.lock()), (1, 1));

    // The same list of targets for all.
    publish(&mut publisher, (0..5).map(|n| qos1("x/1", &n.to_string())).collect()).await;
    assert_eq!((*at_a.calls.lock(), *at_b.calls.lock()), (2, 2));
    assert_eq!(at_b.payloads(), ["0", "1", "2", "3", "4"]);

    // Nobody is there for it, and a session that has gone gets nothing.
    drop(a);
    assert_eq!(
        counts(&publish(&mut publisher, vec![qos1("z", ""), qos1("x/2", "")]).await),
        [(0, 0), (0, 0)]
    );
}

#[tokio::test]
async fn overlapping_filters_make_one_delivery() {
    // [MQTT-3.3.4-2], [MQTT-3.3.4-4]
    let bed = Bed::new().await;
    let (session, inbox) = bed.transient("a").await;
    let with = |max_qos, identifier: u32| SubscribeOptions {
        identifier: identifier.try_into().ok(),
        ..options(max_qos)
    };
    subscribe(
        &session,
        &[
            ("a/+", with(Qos::AtMostOnce, 7)),
            ("a/#", with(Qos::ExactlyOnce, 3)),
            ("a/b", with(Qos::AtLeastOnce, 0)),
        ],
    )
    .await;
    publish(&mut bed.publisher(), vec![message("a/b", "1", Qos::ExactlyOnce)]).await;
    let got = inbox.take();
    let mut identifiers = got[0].identifiers.clone();
    identifiers.sort_unstable();
    assert_eq!((got.len(), got[0].qos, identifiers), (1, Qos::ExactlyOnce, vec![3, 7]));
}

#[tokio::test]
async fn many_overlapping_subscribers_get_one_each() {
    let bed = Bed::new().await;
    let mut all = Vec::new();
    for n in 0..40 {
        let (session, inbox) = bed.transient(&format!("c{n}")).await;
        subscribe(&session, &[("t", options(Qos::AtMostOnce)), ("+", options(Qos::AtLeastOnce))]).await;
        all.push((session, inbox));
    }
    assert_eq!(counts(&publish(&mut bed.publisher(), vec![qos1("t", "x")]).await), [(40, 0)]);
    for (_, inbox) in &all {
        let got = inbox.take();
        assert_eq!((got.len(), got[0].qos), (1, Qos::AtLeastOnce));
    }
}

#[tokio::test]
async fn no_local_and_retain_as_published() {
    let bed = Bed::new().await;
    let (session, inbox) = bed.transient("a").await;
    let no_local = SubscribeOptions { no_local: true, ..options(Qos::AtLeastOnce) };
    let as_published = SubscribeOptions { retain_as_published: true, ..options(Qos::AtLeastOnce) };
    subscribe(&session, &[("own", no_local), ("flag", as_published), ("plain", options(Qos::AtLeastOnce))])
        .await;
    let info = PublisherInfo { no_local: Some(session.key()), ..PublisherInfo::default() };
    let mut own = bed.broker.publisher(info);
    publish(&mut own, vec![qos1("own", "mine")]).await; // [MQTT-3.8.3-3]
    let retained = |to: &str| crate::types::Message { retain: true, ..qos1(to, "r") };
    publish(&mut bed.publisher(), vec![qos1("own", "theirs"), retained("flag"), retained("plain")]).await;
    let got: Vec<_> = inbox.take().into_iter().map(|got| (got.topic, got.payload, got.retain)).collect();
    let told = |topic: &str, payload: &str, retain| (topic.to_owned(), payload.to_owned(), retain);
    assert_eq!(got, [told("own", "theirs", false), told("flag", "r", true), told("plain", "r", false)]);
}

#[tokio::test]
async fn later_publishes_wait_behind_an_open_ticket() {
    let bed = Bed::new().await;
    let (session, inbox) = bed.transient("live").await;
    subscribe(&session, &[("#", options(Qos::AtMostOnce))]).await;
    let (away, _, _) = bed.durable("away").await;
    subscribe(&away, &[("stored", options(Qos::AtLeastOnce))]).await;

    let mut publisher = bed.publisher();
    bed.engine.hold();
    // What stands before the first that is stored goes at once.
    publisher.publish(inbound(vec![qos1("a", "1"), qos1("stored", "2"), message("a", "3", Qos::AtMostOnce)]));
    publisher.publish(inbound(vec![message("b", "4", Qos::AtMostOnce)]));
    assert_eq!(inbox.payloads(), ["1"]);
    assert_eq!(publisher.pending(), 3);
    let mut got = receipts(&mut publisher, 1).await;
    assert_eq!(got.pop().unwrap().tag, 1);

    // Another publisher does not wait.
    let mut other = bed.publisher();
    other.publish(inbound(vec![message("a", "other", Qos::AtMostOnce)]));
    assert_eq!(inbox.payloads(), ["other"]);

    bed.engine.release().await;
    let got = receipts(&mut publisher, 3).await;
    assert_eq!(got.iter().map(|r| r.tag).collect::<Vec<_>>(), [2, 3, 1]);
    assert_eq!(got[0].result.as_ref().unwrap().subscribers, 2);
    assert_eq!(inbox.payloads(), ["2", "3", "4"]);
    assert_eq!(publisher.pending(), 0);
    assert_eq!(texts(&take(&away, 1).await), ["2"]);
}

#[tokio::test]
async fn a_publisher_that_leaves_loses_nothing() {
    let bed = Bed::new().await;
    let (session, inbox) = bed.transient("live").await;
    subscribe(&session, &[("#", options(Qos::AtMostOnce))]).await;
    bed.queue("q", |spec| spec.bindings.push(binding("a/+"))).await;
    let mut publisher = bed.publisher();
    bed.engine.hold();
    publisher.publish(inbound(vec![qos1("a/1", "1"), message("b", "2", Qos::AtMostOnce)]));
    drop(publisher);
    assert_eq!(inbox.take(), []);
    bed.engine.release().await;
    let got: Vec<_> = inbox.next(2).await.into_iter().map(|got| got.payload).collect();
    assert_eq!(got, ["1", "2"]);
    assert_eq!(bed.ready_in("q"), 1);
}

#[tokio::test]
async fn a_full_queue_refuses_the_publish_whole() {
    let bed = Bed::new().await;
    let (session, inbox) = bed.transient("live").await;
    subscribe(&session, &[("#", options(Qos::AtLeastOnce))]).await;
    let (away, _, _) = bed.durable("away").await;
    subscribe(&away, &[("a/#", options(Qos::AtLeastOnce))]).await;
    bed.queue("small", |spec| {
        spec.bindings.push(binding("a/+"));
        spec.max_messages = 1;
    })
    .await;
    let mut publisher = bed.publisher();
    let retained = crate::types::Message { retain: true, ..qos1("a/2", "2") };
    let got = publish(&mut publisher, vec![qos1("a/1", "1"), retained, qos1("b", "3")]).await;
    let Err(CoreError::Full { queue, bound }) = &got[1].result else { panic!("{got:?}") };
    assert_eq!((queue.as_str(), bound.contains("max_messages")), ("small", true));
    assert_eq!(counts(&[got[0].clone(), got[2].clone()]), [(2, 1), (1, 0)]);
    assert_eq!(inbox.payloads(), ["1", "3"]);
    assert_eq!(bed.broker.retained(&topic("a/2")), None);
    assert_eq!(texts(&take(&away, 1).await), ["1"]);
    assert_eq!(bed.engine.stats(away.target().unwrap()).unwrap().enqueued_total, 1);
}

#[tokio::test]
async fn what_cannot_be_published_is_refused_by_itself() {
    let bed = Bed::with(Limits { max_payload_bytes: 4, max_topic_levels: 3, ..Limits::default() }).await;
    let (session, inbox) = bed.transient("live").await;
    subscribe(&session, &[("#", options(Qos::AtLeastOnce))]).await;
    let mut publisher = bed.publisher();
    let mut items = inbound(vec![
        qos1("a", "1"),
        qos1("a", "too long"),
        qos1("$SYS/x", ""),
        qos1("$SYS/x", ""),
        qos1("$queue/none", ""),
        qos1("a/b/c/d", ""),
        qos1("a", "delay"),
        qos1("a", "2"),
    ]);
    items[6].message.payload = Default::default();
    items[6].not_before = Some(crate::types::UnixMillis(u64::MAX));
    publisher.publish(items);
    let got = receipts(&mut publisher, 8).await;
    let errors: Vec<_> = got.iter().map(|r| r.result.as_ref().map_err(ToString::to_string).err()).collect();
    let error = |text: &str| Some(text.to_owned());
    assert_eq!(
        errors,
        [
            None,
            error("payload has 8 bytes, at most 4 are allowed"),
            error("topic: `$SYS/x`: names that begin with `$` are the server's"),
            error("topic: `$SYS/x`: names that begin with `$` are the server's"),
            error("there is no queue `none`"),
            error("topic has 4 levels, at most 3 are allowed"),
            error("a message that does not go to queues alone cannot be delayed"),
            None,
        ]
    );
    assert_eq!(inbox.payloads(), ["1", "2"]);
}

#[tokio::test]
async fn what_an_outbox_does_not_take_is_counted() {
    let bed = Bed::new().await;
    let inbox = Arc::new(Inbox { bound: Some(3), ..Inbox::default() });
    let session = bed.open_as("slow", true, Duration::ZERO, &inbox).await.unwrap().session;
    subscribe(&session, &[("a", options(Qos::AtMostOnce))]).await;
    publish(&mut bed.publisher(), (0..5).map(|n| qos1("a", &n.to_string())).collect()).await;
    assert_eq!((inbox.payloads().len(), session.dropped()), (3, 2));
}

#[tokio::test]
async fn qos_2_ids_are_stored_with_the_message_and_come_back() {
    let bed = Bed::new().await;
    let (session, _, _) = bed.durable("p").await;
    let info = PublisherInfo {
        client_id: Some(session.client_id().clone()),
        session: session.target(),
        no_local: Some(session.key()),
        ..PublisherInfo::default()
    };
    let mut publisher = bed.broker.publisher(info);
    let mut item = Inbound::new(message("nobody", "x", Qos::ExactlyOnce), 1);
    item.incoming = Some(17);
    bed.engine.hold();
    publisher.publish(vec![item.clone()]);
    assert_eq!(publisher.pending(), 1, "it waits for the disk, with no target at all");
    // A connection that comes meanwhile hears of the id when it is stored.
    let mut releasing = Vec::new();
    publisher.completed_now(&mut releasing);
    assert!(releasing.is_empty());
    bed.engine.release().await;
    receipts(&mut publisher, 1).await;
    item.incoming = Some(18);
    publisher.publish(vec![item]);
    receipts(&mut publisher, 1).await;
    session.release_incoming(17).await.unwrap();
    drop((session, publisher));

    let bed = bed.again().await;
    let inbox = Arc::new(Inbox::default());
    let opened = bed.open_as("p", false, Duration::from_secs(60), &inbox).await.unwrap();
    assert_eq!((opened.present, opened.incoming), (true, vec![18]));
}
