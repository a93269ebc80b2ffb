//! How messages reach connections: what a door implements, and how a batch of publishes is fanned out.
//!
//! A door gives each connection an [`Outbox`]. Publishers call it from their own tasks, so it never blocks: it
//! appends to a buffer with a bound and wakes its writer.
//!
//! Invariant: what one call of the fan-out has for one session reaches it in one [`Outbox::offer`], in the order of
//! the publishes. Nothing is allocated per message or delivery: the scratch space is kept.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustc_hash::FxHashMap;

use super::route::{SessionTarget, Target};
use super::session::{SessionEntry, SessionKey};
use super::share::{Chosen, ShareGroup};
use crate::counters::Passed;
use crate::types::{ClientId, Message, Qos};

/// Where the deliveries of one connection go. Called from publishers' tasks, possibly from several at once and
/// under a lock of the core: it must neither block nor call back into the core.
pub trait Outbox: Send + Sync {
    /// Takes deliveries in order, and returns how many it dropped.
    ///
    /// At QoS 0 what is beyond the bound is dropped. At QoS 1 and 2 a full outbox closes itself (0x97), and counts
    /// what it did not take as dropped.
    fn offer(&self, deliveries: &[Offer<'_>]) -> usize;

    /// Ends the connection. The door closes its [`Session`](super::Session) soon after; calls after the first change
    /// nothing.
    fn close(&self, reason: CloseReason);

    /// How the peer answers when it is called.
    fn answers(&self) -> Answers {
        Answers::Never
    }

    /// Whether the peer takes a packet as large as this delivery.
    ///
    /// # Errors
    /// How large it would be, and may be.
    fn takes(&self, _offer: &Offer<'_>) -> Result<(), TooLarge> {
        Ok(())
    }

    /// How many deliveries wait or are unacknowledged: of a share group's members the one with the least is chosen.
    fn backlog(&self) -> usize {
        0
    }
}

/// One message for one target.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// The message as published.
    pub message: &'a Message,
    /// The level of this delivery: the lower of what was published and what the subscription takes.
    pub qos: Qos,
    /// The retain flag of this delivery.
    pub retain: bool,
    /// The identifiers of all subscriptions that match.
    pub identifiers: &'a [NonZeroU32],
    /// The share group that chose this member. What a lost connection had not acknowledged at QoS 1 goes back with
    /// [`Session::hand_back`](super::Session::hand_back).
    pub share: Option<&'a Arc<ShareGroup>>,
    /// Who published, where it has a name.
    pub publisher: Option<&'a ClientId>,
}

/// A delivery that is larger than any packet that the peer takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    /// Its packet.
    pub len: usize,
    /// The largest one.
    pub max: usize,
}

/// How a subscriber answers when it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// Not at all.
    Never,
    /// It knows response topics and correlation data.
    ByProperties,
    /// It does not; a pair of topics says where it answers.
    ByTopic,
}

/// Why the core ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The same client connected again.
    TakenOver,
    /// Its session was deleted.
    Deleted,
    /// An operator ends it.
    Disconnected,
    /// The server is about to stop.
    Draining,
}

/// Some messages in a row that have the same targets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lot<'a, M> {
    pub(crate) messages: &'a [M],
    pub(crate) targets: &'a [Target],
}

/// One delivery on its way into the place of its session.
#[derive(Debug, Clone, Copy)]
struct Pick<'a> {
    place: u32,
    entry: &'a SessionEntry,
    offer: Offer<'a>,
}

/// Offers batches to live sessions. Has scratch space and a count.
#[derive(Debug, Default)]
pub(crate) struct FanOut {
    /// What connections took since somebody looked.
    pub(crate) sent: Passed,
    offers: Vec<Offer<'static>>,
    picks: Vec<Pick<'static>>,
    places: FxHashMap<SessionKey, u32>,
    /// Per place: first how many deliveries it has, then where its next one goes.
    counts: Vec<u32>,
    chosen: Vec<Option<Chosen>>,
    assigned: FxHashMap<SessionKey, usize>,
}

/// Ends the borrows of an empty vector and keeps its memory: a collect from the same vector happens in place.
fn emptied<'b>(mut offers: Vec<Offer<'_>>) -> Vec<Offer<'b>> {
    offers.clear();
    offers.into_iter().map_while(|_| None).collect()
}

/// As [`emptied`].
fn emptied_picks<'b>(mut picks: Vec<Pick<'_>>) -> Vec<Pick<'b>> {
    picks.clear();
    picks.into_iter().map_while(|_| None).collect()
}

/// The delivery of a message to a session now; none if the engine keeps it for the session.
fn live<'a>(
    message: &'a Message,
    target: &'a SessionTarget,
    publisher: Option<&'a ClientId>,
) -> Option<Offer<'a>> {
    (!target.stores(message.qos)).then(|| Offer {
        message,
        qos: target.granted(message.qos),
        retain: message.retain && target.retain_as_published,
        identifiers: &target.identifiers,
        share: None,
        publisher,
    })
}

/// Hands deliveries to the connection of a session, if it has one. Returns how many it took.
pub(crate) fn offer(entry: &SessionEntry, offers: &[Offer<'_>]) -> usize {
    if offers.is_empty() {
        return 0;
    }
    offered(entry, offers).map_or(0, |dropped| offers.len().saturating_sub(dropped))
}

/// How much these deliveries are.
pub(crate) fn passed(offers: &[Offer<'_>]) -> Passed {
    Passed::of(offers.iter().map(|offer| offer.message.payload.len()))
}

/// The same; tells how many were dropped, or that there is no connection.
pub(crate) fn offered(entry: &SessionEntry, offers: &[Offer<'_>]) -> Option<usize> {
    let attached = entry.attached.load();
    let dropped = attached.as_ref()?.outbox.offer(offers);
    if dropped > 0 {
        entry.dropped.fetch_add(dropped as u64, Ordering::Relaxed);
        entry.all_dropped.fetch_add(dropped as u64, Ordering::Relaxed);
    }
    Some(dropped)
}

impl FanOut {
    /// Offers every message of `lots` to those of its targets that are not stored.
    pub(crate) fn offer<'a, M: AsRef<Message> + 'a>(
        &mut self,
        lots: impl Iterator<Item = Lot<'a, M>> + Clone,
        publisher: Option<&'a ClientId>,
    ) {
        let mut all = lots.clone();
        match (all.next(), all.next()) {
            (None, _) => {}
            (Some(lot), None) if !lot.targets.iter().any(|target| matches!(target, Target::Share(_))) => {
                self.offer_lot(lot, publisher);
            }
            _ => self.offer_mixed(lots, publisher),
        }
    }

    /// One list of targets without share groups: what is usual. Sessions that want the same get the same list.
    fn offer_lot<'a, M: AsRef<Message> + 'a>(&mut self, lot: Lot<'a, M>, publisher: Option<&'a ClientId>) {
        let mut offers: Vec<Offer<'a>> = std::mem::take(&mut self.offers);
        let mut last: Option<&SessionTarget> = None;
        let mut each = Passed::default();
        for target in lot.targets {
            let Target::Session(target) = target else { continue };
            if !last.is_some_and(|last| wants_the_same(last, target)) {
                offers.clear();
                offers.extend(
                    lot.messages.iter().filter_map(|message| live(message.as_ref(), target, publisher)),
                );
                each = passed(&offers);
                last = Some(target);
            }
            self.sent += each.part(offer(&target.entry, &offers));
        }
        self.offers = emptied(offers);
    }

    /// Gathers per session what several lists of targets have for it.
    fn offer_mixed<'a, M: AsRef<Message> + 'a>(
        &mut self,
        lots: impl Iterator<Item = Lot<'a, M>> + Clone,
        publisher: Option<&'a ClientId>,
    ) {
        self.choose(lots.clone());
        let chosen = std::mem::take(&mut self.chosen);
        self.gather(lots, &chosen, publisher);
        self.chosen = chosen;
        self.chosen.clear();
    }

    /// Chooses a member for each message that a share group gets live, in the order in which they are gathered.
    fn choose<'a, M: AsRef<Message> + 'a>(&mut self, lots: impl Iterator<Item = Lot<'a, M>>) {
        self.assigned.clear();
        for lot in lots {
            for target in lot.targets {
                let Target::Share(group) = target else { continue };
                let durable = group.target().is_some();
                for message in lot.messages {
                    // What is stored for the group is leased to a member later.
                    let chosen = if durable && message.as_ref().qos > Qos::AtMostOnce {
                        None
                    } else {
                        group.choose(None, |key| self.assigned.get(&key).copied().unwrap_or(0))
                    };
                    if let Some(chosen) = &chosen {
                        *self.assigned.entry(chosen.entry.key).or_default() += 1;
                    }
                    self.chosen.push(chosen);
                }
            }
        }
    }

    fn gather<'b, 'a: 'b, M: AsRef<Message> + 'a>(
        &mut self,
        lots: impl Iterator<Item = Lot<'a, M>>,
        chosen: &'b [Option<Chosen>],
        publisher: Option<&'b ClientId>,
    ) {
        let mut picks: Vec<Pick<'b>> = std::mem::take(&mut self.picks);
        self.places.clear();
        self.counts.clear();
        let mut chosen = chosen.iter();
        for lot in lots {
            for target in lot.targets {
                let first = picks.len();
                let mut pick = |entry: &'b SessionEntry, offer: Offer<'b>| {
                    let next = u32::try_from(self.counts.len()).unwrap_or(u32::MAX);
                    // A session's deliveries of one list stand in a row.
                    let place = match picks.last() {
                        Some(last) if picks.len() > first && last.entry.key == entry.key => last.place,
                        _ => *self.places.entry(entry.key).or_insert(next),
                    };
                    if place == next {
                        self.counts.push(0);
                    }
                    if let Some(count) = self.counts.get_mut(place as usize) {
                        *count += 1;
                    }
                    picks.push(Pick { place, entry, offer });
                };
                match target {
                    Target::Queue(_) | Target::Stream(_) => {}
                    Target::Session(session) => {
                        for message in lot.messages {
                            if let Some(offer) = live(message.as_ref(), session, publisher) {
                                pick(&session.entry, offer);
                            }
                        }
                    }
                    Target::Share(group) => {
                        for message in lot.messages {
                            let message = message.as_ref();
                            let Some(Some(member)) = chosen.next() else { continue };
                            let qos = member.levels.of(message.qos);
                            let identifiers = member.identifier.as_slice();
                            let share = Some(group);
                            let offer = Offer { message, qos, retain: false, identifiers, share, publisher };
                            pick(&member.entry, offer);
                        }
                    }
                }
            }
        }
        self.hand_out(&picks);
        self.picks = emptied_picks(picks);
    }

    /// Puts the deliveries in a row by place, in their order, and offers each place's row.
    fn hand_out<'a>(&mut self, picks: &[Pick<'a>]) {
        let Some(some) = picks.first() else { return };
        let mut offers: Vec<Offer<'a>> = std::mem::take(&mut self.offers);
        offers.resize(picks.len(), some.offer);
        let mut end = 0;
        for count in &mut self.counts {
            let start = end;
            end += *count;
            *count = start;
        }
        for pick in picks {
            let Some(next) = self.counts.get_mut(pick.place as usize) else { continue };
            if let Some(place) = offers.get_mut(*next as usize) {
                *place = pick.offer;
            }
            *next += 1;
        }
        // Now each count is where its place ends.
        let mut place = 0;
        let mut start = 0;
        for pick in picks {
            if pick.place == place {
                let end = self.counts.get(place as usize).map_or(start, |&end| end as usize);
                let row = offers.get(start..end).unwrap_or_default();
                self.sent += passed(row).part(offer(pick.entry, row));
                start = end;
                place += 1;
            }
        }
        self.offers = emptied(offers);
    }
}

fn wants_the_same(a: &SessionTarget, b: &SessionTarget) -> bool {
    a.levels == b.levels
        && a.retain_as_published == b.retain_as_published
        && a.entry.target.is_some() == b.entry.target.is_some()
        && a.identifiers == b.identifiers
}
