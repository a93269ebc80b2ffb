//! Requests in parts where MQTT clients are among those who do them.

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::serve_request::Action;

use super::calls::{answer, device};
use super::*;
use crate::call::gather::Asking;
use crate::call::{Calls, Serving, named, reply};
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
