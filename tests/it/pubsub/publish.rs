//! Publishing: one message, several, streams.

use bytes::Bytes;
use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::publish_result::Outcome;
use stafett::grpc::proto::v1::publish_stream_request::Action;
use stafett::grpc::proto::v1::publish_stream_response::Event;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::RpcStatusExt;

use super::{Topics, at_most_once, message, retained};
use crate::harness::{Broker, config_file, within};
use crate::queue::{Queues, field, got, named, reason, refused, seconds};

fn code(result: &v1::PublishResult) -> Code {
    match &result.outcome {
        Some(Outcome::Error(error)) => Code::from(error.code),
        Some(Outcome::Ok(_)) => Code::Ok,
        None => panic!("no outcome"),
    }
}

#[tokio::test]
async fn a_message_arrives_as_it_was_published() {
    let (_broker, mut topics) = Topics::start().await;
    let mut subscriber = topics.subscribe(&["shop/+/order", "other"]).await;
    assert_eq!(subscriber.opened.filters.len(), 2);
    assert!(!subscriber.opened.session_id.is_empty() && !subscriber.opened.session_present);
    let said = v1::Message {
        properties: vec![
            v1::Property { key: "k".to_owned(), value: "1".to_owned() },
            v1::Property { key: "k".to_owned(), value: "2".to_owned() },
        ],
        content_type: "text/plain".to_owned(),
        payload_is_utf8: true,
        qos: v1::Qos::AtMostOnce.into(),
        ttl: seconds(3600),
        reply_to: "answers".to_owned(),
        correlation_data: Bytes::from_static(&[0, 1]),
        ..message("shop/7/order", "hello")
    };
    let published = topics.publish(said.clone()).await;
    assert_eq!((published.matched_subscribers, published.matched_queues), (1, 0));
    assert!(published.publish_time.is_some());
    let delivery = subscriber.deliveries(1).await.pop().unwrap();
    let mut heard = delivery.message.unwrap();
    let ttl = heard.ttl.take().unwrap().seconds;
    assert!((3590..=3600).contains(&ttl));
    heard.ttl = said.ttl;
    assert_eq!(heard, said);
    assert_eq!(delivery.origin.unwrap().message_id, published.message_id);
    assert_eq!((delivery.delivery_id, delivery.delivery_attempt, delivery.retained), (0, 1, false));

    assert_eq!(topics.publish(message("nobody/listens", "")).await.matched_subscribers, 0);
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let (file, path) = config_file("[limits]\nmax_payload_bytes = \"1KiB\"\nmax_topic_levels = 3\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut topics = Topics::of(&broker).await;
    let large = "x".repeat(1025);
    let exactly = v1::Message { qos: v1::Qos::ExactlyOnce.into(), ..message("a", "") };
    for (wrong, named) in [
        (message("", ""), "message.topic"),
        (message("a/+", ""), "message.topic"),
        (message("a/b/c/d", ""), "message.topic"),
        (message("$SYS/x", ""), "topic"),
        (message("a", &large), "message.payload"),
        (exactly, "message.qos"),
        (v1::Message { ttl: seconds(0), ..message("a", "") }, "message.ttl"),
    ] {
        let status = refused(topics.0.publish(v1::PublishRequest { message: Some(wrong) })).await;
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, named), "{status:?}");
    }
    let delay = Some(v1::message::Schedule::Delay(seconds(60).unwrap()));
    let delayed = v1::PublishRequest { message: Some(v1::Message { schedule: delay, ..message("a", "") }) };
    assert_eq!(refused(topics.0.publish(delayed)).await.code(), Code::Unimplemented);
    let status = refused(topics.0.publish(v1::PublishRequest { message: None })).await;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "message"));
    let status = refused(topics.0.publish_batch(v1::PublishBatchRequest { messages: Vec::new() })).await;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "messages"));
    drop(file);
}

#[tokio::test]
async fn each_message_of_a_batch_has_its_outcome() {
    let (broker, mut topics) = Topics::start().await;
    let mut queues = Queues::of(&broker).await;
    let small = v1::Queue { max_messages: 1, bindings: vec!["full/#".to_owned()], ..named("small") };
    queues.create(small).await;
    let mut subscriber = topics.subscribe(&["#"]).await;
    let messages = vec![
        message("a", "1"),
        message("a/#", "2"),
        message("full", "3"),
        message("full/1", "4"),
        message("$queue/none", "5"),
        at_most_once("a", "6"),
    ];
    let results = got(topics.0.publish_batch(v1::PublishBatchRequest { messages })).await.results;
    let codes: Vec<_> = results.iter().map(code).collect();
    assert_eq!(
        codes,
        [Code::Ok, Code::InvalidArgument, Code::Ok, Code::ResourceExhausted, Code::NotFound, Code::Ok]
    );
    let Some(Outcome::Error(full)) = &results[3].outcome else { panic!() };
    let details = full.get_error_details();
    assert_eq!(reason(&details), "QUEUE_FULL");
    assert!(details.retry_info().is_some());
    let Some(Outcome::Error(wrong)) = &results[1].outcome else { panic!() };
    assert_eq!(
        wrong.get_error_details().bad_request().unwrap().field_violations[0].field,
        "messages[1].topic"
    );
    let Some(Outcome::Ok(both)) = &results[2].outcome else { panic!() };
    assert_eq!((both.matched_subscribers, both.matched_queues), (1, 1));
    // What was refused reached nobody.
    assert_eq!(subscriber.texts(3).await, ["1", "3", "6"]);

    // Straight into a queue.
    let status =
        refused(topics.0.publish(v1::PublishRequest { message: Some(message("$queue/small", "7")) })).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    let leased = queues.one("small").await;
    assert_eq!(leased.message.unwrap().topic, "full");
    queues.acknowledge("small", vec![leased.lease_token]).await;
    assert_eq!(topics.publish(message("$queue/small", "8")).await.matched_queues, 1);
    assert_eq!(queues.one("small").await.message.unwrap().topic, "$queue/small");
}

#[tokio::test]
async fn many_messages_are_summed_up() {
    let (_broker, mut topics) = Topics::start().await;
    let mut subscriber = topics.subscribe(&["t/+"]).await;
    let frame = |from: usize| v1::PublishManyRequest {
        messages: (from..from + 100)
            .map(|n| if n % 50 == 7 { message("", "") } else { message("t/1", &n.to_string()) })
            .collect(),
    };
    let frames: Vec<_> = (0..10).map(|n| frame(n * 100)).collect();
    let sum = got(topics.0.publish_many(tokio_stream::iter(frames))).await;
    assert_eq!((sum.accepted, sum.rejected), (980, 20));
    let indexes: Vec<_> = sum.first_errors.iter().map(|error| error.index).collect();
    assert_eq!(indexes, (0..20).map(|n| n * 50 + 7).collect::<Vec<_>>());
    let heard = subscriber.texts(980).await;
    assert_eq!(heard, (0..1000).filter(|n| n % 50 != 7).map(|n| n.to_string()).collect::<Vec<_>>());
    let sum = got(topics.0.publish_many(tokio_stream::iter(Vec::new()))).await;
    assert_eq!((sum.accepted, sum.rejected), (0, 0));
}

/// A stream of batches.
struct Publisher {
    send: Option<mpsc::Sender<v1::PublishStreamRequest>>,
    events: Streaming<v1::PublishStreamResponse>,
}

impl Publisher {
    async fn start(topics: &mut Topics, first: Action) -> Self {
        let (send, frames) = mpsc::channel(64);
        send.send(v1::PublishStreamRequest { action: Some(first) }).await.unwrap();
        let events = got(topics.0.publish_stream(ReceiverStream::new(frames))).await;
        Self { send: Some(send), events }
    }

    async fn open(topics: &mut Topics, want_details: bool) -> Self {
        let open = v1::PublishOpen { want_details, heartbeat_interval: None };
        let mut publisher = Self::start(topics, Action::Open(open)).await;
        let Event::Opened(opened) = publisher.hear().await else { panic!("not opened") };
        assert!(opened.max_batch_messages > 0 && opened.max_batches_in_flight > 0);
        publisher
    }

    async fn batch(&self, batch_id: u64, messages: Vec<v1::Message>) {
        let action = Some(Action::Batch(v1::PublishBatch { batch_id, messages }));
        let send = self.send.as_ref().unwrap().send(v1::PublishStreamRequest { action });
        within("room", send).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<v1::PublishStreamResponse>, Status> {
        within("an event", self.events.message()).await
    }

    async fn hear(&mut self) -> Event {
        self.next().await.unwrap().unwrap().event.unwrap()
    }

    /// Acknowledgements up to and including that of `batch_id`, as one.
    async fn acks(&mut self, batch_id: u64) -> v1::PublishAck {
        let mut all = v1::PublishAck::default();
        while all.through_batch_id < batch_id {
            let Event::Ack(ack) = self.hear().await else { panic!("not an ack") };
            assert!(ack.through_batch_id > all.through_batch_id);
            all.through_batch_id = ack.through_batch_id;
            all.errors.extend(ack.errors);
            all.details.extend(ack.details);
        }
        all
    }
}

#[tokio::test]
async fn batches_are_acknowledged_in_order() {
    let (broker, mut topics) = Topics::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(v1::Queue { bindings: vec!["kept/+".to_owned()], ..named("q") }).await;
    let mut subscriber = topics.subscribe(&["#"]).await;
    let mut publisher = Publisher::open(&mut topics, true).await;
    for batch in 1..=50_u64 {
        // Some are stored and some are not: they keep their order.
        let first = if batch % 2 == 0 { message("kept/x", "s") } else { at_most_once("live", "l") };
        let wrong = if batch == 9 { message("+", "") } else { retained("kept/r", &batch.to_string()) };
        publisher.batch(batch * 2, vec![first, wrong]).await;
    }
    let acks = publisher.acks(100).await;
    assert_eq!((acks.through_batch_id, acks.details.len()), (100, 100));
    assert_eq!(acks.errors.iter().map(|error| (error.batch_id, error.index)).collect::<Vec<_>>(), [(18, 1)]);
    assert_eq!((acks.details[1].matched_subscribers, acks.details[1].matched_queues), (1, 1));
    assert_eq!(acks.details[17], v1::PublishResponse::default());
    let heard = subscriber.texts(99).await;
    let expected = (1..=50).flat_map(|batch: u64| {
        let first = if batch.is_multiple_of(2) { "s" } else { "l" };
        std::iter::once(first.to_owned()).chain(Some(batch.to_string()).filter(|_| batch != 9))
    });
    assert_eq!(heard, expected.collect::<Vec<_>>());
    assert_eq!(queues.stats("q").await.ready, 25 + 49);
    publisher.send = None;
    assert_eq!(publisher.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_stream_of_batches_has_its_rules() {
    let (_broker, mut topics) = Topics::start().await;
    let mut wrong = Publisher::start(&mut topics, Action::Batch(v1::PublishBatch::default())).await;
    let status = wrong.next().await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "open"));

    let open = v1::PublishOpen { want_details: false, heartbeat_interval: seconds(0) };
    let mut wrong = Publisher::start(&mut topics, Action::Open(open)).await;
    assert_eq!(field(&wrong.next().await.unwrap_err()), "open.heartbeat_interval");

    let mut publisher = Publisher::open(&mut topics, false).await;
    publisher.batch(5, vec![message("a", "")]).await;
    publisher.batch(5, vec![message("a", "")]).await;
    assert_eq!(publisher.acks(5).await.details, []);
    let Event::Closing(closing) = publisher.hear().await else { panic!("not closing") };
    assert_eq!(Code::from(closing.status.unwrap().code), Code::InvalidArgument);
    assert_eq!(field(&publisher.next().await.unwrap_err()), "batch.batch_id");

    let open = v1::PublishOpen { want_details: false, heartbeat_interval: seconds(1) };
    let mut silent = Publisher::start(&mut topics, Action::Open(open)).await;
    assert!(matches!(silent.hear().await, Event::Opened(_)));
    assert!(matches!(silent.hear().await, Event::Heartbeat(_)));
}
