//! Share groups.

use std::sync::Arc;
use std::time::Duration;

use super::bed::{publish, subscribe, take, texts};
use super::*;
use crate::core::{CoreError, End};
use crate::engine::SubscribeOptions;
use crate::types::Qos;

#[tokio::test]
async fn each_message_goes_to_one_member_in_turn() {
    let bed = Bed::new().await;
    let (a, at_a) = bed.transient("a").await;
    let (b, at_b) = bed.transient("b").await;
    let (c, at_c) = bed.transient("c").await;
    let one = options(Qos::AtLeastOnce);
    subscribe(&a, &[("$share/g/t/+", one)]).await;
    subscribe(
        &b,
        &[("$share/g/t/+", SubscribeOptions { identifier: 5.try_into().ok(), ..options(Qos::AtMostOnce) })],
    )
    .await;
    subscribe(&c, &[("$share/other/t/+", one), ("t/1", one)]).await;
    let mut publisher = bed.publisher();
    let got = publish(&mut publisher, (0..8).map(|n| qos1("t/1", &n.to_string())).collect()).await;
    assert_eq!(got[0].result.as_ref().unwrap().subscribers, 3);
    let (of_a, of_b) = (at_a.take(), at_b.take());
    assert_eq!((of_a.len(), of_b.len()), (4, 4));
    assert!(of_b.iter().all(|got| got.qos == Qos::AtMostOnce && got.identifiers == [5]));
    let mut all: Vec<_> = of_a.into_iter().chain(of_b).map(|got| got.payload).collect();
    all.sort();
    assert_eq!(all, (0..8).map(|n| n.to_string()).collect::<Vec<_>>());
    // Another group, and a subscription of its own, get theirs too.
    assert_eq!(at_c.take().len(), 16);

    // The one with less to do gets more.
    *at_a.backlog.lock() = 6;
    publish(&mut publisher, (0..6).map(|n| qos1("t/1", &n.to_string())).collect()).await;
    assert_eq!((at_a.take().len(), at_b.take().len()), (0, 6));

    // What a lost member had not acknowledged goes to another.
    *at_a.backlog.lock() = 0;
    *at_b.backlog.lock() = 9;
    at_a.shared.lock().clear();
    publish(&mut publisher, vec![qos1("t/2", "lost")]).await;
    assert_eq!(at_a.payloads(), ["lost"]);
    let unacknowledged = std::mem::take(&mut *at_a.shared.lock());
    a.hand_back(unacknowledged);
    a.close(End::Lost).await;
    assert_eq!(at_b.payloads(), ["lost"]);
    b.close(End::Clean).await;
    let got = publish(&mut publisher, vec![qos1("t/2", "nobody")]).await;
    assert_eq!(got[0].result.as_ref().unwrap().subscribers, 1);
}

#[tokio::test]
async fn a_group_with_a_durable_member_has_a_backlog() {
    let bed = Bed::new().await;
    let (live, at_live) = bed.transient("live").await;
    let one = options(Qos::AtLeastOnce);
    subscribe(&live, &[("$share/g/t", one)]).await;
    let (durable, at_durable, _) = bed.durable("durable").await;
    let two = SubscribeOptions { identifier: 2.try_into().ok(), ..options(Qos::ExactlyOnce) };
    subscribe(&durable, &[("$share/g/t", two)]).await;
    let mut publisher = bed.publisher();
    let batch = (0..4).map(|n| message("t", &n.to_string(), Qos::ExactlyOnce)).collect();
    publish(&mut publisher, batch).await;
    // Both take from the group; each at its own level.
    let first = take(&live, 1).await;
    assert_eq!(
        (texts(&first), first[0].leased.qos, first[0].identifiers.len()),
        (vec!["0".into()], Qos::AtLeastOnce, 0)
    );
    let rest = take(&durable, 3).await;
    assert_eq!((texts(&rest).join(" "), rest[0].leased.qos), ("1 2 3".to_owned(), Qos::ExactlyOnce));
    assert_eq!(rest[0].identifiers.first().map(|id| id.get()), Some(2));
    // QoS 0 is not stored: one of the connected gets it.
    publish(&mut publisher, vec![message("t", "zero", Qos::AtMostOnce)]).await;
    assert_eq!(at_live.take().len() + at_durable.take().len(), 1);

    // What the live one had comes to the other; what comes while all are away waits, over a restart too.
    live.close(End::Lost).await;
    assert_eq!(texts(&take(&durable, 1).await), ["0"]);
    drop(
        durable.settle(rest[0].source, &rest.iter().map(|d| d.leased.sequence).collect::<Vec<_>>()).unwrap(),
    );
    durable.close(End::Clean).await;
    publish(&mut publisher, vec![qos1("t", "away")]).await;
    drop(publisher);
    let bed = bed.again().await;
    let (durable, _, _) = bed.durable("durable").await;
    // One of them is the session's own by now: between the two there is no order.
    let mut both = texts(&take(&durable, 2).await);
    both.sort();
    assert_eq!(both, ["0", "away"]);

    // Without a durable member the backlog goes, and the group is live again.
    let (live, at_live) = bed.transient("live").await;
    subscribe(&live, &[("$share/g/t", one)]).await;
    within(durable.unsubscribe(vec![filter("$share/g/t")])).await;
    publish(&mut bed.publisher(), vec![qos1("t", "live")]).await;
    assert_eq!(at_live.payloads(), ["live"]);
}

#[tokio::test]
async fn a_shared_filter_has_its_rules() {
    let bed = Bed::new().await;
    let (session, inbox) = bed.transient("a").await;
    let retained = crate::types::Message { retain: true, ..qos1("t", "r") };
    publish(&mut bed.publisher(), vec![retained]).await;
    let no_local = SubscribeOptions { no_local: true, ..options(Qos::AtLeastOnce) };
    let got = subscribe(
        &session,
        &[
            ("$share/g/t", no_local),
            ("$share/g/$queue/q", options(Qos::AtMostOnce)),
            ("$share/g/t", options(Qos::AtMostOnce)),
        ],
    )
    .await;
    assert!(matches!(&got[0], Err(CoreError::Invalid { field, .. }) if field == "no_local")); // [MQTT-3.8.3-4]
    assert!(matches!(&got[1], Err(CoreError::Invalid { field, .. }) if field == "filter"));
    assert_eq!(got[2], Ok(Qos::AtMostOnce));
    assert_eq!(inbox.take(), [], "a share gets no retained values");
    let inbox = Arc::new(Inbox::default());
    drop(bed.open_as("b", false, Duration::ZERO, &inbox).await.unwrap());
}

#[tokio::test]
async fn a_member_without_room_leaves_the_backlog_to_others() {
    let bed = Bed::new().await;
    let one = options(Qos::AtLeastOnce);
    let (full, _, _) = bed.durable("full").await;
    let (idle, _, _) = bed.durable("idle").await;
    subscribe(&full, &[("$share/g/t", one)]).await;
    subscribe(&idle, &[("$share/g/t", one)]).await;
    let mut none = Vec::new();
    // Both have looked and wait; then the first has no room any more.
    for session in [&full, &idle] {
        within(session.ready()).await;
        session.take(1, 1, &mut none).unwrap();
    }
    assert!(none.is_empty());
    full.take(0, 0, &mut none).unwrap();
    publish(&mut bed.publisher(), vec![qos1("t", "1")]).await;
    assert_eq!(texts(&take(&idle, 1).await), ["1"]);
}
