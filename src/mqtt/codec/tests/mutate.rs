//! Broken bytes: no panic, and never more held than the limits say.

use bytes::BytesMut;
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};

use super::{super::*, encoded, packets};
use crate::mqtt::codec::fuzz::Mutator;

const LIMITS: Limits = Limits {
    max_packet_size: 512,
    max_user_properties: 4,
    max_subscription_ids: 4,
    max_filters_per_packet: 4,
};

/// Every list a packet holds, as its capacity.
fn capacities(packet: &Packet) -> Vec<usize> {
    match packet {
        Packet::Connect(packet) => {
            let will = packet.will.as_ref().map_or(0, |will| will.properties.user_properties.capacity());
            vec![packet.properties.user_properties.capacity(), will]
        }
        Packet::ConnAck(packet) => vec![packet.properties.user_properties.capacity()],
        Packet::Publish(packet) => packet
            .properties
            .as_ref()
            .map_or(vec![], |set| vec![set.user_properties.capacity(), set.subscription_ids.capacity()]),
        Packet::PubAck(Ack { properties, .. })
        | Packet::PubRec(Ack { properties, .. })
        | Packet::PubRel(Ack { properties, .. })
        | Packet::PubComp(Ack { properties, .. }) => {
            properties.iter().map(|set| set.user_properties.capacity()).collect()
        }
        Packet::Subscribe(packet) => {
            let users = packet.properties.as_ref().map_or(0, |set| set.user_properties.capacity());
            vec![packet.filters.capacity(), users]
        }
        Packet::Unsubscribe(packet) => {
            let users = packet.properties.as_ref().map_or(0, |set| set.user_properties.capacity());
            vec![packet.filters.capacity(), users]
        }
        // Eight codes are held in place.
        Packet::SubAck(SubAck { properties, codes, .. })
        | Packet::UnsubAck(UnsubAck { properties, codes, .. }) => {
            let users = properties.as_ref().map_or(0, |set| set.user_properties.capacity());
            vec![codes.len(), users]
        }
        Packet::PingReq | Packet::PingResp => vec![],
        Packet::Disconnect(packet) => {
            packet.properties.iter().map(|set| set.user_properties.capacity()).collect()
        }
        Packet::Auth(packet) => packet.properties.iter().map(|set| set.user_properties.capacity()).collect(),
    }
}

#[test]
fn mutated_packets_neither_panic_nor_exceed_the_limits() {
    let mut runner = TestRunner::deterministic();
    let mut corpus = Vec::new();
    for version in [Version::V311, Version::V5] {
        for _ in 0..400 {
            let packet = packets::packet(version).new_tree(&mut runner).expect("a packet").current();
            let choice = match (&packet, version) {
                (Packet::Connect(_), _) => 0,
                (_, Version::V311) => 1,
                (_, Version::V5) => 2,
            };
            let mut data = vec![choice];
            data.extend(encoded(&packet, version));
            corpus.push(data);
        }
    }
    let mut random = Mutator::seeded(0x5eed);
    let mut decoded = 0;
    for round in 0..100_000 {
        let mut data = corpus[round % corpus.len()].clone();
        for _ in 0..random.below(4) {
            random.mutate(&mut data);
        }
        fuzz_decode(&data);
        let mut decoder = match data[0] % 3 {
            0 => Decoder::server(LIMITS),
            1 => Decoder::established(Version::V311, LIMITS),
            _ => Decoder::established(Version::V5, LIMITS),
        };
        if let Ok(Some(packet)) = decoder.decode(&mut BytesMut::from(&data[1..])) {
            decoded += 1;
            assert!(capacities(&packet).iter().all(|capacity| *capacity <= 4), "{packet:?}");
        }
    }
    // Were nearly all refused, the test would say little about what is accepted.
    assert!(decoded > 20_000, "{decoded}");
}

#[test]
fn random_bytes_do_not_panic() {
    let mut random = Mutator::seeded(0xb17e5);
    for _ in 0..100_000 {
        let data: Vec<u8> = (0..random.below(40)).map(|_| random.below(256) as u8).collect();
        fuzz_decode(&data);
    }
}
