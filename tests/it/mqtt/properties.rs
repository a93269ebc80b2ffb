//! What 5.0 tells with a message, and what becomes of it on the way.

use std::num::NonZeroU32;

use stafett::mqtt::codec::PayloadFormat;

use super::*;

fn pair(name: &str, value: &str) -> (ByteString, ByteString) {
    (name.into(), value.into())
}

fn all_properties() -> PublishProperties {
    PublishProperties {
        payload_format: Some(PayloadFormat::Utf8),
        response_topic: Some("re/ply".into()),
        correlation_data: Some(Bytes::from_static(&[0, 1, 2])),
        content_type: Some("text/plain".into()),
        user_properties: vec![pair("b", "1"), pair("a", "2"), pair("b", "1")],
        ..PublishProperties::default()
    }
}

fn with(publish: Publish, properties: PublishProperties) -> Publish {
    Publish { properties: Some(Box::new(properties)), ..publish }
}

#[tokio::test]
async fn properties_arrive_as_they_were_sent() {
    // 5: [MQTT-3.3.2-4], [MQTT-3.3.2-15] to [MQTT-3.3.2-18], [MQTT-3.3.2-20].
    let broker = Broker::start().await;
    let mut live = Peer::subscribed(&broker, V5, "p/#", QOS1).await;
    let mut old = Peer::subscribed(&broker, V311, "p/#", QOS1).await;
    let mut away = Peer::connected(&broker, kept(V5, "away")).await;
    away.subscribe("p/#", QOS1).await;
    away.leave().await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    for (n, qos) in (1..).zip([QOS0, QOS1]) {
        publisher.say_packet(with(publish("p/x", qos, n, "x"), all_properties())).await;
        assert_eq!(properties_of(&live.receive().await), all_properties());
        assert_eq!(old.receive().await.properties, None);
    }
    let mut away = Peer::connected(&broker, kept(V5, "away")).await;
    assert_eq!(properties_of(&away.receive().await), all_properties());
}

#[tokio::test]
async fn what_is_left_of_the_time_is_told() {
    // 5: [MQTT-3.3.2-5], [MQTT-3.3.2-6].
    let broker = Broker::start().await;
    let mut live = Peer::subscribed(&broker, V5, "e/#", QOS1).await;
    let mut away = Peer::connected(&broker, kept(V5, "away")).await;
    away.subscribe("e/#", QOS1).await;
    away.leave().await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    let expires = |seconds| PublishProperties { message_expiry: Some(seconds), ..Default::default() };
    publisher.say_packet(with(publish("e/over", QOS1, 1, "x"), expires(1))).await;
    let left = properties_of(&live.receive().await).message_expiry;
    assert!(matches!(left, Some(0..=1)), "{left:?}");
    publisher.say_packet(with(publish("e/long", QOS1, 2, "x"), expires(100))).await;
    let left = properties_of(&live.receive().await).message_expiry;
    assert!(matches!(left, Some(99..=100)), "{left:?}");
    // The first one's time is over.
    seconds_pass(&broker, 2).await;
    let mut away = Peer::connected(&broker, kept(V5, "away")).await;
    assert_eq!(&*away.receive().await.topic, "e/long");
}

#[tokio::test]
async fn time_goes_on_while_the_broker_is_away() {
    // 5: [MQTT-3.3.2-5], [MQTT-3.3.2-6], section 3.1.2.11.2.
    let broker = Broker::start().await;
    let data = broker.data();
    for (client_id, expiry) in [("short", 3), ("long", 3600)] {
        let mut away = kept(V5, client_id);
        away.properties.session_expiry = Some(expiry);
        let mut away = Peer::connected(&broker, away).await;
        away.subscribe("e/#", QOS1).await;
        away.leave().await;
    }
    let mut publisher = Peer::clean(&broker, V5, "").await;
    for (n, seconds) in [(1, 3), (2, 100)] {
        let expires = PublishProperties { message_expiry: Some(seconds), ..Default::default() };
        publisher.say_packet(with(publish("e/x", QOS1, n, seconds.to_string()), expires.clone())).await;
        let kept = Publish { retain: true, ..publish(&format!("kept/{seconds}"), QOS1, n, "x") };
        publisher.say_packet(with(kept, expires)).await;
    }
    seconds_pass(&broker, 2).await;
    broker.terminate().await;
    let broker = Broker::start_in(data, &[]).await;
    // Counted anew, all would be there still.
    seconds_pass(&broker, 2).await;
    assert!(!Peer::greet(&broker, kept(V5, "short")).await.1.session_present);
    let (mut long, connack) = Peer::greet(&broker, kept(V5, "long")).await;
    assert!(connack.session_present);
    let left = |publish: &Publish| properties_of(publish).message_expiry;
    let message = long.receive().await;
    assert_eq!(text(&message), "100");
    assert!(matches!(left(&message), Some(..=96)), "{:?}", left(&message));
    let mut late = Peer::clean(&broker, V5, "").await;
    late.subscribe("kept/#", QOS1).await;
    let message = late.receive().await;
    assert_eq!(&*message.topic, "kept/100");
    assert!(matches!(left(&message), Some(..=96)), "{:?}", left(&message));
    late.nothing_came().await;
}

#[tokio::test]
async fn what_was_begun_at_qos_2_is_carried_to_its_end_though_its_time_is_over() {
    // 5: [MQTT-4.3.3-7], [MQTT-4.3.3-13].
    let broker = Broker::start().await;
    let mut peer = Peer::connected(&broker, kept(V5, "c")).await;
    peer.subscribe("e/#", QOS2).await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    let expires = PublishProperties { message_expiry: Some(1), ..Default::default() };
    for n in 1..=3 {
        publisher.say_packet(with(publish("e/x", QOS2, n, n.to_string()), expires.clone())).await;
    }
    let numbers = [1, 2, 3];
    for number in numbers {
        assert_eq!(peer.publish().await.packet_id, Some(id(number)));
    }
    for number in [1, 2] {
        peer.send(Packet::PubRec(ack(number))).await;
        assert_eq!(peer.next().await, Packet::PubRel(ack(number)));
    }
    peer.send(Packet::PubComp(ack(1))).await;
    peer.vanish();
    // Their time is over.
    seconds_pass(&broker, 4).await;
    let mut peer = Peer::connected(&broker, kept(V5, "c")).await;
    let (mut released, mut again) = (false, false);
    while !released || !again {
        match peer.next().await {
            Packet::PubRel(release) => released = release == ack(2),
            Packet::Publish(publish) => again = publish.dup && publish.packet_id == Some(id(3)),
            other => panic!("{other:?}"),
        }
    }
    peer.send(Packet::PubComp(ack(2))).await;
    peer.send(Packet::PubRec(ack(3))).await;
    assert_eq!(peer.next().await, Packet::PubRel(ack(3)));
    peer.send(Packet::PubComp(ack(3))).await;
    peer.nothing_came().await;
}

#[tokio::test]
async fn all_identifiers_of_matching_subscriptions_are_told() {
    // 5: [MQTT-3.3.4-3], [MQTT-3.3.4-4].
    let broker = Broker::start().await;
    for connect in [connect(V5, "transient"), kept(V5, "kept")] {
        let mut peer = Peer::connected(&broker, connect).await;
        for (number, filter) in [(7, "i/#"), (9, "i/+"), (300, "other")] {
            peer.subscribe_identified(filter, QOS1, number).await;
        }
        let mut publisher = Peer::clean(&broker, V5, "").await;
        for qos in [QOS0, QOS1] {
            publisher.say("i/x", qos, "x").await;
            let mut told: Vec<u32> =
                properties_of(&peer.receive().await).subscription_ids.iter().map(|id| id.get()).collect();
            told.sort_unstable();
            assert_eq!(told, [7, 9]);
        }
    }
}

#[tokio::test]
async fn aliases_of_the_client_are_resolved() {
    // 5: [MQTT-3.3.2-12].
    let broker = Broker::start().await;
    let (mut publisher, connack) = Peer::greet(&broker, connect(V5, "")).await;
    let maximum = connack.properties.topic_alias_maximum.unwrap();
    let mut subscriber = Peer::subscribed(&broker, V5, "t/#", QOS0).await;
    let aliased = |topic: &str, alias| {
        let properties = PublishProperties { topic_alias: NonZeroU16::new(alias), ..Default::default() };
        Packet::Publish(with(Publish { topic: topic.into(), ..publish("x", QOS0, 0, "x") }, properties))
    };
    for (topic, alias) in [("t/one", 1), ("", 1), ("t/last", maximum), ("", maximum), ("", 1)] {
        publisher.send(aliased(topic, alias)).await;
    }
    for expected in ["t/one", "t/one", "t/last", "t/last", "t/one"] {
        let publish = subscriber.receive().await;
        assert_eq!(&*publish.topic, expected);
        // 5: [MQTT-3.3.2-7]: an alias is its connection's own.
        assert_eq!(publish.properties, None);
    }
    publisher.send(aliased("t/x", maximum + 1)).await;
    assert_eq!(publisher.told().await, Some(ReasonCode::TopicAliasInvalid));
}

#[tokio::test]
async fn nothing_larger_is_sent_than_the_client_takes() {
    // 5: [MQTT-3.1.2-24], [MQTT-3.1.2-25].
    let broker = Broker::start().await;
    for mut narrow in [connect(V5, "transient"), kept(V5, "kept")] {
        narrow.properties.maximum_packet_size = NonZeroU32::new(200);
        let mut peer = Peer::connected(&broker, narrow).await;
        peer.subscribe("m/#", QOS1).await;
        let mut publisher = Peer::clean(&broker, V5, "").await;
        for qos in [QOS0, QOS1] {
            publisher.say("m/x", qos, &"x".repeat(300)).await;
            publisher.say("m/x", qos, "fits").await;
            assert_eq!(text(&peer.receive().await), "fits");
        }
        // A DISCONNECT leaves its reason string out when it is too long.
        peer.vanish();
    }
}
