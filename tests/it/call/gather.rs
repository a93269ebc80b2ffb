//! One request to everyone who serves.

use std::time::Duration;

use stafett::grpc::proto::v1::multicast_response::Event as Heard;
use stafett::grpc::proto::v1::{GatherEnd, GatherPolicy, MissingReason};
use tonic::Code;
use tonic_types::{RpcStatusExt, pb};

use super::*;
use crate::queue::{field, seconds};

pub(crate) fn everyone(service: &str, payload: &str, policy: GatherPolicy) -> v1::MulticastRequest {
    let service = service.to_owned();
    v1::MulticastRequest {
        service,
        request: Some(message(payload)),
        policy: Some(policy),
        ..Default::default()
    }
}

fn at_once(service: &str, policy: GatherPolicy) -> v1::GatherRequest {
    let service = service.to_owned();
    v1::GatherRequest { service, request: Some(message("x")), policy: Some(policy), ..Default::default() }
}

/// Begins a `Gather`.
fn begin(calls: &Calls, policy: GatherPolicy) -> JoinHandle<Result<Response<v1::GatherResponse>, Status>> {
    let mut client = calls.0.clone();
    #[expect(clippy::disallowed_methods, reason = "a test waits for it")]
    tokio::spawn(async move { client.gather(at_once("s", policy)).await })
}

pub(super) fn millis(millis: u64) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(Duration::from_millis(millis)).ok()
}

/// A multicast as it comes.
pub(crate) struct Asking(Streaming<v1::MulticastResponse>);

impl Asking {
    /// Everyone is asked; so many are.
    pub(crate) async fn begin(calls: &Calls, request: v1::MulticastRequest, asked: u32) -> Self {
        let mut asking = Self(got(calls.0.clone().multicast(request)).await);
        let Heard::Opened(opened) = asking.next().await else { panic!("not opened") };
        assert_eq!(opened.asked, asked);
        asking
    }

    async fn next(&mut self) -> Heard {
        within("an event", self.0.message()).await.unwrap().unwrap().event.unwrap()
    }

    pub(crate) async fn reply(&mut self) -> v1::Reply {
        match self.next().await {
            Heard::Reply(reply) => reply,
            other => panic!("not a reply: {other:?}"),
        }
    }

    /// Who has replied, and what.
    pub(crate) async fn said(&mut self) -> (String, String) {
        let reply = self.reply().await;
        assert_eq!(reply.error, None);
        (reply.responder_id, text(reply.message.as_ref()))
    }

    /// Who has failed, with the code and the reason.
    async fn fault(&mut self) -> (String, Code, String) {
        let reply = self.reply().await;
        let error = reply.error.unwrap();
        (reply.responder_id, Code::from(error.code), reason(&error.get_error_details()).to_owned())
    }

    pub(crate) async fn summary(mut self) -> v1::GatherSummary {
        let Heard::Summary(summary) = self.next().await else { panic!("not the summary") };
        assert_eq!(within("the end", self.0.message()).await.unwrap(), None);
        let all = if summary.parts > 0 { summary.parts } else { summary.asked };
        let missing = summary.missing.len() + summary.missing_parts.len();
        assert_eq!(all as usize, (summary.replied + summary.failed) as usize + missing);
        summary
    }
}

pub(crate) fn missing(summary: &v1::GatherSummary) -> Vec<(&str, MissingReason)> {
    summary.missing.iter().map(|missing| (&*missing.responder_id, missing.reason())).collect()
}

pub(super) fn counted(summary: &v1::GatherSummary) -> (GatherEnd, u32, u32, bool) {
    (summary.end(), summary.replied, summary.failed, summary.quorum_met)
}

async fn serving<const N: usize>(calls: &Calls, names: [&str; N]) -> Vec<Serving> {
    let mut all = Vec::new();
    for name in names {
        all.push(Serving::open(calls, named("s", name, 0)).await);
    }
    all
}

/// Takes the request and answers with its own name.
async fn answers(serving: &mut Serving) {
    let asked = serving.one().await;
    let name = serving.opened.responder_id.clone();
    serving.reply(vec![reply(asked.request_id, &name)]).await;
}

#[tokio::test]
async fn everyone_is_asked_and_heard() {
    let broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    let mut all = serving(&calls, ["a", "b", "c"]).await;
    let mut asking = Asking::begin(&calls, everyone("s", "how", GatherPolicy::default()), 3).await;
    // Each comes as it is said.
    for at in [1, 2, 0] {
        let asked = all[at].one().await;
        assert_eq!(
            (text(asked.message.as_ref()), asked.takes_parts, asked.attempt),
            ("how".into(), false, 1)
        );
        let name = all[at].opened.responder_id.clone();
        all[at].reply(vec![reply(asked.request_id, &format!("{name} is well"))]).await;
        assert_eq!(asking.said().await, (name.clone(), format!("{name} is well")));
    }
    let summary = asking.summary().await;
    assert_eq!(counted(&summary), (GatherEnd::Complete, 3, 0, true));

    // The same as one answer; an error is one too.
    let gathered = begin(&calls, GatherPolicy::default());
    answers(&mut all[2]).await;
    answers(&mut all[0]).await;
    let asked = all[1].one().await;
    let error = pb::Status { code: 5, message: "no idea".to_owned(), details: vec![] };
    all[1]
        .reply(vec![v1::ServeReply {
            request_id: asked.request_id,
            error: Some(error),
            ..Default::default()
        }])
        .await;
    let gathered = got(async { gathered.await.unwrap() }).await;
    let mut names: Vec<_> = gathered.replies.iter().map(|reply| &*reply.responder_id).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b", "c"]);
    let failed = gathered.replies.iter().find(|reply| reply.error.is_some()).unwrap();
    assert_eq!((&*failed.responder_id, &*failed.error.as_ref().unwrap().message), ("b", "no idea"));
    assert!(failed.latency.is_none() && failed.message.is_none());
    assert_eq!(counted(&gathered.summary.unwrap()), (GatherEnd::Complete, 2, 1, false));
    broker.counts("calls_in_flight", 0).await;
    broker.counts("call_bytes", 0).await;
    broker.counts("multicasts_total", 2).await;
    assert!(calls.responders("s").await.iter().all(|one| one.served == 2 && one.in_flight == 0));
}

#[tokio::test]
async fn who_is_silent_lost_or_refused_is_named() {
    let (_directory, path) = crate::harness::config_file("[limits]\nmax_payload_bytes = \"1KiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut all = serving(&calls, ["well", "silent", "lost", "large"]).await;
    let policy = GatherPolicy { stall: millis(400), ..Default::default() };
    let mut asking = Asking::begin(&calls, everyone("s", "", policy), 4).await;
    answers(&mut all[0]).await;
    assert_eq!(asking.said().await.0, "well");
    let asked = all[3].one().await;
    all[3].reply(vec![reply(asked.request_id, &"x".repeat(1025))]).await;
    assert_eq!(asking.fault().await, ("large".into(), Code::Internal, "BAD_REPLY".into()));
    assert_eq!(all[3].refused().await.len(), 1);
    let mut lost = all.remove(2);
    lost.one().await;
    drop(lost);
    assert_eq!(asking.fault().await, ("lost".into(), Code::Aborted, "RESPONDER_LOST".into()));
    let silent = all[1].one().await;
    let summary = asking.summary().await;
    assert_eq!(counted(&summary), (GatherEnd::Stall, 1, 0, false));
    let why =
        [("silent", MissingReason::Silent), ("lost", MissingReason::Lost), ("large", MissingReason::Refused)];
    assert_eq!(missing(&summary), why);
    assert_eq!(all[1].cancelled().await, [silent.request_id]);
    broker.counts("calls_in_flight", 0).await;
}

#[tokio::test]
async fn it_ends_with_enough_replies_or_an_error() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut all = serving(&calls, ["a", "b", "c"]).await;
    let quorum = |count| GatherPolicy { min_replies: count, ..Default::default() };
    let end = async |policy, all: &mut Vec<Serving>, fails: bool| {
        let mut asking = Asking::begin(&calls, everyone("s", "", policy), 3).await;
        for serving in &mut all[..2] {
            answers(serving).await;
            asking.said().await;
        }
        let asked = all[2].one().await;
        if fails {
            let error = pb::Status { code: 5, message: "no idea".to_owned(), details: vec![] };
            let error =
                v1::ServeReply { request_id: asked.request_id, error: Some(error), ..Default::default() };
            all[2].reply(vec![error]).await;
            asking.fault().await;
        } else {
            assert_eq!(all[2].cancelled().await, [asked.request_id]);
        }
        counted(&asking.summary().await)
    };
    assert_eq!(end(quorum(2), &mut all, false).await, (GatherEnd::Quorum, 2, 0, true));
    let most = GatherPolicy { max_replies: 2, ..Default::default() };
    assert_eq!(end(most, &mut all, false).await, (GatherEnd::MaxReplies, 2, 0, true));
    let most = GatherPolicy { max_replies: 2, wait_for_all: true, ..quorum(1) };
    assert_eq!(end(most, &mut all, false).await, (GatherEnd::MaxReplies, 2, 0, true));
    let all_of_them = GatherPolicy { wait_for_all: true, ..quorum(1) };
    assert_eq!(end(all_of_them, &mut all, true).await, (GatherEnd::Complete, 2, 1, true));
    all.swap(0, 2);
    let first = GatherPolicy { stop_on_error: true, ..Default::default() };
    let mut asking = Asking::begin(&calls, everyone("s", "", first), 3).await;
    let asked = all[0].one().await;
    let error = pb::Status { code: 5, message: "no idea".to_owned(), details: vec![] };
    let error = v1::ServeReply { request_id: asked.request_id, error: Some(error), ..Default::default() };
    all[0].reply(vec![error]).await;
    assert_eq!(asking.fault().await.1, Code::NotFound);
    assert_eq!(counted(&asking.summary().await), (GatherEnd::Error, 0, 1, false));
    for serving in &mut all[1..] {
        let asked = serving.one().await;
        assert_eq!(serving.cancelled().await, [asked.request_id]);
    }
}

#[tokio::test]
async fn its_time_ends_it_at_both_ends() {
    let broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    let mut all = serving(&calls, ["a", "b"]).await;
    let policy = GatherPolicy { timeout: millis(400), ..Default::default() };
    let gathered = begin(&calls, policy);
    answers(&mut all[0]).await;
    let asked = all[1].one().await;
    assert!(asked.deadline.is_some());
    let gathered = got(async { gathered.await.unwrap() }).await;
    let summary = gathered.summary.unwrap();
    assert_eq!(counted(&summary), (GatherEnd::Deadline, 1, 0, false));
    assert_eq!(missing(&summary), [("b", MissingReason::Silent)]);
    assert_eq!(gathered.replies.len(), 1);
    assert_eq!(all[1].cancelled().await, [asked.request_id]);

    // Without a time of its own the RPC's deadline ends it, without a summary. A caller that leaves ends it too.
    let mut request = Request::new(everyone("s", "", GatherPolicy::default()));
    request.set_timeout(Duration::from_millis(300));
    let mut asking = Asking(got(calls.0.multicast(request)).await);
    asking.next().await;
    let asked = all[1].one().await;
    let status = within("the end", asking.0.message()).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    assert_eq!(all[1].cancelled().await, [asked.request_id]);
    all[0].one().await;
    all[0].cancelled().await;
    let asking = Asking::begin(&calls, everyone("s", "", GatherPolicy::default()), 2).await;
    for serving in &mut all {
        serving.one().await;
    }
    drop(asking);
    for serving in &mut all {
        assert_eq!(serving.cancelled().await.len(), 1);
    }
    broker.counts("calls_in_flight", 0).await;
}

#[tokio::test]
async fn with_nobody_there_or_a_wrong_policy_nobody_is_asked() {
    let (_directory, path) = crate::harness::config_file("[limits]\ngather_responders = 2\nmax_calls = 3\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut calls = Calls::of(&broker).await;
    let mut refused = async |policy: GatherPolicy| {
        let stream = within("an answer", calls.0.multicast(everyone("s", "", policy))).await.unwrap_err();
        let unary = within("an answer", calls.0.gather(at_once("s", policy))).await.unwrap_err();
        assert_eq!((stream.code(), reason_of(&stream)), (unary.code(), reason_of(&unary)));
        stream
    };
    let nobody = refused(GatherPolicy::default()).await;
    assert_eq!((nobody.code(), &*reason_of(&nobody)), (Code::Unavailable, "NO_RESPONDERS"));
    let calls = Calls::of(&broker).await;
    let mut all = serving(&calls, ["a", "b"]).await;
    for (policy, named) in [
        (GatherPolicy { min_replies: 3, max_replies: 2, ..Default::default() }, "policy.max_replies"),
        (GatherPolicy { stall: seconds(0), ..Default::default() }, "policy.stall"),
        (GatherPolicy { timeout: seconds(86_401), ..Default::default() }, "policy.timeout"),
    ] {
        let status = refused(policy).await;
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, named));
    }
    // Two are asked, and two calls more would be too many: then nobody is.
    let asking = Asking::begin(&calls, everyone("s", "", GatherPolicy::default()), 2).await;
    let status = refused(GatherPolicy::default()).await;
    assert_eq!((status.code(), &*reason_of(&status)), (Code::ResourceExhausted, "LIMIT_REACHED"));
    for serving in &mut all {
        serving.one().await;
    }
    drop(asking);
    for serving in &mut all {
        serving.cancelled().await;
    }
    let _third = Serving::open(&calls, named("s", "c", 0)).await;
    let status = refused(GatherPolicy::default()).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("too many responders"), "{status:?}");
    broker.counts("calls_refused_total", 4).await;
    broker.counts("calls_in_flight", 0).await;
}

#[tokio::test]
async fn who_has_no_room_is_asked_next_and_never_has_more_than_it_takes() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut one = Serving::open(&calls, named("s", "one", 1)).await;
    let first = calls.begin(asking("s", "first"));
    let in_hand = one.one().await;
    let second = calls.begin(asking("s", "second"));
    broker.counts("calls_in_flight", 2).await;
    let mut waits = Asking::begin(&calls, everyone("s", "to all", GatherPolicy::default()), 1).await;
    let given_up = Asking::begin(&calls, everyone("s", "given up", GatherPolicy::default()), 1).await;
    drop(given_up);
    broker.counts("calls_in_flight", 3).await;
    one.reply(vec![reply(in_hand.request_id, "1")]).await;
    let asked = one.one().await;
    assert_eq!(text(asked.message.as_ref()), "to all");
    one.reply(vec![reply(asked.request_id, "2")]).await;
    assert_eq!(waits.said().await.1, "2");
    assert!(waits.summary().await.quorum_met);
    let asked = one.one().await;
    assert_eq!(text(asked.message.as_ref()), "second");
    // What waits for one that drains or leaves is for nobody else.
    let mut other = Serving::open(&calls, named("s", "other", 1)).await;
    let mut waits = Asking::begin(&calls, everyone("s", "to both", GatherPolicy::default()), 2).await;
    one.say(Action::Drain(v1::Drain {})).await;
    assert_eq!(waits.fault().await, ("one".into(), Code::Aborted, "RESPONDER_LOST".into()));
    answers(&mut other).await;
    assert_eq!(waits.said().await.0, "other");
    assert_eq!(missing(&waits.summary().await), [("one", MissingReason::Lost)]);
    one.reply(vec![reply(asked.request_id, "3")]).await;
    assert_eq!((answered(first).await, answered(second).await), ("1".into(), "3".into()));
}

#[tokio::test]
async fn replies_that_are_not_read_are_bounded() {
    let (_directory, path) = crate::harness::config_file("[limits]\ngather_bytes = \"1KiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut all = serving(&calls, ["a", "b", "c"]).await;
    let gathered = begin(&calls, GatherPolicy::default());
    for (serving, left) in all.iter_mut().zip([2, 1, 0]) {
        let asked = serving.one().await;
        serving.reply(vec![reply(asked.request_id, &"x".repeat(500))]).await;
        broker.counts("calls_in_flight", left).await;
    }
    let gathered = got(async { gathered.await.unwrap() }).await;
    let summary = gathered.summary.unwrap();
    assert_eq!(counted(&summary), (GatherEnd::Complete, 1, 0, false));
    assert_eq!(missing(&summary), [("b", MissingReason::Refused), ("c", MissingReason::Refused)]);
    let why = gathered.replies[1].error.as_ref().unwrap();
    assert_eq!(reason(&why.get_error_details()), "LIMIT_REACHED");
    broker.counts("call_bytes", 0).await;

    // Who reads as they come has them all.
    let mut asking = Asking::begin(&calls, everyone("s", "", GatherPolicy::default()), 3).await;
    for serving in &mut all {
        let asked = serving.one().await;
        serving.reply(vec![reply(asked.request_id, &"x".repeat(500))]).await;
        assert_eq!(asking.said().await.1.len(), 500);
    }
    assert!(asking.summary().await.quorum_met);
    broker.counts("call_bytes", 0).await;
}

#[tokio::test]
async fn a_filter_asks_the_services_that_it_matches() {
    let (_directory, path) = crate::harness::config_file("[limits]\ngather_responders = 3\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut calls = Calls::of(&broker).await;
    let request = |filter: &str| v1::MulticastRequest {
        filter: filter.to_owned(),
        request: Some(message("x")),
        ..Default::default()
    };
    let refused = async |calls: &mut Calls, request: v1::MulticastRequest| {
        let v1::MulticastRequest { service, request: asked, policy, parts, filter, listeners } =
            request.clone();
        let unary = v1::GatherRequest { service, request: asked, policy, parts, filter, listeners };
        let stream = within("an answer", calls.0.multicast(request)).await.unwrap_err();
        let unary = within("an answer", calls.0.gather(unary)).await.unwrap_err();
        assert_eq!((stream.code(), stream.message()), (unary.code(), unary.message()));
        stream
    };
    let mut one = Serving::open(&calls, named("text/upper", "one", 0)).await;
    let mut two = Serving::open(&calls, named("text/lower", "two", 0)).await;
    let mut deep = Serving::open(&calls, named("text/lower/all", "deep", 0)).await;
    let nobody = refused(&mut calls, request("text/+/some")).await;
    assert_eq!((nobody.code(), &*reason_of(&nobody)), (Code::Unavailable, "NO_RESPONDERS"));
    assert_eq!(nobody.message(), "nobody serves `text/+/some`");
    for (filter, asked) in [
        ("text/+", [true, true, false]),
        ("text/#", [true, true, true]),
        ("text/upper", [true, false, false]),
        ("+/lower/#", [false, true, true]),
        ("#", [true, true, true]),
    ] {
        let all = asked.iter().map(|asked| u32::from(*asked)).sum();
        let asking = Asking::begin(&calls, request(filter), all).await;
        for (serving, _) in [&mut one, &mut two, &mut deep].into_iter().zip(asked).filter(|(_, asked)| *asked)
        {
            answers(serving).await;
        }
        heard_all(asking, all).await;
    }
    for (request, named) in [
        (v1::MulticastRequest { service: "s".to_owned(), ..request("#") }, "filter"),
        (v1::MulticastRequest { parts: vec![message("x")], request: None, ..request("#") }, "filter"),
        (
            v1::MulticastRequest { parts: vec![message("x")], request: None, listeners: true, ..request("") },
            "listeners",
        ),
        (request("a/#/b"), "filter"),
        (request("$SYS/#"), "filter"),
        (request("$share/g/a"), "filter"),
    ] {
        let status = refused(&mut calls, request).await;
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, named), "{status:?}");
    }
    // One more than may be asked: those that were are told that nobody waits.
    let _fourth = Serving::open(&calls, named("text/zip", "four", 0)).await;
    let many = refused(&mut calls, request("text/#")).await;
    assert_eq!((many.code(), &*reason_of(&many)), (Code::ResourceExhausted, "LIMIT_REACHED"));
    assert!(many.message().contains("limits.gather_responders"), "{many:?}");
    broker.counts("calls_in_flight", 0).await;
    broker.counts("call_bytes", 0).await;
}

/// Takes so many replies, and the summary.
async fn heard_all(mut asking: Asking, all: u32) {
    for _ in 0..all {
        asking.said().await;
    }
    assert!(asking.summary().await.quorum_met);
}
