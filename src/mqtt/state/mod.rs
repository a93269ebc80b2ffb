//! The protocol without I/O: a packet or an event in, effects out.
//!
//! One machine for both versions; what differs asks for the version. It awaits nothing, knows no socket and no clock, and
//! is owned by one connection, which carries out the effects and says what came of them.
//!
//! Invariant: after [`Effects::end`] nothing but the end follows.

mod authenticate;
mod client;
mod connect;
mod delivery;
mod fuzz;
mod inbound;
mod outbound;
mod subscribe;
#[cfg(test)]
mod tests;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::codec::{DecodeError, Disconnect, Packet, ReasonCode, Version};
use super::translate;
use super::violation::Violation;
use super::{Settings, Terms};
use crate::core::{CoreError, End, Inbound, Limits, Receipt};
use crate::engine::{Nack, Outgoing};
use crate::types::{Qos, TargetId, UnixMillis};

pub(super) use authenticate::{Authenticated, Dialogue, Heard};
pub(super) use client::Client;
pub(super) use connect::{Hello, Login, Refused, Session};
pub(super) use delivery::Start;
pub use fuzz::fuzz_state;
pub(super) use outbound::{Flight, Origin, Step, Stored, Window};
pub(super) use subscribe::{Ask, Subscribing, Unsubscribing};

use inbound::Incoming;

/// What happens to a connection.
#[derive(Debug)]
pub(super) enum Input {
    /// A packet came.
    Packet(Packet),
    /// What came is no packet.
    Malformed(DecodeError),
    /// The core has answered a publish.
    Receipt(Receipt),
    /// The core has answered the filters that were handed to it.
    Subscribed(Subscribing, Vec<Result<Qos, CoreError>>),
    /// The same for UNSUBSCRIBE.
    Unsubscribed(Unsubscribing, Vec<Result<bool, CoreError>>),
    /// How far the delivery with this packet id is, is stored.
    Noted(NonZeroU16),
    /// The end of this packet id of the client is stored.
    Released(NonZeroU16),
    /// The broker ends the connection.
    Closed(ReasonCode),
    /// The client is gone.
    Lost,
    /// [`State::deadline`] has passed.
    Deadline,
}

/// What a connection is to do, beside what the packets say.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// To publish together, in order, before anything else here.
    pub(super) publishes: Vec<Inbound>,
    /// To send, in order.
    pub(super) packets: Vec<Packet>,
    /// Leases that are done with.
    pub(super) settled: Vec<Stored>,
    /// Leases of queues that failed, and how.
    pub(super) failed: Vec<(Stored, Nack)>,
    /// To store; then [`Input::Noted`].
    pub(super) notes: Vec<(Stored, Outgoing)>,
    /// To forget in the store; then [`Input::Released`].
    pub(super) release: Vec<NonZeroU16>,
    /// To ask the core, before the next packet is looked at.
    pub(super) ask: Option<Box<Ask>>,
    /// To end.
    pub(super) ending: Option<Box<Ending>>,
}

/// How a connection ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ending {
    /// What the core is told.
    pub(super) how: End,
    /// What a 5.0 client is told.
    pub(super) tell: Option<(ReasonCode, String)>,
    /// Whether the will is published.
    pub(super) will: bool,
    /// The session's expiry, where DISCONNECT changed it.
    pub(super) expiry: Option<Duration>,
    /// So long the client is not read before.
    pub(super) after: Duration,
}

impl Effects {
    /// The first end holds.
    fn end(&mut self, ending: Ending) {
        self.ending.get_or_insert_with(|| Box::new(ending));
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        let Self { publishes, packets, settled, failed, notes, release, ask, ending } = self;
        publishes.is_empty()
            && packets.is_empty()
            && settled.is_empty()
            && failed.is_empty()
            && notes.is_empty()
            && release.is_empty()
            && ask.is_none()
            && ending.is_none()
    }

    /// Whether the next packet has to wait.
    pub(super) fn halts(&self) -> bool {
        self.ask.is_some() || self.ending.is_some()
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    version: Version,
    /// Whether acknowledgements may say more than their code [5: MQTT-3.1.2-29].
    problem_information: bool,
    /// In seconds; 0: none.
    keep_alive: u16,
    heard: Instant,
    incoming: Incoming,
    window: Window,
    terms: Arc<Terms>,
    /// The target of a session that outlives its connection.
    backlog: Option<TargetId>,
    /// CONNECT asked for a session that ends with the connection.
    ends_with_connection: bool,
    /// By enhanced authentication.
    authenticated: Option<Box<Authenticated>>,
    /// The peer is a server, and we are its client.
    client: Option<Box<Client>>,
}

impl State {
    /// The machine of a connection whose session is open. `incoming` are the packet ids at QoS 2 that the client has not
    /// released on an earlier connection, `outgoing` those of deliveries that it has not acknowledged to the end.
    pub(super) fn new(
        hello: Hello,
        backlog: Option<TargetId>,
        (incoming, outgoing): (Vec<u16>, Vec<u16>),
        settings: &Settings,
        limits: &Limits,
        now: Instant,
    ) -> Self {
        Self {
            version: hello.version,
            problem_information: hello.problem_information,
            keep_alive: hello.keep_alive,
            heard: now,
            incoming: Incoming::new(
                hello.version,
                settings.receive_maximum(),
                settings.topic_alias_maximum(),
                limits,
                incoming,
            ),
            window: Window::new(hello.receive_maximum, outgoing).within(settings.max_inflight_bytes),
            terms: Arc::clone(&settings.terms),
            backlog,
            ends_with_connection: hello.expiry.is_zero(),
            authenticated: hello.authenticated,
            client: None,
        }
    }

    /// Takes in one thing that happened.
    pub(super) fn handle(&mut self, input: Input, now: Instant, wall: UnixMillis, effects: &mut Effects) {
        let result = match input {
            Input::Packet(packet) => {
                self.heard = now;
                self.packet(packet, wall, effects)
            }
            Input::Malformed(error) => Err(Violation::Decode(error)),
            Input::Receipt(receipt) => {
                self.receipt(receipt, effects);
                Ok(())
            }
            Input::Subscribed(asked, answers) => {
                self.subscribed(asked, answers, effects);
                Ok(())
            }
            Input::Unsubscribed(asked, answers) => {
                self.unsubscribed(asked, answers, effects);
                Ok(())
            }
            Input::Noted(id) => {
                self.noted(id, effects);
                Ok(())
            }
            Input::Released(id) => {
                self.release_stored(id, effects);
                Ok(())
            }
            Input::Closed(code) => {
                effects.end(self.closed(code));
                Ok(())
            }
            Input::Lost => {
                effects
                    .end(Ending { tell: None, ..self.broken(ReasonCode::UnspecifiedError, String::new()) });
                Ok(())
            }
            Input::Deadline if self.silent().is_some_and(|at| at <= now) => Err(Violation::KeepAlive),
            Input::Deadline => {
                if self.client.as_mut().is_some_and(|client| client.pings(now)) {
                    effects.packets.push(Packet::PingReq);
                }
                Ok(())
            }
        };
        if let Err(violation) = result {
            effects.end(self.violated(&violation));
        }
    }

    /// The client is not to blame for silence before `now`: it was not read.
    pub(super) fn excuse(&mut self, now: Instant) {
        self.heard = now;
    }

    /// When [`Input::Deadline`] is due: after one and a half keep alive periods [3.1.1: MQTT-3.1.2-24; 5: MQTT-3.1.2-22].
    pub(super) fn deadline(&self) -> Option<Instant> {
        let ping = self.client.as_ref().and_then(|client| client.next_ping());
        [self.silent(), ping].into_iter().flatten().min()
    }

    /// When the peer has been silent for too long.
    fn silent(&self) -> Option<Instant> {
        let period = Duration::from_secs(self.keep_alive.into());
        (!period.is_zero()).then(|| self.heard + period * 3 / 2)
    }

    /// The deliveries to the client.
    pub(super) fn window(&mut self) -> &mut Window {
        &mut self.window
    }

    /// Whether the session outlives its connection.
    pub(super) fn is_durable(&self) -> bool {
        self.backlog.is_some()
    }

    /// Gives memory back that helps a busy connection.
    pub(super) fn release(&mut self) {
        self.incoming.release();
        self.window.release();
    }

    fn packet(&mut self, packet: Packet, wall: UnixMillis, effects: &mut Effects) -> Result<(), Violation> {
        if self.client.is_some() {
            return self.server_packet(packet, wall, effects);
        }
        match packet {
            Packet::Publish(publish) => return self.publish(publish, wall, effects),
            Packet::PubAck(ack) => return self.acknowledged(&ack, effects),
            Packet::PubRec(ack) => return self.received(&ack, effects),
            Packet::PubComp(ack) => self.completed(&ack, effects),
            Packet::PubRel(ack) => self.released(&ack, effects),
            Packet::Subscribe(subscribe) => effects.ask = Some(Box::new(self.ask(subscribe)?)),
            Packet::Unsubscribe(unsubscribe) => {
                effects.ask = Some(Box::new(subscribe::ask_to_end(unsubscribe)))
            }
            Packet::PingReq => effects.packets.push(Packet::PingResp), // [MQTT-3.12.4-1]
            Packet::Disconnect(disconnect) => return self.disconnect(disconnect, effects),
            Packet::Auth(auth) => match &mut self.authenticated {
                Some(authenticated) => effects.packets.push(authenticated.again(auth)?),
                None => return Err(Violation::Auth), // 5: [MQTT-4.12.0-7]
            },
            packet @ (Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp) => return Err(Violation::FromServersAlone(packet.packet_type())),
        }
        Ok(())
    }

    /// DISCONNECT: 3.1.1: [MQTT-3.14.4-3]; 5: [MQTT-3.14.4-3], section 3.14.2.2.2.
    fn disconnect(&mut self, packet: Disconnect, effects: &mut Effects) -> Result<(), Violation> {
        let expiry = packet.properties.and_then(|properties| properties.session_expiry);
        if expiry.is_some_and(|seconds| seconds > 0) && self.ends_with_connection {
            return Err(Violation::SessionExpiryRaised);
        }
        let clean = packet.reason == ReasonCode::Success;
        effects.end(Ending {
            how: if clean { End::Clean } else { End::Lost },
            tell: None,
            will: !clean,
            expiry: expiry.map(translate::session_expiry),
            after: Duration::ZERO,
        });
        Ok(())
    }

    /// An end that is not the client's wish.
    fn broken(&self, code: ReasonCode, why: String) -> Ending {
        Ending { how: End::Lost, tell: Some((code, why)), will: true, expiry: None, after: Duration::ZERO }
    }

    fn violated(&self, violation: &Violation) -> Ending {
        self.broken(violation.code(), format!("{violation} ({})", violation.rule()))
    }

    /// An end that the broker decided. When it stops, nothing counts as failed.
    fn closed(&self, code: ReasonCode) -> Ending {
        let how = if code == ReasonCode::ServerShuttingDown { End::Clean } else { End::Lost };
        Ending { how, ..self.broken(code, code.name().to_owned()) }
    }
}
