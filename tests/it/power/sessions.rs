//! Clients of the MQTT door: what is published at QoS 1 and 2, retained and into a queue, and two sessions that get it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use stafett::mqtt::codec::{ConnAck, Connect, Packet, Publish, Subscribe, SubscribeFilter, SubscribeOptions};

use super::history::{History, Order, Sent, Session, State, UnderWay};
use super::queues::{BOUND, Gone, WORK};
use crate::below::Chance;
use crate::mqtt::{Peer, QOS1, QOS2, V5, V311, ack, connect, id, kept, publish};

/// Publishes of a QoS 1 publisher that wait for their PUBACK.
const WINDOW_ONE: usize = 16;
/// The same at QoS 2, for PUBCOMP.
const WINDOW_TWO: usize = 8;

/// What the MQTT door is asked with.
#[derive(Clone)]
pub(super) struct Clients {
    address: SocketAddr,
    history: Arc<History>,
}

/// The subscriber of one of the sessions.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Reader {
    Live,
    Exact,
}

impl Reader {
    fn connect(self) -> Connect {
        match self {
            Self::Live => kept(V311, "live"),
            Self::Exact => kept(V5, "exact"),
        }
    }

    fn session(self, state: &mut State) -> &mut Session {
        match self {
            Self::Live => &mut state.live,
            Self::Exact => &mut state.exact,
        }
    }
}

impl Clients {
    pub(super) fn new(address: SocketAddr, history: &Arc<History>) -> Self {
        Self { address, history: Arc::clone(history) }
    }

    async fn greet(&self, connect: Connect) -> Result<(Peer, ConnAck), Gone> {
        let (peer, connack) = Peer::try_greet(self.address, connect).await.ok_or(Gone)?;
        if connack.reason.is_failure() { Err(Gone) } else { Ok((peer, connack)) }
    }

    async fn say(peer: &mut Peer, packet: Packet) -> Result<(), Gone> {
        if peer.try_send(packet).await { Ok(()) } else { Err(Gone) }
    }

    async fn hear(peer: &mut Peer) -> Result<Packet, Gone> {
        peer.next_or_end().await.ok_or(Gone)
    }

    /// Connects to the session, which must be there if it was ever acknowledged, and subscribes.
    pub(super) async fn attach(&self, reader: Reader) -> Result<Peer, Gone> {
        let (mut peer, connack) = self.greet(reader.connect()).await?;
        let known = {
            let mut state = self.history.lock();
            let known = reader.session(&mut state).known;
            if known && !connack.session_present {
                state.wrong(format!("the session {} is lost", reader.connect().client_id));
            }
            known
        };
        if !known {
            let (filter, qos) = match reader {
                Reader::Live => ("live/#", QOS1),
                Reader::Exact => ("exact/#", QOS2),
            };
            let options = SubscribeOptions { qos, ..SubscribeOptions::default() };
            let filters = vec![SubscribeFilter { filter: filter.into(), options }];
            let subscribe = Subscribe { packet_id: id(1), properties: None, filters };
            Self::say(&mut peer, Packet::Subscribe(subscribe)).await?;
            loop {
                match Self::hear(&mut peer).await? {
                    Packet::SubAck(_) => break,
                    // Subscribed already, though that was not acknowledged.
                    other => self.taken(reader, &mut Order::default(), &mut peer, other).await?,
                }
            }
            reader.session(&mut self.history.lock()).known = true;
        }
        Ok(peer)
    }

    /// Takes what comes until `last`, or the end.
    pub(super) async fn read(self, reader: Reader, mut peer: Peer, last: Option<Sent>) -> Result<(), Gone> {
        let mut order = Order::default();
        let is_last = |state: &mut State| {
            last.is_some_and(|last| reader.session(state).received.contains_key(&last.number))
                && (reader == Reader::Live || state.holding.is_empty())
        };
        while !is_last(&mut self.history.lock()) {
            let packet = Self::hear(&mut peer).await?;
            self.taken(reader, &mut order, &mut peer, packet).await?;
        }
        Ok(())
    }

    /// Answers a packet for a session.
    async fn taken(
        &self,
        reader: Reader,
        order: &mut Order,
        peer: &mut Peer,
        packet: Packet,
    ) -> Result<(), Gone> {
        match packet {
            Packet::Publish(publish) => {
                let packet_id = publish.packet_id.expect("QoS 1 or 2").get();
                let sent = Sent::of(&publish.payload);
                self.seen(reader, order, packet_id, sent);
                let answer = ack(packet_id);
                let answer =
                    if reader == Reader::Exact { Packet::PubRec(answer) } else { Packet::PubAck(answer) };
                Self::say(peer, answer).await
            }
            Packet::PubRel(released) => {
                self.history.lock().holding.remove(&released.packet_id.get());
                Self::say(peer, Packet::PubComp(ack(released.packet_id.get()))).await
            }
            Packet::Disconnect(_) => Err(Gone),
            other => panic!("{other:?}"),
        }
    }

    fn seen(&self, reader: Reader, order: &mut Order, packet_id: u16, sent: Sent) {
        let mut state = self.history.lock();
        if reader == Reader::Exact {
            match state.holding.insert(packet_id, sent) {
                // Again, because PUBREC was lost.
                Some(before) if before == sent => return,
                Some(before) => {
                    let (was, is) = (before.number, sent.number);
                    state.wrong(format!("exact: packet {packet_id} was {was} and is {is} before its PUBREL"));
                }
                None => {}
            }
        }
        let session = reader.session(&mut state);
        let count = session.received.entry(sent.number).or_default();
        *count += 1;
        let is_first = *count == 1;
        let in_order = (!is_first || session.order.goes_on(sent)) & order.goes_on(sent);
        if !in_order {
            state.wrong(format!("{}: {} came behind a later one", reader.connect().client_id, sent.number));
        }
        if !is_first && reader == Reader::Exact {
            state.wrong(format!("exact: {} came twice", sent.number));
        }
    }

    /// Publishes at QoS 1, some in flight: to both targets of `live/#`, into a queue, and retained.
    pub(super) async fn publish(self, mut chance: Chance) -> Result<(), Gone> {
        let (mut peer, _) = self.greet(connect(V5, "publisher-1")).await?;
        let mut waiting: VecDeque<(u16, Sent, String)> = VecDeque::new();
        let mut next_id = 0_u16;
        loop {
            while waiting.len() < WINDOW_ONE {
                let topic = match chance.below(4) {
                    0 | 1 => "live/mqtt".to_owned(),
                    2 => format!("$queue/{WORK}"),
                    _ => format!("state/mqtt/{}", chance.below(4)),
                };
                // Lines go to one target each.
                let line = 10 + topic.len() as u64;
                next_id = next_id % 1000 + 1;
                let (sent, retained) = self.begin(line, &topic);
                let payload = if retained == Some(false) { Vec::new() } else { sent.payload() };
                let publish = publish(&topic, QOS1, next_id, payload);
                waiting.push_back((next_id, sent, topic));
                let packet = Packet::Publish(Publish { retain: retained.is_some(), ..publish });
                Self::say(&mut peer, packet).await?;
            }
            match Self::hear(&mut peer).await? {
                Packet::PubAck(ack) => {
                    let (packet_id, sent, topic) = waiting.pop_front().expect("one under way");
                    assert_eq!(packet_id, ack.packet_id.get(), "PUBACK in order");
                    if ack.reason.is_failure() {
                        return Err(Gone);
                    }
                    self.acknowledged(sent, &topic);
                }
                _ => return Err(Gone),
            }
        }
    }

    /// A new message, and whether it is a retained value or clears one.
    fn begin(&self, line: u64, topic: &str) -> (Sent, Option<bool>) {
        let mut state = self.history.lock();
        let sent = state.next(line);
        let retained = topic.starts_with("state/").then_some(!sent.number.is_multiple_of(4));
        if let Some(is_value) = retained {
            state.register(topic).send(sent.number, is_value);
        }
        (sent, retained)
    }

    fn acknowledged(&self, sent: Sent, topic: &str) {
        let mut state = self.history.lock();
        match topic {
            "live/mqtt" => {
                state.queue(BOUND).stored.insert(sent.number);
                state.live.said.stored.insert(sent.number);
            }
            value if value.starts_with("state/") => state.register(value).acknowledge(sent.number),
            _ => drop(state.queue(WORK).stored.insert(sent.number)),
        }
    }

    /// Publishes at QoS 2 in a session that is kept, and finishes what it began in an earlier run. With `finish` it begins
    /// nothing new, and ends.
    pub(super) async fn publish_exactly(self, finish: bool) -> Result<(), Gone> {
        let (mut peer, connack) = self.greet(kept(V5, "publisher-2")).await?;
        let resumed = {
            let mut state = self.history.lock();
            if state.publisher_known && !connack.session_present {
                state.wrong("the session publisher-2 is lost".to_owned());
            }
            state.publisher_known = true;
            state.under_way.clone()
        };
        for UnderWay { packet_id, sent, received } in resumed {
            let packet = if received {
                Packet::PubRel(ack(packet_id))
            } else {
                let publish = publish("exact/mqtt", QOS2, packet_id, sent.payload());
                Packet::Publish(Publish { dup: true, ..publish })
            };
            Self::say(&mut peer, packet).await?;
        }
        loop {
            while let Some(UnderWay { packet_id, sent, .. }) = self.begin_exactly(finish) {
                let publish = publish("exact/mqtt", QOS2, packet_id, sent.payload());
                Self::say(&mut peer, Packet::Publish(publish)).await?;
            }
            if self.history.lock().under_way.is_empty() {
                return Ok(());
            }
            match Self::hear(&mut peer).await? {
                Packet::PubRec(recorded) if recorded.reason.is_failure() => return Err(Gone),
                Packet::PubRec(recorded) => {
                    let packet_id = recorded.packet_id.get();
                    self.history.lock().recorded(packet_id);
                    Self::say(&mut peer, Packet::PubRel(ack(packet_id))).await?;
                }
                Packet::PubComp(done) => {
                    self.history.lock().under_way.retain(|at| at.packet_id != done.packet_id.get());
                }
                _ => return Err(Gone),
            }
        }
    }

    fn begin_exactly(&self, finish: bool) -> Option<UnderWay> {
        let mut state = self.history.lock();
        if finish || state.under_way.len() >= WINDOW_TWO {
            return None;
        }
        let is_free = |id: &u16| state.under_way.iter().all(|at| at.packet_id != *id);
        let last = state.under_way.last().map_or(0, |at| at.packet_id);
        let packet_id = (last + 1..1000).chain(1..1000).find(is_free)?;
        let begun = UnderWay { packet_id, sent: state.next(8), received: false };
        state.under_way.push(begun);
        Some(begun)
    }

    /// A message behind all that a session has to be given.
    pub(super) async fn mark(&self, reader: Reader) -> Result<Sent, Gone> {
        let (mut peer, _) = self.greet(connect(V5, "end")).await?;
        let sent = self.history.lock().next(9);
        let topic = match reader {
            Reader::Live => "live/end",
            Reader::Exact => "exact/end",
        };
        let reason = peer.say_packet(publish(topic, QOS2, 1, sent.payload())).await;
        assert!(!reason.is_failure(), "{reason:?}");
        let mut state = self.history.lock();
        reader.session(&mut state).said.stored.insert(sent.number);
        if let Some(bound) = state.queues.get_mut(BOUND).filter(|_| reader == Reader::Live) {
            bound.stored.insert(sent.number);
        }
        Ok(sent)
    }
}
