//! Listeners beside the first: TLS, WebSocket, unix sockets, PROXY headers, each with its own limits.

mod hostile;
mod proxy;
mod terms;
mod tls;
mod unix;
mod websocket;

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use tokio_rustls::rustls::{ClientConfig, version};

use super::*;
use crate::certificates::{Authority, BOTH_TLS, Issued, certified, tls_lines};
use crate::harness::{Ended, config_file, stafett};

/// A configuration with a listener called x at a free port, beside the first one.
fn listener_x(lines: &str) -> (TempDir, String) {
    config_file(&format!("[[mqtt.listeners]]\nname = \"x\"\nlisten = \"127.0.0.1:0\"\n{lines}\n"))
}

async fn broker_with_x(lines: &str) -> Broker {
    let (_directory, path) = listener_x(lines);
    Broker::start_with(&["--config", &path]).await
}

/// The end of a broker that does not start.
async fn refused(lines: &str) -> Ended {
    let (directory, path) = listener_x(lines);
    let data = directory.path().join("data");
    let doors = ["--grpc-listen", "off", "--mqtt-listen", "127.0.0.1:0"];
    let args = ["serve", "--config", &path, "--data-dir", data.to_str().unwrap()];
    stafett(args.into_iter().chain(doors)).await
}

/// A client over `stream` says something to itself at every QoS, small and large.
async fn works(stream: impl Carrier + 'static, version: Version) -> Peer {
    let (mut peer, connack) = Peer::over(stream, version).greeted(connect(version, "")).await;
    assert_eq!(connack.reason, ReasonCode::Success);
    peer.subscribe("me/#", QOS2).await;
    for (qos, length) in [(QOS0, 1), (QOS1, 300_000), (QOS2, 70_000)] {
        peer.next_id += 1;
        let payload = vec![b'x'; length];
        peer.send(Packet::Publish(publish("me/x", qos, peer.next_id, payload.clone()))).await;
        let (mut came, mut acknowledged) = (false, qos == QOS0);
        while !came || !acknowledged {
            match peer.next().await {
                Packet::Publish(publish) => {
                    assert_eq!((publish.qos, publish.payload.len()), (qos, length));
                    came = qos != QOS2;
                    match publish.packet_id {
                        Some(id) if qos == QOS1 => peer.send(Packet::PubAck(ack(id.get()))).await,
                        Some(id) => peer.send(Packet::PubRec(ack(id.get()))).await,
                        None => {}
                    }
                }
                Packet::PubRel(released) => {
                    peer.send(Packet::PubComp(released)).await;
                    came = true;
                }
                Packet::PubRec(received) => peer.send(Packet::PubRel(received)).await,
                Packet::PubAck(_) | Packet::PubComp(_) => acknowledged = true,
                other => panic!("{other:?}"),
            }
        }
    }
    peer.unsubscribe("me/#").await;
    peer
}

#[tokio::test]
async fn the_ready_line_and_the_info_name_every_listener() {
    let (directory, path) = config_file(
        "[[mqtt.listeners]]\nname = \"b\"\nlisten = \"127.0.0.1:0\"\n\
         [[mqtt.listeners]]\nname = \"a\"\nlisten = \"127.0.0.1:0\"\n",
    );
    let broker = Broker::start_with(&["--config", &path]).await;
    let of = |door: &str| broker.bound(door).to_owned();
    let expected = format!(
        "ready grpc={} mqtt={} mqtt.b={} mqtt.a={}",
        of("grpc"),
        of("mqtt"),
        of("mqtt.b"),
        of("mqtt.a")
    );
    assert_eq!(broker.ready_line(), expected);
    let info = stafett(["--json", "info", "--server", &broker.url()]).await;
    assert!(info.stdout.contains(&of("mqtt.a")), "{}", info.stdout);
    // The first one may be off.
    let broker = Broker::start_with(&["--config", &path, "--mqtt-listen", "off"]).await;
    assert!(!broker.ready_line().contains("mqtt=") && broker.ready_line().contains("mqtt.b="));
    works(TcpStream::connect(broker.address("mqtt.a")).await.unwrap(), V5).await.leave().await;
    drop(directory);
}

#[tokio::test]
async fn an_address_in_use_names_the_listener() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (_directory, path) =
        config_file(&format!("[[mqtt.listeners]]\nname = \"x\"\nlisten = \"{address}\"\n"));
    let data = tempfile::tempdir().unwrap();
    let args = ["serve", "--config", &path, "--grpc-listen", "off", "--mqtt-listen", "127.0.0.1:0"];
    let args = args.into_iter().chain(["--data-dir", data.path().to_str().unwrap()]);
    let ended = stafett(args).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
    let expected = format!("cannot listen on {address} (mqtt.x: listen)");
    assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
}

#[tokio::test]
async fn each_listener_has_its_own_limits() {
    let broker = broker_with_x("max_connections = 1\nmax_packet_bytes = \"4KiB\"\nreceive_maximum = 3").await;
    let open = async || Peer::open(broker.address("mqtt.x"), V5).await;
    let (first, connack) = open().await.greeted(connect(V5, "")).await;
    let told = &connack.properties;
    assert_eq!(told.maximum_packet_size.map(|size| size.get()), Some(4096));
    assert_eq!(told.receive_maximum, NonZeroU16::new(3));
    let (mut second, connack) = open().await.greeted(connect(V5, "")).await;
    assert_eq!(connack.reason, ReasonCode::QuotaExceeded);
    assert_eq!(second.next_or_end().await, None);
    // The first listener is not meant.
    let (other, connack) = Peer::greet(&broker, connect(V5, "")).await;
    assert_eq!(connack.properties.receive_maximum, NonZeroU16::new(1024));
    let info = stafett(["--json", "info", "--server", &broker.url()]).await;
    let info: serde_json::Value = serde_json::from_str(&info.stdout).unwrap();
    assert_eq!(info["counters"]["connections_refused_total"], 1, "{info}");
    first.leave().await;
    other.leave().await;
}

#[tokio::test]
async fn a_client_that_comes_back_to_another_listener_has_its_session_and_keeps_its_will() {
    let mut broker = broker_with_x("").await;
    let mut watch = Peer::subscribed(&broker, V5, "gone", QOS1).await;
    let mut leaves = kept(V5, "moves");
    let mut delayed = will("gone", "moved");
    delayed.properties.delay = Some(3600);
    leaves.will = Some(delayed);
    let mut peer = Peer::connected(&broker, leaves).await;
    peer.subscribe("a", QOS1).await;
    peer.vanish();
    let (peer, connack) = Peer::open(broker.address("mqtt.x"), V5).await.greeted(kept(V5, "moves")).await;
    assert!(connack.session_present);
    // Its will would be published when the broker stops, if it waited still.
    broker.process().signal(rustix::process::Signal::TERM);
    assert_eq!(peer.told().await, Some(ReasonCode::ServerShuttingDown));
    assert!(!matches!(watch.next().await, Packet::Publish(_)));
}
