//! Making, changing and deleting queues.

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::pub_sub_service_client::PubSubServiceClient;
use tonic::Code;
use tonic_types::StatusExt;

use super::{Queues, field, got, message, millis, named, payloads, reason, refused, seconds};
use crate::harness::Broker;

fn create(queue: v1::Queue, if_not_exists: bool) -> v1::CreateQueueRequest {
    v1::CreateQueueRequest { queue: Some(queue), if_not_exists }
}

fn update(queue: v1::Queue, paths: &[&str]) -> v1::UpdateQueueRequest {
    let paths = paths.iter().map(|&path| path.to_owned()).collect();
    v1::UpdateQueueRequest { queue: Some(queue), update_mask: Some(prost_types::FieldMask { paths }) }
}

fn delete(name: &str, only_if_empty: bool) -> v1::DeleteQueueRequest {
    v1::DeleteQueueRequest { name: name.to_owned(), only_if_empty }
}

#[tokio::test]
async fn a_queue_is_made_once() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    let asked = v1::Queue { lease: seconds(10), bindings: vec!["a/+".to_owned()], ..named("orders") };
    let made = queues.create(asked.clone()).await;
    assert_eq!((made.lease, made.max_messages), (seconds(10), 10_000_000));

    let get = v1::GetQueueRequest { name: "orders".to_owned() };
    assert_eq!(got(queues.0.get_queue(get)).await.queue, Some(made.clone()));
    let again = got(queues.0.create_queue(create(asked.clone(), true))).await.queue;
    assert_eq!(again, Some(made));
    assert_eq!(refused(queues.0.create_queue(create(asked, false))).await.code(), Code::AlreadyExists);

    let other = v1::Queue { lease: seconds(20), expires_after: seconds(3600), ..named("orders") };
    let status = refused(queues.0.create_queue(create(other, true))).await;
    assert_eq!(status.code(), Code::AlreadyExists);
    let told = "with other settings: bindings is a/+, asked was none, lease is 10s, asked was 20s, \
                expires_after is none, asked was 3600s";
    assert!(status.message().ends_with(told), "{}", status.message());
}

#[tokio::test]
async fn a_wrong_definition_names_the_field() {
    let (_broker, mut queues) = Queues::start().await;
    let labels = [("k".repeat(257), String::new())].into();
    for (queue, wrong) in [
        (named(""), "queue.name"),
        (named("a b"), "queue.name"),
        (named("a/b"), "queue.name"),
        (v1::Queue { lease: seconds(0), ..named("x") }, "queue.lease"),
        (v1::Queue { lease: seconds(-1), ..named("x") }, "queue.lease"),
        (v1::Queue { lease: seconds(43_201), ..named("x") }, "queue.lease"),
        (v1::Queue { default_ttl: seconds(0), ..named("x") }, "queue.default_ttl"),
        (v1::Queue { dedup_window: millis(999), ..named("x") }, "queue.dedup_window"),
        (v1::Queue { dedup_window: seconds(7 * 86_400 + 1), ..named("x") }, "queue.dedup_window"),
        (v1::Queue { max_deliveries: 3, ..named("x") }, "queue.max_deliveries"),
        (v1::Queue { dead_letter_queue: "x".to_owned(), ..named("x") }, "queue.dead_letter_queue"),
        (v1::Queue { retry_min_backoff: seconds(43_201), ..named("x") }, "queue.retry_min_backoff"),
        (v1::Queue { retry_min_backoff: seconds(0), ..named("x") }, "queue.retry_min_backoff"),
        (v1::Queue { retry_max_backoff: seconds(1), ..named("x") }, "queue.retry_max_backoff"),
        (
            v1::Queue { retry_min_backoff: seconds(2), retry_max_backoff: seconds(1), ..named("x") },
            "queue.retry_max_backoff",
        ),
        (v1::Queue { expires_after: millis(999), ..named("x") }, "queue.expires_after"),
        (v1::Queue { expires_after: seconds(366 * 86_400), ..named("x") }, "queue.expires_after"),
        (v1::Queue { overflow: 9, ..named("x") }, "queue.overflow"),
        (v1::Queue { overflow: v1::OverflowPolicy::DeadLetter.into(), ..named("x") }, "queue.overflow"),
        (v1::Queue { dead_letter_expired: true, ..named("x") }, "queue.dead_letter_expired"),
        (v1::Queue { bindings: vec!["a".to_owned(), "a/#/b".to_owned()], ..named("x") }, "queue.bindings[1]"),
        (v1::Queue { bindings: vec!["$queue/q".to_owned()], ..named("x") }, "queue.bindings[0]"),
        (v1::Queue { labels, ..named("x") }, &format!("queue.labels[{:?}]", "k".repeat(257))),
    ] {
        let status = refused(queues.0.create_queue(create(queue, false))).await;
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, wrong), "{status:?}");
    }
    let lost = v1::Queue { dead_letter_queue: "nowhere".to_owned(), ..named("x") };
    let status = refused(queues.0.create_queue(create(lost, false))).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(reason(&status.get_error_details()), "DEAD_LETTER_QUEUE_MISSING");
    assert!(status.message().contains("nowhere"), "{}", status.message());
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names() {
    let (_broker, mut queues) = Queues::start().await;
    queues.create(named("dead")).await;
    let change = v1::Queue { lease: seconds(5), max_messages: 7, ..named("q") };
    let changed = got(queues.0.update_queue(update(change.clone(), &["lease"]))).await.queue.unwrap();
    assert_eq!((changed.lease, changed.max_messages), (seconds(5), 10_000_000));
    let changed = got(queues.0.update_queue(update(change, &["max_messages"]))).await.queue.unwrap();
    assert_eq!((changed.lease, changed.max_messages), (seconds(5), 7));

    let status = refused(queues.0.update_queue(update(named("q"), &["name"]))).await;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "update_mask"));
    let status = refused(queues.0.update_queue(update(named("nobody"), &["lease"]))).await;
    assert_eq!(status.code(), Code::NotFound);
    let levels = v1::Queue { priorities: true, ..named("q") };
    let status = refused(queues.0.update_queue(update(levels, &["priorities"]))).await;
    assert_eq!(reason(&status.get_error_details()), "QUEUE_PRIORITIES_FIXED");
    let ordered = v1::Queue { ordered_by_key: true, ..named("q") };
    let status = refused(queues.0.update_queue(update(ordered, &["ordered_by_key"]))).await;
    assert_eq!(reason(&status.get_error_details()), "QUEUE_ORDER_FIXED");

    // What is given up must not come back.
    let first = v1::Queue { dead_letter_queue: "dead".to_owned(), ..named("q") };
    got(queues.0.update_queue(update(first, &["dead_letter_queue"]))).await;
    let round = v1::Queue { dead_letter_queue: "q".to_owned(), ..named("dead") };
    let status = refused(queues.0.update_queue(update(round, &["dead_letter_queue"]))).await;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "queue.dead_letter_queue"));
}

#[tokio::test]
async fn bindings_come_and_go() {
    let (_broker, mut queues) = Queues::start().await;
    let add = |filters: &[&str]| v1::AddBindingsRequest {
        queue: "q".to_owned(),
        filters: filters.iter().map(|&filter| filter.to_owned()).collect(),
    };
    got(queues.0.add_bindings(add(&["a/#", "b"]))).await;
    let now = got(queues.0.add_bindings(add(&["b", "c/+"]))).await.queue.unwrap();
    assert_eq!(now.bindings, ["a/#", "b", "c/+"]);
    let status = refused(queues.0.add_bindings(add(&["d", "d/#/e"]))).await;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "filters[1]"));
    assert_eq!(refused(queues.0.add_bindings(add(&[]))).await.code(), Code::InvalidArgument);

    let filters = vec!["a/#".to_owned(), "never".to_owned()];
    let remove = v1::RemoveBindingsRequest { queue: "q".to_owned(), filters };
    let now = got(queues.0.remove_bindings(remove)).await.queue.unwrap();
    assert_eq!(now.bindings, ["b", "c/+"]);
}

#[tokio::test]
async fn a_bound_queue_gets_what_is_published() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    let bound = v1::Queue {
        bindings: vec!["shop/+/order".to_owned(), "shop/#".to_owned()],
        default_ttl: seconds(60),
        max_messages: 2,
        ..named("orders")
    };
    queues.create(bound).await;
    let mut topics = PubSubServiceClient::new(broker.grpc().await);
    let publish = |topic: &str, payload: &str| v1::PublishRequest {
        message: Some(v1::Message { topic: topic.to_owned(), ..message(payload) }),
    };
    // Two bindings match; there is one copy.
    let first = got(topics.publish(publish("shop/1/order", "1"))).await;
    assert_eq!((first.matched_queues, first.matched_subscribers), (1, 0));
    assert_eq!(got(topics.publish(publish("other", "x"))).await.matched_queues, 0);
    let leased = queues.one("orders").await;
    let stored = leased.message.as_ref().unwrap();
    assert_eq!(stored.topic, "shop/1/order");
    assert!((58..=60).contains(&stored.ttl.unwrap().seconds), "{:?}", stored.ttl);
    assert_eq!(leased.origin.as_ref().unwrap().message_id, first.message_id);

    got(topics.publish(publish("shop/2/order", "2"))).await;
    let status = refused(topics.publish(publish("shop/3/order", "3"))).await;
    assert_eq!((status.code(), reason(&status.get_error_details())), (Code::ResourceExhausted, "QUEUE_FULL"));
    assert_eq!(queues.acknowledge("orders", vec![leased.lease_token]).await, []);

    let filters = vec!["shop/#".to_owned(), "shop/+/order".to_owned()];
    got(queues.0.remove_bindings(v1::RemoveBindingsRequest { queue: "orders".to_owned(), filters })).await;
    assert_eq!(got(topics.publish(publish("shop/4/order", "4"))).await.matched_queues, 0);

    // Bindings hold after a crash, and end with their queue.
    let add = v1::AddBindingsRequest { queue: "orders".to_owned(), filters: vec!["again".to_owned()] };
    got(queues.0.add_bindings(add)).await;
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    let mut topics = PubSubServiceClient::new(broker.grpc().await);
    assert_eq!(got(topics.publish(publish("again", "5"))).await.matched_queues, 1);
    let mut messages = queues.receive("orders", 2).await;
    if messages.len() < 2 {
        messages.extend(queues.receive("orders", 1).await);
    }
    assert_eq!(payloads(&messages), ["2", "5"]);
    got(queues.0.delete_queue(delete("orders", false))).await;
    assert_eq!(got(topics.publish(publish("again", "6"))).await.matched_queues, 0);
}

#[tokio::test]
async fn queues_are_listed_page_by_page() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    for name in ["b", "a.2", "a.1", "a.3", "c"] {
        queues.create(named(name)).await;
    }
    let mut page = v1::ListQueuesRequest { name_prefix: "a.".to_owned(), page_size: 2, ..Default::default() };
    let mut names = Vec::new();
    loop {
        let answer = got(queues.0.list_queues(page.clone())).await;
        names.push(answer.queues.into_iter().map(|queue| queue.name).collect::<Vec<_>>());
        if answer.next_page_token.is_empty() {
            break;
        }
        page.page_token = answer.next_page_token;
    }
    assert_eq!(names, [vec!["a.1", "a.2"], vec!["a.3"]]);
    assert_eq!(got(queues.0.list_queues(v1::ListQueuesRequest::default())).await.queues.len(), 5);
    let negative = v1::ListQueuesRequest { page_size: -1, ..Default::default() };
    assert_eq!(field(&refused(queues.0.list_queues(negative)).await), "page_size");
}

#[tokio::test]
async fn a_deletion_takes_the_messages_along_or_minds_them() {
    let (_broker, mut queues) = Queues::start().await;
    let user = v1::Queue { dead_letter_queue: "q".to_owned(), ..named("user") };
    queues.create(user).await;
    let status = refused(queues.0.delete_queue(delete("q", false))).await;
    assert_eq!(reason(&status.get_error_details()), "DEAD_LETTER_QUEUE_IN_USE");
    assert!(status.message().contains("user"), "{}", status.message());
    assert_eq!(got(queues.0.delete_queue(delete("user", true))).await.deleted_messages, 0);

    queues.fill("q", &["1", "2"]).await;
    let status = refused(queues.0.delete_queue(delete("q", true))).await;
    assert_eq!(reason(&status.get_error_details()), "QUEUE_NOT_EMPTY");
    assert_eq!(got(queues.0.delete_queue(delete("q", false))).await.deleted_messages, 2);
    let request = v1::EnqueueRequest { queue: "q".to_owned(), message: Some(message("3")) };
    assert_eq!(refused(queues.0.enqueue(request)).await.code(), Code::NotFound);

    // A new queue of that name is another queue.
    queues.create(named("q")).await;
    assert!(queues.is_empty("q").await);
}
