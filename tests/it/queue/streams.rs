//! The streams: Produce and Consume.

use std::time::Duration;

use rustix::process::Signal;
use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::consume_request::Action as Ask;
use stafett::grpc::proto::v1::consume_response::Event as Told;
use stafett::grpc::proto::v1::produce_request::Action as Say;
use stafett::grpc::proto::v1::produce_response::Event as Heard;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::RpcStatusExt;

use super::{Queues, field, got, message, millis, named, payloads, reason, seconds};
use crate::harness::{Broker, config_file, within};

/// A stream of batches.
pub(super) struct Producer {
    send: Option<mpsc::Sender<v1::ProduceRequest>>,
    events: Streaming<v1::ProduceResponse>,
}

impl Producer {
    pub(super) async fn start(queues: &mut Queues, first: Say) -> Self {
        let (send, frames) = mpsc::channel(64);
        send.send(v1::ProduceRequest { action: Some(first) }).await.unwrap();
        let events = got(queues.0.produce(ReceiverStream::new(frames))).await;
        Self { send: Some(send), events }
    }

    pub(super) async fn open(queues: &mut Queues, queue: &str) -> Self {
        let open = v1::ProduceOpen { queue: queue.to_owned(), ..Default::default() };
        let mut producer = Self::start(queues, Say::Open(open)).await;
        assert!(matches!(producer.hear().await, Heard::Opened(_)));
        producer
    }

    async fn say(&self, action: Say) {
        let send = self.send.as_ref().unwrap();
        within("room", send.send(v1::ProduceRequest { action: Some(action) })).await.unwrap();
    }

    pub(super) async fn batch(&self, batch_id: u64, messages: Vec<v1::Message>) {
        self.say(Say::Batch(v1::PublishBatch { batch_id, messages })).await;
    }

    pub(super) async fn next(&mut self) -> Result<Option<v1::ProduceResponse>, Status> {
        within("an event", self.events.message()).await
    }

    pub(super) async fn hear(&mut self) -> Heard {
        self.next().await.unwrap().unwrap().event.unwrap()
    }

    /// Acknowledgements up to and including that of `batch_id`, as one.
    async fn acks(&mut self, batch_id: u64) -> v1::PublishAck {
        let mut all = v1::PublishAck::default();
        while all.through_batch_id < batch_id {
            let Heard::Ack(ack) = self.hear().await else { panic!("not an ack") };
            assert!(ack.through_batch_id > all.through_batch_id);
            all.through_batch_id = ack.through_batch_id;
            all.errors.extend(ack.errors);
            all.details.extend(ack.details);
        }
        all
    }
}

/// A stream of deliveries.
pub(super) struct Consumer {
    send: Option<mpsc::Sender<v1::ConsumeRequest>>,
    events: Streaming<v1::ConsumeResponse>,
}

pub(super) fn opening(queue: &str, max_outstanding_messages: u32) -> v1::ConsumeOpen {
    let window = v1::Window { max_outstanding_messages, max_outstanding_bytes: 0 };
    v1::ConsumeOpen { queue: queue.to_owned(), window: Some(window), ..Default::default() }
}

pub(crate) fn which(ack_id: u64, delivery_ids: &[u64]) -> v1::AckBatch {
    v1::AckBatch { ack_id, delivery_ids: delivery_ids.to_vec(), lease_tokens: vec![] }
}

impl Consumer {
    pub(super) async fn start(queues: &mut Queues, first: Ask) -> Self {
        let (send, frames) = mpsc::channel(64);
        send.send(v1::ConsumeRequest { action: Some(first) }).await.unwrap();
        let events = got(queues.0.consume(ReceiverStream::new(frames))).await;
        Self { send: Some(send), events }
    }

    pub(super) async fn open(queues: &mut Queues, open: v1::ConsumeOpen) -> Self {
        let mut consumer = Self::start(queues, Ask::Open(open)).await;
        assert!(matches!(consumer.hear().await, Told::Opened(_)));
        consumer
    }

    /// The client has said all.
    pub(super) fn close(&mut self) {
        self.send = None;
    }

    pub(super) async fn ask(&self, action: Ask) {
        let send = self.send.as_ref().unwrap();
        within("room", send.send(v1::ConsumeRequest { action: Some(action) })).await.unwrap();
    }

    pub(super) async fn next(&mut self) -> Result<Option<v1::ConsumeResponse>, Status> {
        within("an event", self.events.message()).await
    }

    pub(super) async fn hear(&mut self) -> Told {
        self.next().await.unwrap().unwrap().event.unwrap()
    }

    /// So many messages, however many frames they come in.
    pub(super) async fn take(&mut self, count: usize) -> Vec<v1::LeasedMessage> {
        self.take_among(count, |told| panic!("not messages: {told:?}")).await
    }

    /// The same where acknowledgements are under way: their results come when they are stored, between the messages.
    pub(super) async fn take_past_results(&mut self, count: usize) -> Vec<v1::LeasedMessage> {
        let results =
            |told| assert!(matches!(told, Told::Results(_)), "neither messages nor results: {told:?}");
        self.take_among(count, results).await
    }

    async fn take_among(&mut self, count: usize, mut other: impl FnMut(Told)) -> Vec<v1::LeasedMessage> {
        let mut messages = Vec::new();
        while messages.len() < count {
            match self.hear().await {
                Told::Messages(frame) => messages.extend(frame.messages),
                told => other(told),
            }
        }
        assert_eq!(messages.len(), count);
        messages
    }

    pub(super) async fn results(&mut self) -> v1::AckResults {
        match self.hear().await {
            Told::Results(results) => results,
            other => panic!("not results: {other:?}"),
        }
    }
}

#[tokio::test]
async fn batches_are_stored_and_acknowledged_in_order() {
    let (_broker, mut queues) = Queues::start().await;
    let open = v1::ProduceOpen { queue: "q".to_owned(), want_details: true, heartbeat_interval: None };
    let mut producer = Producer::start(&mut queues, Say::Open(open)).await;
    let Heard::Opened(opened) = producer.hear().await else { panic!("not opened") };
    assert!(opened.max_batch_messages > 0 && opened.max_batch_bytes > 0 && opened.max_batches_in_flight > 0);

    let wrong = v1::Message { topic: "+".to_owned(), ..Default::default() };
    producer.batch(1, vec![message("1")]).await;
    producer.batch(2, vec![message("2"), wrong.clone(), message("3")]).await;
    producer.batch(7, vec![wrong]).await;
    producer.batch(8, vec![message("4")]).await;
    let ack = producer.acks(8).await;
    let errors: Vec<_> = ack.errors.iter().map(|error| (error.batch_id, error.index)).collect();
    assert_eq!(errors, [(2, 1), (7, 0)]);
    assert_eq!(ack.errors[0].error.as_ref().unwrap().code, Code::InvalidArgument as i32);
    let empty: Vec<_> = ack.details.iter().map(|detail| detail.message_id.is_empty()).collect();
    assert_eq!(empty, [false, false, true, false, true, false]);
    assert_eq!(queues.stats("q").await.ready, 4);
    assert_eq!(payloads(&queues.receive("q", 10).await), ["1", "2", "3", "4"]);

    // What was sent before the client is done is acknowledged before the end.
    producer.batch(9, vec![message("5")]).await;
    producer.send = None;
    assert_eq!(producer.acks(9).await.errors, []);
    assert_eq!(producer.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_full_queue_is_an_error_of_the_message() {
    let broker = Broker::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(v1::Queue { max_messages: 2, ..named("small") }).await;
    let mut producer = Producer::open(&mut queues, "small").await;
    producer.batch(1, vec![message("1"), message("2"), message("3")]).await;
    let ack = producer.acks(1).await;
    assert_eq!((ack.errors.len(), ack.errors[0].index), (1, 2));
    let error = ack.errors[0].error.as_ref().unwrap();
    assert_eq!(error.code, Code::ResourceExhausted as i32);
    assert_eq!(reason(&error.get_error_details()), "QUEUE_FULL");
}

#[tokio::test]
async fn a_produce_stream_that_begins_wrong_is_refused() {
    let (_broker, mut queues) = Queues::start().await;
    let open = |queue: &str, heartbeat_interval| {
        Say::Open(v1::ProduceOpen { queue: queue.to_owned(), heartbeat_interval, ..Default::default() })
    };
    for (first, code, wrong) in [
        (open("nobody", None), Code::NotFound, ""),
        (open("a b", None), Code::InvalidArgument, "open.queue"),
        (open("q", seconds(0)), Code::InvalidArgument, "open.heartbeat_interval"),
        (Say::Heartbeat(v1::Heartbeat::default()), Code::InvalidArgument, "open"),
    ] {
        let mut producer = Producer::start(&mut queues, first).await;
        let status = producer.next().await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (code, wrong), "{status:?}");
    }
}

#[tokio::test]
async fn a_fault_ends_the_stream_after_what_was_right() {
    let (_broker, mut queues) = Queues::start().await;
    let mut producer = Producer::open(&mut queues, "q").await;
    producer.batch(5, vec![message("x")]).await;
    producer.batch(5, vec![message("y")]).await;
    assert_eq!(producer.acks(5).await.errors, []);
    let Heard::Closing(closing) = producer.hear().await else { panic!("not closing") };
    assert_eq!(closing.status.unwrap().code, Code::InvalidArgument as i32);
    assert_eq!(closing.reconnect_after, None);
    let status = producer.next().await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "batch.batch_id"));
    assert_eq!(queues.stats("q").await.ready, 1);
}

#[tokio::test]
async fn many_batches_in_flight_all_arrive_in_order() {
    let (_broker, mut queues) = Queues::start().await;
    let mut producer = Producer::open(&mut queues, "q").await;
    let mut consumer = Consumer::open(&mut queues, opening("q", 500)).await;
    let (send, batches) = (producer.send.take().unwrap(), 300_u64);
    let sending = async move {
        for batch_id in 1..=batches {
            let messages = (0..10).map(|at| message(&(batch_id * 10 + at).to_string())).collect();
            let batch = Say::Batch(v1::PublishBatch { batch_id, messages });
            within("room", send.send(v1::ProduceRequest { action: Some(batch) })).await.unwrap();
        }
    };
    let consuming = async {
        let (mut seen, mut acked, mut through) = (Vec::new(), 0, 0);
        while through < 3000 {
            match consumer.hear().await {
                Told::Messages(frame) => {
                    let ids: Vec<_> = frame.messages.iter().map(|leased| leased.delivery_id).collect();
                    acked = *ids.last().unwrap();
                    seen.extend(payloads(&frame.messages));
                    consumer.ask(Ask::Ack(which(acked, &ids))).await;
                }
                Told::Results(results) => {
                    assert_eq!(results.failures, []);
                    through = results.acked_through;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(acked, 3000);
        seen
    };
    let ((), ack, seen) = tokio::join!(sending, producer.acks(batches), consuming);
    assert_eq!(ack.errors, []);
    assert_eq!(seen, (10..3010).map(|at| at.to_string()).collect::<Vec<_>>());
    let stats = queues.stats("q").await;
    assert_eq!((stats.ready, stats.leased, stats.acked_total), (0, 0, 3000));
}

#[tokio::test]
async fn producers_that_wait_for_room_let_each_other_in() {
    let (_directory, config) = config_file("[limits]\ncommit_pending_bytes = \"1MiB\"\n");
    let broker = Broker::start_with(&["--config", &config]).await;
    let mut queues = Queues::of(&broker).await;
    queues.create(named("q")).await;
    let large = "x".repeat(60_000);
    let mut producers = Vec::new();
    for _ in 0..3 {
        producers.push(Producer::open(&mut Queues::of(&broker).await, "q").await);
    }
    // One batch nearly fills the room, one is larger than it.
    let feeding = producers.into_iter().map(async |mut producer| {
        let send = producer.send.take().unwrap();
        let feed = async {
            for batch_id in 1..=12 {
                let count = if batch_id % 4 == 0 { 20 } else { 12 };
                let batch = v1::PublishBatch { batch_id, messages: vec![message(&large); count] };
                let frame = v1::ProduceRequest { action: Some(Say::Batch(batch)) };
                within("room", send.send(frame)).await.unwrap();
            }
        };
        let ((), ack) = tokio::join!(feed, producer.acks(12));
        assert_eq!(ack.errors, []);
    });
    futures_util::future::join_all(feeding).await;
    assert_eq!(queues.stats("q").await.ready, 3 * (9 * 12 + 3 * 20));
}

#[tokio::test]
async fn the_window_is_restored_by_settling() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["1", "2", "3", "4", "5"]).await;
    let mut consumer = Consumer::start(&mut queues, Ask::Open(opening("q", 2))).await;
    let Told::Opened(opened) = consumer.hear().await else { panic!("not opened") };
    assert_eq!(opened.window.unwrap().max_outstanding_messages, 2);
    assert_eq!(opened.queue.unwrap().name, "q");

    let first = consumer.take(2).await;
    assert_eq!(
        (payloads(&first), first[0].delivery_id, first[1].delivery_id),
        (vec!["1".into(), "2".into()], 1, 2)
    );
    assert!(first[0].lease_token.is_empty() && first[0].lease_expires.is_some());
    assert_eq!(queues.stats("q").await.leased, 2);
    consumer.ask(Ask::Ack(which(10, &[2]))).await;
    let mut told = Vec::new();
    for _ in 0..2 {
        match consumer.hear().await {
            Told::Results(results) => assert_eq!((results.acked_through, results.failures), (10, vec![])),
            Told::Messages(frame) => told.extend(payloads(&frame.messages)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, ["3"]);

    // A wider window brings the rest; a number is good once.
    let wider = v1::Window { max_outstanding_messages: 10, max_outstanding_bytes: 0 };
    consumer.ask(Ask::Window(wider)).await;
    assert_eq!(payloads(&consumer.take(2).await), ["4", "5"]);
    consumer.ask(Ask::Ack(which(11, &[2, 3, 99]))).await;
    let results = consumer.results().await;
    assert_eq!(results.acked_through, 11);
    let failures: Vec<_> =
        results.failures.iter().map(|failure| (failure.ack_id, failure.delivery_id)).collect();
    assert_eq!(failures, [(11, 2), (11, 99)]);
    let codes: Vec<_> = results.failures.iter().map(|failure| failure.error.as_ref().unwrap().code).collect();
    assert_eq!(codes, [Code::FailedPrecondition as i32, Code::InvalidArgument as i32]);
}

#[tokio::test]
async fn bytes_count_against_the_window_too() {
    let (_broker, mut queues) = Queues::start().await;
    let large = "x".repeat(1000);
    queues.fill("q", &[&large, &large, &large]).await;
    let window = v1::Window { max_outstanding_messages: 0, max_outstanding_bytes: 1500 };
    let open = v1::ConsumeOpen { window: Some(window), ..opening("q", 0) };
    let mut consumer = Consumer::open(&mut queues, open).await;
    // One may overdraw; with two outstanding there is no room.
    consumer.take(2).await;
    assert_eq!(queues.stats("q").await.ready, 1);
    // Another consumer is not held up by one that is full.
    let mut other = Consumer::open(&mut queues, opening("q", 10)).await;
    other.take(1).await;
    queues.fill("q", &["y"]).await;
    assert_eq!(payloads(&other.take(1).await), ["y"]);
}

#[tokio::test]
async fn deliveries_are_given_back_and_extended_on_the_stream() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["1", "2"]).await;
    let mut consumer = Consumer::open(&mut queues, opening("q", 10)).await;
    consumer.take(2).await;
    let nack = |ack_id, ids: &[u64], kind: v1::NackKind, delay| {
        let which = Some(which(ack_id, ids));
        Ask::Nack(v1::NackBatch { which, kind: kind.into(), delay, reason: String::new() })
    };
    consumer.ask(nack(0, &[1], v1::NackKind::Failed, None)).await;
    let again = consumer.take(1).await;
    assert_eq!((again[0].delivery_id, again[0].delivery_attempt), (3, 2));
    consumer.ask(nack(1, &[3], v1::NackKind::Release, millis(200))).await;
    assert_eq!(consumer.results().await.acked_through, 1);
    let again = consumer.take(1).await;
    assert_eq!((again[0].delivery_id, again[0].delivery_attempt), (4, 2));

    consumer
        .ask(Ask::Extend(v1::ExtendBatch { which: Some(which(2, &[2, 4, 3])), lease: seconds(3600) }))
        .await;
    let results = consumer.results().await;
    assert_eq!((results.acked_through, results.failures.len()), (2, 1));
    assert_eq!(results.failures[0].delivery_id, 3);
    let view = v1::QueueView::Leased.into();
    let seen =
        got(queues.0.peek(v1::PeekRequest { queue: "q".to_owned(), max_messages: 2, view })).await.messages;
    let ends = |leased: &v1::LeasedMessage| leased.lease_expires.unwrap().seconds;
    assert!(seen.iter().all(|leased| ends(leased) > ends(&again[0]) + 3000), "{seen:?}");
}

#[tokio::test]
async fn a_lease_that_ends_is_told() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["x"]).await;
    let open = v1::ConsumeOpen { lease: seconds(1), ..opening("q", 1) };
    let mut consumer = Consumer::open(&mut queues, open).await;
    consumer.take(1).await;
    let mut lost = Vec::new();
    let mut again = Vec::new();
    while again.is_empty() {
        match consumer.hear().await {
            Told::LeaseLost(told) => lost.extend(told.delivery_ids),
            Told::Messages(frame) => again.extend(frame.messages),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lost, [1]);
    assert_eq!((again[0].delivery_id, again[0].delivery_attempt), (2, 2));
    consumer.ask(Ask::Ack(which(1, &[1]))).await;
    let failures = consumer.results().await.failures;
    assert_eq!(reason(&failures[0].error.as_ref().unwrap().get_error_details()), "LEASE_EXPIRED");
}

#[tokio::test]
async fn a_token_of_a_stream_settles_from_anywhere() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["1", "2"]).await;
    let open = v1::ConsumeOpen { want_tokens: true, ..opening("q", 2) };
    let mut consumer = Consumer::open(&mut queues, open).await;
    let mut tokens = super::tokens(&consumer.take(2).await);
    assert_eq!(queues.acknowledge("q", vec![tokens.remove(0)]).await, []);
    tokens.push(b"rubbish".as_slice().into());
    let ack = v1::AckBatch { ack_id: 1, delivery_ids: vec![], lease_tokens: tokens };
    consumer.ask(Ask::Ack(ack)).await;
    let results = consumer.results().await;
    assert_eq!((results.acked_through, results.failures.len()), (1, 1));
    assert_eq!(results.failures[0].lease_token, b"rubbish".as_slice());
    assert_eq!(queues.stats("q").await.leased, 0);
}

#[tokio::test]
async fn a_drained_stream_ends_when_all_is_settled() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["1", "2"]).await;
    let mut consumer = Consumer::open(&mut queues, opening("q", 10)).await;
    consumer.take(2).await;
    let mut other = Consumer::open(&mut queues, opening("q", 10)).await;
    consumer.ask(Ask::Drain(v1::Drain {})).await;
    consumer.ask(Ask::Ack(which(1, &[1]))).await;
    assert_eq!(consumer.results().await.acked_through, 1);
    // What comes now is for the other.
    queues.fill("q", &["3"]).await;
    assert_eq!(payloads(&other.take(1).await), ["3"]);
    consumer.ask(Ask::Ack(which(2, &[2]))).await;
    assert_eq!(consumer.results().await.acked_through, 2);
    assert_eq!(consumer.next().await.unwrap(), None);
}

#[tokio::test]
async fn what_is_unsettled_goes_back_counted_only_when_the_stream_is_lost() {
    let (broker, mut queues) = Queues::start().await;
    queues.fill("q", &["x"]).await;
    let mut done = Consumer::open(&mut queues, opening("q", 10)).await;
    done.take(1).await;
    done.send = None;
    assert_eq!(done.next().await.unwrap(), None);

    let (mut far, line) = Queues::over_a_line(&broker).await;
    let mut lost = Consumer::open(&mut far, opening("q", 10)).await;
    assert_eq!(lost.take(1).await[0].delivery_attempt, 1);
    line.cut();
    assert_eq!(queues.one("q").await.delivery_attempt, 2);
}

#[tokio::test]
async fn competing_consumers_share_the_work() {
    let (broker, mut queues) = Queues::start().await;
    let mut first = Consumer::open(&mut queues, opening("q", 1)).await;
    let mut second = Consumer::open(&mut Queues::of(&broker).await, opening("q", 1)).await;
    assert_eq!(queues.stats("q").await.consumers, 2);
    queues.fill("q", &["1", "2"]).await;
    let (a, b) = (first.take(1).await, second.take(1).await);
    let mut both = [payloads(&a), payloads(&b)].concat();
    both.sort();
    assert_eq!(both, ["1", "2"]);
}

#[tokio::test]
async fn a_consume_stream_that_begins_or_goes_wrong_is_refused() {
    let (_broker, mut queues) = Queues::start().await;
    let wide = v1::Window { max_outstanding_messages: 65_536, max_outstanding_bytes: 0 };
    for (first, code, wrong) in [
        (Ask::Open(opening("nobody", 1)), Code::NotFound, ""),
        (
            Ask::Open(v1::ConsumeOpen { lease: millis(10), ..opening("q", 1) }),
            Code::InvalidArgument,
            "open.lease",
        ),
        (
            Ask::Open(v1::ConsumeOpen { window: Some(wide), ..opening("q", 1) }),
            Code::InvalidArgument,
            "open.window.max_outstanding_messages",
        ),
        (
            Ask::Open(v1::ConsumeOpen { consumer_id: "x".repeat(257), ..opening("q", 1) }),
            Code::InvalidArgument,
            "open.consumer_id",
        ),
        (Ask::Drain(v1::Drain {}), Code::InvalidArgument, "open"),
    ] {
        let mut consumer = Consumer::start(&mut queues, first).await;
        let status = consumer.next().await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (code, wrong), "{status:?}");
    }
    let nack = Ask::Nack(v1::NackBatch { which: Some(which(1, &[])), ..Default::default() });
    for (wrong, named) in
        [(Ask::Ack(which(0, &[])), "ack.ack_id"), (Ask::Open(opening("q", 1)), "open"), (nack, "nack.kind")]
    {
        let mut consumer = Consumer::open(&mut queues, opening("q", 1)).await;
        consumer.ask(wrong).await;
        let Told::Closing(closing) = consumer.hear().await else { panic!("not closing") };
        assert_eq!(closing.status.unwrap().code, Code::InvalidArgument as i32);
        assert_eq!(field(&consumer.next().await.unwrap_err()), named);
    }
}

#[tokio::test]
async fn a_deleted_queue_ends_its_streams() {
    let (_broker, mut queues) = Queues::start().await;
    let mut consumer = Consumer::open(&mut queues, opening("q", 1)).await;
    let delete = v1::DeleteQueueRequest { name: "q".to_owned(), only_if_empty: false };
    got(queues.0.delete_queue(delete)).await;
    let Told::Closing(closing) = consumer.hear().await else { panic!("not closing") };
    assert_eq!(closing.status.unwrap().code, Code::NotFound as i32);
    assert_eq!(consumer.next().await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_silent_stream_hears_that_the_broker_lives() {
    let (_broker, mut queues) = Queues::start().await;
    let open = v1::ProduceOpen { queue: "q".to_owned(), want_details: false, heartbeat_interval: seconds(1) };
    let mut producer = Producer::start(&mut queues, Say::Open(open)).await;
    assert!(matches!(producer.hear().await, Heard::Opened(_)));
    producer.say(Say::Heartbeat(v1::Heartbeat::default())).await;
    let Heard::Heartbeat(heartbeat) = producer.hear().await else { panic!("not a heartbeat") };
    assert!(heartbeat.server_time.is_some());
}

#[tokio::test]
async fn a_stream_of_its_age_is_closed_by_plan() {
    let (_directory, config) = config_file("[grpc]\nmax_stream_age = \"1s\"\n");
    let broker = Broker::start_with(&["--config", &config]).await;
    let mut queues = Queues::of(&broker).await;
    queues.create(named("q")).await;
    queues.fill("q", &["x"]).await;
    let mut producer = Producer::open(&mut queues, "q").await;
    let mut consumer = Consumer::open(&mut queues, opening("q", 1)).await;
    consumer.take(1).await;
    let Told::Closing(closing) = consumer.hear().await else { panic!("not closing") };
    assert_eq!(
        (closing.status.unwrap().code, closing.reconnect_after),
        (Code::Unavailable as i32, seconds(0))
    );
    assert_eq!(consumer.next().await.unwrap(), None);
    assert!(matches!(producer.hear().await, Heard::Closing(_)));
    assert_eq!(producer.next().await.unwrap(), None);
    assert_eq!(queues.one("q").await.delivery_attempt, 1);
}

#[tokio::test]
async fn a_stream_ends_at_the_deadline_of_its_call() {
    let (_broker, mut queues) = Queues::start().await;
    let (send, frames) = mpsc::channel(8);
    send.send(v1::ConsumeRequest { action: Some(Ask::Open(opening("q", 1))) }).await.unwrap();
    let mut request = Request::new(ReceiverStream::new(frames));
    request.set_timeout(Duration::from_millis(500));
    let events = got(queues.0.consume(request)).await;
    let mut consumer = Consumer { send: Some(send), events };
    assert!(matches!(consumer.hear().await, Told::Opened(_)));
    assert_eq!(consumer.next().await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_stop_closes_streams_by_plan_and_loses_nothing() {
    let (mut broker, mut queues) = Queues::start().await;
    let mut producer = Producer::open(&mut queues, "q").await;
    let mut consumer = Consumer::open(&mut queues, opening("q", 1)).await;
    producer.batch(1, vec![message("x"), message("y")]).await;
    assert_eq!(producer.acks(1).await.errors, []);
    consumer.take(1).await;

    broker.process().signal(Signal::TERM);
    let Told::Closing(closing) = consumer.hear().await else { panic!("not closing") };
    assert_eq!(closing.status.unwrap().code, Code::Unavailable as i32);
    assert!(closing.reconnect_after.is_some());
    assert_eq!(consumer.next().await.unwrap(), None);
    assert!(matches!(producer.hear().await, Heard::Closing(_)));
    assert_eq!(producer.next().await.unwrap(), None);
    let data = broker.data();
    let ended = broker.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);

    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    let mut messages = queues.receive("q", 2).await;
    if messages.len() < 2 {
        messages.extend(queues.receive("q", 1).await);
    }
    let attempts: Vec<_> = messages.iter().map(|leased| leased.delivery_attempt).collect();
    assert_eq!((payloads(&messages), attempts), (vec!["x".into(), "y".into()], vec![1, 1]));
}
