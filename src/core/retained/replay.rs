//! Hands the retained values that a new subscription matches to its outbox, in portions.
//!
//! A subscription to many topics would overrun an outbox, so the values are handed on as there is room. What was
//! set after the subscription began was pushed to it and is passed over.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::Retained;
use crate::core::delivery::{Offer, Outbox};
use crate::types::{Qos, TopicFilter, TopicName, UnixMillis};

/// Values looked at under one lock.
const PORTION: usize = 256;

/// The retained values of one subscription that are still to be handed on.
#[derive(Debug)]
pub(crate) struct Replay {
    filter: TopicFilter,
    max_qos: Qos,
    identifier: Option<NonZeroU32>,
    shards: Range<usize>,
    after: Option<TopicName>,
    /// What is newer was pushed.
    until: u64,
}

impl Retained {
    /// Begins when the subscription is in the router.
    pub(crate) fn replay(&self, filter: TopicFilter, max_qos: Qos, identifier: Option<NonZeroU32>) -> Replay {
        let shards = self.shards_of(&filter);
        // A read that takes part in the order of changes: who sets a newer value sees the subscription.
        let until = self.version.fetch_add(0, Ordering::AcqRel);
        Replay { filter, max_qos, identifier, shards, after: None, until }
    }
}

impl Replay {
    /// Whether everything was handed on.
    pub(crate) fn is_done(&self) -> bool {
        self.shards.is_empty()
    }

    /// Offers up to `max` values, and returns how many.
    pub(crate) fn go_on(
        &mut self,
        retained: &Retained,
        outbox: &dyn Outbox,
        max: usize,
        now: UnixMillis,
    ) -> usize {
        let mut offered = 0;
        while offered < max && !self.is_done() {
            let Some(shard) = retained.shard_at(self.shards.start) else { break };
            let mut looked_at = 0;
            let mut offers = Vec::new();
            let mut last = None;
            for kept in shard.matches(&self.filter, self.after.as_ref()).take(PORTION) {
                looked_at += 1;
                last = Some(&kept.message.topic);
                if kept.version > self.until || kept.message.is_expired(now) {
                    continue;
                }
                offers.push(Offer {
                    message: &kept.message,
                    qos: kept.message.qos.min(self.max_qos),
                    retain: true, // [MQTT-3.3.1-8]
                    identifiers: self.identifier.as_slice(),
                    share: None,
                    publisher: None,
                });
                if offered + offers.len() == max {
                    break;
                }
            }
            if !offers.is_empty() {
                outbox.offer(&offers);
            }
            offered += offers.len();
            let whole = looked_at < PORTION && offered < max;
            self.after = if whole { None } else { last.cloned() };
            if whole {
                self.shards.start += 1;
            }
        }
        offered
    }
}
