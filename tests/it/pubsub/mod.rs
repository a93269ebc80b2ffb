//! Topics over gRPC, against the real program.

mod commands;
mod doors;
mod operators;
mod publish;
mod receive;
mod retained;
mod sessions;
mod slow;
mod wills;

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::pub_sub_service_client::PubSubServiceClient;
use stafett::grpc::proto::v1::subscribe_stream_request::Action;
use stafett::grpc::proto::v1::subscribe_stream_response::Event;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::harness::{Broker, within};
use crate::queue::got;

/// A client with what the tests say often.
#[derive(Clone)]
pub(super) struct Topics(pub(super) PubSubServiceClient<Channel>);

pub(super) fn message(topic: &str, payload: &str) -> v1::Message {
    v1::Message { topic: topic.to_owned(), ..crate::queue::message(payload) }
}

fn at_most_once(topic: &str, payload: &str) -> v1::Message {
    v1::Message { qos: v1::Qos::AtMostOnce.into(), ..message(topic, payload) }
}

pub(super) fn retained(topic: &str, payload: &str) -> v1::Message {
    v1::Message { retain: true, ..message(topic, payload) }
}

fn filter(filter: &str) -> v1::TopicFilter {
    v1::TopicFilter { filter: filter.to_owned(), ..Default::default() }
}

fn text(message: Option<&v1::Message>) -> String {
    String::from_utf8(message.unwrap().payload.to_vec()).unwrap()
}

pub(super) fn texts(deliveries: &[v1::Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| text(delivery.message.as_ref())).collect()
}

impl Topics {
    pub(super) async fn of(broker: &Broker) -> Self {
        let client = PubSubServiceClient::new(broker.grpc().await);
        Self(client.max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX))
    }

    async fn start() -> (Broker, Self) {
        let broker = Broker::start().await;
        let topics = Self::of(&broker).await;
        (broker, topics)
    }

    pub(super) async fn publish(&mut self, message: v1::Message) -> v1::PublishResponse {
        got(self.0.publish(v1::PublishRequest { message: Some(message) })).await
    }

    /// Subscribes without a session; what is published from now on comes.
    pub(super) async fn subscribe(&mut self, filters: &[&str]) -> Plain {
        let filters = filters.iter().map(|text| filter(text)).collect();
        let mut events = got(self.0.subscribe(v1::SubscribeRequest { filters })).await;
        let first = within("the first event", events.message()).await.unwrap().unwrap();
        let Some(v1::subscribe_response::Event::Opened(opened)) = first.event else { panic!("{first:?}") };
        Plain { opened, events }
    }

    /// Opens a session.
    pub(super) async fn open(&mut self, open: v1::OpenSession) -> Stream {
        let (send, frames) = mpsc::channel(64);
        send.send(v1::SubscribeStreamRequest { action: Some(Action::Open(open)) }).await.unwrap();
        let events = got(self.0.subscribe_stream(ReceiverStream::new(frames))).await;
        let mut stream =
            Stream { opened: Default::default(), send: Some(send), events, acks: 0, early: Vec::new() };
        let Event::Opened(opened) = stream.hear().await else { panic!("not opened") };
        stream.opened = opened;
        stream
    }

    /// A session that is not opened.
    pub(super) async fn not_opened(&mut self, open: v1::OpenSession) -> Status {
        let (send, frames) = mpsc::channel(1);
        send.send(v1::SubscribeStreamRequest { action: Some(Action::Open(open)) }).await.unwrap();
        let mut events = got(self.0.subscribe_stream(ReceiverStream::new(frames))).await;
        within("the refusal", events.message()).await.unwrap_err()
    }

    /// The session of a client that outlives its streams.
    pub(super) async fn session(&mut self, client_id: &str, filters: &[&str]) -> Stream {
        self.open(session(client_id, filters)).await
    }
}

pub(super) fn session(client_id: &str, filters: &[&str]) -> v1::OpenSession {
    v1::OpenSession {
        client_id: client_id.to_owned(),
        session_expiry: crate::queue::seconds(3600),
        filters: filters.iter().map(|text| filter(text)).collect(),
        ..Default::default()
    }
}

/// A subscription without a session.
pub(super) struct Plain {
    opened: v1::SubscribeOpened,
    events: Streaming<v1::SubscribeResponse>,
}

impl Plain {
    async fn next(&mut self) -> Result<Option<v1::SubscribeResponse>, Status> {
        within("an event", self.events.message()).await
    }

    pub(super) async fn deliveries(&mut self, count: usize) -> Vec<v1::Delivery> {
        let mut all = Vec::new();
        while all.len() < count {
            let event = self.next().await.unwrap().unwrap();
            let Some(v1::subscribe_response::Event::Deliveries(batch)) = event.event else {
                panic!("{event:?}")
            };
            assert!(!batch.deliveries.is_empty());
            all.extend(batch.deliveries);
        }
        assert_eq!(all.len(), count);
        all
    }

    pub(super) async fn texts(&mut self, count: usize) -> Vec<String> {
        texts(&self.deliveries(count).await)
    }
}

/// A subscription in a session.
pub(super) struct Stream {
    opened: v1::SubscribeOpened,
    send: Option<mpsc::Sender<v1::SubscribeStreamRequest>>,
    events: Streaming<v1::SubscribeStreamResponse>,
    acks: u64,
    /// Came while something else was waited for.
    early: Vec<v1::Delivery>,
}

impl Stream {
    async fn say(&self, action: Action) {
        let send = self.send.as_ref().unwrap();
        let frame = v1::SubscribeStreamRequest { action: Some(action) };
        within("room", send.send(frame)).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<v1::SubscribeStreamResponse>, Status> {
        within("an event", self.events.message()).await
    }

    async fn hear(&mut self) -> Event {
        self.next().await.unwrap().unwrap().event.unwrap()
    }

    async fn deliveries(&mut self, count: usize) -> Vec<v1::Delivery> {
        let mut all = std::mem::take(&mut self.early);
        while all.len() < count {
            let event = self.hear().await;
            let Event::Deliveries(batch) = event else { panic!("{event:?}") };
            assert!(!batch.deliveries.is_empty());
            all.extend(batch.deliveries);
        }
        assert_eq!(all.len(), count);
        all
    }

    async fn texts(&mut self, count: usize) -> Vec<String> {
        texts(&self.deliveries(count).await)
    }

    /// Settles deliveries and waits until that is durable.
    async fn ack(&mut self, deliveries: &[v1::Delivery]) -> Vec<v1::AckFailure> {
        let ids = deliveries.iter().map(|delivery| delivery.delivery_id).collect();
        self.ack_ids(ids).await
    }

    async fn ack_ids(&mut self, delivery_ids: Vec<u64>) -> Vec<v1::AckFailure> {
        self.acks += 1;
        let ack_id = self.acks;
        self.say(Action::Ack(v1::AckBatch { ack_id, delivery_ids, lease_tokens: Vec::new() })).await;
        loop {
            match self.hear().await {
                Event::Deliveries(batch) => self.early.extend(batch.deliveries),
                Event::AckResults(results) => {
                    assert_eq!(results.acked_through, ack_id);
                    return results.failures;
                }
                event => panic!("{event:?}"),
            }
        }
    }

    async fn add(&mut self, filters: Vec<v1::TopicFilter>) -> Vec<v1::FilterResult> {
        self.say(Action::Add(v1::AddFilters { filters })).await;
        self.changed().await
    }

    async fn remove(&mut self, filters: &[&str]) -> Vec<v1::FilterResult> {
        let name =
            |filter: &&str| v1::FilterName { filter: (*filter).to_owned(), share_group: String::new() };
        self.say(Action::Remove(v1::RemoveFilters { filters: filters.iter().map(name).collect() })).await;
        self.changed().await
    }

    async fn changed(&mut self) -> Vec<v1::FilterResult> {
        let event = self.hear().await;
        let Event::Changed(changed) = event else { panic!("{event:?}") };
        changed.filters
    }

    /// Takes its leave, and waits for the end.
    async fn leave(self, close: v1::CloseSession) {
        self.say(Action::Close(close)).await;
        self.over().await;
    }

    /// Says that it is done, and waits for the end.
    pub(super) async fn finish(mut self) {
        self.send = None;
        self.over().await;
    }

    async fn over(mut self) {
        while let Some(event) = self.next().await.unwrap() {
            assert!(!matches!(event.event, Some(Event::Closing(_))), "{event:?}");
        }
    }

    /// Waits for the end that the broker gives it.
    pub(super) async fn ended(&mut self) -> (v1::StreamClosing, Option<Status>) {
        let closing = loop {
            if let Event::Closing(closing) = self.hear().await {
                break closing;
            }
        };
        (closing, self.next().await.map(|event| assert_eq!(event, None)).err())
    }
}
