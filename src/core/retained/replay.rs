//! Hands on the retained values that a new subscription matches, in portions.
//!
//! A subscription to many topics would overrun an outbox, so the values are handed on as there is room; what is stored
//! for the subscriber is not followed by more before it is on disk. What was set after the subscription began was
//! pushed to it and is passed over. What is still to be handed on is a part of the session while the process runs.

use std::num::NonZeroU32;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::Retained;
use crate::core::delivery::Offer;
use crate::engine::{Levels, Ticket};
use crate::types::{TopicFilter, TopicName, UnixMillis};

/// Values looked at under one lock.
const PORTION: usize = 256;
/// Bytes of values handed on at once; one value may overdraw.
const PORTION_BYTES: usize = 1 << 20;

/// The retained values of one subscription that are still to be handed on.
#[derive(Debug)]
pub(crate) struct Replay {
    filter: TopicFilter,
    levels: Levels,
    identifier: Option<NonZeroU32>,
    shards: Range<usize>,
    after: Option<TopicName>,
    /// What is newer was pushed.
    until: u64,
}

/// Those of one session.
#[derive(Debug, Default)]
pub(crate) struct Replays {
    list: Vec<Replay>,
    /// The last portion that is on its way to the disk.
    stored: Option<Ticket>,
}

/// How much may still be handed on.
struct Room {
    values: usize,
    bytes: usize,
}

impl Retained {
    /// Begins when the subscription is in the router.
    pub(crate) fn replay(
        &self,
        filter: TopicFilter,
        levels: Levels,
        identifier: Option<NonZeroU32>,
    ) -> Replay {
        let shards = self.shards_of(&filter);
        // A read that takes part in the order of changes: who sets a newer value sees the subscription.
        let until = self.version.fetch_add(0, Ordering::AcqRel);
        Replay { filter, levels, identifier, shards, after: None, until }
    }
}

impl Replays {
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Adds one, in place of another of the same filter.
    pub(crate) fn begin(&mut self, replay: Replay) {
        self.end(&replay.filter);
        self.list.push(replay);
    }

    /// The subscription has ended.
    pub(crate) fn end(&mut self, filter: &TopicFilter) {
        self.list.retain(|replay| replay.filter != *filter);
    }

    /// Whether [`go_on`](Self::go_on) has something to hand on.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.list.is_empty() {
            return Poll::Pending; // Whoever begins one says so.
        }
        if let Some(ticket) = &mut self.stored {
            if Pin::new(ticket).poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.stored = None;
        }
        Poll::Ready(())
    }

    /// Gives `hand_on` up to `max` values, unless an earlier portion is still on its way to the disk. What it returns
    /// says when these are there.
    pub(crate) fn go_on(
        &mut self,
        retained: &Retained,
        max: usize,
        now: UnixMillis,
        mut hand_on: impl FnMut(&[Offer<'_>]) -> Option<Ticket>,
    ) {
        self.stored.take_if(|ticket| ticket.try_now().is_some());
        let mut room = Room { values: max, bytes: PORTION_BYTES };
        while self.stored.is_none()
            && room.values > 0
            && room.bytes > 0
            && let Some(replay) = self.list.first_mut()
        {
            self.stored = replay.go_on(retained, &mut room, now, &mut hand_on);
            if replay.shards.is_empty() {
                self.list.remove(0);
            }
        }
        if self.list.is_empty() {
            // What is on its way needs nobody who waits for it.
            *self = Self::default();
        }
    }
}

impl Replay {
    /// Hands on what of one shard there is room for.
    fn go_on(
        &mut self,
        retained: &Retained,
        room: &mut Room,
        now: UnixMillis,
        hand_on: &mut impl FnMut(&[Offer<'_>]) -> Option<Ticket>,
    ) -> Option<Ticket> {
        let shard = retained.shard_at(self.shards.start)?;
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
                qos: self.levels.of(kept.message.qos),
                retain: true, // [MQTT-3.3.1-8]
                identifiers: self.identifier.as_slice(),
                share: None,
                publisher: None,
            });
            room.values -= 1;
            room.bytes = room.bytes.saturating_sub(kept.message.weight());
            if room.values == 0 || room.bytes == 0 {
                break;
            }
        }
        let ticket = if offers.is_empty() { None } else { hand_on(&offers) };
        let whole = looked_at < PORTION && room.values > 0 && room.bytes > 0;
        self.after = if whole { None } else { last.cloned() };
        if whole {
            self.shards.start += 1;
        }
        ticket
    }
}
