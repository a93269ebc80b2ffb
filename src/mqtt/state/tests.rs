//! The machine without a socket: a table of packets in and effects out, by rule.

use std::time::{Duration, Instant};

use bytes::Bytes;
use bytestring::ByteString;
use proptest::prelude::*;

use super::fuzz::fuzz_state;
use super::inbound::receipt_tag;
use super::*;
use crate::core::{Published, SessionDelivery};
use crate::engine::{Leased, OutgoingState, RetainHandling};
use crate::mqtt::codec::{
    self, Ack, AckProperties, Auth, Connect, ConnectProperties, Disconnect, DisconnectProperties, Publish,
    PublishProperties, Subscribe, SubscribeFilter, SubscribeOptions, SubscribeProperties, SubscriptionId,
    Unsubscribe,
};
use crate::mqtt::violation::PATIENCE;
use crate::types::topic::FilterSpec;
use crate::types::{ClientId, Message, MessageId, Priority, Sequence, TopicName, clock};

const WALL: UnixMillis = UnixMillis(1_700_000_000_000);
const BACKLOG: TargetId = TargetId(7);
const QUEUE: TargetId = TargetId(8);

fn connect(version: Version) -> Connect {
    Connect {
        version,
        clean_start: true,
        keep_alive: 0,
        client_id: "c".into(),
        will: None,
        username: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

fn settings() -> Settings {
    Settings { receive_maximum: 2, topic_alias_maximum: 3, ..Settings::default() }
}

fn hello(connect: Connect) -> Hello {
    Hello::check(connect, &settings()).unwrap()
}

/// A machine with what it did last.
struct Machine {
    state: State,
    now: Instant,
}

impl Machine {
    fn of(connect: Connect, durable: bool, stored: Vec<u16>) -> Self {
        Self::resumed(connect, durable, (stored, Vec::new()))
    }

    /// With packet ids that earlier connections have left: incoming and outgoing.
    fn resumed(connect: Connect, durable: bool, stored: (Vec<u16>, Vec<u16>)) -> Self {
        let now = clock::now();
        let backlog = durable.then_some(BACKLOG);
        let limits = Limits { max_topic_bytes: 100, ..Limits::default() };
        Self { state: State::new(hello(connect), backlog, stored, &settings(), &limits, now), now }
    }

    fn new(version: Version) -> Self {
        Self::of(connect(version), false, Vec::new())
    }

    /// Of a session that outlives its connection.
    fn durable(version: Version) -> Self {
        let mut connect = connect(version);
        connect.clean_start = false;
        connect.properties.session_expiry = (version == Version::V5).then_some(60);
        Self::of(connect, true, Vec::new())
    }

    fn input(&mut self, input: Input) -> Effects {
        let mut effects = Effects::default();
        self.state.handle(input, self.now, WALL, &mut effects);
        effects
    }

    fn packet(&mut self, packet: Packet) -> Effects {
        self.input(Input::Packet(packet))
    }

    /// The packets that answer one.
    fn answers(&mut self, packet: Packet) -> Vec<Packet> {
        self.packet(packet).packets
    }

    /// The code with which a packet ends the connection.
    fn ends(&mut self, packet: Packet) -> u8 {
        told(&self.packet(packet))
    }

    fn accepted(&mut self, qos: codec::Qos, packet_id: u16, subscribers: u32) -> Vec<Packet> {
        let published =
            Published { id: MessageId::from_u128(1), subscribers, queues: 0, streams: 0, duplicate: false };
        let receipt = Receipt { tag: receipt_tag(qos, packet_id), result: Ok(published) };
        self.input(Input::Receipt(receipt)).packets
    }

    fn refused(&mut self, qos: codec::Qos, packet_id: u16, error: CoreError) -> Effects {
        self.input(Input::Receipt(Receipt { tag: receipt_tag(qos, packet_id), result: Err(error) }))
    }
}

fn told(effects: &Effects) -> u8 {
    let ending = effects.ending.as_ref().expect("the connection goes on");
    ending.tell.as_ref().map_or(0, |(code, _)| *code as u8)
}

fn id(id: u16) -> NonZeroU16 {
    NonZeroU16::new(id).unwrap()
}

const QOS0: codec::Qos = codec::Qos::AtMostOnce;
const QOS1: codec::Qos = codec::Qos::AtLeastOnce;
const QOS2: codec::Qos = codec::Qos::ExactlyOnce;
const BOTH: [Version; 2] = [Version::V311, Version::V5];

fn publish(qos: codec::Qos, packet_id: u16) -> Publish {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: "a/b".into(),
        packet_id: NonZeroU16::new(packet_id),
        properties: None,
        payload: Bytes::from_static(b"x"),
    }
}

fn with_properties(mut publish: Publish, properties: PublishProperties) -> Packet {
    publish.properties = Some(Box::new(properties));
    Packet::Publish(publish)
}

fn ack(packet_id: u16, reason: ReasonCode) -> Ack {
    Ack::new(id(packet_id), reason)
}

fn ok(packet_id: u16) -> Ack {
    ack(packet_id, ReasonCode::Success)
}

fn full() -> CoreError {
    CoreError::Full { queue: "q".into(), bound: "max_messages 1".into() }
}

// ---- CONNECT ----

#[test]
fn connect_is_checked() {
    let refused = |change: fn(&mut Connect), version| {
        let mut connect = connect(version);
        change(&mut connect);
        Hello::check(connect, &settings()).err().map(|refused| refused.code as u8)
    };
    let unnamed_and_kept = |connect: &mut Connect| {
        connect.client_id = ByteString::new();
        connect.clean_start = false;
    };
    // 3.1.1: [MQTT-3.1.3-8]; 5: [MQTT-3.1.3-6].
    assert_eq!(refused(unnamed_and_kept, Version::V311), Some(0x85));
    assert_eq!(refused(unnamed_and_kept, Version::V5), None);
    for version in BOTH {
        // 3.1.1 and 5: [MQTT-3.1.3-5], [MQTT-3.1.3-6].
        assert_eq!(refused(|connect| connect.client_id = "0aZ".repeat(8).into(), version), None);
        assert_eq!(refused(|connect| connect.client_id = ByteString::new(), version), None);
        // 3.1.1: [MQTT-3.1.3-9]; 5: [MQTT-3.1.3-8].
        assert_eq!(refused(|connect| connect.client_id = "a\nb".into(), version), Some(0x85));
    }
    // 5: [MQTT-4.12.0-1].
    let authenticates = |connect: &mut Connect| connect.properties.authentication_method = Some("x".into());
    assert_eq!(refused(authenticates, Version::V5), Some(0x8c));
}

#[test]
fn refusals_are_told_where_there_is_a_word() {
    let refused = |code| Refused { code, why: "because".into() };
    // 3.1.1: [MQTT-3.2.2-6].
    assert_eq!(refused(ReasonCode::BadAuthenticationMethod).connack(Version::V311), None);
    let connack = refused(ReasonCode::ClientIdentifierNotValid).connack(Version::V311).unwrap();
    // 3.1.1: [MQTT-3.2.2-4]; 5: [MQTT-3.2.2-6].
    assert!(!connack.session_present);
    let connack = refused(ReasonCode::BadAuthenticationMethod).connack(Version::V5).unwrap();
    assert_eq!(connack.properties.reason_string.as_deref(), Some("because"));
}

#[test]
fn connack_tells_what_was_agreed() {
    let client_id = ClientId::parse("auto-1").unwrap();
    let accepted = |connect: Connect, settings: &Settings, expiry| {
        let session = Session { client_id: &client_id, present: true, expiry: Duration::from_secs(expiry) };
        Hello::check(connect, settings).unwrap().accepted(&session, settings)
    };
    let connack = accepted(connect(Version::V311), &settings(), 0);
    assert!(connack.session_present && connack.reason == ReasonCode::Success);
    assert_eq!(connack.properties, Default::default());

    let mut asked = connect(Version::V5);
    asked.client_id = ByteString::new();
    asked.properties.session_expiry = Some(1000);
    let properties = accepted(asked.clone(), &settings(), 60).properties;
    // 5: [MQTT-3.2.2-16], [MQTT-3.1.3-7].
    assert_eq!(properties.assigned_client_id.as_deref(), Some("auto-1"));
    assert_eq!(properties.session_expiry, Some(60));
    assert_eq!(properties.receive_maximum, NonZeroU16::new(2));
    assert_eq!(properties.topic_alias_maximum, Some(3));
    assert_eq!(properties.maximum_packet_size.map(|size| size.get()), Some(4 << 20));
    // What there is, is not said; what there is not, never announced.
    assert_eq!(properties.maximum_qos, None);
    assert_eq!(properties.shared_subscription_available, None);
    assert_eq!((properties.response_information, properties.authentication_method), (None, None));
    assert_eq!(accepted(asked.clone(), &settings(), 1000).properties.session_expiry, None);

    // 5: [MQTT-3.2.2-21], [MQTT-3.2.2-22].
    let ceiling = Settings { keep_alive_ceiling: Some(Duration::from_secs(30)), ..settings() };
    for (keep_alive, told) in [(0, Some(30)), (10, None), (30, None), (31, Some(30))] {
        asked.keep_alive = keep_alive;
        assert_eq!(accepted(asked.clone(), &ceiling, 0).properties.server_keep_alive, told, "{keep_alive}");
        assert_eq!(accepted(asked.clone(), &settings(), 0).properties.server_keep_alive, None);
    }
}

#[test]
fn how_long_a_session_is_kept() {
    let kept = |version, clean_start, seconds| {
        let mut connect = connect(version);
        connect.clean_start = clean_start;
        connect.properties.session_expiry = seconds;
        hello(connect).expiry
    };
    // 3.1.1: [MQTT-3.1.2-4], [MQTT-3.1.2-6]; 5: [MQTT-3.1.2-23].
    assert_eq!(kept(Version::V311, true, None), Duration::ZERO);
    assert_eq!(kept(Version::V311, false, None), Duration::MAX);
    assert_eq!(kept(Version::V5, false, None), Duration::ZERO);
    assert_eq!(kept(Version::V5, true, Some(5)), Duration::from_secs(5));
    assert_eq!(kept(Version::V5, true, Some(u32::MAX)), Duration::MAX);
}

#[test]
fn silence_ends_the_connection_after_one_and_a_half_keep_alives() {
    // 3.1.1: [MQTT-3.1.2-24]; 5: [MQTT-3.1.2-22].
    for version in BOTH {
        let mut machine = Machine::of(Connect { keep_alive: 10, ..connect(version) }, false, Vec::new());
        let start = machine.now;
        machine.now = start + Duration::from_secs(14);
        assert!(machine.input(Input::Deadline).ending.is_none());
        assert_eq!(machine.answers(Packet::PingReq), [Packet::PingResp]); // [MQTT-3.12.4-1]
        assert_eq!(machine.state.deadline(), Some(start + Duration::from_secs(29)));
        machine.now = start + Duration::from_secs(29);
        let effects = machine.input(Input::Deadline);
        assert_eq!(told(&effects), 0x8d);
        assert!(effects.ending.unwrap().will);
        assert_eq!(Machine::new(version).state.deadline(), None);
    }
}

// ---- what is not to come from a client ----

#[test]
fn packets_out_of_place_end_the_connection() {
    for version in BOTH {
        let fresh = || Machine::new(version);
        // [MQTT-3.1.0-2]
        assert_eq!(fresh().ends(Packet::Connect(Box::new(connect(version)))), 0x82);
        assert_eq!(fresh().ends(Packet::PingResp), 0x82);
        assert_eq!(told(&fresh().input(Input::Malformed(DecodeError::Truncated))), 0x81);
    }
    // 5: [MQTT-4.12.0-7].
    let auth = Auth { reason: ReasonCode::Success, properties: None };
    assert_eq!(Machine::new(Version::V5).ends(Packet::Auth(auth)), 0x82);
    // 5: [MQTT-3.3.4-6].
    let subscription_ids = [SubscriptionId::new(1).unwrap()].into_iter().collect();
    let properties = PublishProperties { subscription_ids, ..PublishProperties::default() };
    assert_eq!(Machine::new(Version::V5).ends(with_properties(publish(QOS0, 0), properties)), 0x82);
}

// ---- publishes from the client ----

#[test]
fn a_publish_at_qos_0_is_not_answered() {
    // [MQTT-3.3.4-1]
    let effects = Machine::new(Version::V311).packet(Packet::Publish(publish(QOS0, 0)));
    assert!(effects.packets.is_empty());
    let [inbound] = &effects.publishes[..] else { panic!() };
    assert!(!inbound.receipt);
    assert_eq!(inbound.message.topic.as_str(), "a/b");
}

#[test]
fn a_publish_at_qos_1_is_acknowledged_when_the_core_has_it() {
    // 3.1.1: [MQTT-4.3.2-2]; 5: [MQTT-4.3.2-4].
    for version in BOTH {
        let mut machine = Machine::new(version);
        let effects = machine.packet(Packet::Publish(publish(QOS1, 5)));
        assert!(effects.packets.is_empty() && effects.publishes[0].receipt);
        assert_eq!(effects.publishes[0].tag, receipt_tag(QOS1, 5));
        assert_eq!(machine.accepted(QOS1, 5, 1), [Packet::PubAck(ok(5))]);
        let nobody = Packet::PubAck(ack(5, ReasonCode::NoMatchingSubscribers));
        assert_eq!(machine.accepted(QOS1, 5, 0), [nobody]);
    }
}

#[test]
fn a_publish_at_qos_2_is_published_once() {
    // 3.1.1: [MQTT-4.3.3-2]; 5: [MQTT-4.3.3-8], [MQTT-4.3.3-10] to [MQTT-4.3.3-12].
    for version in BOTH {
        let mut machine = Machine::new(version);
        let send = |machine: &mut Machine, dup| {
            let effects = machine.packet(Packet::Publish(Publish { dup, ..publish(QOS2, 9) }));
            (effects.publishes.len(), effects.packets)
        };
        assert_eq!(send(&mut machine, false), (1, vec![]));
        assert_eq!(send(&mut machine, true), (0, vec![]), "its PUBREC is on its way");
        assert_eq!(machine.accepted(QOS2, 9, 1), [Packet::PubRec(ok(9))]);
        assert_eq!(send(&mut machine, true), (0, vec![Packet::PubRec(ok(9))]));
        assert_eq!(machine.answers(Packet::PubRel(ok(9))), [Packet::PubComp(ok(9))]);
        assert_eq!(send(&mut machine, false), (1, vec![]), "the number is free");
        let unknown = Packet::PubComp(ack(77, ReasonCode::PacketIdentifierNotFound));
        assert_eq!(machine.answers(Packet::PubRel(ok(77))), [unknown]);
    }
}

#[test]
fn a_lasting_session_stores_its_packet_ids() {
    let mut machine = Machine::durable(Version::V311);
    let effects = machine.packet(Packet::Publish(publish(QOS2, 9)));
    assert_eq!(effects.publishes[0].incoming, Some(9));
    machine.accepted(QOS2, 9, 1);
    let effects = machine.packet(Packet::PubRel(ok(9)));
    assert!(effects.packets.is_empty(), "PUBCOMP waits for the store");
    assert_eq!(effects.release, [id(9)]);
    assert_eq!(machine.input(Input::Released(id(9))).packets, [Packet::PubComp(ok(9))]);

    // [MQTT-4.4.0-1]: a later connection knows what an earlier one had received.
    let mut machine = Machine::of(connect(Version::V311), true, vec![4]);
    let again = Packet::Publish(Publish { dup: true, ..publish(QOS2, 4) });
    assert_eq!(machine.answers(again), [Packet::PubRec(ok(4))]);
    assert_eq!(machine.packet(Packet::PubRel(ok(4))).release, [id(4)]);
}

#[test]
fn more_than_the_receive_maximum_ends_the_connection() {
    // 5: [MQTT-3.3.4-7].
    let mut machine = Machine::new(Version::V5);
    machine.packet(Packet::Publish(publish(QOS1, 1)));
    machine.packet(Packet::Publish(publish(QOS2, 2)));
    assert!(machine.packet(Packet::Publish(publish(QOS0, 0))).ending.is_none(), "QoS 0 does not count");
    machine.accepted(QOS1, 1, 1);
    machine.packet(Packet::Publish(publish(QOS1, 3)));
    machine.accepted(QOS2, 2, 1);
    assert_eq!(machine.ends(Packet::Publish(publish(QOS1, 4))), 0x93, "PUBREC frees no place");

    let mut machine = Machine::new(Version::V5);
    for round in 1..10 {
        machine.packet(Packet::Publish(publish(QOS2, round)));
        machine.accepted(QOS2, round, 1);
        machine.packet(Packet::PubRel(ok(round)));
    }
    // 3.1.1 has no such bound.
    let mut machine = Machine::new(Version::V311);
    assert!((1..10).all(|id| machine.packet(Packet::Publish(publish(QOS1, id))).ending.is_none()));
}

#[test]
fn a_refused_publish_is_told_or_ends_the_connection() {
    let mut machine = Machine::new(Version::V5);
    machine.packet(Packet::Publish(publish(QOS1, 1)));
    let effects = machine.refused(QOS1, 1, full());
    let [Packet::PubAck(ack)] = &effects.packets[..] else { panic!() };
    assert_eq!(ack.reason, ReasonCode::QuotaExceeded);
    assert!(ack.properties.as_ref().unwrap().reason_string.as_ref().unwrap().contains("`q` is full"));

    // 5: [MQTT-4.3.3-9]: the number is free after a failed PUBREC.
    machine.packet(Packet::Publish(publish(QOS2, 2)));
    assert!(matches!(&machine.refused(QOS2, 2, full()).packets[..], [Packet::PubRec(_)]));
    assert_eq!(machine.packet(Packet::Publish(publish(QOS2, 2))).publishes.len(), 1);

    // 5: [MQTT-3.1.2-29].
    let mut quiet = connect(Version::V5);
    quiet.properties.request_problem_information = Some(false);
    let effects = Machine::of(quiet, false, vec![]).refused(QOS1, 1, full());
    assert!(matches!(&effects.packets[..], [Packet::PubAck(Ack { properties: None, .. })]));

    // 3.1.1 cannot be told: nothing is acknowledged, and the connection is closed, later when there is no room.
    for (error, after) in [(full(), PATIENCE), (CoreError::Denied("no".into()), Duration::ZERO)] {
        let mut machine = Machine::new(Version::V311);
        machine.packet(Packet::Publish(publish(QOS1, 1)));
        let effects = machine.refused(QOS1, 1, error);
        assert!(effects.packets.is_empty());
        assert_eq!(effects.ending.unwrap().after, after);
    }
    // Whoever it is comes again when the server is back.
    let effects = Machine::new(Version::V5).refused(QOS1, 1, CoreError::Draining);
    assert!(effects.packets.is_empty());
    assert_eq!(told(&effects), 0x8b);
}

#[test]
fn topic_aliases_stand_for_topics() {
    let mut machine = Machine::new(Version::V5);
    let mut send = |topic: &str, alias| {
        let properties = PublishProperties { topic_alias: NonZeroU16::new(alias), ..Default::default() };
        let effects =
            machine.packet(with_properties(Publish { topic: topic.into(), ..publish(QOS0, 0) }, properties));
        match effects.publishes.first() {
            Some(inbound) => Ok(inbound.message.topic.to_string()),
            None => Err(told(&effects)),
        }
    };
    // 5: [MQTT-3.3.2-12].
    assert_eq!(send("x/y", 3), Ok("x/y".into()));
    assert_eq!(send("", 3), Ok("x/y".into()));
    assert_eq!(send("z", 3), Ok("z".into()));
    assert_eq!(send("", 3), Ok("z".into()));
    assert_eq!(send("", 1), Err(0x82), "it stands for nothing");
    // 5: [MQTT-3.3.2-9].
    assert_eq!(send("x", 4), Err(0x94));
    assert_eq!(send(&"x".repeat(101), 1), Err(0x90), "held as long as the connection");
}

#[test]
fn what_a_queue_is_asked_for_is_refused_when_it_is_wrong() {
    let mut machine = Machine::new(Version::V5);
    let mut send = |value: &str| {
        let user_properties = vec![("stafett-priority".into(), value.into())];
        let properties = PublishProperties { user_properties, ..PublishProperties::default() };
        let publish = Publish { topic: "$queue/q".into(), ..publish(QOS1, 1) };
        machine.packet(with_properties(publish, properties))
    };
    assert_eq!(send("7").publishes[0].priority, Priority::new(7).unwrap());
    assert!(matches!(&send("seven").packets[..], [Packet::PubAck(ack)] if ack.reason.is_failure()));
}

// ---- deliveries to the client ----

fn leased(qos: Qos, sequence: u64) -> SessionDelivery {
    SessionDelivery {
        source: BACKLOG,
        leased: Leased {
            sequence: Sequence(sequence),
            attempt: 1,
            qos,
            retain: false,
            priority: Priority::default(),
            lease_expires: None,
            outgoing: None,
            earlier_boot: false,
            message: Message {
                id: MessageId::from_u128(1),
                topic: TopicName::parse("a".into()).unwrap(),
                payload: Bytes::new(),
                qos,
                retain: false,
                expires_at: None,
                extras: None,
            },
        },
        identifiers: Default::default(),
        dropped_before: 0,
        maybe_sent: false,
    }
}

fn of_backlog(sequence: u64) -> Stored {
    Stored { source: BACKLOG, sequence: Sequence(sequence), queue: false }
}

fn resumed(qos: Qos, sequence: u64, packet_id: u16, state: OutgoingState) -> SessionDelivery {
    let mut delivery = leased(qos, sequence);
    delivery.leased.outgoing = Some(Outgoing { packet_id, state });
    delivery
}

#[test]
fn a_delivery_at_qos_1_is_settled_by_puback() {
    // 3.1.1: [MQTT-4.3.2-1]; 5: [MQTT-4.3.2-1] to [MQTT-4.3.2-3].
    for version in BOTH {
        let mut machine = Machine::durable(version);
        let start = machine.state.start(&leased(Qos::AtLeastOnce, 11), 0);
        assert_eq!(start, Start::Publish { packet_id: id(1), dup: false });
        assert!(machine.packet(Packet::PubAck(ok(99))).settled.is_empty());
        assert_eq!(machine.packet(Packet::PubAck(ok(1))).settled, [of_backlog(11)]);
        assert!(machine.packet(Packet::PubAck(ok(1))).settled.is_empty());
    }
}

#[test]
fn a_delivery_at_qos_2_is_stored_before_each_step() {
    // 3.1.1: [MQTT-4.3.3-1]; 5: [MQTT-4.3.3-1] to [MQTT-4.3.3-6].
    for version in BOTH {
        let mut machine = Machine::durable(version);
        let sent = Outgoing { packet_id: 1, state: OutgoingState::Sent };
        assert_eq!(machine.state.start(&leased(Qos::ExactlyOnce, 5), 0), Start::Note(id(1), sent));
        assert!(machine.state.started(id(1), 0));
        let effects = machine.packet(Packet::PubRec(ok(1)));
        assert!(effects.packets.is_empty(), "PUBREL waits for the store");
        let received = Outgoing { packet_id: 1, state: OutgoingState::Received };
        assert_eq!(effects.notes, [(of_backlog(5), received)]);
        assert!(machine.packet(Packet::PubRec(ok(1))).packets.is_empty());
        assert_eq!(machine.input(Input::Noted(id(1))).packets, [Packet::PubRel(ok(1))]);
        assert_eq!(machine.packet(Packet::PubRec(ok(1))).packets, [Packet::PubRel(ok(1))]);
        assert_eq!(machine.packet(Packet::PubComp(ok(1))).settled, [of_backlog(5)]);
    }
}

#[test]
fn a_delivery_of_a_session_that_ends_with_its_connection_stays_in_memory() {
    let mut machine = Machine::new(Version::V311);
    assert_eq!(machine.state.window().begin(Qos::ExactlyOnce, Origin::Live, 0), Some(id(1)));
    let effects = machine.packet(Packet::PubRec(ok(1)));
    assert_eq!(effects.packets, [Packet::PubRel(ok(1))]);
    assert!(effects.notes.is_empty());
    assert!(machine.packet(Packet::PubComp(ok(1))).settled.is_empty());
    assert_eq!(machine.state.window().in_flight(), 0);
}

#[test]
fn a_resumed_session_sends_again_with_the_old_numbers() {
    // 3.1.1: [MQTT-4.4.0-1]; 5: [MQTT-4.4.0-1], [MQTT-4.3.3-6]; both: [MQTT-3.3.1-1].
    let mut machine = Machine::durable(Version::V5);
    let again = |packet_id| Start::Publish { packet_id: id(packet_id), dup: true };
    let one = resumed(Qos::AtLeastOnce, 1, 40, OutgoingState::Sent);
    assert_eq!(machine.state.start(&one, 0), again(40));
    let two = resumed(Qos::ExactlyOnce, 2, 1, OutgoingState::Sent);
    assert_eq!(machine.state.start(&two, 0), again(1));
    let three = resumed(Qos::ExactlyOnce, 3, 2, OutgoingState::Received);
    assert_eq!(machine.state.start(&three, 0), Start::Release(id(2)));
    // 3.1.1: [MQTT-2.3.1-4]; 5: [MQTT-2.2.1-4]: a new one gets a number that is free.
    let new = machine.state.start(&leased(Qos::AtLeastOnce, 4), 0);
    assert_eq!(new, Start::Publish { packet_id: id(3), dup: false });
    let clash = resumed(Qos::AtLeastOnce, 5, 3, OutgoingState::Sent);
    assert_eq!(machine.state.start(&clash, 0), Start::Wait);
    assert_eq!(machine.packet(Packet::PubComp(ok(2))).settled, [of_backlog(3)]);
}

#[test]
fn what_has_a_number_of_an_earlier_connection_keeps_it_whatever_comes_before() {
    // 3.1.1: [MQTT-2.3.1-4]; 5: [MQTT-2.2.1-4]; both: [MQTT-4.4.0-1].
    for version in BOTH {
        let mut machine = Machine::resumed(connect(version), true, (Vec::new(), vec![1, 3]));
        let new = |packet_id| Start::Publish { packet_id: id(packet_id), dup: false };
        assert_eq!(machine.state.start(&leased(Qos::AtLeastOnce, 7), 0), new(2));
        assert_eq!(machine.state.window().begin(Qos::AtLeastOnce, Origin::Live, 0), Some(id(4)));
        for (sequence, packet_id) in [(1, 3), (2, 1)] {
            let old = resumed(Qos::AtLeastOnce, sequence, packet_id, OutgoingState::Sent);
            assert_eq!(machine.state.start(&old, 0), Start::Publish { packet_id: id(packet_id), dup: true });
        }
    }
}

#[test]
fn no_more_is_in_flight_than_the_client_takes() {
    // 5: [MQTT-3.3.4-9], [MQTT-4.9.0-2].
    let mut small = connect(Version::V5);
    small.properties.receive_maximum = NonZeroU16::new(2);
    small.properties.session_expiry = Some(60);
    let mut machine = Machine::of(small, true, Vec::new());
    let mut start = |sequence| machine.state.start(&leased(Qos::AtLeastOnce, sequence), 0);
    assert!(matches!(start(1), Start::Publish { .. }));
    assert!(matches!(start(2), Start::Publish { .. }));
    assert_eq!(start(3), Start::Wait);
    assert_eq!(machine.state.window().room(), 0);
    // 5: [MQTT-4.9.0-3].
    assert_eq!(machine.answers(Packet::PingReq), [Packet::PingResp]);
    machine.packet(Packet::PubAck(ok(1)));
    assert_eq!(machine.state.window().room(), 1);
    // The server's own bound holds where the client's is larger.
    assert_eq!(Machine::new(Version::V311).state.window().room(), 1024);
}

#[test]
fn acknowledgements_have_to_fit_their_delivery() {
    // 3.1.1: [MQTT-2.3.1-6]; 5: [MQTT-2.2.1-5].
    let mut machine = Machine::durable(Version::V5);
    machine.state.start(&leased(Qos::AtLeastOnce, 1), 0);
    assert_eq!(machine.ends(Packet::PubRec(ok(1))), 0x82);
    let mut machine = Machine::new(Version::V5);
    machine.state.window().begin(Qos::ExactlyOnce, Origin::Live, 0);
    assert_eq!(machine.ends(Packet::PubAck(ok(1))), 0x82);
    let unknown = ack(9, ReasonCode::PacketIdentifierNotFound);
    assert_eq!(machine.answers(Packet::PubRec(ok(9))), [Packet::PubRel(unknown)]);
}

#[test]
fn a_refusal_by_the_client_ends_the_delivery_but_not_that_of_a_queue() {
    let refused = |reason, said: Option<&str>| Ack {
        properties: said.map(|said| {
            Box::new(AckProperties { reason_string: Some(said.into()), ..AckProperties::default() })
        }),
        ..ack(1, reason)
    };
    // 5: [MQTT-4.4.0-2], [MQTT-4.8.2-6].
    let mut machine = Machine::durable(Version::V5);
    machine.state.start(&leased(Qos::AtLeastOnce, 1), 0);
    let effects = machine.packet(Packet::PubAck(refused(ReasonCode::UnspecifiedError, None)));
    assert_eq!(effects.settled, [of_backlog(1)]);
    machine.state.start(&leased(Qos::ExactlyOnce, 2), 0);
    assert!(machine.state.started(id(2), 0));
    let effects = machine.packet(Packet::PubRec(ack(2, ReasonCode::QuotaExceeded)));
    assert_eq!((effects.settled, effects.packets), (vec![of_backlog(2)], vec![]));

    let mut of_queue = leased(Qos::AtLeastOnce, 3);
    of_queue.source = QUEUE;
    of_queue.leased.lease_expires = Some(WALL);
    let stored = Stored { source: QUEUE, sequence: Sequence(3), queue: true };
    let failed = |reason, said| {
        let mut machine = Machine::new(Version::V5);
        machine.state.start(&of_queue, 0);
        let effects = machine.packet(Packet::PubAck(refused(reason, said)));
        (effects.settled, effects.failed)
    };
    assert_eq!(failed(ReasonCode::Success, None), (vec![stored], vec![]));
    assert_eq!(failed(ReasonCode::UnspecifiedError, None), (vec![], vec![(stored, Nack::Failed(None))]));
    let dead = failed(ReasonCode::PayloadFormatInvalid, Some("no JSON"));
    assert_eq!(dead, (vec![], vec![(stored, Nack::DeadLetter("no JSON".into()))]));
    let dead = failed(ReasonCode::PayloadFormatInvalid, None);
    assert_eq!(dead.1, [(stored, Nack::DeadLetter("Payload format invalid".into()))]);
}

#[test]
fn a_queue_at_qos_0_is_settled_by_sending() {
    let mut machine = Machine::new(Version::V311);
    assert_eq!(machine.state.start(&leased(Qos::AtMostOnce, 1), 0), Start::Unnumbered);
    let mut again = leased(Qos::AtLeastOnce, 2);
    again.leased.attempt = 2;
    // [MQTT-3.3.1-1]
    assert_eq!(machine.state.start(&again, 0), Start::Publish { packet_id: id(1), dup: true });
}

// ---- subscriptions ----

fn subscribe(filters: &[&str]) -> Packet {
    let filters = filters.iter().map(|filter| SubscribeFilter {
        filter: (*filter).into(),
        options: SubscribeOptions { qos: QOS2, no_local: true, ..SubscribeOptions::default() },
    });
    let subscription_id = SubscriptionId::new(3);
    let properties = SubscribeProperties { subscription_id, ..SubscribeProperties::default() };
    Packet::Subscribe(Subscribe {
        packet_id: id(6),
        properties: Some(Box::new(properties)),
        filters: filters.collect(),
    })
}

#[test]
fn every_filter_has_its_code() {
    // [MQTT-3.8.4-1], [MQTT-3.8.4-2], [MQTT-3.9.3-1]; 5: [MQTT-3.8.4-5] to [MQTT-3.8.4-7].
    let mut machine = Machine::new(Version::V5);
    let effects = machine.packet(subscribe(&["a/+", "a/#/b", "$queue/none"]));
    assert!(effects.halts(), "the next packet waits");
    let Ask::Subscribe(asked, filters) = *effects.ask.unwrap() else { panic!() };
    let names: Vec<String> = filters.iter().map(|(filter, _)| filter.to_string()).collect();
    assert_eq!(names, ["a/+", "$queue/none"]);
    let options = filters[0].1;
    assert!(options.no_local && !options.retain_as_published);
    assert_eq!((options.max_qos, options.retain_handling), (Qos::ExactlyOnce, RetainHandling::Send));
    assert_eq!(options.identifier.map(std::num::NonZeroU32::get), Some(3));

    let none = CoreError::NotFound { kind: "queue", name: "none".into() };
    let effects = machine.input(Input::Subscribed(asked, vec![Ok(Qos::AtLeastOnce), Err(none)]));
    let [Packet::SubAck(suback)] = &effects.packets[..] else { panic!() };
    assert_eq!(suback.packet_id, id(6));
    let codes: Vec<u8> = suback.codes.iter().map(|code| *code as u8).collect();
    assert_eq!(codes, [0x01, 0x8f, 0x8f]);
    assert!(suback.properties.is_some());
}

#[test]
fn every_unsubscribe_is_answered() {
    // 3.1.1: [MQTT-3.10.4-4] to [MQTT-3.10.4-6]; 5: the same.
    for version in BOTH {
        let mut machine = Machine::new(version);
        let filters = vec!["a".into(), "b".into(), "c/#/".into()];
        let packet = Unsubscribe { packet_id: id(6), properties: None, filters };
        let effects = machine.packet(Packet::Unsubscribe(packet));
        let Ask::Unsubscribe(asked, filters) = *effects.ask.unwrap() else { panic!() };
        assert_eq!(filters, ["a", "b"].map(|text| FilterSpec::parse(&text.into()).unwrap()));
        let effects = machine.input(Input::Unsubscribed(asked, vec![Ok(true), Ok(false)]));
        let [Packet::UnsubAck(unsuback)] = &effects.packets[..] else { panic!() };
        let codes: Vec<u8> = unsuback.codes.iter().map(|code| *code as u8).collect();
        assert_eq!(codes, if version == Version::V5 { vec![0x00, 0x11, 0x8f] } else { vec![] });
    }
}

// ---- ends ----

#[test]
fn disconnect_decides_about_the_will() {
    let end = |reason, expiry: Option<u32>| {
        let mut machine = Machine::durable(Version::V5);
        let properties = DisconnectProperties { session_expiry: expiry, ..Default::default() };
        let packet = Disconnect { reason, properties: Some(Box::new(properties)) };
        *machine.packet(Packet::Disconnect(packet)).ending.unwrap()
    };
    // [MQTT-3.14.4-3]; 3.1.1: [MQTT-3.1.2-10]; 5: [MQTT-3.1.2-10].
    let clean = end(ReasonCode::Success, None);
    assert_eq!((clean.how, clean.will, clean.tell), (End::Clean, false, None));
    let with_will = end(ReasonCode::DisconnectWithWill, Some(9));
    assert_eq!((with_will.how, with_will.will), (End::Lost, true));
    assert_eq!(with_will.expiry, Some(Duration::from_secs(9)));
    // 5: section 3.14.2.2.2.
    let properties = DisconnectProperties { session_expiry: Some(1), ..Default::default() };
    let raised = Disconnect { reason: ReasonCode::Success, properties: Some(Box::new(properties)) };
    assert_eq!(Machine::new(Version::V5).ends(Packet::Disconnect(raised)), 0x82);
}

#[test]
fn who_ends_it_decides_what_counts() {
    let mut machine = Machine::new(Version::V5);
    let lost = machine.input(Input::Lost).ending.unwrap();
    assert_eq!((lost.how, lost.will, lost.tell), (End::Lost, true, None));
    // 5: [MQTT-3.1.4-3].
    let effects = machine.input(Input::Closed(ReasonCode::SessionTakenOver));
    assert_eq!((told(&effects), effects.ending.unwrap().how), (0x8e, End::Lost));
    let effects = machine.input(Input::Closed(ReasonCode::ServerShuttingDown));
    assert_eq!((told(&effects), effects.ending.unwrap().how), (0x8b, End::Clean));
    // The first end holds.
    let mut effects = Effects::default();
    let (now, state) = (machine.now, &mut machine.state);
    state.handle(Input::Lost, now, WALL, &mut effects);
    state.handle(Input::Closed(ReasonCode::SessionTakenOver), now, WALL, &mut effects);
    assert_eq!(effects.ending.unwrap().tell, None);
}

// ---- anything ----

proptest! {
    #[test]
    fn a_client_may_do_anything(data in prop::collection::vec(any::<u8>(), 0..1200)) {
        fuzz_state(&data);
    }
}
