//! Sessions: open, away, taken over, ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::advance;

use super::bed::{StillClock, publish, subscribe, take, texts};
use super::*;
use crate::core::{CloseReason, CoreError, End, Limits, OpenSession};
use crate::engine::{Engine, Nack, SubscribeOptions};
use crate::types::{ClientId, Qos};

#[tokio::test]
async fn an_away_session_gets_qos_1_later_and_qos_0_never() {
    let bed = Bed::new().await;
    let (session, inbox, present) = bed.durable("s").await;
    assert!(!present);
    subscribe(&session, &[("a/+", options(Qos::AtLeastOnce)), ("zero", options(Qos::AtMostOnce))]).await;
    let mut publisher = bed.publisher();

    // Connected: QoS 0 comes live, QoS 1 by the engine.
    publish(
        &mut publisher,
        vec![message("a/1", "live", Qos::AtMostOnce), qos1("a/1", "stored"), qos1("zero", "live 2")],
    )
    .await;
    assert_eq!(inbox.payloads(), ["live", "live 2"]);
    let taken = take(&session, 1).await;
    assert_eq!(
        (texts(&taken), taken[0].leased.attempt, taken[0].leased.qos),
        (vec!["stored".into()], 1, Qos::AtLeastOnce)
    );
    let settled = session.settle(taken[0].source, &[taken[0].leased.sequence]).unwrap();
    assert!(settled.failed.is_empty());
    within(settled.durable).await.unwrap();

    session.close(End::Clean).await;
    publish(
        &mut publisher,
        vec![message("a/1", "x", Qos::AtMostOnce), qos1("a/2", "kept"), qos1("zero", "x")],
    )
    .await;
    let (session, inbox, present) = bed.durable("s").await;
    assert!(present);
    assert_eq!(texts(&take(&session, 1).await), ["kept"]);
    assert_eq!(inbox.take(), []);
}

#[tokio::test]
async fn sessions_survive_a_restart_with_filters_and_backlog() {
    let bed = Bed::new().await;
    let (session, _, _) = bed.durable("s").await;
    let with_id = SubscribeOptions { identifier: 9.try_into().ok(), ..options(Qos::ExactlyOnce) };
    subscribe(&session, &[("a/+", with_id), ("b", options(Qos::AtLeastOnce)), ("gone", with_id)]).await;
    let ended = within(session.unsubscribe(vec![filter("gone"), filter("never")])).await;
    assert_eq!(ended, [Ok(true), Ok(false)]);
    session.close(End::Lost).await;
    publish(
        &mut bed.publisher(),
        vec![qos1("a/1", "1"), qos1("gone", "x"), message("b", "2", Qos::ExactlyOnce)],
    )
    .await;

    let bed = bed.again().await;
    publish(&mut bed.publisher(), vec![qos1("a/2", "3")]).await;
    let (session, _, present) = bed.durable("s").await;
    assert!(present);
    let taken = take(&session, 3).await;
    assert_eq!(texts(&taken), ["1", "2", "3"]);
    let told: Vec<_> = taken
        .iter()
        .map(|d| (d.leased.qos as u8, d.identifiers.iter().map(|id| id.get()).sum::<u32>()))
        .collect();
    assert_eq!(told, [(1, 9), (1, 0), (1, 9)]);
}

#[tokio::test]
async fn a_session_whose_time_is_over_is_not_there_after_a_restart() {
    let bed = Bed::new().await;
    let inbox = Arc::new(Inbox::default());
    let opened = bed.open_as("s", false, Duration::from_millis(1), &inbox).await.unwrap();
    subscribe(&opened.session, &[("a", options(Qos::AtLeastOnce))]).await;
    let target = opened.session.target().unwrap();
    opened.session.close(End::Clean).await;
    let bed = bed.again().await;
    within(async {
        while bed.engine.stats(target).is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let got = publish(&mut bed.publisher(), vec![qos1("a", "x")]).await;
    assert_eq!(got[0].result.as_ref().unwrap().subscribers, 0);
    assert!(!bed.durable("s").await.2);
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_when_its_time_away_is_over() {
    let _still = StillClock::new();
    let bed = Bed::new().await;
    let inbox = Arc::new(Inbox::default());
    let open = |expiry, inbox: &Arc<Inbox>| OpenSession {
        client_id: Some(ClientId::parse("s").unwrap()),
        clean_start: false,
        expiry,
        principal: "p".into(),
        outbox: inbox.clone(),
        will: None,
    };
    let opened = bed.broker.open_session(open(Duration::from_secs(600), &inbox)).await.unwrap();
    advance(Duration::from_secs(3600)).await;
    opened.session.close(End::Clean).await;
    advance(Duration::from_secs(590)).await;
    let opened = bed.broker.open_session(open(Duration::from_secs(600), &inbox)).await.unwrap();
    assert!(opened.present);
    let target = opened.session.target().unwrap();
    opened.session.close(End::Lost).await;
    advance(Duration::from_secs(610)).await;
    while bed.engine.stats(target).is_ok() {
        tokio::task::yield_now().await;
    }
    let opened = bed.broker.open_session(open(Duration::ZERO, &inbox)).await.unwrap();
    assert!(!opened.present && !opened.session.is_durable());
}

#[tokio::test]
async fn a_second_connection_takes_the_session_over() {
    let bed = Bed::new().await;
    let (first, at_first, _) = bed.durable("s").await;
    subscribe(&first, &[("a", options(Qos::AtLeastOnce))]).await;
    publish(&mut bed.publisher(), vec![qos1("a", "1"), qos1("a", "2")]).await;
    let taken = take(&first, 2).await;

    let owner = async {
        // What a door does: when its outbox is closed it counts what was written, and leaves.
        assert_eq!(at_first.closed().await, CloseReason::TakenOver);
        drop(first.nack(taken[0].source, &[taken[0].leased.sequence], Nack::Failed(None), None).unwrap());
        first.close(End::Lost).await;
    };
    let ((), (second, at_second, present)) = within(async { tokio::join!(owner, bed.durable("s")) }).await;
    assert!(present);
    let again = take(&second, 2).await;
    assert_eq!(texts(&again), ["1", "2"]);
    assert_eq!(again.iter().map(|d| d.leased.attempt).collect::<Vec<_>>(), [2, 1]);
    publish(&mut bed.publisher(), vec![message("a", "live", Qos::AtMostOnce)]).await;
    assert_eq!((at_first.take(), at_second.payloads()), (vec![], vec!["live".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_leave_loses_its_session() {
    let still = StillClock::new();
    let bed = Bed::new().await;
    let (first, _, _) = bed.durable("s").await;
    subscribe(&first, &[("a", options(Qos::AtLeastOnce))]).await;
    let second = Arc::new(Inbox::default());
    let open = OpenSession {
        client_id: Some(ClientId::parse("s").unwrap()),
        clean_start: false,
        expiry: Duration::from_secs(60),
        principal: "p".into(),
        outbox: second,
        will: None,
    };
    // Time runs on its own from here, to the end of the patience with it.
    drop(still);
    assert!(bed.broker.open_session(open).await.unwrap().present);
    let refused = first.subscribe(vec![(filter("b"), options(Qos::AtMostOnce))]).await;
    assert!(matches!(refused[0], Err(CoreError::Precondition { reason: "SESSION_TAKEN_OVER", .. })));
    let refused = first.settle(first.target().unwrap(), &[]);
    assert!(matches!(refused, Err(CoreError::Precondition { reason: "SESSION_TAKEN_OVER", .. })));
}

#[tokio::test]
async fn a_session_belongs_to_who_made_it() {
    let bed = Bed::new().await;
    let (session, inbox, _) = bed.durable("s").await;
    let open = OpenSession {
        client_id: Some(session.client_id().clone()),
        clean_start: true,
        expiry: Duration::ZERO,
        principal: "another".into(),
        outbox: inbox.clone(),
        will: None,
    };
    let refused = bed.broker.open_session(open).await.unwrap_err();
    assert!(matches!(refused, CoreError::Precondition { reason: "SESSION_OF_ANOTHER", .. }));
    assert_eq!(*inbox.closed.lock(), None);
}

#[tokio::test]
async fn what_is_nobodys_is_theirs_who_take_it() {
    let bed = Bed::new().await;
    let open = async |principal: &'static str| {
        let open = OpenSession {
            client_id: Some(ClientId::parse("s").unwrap()),
            clean_start: false,
            expiry: Duration::from_secs(60),
            principal: principal.into(),
            outbox: Arc::new(Inbox::default()),
            will: None,
        };
        let opened = bed.broker.open_session(open).await?;
        let present = opened.present;
        opened.session.close(End::Clean).await;
        Ok::<_, CoreError>(present)
    };
    assert!(!open("").await.unwrap());
    assert!(open("").await.unwrap());
    assert!(open("ann").await.unwrap());
    for other in ["", "bob"] {
        let refused = open(other).await;
        assert!(
            matches!(refused, Err(CoreError::Precondition { reason: "SESSION_OF_ANOTHER", .. })),
            "{other}"
        );
    }
    assert!(open("ann").await.unwrap());
}

#[tokio::test]
async fn a_clean_start_deletes_what_was_there() {
    let bed = Bed::new().await;
    let (session, _, _) = bed.durable("s").await;
    subscribe(&session, &[("a", options(Qos::AtLeastOnce))]).await;
    session.close(End::Clean).await;
    publish(&mut bed.publisher(), vec![qos1("a", "1")]).await;
    let inbox = Arc::new(Inbox::default());
    let opened = bed.open_as("s", true, Duration::from_secs(60), &inbox).await.unwrap();
    assert!(!opened.present);
    let got = publish(&mut bed.publisher(), vec![qos1("a", "2")]).await;
    assert_eq!(got[0].result.as_ref().unwrap().subscribers, 0);

    // One that ends with its connection is new each time, and gone with it.
    let (first, at_first) = bed.transient("t").await;
    subscribe(&first, &[("b", options(Qos::AtLeastOnce))]).await;
    let owner = async {
        at_first.closed().await;
        drop(first);
    };
    let second = Arc::new(Inbox::default());
    let ((), opened) = tokio::join!(owner, bed.open_as("t", false, Duration::ZERO, &second));
    assert!(!opened.unwrap().present);
    assert_eq!(bed.broker.pubsub.sessions.count(), 1);
}

#[tokio::test]
async fn expiry_can_be_changed_and_is_bounded() {
    let bed = Bed::with(Limits { max_session_expiry: Duration::from_secs(100), ..Limits::default() }).await;
    let inbox = Arc::new(Inbox::default());
    let opened = bed.open_as("s", false, Duration::MAX, &inbox).await.unwrap();
    assert_eq!(opened.expiry, Duration::from_secs(100));
    within(opened.session.set_expiry(Duration::ZERO)).await.unwrap();
    let target = opened.session.target().unwrap();
    opened.session.close(End::Clean).await;
    assert!(bed.engine.stats(target).is_err());
    let bed = bed.again().await;
    assert!(!bed.durable("s").await.2);
}

#[tokio::test]
async fn sessions_and_subscriptions_are_bounded() {
    let bed = Bed::with(Limits { max_sessions: 1, max_subscriptions: 2, ..Limits::default() }).await;
    let (session, inbox, _) = bed.durable("a").await;
    let refused = bed.open_as("b", false, Duration::from_secs(1), &inbox).await.unwrap_err();
    assert!(matches!(refused, CoreError::Limit { max: 1, .. }), "{refused}");
    bed.transient("c").await;
    let plain = options(Qos::AtMostOnce);
    let got = subscribe(&session, &[("1", plain), ("2", plain), ("3", plain), ("1", plain)]).await;
    assert!(matches!(got[2], Err(CoreError::Limit { max: 2, .. })));
    assert_eq!(got.iter().filter(|answer| answer.is_ok()).count(), 3);
    // The place is free again when the session has gone.
    let owner = async {
        inbox.closed().await;
        drop(session);
    };
    let other = Arc::new(Inbox::default());
    let ((), opened) = tokio::join!(owner, bed.open_as("a", true, Duration::ZERO, &other));
    drop(opened.unwrap());
    bed.open_as("b", false, Duration::from_secs(1), &other).await.unwrap();
}

#[tokio::test]
async fn a_full_backlog_drops_and_counts() {
    let bed = Bed::with(Limits { session_messages: 2, ..Limits::default() }).await;
    let (session, _, _) = bed.durable("s").await;
    subscribe(&session, &[("a", options(Qos::AtLeastOnce))]).await;
    let got = publish(&mut bed.publisher(), (0..5).map(|n| qos1("a", &n.to_string())).collect()).await;
    assert!(got.iter().all(|receipt| receipt.result.is_ok()));
    let taken = take(&session, 2).await;
    assert_eq!(texts(&taken), ["0", "1"]);
    assert_eq!(taken.iter().map(|d| d.dropped_before).collect::<Vec<_>>(), [3, 0]);
    assert_eq!(bed.engine.stats(session.target().unwrap()).unwrap().dropped_total, 3);
}
