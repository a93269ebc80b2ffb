//! What a fuzzer runs on the state machine, here so that the tests run it too.

use std::collections::{HashSet, VecDeque};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::{Ask, Effects, Hello, Input, Origin, Start, State};
use crate::core::{CoreError, Limits, Published, Receipt, SessionDelivery};
use crate::engine::{Leased, Outgoing, OutgoingState};
use crate::mqtt::codec::{
    self, Ack, Connect, ConnectProperties, Decoder, Packet, Publish, PublishProperties, ReasonCode, Version,
};
use crate::mqtt::{Settings, translate};
use crate::types::{Message, MessageId, Priority, Qos, Sequence, TargetId, TopicName, UnixMillis, clock};

const BACKLOG: TargetId = TargetId(1);
const WALL: UnixMillis = UnixMillis(1_700_000_000_000);
/// A packet id that an earlier connection has left.
const LEFT: u16 = 4;

/// The body of a fuzz target: `data` says what happens to a connection, one thing after the other. Whatever that is,
/// nothing panics, no lease is given back twice, the client's window is kept, and a publish at QoS 2 is handed on once
/// until it is released. There are few packet ids, so that they meet.
pub fn fuzz_state(data: &[u8]) {
    let mut data = Data(data);
    let choice = data.byte();
    let Some(mut run) = Run::new(choice & 1 == 1, choice & 2 == 2) else { return };
    while !data.0.is_empty() && run.step(&mut data) {}
}

struct Data<'a>(&'a [u8]);

impl Data<'_> {
    /// 0 at the end.
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn id(&mut self) -> NonZeroU16 {
        NonZeroU16::MIN.saturating_add(u16::from(self.byte() % 4))
    }

    fn qos(&mut self) -> codec::Qos {
        codec::Qos::from_u8(self.byte() % 3).unwrap_or_default()
    }
}

struct Run {
    state: State,
    version: Version,
    durable: bool,
    now: Instant,
    decoder: Decoder,
    /// The most deliveries on their way, and those beyond of which only PUBREL is left.
    max: usize,
    beyond: usize,
    sequence: u64,
    given_back: HashSet<Sequence>,
    /// Publishes that the core has not answered.
    handed: VecDeque<u64>,
    asked: Option<Box<Ask>>,
}

impl Run {
    fn new(five: bool, durable: bool) -> Option<Self> {
        let version = if five { Version::V5 } else { Version::V311 };
        let connect = Connect {
            version,
            clean_start: !durable,
            keep_alive: 10,
            client_id: "fuzz".into(),
            will: None,
            username: None,
            password: None,
            properties: ConnectProperties {
                receive_maximum: NonZeroU16::new(3).filter(|_| five),
                session_expiry: Some(60).filter(|_| five && durable),
                ..ConnectProperties::default()
            },
        };
        let settings = Settings { receive_maximum: 2, topic_alias_maximum: 3, ..Settings::default() };
        let hello = Hello::check(connect, &settings).ok()?;
        let left = if durable { (vec![LEFT], vec![LEFT]) } else { Default::default() };
        let (now, limits) = (clock::now(), Limits { max_topic_bytes: 100, ..Limits::default() });
        let mut state = State::new(hello, durable.then_some(BACKLOG), left, &settings, &limits, now);
        Some(Self {
            version,
            durable,
            now,
            decoder: Decoder::established(version, codec::Limits::default()),
            max: state.window().room(),
            beyond: 0,
            state,
            sequence: 0,
            given_back: HashSet::new(),
            handed: VecDeque::new(),
            asked: None,
        })
    }

    /// One thing that happens. False: the connection has ended.
    fn step(&mut self, data: &mut Data<'_>) -> bool {
        let what = data.byte() % 10;
        // As the connection does: the next packet waits for the answer to the last.
        let input = match what {
            0 | 1 | 2 | 9 if self.asked.is_some() => return true,
            0 => Some(self.packet(data)),
            1 => Some(Input::Packet(self.publish(data))),
            2 => Some(Input::Packet(self.acknowledgement(data))),
            3 => {
                self.deliver(data);
                None
            }
            4 => self.receipt(data.flag()),
            5 => Some(Input::Noted(data.id())),
            6 => self.answer(data.flag()),
            7 => {
                self.now += Duration::from_secs(u64::from(data.byte() % 4));
                Some(Input::Deadline)
            }
            8 => {
                let qos = translate::qos(data.qos()).max(Qos::AtLeastOnce);
                self.state.window().begin(qos, Origin::Live, 0);
                None
            }
            _ => Some(Input::Packet(Packet::PingReq)),
        };
        input.is_none_or(|input| self.take(input))
    }

    /// Any packet: `[length: u8][bytes]`.
    fn packet(&mut self, data: &mut Data<'_>) -> Input {
        let count = usize::from(data.byte()).min(data.0.len());
        let (bytes, rest) = data.0.split_at(count);
        data.0 = rest;
        match self.decoder.decode(&mut BytesMut::from(bytes)) {
            Ok(Some(packet)) => Input::Packet(packet),
            Ok(None) => Input::Deadline,
            Err(error) => Input::Malformed(error),
        }
    }

    fn publish(&self, data: &mut Data<'_>) -> Packet {
        let (qos, id, dup) = (data.qos(), data.id(), data.flag());
        let alias = NonZeroU16::new(u16::from(data.byte() % 6)).filter(|_| self.version == Version::V5);
        let named = alias.is_none() || data.flag();
        let properties = PublishProperties { topic_alias: alias, ..PublishProperties::default() };
        Packet::Publish(Publish {
            dup: dup && qos != codec::Qos::AtMostOnce,
            qos,
            retain: false,
            topic: if named { "a/b".into() } else { Default::default() },
            packet_id: (qos != codec::Qos::AtMostOnce).then_some(id),
            properties: alias.is_some().then(|| Box::new(properties)),
            payload: Bytes::new(),
        })
    }

    fn acknowledgement(&self, data: &mut Data<'_>) -> Packet {
        let (kind, id, fails) = (data.byte() % 4, data.id(), data.flag() && self.version == Version::V5);
        let reason = if fails { ReasonCode::UnspecifiedError } else { ReasonCode::Success };
        match kind {
            0 => Packet::PubAck(Ack::new(id, reason)),
            1 => Packet::PubRec(Ack::new(id, reason)),
            2 => Packet::PubRel(Ack::new(id, ReasonCode::Success)),
            _ => Packet::PubComp(Ack::new(id, ReasonCode::Success)),
        }
    }

    /// A stored message, perhaps one that an earlier connection had.
    fn deliver(&mut self, data: &mut Data<'_>) {
        self.sequence += 1;
        let qos = translate::qos(data.qos());
        let state = if data.flag() { OutgoingState::Sent } else { OutgoingState::Received };
        let resumed = data.byte().is_multiple_of(5) && self.durable;
        let outgoing = resumed.then(|| Outgoing { packet_id: data.id().get(), state });
        let Ok(topic) = TopicName::parse("a".into()) else { return };
        let delivery = SessionDelivery {
            source: BACKLOG,
            leased: Leased {
                sequence: Sequence(self.sequence),
                attempt: 1,
                qos,
                retain: false,
                priority: Priority::default(),
                lease_expires: None,
                outgoing,
                earlier_boot: false,
                message: Message {
                    id: MessageId::from_u128(1),
                    topic,
                    payload: Bytes::new(),
                    qos,
                    retain: false,
                    expires_at: None,
                    extras: None,
                },
            },
            identifiers: Default::default(),
            maybe_sent: data.flag(),
            dropped_before: 0,
        };
        match self.state.start(&delivery, 0) {
            Start::Note(id, _) if data.flag() => {
                self.state.started(id, 0);
            }
            Start::Release(_) => self.beyond += 1,
            _ => {}
        }
    }

    /// The core answers the publish that waits longest.
    fn receipt(&mut self, ok: bool) -> Option<Input> {
        let tag = self.handed.pop_front()?;
        let published = Published {
            id: MessageId::from_u128(1),
            subscribers: 1,
            queues: 0,
            streams: 0,
            duplicate: false,
        };
        let refused = CoreError::Full { queue: "q".to_owned(), bound: "max_messages 1".to_owned() };
        Some(Input::Receipt(Receipt { tag, result: if ok { Ok(published) } else { Err(refused) } }))
    }

    /// The core answers what it was asked.
    fn answer(&mut self, ok: bool) -> Option<Input> {
        let refused = || CoreError::Denied("no".to_owned());
        Some(match *self.asked.take()? {
            Ask::Subscribe(asked, filters) => {
                let answer = |_| if ok { Ok(Qos::AtLeastOnce) } else { Err(refused()) };
                Input::Subscribed(asked, filters.into_iter().map(answer).collect())
            }
            Ask::Unsubscribe(asked, filters) => {
                let answer = |_| if ok { Ok(true) } else { Err(refused()) };
                Input::Unsubscribed(asked, filters.into_iter().map(answer).collect())
            }
        })
    }

    /// Gives it to the machine and looks at what is to be done. False: to end.
    fn take(&mut self, input: Input) -> bool {
        let mut effects = Effects::default();
        self.state.handle(input, self.now, WALL, &mut effects);
        for inbound in effects.publishes.iter().filter(|inbound| inbound.receipt) {
            let twice = self.handed.contains(&inbound.tag);
            assert!(!twice || inbound.message.qos < Qos::ExactlyOnce, "handed on twice");
            self.handed.push_back(inbound.tag);
        }
        for packet in &effects.packets {
            let mut bytes = BytesMut::new();
            assert_eq!(packet.encode(self.version, &mut bytes), Ok(()), "{packet:?}");
        }
        let failed = effects.failed.iter().map(|(stored, _)| stored);
        for stored in effects.settled.iter().chain(failed) {
            assert!(self.given_back.insert(stored.sequence), "given back twice");
        }
        assert!(self.state.window().in_flight() <= self.max + self.beyond, "more on their way than may be");
        self.asked = effects.ask.take().or(self.asked.take());
        let ends = effects.ending.is_some();
        // The store answers at once.
        !ends && effects.release.into_iter().all(|id| self.take(Input::Released(id)))
    }
}
