//! What clients left with a broker, over both doors, goes on in another data directory: of lines, of rows, as a backup.

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::admin_service_client::AdminServiceClient;
use stafett::mqtt::codec::{Packet, Publish as Published};

use super::backup::{back_up, broker};
use super::care::import;
use super::*;
use crate::call::{Calls, Serving, named as responder, text};
use crate::mqtt::{Peer, QOS1, QOS2, V5, ack, connect, id, kept, publish as packet, text as said};
use crate::queue::placing::reading;
use crate::queue::{Queues, got, message as text_of, named, payloads, seconds, tokens};
use crate::streams::{Logs, named as stream};

const DAY: i64 = 86_400;
/// Enough for several rows.
const BATCH: usize = 40;

fn keyed(key: &str, payload: &str) -> v1::Message {
    v1::Message { ordering_key: key.to_owned(), ..text_of(payload) }
}

fn known(id: &str, payload: &str) -> v1::Message {
    v1::Message { dedup_id: id.to_owned(), ..text_of(payload) }
}

fn of_batch(n: usize) -> String {
    format!("{n} ").repeat(400)
}

/// What the answers were, to compare with.
struct Left {
    first: v1::EnqueueResponse,
    records: Vec<(u64, String)>,
    waiting: String,
    answered: String,
    /// The packet ids of a delivery that was received and of one that was not.
    packet_ids: [u16; 2],
}

impl Calls {
    async fn leave(&self, payload: &str) -> String {
        let call = v1::CallAsyncRequest {
            service: "s".to_owned(),
            request: Some(text_of(payload)),
            timeout: seconds(DAY),
            ..Default::default()
        };
        got(self.0.clone().call_async(call)).await.request_id
    }

    async fn came(&self, request_id: &str) -> String {
        let request = v1::AwaitReplyRequest { request_id: request_id.to_owned(), wait: seconds(20) };
        text(got(self.0.clone().await_reply(request)).await.reply.unwrap().message.as_ref())
    }
}

async fn leave(broker: &Broker) -> Left {
    let mut queues = Queues::of(broker).await;
    for queue in [
        v1::Queue { ordered_by_key: true, ..named("keys") },
        v1::Queue { dedup_window: seconds(DAY), ..named("ids") },
        v1::Queue { last_value_key: "sensor".to_owned(), ..named("last") },
        named("batch"),
        v1::Queue { bindings: vec!["work/#".to_owned()], ..named("inbound") },
    ] {
        queues.create(queue).await;
    }
    // The first of `a` was tried in vain and rests; what came behind it waits for it.
    for (key, payload) in [("a", "a1"), ("a", "a2"), ("b", "b1")] {
        queues.enqueue("keys", keyed(key, payload)).await;
    }
    let first = queues.one("keys").await;
    let nack = v1::NackRequest {
        queue: "keys".to_owned(),
        lease_tokens: vec![first.lease_token],
        kind: v1::NackKind::Failed.into(),
        delay: seconds(3600),
        ..Default::default()
    };
    assert_eq!(got(queues.0.nack(nack)).await.failures, []);
    for (sensor, payload) in [("a", "a1"), ("b", "b1")] {
        queues.enqueue("last", reading(sensor, payload)).await;
    }
    let first = queues.enqueue("ids", known("i1", "once")).await;
    queues.enqueue("ids", known("i2", "gone")).await;
    let gone = tokens(&queues.receive("ids", 2).await).remove(1);
    assert_eq!(queues.acknowledge("ids", vec![gone]).await, []);
    let messages = (0..BATCH).map(|n| text_of(&of_batch(n))).collect();
    let batch = v1::EnqueueBatchRequest { queue: "batch".to_owned(), messages, atomic: true };
    got(queues.0.enqueue_batch(batch)).await;

    let mut logs = Logs::of(broker).await;
    logs.create(stream("s", &["t/#"])).await;
    logs.count("t/1", 0..20).await;
    logs.commit("reader", 12, false).await;

    let mut peer = Peer::clean(broker, V5, "values").await;
    peer.say_retained("state/1", QOS1, "on").await;
    // Its session is in the midst of one that it received and of one that it did not.
    let mut phone = Peer::connected(broker, kept(V5, "phone")).await;
    phone.subscribe("to/phone", QOS2).await;
    for payload in ["received", "sent"] {
        peer.say("to/phone", QOS2, payload).await;
    }
    let (received, sent) = (phone.publish().await, phone.publish().await);
    let packet_ids = [&received, &sent].map(|it| it.packet_id.unwrap().get());
    phone.send(Packet::PubRec(ack(packet_ids[0]))).await;
    assert_eq!(phone.next().await, Packet::PubRel(ack(packet_ids[0])));
    phone.vanish();
    // Another one was told that its publish is stored, and does not know yet whether it may forget it.
    let mut meter = Peer::connected(broker, kept(V5, "meter")).await;
    meter.send(Packet::Publish(packet("work/1", QOS2, 77, "reading"))).await;
    assert_eq!(meter.next().await, Packet::PubRec(ack(77)));
    meter.vanish();

    let calls = Calls::of(broker).await;
    let answered = calls.leave("8").await;
    let mut serving = Serving::open(&calls, responder("s", "one", 1)).await;
    let asked = serving.one().await;
    serving.reply(vec![crate::call::reply(asked.request_id, "64")]).await;
    assert_eq!(calls.came(&answered).await, "64");
    drop(serving);
    broker.counts("services", 0).await;
    let waiting = calls.leave("7").await;
    Left { first, records: logs.all().await, waiting, answered, packet_ids }
}

/// Goes on where `leave` was.
async fn go_on(broker: &Broker, left: &Left, what: &str, has_gone: bool) {
    let mut queues = Queues::of(broker).await;
    let b = queues.receive("keys", 10).await;
    assert_eq!(payloads(&b), ["b1"], "{what}");
    queues.acknowledge("keys", tokens(&b)).await;
    assert!(queues.is_empty("keys").await, "{what}: a2 went before a1");
    let stats = queues.stats("keys").await;
    assert_eq!((stats.ready + stats.delayed, stats.delayed), (2, 1), "{what}: {stats:?}");
    queues.enqueue("last", reading("a", "a2")).await;
    assert_eq!(payloads(&queues.receive("last", 10).await), ["b1", "a2"], "{what}: not the last values");
    let again = queues.enqueue("ids", known("i1", "twice")).await;
    assert_eq!(again, v1::EnqueueResponse { duplicate: true, ..left.first.clone() }, "{what}");
    assert_eq!(queues.enqueue("ids", known("i2", "new")).await.duplicate, has_gone, "{what}");
    let mut batch = Vec::new();
    while batch.len() < BATCH {
        let some = queues.receive("batch", 100).await;
        assert!(!some.is_empty(), "{what}: {} of a batch", batch.len());
        batch.extend(payloads(&some));
    }
    assert!(batch.into_iter().eq((0..BATCH).map(of_batch)), "{what}: the batch is not whole");

    let mut logs = Logs::of(broker).await;
    assert_eq!(logs.all().await, left.records, "{what}");
    assert_eq!(logs.cursors().await, [("reader".to_owned(), 12, 8, 0)], "{what}");
    logs.count("t/1", 20..21).await;
    assert_eq!(logs.all().await.last(), Some(&(21, "20".to_owned())), "{what}");

    let mut peer = Peer::connected(broker, connect(V5, "values")).await;
    peer.subscribe("state/#", QOS1).await;
    assert_eq!(said(&peer.receive().await), "on", "{what}");
    let (mut phone, connack) = Peer::greet(broker, kept(V5, "phone")).await;
    assert!(connack.session_present, "{what}");
    let [received, sent] = left.packet_ids;
    // One is released, the other one comes again.
    let mut again = None;
    let mut released = false;
    while again.is_none() || !released {
        match phone.next().await {
            Packet::PubRel(it) if it == ack(received) => {
                phone.send(Packet::PubComp(it)).await;
                released = true;
            }
            Packet::Publish(it) => again = Some(it),
            other => panic!("{what}: {other:?}"),
        }
    }
    let again = again.unwrap();
    assert_eq!((said(&again), again.packet_id, again.dup), ("sent", Some(id(sent)), true), "{what}");
    phone.send(Packet::PubRec(ack(sent))).await;
    assert_eq!(phone.next().await, Packet::PubRel(ack(sent)), "{what}");
    phone.send(Packet::PubComp(ack(sent))).await;
    peer.say("to/phone", QOS2, "new").await;
    assert_eq!(said(&phone.receive().await), "new", "{what}");
    let mut meter = Peer::connected(broker, kept(V5, "meter")).await;
    let again = Published { dup: true, ..packet("work/1", QOS2, 77, "reading") };
    meter.send(Packet::Publish(again)).await;
    assert!(matches!(meter.next().await, Packet::PubRec(it) if it.packet_id.get() == 77), "{what}");
    meter.send(Packet::PubRel(ack(77))).await;
    assert_eq!(meter.next().await, Packet::PubComp(ack(77)), "{what}");
    assert_eq!(payloads(&queues.receive("inbound", 10).await), ["reading"], "{what}");

    let calls = Calls::of(broker).await;
    assert_eq!(calls.came(&left.answered).await, "64", "{what}");
    let mut serving = Serving::open(&calls, responder("s", "two", 1)).await;
    let asked = serving.one().await;
    assert_eq!(text(asked.message.as_ref()), "7", "{what}");
    serving.reply(vec![crate::call::reply(asked.request_id, "49")]).await;
    assert_eq!(calls.came(&left.waiting).await, "49", "{what}");
}

#[tokio::test]
async fn all_that_clients_left_goes_on_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let first = broker(&at("data"), &at("backups")).await;
    let left = leave(&first).await;
    let mut admin = AdminServiceClient::new(first.grpc().await);
    let backup = back_up(&mut admin, "b").await.unwrap().path;
    first.kill9().await;
    fs::write(at("lines"), super::care::export(&at("data")).await).unwrap();
    for (from, to) in [(at("lines"), "of-lines"), (at("data"), "of-rows"), (at("backups/b"), "of-backup")] {
        let ended = import(&from, &at(to), &[]).await;
        assert_eq!(ended.code, Some(0), "{to}: {}", ended.stderr);
    }
    for what in ["of-lines", "of-rows", "of-backup", &backup] {
        let second = Broker::try_start(&at(what), &[], &[]).await;
        let second = second.unwrap_or_else(|ended| panic!("{what}: {}", ended.stderr));
        // Lines know of no message that is gone.
        go_on(&second, &left, what, what != "of-lines").await;
        second.kill9().await;
        let ended = store("check", &at(what), &[]).await;
        assert_eq!(ended.code, Some(0), "{what}: {}{}", ended.stdout, ended.stderr);
    }
}
