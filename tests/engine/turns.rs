//! Which consumer gets what is ready: the single active one, the highest.

use std::time::Duration;

use stafett::engine::{
    Consumer, ConsumerOptions, Definition, Engine, Leased, Op, Outcome, QueueSpec, Refusal,
};
use stafett::types::TargetId;

use crate::bench::{Bench, refusal, spec, take, take_now, text, with_dead_letters, within};

fn joined(bench: &Bench, queue: TargetId, priority: i32) -> Box<dyn Consumer> {
    let lease = Some(Duration::from_secs(60));
    bench.engine.consumer(queue, ConsumerOptions { lease, priority, ..ConsumerOptions::default() }).unwrap()
}

fn texts(leased: &[Leased]) -> Vec<String> {
    leased.iter().map(text).collect()
}

fn at_most(consumer: &dyn Consumer, max: usize) -> Vec<Leased> {
    let mut out = Vec::new();
    consumer.take(max, usize::MAX, &mut out).unwrap();
    out
}

#[tokio::test]
async fn one_consumer_is_active_until_it_ends() {
    let bench = Bench::new();
    let single = QueueSpec { single_active_consumer: true, ..spec("q") };
    let queue = bench.queue_with(single.clone()).await;
    let (first, second, third) =
        (joined(&bench, queue, 0), joined(&bench, queue, 0), joined(&bench, queue, 1));
    // Who asked first is active whatever comes later.
    assert_eq!([&first, &second, &third].map(|it| it.is_active()), [false, false, true]);
    for n in 0..4 {
        bench.put(queue, n.to_string()).await;
    }
    assert!(take_now(&*first).is_empty() && take_now(&*second).is_empty());
    assert_eq!(texts(&at_most(&*third, 2)), ["0", "1"]);
    drop(third);
    within("its turn", first.ready().heard()).await;
    assert_eq!([&first, &second].map(|it| it.is_active()), [true, false]);
    assert!(take_now(&*second).is_empty());
    assert_eq!(texts(&at_most(&*first, 3)), ["0", "1", "2"], "in order, with what the other had");
    // Where there is to be none, who stood by is woken.
    let many = QueueSpec { single_active_consumer: false, ..single };
    bench.commit(Op::Define(queue, Definition::Queue(many))).await;
    within("its turn", second.ready().heard()).await;
    assert!(second.is_active());
    assert_eq!(texts(&take_now(&*second)), ["3"]);
}

#[tokio::test]
async fn who_waited_before_one_was_to_be_active_is_not_woken_in_its_stead() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    let (first, second) = (joined(&bench, queue, 0), joined(&bench, queue, 0));
    assert!(take_now(&*second).is_empty() && take_now(&*first).is_empty());
    let single = QueueSpec { single_active_consumer: true, ..spec("q") };
    bench.commit(Op::Define(queue, Definition::Queue(single))).await;
    for consumer in [&second, &first] {
        within("to be told", consumer.ready().heard()).await;
        assert!(take_now(&**consumer).is_empty());
    }
    bench.put(queue, "m").await;
    within("to be woken", first.ready().heard()).await;
    assert_eq!(texts(&take_now(&*first)), ["m"]);
}

#[tokio::test]
async fn a_higher_consumer_that_is_held_up_holds_up_nobody() {
    let bench = Bench::new();
    bench.queue("dead").await;
    let queue = bench.queue_with(with_dead_letters("q", 5, "dead")).await;
    let (low, high) = (joined(&bench, queue, 0), joined(&bench, queue, 1));
    bench.put(queue, "held").await;
    let held = at_most(&*high, 1);
    assert_eq!(texts(&held), ["held"]);
    at_most(&*high, 0);
    bench.put(queue, "bad").await;
    for _ in 0..2 {
        assert_eq!(texts(&take_now(&*low)), ["bad"]);
        low.release_all(true);
    }
    // It is handed out alone, and not to one that has another.
    assert!(take_now(&*high).is_empty());
    assert_eq!(texts(&take_now(&*low)), ["bad"]);
    // The one that has it gets nothing else.
    bench.put(queue, "next").await;
    assert!(take_now(&*low).is_empty());
    assert_eq!(texts(&take_now(&*high)), ["next"]);
}

#[tokio::test]
async fn a_higher_consumer_is_served_first_as_long_as_it_has_room() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    let (low, high, higher) = (joined(&bench, queue, -1), joined(&bench, queue, 0), joined(&bench, queue, 5));
    for consumer in [&low, &high, &higher] {
        assert!(take_now(&**consumer).is_empty());
    }
    for n in 0..6 {
        bench.put(queue, n.to_string()).await;
    }
    // Both have said that they have room.
    assert!(take_now(&*low).is_empty() && take_now(&*high).is_empty());
    assert_eq!(texts(&at_most(&*higher, 2)), ["0", "1"]);
    assert!(higher.is_preferred() && take_now(&*low).is_empty() && take_now(&*high).is_empty());
    // It has none any more.
    at_most(&*higher, 0);
    within("to be woken", high.ready().heard()).await;
    assert!(take_now(&*low).is_empty(), "the next one comes first");
    assert_eq!(texts(&at_most(&*high, 3)), ["2", "3", "4"]);
    // One that ends has none either.
    drop(high);
    within("to be woken", low.ready().heard()).await;
    assert_eq!(texts(&at_most(&*low, 1)), ["2"], "what it had came back");
    assert_eq!(texts(&at_most(&*higher, 1)), ["3"]);
}

#[tokio::test]
async fn who_has_room_and_does_not_come_is_not_waited_for() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    let (low, high) = (joined(&bench, queue, 0), joined(&bench, queue, 1));
    assert!(take_now(&*high).is_empty());
    bench.put(queue, "m").await;
    assert!(take_now(&*low).is_empty());
    assert_eq!(texts(&take(&*low, 1).await), ["m"]);
}

#[tokio::test]
async fn what_was_used_since_is_not_deleted_as_unused() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    let usage = || bench.engine.usage(queue).unwrap();
    let refused = async |usage| refusal(bench.commit(Op::DeleteUnused(queue, usage)).await);
    let before = usage();
    bench.put(queue, "m").await;
    assert_eq!(refused(before).await, Refusal::InUse, "something was stored");
    let before = usage();
    let consumer = joined(&bench, queue, 0);
    assert_eq!(refused(usage()).await, Refusal::InUse, "there is a consumer");
    drop(consumer);
    assert_eq!(refused(before).await, Refusal::InUse, "there was a consumer");
    let lease = Some(Duration::from_secs(60));
    let keeps = ConsumerOptions { lease, keep_leases: true, ..ConsumerOptions::default() };
    let leased = take(&*bench.engine.consumer(queue, keeps).unwrap(), 1).await;
    assert_eq!(refused(usage()).await, Refusal::InUse, "somebody has a message");
    bench.settle(queue, &leased).await;
    bench.put(queue, "left").await;
    assert_eq!(bench.commit(Op::DeleteUnused(queue, usage())).await, Outcome::Done);
    let bench = bench.reopen();
    assert!(bench.engine.stored().queues.is_empty());
}

/// A queue that is paused must not stay so: what waits there takes the room that is wanted.
#[tokio::test]
async fn a_queue_is_changed_though_the_disk_is_nearly_full() {
    let bench = Bench::new();
    let queue = bench.queue_with(QueueSpec { paused: true, ..spec("q") }).await;
    bench.put(queue, "1").await;
    let bench = bench.reopen_with(|settings| settings.watermark_free_bytes = u64::MAX);
    let define = |id, spec| Op::Define(id, Definition::Queue(spec));
    let new = define(bench.engine.next_target(), spec("other"));
    let labels = (0..100).map(|n| (format!("{n}"), "x".repeat(256)));
    let larger = define(queue, QueueSpec { labels: labels.collect(), ..spec("q") });
    for more in [bench.publish(&[queue], "2"), new, larger] {
        let refused = refusal(bench.commit(more).await);
        assert!(matches!(refused, Refusal::LowDisk { .. }), "{refused:?}");
    }
    let changed = bench.commit(define(queue, QueueSpec { max_messages: 1, ..spec("q") })).await;
    assert_eq!(changed, Outcome::Done);
    assert_eq!(bench.drain(queue).await, ["1"]);
}
