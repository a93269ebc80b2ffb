//! Peers that mean ill: the right answer, bounded memory, and the others undisturbed.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::harness::config_file;

/// A broker with someone who behaves, and what it had in memory before the others came.
pub(super) struct Scene {
    pub(super) broker: Broker,
    witness: Peer,
    before_kib: u64,
}

impl Scene {
    async fn new() -> Self {
        Self::of(Broker::start().await).await
    }

    pub(super) async fn of(broker: Broker) -> Self {
        let witness = Peer::subscribed(&broker, V5, "witness", QOS1).await;
        let before_kib = broker.resident_kib();
        Self { broker, witness, before_kib }
    }

    fn address(&self) -> SocketAddr {
        self.broker.address("mqtt")
    }

    /// Who behaves is served, and no more than `mib` have come into memory.
    pub(super) async fn holds(&mut self, mib: u64) {
        self.witness.say("witness", QOS1, "x").await;
        assert_eq!(text(&self.witness.receive().await), "x");
        let grown = self.broker.resident_kib().saturating_sub(self.before_kib);
        assert!(grown < mib << 10, "{grown} KiB more in memory");
    }
}

/// What is sent bit by bit, each bit before long silence would end: the broker closes. What it said, and how much of the
/// bytes it took.
pub(super) async fn drips(peer: &mut Peer, bytes: &[u8]) -> (Option<ReasonCode>, usize) {
    let mut told = None;
    for (sent, byte) in bytes.iter().enumerate() {
        match tokio::time::timeout(Duration::from_millis(50), peer.next_or_end()).await {
            Ok(Some(Packet::Disconnect(disconnect))) => told = Some(disconnect.reason),
            Ok(Some(other)) => panic!("{other:?}"),
            Ok(None) => return (told, sent),
            Err(_) => drop(peer.try_send_bytes(&[*byte]).await),
        }
    }
    panic!("all of it was taken");
}

/// Bytes in all files below.
fn stored(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| match entry.file_type().unwrap() {
            kind if kind.is_dir() => stored(&entry.path()),
            _ => entry.metadata().map_or(0, |data| data.len()),
        })
        .sum()
}

/// `[first byte][remaining length][bytes]`.
fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut length = body.len();
    while length > 0x7f {
        out.push(length as u8 & 0x7f | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(body);
    out
}

fn string(text: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(text);
    out
}

/// `[length: variable byte integer][list]`.
fn properties(list: &[u8]) -> Vec<u8> {
    frame(0, list).split_off(1)
}

#[tokio::test]
async fn a_length_that_lies_takes_no_memory() {
    let mut scene = Scene::new().await;
    // Below what the broker takes: it waits. Nothing is set aside for what is only announced.
    let mut waiting = Vec::new();
    for n in 0..200 {
        let mut peer = Peer::clean(&scene.broker, BOTH[n % 2], "").await;
        peer.send_bytes(&[0x30, 0xff, 0xff, 0x7f, 0, 1, b'a']).await;
        waiting.push(peer);
    }
    scene.holds(32).await;
    // Before CONNECT less is taken.
    for _ in 0..50 {
        let mut peer = Peer::open(scene.address(), V311).await;
        peer.send_bytes(&[0x10, 0xff, 0xff, 0x7f, 0, 4, b'M', b'Q', b'T', b'T', 4]).await;
        assert_eq!(peer.next_or_end().await, None);
    }
    // Above, it is told at once.
    let mut peer = Peer::clean(&scene.broker, V5, "").await;
    peer.send_bytes(&[0x30, 0xff, 0xff, 0xff, 0x7f]).await;
    assert_eq!(peer.told().await, Some(ReasonCode::PacketTooLarge));
    drop(waiting);
    scene.holds(32).await;
}

#[tokio::test]
async fn a_flood_of_connects_disturbs_nobody() {
    let mut scene = Scene::new().await;
    let mut peers = Vec::new();
    for n in 0..600 {
        let mut peer = Peer::open(scene.address(), V311).await;
        match n % 3 {
            // Says nothing; says a part; is there.
            0 => {}
            1 => peer.send_bytes(b"\x10\x20\x00\x04MQTT").await,
            _ => peer.send(Packet::Connect(Box::new(connect(V311, &format!("flood-{n}"))))).await,
        }
        peers.push(peer);
    }
    scene.holds(64).await;
    drop(peers);
    // One client id after the other is taken over, by many at once.
    let mut same = Vec::new();
    for _ in 0..200 {
        let mut peer = Peer::open(scene.address(), V5).await;
        peer.send(Packet::Connect(Box::new(connect(V5, "same")))).await;
        same.push(peer);
    }
    for peer in &mut same {
        assert!(matches!(peer.next().await, Packet::ConnAck(_)));
    }
    let mut there = 0;
    for mut peer in same {
        peer.try_send_bytes(&[0xc0, 0]).await;
        there += u32::from(matches!(peer.next_or_end().await, Some(Packet::PingResp)));
    }
    assert_eq!(there, 1, "one connection has the session");
    scene.holds(64).await;
}

#[tokio::test]
async fn topics_and_filters_of_slashes_are_refused() {
    let mut scene = Scene::new().await;
    let slashes = string(&[b'/'; 65_535]);
    for version in BOTH {
        let none: &[u8] = if version == V5 { &[0] } else { &[] };
        let mut peer = Peer::clean(&scene.broker, version, "").await;
        for wildcards in [[b'/'; 65_534].to_vec(), b"+/".repeat(32_767)] {
            let subscribe = [&[0, 1][..], none, &string(&wildcards), &[1]].concat();
            peer.send_bytes(&frame(0x82, &subscribe)).await;
            let Packet::SubAck(suback) = peer.next().await else { panic!() };
            assert!(suback.codes[0].is_failure());
        }
        // 3.1.1 has no word for it.
        let publish = [&slashes[..], &[0, 1], none, b"x"].concat();
        peer.send_bytes(&frame(0x32, &publish)).await;
        match peer.next_or_end().await {
            Some(Packet::PubAck(ack)) if version == V5 => {
                assert_eq!(ack.reason, ReasonCode::TopicNameInvalid)
            }
            None if version == V311 => {}
            other => panic!("{other:?}"),
        }
        // As a will.
        let will = [&b"\x00\x04MQTT"[..], &[version.level(), 6, 0, 0], none].concat();
        let connect = [&will[..], &string(b"slashes"), none, &slashes, &string(b"x")].concat();
        let mut peer = Peer::open(scene.address(), version).await;
        peer.send_bytes(&frame(0x10, &connect)).await;
        if let Some(Packet::ConnAck(connack)) = peer.next_or_end().await {
            assert!(connack.reason == ReasonCode::Success || connack.reason.is_failure());
        }
        peer.vanish();
    }
    scene.holds(32).await;
}

#[tokio::test]
async fn property_bombs_are_refused() {
    let mut scene = Scene::new().await;
    let bomb = properties(&[0x26, 0, 0, 0, 0].repeat(20_000));
    for _ in 0..20 {
        let mut peer = Peer::open(scene.address(), V5).await;
        let connect = [&b"\x00\x04MQTT\x05\x02\x00\x00"[..], &bomb, &string(b"bomb")].concat();
        peer.send_bytes(&frame(0x10, &connect)).await;
        let Packet::ConnAck(connack) = peer.next().await else { panic!() };
        assert_eq!(connack.reason, ReasonCode::QuotaExceeded);
        assert_eq!(peer.next_or_end().await, None);
        let mut peer = Peer::clean(&scene.broker, V5, "").await;
        peer.send_bytes(&frame(0x30, &[&string(b"a")[..], &bomb, b"x"].concat())).await;
        assert_eq!(peer.told().await, Some(ReasonCode::QuotaExceeded));
        for (first, before, after) in [
            (0x40, &[0, 1, 0][..], &[][..]),
            (0x50, &[0, 1, 0], &[]),
            (0x62, &[0, 1, 0], &[]),
            (0x70, &[0, 1, 0], &[]),
            (0x82, &[0, 1], b"\0\x01a\0"),
            (0xa2, &[0, 1], b"\0\x01a"),
            (0xe0, &[0], &[]),
            (0xf0, &[0x18], &[]),
        ] {
            let mut peer = Peer::clean(&scene.broker, V5, "").await;
            peer.send_bytes(&frame(first, &[before, &bomb, after].concat())).await;
            assert_eq!(peer.told().await, Some(ReasonCode::QuotaExceeded), "{first:02x}");
        }
        // In a will.
        let mut peer = Peer::open(scene.address(), V5).await;
        let will = [&b"\x00\x04MQTT\x05\x06\x00\x00\x00\x00\x00"[..], &bomb, &string(b"t"), &string(b"x")];
        peer.send_bytes(&frame(0x10, &will.concat())).await;
        let Packet::ConnAck(connack) = peer.next().await else { panic!() };
        assert_eq!(connack.reason, ReasonCode::QuotaExceeded);
        // Many filters in one packet.
        let mut peer = Peer::clean(&scene.broker, V5, "").await;
        let filters = [&string(b"a")[..], &[0]].concat().repeat(20_000);
        peer.send_bytes(&frame(0x82, &[&[0, 1, 0][..], &filters].concat())).await;
        assert_eq!(peer.told().await, Some(ReasonCode::QuotaExceeded));
    }
    scene.holds(32).await;
}

#[tokio::test]
async fn alias_floods_hold_no_more_than_was_announced() {
    let mut scene = Scene::new().await;
    let mut peers = Vec::new();
    for n in 0..50_u32 {
        let (mut peer, connack) = Peer::greet(&scene.broker, connect(V5, "")).await;
        let maximum = connack.properties.topic_alias_maximum.unwrap();
        for round in 0..200_u32 {
            let alias = u16::try_from(round).unwrap() % maximum + 1;
            let topic = format!("{n}/{round}/{}", "x".repeat(1000));
            let properties = [&[0x23][..], &alias.to_be_bytes()].concat();
            let publish = [&string(topic.as_bytes())[..], &self::properties(&properties), b"x"].concat();
            peer.send_bytes(&frame(0x30, &publish)).await;
        }
        peer.nothing_came().await;
        peers.push(peer);
    }
    scene.holds(32).await;
}

#[tokio::test]
async fn who_asks_without_listening_is_not_heard_for_ever() {
    let mut scene = Scene::new().await;
    for (version, first, request) in [
        (V311, 0xd0, vec![0xc0, 0]),
        (V311, 0x70, frame(0x62, &[0, 9])),
        (V5, 0x70, frame(0x62, &[0, 9])),
        (V5, 0x90, frame(0x82, &[&[0, 1, 0][..], &string(b"asked"), &[0]].concat())),
    ] {
        // Its answers wait for it up to a bound; then it is not read, so that its sending stops.
        let mut peer = Peer::clean(&scene.broker, version, "").await;
        let flood = request.repeat(1000);
        let mut sent = 0;
        while sent < 20_000
            && tokio::time::timeout(Duration::from_secs(1), peer.try_send_bytes(&flood)).await.is_ok()
        {
            sent += 1;
        }
        scene.holds(64).await;
        // It gets what it asked for when it listens.
        for _ in 0..1000 {
            let packet = peer.next().await;
            assert_eq!(packet.packet_type() as u8, first >> 4);
        }
        peer.vanish();
    }
    scene.holds(64).await;
}

#[tokio::test]
async fn packet_ids_run_out_without_harm() {
    // 3.1.1 has no receive maximum: a client may hold all ids open.
    let mut scene = Scene::new().await;
    let mut watch = Peer::subscribed(&scene.broker, V5, "ids", QOS0).await;
    let mut peer = Peer::clean(&scene.broker, V311, "").await;
    for part in (1..=u16::MAX).collect::<Vec<_>>().chunks(1000) {
        let mut bytes = BytesMut::new();
        for packet_id in part {
            Packet::Publish(publish("ids", QOS2, *packet_id, "x")).encode(V311, &mut bytes).unwrap();
        }
        peer.send_bytes(&bytes).await;
        for packet_id in part {
            assert_eq!(peer.next().await, Packet::PubRec(ack(*packet_id)));
            watch.publish().await;
        }
    }
    // Each is taken: again is not anew.
    peer.send(Packet::Publish(publish("ids", QOS2, 1, "again"))).await;
    assert_eq!(peer.next().await, Packet::PubRec(ack(1)));
    watch.nothing_came().await;
    scene.holds(64).await;
    // Released, it is free.
    peer.send(Packet::PubRel(ack(1))).await;
    assert_eq!(peer.next().await, Packet::PubComp(ack(1)));
    peer.send(Packet::Publish(publish("ids", QOS2, 1, "anew"))).await;
    assert_eq!(peer.next().await, Packet::PubRec(ack(1)));
    assert_eq!(text(&watch.publish().await), "anew");
}

#[tokio::test]
async fn a_receiver_that_acknowledges_nothing_is_bounded() {
    let mut scene = Scene::new().await;
    for version in BOTH {
        let mut deaf = Peer::subscribed(&scene.broker, version, "deaf", QOS2).await;
        let mut publisher = Peer::clean(&scene.broker, V5, "").await;
        for n in 0..3000 {
            publisher.say("deaf", if n % 2 == 0 { QOS1 } else { QOS2 }, "x").await;
        }
        // The broker's own bound holds where the client gives none.
        let mut ids = std::collections::HashSet::new();
        for _ in 0..1024 {
            assert!(ids.insert(deaf.publish().await.packet_id), "an id twice");
        }
        deaf.nothing_came().await;
    }
    scene.holds(32).await;
}

#[tokio::test]
async fn a_flood_of_pubrels_is_answered_and_leaves_nothing() {
    let mut scene = Scene::new().await;
    let data = scene.broker.data();
    let before = stored(data.path());
    for version in BOTH {
        let mut peer = Peer::connected(&scene.broker, kept(version, &format!("flood-{version:?}"))).await;
        // 5: [MQTT-4.3.3-11]: an id that is not in use is answered, too.
        let expected = match version {
            V311 => ack(1),
            V5 => Ack::new(id(1), ReasonCode::PacketIdentifierNotFound),
        };
        let flood = frame(0x62, &[0, 1]).repeat(1000);
        for _ in 0..100 {
            peer.send_bytes(&flood).await;
            for _ in 0..1000 {
                assert_eq!(peer.next().await, Packet::PubComp(expected.clone()));
            }
        }
    }
    scene.holds(32).await;
    let grown = stored(data.path()).saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes more are stored");
}

#[tokio::test]
async fn drops_of_a_packet_are_no_packet() {
    let (_directory, path) = config_file("[mqtt]\nconnect_timeout = \"1s\"\n");
    let mut scene = Scene::of(Broker::start_with(&["--config", &path]).await).await;
    let mut watch = Peer::subscribed(&scene.broker, V5, "drips", QOS0).await;
    for version in BOTH {
        let mut bytes = BytesMut::new();
        let hello = connect(version, &"x".repeat(100));
        Packet::Connect(Box::new(hello)).encode(version, &mut bytes).unwrap();
        let mut peer = Peer::open(scene.address(), version).await;
        drips(&mut peer, &bytes).await;
        // [MQTT-3.1.2-24], 5: [MQTT-3.1.2-22]: it is packets that keep a connection alive.
        let dripping = Connect { keep_alive: 1, will: Some(will("drips", "gone")), ..connect(version, "") };
        let mut peer = Peer::connected(&scene.broker, dripping).await;
        let (told, _) = drips(&mut peer, &frame(0x30, &[&string(b"a")[..], &[0; 500]].concat())).await;
        assert_eq!(told, (version == V5).then_some(ReasonCode::KeepAliveTimeout));
        assert_eq!(text(&watch.receive().await), "gone");
    }
    scene.holds(32).await;
}

#[tokio::test]
async fn who_neither_reads_nor_speaks_is_let_go() {
    // As one whose network is gone: what is sent to it stays with us, and nothing tells of its end.
    let mut scene = Scene::new().await;
    for version in BOTH {
        let mut watch = Peer::subscribed(&scene.broker, V5, "lost", QOS0).await;
        let lost = Connect { keep_alive: 1, will: Some(will("lost", "gone")), ..connect(version, "lost") };
        let mut peer = Peer::connected(&scene.broker, lost).await;
        peer.subscribe("flood", QOS0).await;
        let mut publisher = Peer::clean(&scene.broker, V5, "").await;
        for _ in 0..400 {
            publisher.say("flood", QOS0, &"x".repeat(50_000)).await;
        }
        publisher.nothing_came().await;
        assert_eq!(text(&watch.receive().await), "gone");
        drop(peer);
    }
    scene.holds(64).await;
}

#[tokio::test]
async fn who_goes_half_way_is_let_go() {
    // It closes its side and reads on: an end as any other, with its will.
    let mut scene = Scene::new().await;
    let mut watch = Peer::subscribed(&scene.broker, V5, "half", QOS0).await;
    for version in BOTH {
        let half = Connect { will: Some(will("half", "gone")), ..connect(version, "half") };
        let mut peer = Peer::connected(&scene.broker, half).await;
        peer.stream.shutdown().await.unwrap();
        assert_eq!(text(&watch.receive().await), "gone");
        assert_eq!(peer.next_or_end().await, None);
    }
    scene.holds(32).await;
}
