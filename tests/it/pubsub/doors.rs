//! One session, used from either door.

use std::num::NonZeroU16;

use stafett::grpc::proto::v1;
use stafett::mqtt::codec::{Packet, Publish, Qos, ReasonCode, RetainHandling, SubscribeOptions};
use tonic::Code;
use tonic_types::StatusExt;

use super::{Stream, Topics, at_most_once, filter, message, retained, session, texts};
use crate::harness::Broker;
use crate::mqtt::{Cut, Peer, QOS0, QOS1, QOS2, V5, V311, ack, kept, losses, properties_of, text};
use crate::queue::{Queues, named, reason};

async fn device(broker: &Broker, client_id: &str) -> Peer {
    let (peer, connack) = Peer::greet(broker, kept(V5, client_id)).await;
    assert_eq!((connack.reason, connack.session_present), (ReasonCode::Success, true));
    peer
}

/// The session, which is there.
async fn there(topics: &mut Topics, client_id: &str) -> Stream {
    let stream = topics.session(client_id, &[]).await;
    assert!(stream.opened.session_present);
    stream
}

/// A session that was made over MQTT, with its client away.
async fn away(broker: &Broker, filters: &[(&str, Qos)]) {
    let mut peer = Peer::connected(broker, kept(V5, "c")).await;
    for (filter, qos) in filters {
        peer.subscribe(filter, *qos).await;
    }
    peer.leave().await;
}

fn attempts(deliveries: &[v1::Delivery]) -> Vec<u32> {
    deliveries.iter().map(|delivery| delivery.delivery_attempt).collect()
}

#[tokio::test]
async fn filters_and_backlog_are_the_same_at_both() {
    let (broker, mut topics) = Topics::start().await;
    let mut peer = Peer::connected(&broker, kept(V5, "c")).await;
    peer.subscribe_identified("a/#", QOS2, 7).await;
    peer.subscribe("b", QOS1).await;
    peer.leave().await;
    let mut publisher = Peer::clean(&broker, V5, "p").await;
    publisher.say("a/1", QOS2, "1").await;
    topics.publish(message("b", "2")).await;
    topics.publish(at_most_once("b", "lost")).await;
    publisher.say("a/2", QOS1, "3").await;

    let mut stream = there(&mut topics, "c").await;
    let got = stream.deliveries(3).await;
    assert_eq!((texts(&got), attempts(&got)), (["1", "2", "3"].map(String::from).to_vec(), vec![1; 3]));
    assert_eq!(got.iter().map(|d| &d.subscription_ids[..]).collect::<Vec<_>>(), [&[7][..], &[], &[7]]);
    assert_eq!(got[0].message.as_ref().unwrap().qos(), v1::Qos::ExactlyOnce);
    assert_eq!(stream.ack(&got[..1]).await, []);
    // What is changed here is changed there.
    let identified = v1::TopicFilter { subscription_id: 9, ..filter("g") };
    assert!(stream.add(vec![identified]).await[0].error.is_none());
    assert!(stream.remove(&["b"]).await[0].error.is_none());
    stream.leave(v1::CloseSession::default()).await;
    topics.publish(message("b", "nobody's")).await;
    topics.publish(message("g", "4")).await;

    let mut peer = device(&broker, "c").await;
    for (expected, dup, identifier) in [("2", true, None), ("3", true, Some(7)), ("4", false, Some(9))] {
        let publish = peer.receive().await;
        let identifiers: Vec<u32> =
            properties_of(&publish).subscription_ids.iter().map(|id| id.get()).collect();
        assert_eq!((text(&publish), publish.dup), (expected, dup));
        assert_eq!(identifiers, identifier.into_iter().collect::<Vec<_>>());
    }
    peer.nothing_came().await;
    peer.leave().await;
    let mut stream = there(&mut topics, "c").await;
    topics.publish(message("g", "5")).await;
    assert_eq!(stream.texts(1).await, ["5"]);
}

#[tokio::test]
async fn each_door_takes_over_from_the_other() {
    let (broker, mut topics) = Topics::start().await;
    away(&broker, &[("s", QOS1)]).await;
    let mut stream = there(&mut topics, "c").await;
    topics.publish(message("s", "1")).await;
    assert_eq!(stream.texts(1).await, ["1"]);
    // From gRPC, by each version.
    for version in [V311, V5] {
        let (mut peer, connack) = Peer::greet(&broker, kept(version, "c")).await;
        assert!(connack.session_present);
        let (closing, status) = stream.ended().await;
        let status = status.unwrap();
        assert_eq!(Code::from(closing.status.unwrap().code), Code::Aborted);
        assert_eq!(status.code(), Code::Aborted);
        assert_eq!(reason(&status.get_error_details()), "SESSION_TAKEN_OVER");
        let again = peer.publish().await;
        assert_eq!((text(&again), again.dup), ("1", true));
        // And back.
        stream = there(&mut topics, "c").await;
        assert_eq!(peer.told().await, (version == V5).then_some(ReasonCode::SessionTakenOver));
        let again = stream.deliveries(1).await;
        assert!(again[0].delivery_attempt > 2, "{again:?}");
    }
    topics.publish(message("s", "2")).await;
    assert_eq!(stream.texts(1).await, ["2"]);
    // One that is not kept ends with that.
    let once = v1::OpenSession { session_expiry: None, ..session("once", &["s"]) };
    let mut stream = topics.open(once).await;
    let peer = Peer::clean(&broker, V5, "once").await;
    let (_, status) = stream.ended().await;
    assert_eq!(reason(&status.unwrap().get_error_details()), "SESSION_TAKEN_OVER");
    let once = v1::OpenSession { session_expiry: None, ..session("once", &[]) };
    assert!(!topics.open(once).await.opened.session_present);
    assert_eq!(peer.told().await, Some(ReasonCode::SessionTakenOver));
}

#[tokio::test]
async fn what_is_unacknowledged_comes_again_counted() {
    let (broker, mut topics) = Topics::start().await;
    away(&broker, &[("s", QOS1)]).await;
    for payload in ["1", "2"] {
        topics.publish(message("s", payload)).await;
    }
    let mut peer = device(&broker, "c").await;
    let first = [peer.publish().await, peer.publish().await];
    peer.vanish();
    let mut stream = there(&mut topics, "c").await;
    assert_eq!(attempts(&stream.deliveries(2).await), [2, 2]);
    drop(stream);
    let mut stream = there(&mut topics, "c").await;
    let got = stream.deliveries(2).await;
    assert_eq!(attempts(&got), [3, 3]);
    // What is settled here is gone there; the rest has its number still.
    assert_eq!(stream.ack(&got[..1]).await, []);
    drop(stream);
    let mut peer = device(&broker, "c").await;
    let [_, second] = first;
    assert_eq!(peer.receive().await, Publish { dup: true, ..second });
    peer.nothing_came().await;
    peer.leave().await;
    // What this door has not numbered gets a number there, and says that it came before.
    for qos in [QOS1, QOS2] {
        let mut peer = device(&broker, "c").await;
        peer.subscribe("s", qos).await;
        peer.leave().await;
        Peer::clean(&broker, V5, "p").await.say("s", qos, "3").await;
        let mut stream = there(&mut topics, "c").await;
        assert_eq!(attempts(&stream.deliveries(1).await), [1]);
        stream.leave(v1::CloseSession::default()).await;
        let mut peer = device(&broker, "c").await;
        let publish = peer.receive().await;
        assert_eq!((text(&publish), publish.qos, publish.dup), ("3", qos, true));
        peer.leave().await;
    }
    there(&mut topics, "c").await.finish().await;
}

#[tokio::test]
async fn a_delivery_at_qos_2_is_exact_at_its_own_door() {
    let mut broker = Broker::start().await;
    for (version, kill, cut) in losses() {
        for settles in [false, true] {
            let about = format!("{version:?}, kill {kill}, {cut:?}, settles {settles}");
            let mut peer = Peer::connected(&broker, kept(version, "c")).await;
            peer.subscribe("s", QOS2).await;
            Peer::clean(&broker, V5, "p").await.say("s", QOS2, "once").await;
            let publish = peer.publish().await;
            let number = publish.packet_id.unwrap().get();
            if cut == Cut::AfterPubrel {
                peer.send(Packet::PubRec(ack(number))).await;
                assert_eq!(peer.next().await, Packet::PubRel(ack(number)), "{about}");
            }
            peer.vanish();
            // Half done there, it comes here again, and once it is settled no more.
            let mut topics = Topics::of(&broker).await;
            let mut stream = there(&mut topics, "c").await;
            let got = stream.deliveries(1).await;
            assert_eq!((texts(&got), attempts(&got)), (vec!["once".to_owned()], vec![2]), "{about}");
            if settles {
                assert_eq!(stream.ack(&got).await, [], "{about}");
            }
            if kill {
                let data = broker.data();
                broker.kill9().await;
                broker = Broker::start_in(data, &[]).await;
            } else {
                drop(stream);
            }
            let mut topics = Topics::of(&broker).await;
            let mut stream = there(&mut topics, "c").await;
            topics.publish(message("s", "next")).await;
            let expected = if settles { vec!["next"] } else { vec!["once", "next"] };
            let got = stream.deliveries(expected.len()).await;
            assert_eq!(texts(&got), expected, "{about}");
            let last = got.last().cloned();
            assert_eq!(stream.ack(last.as_slice()).await, [], "{about}");
            drop(stream);
            // Back there it goes on where it was, with its number, which nothing else has had.
            let (mut peer, connack) = Peer::greet(&broker, kept(version, "c")).await;
            assert!(connack.session_present, "{about}");
            if cut == Cut::AfterPublish && !settles {
                assert_eq!(peer.publish().await, Publish { dup: true, ..publish }, "{about}");
                peer.send(Packet::PubRec(ack(number))).await;
            }
            assert_eq!(peer.next().await, Packet::PubRel(ack(number)), "{about}");
            Peer::clean(&broker, V5, "p").await.say("s", QOS2, "new").await;
            let new = peer.publish().await;
            assert!(text(&new) == "new" && new.packet_id.unwrap().get() != number, "{about}: {new:?}");
            peer.send(Packet::PubComp(ack(number))).await;
            peer.nothing_came().await;
            peer.leave().await;
            // Now it is done with at both.
            let mut topics = Topics::of(&broker).await;
            assert_eq!(there(&mut topics, "c").await.texts(1).await, ["new"], "{about}");
            Peer::clean(&broker, version, "c").await.leave().await;
        }
    }
}

#[tokio::test]
async fn a_publish_at_qos_2_is_taken_once_though_its_session_was_at_the_other_door() {
    let mut broker = Broker::start().await;
    for kill in [false, true] {
        let mut topics = Topics::of(&broker).await;
        let mut stream = topics.session("c", &["s"]).await;
        let mut peer = device(&broker, "c").await;
        stream.ended().await;
        let twice = || crate::mqtt::publish("s", QOS2, 7, "once");
        peer.send(Packet::Publish(twice())).await;
        loop {
            match peer.next().await {
                Packet::PubRec(received) if received.packet_id.get() == 7 => break,
                Packet::Publish(_) => {}
                other => panic!("{other:?}"),
            }
        }
        let mut stream = there(&mut topics, "c").await;
        let got = stream.deliveries(1).await;
        assert_eq!((texts(&got), stream.ack(&got).await), (vec!["once".to_owned()], vec![]));
        if kill {
            let data = broker.data();
            broker.kill9().await;
            broker = Broker::start_in(data, &[]).await;
        }
        let mut peer = device(&broker, "c").await;
        peer.say_packet(Publish { dup: true, ..twice() }).await;
        peer.nothing_came().await;
        peer.say_among("s", QOS2, "another").await;
        assert_eq!(text(&peer.receive().await), "another");
        let ends = v1::OpenSession { clean_start: true, session_expiry: None, ..session("c", &[]) };
        Topics::of(&broker).await.open(ends).await.finish().await;
    }
}

#[tokio::test]
async fn each_door_keeps_its_own_window() {
    let (broker, mut topics) = Topics::start().await;
    away(&broker, &[("s", QOS1)]).await;
    for n in 1..=5 {
        topics.publish(message("s", &n.to_string())).await;
    }
    let narrow = |most: u16| {
        let mut connect = kept(V5, "c");
        connect.properties.receive_maximum = NonZeroU16::new(most);
        connect
    };
    let mut peer = Peer::connected(&broker, narrow(2)).await;
    assert_eq!([text(&peer.publish().await), text(&peer.publish().await)], ["1", "2"]);
    peer.nothing_came().await;
    peer.vanish();
    let window = Some(v1::Window { max_outstanding_messages: 3, max_outstanding_bytes: 0 });
    let mut stream = topics.open(v1::OpenSession { window, ..session("c", &[]) }).await;
    let got = stream.deliveries(3).await;
    assert_eq!((texts(&got), attempts(&got)), (["1", "2", "3"].map(String::from).to_vec(), vec![2, 2, 1]));
    assert_eq!(stream.ack(&got[..1]).await, []);
    assert_eq!(stream.texts(1).await, ["4"]);
    drop(stream);
    let mut peer = Peer::connected(&broker, narrow(1)).await;
    let next = peer.publish().await;
    assert_eq!((text(&next), next.dup), ("2", true));
    peer.nothing_came().await;
    peer.send(Packet::PubAck(ack(next.packet_id.unwrap().get()))).await;
    for (expected, dup) in [("3", true), ("4", true), ("5", false)] {
        let next = peer.receive().await;
        assert_eq!((text(&next), next.dup), (expected, dup));
    }
}

#[tokio::test]
async fn options_of_a_filter_hold_at_both() {
    let (broker, mut topics) = Topics::start().await;
    // A filter that the session has already is not new at the other door.
    topics.publish(retained("r/1", "kept")).await;
    let options = |retain_handling| SubscribeOptions { retain_handling, qos: QOS1, ..Default::default() };
    let mut peer = Peer::connected(&broker, kept(V5, "c")).await;
    peer.ask(&[("r/+", options(RetainHandling::DoNotSend))]).await;
    peer.nothing_came().await;
    peer.leave().await;
    let handled =
        |which: v1::RetainHandling| v1::TopicFilter { retain_handling: which.into(), ..filter("r/+") };
    let mut stream = there(&mut topics, "c").await;
    stream.add(vec![handled(v1::RetainHandling::SendIfNew)]).await;
    topics.publish(message("r/2", "live")).await;
    assert_eq!(stream.texts(1).await, ["live"]);
    stream.add(vec![handled(v1::RetainHandling::Send)]).await;
    let kept_value = stream.deliveries(1).await;
    assert_eq!((texts(&kept_value), kept_value[0].retained), (vec!["kept".to_owned()], true));
    stream.remove(&["r/+"]).await;
    stream.leave(v1::CloseSession::default()).await;
    let mut peer = device(&broker, "c").await;
    assert_eq!(peer.receive_texts(2).await, ["live", "kept"]);
    peer.ask(&[("r/+", options(RetainHandling::SendIfNew))]).await;
    assert_eq!(text(&peer.receive().await), "kept");
    peer.unsubscribe("r/+").await;

    // Retain as published, and without.
    let retain_handling = v1::RetainHandling::DoNotSend.into();
    let published =
        |retain_as_published| v1::TopicFilter { retain_as_published, retain_handling, ..filter("v/+") };
    for as_published in [true, false] {
        let mut stream = there(&mut topics, "c").await;
        stream.add(vec![published(as_published)]).await;
        topics.publish(retained("v/1", "x")).await;
        let got = stream.deliveries(1).await;
        assert_eq!(got[0].message.as_ref().unwrap().retain, as_published);
        drop(stream);
        let mut peer = device(&broker, "c").await;
        assert_eq!(peer.receive().await.retain, as_published);
        peer.leave().await;
    }

    // No local: not what its own client publishes over MQTT.
    let mut stream = there(&mut topics, "c").await;
    stream.remove(&["v/+"]).await;
    stream.add(vec![v1::TopicFilter { no_local: true, ..filter("own/+") }]).await;
    stream.leave(v1::CloseSession::default()).await;
    let mut peer = device(&broker, "c").await;
    peer.say("own/1", QOS1, "own").await;
    peer.say("own/1", QOS0, "own").await;
    topics.publish(message("own/1", "another's")).await;
    assert_eq!(text(&peer.publish().await), "another's");
    peer.vanish();
    assert_eq!(there(&mut topics, "c").await.texts(1).await, ["another's"]);
}

#[tokio::test]
async fn shares_and_queues_go_with_the_session() {
    let (broker, mut topics) = Topics::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(named("q")).await;
    away(&broker, &[("$share/g/s", QOS1), ("$queue/q", QOS1)]).await;
    topics.publish(message("s", "1")).await;
    queues.fill("q", &["2"]).await;
    let mut got = there(&mut topics, "c").await.texts(2).await;
    got.sort();
    assert_eq!(got, ["1", "2"]);
    // Another member of the group gets what its first did not settle, whichever door that one was at.
    let mut other = topics.session("d", &["$share/g/s"]).await;
    let first = other.deliveries(1).await;
    assert_eq!((texts(&first), other.ack(&first).await), (vec!["1".to_owned()], vec![]));
    other.finish().await;
    let mut peer = device(&broker, "c").await;
    assert_eq!(text(&peer.receive().await), "2");
    peer.nothing_came().await;
    // A delivery at QoS 2 is its member's from its beginning on.
    peer.unsubscribe("$share/g/s").await;
    peer.subscribe("$share/g/s", QOS2).await;
    Peer::clean(&broker, V5, "p").await.say("s", QOS2, "3").await;
    let before = peer.publish().await;
    peer.vanish();
    let mut stream = there(&mut topics, "c").await;
    let got = stream.deliveries(1).await;
    assert_eq!((texts(&got), attempts(&got)), (vec!["3".to_owned()], vec![2]));
    drop(stream);
    let mut other = device(&broker, "d").await;
    other.nothing_came().await;
    other.leave().await;
    let mut peer = device(&broker, "c").await;
    assert_eq!(peer.receive().await, Publish { dup: true, ..before });
}
