//! Requests in parts: each part goes to one responder, and who has answered one gets the next.
//!
//! A job is the parts of one request that wait, under the lock of its service. What a lost responder had goes first in it.
//! Whatever gives a responder room feeds it; jobs take turns, and every second time calls that wait are before them.
//!
//! Invariants: of one job a responder has no more in hand than the job says; a part waits only while no responder may have one
//! more, or while what was answered is not read; when nobody takes requests, no part waits.

use std::collections::VecDeque;
use std::sync::Arc;

use bytestring::ByteString;
use rustc_hash::{FxHashMap, FxHashSet};

use super::call::{Call, Place, Shared, To};
use super::device::NotAsked;
use super::line::Line;
use super::service::Service;
use super::state::{Entry, State, Wakes};
use super::{CallError, Calling, Calls, Counts, Part, Request};
use crate::core::CoreError;
use crate::types::Message;

/// The jobs of one service.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    all: FxHashMap<u64, Job>,
    /// Those of them that have parts that wait, the next one first; and some that have none any more.
    turn: VecDeque<u64>,
    /// Calls that waited had their turn.
    called: bool,
}

/// See the module.
#[derive(Debug)]
struct Job {
    todo: Line,
    /// How many one responder has in hand at the most.
    each: usize,
    /// How many each has, by its key.
    in_hand: FxHashMap<u64, usize>,
    /// Keys of those who have had one.
    asked: FxHashSet<u64>,
    /// Of which the replies are to be read; none if they are kept.
    unread: Option<Arc<Shared>>,
}

/// What became of the attempt to give a responder a part.
enum Fed {
    Yes,
    /// It has as many as it may, or nothing waits.
    No,
    /// It takes nothing now, or never.
    Not(NotAsked),
}

impl Jobs {
    /// Whether parts are handed out before calls that wait.
    pub(super) fn go_first(&mut self, calls_wait: bool) -> bool {
        if self.turn.is_empty() || !calls_wait {
            return false;
        }
        self.called = !self.called;
        !self.called
    }

    /// A responder has got a part.
    pub(super) fn took(&mut self, job: u64, responder: u64) {
        if let Some(job) = self.all.get_mut(&job) {
            *job.in_hand.entry(responder).or_default() += 1;
            job.asked.insert(responder);
        }
    }

    /// A responder has a part no longer.
    pub(super) fn gave(&mut self, job: u64, responder: u64) {
        let Some(job) = self.all.get_mut(&job) else { return };
        if let Some(count) = job.in_hand.get_mut(&responder) {
            *count -= 1;
            if *count == 0 {
                job.in_hand.remove(&responder);
            }
        }
    }

    /// A responder is not there any more.
    pub(super) fn left(&mut self, responder: u64) {
        for job in self.all.values_mut() {
            job.in_hand.remove(&responder);
        }
    }

    /// Puts a part before all others of its job.
    pub(super) fn put_first(&mut self, number: u64, part: Arc<Call>) {
        let Some(job) = self.all.get_mut(&number) else {
            part.put(Place::Over);
            return;
        };
        part.put(Place::Waiting);
        job.todo.push_first(part);
        if !self.turn.contains(&number) {
            self.turn.push_back(number);
        }
    }

    /// A part that waited is over.
    pub(super) fn died(&mut self, job: u64) {
        if let Some(job) = self.all.get_mut(&job) {
            job.todo.died();
        }
    }
}

impl Job {
    /// Whether the responder may have one more.
    fn feeds(&self, responder: u64) -> bool {
        let has = self.in_hand.get(&responder).copied().unwrap_or_default();
        has < self.each && !self.unread.as_ref().is_some_and(|shared| shared.holds())
    }
}

impl State {
    /// Gives parts to the responder in this place, or to everyone.
    pub(super) fn feed(&mut self, at: Option<usize>, wakes: &mut Wakes) {
        if self.jobs.turn.is_empty() {
            return;
        }
        match at {
            Some(at) => self.feed_one(at, wakes),
            None => (0..self.places.len()).for_each(|at| self.feed_one(at, wakes)),
        }
        self.give_up_unread(wakes);
    }

    /// Gives a responder parts of each job in turn, as many as it takes.
    fn feed_one(&mut self, at: usize, wakes: &mut Wakes) {
        let mut passed = 0;
        while passed < self.jobs.turn.len()
            && let Some(number) = self.jobs.turn.pop_front()
        {
            if self.jobs.all.get(&number).is_none_or(|job| job.todo.is_empty()) {
                continue;
            }
            self.jobs.turn.push_back(number);
            match self.give(at, number, wakes) {
                Fed::Yes => passed = 0,
                Fed::No => passed += 1,
                Fed::Not(why) => {
                    if let NotAsked::Left = why {
                        self.stop(at, wakes);
                    }
                    return;
                }
            }
        }
    }

    /// Gives a responder one part of a job.
    fn give(&mut self, at: usize, number: u64, wakes: &mut Wakes) -> Fed {
        let Some(key) = self.entry(at).filter(|entry| entry.has_room()).map(|entry| entry.key) else {
            return Fed::No;
        };
        let job = self.jobs.all.get_mut(&number).filter(|job| job.feeds(key));
        let Some(part) = job.and_then(|job| job.todo.pop()) else { return Fed::No };
        match self.assign(at, &part, wakes) {
            Ok(()) => Fed::Yes,
            Err(why) => {
                self.jobs.put_first(number, part);
                Fed::Not(why)
            }
        }
    }

    /// Gives everyone one part of a new job, those first who have the least in hand, and then one more as long as they take it.
    fn deal(&mut self, number: u64, wakes: &mut Wakes) {
        let load = |(at, entry): (usize, &Option<Entry>)| {
            Some((entry.as_ref().filter(|entry| entry.has_room())?.in_hand.len(), at))
        };
        let mut order: Vec<(usize, usize)> = self.places.iter().enumerate().filter_map(load).collect();
        order.sort_unstable();
        while !order.is_empty() {
            order.retain(|&(_, at)| match self.give(at, number, wakes) {
                Fed::Yes => true,
                Fed::No | Fed::Not(NotAsked::Full | NotAsked::TooLarge(_)) => false,
                Fed::Not(NotAsked::Left) => {
                    self.stop(at, wakes);
                    false
                }
            });
        }
        self.give_up_unread(wakes);
    }

    /// Parts of a job that nobody has a part of wait for nothing when all who could take one do not read.
    fn give_up_unread(&mut self, wakes: &mut Wakes) {
        let busy = |entry: &Entry| !entry.draining && !entry.has_room();
        let idle = |job: &Job| {
            let held = job.unread.as_ref().is_some_and(|shared| shared.holds());
            !job.todo.is_empty() && job.in_hand.is_empty() && !held
        };
        let jobs = &mut self.jobs;
        let stuck = jobs.turn.iter().any(|number| jobs.all.get(number).is_some_and(idle));
        if !stuck || self.takers == 0 || self.places.iter().flatten().any(busy) {
            return;
        }
        for job in jobs.all.values_mut().filter(|job| idle(job)) {
            while let Some(part) = job.todo.pop() {
                wakes.callers.extend(part.unread());
            }
        }
    }

    /// Ends what waits when nobody takes requests any more.
    pub(super) fn end_parts_for_nobody(&mut self, wakes: &mut Wakes) {
        if self.takers > 0 || self.jobs.turn.is_empty() {
            return;
        }
        self.jobs.turn.clear();
        for job in self.jobs.all.values_mut() {
            while let Some(part) = job.todo.pop() {
                let service = part.request().message.topic.as_str().to_owned();
                wakes.callers.extend(part.fail(CallError::Broker(CoreError::NoResponders { service })));
            }
        }
    }
}

/// A job as its caller has it.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) service: Arc<Service>,
    pub(super) number: u64,
    /// Each part, in their order.
    pub(super) parts: Vec<Calling>,
    /// How many took requests when it began.
    pub(super) responders: usize,
}

impl Service {
    /// Begins a job; a responder has `each` of its parts in hand at the most.
    ///
    /// # Errors
    /// [`CoreError::NoResponders`], [`CoreError::Limit`]: nobody was asked.
    pub(super) fn begin_parts(
        self: &Arc<Self>,
        calls: &Arc<Calls>,
        (shared, keeps): (&Arc<Shared>, bool),
        (request, parts): (&Request, Vec<Message>),
        each: usize,
    ) -> Result<Begun, CoreError> {
        let count = parts.len();
        let number = calls.next_job();
        let new = |(index, message)| {
            let part = Some(Part { index, count });
            // What another responder does again is what parts are for.
            let request = Request { message, part, idempotent: true, ..request.clone() };
            Call::new(calls, To::Part(Arc::clone(shared), number, request)).map(Arc::new)
        };
        let all: Vec<Arc<Call>> = parts.into_iter().enumerate().map(new).collect::<Result<_, _>>()?;
        let mut job = Job {
            todo: Line::default(),
            each,
            in_hand: FxHashMap::default(),
            asked: FxHashSet::default(),
            unread: (!keeps).then(|| Arc::clone(shared)),
        };
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let responders = state.takers;
        if responders == 0 {
            return Err(calls.nobody(self.name()));
        }
        for part in &all {
            part.put(Place::Waiting);
            job.todo.push(Arc::clone(part));
        }
        state.jobs.all.insert(number, job);
        state.jobs.turn.push_back(number);
        state.deal(number, &mut wakes);
        state.end_parts_for_nobody(&mut wakes);
        drop(state);
        wakes.run();
        let parts = all.into_iter().map(|part| Calling::new(Arc::clone(self), part)).collect();
        Ok(Begun { service: Arc::clone(self), number, parts, responders })
    }

    /// More may be said.
    pub(super) fn go_on_with_parts(&self) {
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        state.feed(None, &mut wakes);
        state.end_parts_for_nobody(&mut wakes);
        drop(state);
        wakes.run();
    }

    /// Ends a job: what waits of it is over, what is in hand stays to be cancelled. Returns how many responders have had a
    /// part.
    pub(super) fn end_parts(&self, number: u64) -> usize {
        let calls = self.calls.upgrade();
        let job = {
            let mut state = self.state.lock();
            state.jobs.turn.retain(|other| *other != number);
            let mut job = state.jobs.all.remove(&number);
            while let Some(part) = job.as_mut().and_then(|job| job.todo.pop()) {
                part.put(Place::Over);
                if let Some(calls) = &calls {
                    Counts::add(&calls.counts.cancelled);
                }
            }
            job
        };
        job.map_or(0, |job| job.asked.len())
    }
}

impl Calling {
    /// Who had it last, and whether it has it still.
    pub(super) fn whereabouts(&self) -> (Option<ByteString>, bool) {
        (self.call().holder(), self.call().place() != Place::Waiting)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;
    use crate::core::calls::tests::{ALL, answer, bed, heard, message, request};
    use crate::core::calls::{Gathering, Missing, Policy, Responder, Said};

    fn policy(parts_in_hand: usize) -> Policy {
        Policy { parts_in_hand, keeps: true, ..Policy::default() }
    }

    fn job(calls: &Arc<Calls>, parts: usize, each: usize) -> Gathering {
        let parts = (0..parts).map(|at| message(&at.to_string())).collect();
        calls.gather_parts(request(""), parts, policy(each)).unwrap()
    }

    /// Numbers of the requests that are new, and which parts they are.
    fn parts(responder: &Responder) -> Vec<(u64, usize)> {
        let (asked, _) = responder.take(ALL);
        asked.iter().map(|asked| (asked.number, asked.request().part.unwrap().index)).collect()
    }

    fn done(responder: &Responder, number: u64) {
        assert_eq!(answer(responder, number, Said::Last(message("done"))), None);
    }

    #[tokio::test]
    async fn who_has_answered_gets_the_next() {
        let calls = bed(|_| {});
        let (one, two) = (calls.responder("one", "", 9), calls.responder("two", "", 9));
        let mut job = job(&calls, 4, 1);
        assert_eq!((job.asked(), job.parts()), (2, 4));
        assert_eq!((parts(&one), parts(&two)), (vec![(1, 0)], vec![(1, 1)]));
        done(&two, 1);
        assert_eq!((parts(&one), parts(&two)), (vec![], vec![(2, 2)]));
        done(&two, 2);
        assert_eq!(parts(&two), [(3, 3)]);
        done(&two, 3);
        done(&one, 1);
        assert_eq!((parts(&one), parts(&two)), (vec![], vec![]));
        assert_eq!(heard(&mut job), 4);
        let summary = job.summary();
        assert_eq!((summary.asked, summary.parts, summary.replied, summary.quorum_met), (2, 4, 4, true));
        drop(job);
        let counts = ["calls_in_flight", "call_bytes", "calls_total", "calls_cancelled_total"];
        assert_eq!(counts.map(|name| calls.count(name)), [0, 0, 4, 0]);
    }

    #[tokio::test]
    async fn what_a_lost_one_had_goes_first_to_another_so_many_times() {
        let calls = bed(|limits| limits.call_tries = 2);
        let (one, two) = (calls.responder("one", "", 9), calls.responder("two", "", 9));
        let mut job = job(&calls, 4, 1);
        assert_eq!((parts(&one), parts(&two)), (vec![(1, 0)], vec![(1, 1)]));
        drop(one);
        assert_eq!(heard(&mut job), 0);
        done(&two, 1);
        assert_eq!(parts(&two), [(2, 0)]);
        let three = calls.responder("three", "", 9);
        assert_eq!(parts(&three), [(1, 2)]);
        // The second one that is lost with it was the last to try; the part that another had is handed on.
        drop(two);
        assert_eq!(heard(&mut job), 2);
        done(&three, 1);
        assert_eq!(parts(&three), [(2, 3)]);
        drop(three);
        // Nobody is left: that is said of what nobody had in the summary alone.
        assert_eq!(heard(&mut job), 1);
        let summary = job.summary();
        let missing: Vec<_> = summary.missing.iter().map(|it| (it.at, &*it.responder, it.why)).collect();
        let lost = vec![(0, "two", Missing::Lost), (3, "three", Missing::Lost)];
        assert_eq!((summary.asked, summary.replied, missing), (3, 2, lost));
    }

    #[tokio::test]
    async fn jobs_take_turns_and_calls_that_wait_are_between_them() {
        let calls = bed(|_| {});
        let one = calls.responder("one", "", 1);
        let jobs = [job(&calls, 9, 5), job(&calls, 9, 5)];
        let waiting: Vec<_> = (0..4).map(|_| calls.call(request("call")).unwrap()).collect();
        let mut kinds = Vec::new();
        for _ in 0..12 {
            let (asked, _) = one.take(ALL);
            kinds.push(asked[0].call_of().job());
            done(&one, asked[0].number);
        }
        let of = |kind: Option<u64>| kinds.iter().filter(|other| **other == kind).count();
        // The first was handed out before there was another.
        assert_eq!((of(None), of(Some(1)), of(Some(2))), (4, 5, 3), "{kinds:?}");
        assert!(kinds[..9].windows(2).all(|two| two.contains(&None)), "{kinds:?}");
        assert!(kinds[8..].windows(2).all(|two| two[0] != two[1]), "{kinds:?}");
        drop((jobs, waiting));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Join(usize),
        Leave(usize),
        Drain(usize),
        Take(usize),
        Answer(usize, usize),
        Call,
        Begin(usize, usize),
        End(usize),
    }

    /// Numbers of requests, and the jobs they are of.
    type InHand = Vec<(u64, Option<u64>)>;

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let at = 0..8_usize;
        let step = prop_oneof![
            2 => (1..4_usize).prop_map(Step::Join),
            1 => at.clone().prop_map(Step::Leave),
            1 => at.clone().prop_map(Step::Drain),
            6 => at.clone().prop_map(Step::Take),
            8 => (at.clone(), 0..4_usize).prop_map(|(at, which)| Step::Answer(at, which)),
            1 => Just(Step::Call),
            2 => (1..9_usize, 1..4_usize).prop_map(|(parts, each)| Step::Begin(parts, each)),
            1 => at.prop_map(Step::End),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever happens: nobody has more parts of a job in hand than it may; every part is accounted for; and while there is
        /// one who answers, every job comes to its end.
        #[test]
        fn every_part_ends_once(steps in steps()) {
            let calls = bed(|_| {});
            let timers = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _timers = timers.enter();
            let mut jobs: Vec<(Gathering, usize)> = Vec::new();
            let mut responders: Vec<(Responder, InHand)> = Vec::new();
            let mut waiting = Vec::new();
            for step in steps {
                match step {
                    Step::Join(credit) => responders.push((calls.responder("r", "", credit), Vec::new())),
                    Step::Leave(at) if !responders.is_empty() => drop(responders.remove(at % responders.len())),
                    Step::Drain(at) if !responders.is_empty() => responders[at % responders.len()].0.drain(),
                    Step::Call => waiting.extend(calls.call(request("x"))),
                    Step::Begin(count, each) => {
                        let parts = (0..count).map(|_| message("p")).collect();
                        if let Ok(job) = calls.gather_parts(request(""), parts, policy(each)) {
                            jobs.push((job, each));
                        }
                    }
                    Step::End(at) if !jobs.is_empty() => {
                        let (mut job, _) = jobs.remove(at % jobs.len());
                        let summary = job.summary();
                        prop_assert_eq!(summary.parts, summary.replied + summary.failed + summary.missing.len());
                    }
                    Step::Take(at) if !responders.is_empty() => {
                        let at = at % responders.len();
                        let (responder, in_hand) = &mut responders[at];
                        let (asked, cancelled) = responder.take(ALL);
                        in_hand.retain(|(number, _)| !cancelled.contains(number));
                        in_hand.extend(asked.iter().map(|asked| (asked.number, asked.call_of().job())));
                        prop_assert!(in_hand.len() <= responder.serve().credit);
                        for (job, each) in &jobs {
                            let job = job.number();
                            let has = in_hand.iter().filter(|(_, of)| job.is_some() && *of == job).count();
                            prop_assert!(has <= *each);
                        }
                    }
                    Step::Answer(at, which) if !responders.is_empty() => {
                        let at = at % responders.len();
                        let (responder, in_hand) = &mut responders[at];
                        if !in_hand.is_empty() {
                            let (number, _) = in_hand.remove(which % in_hand.len());
                            answer(responder, number, Said::Last(message("y")));
                        }
                    }
                    _ => {}
                }
                for (job, _) in &mut jobs {
                    heard(job);
                }
            }
            // One that answers whatever it is asked, when all others are gone.
            let eager = calls.responder("eager", "", 2);
            drop(responders);
            loop {
                let (asked, _) = eager.take(ALL);
                if asked.is_empty() {
                    break;
                }
                asked.iter().for_each(|asked| done(&eager, asked.number));
            }
            for (mut job, _) in jobs {
                heard(&mut job);
                prop_assert!(job.next().now_or_never().is_some(), "it is not over");
                let summary = job.summary();
                prop_assert_eq!(summary.parts, summary.replied + summary.failed + summary.missing.len());
                prop_assert!(summary.missing.iter().all(|it| it.why != Missing::Silent));
            }
            drop((waiting, eager));
            let left = ["calls_in_flight", "call_bytes", "responders"].map(|name| calls.count(name));
            prop_assert_eq!(left, [0, 0, 0]);
            prop_assert!(calls.services.read().is_empty());
        }
    }
}
