//! Start and stop: the ready line, signals, exit codes.

use std::net::TcpListener;

use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::harness::{Broker, config_file, stafett, within};

/// A stream that the client keeps open; it ends when the result is dropped.
async fn open_stream(broker: &Broker) -> impl Sized + use<> {
    let mut client = ServerReflectionClient::new(broker.grpc().await);
    let (requests, receiver) = mpsc::channel(1);
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    requests.send(question).await.unwrap();
    let stream = client.server_reflection_info(ReceiverStream::new(receiver));
    let mut answers = within("the stream", stream).await.unwrap().into_inner();
    within("an answer", answers.message()).await.unwrap().unwrap();
    (requests, answers)
}

#[tokio::test]
async fn the_ready_line_names_each_door_and_its_bound_address() {
    let broker = Broker::start().await;
    let (grpc, mqtt) = (broker.address("grpc"), broker.address("mqtt"));
    assert!(grpc.port() != 0 && mqtt.port() != 0);
    assert_eq!(broker.ready_line(), format!("ready grpc={grpc} mqtt={mqtt}"));
}

#[tokio::test]
async fn sigterm_ends_with_0_after_exactly_one_line_on_stdout() {
    let broker = Broker::start().await;
    let line = format!("{}\n", broker.ready_line());
    let ended = broker.terminate().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout, line);
    assert!(ended.stderr.contains("SIGTERM: stopping"), "{}", ended.stderr);
}

#[tokio::test]
async fn ctrl_c_ends_with_0() {
    let mut broker = Broker::start().await;
    broker.process().signal(Signal::INT);
    let ended = broker.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_stop() {
    let broker = Broker::start().await;
    let connection = broker.grpc().await;
    let ended = broker.terminate().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("deadline"), "{}", ended.stderr);
    drop(connection);
}

#[tokio::test]
async fn a_second_signal_cuts_and_says_so() {
    let mut broker = Broker::start().await;
    let stream = open_stream(&broker).await;
    broker.process().signal(Signal::TERM);
    broker.process().says("SIGTERM: stopping").await;
    broker.process().signal(Signal::TERM);
    let ended = broker.end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("SIGTERM: cut"), "{}", ended.stderr);
    drop(stream);
}

#[tokio::test]
async fn the_drain_waits_for_a_stream_until_it_ends() {
    let mut broker = Broker::start().await;
    let stream = open_stream(&broker).await;
    broker.process().signal(Signal::TERM);
    broker.process().says("SIGTERM: stopping").await;
    drop(stream);
    let ended = broker.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("deadline"), "{}", ended.stderr);
}

#[tokio::test]
async fn at_the_drain_deadline_the_rest_is_cut() {
    let (_directory, config) = config_file("[shutdown]\ndrain_timeout = \"50ms\"\n");
    let broker = Broker::start_with(&["--config", &config]).await;
    let stream = open_stream(&broker).await;
    let ended = broker.terminate().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("drain deadline"), "{}", ended.stderr);
    drop(stream);
}

#[tokio::test]
async fn an_occupied_port_is_named_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = stafett(["serve", "--grpc-listen", &address]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
    let expected = format!("error: cannot listen on {address} (--grpc-listen): Address already in use");
    assert!(ended.stderr.starts_with(&expected), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
}

#[tokio::test]
async fn after_a_crash_it_starts_again_in_the_same_place() {
    let broker = Broker::start().await;
    let (data, address) = (broker.data(), broker.address("grpc").to_string());
    assert_eq!(broker.kill9().await.code, None);
    let again = Broker::start_in(data, &["--grpc-listen", &address]).await;
    assert_eq!(again.address("grpc").to_string(), address);
}

#[tokio::test]
async fn with_every_door_off_nothing_starts() {
    let ended = stafett(["serve", "--grpc-listen", "off", "--mqtt-listen", "off"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    assert!(ended.stderr.contains("no door is open"), "{}", ended.stderr);
}
