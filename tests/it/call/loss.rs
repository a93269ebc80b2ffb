//! Callers and responders that go away, deadlines, drain and stop.

use std::time::Duration;

use rustix::process::Signal;
use tonic::Code;

use super::*;

/// The client has a clock of its own, which says CANCELLED when it is the first.
fn is_late(status: &Status) -> bool {
    matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
}

#[tokio::test]
async fn without_a_responder_the_answer_comes_at_once() {
    let broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    // Without a deadline nothing else would end it.
    let status = calls.refused(asking("nobody/serves/this", "")).await;
    assert_eq!((status.code(), &*reason_of(&status)), (Code::Unavailable, "NO_RESPONDERS"));
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["service"], "nobody/serves/this");
    drop(Serving::open(&calls, opening("s")).await);
    broker.counts("responders", 0).await;
    let status = calls.refused(asking("s", "")).await;
    assert_eq!(reason_of(&status), "NO_RESPONDERS");
    broker.counts("calls_no_responders_total", 2).await;
}

#[tokio::test]
async fn a_deadline_ends_the_call_at_both_ends() {
    let broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, named("s", "one", 1)).await;
    let call = calls.begin(within_time(asking("s", "in hand"), Duration::from_millis(200)));
    serving.one().await;
    // This one never reaches the responder.
    let late = calls.refused(within_time(asking("s", "waits"), Duration::from_millis(20))).await;
    assert!(is_late(&late) && is_late(&failed(call).await));
    assert_eq!(serving.cancelled().await, [1]);
    serving.reply(vec![reply(1, "too late")]).await;
    let refused = serving.refused().await.remove(0);
    assert_eq!(refused.request_id, 1);
    assert!(refused.error.unwrap().message.contains("is over"));
    // The room that it took is there again.
    let call = calls.begin(asking("s", "next"));
    let next = serving.one().await;
    assert_eq!(next.request_id, 2);
    serving.reply(vec![reply(2, "in time")]).await;
    assert_eq!(answered(call).await, "in time");
    broker.counts("calls_cancelled_total", 2).await;
    broker.counts("call_replies_over_total", 1).await;
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_its_call() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, opening("s")).await;
    let call = calls.begin(asking("s", ""));
    serving.one().await;
    call.abort();
    assert_eq!(serving.cancelled().await, [1]);
    broker.counts("calls_in_flight", 0).await;
}

#[tokio::test]
async fn a_lost_responder_is_told_or_another_is_asked() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut lost = Serving::open(&calls, named("s", "lost", 0)).await;
    let once = calls.begin(asking("s", "once"));
    let again = calls.begin(v1::CallRequest { idempotent: true, ..asking("s", "again") });
    lost.take(2).await;
    let mut other = Serving::open(&calls, named("s", "other", 0)).await;
    drop(lost);
    let status = failed(once).await;
    assert_eq!((status.code(), &*reason_of(&status)), (Code::Aborted, "RESPONDER_LOST"));
    assert_eq!(status.get_error_details().error_info().unwrap().metadata["responder"], "lost");
    let heard = other.one().await;
    assert_eq!((text(heard.message.as_ref()), heard.attempt), ("again".to_owned(), 2));
    other.reply(vec![reply(heard.request_id, "done")]).await;
    assert_eq!(answered(again).await, "done");

    // The last one that is lost leaves nobody to ask. One that closes its side will not answer either.
    let again = calls.begin(v1::CallRequest { idempotent: true, ..asking("s", "") });
    other.one().await;
    other.finish();
    assert_eq!(reason_of(&failed(again).await), "NO_RESPONDERS");
    assert!(other.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_responder_that_does_not_read_keeps_nobody_else_waiting() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let _stuck = Serving::open(&calls, named("s", "stuck", 4)).await;
    Serving::open(&calls, named("s", "well", 64)).await.echo();
    let large = "x".repeat(100_000);
    let begun: Vec<_> =
        (0..40).map(|_| calls.begin(within_time(asking("s", &large), Duration::from_millis(1500)))).collect();
    let (mut well, mut late) = (0, 0);
    for call in begun {
        match within("an answer", call).await.unwrap() {
            Ok(_) => well += 1,
            Err(status) => {
                assert!(is_late(&status), "{status:?}");
                late += 1;
            }
        }
    }
    assert!(well >= 36 && late <= 4, "{well} answered, {late} late");
}

#[tokio::test]
async fn a_responder_that_drains_finishes_what_it_has() {
    let broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, named("s", "one", 1)).await;
    let call = calls.begin(asking("s", "in hand"));
    serving.one().await;
    serving.say(Action::Drain(v1::Drain {})).await;
    within("the drain", async { while !calls.responders("s").await[0].draining {} }).await;
    assert_eq!(reason_of(&calls.refused(asking("s", "")).await), "NO_RESPONDERS");
    serving.reply(vec![reply(1, "done")]).await;
    assert_eq!(answered(call).await, "done");
    assert!(serving.next().await.unwrap().is_none());
    assert_eq!(calls.responders("s").await, []);
}

#[tokio::test]
async fn a_stop_lets_calls_in_flight_end() {
    let mut broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, opening("s")).await;
    let call = calls.begin(asking("s", ""));
    serving.one().await;
    let mut others = Calls::of(&broker).await;
    broker.process().signal(Signal::TERM);
    // Nobody is asked any more, and nobody may begin.
    within("the stop", async {
        while others
            .0
            .list_responders(v1::ListRespondersRequest::default())
            .await
            .is_ok_and(|list| list.into_inner().responders.iter().any(|one| !one.draining))
        {}
    })
    .await;
    calls.refused(asking("s", "")).await;
    serving.reply(vec![reply(1, "done")]).await;
    assert_eq!(answered(call).await, "done");
    let Event::Closing(closing) = serving.hear().await else { panic!("not closing") };
    assert_eq!(closing.status.unwrap().code, i32::from(Code::Unavailable));
    assert!(serving.next().await.unwrap().is_none());
    drop((serving, calls, others));
    assert_eq!(broker.end().await.code, Some(0));
}

#[tokio::test]
async fn a_stream_ends_at_its_age_when_it_has_answered() {
    let (_directory, path) = crate::harness::config_file("[grpc]\nmax_stream_age = \"1s\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, opening("s")).await;
    let call = calls.begin(asking("s", ""));
    serving.one().await;
    let mut looking = calls.clone();
    within("the age", async { while !looking.responders("s").await[0].draining {} }).await;
    serving.reply(vec![reply(1, "done")]).await;
    assert!(matches!(serving.hear().await, Event::Closing(_)));
    assert_eq!(answered(call).await, "done");
}
