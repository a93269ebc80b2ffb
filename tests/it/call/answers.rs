//! Calls that are answered, at once or in parts.

use std::collections::HashSet;
use std::time::Duration;

use stafett::grpc::proto::v1::call_stream_response::Event as Told;
use stafett::types::clock;
use tonic::Code;
use tonic_types::{ErrorDetails, pb};

use super::*;
use crate::queue::seconds;

fn property(key: &str, value: &str) -> v1::Property {
    v1::Property { key: key.to_owned(), value: value.to_owned() }
}

#[tokio::test]
async fn a_call_is_answered_with_all_that_both_sides_say() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, opening("math/square")).await;
    assert_eq!(serving.opened.max_concurrent_requests, 64);
    assert!(serving.opened.responder_id.starts_with("responder-"), "{:?}", serving.opened);

    let asked = v1::Message {
        content_type: "text/plain".to_owned(),
        payload_is_utf8: true,
        properties: vec![property("k", "1"), property("k", "2")],
        ..message("7")
    };
    let before = Duration::from_millis(clock::unix_now().0);
    let request = v1::CallRequest { request: Some(asked.clone()), ..asking("math/square", "") };
    let mut request = within_time(request, Duration::from_secs(20));
    request.metadata_mut().insert("traceparent", "00-1-2-03".parse().unwrap());
    request.metadata_mut().insert("x-request-id", "mine".parse().unwrap());
    request.metadata_mut().insert("other", "not passed on".parse().unwrap());
    let call = calls.begin(request);

    let heard = serving.one().await;
    assert_eq!((heard.request_id, heard.attempt, heard.takes_parts), (1, 1, false));
    assert_eq!(heard.message, Some(asked));
    assert!(heard.caller_address.starts_with("127.0.0.1:"), "{heard:?}");
    let mut metadata = heard.metadata;
    metadata.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(metadata, [property("traceparent", "00-1-2-03"), property("x-request-id", "mine")]);
    let deadline = Duration::try_from(prost_types::Duration {
        seconds: heard.deadline.unwrap().seconds,
        nanos: heard.deadline.unwrap().nanos,
    });
    let left = deadline.unwrap() - before;
    assert!(left > Duration::from_secs(19) && left < Duration::from_secs(30), "{left:?}");

    let said = v1::Message { properties: vec![property("p", "q")], ..message("49") };
    serving.reply(vec![v1::ServeReply { message: Some(said.clone()), ..reply(1, "") }]).await;
    let reply = got(async { call.await.unwrap() }).await.reply.unwrap();
    assert_eq!((&reply.message, &reply.responder_id), (&Some(said), &serving.opened.responder_id));
    assert!(reply.latency.is_some());
}

#[tokio::test]
async fn many_callers_get_their_own_answers_from_all_responders() {
    let broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    for id in ["a", "b", "c"] {
        Serving::open(&calls, named("echo", id, 2)).await.echo();
    }
    let begun: Vec<_> = (0..100).map(|n| (n, calls.begin(asking("echo", &n.to_string())))).collect();
    let mut by = HashSet::new();
    for (n, call) in begun {
        let said = answered(call).await;
        let (text, id) = said.split_once(" by ").unwrap();
        assert_eq!(text, n.to_string());
        by.insert(id.to_owned());
    }
    assert_eq!(by.len(), 3);
    let responders = calls.responders("echo").await;
    assert_eq!(responders.iter().map(|one| one.served).sum::<u64>(), 100);
    assert!(responders.iter().all(|one| one.in_flight == 0 && one.average_latency.is_some()));
}

#[tokio::test]
async fn a_responder_has_no_more_in_hand_than_it_takes() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, named("s", "", 2)).await;
    let all: Vec<_> = (0..3).map(|n| calls.begin(asking("s", &n.to_string()))).collect();
    let first = serving.take(2).await;
    broker.counts("calls_in_flight", 3).await;
    // The third comes for the room that an answer gives.
    serving.reply(vec![reply(first[0].request_id, "x")]).await;
    let third = serving.one().await;
    serving.reply(vec![reply(third.request_id, "x"), reply(first[1].request_id, "x")]).await;
    for call in all {
        assert_eq!(answered(call).await, "x");
    }
    broker.counts("calls_in_flight", 0).await;
}

#[tokio::test]
async fn an_error_of_the_responder_is_the_status_of_the_call() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, named("s", "one", 0)).await;
    let call = calls.begin(asking("s", ""));
    serving.one().await;
    let details = ErrorDetails::with_bad_request_violation("n", "is negative");
    let status = Status::with_error_details(Code::InvalidArgument, "no root", details);
    let error: pb::Status = prost::Message::decode(status.details()).unwrap();
    serving.reply(vec![v1::ServeReply { request_id: 1, error: Some(error), ..Default::default() }]).await;
    let status = failed(call).await;
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "no root"));
    assert_eq!(crate::queue::field(&status), "n");

    let call = calls.begin(asking("s", ""));
    serving.one().await;
    let error = pb::Status { code: 5, message: "no such thing".to_owned(), details: vec![] };
    serving.reply(vec![v1::ServeReply { request_id: 2, error: Some(error), ..Default::default() }]).await;
    let status = failed(call).await;
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such thing"));
    let mut calls = calls;
    let responder = calls.responders("s").await.remove(0);
    assert_eq!((responder.served, responder.errors), (2, 2));
}

#[tokio::test]
async fn a_call_is_answered_in_parts_as_they_come() {
    let broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, named("s", "one", 0)).await;
    let request = || v1::CallStreamRequest { service: "s".to_owned(), ..Default::default() };
    let mut events = got(calls.0.call_stream(request())).await;
    let heard = serving.one().await;
    assert!(heard.takes_parts && heard.message.unwrap().payload.is_empty());
    let mut next = async || within("a part", events.message()).await.unwrap().map(|it| it.event.unwrap());
    assert!(matches!(next().await, Some(Told::Opened(_))));
    for payload in ["1", "2"] {
        serving.reply(vec![v1::ServeReply { more: true, ..reply(1, payload) }]).await;
        let Some(Told::Reply(part)) = next().await else { panic!("no part") };
        assert_eq!((text(part.message.as_ref()), &*part.responder_id), (payload.to_owned(), "one"));
    }
    serving.reply(vec![reply(1, "3")]).await;
    let Some(Told::Reply(part)) = next().await else { panic!("no part") };
    assert_eq!(text(part.message.as_ref()), "3");
    assert_eq!(next().await, None);

    // An error ends it, also after parts; a caller that leaves ends it too.
    let mut events = got(calls.0.call_stream(request())).await;
    serving.one().await;
    let error = pb::Status { code: 10, message: "half".to_owned(), details: vec![] };
    let error = v1::ServeReply { request_id: 2, error: Some(error), ..Default::default() };
    serving.reply(vec![v1::ServeReply { more: true, ..reply(2, "1") }, error]).await;
    for _ in 0..2 {
        within("a part", events.message()).await.unwrap().unwrap();
    }
    let status = within("the end", events.message()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Aborted, "half"));
    let events = got(calls.0.call_stream(request())).await;
    serving.one().await;
    drop(events);
    assert_eq!(serving.cancelled().await, [3]);
}

#[tokio::test]
async fn responders_are_listed_page_by_page() {
    let broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    let metadata = [("version".to_owned(), "3".to_owned())].into();
    let first = v1::ServeOpen { group: "g".to_owned(), metadata, ..named("a", "one", 7) };
    let mut one = Serving::open(&calls, first).await;
    one.say(Action::Heartbeat(v1::Heartbeat::default())).await;
    let call = calls.begin(asking("a", ""));
    let in_hand = one.one().await;
    let _two = Serving::open(&calls, named("b", "two", 0)).await;
    let _three = Serving::open(&calls, named("a", "three", 0)).await;
    let list = |service: &str, page_size, page_token| v1::ListRespondersRequest {
        service: service.to_owned(),
        page_size,
        page_token,
    };
    let all = got(calls.0.list_responders(list("", 2, String::new()))).await;
    let ids: Vec<_> = all.responders.iter().map(|one| &*one.responder_id).collect();
    assert_eq!(ids, ["one", "two"]);
    let shown = &all.responders[0];
    assert_eq!((&*shown.service, &*shown.group, shown.in_flight), ("a", "g", 1));
    assert_eq!((shown.max_concurrent_requests, shown.served, shown.average_latency), (7, 0, None));
    assert_eq!(shown.metadata["version"], "3");
    let rest = got(calls.0.list_responders(list("", 2, all.next_page_token))).await;
    assert_eq!((&*rest.responders[0].responder_id, &*rest.next_page_token), ("three", ""));
    assert_eq!(calls.responders("a").await.len(), 2);
    assert_eq!(calls.responders("none").await.len(), 0);
    let token = within("an answer", calls.0.list_responders(list("", 0, "x".to_owned()))).await;
    assert_eq!(crate::queue::field(&token.unwrap_err()), "page_token");
    one.reply(vec![reply(in_hand.request_id, "x")]).await;
    answered(call).await;
}

#[tokio::test]
async fn silence_is_filled_with_heartbeats() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let open = v1::ServeOpen { heartbeat_interval: seconds(1), ..opening("s") };
    let mut serving = Serving::open(&calls, open).await;
    assert!(matches!(serving.hear().await, Event::Heartbeat(_)));
}

#[tokio::test]
async fn one_that_drains_still_hears_that_the_broker_is_there() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let open = v1::ServeOpen { heartbeat_interval: seconds(1), ..opening("s") };
    let mut serving = Serving::open(&calls, open).await;
    let call = calls.begin(asking("s", "long"));
    let asked = serving.one().await;
    serving.say(Action::Drain(v1::Drain {})).await;
    assert!(matches!(serving.hear().await, Event::Heartbeat(_)));
    serving.reply(vec![reply(asked.request_id, "done")]).await;
    assert_eq!(answered(call).await, "done");
    assert!(serving.next().await.unwrap().is_none());
}
