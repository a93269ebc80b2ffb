//! The end of a connection: what is owed to the peer, to the core and to other members of a share group.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::LINGER;
use super::live::Live;
use super::wire::Wire;
use crate::core::{End, Session};
use crate::engine::{Nack, Outgoing, OutgoingState};
use crate::mqtt::Door;
use crate::mqtt::codec::{Disconnect, DisconnectProperties, Packet, ReasonCode, Version};
use crate::mqtt::state::{Ending, Flight, Origin, Step};
use crate::socket::Peer;
use crate::types::{Sequence, TargetId};

/// How long a server that stops waits for the store, so that publishes in flight are acknowledged.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);

/// Ends a connection. Returns when the peer has closed its side, or had the time to.
pub(super) async fn end(door: &Arc<Door>, mut wire: Wire, mut live: Live, ending: Ending, peer: Peer) {
    if !ending.will {
        live.session.withdraw_will();
    }
    let client = live.client_id().clone();
    let stops = matches!(&ending.tell, Some((ReasonCode::ServerShuttingDown, _)));
    if stops {
        let acknowledged = live.acknowledge_rest(&mut wire);
        tokio::select! {
            acknowledged = timeout(ACKNOWLEDGED_WITHIN, acknowledged) => drop(acknowledged),
            () = door.shutdown.cutting().cancelled() => {}
        }
    }
    let lingers = match &ending.tell {
        Some((code, why)) => {
            tracing::debug!(%peer, %client, %code, why, "connection ended");
            live.tell(*code, why, &mut wire);
            true
        }
        None => {
            tracing::debug!(%peer, %client, how = ?ending.how, "disconnected");
            wire.is_layered()
        }
    };
    give_back(&mut wire, live, &ending).await;
    if lingers {
        linger(door, &mut wire).await;
    }
}

/// Writes what waits, closes our side and waits for the peer to close its own, within bounds.
pub(super) async fn linger(door: &Door, wire: &mut Wire) {
    let lingering = async {
        if matches!(timeout(LINGER, wire.finish()).await, Ok(Ok(()))) {
            drop(timeout(LINGER, wire.drain(&door.buffers)).await);
        }
    };
    tokio::select! {
        () = lingering => {}
        () = door.shutdown.cutting().cancelled() => {}
    }
}

impl Live {
    /// Acknowledges what the store still completes.
    async fn acknowledge_rest(&mut self, wire: &mut Wire) {
        while self.pending() > 0 {
            self.receive().await;
            self.carry_out(wire);
        }
        if self.has_receipts() {
            self.carry_out(wire);
        }
    }

    /// Queues DISCONNECT, where the version has one from the server [5: MQTT-3.14.0-1].
    fn tell(&mut self, code: ReasonCode, why: &str, wire: &mut Wire) {
        let form = self.mailbox.form();
        if form.version == Version::V311 {
            return;
        }
        let code = self.state.told(code);
        let reason_string = Some(why).filter(|why| !why.is_empty()).map(Into::into);
        let properties = DisconnectProperties { reason_string, ..DisconnectProperties::default() };
        let properties = properties.reason_string.is_some().then(|| Box::new(properties));
        wire.send(Packet::Disconnect(Disconnect { reason: code, properties }), form);
    }
}

/// Gives the will, the leases and the session back.
async fn give_back(wire: &mut Wire, live: Live, ending: &Ending) {
    let Live { mut state, session, mailbox, busy, mut publisher, errands, .. } = live;
    drop(errands);
    let frames = busy.map(|busy| busy.frames).unwrap_or_default();
    let mut handed_back: Vec<_> = frames.into_shared().chain(mailbox.shut().into_shared()).collect();
    let mut failed: Vec<(TargetId, Sequence)> = Vec::new();
    let mut begun: Vec<(TargetId, Sequence)> = Vec::new();
    let mut numbered = None;
    for (id, Flight { origin, step, at, .. }) in state.window().drain() {
        match origin {
            Origin::Live => {}
            Origin::Share(share) => handed_back.push(*share),
            // What was written is a failed delivery; what was not was never there.
            Origin::Stored(stored) if stored.queue => {
                if ending.how == End::Lost && at < wire.out.written() {
                    failed.push((stored.source, stored.sequence));
                }
            }
            // 5: [MQTT-4.8.2-5]: of a share group, begun at QoS 2 with a session that ends now.
            Origin::Stored(stored)
                if step != Step::Acknowledge && !session.is_durable() && at < wire.out.written() =>
            {
                begun.push((stored.source, stored.sequence));
            }
            // At QoS 1 the number is stored now, at QoS 2 it was before.
            Origin::Stored(stored)
                if step == Step::Acknowledge && session.target() == Some(stored.source) =>
            {
                let outgoing = Outgoing { packet_id: id.get(), state: OutgoingState::Sent };
                numbered = Some(session.outgoing(stored.source, stored.sequence, outgoing));
            }
            Origin::Stored(_) => {}
        }
    }
    // The next connection finds the numbers: tickets complete in order, so the last is enough.
    if let Some(numbered) = numbered
        && let Err(error) = numbered.await
    {
        tracing::debug!(client = %session.client_id(), %error, "packet ids not stored");
    }
    by_source(failed, |source, sequences| {
        if let Err(error) = session.nack(source, sequences, Nack::Lost, None) {
            tracing::debug!(client = %session.client_id(), %error, "deliveries not given back");
        }
    });
    by_source(begun, |source, sequences| {
        if let Err(error) = session.settle(source, sequences) {
            tracing::debug!(client = %session.client_id(), %error, "deliveries not settled");
        }
    });
    if !handed_back.is_empty() {
        session.hand_back(handed_back);
    }
    if let Some(changed) = ending.expiry
        && let Err(error) = session.set_expiry(changed).await
    {
        tracing::debug!(client = %session.client_id(), %error, "the session's expiry is not changed");
    }
    let own = &mut publisher;
    session.leave_will(|| own.get_or_insert_with(|| Box::new(session.publisher())));
    // What waits for the store is seen to by the broker.
    drop(publisher);
    close(session, ending.how).await;
}

/// Calls `what` once for each source.
fn by_source(mut deliveries: Vec<(TargetId, Sequence)>, mut what: impl FnMut(TargetId, &[Sequence])) {
    deliveries.sort_unstable();
    for deliveries in deliveries.chunk_by(|a, b| a.0 == b.0) {
        let sequences: Vec<Sequence> = deliveries.iter().map(|(_, sequence)| *sequence).collect();
        if let Some((source, _)) = deliveries.first() {
            what(*source, &sequences);
        }
    }
}

async fn close(session: Arc<Session>, how: End) {
    match Arc::into_inner(session) {
        Some(session) => session.close(how).await,
        None => tracing::error!("a session is still in use when its connection ends"),
    }
}
