//! Retained values.

use std::sync::Arc;
use std::time::Duration;

use super::bed::{filter, publish, subscribe, take};
use super::*;
use crate::core::{CoreError, End, Limits};
use crate::engine::{RetainHandling, SubscribeOptions};
use crate::types::{Message, Qos, UnixMillis};

fn retained(to: &str, payload: &str, qos: Qos) -> Message {
    Message { retain: true, ..message(to, payload, qos) }
}

fn one(to: &str, payload: &str) -> Message {
    retained(to, payload, Qos::AtLeastOnce)
}

async fn list(bed: &Bed, wanted: &str) -> Vec<String> {
    let wanted = wanted.parse().unwrap();
    bed.broker.list_retained(&wanted, None, 100).iter().map(|m| m.topic.to_string()).collect()
}

#[tokio::test]
async fn values_are_kept_listed_cleared_and_survive_a_restart() {
    let bed = Bed::new().await;
    let mut publisher = bed.publisher();
    publish(
        &mut publisher,
        vec![
            one("b/1", "1"),
            retained("a", "zero", Qos::AtMostOnce),
            one("b", "2"),
            one("bc", "3"),
            one("b/1/x", "4"),
            one("b/1", "5"),
            qos1("plain", "x"),
            one("gone", "6"),
            one("gone", ""),
        ],
    )
    .await;
    let check = async |bed: &Bed| {
        assert_eq!(list(bed, "#").await, ["a", "b", "b/1", "b/1/x", "bc"]);
        assert_eq!(list(bed, "b/#").await, ["b", "b/1", "b/1/x"]);
        assert_eq!(list(bed, "b/+").await, ["b/1"]);
        assert_eq!(list(bed, "b").await, ["b"]);
        assert_eq!(list(bed, "+").await, ["a", "b", "bc"]);
        assert_eq!(list(bed, "c").await, Vec::<String>::new());
        assert_eq!(bed.broker.retained(&topic("b/1")).unwrap().payload, "5");
        let all = "#".parse().unwrap();
        let page = bed.broker.list_retained(&all, Some(&topic("b")), 2);
        assert_eq!(page.iter().map(|m| m.topic.as_str()).collect::<Vec<_>>(), ["b/1", "b/1/x"]);
    };
    check(&bed).await;
    drop(publisher);
    let bed = bed.again().await;
    check(&bed).await;

    assert_eq!(within(bed.broker.delete_retained(&"b/#".parse().unwrap())).await, Ok(3));
    assert_eq!(list(&bed, "#").await, ["a", "bc"]);
    let bed = bed.again().await;
    assert_eq!(list(&bed, "#").await, ["a", "bc"]);
}

#[tokio::test]
async fn subscribers_get_values_as_they_asked() {
    let bed = Bed::new().await;
    publish(&mut bed.publisher(), vec![one("a", "1"), retained("b", "2", Qos::AtMostOnce)]).await;
    let (session, inbox) = bed.transient("s").await;
    let asked = |retain_handling| SubscribeOptions {
        retain_handling,
        identifier: 4.try_into().ok(),
        ..options(Qos::ExactlyOnce)
    };
    subscribe(&session, &[("+", asked(RetainHandling::Send))]).await;
    let mut got = inbox.take();
    got.sort_by(|a, b| a.topic.cmp(&b.topic));
    let value = |topic: &str, payload: &str, qos| Got {
        topic: topic.to_owned(),
        payload: payload.to_owned(),
        qos,
        retain: true,
        identifiers: vec![4],
    };
    assert_eq!(got, [value("a", "1", Qos::AtLeastOnce), value("b", "2", Qos::AtMostOnce)]);
    subscribe(&session, &[("a", asked(RetainHandling::SendIfNew)), ("b", asked(RetainHandling::DoNotSend))])
        .await;
    assert_eq!(inbox.payloads(), ["1"]);
    subscribe(&session, &[("a", asked(RetainHandling::SendIfNew)), ("b", asked(RetainHandling::DoNotSend))])
        .await;
    assert_eq!(inbox.payloads(), Vec::<String>::new());
    subscribe(&session, &[("a", asked(RetainHandling::Send))]).await;
    assert_eq!(inbox.payloads(), ["1"]);
}

#[tokio::test]
async fn many_values_come_as_there_is_room() {
    let bed = Bed::new().await;
    let mut publisher = bed.publisher();
    for level in 0..4 {
        publish(&mut publisher, (0..250).map(|n| one(&format!("{level}/{n}"), "x")).collect()).await;
    }
    let (session, inbox) = bed.transient("s").await;
    subscribe(&session, &[("#", options(Qos::AtMostOnce))]).await;
    let mut topics: Vec<_> = inbox.take().into_iter().map(|got| got.topic).collect();
    assert_eq!(topics.len(), 256);
    // What is newer comes live, and not once more.
    publish(&mut publisher, (0..4).map(|level| one(&format!("{level}/0"), "new")).collect()).await;
    let live = inbox.take();
    assert_eq!(live.len(), 4);
    let already = topics.iter().filter(|topic| topic.ends_with("/0")).count();
    while topics.len() < 1000 - (4 - already) {
        within(session.ready()).await;
        let mut none = Vec::new();
        session.take(100, usize::MAX, &mut none).unwrap();
        assert!(none.is_empty());
        let got = inbox.take();
        assert!(!got.is_empty() && got.len() <= 100 && got.iter().all(|got| got.payload == "x"));
        topics.extend(got.into_iter().map(|got| got.topic));
    }
    topics.sort();
    topics.dedup();
    assert_eq!(topics.len(), 1000 - (4 - already));
}

#[tokio::test]
async fn what_a_lasting_session_gets_above_qos_0_is_stored_for_it() {
    let bed = Bed::new().await;
    let mut publisher = bed.publisher();
    let values = (0..400).map(|n| one(&format!("r/{n:03}"), "x")).collect();
    publish(&mut publisher, values).await;
    publish(&mut publisher, vec![retained("r/!", "0", Qos::AtMostOnce)]).await;
    let (session, inbox, _) = bed.durable("s").await;
    subscribe(&session, &[("r/#", options(Qos::AtLeastOnce))]).await;
    assert_eq!(inbox.payloads(), ["0"]);
    let mut taken = take(&session, 300).await;
    assert!(taken.iter().all(|delivery| delivery.leased.retain));
    let first: Vec<_> = taken.drain(..100).map(|delivery| delivery.leased.sequence).collect();
    session.settle(session.target().unwrap(), &first).unwrap().durable.await.unwrap();
    session.close(End::Lost).await;
    // What was handed on is there again, and the rest follows.
    let (session, _, present) = bed.durable("s").await;
    assert!(present);
    let taken = take(&session, 300).await;
    let mut topics: Vec<_> = taken.iter().map(|delivery| delivery.leased.message.topic.to_string()).collect();
    topics.sort();
    assert_eq!(topics, (100..400).map(|n| format!("r/{n:03}")).collect::<Vec<_>>());
    // A new one begins anew, one that ended does not go on.
    subscribe(&session, &[("r/+", options(Qos::AtLeastOnce))]).await;
    let (ended, here) = (filter("r/+"), session.target().unwrap());
    within(session.unsubscribe(vec![ended])).await;
    let more = take(&session, 255).await;
    let mut none = Vec::new();
    session.take(300, usize::MAX, &mut none).unwrap();
    assert_eq!((more.len(), none.len()), (255, 0));
    assert_eq!(bed.broker.engine.stats(here).unwrap().leased, 555);
}

#[tokio::test]
async fn values_are_bounded_and_expire() {
    let bed = Bed::with(Limits { max_retained: 2, ..Limits::default() }).await;
    let mut publisher = bed.publisher();
    let expired = Message { expires_at: Some(UnixMillis(1)), ..one("old", "x") };
    let got = publish(&mut publisher, vec![one("a", "1"), expired]).await;
    assert!(got.iter().all(|receipt| receipt.result.is_ok()));
    assert_eq!(list(&bed, "#").await, ["a"]);
    let got = publish(&mut publisher, vec![one("b", "2"), one("a", "3")]).await;
    assert!(matches!(&got[0].result, Err(CoreError::Limit { max: 2, .. })));
    assert!(got[1].result.is_ok());
    // The sweep makes room.
    let mut shard = 0;
    for _ in 0..64 {
        shard = within(bed.broker.sweep_retained(shard)).await;
    }
    assert!(publish(&mut publisher, vec![one("b", "2")]).await[0].result.is_ok());
}

/// A subscriber that comes at any moment sees no value twice out of order, and the last one last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_that_come_meanwhile_miss_nothing() {
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
        const LAST: usize = 400;
        let bed = Arc::new(Bed::new().await);
        let publishing = {
            let bed = bed.clone();
            tokio::task::spawn(async move {
                let mut publisher = bed.publisher();
                for n in 1..=LAST {
                    publish(&mut publisher, vec![retained("t/x", &format!("{n:05}"), qos)]).await;
                }
            })
        };
        let mut all = Vec::new();
        for n in 0..20 {
            let (session, inbox) = bed.transient(&format!("s{n}")).await;
            subscribe(&session, &[(["t/+", "#", "t/x"][n % 3], options(Qos::ExactlyOnce))]).await;
            all.push((session, inbox));
        }
        within(publishing).await.unwrap();
        for (_, inbox) in &all {
            let got: Vec<usize> = inbox.payloads().iter().map(|text| text.parse().unwrap()).collect();
            let Some(first) = got.first() else { panic!("nothing at all") };
            let mut distinct = got.clone();
            distinct.dedup();
            assert_eq!(distinct, (*first..=LAST).collect::<Vec<_>>(), "{got:?}");
        }
    }
}

/// What is kept is what live subscribers saw last, whoever publishes, also after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_live_value_is_the_kept_one() {
    let bed = Bed::new().await;
    let (session, inbox) = bed.transient("s").await;
    subscribe(&session, &[("t", options(Qos::AtLeastOnce))]).await;
    let mut publishing = Vec::new();
    for n in 0..4 {
        let mut publisher = bed.publisher();
        publishing.push(tokio::task::spawn(async move {
            for at in 0..100 {
                let qos = if at % 5 == n { Qos::AtMostOnce } else { Qos::AtLeastOnce };
                publish(&mut publisher, vec![retained("t", &format!("{n}-{at}"), qos)]).await;
            }
        }));
    }
    for one in publishing {
        within(one).await.unwrap();
    }
    let seen = inbox.take();
    assert_eq!(seen.len(), 400);
    let last = seen.last().unwrap().payload.clone();
    assert_eq!(bed.broker.retained(&topic("t")).unwrap().payload, last.as_bytes());
    session.close(End::Clean).await;
    let bed = bed.again().await;
    assert_eq!(bed.broker.retained(&topic("t")).unwrap().payload, last.as_bytes());
}

#[tokio::test]
async fn who_subscribes_while_a_value_is_on_its_way_gets_it_live() {
    let bed = Bed::new().await;
    let mut publisher = bed.publisher();
    publish(&mut publisher, vec![one("t", "old")]).await;
    let (session, inbox, _) = bed.durable("s").await;
    bed.engine.hold();
    publisher.publish(vec![crate::core::Inbound::new(one("t", "new"), 1)]);
    let subscribing = async {
        let granted = session.subscribe(vec![(filter("t"), options(Qos::AtLeastOnce))]).await;
        assert_eq!(granted, [Ok(Qos::AtLeastOnce)]);
    };
    let releasing = async {
        // The subscription is in the router and waits for the disk.
        while bed.broker.routes().count() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(inbox.take(), []);
        bed.engine.release().await;
    };
    within(async { tokio::join!(subscribing, releasing) }).await;
    super::bed::receipts(&mut publisher, 1).await;
    let got = inbox.payloads();
    assert_eq!(got.last().map(String::as_str), Some("new"), "{got:?}");
    assert!(got.len() <= 2);
    tokio::time::timeout(Duration::ZERO, std::future::ready(())).await.unwrap();
}
