//! Queues over MQTT: `$queue/<name>` enqueues and consumes.

use stafett::grpc::proto::v1;
use stafett::mqtt::codec::AckProperties;
use stafett::types::clock::unix_now;

use super::*;
use crate::queue::{Queues, message, millis, named, payloads, seconds};

/// A consumer of the queue `q`, at QoS 1.
async fn consumer(broker: &Broker, version: Version) -> Peer {
    Peer::subscribed(broker, version, "$queue/q", QOS1).await
}

#[tokio::test]
async fn a_publish_enqueues_and_says_when_it_cannot() {
    let (broker, mut queues) = Queues::start().await;
    for version in BOTH {
        let mut publisher = Peer::clean(&broker, version, "").await;
        for qos in [QOS1, QOS2] {
            assert_eq!(publisher.say("$queue/q", qos, "work").await, ReasonCode::Success);
            let leased = queues.one("q").await;
            assert_eq!(payloads(std::slice::from_ref(&leased)), ["work"]);
            queues.acknowledge("q", vec![leased.lease_token]).await;
        }
    }
    let drops = v1::OverflowPolicy::DropOldest.into();
    queues.create(v1::Queue { max_messages: 1, overflow: drops, ..named("newest") }).await;
    let mut publisher = Peer::clean(&broker, V311, "").await;
    for payload in ["old", "new"] {
        assert_eq!(publisher.say("$queue/newest", QOS1, payload).await, ReasonCode::Success);
    }
    assert_eq!(payloads(&queues.receive("newest", 2).await), ["new"]);
    queues.create(v1::Queue { max_messages: 1, ..named("small") }).await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    assert_eq!(publisher.say("$queue/small", QOS1, "1").await, ReasonCode::Success);
    assert_eq!(publisher.say("$queue/small", QOS1, "2").await, ReasonCode::QuotaExceeded);
    assert_eq!(publisher.say("$queue/small", QOS2, "3").await, ReasonCode::QuotaExceeded);
    // 3.1.1 is not acknowledged, and closed after a while.
    let mut old = Peer::clean(&broker, V311, "").await;
    old.send(Packet::Publish(publish("$queue/small", QOS1, 1, "4"))).await;
    assert_eq!(old.next_or_end().await, None);
    assert_eq!(queues.stats("small").await.ready, 1);
    broker.counts("publishes_refused_full_total", 3).await;
}

#[tokio::test]
async fn a_binding_copies_what_is_published() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(v1::Queue { bindings: vec!["b/#".into()], ..named("q") }).await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    for qos in [QOS1, QOS2] {
        assert_eq!(publisher.say("b/x", qos, "x").await, ReasonCode::Success);
    }
    let mut consumer = consumer(&broker, V5).await;
    for _ in 0..2 {
        let publish = consumer.receive().await;
        assert_eq!((&*publish.topic, publish.qos), ("b/x", QOS1));
    }
}

#[tokio::test]
async fn puback_settles() {
    let (broker, mut queues) = Queues::start().await;
    queues.fill("q", &["1", "2", "3"]).await;
    for version in BOTH {
        let mut consumer = consumer(&broker, version).await;
        assert_eq!(consumer.receive_texts(3).await, ["1", "2", "3"]);
        consumer.leave().await;
        assert!(queues.is_empty("q").await);
        queues.fill("q", &["1", "2", "3"]).await;
    }
    // It is granted QoS 1 whatever it asks for above; QoS 0 is settled by sending.
    let mut consumer = Peer::clean(&broker, V5, "").await;
    let options = SubscribeOptions { qos: QOS2, ..SubscribeOptions::default() };
    assert_eq!(consumer.ask(&[("$queue/q", options)]).await.codes[..], [ReasonCode::GrantedQos1]);
    assert_eq!(consumer.receive_texts(3).await, ["1", "2", "3"]);
    consumer.leave().await;
    queues.fill("q", &["at most once"]).await;
    let mut consumer = Peer::subscribed(&broker, V311, "$queue/q", QOS0).await;
    assert_eq!(consumer.receive().await.qos, QOS0);
    consumer.vanish();
    assert!(queues.is_empty("q").await);
}

#[tokio::test]
async fn a_refusal_fails_the_delivery_and_0x99_gives_it_up() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(named("dead")).await;
    let queue = v1::Queue { max_deliveries: 9, dead_letter_queue: "dead".into(), ..named("q") };
    queues.create(queue).await;
    queues.fill("q", &["x"]).await;
    let mut consumer = consumer(&broker, V5).await;
    let first = consumer.publish().await;
    assert!(!first.dup);
    let refused = |publish: &Publish, reason, said: Option<&str>| {
        let properties = said.map(|said| {
            Box::new(AckProperties { reason_string: Some(said.into()), ..AckProperties::default() })
        });
        Packet::PubAck(Ack { packet_id: publish.packet_id.unwrap(), reason, properties })
    };
    consumer.send(refused(&first, ReasonCode::UnspecifiedError, None)).await;
    let second = consumer.publish().await;
    assert!(second.dup, "the second delivery");
    consumer.send(refused(&second, ReasonCode::PayloadFormatInvalid, Some("no JSON"))).await;
    let dead = queues.one("dead").await;
    let letter = dead.dead_letter.unwrap();
    assert_eq!((&*letter.source_queue, &*letter.reason), ("q", "no JSON"));
    consumer.nothing_came().await;
}

#[tokio::test]
async fn a_refusal_rests_and_its_reason_is_kept() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(named("dead")).await;
    let rules = v1::Queue { max_deliveries: 2, retry_min_backoff: millis(100), ..named("q") };
    queues.create(v1::Queue { dead_letter_queue: "dead".into(), ..rules }).await;
    queues.fill("q", &["x"]).await;
    let mut consumer = consumer(&broker, V5).await;
    for reason in ["once", "no stock"] {
        let delivery = consumer.publish().await;
        let properties = AckProperties { reason_string: Some(reason.into()), ..AckProperties::default() };
        let before = unix_now();
        let packet_id = delivery.packet_id.unwrap();
        let reason = ReasonCode::UnspecifiedError;
        consumer
            .send(Packet::PubAck(Ack { packet_id, reason, properties: Some(Box::new(properties)) }))
            .await;
        if !delivery.dup {
            assert!(consumer.publish().await.dup);
            assert!(unix_now().since(before).as_millis() >= 100);
            consumer.leave().await;
            consumer = Peer::subscribed(&broker, V5, "$queue/q", QOS1).await;
        }
    }
    let letter = queues.one("dead").await.dead_letter.unwrap();
    assert_eq!(&*letter.reason, "max deliveries reached: no stock");
}

#[tokio::test]
async fn a_lost_connection_counts_and_a_farewell_does_not() {
    let (broker, mut queues) = Queues::start().await;
    for version in BOTH {
        for (leaves, attempt) in [(true, 1), (false, 2)] {
            queues.fill("q", &["x"]).await;
            let mut consumer = consumer(&broker, version).await;
            consumer.publish().await;
            if leaves {
                consumer.leave().await;
            } else {
                consumer.vanish();
            }
            let leased = queues.one("q").await;
            assert_eq!(leased.delivery_attempt, attempt, "{version:?} {leaves}");
            queues.acknowledge("q", vec![leased.lease_token]).await;
        }
    }
}

#[tokio::test]
async fn what_was_lost_with_two_connections_comes_alone_and_its_neighbours_are_not_buried() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(named("dead")).await;
    queues.create(v1::Queue { max_deliveries: 3, dead_letter_queue: "dead".into(), ..named("q") }).await;
    queues.fill("q", &["poison", "a", "b"]).await;
    for losses in [3, 6] {
        let mut lost = consumer(&broker, V5).await;
        for payload in ["poison", "a", "b"] {
            assert_eq!(text(&lost.publish().await), payload);
        }
        lost.vanish();
        broker.counts("leases_lost_total", losses).await;
    }
    let mut lost = consumer(&broker, V311).await;
    assert_eq!(text(&lost.publish().await), "poison");
    lost.nothing_came().await;
    lost.vanish();
    assert_eq!(payloads(&[queues.one("dead").await]), ["poison"]);

    let mut survivor = consumer(&broker, V5).await;
    let first = survivor.publish().await;
    assert_eq!(text(&first), "a");
    survivor.nothing_came().await;
    survivor.send(Packet::PubAck(ack(first.packet_id.unwrap().get()))).await;
    assert_eq!(survivor.receive_texts(1).await, ["b"]);
    assert!(queues.is_empty("dead").await);
}

#[tokio::test]
async fn consumers_compete_over_both_doors() {
    let (broker, mut queues) = Queues::start().await;
    let mut narrow = connect(V5, "");
    narrow.properties.receive_maximum = NonZeroU16::new(1);
    let mut consumer = Peer::connected(&broker, narrow).await;
    consumer.subscribe("$queue/q", QOS1).await;
    queues.fill("q", &["1", "2"]).await;
    assert_eq!(text(&consumer.publish().await), "1");
    // The second is for whoever has room.
    let leased = queues.one("q").await;
    assert_eq!(payloads(std::slice::from_ref(&leased)), ["2"]);
    consumer.unsubscribe("$queue/q").await;
}

#[tokio::test]
async fn a_consumer_whose_window_is_full_lets_others_take() {
    let (broker, mut queues) = Queues::start().await;
    let mut narrow = connect(V5, "");
    narrow.properties.receive_maximum = NonZeroU16::new(1);
    let mut first = Peer::connected(&broker, narrow).await;
    first.subscribe("$queue/q", QOS1).await;
    first.subscribe("live", QOS1).await;
    first.nothing_came().await;
    // It waits for the queue when something else fills its window.
    first.say("live", QOS1, "unacknowledged").await;
    assert_eq!(text(&first.publish().await), "unacknowledged");
    first.nothing_came().await;
    let mut second = consumer(&broker, V5).await;
    second.nothing_came().await;
    queues.fill("q", &["1"]).await;
    assert_eq!(text(&second.receive().await), "1");
}

#[tokio::test]
async fn a_resumed_session_gets_what_it_had_first_and_with_its_number() {
    // 3.1.1 and 5: [MQTT-4.4.0-1]
    let (broker, mut queues) = Queues::start().await;
    let mut peer = Peer::connected(&broker, kept(V5, "c")).await;
    peer.subscribe("s", QOS1).await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    for payload in ["1", "2"] {
        publisher.say("s", QOS1, payload).await;
    }
    let first = [peer.publish().await, peer.publish().await];
    peer.subscribe("$queue/q", QOS1).await;
    peer.vanish();
    queues.fill("q", &["work"]).await;
    let mut peer = Peer::connected(&broker, kept(V5, "c")).await;
    for publish in first {
        assert_eq!(peer.publish().await, Publish { dup: true, ..publish });
    }
    assert_eq!(text(&peer.publish().await), "work");
}

#[tokio::test]
async fn priority_and_delay_are_user_properties() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(v1::Queue { priorities: true, ..named("q") }).await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    let mut next = 0;
    let mut enqueue = async |payload: &'static str, name: &'static str, value: &'static str| {
        next += 1;
        let user_properties = vec![(name.into(), value.into())];
        let properties = PublishProperties { user_properties, ..PublishProperties::default() };
        let publish = publish("$queue/q", QOS1, next, payload);
        publisher.say_packet(Publish { properties: Some(Box::new(properties)), ..publish }).await
    };
    assert_eq!(enqueue("later", "stafett-delay", "1500").await, ReasonCode::Success);
    assert_eq!(enqueue("low", "stafett-priority", "1").await, ReasonCode::Success);
    assert_eq!(enqueue("high", "stafett-priority", "9").await, ReasonCode::Success);
    assert!(enqueue("wrong", "stafett-priority", "10").await.is_failure());
    // 3.1.1 has its topic for it.
    let mut old = Peer::clean(&broker, V311, "").await;
    old.say("$delayed/3/$queue/q", QOS1, "last").await;
    let stats = queues.stats("q").await;
    assert_eq!((stats.ready, stats.delayed), (2, 2));
    let mut consumer = consumer(&broker, V311).await;
    assert_eq!(consumer.receive_texts(4).await, ["high", "low", "later", "last"]);
}

#[tokio::test]
async fn a_publish_that_is_named_is_taken_once() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(v1::Queue { dedup_window: seconds(60), ..named("q") }).await;
    queues.create(named("plain")).await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    let mut next = 0;
    let mut enqueue = async |topic: &'static str, qos, id: &str| {
        next += 1;
        let user_properties = vec![("stafett-dedup-id".into(), id.to_owned().into())];
        let properties = PublishProperties { user_properties, ..PublishProperties::default() };
        let publish = publish(topic, qos, next, "x");
        publisher.say_packet(Publish { properties: Some(Box::new(properties)), ..publish }).await
    };
    for qos in [QOS1, QOS1, QOS2] {
        assert_eq!(enqueue("$queue/q", qos, "a").await, ReasonCode::Success);
    }
    assert!(enqueue("$queue/q", QOS1, &"x".repeat(129)).await.is_failure());
    assert!(enqueue("$queue/plain", QOS1, "a").await.is_failure(), "it cannot be promised there");
    assert_eq!((queues.stats("q").await.ready, queues.stats("plain").await.ready), (1, 0));
    let leased = queues.one("q").await;
    assert_eq!(leased.message.unwrap().dedup_id, "a");
    // The other door knows it, too.
    assert!(queues.enqueue("q", v1::Message { dedup_id: "a".into(), ..message("x") }).await.duplicate);
    broker.counts("messages_duplicate_total", 3).await;
}

#[tokio::test]
async fn an_ordering_key_is_a_user_property() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(v1::Queue { ordered_by_key: true, ..named("q") }).await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    for (packet_id, key, payload) in [(1, "a", "a1"), (2, "a", "a2"), (3, "b", "b1")] {
        let user_properties = vec![("stafett-ordering-key".into(), key.into())];
        let properties = PublishProperties { user_properties, ..PublishProperties::default() };
        let publish = publish("$queue/q", QOS1, packet_id, payload);
        let said = publisher.say_packet(Publish { properties: Some(Box::new(properties)), ..publish }).await;
        assert_eq!(said, ReasonCode::Success);
    }
    let mut consumer = consumer(&broker, V5).await;
    let first = [consumer.publish().await, consumer.publish().await];
    assert_eq!(first.each_ref().map(text), ["a1", "b1"]);
    consumer.nothing_came().await;
    consumer.send(Packet::PubAck(ack(first[0].packet_id.unwrap().get()))).await;
    assert_eq!(text(&consumer.publish().await), "a2");
}

#[tokio::test]
async fn a_message_carries_over_from_grpc() {
    let (broker, mut queues) = Queues::start().await;
    let sent = v1::Message {
        properties: vec![v1::Property { key: "k".into(), value: "v".into() }],
        content_type: "text/plain".into(),
        reply_to: "re/ply".into(),
        ..message("x")
    };
    queues.enqueue("q", sent).await;
    let publish = consumer(&broker, V5).await.receive().await;
    let properties = properties_of(&publish);
    assert_eq!(&*publish.topic, "$queue/q");
    assert_eq!(properties.user_properties, [("k".into(), "v".into())]);
    assert_eq!(properties.content_type.as_deref(), Some("text/plain"));
    assert_eq!(properties.response_topic.as_deref(), Some("re/ply"));
}

#[tokio::test]
async fn a_paused_queue_takes_publishes_and_gives_nothing() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(v1::Queue { paused: true, ..named("q") }).await;
    let mut consumers = Vec::new();
    for version in BOTH {
        consumers.push(consumer(&broker, version).await);
    }
    let mut publisher = Peer::clean(&broker, V5, "").await;
    for payload in ["1", "2"] {
        assert_eq!(publisher.say("$queue/q", QOS1, payload).await, ReasonCode::Success);
    }
    for consumer in &mut consumers {
        consumer.nothing_came().await;
    }
    assert_eq!(queues.stats("q").await.ready, 2);
    queues.pause("q", false).await;
    let [first, second] = &mut consumers[..] else { unreachable!("two versions") };
    let one = tokio::select! {
        one = first.publish() => one,
        one = second.publish() => one,
    };
    assert_eq!(text(&one), "1");
}
