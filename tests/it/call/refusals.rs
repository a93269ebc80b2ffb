//! What is refused, and that the rest goes on.

use tonic::Code;
use tonic_types::{RpcStatusExt, pb};

use super::*;
use crate::queue::{field, seconds};

/// The reason of a refused reply.
pub(super) fn why(refused: &v1::RefusedReply) -> (u64, String) {
    (refused.request_id, reason(&refused.error.as_ref().unwrap().get_error_details()).to_owned())
}

#[tokio::test]
async fn replies_that_nobody_waits_for_are_refused_and_counted() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, opening("s")).await;
    let mut other = Serving::open(&calls, opening("other")).await;
    let call = calls.begin(asking("s", ""));
    serving.one().await;
    // It is another stream's.
    other.reply(vec![reply(1, "forged")]).await;
    assert_eq!(why(&other.refused().await[0]), (1, "UNKNOWN_REQUEST".to_owned()));
    serving
        .reply(vec![
            reply(7, ""),
            v1::ServeReply { more: true, ..reply(1, "a part") },
            reply(1, "one"),
            reply(1, "two"),
        ])
        .await;
    let refused: Vec<_> = serving.refused().await.iter().map(why).collect();
    let reasons = [(7, "UNKNOWN_REQUEST"), (1, "ONE_REPLY"), (1, "ANSWERED_ALREADY")];
    assert_eq!(refused, reasons.map(|(id, reason)| (id, reason.to_owned())));
    assert_eq!(answered(call).await, "one");
    broker.counts("call_replies_unknown_total", 2).await;
    broker.counts("call_replies_again_total", 1).await;
    broker.counts("call_replies_wrong_total", 1).await;
}

#[tokio::test]
async fn a_reply_that_is_wrong_ends_its_call_and_no_other() {
    let (_directory, path) = crate::harness::config_file("[limits]\nmax_payload_bytes = \"1KiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, named("s", "one", 0)).await;
    let begun: Vec<_> = (0..5).map(|_| calls.begin(asking("s", ""))).collect();
    serving.take(5).await;
    let error = |code, message: String| Some(pb::Status { code, message, details: vec![] });
    let wrong =
        |request_id, message: v1::Message| v1::ServeReply { message: Some(message), ..reply(request_id, "") };
    let fault = |request_id, error| v1::ServeReply { request_id, error, ..Default::default() };
    serving
        .reply(vec![
            reply(1, &"x".repeat(1025)),
            wrong(2, v1::Message { topic: "t".to_owned(), ..Default::default() }),
            fault(3, error(0, String::new())),
            fault(4, error(5, "x".repeat(3000))),
            reply(5, "well"),
        ])
        .await;
    let mut fields = Vec::new();
    for refused in serving.refused().await {
        let status = refused.error.unwrap();
        assert_eq!(status.code, i32::from(Code::InvalidArgument));
        let details = status.get_error_details();
        let named: String =
            details.bad_request().unwrap().field_violations.iter().map(|part| &*part.field).collect();
        fields.push((refused.request_id, named));
    }
    let named = [(1, "message.payload"), (2, "message.topic"), (3, "error.code"), (4, "error.message")];
    assert_eq!(fields, named.map(|(id, field)| (id, field.to_owned())));
    let mut well = 0;
    for call in begun {
        match within("an answer", call).await.unwrap() {
            Ok(reply) => {
                assert_eq!(text(reply.into_inner().reply.unwrap().message.as_ref()), "well");
                well += 1;
            }
            Err(status) => {
                assert_eq!((status.code(), &*reason_of(&status)), (Code::Internal, "BAD_REPLY"));
            }
        }
    }
    assert_eq!(well, 1);
    broker.counts("call_replies_wrong_total", 4).await;
}

#[tokio::test]
async fn a_wrong_request_names_its_field() {
    let broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    let _serving = Serving::open(&calls, opening("s")).await;
    for (service, named) in [("", "service"), ("$queue/x", "service"), ("a/+", "service")] {
        let status = calls.refused(asking(service, "")).await;
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, named));
    }
    let with = |message| v1::CallRequest { request: Some(message), ..asking("s", "") };
    for (request, named) in [
        (with(v1::Message { topic: "t".to_owned(), ..Default::default() }), "request.topic"),
        (with(v1::Message { ttl: seconds(1), ..Default::default() }), "request.ttl"),
        (with(v1::Message { retain: true, ..Default::default() }), "request.retain"),
        (
            with(v1::Message { payload: vec![0; (4 << 20) + 1].into(), ..Default::default() }),
            "request.payload",
        ),
    ] {
        let status = calls.refused(request).await;
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, named));
    }
}

#[tokio::test]
async fn a_wrong_frame_ends_the_stream_and_names_its_field() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let long = "x".repeat(257);
    let metadata = |count: usize| (0..count).map(|n| (n.to_string(), String::new())).collect();
    for (first, named) in [
        (Action::Drain(v1::Drain {}), "open"),
        (Action::Open(opening("")), "open.service"),
        (Action::Open(opening("$x")), "open.service"),
        (Action::Open(v1::ServeOpen { group: long.clone(), ..opening("s") }), "open.group"),
        (Action::Open(v1::ServeOpen { responder_id: long.clone(), ..opening("s") }), "open.responder_id"),
        (Action::Open(named("s", "", 65_536)), "open.max_concurrent_requests"),
        (Action::Open(v1::ServeOpen { metadata: metadata(33), ..opening("s") }), "open.metadata"),
        (
            Action::Open(v1::ServeOpen { heartbeat_interval: seconds(0), ..opening("s") }),
            "open.heartbeat_interval",
        ),
    ] {
        let mut serving = Serving::start(&calls, first).await;
        let status = serving.next().await.unwrap_err();
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, named));
    }
    for (action, named) in [
        (Some(Action::Open(opening("s"))), "open"),
        (None, "action"),
        (Some(Action::Replies(v1::ServeReplies { replies: vec![reply(1, ""); 10_001] })), "replies.replies"),
    ] {
        let mut serving = Serving::open(&calls, opening("s")).await;
        serving.send.as_ref().unwrap().send(v1::ServeRequest { action }).await.unwrap();
        assert!(matches!(serving.hear().await, Event::Closing(_)));
        let status = serving.next().await.unwrap_err();
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, named));
    }
    broker.counts("responders", 0).await;
}

#[tokio::test]
async fn too_many_calls_are_refused() {
    let config = "[limits]\nmax_calls = 3\ncalls_waiting = 1\nmax_responders = 1\n";
    let (_directory, path) = crate::harness::config_file(config);
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, named("s", "one", 1)).await;
    let mut second = Serving::start(&calls, Action::Open(opening("s"))).await;
    assert_eq!(second.next().await.unwrap_err().code(), Code::ResourceExhausted);
    let begun = [(); 2].map(|()| calls.begin(asking("s", "")));
    serving.one().await;
    broker.counts("calls_in_flight", 2).await;
    let status = calls.refused(asking("s", "")).await;
    assert_eq!((status.code(), &*reason_of(&status)), (Code::ResourceExhausted, "LIMIT_REACHED"));
    serving.reply(vec![reply(1, "x")]).await;
    let next = serving.one().await;
    serving.reply(vec![reply(next.request_id, "x")]).await;
    for call in begun {
        answered(call).await;
    }
    // The second responder is among them.
    broker.counts("calls_refused_total", 2).await;
}
