//! Peers that mean ill, where TLS and WebSocket give them other ways.

use std::time::Duration;

use super::super::hostile::{Scene, drips};
use super::*;

const WEBSOCKET: &str = "transport = \"websocket\"\n";
const UPGRADE: &[u8] =
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: \
    dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
/// A ClientHello that stops within.
const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
const CONNECT: &[u8] = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00";

async fn scene(lines: &str) -> Scene {
    Scene::of(broker_with_x(lines).await).await
}

/// A TCP connection to x.
async fn tcp(scene: &Scene) -> TcpStream {
    within("a connection", TcpStream::connect(scene.broker.address("mqtt.x"))).await.unwrap()
}

/// One that is upgraded.
async fn upgraded(scene: &Scene) -> TcpStream {
    let mut stream = tcp(scene).await;
    stream.write_all(UPGRADE).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(within("the upgrade", stream.read_u8()).await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"));
    stream
}

/// A frame of a client, masked with zeros.
fn frame(first: u8, announced: u64, payload: &[u8]) -> Vec<u8> {
    [&[first, 0xff][..], &announced.to_be_bytes(), &[0; 4], payload].concat()
}

fn whole(first: u8, payload: &[u8]) -> Vec<u8> {
    frame(first, payload.len() as u64, payload)
}

/// What it still says, up to its end.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    // A reset ends it as well.
    within("the end", stream.read_to_end(&mut rest)).await.ok();
    rest
}

#[tokio::test]
async fn lengths_that_lie_take_no_memory() {
    let (directory, authority) = certified();
    let mut secure = scene(&tls_lines(&directory)).await;
    let mut waiting = Vec::new();
    for n in 0..100 {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(authority.client(BOTH_TLS, None)));
        let shaken = connector.connect("localhost".try_into().unwrap(), tcp(&secure).await);
        let stream = within("a handshake", shaken).await.unwrap();
        let (mut peer, _) = Peer::over(stream, BOTH[n % 2]).greeted(connect(BOTH[n % 2], "")).await;
        peer.send_bytes(&[0x30, 0xff, 0xff, 0x7f, 0, 1, b'a']).await;
        waiting.push(peer);
        // A record longer than any may be.
        let mut stream = tcp(&secure).await;
        stream.write_all(b"\x16\x03\x01\xff\xff\x01\x00\xff\xff").await.unwrap();
        rest(&mut stream).await;
    }
    secure.holds(48).await;

    let mut web = scene(WEBSOCKET).await;
    let mut waiting = Vec::new();
    for n in 0..200 {
        let mut stream = upgraded(&web).await;
        // The packet in the message lies, or the message; what comes is little.
        let lie = match n % 2 {
            0 => whole(0x82, &[CONNECT, &[0x30, 0xff, 0xff, 0x7f, 0, 1, b'a']].concat()),
            _ => frame(0x82, 4_000_000, CONNECT),
        };
        stream.write_all(&lie).await.unwrap();
        waiting.push(stream);
    }
    web.holds(48).await;
    // What is more than is taken is told at once.
    for announced in [5 << 20, 1 << 40, i64::MAX as u64] {
        let mut stream = upgraded(&web).await;
        stream.write_all(&frame(0x82, announced, b"")).await.unwrap();
        let told = rest(&mut stream).await;
        assert!(told.starts_with(&[0x88]) && told[2..4] == 1009_u16.to_be_bytes(), "{told:02x?}");
    }
    drop(waiting);
    web.holds(48).await;
}

#[tokio::test]
async fn drops_hold_no_connection() {
    let (directory, _) = certified();
    let bounded = "connect_timeout = \"1s\"\n";
    let mut secure = scene(&format!("{bounded}{}", tls_lines(&directory))).await;
    let mut peer = Peer::over(tcp(&secure).await, V311);
    drips(&mut peer, &[HELLO, &[0; 500]].concat()).await;
    secure.holds(32).await;
    let mut web = scene(&format!("{bounded}{WEBSOCKET}")).await;
    let headers = [&UPGRADE[..UPGRADE.len() - 2], "X: y\r\n".repeat(100).as_bytes()].concat();
    drips(&mut Peer::over(tcp(&web).await, V311), &headers).await;
    // An upgraded one: a part of CONNECT in drops, then messages of nothing.
    let mut stream = upgraded(&web).await;
    let mut drops = CONNECT[..3].chunks(1).chain(std::iter::repeat_n(&b""[..], 500));
    while tokio::time::timeout(Duration::from_millis(50), stream.read_u8()).await.is_err() {
        let drop = drops.next().expect("an end");
        stream.write_all(&whole(0x82, drop)).await.ok();
    }
    rest(&mut stream).await;
    web.holds(32).await;
}

#[tokio::test]
async fn headers_without_an_end_are_cut() {
    let mut web = scene(WEBSOCKET).await;
    for line in [format!("X-{}: y\r\n", "x".repeat(50)), "x".repeat(1000), "X: y\r\n".to_owned()] {
        let mut stream = tcp(&web).await;
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let flood = line.repeat(100_000 / line.len());
        let mut sent = 0;
        while within("to be read or cut", stream.write_all(flood.as_bytes())).await.is_ok() {
            sent += 1;
            assert!(sent < 160, "16 MB of headers were taken");
        }
        rest(&mut stream).await;
    }
    web.holds(32).await;
}

#[tokio::test]
async fn floods_of_frames_are_bounded() {
    let mut web = scene(WEBSOCKET).await;
    // Pings whose answers are not read: what waits gives way to the last one.
    let mut stream = upgraded(&web).await;
    stream.write_all(&whole(0x82, CONNECT)).await.unwrap();
    let pings = whole(0x89, &[b'x'; 100]).repeat(1000);
    let mut sent = 0;
    let second = Duration::from_secs(1);
    while sent < 2000 && tokio::time::timeout(second, stream.write_all(&pings)).await.is_ok() {
        sent += 1;
    }
    assert!(sent > 100, "{sent} times 1 000 pings were taken");
    web.holds(64).await;
    drop(stream);
    // Fragments of nothing: they are passed over, and what comes then is read.
    let mut stream = upgraded(&web).await;
    stream.write_all(&whole(0x02, b"")).await.unwrap();
    let nothing = whole(0x00, b"").repeat(1000);
    for _ in 0..100 {
        within("to be read", stream.write_all(&nothing)).await.unwrap();
    }
    stream.write_all(&whole(0x80, CONNECT)).await.unwrap();
    let mut answer = [0; 6];
    within("CONNACK", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, *b"\x82\x04\x20\x02\x00\x00");
    web.holds(64).await;
}

#[tokio::test]
async fn a_flood_of_connections_disturbs_nobody() {
    let (directory, _) = certified();
    for (lines, halves) in
        [(tls_lines(&directory), [&b""[..], HELLO]), (WEBSOCKET.to_owned(), [b"", &UPGRADE[..50]])]
    {
        let mut scene = scene(&lines).await;
        let mut streams = Vec::new();
        for n in 0..400 {
            let mut stream = tcp(&scene).await;
            stream.write_all(halves[n % 2]).await.unwrap();
            streams.push(stream);
        }
        scene.holds(64).await;
        drop(streams);
        scene.holds(64).await;
    }
}
