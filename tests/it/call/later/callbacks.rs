//! Replies that go to a topic or a queue.

use super::*;
use crate::pubsub::Topics;
use crate::queue::{self, Queues, payloads};

/// The id that a reply names, as a publish to an MQTT client has it.
fn id_of(publish: &stafett::mqtt::codec::Publish) -> String {
    String::from_utf8(properties_of(publish).correlation_data.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn a_reply_goes_to_a_topic() {
    let broker = Broker::start().await;
    let (calls, mut topics) = (Calls::of(&broker).await, Topics::of(&broker).await);
    let mut listening = topics.subscribe(&["replies/#"]).await;
    let mut old = Peer::subscribed(&broker, V311, "replies/+", QOS1).await;
    let mut device = Peer::subscribed(&broker, V5, "replies/+", QOS1).await;
    Serving::open(&calls, named("s", "one", 0)).await.echo();
    let id = calls.store(to_topic("replies/s", later("s", "7"))).await;
    let heard = listening.deliveries(1).await.remove(0).message.unwrap();
    assert_eq!((&*heard.topic, text(Some(&heard))), ("replies/s", "7 by one".to_owned()));
    assert_eq!(heard.correlation_data, id.as_bytes());
    assert_eq!(old.receive().await.payload, "7 by one");
    assert_eq!(id_of(&device.receive().await), id);
    calls.forgets(&id).await;
    broker.counts("async_reply_bytes", 0).await;

    let late = v1::CallAsyncRequest { timeout: millis(1), ..later("nobody", "") };
    let id = calls.store(to_topic("replies/late", late)).await;
    let heard = device.receive().await;
    let error = properties_of(&heard).user_properties.remove(0);
    assert_eq!((&*error.0, &*error.1), ("stafett-error", "DEADLINE_EXCEEDED"));
    assert_eq!(id_of(&heard), id);
    broker.counts("messages_stored", 0).await;
}

#[tokio::test]
async fn a_reply_goes_to_a_queue() {
    let (broker, mut queues) = Queues::start().await;
    let calls = Calls::of(&broker).await;
    Serving::open(&calls, named("s", "one", 0)).await.echo();
    let id = calls.store(to_queue("q", later("s", "7"))).await;
    let leased = queues.one("q").await;
    assert_eq!(payloads(std::slice::from_ref(&leased)), ["7 by one"]);
    let said = leased.message.unwrap();
    assert_eq!((&*said.topic, said.correlation_data), ("$queue/q", id.clone().into()));
    queues.acknowledge("q", vec![leased.lease_token]).await;
    calls.forgets(&id).await;
    for version in [V5, V311] {
        let id = calls.store(to_queue("q", later("s", "8"))).await;
        let mut consumer = Peer::subscribed(&broker, version, "$queue/q", QOS1).await;
        let heard = consumer.receive().await;
        assert_eq!(heard.payload, "8 by one");
        assert!(version == V311 || id_of(&heard) == id);
        consumer.leave().await;
    }
    broker.counts("messages_stored", 0).await;
    broker.counts("async_calls", 0).await;
}

#[tokio::test]
async fn a_reply_that_cannot_go_there_is_kept() {
    let broker = Broker::start().await;
    let (calls, mut queues) = (Calls::of(&broker).await, Queues::of(&broker).await);
    for (name, bound) in [("small", "bound"), ("other", "free")] {
        let bindings = vec![bound.to_owned()];
        queues.create(v1::Queue { max_messages: 1, bindings, ..queue::named(name) }).await;
    }
    queues.fill("small", &["there"]).await;
    let full = calls.store(to_queue("small", later("s", "full"))).await;
    let gone = calls.store(to_queue("other", later("s", "gone"))).await;
    // A publish that a full queue takes is refused whole.
    let refused = calls.store(to_topic("bound", later("s", "refused"))).await;
    let delete = v1::DeleteQueueRequest { name: "other".to_owned(), only_if_empty: false };
    got(queues.0.delete_queue(delete)).await;
    Serving::open(&calls, named("s", "one", 0)).await.echo();
    for (id, said) in [(full, "full by one"), (gone, "gone by one"), (refused, "refused by one")] {
        assert_eq!(calls.said(&id).await, said);
    }
    assert_eq!(queues.stats("small").await.ready, 1);
    broker.counts("async_replies_diverted_total", 3).await;
}

#[tokio::test]
async fn a_full_queue_that_lets_its_oldest_go_does_so_for_a_reply() {
    let broker = Broker::start().await;
    let (calls, mut queues) = (Calls::of(&broker).await, Queues::of(&broker).await);
    queues.create(queue::named("dead")).await;
    let full = |name, overflow: v1::OverflowPolicy| v1::Queue {
        max_messages: 2,
        overflow: overflow.into(),
        dead_letter_queue: "dead".to_owned(),
        ..queue::named(name)
    };
    queues.create(full("drops", v1::OverflowPolicy::DropOldest)).await;
    queues.create(full("buries", v1::OverflowPolicy::DeadLetter)).await;
    Serving::open(&calls, named("s", "one", 0)).await.echo();
    for name in ["drops", "buries"] {
        queues.fill(name, &["1", "2"]).await;
        calls.store(to_queue(name, later("s", "3"))).await;
        broker.counts("async_calls", 0).await;
        let left = [queues.one(name).await, queues.one(name).await];
        assert_eq!(payloads(&left[..1]), ["2"]);
        assert_eq!(payloads(&left[1..]), ["3 by one"]);
    }
    assert_eq!(payloads(&[queues.one("dead").await]), ["1"]);
    assert_eq!(queues.stats("drops").await.dropped_total, 1);
    broker.counts("async_replies_diverted_total", 0).await;
}

#[tokio::test]
async fn a_queue_gives_its_replies_its_time_to_live() {
    let broker = Broker::start().await;
    let (calls, mut queues) = (Calls::of(&broker).await, Queues::of(&broker).await);
    queues.create(v1::Queue { default_ttl: seconds(60), ..queue::named("q") }).await;
    Serving::open(&calls, opening("s")).await.echo();
    calls.store(to_queue("q", later("s", ""))).await;
    assert!(queues.one("q").await.message.unwrap().ttl.is_some());
}
