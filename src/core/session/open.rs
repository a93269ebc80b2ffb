//! Opening, taking over, giving back and ending sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::entry::{Attachment, SessionEntry, State};
use super::sources::Kind;
use super::subscribe::taken_over;
use super::{End, OpenSession, Opened, Session};
use crate::core::delivery::CloseReason;
use crate::core::{Broker, CoreError};
use crate::engine::{Op, Outcome, StoredSession};
use crate::types::{ClientId, MessageId, TargetId, UnixMillis, clock};

impl Broker {
    /// Opens the session of a client: a new one, or the one that was there. A connection that has it is closed and
    /// awaited first.
    ///
    /// Cancel safe: a session that nobody got the handle of ends as if its connection were lost.
    ///
    /// # Errors
    /// [`CoreError::Precondition`] `SESSION_OF_ANOTHER`, [`CoreError::Limit`], [`CoreError::Draining`],
    /// [`CoreError::LowDisk`], [`CoreError::Engine`].
    pub async fn open_session(self: &Arc<Self>, open: OpenSession) -> Result<Opened, CoreError> {
        if self.draining.is_cancelled() {
            return Err(CoreError::Draining);
        }
        let client_id = match open.client_id.clone() {
            Some(id) => id,
            None => made_up(self.ids.next_now())?,
        };
        let expiry = open.expiry.min(self.limits.max_session_expiry);
        let sessions = &self.pubsub.sessions;
        let claim = sessions.claim(&client_id).await;
        if let Some(there) = claim.current() {
            let owner = there.state.lock().principal.clone();
            if !owner.is_empty() && owner != open.principal {
                return Err(CoreError::Precondition {
                    reason: "SESSION_OF_ANOTHER",
                    what: format!("the session of client `{client_id}` belongs to another principal"),
                });
            }
            self.take_from(&there, CloseReason::TakenOver).await;
        }
        // A session that ended with the connection is not there any more.
        let there = match claim.current() {
            Some(there) if open.clean_start || there.ends_with_its_connection() => {
                self.end_session(&there).await?;
                None
            }
            there => there,
        };
        let present = there.is_some();
        let entry = match there {
            Some(there) => there,
            None => {
                let durable = !expiry.is_zero();
                if durable && !sessions.take_place(self.limits.max_sessions) {
                    let max = self.limits.max_sessions as u64;
                    return Err(CoreError::Limit {
                        what: "too many sessions that outlive their connection".into(),
                        max,
                    });
                }
                let target = durable.then(|| self.engine.next_target());
                let new = (clock::unix_now(), false);
                let entry = self.new_entry(client_id, target, State::default(), new);
                claim.set(&entry);
                entry
            }
        };
        {
            let mut state = entry.state.lock();
            (state.principal, state.expiry) = (open.principal, expiry);
        }
        // The client is back in time, however long the store takes.
        let held_will = present.then(|| self.pubsub.wills.hold(&entry.client_id));
        let attachment = Attachment::new(open.outbox);
        entry.attached.store(Some(Arc::clone(&attachment)));
        // From here on the handle gives back whatever happens.
        let connected = self.pubsub.connected.fetch_add(1, Ordering::Relaxed) + 1;
        self.pubsub.opened.fetch_add(1, Ordering::Relaxed);
        self.pubsub.connected_most.fetch_max(connected, Ordering::Relaxed);
        let session = Session { broker: Arc::clone(self), entry, attachment };
        if present {
            self.calls.session_came_back();
            self.calls.subscribed(|| session.filters());
        }
        let outgoing = session.begin(present).await?;
        let incoming = match &session.entry.incoming {
            Some(incoming) => incoming.all().await,
            None => Vec::new(),
        };
        if let Some(held) = held_will {
            held.withdraw();
        }
        // Nobody takes the session before the claim is given back.
        *session.attachment.will.lock() = open.will;
        Ok(Opened { session, present, expiry, incoming, outgoing })
    }

    /// Closes the connection of a session and waits until it has given everything back; from one that does not, it is
    /// taken. Returns whether it had one.
    pub(super) async fn take_from(self: &Arc<Self>, entry: &Arc<SessionEntry>, reason: CloseReason) -> bool {
        let Some(attached) = entry.attached.load_full() else { return false };
        attached.outbox.close(reason);
        let given_back = tokio::time::timeout(self.limits.release_within, attached.released.heard()).await;
        if given_back.is_err() {
            tracing::warn!(client = %entry.client_id, "a connection does not end: its session is taken from it");
            if self.let_go(entry, &attached, true)
                && let Err(error) = self.end_session(entry).await
            {
                tracing::debug!(client = %entry.client_id, %error, "the ended session is not deleted yet");
            }
        }
        true
    }

    /// Takes a connection off its session: gives back what it leased (`counted`: as deliveries that failed), leaves its will
    /// and lets the session be away, if it still was with this connection. Returns whether the session is to end.
    fn let_go(
        self: &Arc<Self>,
        entry: &Arc<SessionEntry>,
        attachment: &Arc<Attachment>,
        counted: bool,
    ) -> bool {
        attachment.give_back(counted);
        self.leave_will_of(entry, attachment);
        if !entry.detach(attachment) {
            return false;
        }
        self.calls.session_left(entry.key);
        if entry.ends_with_its_connection() {
            return true;
        }
        let expiry = entry.state.lock().expiry;
        self.pubsub.sessions.timers.away(entry, expiry);
        if let Some(op) = entry.definition(&self.limits, clock::unix_now()) {
            // Nobody waits for that: after a crash the last note counts.
            drop(self.engine.commit(vec![op]));
        }
        false
    }

    fn new_entry(
        &self,
        client_id: ClientId,
        target: Option<TargetId>,
        state: State,
        (created_at, cut_off): (UnixMillis, bool),
    ) -> Arc<SessionEntry> {
        Arc::new(SessionEntry {
            key: self.pubsub.next_session(),
            client_id,
            target,
            created_at,
            cut_off,
            attached: ArcSwapOption::empty(),
            dropped: AtomicU64::new(0),
            all_dropped: Arc::clone(&self.pubsub.dropped),
            told_dropped: AtomicU64::new(0),
            incoming: target.map(|_| Box::default()),
            replays: Mutex::default(),
            state: Mutex::new(state),
        })
    }

    /// Deletes a session with all that it has. Does nothing the second time.
    ///
    /// Dropping the future, once polled, does not stop it.
    pub(crate) async fn end_session(self: &Arc<Self>, entry: &Arc<SessionEntry>) -> Result<(), CoreError> {
        let (routes, mut ops) = self.begin_end(entry);
        ops.extend(entry.target.map(Op::Delete));
        if ops.is_empty() {
            self.routes.change(routes).await;
            return Ok(());
        }
        let broker = Arc::clone(self);
        self.to_the_end(async move {
            // In this order: what is routed to it finds its target.
            broker.routes.change(routes).await;
            broker.engine.commit(ops).await?;
            Ok(())
        })
        .await
    }

    /// The part of ending a session that needs no waiting.
    fn begin_end(
        self: &Arc<Self>,
        entry: &Arc<SessionEntry>,
    ) -> (Vec<crate::core::route::RouteChange>, Vec<Op>) {
        let ended = std::mem::replace(&mut entry.state.lock().ended, true);
        if ended {
            return (Vec::new(), Vec::new());
        }
        let sessions = &self.pubsub.sessions;
        sessions.timers.forget(entry);
        if let Some(attached) = entry.attached.swap(None) {
            attached.outbox.close(CloseReason::Deleted);
            attached.give_back(false);
            self.leave_will_of(entry, &attached);
        }
        self.calls.session_left(entry.key);
        self.pubsub.wills.session_ended(&entry.client_id);
        let work = self.end_subscriptions(entry);
        sessions.forget(entry);
        if entry.target.is_some() {
            sessions.give_place_back();
        }
        work
    }

    /// Ends a session at once, where nothing can be awaited.
    fn end_session_now(self: &Arc<Self>, entry: &Arc<SessionEntry>) {
        let (routes, mut ops) = self.begin_end(entry);
        self.routes.change_now(routes);
        ops.extend(entry.target.map(Op::Delete));
        if !ops.is_empty() {
            drop(self.engine.commit(ops));
        }
    }

    /// Takes in a session that was stored: away since it was last seen. Returns what the router is to do.
    pub(crate) fn restore_session(
        self: &Arc<Self>,
        stored: StoredSession,
        mut group: impl FnMut(&crate::types::topic::FilterSpec) -> Option<TargetId>,
        now: UnixMillis,
    ) -> Vec<crate::core::route::RouteChange> {
        let StoredSession { id, spec, subscriptions, incoming } = stored;
        let known = (spec.created_at, spec.connected);
        let state = State { principal: spec.principal, expiry: spec.expiry, ..State::default() };
        let entry = self.new_entry(spec.client_id, Some(id), state, known);
        if let Some(known) = &entry.incoming {
            known.restore(incoming);
        }
        let sessions = &self.pubsub.sessions;
        if !sessions.restore(&entry) {
            drop(self.engine.commit(vec![Op::Delete(id)]));
            return Vec::new();
        }
        sessions.timers.away(&entry, spec.expiry.saturating_sub(now.since(spec.last_connected)));
        let mut routes = Vec::new();
        for (filter, options) in subscriptions {
            let target = group(&filter);
            routes.extend(self.restore_subscription(&entry, filter, options, target));
        }
        routes
    }
}

impl Session {
    /// Makes the session durable as it is now, and joins the consumers of all that it takes from. Returns the packet
    /// ids of unsettled deliveries.
    async fn begin(&self, present: bool) -> Result<Vec<u16>, CoreError> {
        let (broker, entry) = (&self.broker, &self.entry);
        broker.pubsub.sessions.timers.connected(entry);
        let Some(target) = entry.target else { return Ok(Vec::new()) };
        if let Some(op) = entry.definition(&broker.limits, clock::unix_now()) {
            let outcome = broker.engine.commit(vec![op]).await?.pop();
            if let Some(Outcome::Refused(refusal)) = outcome
                && !present
            {
                broker.end_session(entry).await?;
                return Err(CoreError::refused(refusal, |id| id.0.to_string()));
            }
        }
        let backlog = broker.source(target, None, Kind::Backlog)?;
        let outgoing = backlog.outgoing();
        self.attachment.add_source(backlog);
        broker.consume_subscribed(entry);
        Ok(outgoing)
    }

    /// Changes how long the session outlives its connection, durably. A session that was made to end with its
    /// connection stays so.
    ///
    /// Dropping the future does not take that back.
    ///
    /// # Errors
    /// [`CoreError::Precondition`] `SESSION_TAKEN_OVER`: nothing is changed; [`CoreError::Engine`].
    pub async fn set_expiry(&self, expiry: Duration) -> Result<(), CoreError> {
        if self.entry.target.is_none() {
            return Ok(());
        }
        {
            let mut state = self.entry.state.lock();
            if state.ended || !self.entry.has(&self.attachment) {
                return Err(taken_over());
            }
            state.expiry = expiry.min(self.broker.limits.max_session_expiry);
        }
        if let Some(op) = self.entry.definition(&self.broker.limits, clock::unix_now()) {
            self.broker.engine.commit(vec![op]).await?;
        }
        Ok(())
    }

    /// Gives the session back. One that ends with its connection is gone when this returns; of a durable one the
    /// leases are back. What was written to the connection and is to count as a failed delivery is given back with
    /// [`nack`](Self::nack) before; the rest goes back uncounted.
    ///
    /// Dropping the future does not take that back.
    pub async fn close(self, how: End) {
        tracing::trace!(client = %self.entry.client_id, ?how, "session given back");
        if self.broker.let_go(&self.entry, &self.attachment, false)
            && let Err(error) = self.broker.end_session(&self.entry).await
        {
            tracing::debug!(client = %self.entry.client_id, %error, "the ended session is not deleted yet");
        }
        // Dropping it does the rest.
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.broker.let_go(&self.entry, &self.attachment, false) {
            self.broker.end_session_now(&self.entry);
        }
        self.broker.pubsub.connected.fetch_sub(1, Ordering::Relaxed);
        self.attachment.released.ring();
    }
}

/// A name for a client that has none.
fn made_up(id: MessageId) -> Result<ClientId, CoreError> {
    ClientId::parse(format!("auto-{id}")).map_err(|error| CoreError::name("client_id", &error))
}
