//! Queues that keep the newest message of each value of a property.

mod crash;
mod held;

use std::time::Duration;

use stafett::engine::{
    Append, Engine, Forward, LeaseRef, Nack, Op, Outcome, Overflow, QueueSpec, Refusal, View,
};
use stafett::types::clock::unix_now;
use stafett::types::{Message, Priority, Sequence, TargetId};

use crate::bench::{
    Bench, lease_of, publish, refusal, spec, stored, take, take_now, text, with_dead_letters, with_dedup_id,
    with_key, within,
};
use crate::placing::{texts, together};

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn keeping(name: &str) -> QueueSpec {
    QueueSpec { last_value_key: Some("sensor".into()), ..spec(name) }
}

/// A message of which the property has this value; none if it is `-`.
pub(crate) fn of(mut message: Message, sensor: &str) -> Message {
    if sensor != "-" {
        message.extras_mut().properties.push(("sensor".into(), sensor.to_owned().into()));
    }
    message
}

async fn put(bench: &Bench, append: Append, sensor: &str, payload: &str) -> Sequence {
    let message = of(bench.message("t", payload.to_owned()), sensor);
    stored(&bench.commit(publish(message, [append])).await)
}

async fn fill(bench: &Bench, queue: TargetId, messages: &[(&str, &str)]) {
    for (sensor, payload) in messages {
        put(bench, Append::to(queue), sensor, payload).await;
    }
}

async fn seen(bench: &Bench, queue: TargetId, view: View) -> Vec<String> {
    let page =
        within("a browse", bench.engine.browse(queue, view, Sequence(0), 100, usize::MAX)).await.unwrap();
    page.messages.iter().map(|it| String::from_utf8(it.message.payload.to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn the_newest_of_each_value_is_kept() {
    let bench = Bench::new();
    let queue = bench.queue_with(keeping("q")).await;
    let messages = [("a", "a1"), ("b", "b1"), ("-", "x"), ("a", "a2"), ("-", "y"), ("a", "a3"), ("c", "c1")];
    fill(&bench, queue, &messages).await;
    assert_eq!(seen(&bench, queue, View::All).await, ["b1", "x", "y", "a3", "c1"]);
    let stats = bench.engine.stats(queue).unwrap();
    assert_eq!((stats.ready, stats.replaced_total, stats.dropped_total), (5, 2, 0));
    let bench = bench.reopen();
    fill(&bench, queue, &[("b", "b2"), ("d", "d1")]).await;
    assert_eq!(bench.drain(queue).await, ["x", "y", "a3", "c1", "b2", "d1"]);
    assert_eq!(bench.engine.stats(queue).unwrap().bytes, 0);
    // What is gone has no place to be taken.
    fill(&bench, queue, &[("a", "a4")]).await;
    assert_eq!(bench.engine.stats(queue).unwrap().replaced_total, 1);
    assert_eq!(bench.reopen().drain(queue).await, ["a4"]);
}

#[tokio::test]
async fn of_one_commit_and_of_one_batch_the_last_is_kept() {
    let bench = Bench::new();
    let queue = bench.queue_with(keeping("q")).await;
    let numbered = |n: u32| of(bench.message("t", n.to_string()), &(n % 300).to_string());
    let ops = (0..1000).map(|n| publish(numbered(n), [Append::to(queue)])).collect();
    let outcomes = within("the commit", bench.engine.commit(ops)).await.unwrap();
    assert!(outcomes.iter().map(stored).is_sorted());
    let expected: Vec<_> = (700..1000).map(|n| n.to_string()).collect();
    let bench = bench.reopen();
    assert_eq!(bench.drain(queue).await, expected);
    let numbered = |n: u32| of(bench.message("t", n.to_string()), &(n % 300).to_string());
    // Each takes the place of one that is there, and of one of the batch itself.
    assert!(matches!(bench.commit(together(queue, (0..300).map(numbered))).await, Outcome::All(_)));
    assert!(matches!(bench.commit(together(queue, (0..1000).map(numbered))).await, Outcome::All(_)));
    assert_eq!(bench.engine.stats(queue).unwrap().replaced_total, 1000);
    let bench = bench.reopen();
    assert_eq!(bench.drain(queue).await, expected);
    assert_eq!(bench.reopen().engine.stats(queue).unwrap().bytes, 0);
}

#[tokio::test]
async fn what_somebody_has_is_settled_and_does_not_come_back() {
    let bench = Bench::new();
    let dead = bench.queue("dead").await;
    let spec = QueueSpec { last_value_key: Some("sensor".into()), ..with_dead_letters("q", 3, "dead") };
    let queue = bench.queue_with(spec).await;
    let firsts = ["a", "b", "c", "d", "e"].map(|sensor| (sensor, "1"));
    fill(&bench, queue, &firsts).await;
    let consumer = bench.consumer(queue);
    let held = take_now(&*consumer);
    assert_eq!(held.len(), 5);
    fill(&bench, queue, &[("a", "a2"), ("b", "b2"), ("c", "c2"), ("d", "d2")]).await;
    assert_eq!(bench.engine.stats(queue).unwrap().leased, 5);
    bench.settle(queue, &held[..1]).await;
    let nack = async |at: usize, how, rest| {
        let nacked = bench.engine.nack(queue, &[lease_of(&held[at])], how, rest).unwrap();
        assert_eq!(nacked.failed, []);
        within("the nack", nacked.durable).await.unwrap();
    };
    nack(1, Nack::Failed(None), Some(HOUR)).await;
    nack(2, Nack::DeadLetter("no".into()), None).await;
    // One whose newer one is gone by now stays away, too.
    let newer = take_now(&*consumer);
    assert_eq!(texts(&newer), ["a2", "b2", "c2", "d2"]);
    bench.settle(queue, &newer).await;
    consumer.release_all(false);
    // Nothing newer has come for this one.
    assert_eq!(texts(&take_now(&*consumer)), ["1"]);
    let stats = bench.engine.stats(queue).unwrap();
    assert_eq!((stats.ready, stats.delayed, stats.leased, stats.dead_lettered_total), (0, 0, 1, 0));
    assert_eq!(bench.engine.stats(dead).unwrap().ready, 0);
    drop(consumer);
    // Nor does it after a restart, by whoever's token.
    let bench = bench.reopen();
    let earlier = LeaseRef { earlier_boot: true, ..lease_of(&held[3]) };
    assert_eq!(bench.engine.settle(queue, &[earlier]).unwrap().failed.len(), 1);
    assert_eq!(bench.drain(queue).await, ["1"]);
}

#[tokio::test]
async fn what_is_delayed_is_replaced_and_takes_a_place_from_its_arrival() {
    let bench = Bench::new();
    let queue = bench.queue_with(keeping("q")).await;
    let later = Append { not_before: Some(unix_now().after(HOUR)), ..Append::to(queue) };
    put(&bench, later, "a", "a1").await;
    put(&bench, Append::to(queue), "b", "b1").await;
    put(&bench, Append::to(queue), "a", "a2").await;
    put(&bench, later, "b", "b2").await;
    assert_eq!(seen(&bench, queue, View::Ready).await, ["a2"]);
    assert_eq!(seen(&bench, queue, View::Delayed).await, ["b2"]);
    // One that rests after a delivery in vain.
    let consumer = bench.consumer(queue);
    let held = take_now(&*consumer);
    let nacked = bench.engine.nack(queue, &[lease_of(&held[0])], Nack::Failed(None), Some(HOUR)).unwrap();
    within("the nack", nacked.durable).await.unwrap();
    put(&bench, Append::to(queue), "a", "a3").await;
    drop(consumer);
    let bench = bench.reopen();
    assert_eq!(seen(&bench, queue, View::All).await, ["b2", "a3"]);
}

#[tokio::test]
async fn one_that_takes_a_place_needs_no_room_and_a_refusal_changes_nothing() {
    let bench = Bench::new();
    let other = bench.queue_with(QueueSpec { max_messages: 1, ..spec("other") }).await;
    bench.put(other, "full").await;
    for overflow in [Overflow::Reject, Overflow::DropOldest] {
        let name = if overflow == Overflow::Reject { "reject" } else { "drop" };
        let queue = bench.queue_with(QueueSpec { max_messages: 3, overflow, ..keeping(name) }).await;
        fill(&bench, queue, &[("a", "a1"), ("b", "b1"), ("-", "x"), ("a", "a2")]).await;
        assert_eq!(seen(&bench, queue, View::All).await, ["b1", "x", "a2"]);
        let both = [Append::to(queue), Append::to(other)];
        let later = Append { not_before: Some(unix_now().after(HOUR)), ..Append::to(queue) };
        put(&bench, later, "b", "b2").await;
        for sensor in ["a", "b"] {
            let no = publish(of(bench.message("t", "no"), sensor), both);
            assert!(
                matches!(refusal(bench.commit(no).await), Refusal::Full { target, .. } if target == other)
            );
        }
        // Also where what would be replaced stands in the same commit.
        let ops = vec![
            publish(of(bench.message("t", "a3"), "a"), [Append::to(queue)]),
            publish(of(bench.message("t", "no"), "a"), both),
        ];
        within("the commit", bench.engine.commit(ops)).await.unwrap();
        let batch = ["c", "d", "-", "a"].map(|sensor| of(bench.message("t", "no"), sensor));
        let refused = refusal(bench.commit(together(queue, batch)).await);
        assert!(matches!(refused, Refusal::Item { .. }), "{refused:?}");
        assert_eq!(seen(&bench, queue, View::Ready).await, ["x", "a3"], "{overflow:?}");
        assert_eq!(seen(&bench, queue, View::Delayed).await, ["b2"], "{overflow:?}");
        put(&bench, Append::to(queue), "b", "b3").await;
        assert_eq!(bench.drain(queue).await, ["x", "a3", "b3"]);
    }
}

#[tokio::test]
async fn values_go_with_keys_names_and_what_is_forwarded() {
    let bench = Bench::new();
    let spec = QueueSpec { ordered_by_key: true, dedup_window: Some(HOUR), ..keeping("q") };
    let queue = bench.queue_with(spec).await;
    let put = async |key: &str, sensor: &str, payload: &str| {
        let message = with_key(of(bench.message("t", payload.to_owned()), sensor), key);
        let message = with_dedup_id(message, payload);
        bench.commit(publish(message, [Append::to(queue)])).await
    };
    for (key, sensor, payload) in [("k", "a", "1"), ("k", "b", "2"), ("k", "c", "3"), ("l", "a", "4")] {
        stored(&put(key, sensor, payload).await);
    }
    // 1 was in front of its key, and what comes again takes no place.
    assert!(matches!(put("k", "b", "1").await, Outcome::Duplicate { .. }));
    stored(&put("k", "b", "5").await);
    let consumer = bench.consumer(queue);
    let held = take_now(&*consumer);
    assert_eq!(texts(&held), ["3", "4"]);
    // Into the same queue: what is settled, what waits, and what is with somebody.
    let messages = ["a", "b", "c"].map(|sensor| (of(bench.message("t", sensor), sensor), Append::to(queue)));
    let op = Op::Forward(Forward { from: queue, lease: lease_of(&held[0]), messages: messages.into() });
    assert!(matches!(bench.commit(op).await, Outcome::All(_)));
    drop(consumer);
    let bench = bench.reopen();
    assert_eq!(bench.drain(queue).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn what_is_moved_gives_way_to_what_is_there() {
    let bench = Bench::new();
    let from = bench.queue("from").await;
    let queue = bench.queue_with(keeping("q")).await;
    fill(&bench, from, &[("a", "old"), ("b", "old"), ("-", "old")]).await;
    fill(&bench, queue, &[("a", "new")]).await;
    let consumer = bench.consumer(queue);
    let held = take_now(&*consumer);
    let graves = bench.consumer(from);
    for (leased, stays) in take(&*graves, 3).await.into_iter().zip([true, false, false]) {
        let (sequence, message) = (leased.sequence, leased.message);
        let (view, priority) = (View::Leased, Priority::default());
        let outcome = bench.commit(Op::Move { from, sequence, view, to: queue, message, priority }).await;
        match outcome {
            Outcome::Refused(Refusal::Newer { target, .. }) => assert!(stays && target == queue),
            moved => assert!(!stays && matches!(moved, Outcome::Published(_))),
        }
    }
    bench.settle(queue, &held).await;
    assert_eq!(bench.drain(queue).await, ["old", "old"]);
    assert_eq!(text(&held[0]), "new");
}

/// What a crash leaves between a message and what it takes the place of is dropped at the next start: here as many go at once as
/// an operation does not hold.
#[tokio::test]
async fn a_value_is_there_once_however_many_go_at_once() {
    let bench = Bench::new();
    let queues: Vec<TargetId> = {
        let mut queues = Vec::new();
        for n in 0..150 {
            queues.push(bench.queue_with(keeping(&format!("q{n}"))).await);
        }
        queues
    };
    for payload in ["1", "2"] {
        let targets: Vec<_> = queues.iter().map(|&queue| Append::to(queue)).collect();
        stored(&bench.commit(publish(of(bench.message("t", payload), "a"), targets)).await);
    }
    let bench = bench.reopen();
    for queue in queues {
        assert_eq!(seen(&bench, queue, View::All).await, ["2"]);
    }
}
