//! What a publish at QoS 0 costs in the core, from the batch of one read to the last outbox.
//!
//! `cargo bench --bench fanout`: time per batch of 64 messages of 64 bytes, for so many subscribers.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use stafett::core::{Broker, CloseReason, Inbound, Limits, Offer, OpenSession, Outbox, PublisherInfo};
use stafett::engine::SubscribeOptions;
use stafett::engine::embedded::Embedded;
use stafett::engine::settings::EngineSettings;
use stafett::types::{Message, MessageId, Qos, TopicName};

const BATCH: usize = 64;

#[derive(Default)]
struct Count(AtomicU64);

impl Outbox for Count {
    fn offer(&self, deliveries: &[Offer<'_>]) -> usize {
        let bytes: usize = deliveries.iter().map(|offer| offer.message.payload.len()).sum();
        self.0.fetch_add(black_box(bytes) as u64, Ordering::Relaxed);
        0
    }

    fn close(&self, _reason: CloseReason) {}
}

fn message(topic: &TopicName, payload: &Bytes) -> Inbound {
    let message = Message {
        id: MessageId::from_u128(0),
        topic: topic.clone(),
        payload: payload.clone(),
        qos: Qos::AtMostOnce,
        retain: false,
        expires_at: None,
        extras: None,
    };
    Inbound { receipt: false, ..Inbound::new(message, 0) }
}

fn fan_out(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let dir = tempfile::tempdir().unwrap();
    let settings =
        EngineSettings { data_dir: dir.path().to_owned(), ballast_bytes: 0, ..EngineSettings::default() };
    let engine = Arc::new(Embedded::open(settings).unwrap());
    let broker = runtime.block_on(Broker::open(engine, Limits::default())).unwrap();
    let mut group = c.benchmark_group("fanout");
    for (name, subscribers, topics) in [
        ("1 subscriber", 1, 1),
        ("10 subscribers", 10, 1),
        ("10 subscribers, 8 topics", 10, 8),
        ("1000 subscribers", 1000, 1),
    ] {
        let mut sessions = Vec::new();
        for _ in 0..subscribers {
            let open = OpenSession {
                client_id: None,
                clean_start: true,
                expiry: Duration::ZERO,
                principal: Default::default(),
                outbox: Arc::new(Count::default()),
                will: None,
            };
            let session = runtime.block_on(broker.open_session(open)).unwrap().session;
            let filter = ("bench/+".parse().unwrap(), SubscribeOptions::default());
            runtime.block_on(session.subscribe(vec![filter])).remove(0).unwrap();
            sessions.push(session);
        }
        let mut publisher = broker.publisher(PublisherInfo::default());
        let names: Vec<TopicName> = (0..topics).map(|n| format!("bench/{n}").parse().unwrap()).collect();
        let payload = Bytes::from(vec![0; 64]);
        let batch: Vec<_> = (0..BATCH).map(|n| message(&names[n % topics], &payload)).collect();
        group.throughput(Throughput::Elements((BATCH * subscribers) as u64));
        group.bench_function(name, |b| {
            b.iter_batched(|| batch.clone(), |batch| publisher.publish(batch), BatchSize::SmallInput)
        });
    }
    group.finish();
}

criterion_group!(benches, fan_out);
criterion_main!(benches);
