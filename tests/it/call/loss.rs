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

/// Serves until so many requests were taken, and leaves with what it has in hand; not all are answered, and some twice.
async fn restless(calls: Calls, at: u32) {
    for round in 0..8 {
        let mut serving = Serving::open(&calls, named("s", &format!("{at}-{round}"), 1 + at)).await;
        let mut taken = 0;
        while taken < 60 {
            let Ok(Some(event)) = serving.next().await else { return };
            let Some(Event::Requests(frame)) = event.event else { continue };
            let mut replies = Vec::new();
            for asked in frame.requests {
                taken += 1;
                match (asked.request_id + u64::from(at)) % 7 {
                    0 => {}
                    1 => replies.extend([reply(asked.request_id, "1"), reply(asked.request_id, "2")]),
                    _ => replies.push(reply(asked.request_id, "x")),
                }
            }
            serving.reply(replies).await;
        }
        if round % 2 == 0 {
            serving.say(Action::Drain(v1::Drain {})).await;
        }
    }
}

#[tokio::test]
async fn nothing_is_left_of_calls_whatever_became_of_them() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let stays = Serving::open(&calls, named("s", "stays", 4)).await.echo();
    let mut servers = tokio::task::JoinSet::new();
    for at in 0..4 {
        servers.spawn(restless(calls.clone(), at));
    }
    let mut callers = tokio::task::JoinSet::new();
    for at in 0..16_u64 {
        let mut calls = calls.clone();
        callers.spawn(async move {
            for n in 0..200 {
                let millis = Duration::from_millis(1 + (n * 7 + at) % 50);
                let idempotent = n % 2 == 0;
                match n % 5 {
                    0 => {
                        let (service, parts) =
                            ("s".to_owned(), vec![message("a"), message("b"), message("c")]);
                        let request = v1::MulticastRequest { service, parts, ..Default::default() };
                        let events = calls.0.multicast(request).await.map(|answer| answer.into_inner());
                        if let Ok(mut events) = events {
                            drop(tokio::time::timeout(millis, events.message()).await);
                        }
                    }
                    1 => {
                        let mut call = calls.begin(v1::CallRequest { idempotent, ..asking("s", "x") });
                        if tokio::time::timeout(millis / 4, &mut call).await.is_err() {
                            call.abort();
                        }
                    }
                    2 => {
                        let request = v1::CallAsyncRequest {
                            service: "s".to_owned(),
                            request: Some(message("x")),
                            timeout: prost_types::Duration::try_from(millis).ok(),
                            idempotent,
                            ..Default::default()
                        };
                        drop(calls.0.call_async(request).await);
                    }
                    _ => {
                        let call = v1::CallRequest { idempotent, ..asking("s", "x") };
                        drop(calls.0.call(within_time(call, millis)).await);
                    }
                }
            }
        });
    }
    while callers.join_next().await.is_some() {}
    servers.abort_all();
    while servers.join_next().await.is_some() {}
    stays.abort();
    for name in ["calls_in_flight", "call_bytes", "responders", "async_calls", "async_call_bytes", "services"]
    {
        broker.counts(name, 0).await;
    }
}
