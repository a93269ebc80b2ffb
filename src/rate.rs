//! How often one address may connect, at all doors together: a token bucket for each.
//!
//! Invariants: memory is bounded by [`MAX_ADDRESSES`]; an address is forgotten only when forgetting changes nothing. When
//! there is no room for another address it is let through and counted: a bound on one address is no means for many to shut
//! out the rest, and the number of connections has a bound of its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::types::clock;

/// Addresses that are known at a time.
pub const MAX_ADDRESSES: usize = 65_536;
/// How often a full table is looked through for addresses that may be forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What the operator decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Connects of one address per second in the long run; `None` = as many as come. Addresses are shared behind NAT, and a
    /// fleet comes back at once after an outage, so nothing is bounded unless somebody says so.
    pub per_second: Option<u64>,
    /// How many may come at once after a rest.
    pub burst: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { per_second: None, burst: 100 }
    }
}

/// The bound. Parts share it, and each counts what it has refused.
#[derive(Debug, Default, Clone)]
pub struct ConnectRate {
    table: Option<Arc<Table>>,
    refused: Arc<AtomicU64>,
}

/// What is bounded together: an IPv4 address, or the network that an IPv6 host takes its addresses from (/64).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Origin {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self::V6([a, b, c, d].into_iter().fold(0, |bits, segment| bits << 16 | u64::from(segment)))
            }
        }
    }
}

#[derive(Debug)]
struct Table {
    /// A token comes back in this time.
    each: Duration,
    /// The time in which a spent bucket is full again, but for one token.
    tolerance: Duration,
    max: usize,
    known: Mutex<Known>,
    untracked: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    /// When each bucket is full again.
    full_at: HashMap<Origin, Instant>,
    swept: Option<Instant>,
}

impl Table {
    fn new(per_second: u64, burst: u64, max: usize) -> Self {
        let each = Duration::from_secs(1) / u32::try_from(per_second.max(1)).unwrap_or(u32::MAX);
        let tolerance = each * u32::try_from(burst.saturating_sub(1)).unwrap_or(u32::MAX);
        Self { each, tolerance, max, known: Mutex::default(), untracked: AtomicU64::new(0) }
    }

    fn admits(&self, origin: Origin, now: Instant) -> bool {
        let mut known = self.known.lock();
        if known.full_at.len() >= self.max && !known.full_at.contains_key(&origin) {
            if known.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP_EVERY) {
                known.swept = Some(now);
                known.full_at.retain(|_, full_at| *full_at > now);
            }
            if known.full_at.len() >= self.max {
                self.untracked.fetch_add(1, Ordering::Relaxed);
                return true;
            }
        }
        let full_at = known.full_at.entry(origin).or_insert(now);
        let from = (*full_at).max(now);
        if from.duration_since(now) > self.tolerance {
            return false;
        }
        *full_at = from + self.each;
        true
    }
}

impl ConnectRate {
    /// The bound of these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let table = settings.per_second.map(|rate| Arc::new(Table::new(rate, settings.burst, MAX_ADDRESSES)));
        Self { table, refused: Arc::default() }
    }

    /// The same bound with a count of its own.
    #[must_use]
    pub fn part(&self) -> Self {
        Self { table: self.table.clone(), refused: Arc::default() }
    }

    /// Whether this address may connect now; a refusal is counted. Never waits.
    #[must_use]
    pub fn admits(&self, address: IpAddr) -> bool {
        let Some(table) = &self.table else { return true };
        let admitted = table.admits(address.into(), clock::now());
        if !admitted {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// How many connects this part has refused since the start.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many connects were let through since the start because too many addresses were known.
    #[must_use]
    pub fn untracked(&self) -> u64 {
        self.table.as_ref().map_or(0, |table| table.untracked.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn origin(address: &str) -> Origin {
        address.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_burst_is_admitted_and_then_the_rate() {
        let (table, start) = (Table::new(10, 3, 8), clock::now());
        let (one, other) = (origin("10.0.0.1"), origin("10.0.0.2"));
        let admitted = |origin, at| (0..5).filter(|_| table.admits(origin, at)).count();
        assert_eq!(admitted(one, start), 3);
        assert_eq!(admitted(other, start), 3, "each address has its own");
        assert_eq!(admitted(one, start + SECOND / 10), 1);
        assert_eq!(admitted(one, start + SECOND * 60), 3, "a rest fills the bucket and no more");
    }

    #[test]
    fn a_burst_of_one_spaces_connects() {
        let (table, start) = (Table::new(2, 1, 8), clock::now());
        let one = origin("::1");
        let times = [0, 400, 500, 900, 1000].map(|ms| start + Duration::from_millis(ms));
        assert_eq!(times.map(|at| table.admits(one, at)), [true, false, true, false, true]);
    }

    #[test]
    fn hosts_of_one_network_are_one_origin() {
        assert_eq!(origin("2001:db8:1:2::1"), origin("2001:db8:1:2:ffff::9"));
        assert_ne!(origin("2001:db8:1:2::1"), origin("2001:db8:1:3::1"));
        assert_eq!(origin("::ffff:10.0.0.1"), origin("10.0.0.1"));
        assert_ne!(origin("0.0.0.0"), origin("::"));
    }

    #[test]
    fn the_table_is_bounded_and_shuts_nobody_out() {
        let (table, start) = (Table::new(1, 2, 3), clock::now());
        let origins: Vec<_> = (1..=4).map(|n| origin(&format!("10.0.0.{n}"))).collect();
        let admitted = |n: usize, at| (0..4).filter(|_| table.admits(origins[n], at)).count();
        assert_eq!([0, 1, 2].map(|n| admitted(n, start)), [2, 2, 2]);
        assert_eq!(admitted(3, start), 4, "there is no room for it");
        assert_eq!((table.known.lock().full_at.len(), table.untracked.load(Ordering::Relaxed)), (3, 4));
        // What is full again is forgotten.
        assert_eq!(admitted(3, start + SECOND * 5), 2);
        assert_eq!(table.known.lock().full_at.len(), 1);
    }
}
