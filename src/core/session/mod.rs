//! Sessions: named subscribers that may be away.
//!
//! A [`Session`] is the handle of the connection that has it. What reaches the connection comes on two ways:
//! what is live is offered to its [`Outbox`]; what is stored (its backlog, durable share groups, queues it consumes)
//! it takes with [`Session::take`] when it has room, and settles.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use smallvec::SmallVec;

use crate::core::delivery::Outbox;
use crate::core::share::ShareGroup;
use crate::core::{Broker, CoreError};
use crate::engine::{Leased, Nack, Outgoing, Settled, SubscribeOptions, Ticket};
use crate::types::topic::FilterSpec;
use crate::types::{ClientId, Message, Qos, Sequence, TargetId};

/// Identifies a session while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub(crate) u64);

/// What publishers know of a session.
#[derive(Debug)]
pub struct SessionEntry {
    key: SessionKey,
    client_id: ClientId,
}

/// What a connection asks for.
pub struct OpenSession {
    /// Its name. None: a name is made up.
    pub client_id: Option<ClientId>,
    /// Whether what was there before is deleted.
    pub clean_start: bool,
    /// How long it outlives its connection; zero: not at all.
    pub expiry: Duration,
    /// Who connects; a session belongs to who made it.
    pub principal: ByteString,
    /// Where live deliveries go.
    pub outbox: Arc<dyn Outbox>,
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
#[derive(Debug)]
pub struct Session {
    entry: Arc<SessionEntry>,
    _broker: Arc<Broker>,
}

impl Broker {
    /// Opens the session of a client: a new one, or the one that was there. A connection that has it is closed and
    /// awaited first.
    ///
    /// Cancel safe: a session that nobody got the handle of ends as if its connection were lost.
    ///
    /// # Errors
    /// [`CoreError::Precondition`] `SESSION_OF_ANOTHER`, [`CoreError::Limit`], [`CoreError::Draining`],
    /// [`CoreError::LowDisk`], [`CoreError::Engine`].
    pub async fn open_session(self: &Arc<Self>, _open: OpenSession) -> Result<Opened, CoreError> {
        Err(CoreError::Unsupported("not yet".into()))
    }
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
        None
    }

    /// Whether it outlives its connection, or did so when it was opened.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.target().is_some()
    }

    /// Adds or replaces subscriptions; the results stand in their order. When this returns they are in effect, and
    /// on disk if the session is durable. Retained values are offered to the outbox: the first of them before this
    /// returns, the rest as [`take`](Self::take) is called.
    ///
    /// Dropping the future: the subscriptions may be in effect or not.
    pub async fn subscribe(
        &self,
        _filters: Vec<(FilterSpec, SubscribeOptions)>,
    ) -> Vec<Result<Qos, CoreError>> {
        Vec::new()
    }

    /// Ends subscriptions, and says of each whether it was there. When this returns that is in effect, and on disk
    /// if the session is durable.
    ///
    /// Dropping the future: the subscriptions may be in effect or not.
    pub async fn unsubscribe(&self, _filters: Vec<FilterSpec>) -> Vec<Result<bool, CoreError>> {
        Vec::new()
    }

    /// Leases stored messages: at most `max`, and no more after `max_bytes` (one may overdraw). Retained values that
    /// did not fit in the outbox at once are offered to it, counted against `max`. Never waits.
    ///
    /// # Errors
    /// [`CoreError::Engine`].
    pub fn take(
        &self,
        _max: usize,
        _max_bytes: usize,
        _out: &mut Vec<SessionDelivery>,
    ) -> Result<(), CoreError> {
        Ok(())
    }

    /// Returns when [`take`](Self::take) may give more. Cancel safe.
    pub async fn ready(&self) {
        std::future::pending().await
    }

    /// Takes delivered messages out of their source.
    ///
    /// # Errors
    /// [`CoreError::Engine`]; [`CoreError::Precondition`] `SESSION_TAKEN_OVER`.
    pub fn settle(&self, _source: TargetId, _sequences: &[Sequence]) -> Result<Settled, CoreError> {
        Err(CoreError::Unsupported("not yet".into()))
    }

    /// Gives messages back to their source.
    ///
    /// # Errors
    /// [`CoreError::Engine`]; [`CoreError::Precondition`] `SESSION_TAKEN_OVER`.
    pub fn nack(
        &self,
        _source: TargetId,
        _sequences: &[Sequence],
        _how: Nack,
        _delay: Duration,
    ) -> Result<Settled, CoreError> {
        Err(CoreError::Unsupported("not yet".into()))
    }

    /// Stores how far an outgoing QoS 2 delivery of this session's backlog is.
    pub fn outgoing(&self, _source: TargetId, _sequence: Sequence, _outgoing: Outgoing) -> Ticket {
        Ticket::ready(Ok(Vec::new()))
    }

    /// Forgets a QoS 2 packet id of this session, durably.
    ///
    /// Dropping the future does not take that back.
    ///
    /// # Errors
    /// [`CoreError::Engine`].
    pub async fn release_incoming(&self, _packet_id: u16) -> Result<(), CoreError> {
        Ok(())
    }

    /// Gives what a share group had chosen this connection for to other members of it: what was not acknowledged at
    /// QoS 1, or not sent.
    pub fn hand_back(&self, _deliveries: Vec<(Arc<ShareGroup>, Message)>) {}

    /// Changes how long the session outlives its connection, durably. A session that was opened to end with its
    /// connection stays so.
    ///
    /// Dropping the future does not take that back.
    ///
    /// # Errors
    /// [`CoreError::Engine`].
    pub async fn set_expiry(&self, _expiry: Duration) -> Result<(), CoreError> {
        Ok(())
    }

    /// Gives the session back. One that ends with its connection is gone when this returns; of a durable one the
    /// leases are back. What was written to the connection and is to count as a failed delivery is given back with
    /// [`nack`](Self::nack) before; the rest goes back uncounted.
    ///
    /// Dropping the future does not take that back.
    pub async fn close(self, _how: End) {}
}
