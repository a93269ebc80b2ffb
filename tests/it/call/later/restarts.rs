//! Calls and replies over the end of the broker, in order and not.

use stafett::mqtt::codec::Packet;

use super::*;
use crate::queue::{Queues, payloads};

/// Ends the broker, in order or by kill -9, and starts it again.
async fn restarted(broker: Broker, kill: bool) -> Broker {
    let data = broker.data();
    if kill {
        broker.kill9().await;
    } else {
        let ended = broker.terminate().await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    Broker::start_in(data, &[]).await
}

#[tokio::test]
async fn call_and_reply_survive_the_end_of_the_broker() {
    for kill in [false, true] {
        let broker = Broker::start().await;
        let id = Calls::of(&broker).await.store(later("s", "7")).await;
        // The callee was down when the call was made; the caller is when the reply comes.
        let broker = restarted(broker, kill).await;
        let calls = Calls::of(&broker).await;
        assert!(calls.is_under_way(&id).await);
        Serving::open(&calls, named("s", "one", 0)).await.echo();
        broker.counts("async_replies", 1).await;
        drop(calls);
        let broker = restarted(broker, kill).await;
        let calls = Calls::of(&broker).await;
        assert_eq!(calls.said(&id).await, "7 by one");
        let broker = restarted(broker, kill).await;
        let calls = Calls::of(&broker).await;
        assert_eq!(calls.said(&id).await, "7 by one", "it may be fetched again");
        broker.counts("async_calls_interrupted_total", 0).await;
        // The order is that in which they were made.
        for number in 0..5 {
            calls.store(later("t", &number.to_string())).await;
        }
        let broker = restarted(broker, kill).await;
        let calls = Calls::of(&broker).await;
        let mut serving = Serving::open(&calls, named("t", "", 5)).await;
        let heard: Vec<_> = serving.take(5).await.iter().map(|asked| text(asked.message.as_ref())).collect();
        assert_eq!(heard, ["0", "1", "2", "3", "4"]);
    }
}

#[tokio::test]
async fn a_call_that_is_over_while_the_broker_is_down_is_answered() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let soon = v1::CallAsyncRequest { timeout: seconds(1), ..again("s", "") };
    let mut serving = Serving::open(&calls, opening("held")).await;
    let mut held = soon.clone();
    held.service = "held".to_owned();
    let (waits, held) = (calls.store(soon).await, calls.store(held).await);
    serving.one().await;
    let data = broker.data();
    broker.kill9().await;
    seconds_pass(&Broker::start().await, 2).await;
    let broker = Broker::start_in(data, &[]).await;
    let calls = Calls::of(&broker).await;
    for id in [waits, held] {
        assert_eq!(calls.error_of(&id).await.0, Code::DeadlineExceeded);
    }
}

#[tokio::test]
async fn a_call_in_hand_at_a_kill_is_made_again_or_answered() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, opening("s")).await;
    let once = calls.store(later("s", "once")).await;
    let again = calls.store(again("s", "again")).await;
    serving.take(2).await;
    let broker = restarted(broker, true).await;
    let calls = Calls::of(&broker).await;
    assert_eq!(calls.error_of(&once).await, (Code::Aborted, "RESPONDER_LOST".to_owned()));
    let mut serving = Serving::open(&calls, opening("s")).await;
    let asked = serving.one().await;
    assert_eq!(text(asked.message.as_ref()), "again");
    serving.reply(vec![reply(1, "done")]).await;
    assert_eq!(calls.said(&again).await, "done");
    // The former was not made again behind it.
    let last = calls.begin(asking("s", "last"));
    assert_eq!(text(serving.one().await.message.as_ref()), "last");
    serving.reply(vec![reply(2, "end")]).await;
    answered(last).await;
    broker.counts("async_calls_interrupted_total", 1).await;
    let broker = restarted(broker, true).await;
    assert_eq!(Calls::of(&broker).await.error_of(&once).await.0, Code::Aborted);
}

#[tokio::test]
async fn what_nobody_was_sent_is_no_loss() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    // That they were handed out is taken back on disk.
    let ids = left_unread(&broker, &calls).await;
    within("all to be answered or to wait", async {
        while broker.count("async_calls_waiting").await + broker.count("async_replies").await < 20 {}
    })
    .await;
    let lost = broker.count("async_replies").await;
    assert!(lost < 20, "{lost}");
    let broker = restarted(broker, true).await;
    let calls = Calls::of(&broker).await;
    Serving::open(&calls, opening("s")).await.echo();
    broker.counts("async_replies", 20).await;
    broker.counts("async_calls_interrupted_total", 0).await;
    let mut errors = 0;
    for id in &ids {
        errors += u64::from(calls.reply_to(id).await.error.is_some());
    }
    assert_eq!(errors, lost);
}

#[tokio::test]
async fn what_waits_for_a_bound_is_with_nobody() {
    let (_directory, path) = crate::harness::config_file("[limits]\nmax_calls = 1\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, named("s", "", 9)).await;
    let _held = calls.begin(asking("s", "held"));
    serving.one().await;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(calls.store(later("s", &number.to_string())).await);
    }
    // They were marked, refused, and unmarked again.
    within("a refusal", async { while broker.count("calls_refused_total").await == 0 {} }).await;
    broker.counts("async_calls_waiting", 5).await;
    let broker = restarted(broker, true).await;
    let calls = Calls::of(&broker).await;
    Serving::open(&calls, named("s", "one", 0)).await.echo();
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(calls.said(id).await, format!("{number} by one"));
    }
    broker.counts("async_calls_interrupted_total", 0).await;
}

#[tokio::test]
async fn a_reply_that_its_topic_refused_stays_where_it_is() {
    for kill in [false, true] {
        let (broker, mut queues) = Queues::start().await;
        let bindings = vec!["bound".to_owned()];
        queues.create(v1::Queue { max_messages: 1, bindings, ..crate::queue::named("full") }).await;
        queues.fill("full", &["there"]).await;
        let calls = Calls::of(&broker).await;
        Serving::open(&calls, named("s", "one", 0)).await.echo();
        let id = calls.store(to_topic("bound", later("s", "7"))).await;
        broker.counts("async_replies", 1).await;
        // Now there is room, and it is too late.
        let leased = queues.one("full").await;
        queues.acknowledge("full", vec![leased.lease_token]).await;
        drop((calls, queues));
        let broker = restarted(broker, kill).await;
        let calls = Calls::of(&broker).await;
        assert_eq!(calls.said(&id).await, "7 by one");
        assert!(Queues::of(&broker).await.is_empty("full").await);
        broker.counts("async_replies", 1).await;
    }
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_hand_and_keeps_the_rest() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, named("s", "", 1)).await;
    let in_hand = calls.store(later("s", "in hand")).await;
    let waits = calls.store(later("s", "waits")).await;
    serving.one().await;
    let data = broker.data();
    let mut broker = broker;
    let mut waiting = calls.clone();
    let request = awaiting(&waits, seconds(3600));
    #[expect(clippy::disallowed_methods, reason = "a test waits for it")]
    let waiting = tokio::spawn(async move { got(waiting.0.await_reply(request)).await.done });
    tokio::task::yield_now().await;
    // Goes behind it on the same connection.
    assert!(calls.is_under_way(&waits).await);
    broker.process().signal(Signal::TERM);
    broker.process().says("SIGTERM: stopping").await;
    // Who waits for a reply does not hold up the stop.
    assert!(!waiting.await.unwrap());
    serving.reply(vec![reply(1, "done")]).await;
    assert!(matches!(serving.hear().await, Event::Closing(_)));
    drop((serving, calls));
    let ended = broker.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("deadline"), "{}", ended.stderr);
    let broker = Broker::start_in(data, &[]).await;
    let calls = Calls::of(&broker).await;
    assert_eq!(calls.said(&in_hand).await, "done");
    assert!(calls.is_under_way(&waits).await);
    Serving::open(&calls, named("s", "one", 0)).await.echo();
    assert_eq!(calls.said(&waits).await, "waits by one");
}

#[tokio::test]
async fn a_caller_that_is_away_finds_its_reply() {
    for kill in [false, true] {
        let (broker, _) = Queues::start().await;
        let away = Peer::connected(&broker, kept(V311, "away")).await;
        let mut away = away;
        away.subscribe("replies/+", QOS1).await;
        away.leave().await;
        let calls = Calls::of(&broker).await;
        let id = calls.store(to_topic("replies/1", later("s", "topic"))).await;
        calls.store(to_queue("q", later("s", "queue"))).await;
        drop(calls);
        let broker = restarted(broker, kill).await;
        let calls = Calls::of(&broker).await;
        assert!(calls.is_under_way(&id).await);
        Serving::open(&calls, named("s", "one", 0)).await.echo();
        broker.counts("async_calls", 0).await;
        // Nowhere else any more.
        broker.counts("async_reply_bytes", 0).await;
        drop(calls);
        let broker = restarted(broker, kill).await;
        let mut away = Peer::connected(&broker, kept(V311, "away")).await;
        assert_eq!(away.receive().await.payload, "topic by one");
        away.send(Packet::PingReq).await;
        match away.next().await {
            // A crash may come between a reply's being published and its being gone.
            Packet::Publish(again) if kill => assert_eq!(again.payload, "topic by one"),
            other => assert_eq!(other, Packet::PingResp),
        }
        let mut queues = Queues::of(&broker).await;
        let leased = queues.one("q").await;
        assert_eq!(payloads(std::slice::from_ref(&leased)), ["queue by one"]);
        queues.acknowledge("q", vec![leased.lease_token]).await;
        assert!(queues.is_empty("q").await);
    }
}

/// The broker is killed again and again while calls are made, handed out and answered. In the end each call that was
/// stored has one reply in the queue, and none that is not idempotent was handed out twice.
#[tokio::test]
async fn no_call_is_lost_or_made_twice_over_many_kills() {
    const ROUNDS: usize = 5;
    const CALLS: usize = 40;
    let (mut broker, _) = Queues::start().await;
    let mut stored = std::collections::HashSet::new();
    let mut handed = std::collections::HashMap::new();
    for round in 0..ROUNDS {
        let calls = Calls::of(&broker).await;
        let mut serving = Serving::open(&calls, named("s", "one", 8)).await;
        for number in 0..CALLS {
            let name = format!("{round}-{number}");
            let call = if number % 2 == 1 { again("s", &name) } else { later("s", &name) };
            stored.insert((calls.store(to_queue("q", call)).await, name));
            // Some are answered, some stay in hand or in the line.
            if number % 3 == 0 {
                let Event::Requests(frame) = serving.hear().await else { panic!("not requests") };
                for asked in &frame.requests {
                    *handed.entry(text(asked.message.as_ref())).or_insert(0) += 1;
                }
                let done = frame.requests.iter().take(2).map(|asked| reply(asked.request_id, "done"));
                serving.reply(done.collect()).await;
            }
        }
        let data = broker.data();
        broker.kill9().await;
        // What was on its way to the responder counts as handed out.
        while let Ok(Some(event)) = serving.next().await {
            if let Some(Event::Requests(frame)) = event.event {
                for asked in frame.requests {
                    *handed.entry(text(asked.message.as_ref())).or_insert(0) += 1;
                }
            }
        }
        broker = Broker::start_in(data, &[]).await;
    }
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, named("s", "one", 64)).await;
    // When this is answered the broker knows all that it has.
    calls.is_unknown(&stored.iter().next().unwrap().0).await;
    let all_over = broker.counts("async_calls", 0);
    tokio::pin!(all_over);
    loop {
        tokio::select! {
            event = serving.next() => {
                let Some(Event::Requests(frame)) = event.unwrap().unwrap().event else { continue };
                for asked in &frame.requests {
                    *handed.entry(text(asked.message.as_ref())).or_insert(0) += 1;
                }
                let done = frame.requests.iter().map(|asked| reply(asked.request_id, "done"));
                serving.reply(done.collect()).await;
            }
            () = &mut all_over => break,
        }
    }
    let mut queues = Queues::of(&broker).await;
    let mut replies = std::collections::HashMap::new();
    while replies.len() < stored.len() {
        let leased = queues.receive("q", 100).await;
        assert!(!leased.is_empty(), "{} of {} have a reply", replies.len(), stored.len());
        queues.acknowledge("q", leased.iter().map(|leased| leased.lease_token.clone()).collect()).await;
        for leased in leased {
            let said = leased.message.unwrap();
            *replies.entry(String::from_utf8(said.correlation_data.to_vec()).unwrap()).or_insert(0) += 1;
        }
    }
    assert!(queues.is_empty("q").await);
    for (id, name) in &stored {
        assert_eq!(replies.get(id), Some(&1), "{name} has not one reply");
        let number: usize = name.split_once('-').unwrap().1.parse().unwrap();
        let times = handed.get(name).copied().unwrap_or(0);
        if number % 2 == 1 {
            assert!(times >= 1, "{name} was never made");
        } else {
            assert!(times <= 1, "{name} was handed out {times} times");
        }
    }
}
