//! Wills: published when the connection is lost, not when the client takes its leave.

use std::time::Duration;

use stafett::mqtt::codec::DisconnectProperties;
use stafett::types::clock;
use tokio::task::JoinSet;

use super::*;

async fn watcher(broker: &Broker) -> Peer {
    Peer::subscribed(broker, V5, "will/#", QOS1).await
}

fn with_will(mut connect: Connect, delay: Option<u32>) -> Connect {
    let mut will = will("will/x", "lost");
    will.properties.delay = delay;
    connect.will = Some(will);
    connect
}

#[tokio::test]
async fn a_lost_connection_leaves_its_will() {
    // 3.1.1: [MQTT-3.1.2-8]; 5: [MQTT-3.1.2-8].
    let broker = Broker::start().await;
    let mut watcher = watcher(&broker).await;
    for version in BOTH {
        Peer::connected(&broker, with_will(connect(version, "c"), None)).await.vanish();
        assert_eq!(text(&watcher.receive().await), "lost");
        // Whatever ends it.
        let mut garbage = Peer::connected(&broker, with_will(connect(version, "c"), None)).await;
        garbage.send_bytes(&[0xff; 4]).await;
        garbage.told().await;
        assert_eq!(text(&watcher.receive().await), "lost");
        let taken = Peer::connected(&broker, with_will(connect(version, "c"), None)).await;
        let other = Peer::clean(&broker, version, "c").await;
        taken.told().await;
        assert_eq!(text(&watcher.receive().await), "lost");
        other.leave().await;
    }
}

#[tokio::test]
async fn a_client_that_takes_its_leave_leaves_no_will() {
    // [MQTT-3.14.4-3]
    let broker = Broker::start().await;
    let mut watcher = watcher(&broker).await;
    for version in BOTH {
        Peer::connected(&broker, with_will(connect(version, "c"), None)).await.leave().await;
        watcher.nothing_came().await;
    }
    // 5: DISCONNECT 0x04 asks for it.
    let mut peer = Peer::connected(&broker, with_will(connect(V5, "c"), None)).await;
    peer.send(Packet::Disconnect(Disconnect::new(ReasonCode::DisconnectWithWill))).await;
    assert_eq!(text(&watcher.receive().await), "lost");
}

#[tokio::test]
async fn a_farewell_is_heard_though_the_client_closes_with_data_unread() {
    // [MQTT-3.14.4-3]: closing with data unread resets the connection while the broker writes.
    let broker = Broker::start().await;
    let mut watcher = watcher(&broker).await;
    let mut flood = Peer::clean(&broker, V311, "flood").await;
    let mut floods = JoinSet::new();
    floods.spawn(async move {
        let publish = Packet::Publish(publish("flood/x", QOS0, 0, vec![0; 2000]));
        let mut bytes = BytesMut::new();
        for _ in 0..20 {
            publish.encode(V311, &mut bytes).unwrap();
        }
        while flood.try_send_bytes(&bytes).await {}
    });
    for (n, version) in (0..300).zip(BOTH.into_iter().cycle()) {
        let mut peer = Peer::connected(&broker, with_will(connect(version, "c"), None)).await;
        let filters =
            vec![SubscribeFilter { filter: "flood/#".into(), options: SubscribeOptions::default() }];
        peer.send(Packet::Subscribe(Subscribe { packet_id: id(1), properties: None, filters })).await;
        while !matches!(peer.next().await, Packet::Publish(_)) {}
        peer.send(Packet::Disconnect(Disconnect::new(ReasonCode::Success))).await;
        peer.vanish();
        // The next one takes over, or comes after: in both cases the end of this one is decided then.
        if n % 50 == 0 {
            watcher.nothing_came().await;
        }
    }
    Peer::clean(&broker, V5, "c").await.leave().await;
    watcher.nothing_came().await;
}

#[tokio::test]
async fn a_farewell_is_heard_though_an_answer_is_due_when_the_session_is_taken_over() {
    let broker = Broker::start().await;
    let mut watcher = watcher(&broker).await;
    for (n, version) in (0..50).zip(BOTH.into_iter().cycle()) {
        let mut peer = Peer::connected(&broker, with_will(kept(version, "c"), None)).await;
        let filters =
            vec![SubscribeFilter { filter: format!("f/{n}").into(), options: SubscribeOptions::default() }];
        let mut said = BytesMut::new();
        let subscribe = Packet::Subscribe(Subscribe { packet_id: id(1), properties: None, filters });
        subscribe.encode(version, &mut said).unwrap();
        Packet::Disconnect(Disconnect::new(ReasonCode::Success)).encode(version, &mut said).unwrap();
        peer.send_bytes(&said).await;
        Peer::connected(&broker, connect(version, "c")).await.leave().await;
        watcher.nothing_came().await;
    }
}

#[tokio::test]
async fn a_retained_will_stays() {
    // 3.1.1: [MQTT-3.1.2-17]; 5: [MQTT-3.1.2-15].
    let broker = Broker::start().await;
    let mut watcher = watcher(&broker).await;
    let mut lost = with_will(connect(V311, "c"), None);
    lost.will.as_mut().unwrap().retain = true;
    Peer::connected(&broker, lost).await.vanish();
    assert!(!watcher.receive().await.retain);
    let mut late = Peer::clean(&broker, V311, "").await;
    late.subscribe_and_find("will/#", "lost").await;
}

#[tokio::test]
async fn a_delayed_will_waits_for_the_client_to_come_back() {
    // 5: [MQTT-3.1.2-8], [MQTT-3.1.3-9].
    let broker = Broker::start().await;
    let mut watcher = watcher(&broker).await;
    let lost = || with_will(kept(V5, "c"), Some(1));
    Peer::connected(&broker, lost()).await.vanish();
    let (back, connack) = Peer::greet(&broker, lost()).await;
    assert!(connack.session_present);
    // Had it not been stopped, it would come before this one.
    let since = clock::now();
    back.vanish();
    assert_eq!(text(&watcher.receive().await), "lost");
    assert!(since.elapsed() >= Duration::from_millis(900), "{:?}", since.elapsed());
    watcher.nothing_came().await;
}

#[tokio::test]
async fn the_end_of_the_session_publishes_a_delayed_will() {
    let broker = Broker::start().await;
    let mut watcher = watcher(&broker).await;
    // The session ends with its connection.
    Peer::connected(&broker, with_will(connect(V5, "c"), Some(3600))).await.vanish();
    assert_eq!(text(&watcher.receive().await), "lost");
    // A clean start ends it.
    Peer::connected(&broker, with_will(kept(V5, "c"), Some(3600))).await.vanish();
    watcher.nothing_came().await;
    Peer::clean(&broker, V5, "c").await.leave().await;
    assert_eq!(text(&watcher.receive().await), "lost");
}

#[tokio::test]
async fn a_delayed_will_comes_at_its_time_whatever_ends_the_connection() {
    // 5: [MQTT-3.1.2-8], section 3.1.3.2.2.
    let broker = Broker::start().await;
    let mut watcher = watcher(&broker).await;
    let goodbye = |reason, session_expiry: Option<u32>| {
        let properties = session_expiry
            .map(|_| Box::new(DisconnectProperties { session_expiry, ..DisconnectProperties::default() }));
        Packet::Disconnect(Disconnect { reason, properties })
    };
    let asked = || goodbye(ReasonCode::DisconnectWithWill, None);
    let ends = || goodbye(ReasonCode::DisconnectWithWill, Some(0));
    // A delay, the session's expiry, what the client says last, and whether the will waits a second.
    for (name, delay, expiry, last, waits) in [
        ("the session ends first", 3600, 1, None, true),
        ("the delay is over first", 1, 3600, None, true),
        ("the client asks for it", 1, 3600, Some(asked()), true),
        ("the client asks, the session ends first", 3600, 1, Some(asked()), true),
        ("the client ends its session", 3600, 3600, Some(ends()), false),
        ("a fault", 1, 3600, Some(Packet::PingResp), true),
        ("a fault, no delay", 0, 3600, Some(Packet::PingResp), false),
    ] {
        let mut connect = with_will(connect(V5, "c"), Some(delay));
        connect.properties.session_expiry = Some(expiry);
        let mut peer = Peer::connected(&broker, connect).await;
        let since = clock::now();
        match last {
            Some(packet) => {
                peer.send(packet).await;
                peer.told().await;
            }
            None => peer.vanish(),
        }
        assert_eq!(text(&watcher.receive().await), "lost", "{name}");
        assert!(!waits || since.elapsed() >= Duration::from_millis(900), "{name}: {:?}", since.elapsed());
    }
    // Neither comes: the client takes its leave, or comes back by taking over.
    let mut peer = Peer::connected(&broker, with_will(kept(V5, "c"), Some(1))).await;
    peer.send(goodbye(ReasonCode::Success, None)).await;
    peer.told().await;
    let old = Peer::connected(&broker, with_will(kept(V5, "k"), Some(1))).await;
    let (_new, connack) = Peer::greet(&broker, kept(V5, "k")).await;
    assert!(connack.session_present);
    assert_eq!(old.told().await, Some(ReasonCode::SessionTakenOver));
    seconds_pass(&broker, 2).await;
    watcher.nothing_came().await;
    // A will without a delay does not wait for that.
    let old = Peer::connected(&broker, with_will(kept(V5, "n"), None)).await;
    let _new = Peer::connected(&broker, kept(V5, "n")).await;
    old.told().await;
    assert_eq!(text(&watcher.receive().await), "lost");
}

#[tokio::test]
async fn a_will_that_waits_is_published_when_the_broker_stops() {
    let broker = Broker::start().await;
    let data = broker.data();
    let mut watcher = Peer::connected(&broker, kept(V5, "watcher")).await;
    watcher.subscribe("will/#", QOS1).await;
    watcher.leave().await;
    Peer::connected(&broker, with_will(kept(V5, "c"), Some(3600))).await.vanish();
    // One that is connected still.
    let _there = Peer::connected(&broker, with_will(connect(V5, "d"), None)).await;
    broker.terminate().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut watcher = Peer::connected(&broker, kept(V5, "watcher")).await;
    assert_eq!(watcher.receive_texts(2).await, ["lost", "lost"]);
}
