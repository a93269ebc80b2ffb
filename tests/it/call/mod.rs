//! Remote calls over gRPC, against the real program.

mod answers;
mod commands;
pub(crate) mod gather;
mod later;
mod loss;
mod parts;
mod refusals;

use std::time::Duration;

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::call_service_client::CallServiceClient;
use stafett::grpc::proto::v1::serve_request::Action;
use stafett::grpc::proto::v1::serve_response::Event;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{IntoRequest, Request, Response, Status, Streaming};
use tonic_types::StatusExt;

use crate::harness::{Broker, within};
use crate::queue::{got, message, reason};

/// A client with what the tests say often.
#[derive(Clone)]
pub(crate) struct Calls(pub(crate) CallServiceClient<Channel>);

/// A call on its way.
pub(crate) type Begun = JoinHandle<Result<Response<v1::CallResponse>, Status>>;

impl Calls {
    pub(crate) async fn of(broker: &Broker) -> Self {
        Self(CallServiceClient::new(broker.grpc().await))
    }

    /// Begins a call.
    pub(crate) fn begin(&self, request: impl IntoRequest<v1::CallRequest>) -> Begun {
        let (mut client, request) = (self.0.clone(), request.into_request());
        #[expect(clippy::disallowed_methods, reason = "a test waits for it")]
        tokio::spawn(async move { client.call(request).await })
    }

    /// Why a call is not answered.
    pub(crate) async fn refused(&mut self, request: impl IntoRequest<v1::CallRequest>) -> Status {
        within("an answer", self.0.call(request)).await.expect_err("the call was answered")
    }

    pub(crate) async fn responders(&mut self, service: &str) -> Vec<v1::Responder> {
        let service = service.to_owned();
        let request = v1::ListRespondersRequest { service, ..Default::default() };
        got(self.0.list_responders(request)).await.responders
    }
}

pub(crate) fn asking(service: &str, payload: &str) -> v1::CallRequest {
    v1::CallRequest { service: service.to_owned(), request: Some(message(payload)), idempotent: false }
}

/// The same with a deadline.
pub(crate) fn within_time(request: v1::CallRequest, deadline: Duration) -> Request<v1::CallRequest> {
    let mut request = Request::new(request);
    request.set_timeout(deadline);
    request
}

pub(crate) fn text(message: Option<&v1::Message>) -> String {
    String::from_utf8(message.unwrap().payload.to_vec()).unwrap()
}

/// What a call was answered.
pub(crate) async fn answered(call: Begun) -> String {
    let reply = got(async { call.await.unwrap() }).await.reply.unwrap();
    text(reply.message.as_ref())
}

/// Why a call was not answered.
pub(crate) async fn failed(call: Begun) -> Status {
    within("an answer", call).await.unwrap().expect_err("the call was answered")
}

pub(crate) fn reason_of(status: &Status) -> String {
    reason(&status.get_error_details()).to_owned()
}

/// A responder.
pub(crate) struct Serving {
    send: Option<mpsc::Sender<v1::ServeRequest>>,
    events: Streaming<v1::ServeResponse>,
    pub(crate) opened: v1::ServeOpened,
}

pub(crate) fn opening(service: &str) -> v1::ServeOpen {
    v1::ServeOpen { service: service.to_owned(), ..Default::default() }
}

pub(crate) fn named(service: &str, id: &str, credit: u32) -> v1::ServeOpen {
    let (responder_id, max_concurrent_requests) = (id.to_owned(), credit);
    v1::ServeOpen { responder_id, max_concurrent_requests, ..opening(service) }
}

pub(crate) fn reply(request_id: u64, payload: &str) -> v1::ServeReply {
    v1::ServeReply { request_id, message: Some(message(payload)), ..Default::default() }
}

impl Serving {
    pub(crate) async fn start(calls: &Calls, first: Action) -> Self {
        let (send, frames) = mpsc::channel(64);
        send.send(v1::ServeRequest { action: Some(first) }).await.unwrap();
        let events = got(calls.0.clone().serve(ReceiverStream::new(frames))).await;
        Self { send: Some(send), events, opened: v1::ServeOpened::default() }
    }

    pub(crate) async fn open(calls: &Calls, open: v1::ServeOpen) -> Self {
        let mut serving = Self::start(calls, Action::Open(open)).await;
        let Event::Opened(opened) = serving.hear().await else { panic!("not opened") };
        serving.opened = opened;
        serving
    }

    pub(crate) async fn say(&self, action: Action) {
        let send = self.send.as_ref().unwrap();
        within("room", send.send(v1::ServeRequest { action: Some(action) })).await.unwrap();
    }

    pub(crate) async fn reply(&self, replies: Vec<v1::ServeReply>) {
        self.say(Action::Replies(v1::ServeReplies { replies })).await;
    }

    pub(crate) async fn next(&mut self) -> Result<Option<v1::ServeResponse>, Status> {
        within("an event", self.events.message()).await
    }

    pub(crate) async fn hear(&mut self) -> Event {
        self.next().await.unwrap().unwrap().event.unwrap()
    }

    /// So many requests, however many frames they come in.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<v1::IncomingRequest> {
        let mut requests = Vec::new();
        while requests.len() < count {
            match self.hear().await {
                Event::Requests(frame) => requests.extend(frame.requests),
                other => panic!("not requests: {other:?}"),
            }
        }
        assert_eq!(requests.len(), count);
        requests
    }

    pub(crate) async fn one(&mut self) -> v1::IncomingRequest {
        self.take(1).await.remove(0)
    }

    pub(crate) async fn refused(&mut self) -> Vec<v1::RefusedReply> {
        match self.hear().await {
            Event::Refused(refused) => refused.replies,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub(crate) async fn cancelled(&mut self) -> Vec<u64> {
        match self.hear().await {
            Event::Cancelled(cancelled) => cancelled.request_ids,
            other => panic!("not cancelled: {other:?}"),
        }
    }

    /// Closes its side.
    pub(crate) fn finish(&mut self) {
        self.send = None;
    }

    /// Answers each request with its own text and the responder's name, for ever.
    pub(crate) fn echo(mut self) -> JoinHandle<()> {
        #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
        tokio::spawn(async move {
            while let Ok(Some(event)) = self.events.message().await {
                let Some(Event::Requests(frame)) = event.event else { continue };
                let answer = |asked: &v1::IncomingRequest| {
                    let payload = format!("{} by {}", text(asked.message.as_ref()), self.opened.responder_id);
                    reply(asked.request_id, &payload)
                };
                self.reply(frame.requests.iter().map(answer).collect()).await;
            }
        })
    }
}
