//! What a queue makes of a message by what its producer said of it.

use std::sync::Arc;

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::consume_request::Action as Ask;
use stafett::grpc::proto::v1::consume_response::Event as Told;
use stafett::grpc::proto::v1::produce_request::Action as Say;
use stafett::grpc::proto::v1::produce_response::Event as Heard;
use stafett::grpc::proto::v1::pub_sub_service_client::PubSubServiceClient;
use tonic::Code;
use tonic_types::StatusExt;

use super::browse::with;
use super::forward::item;
use super::streams::{Consumer, Producer, opening};
use super::{Queues, field, got, message, named, payloads, reason, refused, seconds, tokens, which};
use crate::harness::Broker;

fn called(id: &str, payload: &str) -> v1::Message {
    v1::Message { dedup_id: id.to_owned(), ..message(payload) }
}

/// A broker with a queue `once` that remembers for an hour.
async fn remembering(data: &Arc<tempfile::TempDir>, flags: &[(&str, String)]) -> (Broker, Queues) {
    let broker = Broker::try_start(data.path(), &[], flags).await.unwrap();
    let mut queues = Queues::of(&broker).await;
    let queue = Some(v1::Queue { dedup_window: seconds(3600), ..named("once") });
    got(queues.0.create_queue(v1::CreateQueueRequest { queue, if_not_exists: true })).await;
    (broker, queues)
}

#[tokio::test]
async fn a_message_that_is_sent_again_is_stored_once_also_after_a_kill() {
    let data = Arc::new(tempfile::tempdir().unwrap());
    let (broker, mut queues) = remembering(&data, &[]).await;
    let first = queues.enqueue("once", called("a", "1")).await;
    assert!(!first.duplicate);
    let known = v1::EnqueueResponse { duplicate: true, ..first };
    assert_eq!(queues.enqueue("once", called("a", "2")).await, known);
    let leased = queues.one("once").await;
    assert_eq!(leased.message.as_ref().unwrap().dedup_id, "a");
    queues.acknowledge("once", vec![leased.lease_token]).await;
    broker.kill9().await;
    let (broker, mut queues) = remembering(&data, &[]).await;
    assert_eq!(queues.enqueue("once", called("a", "3")).await, known, "it was settled");
    broker.terminate().await;
    let (_broker, mut queues) = remembering(&data, &[]).await;
    assert_eq!(queues.enqueue("once", called("a", "4")).await, known);
    assert!(queues.is_empty("once").await);
}

#[tokio::test]
async fn many_at_a_time_agree_on_the_first() {
    let data = Arc::new(tempfile::tempdir().unwrap());
    let (_broker, mut queues) = remembering(&data, &[]).await;
    let batch = |ids: &[&str]| v1::EnqueueBatchRequest {
        queue: "once".to_owned(),
        messages: ids.iter().map(|id| called(id, id)).collect(),
        atomic: false,
    };
    let mut answers = Vec::new();
    for result in got(queues.0.enqueue_batch(batch(&["a", "b", "a", "b", "c"]))).await.results {
        let Some(v1::enqueue_result::Outcome::Ok(stored)) = result.outcome else { panic!("{result:?}") };
        answers.push(stored);
    }
    assert_eq!(answers.iter().map(|it| it.duplicate).collect::<Vec<_>>(), [false, false, true, true, false]);
    assert_eq!(answers[2].message_id, answers[0].message_id);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut queues = Queues(queues.0.clone());
        calls.spawn(async move { queues.enqueue("once", called("d", "d")).await });
    }
    let stored = calls.join_all().await;
    assert_eq!(stored.iter().filter(|answer| !answer.duplicate).count(), 1, "{stored:?}");
    assert!(stored.iter().all(|answer| answer.sequence == stored[0].sequence), "{stored:?}");

    let open = v1::ProduceOpen { queue: "once".to_owned(), want_details: true, ..Default::default() };
    let mut producer = Producer::start(&mut queues, Say::Open(open)).await;
    assert!(matches!(producer.hear().await, Heard::Opened(_)));
    producer.batch(1, vec![called("d", "d"), called("e", "e"), called("e", "e")]).await;
    let Heard::Ack(ack) = producer.hear().await else { panic!("not an ack") };
    let known: Vec<_> =
        ack.details.iter().map(|it| (it.duplicate, it.message_id == stored[0].message_id)).collect();
    assert_eq!(known, [(true, true), (false, false), (true, false)]);
    assert_eq!(payloads(&queues.receive("once", 10).await), ["a", "b", "c", "d", "e"]);
}

#[tokio::test]
async fn a_copy_by_binding_is_known_and_others_get_every_publish() {
    let data = Arc::new(tempfile::tempdir().unwrap());
    let (broker, mut queues) = remembering(&data, &[]).await;
    got(queues
        .0
        .add_bindings(v1::AddBindingsRequest { queue: "once".to_owned(), filters: vec!["a/+".to_owned()] }))
    .await;
    let mut topics = PubSubServiceClient::new(broker.grpc().await);
    let mut publish = async |topic: &str| {
        let message = Some(v1::Message { topic: topic.to_owned(), ..called("x", "x") });
        got(topics.publish(v1::PublishRequest { message })).await
    };
    let first = publish("a/b").await;
    let again = publish("a/c").await;
    assert_eq!((first.duplicate, again.duplicate, again.matched_queues), (false, true, 1));
    assert_eq!(again.message_id, first.message_id);
    queues.create(v1::Queue { bindings: vec!["a/#".to_owned()], ..named("every") }).await;
    assert!(!publish("a/d").await.duplicate, "it was stored");
    assert_eq!((queues.stats("once").await.ready, queues.stats("every").await.ready), (1, 1));
}

#[tokio::test]
async fn what_a_queue_cannot_remember_is_refused() {
    let data = Arc::new(tempfile::tempdir().unwrap());
    let most = [("STAFETT_STORE_MAX_DEDUP_IDS", "2".to_owned())];
    let (_broker, mut queues) = remembering(&data, &most).await;
    queues.create(named("plain")).await;
    let ask = |queue: &str, id: &str| v1::EnqueueRequest {
        queue: queue.to_owned(),
        message: Some(called(id, "x")),
    };
    let status = refused(queues.0.enqueue(ask("plain", "a"))).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(reason(&status.get_error_details()), "NO_DEDUP_WINDOW");
    let status = refused(queues.0.enqueue(ask("once", &"x".repeat(129)))).await;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "message.dedup_id"));
    for id in ["a", "b"] {
        queues.enqueue("once", called(id, id)).await;
    }
    let leased = queues.receive("once", 2).await;
    queues.acknowledge("once", tokens(&leased)).await;
    let status = refused(queues.0.enqueue(ask("once", "c"))).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("max_dedup_ids 2"), "{}", status.message());
    assert!(queues.enqueue("once", called("a", "a")).await.duplicate);
    queues.enqueue("once", message("nameless")).await;
}

/// A batch of which all is stored or nothing.
fn whole(queue: &str, messages: Vec<v1::Message>) -> v1::EnqueueBatchRequest {
    v1::EnqueueBatchRequest { queue: queue.to_owned(), messages, atomic: true }
}

#[tokio::test]
async fn an_atomic_batch_is_stored_whole_or_refused_at_its_first() {
    let (_broker, mut queues) = Queues::start().await;
    queues.create(v1::Queue { max_messages: 4, ..named("small") }).await;
    let texts = |texts: &[&str]| texts.iter().map(|text| message(text)).collect::<Vec<_>>();
    let results = got(queues.0.enqueue_batch(whole("small", texts(&["1", "2"])))).await.results;
    let ok = |result: &v1::EnqueueResult| matches!(result.outcome, Some(v1::enqueue_result::Outcome::Ok(_)));
    assert!(results.len() == 2 && results.iter().all(ok), "{results:?}");

    let status = refused(queues.0.enqueue_batch(whole("small", texts(&["3", "4", "5", "6"])))).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    assert_eq!(reason(&details), "QUEUE_FULL");
    assert_eq!(details.error_info().unwrap().metadata["index"], "2");
    assert!(status.message().starts_with("messages[2]: "), "{}", status.message());
    let mut wrong = texts(&["3", "4"]);
    wrong[1].topic = "a/#".to_owned();
    let status = refused(queues.0.enqueue_batch(whole("small", wrong))).await;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "messages[1].topic"));
    let mut wrong = texts(&["3", "4"]);
    wrong[1].dedup_id = "x".to_owned();
    let status = refused(queues.0.enqueue_batch(whole("small", wrong))).await;
    assert!(status.message().starts_with("messages[1]: "), "{}", status.message());
    assert_eq!(reason(&status.get_error_details()), "NO_DEDUP_WINDOW");
    assert_eq!(
        payloads(&queues.receive("small", 10).await),
        ["1", "2"],
        "something of a refused one was stored"
    );
}

#[tokio::test]
async fn an_atomic_batch_holds_after_a_kill_and_knows_what_comes_again() {
    let data = Arc::new(tempfile::tempdir().unwrap());
    let (broker, mut queues) = remembering(&data, &[]).await;
    queues.enqueue("once", called("3", "3")).await;
    let messages = (0..2000).map(|n: u32| called(&(n % 1900).to_string(), &n.to_string())).collect();
    let results = got(queues.0.enqueue_batch(whole("once", messages))).await.results;
    let known = |result: &v1::EnqueueResult| match &result.outcome {
        Some(v1::enqueue_result::Outcome::Ok(stored)) => stored.duplicate,
        other => panic!("{other:?}"),
    };
    let places: Vec<_> = (0..).zip(&results).filter(|(_, result)| known(result)).map(|(at, _)| at).collect();
    assert_eq!(places, [3].into_iter().chain(1900..2000).collect::<Vec<_>>());
    broker.kill9().await;
    let (_broker, mut queues) = remembering(&data, &[]).await;
    assert_eq!(queues.stats("once").await.ready, 1900);
    let again = (0..1900).map(|n| called(&n.to_string(), "again")).collect();
    let results = got(queues.0.enqueue_batch(whole("once", again))).await.results;
    assert!(results.iter().all(known), "something was forgotten");
}

#[tokio::test]
async fn an_ordering_key_holds_over_streams_and_a_kill() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    let made = queues.create(v1::Queue { ordered_by_key: true, ..named("lines") }).await;
    assert!(made.ordered_by_key);
    let keyed = |key: &str, payload: &str| v1::Message { ordering_key: key.to_owned(), ..message(payload) };
    let messages = vec![keyed("a", "a1"), keyed("a", "a2"), keyed("b", "b1"), message("x"), keyed("b", "b2")];
    let request = v1::EnqueueBatchRequest { queue: "lines".to_owned(), messages, atomic: false };
    got(queues.0.enqueue_batch(request)).await;
    let first = queues.receive("lines", 10).await;
    assert_eq!(payloads(&first), ["a1", "b1", "x"]);
    assert_eq!(first[0].message.as_ref().unwrap().ordering_key, "a");
    assert!(queues.is_empty("lines").await);
    queues.acknowledge("lines", tokens(&first[..1])).await;
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    let mut consumer = Consumer::open(&mut queues, opening("lines", 10)).await;
    let mut came = Vec::new();
    for ack_id in 1..=3 {
        let mut frame = Vec::new();
        let wanted = [3, 1, 0][ack_id as usize - 1];
        while frame.len() < wanted {
            let Told::Messages(more) = consumer.next().await.unwrap().unwrap().event.unwrap() else {
                continue;
            };
            frame.extend(more.messages);
        }
        came.push(payloads(&frame));
        let ids: Vec<_> = frame.iter().map(|leased| leased.delivery_id).collect();
        if !ids.is_empty() {
            consumer.ask(Ask::Ack(which(ack_id, &ids))).await;
        }
    }
    assert_eq!(came, [vec!["a2", "b1", "x"], vec!["b2"], vec![]]);
}

#[tokio::test]
async fn an_ordering_key_is_refused_where_it_promises_nothing() {
    let (_broker, mut queues) = Queues::start().await;
    let ask = |key: &str| v1::EnqueueRequest {
        queue: "q".to_owned(),
        message: Some(v1::Message { ordering_key: key.to_owned(), ..message("x") }),
    };
    let status = refused(queues.0.enqueue(ask("a"))).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(reason(&status.get_error_details()), "NOT_ORDERED_BY_KEY");
    let status = refused(queues.0.enqueue(ask(&"x".repeat(257)))).await;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "message.ordering_key"));
}

#[tokio::test]
async fn a_key_goes_on_whatever_becomes_of_the_message_before() {
    let data = Arc::new(tempfile::tempdir().unwrap());
    let (broker, mut queues) = remembering(&data, &[]).await;
    let lines = |name: &str| v1::Queue { ordered_by_key: true, ..named(name) };
    queues.create(lines("dead")).await;
    let spec = v1::Queue {
        dead_letter_queue: "dead".to_owned(),
        max_deliveries: 1,
        max_messages: 6,
        overflow: v1::OverflowPolicy::DropOldest.into(),
        ..lines("q")
    };
    queues.create(spec).await;
    let key = |payload: &str| v1::Message { ordering_key: "k".to_owned(), ..message(payload) };
    let messages = ["failed", "purged", "forwarded", "dropped", "left", "last"].map(key).to_vec();
    got(queues.0.enqueue_batch(whole("q", messages))).await;
    // It has had its last delivery.
    let leased = queues.one("q").await;
    assert_eq!(leased.message.as_ref().unwrap().payload, "failed");
    assert!(queues.is_empty("q").await);
    queues.nack("q", &leased.lease_token, v1::NackKind::Failed).await;
    // It rests, and is purged.
    let leased = queues.one("q").await;
    assert_eq!(leased.message.unwrap().payload, "purged");
    let (lease_tokens, kind) = (vec![leased.lease_token], v1::NackKind::Release.into());
    let nack = v1::NackRequest { lease_tokens, kind, delay: seconds(3600), ..Default::default() };
    got(queues.0.nack(v1::NackRequest { queue: "q".to_owned(), ..nack })).await;
    assert!(queues.is_empty("q").await);
    let view = v1::QueueView::Delayed.into();
    let purge = v1::PurgeRequest { queue: "q".to_owned(), view, ..Default::default() };
    assert_eq!(got(queues.0.purge(purge)).await.purged, 1);
    // Settled with what follows from it, which is known where it goes.
    queues.enqueue("once", called("a", "first")).await;
    let leased = queues.one("q").await;
    assert_eq!(leased.message.as_ref().unwrap().payload, "forwarded");
    let items =
        vec![item(&leased.lease_token, &[("once", called("a", "again")), ("once", called("b", "b"))])];
    let told = queues.forward(items).await.remove(0).unwrap().messages;
    assert_eq!(told.iter().map(|stored| stored.duplicate).collect::<Vec<_>>(), [true, false]);
    // Three are left, and four more are one too many.
    let more = ["x", "y", "z", "v"].map(message).to_vec();
    got(queues.0.enqueue_batch(whole("q", more))).await;
    let leased = queues.receive("q", 10).await;
    assert_eq!(payloads(&leased), ["left", "x", "y", "z", "v"]);
    let redrive = v1::RedriveRequest { dead_letter_queue: "dead".to_owned(), ..Default::default() };
    queues.acknowledge("q", tokens(&leased[1..])).await;
    assert_eq!(got(queues.0.redrive(redrive)).await.moved, 1);
    broker.kill9().await;
    let (_broker, mut queues) = remembering(&data, &[]).await;
    for payload in ["left", "last", "failed"] {
        let leased = queues.receive("q", 10).await;
        assert_eq!(payloads(&leased), [payload]);
        queues.acknowledge("q", tokens(&leased)).await;
    }
    assert_eq!(payloads(&queues.receive("once", 10).await), ["first", "b"]);
}

/// A value of the property `sensor`.
pub(crate) fn reading(sensor: &str, payload: &str) -> v1::Message {
    with(payload, &[("sensor", sensor)])
}

#[tokio::test]
async fn the_last_value_is_kept_by_every_way_in_and_after_a_kill() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(named("dead")).await;
    let spec = v1::Queue {
        last_value_key: "sensor".to_owned(),
        bindings: vec!["r/+".to_owned()],
        dead_letter_queue: "dead".to_owned(),
        max_messages: 3,
        ..named("last")
    };
    assert_eq!(queues.create(spec).await.last_value_key, "sensor");
    queues.enqueue("last", reading("a", "a1")).await;
    let given_up = queues.one("last").await;
    queues.nack("last", &given_up.lease_token, v1::NackKind::DeadLetter).await;
    let dead = queues.one("dead").await;
    queues.nack("dead", &dead.lease_token, v1::NackKind::Release).await;
    queues.enqueue("last", reading("a", "a2")).await;
    let mut topics = PubSubServiceClient::new(broker.grpc().await);
    for (sensor, payload) in [("b", "b1"), ("a", "a3")] {
        let message = Some(v1::Message { topic: "r/1".to_owned(), ..reading(sensor, payload) });
        got(topics.publish(v1::PublishRequest { message })).await;
    }
    got(queues.0.enqueue_batch(whole("last", vec![message("x"), reading("b", "b2")]))).await;
    // Full as it is, it takes what takes a place, and what a consumer has is settled as any other.
    let held = queues.receive("last", 2).await;
    assert_eq!(payloads(&held), ["a3", "x"]);
    queues.enqueue("last", reading("a", "a4")).await;
    assert_eq!(queues.acknowledge("last", tokens(&held)).await, []);
    // What was given up does not take the place of a newer one.
    let redrive = v1::RedriveRequest { dead_letter_queue: "dead".to_owned(), ..Default::default() };
    let status = refused(queues.0.redrive(redrive.clone())).await;
    assert_eq!(reason(&status.get_error_details()), "NEWER_VALUE");
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    let left = queues.receive("last", 10).await;
    assert_eq!(payloads(&left), ["b2", "a4"]);
    queues.acknowledge("last", tokens(&left)).await;
    assert_eq!(got(queues.0.redrive(redrive)).await.moved, 1);
    assert_eq!(payloads(&queues.receive("last", 10).await), ["a1"]);
}

#[tokio::test]
async fn what_a_queue_keeps_the_last_of_is_said_when_it_is_made() {
    let (_broker, mut queues) = Queues::start().await;
    let keeping = |property: &str| v1::Queue { last_value_key: property.to_owned(), ..named("last") };
    let create = |queue| v1::CreateQueueRequest { queue: Some(queue), if_not_exists: false };
    for wrong in [&*"x".repeat(257), "a\nb"] {
        let status = refused(queues.0.create_queue(create(keeping(wrong)))).await;
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, "queue.last_value_key"));
    }
    queues.create(keeping("sensor")).await;
    let update_mask = Some(prost_types::FieldMask { paths: vec!["last_value_key".to_owned()] });
    let update = v1::UpdateQueueRequest { queue: Some(keeping("other")), update_mask };
    let status = refused(queues.0.update_queue(update)).await;
    assert_eq!(reason(&status.get_error_details()), "QUEUE_LAST_VALUE_FIXED");
    let buried = v1::Queue { dead_letter_queue: "last".to_owned(), ..named("graveless") };
    let status = refused(queues.0.create_queue(create(buried))).await;
    assert_eq!(reason(&status.get_error_details()), "DEAD_LETTER_QUEUE_KEEPS_LAST");
}
