//! Streams over gRPC and the command line, against the real program.

mod commands;
mod definitions;
mod reading;
mod restart;

use bytes::Bytes;
use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::pub_sub_service_client::PubSubServiceClient;
use stafett::grpc::proto::v1beta1;
use stafett::grpc::proto::v1beta1::StartFrom;
use stafett::grpc::proto::v1beta1::log_service_client::LogServiceClient;
use stafett::grpc::proto::v1beta1::read_response::Event;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::harness::{Broker, within};
use crate::queue::got;

/// A client with what the tests say often.
#[derive(Clone)]
pub(crate) struct Logs {
    pub(crate) logs: LogServiceClient<Channel>,
    topics: PubSubServiceClient<Channel>,
}

pub(crate) fn named(name: &str, filters: &[&str]) -> v1beta1::Stream {
    let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
    v1beta1::Stream { name: name.to_owned(), filters, ..Default::default() }
}

/// Reading of `s` from its first message, following.
pub(super) fn from_first() -> v1beta1::ReadRequest {
    let start = StartFrom::First.into();
    v1beta1::ReadRequest { stream: "s".to_owned(), start, follow: true, ..Default::default() }
}

/// The sequences and payloads of records.
pub(super) fn said(records: &[v1beta1::Record]) -> Vec<(u64, String)> {
    let payload = |record: &v1beta1::Record| record.message.as_ref().unwrap().payload.to_vec();
    let said = |record| String::from_utf8(payload(record)).unwrap();
    records.iter().map(|record| (record.sequence, said(record))).collect()
}

/// What a stream of `numbers` holds, the first at `sequence`.
pub(crate) fn counted(sequence: u64, numbers: std::ops::Range<u64>) -> Vec<(u64, String)> {
    (sequence..).zip(numbers.map(|n| n.to_string())).collect()
}

impl Logs {
    pub(crate) async fn of(broker: &Broker) -> Self {
        let channel = broker.grpc().await;
        Self { logs: LogServiceClient::new(channel.clone()), topics: PubSubServiceClient::new(channel) }
    }

    /// A broker with one stream `s` of all that is published below `t`.
    pub(crate) async fn start() -> (Broker, Self) {
        let broker = Broker::start().await;
        let mut logs = Self::of(&broker).await;
        logs.create(named("s", &["t/#"])).await;
        (broker, logs)
    }

    pub(crate) async fn create(&mut self, stream: v1beta1::Stream) -> v1beta1::Stream {
        let request = v1beta1::CreateStreamRequest { stream: Some(stream), if_not_exists: false };
        got(self.logs.create_stream(request)).await.stream.unwrap()
    }

    pub(crate) async fn publish(&mut self, topic: &str, payload: impl Into<Bytes>) -> v1::PublishResponse {
        let message = v1::Message { topic: topic.to_owned(), payload: payload.into(), ..Default::default() };
        got(self.topics.publish(v1::PublishRequest { message: Some(message) })).await
    }

    /// Publishes numbers, one after the other.
    pub(crate) async fn count(&mut self, topic: &str, numbers: std::ops::Range<u64>) {
        for n in numbers {
            assert_eq!(self.publish(topic, n.to_string()).await.matched_streams, 1);
        }
    }

    pub(super) async fn append(
        &mut self,
        payloads: &[&str],
        expected_next_sequence: Option<u64>,
    ) -> Result<v1beta1::AppendResponse, Status> {
        let message = |payload: &&str| crate::queue::message(payload);
        let messages = payloads.iter().map(message).collect();
        let request = v1beta1::AppendRequest { stream: "s".to_owned(), messages, expected_next_sequence };
        within("an answer", self.logs.append(request)).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn state(&mut self) -> v1beta1::StreamState {
        got(self.logs.get_stream(v1beta1::GetStreamRequest { name: "s".to_owned() })).await.state.unwrap()
    }

    pub(super) async fn read(&mut self, request: v1beta1::ReadRequest) -> Reader {
        let mut reader = Reader { events: got(self.logs.read(request)).await };
        assert!(matches!(reader.hear().await, Event::Opened(_)), "the first event is another");
        reader
    }

    /// All that there is now.
    pub(super) async fn all(&mut self) -> Vec<(u64, String)> {
        self.read(v1beta1::ReadRequest { follow: false, ..from_first() }).await.rest().await
    }

    pub(super) async fn commit(&mut self, cursor: &str, sequence: u64, rewind: bool) -> u64 {
        let (stream, cursor) = ("s".to_owned(), cursor.to_owned());
        let request = v1beta1::CommitCursorRequest { stream, cursor, sequence, rewind };
        got(self.logs.commit_cursor(request)).await.committed_sequence
    }

    /// Name, place, lag and loss of each cursor.
    pub(super) async fn cursors(&mut self) -> Vec<(String, u64, u64, u64)> {
        let request = v1beta1::ListCursorsRequest { stream: "s".to_owned(), ..Default::default() };
        let cursors = got(self.logs.list_cursors(request)).await.cursors;
        cursors.into_iter().map(|it| (it.name, it.committed_sequence, it.lag, it.lost)).collect()
    }
}

/// One who reads.
pub(super) struct Reader {
    events: Streaming<v1beta1::ReadResponse>,
}

impl Reader {
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Status> {
        let next = within("an event", self.events.message()).await?;
        Ok(next.map(|response| response.event.unwrap()))
    }

    pub(super) async fn hear(&mut self) -> Event {
        self.next().await.unwrap().expect("the stream goes on")
    }

    /// At least so many messages.
    pub(super) async fn take(&mut self, count: usize) -> Vec<(u64, String)> {
        let mut taken = Vec::new();
        while taken.len() < count {
            match self.hear().await {
                Event::Records(frame) => taken.extend(said(&frame.records)),
                Event::CaughtUp(_) | Event::Heartbeat(_) => {}
                other => panic!("{other:?}"),
            }
        }
        taken
    }

    /// All messages up to the end, where it says that it has caught up.
    pub(super) async fn rest(mut self) -> Vec<(u64, String)> {
        let (mut taken, mut caught_up) = (Vec::new(), false);
        while let Some(event) = self.next().await.unwrap() {
            match event {
                Event::Records(frame) => taken.extend(said(&frame.records)),
                Event::CaughtUp(_) => caught_up = true,
                other => panic!("{other:?}"),
            }
        }
        assert!(caught_up);
        taken
    }
}
