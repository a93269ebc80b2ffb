//! Listeners behind a load balancer.

use tokio_rustls::TlsConnector;

use super::*;

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x07\xc6\x33\x64\x01\x1f\x90\x07\x5b";
const V1: &[u8] = b"PROXY TCP4 203.0.113.9 198.51.100.1 8081 1883\r\n";

async fn broker_with(lines: &str) -> Broker {
    let (_directory, path) = listener_x(lines);
    Broker::start_with(&["--config", &path, "--log-level", "debug"]).await
}

async fn headed(broker: &Broker, header: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(broker.address("mqtt.x")).await.unwrap();
    stream.write_all(header).await.unwrap();
    stream
}

#[tokio::test]
async fn the_told_address_is_the_peers() {
    let mut broker = broker_with("proxy_protocol = \"any\"").await;
    for (header, address) in [(V1, "203.0.113.9:8081"), (V2, "203.0.113.7:8080")] {
        for version in BOTH {
            works(headed(&broker, header).await, version).await.leave().await;
        }
        broker.process().says(&format!("connected peer={address}")).await;
    }
    // The load balancer's own checks have no address: it is the peer itself.
    let stream = headed(&broker, b"PROXY UNKNOWN\r\n").await;
    let own = stream.local_addr().unwrap();
    works(stream, V5).await.leave().await;
    broker.process().says(&format!("connected peer={own}")).await;
}

#[tokio::test]
async fn without_the_right_header_nothing_is_served() {
    let mut broker = broker_with("proxy_protocol = \"v2\"\nconnect_timeout = \"1s\"").await;
    let mut wrong = V2.to_vec();
    wrong[12] = 0x31;
    let connect = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00";
    for bytes in [&connect[..], V1, &wrong] {
        let mut peer = Peer::over(headed(&broker, bytes).await, V311);
        assert_eq!(peer.next_or_end().await, None, "{bytes:?}");
    }
    broker.process().says("no PROXY header of version v2").await;
    broker.process().says("wrong PROXY header of version 2").await;
    // A part of one is waited for, as long as for CONNECT.
    let mut slow = Peer::over(headed(&broker, &V2[..20]).await, V311);
    assert_eq!(slow.next_or_end().await, None);
    broker.process().says("not connected within the time for it").await;
    works(headed(&broker, V2).await, V5).await.leave().await;
    // The first listener takes no header.
    let mut peer = Peer::open(broker.address("mqtt"), V311).await;
    peer.send_bytes(V1).await;
    assert_eq!(peer.next_or_end().await, None);
}

#[tokio::test]
async fn the_header_comes_before_the_handshake() {
    let (directory, authority) = certified();
    let mut broker = broker_with(&(tls_lines(&directory) + "proxy_protocol = \"v1\"\n")).await;
    let connector = TlsConnector::from(Arc::new(authority.client(BOTH_TLS, None)));
    let stream = connector.connect("localhost".try_into().unwrap(), headed(&broker, V1).await);
    let stream = within("a handshake", stream).await.unwrap();
    works(stream, V5).await.leave().await;
    broker.process().says("connected peer=203.0.113.9:8081").await;
}

#[tokio::test]
async fn the_told_address_is_bounded_and_no_other() {
    let lines = "proxy_protocol = \"any\"\n[limits]\nconnect_rate = 1\nconnect_burst = 5\n";
    let broker = broker_with(lines).await;
    let mut admitted = 0;
    loop {
        let mut peer = Peer::over(headed(&broker, V1).await, V5);
        peer.send(Packet::Connect(Box::new(connect(V5, "")))).await;
        match peer.next_or_end().await {
            Some(Packet::ConnAck(_)) => admitted += 1,
            None => break,
            other => panic!("{other:?}"),
        }
        assert!(admitted < 50);
    }
    assert!(admitted >= 5);
    // Who is behind the same load balancer with another address is not meant, nor is the load balancer.
    works(headed(&broker, V2).await, V5).await.leave().await;
    broker.counts("mqtt_connects_rate_refused_total", 1).await;
    broker.counts("connects_rate_refused_total", 1).await;
    broker.counts("mqtt_connects_refused_total", 0).await;
}
