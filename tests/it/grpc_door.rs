//! The gRPC door: health, reflection, GetServerInfo, and what holds for every call.

use std::net::TcpStream;

use rustix::process::Signal;
use stafett::grpc::proto::v1::GetServerInfoRequest;
use stafett::grpc::proto::v1::admin_service_client::AdminServiceClient;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Broker, config_file, within};

const SERVICES: [&str; 8] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "stafett.v1.AdminService",
    "stafett.v1.CallService",
    "stafett.v1.PubSubService",
    "stafett.v1.QueueService",
    "stafett.v1beta1.LogService",
];

#[tokio::test]
async fn health_is_serving_for_the_broker_and_its_services() {
    let broker = Broker::start().await;
    let mut client = HealthClient::new(broker.grpc().await);
    for service in ["", "stafett.v1.AdminService"] {
        let question = HealthCheckRequest { service: service.to_owned() };
        let answer = within("health", client.check(question)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    let question = HealthCheckRequest { service: "nobody".to_owned() };
    assert_eq!(within("health", client.check(question)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_health_watch_hears_of_the_stop_and_ends() {
    let mut broker = Broker::start().await;
    let mut client = HealthClient::new(broker.grpc().await);
    let watch = client.watch(HealthCheckRequest::default());
    let mut watch = within("the watch", watch).await.unwrap().into_inner();
    let first = within("a status", watch.message()).await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);

    broker.process().signal(Signal::TERM);
    let second = within("a status", watch.message()).await.unwrap().unwrap();
    assert_eq!(second.status(), ServingStatus::NotServing);
    assert!(within("the end of the watch", watch.message()).await.unwrap().is_none());
    let ended = broker.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// Asks one version of reflection for its services, and for the file of `symbol`.
macro_rules! reflect {
    ($version:ident, $broker:expr, $symbol:expr) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

        let mut client = ServerReflectionClient::new($broker.grpc().await);
        let ask = |question| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let questions = [
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol($symbol.to_owned())),
        ];
        let answers = client.server_reflection_info(tokio_stream::iter(questions));
        let mut answers = within("reflection", answers).await.unwrap().into_inner();
        let list = within("the services", answers.message()).await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = list else { panic!("{list:?}") };
        let file = within("the file", answers.message()).await.unwrap().unwrap().message_response;
        let Some(MessageResponse::FileDescriptorResponse(file)) = file else { panic!("{file:?}") };
        assert!(!file.file_descriptor_proto.is_empty());
        let mut names = list.service.into_iter().map(|service| service.name).collect::<Vec<_>>();
        names.sort();
        names
    }};
}

#[tokio::test]
async fn reflection_lists_what_is_served_in_both_versions() {
    let broker = Broker::start().await;
    assert_eq!(reflect!(v1, broker, "stafett.v1.AdminService.GetServerInfo"), SERVICES);
    assert_eq!(reflect!(v1alpha, broker, "google.rpc.ErrorInfo"), SERVICES);
}

#[tokio::test]
async fn server_info_says_what_runs() {
    let broker = Broker::start().await;
    let mut client = AdminServiceClient::new(broker.grpc().await);
    let info = within("info", client.get_server_info(GetServerInfoRequest {})).await.unwrap().into_inner();
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    let features = ["calls", "compression", "health", "mqtt", "pubsub", "queues", "reflection", "streams"];
    assert_eq!(info.features, features);
    assert_eq!(info.counters["connections"], 1);
    assert_eq!((info.counters["grpc_connections"], info.counters["mqtt_connections"]), (1, 0));
    assert_eq!(info.doors["grpc"], broker.address("grpc").to_string());
    assert!(info.max_connections > 0);
    assert!(info.started_at.is_some());
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_accept_it() {
    let broker = Broker::start().await;
    for (encoding, name) in [(CompressionEncoding::Gzip, "gzip"), (CompressionEncoding::Zstd, "zstd")] {
        let mut client = AdminServiceClient::new(broker.grpc().await)
            .send_compressed(encoding)
            .accept_compressed(encoding);
        let answer = within("info", client.get_server_info(GetServerInfoRequest {})).await.unwrap();
        assert_eq!(answer.metadata().get("grpc-encoding").unwrap(), name);
        assert_eq!(answer.into_inner().version, env!("CARGO_PKG_VERSION"));
    }
}

#[tokio::test]
async fn the_request_id_comes_back() {
    let broker = Broker::start().await;
    let mut client = AdminServiceClient::new(broker.grpc().await);
    let mut question = Request::new(GetServerInfoRequest {});
    question.metadata_mut().insert("x-request-id", "mine-1".parse().unwrap());
    let answer = within("info", client.get_server_info(question)).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "mine-1");

    let answer = within("info", client.get_server_info(GetServerInfoRequest {})).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap().as_bytes().len(), 26);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_counted() {
    let (_directory, config) = config_file("[limits]\nconnections = 1\n");
    let broker = Broker::start_with(&["--config", &config]).await;
    let mut client = AdminServiceClient::new(broker.grpc().await);
    within("info", client.get_server_info(GetServerInfoRequest {})).await.unwrap();

    let address = broker.address("grpc");
    let closed = tokio::task::spawn_blocking(move || {
        use std::io::Read;
        let mut beyond = TcpStream::connect(address).unwrap();
        beyond.set_read_timeout(Some(crate::harness::DEADLINE)).unwrap();
        beyond
            .read(&mut [0; 1])
            .map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |n| n == 0)
    });
    assert!(within("the refusal", closed).await.unwrap());

    let info = within("info", client.get_server_info(GetServerInfoRequest {})).await.unwrap().into_inner();
    assert_eq!((info.max_connections, info.counters["connections"]), (1, 1));
    assert_eq!(info.counters["connections_refused_total"], 1);
}
