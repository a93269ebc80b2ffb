//! The MQTT codec on its hottest packet: a PUBLISH of 100 bytes, a thousand per read.
#![allow(clippy::expect_used, reason = "a benchmark of what fails says nothing")]

use std::{hint::black_box, num::NonZeroU16};

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use stafett::mqtt::codec::{Decoder, Limits, Packet, PublishRef, Qos, Version};

const PACKETS: usize = 1_000;
const TOPIC: &str = "plant/hall-3/line/7/temperature";

fn publish(qos: Qos) -> PublishRef<'static> {
    let packet_id = (qos != Qos::AtMostOnce).then_some(NonZeroU16::MAX);
    PublishRef { qos, packet_id, topic: TOPIC, payload: &[0x5a; 100], ..PublishRef::default() }
}

fn codec(c: &mut Criterion) {
    for version in [Version::V311, Version::V5] {
        for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
            let mut group = c.benchmark_group(format!("publish 100 B {version:?} QoS {}", qos as u8));
            group.throughput(Throughput::Elements(PACKETS as u64));
            let publish = publish(qos);
            let mut wire = BytesMut::new();
            for _ in 0..PACKETS {
                publish.encode(version, &mut wire).expect("valid");
            }
            group.bench_function("decode", |b| {
                b.iter_batched_ref(
                    || (Decoder::established(version, Limits::default()), BytesMut::from(&wire[..])),
                    |(decoder, buf)| {
                        let mut payload_bytes = 0;
                        while let Some(Packet::Publish(publish)) = decoder.decode(buf).expect("valid") {
                            payload_bytes += black_box(publish).payload.len();
                        }
                        payload_bytes
                    },
                    BatchSize::SmallInput,
                );
            });
            let mut out = BytesMut::with_capacity(wire.len());
            group.bench_function("encode", |b| {
                b.iter(|| {
                    out.clear();
                    for _ in 0..PACKETS {
                        black_box(&publish).encode(version, &mut out).expect("valid");
                    }
                    out.len()
                });
            });
            group.finish();
        }
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
