//! Requests in parts where MQTT clients are among those who do them.

use std::num::NonZeroU32;

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::serve_request::Action;
use tonic::Code;

use super::calls::{answer, device};
use super::*;
use crate::call::gather::Asking;
use crate::call::{Calls, Serving, answered, asking, named, reply};
use crate::harness::config_file;
use crate::queue::reason;

/// A device that shares `job` and reads nothing, so that it takes nothing any more; and who fills it.
async fn full(broker: &Broker) -> (Peer, Peer) {
    let mut stuck = device(broker, "stuck", "$share/g/job").await;
    stuck.subscribe("flood", QOS0).await;
    let mut flood = Peer::clean(broker, V5, "flood").await;
    // More than all buffers on the way hold.
    for _ in 0..200 {
        flood.say("flood", QOS1, &"x".repeat(200_000)).await;
    }
    (stuck, flood)
}

/// Reads all that waits: what comes after it is dropped before that.
async fn read(device: &mut Peer, flood: &mut Peer) {
    let mut all = false;
    while !all {
        flood.say("flood", QOS1, "end").await;
        device.send(Packet::PingReq).await;
        loop {
            match device.next().await {
                Packet::Publish(publish) => all |= text(&publish) == "end",
                Packet::PingResp => break,
                other => panic!("{other:?} instead of the flood"),
            }
        }
    }
}

/// What it is asked; what is left of the flood may come before.
async fn asked(device: &mut Peer) -> Publish {
    loop {
        let heard = device.receive().await;
        if *heard.topic == *"job" {
            return heard;
        }
    }
}

async fn divided(calls: &Calls, parts: usize, serving: u32) -> Asking {
    let parts = (0..parts).map(|at| crate::queue::message(&at.to_string())).collect();
    let request = v1::MulticastRequest { service: "job".to_owned(), parts, ..Default::default() };
    Asking::begin(calls, request, serving).await
}

#[tokio::test]
async fn a_device_that_was_full_gets_parts_when_it_reads_again() {
    let (_directory, path) = config_file("[mqtt]\noutbox_bytes = \"64KiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let (mut device, mut flood) = full(&broker).await;

    // Nobody else is there: what nobody takes does not wait for ever.
    let mut asking = divided(&calls, 2, 1).await;
    for part in [0, 1] {
        let refused = asking.reply().await;
        let why = tonic_types::RpcStatusExt::get_error_details(&refused.error.unwrap());
        assert_eq!((refused.part, reason(&why)), (Some(part), "LIMIT_REACHED"));
    }
    let summary = asking.summary().await;
    let missing: Vec<_> = summary.missing_parts.iter().map(v1::MissingPart::reason).collect();
    assert_eq!(missing, [v1::MissingReason::Refused; 2]);

    // It has its share as soon as another one's answer has the parts looked at.
    let mut stream = Serving::open(&calls, named("job", "stream", 0)).await;
    let mut asking = divided(&calls, 4, 2).await;
    let first = stream.one().await;
    read(&mut device, &mut flood).await;
    stream.reply(vec![reply(first.request_id, "0")]).await;
    assert_eq!(asking.said().await, ("stream".to_owned(), "0".to_owned()));
    let second = stream.one().await;
    let heard = asked(&mut device).await;
    assert_eq!((second.part.unwrap().index, text(&heard)), (1, "2"));
    device.say_packet(answer(&heard, 1, "2")).await;
    assert_eq!(asking.said().await, ("stuck".to_owned(), "2".to_owned()));
    let heard = asked(&mut device).await;
    device.say_packet(answer(&heard, 2, "3")).await;
    assert_eq!(asking.said().await, ("stuck".to_owned(), "3".to_owned()));
    stream.reply(vec![reply(second.request_id, "1")]).await;
    assert_eq!(asking.said().await, ("stream".to_owned(), "1".to_owned()));
    assert!(asking.summary().await.quorum_met);
}

#[tokio::test]
async fn nothing_is_given_up_before_one_that_was_full_is_asked_again() {
    let (_directory, path) = config_file("[mqtt]\noutbox_bytes = \"64KiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let (mut device, mut flood) = full(&broker).await;
    let mut stream = Serving::open(&calls, named("job", "stream", 0)).await;
    let mut asking = divided(&calls, 2, 2).await;
    let first = stream.one().await;
    // Who has the other one gets no more; the device reads before that one is answered.
    stream.say(Action::Drain(v1::Drain {})).await;
    let mut looking = calls.clone();
    let drains = async { while !looking.responders("job").await.iter().any(|one| one.draining) {} };
    within("the drain", drains).await;
    read(&mut device, &mut flood).await;
    stream.reply(vec![reply(first.request_id, "0")]).await;
    assert_eq!(asking.said().await, ("stream".to_owned(), "0".to_owned()));
    let heard = asked(&mut device).await;
    device.say_packet(answer(&heard, 1, "1")).await;
    assert_eq!(asking.said().await, ("stuck".to_owned(), "1".to_owned()));
    assert!(asking.summary().await.quorum_met);
}

/// A device that shares `job` and takes packets of so many bytes.
async fn narrow(broker: &Broker, client_id: &str, bytes: u32) -> Peer {
    let mut connect = connect(V5, client_id);
    connect.properties.maximum_packet_size = NonZeroU32::new(bytes);
    let mut device = Peer::connected(broker, connect).await;
    device.subscribe("$share/g/job", QOS1).await;
    device
}

async fn begun(calls: &Calls, parts: &[&str], serving: u32) -> Asking {
    let parts = parts.iter().map(|part| crate::queue::message(part)).collect();
    let request = v1::MulticastRequest { service: "job".to_owned(), parts, ..Default::default() };
    Asking::begin(calls, request, serving).await
}

/// The next request of a device is this, and it answers it.
async fn does(device: &mut Peer, payload: &str) {
    let heard = asked(device).await;
    assert_eq!(text(&heard), payload);
    // The next request may come before an acknowledgement would.
    let answer = Publish { qos: QOS0, packet_id: None, ..answer(&heard, 1, payload) };
    device.send(Packet::Publish(answer)).await;
}

/// The next part that fails, why, and with which text.
async fn fails(asking: &mut Asking) -> (Option<u32>, i32, String) {
    let reply = asking.reply().await;
    let error = reply.error.unwrap();
    (reply.part, error.code, error.message)
}

#[tokio::test]
async fn a_part_that_is_too_large_for_a_device_keeps_no_other_from_it() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut small = narrow(&broker, "small", 400).await;
    let (large, medium) = ("x".repeat(2000), "y".repeat(800));

    // What nobody takes ends alone, with the true reason.
    let mut asking = begun(&calls, &[&large, "1", "2"], 1).await;
    for payload in ["1", "2"] {
        does(&mut small, payload).await;
        assert_eq!(asking.said().await, ("small".to_owned(), payload.to_owned()));
    }
    let (part, code, text) = fails(&mut asking).await;
    assert_eq!((part, Code::from(code)), (Some(0), Code::InvalidArgument));
    assert!(text.contains("at most 400"), "{text}");
    let summary = asking.summary().await;
    let missing: Vec<_> = summary.missing_parts.iter().map(|it| (it.part, it.reason())).collect();
    assert_eq!((summary.replied, missing), (2, vec![(0, v1::MissingReason::Refused)]));

    // Another takes what it may, and is not kept from that by what nobody takes.
    let mut wide = narrow(&broker, "wide", 1200).await;
    let mut asking = begun(&calls, &[&large, &medium, &large], 2).await;
    does(&mut wide, &medium).await;
    assert_eq!(asking.said().await, ("wide".to_owned(), medium));
    for at in [0, 2] {
        let (part, code, text) = fails(&mut asking).await;
        assert_eq!((part, Code::from(code)), (Some(at), Code::InvalidArgument));
        assert!(text.contains("at most 1200"), "{text}");
    }
    assert_eq!(asking.summary().await.replied, 1);
    broker.counts("calls_in_flight", 0).await;
}

#[tokio::test]
async fn a_part_that_is_too_large_for_a_device_waits_for_one_who_takes_it() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut stream = Serving::open(&calls, named("job", "stream", 1)).await;
    let call = calls.begin(asking("job", "whole"));
    let whole = stream.one().await;
    let mut small = narrow(&broker, "small", 400).await;
    let large = "x".repeat(2000);
    let mut first = begun(&calls, &[&large, "1", "2"], 2).await;
    let mut second = begun(&calls, &[&large, "3"], 2).await;
    for payload in ["1", "3", "2"] {
        does(&mut small, payload).await;
    }
    assert_eq!(first.said().await.1, "1");
    assert_eq!(first.said().await.1, "2");
    assert_eq!(second.said().await.1, "3");
    stream.reply(vec![reply(whole.request_id, "whole")]).await;
    assert_eq!(answered(call).await, "whole");
    for _ in 0..2 {
        let asked = stream.one().await;
        assert_eq!(asked.part.unwrap().index, 0);
        stream.reply(vec![reply(asked.request_id, "large")]).await;
    }
    for asking in [&mut first, &mut second] {
        assert_eq!(asking.said().await, ("stream".to_owned(), "large".to_owned()));
    }
    assert!(first.summary().await.quorum_met && second.summary().await.quorum_met);
}

#[tokio::test]
async fn a_call_that_is_too_large_for_a_device_keeps_no_other_from_it() {
    let (_directory, path) = config_file("[limits]\ndevice_calls = 1\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut stream = Serving::open(&calls, named("job", "stream", 1)).await;
    let first = calls.begin(asking("job", "first"));
    let first = (stream.one().await.request_id, first);
    let mut small = narrow(&broker, "small", 400).await;
    let large =
        [calls.begin(asking("job", &"x".repeat(2000))), calls.begin(asking("job", &"x".repeat(2000)))];
    broker.counts("calls_in_flight", 3).await;
    // What comes later, and what waits already.
    let one = calls.begin(asking("job", "1"));
    let heard = asked(&mut small).await;
    let two = calls.begin(asking("job", "2"));
    broker.counts("calls_in_flight", 5).await;
    let heard = Publish { qos: QOS0, packet_id: None, ..answer(&heard, 1, "1") };
    small.send(Packet::Publish(heard)).await;
    assert_eq!(answered(one).await, "1");
    does(&mut small, "2").await;
    assert_eq!(answered(two).await, "2");
    stream.reply(vec![reply(first.0, "first")]).await;
    assert_eq!(answered(first.1).await, "first");
    for _ in 0..large.len() {
        let asked = stream.one().await;
        stream.reply(vec![reply(asked.request_id, "large")]).await;
    }
    for call in large {
        assert_eq!(answered(call).await, "large");
    }
}

#[tokio::test]
async fn parts_that_one_does_not_take_and_the_other_does_not_read_are_given_up() {
    let (_directory, path) = config_file("[mqtt]\noutbox_bytes = \"64KiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let (_stuck, _flood) = full(&broker).await;
    let mut small = narrow(&broker, "small", 400).await;
    let mut asking = begun(&calls, &[&"x".repeat(2000), "1"], 2).await;
    does(&mut small, "1").await;
    assert_eq!(asking.said().await.1, "1");
    let (part, code, text) = fails(&mut asking).await;
    assert_eq!((part, Code::from(code)), (Some(0), Code::ResourceExhausted), "{text}");
}
