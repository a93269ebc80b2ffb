//! What is refused, and why.

use super::*;
use crate::queue::field;

#[tokio::test]
async fn a_wrong_call_names_its_field() {
    let broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    let timeout = |timeout| v1::CallAsyncRequest { timeout, ..later("s", "") };
    let with_topic = v1::Message { topic: "x".to_owned(), ..message("") };
    for (call, wrong) in [
        (timeout(None), "timeout"),
        (timeout(seconds(0)), "timeout"),
        (timeout(seconds(-1)), "timeout"),
        (timeout(seconds(30 * 86_400 + 1)), "timeout"),
        (later("", ""), "service"),
        (later("a/+", ""), "service"),
        (later("$x", ""), "service"),
        (to_topic("a/#", later("s", "")), "topic"),
        (to_topic("", later("s", "")), "topic"),
        (to_topic("$SYS/x", later("s", "")), "topic"),
        (to_topic("$queue/q", later("s", "")), "topic"),
        (to_topic(&"x/".repeat(65), later("s", "")), "topic"),
        (to_queue("a b", later("s", "")), "queue"),
        (v1::CallAsyncRequest { request: Some(with_topic), ..later("s", "") }, "request.topic"),
        (later("s", &"x".repeat((4 << 20) + 1)), "request.payload"),
    ] {
        let status = refused(calls.0.call_async(call)).await;
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, wrong), "{status:?}");
    }
    broker.counts("call_reply_topics_refused_total", 2).await;
    let status = refused(calls.0.call_async(to_queue("none", later("s", "")))).await;
    assert_eq!(status.code(), Code::NotFound);
    for (request, wrong) in [
        (awaiting("", None), "request_id"),
        (awaiting("no id", None), "request_id"),
        (awaiting("01KAQ5G3B6M8E9R3ZT0Y6Q4W7X", seconds(3601)), "wait"),
        (awaiting("01KAQ5G3B6M8E9R3ZT0Y6Q4W7X", seconds(-1)), "wait"),
    ] {
        let status = refused(calls.0.await_reply(request)).await;
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, wrong), "{status:?}");
    }
    assert!(calls.is_unknown("01KAQ5G3B6M8E9R3ZT0Y6Q4W7X").await);
    broker.counts("async_calls", 0).await;
    // Nothing of all that was made.
    broker.counts("messages_stored", 0).await;
}

#[tokio::test]
async fn calls_and_kept_replies_are_bounded_together() {
    let (_directory, path) = crate::harness::config_file("[limits]\nasync_calls = 3\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut calls = Calls::of(&broker).await;
    let first = calls.store(later("s", "1")).await;
    Serving::open(&calls, opening("s")).await.echo();
    calls.said(&first).await;
    calls.store(later("nobody", "2")).await;
    let third = calls.store(to_topic("replies", later("third", "3"))).await;
    let status = refused(calls.0.call_async(later("s", "4"))).await;
    assert_eq!((status.code(), &*reason_of(&status)), (Code::ResourceExhausted, "LIMIT_REACHED"));
    let details = status.get_error_details();
    let violation = &details.quota_failure().unwrap().violations[0];
    assert!(violation.subject.contains("limits.async_calls"), "{violation:?}");
    broker.counts("async_calls_refused_total", 1).await;
    broker.counts("async_calls", 2).await;
    // One whose reply has gone makes room.
    Serving::open(&calls, opening("third")).await.echo();
    calls.forgets(&third).await;
    calls.store(later("s", "4")).await;
    refused(calls.0.call_async(later("s", "5"))).await;
}

#[tokio::test]
async fn bytes_of_calls_and_of_kept_replies_are_bounded() {
    let (_directory, path) = crate::harness::config_file("[limits]\nasync_call_bytes = \"1MiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut calls = Calls::of(&broker).await;
    let large = "x".repeat(600 << 10);
    let first = calls.store(later("s", &large)).await;
    let status = refused(calls.0.call_async(later("s", &large))).await;
    assert!(status.message().contains("limits.async_call_bytes"), "{status:?}");
    Serving::open(&calls, opening("s")).await.echo();
    assert_eq!(calls.said(&first).await.len(), large.len() + " by responder-1".len());
    // There is room for the request again, but none for another such reply.
    let second = calls.store(later("s", &large)).await;
    let said = calls.reply_to(&second).await.error.unwrap();
    assert_eq!(Code::from(said.code), Code::ResourceExhausted);
    assert!(said.message.contains("limits.async_call_bytes"), "{said:?}");
    broker.counts("async_call_bytes", 0).await;
}
