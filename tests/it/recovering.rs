//! The doors while the store is read back: as long as a test wants, on a thread of the library's server. The rest is real,
//! sockets included.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};

use rustix::process::{Signal, getpid, kill_process};
use stafett::config::{Listen, Settings};
use stafett::engine::OpenError;
use stafett::engine::embedded::Embedded;
use stafett::grpc::proto::v1::admin_service_client::AdminServiceClient;
use stafett::grpc::proto::v1::queue_service_client::QueueServiceClient;
use stafett::grpc::proto::v1::{GetServerInfoRequest, ListQueuesRequest};
use stafett::mqtt::codec::{Packet, ReasonCode};
use stafett::server::{self, Ready, ServerError, Stopped};
use tempfile::TempDir;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::harness::within;
use crate::mqtt::{Peer, V5, connect};

/// A signal reaches every server of the process.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A server that reads its store back until it is told that it has done so.
struct Recovering {
    grpc: SocketAddr,
    mqtt: SocketAddr,
    read_back: mpsc::Sender<Result<(), OpenError>>,
    ready: oneshot::Receiver<Ready>,
    server: JoinSet<Result<Stopped, ServerError>>,
    data: TempDir,
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Recovering {
    /// Returns when a quarter is read back.
    async fn start() -> Self {
        let (grpc, mqtt) = (free_address(), free_address());
        let data = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        settings.store.data_dir = data.path().to_owned();
        settings.grpc.listen = Listen::at("127.0.0.1", grpc.port());
        settings.mqtt.listen = Listen::at("127.0.0.1", mqtt.port());
        let (read_back, ended) = mpsc::channel::<Result<(), OpenError>>();
        let (announce, ready) = oneshot::channel();
        let (began, begins) = oneshot::channel();
        let mut server = JoinSet::new();
        server.spawn(server::run_on(
            settings,
            move |store, progress| {
                progress.tell(1, 4);
                began.send(()).unwrap();
                ended.recv().unwrap_or_else(|_| Err(OpenError::Locked(store.data_dir.clone())))?;
                Ok(Arc::new(Embedded::open_telling(store, progress)?))
            },
            |ready| {
                announce.send(ready.clone()).unwrap();
                Ok(())
            },
        ));
        within("the recovery", begins).await.unwrap();
        Self { grpc, mqtt, read_back, ready, server, data }
    }

    async fn end(&mut self) -> Result<Stopped, ServerError> {
        within("the end", self.server.join_next()).await.unwrap().unwrap()
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap();
        within("a gRPC connection", endpoint.connect()).await.unwrap()
    }
}

#[tokio::test]
async fn health_says_not_serving_and_calls_are_told_to_come_again() {
    let _alone = ALONE.lock().await;
    let mut recovering = Recovering::start().await;
    let channel = recovering.channel().await;
    let mut health = HealthClient::new(channel.clone());
    let answer = within("health", health.check(HealthCheckRequest::default())).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);
    let service = HealthCheckRequest { service: "stafett.v1.QueueService".to_owned() };
    let mut watch = within("the watch", health.watch(service)).await.unwrap().into_inner();
    let first = within("a status", watch.message()).await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::NotServing);

    let mut queues = QueueServiceClient::new(channel.clone());
    let mut admin = AdminServiceClient::new(channel);
    let refused = [
        within("a refusal", queues.list_queues(ListQueuesRequest::default())).await.unwrap_err(),
        within("a refusal", admin.get_server_info(GetServerInfoRequest {})).await.unwrap_err(),
    ];
    for refused in refused {
        assert_eq!(refused.code(), Code::Unavailable);
        assert_eq!(refused.message(), "the store is being read back: 25 %");
        let details = refused.get_error_details();
        assert!(details.retry_info().unwrap().retry_delay.is_some_and(|delay| !delay.is_zero()));
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.metadata["percent"].as_str()), ("RECOVERING", "25"));
    }

    // A device that comes now is served later.
    let mut device = Peer::open(recovering.mqtt, V5).await;
    device.send(Packet::Connect(Box::new(connect(V5, "early")))).await;
    assert!(recovering.ready.try_recv().is_err(), "said to be ready before it was");

    recovering.read_back.send(Ok(())).unwrap();
    let ready = within("the ready line", recovering.ready).await.unwrap();
    assert_eq!(ready.to_string(), format!("ready grpc={} mqtt={}", recovering.grpc, recovering.mqtt));
    // On the connections that were there before.
    within("queues", queues.list_queues(ListQueuesRequest::default())).await.unwrap();
    within("the server's facts", admin.get_server_info(GetServerInfoRequest {})).await.unwrap();
    let second = within("a status", watch.message()).await.unwrap().unwrap();
    assert_eq!(second.status(), ServingStatus::Serving);
    assert!(matches!(device.next().await, Packet::ConnAck(answer) if answer.reason == ReasonCode::Success));
}

#[tokio::test]
async fn a_store_that_cannot_be_read_back_ends_the_server_unannounced() {
    let _alone = ALONE.lock().await;
    let mut recovering = Recovering::start().await;
    let channel = recovering.channel().await;
    let damaged =
        OpenError::Damaged { path: recovering.data.path().to_owned(), what: "on purpose".to_owned() };
    recovering.read_back.send(Err(damaged)).unwrap();
    let ended = recovering.end().await.unwrap_err();
    assert!(matches!(ended, ServerError::Store(OpenError::Damaged { .. })), "{ended}");
    assert!(recovering.ready.try_recv().is_err());
    let mut admin = AdminServiceClient::new(channel);
    within("a refusal", admin.get_server_info(GetServerInfoRequest {})).await.unwrap_err();
}

#[tokio::test]
async fn a_signal_ends_the_server_before_the_store_is_read_back() {
    let _alone = ALONE.lock().await;
    let mut recovering = Recovering::start().await;
    kill_process(getpid(), Signal::TERM).unwrap();
    let stopped = recovering.end().await.unwrap();
    assert_eq!(stopped, Stopped::Clean);
    assert!(recovering.ready.await.is_err());
}
