//! The other role: a connection that we have opened to another broker.
//!
//! After CONNACK both sides publish, acknowledge and resume alike, so it is the same machine. What differs: topics are
//! mapped, we ping, and the packets are those that servers send.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Effects, Ending, State};
use crate::core::CoreError;
use crate::engine::Leased;
use crate::mqtt::bridge::{Grants, Link, Mapping};
use crate::mqtt::codec::{Disconnect, Packet, ReasonCode, SubAck};
use crate::mqtt::violation::Violation;
use crate::types::{TopicName, UnixMillis};

/// What the machine has of its role.
#[derive(Debug)]
pub(in crate::mqtt) struct Client {
    link: Arc<Link>,
    grants: Grants,
    /// Told when the subscriptions are answered.
    subscribed: Option<oneshot::Sender<()>>,
    /// Between two pings, and when the next is due; none: the server asks for none.
    ping: Option<(Duration, Instant)>,
}

impl Client {
    pub(in crate::mqtt) fn new(
        link: Arc<Link>,
        grants: Grants,
        subscribed: oneshot::Sender<()>,
        keep_alive: Duration,
        now: Instant,
    ) -> Self {
        let ping = (!keep_alive.is_zero()).then(|| (keep_alive, now + keep_alive));
        Self { link, grants, subscribed: Some(subscribed), ping }
    }

    pub(super) fn map(&self) -> &Mapping {
        self.link.mapping()
    }

    /// Makes a stored message what the other broker takes. False: it is not carried.
    pub(in crate::mqtt) fn make_out(&self, leased: &mut Leased) -> bool {
        let Some(topic) = self.map().outward(&leased.message.topic) else {
            self.pass_over(&leased.message.topic);
            return false;
        };
        leased.message.topic = topic;
        leased.qos = leased.qos.min(self.grants.max_qos);
        leased.retain &= self.grants.retain;
        true
    }

    /// What cannot be sent to the other broker is passed over: no topic of the configuration has it any more.
    pub(super) fn pass_over(&self, topic: &TopicName) {
        self.link.drops(format_args!("no topic of the bridge has `{topic}`"));
    }

    pub(super) fn refused(&self, error: &CoreError) {
        self.link.drops(format_args!("{error}"));
    }

    /// The other broker does not take it.
    pub(super) fn refused_there(&self, reason: ReasonCode) {
        self.link.drops(format_args!("the other broker refuses it: {reason}"));
    }

    /// It is not sent at all.
    pub(in crate::mqtt) fn not_sent(&self) {
        self.link.drops("its time is over, or it is larger than the other broker takes");
    }

    /// When a ping is due.
    pub(super) fn next_ping(&self) -> Option<Instant> {
        self.ping.map(|(_, next)| next)
    }

    /// Whether a ping is due; the next one is an interval later.
    pub(super) fn pings(&mut self, now: Instant) -> bool {
        let Some((every, next)) = &mut self.ping else { return false };
        let due = *next <= now;
        if due {
            *next = now + *every;
        }
        due
    }

    /// All that is to come in comes from now on.
    pub(in crate::mqtt) fn ready(&mut self) {
        if let Some(subscribed) = self.subscribed.take() {
            // Who waits for it goes with the connection.
            subscribed.send(()).ok();
        }
    }

    fn disconnected(&self, disconnect: &Disconnect) {
        let properties = disconnect.properties.as_ref();
        let said = properties.and_then(|properties| properties.reason_string.as_deref()).unwrap_or_default();
        self.link.ends(format!("the other broker says: {} {said}", disconnect.reason).trim_end());
    }

    fn answered(&mut self, suback: &SubAck) {
        self.ready();
        for (code, filter) in suback.codes.iter().zip(self.link.mapping().subscribed()) {
            if code.is_failure() {
                let name = self.link.name();
                tracing::warn!(bridge = name, %filter, %code, "the other broker refuses the subscription");
            }
        }
    }
}

impl State {
    /// From now on the peer is a server.
    pub(in crate::mqtt) fn become_client(&mut self, client: Client) {
        self.client = Some(Box::new(client));
    }

    /// How topics are mapped, if they are.
    pub(in crate::mqtt) fn client(&self) -> Option<&Client> {
        self.client.as_deref()
    }

    /// The code for a DISCONNECT of ours: servers have more of them [5: section 3.14.2.1].
    pub(in crate::mqtt) fn told(&self, code: ReasonCode) -> ReasonCode {
        use ReasonCode as R;
        match code {
            _ if self.client.is_none() => code,
            R::ServerShuttingDown | R::AdministrativeAction => R::Success,
            R::KeepAliveTimeout | R::SessionTakenOver | R::NotAuthorized => R::UnspecifiedError,
            code => code,
        }
    }

    /// A packet of the server.
    pub(super) fn server_packet(
        &mut self,
        packet: Packet,
        wall: UnixMillis,
        effects: &mut Effects,
    ) -> Result<(), Violation> {
        match packet {
            Packet::Publish(publish) => return self.publish(publish, wall, effects),
            Packet::PubAck(ack) => return self.acknowledged(&ack, effects),
            Packet::PubRec(ack) => return self.received(&ack, effects),
            Packet::PubComp(ack) => self.completed(&ack, effects),
            Packet::PubRel(ack) => self.released(&ack, effects),
            Packet::SubAck(suback) => {
                if let Some(client) = &mut self.client {
                    client.answered(&suback);
                }
            }
            Packet::UnsubAck(_) | Packet::PingResp => {}
            Packet::Disconnect(disconnect) => {
                if let Some(client) = &self.client {
                    client.disconnected(&disconnect);
                }
                // Nothing follows a DISCONNECT [5: MQTT-3.14.4-2].
                effects.end(Ending { tell: None, ..self.broken(disconnect.reason, String::new()) });
            }
            packet @ (Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::Subscribe(_)
            | Packet::Unsubscribe(_)
            | Packet::PingReq
            | Packet::Auth(_)) => return Err(Violation::NotFromServers(packet.packet_type())),
        }
        Ok(())
    }
}
