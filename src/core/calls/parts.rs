//! Requests in parts: each part goes to one responder, and who has answered one gets the next.
//!
//! A job is the parts of one request that wait, under the lock of its service. Whatever gives a responder room feeds it; jobs
//! take turns, and every second time calls that wait are before them.
//!
//! Invariants: of one job a responder has no more in hand than the job says; a part waits only while no responder may have one
//! more that takes one as large and was not full when it was asked last, while what was answered is to be read first, or when
//! the job's time is over; when nobody takes requests, or nobody takes one as large, no part waits.

use std::sync::Arc;

use super::call::{Call, Place, To};
use super::device::NotAsked;
use super::jobs::Terms;
use super::service::Service;
use super::shared::Shared;
use super::state::{Entry, State, Wakes};
use super::{CallError, Calling, Calls, Counts, Part, Request, too_large};
use crate::core::{CoreError, TooLarge};
use crate::types::Message;

/// What has become of the attempt to give a responder parts.
#[derive(Debug, PartialEq, Eq)]
enum Fed {
    /// It has all that it takes, or may have.
    Yes,
    /// Too much waits for it to read.
    Full,
    /// It takes none any more.
    Gone,
}

impl State {
    /// Gives parts to the responder in this place and to one that was full, or to everyone.
    pub(super) fn feed(&mut self, at: Option<usize>, wakes: &mut Wakes) {
        if self.jobs.is_empty() {
            return;
        }
        match at {
            Some(at) => {
                let again = self.jobs.next_full().filter(|again| *again != at);
                let full = [Some(at), again].into_iter().flatten().map(|at| self.feed_one(at, wakes));
                if full.fold(false, |full, fed| full | (fed == Fed::Full)) {
                    self.look_who_reads(wakes);
                }
            }
            None => self.feed_all(wakes),
        }
        self.look_again(wakes);
    }

    /// Gives a responder parts of each job in turn, as many as it takes.
    fn feed_one(&mut self, at: usize, wakes: &mut Wakes) -> Fed {
        let mut passed = 0;
        let fed = loop {
            let Some(entry) = self.entry(at).filter(|entry| !entry.draining) else { break Fed::Gone };
            if !entry.has_room() || passed >= self.jobs.in_turn() {
                break Fed::Yes;
            }
            let Some(number) = self.jobs.next() else { break Fed::Yes };
            match self.give(at, number, wakes) {
                Ok(true) => passed = 0,
                Ok(false) | Err(NotAsked::TooLarge(_)) => passed += 1,
                Err(NotAsked::Full) => break Fed::Full,
                Err(NotAsked::Left) => self.stop(at, wakes),
            }
        };
        if fed != Fed::Full {
            self.jobs.full.remove(&at);
        }
        fed
    }

    /// Gives a responder one part of a job, if it may have one: the first that it takes. Those before it are put aside. Where
    /// it takes none of them, it says so of the last.
    fn give(&mut self, at: usize, number: u64, wakes: &mut Wakes) -> Result<bool, NotAsked> {
        let Some(key) = self.entry(at).filter(|entry| entry.has_room()).map(|entry| entry.key) else {
            return Ok(false);
        };
        if !self.jobs.feeds(number, key) {
            return Ok(false);
        }
        let mut next = self.jobs.pop(number);
        let mut passed = None;
        while let Some(part) = next {
            match self.assign(at, &part, wakes) {
                Ok(()) => return Ok(true),
                Err(NotAsked::TooLarge(what)) => {
                    passed = Some(what);
                    self.jobs.put_aside(number, part);
                    next = self.jobs.pop_other(number);
                }
                Err(why) => {
                    self.jobs.put_first(number, part);
                    if let NotAsked::Full = why {
                        self.jobs.full.insert(at);
                    }
                    return Err(why);
                }
            }
        }
        let Some(what) = passed else { return Ok(false) };
        self.end_too_large(number, wakes);
        Err(NotAsked::TooLarge(what))
    }

    /// Where nobody has a part of a job, those end that nobody takes as they are too large.
    fn end_too_large(&mut self, number: u64, wakes: &mut Wakes) {
        while self.jobs.is_idle(number)
            && let Some(part) = self.jobs.aside(number)
            && let Some(what) = self.too_large_for_all(part)
            && let Some(part) = self.jobs.pop(number)
        {
            wakes.callers.extend(part.fail(CallError::Broker(too_large(what))));
            self.jobs.look_again = true;
        }
    }

    /// The largest packet that anyone takes, if nobody takes this part.
    fn too_large_for_all(&self, part: &Call) -> Option<TooLarge> {
        let mut largest: Option<TooLarge> = None;
        for entry in self.places.iter().flatten().filter(|entry| !entry.draining) {
            let what = entry.takes(part.request()).err()?;
            largest = largest.filter(|largest| largest.max >= what.max).or(Some(what));
        }
        largest
    }

    /// Gives everyone one part of a new job, those first who have the least in hand, and then one more as long as they take it.
    fn deal(&mut self, number: u64, wakes: &mut Wakes) {
        let load = |(at, entry): (usize, &Option<Entry>)| {
            Some((entry.as_ref().filter(|entry| entry.has_room())?.in_hand.len(), at))
        };
        let mut order: Vec<(usize, usize)> = self.places.iter().enumerate().filter_map(load).collect();
        order.sort_unstable();
        let mut full = false;
        while !order.is_empty() {
            order.retain(|&(_, at)| match self.give(at, number, wakes) {
                Ok(given) => given,
                Err(NotAsked::TooLarge(_)) => false,
                Err(NotAsked::Full) => {
                    full = true;
                    false
                }
                Err(NotAsked::Left) => {
                    self.stop(at, wakes);
                    false
                }
            });
        }
        if full {
            self.look_who_reads(wakes);
        }
        self.look_again(wakes);
    }

    /// A part ended that kept others from some.
    fn look_again(&mut self, wakes: &mut Wakes) {
        while std::mem::take(&mut self.jobs.look_again) {
            self.feed_all(wakes);
        }
    }

    /// One was full: where nobody has a part of a job, nobody may ever ask for one.
    fn look_who_reads(&mut self, wakes: &mut Wakes) {
        if self.jobs.has_idle() {
            self.feed_all(wakes);
        }
    }

    /// Gives parts to everyone. When all who could take one are full in this one look, parts of a job that nobody has a part of
    /// wait for nothing.
    fn feed_all(&mut self, wakes: &mut Wakes) {
        for at in 0..self.places.len() {
            self.feed_one(at, wakes);
        }
        if self.jobs.full.is_empty() || self.takers == 0 {
            return;
        }
        for number in self.jobs.starving() {
            if self.all_who_take_are_full(number) {
                while let Some(part) = self.jobs.pop(number) {
                    wakes.callers.extend(part.unread());
                }
            }
        }
    }

    fn all_who_take_are_full(&self, number: u64) -> bool {
        if self.jobs.full.len() >= self.takers {
            return true;
        }
        let Some(smallest) = self.jobs.aside(number).filter(|_| self.jobs.is_aside(number)) else {
            return false;
        };
        let takers = self.places.iter().enumerate().filter_map(|(at, entry)| Some((at, entry.as_ref()?)));
        let mut takers = takers.filter(|(_, entry)| !entry.draining);
        takers.all(|(at, entry)| self.jobs.full.contains(&at) || entry.takes(smallest.request()).is_err())
    }

    /// Ends what waits when nobody takes requests any more.
    pub(super) fn end_parts_for_nobody(&mut self, wakes: &mut Wakes) {
        if self.takers > 0 || self.jobs.is_empty() {
            return;
        }
        self.jobs.take_all(|part| wakes.callers.extend(part.left_over()));
    }
}

/// A job as its caller has it.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) number: u64,
    /// Each part, in their order.
    pub(super) parts: Vec<Calling>,
    /// How many took requests when it began.
    pub(super) responders: usize,
}

impl Service {
    /// Begins a job.
    ///
    /// # Errors
    /// [`CoreError::NoResponders`], [`CoreError::Limit`]: nobody was asked.
    pub(super) fn begin_parts(
        self: &Arc<Self>,
        calls: &Arc<Calls>,
        shared: &Arc<Shared>,
        (request, parts): (&Request, Vec<Message>),
        terms: Terms,
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
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let responders = state.takers;
        if responders == 0 {
            return Err(calls.nobody(self.name()));
        }
        let max = calls.bounds.parts_waiting;
        if state.jobs.waiting() + count > max {
            let what = format!("too many parts wait for a responder of `{}`", self.name());
            return Err(calls.refused(what, "parts_waiting", max));
        }
        state.jobs.begin(number, &all, terms, shared);
        state.deal(number, &mut wakes);
        state.end_parts_for_nobody(&mut wakes);
        drop(state);
        wakes.run();
        let parts = all.into_iter().map(|part| Calling::new(Arc::clone(self), part)).collect();
        Ok(Begun { number, parts, responders })
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
            let mut job = state.jobs.end(number);
            while let Some(part) = job.as_mut().and_then(|job| job.pop()) {
                part.put(Place::Over);
                if let Some(calls) = &calls {
                    Counts::add(&calls.counts.cancelled);
                }
            }
            job
        };
        job.map_or(0, |job| job.asked())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;
    use crate::core::calls::tests::{ALL, answer, bed, heard, message, request};
    use crate::core::calls::{Asked, End, Gathering, Missing, Policy, Responder, Said};
    use crate::types::clock;

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

    #[tokio::test]
    async fn one_who_has_no_room_is_not_offered_every_job() {
        let calls = bed(|_| {});
        let one = calls.responder("one", "", 1);
        let jobs: Vec<_> = (0..1000).map(|_| job(&calls, 2, 1)).collect();
        let service = calls.service(&one.serve().service).unwrap();
        let looks = || service.state.lock().jobs.looks;
        let before = looks();
        for _ in 0..100 {
            let (number, _) = parts(&one)[0];
            done(&one, number);
        }
        assert_eq!(looks() - before, 100);
        drop(jobs);
        assert!(service.state.lock().jobs.is_empty());
    }

    #[tokio::test]
    async fn what_rests_while_its_replies_are_read_is_not_given_up() {
        let calls = bed(|limits| limits.gather_bytes = 1000);
        let one = calls.responder("one", "", 9);
        let two = vec![message("0"), message("1")];
        let mut job = calls.gather_parts(request(""), two, Policy::default()).unwrap();
        assert_eq!(parts(&one), [(1, 0)]);
        assert_eq!(answer(&one, 1, Said::Last(message(&"x".repeat(400)))), None);
        assert_eq!(parts(&one), []);
        let service = calls.service(&one.serve().service).unwrap();
        let timers = tokio::runtime::Handle::current();
        std::thread::scope(|threads| {
            let before = calls.count("call_bytes");
            let mut state = service.state.lock();
            let reading = threads.spawn(|| {
                let _timers = timers.enter();
                heard(&mut job)
            });
            // Its reply is read, and nobody has gone on yet, when something else moves.
            while calls.count("call_bytes") == before {
                std::thread::yield_now();
            }
            let mut wakes = Wakes::default();
            state.hand_out(Some(usize::MAX), &mut wakes);
            drop(state);
            wakes.run();
            assert_eq!(reading.join().unwrap(), 1);
        });
        assert_eq!(parts(&one), [(2, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_handed_out_when_its_time_is_over_however_slowly_its_caller_reads() {
        const TIME: Duration = Duration::from_secs(10);
        let by_policy = (None, Some(TIME));
        let by_rpc = (Some(clock::unix_now().after(TIME)), None);
        for (deadline, timeout) in [by_policy, by_rpc] {
            let (request, policy) =
                (Request { deadline, ..request("") }, Policy { timeout, ..Policy::default() });
            let calls = bed(|_| {});
            let one = calls.responder("one", "", 9);
            let three = ["0", "1", "2"].map(message).to_vec();
            let mut job = calls.gather_parts(request, three, policy).unwrap();
            assert_eq!(parts(&one), [(1, 0)]);
            done(&one, 1);
            assert_eq!(parts(&one), [(2, 1)]);
            tokio::time::advance(TIME).await;
            done(&one, 2);
            assert_eq!((parts(&one), heard(&mut job)), (vec![], 2));
            let summary = job.summary();
            let missing: Vec<_> = summary.missing.iter().map(|it| it.why).collect();
            assert_eq!((summary.end, missing), (End::Deadline, vec![Missing::NotAsked]));
        }
    }

    #[tokio::test]
    async fn what_finds_no_room_is_carried_out_again_and_no_more_is_than_finds_room() {
        let large = message(&"x".repeat(700));
        let calls = bed(|limits| limits.gather_bytes = 10_000);
        let all: Vec<_> = (0..20).map(|n| calls.responder(&n.to_string(), "", 9)).collect();
        let hundred = vec![message(""); 100];
        let mut job = calls.gather_parts(request(""), hundred, Policy::default()).unwrap();
        let mut carried_out = 0;
        for rounds in 0.. {
            // All of them answer before anything is read.
            for responder in &all {
                for (number, _) in parts(responder) {
                    carried_out += 1;
                    assert_eq!(answer(responder, number, Said::Last(large.clone())), None);
                }
            }
            if heard(&mut job) == 0 {
                assert!(rounds > 9);
                break;
            }
        }
        // What the first round was to teach.
        assert!((101..=111).contains(&carried_out), "{carried_out}");
        let summary = job.summary();
        assert_eq!((summary.end, summary.replied, summary.failed), (End::Complete, 100, 0));
        assert_eq!(calls.count("calls_retried_total"), carried_out - 100);
    }

    #[tokio::test]
    async fn nothing_is_carried_out_whose_reply_could_not_be_kept() {
        let calls = bed(|limits| limits.gather_bytes = 10_000);
        let one = calls.responder("one", "", 9);
        let mut job = job(&calls, 100, 1);
        let mut carried_out = 0;
        while let [(number, _)] = parts(&one)[..] {
            carried_out += 1;
            assert_eq!(answer(&one, number, Said::Last(message(&"x".repeat(700)))), None);
        }
        assert!(carried_out < 12, "{carried_out}");
        assert_eq!(heard(&mut job), 100);
        let summary = job.summary();
        assert_eq!((summary.end, summary.replied), (End::Complete, carried_out - 1));
        assert!(summary.missing.iter().all(|it| it.why == Missing::Refused));
    }

    #[tokio::test]
    async fn what_is_over_and_was_not_passed_on_says_why() {
        let calls = bed(|limits| limits.call_tries = 1);
        let one = calls.responder("one", "", 9);
        let four = vec![message(""); 4];
        let first = Policy { stop_on_error: true, parts_in_hand: 3, ..Policy::default() };
        let mut job = calls.gather_parts(request(""), four, first).unwrap();
        assert_eq!(parts(&one).len(), 3);
        drop(one);
        assert_eq!(heard(&mut job), 1);
        let summary = job.summary();
        let missing: Vec<_> = summary.missing.iter().map(|it| (&*it.responder, it.why)).collect();
        let lost = ("one", Missing::Lost);
        assert_eq!((summary.end, missing), (End::Error, vec![lost, lost, lost, ("", Missing::NotAsked)]));
    }

    #[tokio::test]
    async fn the_end_says_that_the_broker_stops() {
        let calls = bed(|_| {});
        let one = calls.responder("one", "", 9);
        let mut job = job(&calls, 3, 1);
        assert_eq!(parts(&one), [(1, 0)]);
        calls.draining.cancel();
        one.drain();
        assert_eq!(heard(&mut job), 0);
        done(&one, 1);
        assert_eq!(heard(&mut job), 1);
        let summary = job.summary();
        let missing: Vec<_> = summary.missing.iter().map(|it| it.why).collect();
        assert_eq!((summary.end, missing), (End::Stopped, vec![Missing::NotAsked; 2]));
    }

    #[tokio::test]
    async fn what_is_left_of_a_request_counts_as_all_of_it() {
        let calls = bed(|_| {});
        let one = calls.responder("one", "", 9);
        let large = message(&"x".repeat(100_000));
        let mut job =
            calls.gather_parts(request(""), vec![large.clone(), large, message("")], policy(1)).unwrap();
        for number in [1, 2] {
            assert_eq!(parts(&one).len(), 1);
            done(&one, number);
        }
        assert_eq!(heard(&mut job), 2);
        assert!(calls.count("call_bytes") > 200_000);
        drop(job);
        assert_eq!(parts(&one), []);
        assert_eq!(calls.count("call_bytes"), 0);
    }

    #[tokio::test]
    async fn parts_that_wait_at_one_service_leave_room_for_others() {
        let calls = bed(|limits| limits.parts_waiting = 10);
        let one = calls.responder("one", "", 1);
        let first = job(&calls, 9, 1);
        let many = |count| calls.gather_parts(request(""), vec![message(""); count], policy(1));
        let what = "too many parts wait for a responder of `s` (limits.parts_waiting)".to_owned();
        assert_eq!(many(3).unwrap_err(), CoreError::Limit { what, max: 10 });
        let second = many(2).unwrap();
        let waiting = || calls.service(&one.serve().service).unwrap().state.lock().jobs.waiting();
        assert_eq!(waiting(), 10);
        done(&one, parts(&one)[0].0);
        assert_eq!(waiting(), 9);
        drop((first, second));
        assert_eq!((waiting(), calls.count("calls_in_flight")), (0, 0));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Join(usize),
        Leave(usize),
        Drain(usize),
        Take(usize),
        Answer(usize, usize),
        Call,
        Begin(usize, usize, bool),
        Read(usize),
        End(usize),
    }

    /// Numbers of requests, and which part of which job they are.
    type InHand = Vec<(u64, Option<(u64, usize)>)>;

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let at = 0..8_usize;
        let step = prop_oneof![
            2 => (1..4_usize).prop_map(Step::Join),
            1 => at.clone().prop_map(Step::Leave),
            1 => at.clone().prop_map(Step::Drain),
            6 => at.clone().prop_map(Step::Take),
            8 => (at.clone(), 0..4_usize).prop_map(|(at, which)| Step::Answer(at, which)),
            1 => Just(Step::Call),
            2 => (1..9_usize, 1..4_usize, any::<bool>()).prop_map(|(parts, each, keeps)| Step::Begin(parts, each, keeps)),
            6 => at.clone().prop_map(Step::Read),
            1 => at.prop_map(Step::End),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever happens: nobody has more parts of a job in hand than it may, and no two the same part; every part is
        /// accounted for; and while there is one who answers, and its replies are read, every job comes to its end.
        #[test]
        fn every_part_ends_once(steps in steps()) {
            let calls = bed(|limits| limits.gather_bytes = 2000);
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
                    Step::Begin(count, each, keeps) => {
                        let parts = (0..count).map(|_| message("p")).collect();
                        let policy = Policy { keeps, ..policy(each) };
                        if let Ok(job) = calls.gather_parts(request(""), parts, policy) {
                            jobs.push((job, each));
                        }
                    }
                    Step::Read(at) if !jobs.is_empty() => {
                        let at = at % jobs.len();
                        heard(&mut jobs[at].0);
                    }
                    Step::End(at) if !jobs.is_empty() => {
                        let (mut job, _) = jobs.remove(at % jobs.len());
                        let summary = job.summary();
                        prop_assert_eq!(summary.parts, summary.replied + summary.failed + summary.missing.len());
                    }
                    Step::Take(at) if !responders.is_empty() => {
                        let at = at % responders.len();
                        let (asked, cancelled) = responders[at].0.take(ALL);
                        let part = |asked: &Asked| Some((asked.call_of().job()?, asked.request().part?.index));
                        for asked in &asked {
                            let taken = part(asked).is_some()
                                && responders.iter().any(|(_, has)| has.iter().any(|(_, of)| *of == part(asked)));
                            prop_assert!(!taken, "two have {:?}", part(asked));
                        }
                        let (responder, in_hand) = &mut responders[at];
                        in_hand.retain(|(number, _)| !cancelled.contains(number));
                        in_hand.extend(asked.iter().map(|asked| (asked.number, part(asked))));
                        prop_assert!(in_hand.len() <= responder.serve().credit);
                        for (job, each) in &jobs {
                            let job = job.number();
                            let has = in_hand.iter().filter(|(_, of)| job.is_some() && of.map(|(job, _)| job) == job);
                            let has = has.count();
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
                if let Some(service) = calls.service(&message("").topic) {
                    let jobs = &service.state.lock().jobs;
                    prop_assert_eq!(jobs.waiting(), jobs.counted());
                }
            }
            // One that answers whatever it is asked, when all others are gone.
            let eager = calls.responder("eager", "", 2);
            drop(responders);
            loop {
                let (asked, _) = eager.take(ALL);
                asked.iter().for_each(|asked| done(&eager, asked.number));
                if jobs.iter_mut().map(|(job, _)| heard(job)).sum::<u64>() == 0 && asked.is_empty() {
                    break;
                }
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
