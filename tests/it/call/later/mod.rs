//! Calls that nobody waits for: stored, made when somebody serves, answered in any case.

mod bounds;
mod callbacks;
mod commands;
mod refusals;
mod restarts;

use rustix::process::Signal;
use stafett::grpc::proto::v1::call_async_request::ReplyTo;
use tonic::Code;
use tonic_types::RpcStatusExt;

use super::*;
use crate::mqtt::{Peer, QOS1, V5, V311, connect, kept, properties_of, publish, seconds_pass};
use crate::queue::{millis, refused, seconds};

/// A call that has an hour.
fn later(service: &str, payload: &str) -> v1::CallAsyncRequest {
    v1::CallAsyncRequest {
        service: service.to_owned(),
        request: Some(message(payload)),
        timeout: seconds(3600),
        ..Default::default()
    }
}

fn again(service: &str, payload: &str) -> v1::CallAsyncRequest {
    v1::CallAsyncRequest { idempotent: true, ..later(service, payload) }
}

fn to_queue(queue: &str, call: v1::CallAsyncRequest) -> v1::CallAsyncRequest {
    v1::CallAsyncRequest { reply_to: Some(ReplyTo::Queue(queue.to_owned())), ..call }
}

fn to_topic(topic: &str, call: v1::CallAsyncRequest) -> v1::CallAsyncRequest {
    v1::CallAsyncRequest { reply_to: Some(ReplyTo::Topic(topic.to_owned())), ..call }
}

fn awaiting(request_id: &str, wait: Option<prost_types::Duration>) -> v1::AwaitReplyRequest {
    v1::AwaitReplyRequest { request_id: request_id.to_owned(), wait }
}

impl Calls {
    /// Stores a call, and gives its id.
    async fn store(&self, call: v1::CallAsyncRequest) -> String {
        got(self.0.clone().call_async(call)).await.request_id
    }

    /// The reply to a stored call.
    async fn reply_to(&self, id: &str) -> v1::Reply {
        let answer = got(self.0.clone().await_reply(awaiting(id, seconds(20)))).await;
        assert!(answer.done, "no reply in time");
        answer.reply.unwrap()
    }

    /// What was said to a stored call.
    async fn said(&self, id: &str) -> String {
        let reply = self.reply_to(id).await;
        assert_eq!(reply.error, None);
        text(reply.message.as_ref())
    }

    /// The error that a stored call was answered with, and its reason.
    async fn error_of(&self, id: &str) -> (Code, String) {
        let error = self.reply_to(id).await.error.expect("an error");
        (Code::from(error.code), reason(&error.get_error_details()).to_owned())
    }

    /// Whether a call is under way.
    async fn is_under_way(&self, id: &str) -> bool {
        !got(self.0.clone().await_reply(awaiting(id, None))).await.done
    }

    /// Whether there is nothing of a call.
    async fn is_unknown(&self, id: &str) -> bool {
        self.0
            .clone()
            .await_reply(awaiting(id, None))
            .await
            .is_err_and(|status| status.code() == Code::NotFound)
    }

    /// Its reply has gone where it was to go; what is heard there may come before that is noted.
    async fn forgets(&self, id: &str) {
        within("it to be forgotten", async { while !self.is_unknown(id).await {} }).await;
    }
}

/// Twenty calls that a responder of `s` was handed, which has gone before it has read them all.
async fn left_unread(broker: &Broker, calls: &Calls) -> Vec<String> {
    let stuck = Serving::open(calls, named("s", "stuck", 60)).await;
    let large = "x".repeat(300_000);
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(calls.store(later("s", &large)).await);
    }
    broker.counts("async_calls_waiting", 0).await;
    drop(stuck);
    ids
}

#[tokio::test]
async fn a_call_waits_for_its_service_and_its_caller_for_the_reply() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut request = Request::new(later("s", "7"));
    request.metadata_mut().insert("x-who", "me".parse().unwrap());
    let id = got(calls.0.clone().call_async(request)).await.request_id;
    assert!(calls.is_under_way(&id).await);
    let other = calls.clone();
    let waiting = {
        let id = id.clone();
        #[expect(clippy::disallowed_methods, reason = "a test waits for it")]
        tokio::spawn(async move { other.reply_to(&id).await })
    };
    let mut serving = Serving::open(&calls, named("s", "one", 0)).await;
    let asked = serving.one().await;
    assert_eq!((text(asked.message.as_ref()), asked.attempt, asked.takes_parts), ("7".to_owned(), 1, false));
    assert!(asked.metadata.iter().any(|pair| (&*pair.key, &*pair.value) == ("x-who", "me")));
    assert!(asked.deadline.is_some() && !asked.caller_address.is_empty());
    let said = v1::Message { content_type: "n/n".to_owned(), ..message("49") };
    serving.reply(vec![v1::ServeReply { message: Some(said), ..reply(1, "") }]).await;
    let reply = within("the reply", waiting).await.unwrap();
    assert_eq!((text(reply.message.as_ref()), &*reply.responder_id), ("49".to_owned(), "one"));
    assert_eq!(reply.message.as_ref().unwrap().content_type, "n/n");
    assert!(reply.latency.is_some());
    // Should the answer have been lost.
    assert_eq!(calls.reply_to(&id.to_lowercase()).await, reply);
    broker.counts("async_replies", 1).await;
    broker.counts("async_calls", 0).await;
    broker.counts("services", 1).await;
}

#[tokio::test]
async fn the_oldest_go_first_as_many_as_there_is_room_for() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(calls.store(later("s", &number.to_string())).await);
    }
    let mut serving = Serving::open(&calls, named("s", "", 3)).await;
    let mut in_hand: std::collections::VecDeque<_> = serving.take(3).await.into();
    // One that somebody waits for goes before them.
    let urgent = calls.begin(asking("s", "urgent"));
    broker.counts("calls_in_flight", 4).await;
    let mut heard = Vec::new();
    for _ in 0..8 {
        let asked = in_hand.pop_front().unwrap();
        serving.reply(vec![reply(asked.request_id, "done")]).await;
        in_hand.extend(serving.take(1).await);
        heard.push(text(asked.message.as_ref()));
    }
    assert_eq!(answered(urgent).await, "done");
    heard.extend(in_hand.iter().map(|asked| text(asked.message.as_ref())));
    assert_eq!(heard, ["0", "1", "2", "urgent", "3", "4", "5", "6", "7", "8", "9"]);
    broker.counts("async_replies", 7).await;
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(calls.is_under_way(id).await, number > 6);
    }
}

#[tokio::test]
async fn every_call_is_answered_and_what_is_said_is_what_comes() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, named("s", "one", 0)).await;
    let (fails, bad) = (calls.store(later("s", "fails")).await, calls.store(later("s", "bad")).await);
    let asked = serving.take(2).await;
    let error = tonic_types::pb::Status {
        code: Code::NotFound.into(),
        message: "no such thing".to_owned(),
        details: vec![prost_types::Any { type_url: "x/y".to_owned(), value: vec![1] }],
    };
    let error = v1::ServeReply { error: Some(error), request_id: asked[0].request_id, ..Default::default() };
    let wrong = v1::Message { topic: "x".to_owned(), ..message("") };
    let wrong = v1::ServeReply { message: Some(wrong), ..reply(asked[1].request_id, "") };
    serving.reply(vec![error, wrong]).await;
    let said = calls.reply_to(&fails).await.error.unwrap();
    assert_eq!((said.code, &*said.message), (i32::from(Code::NotFound), "no such thing"));
    assert_eq!(said.details[0].type_url, "x/y");
    assert_eq!(calls.error_of(&bad).await, (Code::Internal, "BAD_REPLY".to_owned()));
    let once = calls.store(later("s", "once")).await;
    serving.refused().await;
    serving.one().await;
    drop(serving);
    assert_eq!(calls.error_of(&once).await, (Code::Aborted, "RESPONDER_LOST".to_owned()));
    broker.counts("calls_in_flight", 0).await;
}

#[tokio::test]
async fn an_idempotent_call_is_made_again_when_its_responder_is_lost() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let id = calls.store(again("s", "7")).await;
    let mut lost = Serving::open(&calls, opening("s")).await;
    lost.one().await;
    drop(lost);
    broker.counts("async_calls_waiting", 1).await;
    let mut serving = Serving::open(&calls, opening("s")).await;
    serving.one().await;
    serving.reply(vec![reply(1, "done")]).await;
    assert_eq!(calls.said(&id).await, "done");
}

#[tokio::test]
async fn what_a_responder_was_not_sent_is_made_again_in_any_case() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let ids = left_unread(&broker, &calls).await;
    Serving::open(&calls, named("s", "well", 0)).await.echo();
    let mut lost = 0;
    for id in &ids {
        match calls.reply_to(id).await.error {
            None => {}
            Some(error) => {
                assert_eq!(error.code, i32::from(Code::Aborted));
                lost += 1;
            }
        }
    }
    assert!((1..20).contains(&lost), "{lost} of 20 were sent");
}

#[tokio::test]
async fn a_call_that_is_late_is_answered_with_that() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let soon = |service| v1::CallAsyncRequest { timeout: millis(300), ..later(service, "") };
    let mut serving = Serving::open(&calls, opening("served")).await;
    let (alone, in_hand) = (calls.store(soon("nobody")).await, calls.store(soon("served")).await);
    serving.one().await;
    assert_eq!(calls.error_of(&alone).await.0, Code::DeadlineExceeded);
    assert_eq!(calls.error_of(&in_hand).await.0, Code::DeadlineExceeded);
    assert_eq!(serving.cancelled().await, [1]);
    broker.counts("async_calls_expired_total", 2).await;
    broker.counts("services", 1).await;
}

#[tokio::test]
async fn a_device_that_comes_or_comes_back_is_asked() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let answer = async |lamp: &mut Peer| {
        let asked = properties_of(&lamp.receive().await);
        let mut said = publish(&asked.response_topic.unwrap(), QOS1, 1, "on");
        said.properties = Some(Default::default());
        said.properties.as_mut().unwrap().correlation_data = asked.correlation_data;
        lamp.say_packet(said).await;
    };
    // It subscribes.
    let id = calls.store(later("lamp", "on")).await;
    let mut lamp = Peer::connected(&broker, kept(V5, "lamp")).await;
    lamp.subscribe("lamp", QOS1).await;
    answer(&mut lamp).await;
    assert_eq!(calls.said(&id).await, "on");
    // It connects anew.
    lamp.leave().await;
    let id = calls.store(later("lamp", "on")).await;
    broker.counts("async_calls_waiting", 1).await;
    let mut lamp = Peer::connected(&broker, kept(V5, "lamp")).await;
    answer(&mut lamp).await;
    assert_eq!(calls.said(&id).await, "on");
    // It joins a group.
    let id = calls.store(later("shared/lamp", "on")).await;
    let mut lamp = Peer::connected(&broker, connect(V5, "other")).await;
    lamp.subscribe("$share/g/shared/+", QOS1).await;
    answer(&mut lamp).await;
    assert_eq!(calls.said(&id).await, "on");
}

#[tokio::test]
async fn a_reply_is_kept_for_its_time() {
    let (_directory, path) = crate::harness::config_file("[limits]\nasync_reply_ttl = \"1s\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    Serving::open(&calls, opening("s")).await.echo();
    let id = calls.store(later("s", "")).await;
    calls.said(&id).await;
    broker.counts("async_replies_forgotten_total", 1).await;
    assert!(calls.is_unknown(&id).await);
    broker.counts("async_reply_bytes", 0).await;
    broker.counts("messages_stored", 0).await;
}
