//! What goes in, and what is seen of it.

use bytes::Bytes;
use stafett::grpc::proto::v1;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use super::{Queues, field, got, message, named, payloads, reason, refused, seconds, tokens};
use crate::harness::{Broker, within};

#[tokio::test]
async fn a_message_comes_out_as_it_went_in() {
    let (_broker, mut queues) = Queues::start().await;
    let property = |key: &str, value: &str| v1::Property { key: key.to_owned(), value: value.to_owned() };
    let sent = v1::Message {
        topic: "shop/7/order".to_owned(),
        payload: Bytes::from_static(b"{}"),
        properties: vec![property("b", "1"), property("a", ""), property("b", "2")],
        content_type: "application/json".to_owned(),
        payload_is_utf8: true,
        qos: v1::Qos::AtLeastOnce.into(),
        reply_to: "shop/7/answer".to_owned(),
        correlation_data: Bytes::from_static(&[0, 255]),
        ..Default::default()
    };
    let stored = queues.enqueue("q", sent.clone()).await;
    let leased = queues.one("q").await;
    assert_eq!(leased.message, Some(sent));
    let origin = leased.origin.unwrap();
    assert_eq!((&origin.message_id, origin.message_id.len()), (&stored.message_id, 26));
    assert!(origin.publish_time.is_some() && leased.lease_expires.is_some());
    assert_eq!((leased.sequence, leased.delivery_attempt, leased.delivery_id), (stored.sequence, 1, 0));
    assert!(leased.lease_token.len() <= 32);
    assert_eq!(queues.stats("q").await.leased, 1);

    assert_eq!(queues.acknowledge("q", vec![leased.lease_token]).await, []);
    let stats = queues.stats("q").await;
    assert_eq!((stats.ready, stats.leased, stats.enqueued_total, stats.acked_total), (0, 0, 1, 1));
    assert!(queues.is_empty("q").await);
}

#[tokio::test]
async fn without_a_topic_it_has_the_queues_own() {
    let (_broker, mut queues) = Queues::start().await;
    queues.enqueue("q", message("x")).await;
    assert_eq!(queues.one("q").await.message.unwrap().topic, "$queue/q");
}

#[tokio::test]
async fn a_large_message_comes_out_whole() {
    let (_broker, mut queues) = Queues::start().await;
    queues.0 = queues.0.max_decoding_message_size(8 << 20).max_encoding_message_size(8 << 20);
    let payload: Bytes = (0..4_u32 << 20).map(|at| (at % 251) as u8).collect::<Vec<_>>().into();
    queues.enqueue("q", v1::Message { payload: payload.clone(), ..Default::default() }).await;
    assert!(queues.one("q").await.message.unwrap().payload == payload);
    let larger = v1::Message { payload: vec![0; (4 << 20) + 1].into(), ..Default::default() };
    let request = v1::EnqueueRequest { queue: "q".to_owned(), message: Some(larger) };
    let status = refused(queues.0.enqueue(request)).await;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "message.payload"));
}

#[tokio::test]
async fn each_message_of_a_batch_has_its_own_outcome() {
    let (_broker, mut queues) = Queues::start().await;
    let wrong = v1::Message { topic: "a/#".to_owned(), ..Default::default() };
    let messages = vec![message("1"), wrong.clone(), message("2"), wrong];
    let request = v1::EnqueueBatchRequest { queue: "q".to_owned(), messages, atomic: false };
    let results = got(queues.0.enqueue_batch(request)).await.results;
    let errors: Vec<_> = results
        .iter()
        .map(|result| match result.outcome.as_ref().unwrap() {
            v1::enqueue_result::Outcome::Ok(_) => None,
            v1::enqueue_result::Outcome::Error(error) => Some(error.message.clone()),
        })
        .collect();
    assert_eq!((errors.len(), &errors[0], &errors[2]), (4, &None, &None));
    assert!(errors[1].as_ref().unwrap().starts_with("messages[1].topic: "), "{errors:?}");
    assert!(errors[3].as_ref().unwrap().starts_with("messages[3].topic: "), "{errors:?}");
    assert_eq!(payloads(&queues.receive("q", 10).await), ["1", "2"]);

    let nothing = v1::EnqueueBatchRequest { queue: "q".to_owned(), messages: vec![], atomic: true };
    assert_eq!(field(&refused(queues.0.enqueue_batch(nothing)).await), "messages");
}

#[tokio::test]
async fn a_stream_of_messages_is_summed_up() {
    let (_broker, mut queues) = Queues::start().await;
    let wrong = v1::Message { retain: true, ..Default::default() };
    let frame = |queue: &str, messages: Vec<v1::Message>| v1::EnqueueManyRequest {
        queue: queue.to_owned(),
        messages,
    };
    let many = (0..2500).map(|at| message(&at.to_string())).collect();
    let frames = vec![frame("q", many), frame("", vec![message("x"), wrong]), frame("q", vec![message("y")])];
    let sum = got(queues.0.enqueue_many(tokio_stream::iter(frames))).await;
    assert_eq!((sum.accepted, sum.rejected), (2502, 1));
    assert_eq!(sum.first_errors.iter().map(|error| error.index).collect::<Vec<_>>(), [2501]);
    assert_eq!(queues.stats("q").await.ready, 2502);

    let mixed = vec![frame("q", vec![]), frame("other", vec![])];
    assert_eq!(field(&refused(queues.0.enqueue_many(tokio_stream::iter(mixed))).await), "queue");
    let unnamed = vec![frame("", vec![message("x")])];
    assert_eq!(field(&refused(queues.0.enqueue_many(tokio_stream::iter(unnamed))).await), "queue");
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_which_bound() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(v1::Queue { max_messages: 2, ..named("small") }).await;
    queues.fill("small", &["1", "2"]).await;
    let request = v1::EnqueueRequest { queue: "small".to_owned(), message: Some(message("3")) };
    let status = refused(queues.0.enqueue(request.clone())).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    let quota = &details.quota_failure().unwrap().violations[0];
    assert_eq!((quota.subject.as_str(), quota.description.as_str()), ("queue:small", "max_messages 2"));
    assert!(details.retry_info().is_some() && reason(&details) == "QUEUE_FULL");

    // What is leased still counts; what is settled does not.
    let leased = queues.receive("small", 2).await;
    assert_eq!(refused(queues.0.enqueue(request.clone())).await.code(), Code::ResourceExhausted);
    assert_eq!(queues.acknowledge("small", tokens(&leased)).await, []);
    got(queues.0.enqueue(request)).await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_what_is_wrong_is_named() {
    let (_broker, mut queues) = Queues::start().await;
    let enqueue = |queue: &str, message| v1::EnqueueRequest { queue: queue.to_owned(), message };
    let status = refused(queues.0.enqueue(enqueue("nobody", Some(message("x"))))).await;
    assert_eq!(status.code(), Code::NotFound);
    let details = status.get_error_details();
    let resource = details.resource_info().unwrap();
    assert_eq!((resource.resource_type.as_str(), resource.resource_name.as_str()), ("queue", "nobody"));

    let status = refused(queues.0.enqueue(enqueue("a b", Some(message("x"))))).await;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "queue"));
    assert_eq!(field(&refused(queues.0.enqueue(enqueue("q", None))).await), "message");
    let late = v1::Message { ttl: seconds(-1), ..Default::default() };
    assert_eq!(field(&refused(queues.0.enqueue(enqueue("q", Some(late)))).await), "message.ttl");
    let high = v1::Message { priority: Some(10), ..Default::default() };
    assert_eq!(field(&refused(queues.0.enqueue(enqueue("q", Some(high)))).await), "message.priority");

    let receive = |max_messages, wait| v1::ReceiveRequest {
        queue: "q".to_owned(),
        max_messages,
        wait,
        ..Default::default()
    };
    assert_eq!(field(&refused(queues.0.receive(receive(1001, None))).await), "max_messages");
    assert_eq!(field(&refused(queues.0.receive(receive(1, seconds(3601)))).await), "wait");
    let stats = v1::GetQueueStatsRequest { name: "nobody".to_owned() };
    assert_eq!(refused(queues.0.get_queue_stats(stats)).await.code(), Code::NotFound);
}

#[tokio::test]
async fn messages_are_seen_without_being_taken() {
    let (_broker, mut queues) = Queues::start().await;
    let all: Vec<_> = (0..40).map(|at| at.to_string()).collect();
    queues.fill("q", &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let later = v1::Message {
        schedule: Some(v1::message::Schedule::Delay(seconds(3600).unwrap())),
        ..message("later")
    };
    queues.enqueue("q", later).await;
    let leased = queues.one("q").await;

    let peek = |max_messages, view: v1::QueueView| v1::PeekRequest {
        queue: "q".to_owned(),
        max_messages,
        view: view.into(),
    };
    let seen = got(queues.0.peek(peek(2, v1::QueueView::Unspecified))).await.messages;
    assert_eq!(payloads(&seen), ["1", "2"]);
    assert_eq!((seen[0].delivery_attempt, seen[0].lease_token.len()), (0, 0));
    let seen = got(queues.0.peek(peek(10, v1::QueueView::Leased))).await.messages;
    assert_eq!((payloads(&seen).as_slice(), seen[0].delivery_attempt), (&["0".to_owned()][..], 1));
    assert_eq!(seen[0].lease_expires, leased.lease_expires);
    let seen = got(queues.0.peek(peek(10, v1::QueueView::Delayed))).await.messages;
    assert_eq!(payloads(&seen), ["later"]);
    assert!(matches!(seen[0].message.as_ref().unwrap().schedule, Some(v1::message::Schedule::DeliverAt(_))));

    let browse = v1::BrowseRequest { queue: "q".to_owned(), from_sequence: 11, ..Default::default() };
    let seen = payloads(&queues.browse(browse).await);
    assert_eq!(seen, all[10..]);
    assert_eq!(queues.stats("q").await.ready, 39);
}

#[tokio::test]
async fn a_purge_takes_one_view() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["1", "2", "3"]).await;
    let leased = queues.one("q").await;
    let purge =
        |view: v1::QueueView| v1::PurgeRequest { queue: "q".to_owned(), view: view.into(), filter: None };
    assert_eq!(got(queues.0.purge(purge(v1::QueueView::Delayed))).await.purged, 0);
    assert_eq!(got(queues.0.purge(purge(v1::QueueView::Ready))).await.purged, 2);
    assert!(queues.is_empty("q").await);
    assert_eq!(queues.acknowledge("q", vec![leased.lease_token]).await, []);
    for view in [v1::QueueView::Unspecified, v1::QueueView::Leased] {
        assert_eq!(field(&refused(queues.0.purge(purge(view))).await), "view");
    }
}

#[tokio::test]
async fn compressed_calls_are_understood() {
    let (broker, mut queues) = Queues::start().await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut squeezed = Queues::of(&broker).await;
        squeezed.0 = squeezed.0.send_compressed(encoding).accept_compressed(encoding);
        squeezed.enqueue("q", message(&"x".repeat(10_000))).await;
        assert_eq!(payloads(&[squeezed.one("q").await]), ["x".repeat(10_000)]);
    }
    assert_eq!(queues.stats("q").await.leased, 2);
}

#[tokio::test]
async fn a_request_id_comes_back_with_the_answer() {
    let (_broker, mut queues) = Queues::start().await;
    let mut request = Request::new(v1::GetQueueStatsRequest { name: "q".to_owned() });
    request.metadata_mut().insert("x-request-id", "mine".parse().unwrap());
    let answer = within("an answer", queues.0.get_queue_stats(request)).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "mine");
}
