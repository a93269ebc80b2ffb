//! Publishes both ways: the three levels, wildcards, retained values, shared subscriptions, order.

use stafett::mqtt::codec::{RetainHandling, SubscribeOptions};

use super::*;

#[tokio::test]
async fn every_level_arrives_in_both_versions() {
    let broker = Broker::start().await;
    for (from, to) in BOTH.into_iter().flat_map(|from| BOTH.map(|to| (from, to))) {
        let mut subscriber = Peer::subscribed(&broker, to, "a/+/c", QOS2).await;
        let mut publisher = Peer::clean(&broker, from, "").await;
        for qos in [QOS0, QOS1, QOS2] {
            let payload = format!("{qos:?}");
            assert_eq!(publisher.say("a/b/c", qos, &payload).await, ReasonCode::Success);
            let publish = subscriber.receive().await;
            // [MQTT-3.3.2-3], [MQTT-3.8.4-8]; 3.1.1: [MQTT-3.8.4-6]
            assert_eq!((&*publish.topic, publish.qos, text(&publish)), ("a/b/c", qos, &*payload));
            assert!(!publish.dup && !publish.retain);
        }
    }
}

#[tokio::test]
async fn a_subscription_takes_no_more_than_it_asked_for() {
    let broker = Broker::start().await;
    for granted in [QOS0, QOS1, QOS2] {
        let mut subscriber = Peer::subscribed(&broker, V311, "#", granted).await;
        for sent in [QOS0, QOS1, QOS2] {
            let mut publisher = Peer::clean(&broker, V311, "").await;
            publisher.say("x", sent, "x").await;
            assert_eq!(subscriber.receive().await.qos, sent.min(granted));
        }
        subscriber.leave().await;
    }
}

#[tokio::test]
async fn nobody_there_is_said_to_those_who_can_hear_it() {
    let broker = Broker::start().await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    for qos in [QOS1, QOS2] {
        assert_eq!(publisher.say("a", qos, "x").await, ReasonCode::NoMatchingSubscribers);
        assert_eq!(Peer::clean(&broker, V311, "").await.say("a", qos, "x").await, ReasonCode::Success);
    }
}

#[tokio::test]
async fn many_publishes_of_one_read_arrive_in_order() {
    let broker = Broker::start().await;
    let mut subscriber = Peer::subscribed(&broker, V311, "t/#", QOS2).await;
    let mut publisher = Peer::clean(&broker, V311, "").await;
    let mut bytes = BytesMut::new();
    for n in 1..=900_u16 {
        let qos = Qos::from_u8((n % 3) as u8).unwrap();
        let publish = publish(&format!("t/{}", n % 2), qos, n, n.to_string());
        Packet::Publish(publish).encode(V311, &mut bytes).unwrap();
    }
    publisher.send_bytes(&bytes).await;
    let mut texts = Vec::new();
    let mut released = 0;
    while texts.len() < 900 || released < 300 {
        match subscriber.next().await {
            Packet::Publish(publish) => {
                texts.push(text(&publish).to_owned());
                match (publish.qos, publish.packet_id) {
                    (QOS1, Some(id)) => subscriber.send(Packet::PubAck(ack(id.get()))).await,
                    (QOS2, Some(id)) => subscriber.send(Packet::PubRec(ack(id.get()))).await,
                    _ => {}
                }
            }
            Packet::PubRel(release) => {
                released += 1;
                subscriber.send(Packet::PubComp(ack(release.packet_id.get()))).await;
            }
            other => panic!("{other:?}"),
        }
    }
    let expected: Vec<String> = (1..=900).map(|n| n.to_string()).collect();
    assert_eq!(texts, expected);
    // 3.1.1: [MQTT-4.6.0-2], [MQTT-4.6.0-3], kept by the server too.
    let (mut acks, mut recs) = (Vec::new(), Vec::new());
    while acks.len() + recs.len() < 600 {
        match publisher.next().await {
            Packet::PubAck(ack) => acks.push(ack.packet_id.get()),
            Packet::PubRec(ack) => recs.push(ack.packet_id.get()),
            other => panic!("{other:?}"),
        }
    }
    assert!(acks.is_sorted() && recs.is_sorted() && acks.len() == 300);
}

#[tokio::test]
async fn large_messages_arrive_whole_among_small_ones() {
    let broker = Broker::start().await;
    let mut subscribers =
        [Peer::subscribed(&broker, V5, "#", QOS1).await, Peer::subscribed(&broker, V311, "#", QOS0).await];
    let mut publisher = Peer::clean(&broker, V5, "").await;
    let payloads: Vec<Vec<u8>> = [10, 3_000_000, 5, 70_000, 1].map(|size| vec![size as u8; size]).into();
    for (n, payload) in (1..).zip(&payloads) {
        publisher.say_packet(publish("big", QOS1, n, payload.clone())).await;
    }
    for subscriber in &mut subscribers {
        for payload in &payloads {
            assert_eq!(subscriber.receive().await.payload.len(), payload.len());
        }
    }
}

#[tokio::test]
async fn the_last_retained_value_greets_who_subscribes() {
    let broker = Broker::start().await;
    let mut publisher = Peer::clean(&broker, V311, "").await;
    for (topic, payload) in [("r/a", "old"), ("r/a", "new"), ("r/b", "other"), ("r/c", "x"), ("r/c", "")] {
        publisher.say_retained(topic, QOS1, payload).await;
    }
    // 3.1.1: [MQTT-3.3.1-6], [MQTT-3.3.1-8], [MQTT-3.3.1-10], [MQTT-3.3.1-11]; 5: [MQTT-3.3.1-6], [MQTT-3.3.1-7].
    for version in BOTH {
        let mut subscriber = Peer::clean(&broker, version, "").await;
        let filters = vec![SubscribeFilter { filter: "r/+".into(), options: options(QOS1) }];
        let packet = Subscribe { packet_id: id(1), properties: None, filters };
        subscriber.send(Packet::Subscribe(packet)).await;
        let mut found = Vec::new();
        let mut answered = false;
        while found.len() < 2 || !answered {
            match subscriber.next().await {
                Packet::SubAck(_) => answered = true,
                Packet::Publish(publish) => {
                    assert!(publish.retain);
                    subscriber.send(Packet::PubAck(ack(publish.packet_id.unwrap().get()))).await;
                    found.push((publish.topic.to_string(), text(&publish).to_owned()));
                }
                other => panic!("{other:?}"),
            }
        }
        found.sort();
        assert_eq!(found, [("r/a".to_owned(), "new".to_owned()), ("r/b".to_owned(), "other".to_owned())]);
        // 3.1.1: [MQTT-3.3.1-9]; 5: [MQTT-3.3.1-12].
        publisher.say_retained("r/a", QOS1, "new").await;
        assert!(!subscriber.receive().await.retain);
    }
}

fn options(qos: Qos) -> SubscribeOptions {
    SubscribeOptions { qos, ..SubscribeOptions::default() }
}

#[tokio::test]
async fn subscription_options_of_5_hold() {
    let broker = Broker::start().await;
    let mut client = Peer::clean(&broker, V5, "").await;
    client.say_retained("o/kept", QOS0, "r").await;
    client.nothing_came().await;
    // 5: [MQTT-3.3.1-11].
    let never = SubscribeOptions { retain_handling: RetainHandling::DoNotSend, ..options(QOS0) };
    client.ask(&[("o/#", never)]).await;
    client.nothing_came().await;
    // 5: [MQTT-3.3.1-10]: it is not new.
    let if_new = SubscribeOptions { retain_handling: RetainHandling::SendIfNew, ..options(QOS0) };
    client.ask(&[("o/#", if_new)]).await;
    client.nothing_came().await;
    // 5: [MQTT-3.3.1-13].
    let as_published = SubscribeOptions { retain_as_published: true, ..never };
    client.ask(&[("o/#", as_published)]).await;
    client.send(Packet::Publish(Publish { retain: true, ..publish("o/x", QOS0, 0, "x") })).await;
    assert!(client.publish().await.retain);
    // 5: [MQTT-3.8.3-3].
    let not_mine = SubscribeOptions { no_local: true, ..never };
    client.ask(&[("o/#", not_mine)]).await;
    client.say("o/x", QOS1, "mine").await;
    client.nothing_came().await;
    Peer::clean(&broker, V5, "").await.say("o/x", QOS1, "another's").await;
    assert_eq!(text(&client.publish().await), "another's");
}

#[tokio::test]
async fn what_is_unsubscribed_does_not_come() {
    let broker = Broker::start().await;
    for version in BOTH {
        let mut client = Peer::subscribed(&broker, version, "u/#", QOS1).await;
        // [MQTT-3.10.4-1]: character by character.
        client.unsubscribe("u/+").await;
        client.say("u/x", QOS0, "1").await;
        assert_eq!(text(&client.receive().await), "1");
        client.unsubscribe("u/#").await;
        client.say("u/x", QOS0, "2").await;
        client.nothing_came().await;
    }
}

#[tokio::test]
async fn overlapping_filters_deliver_once_at_the_highest_level() {
    // 3.1.1: [MQTT-3.3.5-1]; 5: [MQTT-3.3.4-2].
    let broker = Broker::start().await;
    let mut client = Peer::clean(&broker, V5, "").await;
    let suback = client.ask(&[("a/#", options(QOS0)), ("a/+", options(QOS2)), ("#", options(QOS1))]).await;
    assert_eq!(suback.codes[..], [QOS0, QOS2, QOS1].map(Qos::granted));
    Peer::clean(&broker, V5, "").await.say("a/b", QOS2, "x").await;
    assert_eq!(client.receive().await.qos, QOS2);
    client.nothing_came().await;
}

#[tokio::test]
async fn one_member_of_a_share_gets_each_message() {
    let broker = Broker::start().await;
    let mut members = Vec::new();
    for version in [V5, V311, V5] {
        members.push(Peer::subscribed(&broker, version, "$share/g/s/#", QOS1).await);
    }
    let mut publisher = Peer::clean(&broker, V5, "").await;
    for n in 0..30 {
        publisher.say("s/x", QOS1, &n.to_string()).await;
    }
    // None acknowledges: each is chosen as long as it has the least in flight.
    let mut texts = Vec::new();
    for member in &mut members {
        for _ in 0..10 {
            texts.push(text(&member.publish().await).parse::<u32>().unwrap());
        }
        member.nothing_came().await;
    }
    texts.sort_unstable();
    assert_eq!(texts, (0..30).collect::<Vec<_>>());
    // What a lost member had in flight goes to another.
    let first = members.remove(0);
    first.vanish();
    let mut again = 0;
    for member in &mut members {
        while again < 10 {
            let publish = within("a handed back message", member.publish());
            if tokio::time::timeout(std::time::Duration::from_secs(1), publish).await.is_err() {
                break;
            }
            again += 1;
        }
    }
    assert_eq!(again, 10);
}
