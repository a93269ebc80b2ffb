use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::core::queues::consumer::Window;
use crate::types::{Message, MessageId, Qos};

pub(super) const ALL: Window = Window { messages: usize::MAX, bytes: usize::MAX };

pub(super) fn message(payload: &str) -> Message {
    Message {
        id: MessageId::from_u128(0),
        topic: "s".parse().unwrap(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        qos: Qos::AtLeastOnce,
        retain: false,
        expires_at: None,
        extras: None,
    }
}

fn names() -> [TopicName; 1] {
    ["s".parse().unwrap()]
}

pub(super) fn request(payload: &str) -> Request {
    Request {
        message: message(payload),
        deadline: None,
        caller: Caller::default(),
        metadata: Arc::default(),
        idempotent: false,
        takes_parts: false,
        part: None,
    }
}

fn idempotent(payload: &str) -> Request {
    Request { idempotent: true, ..request(payload) }
}

fn serve(id: &str, group: &str, credit: usize) -> Serve {
    Serve {
        service: "s".parse().unwrap(),
        group: group.into(),
        id: Some(id.into()),
        credit,
        metadata: Vec::new(),
    }
}

pub(super) fn bed(change: impl FnOnce(&mut Limits)) -> Arc<Calls> {
    let mut limits = Limits::default();
    change(&mut limits);
    Calls::new(&limits, TaskTracker::new(), CancellationToken::new())
}

impl Calls {
    pub(super) fn call(self: &Arc<Self>, request: Request) -> Result<Calling, CoreError> {
        self.begin(request, FIRST).map(|(calling, _)| calling)
    }

    pub(super) fn responder(self: &Arc<Self>, id: &str, group: &str, credit: usize) -> Responder {
        self.serve(serve(id, group, credit)).unwrap()
    }

    pub(super) fn count(&self, name: &str) -> u64 {
        self.counters().into_iter().find(|(counter, _)| *counter == name).unwrap().1
    }
}

pub(super) fn text(message: &Message) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

/// Number and payload of what a responder is asked.
pub(super) fn asked(responder: &Responder) -> Vec<(u64, String)> {
    let (asked, _) = responder.take(ALL);
    asked.iter().map(|asked| (asked.number, text(&asked.request().message))).collect()
}

pub(super) fn answer(responder: &Responder, number: u64, said: Said) -> Option<ReplyRefused> {
    responder.reply(vec![Answer { number, said }]).pop()
}

/// Who answered, and what.
fn got(calling: &mut Calling) -> Option<Result<(String, String), CallError>> {
    let said = calling.next().now_or_never()??;
    Some(said.map(|reply| (reply.responder.to_string(), text(&reply.message))))
}

fn reply(responder: &str, payload: &str) -> Option<Result<(String, String), CallError>> {
    Some(Ok((responder.to_owned(), payload.to_owned())))
}

fn nobody() -> CoreError {
    CoreError::NoResponders { service: "s".to_owned() }
}

fn failed(error: CoreError) -> Option<Result<(String, String), CallError>> {
    Some(Err(CallError::Broker(error)))
}

#[test]
fn a_stored_call_does_not_wait_in_the_line() {
    let calls = bed(|_| {});
    let stored = How { tries: 2, waits: false };
    let one = calls.responder("one", "", 1);
    let _first = calls.call(request("first")).unwrap();
    assert!(!calls.begin(request("stored"), stored).unwrap().1);
    let mut second = calls.call(request("second")).unwrap();
    assert_eq!(asked(&one), [(1, "first".to_owned())]);
    assert_eq!(answer(&one, 1, Said::Last(message("1"))), None);
    assert_eq!(asked(&one), [(2, "second".to_owned())]);
    assert_eq!(answer(&one, 2, Said::Last(message("2"))), None);
    assert_eq!(got(&mut second), reply("one", "2"));
    // Now there is room; those who have seen it before count.
    let (mut calling, taken) = calls.begin(idempotent("stored"), stored).unwrap();
    assert!(taken);
    let (again, _) = one.take(ALL);
    assert_eq!((again.len(), again[0].attempt()), (1, 3));
    drop(one);
    assert!(matches!(
        got(&mut calling),
        Some(Err(CallError::Broker(CoreError::ResponderLost { responder, .. }))) if responder == "one"
    ));
    assert_eq!(calling.call().tries(), 3);
    assert_eq!(calls.count("calls_total"), 3);
}

#[test]
fn a_reply_reaches_who_asked() {
    let calls = bed(|_| {});
    let one = calls.responder("one", "", 9);
    let mut first = calls.call(request("a")).unwrap();
    let mut second = calls.call(request("b")).unwrap();
    assert_eq!(asked(&one), [(1, "a".to_owned()), (2, "b".to_owned())]);
    assert_eq!(got(&mut first), None);
    assert_eq!(answer(&one, 2, Said::Last(message("B"))), None);
    assert_eq!(answer(&one, 1, Said::Last(message("A"))), None);
    assert_eq!((got(&mut first), got(&mut second)), (reply("one", "A"), reply("one", "B")));
    assert_eq!(calls.count("calls_in_flight"), 2);
    drop((first, second));
    let counts = ["calls_in_flight", "call_bytes", "calls_total", "calls_cancelled_total"];
    assert_eq!(counts.map(|name| calls.count(name)), [0, 0, 2, 0]);
}

#[test]
fn without_a_responder_nobody_waits() {
    let calls = bed(|_| {});
    assert_eq!(calls.call(request("a")).unwrap_err(), nobody());
    let one = calls.responder("one", "", 1);
    one.drain();
    assert_eq!(calls.call(request("a")).unwrap_err(), nobody());
    assert!(one.is_idle());
    drop(one);
    assert_eq!(calls.call(request("a")).unwrap_err(), nobody());
    assert_eq!(calls.count("calls_no_responders_total"), 3);
    assert_eq!((calls.count("responders"), calls.services.read().len()), (0, 0));
}

#[test]
fn what_waits_gets_the_next_room_in_order_and_ends_with_the_last_responder() {
    let calls = bed(|_| {});
    let one = calls.responder("one", "", 1);
    let mut all: Vec<Calling> =
        ["a", "b", "c", "d"].map(|payload| calls.call(request(payload)).unwrap()).into();
    assert_eq!(asked(&one), [(1, "a".to_owned())]);
    assert_eq!(asked(&one), []);
    drop(all.remove(1));
    assert_eq!(answer(&one, 1, Said::Last(message("A"))), None);
    assert_eq!(asked(&one), [(2, "c".to_owned())]);
    // A second responder takes what waits at once; the first has room again when its caller leaves.
    let two = calls.responder("two", "", 1);
    assert_eq!(asked(&two), [(1, "d".to_owned())]);
    let mut last = calls.call(request("e")).unwrap();
    one.drain();
    two.drain();
    assert_eq!(got(&mut last), failed(nobody()));
    drop(all.remove(1));
    let (asked, cancelled) = one.take(ALL);
    assert_eq!((asked.len(), cancelled), (0, vec![2]));
    assert!(one.is_idle() && !two.is_idle());
}

#[test]
fn the_least_busy_of_the_least_busy_group_is_asked() {
    let calls = bed(|_| {});
    let a: Vec<_> = (0..3).map(|n| calls.responder(&format!("a{n}"), "a", 9)).collect();
    let b = calls.responder("b", "b", 9);
    let _all: Vec<_> = (0..6).map(|_| calls.call(request("x")).unwrap()).collect();
    assert_eq!(a.iter().map(|one| asked(one).len()).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!(asked(&b).len(), 3);
}

#[test]
fn a_lost_responder_is_told_at_once_or_another_is_asked() {
    let calls = bed(|_| {});
    let one = calls.responder("one", "", 9);
    let mut once = calls.call(request("once")).unwrap();
    let mut again = calls.call(idempotent("again")).unwrap();
    assert_eq!(asked(&one).len(), 2);
    let mut unseen = calls.call(request("unseen")).unwrap();
    let two = calls.responder("two", "", 9);
    drop(one);
    let lost = CoreError::ResponderLost { service: "s".to_owned(), responder: "one".to_owned() };
    assert_eq!(got(&mut once), failed(lost));
    let (got_by_two, _) = two.take(ALL);
    let attempts: Vec<_> =
        got_by_two.iter().map(|asked| (text(&asked.request().message), asked.attempt())).collect();
    assert_eq!(attempts, [("again".to_owned(), 2), ("unseen".to_owned(), 1)]);
    assert_eq!(answer(&two, 1, Said::Last(message("2"))), None);
    assert_eq!(got(&mut again), reply("two", "2"));
    drop(two);
    assert!(matches!(got(&mut unseen), Some(Err(CallError::Broker(CoreError::ResponderLost { .. })))));
    let counts = ["calls_lost_total", "calls_retried_total", "calls_in_flight"];
    assert_eq!(counts.map(|name| calls.count(name)), [2, 2, 3]);
}

#[test]
fn a_call_that_takes_its_responders_with_it_ends() {
    let calls = bed(|limits| limits.call_tries = 2);
    let responders: Vec<_> = (0..3).map(|n| calls.responder(&format!("{n}"), "", 9)).collect();
    let mut poison = calls.call(idempotent("poison")).unwrap();
    let mut left: Vec<_> = responders.into_iter().map(Some).collect();
    for _ in 0..2 {
        let has_it = left.iter_mut().find(|one| one.as_ref().is_some_and(|one| !asked(one).is_empty()));
        drop(has_it.unwrap().take());
    }
    assert!(matches!(got(&mut poison), Some(Err(CallError::Broker(CoreError::ResponderLost { .. })))));
}

#[test]
fn parts_come_in_order_and_an_error_after_them() {
    let calls = bed(|_| {});
    let one = calls.responder("one", "", 9);
    let parts = |payload: &str| Request { takes_parts: true, ..idempotent(payload) };
    let mut calling = calls.call(parts("x")).unwrap();
    let mut broken = calls.call(parts("y")).unwrap();
    assert_eq!(asked(&one).len(), 2);
    for (number, said) in
        [(1, Said::Part(message("1"))), (2, Said::Part(message("1"))), (1, Said::Last(message("2")))]
    {
        assert_eq!(answer(&one, number, said), None);
    }
    assert_eq!(got(&mut calling), reply("one", "1"));
    assert_eq!(got(&mut calling), reply("one", "2"));
    assert!(calling.next().now_or_never().unwrap().is_none());
    // It has said something: another responder would begin anew.
    let _two = calls.responder("two", "", 9);
    drop(one);
    assert_eq!(got(&mut broken), reply("one", "1"));
    assert!(matches!(got(&mut broken), Some(Err(CallError::Broker(CoreError::ResponderLost { .. })))));
}

#[test]
fn what_nobody_waits_for_is_refused_and_counted() {
    let calls = bed(|_| {});
    let one = calls.responder("one", "", 9);
    let mut calling = calls.call(request("a")).unwrap();
    // It was not handed out yet.
    assert_eq!(answer(&one, 1, Said::Last(message("guess"))), Some(ReplyRefused::Unknown(1)));
    assert_eq!(asked(&one).len(), 1);
    assert_eq!(answer(&one, 0, Said::Last(message(""))), Some(ReplyRefused::Unknown(0)));
    assert_eq!(answer(&one, 2, Said::Last(message(""))), Some(ReplyRefused::Unknown(2)));
    assert_eq!(answer(&one, 1, Said::Part(message(""))), Some(ReplyRefused::OneReply(1)));
    assert_eq!(answer(&one, 1, Said::Last(message("A"))), None);
    assert_eq!(answer(&one, 1, Said::Last(message("B"))), Some(ReplyRefused::Answered(1)));
    assert_eq!(got(&mut calling), reply("one", "A"));

    let calling = calls.call(request("b")).unwrap();
    assert_eq!(asked(&one).len(), 1);
    drop(calling);
    assert_eq!(answer(&one, 2, Said::Last(message(""))), Some(ReplyRefused::Over(2)));

    let mut calling = calls.call(request("c")).unwrap();
    assert_eq!(asked(&one).len(), 1);
    let wrong = CoreError::invalid("message.payload", "too large");
    let refused = answer(&one, 3, Said::Wrong(wrong.clone()));
    assert_eq!(refused, Some(ReplyRefused::Wrong { number: 3, error: wrong.clone() }));
    let bad = CoreError::BadReply { responder: "one".to_owned(), what: wrong.to_string() };
    assert_eq!(got(&mut calling), failed(bad));

    let names = ["unknown", "over", "again", "wrong"];
    let counts = names.map(|name| calls.count(&format!("call_replies_{name}_total")));
    assert_eq!(counts, [3, 1, 1, 2]);
    let facts = calls.responders(None, 0, 9).pop().unwrap();
    assert_eq!((facts.served, facts.errors, facts.in_flight), (2, 1, 0));
}

#[test]
fn what_is_too_much_is_refused() {
    let limit = |result: Result<Calling, CoreError>| match result {
        Err(CoreError::Limit { what, max }) => (what, max),
        other => panic!("{other:?}"),
    };
    let calls = bed(|limits| limits.max_calls = 1);
    let _one = calls.responder("one", "", 9);
    let first = calls.call(request("a")).unwrap();
    assert_eq!(
        limit(calls.call(request("b"))),
        ("too many calls in flight (limits.max_calls)".to_owned(), 1)
    );
    drop(first);
    drop(calls.call(request("b")).unwrap());

    let calls = bed(|limits| limits.calls_waiting = 1);
    let _one = calls.responder("one", "", 1);
    let _first = calls.call(request("a")).unwrap();
    let second = calls.call(request("b")).unwrap();
    let what = "too many calls wait for a responder of `s` (limits.calls_waiting)".to_owned();
    assert_eq!(limit(calls.call(request("c"))), (what, 1));
    drop(second);
    drop(calls.call(request("c")).unwrap());
    assert_eq!(calls.count("calls_refused_total"), 1);

    let calls = bed(|limits| limits.call_bytes = 600);
    let _one = calls.responder("one", "", 9);
    let first = calls.call(request(&"x".repeat(300))).unwrap();
    assert_eq!(limit(calls.call(request("b"))).1, 600);
    drop(first);
    drop(calls.call(request("b")).unwrap());

    let calls = bed(|limits| limits.max_responders = 1);
    let _one = calls.responder("one", "", 9);
    assert!(matches!(calls.serve(serve("two", "", 1)), Err(CoreError::Limit { max: 1, .. })));
    assert_eq!(calls.count("calls_refused_total"), 1);
}

#[test]
fn an_answer_that_is_not_read_is_bounded() {
    let calls = bed(|limits| limits.call_reply_bytes = 1000);
    let one = calls.responder("one", "", 9);
    let mut calling = calls.call(Request { takes_parts: true, ..request("x") }).unwrap();
    assert_eq!(asked(&one).len(), 1);
    // One may overdraw.
    assert_eq!(answer(&one, 1, Said::Part(message(&"1".repeat(2000)))), None);
    assert_eq!(answer(&one, 1, Said::Part(message("2"))), None);
    let (_, cancelled) = one.take(ALL);
    assert_eq!(cancelled, [1]);
    assert_eq!(got(&mut calling).unwrap().unwrap().1.len(), 2000);
    assert!(matches!(got(&mut calling), Some(Err(CallError::Broker(CoreError::Limit { max: 1000, .. })))));
    drop(calling);
    assert_eq!(calls.count("call_bytes"), 0);
}

#[test]
fn what_was_given_up_does_not_stay_in_the_line() {
    let calls = bed(|_| {});
    let one = calls.responder("one", "", 1);
    let _first = calls.call(request("a")).unwrap();
    for _ in 0..1000 {
        drop(calls.call(request("b")).unwrap());
    }
    assert!(calls.count("calls_in_flight") < 200);
    let mut last = calls.call(request("c")).unwrap();
    assert_eq!(asked(&one).len(), 1);
    assert_eq!(answer(&one, 1, Said::Last(message(""))), None);
    assert_eq!(asked(&one), [(2, "c".to_owned())]);
    assert_eq!(answer(&one, 2, Said::Last(message("C"))), None);
    assert_eq!(got(&mut last), reply("one", "C"));
}

#[test]
fn what_was_given_up_does_not_stay_in_an_inbox() {
    let calls = bed(|_| {});
    let one = calls.responder("one", "", 3);
    let kept = calls.call(request("kept")).unwrap();
    for _ in 0..100 {
        let both = [calls.call(request("a")).unwrap(), calls.call(request("b")).unwrap()];
        assert_eq!(calls.service(&one.serve().service).unwrap().untaken(), 3);
        drop(both);
    }
    assert_eq!(asked(&one), [(1, "kept".to_owned())]);
    drop(kept);
}

#[test]
fn what_a_responder_has_not_taken_when_it_drains_goes_to_others() {
    let calls = bed(|_| {});
    let one = calls.responder("one", "", 9);
    let mut all: Vec<Calling> = ["a", "b", "c"].map(|payload| calls.call(request(payload)).unwrap()).into();
    let frame = Window { messages: 1, bytes: usize::MAX };
    assert_eq!(one.take(frame).0.len(), 1);
    let two = calls.responder("two", "", 9);
    one.drain();
    assert_eq!(asked(&one), []);
    assert_eq!(asked(&two), [(1, "b".to_owned()), (2, "c".to_owned())]);
    assert!(!one.is_idle());
    assert_eq!(answer(&one, 1, Said::Last(message("A"))), None);
    assert_eq!(got(&mut all[0]), reply("one", "A"));
    assert!(one.is_idle());
    // With nobody left it fails at once.
    let mut last = calls.call(request("d")).unwrap();
    two.drain();
    assert_eq!(got(&mut last), failed(nobody()));
    assert_eq!(got(&mut all[1]), None);
}

#[test]
fn the_bytes_of_all_calls_are_bounded_and_named() {
    let calls = bed(|limits| (limits.call_bytes, limits.call_reply_bytes) = (2000, 1 << 20));
    let one = calls.responder("one", "", 9);
    let mut calling = calls.call(request("x")).unwrap();
    assert_eq!(asked(&one).len(), 1);
    assert_eq!(answer(&one, 1, Said::Last(message(&"1".repeat(2000)))), None);
    let what = "too many bytes of calls in flight (limits.call_bytes)".to_owned();
    assert_eq!(got(&mut calling), failed(CoreError::Limit { what, max: 2000 }));
    drop(calling);
    assert_eq!((calls.count("call_bytes"), calls.count("calls_refused_total")), (0, 1));
}

#[derive(Debug, Clone)]
enum Step {
    Join(bool, usize),
    Leave(usize),
    Drain(usize),
    Call(bool),
    Cancel(usize),
    Gather(usize),
    Disperse(usize),
    Take(usize),
    Answer(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (any::<bool>(), 1..3_usize).prop_map(|(group, credit)| Step::Join(group, credit)),
        1 => any::<usize>().prop_map(Step::Leave),
        1 => any::<usize>().prop_map(Step::Drain),
        6 => any::<bool>().prop_map(Step::Call),
        2 => any::<usize>().prop_map(Step::Cancel),
        2 => (0..3_usize).prop_map(Step::Gather),
        1 => any::<usize>().prop_map(Step::Disperse),
        5 => any::<usize>().prop_map(Step::Take),
        5 => (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Step::Answer(a, b)),
    ];
    prop::collection::vec(step, 1..80)
}

#[tokio::test]
async fn errors_take_room_in_a_gathering_like_replies() {
    let fault = || Said::Fault(Fault { code: 5, message: "none".into(), details: vec![0; 600].into() });
    for keeps in [true, false] {
        let calls = bed(|limits| limits.gather_bytes = 1000);
        let both = [calls.responder("one", "", 9), calls.responder("two", "", 9)];
        let policy = Policy { keeps, ..Policy::default() };
        let mut gathering = calls.gather(&names(), &request("a"), (policy, Vec::new())).unwrap();
        let before = calls.count("call_bytes");
        let mut said = Vec::new();
        for responder in &both {
            let [(number, _)] = asked(responder)[..] else { panic!("it is not asked") };
            assert_eq!(answer(responder, number, fault()), None);
            let gathered = gathering.next().now_or_never().flatten().unwrap();
            said.push(matches!(gathered.said, Err(CallError::Responder(_))));
        }
        assert_eq!(said, [true, !keeps]);
        assert_eq!(calls.count("call_bytes") > before, keeps);
        drop(gathering);
        assert_eq!(calls.count("call_bytes"), 0);
    }
}

#[tokio::test]
async fn what_a_gathering_has_kept_is_free_though_a_call_of_it_lies_in_a_line() {
    let calls = bed(|_| {});
    let (quick, stuck) = (calls.responder("quick", "", 9), calls.responder("stuck", "", 1));
    let _in_hand = calls.gather(&names(), &request("first"), (Policy::default(), Vec::new())).unwrap();
    let [(first, _)] = asked(&stuck)[..] else { panic!("it is not asked") };
    // Two more wait, so that one that is over stays.
    let _others =
        [(); 2].map(|()| calls.gather(&names(), &request("other"), (Policy::default(), Vec::new())).unwrap());
    let before = calls.count("call_bytes");
    let policy = Policy { keeps: true, ..Policy::default() };
    let mut gathering = calls.gather(&names(), &request("last"), (policy, Vec::new())).unwrap();
    let number = asked(&quick).pop().unwrap().0;
    assert_eq!(answer(&quick, number, Said::Last(message(&"x".repeat(100_000)))), None);
    assert_eq!(heard(&mut gathering), 1);
    assert!(calls.count("call_bytes") > before + 100_000);
    drop(gathering);
    assert!(calls.count("call_bytes") < before + 10_000);
    assert_eq!(answer(&stuck, first, Said::Last(message("done"))), None);
}

#[tokio::test]
async fn nobody_is_asked_twice_by_a_gathering() {
    let calls = bed(|_| {});
    let (one, two) = (calls.responder("one", "", 9), calls.responder("two", "", 9));
    let mut gathering = calls.gather(&names(), &idempotent("a"), (Policy::default(), Vec::new())).unwrap();
    assert_eq!((asked(&one).len(), asked(&two).len()), (1, 1));
    drop(one);
    assert!(matches!(gathering.next().now_or_never().flatten().unwrap().said, Err(CallError::Broker(_))));
    assert_eq!(asked(&two), []);
}

/// How many have replied or failed since the last look.
pub(super) fn heard(gathering: &mut Gathering) -> u64 {
    std::iter::from_fn(|| gathering.next().now_or_never()?).count() as u64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happens: nobody has more in hand than it takes, no call is lost or answered twice, and in the end nothing
    /// is left.
    #[test]
    fn every_call_ends_once(steps in steps()) {
        let calls = bed(|limits| limits.calls_waiting = 4);
        let timers = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _timers = timers.enter();
        let mut gatherings: Vec<Gathering> = Vec::new();
        let mut responders: Vec<(Responder, Vec<u64>)> = Vec::new();
        let mut waiting: Vec<Calling> = Vec::new();
        let (mut begun, mut ended) = (0_u64, 0_u64);
        for step in steps {
            match step {
                Step::Join(group, credit) => {
                    let group = if group { "a" } else { "b" };
                    responders.push((calls.responder("r", group, credit), Vec::new()));
                }
                Step::Leave(at) if !responders.is_empty() => {
                    drop(responders.remove(at % responders.len()));
                }
                Step::Drain(at) if !responders.is_empty() => responders[at % responders.len()].0.drain(),
                Step::Call(idempotent) => {
                    if let Ok(calling) = calls.call(Request { idempotent, ..request("x") }) {
                        begun += 1;
                        waiting.push(calling);
                    }
                }
                Step::Cancel(at) if !waiting.is_empty() => drop(waiting.remove(at % waiting.len())),
                Step::Gather(min_replies) => {
                    let policy = Policy { min_replies, ..Policy::default() };
                    if let Ok(gathering) = calls.gather(&names(), &request("x"), (policy, Vec::new())) {
                        begun += gathering.asked() as u64;
                        gatherings.push(gathering);
                    }
                }
                Step::Disperse(at) if !gatherings.is_empty() => {
                    drop(gatherings.remove(at % gatherings.len()));
                }
                Step::Take(at) if !responders.is_empty() => {
                    let at = at % responders.len();
                    let (responder, in_hand) = &mut responders[at];
                    let (asked, cancelled) = responder.take(ALL);
                    in_hand.retain(|number| !cancelled.contains(number));
                    in_hand.extend(asked.iter().map(|asked| asked.number));
                    prop_assert!(in_hand.len() <= responder.serve().credit);
                }
                Step::Answer(at, which) if !responders.is_empty() => {
                    let at = at % responders.len();
                    let (responder, in_hand) = &mut responders[at];
                    if !in_hand.is_empty() {
                        let number = in_hand.remove(which % in_hand.len());
                        // Its caller may have left since the last look.
                        let refused = answer(responder, number, Said::Last(message("y")));
                        prop_assert!(matches!(refused, None | Some(ReplyRefused::Over(_))));
                    }
                }
                _ => {}
            }
            waiting.retain_mut(|calling| {
                let over = calling.next().now_or_never().is_some();
                ended += u64::from(over);
                !over
            });
            for gathering in &mut gatherings {
                ended += heard(gathering);
            }
        }
        drop(responders);
        for mut gathering in gatherings {
            ended += heard(&mut gathering);
            let Summary { asked, replied, failed, missing, .. } = gathering.summary();
            prop_assert_eq!(asked, replied + failed + missing.len());
        }
        for calling in &mut waiting {
            prop_assert!(matches!(calling.next().now_or_never(), Some(Some(Err(_)))));
            ended += 1;
        }
        drop(waiting);
        prop_assert_eq!(ended + calls.count("calls_cancelled_total"), begun);
        let left = ["calls_in_flight", "call_bytes", "responders"].map(|name| calls.count(name));
        prop_assert_eq!(left, [0, 0, 0]);
        prop_assert!(calls.services.read().is_empty());
    }
}

#[test]
fn what_a_service_keeps_of_its_responders_goes_with_them() {
    let calls = bed(|_| {});
    let sizes = |calls: &Arc<Calls>| calls.service(&names()[0]).map(|service| service.state.lock().sizes());
    let mut responders: Vec<_> = (0..100).map(|n| calls.responder("r", &format!("group {n}"), 1)).collect();
    assert_eq!(sizes(&calls), Some([100, 0, 100, 100]));
    responders.drain(1..);
    assert_eq!(sizes(&calls), Some([1, 0, 100, 1]));
    // Places and groups are taken again, the lowest places first.
    responders.extend((0..3).map(|n| calls.responder("r", &format!("new {}", n / 2), 1)));
    assert_eq!(sizes(&calls), Some([4, 0, 100, 3]));
    responders.swap_remove(1);
    assert_eq!(sizes(&calls), Some([4, 1, 100, 3]));
    responders.push(calls.responder("r", "group 0", 1));
    assert_eq!(sizes(&calls), Some([4, 0, 100, 3]));
    let mut begun: Vec<_> = (0..8).map(|n| calls.call(request(&n.to_string())).unwrap()).collect();
    let mut answered = 0;
    while answered < 8 {
        for responder in &responders {
            for (number, payload) in asked(responder) {
                assert_eq!(answer(responder, number, Said::Last(message(&payload))), None);
                answered += 1;
            }
        }
    }
    for (n, calling) in begun.iter_mut().enumerate() {
        assert_eq!(got(calling), reply("r", &n.to_string()));
    }
    drop((begun, responders));
    assert_eq!(sizes(&calls), None);
    assert_eq!(calls.count("calls_in_flight"), 0);
}
