//! Sessions that are kept: over a reconnect, over a killed broker, in the hands of another connection.

use std::sync::Arc;

use stafett::mqtt::codec::DisconnectProperties;

use super::*;

/// The session of `client_id`, there or not.
async fn resumed(broker: &Broker, version: Version, client_id: &str) -> (Peer, bool) {
    let (peer, connack) = Peer::greet(broker, kept(version, client_id)).await;
    assert_eq!(connack.reason, ReasonCode::Success);
    (peer, connack.session_present)
}

/// A kept session with a subscription, and its client away.
async fn away(broker: &Broker, version: Version, client_id: &str) {
    let (mut peer, present) = resumed(broker, version, client_id).await;
    assert!(!present);
    peer.subscribe("s/#", QOS2).await;
    peer.leave().await;
}

#[tokio::test]
async fn a_clean_session_ends_with_its_connection() {
    // 3.1.1: [MQTT-3.1.2-6], [MQTT-3.2.2-1]; 5: [MQTT-3.1.2-4], [MQTT-3.2.2-2].
    let broker = Broker::start().await;
    for version in BOTH {
        let mut peer = Peer::clean(&broker, version, "c").await;
        peer.subscribe("s/#", QOS1).await;
        peer.leave().await;
        let mut publisher = Peer::clean(&broker, V5, "p").await;
        assert_eq!(publisher.say("s/x", QOS1, "x").await, ReasonCode::NoMatchingSubscribers);
        let (mut peer, present) = resumed(&broker, version, "c").await;
        assert!(!present);
        peer.nothing_came().await;
        // A clean start throws a kept one away.
        peer.subscribe("s/#", QOS1).await;
        peer.leave().await;
        let (mut peer, connack) = Peer::greet(&broker, connect(version, "c")).await;
        assert!(!connack.session_present);
        publisher.say("s/x", QOS1, "x").await;
        peer.nothing_came().await;
        peer.leave().await;
    }
}

#[tokio::test]
async fn a_kept_session_gets_what_it_missed_over_a_killed_broker() {
    // 3.1.1: [MQTT-3.1.2-4], [MQTT-3.1.2-5], [MQTT-3.2.2-2]; 5: [MQTT-3.1.2-5], [MQTT-3.2.2-3].
    let mut broker = Broker::start().await;
    for version in BOTH {
        away(&broker, version, "c").await;
        let mut publisher = Peer::clean(&broker, V5, "p").await;
        for (qos, payload) in [(QOS1, "1"), (QOS0, "lost"), (QOS2, "2")] {
            publisher.say("s/x", qos, payload).await;
        }
        let data = broker.data();
        broker.kill9().await;
        broker = Broker::start_in(data, &[]).await;
        let (mut peer, present) = resumed(&broker, version, "c").await;
        assert!(present);
        assert_eq!(peer.receive_texts(2).await, ["1", "2"]);
        peer.nothing_came().await;
        peer.leave().await;
        let (mut peer, _) = resumed(&broker, version, "c").await;
        peer.nothing_came().await;
        let mut clean = connect(version, "c");
        clean.properties.session_expiry = None;
        Peer::clean(&broker, version, "c").await.leave().await;
    }
}

#[tokio::test]
async fn what_is_in_flight_comes_again_with_its_number() {
    // 3.1.1 and 5: [MQTT-4.4.0-1]; [MQTT-3.3.1-1]; 3.1.1: [MQTT-4.6.0-1].
    let broker = Broker::start().await;
    for version in BOTH {
        away(&broker, version, "c").await;
        let mut publisher = Peer::clean(&broker, V5, "p").await;
        for n in 1..=4 {
            publisher.say("s/x", if n % 2 == 0 { QOS2 } else { QOS1 }, &n.to_string()).await;
        }
        let (mut peer, _) = resumed(&broker, version, "c").await;
        let mut first = Vec::new();
        for _ in 0..4 {
            first.push(peer.publish().await);
        }
        assert!(first.iter().all(|publish| !publish.dup));
        peer.vanish();
        let (mut peer, present) = resumed(&broker, version, "c").await;
        assert!(present);
        for publish in first {
            assert_eq!(peer.publish().await, Publish { dup: true, ..publish });
        }
        Peer::clean(&broker, version, "c").await.leave().await;
    }
}

#[tokio::test]
async fn what_may_have_been_sent_before_a_crash_says_so() {
    // [MQTT-3.3.1-1]: at QoS 1 the number is stored when the connection ends, and a crash comes first.
    let broker = Broker::start().await;
    let (mut peer, _) = resumed(&broker, V311, "c").await;
    peer.subscribe("s/#", QOS1).await;
    away(&broker, V5, "away").await;
    let mut publisher = Peer::clean(&broker, V5, "p").await;
    for payload in ["1", "2"] {
        publisher.say("s/x", QOS1, payload).await;
        assert!(!peer.publish().await.dup);
    }
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let (mut peer, _) = resumed(&broker, V311, "c").await;
    let mut publisher = Peer::clean(&broker, V5, "p").await;
    publisher.say("s/x", QOS1, "3").await;
    for (payload, dup) in [("1", true), ("2", true), ("3", false)] {
        let publish = peer.receive().await;
        assert_eq!((text(&publish), publish.dup), (payload, dup));
    }
    // It was not connected.
    let (mut peer, _) = resumed(&broker, V5, "away").await;
    for payload in ["1", "2", "3"] {
        let publish = peer.receive().await;
        assert_eq!((text(&publish), publish.dup), (payload, false));
    }
}

#[tokio::test]
async fn retained_values_above_qos_0_are_a_part_of_a_kept_session() {
    // 3.1.1 and 5: [MQTT-4.4.0-1]
    let mut broker = Broker::start().await;
    for version in BOTH {
        Peer::clean(&broker, V5, "p").await.say_retained("r/1", QOS1, "kept").await;
        let (mut peer, _) = resumed(&broker, version, "c").await;
        peer.subscribe("r/#", QOS2).await;
        let first = peer.publish().await;
        assert_eq!((text(&first), first.qos, first.retain, first.dup), ("kept", QOS1, true, false));
        peer.vanish();
        let (mut peer, _) = resumed(&broker, version, "c").await;
        assert_eq!(peer.publish().await, Publish { dup: true, ..first.clone() });
        peer.leave().await;
        let data = broker.data();
        broker.kill9().await;
        broker = Broker::start_in(data, &[]).await;
        let (mut peer, _) = resumed(&broker, version, "c").await;
        assert_eq!(peer.receive().await, Publish { dup: true, ..first });
        peer.nothing_came().await;
        peer.leave().await;
        resumed(&broker, version, "c").await.0.nothing_came().await;
        Peer::clean(&broker, version, "c").await.leave().await;
    }
}

#[tokio::test]
async fn a_delivery_at_qos_2_goes_on_where_it_was() {
    // 3.1.1: [MQTT-4.3.3-1]; 5: [MQTT-4.3.3-6], [MQTT-4.4.0-1].
    let mut broker = Broker::start().await;
    for (version, kill, cut) in losses() {
        away(&broker, version, "c").await;
        Peer::clean(&broker, V5, "p").await.say("s/x", QOS2, "once").await;
        let (mut peer, _) = resumed(&broker, version, "c").await;
        let publish = peer.publish().await;
        let number = publish.packet_id.unwrap().get();
        if cut == Cut::AfterPubrel {
            peer.send(Packet::PubRec(ack(number))).await;
            assert_eq!(peer.next().await, Packet::PubRel(ack(number)));
        }
        if kill {
            let data = broker.data();
            broker.kill9().await;
            broker = Broker::start_in(data, &[]).await;
        } else {
            peer.vanish();
        }
        let (mut peer, present) = resumed(&broker, version, "c").await;
        assert!(present);
        if cut == Cut::AfterPublish {
            assert_eq!(peer.publish().await, Publish { dup: true, ..publish }, "{version:?} {kill}");
            peer.send(Packet::PubRec(ack(number))).await;
        }
        assert_eq!(peer.next().await, Packet::PubRel(ack(number)), "{version:?} {kill} {cut:?}");
        peer.send(Packet::PubComp(ack(number))).await;
        peer.nothing_came().await;
        peer.leave().await;
        let (mut peer, _) = resumed(&broker, version, "c").await;
        peer.nothing_came().await;
        peer.leave().await;
        Peer::clean(&broker, version, "c").await.leave().await;
    }
}

#[tokio::test]
async fn a_publish_at_qos_2_is_taken_once_over_a_killed_broker() {
    // 3.1.1: [MQTT-4.3.3-2]; 5: [MQTT-4.3.3-10] to [MQTT-4.3.3-12].
    let mut broker = Broker::start().await;
    for version in BOTH {
        away(&broker, version, "sub").await;
        let (mut publisher, _) = resumed(&broker, version, "pub").await;
        let once = publish("s/x", QOS2, 7, "once");
        publisher.send(Packet::Publish(once.clone())).await;
        assert_eq!(publisher.next().await, Packet::PubRec(ack(7)));
        let data = broker.data();
        broker.kill9().await;
        broker = Broker::start_in(data, &[]).await;

        let (mut publisher, present) = resumed(&broker, version, "pub").await;
        assert!(present);
        publisher.send(Packet::Publish(Publish { dup: true, ..once })).await;
        assert_eq!(publisher.next().await, Packet::PubRec(ack(7)));
        publisher.send(Packet::PubRel(ack(7))).await;
        assert_eq!(publisher.next().await, Packet::PubComp(ack(7)));
        // The number is free, and stays so.
        publisher.say_packet(publish("s/x", QOS2, 7, "twice")).await;
        publisher.leave().await;
        let (mut subscriber, _) = resumed(&broker, version, "sub").await;
        assert_eq!(subscriber.receive_texts(2).await, ["once", "twice"]);
        subscriber.nothing_came().await;
        for client in ["pub", "sub"] {
            Peer::clean(&broker, version, client).await.leave().await;
        }
    }
}

#[tokio::test]
async fn the_second_connection_of_a_client_takes_over() {
    // 3.1.1: [MQTT-3.1.4-2]; 5: [MQTT-3.1.4-3].
    let broker = Broker::start().await;
    for (version, first) in [(V311, connect(V311, "c")), (V5, connect(V5, "c")), (V5, kept(V5, "k"))] {
        let client_id = first.client_id.to_string();
        let old = Peer::connected(&broker, first).await;
        let (mut new, _) = resumed(&broker, V311, &client_id).await;
        let told = old.told().await;
        assert_eq!(told, (version == V5).then_some(ReasonCode::SessionTakenOver));
        new.nothing_came().await;
    }
}

#[tokio::test]
async fn a_taken_over_session_goes_on_with_the_new_connection() {
    let broker = Broker::start().await;
    let (mut old, _) = resumed(&broker, V5, "c").await;
    old.subscribe("s/#", QOS1).await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    publisher.say("s/x", QOS1, "1").await;
    let unanswered = old.publish().await;
    let (mut new, present) = resumed(&broker, V5, "c").await;
    assert!(present);
    assert_eq!(new.receive().await, Publish { dup: true, ..unanswered });
    publisher.say("s/x", QOS1, "2").await;
    assert_eq!(text(&new.receive().await), "2");
}

#[tokio::test]
async fn disconnect_may_change_how_long_a_session_is_kept() {
    // 5: section 3.14.2.2.2.
    let broker = Broker::start().await;
    let (mut peer, _) = resumed(&broker, V5, "c").await;
    peer.subscribe("s/#", QOS1).await;
    let properties = DisconnectProperties { session_expiry: Some(0), ..Default::default() };
    let goodbye = Disconnect { reason: ReasonCode::Success, properties: Some(Box::new(properties)) };
    peer.send(Packet::Disconnect(goodbye)).await;
    assert_eq!(peer.next_or_end().await, None);
    let (_, present) = resumed(&broker, V5, "c").await;
    assert!(!present);
}

#[tokio::test]
async fn no_more_is_in_flight_than_the_client_takes() {
    // 5: [MQTT-3.3.4-9], [MQTT-4.9.0-2], [MQTT-4.9.0-3].
    let broker = Broker::start().await;
    for keeps in [false, true] {
        let mut narrow = if keeps { kept(V5, "c") } else { connect(V5, "c") };
        narrow.properties.receive_maximum = NonZeroU16::new(2);
        let mut peer = Peer::connected(&broker, narrow).await;
        peer.subscribe("s/#", QOS1).await;
        let mut publisher = Peer::clean(&broker, V5, "").await;
        for n in 1..=5 {
            publisher.say("s/x", QOS1, &n.to_string()).await;
        }
        let (one, two) = (peer.publish().await, peer.publish().await);
        peer.nothing_came().await;
        peer.send(Packet::PubAck(ack(two.packet_id.unwrap().get()))).await;
        assert_eq!(text(&peer.publish().await), "3");
        peer.nothing_came().await;
        assert_eq!(text(&one), "1");
        peer.vanish();
    }
}

#[tokio::test]
async fn a_stopping_broker_acknowledges_says_so_and_keeps_the_session() {
    let broker = Broker::start().await;
    let data = broker.data();
    let (mut peer, _) = resumed(&broker, V5, "c").await;
    peer.subscribe("s/#", QOS1).await;
    let old = Peer::clean(&broker, V311, "").await;
    // What it was told last is not lost, though it still sends.
    let told = async { (peer.told().await, old.told().await) };
    let (ended, told) = tokio::join!(broker.terminate(), told);
    assert_eq!(told, (Some(ReasonCode::ServerShuttingDown), None));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("deadline"), "{}", ended.stderr);
    let broker = Broker::start_in(Arc::clone(&data), &[]).await;
    let (_, present) = resumed(&broker, V5, "c").await;
    assert!(present);
}
