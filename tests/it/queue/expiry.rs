//! Queues that are deleted when nobody uses them.

use stafett::grpc::proto::v1;
use tonic::Code;

use super::streams::{Consumer, opening};
use super::{Queues, got, message, named, refused, seconds};
use crate::harness::Broker;
use crate::mqtt::{Peer, QOS1, V311};

fn expires(name: &str) -> v1::Queue {
    v1::Queue { expires_after: seconds(1), ..named(name) }
}

async fn names(queues: &mut Queues) -> Vec<String> {
    let listed = got(queues.0.list_queues(v1::ListQueuesRequest::default())).await.queues;
    listed.into_iter().map(|queue| queue.name).collect()
}

#[tokio::test]
async fn a_queue_that_nobody_uses_is_deleted_for_good() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    for name in ["consumed", "leased", "grave", "subscribed", "enqueued", "received"] {
        queues.create(expires(name)).await;
    }
    queues.create(v1::Queue { dead_letter_queue: "grave".to_owned(), ..named("kept") }).await;
    let _consumer = Consumer::open(&mut queues, opening("consumed", 1)).await;
    let _subscriber = Peer::subscribed(&broker, V311, "$queue/subscribed", QOS1).await;
    queues.fill("leased", &["held"]).await;
    queues.one("leased").await;
    // What lies there is no use, and comes later than the others.
    queues.create(expires("unused")).await;
    queues.fill("unused", &["forgotten"]).await;
    while names(&mut queues).await.contains(&"unused".to_owned()) {
        queues.enqueue("enqueued", message("x")).await;
        assert!(queues.is_empty("received").await);
    }
    broker.counts("queues_expired_total", 1).await;
    let left = ["consumed", "enqueued", "grave", "kept", "leased", "received", "subscribed"];
    assert_eq!(names(&mut queues).await, left);
    let enqueue = v1::EnqueueRequest { queue: "unused".to_owned(), message: Some(message("late")) };
    assert_eq!(refused(queues.0.enqueue(enqueue)).await.code(), Code::NotFound);

    // It stays deleted, and another of its name is another.
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    assert!(!names(&mut queues).await.contains(&"unused".to_owned()));
    queues.create(named("unused")).await;
    assert!(queues.is_empty("unused").await);
    // Nobody uses the others any more, but for the dead letter queue.
    broker.counts("queues_expired_total", 5).await;
    assert_eq!(names(&mut queues).await, ["grave", "kept", "unused"]);
    // Neither is it used when that is over, and what is changed to stay stays.
    let update = v1::UpdateQueueRequest {
        queue: Some(named("kept")),
        update_mask: Some(prost_types::FieldMask { paths: vec!["dead_letter_queue".to_owned()] }),
    };
    got(queues.0.update_queue(update)).await;
    broker.counts("queues_expired_total", 6).await;
    assert_eq!(names(&mut queues).await, ["kept", "unused"]);
}
