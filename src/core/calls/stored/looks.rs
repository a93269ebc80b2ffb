//! Which services the dispatcher is to look at.
//!
//! A service says so itself when it may have room ([`Watch`]). Of a new shared subscription it is not known which of those
//! that wait it matches: they are searched, a part in each turn of the dispatcher.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::places::Places;
use crate::bell::Bell;
use crate::core::calls::state::UNREAD;
use crate::types::{TopicFilter, TopicName, clock};

/// Searches that wait; the last one is for all services, where there would be more.
const SEARCHES: usize = 64;
/// Services that are searched at once.
const PART: usize = 256;

/// Has the dispatcher look at a service.
#[derive(Debug)]
pub(in crate::core::calls) struct Watch {
    pub(super) service: TopicName,
    asked: AtomicBool,
    rests: AtomicBool,
    looks: Arc<Looks>,
}

/// The services that are to be looked at.
#[derive(Debug, Default)]
pub(super) struct Looks {
    watches: Mutex<VecDeque<Arc<Watch>>>,
    /// Those that are looked at when their time comes, in their order.
    later: Mutex<VecDeque<(Instant, Arc<Watch>)>>,
    searches: Mutex<VecDeque<Search>>,
    pub(super) bell: Bell,
}

/// A search among the services that wait.
#[derive(Debug)]
struct Search {
    /// None: all of them.
    filter: Option<TopicFilter>,
    /// How far it is.
    after: Option<TopicName>,
}

impl Watch {
    pub(super) fn new(service: TopicName, looks: &Arc<Looks>) -> Arc<Self> {
        let (asked, rests) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { service, asked, rests, looks: Arc::clone(looks) })
    }

    /// Its service may have room.
    pub(in crate::core::calls) fn look(self: &Arc<Self>) {
        if !self.asked.swap(true, Ordering::AcqRel) {
            self.looks.watches.lock().push_back(Arc::clone(self));
            self.looks.bell.ring();
        }
    }

    /// It is looked at again after [`UNREAD`]: nobody says when who took nothing takes something.
    pub(super) fn look_later(self: &Arc<Self>) {
        if !self.rests.swap(true, Ordering::AcqRel) {
            self.looks.later.lock().push_back((clock::now() + UNREAD, Arc::clone(self)));
        }
    }
}

impl Looks {
    /// Those that are to be looked at now, at most `max`; what happens from now on asks again.
    pub(super) fn take(&self, max: usize) -> Vec<Arc<Watch>> {
        let mut watches = self.watches.lock();
        let count = watches.len().min(max);
        let taken: Vec<_> = watches.drain(..count).collect();
        drop(watches);
        taken.iter().for_each(|watch| watch.asked.store(false, Ordering::Release));
        taken
    }

    /// Whether there are any.
    pub(super) fn are_there(&self) -> bool {
        !self.watches.lock().is_empty()
    }

    /// Has those looked at whose time has come. Returns how long it is to the next one.
    pub(super) fn wake(&self) -> Option<Duration> {
        let now = clock::now();
        let mut later = self.later.lock();
        while let Some((at, watch)) = later.pop_front() {
            if at > now {
                later.push_front((at, watch));
                return Some(at - now);
            }
            watch.rests.store(false, Ordering::Release);
            watch.look();
        }
        None
    }

    /// Has all services looked at that wait and match.
    pub(super) fn search(&self, filter: &TopicFilter) {
        let mut searches = self.searches.lock();
        // The last one, which has not begun, finds what this one would.
        if searches.len() < SEARCHES {
            let filter = (searches.len() + 1 < SEARCHES).then(|| filter.clone());
            searches.push_back(Search { filter, after: None });
        }
        drop(searches);
        self.bell.ring();
    }

    /// Searches a part. False if there was nothing to search.
    pub(super) fn search_on(&self, places: &Places) -> bool {
        let Some(mut search) = self.searches.lock().pop_front() else { return false };
        let matches =
            |service: &TopicName| search.filter.as_ref().is_none_or(|filter| filter.matches(service));
        if let Some(after) = places.look(search.after.as_ref(), PART, matches) {
            search.after = Some(after);
            self.searches.lock().push_front(search);
        }
        true
    }
}
