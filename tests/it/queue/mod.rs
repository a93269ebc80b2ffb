//! Queues over gRPC, against the real program.

mod browse;
mod commands;
mod definitions;
mod deleting;
mod deliveries;
mod expiry;
mod forward;
mod giving_up;
mod leases;
mod messages;
mod pause;
pub(crate) mod placing;
mod redrive;
mod restart;
mod streams;
mod turns;
mod watch;

use bytes::Bytes;
use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::queue_service_client::QueueServiceClient;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub(crate) use streams::which;

use crate::harness::{Broker, within};

/// A client with what the tests say often.
pub(super) struct Queues(pub(super) QueueServiceClient<Channel>);

/// What a call gave.
pub(crate) async fn got<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> T {
    within("an answer", call).await.unwrap().into_inner()
}

/// What a call was refused with.
pub(crate) async fn refused<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Status {
    match within("an answer", call).await {
        Ok(_) => panic!("the call was not refused"),
        Err(status) => status,
    }
}

/// The reason in the details of a refusal.
pub(crate) fn reason(details: &ErrorDetails) -> &str {
    details.error_info().map_or("", |info| info.reason.as_str())
}

/// The field that a refusal names.
pub(crate) fn field(status: &Status) -> String {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    violations.into_iter().map(|violation| violation.field).collect()
}

pub(crate) fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub(crate) fn millis(millis: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: (millis / 1000).into(), nanos: millis % 1000 * 1_000_000 })
}

pub(crate) fn message(payload: &str) -> v1::Message {
    v1::Message { payload: Bytes::copy_from_slice(payload.as_bytes()), ..Default::default() }
}

pub(crate) fn named(name: &str) -> v1::Queue {
    v1::Queue { name: name.to_owned(), ..Default::default() }
}

/// The payloads, as text.
pub(super) fn payloads(messages: &[v1::LeasedMessage]) -> Vec<String> {
    let payload = |leased: &v1::LeasedMessage| leased.message.as_ref().unwrap().payload.to_vec();
    messages.iter().map(|leased| String::from_utf8(payload(leased)).unwrap()).collect()
}

pub(super) fn tokens(messages: &[v1::LeasedMessage]) -> Vec<Bytes> {
    messages.iter().map(|leased| leased.lease_token.clone()).collect()
}

/// A connection that passes through the test.
pub(super) struct Line(JoinSet<()>);

impl Line {
    /// Cut, without a word from the client.
    pub(super) fn cut(self) {
        drop(self.0);
    }
}

impl Queues {
    pub(super) async fn of(broker: &Broker) -> Self {
        Self(QueueServiceClient::new(broker.grpc().await))
    }

    /// Over a line that can be cut.
    pub(super) async fn over_a_line(broker: &Broker) -> (Self, Line) {
        let line = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", line.local_addr().unwrap());
        let to = broker.address("grpc");
        let mut relay = JoinSet::new();
        relay.spawn(async move {
            let (mut client, _) = line.accept().await.unwrap();
            let mut server = TcpStream::connect(to).await.unwrap();
            drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
        });
        let channel =
            within("a gRPC connection", Endpoint::from_shared(url).unwrap().connect()).await.unwrap();
        (Self(QueueServiceClient::new(channel)), Line(relay))
    }

    /// A broker with one queue `q`.
    pub(super) async fn start() -> (Broker, Self) {
        let broker = Broker::start().await;
        let mut queues = Self::of(&broker).await;
        queues.create(named("q")).await;
        (broker, queues)
    }

    pub(super) async fn create(&mut self, queue: v1::Queue) -> v1::Queue {
        let request = v1::CreateQueueRequest { queue: Some(queue), if_not_exists: false };
        got(self.0.create_queue(request)).await.queue.unwrap()
    }

    pub(super) async fn enqueue(&mut self, queue: &str, message: v1::Message) -> v1::EnqueueResponse {
        let request = v1::EnqueueRequest { queue: queue.to_owned(), message: Some(message) };
        got(self.0.enqueue(request)).await
    }

    /// Enqueues payloads in their order.
    pub(super) async fn fill(&mut self, queue: &str, payloads: &[&str]) {
        for payload in payloads {
            self.enqueue(queue, message(payload)).await;
        }
    }

    /// At most `max` messages that are there or come within ten seconds.
    pub(super) async fn receive(&mut self, queue: &str, max: u32) -> Vec<v1::LeasedMessage> {
        self.receive_for(queue, max, seconds(10)).await
    }

    /// The same for a lease of so long.
    pub(super) async fn receive_for(
        &mut self,
        queue: &str,
        max_messages: u32,
        wait: Option<prost_types::Duration>,
    ) -> Vec<v1::LeasedMessage> {
        let queue = queue.to_owned();
        got(self.0.receive(v1::ReceiveRequest { queue, max_messages, wait, ..Default::default() }))
            .await
            .messages
    }

    /// Takes one message that must be there or come.
    pub(super) async fn one(&mut self, queue: &str) -> v1::LeasedMessage {
        self.receive(queue, 1).await.pop().expect("a message")
    }

    /// Whether there is nothing to receive now.
    pub(super) async fn is_empty(&mut self, queue: &str) -> bool {
        self.receive_for(queue, 1, None).await.is_empty()
    }

    pub(super) async fn acknowledge(&mut self, queue: &str, lease_tokens: Vec<Bytes>) -> Vec<v1::AckFailure> {
        let request = v1::AcknowledgeRequest { queue: queue.to_owned(), lease_tokens };
        got(self.0.acknowledge(request)).await.failures
    }

    pub(super) async fn nack(&mut self, queue: &str, lease_token: &Bytes, kind: v1::NackKind) {
        let request = v1::NackRequest {
            queue: queue.to_owned(),
            lease_tokens: vec![lease_token.clone()],
            kind: kind.into(),
            ..Default::default()
        };
        assert_eq!(got(self.0.nack(request)).await.failures, []);
    }

    pub(super) async fn stats(&mut self, name: &str) -> v1::QueueStats {
        let request = v1::GetQueueStatsRequest { name: name.to_owned() };
        got(self.0.get_queue_stats(request)).await.stats.unwrap()
    }
}
