//! Sessions: named subscribers that may be away.
//!
//! A [`Session`] is the handle of the connection that has it. What reaches the connection comes on two ways:
//! what is live is offered to its [`Outbox`]; what is stored (its backlog, durable share groups, queues it consumes)
//! it takes with [`Session::take`] when it has room, and settles.
//!
//! Invariants: a session has one connection at most; its client id stands for one session at a time; what a
//! connection leased is back before the next connection gets the session.

mod doors;
pub(crate) mod entry;
mod inspect;
mod open;
mod registry;
pub(crate) mod sources;
mod subscribe;
mod subscriptions;
mod timers;
pub(crate) mod will;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use smallvec::SmallVec;

pub use doors::Numbered;
pub use entry::{SessionEntry, SessionKey};
pub use inspect::SessionInfo;
pub(crate) use registry::Sessions;
pub(crate) use timers::keep_time;
pub use will::Will;

use entry::Attachment;

use super::delivery::{self, Offer, Outbox};
use super::share::ShareGroup;
use super::{Broker, CoreError, Publisher, PublisherInfo};
use crate::engine::{Append, Leased, Op, Publish};
use crate::types::{ClientId, Message, Qos, TargetId};

/// What a connection asks for.
pub struct OpenSession {
    /// Its name. None: a name is made up.
    pub client_id: Option<ClientId>,
    /// Whether what was there before is deleted.
    pub clean_start: bool,
    /// How long it outlives its connection; zero: not at all.
    pub expiry: Duration,
    /// Who connects; a session belongs to who made it. Empty: nobody in particular. What is nobody's may be anybody's, and
    /// is theirs from then on.
    pub principal: ByteString,
    /// Where live deliveries go.
    pub outbox: Arc<dyn Outbox>,
    /// Published when the connection is lost or taken off, unless it is [withdrawn](Session::withdraw_will) before. One
    /// of a session that could not be opened is not.
    pub will: Option<Box<Will>>,
}

/// A session that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The handle.
    pub session: Session,
    /// Whether it was there before.
    pub present: bool,
    /// How long it outlives its connection: what was asked for, within the server's bound.
    pub expiry: Duration,
    /// Packet ids of QoS 2 publishes that were stored and not released yet.
    pub incoming: Vec<u16>,
    /// Packet ids of deliveries of earlier connections that are not settled: each comes with its delivery.
    pub outgoing: Vec<u16>,
}

/// A stored message for this session.
#[derive(Debug, Clone)]
pub struct SessionDelivery {
    /// Where it is leased: told with its settlement.
    pub source: TargetId,
    /// The message and its lease. `qos` and `retain` are those of this delivery.
    pub leased: Leased,
    /// The identifiers of all subscriptions that match.
    pub identifiers: SmallVec<[NonZeroU32; 1]>,
    /// It has no packet id, and yet it may have been sent before: at QoS 1 a packet id is stored when the connection
    /// ends, and a crash came first.
    pub maybe_sent: bool,
    /// How many messages the full backlog has dropped since the last delivery that said so.
    pub dropped_before: u64,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As agreed: DISCONNECT, drain, shutdown.
    Clean,
    /// Any other way.
    Lost,
}

/// A connection's handle on its session. Dropping it is `close(End::Lost)` without waiting.
pub struct Session {
    pub(crate) broker: Arc<Broker>,
    pub(crate) entry: Arc<SessionEntry>,
    pub(crate) attachment: Arc<Attachment>,
}

impl Session {
    /// The client's name, made up or not.
    #[must_use]
    pub fn client_id(&self) -> &ClientId {
        &self.entry.client_id
    }

    /// What no-local subscriptions compare.
    #[must_use]
    pub fn key(&self) -> SessionKey {
        self.entry.key
    }

    /// The session's target, if it outlives its connection.
    #[must_use]
    pub fn target(&self) -> Option<TargetId> {
        self.entry.target
    }

    /// A way in for its connection.
    pub fn publisher(&self) -> Publisher {
        self.broker.publisher(PublisherInfo {
            client_id: Some(self.client_id().clone()),
            session: self.target(),
            no_local: Some(self.key()),
            ..PublisherInfo::default()
        })
    }

    /// Whether it outlives its connection, or did so when it was made.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.entry.target.is_some()
    }

    /// How many deliveries its outboxes have not taken.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.entry.dropped.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Counts that its connection is ended because it does not keep up.
    pub fn count_cut(&self) {
        self.broker.pubsub.cut.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Forgets a QoS 2 packet id of this session, durably.
    ///
    /// Dropping the future does not take that back.
    ///
    /// # Errors
    /// [`CoreError::Engine`].
    pub async fn release_incoming(&self, packet_id: u16) -> Result<(), CoreError> {
        let Some(session) = self.entry.target else { return Ok(()) };
        if let Some(incoming) = &self.entry.incoming {
            incoming.release(packet_id);
        }
        self.broker.engine.commit(vec![Op::ReleaseIncoming { session, packet_id }]).await?;
        Ok(())
    }

    /// Gives what a share group had chosen this connection for to other members: what was not acknowledged at QoS 1,
    /// or not sent. Without another member it is lost.
    pub fn hand_back(&self, deliveries: Vec<(Arc<ShareGroup>, Message)>) {
        let mut ops = Vec::new();
        for (group, message) in deliveries {
            if let Some(target) = group.target().filter(|_| message.qos > Qos::AtMostOnce) {
                // The group has become durable meanwhile.
                let append = Append { qos: message.qos, ..Append::to(target) };
                ops.push(Op::Publish(Publish {
                    message,
                    targets: SmallVec::from_iter([append]),
                    retain: false,
                    newest_only: false,
                    incoming: None,
                }));
            } else if let Some(chosen) = group.choose(Some(self.entry.key), |_| 0) {
                let offer = Offer {
                    message: &message,
                    qos: chosen.levels.of(message.qos),
                    retain: false,
                    identifiers: chosen.identifier.as_slice(),
                    share: Some(&group),
                    publisher: None,
                };
                delivery::offer(&chosen.entry, &[offer]);
            }
        }
        if !ops.is_empty() {
            drop(self.broker.engine.commit(ops));
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("entry", &self.entry).finish_non_exhaustive()
    }
}
