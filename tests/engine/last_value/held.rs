//! What takes the place of a message that somebody has, or that waits for its time, where more than one thing is done at once.

use std::time::Duration;

use stafett::engine::{Append, Engine, Forward, Op, Outcome, QueueSpec, Refusal, View};
use stafett::types::clock::unix_now;

use super::{fill, keeping, of, seen};
use crate::bench::{Bench, lease_of, publish, refusal, spec, stored, take_now, with_key, within};
use crate::placing::{texts, together};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_batch_that_replaces_what_somebody_has_counts_it_once() {
    let bench = Bench::new();
    let queue = bench.queue_with(keeping("q")).await;
    fill(&bench, queue, &[("a", "a1"), ("b", "b1")]).await;
    let consumer = bench.consumer(queue);
    assert_eq!(take_now(&*consumer).len(), 2);
    let batch = ["a", "b"].map(|sensor| of(bench.message("t", sensor), sensor));
    assert!(matches!(bench.commit(together(queue, batch)).await, Outcome::All(_)));
    let stats = bench.engine.stats(queue).unwrap();
    assert_eq!((stats.ready, stats.leased, stats.replaced_total), (2, 2, 2));
}

/// A publish that would have replaced it is refused by another queue.
#[tokio::test]
async fn one_that_is_delayed_and_stays_holds_up_nobody() {
    let bench = Bench::new();
    let queue = bench.queue_with(QueueSpec { ordered_by_key: true, ..keeping("q") }).await;
    let full = bench.queue_with(QueueSpec { max_messages: 1, ..spec("full") }).await;
    bench.put(full, "full").await;
    let message = |sensor: &str| with_key(of(bench.message("t", sensor.to_owned()), sensor), "k");
    let later = Append { not_before: Some(unix_now().after(HOUR)), ..Append::to(queue) };
    stored(&bench.commit(publish(message("a"), [later])).await);
    let no = publish(message("a"), [Append::to(queue), Append::to(full)]);
    assert!(matches!(refusal(bench.commit(no).await), Refusal::Full { target, .. } if target == full));
    stored(&bench.commit(publish(message("b"), [Append::to(queue)])).await);
    let consumer = bench.consumer(queue);
    assert_eq!(texts(&take_now(&*consumer)), ["b"]);
    assert_eq!(seen(&bench, queue, View::Delayed).await, ["a"]);
}

#[tokio::test]
async fn what_is_replaced_leaves_no_room_a_second_time_when_it_is_forwarded() {
    let bench = Bench::new();
    let queue = bench.queue_with(QueueSpec { max_messages: 1, ..keeping("q") }).await;
    let forward = |held: &stafett::engine::Leased, sensors: &[&str]| {
        let all = sensors
            .iter()
            .map(|sensor| (of(bench.message("t", sensor.to_string()), sensor), Append::to(queue)));
        Op::Forward(Forward { from: queue, lease: lease_of(held), messages: all.collect() })
    };
    fill(&bench, queue, &[("a", "a1")]).await;
    let consumer = bench.consumer(queue);
    let held = take_now(&*consumer);
    // It goes once, for one.
    let refused = refusal(bench.commit(forward(&held[0], &["a", "b"])).await);
    assert!(matches!(refused, Refusal::Full { .. }), "{refused:?}");
    // It has gone already.
    fill(&bench, queue, &[("a", "a2")]).await;
    let refused = refusal(bench.commit(forward(&held[0], &["c"])).await);
    assert!(matches!(refused, Refusal::Full { .. }), "{refused:?}");
    assert!(matches!(bench.commit(forward(&held[0], &["a"])).await, Outcome::All(_)));
    assert_eq!(seen(&bench, queue, View::All).await, ["a"]);
    let stats = bench.engine.stats(queue).unwrap();
    assert_eq!((stats.ready, stats.leased, stats.acked_total, stats.replaced_total), (1, 0, 1, 2));
    // What it settles is not what it replaces.
    let held = take_now(&*consumer);
    assert!(matches!(bench.commit(forward(&held[0], &["a"])).await, Outcome::All(_)));
    let stats = bench.engine.stats(queue).unwrap();
    assert_eq!((stats.ready, stats.leased, stats.acked_total, stats.replaced_total), (1, 0, 2, 2));
    within("the end", async { drop(consumer) }).await;
    assert_eq!(bench.reopen().drain(queue).await, ["a"]);
}
