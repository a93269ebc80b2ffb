//! Calls between both doors: devices that are called, devices that call.

use std::time::Duration;

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::pub_sub_service_client::PubSubServiceClient;
use tonic::Code;

use super::*;
use crate::call::gather::{Asking, everyone, missing};
use crate::call::text as payload_of;
use crate::call::{
    Begun, Calls, Serving, answered, asking, failed, named, opening, reason_of, reply, within_time,
};

/// The answer to a request, as a device gives it.
pub(super) fn answer(request: &Publish, packet_id: u16, payload: &str) -> Publish {
    let asked = properties_of(request);
    let properties = PublishProperties { correlation_data: asked.correlation_data, ..Default::default() };
    let to = asked.response_topic.unwrap();
    Publish { properties: Some(Box::new(properties)), ..publish(&to, QOS1, packet_id, payload.to_owned()) }
}

/// A request that a device makes.
fn request(
    service: &str,
    packet_id: u16,
    payload: &str,
    change: impl FnOnce(&mut PublishProperties),
) -> Publish {
    let mut properties = PublishProperties {
        response_topic: Some("answers/1".into()),
        correlation_data: Some(Bytes::from_static(b"mine")),
        ..PublishProperties::default()
    };
    change(&mut properties);
    let to = format!("$call/{service}");
    Publish { properties: Some(Box::new(properties)), ..publish(&to, QOS1, packet_id, payload.to_owned()) }
}

fn property(key: &str, value: &str) -> (ByteString, ByteString) {
    (key.into(), value.into())
}

/// A device that serves `filter`.
pub(super) async fn device(broker: &Broker, client_id: &str, filter: &str) -> Peer {
    let mut device = Peer::clean(broker, V5, client_id).await;
    device.subscribe(filter, QOS1).await;
    device
}

/// A device that waits for the answers to its calls.
async fn caller(broker: &Broker) -> Peer {
    device(broker, "caller", "answers/#").await
}

/// The error that an answer tells, and its text.
fn error_of(answer: &Publish) -> (String, String) {
    let properties = properties_of(answer).user_properties;
    let error = properties.iter().find(|(key, _)| *key == *"stafett-error").unwrap();
    (error.1.to_string(), text(answer).to_owned())
}

#[tokio::test]
async fn a_device_is_called_and_answers() {
    let broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    let mut lamp = device(&broker, "lamp-7", "lamps/7/set").await;
    let asked = v1::Message {
        payload: Bytes::from_static(b"on"),
        content_type: "text/plain".to_owned(),
        properties: vec![v1::Property { key: "k".to_owned(), value: "v".to_owned() }],
        ..Default::default()
    };
    let asked = v1::CallRequest { request: Some(asked), ..asking("lamps/7/set", "") };
    let call = calls.begin(within_time(asked, Duration::from_secs(20)));
    let heard = lamp.receive().await;
    let said = properties_of(&heard);
    assert_eq!((&*heard.topic, text(&heard), heard.retain), ("lamps/7/set", "on", false));
    assert_eq!(said.content_type.as_deref(), Some("text/plain"));
    assert_eq!(said.user_properties, [property("k", "v")]);
    assert!(said.response_topic.is_some() && said.correlation_data.is_some());
    assert!((1..=20).contains(&said.message_expiry.unwrap()), "{said:?}");

    let mut answer = answer(&heard, 1, "it is on");
    let properties = answer.properties.as_mut().unwrap();
    properties.user_properties = vec![property("p", "q")];
    assert_eq!(lamp.say_packet(answer).await, ReasonCode::Success);
    let said = within("an answer", call).await.unwrap().unwrap().into_inner().reply.unwrap();
    assert_eq!((payload_of(said.message.as_ref()), &*said.responder_id), ("it is on".to_owned(), "lamp-7"));
    assert_eq!(
        said.message.unwrap().properties,
        [v1::Property { key: "p".to_owned(), value: "q".to_owned() }]
    );
    let shown = calls.responders("lamps/7/set").await.remove(0);
    assert_eq!((&*shown.responder_id, shown.device, shown.served, shown.in_flight), ("lamp-7", true, 1, 0));
    lamp.leave().await;
    assert_eq!(reason_of(&calls.refused(asking("lamps/7/set", "on")).await), "NO_RESPONDERS");
    assert_eq!(calls.responders("lamps/7/set").await, []);
}

#[tokio::test]
async fn only_the_answer_of_the_device_that_was_asked_counts() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut lamp = device(&broker, "lamp", "lamp").await;
    let mut thief = Peer::clean(&broker, V5, "thief").await;
    let call = calls.begin(asking("lamp", "on"));
    let heard = lamp.receive().await;
    let forged = answer(&heard, 1, "forged");
    assert_eq!(thief.say_packet(forged).await, ReasonCode::NotAuthorized);
    // Nor that of a publisher without a session.
    let mut topics = PubSubServiceClient::new(broker.grpc().await);
    let forged = v1::Message {
        topic: "$reply".to_owned(),
        correlation_data: properties_of(&heard).correlation_data.unwrap(),
        ..Default::default()
    };
    let refused = topics.publish(v1::PublishRequest { message: Some(forged) });
    assert_eq!(within("an answer", refused).await.unwrap_err().code(), Code::PermissionDenied);
    broker.counts("call_replies_forged_total", 2).await;

    let mut unknown = answer(&heard, 2, "");
    unknown.properties.as_mut().unwrap().correlation_data = Some(Bytes::from_static(b"not one"));
    assert_eq!(lamp.say_packet(unknown).await, ReasonCode::TopicNameInvalid);
    let mut next = properties_of(&heard).correlation_data.unwrap().to_vec();
    *next.last_mut().unwrap() += 1;
    let mut unknown = answer(&heard, 3, "");
    unknown.properties.as_mut().unwrap().correlation_data = Some(next.into());
    assert_eq!(lamp.say_packet(unknown).await, ReasonCode::UnspecifiedError);
    broker.counts("call_replies_unknown_total", 2).await;

    assert_eq!(lamp.say_packet(answer(&heard, 4, "mine")).await, ReasonCode::Success);
    assert_eq!(answered(call).await, "mine");
    assert_eq!(lamp.say_packet(answer(&heard, 5, "twice")).await, ReasonCode::UnspecifiedError);
    broker.counts("call_replies_again_total", 1).await;

    let call = calls.begin(within_time(asking("lamp", ""), Duration::from_millis(200)));
    let heard = lamp.receive().await;
    failed(call).await;
    broker.counts("calls_in_flight", 0).await;
    assert_eq!(lamp.say_packet(answer(&heard, 6, "late")).await, ReasonCode::UnspecifiedError);
    broker.counts("call_replies_over_total", 1).await;
}

#[tokio::test]
async fn a_device_that_is_lost_is_told_or_another_is_asked() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut first = device(&broker, "first", "$share/g/+/set").await;
    let once = calls.begin(asking("a/set", "once"));
    first.receive().await;
    let again = calls.begin(v1::CallRequest { idempotent: true, ..asking("a/set", "again") });
    first.receive().await;
    let mut second = device(&broker, "second", "$share/g/+/set").await;
    // What was there before is known as of the next call.
    let third = calls.begin(asking("a/set", "third"));
    let heard = second.receive().await;
    assert_eq!(text(&heard), "third");
    first.vanish();
    let status = failed(once).await;
    assert_eq!((status.code(), &*reason_of(&status)), (Code::Aborted, "RESPONDER_LOST"));
    let taken = second.receive().await;
    assert_eq!(text(&taken), "again");
    second.say_packet(answer(&taken, 1, "2")).await;
    second.say_packet(answer(&heard, 2, "3")).await;
    assert_eq!((answered(again).await, answered(third).await), ("2".to_owned(), "3".to_owned()));
}

#[tokio::test]
async fn members_of_a_share_are_balanced_and_listeners_are_not_asked() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut listener = device(&broker, "listener", "#").await;
    let mut old = Peer::subscribed(&broker, V311, "job", QOS1).await;
    let mut members =
        [device(&broker, "a", "$share/g/job").await, device(&broker, "b", "$share/g/job").await];
    let mut stream = Serving::open(&calls, named("job", "stream", 0)).await;
    let begun: Vec<_> = (0..8).map(|_| calls.begin(asking("job", ""))).collect();
    // Two groups, and the two members of the one.
    for request in stream.take(4).await {
        stream.reply(vec![reply(request.request_id, "stream")]).await;
    }
    for (at, member) in members.iter_mut().enumerate() {
        for heard in [member.receive().await, member.receive().await] {
            member.say_packet(answer(&heard, 1, &format!("member {at}"))).await;
        }
    }
    for call in begun {
        answered(call).await;
    }
    listener.nothing_came().await;
    old.nothing_came().await;
}

#[tokio::test]
async fn who_has_no_place_any_more_does_not_keep_others_from_being_asked() {
    let (_directory, path) = crate::harness::config_file("[limits]\nmax_responders = 1\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut calls = Calls::of(&broker).await;
    let mut first = device(&broker, "first", "$share/g/job").await;
    let serves = async |device: &mut Peer| {
        let call = calls.begin(asking("job", ""));
        let heard = device.receive().await;
        device.say_packet(answer(&heard, 1, "here")).await;
        assert_eq!(answered(call).await, "here");
    };
    serves(&mut first).await;
    let mut second = device(&broker, "second", "$share/g/job").await;
    serves(&mut first).await;
    let _other = device(&broker, "other", "other").await;
    let status = calls.clone().refused(asking("other", "")).await;
    assert_eq!((status.code(), &*reason_of(&status)), (Code::ResourceExhausted, "LIMIT_REACHED"));
    // The place of one that has left is there for another at once.
    first.unsubscribe("$share/g/job").await;
    serves(&mut second).await;
    second.nothing_came().await;
    assert_eq!(calls.responders("job").await.len(), 1);
}

#[tokio::test]
async fn a_device_answers_with_an_error() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut lamp = device(&broker, "lamp", "lamp").await;
    for (word, code) in [("NOT_FOUND", Code::NotFound), ("broken", Code::Unknown)] {
        let call = calls.begin(asking("lamp", ""));
        let heard = lamp.receive().await;
        let mut fault = answer(&heard, 1, "no bulb");
        fault.properties.as_mut().unwrap().user_properties = vec![property("stafett-error", word)];
        lamp.say_packet(fault).await;
        let status = failed(call).await;
        assert_eq!((status.code(), status.message()), (code, "no bulb"));
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_ends_its_call() {
    let (_directory, path) = crate::harness::config_file("[limits]\nmax_payload_bytes = \"1KiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut lamp = device(&broker, "lamp", "lamp").await;
    let call = calls.begin(asking("lamp", ""));
    let heard = lamp.receive().await;
    let large = answer(&heard, 1, &"x".repeat(1025));
    assert_eq!(lamp.say_packet(large).await, ReasonCode::QuotaExceeded);
    assert_eq!(reason_of(&failed(call).await), "BAD_REPLY");
    broker.counts("call_replies_wrong_total", 1).await;
}

#[tokio::test]
async fn a_device_is_callable_as_long_as_it_is_there_and_subscribed() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let serves = async |device: &mut Peer| {
        let call = calls.begin(asking("lamp", ""));
        let heard = device.receive().await;
        device.say_packet(answer(&heard, 1, "here")).await;
        assert_eq!(answered(call).await, "here");
    };
    let mut lamp = Peer::connected(&broker, kept(V5, "lamp")).await;
    lamp.subscribe("lamp", QOS1).await;
    serves(&mut lamp).await;
    lamp.leave().await;
    let away = calls.clone().refused(asking("lamp", "")).await;
    assert_eq!(reason_of(&away), "NO_RESPONDERS");
    let mut lamp = Peer::connected(&broker, kept(V5, "lamp")).await;
    serves(&mut lamp).await;
    lamp.unsubscribe("lamp").await;
    let gone = calls.clone().refused(asking("lamp", "")).await;
    assert_eq!(reason_of(&gone), "NO_RESPONDERS");
    // Nothing is kept of it.
    broker.counts("services", 0).await;
    broker.counts("responders", 0).await;
    lamp.subscribe("lamp", QOS1).await;
    serves(&mut lamp).await;
    // Taken over by another connection, with a call in hand.
    let call = calls.begin(asking("lamp", ""));
    lamp.receive().await;
    let mut again = Peer::connected(&broker, kept(V5, "lamp")).await;
    assert_eq!(reason_of(&failed(call).await), "RESPONDER_LOST");
    serves(&mut again).await;
}

/// A lamp that takes one request at a time has one, and another waits.
async fn two_calls_to_one_lamp() -> (Broker, Peer, Publish, [Begun; 2]) {
    let (_directory, path) = crate::harness::config_file("[limits]\ndevice_calls = 1\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut lamp = device(&broker, "lamp", "lamp").await;
    let begun = ["1", "2"].map(|payload| calls.begin(asking("lamp", payload)));
    broker.counts("calls_in_flight", 2).await;
    let first = lamp.receive().await;
    (broker, lamp, first, begun)
}

#[tokio::test]
async fn a_device_has_no_more_in_hand_than_it_may() {
    let (_broker, mut lamp, first, begun) = two_calls_to_one_lamp().await;
    lamp.nothing_came().await;
    lamp.send(Packet::Publish(answer(&first, 1, "x"))).await;
    let mut second = None;
    for _ in 0..2 {
        match lamp.next().await {
            Packet::Publish(publish) => second = Some(publish),
            Packet::PubAck(_) => {}
            other => panic!("{other:?}"),
        }
    }
    lamp.say_packet(answer(&second.unwrap(), 2, "x")).await;
    for call in begun {
        assert_eq!(answered(call).await, "x");
    }
}

#[tokio::test]
async fn nobody_waits_for_a_device_that_unsubscribes() {
    let (_broker, mut lamp, first, begun) = two_calls_to_one_lamp().await;
    lamp.unsubscribe("lamp").await;
    // What it has in hand it may still answer; the other has nobody to wait for.
    lamp.say_packet(answer(&first, 1, "x")).await;
    let mut reasons = Vec::new();
    for call in begun {
        match within("an answer", call).await.unwrap() {
            Ok(_) => reasons.push("answered".to_owned()),
            Err(status) => reasons.push(reason_of(&status)),
        }
    }
    reasons.sort();
    assert_eq!(reasons, ["NO_RESPONDERS", "answered"]);
}

#[tokio::test]
async fn a_device_calls_a_stream() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, opening("math/square")).await;
    let mut device = caller(&broker).await;
    let asks = request("math/square", 1, "7", |properties| {
        properties.user_properties = vec![property("k", "v")];
        properties.message_expiry = Some(20);
    });
    assert_eq!(device.say_packet(asks).await, ReasonCode::Success);
    let heard = serving.one().await;
    assert_eq!((payload_of(heard.message.as_ref()), &*heard.caller_id), ("7".to_owned(), "caller"));
    assert_eq!((&*heard.caller_address, heard.deadline.is_some()), ("", true));
    assert_eq!(heard.message.unwrap().properties[0].key, "k");
    serving.reply(vec![reply(1, "49")]).await;
    let answer = device.receive().await;
    assert_eq!((&*answer.topic, text(&answer), answer.qos), ("answers/1", "49", QOS1));
    assert_eq!(properties_of(&answer).correlation_data.as_deref(), Some(&b"mine"[..]));
    assert_eq!(properties_of(&answer).response_topic, None);
}

#[tokio::test]
async fn a_device_that_calls_hears_why_there_is_no_answer() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut device = caller(&broker).await;
    device.send(Packet::Publish(request("nobody", 1, "", |_| {}))).await;
    let hear = async |device: &mut Peer| loop {
        match device.next().await {
            Packet::Publish(publish) => {
                device.send(Packet::PubAck(ack(publish.packet_id.unwrap().get()))).await;
                assert_eq!(properties_of(&publish).correlation_data.as_deref(), Some(&b"mine"[..]));
                return error_of(&publish);
            }
            Packet::PubAck(ack) => assert_eq!(ack.reason, ReasonCode::Success),
            other => panic!("{other:?}"),
        }
    };
    let nobody = ("NO_RESPONDERS".to_owned(), "nobody serves `nobody`".to_owned());
    assert_eq!(hear(&mut device).await, nobody);

    let mut serving = Serving::open(&calls, opening("s")).await;
    device.send(Packet::Publish(request("s", 2, "", |_| {}))).await;
    serving.one().await;
    let error = tonic_types::pb::Status { code: 9, message: "not now".to_owned(), details: vec![] };
    serving.reply(vec![v1::ServeReply { request_id: 1, error: Some(error), ..Default::default() }]).await;
    assert_eq!(hear(&mut device).await, ("FAILED_PRECONDITION".to_owned(), "not now".to_owned()));

    device.send(Packet::Publish(request("s", 3, "", |it| it.message_expiry = Some(1)))).await;
    serving.one().await;
    assert_eq!(hear(&mut device).await.0, "DEADLINE_EXCEEDED");
    assert_eq!(serving.cancelled().await, [2]);

    device.send(Packet::Publish(request("s", 4, "", |_| {}))).await;
    serving.one().await;
    drop(serving);
    assert_eq!(hear(&mut device).await.0, "RESPONDER_LOST");
}

#[tokio::test]
async fn a_wrong_request_of_a_device_is_refused() {
    let broker = Broker::start().await;
    let mut device = caller(&broker).await;
    let without = request("s", 1, "", |properties| properties.response_topic = None);
    assert_eq!(device.say_packet(without).await, ReasonCode::TopicNameInvalid);
    for (service, answers) in [("$queue/q", "a"), ("", "a"), ("s", "$queue/q")] {
        let wrong = request(service, 1, "", |properties| properties.response_topic = Some(answers.into()));
        assert_eq!(device.say_packet(wrong).await, ReasonCode::TopicNameInvalid, "{service} {answers}");
    }
    broker.counts("call_reply_topics_refused_total", 1).await;
}

#[tokio::test]
async fn devices_call_each_other_at_every_level() {
    let broker = Broker::start().await;
    let mut lamp = device(&broker, "lamp", "lamp").await;
    let mut device = caller(&broker).await;
    for qos in [QOS0, QOS1, QOS2] {
        let asks = request("lamp", 1, "on", |_| {});
        let asks = Publish { qos, packet_id: (qos != QOS0).then(|| id(1)), ..asks };
        device.say_packet(asks).await;
        let heard = lamp.receive().await;
        lamp.say_packet(answer(&heard, 1, "is on")).await;
        assert_eq!(text(&device.receive().await), "is on");
    }
    // An idempotent call goes to another device.
    let mut other = self::device(&broker, "other", "$share/g/lamp").await;
    let idempotent = |it: &mut PublishProperties| {
        it.user_properties = vec![property("stafett-idempotent", "true")];
    };
    for packet_id in 2..4 {
        device.say_packet(request("lamp", packet_id, "again", idempotent)).await;
    }
    lamp.receive().await;
    other.receive().await;
    lamp.vanish();
    let heard = other.receive().await;
    assert_eq!(text(&heard), "again");
    other.say_packet(answer(&heard, 1, "done")).await;
    assert_eq!(text(&device.receive().await), "done");
}

#[tokio::test]
async fn a_device_of_3_1_1_answers_on_the_topic_of_its_pair() {
    let config = "[limits]\ndevice_topics = [\"lamps/+/set -> lamps/+/state\"]\ncall_timeout = \"1day\"\n";
    let (_directory, path) = crate::harness::config_file(config);
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut calls = Calls::of(&broker).await;
    let mut lamp = Peer::clean(&broker, V311, "lamp-7").await;
    lamp.subscribe("lamps/7/set", QOS1).await;
    let mut listener = Peer::subscribed(&broker, V311, "lamps/+/state", QOS0).await;
    // What it says unasked is a publish and nothing else.
    lamp.say("lamps/7/state", QOS1, "off").await;
    assert_eq!(text(&listener.receive().await), "off");

    let begun = ["on", "off"].map(|payload| calls.begin(asking("lamps/7/set", payload)));
    broker.counts("calls_in_flight", 2).await;
    let heard = lamp.receive().await;
    assert_eq!(heard.topic, "lamps/7/set");
    lamp.nothing_came().await;
    // Another client's is not the answer, nor what it says elsewhere.
    Peer::clean(&broker, V311, "other").await.say("lamps/7/state", QOS1, "forged").await;
    lamp.say("lamps/8/state", QOS1, "elsewhere").await;
    lamp.send(Packet::Publish(publish("lamps/7/state", QOS0, 0, "first"))).await;
    lamp.receive().await;
    lamp.say("lamps/7/state", QOS1, "second").await;
    let mut said = Vec::new();
    for call in begun {
        said.push(answered(call).await);
    }
    said.sort();
    assert_eq!(said, ["first", "second"]);
    // Subscribers hear all of it.
    assert_eq!(listener.receive_texts(4).await, ["forged", "elsewhere", "first", "second"]);

    // It is asked nothing until it has answered what was given up: that is not the answer to what comes next.
    let late = calls.begin(within_time(asking("lamps/7/set", "slow"), Duration::from_millis(200)));
    lamp.receive().await;
    failed(late).await;
    broker.counts("calls_in_flight", 0).await;
    let call = calls.begin(asking("lamps/7/set", "next"));
    broker.counts("calls_in_flight", 1).await;
    lamp.nothing_came().await;
    lamp.send(Packet::Publish(publish("lamps/7/state", QOS0, 0, "late"))).await;
    assert_eq!(text(&lamp.receive().await), "next");
    lamp.say("lamps/7/state", QOS1, "next").await;
    assert_eq!(answered(call).await, "next");
    broker.counts("call_replies_over_total", 1).await;
    assert_eq!(reason_of(&calls.refused(asking("fans/7/set", "")).await), "NO_RESPONDERS");
    let shown = calls.responders("lamps/7/set").await.remove(0);
    assert_eq!((&*shown.responder_id, shown.max_concurrent_requests, shown.served), ("lamp-7", 1, 3));
}

#[tokio::test]
async fn an_answer_that_a_device_of_3_1_1_lost_does_not_keep_it_from_being_called() {
    let config = "[limits]\ndevice_topics = [\"set -> state\"]\ncall_timeout = \"500ms\"\n";
    let (_directory, path) = crate::harness::config_file(config);
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut lamp = Peer::clean(&broker, V311, "lamp").await;
    lamp.subscribe("set", QOS1).await;
    for _ in 0..2 {
        let lost = calls.begin(asking("set", "lost"));
        assert_eq!(text(&lamp.receive().await), "lost");
        lost.abort();
        broker.counts("calls_in_flight", 0).await;
        // The next one is asked when the time of the first is over, and answers for itself.
        for payload in ["after", "and so on"] {
            let call = calls.begin(asking("set", payload));
            assert_eq!(text(&lamp.receive().await), payload);
            lamp.say("state", QOS0, payload).await;
            assert_eq!(answered(call).await, payload);
        }
    }
    broker.counts("call_replies_over_total", 0).await;
}

#[tokio::test]
async fn a_device_that_does_not_read_is_passed_over() {
    let (_directory, path) = crate::harness::config_file("[mqtt]\noutbox_bytes = \"64KiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut stuck = device(&broker, "stuck", "$share/g/job").await;
    stuck.subscribe("flood", QOS0).await;
    // More than all buffers on the way hold.
    let mut flood = Peer::clean(&broker, V5, "flood").await;
    for _ in 0..200 {
        flood.say("flood", QOS1, &"x".repeat(200_000)).await;
    }
    let told = calls.clone().refused(asking("job", "")).await;
    assert_eq!((told.code(), &*reason_of(&told)), (Code::ResourceExhausted, "LIMIT_REACHED"));

    let well = Serving::open(&calls, named("job", "well", 4)).await.echo();
    let begun: Vec<_> = (0..50).map(|n| calls.begin(asking("job", &n.to_string()))).collect();
    for (n, call) in begun.into_iter().enumerate() {
        assert_eq!(answered(call).await, format!("{n} by well"));
    }
    well.abort();
}

#[tokio::test]
async fn calls_and_answers_cannot_be_delayed() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut lamp = device(&broker, "lamp", "lamp").await;
    let call = calls.begin(asking("lamp", "on"));
    let heard = lamp.receive().await;
    let mut old = Peer::clean(&broker, V311, "old").await;
    let mut device = caller(&broker).await;
    let later =
        |publish: Publish| Publish { topic: format!("$delayed/60/{}", publish.topic).into(), ..publish };
    let refused = ReasonCode::ImplementationSpecificError;
    assert_eq!(device.say_packet(later(request("lamp", 1, "", |_| {}))).await, refused);
    assert_eq!(lamp.say_packet(later(answer(&heard, 1, "later"))).await, refused);
    old.send(Packet::Publish(publish("$delayed/60/$call/lamp", QOS1, 1, ""))).await;
    assert_eq!(old.next_or_end().await, None);
    let mut topics = PubSubServiceClient::new(broker.grpc().await);
    for topic in ["$call/lamp", "$reply"] {
        let schedule = crate::queue::seconds(60).map(v1::message::Schedule::Delay);
        let message = v1::Message { topic: topic.to_owned(), schedule, ..Default::default() };
        let answer = topics.publish(v1::PublishRequest { message: Some(message) });
        let status = within("an answer", answer).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains(&format!("`{topic}` cannot be delayed")), "{status:?}");
    }
    lamp.nothing_came().await;
    lamp.say_packet(answer(&heard, 2, "now")).await;
    assert_eq!(answered(call).await, "now");
    broker.counts("calls_total", 1).await;
}

#[tokio::test]
async fn who_subscribes_to_the_topic_itself_is_asked_whatever_groups_it_is_in() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut both = device(&broker, "both", "lamps/all").await;
    both.subscribe("$share/g/lamps/#", QOS1).await;
    let mut member = device(&broker, "member", "$share/g/lamps/#").await;
    let mut asking = Asking::begin(&calls, everyone("lamps/all", "state", Default::default()), 2).await;
    for (device, said) in [(&mut both, "both"), (&mut member, "member")] {
        let heard = device.receive().await;
        device.say_packet(answer(&heard, 1, "on")).await;
        assert_eq!(asking.said().await, (said.to_owned(), "on".to_owned()));
    }
    assert_eq!(missing(&asking.summary().await), []);
}

#[tokio::test]
async fn everyone_is_asked_but_listeners_and_of_a_share_group_one() {
    let config = "[limits]\ndevice_topics = [\"lamps/+ -> said/+\"]\n";
    let (_directory, path) = crate::harness::config_file(config);
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut listener = device(&broker, "listener", "lamps/#").await;
    let mut plain = device(&broker, "plain", "lamps/all").await;
    let mut vanishes = device(&broker, "vanishes", "lamps/all").await;
    let mut old = Peer::clean(&broker, V311, "old").await;
    old.subscribe("lamps/all", QOS1).await;
    let mut members = [
        device(&broker, "member-0", "$share/g/lamps/+").await,
        device(&broker, "member-1", "$share/g/lamps/+").await,
    ];
    let mut stream = Serving::open(&calls, named("lamps/all", "stream", 0)).await;

    let policy = || v1::GatherPolicy { timeout: crate::queue::seconds(20), ..Default::default() };
    let mut asking = Asking::begin(&calls, everyone("lamps/all", "state", policy()), 5).await;
    let heard = plain.receive().await;
    assert!((1..=20).contains(&properties_of(&heard).message_expiry.unwrap()));
    plain.say_packet(answer(&heard, 1, "on")).await;
    assert_eq!(asking.said().await, ("plain".to_owned(), "on".to_owned()));
    vanishes.receive().await;
    vanishes.vanish();
    let lost = asking.reply().await;
    assert_eq!((&*lost.responder_id, lost.error.unwrap().code), ("vanishes", i32::from(Code::Aborted)));
    old.receive().await;
    old.say("said/all", QOS0, "off").await;
    assert_eq!(asking.said().await, ("old".to_owned(), "off".to_owned()));
    let asked = stream.one().await;
    stream.reply(vec![reply(asked.request_id, "up")]).await;
    assert_eq!(asking.said().await, ("stream".to_owned(), "up".to_owned()));
    // The member that has less in hand; now neither has anything.
    let [first, second] = &mut members;
    let (at, heard) = tokio::select! {
        heard = first.receive() => (0, heard),
        heard = second.receive() => (1, heard),
    };
    let fault = answer(&heard, 1, "no bulb");
    let mut properties = properties_of(&fault);
    properties.user_properties = vec![property("stafett-error", "NOT_FOUND")];
    members[at].say_packet(Publish { properties: Some(Box::new(properties)), ..fault }).await;
    let failed = asking.reply().await;
    assert_eq!(failed.responder_id, format!("member-{at}"));
    assert_eq!(failed.error.unwrap().code, i32::from(Code::NotFound));
    let summary = asking.summary().await;
    assert_eq!((summary.replied, summary.failed, summary.quorum_met), (3, 1, false));
    assert_eq!(missing(&summary), [("vanishes", v1::MissingReason::Lost)]);
    members[1 - at].nothing_came().await;
    listener.nothing_came().await;
}

#[tokio::test]
async fn devices_get_parts_and_are_told_which() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut lost = device(&broker, "lost", "$share/g/lamps/#").await;
    let parts = ["a", "b", "c"].map(crate::queue::message).to_vec();
    let request = v1::MulticastRequest { service: "lamps/all".to_owned(), parts, ..Default::default() };
    let mut asking = Asking::begin(&calls, request, 1).await;
    let part_of = |heard: &Publish| {
        let properties = properties_of(heard).user_properties;
        properties.iter().find(|(key, _)| *key == *"stafett-part").unwrap().1.to_string()
    };
    let heard = lost.receive().await;
    assert_eq!((part_of(&heard), &heard.payload[..]), ("0/3".to_owned(), &b"a"[..]));
    lost.say_packet(answer(&heard, 1, "A")).await;
    assert_eq!(asking.reply().await.part, Some(0));
    let heard = lost.receive().await;
    assert_eq!(part_of(&heard), "1/3");
    // What is lost with a device goes to whoever serves, and what it says under another's number is nobody's.
    let mut stream = Serving::open(&calls, named("lamps/all", "stream", 0)).await;
    let asked = stream.one().await;
    assert_eq!(asked.part.unwrap().index, 2);
    lost.vanish();
    let mut forger = device(&broker, "forger", "other").await;
    forger.say_packet(answer(&heard, 1, "forged")).await;
    stream.reply(vec![reply(asked.request_id, "C")]).await;
    assert_eq!(asking.said().await, ("stream".to_owned(), "C".to_owned()));
    let asked = stream.one().await;
    assert_eq!((asked.part.unwrap().index, asked.attempt), (1, 2));
    stream.reply(vec![reply(asked.request_id, "B")]).await;
    assert_eq!(asking.said().await, ("stream".to_owned(), "B".to_owned()));
    let summary = asking.summary().await;
    assert_eq!((summary.replied, summary.asked, summary.quorum_met), (3, 2, true));
}

#[tokio::test]
async fn everyone_whose_topic_a_filter_matches_is_asked_on_it() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let listeners = [device(&broker, "all", "lamps/#").await, device(&broker, "set", "lamps/+/set").await];
    let others =
        [device(&broker, "get", "lamps/1/get").await, device(&broker, "deep", "lamps/1/2/set").await];
    let mut old = Peer::clean(&broker, V311, "old").await;
    old.subscribe("lamps/1/set", QOS1).await;
    let mut one = device(&broker, "one", "lamps/1/set").await;
    let mut two = device(&broker, "two", "lamps/2/set").await;
    two.subscribe("lamps/4/set", QOS1).await;
    let mut stream = Serving::open(&calls, named("lamps/3/set", "stream", 0)).await;
    let mut member = device(&broker, "member", "$share/g/lamps/3/#").await;

    let policy =
        v1::GatherPolicy { timeout: crate::queue::seconds(20), max_replies: 3, ..Default::default() };
    let request = |filter: &str, policy| v1::MulticastRequest {
        filter: filter.to_owned(),
        request: Some(crate::queue::message("off")),
        policy: Some(policy),
        ..Default::default()
    };
    let mut asking = Asking::begin(&calls, request("lamps/+/set", policy), 5).await;
    let heard = one.receive().await;
    assert_eq!(&*heard.topic, "lamps/1/set");
    // Who is there for two topics is asked on both; the order is that of the topics.
    let asked = [two.receive().await, two.receive().await];
    assert_eq!(asked.each_ref().map(|heard| heard.topic.to_string()), ["lamps/2/set", "lamps/4/set"]);
    // Only its own answer counts.
    two.say_packet(answer(&heard, 9, "forged")).await;
    one.say_packet(answer(&heard, 1, "dark")).await;
    let said = asking.reply().await;
    assert_eq!((&*said.responder_id, &*said.service), ("one", "lamps/1/set"));
    assert_eq!(payload_of(said.message.as_ref()), "dark");
    broker.counts("call_replies_forged_total", 1).await;
    two.say_packet(answer(&asked[1], 2, "dark")).await;
    assert_eq!(asking.reply().await.service, "lamps/4/set");
    let request_3 = stream.one().await;
    stream.reply(vec![reply(request_3.request_id, "dark")]).await;
    assert_eq!(asking.said().await, ("stream".to_owned(), "dark".to_owned()));
    assert_eq!(&*member.receive().await.topic, "lamps/3/set");
    let summary = asking.summary().await;
    assert_eq!((summary.end(), summary.replied, summary.quorum_met), (v1::GatherEnd::MaxReplies, 3, true));
    let missing: Vec<_> =
        summary.missing.iter().map(|it| (&*it.responder_id, &*it.service, it.reason())).collect();
    let silent = v1::MissingReason::Silent;
    assert_eq!(missing, [("two", "lamps/2/set", silent), ("member", "lamps/3/set", silent)]);
    for mut idle in listeners.into_iter().chain(others).chain([old]) {
        idle.nothing_came().await;
    }
}

#[tokio::test]
async fn who_listens_with_a_wildcard_is_asked_where_that_is_wanted() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut exact = device(&broker, "exact", "lamps/1").await;
    exact.subscribe("lamps/#", QOS1).await;
    let mut listener = device(&broker, "listener", "lamps/+").await;
    listener.subscribe("#", QOS1).await;
    let mut leaves = device(&broker, "leaves", "lamps/#").await;
    let mut other = device(&broker, "other", "lamps/1/+").await;
    let policy = || v1::GatherPolicy { timeout: crate::queue::seconds(20), ..Default::default() };
    let request = |listeners| v1::MulticastRequest { listeners, ..everyone("lamps/1", "state", policy()) };

    let mut all = Asking::begin(&calls, request(true), 3).await;
    for (device, name) in [(&mut exact, "exact"), (&mut listener, "listener")] {
        let heard = device.receive().await;
        device.say_packet(answer(&heard, 1, "on")).await;
        assert_eq!(all.said().await, (name.to_owned(), "on".to_owned()));
    }
    leaves.receive().await;
    leaves.vanish();
    assert_eq!(all.reply().await.responder_id, "leaves");
    let summary = all.summary().await;
    assert_eq!((missing(&summary), summary.replied), (vec![("leaves", v1::MissingReason::Lost)], 2));

    // They are nobody whom a call, or who did not ask for them, finds.
    let mut one = Asking::begin(&calls, request(false), 1).await;
    let heard = exact.receive().await;
    exact.say_packet(answer(&heard, 2, "on")).await;
    assert_eq!(one.said().await.0, "exact");
    one.summary().await;
    exact.vanish();
    broker.counts("responders", 0).await;
    let status = failed(calls.begin(asking("lamps/1", ""))).await;
    assert_eq!(reason_of(&status), "NO_RESPONDERS");
    assert!(calls.clone().responders("lamps/1").await.is_empty());

    // Whoever ends its subscription is asked no more, and one that is left is there for the topic all the same.
    listener.unsubscribe("lamps/+").await;
    let mut all = Asking::begin(&calls, request(true), 1).await;
    let heard = listener.receive().await;
    listener.say_packet(answer(&heard, 2, "on")).await;
    assert_eq!(all.said().await.0, "listener");
    all.summary().await;
    // Topics that one listens to are without number: nothing of them is kept.
    for topic in ["a", "b", "c"] {
        let request = v1::MulticastRequest { listeners: true, ..everyone(topic, "", policy()) };
        let mut all = Asking::begin(&calls, request, 1).await;
        let heard = listener.receive().await;
        listener.say_packet(answer(&heard, 3, "heard")).await;
        assert_eq!(all.said().await.0, "listener");
        all.summary().await;
    }
    broker.counts("responders", 0).await;
    broker.counts("calls_in_flight", 0).await;
    listener.unsubscribe("#").await;
    let mut client = calls.0.clone();
    let status = within("an answer", client.multicast(request(true))).await.unwrap_err();
    assert_eq!(reason_of(&status), "NO_RESPONDERS");
    other.nothing_came().await;
}

#[tokio::test]
async fn a_topic_that_a_device_does_not_serve_any_more_takes_no_place() {
    let (_directory, path) = crate::harness::config_file("[limits]\nmax_responders = 1\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut lamp = Peer::clean(&broker, V5, "lamp").await;
    // Each topic is served once, as one is that has a request's number in it.
    for (filter, topic) in [("jobs/1", "jobs/1"), ("$share/g/jobs/+", "jobs/2"), ("jobs/3", "jobs/3")] {
        lamp.subscribe(filter, QOS1).await;
        let call = calls.begin(asking(topic, ""));
        let heard = lamp.receive().await;
        lamp.say_packet(answer(&heard, 1, "done")).await;
        assert_eq!(answered(call).await, "done");
        lamp.unsubscribe(filter).await;
        broker.counts("responders", 0).await;
        broker.counts("services", 0).await;
    }
    // With a request in hand it keeps its place until that is over, and gives it back then.
    lamp.subscribe("jobs/4", QOS1).await;
    for ends in ["answered", "cancelled"] {
        let call = calls.begin(asking("jobs/4", ""));
        let heard = lamp.receive().await;
        lamp.unsubscribe("jobs/4").await;
        broker.counts("responders", 1).await;
        if ends == "answered" {
            lamp.say_packet(answer(&heard, 2, ends)).await;
            assert_eq!(answered(call).await, ends);
        } else {
            call.abort();
        }
        broker.counts("responders", 0).await;
        lamp.subscribe("jobs/4", QOS1).await;
    }
}

#[tokio::test]
async fn who_waits_for_a_device_hears_at_once_that_it_serves_no_more() {
    let (_broker, mut lamp, first, begun) = two_calls_to_one_lamp().await;
    lamp.unsubscribe("lamp").await;
    let [one, other] = begun;
    let ended = tokio::select! {
        ended = failed(one) => ended,
        ended = failed(other) => ended,
    };
    assert_eq!(reason_of(&ended), "NO_RESPONDERS");
    lamp.say_packet(answer(&first, 1, "x")).await;
}

#[tokio::test]
async fn a_listener_that_owes_an_answer_takes_no_place_when_its_time_is_over() {
    let config = "[limits]\ndevice_topics = [\"lamps/+/set -> lamps/+/state\"]\ncall_timeout = \"300ms\"\n";
    let (_directory, path) = crate::harness::config_file(config);
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut lamp = Peer::clean(&broker, V311, "gateway").await;
    lamp.subscribe("lamps/#", QOS1).await;
    let policy = || v1::GatherPolicy {
        timeout: prost_types::Duration::try_from(Duration::from_millis(50)).ok(),
        ..Default::default()
    };
    for (topic, late) in [("lamps/1", false), ("lamps/2", true)] {
        let asks = everyone(&format!("{topic}/set"), "on", policy());
        let request = v1::MulticastRequest { listeners: true, ..asks };
        let all = Asking::begin(&calls, request, 1).await;
        lamp.receive().await;
        assert_eq!(missing(&all.summary().await), [("gateway", v1::MissingReason::Silent)]);
        if late {
            lamp.say(&format!("{topic}/state"), QOS0, "late").await;
        }
        broker.counts("responders", 0).await;
        broker.counts("calls_in_flight", 0).await;
    }
}

#[tokio::test]
async fn a_late_answer_is_that_to_no_other_call_though_the_device_has_subscribed_again() {
    let config = "[limits]\ndevice_topics = [\"set -> state\"]\ncall_timeout = \"1day\"\n";
    let (_directory, path) = crate::harness::config_file(config);
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut calls = Calls::of(&broker).await;
    let mut lamp = Peer::clean(&broker, V311, "lamp").await;
    lamp.subscribe("set", QOS1).await;
    let slow = calls.begin(asking("set", "slow"));
    lamp.receive().await;
    slow.abort();
    broker.counts("calls_in_flight", 0).await;
    lamp.unsubscribe("set").await;
    assert_eq!(reason_of(&calls.refused(asking("set", "")).await), "NO_RESPONDERS");
    lamp.subscribe("set", QOS1).await;
    let call = calls.begin(asking("set", "next"));
    broker.counts("calls_in_flight", 1).await;
    lamp.nothing_came().await;
    lamp.send(Packet::Publish(publish("state", QOS0, 0, "late"))).await;
    assert_eq!(text(&lamp.receive().await), "next");
    lamp.say("state", QOS1, "next").await;
    assert_eq!(answered(call).await, "next");
}

/// Answers what comes, but for some, and ends its subscription or its connection, again and again.
async fn restless(broker: &Broker, version: Version, at: u64) {
    for round in 0_u64.. {
        let mut device = Peer::clean(broker, version, &format!("device-{at}")).await;
        device.subscribe("job", QOS0).await;
        for n in 0..20 {
            let request = device.publish().await;
            let said = match version {
                V311 => publish("said", QOS0, 0, "x"),
                V5 => Publish { qos: QOS0, packet_id: None, ..answer(&request, 1, "x") },
            };
            if !u64::is_multiple_of(n + at, 5) {
                device.send(Packet::Publish(said)).await;
            }
        }
        if round % 2 == 0 {
            device.vanish();
        } else {
            let filters = vec!["job".into()];
            let ended = Unsubscribe { packet_id: id(9), properties: None, filters };
            device.send(Packet::Unsubscribe(ended)).await;
            while !matches!(device.next().await, Packet::UnsubAck(_)) {}
        }
    }
}

#[tokio::test]
async fn nothing_is_left_of_devices_and_their_calls() {
    let config = "[limits]\ndevice_topics = [\"job -> said\"]\ncall_timeout = \"100ms\"\n";
    let (_directory, path) = crate::harness::config_file(config);
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let devices = futures_util::future::join4(
        restless(&broker, V5, 0),
        restless(&broker, V5, 1),
        restless(&broker, V5, 2),
        restless(&broker, V311, 3),
    );
    let policy = || v1::GatherPolicy {
        timeout: prost_types::Duration::try_from(Duration::from_millis(20)).ok(),
        ..Default::default()
    };
    let asks = async |at: u64| {
        for n in 0..150 {
            let millis = Duration::from_millis(1 + (n * 7 + at) % 30);
            if n % 4 == 0 {
                let request = v1::MulticastRequest { listeners: true, ..everyone("job", "x", policy()) };
                let events = calls.0.clone().multicast(request).await.map(|answer| answer.into_inner());
                if let Ok(mut events) = events {
                    drop(tokio::time::timeout(millis, events.message()).await);
                }
            } else {
                let call = v1::CallRequest { idempotent: n % 2 == 0, ..asking("job", "x") };
                drop(calls.0.clone().call(within_time(call, millis)).await);
            }
        }
    };
    let mut device = Peer::clean(&broker, V5, "caller").await;
    let device = async {
        for _ in 0..150 {
            let asks = request("job", 1, "x", |it| it.message_expiry = Some(1));
            device.say_packet(asks).await;
        }
    };
    let callers = futures_util::future::join5(asks(0), asks(1), asks(2), asks(3), device);
    tokio::select! {
        _ = devices => {}
        _ = callers => {}
    }
    for name in ["calls_in_flight", "call_bytes", "responders", "services"] {
        broker.counts(name, 0).await;
    }
}
