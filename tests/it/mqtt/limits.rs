//! What is bounded, and peers that do not behave: each loses its own connection and nothing else.

use stafett::types::clock;

use super::*;
use crate::harness::{config_file, stafett};

/// A broker with these lines under `[mqtt]`.
async fn broker_with(mqtt: &str) -> (tempfile::TempDir, Broker) {
    let (directory, path) = config_file(&format!("[mqtt]\n{mqtt}"));
    let broker = Broker::start_with(&["--config", &path]).await;
    (directory, broker)
}

#[tokio::test]
async fn garbage_closes_its_own_connection_alone() {
    let broker = Broker::start().await;
    let mut witness = Peer::subscribed(&broker, V311, "w", QOS1).await;
    let address = broker.address("mqtt");
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff\xff\xff",
        b"\x10\xff\xff\xff\xff\x7f",
        b"\x30\x03\x00\x01a",
    ] {
        let mut peer = Peer::open(address, V311).await;
        peer.send_bytes(garbage).await;
        assert_eq!(peer.next_or_end().await, None, "{garbage:?}");
    }
    broker.counts("mqtt_connects_refused_total", 5).await;
    // After CONNECT a 5.0 client is told; the reason is not lost, though more comes.
    let mut peer = Peer::clean(&broker, V5, "").await;
    peer.send_bytes(&[0xf7; 100_000]).await;
    assert_eq!(peer.told().await, Some(ReasonCode::MalformedPacket));
    let mut peer = Peer::clean(&broker, V311, "").await;
    peer.send_bytes(&[0xf7; 10]).await;
    assert_eq!(peer.told().await, None);
    witness.say("w", QOS1, "x").await;
    assert_eq!(text(&witness.receive().await), "x");
}

#[tokio::test]
async fn versions_that_are_not_served_are_told() {
    let broker = Broker::start().await;
    let address = broker.address("mqtt");
    // 3.1.1: [MQTT-3.1.2-2].
    let mut peer = Peer::open(address, V311).await;
    peer.send_bytes(b"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x00\x00\x00").await;
    let Packet::ConnAck(connack) = peer.next().await else { panic!() };
    assert_eq!(connack.reason.to_return_code(), Some(1));
    assert_eq!(peer.next_or_end().await, None);
    // 5: [MQTT-3.1.2-2].
    let mut peer = Peer::open(address, V5).await;
    peer.send_bytes(b"\x10\x0c\x00\x04MQTT\x06\x02\x00\x00\x00\x00").await;
    let Packet::ConnAck(connack) = peer.next().await else { panic!() };
    assert_eq!(connack.reason, ReasonCode::UnsupportedProtocolVersion);
    assert_eq!(peer.next_or_end().await, None);
}

#[tokio::test]
async fn a_refused_connect_is_told_why() {
    let broker = Broker::start().await;
    let mut unnamed = connect(V311, "");
    unnamed.clean_start = false;
    let (mut peer, connack) = Peer::greet(&broker, unnamed).await;
    // 3.1.1: [MQTT-3.1.3-8].
    assert_eq!(connack.reason.to_return_code(), Some(2));
    assert_eq!(peer.next_or_end().await, None);
    let mut authenticates = connect(V5, "c");
    authenticates.properties.authentication_method = Some("SCRAM".into());
    let (mut peer, connack) = Peer::greet(&broker, authenticates).await;
    assert_eq!(connack.reason, ReasonCode::BadAuthenticationMethod);
    assert!(connack.properties.reason_string.unwrap().contains("SCRAM"));
    assert_eq!(peer.next_or_end().await, None);
    // 5: [MQTT-3.1.3-6], [MQTT-3.2.2-16].
    let (_, one) = Peer::greet(&broker, connect(V5, "")).await;
    let (_, two) = Peer::greet(&broker, connect(V5, "")).await;
    let assigned = |connack: ConnAck| connack.properties.assigned_client_id.unwrap();
    assert_ne!(assigned(one), assigned(two));
}

#[tokio::test]
async fn who_does_not_finish_connect_is_closed() {
    let (_directory, broker) = broker_with("connect_timeout = \"1s\"\n").await;
    let mut silent = Peer::open(broker.address("mqtt"), V311).await;
    let mut slow = Peer::open(broker.address("mqtt"), V311).await;
    slow.send_bytes(b"\x10\x0c\x00\x04MQ").await;
    assert_eq!(silent.next_or_end().await, None);
    assert_eq!(slow.next_or_end().await, None);
    broker.counts("mqtt_connect_timeouts_total", 2).await;
    // Who has finished is not meant.
    Peer::clean(&broker, V311, "").await.nothing_came().await;
}

#[tokio::test]
async fn a_silent_client_is_closed_after_one_and_a_half_keep_alives() {
    // 3.1.1: [MQTT-3.1.2-24]; 5: [MQTT-3.1.2-22].
    let broker = Broker::start().await;
    for version in BOTH {
        let mut watch = Peer::subscribed(&broker, version, "gone", QOS0).await;
        let silent =
            Connect { keep_alive: 1, will: Some(will("gone", "silent")), ..connect(version, "silent") };
        let peer = Peer::connected(&broker, silent).await;
        let since = clock::now();
        assert_eq!(text(&watch.receive().await), "silent");
        assert!(since.elapsed() >= std::time::Duration::from_millis(1400));
        assert_eq!(peer.told().await, (version == V5).then_some(ReasonCode::KeepAliveTimeout));
    }
    // 5: [MQTT-3.2.2-22].
    let (_directory, broker) = broker_with("keep_alive_ceiling = \"1s\"\n").await;
    let (peer, connack) = Peer::greet(&broker, connect(V5, "")).await;
    assert_eq!(connack.properties.server_keep_alive, Some(1));
    assert_eq!(peer.told().await, Some(ReasonCode::KeepAliveTimeout));
}

#[tokio::test]
async fn a_session_expiry_that_is_cut_short_is_told() {
    // 5: section 3.2.2.3.2.
    let (_directory, broker) = broker_with("\n[limits]\nmax_session_expiry = \"1h\"\n").await;
    for (asked, told) in [(u32::MAX, Some(3600)), (3601, Some(3600)), (3600, None), (60, None)] {
        let mut connect = kept(V5, &asked.to_string());
        connect.properties.session_expiry = Some(asked);
        let (_, connack) = Peer::greet(&broker, connect).await;
        assert_eq!(connack.properties.session_expiry, told, "{asked}");
    }
}

#[tokio::test]
async fn a_packet_that_is_too_large_is_refused_unread() {
    let (_directory, broker) = broker_with("max_packet_bytes = \"4KiB\"\n").await;
    let (mut peer, connack) = Peer::greet(&broker, connect(V5, "")).await;
    assert_eq!(connack.properties.maximum_packet_size.map(|size| size.get()), Some(4096));
    peer.say_packet(publish("a", QOS1, 1, vec![0; 4000])).await;
    peer.send_bytes(b"\x30\x80\x80\x40").await; // 1 MiB is to follow.
    assert_eq!(peer.told().await, Some(ReasonCode::PacketTooLarge));
    let mut peer = Peer::clean(&broker, V311, "").await;
    peer.send(Packet::Publish(publish("a", QOS0, 0, vec![0; 5000]))).await;
    assert_eq!(peer.told().await, None);
}

#[tokio::test]
async fn more_publishes_than_were_announced_end_the_connection() {
    // 5: [MQTT-3.3.4-7].
    let (_directory, broker) = broker_with("receive_maximum = 3\n").await;
    let (mut peer, connack) = Peer::greet(&broker, connect(V5, "")).await;
    assert_eq!(connack.properties.receive_maximum, NonZeroU16::new(3));
    let mut bytes = BytesMut::new();
    for n in 1..=4 {
        Packet::Publish(publish("a", QOS2, n, "x")).encode(V5, &mut bytes).unwrap();
    }
    peer.send_bytes(&bytes).await;
    assert_eq!(peer.told().await, Some(ReasonCode::ReceiveMaximumExceeded));
}

#[tokio::test]
async fn bytes_in_flight_are_bounded() {
    let (_directory, broker) = broker_with("max_inflight_bytes = \"64KiB\"\n").await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    // Small ones are copied, large ones shared; a session that is kept has them from the store.
    for (kept_session, qos, length, admitted) in
        [(false, QOS1, 10_000, 7), (false, QOS2, 40_000, 2), (true, QOS1, 10_000, 7), (true, QOS2, 10_000, 7)]
    {
        let hello = if kept_session { kept(V5, "k") } else { connect(V5, "") };
        let mut peer = Peer::connected(&broker, Connect { clean_start: true, ..hello }).await;
        peer.subscribe("f", qos).await;
        for _ in 0..10 {
            publisher.say("f", qos, &"x".repeat(length)).await;
        }
        let mut first = Vec::new();
        for _ in 0..admitted {
            first.push(peer.publish().await.packet_id.unwrap());
        }
        peer.nothing_came().await;
        // One that is done with makes room for one, as the others still do not fill it.
        for left in (admitted..10).rev() {
            let id = first.remove(0);
            if qos == QOS1 {
                peer.send(Packet::PubAck(ack(id.get()))).await;
            } else {
                peer.send(Packet::PubRec(ack(id.get()))).await;
                assert_eq!(peer.next().await, Packet::PubRel(ack(id.get())), "{left} left");
                peer.send(Packet::PubComp(ack(id.get()))).await;
            }
            first.push(peer.publish().await.packet_id.unwrap());
        }
        peer.nothing_came().await;
        peer.unsubscribe("f").await;
        peer.vanish();
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_bounded_and_disturbs_nobody() {
    let (_directory, broker) = broker_with("outbox_bytes = \"64KiB\"\noutbox_messages = 100\n").await;
    // At QoS 0 it loses messages, at QoS 1 its connection.
    let mut lossy = Peer::subscribed(&broker, V5, "f/#", QOS0).await;
    let lagging = Peer::subscribed(&broker, V5, "f/#", QOS1).await;
    let mut reader = Peer::subscribed(&broker, V5, "f/#", QOS1).await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    let payload = "x".repeat(10_000);
    for n in 0..2000 {
        publisher.say("f/x", QOS1, &format!("{n} {payload}")).await;
        assert!(text(&reader.receive().await).starts_with(&format!("{n} ")));
    }
    // It was told, if it began to read in time.
    assert!(matches!(lagging.told().await, Some(ReasonCode::QuotaExceeded) | None));
    // It is connected still, and gets what was kept of what came.
    lossy.send(Packet::PingReq).await;
    let mut got = 0;
    while let Packet::Publish(_) = lossy.next().await {
        got += 1;
    }
    assert!(got < 2000, "the bound did not hold");
    broker.counts("subscribers_cut_total", 1).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told() {
    let (_directory, path) = config_file("[limits]\nconnections = 1\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let first = Peer::clean(&broker, V5, "").await;
    for version in BOTH {
        let (mut peer, connack) = Peer::greet(&broker, connect(version, "")).await;
        match version {
            V5 => assert_eq!(connack.reason, ReasonCode::QuotaExceeded),
            V311 => assert_eq!(connack.reason.to_return_code(), Some(3)),
        }
        assert_eq!(peer.next_or_end().await, None);
    }
    first.leave().await;
}

#[tokio::test]
async fn refused_filters_have_their_codes() {
    let broker = Broker::start().await;
    let asked =
        ["a/+", "a/#/b", "$share/g", "$queue/none"].map(|filter| (filter, SubscribeOptions::default()));
    for version in BOTH {
        let suback = Peer::clean(&broker, version, "").await.ask(&asked).await;
        let codes: Vec<u8> = suback.codes.iter().map(|code| *code as u8).collect();
        // 3.1.1: [MQTT-3.9.3-2].
        let failed = if version == V5 { 0x8f } else { 0x80 };
        assert_eq!(codes, [0, failed, failed, failed]);
    }
}

#[tokio::test]
async fn reserved_topics_are_not_published() {
    let broker = Broker::start().await;
    let mut peer = Peer::clean(&broker, V5, "").await;
    assert_eq!(peer.say("$SYS/x", QOS1, "x").await, ReasonCode::TopicNameInvalid);
    assert_eq!(peer.say("$queue/none", QOS2, "x").await, ReasonCode::TopicNameInvalid);
    let mut old = Peer::clean(&broker, V311, "").await;
    old.send(Packet::Publish(publish("$SYS/x", QOS1, 1, "x"))).await;
    assert_eq!(old.next_or_end().await, None, "3.1.1 has no word for it");
}

#[tokio::test]
async fn an_address_that_connects_too_often_is_refused_and_told() {
    let (_directory, path) = config_file("[limits]\nconnect_rate = 1\nconnect_burst = 2\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    // One second of machine time for each would be a slow machine indeed.
    for (version, refusal) in
        [(V5, ReasonCode::ConnectionRateExceeded), (V311, ReasonCode::ServerUnavailable)]
    {
        let mut codes = Vec::new();
        while codes.last() != Some(&refusal) {
            assert!(codes.iter().all(|code| *code == ReasonCode::Success) && codes.len() < 50, "{codes:?}");
            codes.push(Peer::greet(&broker, connect(version, "")).await.1.reason);
        }
    }
    // The other door has the same bound.
    let url = broker.url();
    let mut asked = 0;
    while stafett(["info", "--server", &url]).await.code != Some(3) {
        asked += 1;
        assert!(asked < 50);
    }
}
