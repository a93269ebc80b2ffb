//! Sessions that outlive their streams, and the broker.

use stafett::grpc::proto::v1;
use tonic::Code;
use tonic_types::StatusExt;

use super::{Action, Topics, at_most_once, message, session, texts};
use crate::harness::{Broker, within};
use crate::mqtt::{Peer, QOS1, V5, kept, seconds_pass};
use crate::queue::{field, reason, seconds};

#[tokio::test]
async fn a_session_survives_a_kill() {
    let (broker, mut topics) = Topics::start().await;
    let mut stream = topics.session("s", &["a/+", "b"]).await;
    assert!(!stream.opened.session_present);
    assert_eq!(stream.opened.session_id, "s");
    for payload in ["1", "2", "3"] {
        assert_eq!(topics.publish(message("a/1", payload)).await.matched_subscribers, 1);
    }
    let deliveries = stream.deliveries(3).await;
    assert_eq!(stream.ack(&deliveries[1..2]).await, []);
    topics.publish(message("b", "4")).await;

    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut topics = Topics::of(&broker).await;
    assert_eq!(topics.publish(message("a/2", "5")).await.matched_subscribers, 1);
    let mut stream = topics.session("s", &[]).await;
    assert!(stream.opened.session_present);
    let deliveries = stream.deliveries(4).await;
    // What was settled is gone for good.
    assert_eq!(texts(&deliveries), ["1", "3", "4", "5"]);
    assert_eq!(stream.ack(&deliveries).await, []);
    stream.finish().await;

    // It ends when it is told to.
    let mut topics = Topics::of(&broker).await;
    let stream = topics.open(v1::OpenSession { session_expiry: None, ..session("s", &[]) }).await;
    assert!(stream.opened.session_present);
    stream.finish().await;
    assert!(!topics.session("s", &[]).await.opened.session_present);
}

#[tokio::test]
async fn what_is_not_settled_comes_again() {
    let (_broker, mut topics) = Topics::start().await;
    let mut stream = topics.session("s", &["t"]).await;
    topics.publish(message("t", "1")).await;
    topics.publish(at_most_once("t", "live")).await;
    let mut got = stream.texts(2).await;
    got.sort();
    assert_eq!(got, ["1", "live"]);
    // Whether the end was in order or not.
    stream.finish().await;
    let mut stream = topics.session("s", &[]).await;
    assert_eq!(stream.deliveries(1).await[0].delivery_attempt, 2);
    drop(stream);
    let mut stream = topics.session("s", &[]).await;
    assert_eq!(stream.deliveries(1).await[0].delivery_attempt, 3);
    drop(stream);

    // At most once is not kept.
    topics.publish(at_most_once("t", "lost")).await;
    topics.publish(message("t", "kept")).await;
    let mut stream = topics.session("s", &[]).await;
    let deliveries = stream.deliveries(2).await;
    assert_eq!(texts(&deliveries), ["1", "kept"]);
    assert_eq!(deliveries[0].delivery_attempt, 4);
    // A clean start forgets everything.
    drop(stream);
    let stream = topics.open(v1::OpenSession { clean_start: true, ..session("s", &[]) }).await;
    assert!(!stream.opened.session_present);
    assert_eq!(topics.publish(message("t", "x")).await.matched_subscribers, 0);
}

#[tokio::test]
async fn a_newer_stream_takes_the_session_over() {
    let (_broker, mut topics) = Topics::start().await;
    let mut first = topics.session("s", &["t"]).await;
    topics.publish(message("t", "1")).await;
    assert_eq!(first.deliveries(1).await[0].delivery_attempt, 1);
    let mut second = topics.session("s", &[]).await;
    assert!(second.opened.session_present);
    let (closing, status) = first.ended().await;
    assert_eq!(Code::from(closing.status.unwrap().code), Code::Aborted);
    let status = status.unwrap();
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(reason(&status.get_error_details()), "SESSION_TAKEN_OVER");
    let again = second.deliveries(1).await;
    assert_eq!((texts(&again), again[0].delivery_attempt), (vec!["1".to_owned()], 2));
    topics.publish(message("t", "2")).await;
    assert_eq!(second.texts(1).await, ["2"]);
}

#[tokio::test]
async fn a_session_that_is_full_says_how_much_it_lost() {
    let (file, path) = crate::harness::config_file("[limits]\nsession_messages = 3\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut topics = Topics::of(&broker).await;
    topics.session("s", &["t"]).await.finish().await;
    for n in 0..8 {
        topics.publish(message("t", &n.to_string())).await;
    }
    let mut stream = topics.session("s", &[]).await;
    let deliveries = stream.deliveries(3).await;
    assert_eq!(texts(&deliveries), ["0", "1", "2"]);
    assert_eq!(deliveries.iter().map(|d| d.dropped_before).sum::<u64>(), 5);
    assert_eq!(stream.ack(&deliveries).await, []);
    topics.publish(message("t", "8")).await;
    let next = stream.deliveries(1).await;
    assert_eq!((texts(&next), next[0].dropped_before), (vec!["8".to_owned()], 0));
    drop(file);
}

#[tokio::test]
async fn a_session_ends_when_its_time_is_over() {
    let (_broker, mut topics) = Topics::start().await;
    let open = v1::OpenSession { session_expiry: seconds(1), ..session("s", &["t"]) };
    topics.open(open).await.finish().await;
    assert_eq!(topics.publish(message("t", "")).await.matched_subscribers, 1);
    ended(&mut topics).await;
    assert!(!topics.session("s", &[]).await.opened.session_present);
}

#[tokio::test]
async fn the_expiry_that_was_granted_is_told_and_may_be_changed_with_the_leave() {
    let (file, path) = crate::harness::config_file("[limits]\nmax_session_expiry = \"1h\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut topics = Topics::of(&broker).await;
    for (asked, granted) in [(None, 0), (seconds(0), 0), (seconds(60), 60), (seconds(86_400), 3600)] {
        let open = v1::OpenSession { session_expiry: asked, ..session("s", &[]) };
        let stream = topics.open(open).await;
        assert_eq!(stream.opened.session_expiry, seconds(granted));
        stream.finish().await;
    }
    let negative = v1::OpenSession { session_expiry: seconds(-1), ..session("s", &[]) };
    assert_eq!(field(&topics.not_opened(negative).await), "open.session_expiry");
    let leaves = |expiry| v1::CloseSession { session_expiry: seconds(expiry), publish_will: false };

    // Longer than it was, and no longer than the bound.
    let short = || v1::OpenSession { session_expiry: seconds(1), ..session("s", &["t"]) };
    topics.open(short()).await.leave(leaves(86_400)).await;
    seconds_pass(&broker, 2).await;
    let stream = topics.session("s", &[]).await;
    assert!(stream.opened.session_present);
    // A second, and at once.
    stream.leave(leaves(1)).await;
    ended(&mut topics).await;
    topics.session("s", &["t"]).await.leave(leaves(0)).await;
    assert_eq!(topics.publish(message("t", "")).await.matched_subscribers, 0);
    // One that ends with its stream stays so.
    let once = v1::OpenSession { session_expiry: None, ..session("s", &["t"]) };
    let mut stream = topics.open(once).await;
    stream.say(Action::Close(leaves(60))).await;
    let (_, status) = stream.ended().await;
    assert_eq!(field(&status.unwrap()), "close.session_expiry");
    assert_eq!(topics.publish(message("t", "")).await.matched_subscribers, 0);

    // The last door to open it says how long.
    topics.session("s", &["t"]).await.finish().await;
    let mut brief = kept(V5, "s");
    brief.properties.session_expiry = Some(1);
    Peer::connected(&broker, brief.clone()).await.leave().await;
    ended(&mut topics).await;
    brief.properties.session_expiry = Some(3600);
    let mut peer = Peer::connected(&broker, brief).await;
    peer.subscribe("t", QOS1).await;
    peer.leave().await;
    topics.open(short()).await.finish().await;
    ended(&mut topics).await;
    drop(file);
}

/// The end of the session that gets `t` is an event that can be seen by publishing.
async fn ended(topics: &mut Topics) {
    within("the end of the session", async {
        while topics.publish(message("t", "")).await.matched_subscribers > 0 {}
    })
    .await;
}

#[tokio::test]
async fn time_without_the_broker_counts() {
    let (broker, mut topics) = Topics::start().await;
    let open = |client_id: &str, expiry| v1::OpenSession {
        session_expiry: seconds(expiry),
        ..session(client_id, &["t"])
    };
    topics.open(open("away", 1)).await.finish().await;
    // With its stream when the broker is killed: its time counts from then.
    let _there = topics.open(open("there", 1)).await;
    topics.open(open("stays", 3600)).await.finish().await;
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    seconds_pass(&broker, 1).await;
    let mut topics = Topics::of(&broker).await;
    within("the end of two sessions", async {
        while topics.publish(message("t", "")).await.matched_subscribers > 1 {}
    })
    .await;
    for (client_id, present) in [("away", false), ("there", false), ("stays", true)] {
        assert_eq!(topics.session(client_id, &[]).await.opened.session_present, present, "{client_id}");
    }
}
