//! What operators see of sessions, and what they may do with them.

use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use tokio::time::Instant;

use super::entry::SessionEntry;
use crate::core::delivery::CloseReason;
use crate::core::{Broker, CoreError};
use crate::engine::SubscribeOptions;
use crate::types::topic::FilterSpec;
use crate::types::{ClientId, UnixMillis, clock};

/// A session as it is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Whose it is.
    pub client_id: ClientId,
    /// To whom it belongs; empty: nobody.
    pub principal: ByteString,
    /// Whether it has a connection.
    pub connected: bool,
    /// How long it outlives its connection.
    pub expiry: Duration,
    /// When it ends, if nobody comes; none: it has a connection, or never ends.
    pub ends_at: Option<UnixMillis>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// Messages of its backlog, those that are under way to its client among them.
    pub queued: u64,
    /// Their bytes, and what storing adds.
    pub queued_bytes: u64,
    /// What it is subscribed to, in the order of the filters.
    pub filters: Vec<(FilterSpec, SubscribeOptions)>,
}

impl Broker {
    /// At most `max` sessions in the order of their client ids, of those that begin with `prefix`, after `after`. One that is
    /// opened or ends meanwhile may be among them or not.
    pub fn list_sessions(&self, prefix: &str, after: Option<&ClientId>, max: usize) -> Vec<SessionInfo> {
        let found = self.pubsub.sessions.page(prefix, after, max);
        found.iter().map(|entry| self.session_info(entry)).collect()
    }

    fn session_info(&self, entry: &SessionEntry) -> SessionInfo {
        let connected = entry.attached.load().is_some();
        let stats = entry.target.and_then(|target| self.engine.stats(target).ok()).unwrap_or_default();
        let state = entry.state.lock();
        let left = state.due.map(|due| due.saturating_duration_since(Instant::now()));
        let mut filters: Vec<_> =
            state.subscriptions.iter().map(|(spec, there)| (spec.clone(), there.options)).collect();
        filters.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        SessionInfo {
            client_id: entry.client_id.clone(),
            principal: state.principal.clone(),
            connected,
            expiry: state.expiry,
            ends_at: left.filter(|_| !connected).map(|left| clock::unix_now().after(left)),
            created_at: entry.created_at,
            queued: stats.ready + stats.delayed + stats.leased,
            queued_bytes: stats.bytes,
            filters,
        }
    }

    /// Deletes the session of a client with all that it has; a connection that has it is ended first, with its will.
    /// Returns how many messages of its backlog were discarded. Durable when this returns.
    ///
    /// Dropping the future, once polled, does not stop it: a connection that was told is not told wrong.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Engine`].
    pub async fn delete_session(self: &Arc<Self>, client_id: &ClientId) -> Result<u64, CoreError> {
        let (broker, client_id) = (Arc::clone(self), client_id.clone());
        self.to_the_end(async move {
            let claim = broker.pubsub.sessions.claim(&client_id).await;
            let entry = claim.current().ok_or_else(|| no_session(&client_id))?;
            broker.take_from(&entry, CloseReason::Deleted).await;
            // One that ended with its connection had no backlog.
            let queued = broker.session_info(&entry).queued;
            broker.end_session(&entry).await?;
            Ok(queued)
        })
        .await
    }

    /// Ends the connection of a client, not in its own name: its will is published, its session stays as long as it is
    /// kept. Returns whether there was one, when it has given back what it had.
    ///
    /// Dropping the future: the connection may be told or not.
    ///
    /// # Errors
    /// [`CoreError::NotFound`]: there is no such session.
    pub async fn disconnect_client(self: &Arc<Self>, client_id: &ClientId) -> Result<bool, CoreError> {
        let claim = self.pubsub.sessions.claim(client_id).await;
        let entry = claim.current().ok_or_else(|| no_session(client_id))?;
        Ok(self.take_from(&entry, CloseReason::Disconnected).await)
    }
}

fn no_session(client_id: &ClientId) -> CoreError {
    CoreError::NotFound { kind: "session", name: client_id.to_string() }
}
