//! The MQTT door over real sockets, against the real program.
//!
//! [`Peer`] is a client that does what a test says and nothing by itself: it answers no packet and resends none. What is
//! asked of a client that somebody else wrote is in `rumqtt`.

mod auth;
mod calls;
mod cases;
mod conformance;
mod cross;
mod differential;
mod fuzz;
mod hostile;
mod limits;
mod listeners;
mod parts;
mod properties;
mod publishing;
mod queues;
mod rumqtt;
mod sessions;
mod shares;
mod streams;
mod wills;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use stafett::mqtt::codec::{
    Ack, ConnAck, Connect, ConnectProperties, Decoder, Disconnect, Limits, Packet, Publish,
    PublishProperties, Qos, ReasonCode, SubAck, Subscribe, SubscribeFilter, SubscribeOptions,
    SubscribeProperties, SubscriptionId, Unsubscribe, Version, Will,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Broker, within};

pub(super) const QOS0: Qos = Qos::AtMostOnce;
pub(super) const QOS1: Qos = Qos::AtLeastOnce;
pub(super) const QOS2: Qos = Qos::ExactlyOnce;
pub(super) const V311: Version = Version::V311;
pub(super) const V5: Version = Version::V5;
pub(super) const BOTH: [Version; 2] = [V311, V5];

/// How far a delivery at QoS 2 is when the connection, or the broker, is lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cut {
    AfterPublish,
    AfterPubrel,
}

/// Both versions, the connection or the broker lost, at each point of the delivery.
pub(super) fn losses() -> impl Iterator<Item = (Version, bool, Cut)> {
    let kills = BOTH.into_iter().flat_map(|version| [false, true].map(|kill| (version, kill)));
    kills.flat_map(|(version, kill)| [Cut::AfterPublish, Cut::AfterPubrel].map(|cut| (version, kill, cut)))
}

/// What a client may speak over.
pub(super) trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}

impl<C: AsyncRead + AsyncWrite + Send + Unpin> Carrier for C {}

/// Returns when so many seconds have passed by the broker's clock: it is told by a will that has to wait so long.
pub(super) async fn seconds_pass(broker: &Broker, seconds: u32) {
    let mut watch = Peer::subscribed(broker, V5, "timer", QOS0).await;
    let mut timer = kept(V5, "timer");
    let mut later = will("timer", "over");
    later.properties.delay = Some(seconds);
    timer.will = Some(later);
    Peer::connected(broker, timer).await.vanish();
    assert_eq!(text(&watch.receive().await), "over");
}

/// A client that does what it is told.
pub(super) struct Peer {
    stream: Box<dyn Carrier>,
    decoder: Decoder,
    input: BytesMut,
    version: Version,
    next_id: u16,
    /// Came while something else was awaited.
    held: VecDeque<Packet>,
}

/// A CONNECT of a clean session without keep alive.
pub(super) fn connect(version: Version, client_id: &str) -> Connect {
    Connect {
        version,
        clean_start: true,
        keep_alive: 0,
        client_id: client_id.into(),
        will: None,
        username: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

/// A CONNECT of a session that is kept.
pub(super) fn kept(version: Version, client_id: &str) -> Connect {
    let mut connect = connect(version, client_id);
    connect.clean_start = false;
    connect.properties.session_expiry = (version == V5).then_some(3600);
    connect
}

pub(super) fn will(topic: &str, payload: &str) -> Will {
    Will {
        qos: QOS1,
        retain: false,
        topic: topic.into(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        properties: Default::default(),
    }
}

pub(super) fn id(id: u16) -> NonZeroU16 {
    NonZeroU16::new(id).unwrap()
}

pub(super) fn ack(packet_id: u16) -> Ack {
    Ack::new(id(packet_id), ReasonCode::Success)
}

/// A PUBLISH; the packet id counts above QoS 0 alone.
pub(super) fn publish(topic: &str, qos: Qos, packet_id: u16, payload: impl Into<Bytes>) -> Publish {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: topic.into(),
        packet_id: (qos != QOS0).then(|| id(packet_id)),
        properties: None,
        payload: payload.into(),
    }
}

pub(super) fn text(publish: &Publish) -> &str {
    std::str::from_utf8(&publish.payload).unwrap()
}

/// The properties of a publish; empty when it has none.
pub(super) fn properties_of(publish: &Publish) -> PublishProperties {
    publish.properties.as_deref().cloned().unwrap_or_default()
}

impl Peer {
    /// A connection without CONNECT.
    pub(super) async fn open(address: SocketAddr, version: Version) -> Self {
        let stream = within("a connection", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream, version)
    }

    /// The same over a stream that is there already.
    pub(super) fn over(stream: impl Carrier + 'static, version: Version) -> Self {
        let limits = Limits { max_packet_size: 64 << 20, ..Limits::default() };
        let decoder = Decoder::established(version, limits);
        let stream = Box::new(stream);
        Self { stream, decoder, input: BytesMut::new(), version, next_id: 1000, held: VecDeque::new() }
    }

    /// Sends CONNECT and waits for CONNACK.
    pub(super) async fn greet(broker: &Broker, connect: Connect) -> (Self, ConnAck) {
        let peer = Self::open(broker.address("mqtt"), connect.version).await;
        peer.greeted(connect).await
    }

    /// Sends CONNECT and waits for CONNACK.
    pub(super) async fn greeted(mut self, connect: Connect) -> (Self, ConnAck) {
        self.send(Packet::Connect(Box::new(connect))).await;
        match self.next().await {
            Packet::ConnAck(connack) => (self, *connack),
            other => panic!("{other:?} instead of CONNACK"),
        }
    }

    /// The same, and it is accepted.
    pub(super) async fn connected(broker: &Broker, connect: Connect) -> Self {
        let (peer, connack) = Self::greet(broker, connect).await;
        assert_eq!(connack.reason, ReasonCode::Success);
        peer
    }

    /// A clean session.
    pub(super) async fn clean(broker: &Broker, version: Version, client_id: &str) -> Self {
        Self::connected(broker, connect(version, client_id)).await
    }

    /// A clean session with a subscription.
    pub(super) async fn subscribed(broker: &Broker, version: Version, filter: &str, qos: Qos) -> Self {
        let mut peer = Self::clean(broker, version, "").await;
        peer.subscribe(filter, qos).await;
        peer
    }

    pub(super) async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.encode(self.version, &mut bytes).unwrap();
        self.send_bytes(&bytes).await;
    }

    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) {
        within("the peer to read", self.stream.write_all(bytes)).await.unwrap();
    }

    /// Sends bytes; false when the broker has closed the connection.
    pub(super) async fn try_send_bytes(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// The same for a packet.
    pub(super) async fn try_send(&mut self, packet: Packet) -> bool {
        let mut bytes = BytesMut::new();
        packet.encode(self.version, &mut bytes).unwrap();
        self.try_send_bytes(&bytes).await
    }

    /// Sends CONNECT; nothing when the broker is gone before it answers.
    pub(super) async fn try_greet(address: SocketAddr, connect: Connect) -> Option<(Self, ConnAck)> {
        let stream = TcpStream::connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let mut peer = Self::over(stream, connect.version);
        peer.try_send(Packet::Connect(Box::new(connect))).await;
        match peer.next_or_end().await? {
            Packet::ConnAck(connack) => Some((peer, *connack)),
            other => panic!("{other:?} instead of CONNACK"),
        }
    }

    /// The next packet; `None` when the broker has closed the connection.
    pub(super) async fn next_or_end(&mut self) -> Option<Packet> {
        if let Some(packet) = self.held.pop_front() {
            return Some(packet);
        }
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(packet);
            }
            match within("a packet", self.stream.read_buf(&mut self.input)).await {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(super) async fn next(&mut self) -> Packet {
        self.next_or_end().await.expect("the broker has closed the connection")
    }

    /// The next packet is a PUBLISH; it is not answered.
    pub(super) async fn publish(&mut self) -> Publish {
        match self.next().await {
            Packet::Publish(publish) => publish,
            other => panic!("{other:?} instead of PUBLISH"),
        }
    }

    /// The next packet is a PUBLISH; it is acknowledged to the end.
    pub(super) async fn receive(&mut self) -> Publish {
        let publish = self.publish().await;
        let Some(packet_id) = publish.packet_id else { return publish };
        if publish.qos == QOS1 {
            self.send(Packet::PubAck(ack(packet_id.get()))).await;
        } else {
            self.send(Packet::PubRec(ack(packet_id.get()))).await;
            let mut before = VecDeque::new();
            let release = Packet::PubRel(ack(packet_id.get()));
            loop {
                match self.next().await {
                    packet if packet == release => break,
                    packet @ Packet::Publish(_) => before.push_back(packet),
                    other => panic!("{other:?} instead of PUBREL"),
                }
            }
            self.held.extend(before);
            self.send(Packet::PubComp(ack(packet_id.get()))).await;
        }
        publish
    }

    /// So many publishes, acknowledged to the end: their payloads.
    pub(super) async fn receive_texts(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(text(&self.receive().await).to_owned());
        }
        texts
    }

    /// Nothing has come before the answer to a PINGREQ.
    pub(super) async fn nothing_came(&mut self) {
        self.send(Packet::PingReq).await;
        assert_eq!(self.next().await, Packet::PingResp);
    }

    /// Subscribes, and returns what was granted or refused.
    pub(super) async fn ask(&mut self, filters: &[(&str, SubscribeOptions)]) -> SubAck {
        let filters = filters
            .iter()
            .map(|(filter, options)| SubscribeFilter { filter: (*filter).into(), options: *options });
        self.next_id += 1;
        let packet_id = id(self.next_id);
        let packet = Subscribe { packet_id, properties: None, filters: filters.collect() };
        self.send(Packet::Subscribe(packet)).await;
        match self.next().await {
            Packet::SubAck(suback) if suback.packet_id == packet_id => suback,
            other => panic!("{other:?} instead of SUBACK"),
        }
    }

    /// Subscribes to one filter, which is granted.
    pub(super) async fn subscribe(&mut self, filter: &str, qos: Qos) {
        let options = SubscribeOptions { qos, ..SubscribeOptions::default() };
        let suback = self.ask(&[(filter, options)]).await;
        assert_eq!(suback.codes[..], [qos.granted()], "{filter}");
    }

    /// The same in 5.0, with an identifier.
    pub(super) async fn subscribe_identified(&mut self, filter: &str, qos: Qos, identifier: u32) {
        let options = SubscribeOptions { qos, ..SubscribeOptions::default() };
        self.next_id += 1;
        let packet_id = id(self.next_id);
        let subscription_id = SubscriptionId::new(identifier);
        let properties = Some(Box::new(SubscribeProperties { subscription_id, ..Default::default() }));
        let filters = vec![SubscribeFilter { filter: filter.into(), options }];
        self.send(Packet::Subscribe(Subscribe { packet_id, properties, filters })).await;
        let answer = self.next().await;
        assert!(
            matches!(&answer, Packet::SubAck(suback) if suback.codes[..] == [qos.granted()]),
            "{answer:?}"
        );
    }

    /// Subscribes and gets one retained value, before SUBACK or after.
    pub(super) async fn subscribe_and_find(&mut self, filter: &str, payload: &str) {
        let filters = vec![SubscribeFilter { filter: filter.into(), options: SubscribeOptions::default() }];
        self.send(Packet::Subscribe(Subscribe { packet_id: id(1), properties: None, filters })).await;
        let (mut answered, mut found) = (false, false);
        while !answered || !found {
            match self.next().await {
                Packet::SubAck(_) => answered = true,
                Packet::Publish(publish) => found = publish.retain && text(&publish) == payload,
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) async fn unsubscribe(&mut self, filter: &str) {
        self.next_id += 1;
        let filters: Vec<ByteString> = vec![filter.into()];
        let packet_id = id(self.next_id);
        self.send(Packet::Unsubscribe(Unsubscribe { packet_id, properties: None, filters })).await;
        let answer = self.next().await;
        assert!(matches!(&answer, Packet::UnsubAck(unsuback) if unsuback.packet_id == packet_id));
    }

    /// Publishes and sees it acknowledged to the end. Returns the code of the first acknowledgement.
    pub(super) async fn say_packet(&mut self, publish: Publish) -> ReasonCode {
        let (qos, packet_id) = (publish.qos, publish.packet_id);
        self.send(Packet::Publish(publish)).await;
        let Some(packet_id) = packet_id else { return ReasonCode::Success };
        match (qos, self.next().await) {
            (QOS1, Packet::PubAck(ack)) if ack.packet_id == packet_id => ack.reason,
            (QOS2, Packet::PubRec(first)) if first.packet_id == packet_id => {
                if !first.reason.is_failure() {
                    self.send(Packet::PubRel(ack(packet_id.get()))).await;
                    assert_eq!(self.next().await, Packet::PubComp(ack(packet_id.get())));
                }
                first.reason
            }
            (_, other) => panic!("{other:?} instead of an acknowledgement"),
        }
    }

    /// The same for a plain message.
    pub(super) async fn say(&mut self, topic: &str, qos: Qos, payload: &str) -> ReasonCode {
        self.next_id += 1;
        self.say_packet(publish(topic, qos, self.next_id, payload.to_owned())).await
    }

    /// The same for a client that is also sent messages: those are for later.
    pub(super) async fn say_among(&mut self, topic: &str, qos: Qos, payload: &str) {
        self.next_id += 1;
        let packet_id = self.next_id;
        self.send(Packet::Publish(publish(topic, qos, packet_id, payload.to_owned()))).await;
        let mut before = VecDeque::new();
        let mut done = qos == QOS0;
        while !done {
            match self.next().await {
                packet @ Packet::Publish(_) => before.push_back(packet),
                Packet::PubRec(_) => self.send(Packet::PubRel(ack(packet_id))).await,
                Packet::PubAck(_) | Packet::PubComp(_) => done = true,
                other => panic!("{other:?} instead of an acknowledgement"),
            }
        }
        before.append(&mut self.held);
        self.held = before;
    }

    /// A retained message.
    pub(super) async fn say_retained(&mut self, topic: &str, qos: Qos, payload: &str) {
        self.next_id += 1;
        let publish = publish(topic, qos, self.next_id, payload.to_owned());
        self.say_packet(Publish { retain: true, ..publish }).await;
    }

    /// DISCONNECT, and the broker closes.
    pub(super) async fn leave(mut self) {
        self.send(Packet::Disconnect(Disconnect::new(ReasonCode::Success))).await;
        assert_eq!(self.next_or_end().await, None);
    }

    /// The connection ends without DISCONNECT.
    pub(super) fn vanish(self) {
        drop(self.stream);
    }

    /// The broker closes the connection; in 5.0 it says why before. What else comes before is passed over.
    pub(super) async fn told(mut self) -> Option<ReasonCode> {
        let mut told = None;
        while let Some(packet) = self.next_or_end().await {
            if let Packet::Disconnect(disconnect) = packet {
                told = Some(disconnect.reason);
            }
        }
        told
    }
}
