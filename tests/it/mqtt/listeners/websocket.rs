//! MQTT over WebSocket.

use futures_util::{SinkExt, StreamExt};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::*;

const WEBSOCKET: &str = "transport = \"websocket\"\n";

/// A request to upgrade with these headers, beside those of every one.
fn request(broker: &Broker, path: &str, headers: &[(&'static str, &str)]) -> Request {
    let url = format!("ws://{}{path}", broker.address("mqtt.x"));
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    request
}

const MQTT: (&str, &str) = ("sec-websocket-protocol", "mqtt");

async fn upgrade(broker: &Broker, request: Request) -> Result<(Raw, Response), Error> {
    let stream = TcpStream::connect(broker.address("mqtt.x")).await.unwrap();
    within("the upgrade", client_async(request, stream)).await.map(|(stream, answer)| (Raw(stream), answer))
}

/// The status and the body of a refusal.
async fn refused(broker: &Broker, request: Request) -> (u16, Option<Vec<u8>>) {
    match upgrade(broker, request).await {
        Err(Error::Http(response)) => (response.status().as_u16(), response.body().clone()),
        other => panic!("{:?} instead of a refusal", other.map(|_| ())),
    }
}

/// A WebSocket whose messages a test makes itself.
struct Raw(WebSocketStream<TcpStream>);

impl Raw {
    async fn open(broker: &Broker) -> Self {
        upgrade(broker, request(broker, "/", &[MQTT])).await.unwrap().0
    }

    async fn send(&mut self, message: Message) {
        within("the peer to read", self.0.send(message)).await.unwrap();
    }

    async fn send_packets(&mut self, packets: &[Packet]) {
        self.send(Message::Binary(encoded(packets).freeze())).await;
    }

    /// The next message; `None` at the end.
    async fn next(&mut self) -> Option<Message> {
        within("a message", self.0.next()).await.and_then(Result::ok)
    }

    /// The next packets, out of as many binary messages as they need.
    async fn packets(&mut self, count: usize) -> Vec<Packet> {
        let mut decoder = Decoder::established(V311, Limits::default());
        let (mut input, mut packets) = (BytesMut::new(), Vec::new());
        while packets.len() < count {
            match self.next().await {
                Some(Message::Binary(bytes)) => input.extend_from_slice(&bytes),
                other => panic!("{other:?} instead of a binary message"),
            }
            while let Some(packet) = decoder.decode(&mut input).unwrap() {
                packets.push(packet);
            }
        }
        packets
    }

    /// The code that the broker closes with.
    async fn closed(mut self) -> Option<CloseCode> {
        loop {
            if let Message::Close(frame) = self.next().await? {
                return frame.map(|frame| frame.code);
            }
        }
    }
}

fn encoded(packets: &[Packet]) -> BytesMut {
    let mut bytes = BytesMut::new();
    packets.iter().for_each(|packet| packet.encode(V311, &mut bytes).unwrap());
    bytes
}

fn hello() -> Packet {
    Packet::Connect(Box::new(connect(V311, "")))
}

/// Bytes of packets in the order in which they come, whatever messages they are cut into.
fn carried<S>(stream: WebSocketStream<S>) -> tokio::io::DuplexStream
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (near, far) = tokio::io::duplex(64 << 10);
    let (mut read, mut write) = tokio::io::split(far);
    let (mut sink, mut source) = stream.split();
    let mut carries = tokio::task::JoinSet::new();
    carries.spawn(async move {
        let mut bytes = vec![0; 7000];
        while let Ok(count @ 1..) = read.read(&mut bytes).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&bytes[..count]))).await.is_err() {
                break;
            }
        }
        drop(sink.close().await);
    });
    carries.spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            if let Message::Binary(bytes) = message
                && write.write_all(&bytes).await.is_err()
            {
                break;
            }
        }
        drop(write.shutdown().await);
    });
    carries.detach_all();
    near
}

#[tokio::test]
async fn clients_work_with_and_without_tls() {
    let (directory, authority) = certified();
    let plain = broker_with_x(WEBSOCKET).await;
    let secure = broker_with_x(&(tls_lines(&directory) + WEBSOCKET)).await;
    for version in BOTH {
        let (Raw(stream), answer) = upgrade(&plain, request(&plain, "/any/path", &[MQTT])).await.unwrap();
        // [MQTT-6.0.0-4]
        assert_eq!(answer.headers()["sec-websocket-protocol"], "mqtt");
        works(carried(stream), version).await.leave().await;

        let mut config = authority.client(BOTH_TLS, None);
        config.alpn_protocols = vec![b"http/1.1".to_vec()]; // As browsers do.
        let stream = TcpStream::connect(secure.address("mqtt.x")).await.unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream);
        let stream = within("a handshake", stream).await.unwrap();
        let (stream, _) = client_async(request(&secure, "/", &[MQTT]), stream).await.unwrap();
        works(carried(stream), version).await.leave().await;
    }
}

#[tokio::test]
async fn packets_do_not_care_for_messages() {
    // [MQTT-6.0.0-2]
    let broker = broker_with_x(WEBSOCKET).await;
    let mut raw = Raw::open(&broker).await;
    // Several in one message, and a part of the next.
    let mut bytes = encoded(&[hello(), Packet::PingReq, Packet::PingReq]);
    let rest = bytes.split_off(bytes.len() - 1);
    raw.send(Message::Binary(bytes.freeze())).await;
    let [Packet::ConnAck(_), Packet::PingResp] = &raw.packets(2).await[..] else { panic!() };
    // The rest in fragments, with control frames between them.
    let publish = encoded(&[Packet::Publish(publish("a", QOS1, 5, vec![b'x'; 9000]))]);
    let all = [&rest[..], &publish[..]].concat();
    let last = all.len() / 1000;
    for (n, part) in all.chunks(1000).enumerate() {
        let kind = if n == 0 { Data::Binary } else { Data::Continue };
        let frame = Frame::message(part.to_vec(), OpCode::Data(kind), n == last);
        raw.send(Message::Frame(frame)).await;
        if n < last {
            raw.send(Message::Ping(n.to_string().into())).await;
            assert_eq!(raw.next().await, Some(Message::Pong(n.to_string().into())));
        }
    }
    let [Packet::PingResp, Packet::PubAck(_)] = &raw.packets(2).await[..] else { panic!() };
    // A byte a message.
    for byte in encoded(&[Packet::PingReq]) {
        raw.send(Message::Binary(Bytes::copy_from_slice(&[byte]))).await;
        raw.send(Message::Binary(Bytes::new())).await;
    }
    assert_eq!(raw.packets(1).await, [Packet::PingResp]);
    // DISCONNECT: the broker closes, as WebSockets are closed.
    raw.send_packets(&[Packet::Disconnect(Disconnect::new(ReasonCode::Success))]).await;
    assert_eq!(raw.next().await, Some(Message::Close(None)));
}

#[tokio::test]
async fn a_close_is_answered() {
    let broker = broker_with_x(WEBSOCKET).await;
    let mut watch = Peer::subscribed(&broker, V5, "gone", QOS1).await;
    let mut raw = Raw::open(&broker).await;
    let hello = Connect { will: Some(will("gone", "closed")), ..connect(V311, "") };
    raw.send_packets(&[Packet::Connect(Box::new(hello))]).await;
    assert!(matches!(&raw.packets(1).await[..], [Packet::ConnAck(_)]));
    raw.send(Message::Close(None)).await;
    assert_eq!(raw.next().await, Some(Message::Close(None)));
    assert_eq!(raw.next().await, None);
    // It is no DISCONNECT.
    assert_eq!(text(&watch.receive().await), "closed");
}

#[tokio::test]
async fn what_is_not_mqtt_is_closed_with_a_reason() {
    let broker = broker_with_x("transport = \"websocket\"\nwebsocket.max_message_bytes = \"8KiB\"\n").await;
    let large = || Bytes::from(vec![b'x'; 9000]);
    let fragment =
        |last: bool, kind| Message::Frame(Frame::message(vec![b'x'; 5000], OpCode::Data(kind), last));
    let bad: [(Vec<Message>, CloseCode); 4] = [
        // [MQTT-6.0.0-1]
        (vec![Message::Text("x".into())], CloseCode::Unsupported),
        (vec![Message::Binary(large())], CloseCode::Size),
        (vec![fragment(false, Data::Binary), fragment(true, Data::Continue)], CloseCode::Size),
        (vec![fragment(true, Data::Continue)], CloseCode::Protocol),
    ];
    for (messages, code) in bad {
        let mut watch = Peer::subscribed(&broker, V5, "gone", QOS1).await;
        let mut raw = Raw::open(&broker).await;
        let hello = Connect { will: Some(will("gone", "bad")), ..connect(V311, "") };
        raw.send_packets(&[Packet::Connect(Box::new(hello))]).await;
        assert!(matches!(&raw.packets(1).await[..], [Packet::ConnAck(_)]));
        for message in messages {
            raw.send(message).await;
        }
        // The connection ends, and is heard of, though more is sent.
        assert_eq!(text(&watch.receive().await), "bad");
        raw.0.send(Message::Binary(large())).await.ok();
        assert_eq!(raw.closed().await, Some(code));
    }
    // A fault of MQTT is told by MQTT; then the WebSocket is closed.
    let mut raw = Raw::open(&broker).await;
    raw.send_packets(&[hello(), hello()]).await;
    assert!(matches!(&raw.packets(1).await[..], [Packet::ConnAck(_)]));
    assert_eq!(raw.next().await, Some(Message::Close(None)));
}

#[tokio::test]
async fn requests_are_checked() {
    let lines = "transport = \"websocket\"\nwebsocket.path = \"/mqtt\"\nwebsocket.origins = [\"https://a.example\"]\n";
    let broker = broker_with_x(lines).await;
    let from = |origin: &'static str| [MQTT, ("origin", origin)];
    let body = |text: &str| Some(text.as_bytes().to_vec());
    // [MQTT-6.0.0-3]
    for protocol in ["mqttv3.1", "MQTT", "mqtt2, chat"] {
        let answer =
            refused(&broker, request(&broker, "/mqtt", &[("sec-websocket-protocol", protocol)])).await;
        assert_eq!(answer, (400, body("the sub-protocol mqtt is not offered [MQTT-6.0.0-3]\n")));
    }
    assert_eq!(refused(&broker, request(&broker, "/mqtt", &[])).await.0, 400);
    let answer = refused(&broker, request(&broker, "/", &[MQTT])).await;
    assert_eq!(answer, (404, body("there is no MQTT at this path\n")));
    for origin in ["https://b.example", "http://a.example", "null"] {
        let answer = refused(&broker, request(&broker, "/mqtt", &from(origin))).await;
        assert_eq!(answer, (403, body("this origin is not among those allowed\n")), "{origin}");
    }
    for headers in [&from("https://a.example")[..], &[MQTT], &[("sec-websocket-protocol", "chat, mqtt")]] {
        let (Raw(stream), _) = upgrade(&broker, request(&broker, "/mqtt?x=1", headers)).await.unwrap();
        works(carried(stream), V5).await.leave().await;
    }
}

#[tokio::test]
async fn who_does_not_upgrade_is_cut() {
    let broker = broker_with_x("connect_timeout = \"1s\"\ntransport = \"websocket\"\n").await;
    let mut silent = Peer::open(broker.address("mqtt.x"), V311).await;
    let mut slow = Peer::open(broker.address("mqtt.x"), V311).await;
    slow.send_bytes(b"GET / HTTP/1.1\r\nHost: x\r\n").await;
    let mut raw = Raw::open(&broker).await;
    for garbage in
        [&b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"[..], b"GET / HTTP/1.1\r\n\r\n", b"\r\r\r\r"]
    {
        let mut peer = Peer::open(broker.address("mqtt.x"), V311).await;
        peer.send_bytes(garbage).await;
        assert_eq!(peer.next_or_end().await, None, "{garbage:?}");
    }
    assert_eq!(silent.next_or_end().await, None);
    assert_eq!(slow.next_or_end().await, None);
    // The upgrade is not CONNECT.
    assert_eq!(raw.next().await, None);
}
