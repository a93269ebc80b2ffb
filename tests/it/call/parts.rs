//! Requests in parts: work that is divided among those who serve.

use stafett::grpc::proto::v1::{GatherEnd, GatherPolicy, MissingReason};
use tonic::Code;
use tonic_types::pb;

use super::gather::{Asking, counted, millis};
use super::refusals::why;
use super::*;
use crate::harness::{config_file, stafett, stafett_reading};
use crate::queue::field;

fn parts(count: usize) -> Vec<v1::Message> {
    (0..count).map(|at| message(&format!("part {at}"))).collect()
}

fn divided(count: usize, policy: GatherPolicy) -> v1::MulticastRequest {
    let (service, parts) = ("s".to_owned(), parts(count));
    v1::MulticastRequest { service, parts, policy: Some(policy), ..Default::default() }
}

async fn begin(calls: &Calls, count: usize, policy: GatherPolicy, serving: u32) -> Asking {
    Asking::begin(calls, divided(count, policy), serving).await
}

/// Which part a request is; it says so in its payload too.
fn part_of(asked: &v1::IncomingRequest) -> u32 {
    let part = asked.part.unwrap();
    assert_eq!(text(asked.message.as_ref()), format!("part {}", part.index));
    part.index
}

async fn answers(serving: &mut Serving, payload: &str) -> u32 {
    let asked = serving.one().await;
    serving.reply(vec![reply(asked.request_id, payload)]).await;
    part_of(&asked)
}

/// The next reply: which part, who, and what.
async fn heard(asking: &mut Asking) -> (u32, String, String) {
    let reply = asking.reply().await;
    assert_eq!(reply.error, None);
    (reply.part.unwrap(), reply.responder_id, text(reply.message.as_ref()))
}

fn missing(summary: &v1::GatherSummary) -> Vec<(u32, MissingReason, &str)> {
    summary.missing_parts.iter().map(|part| (part.part, part.reason(), &*part.responder_id)).collect()
}

fn fault(request_id: u64) -> v1::ServeReply {
    let error = pb::Status { code: 5, message: "no idea".to_owned(), details: vec![] };
    v1::ServeReply { request_id, error: Some(error), ..Default::default() }
}

#[tokio::test]
async fn each_has_one_part_and_gets_the_next_when_it_is_answered() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut one = Serving::open(&calls, named("s", "one", 0)).await;
    let mut two = Serving::open(&calls, named("s", "two", 0)).await;
    let mut asking = begin(&calls, 4, GatherPolicy::default(), 2).await;
    let first = one.one().await;
    assert_eq!((part_of(&first), first.part.unwrap().count, first.attempt), (0, 4, 1));
    // The quick one does the rest meanwhile.
    for at in [1, 2, 3] {
        assert_eq!(answers(&mut two, "quick").await, at);
        assert_eq!(heard(&mut asking).await, (at, "two".into(), "quick".into()));
    }
    one.reply(vec![reply(first.request_id, "slow")]).await;
    assert_eq!(heard(&mut asking).await, (0, "one".into(), "slow".into()));
    let summary = asking.summary().await;
    assert_eq!(counted(&summary), (GatherEnd::Complete, 4, 0, true));
    assert_eq!((summary.asked, summary.parts, missing(&summary)), (2, 4, vec![]));

    // So many at a time; the same as one answer; who comes later has its share. A request of its own is none.
    let policy = GatherPolicy { parts_in_hand: 2, ..Default::default() };
    let request = v1::GatherRequest {
        service: "s".to_owned(),
        parts: parts(7),
        policy: Some(policy),
        ..Default::default()
    };
    let mut client = calls.0.clone();
    #[expect(clippy::disallowed_methods, reason = "the test waits for it")]
    let gathered = tokio::spawn(async move { client.gather(request).await });
    let (first, second) = (one.take(2).await, two.take(2).await);
    assert_eq!([&first[..], &second[..]].concat().iter().map(part_of).collect::<Vec<_>>(), [0, 2, 1, 3]);
    let mut three = Serving::open(&calls, named("s", "three", 0)).await;
    let third = three.take(2).await;
    assert_eq!(third.iter().map(part_of).collect::<Vec<_>>(), [4, 5]);
    for (serving, asked) in [(&one, &first), (&two, &second), (&three, &third)] {
        serving.reply(asked.iter().map(|asked| reply(asked.request_id, "done")).collect()).await;
    }
    let mut all = [one, two, three];
    let last = {
        let [one, two, three] = &mut all;
        tokio::select! { a = one.one() => (0, a), a = two.one() => (1, a), a = three.one() => (2, a) }
    };
    assert_eq!(part_of(&last.1), 6);
    all[last.0].reply(vec![reply(last.1.request_id, "done")]).await;
    let gathered = got(async { gathered.await.unwrap() }).await;
    let mut answered: Vec<_> = gathered.replies.iter().map(|reply| reply.part.unwrap()).collect();
    answered.sort_unstable();
    assert_eq!(answered, [0, 1, 2, 3, 4, 5, 6]);
    let summary = gathered.summary.unwrap();
    assert_eq!((summary.asked, summary.parts, summary.quorum_met), (3, 7, true));
    let call = calls.begin(asking_plain());
    let [one, two, three] = &mut all;
    let whole = tokio::select! { a = one.one() => a, a = two.one() => a, a = three.one() => a };
    assert_eq!(whole.part, None);
    call.abort();
}

fn asking_plain() -> v1::CallRequest {
    asking("s", "whole")
}

#[tokio::test]
async fn what_a_lost_responder_had_goes_to_another_up_to_the_bound() {
    let (_directory, path) = config_file("[limits]\ncall_tries = 2\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut one = Serving::open(&calls, named("s", "one", 0)).await;
    let mut two = Serving::open(&calls, named("s", "two", 0)).await;
    let mut asking = begin(&calls, 5, GatherPolicy::default(), 2).await;
    assert_eq!(part_of(&one.one().await), 0);
    drop(one);
    broker.counts("calls_retried_total", 1).await;
    assert_eq!(answers(&mut two, "").await, 1);
    assert_eq!(heard(&mut asking).await.0, 1);
    // It comes first, and is marked.
    let again = two.one().await;
    assert_eq!((part_of(&again), again.attempt), (0, 2));
    let mut three = Serving::open(&calls, named("s", "three", 0)).await;
    assert_eq!(part_of(&three.one().await), 2);
    drop(two);
    let lost = asking.reply().await;
    assert_eq!((lost.part, &*lost.responder_id), (Some(0), "two"));
    let lost = lost.error.unwrap();
    assert_eq!(reason(&tonic_types::RpcStatusExt::get_error_details(&lost)), "RESPONDER_LOST");
    // Nobody is left: what was in hand, and what nobody had.
    drop(three);
    let summary = asking.summary().await;
    assert_eq!(counted(&summary), (GatherEnd::NoResponders, 1, 0, false));
    let all = [
        (0, MissingReason::Lost, "two"),
        (2, MissingReason::Lost, "three"),
        (3, MissingReason::NotAsked, ""),
        (4, MissingReason::NotAsked, ""),
    ];
    assert_eq!((missing(&summary), summary.asked), (all.to_vec(), 3));
    broker.counts("calls_in_flight", 0).await;
    broker.counts("call_bytes", 0).await;
}

#[tokio::test]
async fn an_error_is_the_reply_to_its_part_and_each_policy_counts_parts() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut one = Serving::open(&calls, named("s", "one", 0)).await;
    let mut two = Serving::open(&calls, named("s", "two", 0)).await;

    let mut asking = begin(&calls, 2, GatherPolicy::default(), 2).await;
    let asked = one.one().await;
    one.reply(vec![fault(asked.request_id)]).await;
    let failed = asking.reply().await;
    assert_eq!((failed.part, &*failed.responder_id, failed.error.unwrap().code), (Some(0), "one", 5));
    answers(&mut two, "well").await;
    assert_eq!(heard(&mut asking).await.0, 1);
    assert_eq!(counted(&asking.summary().await), (GatherEnd::Complete, 1, 1, false));

    let quorum = GatherPolicy { min_replies: 2, ..Default::default() };
    let most = GatherPolicy { max_replies: 2, min_replies: 1, wait_for_all: true, ..Default::default() };
    for (policy, end) in [(quorum, GatherEnd::Quorum), (most, GatherEnd::MaxReplies)] {
        let mut asking = begin(&calls, 9, policy, 2).await;
        let in_hand = one.one().await;
        for at in [1, 2] {
            assert_eq!(answers(&mut two, "").await, at);
            assert_eq!(heard(&mut asking).await.0, at);
        }
        let summary = asking.summary().await;
        assert_eq!(counted(&summary), (end, 2, 0, true));
        let mut all = vec![(0, MissingReason::Silent, "one"), (3, MissingReason::Silent, "two")];
        all.extend((4..9).map(|at| (at, MissingReason::NotAsked, "")));
        assert_eq!(missing(&summary), all);
        // Those who have one are told that nobody waits, and get no further ones.
        assert_eq!(one.cancelled().await, [in_hand.request_id]);
        let last = two.one().await;
        assert_eq!(two.cancelled().await, [last.request_id]);
    }

    let first = GatherPolicy { stop_on_error: true, ..Default::default() };
    let mut asking = begin(&calls, 3, first, 2).await;
    let (asked, other) = (one.one().await, two.one().await);
    one.reply(vec![fault(asked.request_id)]).await;
    assert_eq!(asking.reply().await.part, Some(part_of(&asked)));
    assert_eq!(counted(&asking.summary().await), (GatherEnd::Error, 0, 1, false));
    assert_eq!(two.cancelled().await, [other.request_id]);
    // It had answered: what it got then is taken back.
    let next = one.one().await;
    assert_eq!(one.cancelled().await, [next.request_id]);

    for (policy, end) in [
        (GatherPolicy { timeout: millis(1000), ..Default::default() }, GatherEnd::Deadline),
        (GatherPolicy { stall: millis(1000), ..Default::default() }, GatherEnd::Stall),
    ] {
        let asking = begin(&calls, 2, policy, 2).await;
        let (first, second) = (one.one().await, two.one().await);
        assert_eq!(first.deadline.is_some(), end == GatherEnd::Deadline);
        assert_eq!(counted(&asking.summary().await), (end, 0, 0, false));
        assert_eq!(one.cancelled().await, [first.request_id]);
        assert_eq!(two.cancelled().await, [second.request_id]);
    }
}

#[tokio::test]
async fn replies_to_parts_that_nobody_waits_for_are_refused() {
    let (_directory, path) = config_file("[limits]\nmax_payload_bytes = \"1KiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut one = Serving::open(&calls, named("s", "one", 0)).await;
    let mut two = Serving::open(&calls, named("s", "two", 0)).await;
    let mut asking = begin(&calls, 4, GatherPolicy::default(), 2).await;
    let (first, second) = (one.one().await, two.one().await);
    // Another's, one that was never sent, a part of an answer, and two where one is due.
    two.reply(vec![reply(7, "")]).await;
    assert_eq!(why(&two.refused().await[0]), (7, "UNKNOWN_REQUEST".to_owned()));
    let id = first.request_id;
    one.reply(vec![v1::ServeReply { more: true, ..reply(id, "") }, reply(id, "done"), reply(id, "again")])
        .await;
    let refused: Vec<_> = one.refused().await.iter().map(why).collect();
    assert_eq!(refused, [(id, "ONE_REPLY".to_owned()), (id, "ANSWERED_ALREADY".to_owned())]);
    assert_eq!(heard(&mut asking).await, (0, "one".into(), "done".into()));
    // One that is too large ends its part, and goes to nobody else.
    two.reply(vec![reply(second.request_id, &"x".repeat(1025))]).await;
    assert_eq!(why(&two.refused().await[0]), (second.request_id, String::new()));
    let bad = asking.reply().await;
    let bad =
        (bad.part, reason(&tonic_types::RpcStatusExt::get_error_details(&bad.error.unwrap())).to_owned());
    assert_eq!(bad, (Some(1), "BAD_REPLY".to_owned()));
    let (first, second) = (one.one().await, two.one().await);
    assert_eq!([part_of(&first), part_of(&second)], [2, 3]);
    // The caller vanishes: both are told, and what they say late is refused.
    drop(asking);
    for (serving, asked) in [(&mut one, first), (&mut two, second)] {
        assert_eq!(serving.cancelled().await, [asked.request_id]);
        serving.reply(vec![reply(asked.request_id, "late")]).await;
        assert_eq!(why(&serving.refused().await[0]), (asked.request_id, "REQUEST_OVER".to_owned()));
    }
    broker.counts("call_replies_over_total", 2).await;
    broker.counts("calls_in_flight", 0).await;
    broker.counts("call_bytes", 0).await;
}

#[tokio::test]
async fn one_that_does_not_read_keeps_its_parts_and_no_others() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let stuck = Serving::open(&calls, named("s", "stuck", 0)).await;
    Serving::open(&calls, named("s", "well", 0)).await.echo();
    let mut asking = begin(&calls, 50, GatherPolicy::default(), 2).await;
    for at in 1..50 {
        let (part, by, _) = heard(&mut asking).await;
        assert_eq!((part, &*by), (at, "well"));
    }
    // What it had is done when it is gone.
    drop(stuck);
    assert_eq!(heard(&mut asking).await, (0, "well".into(), "part 0 by well".into()));
    assert_eq!(counted(&asking.summary().await), (GatherEnd::Complete, 50, 0, true));
    broker.counts("calls_in_flight", 0).await;
}

#[tokio::test]
async fn a_caller_that_reads_slowly_slows_its_parts_and_misses_nothing() {
    let (_directory, path) = config_file("[limits]\ngather_bytes = \"1MiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, named("s", "one", 0)).await;
    let mut asking = begin(&calls, 80, GatherPolicy::default(), 1).await;
    let large = "x".repeat(200_000);
    let answering = async {
        for _ in 0..80 {
            answers(&mut serving, &large).await;
        }
    };
    let reading = async {
        // Not before as much waits as may.
        within("much to read", async { while broker.count("call_bytes").await < 512 << 10 {} }).await;
        for at in 0..80 {
            assert_eq!(heard(&mut asking).await.0, at);
        }
    };
    tokio::join!(answering, reading);
    assert!(asking.summary().await.quorum_met);
    broker.counts("call_bytes", 0).await;
}

#[tokio::test]
async fn parts_that_are_left_by_a_stream_of_the_greatest_age_say_that_nobody_serves() {
    let (_directory, path) = config_file("[grpc]\nmax_stream_age = \"1s\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut one = Serving::open(&calls, named("s", "one", 0)).await;
    let mut asking = begin(&calls, 3, GatherPolicy::default(), 1).await;
    let asked = one.one().await;
    let mut looking = calls.clone();
    within("the age", async { while !looking.responders("s").await[0].draining {} }).await;
    one.reply(vec![reply(asked.request_id, "done")]).await;
    assert_eq!(heard(&mut asking).await.0, 0);
    let summary = asking.summary().await;
    let left = [(1, MissingReason::NotAsked, ""), (2, MissingReason::NotAsked, "")];
    assert_eq!(
        (counted(&summary), missing(&summary)),
        ((GatherEnd::NoResponders, 1, 0, false), left.to_vec())
    );
}

#[tokio::test]
async fn a_wrong_request_in_parts_names_what_is_wrong() {
    let (_directory, path) =
        config_file("[limits]\ngather_parts = 3\nmax_calls = 3\nmax_payload_bytes = \"1KiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut calls = Calls::of(&broker).await;
    let refused = async |calls: &mut Calls, request: v1::MulticastRequest| {
        let unary = v1::GatherRequest {
            service: request.service.clone(),
            request: request.request.clone(),
            parts: request.parts.clone(),
            policy: request.policy,
            ..Default::default()
        };
        let stream = within("an answer", calls.0.multicast(request)).await.unwrap_err();
        let unary = within("an answer", calls.0.gather(unary)).await.unwrap_err();
        assert_eq!((stream.code(), stream.message()), (unary.code(), unary.message()));
        stream
    };
    let nobody = refused(&mut calls, divided(3, GatherPolicy::default())).await;
    assert_eq!((nobody.code(), &*reason_of(&nobody)), (Code::Unavailable, "NO_RESPONDERS"));
    let mut one = Serving::open(&calls, named("s", "one", 0)).await;
    let many = refused(&mut calls, divided(4, GatherPolicy::default())).await;
    assert_eq!((many.code(), &*reason_of(&many)), (Code::ResourceExhausted, "LIMIT_REACHED"));
    assert!(many.message().contains("limits.gather_parts"), "{many:?}");
    // That is looked at before any of them is.
    let wrong = v1::Message { topic: "t".to_owned(), ..Default::default() };
    let wrong = v1::MulticastRequest { parts: vec![wrong; 4], ..divided(0, GatherPolicy::default()) };
    assert_eq!(refused(&mut calls, wrong).await.message(), many.message());
    let both = v1::MulticastRequest { request: Some(message("x")), ..divided(1, GatherPolicy::default()) };
    let in_hand = GatherPolicy { parts_in_hand: 1, ..Default::default() };
    let without = v1::MulticastRequest { parts: vec![], ..divided(0, in_hand) };
    let with =
        |part| v1::MulticastRequest { parts: vec![message("x"), part], ..divided(0, Default::default()) };
    for (request, named) in [
        (both, "request"),
        (without, "policy.parts_in_hand"),
        (with(v1::Message { topic: "t".to_owned(), ..Default::default() }), "parts[1].topic"),
        (with(message(&"x".repeat(1025))), "parts[1].payload"),
    ] {
        let status = refused(&mut calls, request).await;
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, named), "{status:?}");
    }
    // Nothing of all that was asked, nor of parts that are calls too many.
    let call = calls.begin(asking_plain());
    let asked = one.one().await;
    let many = refused(&mut calls, divided(3, GatherPolicy::default())).await;
    assert_eq!((many.code(), &*reason_of(&many)), (Code::ResourceExhausted, "LIMIT_REACHED"));
    assert!(many.message().contains("limits.max_calls"), "{many:?}");
    one.reply(vec![reply(asked.request_id, "well")]).await;
    assert_eq!((asked.request_id, answered(call).await), (1, "well".to_owned()));
    let mut asking = begin(&calls, 3, GatherPolicy::default(), 1).await;
    let asked = one.one().await;
    assert_eq!((asked.request_id, part_of(&asked)), (2, 0));
    one.say(Action::Drain(v1::Drain {})).await;
    one.reply(vec![reply(asked.request_id, "done")]).await;
    assert_eq!(heard(&mut asking).await.0, 0);
    let summary = asking.summary().await;
    let left = [(1, MissingReason::NotAsked, ""), (2, MissingReason::NotAsked, "")];
    assert_eq!((summary.end(), missing(&summary)), (GatherEnd::NoResponders, left.to_vec()));
    broker.counts("call_bytes", 0).await;
}

#[tokio::test]
async fn parts_are_given_on_the_command_line() {
    let broker = Broker::start().await;
    let url = broker.url();
    let script = "read n; [ $n != 3 ] || exit 9; printf '%s of %s/%s' $((n * n)) $CALL_PART $CALL_PARTS";
    let mut serving = crate::harness::Process::start([
        "serve-with",
        "--server",
        &url,
        "s",
        "--id",
        "one",
        "--",
        "sh",
        "-c",
        script,
    ]);
    serving.says("serving").await;
    let ended = stafett_reading("1\n2\n", ["gather", "--server", &url, "s", "--parts", "-"]).await;
    assert_eq!(
        (ended.code, &*ended.stdout),
        (Some(0), "one 0 1 of 0/2\none 1 4 of 1/2\n"),
        "{}",
        ended.stderr
    );
    assert_eq!(ended.stderr, "2 parts, 1 serve\n2 of 2 parts answered by 1, 0 failed: complete\n");

    let args = ["--part", "2", "--part", "3", "--part", "4", "--stop-on-error"];
    let ended = stafett(["gather", "--server", &url, "s"].into_iter().chain(args)).await;
    assert_eq!((ended.code, &*ended.stdout), (Some(1), "one 0 4 of 0/3\n"), "{}", ended.stderr);
    assert!(ended.stderr.contains("warning: one 1: sh has ended with exit status: 9"), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("1 of 3 parts answered by 1, 1 failed: error; part 2 "),
        "{}",
        ended.stderr
    );

    let json = ["--part", "5", "--parts-in-hand", "4", "--json"];
    let ended = stafett(["gather", "--server", &url, "s"].into_iter().chain(json)).await;
    let lines: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["part"], &lines[0]["payload"]), (&0.into(), &"25 of 0/1".into()));
    assert_eq!((&lines[1]["parts"], &lines[1]["missing_parts"]), (&1.into(), &serde_json::json!([])));

    // Nobody is left.
    let dies = ["serve-with", "--server", &url, "dying", "--", "sh", "-c", "kill -9 $PPID"];
    let mut dying = crate::harness::Process::start(dies);
    dying.says("serving").await;
    let ended = stafett(["gather", "--server", &url, "dying", "--part", "1", "--part", "2"]).await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("0 of 2 parts answered by 1, 0 failed: no_responders; part 0 lost"),
        "{}",
        ended.stderr
    );

    for wrong in [&["--parts", "/nowhere/at/all"][..], &["body", "--part", "1"]] {
        let ended = stafett(["gather", "--server", &url, "s"].into_iter().chain(wrong.iter().copied())).await;
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    }
}
