//! What a listener grants of all that the protocol has.

use stafett::mqtt::codec::{MaximumQos, SubscribeProperties, SubscriptionId};

use super::*;

async fn open(broker: &Broker, version: Version) -> Peer {
    Peer::open(broker.address("mqtt.x"), version).await
}

/// A client with a clean session, and what it was told.
async fn connected(broker: &Broker, version: Version) -> (Peer, ConnAck) {
    let (peer, connack) = open(broker, version).await.greeted(connect(version, "")).await;
    assert_eq!(connack.reason, ReasonCode::Success);
    (peer, connack)
}

/// What a client is told that sends this after CONNACK.
async fn told(broker: &Broker, version: Version, packet: Packet) -> Option<ReasonCode> {
    let (mut peer, _) = connected(broker, version).await;
    peer.send(packet).await;
    peer.told().await
}

/// The codes of SUBACK.
async fn suback(broker: &Broker, version: Version, filters: &[&str]) -> Vec<u8> {
    let (mut peer, _) = connected(broker, version).await;
    let options = SubscribeOptions { qos: QOS2, ..SubscribeOptions::default() };
    let asked: Vec<_> = filters.iter().map(|filter| (*filter, options)).collect();
    peer.ask(&asked).await.codes.iter().map(|code| *code as u8).collect()
}

fn subscribe(filter: &str, identifier: Option<u32>) -> Packet {
    let subscription_id = identifier.and_then(SubscriptionId::new);
    let properties = SubscribeProperties { subscription_id, ..SubscribeProperties::default() };
    let filters = vec![SubscribeFilter { filter: filter.into(), options: SubscribeOptions::default() }];
    Packet::Subscribe(Subscribe { packet_id: id(1), properties: Some(Box::new(properties)), filters })
}

#[tokio::test]
async fn versions_that_the_listener_does_not_serve_are_told() {
    for (versions, served, other) in [("[\"3.1.1\"]", V311, V5), ("[\"5\"]", V5, V311)] {
        let broker = broker_with_x(&format!("versions = {versions}")).await;
        works(TcpStream::connect(broker.address("mqtt.x")).await.unwrap(), served).await.leave().await;
        let (mut peer, connack) = open(&broker, other).await.greeted(connect(other, "")).await;
        match other {
            V311 => assert_eq!(connack.reason.to_return_code(), Some(1)), // 3.1.1: [MQTT-3.1.2-2]
            V5 => assert_eq!(connack.reason, ReasonCode::UnsupportedProtocolVersion),
        }
        assert_eq!(peer.next_or_end().await, None);
        // The first listener serves both.
        Peer::clean(&broker, other, "").await.leave().await;
    }
}

#[tokio::test]
async fn the_highest_qos_is_announced_and_held() {
    for (max, announced) in [(QOS0, MaximumQos::AtMostOnce), (QOS1, MaximumQos::AtLeastOnce)] {
        let broker = broker_with_x(&format!("max_qos = {}", max as u8)).await;
        // 5: [MQTT-3.2.2-9].
        let (mut peer, connack) = connected(&broker, V5).await;
        assert_eq!(connack.properties.maximum_qos, Some(announced));
        assert!(!peer.say("a", max, "x").await.is_failure());
        for version in BOTH {
            // 5: [MQTT-3.2.2-10].
            assert_eq!(suback(&broker, version, &["a", "$share/g/b"]).await, [max as u8; 2]);
            // 5: [MQTT-3.2.2-11].
            let high = Packet::Publish(publish("a", QOS2, 1, "x"));
            let code = (version == V5).then_some(ReasonCode::QosNotSupported);
            assert_eq!(told(&broker, version, high).await, code);
            // 5: [MQTT-3.2.2-12].
            let mut wills = connect(version, "");
            wills.will = Some(Will { qos: QOS2, ..will("a", "x") });
            let mut peer = open(&broker, version).await;
            peer.send(Packet::Connect(Box::new(wills))).await;
            match (version, peer.next_or_end().await) {
                (V5, Some(Packet::ConnAck(connack))) => {
                    assert_eq!(connack.reason, ReasonCode::QosNotSupported)
                }
                (V311, None) => {} // It has no code for it.
                (_, other) => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn retained_messages_may_be_switched_off() {
    let broker = broker_with_x("retain = false").await;
    let (_, connack) = connected(&broker, V5).await;
    assert_eq!(connack.properties.retain_available, Some(false));
    for version in BOTH {
        // 5: [MQTT-3.2.2-14].
        let retained = Packet::Publish(Publish { retain: true, ..publish("a", QOS0, 0, "x") });
        let code = (version == V5).then_some(ReasonCode::RetainNotSupported);
        assert_eq!(told(&broker, version, retained).await, code);
    }
    // 5: [MQTT-3.2.2-13].
    let mut wills = connect(V5, "");
    wills.will = Some(Will { retain: true, ..will("a", "x") });
    let (_, connack) = open(&broker, V5).await.greeted(wills).await;
    assert_eq!(connack.reason, ReasonCode::RetainNotSupported);
    // What others retain is delivered nevertheless.
    Peer::clean(&broker, V5, "").await.say_retained("a", QOS1, "kept").await;
    connected(&broker, V5).await.0.subscribe_and_find("a", "kept").await;
}

#[tokio::test]
async fn kinds_of_subscriptions_may_be_switched_off() {
    let off = "wildcards = false\nshared_subscriptions = false\nsubscription_identifiers = false";
    let broker = broker_with_x(off).await;
    let (_, connack) = connected(&broker, V5).await;
    let properties = connack.properties;
    assert_eq!(properties.wildcard_subscription_available, Some(false));
    assert_eq!(properties.shared_subscription_available, Some(false));
    assert_eq!(properties.subscription_ids_available, Some(false));
    // 5: sections 3.2.2.3.11 to 3.2.2.3.13.
    let cases = [
        (subscribe("a/+", None), ReasonCode::WildcardSubscriptionsNotSupported),
        (subscribe("a/#", None), ReasonCode::WildcardSubscriptionsNotSupported),
        (subscribe("$share/g/a", None), ReasonCode::SharedSubscriptionsNotSupported),
        (subscribe("a", Some(7)), ReasonCode::SubscriptionIdentifiersNotSupported),
    ];
    for (packet, code) in cases {
        assert_eq!(told(&broker, V5, packet).await, Some(code));
    }
    assert_eq!(suback(&broker, V5, &["a", "b/c"]).await, [2, 2]);
    // 3.1.1 was not told.
    assert_eq!(suback(&broker, V311, &["a", "a/+", "$share/g/a"]).await, [2, 0x80, 0x80]);
    // All is there, and nothing is said, where nothing is switched off.
    let (_, connack) = Peer::greet(&broker, connect(V5, "")).await;
    assert_eq!(connack.properties.wildcard_subscription_available, None);
    assert_eq!(connack.properties.maximum_qos, None);
}

#[tokio::test]
async fn some_filters_may_not_be_subscribed_to() {
    let broker = broker_with_x("denied_filters = [\"secret/#\", \"=+/+\"]").await;
    let filters = ["a", "secret", "secret/x", "+/x", "#", "$share/g/secret/+", "+/+", "a/+", "$share/g/+/+"];
    // 3.1.1: [MQTT-3.9.3-2].
    assert_eq!(suback(&broker, V311, &filters).await, [2, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2, 0x80]);
    assert_eq!(suback(&broker, V5, &filters).await, [2, 0x87, 0x87, 0x87, 0x87, 0x87, 0x87, 2, 0x87]);
    // The first listener denies nothing.
    Peer::subscribed(&broker, V5, "secret/#", QOS1).await.leave().await;
}

/// At which level a publish at each of the three arrives.
async fn levels(publisher: &mut Peer, subscriber: &mut Peer, topic: &str) -> [u8; 3] {
    let mut arrived = [0; 3];
    for (qos, arrived) in [QOS0, QOS1, QOS2].into_iter().zip(&mut arrived) {
        publisher.say(topic, qos, "x").await;
        *arrived = subscriber.receive().await.qos as u8;
    }
    arrived
}

#[tokio::test]
async fn what_is_published_below_the_subscription_is_upgraded_where_the_listener_says_so() {
    let broker = broker_with_x("upgrade_outgoing_qos = true").await;
    for version in BOTH {
        let mut publisher = Peer::clean(&broker, version, "").await;
        for (subscribed, upgraded, plain) in
            [(QOS0, [0, 0, 0], [0, 0, 0]), (QOS1, [1, 1, 1], [0, 1, 1]), (QOS2, [2, 2, 2], [0, 1, 2])]
        {
            let (mut peer, _) = connected(&broker, version).await;
            peer.subscribe("u/#", subscribed).await;
            assert_eq!(levels(&mut publisher, &mut peer, "u/x").await, upgraded);
            let mut other = Peer::subscribed(&broker, version, "o/#", subscribed).await;
            assert_eq!(levels(&mut publisher, &mut other, "o/x").await, plain);
        }
        // A member of a share group, and a retained value.
        let (mut member, _) = connected(&broker, version).await;
        member.subscribe("$share/g/s", QOS1).await;
        assert_eq!(levels(&mut publisher, &mut member, "s").await, [1, 1, 1]);
        publisher.say_retained("r", QOS0, "kept").await;
        publisher.nothing_came().await;
        let (mut late, _) = connected(&broker, version).await;
        late.subscribe("r", QOS1).await;
        let kept = late.receive().await;
        assert_eq!((kept.qos, kept.retain, text(&kept)), (QOS1, true, "kept"));
    }
}

#[tokio::test]
async fn what_is_upgraded_is_kept_for_a_session_that_is_away() {
    let (_directory, path) = listener_x("upgrade_outgoing_qos = true");
    let flags = ["--config", &path];
    let mut broker = Broker::start_with(&flags).await;
    let come = async |broker: &Broker| open(broker, V5).await.greeted(kept(V5, "away")).await;
    let (mut peer, _) = come(&broker).await;
    peer.subscribe("u/#", QOS1).await;
    peer.leave().await;
    for number in ["1", "2"] {
        let mut publisher = Peer::clean(&broker, V5, "").await;
        publisher.say("u/x", QOS0, number).await;
        // It is on disk when what comes behind it is.
        publisher.say("u/x", QOS1, "behind").await;
        let data = broker.data();
        broker.kill9().await;
        broker = Broker::start_in(data, &flags).await;
    }
    let (mut peer, connack) = come(&broker).await;
    assert!(connack.session_present);
    for expected in ["1", "behind", "2", "behind"] {
        let publish = peer.receive().await;
        assert_eq!((publish.qos, text(&publish)), (QOS1, expected));
    }
    peer.nothing_came().await;
}
