//! Where each stored call is: on its way, in the line of its service, or a reply that is kept.
//!
//! Invariants, under the lock: a call that waits is in the line of its service and nowhere else; what waits or is kept has one
//! moment at which that ends; there is a line as long as somebody waits in it or some of it are being begun, which are all
//! that are taken out of it until then, so that they go in their order; its service says when it has room.
//! Knows no store, and no clock: the time comes in as an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::looks::{Looks, Watch};
use crate::core::calls::{ReplyTo, Request};
use crate::types::{MessageId, Sequence, TopicName, UnixMillis};

/// A call that is stored.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: MessageId,
    /// Its place among the stored calls, and so in the line.
    pub(super) sequence: Sequence,
    pub(super) request: Request,
    pub(super) reply_to: ReplyTo,
    /// It is on disk that somebody may have the request.
    pub(super) marked: AtomicBool,
    /// Responders that have seen it since the start of the broker.
    pub(super) tries: AtomicUsize,
}

impl Waiting {
    pub(super) fn deadline(&self) -> UnixMillis {
        self.request.deadline.unwrap_or(UnixMillis(u64::MAX))
    }

    pub(super) fn is_marked(&self) -> bool {
        self.marked.load(Ordering::Relaxed)
    }

    pub(super) fn service(&self) -> &TopicName {
        &self.request.message.topic
    }
}

/// The calls that wait for a responder of one service.
#[derive(Debug)]
struct Line {
    waiting: BTreeMap<Sequence, Arc<Waiting>>,
    /// Some of it are being begun, or it rests.
    busy: bool,
    /// The last one that was to be begun was refused: the next is tried alone.
    refused: bool,
    watch: Arc<Watch>,
}

#[derive(Debug)]
struct Known {
    place: Place,
    /// Counted among the requests, or among the replies.
    weight: usize,
    is_reply: bool,
    /// Woken when it changes its place for good.
    changed: Option<Arc<Notify>>,
}

#[derive(Debug)]
enum Place {
    /// On its way to the disk, to a responder, or to where its reply goes.
    UnderWay,
    /// In the line of its service.
    Waiting(Arc<Waiting>),
    /// Its reply is kept.
    Kept { sequence: Sequence, until: UnixMillis },
}

/// What has come to its end.
#[derive(Debug)]
pub(super) enum Due {
    /// Nobody was found in time; it is under way to its reply.
    Late(Arc<Waiting>),
    /// The reply in this place is not kept any more, and forgotten.
    Over(Sequence),
}

/// Where a call is, for who waits for its reply.
pub(super) enum Look {
    /// There is no such call.
    Unknown,
    /// Completes when that changes, from now on.
    UnderWay(OwnedNotified),
    Kept(Sequence),
}

/// How much may be there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Calls under way and replies that are kept.
    pub(super) calls: usize,
    /// Bytes of the former, and as many of the latter.
    pub(super) bytes: usize,
}

/// What there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) calls: usize,
    pub(super) waiting: usize,
    pub(super) call_bytes: usize,
    /// Those that are on disk to be fetched.
    pub(super) replies: usize,
    /// Of those that are on their way to be kept, too.
    pub(super) reply_bytes: usize,
}

/// There is no room for one more.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    Calls,
    Bytes,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// The keys are numbers of our own: no peer can choose them to collide.
    known: FxHashMap<MessageId, Known>,
    /// The names come from peers.
    lines: BTreeMap<TopicName, Line>,
    ends: BTreeSet<(UnixMillis, MessageId)>,
    sizes: Sizes,
}

impl Places {
    pub(super) fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// A call is on its way to the disk.
    pub(super) fn begin(&mut self, id: MessageId, weight: usize, room: Room) -> Result<(), NoRoom> {
        if self.known.len() >= room.calls {
            return Err(NoRoom::Calls);
        }
        if self.sizes.call_bytes + weight > room.bytes {
            return Err(NoRoom::Bytes);
        }
        self.restore(id, weight);
        Ok(())
    }

    /// The same for one that is on disk already.
    pub(super) fn restore(&mut self, id: MessageId, weight: usize) {
        self.forget(id);
        self.sizes.calls += 1;
        self.sizes.call_bytes += weight;
        self.known.insert(id, Known { place: Place::UnderWay, weight, is_reply: false, changed: None });
    }

    /// Whether it is under way.
    pub(super) fn has(&self, id: MessageId) -> bool {
        self.known.get(&id).is_some_and(|known| !known.is_reply)
    }

    /// Puts a call in the line of its service, where its sequence has it. Returns the watch that the service is to have, if
    /// the line is new.
    pub(super) fn wait(&mut self, call: Arc<Waiting>, looks: &Arc<Looks>) -> Option<Arc<Watch>> {
        let known = self.known.get_mut(&call.id)?;
        known.place = Place::Waiting(Arc::clone(&call));
        self.sizes.waiting += 1;
        self.ends.insert((call.deadline(), call.id));
        let is_new = !self.lines.contains_key(call.service());
        let line = self.lines.entry(call.service().clone()).or_insert_with_key(|service| Line {
            waiting: BTreeMap::new(),
            busy: false,
            refused: false,
            watch: Watch::new(service.clone(), looks),
        });
        line.waiting.insert(call.sequence, call);
        line.watch.look();
        is_new.then(|| Arc::clone(&line.watch))
    }

    /// How many of a service wait.
    pub(super) fn waits(&self, service: &TopicName) -> usize {
        self.lines.get(service).map_or(0, |line| line.waiting.len())
    }

    /// Takes calls out of the line of a service that has room for so many. No others are taken until
    /// [`Places::begun`].
    pub(super) fn take(&mut self, service: &TopicName, room: usize) -> Vec<Arc<Waiting>> {
        let Some(line) = self.lines.get_mut(service).filter(|line| !line.busy) else { return Vec::new() };
        let room = if line.refused { room.min(1) } else { room };
        let mut taken = Vec::new();
        while taken.len() < room
            && let Some((_, call)) = line.waiting.pop_first()
        {
            self.sizes.waiting -= 1;
            self.ends.remove(&(call.deadline(), call.id));
            if let Some(known) = self.known.get_mut(&call.id) {
                known.place = Place::UnderWay;
            }
            taken.push(call);
        }
        line.busy = !taken.is_empty();
        taken
    }

    /// What was taken out of the line of a service is begun, or in it again, one of them as it was `refused`. True if the
    /// line is over.
    pub(super) fn begun(&mut self, service: &TopicName, refused: bool) -> bool {
        if let Some(line) = self.lines.get_mut(service) {
            (line.busy, line.refused) = (false, refused);
            if !line.waiting.is_empty() {
                line.watch.look();
            }
        }
        self.end_line(service)
    }

    fn end_line(&mut self, service: &TopicName) -> bool {
        let over = self.lines.get(service).is_some_and(|line| line.waiting.is_empty() && !line.busy);
        if over {
            self.lines.remove(service);
        }
        over
    }

    /// Has those services looked at that `may` have room, of the next `count` after one, or from the first on. Returns the
    /// last of these if there may be more.
    pub(super) fn look(
        &self,
        after: Option<&TopicName>,
        count: usize,
        may: impl Fn(&TopicName) -> bool,
    ) -> Option<TopicName> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        let mut seen = 0;
        for (name, line) in self.lines.range::<TopicName, _>((from, Bound::Unbounded)).take(count) {
            if may(name) {
                line.watch.look();
            }
            last = Some(name);
            seen += 1;
        }
        last.filter(|_| seen == count).cloned()
    }

    /// Has one looked at.
    pub(super) fn look_at(&self, service: &str) {
        if let Some(line) = self.lines.get(service) {
            line.watch.look();
        }
    }

    /// When something ends next.
    pub(super) fn next_end(&self) -> Option<UnixMillis> {
        self.ends.first().map(|(at, _)| *at)
    }

    /// The next that has ended at `now`, and the service whose line is over with it.
    pub(super) fn due(&mut self, now: UnixMillis) -> Option<(Due, Option<TopicName>)> {
        while let Some(&(at, id)) = self.ends.first().filter(|(at, _)| *at <= now) {
            self.ends.remove(&(at, id));
            let Some(known) = self.known.get_mut(&id) else { continue };
            match std::mem::replace(&mut known.place, Place::UnderWay) {
                Place::UnderWay => {}
                Place::Waiting(call) => {
                    self.sizes.waiting -= 1;
                    let service = call.service().clone();
                    if let Some(line) = self.lines.get_mut(&service) {
                        line.waiting.remove(&call.sequence);
                    }
                    let over = self.end_line(&service).then_some(service);
                    return Some((Due::Late(call), over));
                }
                Place::Kept { sequence, .. } => {
                    self.sizes.replies -= 1;
                    self.forget(id);
                    return Some((Due::Over(sequence), None));
                }
            }
        }
        None
    }

    /// Takes room for the reply to a call that is under way, in place of its request. False if there is none; one alone may
    /// be larger.
    pub(super) fn reply(&mut self, id: MessageId, weight: usize, room: Room) -> bool {
        let full = self.sizes.reply_bytes > 0 && self.sizes.reply_bytes + weight > room.bytes;
        if !full {
            self.restore_reply(id, weight);
        }
        !full
    }

    /// The same whether there is room or not.
    pub(super) fn restore_reply(&mut self, id: MessageId, weight: usize) {
        let changed = self.known.get_mut(&id).and_then(|known| known.changed.take());
        self.forget(id);
        self.sizes.reply_bytes += weight;
        self.known.insert(id, Known { place: Place::UnderWay, weight, is_reply: true, changed });
    }

    /// The reply to a call is kept in this place.
    pub(super) fn keep(&mut self, id: MessageId, sequence: Sequence, until: UnixMillis) {
        if let Some(known) = self.known.get_mut(&id) {
            known.place = Place::Kept { sequence, until };
            self.sizes.replies += 1;
            self.ends.insert((until, id));
            if let Some(changed) = known.changed.take() {
                changed.notify_waiters();
            }
        }
    }

    /// A reply that is kept was fetched: it is kept no longer than `until`.
    pub(super) fn fetched(&mut self, id: MessageId, no_longer: UnixMillis) {
        if let Some(Known { place: Place::Kept { until, .. }, .. }) = self.known.get_mut(&id)
            && no_longer < *until
        {
            self.ends.remove(&(*until, id));
            *until = no_longer;
            self.ends.insert((no_longer, id));
        }
    }

    /// There is nothing of a call any more. True if there was.
    pub(super) fn forget(&mut self, id: MessageId) -> bool {
        let Some(known) = self.known.remove(&id) else { return false };
        if let Place::Kept { until, .. } = known.place {
            self.ends.remove(&(until, id));
            self.sizes.replies -= 1;
        }
        if known.is_reply {
            self.sizes.reply_bytes -= known.weight;
        } else {
            self.sizes.calls -= 1;
            self.sizes.call_bytes -= known.weight;
        }
        if let Some(changed) = known.changed {
            changed.notify_waiters();
        }
        true
    }

    /// Where a call is.
    pub(super) fn find(&mut self, id: MessageId) -> Look {
        match self.known.get_mut(&id) {
            None => Look::Unknown,
            Some(Known { place: Place::Kept { sequence, .. }, .. }) => Look::Kept(*sequence),
            Some(known) => Look::UnderWay(Arc::clone(known.changed.get_or_insert_default()).notified_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::calls::Caller;
    use crate::types::{Message, Qos};

    const ROOM: Room = Room { calls: 3, bytes: 1000 };

    fn id(number: u128) -> MessageId {
        MessageId::from_u128(number)
    }

    fn name(text: &'static str) -> TopicName {
        TopicName::parse(text.into()).unwrap()
    }

    fn call(number: u64, deadline: u64) -> Arc<Waiting> {
        let message = Message {
            id: id(number.into()),
            topic: name("s"),
            payload: bytes::Bytes::new(),
            qos: Qos::AtLeastOnce,
            retain: false,
            expires_at: None,
            extras: None,
        };
        let deadline = Some(UnixMillis(deadline));
        Arc::new(Waiting {
            id: message.id,
            sequence: Sequence(number),
            request: Request {
                message,
                deadline,
                caller: Caller::default(),
                metadata: Arc::default(),
                idempotent: false,
                takes_parts: false,
                part: None,
            },
            reply_to: ReplyTo::Caller,
            marked: AtomicBool::new(false),
            tries: AtomicUsize::new(0),
        })
    }

    /// Places with calls that wait, each with its deadline.
    fn waiting(calls: &[(u64, u64)]) -> (Places, Arc<Looks>) {
        let (mut places, looks) = (Places::default(), Arc::default());
        for &(number, deadline) in calls {
            places.begin(id(number.into()), 100, ROOM).unwrap();
            places.wait(call(number, deadline), &looks);
        }
        (places, looks)
    }

    fn numbers(calls: &[Arc<Waiting>]) -> Vec<u64> {
        calls.iter().map(|call| call.sequence.0).collect()
    }

    #[test]
    fn a_line_goes_by_age_and_gives_no_more_than_there_is_room_for() {
        let (mut places, looks) = waiting(&[(1, 9), (2, 9), (3, 9)]);
        assert_eq!(looks.take(9).len(), 1, "asked once");
        assert_eq!(looks.take(9).len(), 0);
        let taken = places.take(&name("s"), 2);
        assert_eq!(numbers(&taken), [1, 2]);
        assert_eq!(numbers(&places.take(&name("s"), 2)), [0; 0], "these come first");
        // One could not be begun, and stands where it stood.
        assert!(places.wait(Arc::clone(&taken[1]), &looks).is_none(), "the line is there");
        assert!(!places.begun(&name("s"), false));
        assert_eq!(looks.take(9).len(), 1);
        assert_eq!(numbers(&places.take(&name("s"), 2)), [2, 3]);
        assert!(places.begun(&name("s"), false), "nobody is left in it");
    }

    #[test]
    fn services_are_searched_in_parts() {
        const COUNT: u64 = 1000;
        let (mut places, looks) = (Places::default(), Arc::<Looks>::default());
        let room = Room { calls: usize::MAX, bytes: usize::MAX };
        for number in 0..COUNT {
            let mut call = Arc::into_inner(call(number, 9)).unwrap();
            let parity = if number % 2 == 0 { "even" } else { "odd" };
            call.request.message.topic = format!("{parity}/{number}").parse().unwrap();
            places.begin(call.id, 1, room).unwrap();
            places.wait(Arc::new(call), &looks);
        }
        let taken = || std::iter::from_fn(|| Some(looks.take(100)).filter(|some| !some.is_empty())).flatten();
        assert_eq!(taken().count(), 1000);
        looks.search(&"even/+".parse().unwrap());
        let mut parts = 0;
        let mut found = 0;
        while looks.search_on(&places) {
            let of_part =
                taken().inspect(|watch| assert!(watch.service.as_str().starts_with("even"))).count();
            assert!(of_part <= 256);
            (parts, found) = (parts + 1, found + of_part);
        }
        assert_eq!((parts, found), (4, 500));
        // However many there are, what the last of them is for is found.
        for number in 0..COUNT {
            looks.search(&format!("+/{number}").parse().unwrap());
        }
        let mut turns = 0;
        while looks.search_on(&places) {
            turns += 1;
        }
        assert!(turns <= 64 * 4, "{turns}");
        assert_eq!(taken().count(), 1000);
    }

    #[test]
    fn what_waits_ends_at_its_time_and_its_line_with_it() {
        let (mut places, _) = waiting(&[(1, 20), (2, 10)]);
        assert_eq!(places.next_end(), Some(UnixMillis(10)));
        assert!(places.due(UnixMillis(9)).is_none());
        let Some((Due::Late(late), None)) = places.due(UnixMillis(30)) else { panic!("not late") };
        assert_eq!(late.sequence, Sequence(2));
        let Some((Due::Late(late), Some(over))) = places.due(UnixMillis(30)) else { panic!("not late") };
        assert_eq!((late.sequence, over), (Sequence(1), name("s")));
        assert!(places.due(UnixMillis(30)).is_none());
        // Both are still to be answered.
        assert_eq!((places.sizes().calls, places.sizes().waiting), (2, 0));
    }

    #[test]
    fn room_is_given_back() {
        let mut places = Places::default();
        for number in 1..=3 {
            places.begin(id(number), 300, ROOM).unwrap();
        }
        assert_eq!(places.begin(id(4), 1, ROOM), Err(NoRoom::Calls));
        assert!(places.forget(id(3)) && !places.forget(id(3)));
        assert_eq!(places.begin(id(4), 401, ROOM), Err(NoRoom::Bytes));
        assert!(places.reply(id(1), 5000, ROOM), "one alone may be larger");
        assert!(!places.reply(id(2), 1, ROOM));
        places.begin(id(4), 401, ROOM).unwrap();
        places.keep(id(1), Sequence(8), UnixMillis(50));
        let sizes = places.sizes();
        assert_eq!((sizes.calls, sizes.call_bytes, sizes.replies, sizes.reply_bytes), (2, 701, 1, 5000));
        places.fetched(id(1), UnixMillis(60));
        assert_eq!(places.next_end(), Some(UnixMillis(50)), "it is never kept longer");
        places.fetched(id(1), UnixMillis(40));
        assert!(matches!(places.due(UnixMillis(40)), Some((Due::Over(Sequence(8)), None))));
        places.forget(id(2));
        places.forget(id(4));
        assert_eq!((places.sizes(), places.next_end()), (Sizes::default(), None));
    }

    #[tokio::test]
    async fn who_waits_for_a_reply_is_woken() {
        let mut places = Places::default();
        places.begin(id(1), 1, ROOM).unwrap();
        let Look::UnderWay(changed) = places.find(id(1)) else { panic!("not under way") };
        places.reply(id(1), 1, ROOM);
        places.keep(id(1), Sequence(2), UnixMillis(9));
        changed.await;
        assert!(matches!(places.find(id(1)), Look::Kept(Sequence(2))));
        assert!(matches!(places.find(id(2)), Look::Unknown));
    }
}
