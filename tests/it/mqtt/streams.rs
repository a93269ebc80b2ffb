//! Streams over MQTT: `$replay/<start>/<filter>` reads what was published before, and goes on with what comes.

use stafett::grpc::proto::{v1, v1beta1};
use stafett::types::clock::unix_now;
use tokio::task::JoinSet;

use super::*;
use crate::queue::Queues;
use crate::streams::{Logs, counted, named};

/// What a delivery says under a name, once.
fn said(publish: &Publish, name: &str) -> Option<String> {
    let mut said = properties_of(publish).user_properties;
    said.retain(|(key, _)| &**key == name);
    assert!(said.len() < 2, "{said:?}");
    said.pop().map(|(_, value)| value.to_string())
}

/// The sequence that a delivery carries, and what was not kept before it.
fn place(publish: &Publish) -> (u64, Option<String>) {
    let sequence = said(publish, "stafett-sequence").expect("a sequence");
    (sequence.parse().unwrap(), said(publish, "stafett-skipped"))
}

async fn places(peer: &mut Peer, count: usize) -> Vec<(u64, String)> {
    let mut places = Vec::new();
    for _ in 0..count {
        let publish = peer.receive().await;
        places.push((place(&publish).0, text(&publish).to_owned()));
    }
    places
}

#[tokio::test]
async fn what_was_published_comes_again_and_what_is_published_after_it() {
    let (broker, mut logs) = Logs::start().await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    for n in 0..5 {
        // Nobody else gets it: the stream does.
        assert_eq!(publisher.say("t/a", QOS1, &n.to_string()).await, ReasonCode::Success);
    }
    publisher.say("t/b", QOS0, "5").await;
    while logs.state().await.messages < 6 {}
    let mut first = Peer::subscribed(&broker, V5, "$replay/first/t/#", QOS1).await;
    let publish = first.receive().await;
    assert_eq!((&*publish.topic, publish.qos, publish.retain, publish.dup), ("t/a", QOS1, false, false));
    assert_eq!(place(&publish), (1, None));
    assert_eq!(places(&mut first, 4).await, counted(2, 1..5));
    // At the level at which it was published.
    let publish = first.receive().await;
    assert_eq!((&*publish.topic, publish.qos, place(&publish).0), ("t/b", QOS0, 6));
    first.nothing_came().await;
    logs.publish("t/c", "6").await;
    assert_eq!(places(&mut first, 1).await, counted(7, 6..7));

    for (filter, expected) in [
        ("$replay/3/t/a", counted(3, 2..5)),
        ("$replay/last/t/#", counted(7, 6..7)),
        ("$replay/new/t/#", vec![]),
        ("$replay/8/t/#", vec![]),
        ("$replay/@0/t/+", counted(1, 0..7)),
        ("$replay/2020-01-01T00:00:00Z/t/b", counted(6, 5..6)),
        (&format!("$replay/@{}/t/#", unix_now().0 / 1000 + 3600), vec![]),
    ] {
        let mut peer = Peer::subscribed(&broker, V5, filter, QOS1).await;
        assert_eq!(places(&mut peer, expected.len()).await, expected, "{filter}");
        peer.nothing_came().await;
        peer.leave().await;
    }
    // 3.1.1 gets the same, without properties.
    let mut old = Peer::subscribed(&broker, V311, "$replay/first/t/#", QOS0).await;
    assert_eq!(old.receive_texts(7).await, ["0", "1", "2", "3", "4", "5", "6"]);
}

#[tokio::test]
async fn a_filter_that_no_stream_covers_is_refused() {
    let (broker, _logs) = Logs::start().await;
    let mut peer = Peer::clean(&broker, V5, "").await;
    let options = SubscribeOptions { qos: QOS2, ..SubscribeOptions::default() };
    for (filter, code, why) in [
        ("$replay/first/u", ReasonCode::TopicFilterInvalid, "no stream that covers `u`"),
        ("$replay/first/#", ReasonCode::TopicFilterInvalid, "no stream that covers `#`"),
        ("$replay/first/+/a", ReasonCode::TopicFilterInvalid, "no stream that covers"),
        ("$replay/first/$SYS/#", ReasonCode::TopicFilterInvalid, "no stream that covers"),
        ("$replay/yesterday/t", ReasonCode::TopicFilterInvalid, "`yesterday` is no place to begin"),
        ("$replay/+/t", ReasonCode::TopicFilterInvalid, "`+` is no place to begin"),
        ("$replay/first", ReasonCode::TopicFilterInvalid, "must be `$replay/<start>/<filter>`"),
        ("$replay/first:a b/t", ReasonCode::TopicFilterInvalid, "the stream name `a b`"),
        ("$replay/2/t", ReasonCode::UnspecifiedError, "beyond the next message"),
        ("$share/g/$replay/first/t", ReasonCode::TopicFilterInvalid, "by each for himself"),
    ] {
        let suback = peer.ask(&[(filter, options)]).await;
        assert_eq!(suback.codes[..], [code], "{filter}");
        let said = suback.properties.unwrap().reason_string.unwrap();
        assert!(said.contains(why), "{filter}: {said}");
    }
    // The highest that is granted is QoS 1.
    assert_eq!(peer.ask(&[("$replay/first/t/#", options)]).await.codes[..], [ReasonCode::GrantedQos1]);
    let mut old = Peer::clean(&broker, V311, "").await;
    assert!(old.ask(&[("$replay/first/u", options)]).await.codes[0].is_failure());
    // Nothing is published there.
    assert_eq!(peer.say("$replay/first/t", QOS1, "x").await, ReasonCode::TopicNameInvalid);
    // So many streams, and no more; one that is asked for again begins again.
    for n in 1..16 {
        peer.subscribe(&format!("$replay/first/t/{n}"), QOS1).await;
    }
    let more = peer.ask(&[("$replay/first/t/16", options)]).await;
    assert_eq!(more.codes[..], [ReasonCode::QuotaExceeded]);
    peer.subscribe("$replay/first/t/3", QOS1).await;
}

#[tokio::test]
async fn it_ends_by_unsubscribe_and_with_its_connection() {
    let (broker, mut logs) = Logs::start().await;
    logs.count("t/a", 0..3).await;
    let mut peer = Peer::connected(&broker, kept(V5, "reader")).await;
    peer.subscribe("$replay/first/t/#", QOS1).await;
    assert_eq!(places(&mut peer, 3).await, counted(1, 0..3));
    peer.unsubscribe("$replay/first/t/#").await;
    logs.count("t/a", 3..4).await;
    peer.nothing_came().await;
    // Again, from somewhere else; what it does not acknowledge is not kept for it.
    peer.subscribe("$replay/2/t/#", QOS1).await;
    assert_eq!(place(&peer.publish().await).0, 2);
    peer.vanish();
    let mut peer = Peer::connected(&broker, kept(V5, "reader")).await;
    logs.count("t/a", 4..5).await;
    peer.nothing_came().await;
    peer.subscribe("$replay/2/t/#", QOS1).await;
    assert_eq!(places(&mut peer, 4).await, counted(2, 1..5));
    // A refusal is an end as well: nothing comes twice on one connection.
    logs.count("t/a", 5..6).await;
    let refused = peer.publish().await;
    let ack =
        Ack { packet_id: refused.packet_id.unwrap(), reason: ReasonCode::UnspecifiedError, properties: None };
    peer.send(Packet::PubAck(ack)).await;
    logs.count("t/a", 6..7).await;
    assert_eq!(places(&mut peer, 1).await, counted(7, 6..7));
}

#[tokio::test]
async fn subscriptions_of_its_own_come_beside_it() {
    let (broker, mut logs) = Logs::start().await;
    logs.count("t/a", 0..1).await;
    let mut peer = Peer::subscribed(&broker, V5, "t/#", QOS0).await;
    peer.subscribe("$replay/first/t/#", QOS1).await;
    assert_eq!(places(&mut peer, 1).await, counted(1, 0..1));
    logs.publish("t/a", "both").await;
    let (one, other) = (peer.receive().await, peer.receive().await);
    assert_eq!((text(&one), text(&other)), ("both", "both"));
    let with =
        [&one, &other].into_iter().filter(|publish| !properties_of(publish).user_properties.is_empty());
    assert_eq!(with.count(), 1, "one is from the stream");
}

#[tokio::test]
async fn what_is_not_kept_is_told() {
    let broker = Broker::start().await;
    let mut logs = Logs::of(&broker).await;
    logs.create(v1beta1::Stream { max_messages: 3, ..named("s", &["t"]) }).await;
    logs.count("t", 0..10).await;
    let mut peer = Peer::subscribed(&broker, V5, "$replay/4/t", QOS1).await;
    assert_eq!(place(&peer.receive().await), (8, Some("4-7".to_owned())));
    assert_eq!(place(&peer.receive().await), (9, None));
}

#[tokio::test]
async fn a_stream_may_be_named_and_is_named_by_deliveries() {
    let (broker, mut logs) = Logs::start().await;
    logs.publish("t/a", "0").await;
    logs.create(named("earlier", &["#"])).await;
    logs.create(named("straight", &[])).await;
    logs.publish("t/a", "1").await;
    let append = v1beta1::AppendRequest {
        stream: "straight".into(),
        messages: vec![crate::queue::message("2")],
        expected_next_sequence: None,
    };
    crate::queue::got(logs.logs.append(append)).await;
    for (filter, stream, expected) in [
        // The first by name of those that have it all, and those that are named.
        ("$replay/first/t/#", "earlier", counted(1, 1..2)),
        ("$replay/first:s/t/#", "s", counted(1, 0..2)),
        ("$replay/2020-01-01T00:00:00Z:s/t/a", "s", counted(1, 0..2)),
        ("$replay/2:s/#", "s", counted(2, 1..2)),
        ("$replay/first:straight/$stream/straight", "straight", counted(1, 2..3)),
    ] {
        let mut peer = Peer::subscribed(&broker, V5, filter, QOS1).await;
        for (sequence, payload) in expected {
            let publish = peer.receive().await;
            assert_eq!((place(&publish).0, text(&publish)), (sequence, &*payload), "{filter}");
            assert_eq!(said(&publish, "stafett-stream").as_deref(), Some(stream), "{filter}");
        }
        peer.nothing_came().await;
    }
    let mut peer = Peer::clean(&broker, V5, "").await;
    let unknown = peer.ask(&[("$replay/first:none/t", SubscribeOptions::default())]).await;
    assert_eq!(unknown.codes[..], [ReasonCode::TopicFilterInvalid]);
    let said = unknown.properties.unwrap().reason_string.unwrap();
    assert!(said.contains("there is no stream `none`"), "{said}");
}

#[tokio::test]
async fn its_own_are_left_out_and_nobody_speaks_for_the_broker() {
    let (broker, _logs) = Logs::start().await;
    let mut peer = Peer::connected(&broker, connect(V5, "me")).await;
    let options = SubscribeOptions {
        qos: QOS1,
        no_local: true,
        retain_as_published: true,
        ..SubscribeOptions::default()
    };
    assert!(!peer.ask(&[("$replay/first/t/#", options)]).await.codes[0].is_failure());
    peer.say("t/a", QOS1, "own").await;
    let mut other = Peer::connected(&broker, connect(V5, "other")).await;
    let property = |name: &str, value: &str| (name.into(), value.into());
    let mut forged = publish("t/a", QOS1, 9, "another's");
    forged.retain = true;
    forged.properties = Some(Box::new(PublishProperties {
        user_properties: vec![
            property("stafett-skipped", "1-999"),
            property("k", "v"),
            property("stafett-unreadable", "1-999"),
            property("stafett-sequence", "999"),
            property("stafett-stream", "x"),
        ],
        ..PublishProperties::default()
    }));
    other.say_packet(forged).await;
    let delivery = peer.receive().await;
    assert_eq!((text(&delivery), delivery.retain), ("another's", true));
    let properties = [property("k", "v"), property("stafett-sequence", "2"), property("stafett-stream", "s")];
    assert_eq!(properties_of(&delivery).user_properties, properties);
    // Whose subscription does not say so gets its own, and none as retained.
    let mut peer = Peer::connected(&broker, connect(V5, "me")).await;
    peer.subscribe("$replay/first/t/#", QOS1).await;
    assert_eq!(places(&mut peer, 1).await, [(1, "own".to_owned())]);
    assert!(!peer.receive().await.retain);
}

#[tokio::test]
async fn a_stream_has_at_once_what_a_queue_gets_later() {
    let (broker, mut logs) = Logs::start().await;
    logs.create(named("alone", &["u"])).await;
    let mut queues = Queues::of(&broker).await;
    queues.create(v1::Queue { bindings: vec!["t/#".into()], ..crate::queue::named("q") }).await;
    let mut peer = Peer::clean(&broker, V5, "").await;
    assert_eq!(peer.say("$delayed/3600/t/a", QOS1, "later").await, ReasonCode::Success);
    let stats = queues.stats("q").await;
    assert_eq!((logs.all().await, stats.ready, stats.delayed), (vec![(1, "later".to_owned())], 0, 1));
    assert!(peer.say("$delayed/3600/u", QOS1, "never").await.is_failure(), "there is no queue");
}

/// Publishers of both versions, and readers that begin while they publish, with a window of a few.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_follow_miss_nothing_and_get_nothing_twice() {
    const PUBLISHERS: u64 = 3;
    const EACH: u64 = 200;
    let (broker, logs) = Logs::start().await;
    let mut publishers = JoinSet::new();
    for n in 0..PUBLISHERS {
        let mut peer = Peer::clean(&broker, if n == 0 { V311 } else { V5 }, "").await;
        publishers.spawn(async move {
            for m in 0..EACH {
                peer.say(&format!("t/{n}"), if m % 2 == 0 { QOS1 } else { QOS2 }, &format!("{n}.{m}")).await;
            }
        });
    }
    let mut readers = JoinSet::new();
    for n in 0..3 {
        let mut logs = logs.clone();
        while logs.state().await.messages < n * 100 {}
        let properties =
            ConnectProperties { receive_maximum: std::num::NonZeroU16::new(7), ..Default::default() };
        let connect = Connect { properties, ..connect(V5, "") };
        let mut peer = Peer::connected(&broker, connect).await;
        peer.subscribe("$replay/first/t/#", QOS1).await;
        readers.spawn(async move { places(&mut peer, (PUBLISHERS * EACH) as usize).await });
    }
    publishers.join_all().await;
    let read = readers.join_all().await;
    assert!(read[0].iter().map(|(sequence, _)| *sequence).eq(1..=PUBLISHERS * EACH));
    for n in 0..PUBLISHERS {
        let own: Vec<_> = read[0].iter().filter(|(_, said)| said.starts_with(&format!("{n}."))).collect();
        assert!(own.iter().map(|(_, said)| said.clone()).eq((0..EACH).map(|m| format!("{n}.{m}"))));
    }
    assert!(read.iter().all(|other| *other == read[0]));
}
