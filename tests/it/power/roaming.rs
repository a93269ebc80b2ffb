//! A session that goes from door to door, settles some of what it gets, takes its leave or is lost, and leaves wills.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::subscribe_stream_request::Action;
use stafett::grpc::proto::v1::subscribe_stream_response::Event;
use stafett::mqtt::codec::{
    ConnAck, Connect, Disconnect, Packet, Publish, ReasonCode, Subscribe, SubscribeFilter, SubscribeOptions,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::history::{Sent, State};
use super::queues::{Caller, Gone};
use crate::harness::within;
use crate::mqtt::{Peer, QOS1, QOS2, V5, ack, connect, id, kept, publish};
use crate::queue::seconds;

const SESSION: &str = "roam";
/// Gets the wills of the other.
const WATCHER: &str = "watch";
const WILL: &str = "wills/roam";

/// What is known of the session in all runs.
#[derive(Debug, Default)]
pub(super) struct Roam {
    /// Acknowledged to who published them.
    pub(super) stored: HashSet<u64>,
    pub(super) received: HashSet<u64>,
    known: bool,
    watched: bool,
    /// Received since the broker was started.
    this_run: HashSet<u64>,
    /// Acknowledged over MQTT since then, by a connection that took its leave.
    done: HashSet<u64>,
    /// That they are settled was acknowledged, over gRPC.
    pub(super) settled: HashSet<u64>,
    /// What the client has of each packet id, between PUBLISH and PUBREL, and what of that was released.
    holding: HashMap<u16, Sent>,
    released: HashSet<u64>,
    /// Wills that must not be published, and that must.
    withdrawn: HashSet<u64>,
    due: HashSet<u64>,
    published: HashSet<u64>,
}

impl Roam {
    /// The broker was started again.
    pub(super) fn starts(&mut self) {
        self.this_run.clear();
        self.done.clear();
    }

    fn seen(&mut self, sent: Sent, says_again: bool) -> Result<(), String> {
        let n = sent.number;
        if self.settled.contains(&n) || self.done.contains(&n) {
            return Err(format!("{n} was settled and came again"));
        }
        if !self.this_run.insert(n) && !says_again {
            return Err(format!("{n} came again as if for the first time"));
        }
        self.received.insert(n);
        Ok(())
    }

    fn published_to(&mut self, packet_id: u16, sent: Sent) -> Result<(), String> {
        if self.released.contains(&sent.number) {
            return Err(format!("{} was released and came again over MQTT", sent.number));
        }
        match self.holding.insert(packet_id, sent) {
            Some(before) if before != sent => {
                let (was, is) = (before.number, sent.number);
                Err(format!("packet {packet_id} was {was} and is {is} before its PUBREL"))
            }
            _ => Ok(()),
        }
    }

    /// Compares when nothing more is to come.
    pub(super) fn check(&self) -> Result<(), String> {
        if !self.holding.is_empty() {
            return Err(format!("the client waits for PUBREL: {:?}", self.holding));
        }
        let lost: Vec<_> = self.stored.difference(&self.received).collect();
        let unpublished: Vec<_> = self.due.difference(&self.published).collect();
        let despite: Vec<_> = self.withdrawn.intersection(&self.published).collect();
        if lost.is_empty() && unpublished.is_empty() && despite.is_empty() {
            return Ok(());
        }
        Err(format!("lost: {lost:?}; wills that did not come: {unpublished:?}, that should not: {despite:?}"))
    }
}

/// How long the client stays at a door, and how it goes.
#[derive(Debug, Clone, Copy)]
struct Visit {
    /// Until it was given so many, or the last of all.
    most: Option<u64>,
    last: u64,
    /// All that it gets, or most of it.
    settles_all: bool,
    leaves: bool,
}

/// Where.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Door {
    Grpc,
    Mqtt,
}

/// The client of the session.
pub(super) struct Roamer {
    caller: Caller,
    mqtt: SocketAddr,
}

impl Roamer {
    pub(super) fn new(caller: Caller, mqtt: SocketAddr) -> Self {
        Self { caller, mqtt }
    }

    fn note(&self, what: impl FnOnce(&mut Roam) -> Result<(), String>) {
        let mut state = self.caller.history.lock();
        let noted = what(&mut state.roam);
        if let Err(wrong) = noted {
            state.wrong(format!("{SESSION}: {wrong}"));
        }
    }

    fn is_over(&self, visit: Visit, door: Door, seen: u64) -> bool {
        let roam = &self.caller.history.lock().roam;
        match visit.most {
            Some(most) => seen >= most,
            None => roam.received.contains(&visit.last) && (door == Door::Grpc || roam.holding.is_empty()),
        }
    }

    fn settles(&mut self, visit: Visit) -> bool {
        visit.settles_all || self.caller.chance.below(4) > 0
    }

    async fn greet(&self, connect: Connect) -> Result<(Peer, ConnAck), Gone> {
        let (peer, connack) = Peer::try_greet(self.mqtt, connect).await.ok_or(Gone)?;
        if connack.reason.is_failure() { Err(Gone) } else { Ok((peer, connack)) }
    }

    async fn say(peer: &mut Peer, packet: Packet) -> Result<(), Gone> {
        if peer.try_send(packet).await { Ok(()) } else { Err(Gone) }
    }

    /// DISCONNECT, and the broker closes: it has read all that was said before.
    async fn part(mut peer: Peer) -> Result<(), Gone> {
        Self::say(&mut peer, Packet::Disconnect(Disconnect::new(ReasonCode::Success))).await?;
        while let Some(packet) = peer.next_or_end().await {
            if matches!(packet, Packet::Disconnect(_)) {
                return Err(Gone);
            }
        }
        Ok(())
    }

    /// Both sessions, unless they are known.
    pub(super) async fn define(&mut self) -> Result<(), Gone> {
        let (mut peer, connack) = self.greet(kept(V5, WATCHER)).await?;
        let watched = self.caller.history.lock().roam.watched;
        if watched && !connack.session_present {
            self.note(|_| Err("the session of the watcher is lost".to_owned()));
        }
        if !watched {
            self.subscribe(&mut peer, "wills/#", |roam| roam.watched = true).await?;
        }
        drop(peer);
        if !self.caller.history.lock().roam.known {
            let (mut peer, _) = self.greet(kept(V5, SESSION)).await?;
            self.subscribe(&mut peer, "roam/#", |roam| roam.known = true).await?;
        }
        Ok(())
    }

    async fn subscribe(
        &self,
        peer: &mut Peer,
        filter: &str,
        known: impl FnOnce(&mut Roam),
    ) -> Result<(), Gone> {
        let options = SubscribeOptions { qos: QOS2, ..SubscribeOptions::default() };
        let filters = vec![SubscribeFilter { filter: filter.into(), options }];
        let packet = Subscribe { packet_id: id(1), properties: None, filters };
        Self::say(peer, Packet::Subscribe(packet)).await?;
        loop {
            match peer.next_or_end().await.ok_or(Gone)? {
                Packet::SubAck(_) => break,
                Packet::Disconnect(_) => return Err(Gone),
                // Subscribed already, though that was not acknowledged.
                _ => {}
            }
        }
        known(&mut self.caller.history.lock().roam);
        Ok(())
    }

    /// Goes from door to door.
    pub(super) async fn roam(mut self) -> Result<(), Gone> {
        loop {
            let door = if self.caller.chance.below(2) == 0 { Door::Grpc } else { Door::Mqtt };
            let most = Some(1 + self.caller.chance.below(20));
            let leaves = self.caller.chance.below(2) == 0;
            self.visit(door, Visit { most, last: 0, settles_all: false, leaves }).await?;
        }
    }

    /// Returns the number of the will that it left behind, if it did.
    async fn visit(&mut self, door: Door, visit: Visit) -> Result<Option<u64>, Gone> {
        let will = self.caller.history.lock().next(21);
        match door {
            Door::Grpc => self.visit_grpc(visit, will).await?,
            Door::Mqtt => self.visit_mqtt(visit, will).await?,
        }
        if visit.leaves {
            self.caller.history.lock().roam.withdrawn.insert(will.number);
        }
        Ok((!visit.leaves).then_some(will.number))
    }

    async fn event(
        &self,
        events: &mut Streaming<v1::SubscribeStreamResponse>,
    ) -> Result<Option<Event>, Gone> {
        match within("an event", events.message()).await {
            Ok(event) => Ok(event.and_then(|event| event.event)),
            Err(status) => Err(self.caller.gone(&status)),
        }
    }

    async fn visit_grpc(&mut self, visit: Visit, will: Sent) -> Result<(), Gone> {
        let (send, frames) = mpsc::channel(64);
        let say = async |action| {
            send.send(v1::SubscribeStreamRequest { action: Some(action) }).await.map_err(|_| Gone)
        };
        let message = Some(Caller::message(will, WILL));
        say(Action::Open(v1::OpenSession {
            client_id: SESSION.to_owned(),
            session_expiry: seconds(3600),
            will: Some(v1::Will { message, delay: None }),
            ..Default::default()
        }))
        .await?;
        let call = self.caller.topics.clone();
        let mut call = call.max_decoding_message_size(usize::MAX);
        let mut events = self.caller.got(call.subscribe_stream(ReceiverStream::new(frames))).await?;
        let mut asked: VecDeque<(u64, Vec<u64>)> = VecDeque::new();
        let (mut ack_id, mut seen) = (0, 0);
        while !asked.is_empty() || !self.is_over(visit, Door::Grpc, seen) {
            match self.event(&mut events).await? {
                Some(Event::Opened(opened)) if !opened.session_present => {
                    self.note(|_| Err("the session is lost".to_owned()));
                }
                Some(Event::Deliveries(batch)) => {
                    let (mut delivery_ids, mut numbers) = (Vec::new(), Vec::new());
                    for delivery in batch.deliveries {
                        let sent = Sent::of(&delivery.message.unwrap().payload);
                        seen += 1;
                        self.note(|roam| roam.seen(sent, delivery.delivery_attempt > 1));
                        if self.settles(visit) {
                            delivery_ids.push(delivery.delivery_id);
                            numbers.push(sent.number);
                        }
                    }
                    if !numbers.is_empty() {
                        ack_id += 1;
                        asked.push_back((ack_id, numbers));
                        say(Action::Ack(v1::AckBatch { ack_id, delivery_ids, lease_tokens: Vec::new() }))
                            .await?;
                    }
                }
                Some(Event::AckResults(results)) => {
                    if !results.failures.is_empty() {
                        self.note(|_| Err(format!("not settled: {:?}", results.failures)));
                    }
                    while let Some((_, numbers)) = asked.pop_front_if(|(id, _)| *id <= results.acked_through)
                    {
                        self.note(|roam| {
                            roam.settled.extend(numbers);
                            Ok(())
                        });
                    }
                }
                Some(Event::Closing(_)) | None => return Err(Gone),
                Some(_) => {}
            }
        }
        if visit.leaves {
            say(Action::Close(v1::CloseSession::default())).await?;
            while let Some(event) = self.event(&mut events).await? {
                if matches!(event, Event::Closing(_)) {
                    return Err(Gone);
                }
            }
        }
        Ok(())
    }

    async fn visit_mqtt(&mut self, visit: Visit, will: Sent) -> Result<(), Gone> {
        let mut connect = kept(V5, SESSION);
        let mut said = crate::mqtt::will(WILL, "");
        said.payload = will.payload().into();
        connect.will = Some(said);
        let (mut peer, connack) = self.greet(connect).await?;
        if !connack.session_present {
            self.note(|_| Err("the session is lost".to_owned()));
        }
        let (mut seen, mut done) = (0, Vec::new());
        while !self.is_over(visit, Door::Mqtt, seen) {
            match peer.next_or_end().await.ok_or(Gone)? {
                Packet::Publish(Publish { packet_id, payload, qos, dup, .. }) => {
                    let packet_id = packet_id.expect("QoS 1 or 2").get();
                    let sent = Sent::of(&payload);
                    seen += 1;
                    self.note(|roam| roam.seen(sent, dup));
                    if qos == QOS2 {
                        self.note(|roam| roam.published_to(packet_id, sent));
                    }
                    if !self.settles(visit) {
                        continue;
                    }
                    let answer = ack(packet_id);
                    let answer = if qos == QOS2 {
                        Packet::PubRec(answer)
                    } else {
                        done.push(sent.number);
                        Packet::PubAck(answer)
                    };
                    Self::say(&mut peer, answer).await?;
                }
                Packet::PubRel(released) => {
                    let packet_id = released.packet_id.get();
                    let settles = self.settles(visit);
                    self.note(|roam| {
                        if let Some(sent) = roam.holding.remove(&packet_id) {
                            roam.released.insert(sent.number);
                            done.extend(settles.then_some(sent.number));
                        }
                        Ok(())
                    });
                    if settles {
                        Self::say(&mut peer, Packet::PubComp(ack(packet_id))).await?;
                    }
                }
                _ => return Err(Gone),
            }
        }
        if visit.leaves {
            Self::part(peer).await?;
            self.caller.history.lock().roam.done.extend(done);
        } else {
            peer.vanish();
        }
        Ok(())
    }

    /// Publishes for the session over gRPC.
    pub(super) async fn publish(self) -> Result<(), Gone> {
        loop {
            self.mark().await?;
        }
    }

    async fn mark(&self) -> Result<u64, Gone> {
        let (sent, message) = self.caller.new_message(22, "roam/grpc");
        let request = v1::PublishRequest { message: Some(message) };
        self.caller.got(self.caller.topics.clone().publish(request)).await?;
        self.caller.history.lock().roam.stored.insert(sent.number);
        Ok(sent.number)
    }

    /// Publishes for the session over MQTT, at QoS 2.
    pub(super) async fn publish_exactly(self) -> Result<(), Gone> {
        let (mut peer, _) = self.greet(connect(V5, "publisher-3")).await?;
        loop {
            let sent = self.caller.history.lock().next(23);
            Self::say(&mut peer, Packet::Publish(publish("roam/mqtt", QOS2, 1, sent.payload()))).await?;
            match peer.next_or_end().await.ok_or(Gone)? {
                Packet::PubRec(received) if !received.reason.is_failure() => {}
                _ => return Err(Gone),
            }
            self.caller.history.lock().roam.stored.insert(sent.number);
            Self::say(&mut peer, Packet::PubRel(ack(1))).await?;
            match peer.next_or_end().await.ok_or(Gone)? {
                Packet::PubComp(_) => {}
                _ => return Err(Gone),
            }
        }
    }

    /// Takes all that is left, at either door, and sees which wills come.
    pub(super) async fn finish(mut self) -> Result<(), Gone> {
        self.caller.history.lock().roam.starts();
        // The cut may have come before there was a session.
        self.define().await?;
        for door in [Door::Grpc, Door::Mqtt, Door::Grpc] {
            for leaves in [true, false] {
                let last = self.mark().await?;
                let visit = Visit { most: None, last, settles_all: true, leaves };
                let left = self.visit(door, visit).await?;
                self.caller.history.lock().roam.due.extend(left);
            }
        }
        // The last one gives its session back before this one has it.
        let last = self.mark().await?;
        self.visit(Door::Mqtt, Visit { most: None, last, settles_all: true, leaves: true }).await?;
        let (mut peer, _) = self.greet(kept(V5, WATCHER)).await?;
        let (sent, message) = self.caller.new_message(21, WILL);
        let request = v1::PublishRequest { message: Some(message) };
        self.caller.got(self.caller.topics.clone().publish(request)).await?;
        loop {
            let Packet::Publish(will) = peer.next_or_end().await.ok_or(Gone)? else { return Err(Gone) };
            assert_eq!(will.qos, QOS1);
            Self::say(&mut peer, Packet::PubAck(ack(will.packet_id.expect("QoS 1").get()))).await?;
            let number = Sent::of(&will.payload).number;
            if number == sent.number {
                return Self::part(peer).await;
            }
            self.caller.history.lock().roam.published.insert(number);
        }
    }
}

impl State {
    /// How many messages of the session were stored, and how many settled.
    pub(super) fn roamed(&self) -> (usize, usize) {
        (self.roam.stored.len(), self.roam.settled.len())
    }
}
