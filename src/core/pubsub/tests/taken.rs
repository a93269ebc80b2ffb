//! Connections that do not end when they are told to: what becomes of the session that is taken from them, and of wills.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::advance;

use super::bed::{StillClock, publish, subscribe, take, texts};
use super::*;
use crate::core::{CoreError, Inbound, Limits, OpenSession, Session, Will};
use crate::engine::{Outgoing, OutgoingState};
use crate::types::{ClientId, Qos, clock};

const SOON: Duration = Duration::from_millis(50);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

async fn impatient() -> Bed {
    Bed::with(Limits { release_within: SOON, ..Limits::default() }).await
}

/// A session that gets wills.
async fn watcher(bed: &Bed) -> (Session, Arc<Inbox>) {
    let (watcher, inbox) = bed.transient("watcher").await;
    subscribe(&watcher, &[("will", options(Qos::AtMostOnce))]).await;
    (watcher, inbox)
}

fn request(expiry: Duration, will_after: Option<Duration>) -> OpenSession {
    let will = |delay| {
        let inbound = Inbound::new(message("will", "lost", Qos::AtMostOnce), 0);
        Box::new(Will::new(inbound, delay, None))
    };
    OpenSession {
        client_id: Some(client()),
        clean_start: false,
        expiry,
        principal: "p".into(),
        outbox: Arc::new(Inbox::default()),
        will: will_after.map(will),
    }
}

fn client() -> ClientId {
    ClientId::parse("s").unwrap()
}

/// Opens the session, new or not, with a will.
async fn open(bed: &Bed, expiry: Duration, will_after: Option<Duration>) -> (Session, bool) {
    let opened = within(bed.broker.open_session(request(expiry, will_after))).await.unwrap();
    (opened.session, opened.present)
}

fn is_taken_over<T>(answer: Result<T, CoreError>) -> bool {
    matches!(answer, Err(CoreError::Precondition { reason: "SESSION_TAKEN_OVER", .. }))
}

/// Wills that have come when the broker has stopped: by then all have that wait.
async fn at_the_end(bed: &Bed, wills: &Inbox) -> Vec<String> {
    bed.broker.drain();
    within(bed.broker.drained()).await;
    wills.payloads()
}

#[tokio::test]
async fn a_session_that_is_taken_from_its_connection_is_away() {
    let bed = impatient().await;
    let (_watcher, wills) = watcher(&bed).await;
    let (first, _) = open(&bed, HOUR, Some(Duration::ZERO)).await;
    subscribe(&first, &[("a", options(Qos::AtLeastOnce))]).await;
    publish(&mut bed.publisher(), vec![qos1("a", "1"), qos1("a", "2")]).await;
    assert_eq!(texts(&take(&first, 2).await), ["1", "2"]);

    assert!(within(bed.broker.disconnect_client(&client())).await.unwrap());
    assert_eq!(wills.payloads(), ["lost"]);
    let sessions = bed.broker.list_sessions("s", None, 9);
    let [away] = &sessions[..] else { panic!("{sessions:?}") };
    assert_eq!((away.connected, away.expiry, away.queued), (false, HOUR, 2));
    let left = away.ends_at.unwrap().since(clock::unix_now());
    assert!(left > HOUR / 2, "it ends in {left:?}");

    // What it still says is of no effect.
    assert!(is_taken_over(within(first.set_expiry(Duration::ZERO)).await));
    let removed = within(first.unsubscribe(vec![filter("a")])).await;
    assert!(removed.into_iter().all(is_taken_over));
    drop(first);
    let (second, present) = open(&bed, HOUR, None).await;
    assert!(present && second.filters() == [filter("a")]);
    // What it was given has failed.
    let again = take(&second, 2).await;
    assert_eq!(texts(&again), ["1", "2"]);
    assert!(again.iter().all(|delivery| delivery.leased.attempt == 2));
    assert_eq!(at_the_end(&bed, &wills).await, [""; 0]);
}

#[tokio::test]
async fn one_that_ends_with_its_connection_ends_when_it_is_taken() {
    let bed = impatient().await;
    let (_watcher, wills) = watcher(&bed).await;
    let (once, _) = open(&bed, Duration::ZERO, Some(HOUR)).await;
    assert!(within(bed.broker.disconnect_client(&client())).await.unwrap());
    assert_eq!(wills.payloads(), ["lost"]);
    assert_eq!(bed.broker.list_sessions("s", None, 9), []);
    drop(once);
    let (shortened, _) = open(&bed, HOUR, None).await;
    within(shortened.set_expiry(Duration::ZERO)).await.unwrap();
    let (_second, present) = open(&bed, HOUR, None).await;
    assert!(!present);
    drop(shortened);
    assert_eq!(bed.broker.list_sessions("s", None, 9).len(), 1);
    assert_eq!(at_the_end(&bed, &wills).await, [""; 0]);
}

#[tokio::test]
async fn who_lost_the_session_changes_nothing_of_the_next() {
    let bed = impatient().await;
    let (first, _) = open(&bed, HOUR, None).await;
    let (second, present) = open(&bed, HOUR, None).await;
    assert!(present);
    subscribe(&second, &[("a", options(Qos::AtLeastOnce))]).await;
    assert!(is_taken_over(within(first.set_expiry(Duration::ZERO)).await));
    let removed = within(first.unsubscribe(vec![filter("a")])).await;
    assert!(removed.into_iter().all(is_taken_over));
    drop((first, second));
    let (third, present) = open(&bed, HOUR, None).await;
    assert!(present && third.filters() == [filter("a")]);
}

#[tokio::test]
async fn the_will_of_who_is_taken_over_comes_before_the_next_or_never() {
    let bed = impatient().await;
    let (_watcher, wills) = watcher(&bed).await;
    let (first, _) = open(&bed, HOUR, Some(Duration::ZERO)).await;
    let (second, _) = open(&bed, HOUR, Some(MINUTE)).await;
    assert_eq!(wills.payloads(), ["lost"]);
    drop(first);
    // One with a delay: the client is back, however long it stays.
    let (third, present) = open(&bed, Duration::ZERO, None).await;
    drop(second);
    assert!(present);
    assert_eq!(at_the_end(&bed, &wills).await, [""; 0]);
    drop(third);
}

#[tokio::test]
async fn a_session_is_deleted_though_its_connection_does_not_end_and_nobody_waits() {
    let bed = impatient().await;
    let (_watcher, wills) = watcher(&bed).await;
    let (first, _) = open(&bed, HOUR, Some(HOUR)).await;
    let client = client();
    let deleting = bed.broker.delete_session(&client);
    assert!(tokio::time::timeout(SOON / 50, deleting).await.is_err());
    let will = wills.next(1).await;
    assert_eq!(will[0].payload, "lost");
    assert_eq!(bed.broker.list_sessions("s", None, 9), []);
    drop(first);
    assert_eq!(at_the_end(&bed, &wills).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_will_is_withdrawn_by_who_is_there_in_time_however_long_the_store_takes() {
    let _still = StillClock::new();
    let bed = Bed::new().await;
    let (_watcher, wills) = watcher(&bed).await;
    // Returns when the session is with its connection, and the store still at work.
    #[expect(clippy::async_yields_async, reason = "what is opened is awaited later")]
    let opening = async || {
        bed.engine.hold();
        let broker = Arc::clone(&bed.broker);
        let opening =
            tokio::spawn(async move { broker.open_session(request(HOUR, Some(MINUTE))).await.unwrap() });
        while !bed.broker.list_sessions("s", None, 9).iter().any(|session| session.connected) {
            tokio::task::yield_now().await;
        }
        advance(2 * MINUTE).await;
        opening
    };
    drop(open(&bed, HOUR, Some(MINUTE)).await);
    let back = opening().await;
    bed.engine.release().await;
    let opened = back.await.unwrap();
    assert!(opened.present);
    assert_eq!(wills.payloads(), [""; 0]);
    drop(opened);
    // Who gives up has not come back.
    let given_up = opening().await;
    assert_eq!(wills.payloads(), [""; 0]);
    given_up.abort();
    assert_eq!(wills.next(1).await[0].payload, "lost");
    bed.engine.release().await;
    assert_eq!(at_the_end(&bed, &wills).await, [""; 0]);
}

#[tokio::test]
async fn what_was_dropped_is_told_with_what_every_door_delivers() {
    let bed = Bed::with(Limits { session_messages: 2, ..Limits::default() }).await;
    let (first, _) = open(&bed, HOUR, None).await;
    subscribe(&first, &[("a", options(Qos::ExactlyOnce))]).await;
    let exactly_once = |n: u32| message("a", &n.to_string(), Qos::ExactlyOnce);
    publish(&mut bed.publisher(), vec![exactly_once(0)]).await;
    let half_done = take(&first, 1).await.remove(0);
    let settled = Outgoing { packet_id: 7, state: OutgoingState::Settled };
    within(first.outgoing(half_done.source, half_done.leased.sequence, settled)).await.unwrap();
    drop(first);
    publish(&mut bed.publisher(), (1..5).map(exactly_once).collect()).await;
    let (second, _) = open(&bed, HOUR, None).await;
    let told: Vec<_> =
        take(&second, 2).await.iter().map(|given| (given.is_settled(), given.dropped_before)).collect();
    assert_eq!(told, [(true, 0), (false, 3)]);
}
