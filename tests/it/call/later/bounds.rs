//! What is bounded: tries of a call, replies on their way to the disk, calls that are larger than any bound.

use std::num::NonZeroU32;

use super::*;

#[tokio::test]
async fn a_call_that_loses_its_responders_is_made_up_to_the_bound() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let id = calls.store(again("s", "poison")).await;
    for attempt in 1..=3 {
        assert!(calls.is_under_way(&id).await);
        let mut lost = Serving::open(&calls, named("s", &format!("r{attempt}"), 1)).await;
        assert_eq!(lost.one().await.attempt, attempt);
    }
    let error = calls.reply_to(&id).await.error.unwrap();
    assert_eq!(Code::from(error.code), Code::Aborted);
    assert!(error.message.contains("`r3`"), "{error:?}");
    // What is stored behind it is not held up.
    let next = calls.store(again("s", "well")).await;
    let mut serving = Serving::open(&calls, named("s", "", 1)).await;
    let asked = serving.one().await;
    assert_eq!((text(asked.message.as_ref()), asked.attempt), ("well".to_owned(), 1));
    serving.reply(vec![reply(1, "done")]).await;
    assert_eq!(calls.said(&next).await, "done");
}

/// A responder says more than the disk takes: it is read as fast as that goes.
#[tokio::test]
async fn replies_wait_for_the_disk_with_who_says_them() {
    const CALLS: usize = 64;
    const MIB: usize = 1 << 20;
    let (_directory, path) = crate::harness::config_file("[limits]\ncommit_pending_bytes = \"1MiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut ids = Vec::new();
    for _ in 0..CALLS {
        ids.push(calls.store(later("s", "")).await);
    }
    let mut serving = Serving::open(&calls, named("s", "one", 64)).await;
    let asked = serving.take(CALLS).await;
    let large = "x".repeat(MIB);
    let says = async {
        for asked in &asked {
            serving.reply(vec![reply(asked.request_id, &large)]).await;
        }
    };
    let mut most = 0;
    let watches = async {
        while broker.count("async_replies").await < CALLS as u64 {
            most = most.max(broker.count("async_replies_on_their_way_bytes").await);
        }
    };
    within("all replies", async { tokio::join!(says, watches) }).await;
    // What is beyond the bound was there when it was reached.
    assert!(most <= 4 * MIB as u64, "{most} bytes of replies waited for the disk");
    broker.counts("async_replies_on_their_way_bytes", 0).await;
    for id in &ids {
        assert_eq!(calls.said(id).await.len(), MIB);
    }
}

#[tokio::test]
async fn a_call_that_never_has_room_is_refused() {
    let (_directory, path) = crate::harness::config_file("[limits]\ncall_bytes = \"1MiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut calls = Calls::of(&broker).await;
    let large = "x".repeat(2 << 20);
    let status = refused(calls.0.call_async(later("s", &large))).await;
    assert_eq!((status.code(), &*reason_of(&status)), (Code::ResourceExhausted, "LIMIT_REACHED"));
    assert!(status.message().contains("limits.call_bytes"), "{status:?}");

    // One that was stored under a higher bound is answered with that, and holds nobody up.
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let (large, small) = (calls.store(later("s", &large)).await, calls.store(later("s", "small")).await);
    drop(calls);
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    Serving::open(&calls, named("s", "one", 0)).await.echo();
    assert_eq!(calls.said(&small).await, "small by one");
    let error = calls.reply_to(&large).await.error.unwrap();
    assert_eq!(Code::from(error.code), Code::ResourceExhausted);
    assert!(error.message.contains("limits.call_bytes"), "{error:?}");
}

/// Answers the next request that a device gets.
async fn answer(lamp: &mut Peer, said: &'static str) {
    let asked = properties_of(&lamp.receive().await);
    let mut answer = publish(&asked.response_topic.unwrap(), QOS1, 1, said);
    answer.properties = Some(Default::default());
    answer.properties.as_mut().unwrap().correlation_data = asked.correlation_data;
    lamp.say_packet(answer).await;
}

#[tokio::test]
async fn a_request_that_no_device_takes_is_answered_with_that() {
    let broker = Broker::start().await;
    let mut calls = Calls::of(&broker).await;
    let mut small = connect(V5, "small");
    small.properties.maximum_packet_size = NonZeroU32::new(256);
    let mut lamp = Peer::connected(&broker, small).await;
    lamp.subscribe("lamp", QOS1).await;
    let large = "x".repeat(1024);
    let status = calls.refused(asking("lamp", &large)).await;
    assert_eq!((status.code(), &*crate::queue::field(&status)), (Code::InvalidArgument, "request"));
    assert!(status.message().contains("at most 256"), "{status:?}");
    let (long, short) = (calls.store(later("lamp", &large)).await, calls.store(later("lamp", "on")).await);
    assert_eq!(calls.error_of(&long).await.0, Code::InvalidArgument);
    answer(&mut lamp, "it is on").await;
    assert_eq!(calls.said(&short).await, "it is on");
    // Whoever takes it gets it.
    let mut other = Peer::subscribed(&broker, V5, "lamp", QOS1).await;
    let call = calls.begin(asking("lamp", &large));
    answer(&mut other, "done").await;
    assert_eq!(answered(call).await, "done");
}

#[tokio::test]
async fn a_device_that_does_not_answer_has_a_call_no_longer_than_any() {
    let (_directory, path) =
        crate::harness::config_file("[limits]\ncall_timeout = \"1s\"\ndevice_calls = 1\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut lamp = Peer::subscribed(&broker, V5, "lamp", QOS1).await;
    let (once, twice) = (calls.store(later("lamp", "once")).await, calls.store(again("lamp", "twice")).await);
    assert_eq!(lamp.receive().await.payload, "once");
    assert_eq!(calls.error_of(&once).await, (Code::Aborted, "RESPONDER_LOST".to_owned()));
    assert_eq!(lamp.receive().await.payload, "twice");
    answer(&mut lamp, "done").await;
    assert_eq!(calls.said(&twice).await, "done");
}
