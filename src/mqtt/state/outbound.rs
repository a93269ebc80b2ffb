//! Deliveries above QoS 0 to the client: packet ids, the client's receive maximum, and how far each delivery is.
//!
//! ```text
//! QoS 1   begin ─ PUBLISH ─▶ Acknowledge ─ PUBACK ─▶ free
//! QoS 2   begin ─ PUBLISH ─▶ Receive ─ PUBREC ─▶ (Release ─ stored ─▶) ─ PUBREL ─▶ Complete ─ PUBCOMP ─▶ free
//! ```
//!
//! Invariants: no more deliveries are on their way than the client's receive maximum [5: MQTT-3.3.4-9]; a packet id is
//! given to one delivery at a time [3.1.1: MQTT-2.3.1-4; 5: MQTT-2.2.1-4].

use std::num::NonZeroU16;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::core::share::ShareGroup;
use crate::types::{Message, Qos, Sequence, TargetId};

/// Where a delivery comes from: what is to be done when it ends.
#[derive(Debug, Clone)]
pub(in crate::mqtt) enum Origin {
    /// Offered to this connection: nothing.
    Live,
    /// Offered to this connection as a member of a share group: it goes back when it is not acknowledged.
    Share(Box<(Arc<ShareGroup>, Message)>),
    /// Leased: it is settled, or goes back.
    Stored(Stored),
}

/// A leased message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mqtt) struct Stored {
    pub(in crate::mqtt) source: TargetId,
    pub(in crate::mqtt) sequence: Sequence,
    /// The source is a queue: what fails is delivered again.
    pub(in crate::mqtt) queue: bool,
}

/// What a delivery waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mqtt) enum Step {
    /// The store, before PUBLISH leaves.
    Store,
    /// PUBACK.
    Acknowledge,
    /// PUBREC.
    Receive,
    /// The store, before PUBREL leaves.
    Release,
    /// PUBCOMP.
    Complete,
}

/// A delivery on its way.
#[derive(Debug, Clone)]
pub(in crate::mqtt) struct Flight {
    pub(in crate::mqtt) origin: Origin,
    pub(in crate::mqtt) step: Step,
    /// Where its PUBLISH begins among all bytes that are written.
    pub(in crate::mqtt) at: u64,
    /// Bytes, where they are bounded.
    pub(in crate::mqtt) len: u32,
}

/// See the module.
#[derive(Debug)]
pub(in crate::mqtt) struct Window {
    flights: FxHashMap<u16, Flight>,
    /// Of deliveries of earlier connections that are still to come.
    held: FxHashSet<u16>,
    last: u16,
    max: usize,
    /// Of all that is on its way, where they are bounded.
    bytes: u64,
    max_bytes: Option<u64>,
}

impl Window {
    pub(in crate::mqtt) fn new(max: u16, held: Vec<u16>) -> Self {
        let held = held.into_iter().collect();
        let max = usize::from(max);
        Self { flights: FxHashMap::default(), held, last: 0, max, bytes: 0, max_bytes: None }
    }

    /// The same with so many bytes at most: no delivery begins while they are on their way.
    pub(in crate::mqtt) fn within(self, max_bytes: Option<u64>) -> Self {
        Self { max_bytes, ..self }
    }

    /// How many deliveries may still begin, as far as their bytes are known.
    pub(in crate::mqtt) fn room(&self) -> usize {
        if self.max_bytes.is_some_and(|max| self.bytes >= max) {
            return 0;
        }
        self.max.saturating_sub(self.flights.len())
    }

    /// How many are on their way.
    pub(in crate::mqtt) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Begins a delivery whose PUBLISH stands at `at` of the bytes that are written. `None`: it has to wait.
    pub(in crate::mqtt) fn begin(&mut self, qos: Qos, origin: Origin, at: u64) -> Option<NonZeroU16> {
        if self.room() == 0 {
            return None;
        }
        let id = self.free_id()?;
        let step = if qos == Qos::ExactlyOnce { Step::Receive } else { Step::Acknowledge };
        self.flights.insert(id.get(), Flight { origin, step, at, len: 0 });
        Some(id)
    }

    /// Says how many bytes a delivery has that has begun.
    pub(in crate::mqtt) fn weigh(&mut self, id: NonZeroU16, len: usize) {
        if self.max_bytes.is_some()
            && let Some(flight) = self.flights.get_mut(&id.get())
        {
            self.bytes -= u64::from(flight.len);
            flight.len = u32::try_from(len).unwrap_or(u32::MAX);
            self.bytes += u64::from(flight.len);
        }
    }

    /// Takes up a delivery of an earlier connection with its number, also beyond the receive maximum where only PUBREL
    /// is left. False: another one has the number.
    pub(in crate::mqtt) fn resume(&mut self, id: NonZeroU16, flight: Flight) -> bool {
        self.held.remove(&id.get());
        match self.flights.entry(id.get()) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(flight);
                true
            }
        }
    }

    /// The next number that nobody has. None: what earlier connections have left takes all others.
    fn free_id(&mut self) -> Option<NonZeroU16> {
        for _ in 0..=u16::MAX {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if !self.flights.contains_key(&self.last) && !self.held.contains(&self.last) {
                return NonZeroU16::new(self.last);
            }
        }
        None
    }

    pub(in crate::mqtt) fn get_mut(&mut self, id: NonZeroU16) -> Option<&mut Flight> {
        self.flights.get_mut(&id.get())
    }

    /// Ends a delivery.
    pub(in crate::mqtt) fn forget(&mut self, id: NonZeroU16) -> Option<Flight> {
        let flight = self.flights.remove(&id.get())?;
        self.bytes -= u64::from(flight.len);
        Some(flight)
    }

    /// All that is on its way.
    pub(in crate::mqtt) fn drain(&mut self) -> impl Iterator<Item = (NonZeroU16, Flight)> {
        self.bytes = 0;
        self.flights.drain().filter_map(|(id, flight)| Some((NonZeroU16::new(id)?, flight)))
    }

    /// Gives memory back when nothing is on its way.
    pub(in crate::mqtt) fn release(&mut self) {
        if self.flights.is_empty() && self.flights.capacity() > 0 {
            self.flights = FxHashMap::default();
        }
        if self.held.is_empty() && self.held.capacity() > 0 {
            self.held = FxHashSet::default();
        }
    }
}
