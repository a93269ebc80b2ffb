//! Broken bytes: no panic, and never more held than the limits say.

use bytes::BytesMut;
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};

use super::{super::*, encoded, packets};

const LIMITS: Limits = Limits {
    max_packet_size: 512,
    max_user_properties: 4,
    max_subscription_ids: 4,
    max_filters_per_packet: 4,
};

/// xorshift64*, seeded: a failure is the same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0x26, 0x0b, 0x23];
        let at = self.below(bytes.len());
        match self.below(6) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = TELLING[self.below(TELLING.len())],
            2 => bytes.truncate(at.max(1)),
            3 => bytes.insert(at, TELLING[self.below(TELLING.len())]),
            4 => {
                let end = at + self.below(bytes.len() - at);
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                bytes.remove(at);
                bytes.push(0);
            }
        }
    }
}

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
    let mut random = Random(0x5eed);
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
    let mut random = Random(0xb17e5);
    for _ in 0..100_000 {
        let data: Vec<u8> = (0..random.below(40)).map(|_| random.below(256) as u8).collect();
        fuzz_decode(&data);
    }
}
