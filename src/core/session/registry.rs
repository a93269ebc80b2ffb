//! Which client id stands for which session.
//!
//! A client id has a slot while it has a session or someone opens one. Who opens or expires a session holds the
//! slot's gate; a connection that ends does not, since whoever opens waits for it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use super::entry::SessionEntry;
use super::timers::Timers;
use crate::types::{ClientId, TargetId};

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// The names come from peers. In their order, so that a page of them is found without a look at all.
    slots: Mutex<BTreeMap<ClientId, Arc<Slot>>>,
    /// Sessions that outlive their connection.
    durable: AtomicUsize,
    pub(super) timers: Timers,
}

#[derive(Debug, Default)]
struct Slot {
    gate: Arc<tokio::sync::Mutex<()>>,
    current: Mutex<Option<Arc<SessionEntry>>>,
}

/// The right to say which session a client id stands for.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    _gate: OwnedMutexGuard<()>,
    hold: Hold<'a>,
}

/// Keeps a slot in the map, and removes it in the end if nobody needs it.
#[derive(Debug)]
struct Hold<'a> {
    sessions: &'a Sessions,
    client_id: ClientId,
    slot: Arc<Slot>,
}

impl Sessions {
    /// Waits until nobody else opens or expires the session of this client. Cancel safe.
    pub(super) async fn claim(&self, client_id: &ClientId) -> Claim<'_> {
        let slot = Arc::clone(self.slots.lock().entry(client_id.clone()).or_default());
        let hold = Hold { sessions: self, client_id: client_id.clone(), slot };
        let gate = Arc::clone(&hold.slot.gate).lock_owned().await;
        Claim { _gate: gate, hold }
    }

    /// The session of a client, if it has one.
    pub(crate) fn find(&self, client_id: &ClientId) -> Option<Arc<SessionEntry>> {
        self.slots.lock().get(client_id)?.current.lock().clone()
    }

    /// The session of a client, if its backlog is this target.
    pub(crate) fn of_target(&self, client_id: &ClientId, target: TargetId) -> Option<Arc<SessionEntry>> {
        self.find(client_id).filter(|entry| entry.target == Some(target))
    }

    /// Takes in a session that was stored. False if its client has another one: a crash came between the end of
    /// that and its deletion.
    pub(super) fn restore(&self, entry: &Arc<SessionEntry>) -> bool {
        let slot = Slot { current: Mutex::new(Some(Arc::clone(entry))), ..Slot::default() };
        let free = match self.slots.lock().entry(entry.client_id.clone()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(Arc::new(slot));
                true
            }
        };
        self.durable.fetch_add(usize::from(free), Ordering::Relaxed);
        free
    }

    /// Forgets a session, if its client id still stands for it.
    pub(super) fn forget(&self, entry: &Arc<SessionEntry>) {
        let Some(slot) = self.slots.lock().get(&entry.client_id).cloned() else { return };
        let hold = Hold { sessions: self, client_id: entry.client_id.clone(), slot };
        let mut current = hold.slot.current.lock();
        if current.as_ref().is_some_and(|current| current.key == entry.key) {
            *current = None;
        }
    }

    /// Takes a place for a session that outlives its connection, of `max`.
    pub(super) fn take_place(&self, max: usize) -> bool {
        let more = |count: usize| (count < max).then_some(count + 1);
        self.durable.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(super) fn give_place_back(&self) {
        self.durable.fetch_sub(1, Ordering::Relaxed);
    }

    /// At most `max` sessions in the order of their client ids, of those that begin with `prefix`, after `after`.
    pub(super) fn page(&self, prefix: &str, after: Option<&ClientId>, max: usize) -> Vec<Arc<SessionEntry>> {
        let from = match after {
            Some(after) if after.as_str() >= prefix => Bound::Excluded(after.as_str()),
            _ => Bound::Included(prefix),
        };
        let slots = self.slots.lock();
        let of_prefix = slots
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(client_id, _)| client_id.as_str().starts_with(prefix));
        of_prefix.filter_map(|(_, slot)| slot.current.lock().clone()).take(max).collect()
    }

    /// How many sessions there are, connected or not.
    pub(crate) fn count(&self) -> usize {
        self.slots.lock().len()
    }
}

impl Claim<'_> {
    /// The client's session.
    pub(super) fn current(&self) -> Option<Arc<SessionEntry>> {
        self.hold.slot.current.lock().clone()
    }

    /// From now on the client id stands for this session.
    pub(super) fn set(&self, entry: &Arc<SessionEntry>) {
        *self.hold.slot.current.lock() = Some(Arc::clone(entry));
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut slots = self.sessions.slots.lock();
        // The map's and this one; more are made under the lock of the map only.
        if Arc::strong_count(&self.slot) == 2 && self.slot.current.lock().is_none() {
            slots.remove(&self.client_id);
        }
    }
}
