//! Shared subscriptions: which member gets a message, and what becomes of it when that member is lost.

use super::*;

const SHARED: &str = "$share/g/s/#";

/// A session that is kept with a part in the group, and its client away.
async fn member(broker: &Broker, version: Version, client_id: &str) {
    let mut peer = Peer::connected(broker, kept(version, client_id)).await;
    peer.subscribe(SHARED, QOS2).await;
    peer.leave().await;
}

async fn back(broker: &Broker, version: Version, client_id: &str) -> Peer {
    let (peer, connack) = Peer::greet(broker, kept(version, client_id)).await;
    assert!(connack.session_present);
    peer
}

async fn forget(broker: &Broker, version: Version) {
    for client_id in ["one", "two"] {
        Peer::clean(broker, version, client_id).await.leave().await;
    }
}

#[tokio::test]
async fn a_delivery_at_qos_2_stays_with_its_member() {
    // 5: [MQTT-4.8.2-4]; also over a killed broker.
    let mut broker = Broker::start().await;
    for (version, kill, cut) in losses() {
        member(&broker, version, "one").await;
        member(&broker, version, "two").await;
        let mut one = back(&broker, version, "one").await;
        Peer::clean(&broker, V5, "p").await.say("s/x", QOS2, "once").await;
        let publish = one.publish().await;
        let number = publish.packet_id.unwrap().get();
        if cut == Cut::AfterPubrel {
            one.send(Packet::PubRec(ack(number))).await;
            assert_eq!(one.next().await, Packet::PubRel(ack(number)));
        }
        if kill {
            let data = broker.data();
            broker.kill9().await;
            broker = Broker::start_in(data, &[]).await;
        } else {
            one.vanish();
            // Its end is awaited by who comes next.
            back(&broker, version, "one").await.vanish();
        }
        let mut two = back(&broker, version, "two").await;
        two.nothing_came().await;
        let mut one = back(&broker, version, "one").await;
        if cut == Cut::AfterPublish {
            assert_eq!(one.publish().await, Publish { dup: true, ..publish }, "{version:?} {kill}");
            one.send(Packet::PubRec(ack(number))).await;
        }
        assert_eq!(one.next().await, Packet::PubRel(ack(number)), "{version:?} {kill} {cut:?}");
        one.send(Packet::PubComp(ack(number))).await;
        one.nothing_came().await;
        two.nothing_came().await;
        two.leave().await;
        one.leave().await;
        forget(&broker, version).await;
    }
}

#[tokio::test]
async fn a_delivery_at_qos_2_ends_with_its_members_session() {
    // 5: [MQTT-4.8.2-5].
    let broker = Broker::start().await;
    for (version, keeps) in BOTH.into_iter().flat_map(|version| [true, false].map(|keeps| (version, keeps))) {
        member(&broker, version, "two").await;
        if keeps {
            member(&broker, version, "one").await;
        }
        let mut one = if keeps {
            back(&broker, version, "one").await
        } else {
            let mut one = Peer::clean(&broker, version, "one").await;
            one.subscribe(SHARED, QOS2).await;
            one
        };
        Peer::clean(&broker, V5, "p").await.say("s/x", QOS2, "gone").await;
        assert_eq!(text(&one.publish().await), "gone");
        one.vanish();
        Peer::clean(&broker, version, "one").await.leave().await;
        let mut two = back(&broker, version, "two").await;
        two.nothing_came().await;
        // What comes later does.
        Peer::clean(&broker, V5, "p").await.say("s/x", QOS2, "here").await;
        assert_eq!(text(&two.receive().await), "here");
        two.leave().await;
        forget(&broker, version).await;
    }
}

#[tokio::test]
async fn a_delivery_at_qos_1_goes_to_another_member() {
    let broker = Broker::start().await;
    for version in BOTH {
        member(&broker, version, "one").await;
        member(&broker, version, "two").await;
        let mut one = back(&broker, version, "one").await;
        Peer::clean(&broker, V5, "p").await.say("s/x", QOS1, "x").await;
        one.publish().await;
        one.vanish();
        let mut two = back(&broker, version, "two").await;
        assert_eq!(text(&two.receive().await), "x");
        two.leave().await;
        back(&broker, version, "one").await.nothing_came().await;
        forget(&broker, version).await;
    }
}

#[tokio::test]
async fn what_a_member_refuses_goes_to_nobody() {
    // 5: [MQTT-4.8.2-6]
    let broker = Broker::start().await;
    for keeps in [true, false] {
        let mut one =
            Peer::connected(&broker, if keeps { kept(V5, "one") } else { connect(V5, "one") }).await;
        one.subscribe(SHARED, QOS2).await;
        let mut publisher = Peer::clean(&broker, V5, "p").await;
        publisher.say("s/x", QOS1, "1").await;
        publisher.say("s/x", QOS2, "2").await;
        let refused = |publish: Publish| Ack::new(publish.packet_id.unwrap(), ReasonCode::QuotaExceeded);
        let first = one.publish().await;
        one.send(Packet::PubAck(refused(first))).await;
        let second = one.publish().await;
        one.send(Packet::PubRec(refused(second))).await;
        one.nothing_came().await;
        let mut two = Peer::clean(&broker, V5, "two").await;
        two.subscribe(SHARED, QOS2).await;
        one.vanish();
        Peer::clean(&broker, V5, "one").await.leave().await;
        two.nothing_came().await;
        // A member that is still there would get the first message of the next round.
        two.leave().await;
    }
}

#[tokio::test]
async fn a_member_gets_no_more_than_it_asked_for_and_is_told_its_identifier() {
    // 5: [MQTT-4.8.2-3], [MQTT-3.3.4-3].
    let broker = Broker::start().await;
    for (keeps, qos) in [true, false].into_iter().flat_map(|keeps| [QOS0, QOS1, QOS2].map(|qos| (keeps, qos)))
    {
        let mut peer = Peer::connected(&broker, if keeps { kept(V5, "c") } else { connect(V5, "c") }).await;
        peer.subscribe_identified(SHARED, qos, 7).await;
        for sent in [QOS0, QOS1, QOS2] {
            Peer::clean(&broker, V5, "p").await.say("s/x", sent, "x").await;
            let publish = peer.receive().await;
            let told: Vec<u32> = properties_of(&publish).subscription_ids.iter().map(|id| id.get()).collect();
            assert_eq!((publish.qos, told), (sent.min(qos), vec![7]), "{keeps}");
        }
        peer.leave().await;
        Peer::clean(&broker, V5, "c").await.leave().await;
    }
}
