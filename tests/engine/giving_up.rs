//! Rests between deliveries, and the ways to the dead letter queue, of every engine.

mod crash;

use std::time::Duration;

use stafett::engine::{
    Append, ConsumerOptions, Definition, Engine, Leased, Nack, Op, Overflow, QueueSpec, Refusal, View,
};
use stafett::types::clock::unix_now;
use stafett::types::{DeadLetter, Priority, Sequence, TargetId, UnixMillis};

use crate::bench::{
    Bench, lease_of, publish, refusal, spec, stored, take, take_now, text, with_dead_letters, within,
};

const HOUR: Duration = Duration::from_secs(3600);

/// What a view shows: payloads, attempts, when they are due.
async fn shown(bench: &Bench, queue: TargetId, view: View) -> Vec<(String, u32, u64)> {
    let found =
        within("a browse", bench.engine.browse(queue, view, Sequence(0), 100, usize::MAX)).await.unwrap();
    let payload = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    found
        .messages
        .iter()
        .map(|b| (payload(&b.message.payload), b.attempts, b.until.map_or(0, |at| at.0)))
        .collect()
}

#[tokio::test]
async fn what_failed_rests_longer_each_time_and_over_a_restart() {
    let bench = Bench::new();
    let backoff = (Some(HOUR), Some(3 * HOUR));
    let queue = bench
        .queue_with(QueueSpec { retry_min_backoff: backoff.0, retry_max_backoff: backoff.1, ..spec("q") })
        .await;
    for payload in ["released", "hurried", "failed", "asked", "lost"] {
        bench.put(queue, payload).await;
    }
    let before = unix_now();
    let consumer = bench.consumer(queue);
    let leased = take_now(&*consumer);
    for (at, how, delay) in [
        (0, Nack::Release, None),
        (1, Nack::Failed(None), Some(Duration::ZERO)),
        (2, Nack::Failed(None), None),
        (3, Nack::Failed(None), Some(9 * HOUR)),
    ] {
        let nacked = bench.engine.nack(queue, &[lease_of(&leased[at])], how, delay).unwrap();
        within("the nack", nacked.durable).await.unwrap();
    }
    consumer.release_all(true);
    assert_eq!(take_now(&*consumer).iter().map(text).collect::<Vec<_>>(), ["released", "hurried"]);
    drop(consumer);
    let millis = |time: Duration| time.as_millis() as u64;
    let bench = bench.reopen();
    let seen = shown(&bench, queue, View::Delayed).await;
    let after = unix_now();
    let rests = |at: usize, payload: &str, least: Duration, most: Duration| {
        let (shown, attempts, until) = &seen[at];
        assert_eq!((shown.as_str(), *attempts), (payload, 1));
        let within = before.0 + millis(least)..=after.0 + millis(most);
        assert!(within.contains(until), "{payload} is due at {until}, not within {within:?}");
    };
    assert_eq!(seen.len(), 3);
    rests(0, "failed", HOUR, 2 * HOUR);
    rests(1, "asked", 9 * HOUR, 9 * HOUR);
    rests(2, "lost", HOUR, 2 * HOUR);
}

#[tokio::test]
async fn a_lease_that_ends_is_followed_by_a_rest() {
    let bench = Bench::new();
    let queue = bench.queue_with(QueueSpec { retry_min_backoff: Some(HOUR), ..spec("q") }).await;
    bench.put(queue, "m").await;
    let second = ConsumerOptions { lease: Some(Duration::from_secs(1)), ..ConsumerOptions::default() };
    let consumer = bench.engine.consumer(queue, second).unwrap();
    let leased = take(&*consumer, 1).await;
    let ends = leased[0].lease_expires.unwrap();
    // Another queue tells when it is over.
    let clock = bench.queue("clock").await;
    bench.put(clock, "tick").await;
    let tick = bench.engine.consumer(clock, second).unwrap();
    take(&*tick, 1).await;
    assert_eq!(take(&*tick, 1).await[0].attempt, 2);
    let rests = shown(&bench, queue, View::Delayed).await;
    assert_eq!((rests[0].0.as_str(), rests[0].1), ("m", 1));
    assert!(rests[0].2 >= ends.0 + HOUR.as_millis() as u64, "{rests:?}");
}

async fn dead_letter(bench: &Bench, dead: TargetId, payload: &str) -> DeadLetter {
    let graves = bench.consumer(dead);
    let buried = take(&*graves, 1).await;
    assert_eq!(text(&buried[0]), payload);
    assert_eq!(buried[0].message.expires_at, None, "it has no time to live there");
    bench.settle(dead, &buried).await;
    buried[0].message.extras.as_ref().unwrap().dead_letter.clone().unwrap()
}

#[tokio::test]
async fn a_dead_letter_says_how_its_last_delivery_failed() {
    let bench = Bench::new();
    let dead = bench.queue("dead").await;
    let queue = bench.queue_with(with_dead_letters("q", 1, "dead")).await;
    let short = ConsumerOptions { lease: Some(Duration::from_secs(1)), ..ConsumerOptions::default() };
    let before = unix_now();
    for (payload, reason) in [
        ("failed", "max deliveries reached: no stock"),
        ("much", &*format!("max deliveries reached: {}", "é".repeat(512))),
        ("silent", "max deliveries reached"),
        ("lost", "max deliveries reached: its consumer was lost"),
        ("ended", "max deliveries reached: its lease ended"),
    ] {
        bench.put(queue, payload).await;
        let consumer = bench.engine.consumer(queue, short).unwrap();
        let leased = take(&*consumer, 1).await;
        let nack = |how| drop(bench.engine.nack(queue, &[lease_of(&leased[0])], how, None).unwrap());
        match payload {
            "failed" => nack(Nack::Failed(Some("no stock".into()))),
            "much" => nack(Nack::Failed(Some("é".repeat(600).into()))),
            "silent" => nack(Nack::Failed(None)),
            "lost" => consumer.release_all(true),
            _ => {}
        }
        let why = dead_letter(&bench, dead, payload).await;
        assert_eq!((why.source.as_str(), &*why.reason, why.attempts), ("q", reason, 1));
        assert!((before..=unix_now()).contains(&why.at), "{:?}", why.at);
    }
}

#[tokio::test]
async fn what_expires_goes_to_the_dead_letter_queue_where_that_is_asked_for() {
    let bench = Bench::new();
    let dead = bench.queue("dead").await;
    let queue =
        bench.queue_with(QueueSpec { dead_letter_expired: true, ..with_dead_letters("q", 5, "dead") }).await;
    let put = async |payload: &str| {
        let expires_at = Some(UnixMillis(1));
        bench.put_with(Append { expires_at, ..Append::to(queue) }, payload.to_owned()).await
    };
    // The timer finds it though nobody asks.
    put("unseen").await;
    let why = dead_letter(&bench, dead, "unseen").await;
    assert_eq!((why.source.as_str(), &*why.reason, why.attempts), ("q", "expired", 0));
    // So does who asks.
    let consumer = bench.consumer(queue);
    put("asked").await;
    assert!(take_now(&*consumer).is_empty());
    dead_letter(&bench, dead, "asked").await;
    let counted = || bench.engine.stats(queue).map(|stats| (stats.expired_total, stats.dead_lettered_total));
    // They are counted when they can be seen there.
    within("the counts", async {
        while counted() != Ok((2, 2)) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(bench.engine.stats(queue).unwrap().leased, 0);
}

#[tokio::test]
async fn the_words_of_a_consumer_are_only_words() {
    let bench = Bench::new();
    let dead = bench.queue("dead").await;
    let queue = bench.queue_with(QueueSpec { max_messages: 3, ..with_dead_letters("q", 5, "dead") }).await;
    for reason in ["overflow", "expired"] {
        bench.put(queue, reason).await;
        let consumer = bench.consumer(queue);
        let leased = take(&*consumer, 1).await;
        let how = Nack::DeadLetter(reason.into());
        let nacked = bench.engine.nack(queue, &[lease_of(&leased[0])], how, None).unwrap();
        within("the nack", nacked.durable).await.unwrap();
        assert_eq!(&*dead_letter(&bench, dead, reason).await.reason, reason);
    }
    let stats = bench.engine.stats(queue).unwrap();
    assert_eq!((stats.expired_total, stats.dead_lettered_total), (0, 2));
    for n in 0..3 {
        bench.put(queue, n.to_string()).await;
    }
    let outcome = bench.commit(bench.publish(&[queue], "3")).await;
    assert_eq!(refusal(outcome), Refusal::Full { target: queue, bound: "max_messages 3".into() });
}

#[tokio::test]
async fn more_than_one_commit_moves_at_once_goes_in_order() {
    let bench = Bench::new();
    let dead = bench.queue("dead").await;
    let queue =
        bench.queue_with(QueueSpec { dead_letter_expired: true, ..with_dead_letters("q", 5, "dead") }).await;
    let expired = Append { expires_at: Some(UnixMillis(1)), ..Append::to(queue) };
    let put = |n: u32| publish(bench.message("t", n.to_string()), [expired]);
    let ops = (0..600).map(put).collect();
    within("the commit", bench.engine.commit(ops)).await.unwrap();
    let graves = bench.consumer(dead);
    let mut moved = Vec::new();
    while moved.len() < 600 {
        moved.extend(take(&*graves, 600).await.iter().map(text));
    }
    assert!(moved.into_iter().eq((0..600).map(|n| n.to_string())));
}

#[tokio::test]
async fn what_had_its_last_delivery_is_not_delivered_once_more() {
    let bench = Bench::new();
    let dead = bench.queue("dead").await;
    let queue = bench.queue_with(with_dead_letters("q", 5, "dead")).await;
    bench.put(queue, "m").await;
    let consumer = bench.consumer(queue);
    for _ in 0..2 {
        let leased = take(&*consumer, 1).await;
        drop(bench.engine.nack(queue, &[lease_of(&leased[0])], Nack::Failed(None), None).unwrap());
    }
    // Two are enough now.
    let fewer = Definition::Queue(with_dead_letters("q", 2, "dead"));
    bench.commit(Op::Define(queue, fewer)).await;
    assert!(take_now(&*consumer).is_empty());
    let why = dead_letter(&bench, dead, "m").await;
    assert_eq!((&*why.reason, why.attempts), ("max deliveries reached", 2));
}

/// A queue of at most three messages.
async fn small(bench: &Bench, overflow: Overflow) -> TargetId {
    let small = QueueSpec { max_messages: 3, overflow, ..with_dead_letters("small", 5, "dead") };
    bench.queue_with(small).await
}

#[tokio::test]
async fn a_full_queue_drops_its_oldest_where_it_is_to() {
    let bench = Bench::new();
    bench.queue("dead").await;
    let queue = small(&bench, Overflow::DropOldest).await;
    for n in 0..3 {
        bench.put(queue, n.to_string()).await;
    }
    // What a consumer has, or is not due, stays.
    let consumer = bench.consumer(queue);
    let mut leased = Vec::new();
    consumer.take(1, usize::MAX, &mut leased).unwrap();
    let later = Some(unix_now().after(HOUR));
    bench.put_with(Append { not_before: later, ..Append::to(queue) }, "later").await;
    for n in ["3", "4"] {
        bench.put(queue, n).await;
    }
    let names = |seen: Vec<(String, u32, u64)>| seen.into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
    assert_eq!(names(shown(&bench, queue, View::All).await), ["0", "later", "4"]);
    bench.put_with(Append { not_before: later, ..Append::to(queue) }, "later too").await;
    let outcome = bench.commit(bench.publish(&[queue], "5")).await;
    assert_eq!(refusal(outcome), Refusal::Full { target: queue, bound: "max_messages 3".into() });
    let stats = bench.engine.stats(queue).unwrap();
    assert_eq!((stats.ready, stats.delayed, stats.leased, stats.dropped_total), (0, 2, 1, 4));
    bench.settle(queue, &leased).await;
    bench.put(queue, "6").await;
    drop(consumer);
    let bench = bench.reopen();
    assert_eq!(names(shown(&bench, queue, View::All).await), ["later", "later too", "6"]);
}

#[tokio::test]
async fn a_batch_that_is_larger_than_its_queue_leaves_its_end_there() {
    for overflow in [Overflow::DropOldest, Overflow::DeadLetter] {
        let bench = Bench::new();
        let dead = bench.queue("dead").await;
        let queue = small(&bench, overflow).await;
        bench.put(queue, "before").await;
        let ops = (0..10).map(|n| bench.publish(&[queue], n.to_string())).collect();
        let outcomes = within("the commit", bench.engine.commit(ops)).await.unwrap();
        assert!(outcomes.iter().map(stored).is_sorted());
        if overflow == Overflow::DeadLetter {
            let graves = bench.consumer(dead);
            let mut moved = Vec::new();
            while moved.len() < 8 {
                moved.extend(take(&*graves, 10).await);
            }
            let why =
                |leased: &Leased| leased.message.extras.as_ref().unwrap().dead_letter.clone().unwrap().reason;
            assert!(moved.iter().all(|leased| &*why(leased) == "overflow"));
            assert_eq!(
                moved.iter().map(text).collect::<Vec<_>>(),
                ["before", "0", "1", "2", "3", "4", "5", "6"]
            );
        }
        let bench = bench.reopen();
        assert_eq!(bench.drain(queue).await, ["7", "8", "9"], "{overflow:?}");
    }
}

#[tokio::test]
async fn room_in_bytes_is_made_by_as_many_as_it_takes_or_none() {
    let bench = Bench::new();
    let other = bench.queue_with(QueueSpec { max_messages: 1, ..spec("other") }).await;
    let queue = bench
        .queue_with(QueueSpec { max_bytes: 3_000, overflow: Overflow::DropOldest, ..spec("small") })
        .await;
    for n in 0..5 {
        bench.put(queue, format!("{n}{}", ".".repeat(400))).await;
    }
    let ready = || bench.engine.stats(queue).unwrap().ready;
    assert_eq!(ready(), 5);
    // It would not fit into an empty queue: nothing goes for it.
    let outcome = bench.commit(bench.publish(&[queue], vec![b'x'; 3_000])).await;
    assert_eq!(refusal(outcome), Refusal::Full { target: queue, bound: "max_bytes 3000".into() });
    // Another target refuses the publish: nothing goes for it either.
    bench.put(other, "full").await;
    let outcome = bench.commit(bench.publish(&[queue, other], vec![b'x'; 2_200])).await;
    assert!(matches!(refusal(outcome), Refusal::Full { target, .. } if target == other));
    assert_eq!(ready(), 5);
    bench.put(queue, vec![b'x'; 2_200]).await;
    let bench = bench.reopen();
    let left = bench.drain(queue).await;
    assert!(left[0].starts_with('4') && left[1].starts_with("xx") && left.len() == 2, "{}", left.len());
}

#[tokio::test]
async fn a_bound_that_was_lowered_is_met_by_the_next_message_for_good() {
    for (overflow, much) in [(Overflow::DropOldest, 1_000), (Overflow::DeadLetter, 10_050)] {
        let bench = Bench::new();
        let dead = bench.queue("dead").await;
        let wide = QueueSpec { overflow, ..with_dead_letters("q", 5, "dead") };
        let queue = bench.queue_with(wide.clone()).await;
        let later = Append { not_before: Some(unix_now().after(HOUR)), ..Append::to(queue) };
        let ops = (0..much).map(|n| bench.publish(&[queue], n.to_string()));
        let ops = ops.chain([publish(bench.message("t", "later"), [later])]).collect();
        within("the commit", bench.engine.commit(ops)).await.unwrap();
        let narrow = Definition::Queue(QueueSpec { max_messages: 2, ..wide });
        bench.commit(Op::Define(queue, narrow)).await;
        bench.put(queue, "new").await;
        if overflow == Overflow::DeadLetter {
            let graves = bench.consumer(dead);
            let mut moved = 0;
            while moved < much {
                let leased = take(&*graves, 1_000).await;
                bench.settle(dead, &leased).await;
                moved += leased.len();
            }
        }
        assert_eq!(bench.drain(queue).await, ["new"], "{overflow:?}");
        let bench = bench.reopen();
        let left = bench.engine.stats(queue).unwrap();
        assert_eq!((left.ready, left.delayed), (0, 1), "{overflow:?}");
    }
}

#[tokio::test]
async fn a_bound_that_was_lowered_by_much_is_met_in_parts() {
    const MUCH: u64 = 45_000;
    let bench = Bench::new();
    let wide = QueueSpec { overflow: Overflow::DropOldest, ..spec("q") };
    let queue = bench.queue_with(wide.clone()).await;
    let ops = (0..MUCH).map(|n| bench.publish(&[queue], n.to_string())).collect();
    within("the commit", bench.engine.commit(ops)).await.unwrap();
    bench.commit(Op::Define(queue, Definition::Queue(QueueSpec { max_messages: 2, ..wide }))).await;
    let mut left = MUCH;
    for new in 0..3 {
        bench.put(queue, format!("new {new}")).await;
        let now = bench.engine.stats(queue).unwrap().ready;
        assert!(now < left && (now == 2 || left - now < MUCH / 2), "{left} {now}");
        left = now;
    }
    assert_eq!(bench.drain(queue).await, ["new 1", "new 2"]);
}

#[tokio::test]
async fn the_lowest_priority_makes_room_first() {
    let bench = Bench::new();
    let levels = QueueSpec { max_messages: 3, overflow: Overflow::DropOldest, priorities: true, ..spec("q") };
    let queue = bench.queue_with(levels).await;
    for (level, payload) in [(9, "high"), (1, "low"), (1, "low too"), (4, "new"), (4, "newer")] {
        let priority = Priority::new(level).unwrap();
        bench.put_with(Append { priority, ..Append::to(queue) }, payload).await;
    }
    assert_eq!(bench.drain(queue).await, ["high", "new", "newer"]);
}
