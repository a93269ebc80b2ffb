//! Wills of sessions over gRPC: by the rules of MQTT's, and of one client whichever door it comes back by.

use std::time::Duration;

use stafett::grpc::proto::v1;
use stafett::mqtt::codec::{Connect, ReasonCode};
use stafett::types::clock;
use tonic::Code;

use super::{Action, Stream, Topics, message, session, text};
use crate::harness::{Broker, config_file, within};
use crate::mqtt::{Peer, QOS1, V5, connect, kept, properties_of, seconds_pass};
use crate::queue::{Queues, field, named, seconds};

async fn watcher(broker: &Broker) -> Peer {
    Peer::subscribed(broker, V5, "will/#", QOS1).await
}

fn will(delay: i64) -> Option<v1::Will> {
    Some(v1::Will { message: Some(message("will/x", "lost")), delay: seconds(delay) })
}

/// A session that is kept, with a will.
async fn open(topics: &mut Topics, client_id: &str, delay: i64) -> Stream {
    topics.open(v1::OpenSession { will: will(delay), ..session(client_id, &[]) }).await
}

/// One that ends with its stream, with a will.
async fn open_once(topics: &mut Topics, client_id: &str, delay: i64) -> Stream {
    let once = v1::OpenSession { will: will(delay), session_expiry: None, ..session(client_id, &[]) };
    topics.open(once).await
}

fn with_will(mut connect: Connect, delay: u32) -> Connect {
    let mut will = crate::mqtt::will("will/x", "lost");
    will.properties.delay = Some(delay);
    connect.will = Some(will);
    connect
}

async fn lost(watcher: &mut Peer) {
    assert_eq!(crate::mqtt::text(&watcher.receive().await), "lost");
}

#[tokio::test]
async fn whatever_ends_a_stream_but_a_leave_publishes_its_will() {
    let (file, path) = config_file("[grpc]\nmax_stream_age = \"2s\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut topics = Topics::of(&broker).await;
    let mut watcher = watcher(&broker).await;
    // The client ends the call.
    drop(open(&mut topics, "c", 0).await);
    lost(&mut watcher).await;
    // It says nothing more.
    open(&mut topics, "c", 0).await.finish().await;
    lost(&mut watcher).await;
    // It breaks a rule.
    let mut stream = open(&mut topics, "c", 0).await;
    stream.say(Action::Add(v1::AddFilters::default())).await;
    stream.ended().await;
    lost(&mut watcher).await;
    // Another stream takes the session, and another door.
    let mut first = open(&mut topics, "c", 0).await;
    let mut second = open(&mut topics, "c", 0).await;
    first.ended().await;
    lost(&mut watcher).await;
    let device = Peer::connected(&broker, kept(V5, "c")).await;
    second.ended().await;
    lost(&mut watcher).await;
    device.leave().await;
    // It reaches its age.
    let mut aged = open(&mut topics, "c", 0).await;
    aged.ended().await;
    lost(&mut watcher).await;
    watcher.nothing_came().await;
    drop(file);
}

#[tokio::test]
async fn a_client_that_takes_its_leave_leaves_no_will() {
    let (broker, mut topics) = Topics::start().await;
    let mut watcher = watcher(&broker).await;
    for delay in [0, 1] {
        open(&mut topics, "c", delay).await.leave(v1::CloseSession::default()).await;
        open_once(&mut topics, "once", delay).await.leave(v1::CloseSession::default()).await;
    }
    seconds_pass(&broker, 2).await;
    watcher.nothing_came().await;
    // It may ask for it.
    let asks = v1::CloseSession { publish_will: true, session_expiry: None };
    let since = clock::now();
    open(&mut topics, "c", 0).await.leave(asks).await;
    lost(&mut watcher).await;
    open(&mut topics, "c", 1).await.leave(asks).await;
    lost(&mut watcher).await;
    assert!(since.elapsed() >= Duration::from_millis(900), "{:?}", since.elapsed());
    // That of an earlier stream is not kept.
    topics.session("c", &[]).await.finish().await;
    watcher.nothing_came().await;
}

#[tokio::test]
async fn a_will_carries_all_that_a_message_does() {
    let (broker, mut topics) = Topics::start().await;
    let mut watcher = watcher(&broker).await;
    let said = v1::Message {
        content_type: "text/plain".to_owned(),
        properties: vec![v1::Property { key: "k".to_owned(), value: "v".to_owned() }],
        ttl: seconds(600),
        retain: true,
        ..message("will/x", "lost")
    };
    let will = Some(v1::Will { message: Some(said), delay: None });
    let mut live = topics.subscribe(&["will/#"]).await;
    drop(topics.open(v1::OpenSession { will, ..session("c", &[]) }).await);
    assert_eq!(live.deliveries(1).await[0].origin.as_ref().unwrap().publisher_id, "c");
    let publish = watcher.receive().await;
    let properties = properties_of(&publish);
    assert_eq!(properties.content_type.as_deref(), Some("text/plain"));
    assert_eq!(properties.user_properties, [("k".into(), "v".into())]);
    assert_eq!(properties.message_expiry, Some(600));
    let kept = topics.subscribe(&["will/x"]).await.deliveries(1).await;
    assert_eq!((text(kept[0].message.as_ref()).as_str(), kept[0].retained), ("lost", true));
    // Straight into a queue, with what is for queues alone.
    let mut queues = Queues::of(&broker).await;
    queues.create(v1::Queue { priorities: true, ..named("q") }).await;
    let said = v1::Message { priority: Some(9), ..message("$queue/q", "lost") };
    let will = Some(v1::Will { message: Some(said), delay: None });
    queues.fill("q", &["before"]).await;
    drop(topics.open(v1::OpenSession { will, ..session("c", &[]) }).await);
    within("the will", async { while queues.stats("q").await.ready < 2 {} }).await;
    assert_eq!(text(queues.one("q").await.message.as_ref()), "lost");
}

#[tokio::test]
async fn a_delayed_will_waits_for_the_client_at_either_door() {
    let (broker, mut topics) = Topics::start().await;
    let mut watcher = watcher(&broker).await;
    // Lost here, back there, and the other way round: withdrawn.
    drop(open(&mut topics, "c", 1).await);
    let (back, connack) = Peer::greet(&broker, kept(V5, "c")).await;
    assert!(connack.session_present);
    Peer::connected(&broker, with_will(kept(V5, "d"), 1)).await.vanish();
    let there = topics.session("d", &[]).await;
    assert!(there.opened.session_present);
    // Taken over while it was connected.
    let mut taken = open(&mut topics, "e", 1).await;
    let _device = Peer::connected(&broker, kept(V5, "e")).await;
    taken.ended().await;
    seconds_pass(&broker, 2).await;
    watcher.nothing_came().await;
    back.leave().await;
    // Nobody comes back: at its time, or when the session ends before.
    for (delay, expiry) in [(1, 3600), (3600, 1)] {
        let since = clock::now();
        let open =
            v1::OpenSession { will: will(delay), session_expiry: seconds(expiry), ..session("f", &[]) };
        drop(topics.open(open).await);
        lost(&mut watcher).await;
        assert!(since.elapsed() >= Duration::from_millis(900), "{delay}: {:?}", since.elapsed());
    }
    watcher.nothing_came().await;
}

#[tokio::test]
async fn the_end_of_the_session_publishes_a_delayed_will() {
    let (broker, mut topics) = Topics::start().await;
    let mut watcher = watcher(&broker).await;
    // It ends with its stream.
    drop(open_once(&mut topics, "c", 3600).await);
    lost(&mut watcher).await;
    // The client says so with its leave.
    let ends = v1::CloseSession { publish_will: true, session_expiry: seconds(0) };
    open(&mut topics, "c", 3600).await.leave(ends).await;
    lost(&mut watcher).await;
    assert!(!topics.session("c", &[]).await.opened.session_present);
    // A clean start of either door ends it.
    drop(open(&mut topics, "c", 3600).await);
    Peer::clean(&broker, V5, "c").await.leave().await;
    lost(&mut watcher).await;
    Peer::connected(&broker, with_will(kept(V5, "c"), 3600)).await.vanish();
    watcher.nothing_came().await;
    let clean = v1::OpenSession { clean_start: true, ..session("c", &[]) };
    assert!(!topics.open(clean).await.opened.session_present);
    lost(&mut watcher).await;
    watcher.nothing_came().await;
}

#[tokio::test]
async fn a_will_is_published_when_the_broker_stops() {
    let (broker, mut topics) = Topics::start().await;
    let data = broker.data();
    topics.session("watcher", &["will/#"]).await.finish().await;
    drop(open(&mut topics, "waits", 3600).await);
    let mut there = open(&mut topics, "there", 3600).await;
    let _device = Peer::connected(&broker, with_will(connect(V5, "device"), 0)).await;
    let (_, (closing, _)) = tokio::join!(broker.terminate(), there.ended());
    assert_eq!(Code::from(closing.status.unwrap().code), Code::Unavailable);
    drop(there);
    let broker = Broker::start_in(data, &[]).await;
    let mut watcher = Topics::of(&broker).await.session("watcher", &[]).await;
    assert_eq!(watcher.texts(3).await, ["lost", "lost", "lost"]);
}

#[tokio::test]
async fn a_will_that_could_not_be_published_is_refused() {
    let (broker, mut topics) = Topics::start().await;
    let said = |change: fn(&mut v1::Message)| {
        let mut message = message("will/x", "lost");
        change(&mut message);
        v1::Will { message: Some(message), delay: None }
    };
    let delay = Some(v1::message::Schedule::Delay(seconds(1).unwrap()));
    let delayed = v1::Message { schedule: delay, ..message("will/x", "") };
    for (will, named) in [
        (v1::Will::default(), "open.will.message"),
        (said(|m| m.topic = "a/#".to_owned()), "open.will.message.topic"),
        (said(|m| m.topic = "$SYS/x".to_owned()), "open.will.message.topic"),
        (said(|m| m.qos = v1::Qos::ExactlyOnce.into()), "open.will.message.qos"),
        (said(|m| m.payload = vec![0; 5 << 20].into()), "open.will.message.payload"),
        // Of what could be published, but is too much to be kept by everybody.
        (said(|m| m.payload = vec![0; 128 << 10].into()), "open.will.message.payload"),
        (v1::Will { message: Some(delayed), delay: None }, "open.will.message.delay"),
        (v1::Will { delay: seconds(-1), ..said(|_| {}) }, "open.will.delay"),
    ] {
        let open = v1::OpenSession { will: Some(will), ..session("c", &[]) };
        let status = topics.not_opened(open).await;
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, named));
    }
    // Nothing was opened.
    assert!(!topics.session("c", &[]).await.opened.session_present);
    let (peer, connack) = Peer::greet(&broker, with_will(connect(V5, "d"), 0)).await;
    assert_eq!(connack.reason, ReasonCode::Success);
    peer.leave().await;
}
