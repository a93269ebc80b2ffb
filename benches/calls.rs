//! A call through the broker beside a unary call to a bare tonic server, in one run: `cargo bench --bench calls`.
//!
//! Three processes: the broker, a server that answers at once with what it is asked, and this one, with the callers and,
//! for the broker, the responder. Each round measures both, one after the other; printed are the medians and their ratio.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "it measures time, and its tasks end with it")]

use std::io::{BufRead, BufReader, Write};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::Stream;
use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::call_service_client::CallServiceClient;
use stafett::grpc::proto::v1::call_service_server::{CallService, CallServiceServer};
use stafett::grpc::proto::v1::serve_request::Action;
use stafett::grpc::proto::v1::serve_response::Event;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(1);
const PAYLOAD: usize = 64;
/// Callers of one connection.
const PER_CONNECTION: usize = 16;

/// Answers with what it is asked.
struct Echo;

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl CallService for Echo {
    async fn call(&self, request: Request<v1::CallRequest>) -> Result<Response<v1::CallResponse>, Status> {
        let message = request.into_inner().request;
        Ok(Response::new(v1::CallResponse { reply: Some(v1::Reply { message, ..Default::default() }) }))
    }

    type CallStreamStream = Events<v1::CallStreamResponse>;

    async fn call_stream(
        &self,
        _: Request<v1::CallStreamRequest>,
    ) -> Result<Response<Self::CallStreamStream>, Status> {
        Err(Status::unimplemented("call_stream"))
    }

    async fn call_async(
        &self,
        _: Request<v1::CallAsyncRequest>,
    ) -> Result<Response<v1::CallAsyncResponse>, Status> {
        Err(Status::unimplemented("call_async"))
    }

    async fn await_reply(
        &self,
        _: Request<v1::AwaitReplyRequest>,
    ) -> Result<Response<v1::AwaitReplyResponse>, Status> {
        Err(Status::unimplemented("await_reply"))
    }

    type MulticastStream = Events<v1::MulticastResponse>;

    async fn multicast(
        &self,
        _: Request<v1::MulticastRequest>,
    ) -> Result<Response<Self::MulticastStream>, Status> {
        Err(Status::unimplemented("multicast"))
    }

    async fn gather(&self, _: Request<v1::GatherRequest>) -> Result<Response<v1::GatherResponse>, Status> {
        Err(Status::unimplemented("gather"))
    }

    type ServeStream = Events<v1::ServeResponse>;

    async fn serve(
        &self,
        _: Request<Streaming<v1::ServeRequest>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        Err(Status::unimplemented("serve"))
    }

    async fn list_responders(
        &self,
        _: Request<v1::ListRespondersRequest>,
    ) -> Result<Response<v1::ListRespondersResponse>, Status> {
        Err(Status::unimplemented("list_responders"))
    }
}

/// A server in a process of its own.
struct Process(Child, String);

impl Process {
    /// Starts it, and reads the address after `grpc=` from the first line that it prints.
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.split_whitespace().find_map(|word| word.strip_prefix("grpc=")).expect("an address");
        Self(child, format!("http://{address}"))
    }

    async fn connect(&self) -> Channel {
        Endpoint::from_shared(self.1.clone()).unwrap().tcp_nodelay(true).connect().await.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn serve_echo() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("grpc={}", listener.local_addr().unwrap());
    std::io::stdout().flush().unwrap();
    let incoming = TcpListenerStream::new(listener);
    Server::builder()
        .tcp_nodelay(true)
        .add_service(CallServiceServer::new(Echo))
        .serve_with_incoming(incoming)
        .await
        .unwrap();
}

/// Answers each frame of requests with one of replies.
async fn respond(channel: Channel) {
    let (send, frames) = mpsc::channel(64);
    let open =
        v1::ServeOpen { service: "echo".to_owned(), max_concurrent_requests: 1024, ..Default::default() };
    send.send(v1::ServeRequest { action: Some(Action::Open(open)) }).await.unwrap();
    let mut client = CallServiceClient::new(channel);
    let mut events = client.serve(ReceiverStream::new(frames)).await.unwrap().into_inner();
    events.message().await.unwrap().unwrap();
    tokio::spawn(async move {
        while let Ok(Some(event)) = events.message().await {
            let Some(Event::Requests(frame)) = event.event else { continue };
            let reply = |asked: v1::IncomingRequest| v1::ServeReply {
                request_id: asked.request_id,
                message: asked.message,
                ..Default::default()
            };
            let replies = v1::ServeReplies { replies: frame.requests.into_iter().map(reply).collect() };
            if send.send(v1::ServeRequest { action: Some(Action::Replies(replies)) }).await.is_err() {
                return;
            }
        }
    });
}

/// Calls per second, and the latency that 99 of 100 stay below.
async fn measure(process: &Process, callers: usize) -> (f64, Duration) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    let mut channel = process.connect().await;
    let message = v1::Message { payload: vec![7; PAYLOAD].into(), ..Default::default() };
    let request = v1::CallRequest { service: "echo".to_owned(), request: Some(message), idempotent: false };
    for caller in 0..callers {
        if caller > 0 && caller % PER_CONNECTION == 0 {
            channel = process.connect().await;
        }
        let (mut client, stop, request) =
            (CallServiceClient::new(channel.clone()), Arc::clone(&stop), request.clone());
        tasks.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                client.call(request.clone()).await.unwrap();
                latencies.push(begun.elapsed());
            }
            latencies
        }));
    }
    let begun = Instant::now();
    tokio::time::sleep(ROUND).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap());
    }
    let rate = latencies.len() as f64 / begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    (rate, latencies[latencies.len() * 99 / 100])
}

fn median<T: Copy>(mut values: Vec<T>, order: impl Fn(&T, &T) -> std::cmp::Ordering) -> T {
    values.sort_by(order);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    if std::env::args().nth(1).as_deref() == Some("echo") {
        return serve_echo().await;
    }
    let data = tempfile::tempdir().unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_stafett"));
    serve
        .args(["serve", "--grpc-listen", "127.0.0.1:0", "--mqtt-listen", "off", "--data-dir"])
        .arg(data.path());
    let broker = Process::start(&mut serve);
    let echo = Process::start(Command::new(std::env::current_exe().unwrap()).arg("echo"));
    respond(broker.connect().await).await;
    for callers in [1, 64] {
        let (mut calls, mut unary) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            unary.push(measure(&echo, callers).await);
            calls.push(measure(&broker, callers).await);
        }
        let rate = |all: &[(f64, Duration)]| median(all.iter().map(|it| it.0).collect(), f64::total_cmp);
        let late = |all: &[(f64, Duration)]| median(all.iter().map(|it| it.1).collect(), Ord::cmp);
        println!(
            "{callers} callers: {:.0} calls/s (p99 {:?}), bare unary {:.0}/s (p99 {:?}), ratio {:.2}",
            rate(&calls),
            late(&calls),
            rate(&unary),
            late(&unary),
            rate(&calls) / rate(&unary)
        );
    }
}
