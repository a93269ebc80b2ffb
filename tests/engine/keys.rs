//! Keys of queues that are ordered by them, where messages leave in other ways than by being settled.

use std::time::Duration;

use stafett::engine::{
    Append, ConsumerOptions, Engine, Forward, LeaseRef, Leased, Nack, Op, Outcome, Overflow, QueueSpec,
    Refusal, View,
};
use stafett::types::clock::unix_now;
use stafett::types::{Priority, Sequence, TargetId};

use crate::bench::{
    Bench, lease_of, publish, refusal, stored, take, take_now, text, with_dead_letters, with_dedup_id,
    with_key, within,
};
use crate::placing::{fill, named, ordered, remembering, round, texts, together};

const HOUR: Duration = Duration::from_secs(3600);

/// Ordered by key, with a dead letter queue `dead`.
fn buried(max_deliveries: u32) -> QueueSpec {
    QueueSpec { ordered_by_key: true, ..with_dead_letters("q", max_deliveries, "dead") }
}

/// The sequence of what was filled in last, `back` before it.
fn place(bench: &Bench, queue: TargetId, back: u64) -> Sequence {
    Sequence(bench.engine.stats(queue).unwrap().last.0 - back)
}

async fn remove(bench: &Bench, queue: TargetId, view: View, sequences: &[Sequence]) {
    let removed = bench.engine.remove(queue, view, sequences).unwrap();
    assert_eq!(removed.sequences, sequences);
    within("a removal", removed.durable).await.unwrap();
}

/// Waits until nothing is with anybody: what was given up is where it belongs.
async fn at_rest(bench: &Bench, queue: TargetId) {
    within("what is on its way", async {
        while bench.engine.stats(queue).unwrap().leased > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// What each take gives until nothing is left.
async fn rounds(bench: &Bench, queue: TargetId) -> Vec<Vec<String>> {
    let consumer = bench.consumer(queue);
    let mut rounds = Vec::new();
    while bench.engine.stats(queue).unwrap().ready > 0 {
        let leased = take(&*consumer, 1000).await;
        bench.settle(queue, &leased).await;
        rounds.push(texts(&leased));
    }
    rounds
}

#[tokio::test]
async fn what_waits_for_its_key_makes_room_in_its_turn() {
    let bench = Bench::new();
    let other = bench.queue_with(QueueSpec { max_messages: 1, ..crate::bench::spec("other") }).await;
    bench.put(other, "full").await;
    let dropping = QueueSpec { max_messages: 4, overflow: Overflow::DropOldest, ..ordered("q") };
    let queue = bench.queue_with(dropping).await;
    fill(&bench, queue, &[("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")]).await;
    let consumer = bench.consumer(queue);
    let mut held = Vec::new();
    consumer.take(1, usize::MAX, &mut held).unwrap();
    assert_eq!(texts(&held), ["a1"]);
    // For one that is refused nothing goes, nor anything out of its order.
    let both = publish(bench.message("t", "no"), [queue, other].map(Append::to));
    assert!(matches!(refusal(bench.commit(both).await), Refusal::Full { target, .. } if target == other));
    let others = take_now(&*consumer);
    assert_eq!(texts(&others), ["b1"]);
    fill(&bench, queue, &[("c", "c1")]).await;
    bench.settle(queue, &held).await;
    bench.settle(queue, &others).await;
    assert_eq!(rounds(&bench, queue).await, [["a3", "c1"]], "a2 was the oldest that was ready");

    // The front itself goes, and the next of its key is free.
    fill(&bench, queue, &[("a", "a4"), ("a", "a5"), ("a", "a6"), ("b", "b2"), ("b", "b3"), ("-", "x")]).await;
    drop(consumer);
    let bench = bench.reopen();
    assert_eq!(rounds(&bench, queue).await, [vec!["a6", "b2", "x"], vec!["b3"]]);

    // With priorities the lowest goes, and of its key the first.
    let dropping =
        QueueSpec { max_messages: 4, overflow: Overflow::DropOldest, priorities: true, ..ordered("p") };
    let queue = bench.queue_with(dropping).await;
    for (key, level, payload) in
        [("a", 5, "a1"), ("a", 2, "a2"), ("b", 3, "b1"), ("b", 9, "b2"), ("b", 9, "b3"), ("b", 9, "b4")]
    {
        let append = Append { priority: Priority::new(level).unwrap(), ..Append::to(queue) };
        stored(&bench.commit(publish(with_key(bench.message("t", payload), key), [append])).await);
    }
    assert_eq!(rounds(&bench, queue).await, [vec!["b2", "a1"], vec!["b3"], vec!["b4"]]);
}

#[tokio::test]
async fn what_leaves_for_the_dead_letter_queue_leaves_its_key_in_order() {
    let bench = Bench::new();
    let dead = bench.queue_with(ordered("dead")).await;
    let spec = QueueSpec { max_messages: 3, overflow: Overflow::DeadLetter, ..buried(5) };
    let queue = bench.queue_with(spec).await;
    fill(&bench, queue, &[("a", "a1"), ("b", "b1")]).await;
    let consumer = bench.consumer(queue);
    let mut held = Vec::new();
    consumer.take(1, usize::MAX, &mut held).unwrap();
    // More than there is room for at once: some of it goes without having been ready.
    let ops =
        (2..=9).map(|n| publish(with_key(bench.message("t", format!("a{n}")), "a"), [Append::to(queue)]));
    let outcomes = within("the commit", bench.engine.commit(ops.collect())).await.unwrap();
    assert!(outcomes.iter().map(stored).is_sorted());
    bench.settle(queue, &held).await;
    at_rest(&bench, queue).await;
    assert_eq!(rounds(&bench, queue).await, [["a8"], ["a9"]]);
    let mut graves = vec![vec!["b1".to_owned(), "a2".to_owned()]];
    graves.extend((3..=7).map(|n| vec![format!("a{n}")]));
    assert_eq!(rounds(&bench, dead).await, graves, "the key goes along");
}

#[tokio::test]
async fn what_cannot_go_comes_back_in_its_place() {
    let bench = Bench::new();
    // There is no queue `dead`.
    let spec = QueueSpec { max_messages: 2, overflow: Overflow::DeadLetter, ..buried(5) };
    let queue = bench.queue_with(spec).await;
    fill(&bench, queue, &[("a", "a1"), ("a", "a2")]).await;
    let consumer = bench.consumer(queue);
    let held = take_now(&*consumer);
    assert_eq!(texts(&held), ["a1"]);
    // a2 waits, those behind it never did: they are to go, and cannot.
    let ops = ["a3", "a4", "c1", "c2"]
        .map(|n| publish(with_key(bench.message("t", n), &n[..1]), [Append::to(queue)]));
    within("the commit", bench.engine.commit(ops.into())).await.unwrap();
    bench.settle(queue, &held).await;
    let mut came = Vec::new();
    while came.len() < 5 {
        let leased = take(&*consumer, 10).await;
        for key in ['a', 'c'] {
            assert!(leased.iter().filter(|leased| text(leased).starts_with(key)).count() <= 1);
        }
        came.extend(texts(&leased));
        bench.settle(queue, &leased).await;
    }
    came.sort_by_key(|text| text.starts_with('c'));
    assert_eq!(came, ["a2", "a3", "a4", "c1", "c2"]);
}

#[tokio::test]
async fn a_key_goes_on_when_its_front_is_purged_cancelled_or_moved() {
    let bench = Bench::new();
    let (queue, other) = (bench.queue_with(ordered("q")).await, bench.queue_with(ordered("other")).await);
    fill(&bench, queue, &[("a", "a1"), ("a", "a2"), ("a", "a3"), ("a", "a4"), ("-", "x"), ("-", "y")]).await;
    // From the midst of what is ready, so that it leaves a hole there; from what waits; the front.
    remove(&bench, queue, View::Ready, &[place(&bench, queue, 1), place(&bench, queue, 3)]).await;
    remove(&bench, queue, View::Ready, &[place(&bench, queue, 5)]).await;
    let consumer = bench.consumer(queue);
    let held = take_now(&*consumer);
    assert_eq!(texts(&held), ["a2", "y"]);
    // A front that rests is cancelled.
    let nacked = bench.engine.nack(queue, &[lease_of(&held[0])], Nack::Failed(None), Some(HOUR)).unwrap();
    within("the nack", nacked.durable).await.unwrap();
    bench.settle(queue, &held[1..]).await;
    assert!(take_now(&*consumer).is_empty());
    remove(&bench, queue, View::Delayed, &[held[0].sequence]).await;
    within("the wake", consumer.ready().heard()).await;
    let held = take_now(&*consumer);
    assert_eq!(texts(&held), ["a4"]);

    // Moved as it is leased, as it is ready, and as it waits.
    fill(&bench, queue, &[("a", "a5"), ("a", "a6"), ("a", "a7"), ("a", "a8")]).await;
    let mut moves = vec![(held[0].sequence, View::Leased, "a4")];
    moves
        .extend([(place(&bench, queue, 3), View::Ready, "a5"), (place(&bench, queue, 1), View::Ready, "a7")]);
    for (sequence, view, payload) in moves {
        let message = with_key(bench.message("t", payload), "a");
        let op = Op::Move { from: queue, sequence, view, to: other, message, priority: Priority::default() };
        assert!(matches!(bench.commit(op).await, Outcome::Published(_)));
    }
    let moved = bench.consumer(other);
    assert_eq!(texts(&take(&*moved, 9).await), ["a4"]);
    assert_eq!(rounds(&bench, queue).await, [["a6"], ["a8"]]);

    // All of it is purged, what is leased too.
    fill(&bench, queue, &[("a", "a9"), ("a", "a10"), ("b", "b1")]).await;
    let held = take_now(&*consumer);
    assert_eq!(texts(&held), ["a9", "b1"]);
    let purge = bench.engine.purge(queue, View::All).unwrap();
    assert_eq!(within("a purge", purge).await.unwrap(), 3);
    fill(&bench, queue, &[("a", "a11"), ("b", "b2")]).await;
    assert_eq!(rounds(&bench, queue).await, [["a11", "b2"]]);
    // What is leased alone: what waits for it goes on.
    fill(&bench, queue, &[("a", "a12"), ("a", "a13")]).await;
    take_now(&*consumer);
    assert_eq!(within("a purge", bench.engine.purge(queue, View::Leased).unwrap()).await.unwrap(), 1);
    assert_eq!(round(&bench, queue, &*consumer).await, ["a13"]);
    drop((consumer, moved));
    assert_eq!(rounds(&bench.reopen(), queue).await, [[""; 0]; 0]);
}

#[tokio::test]
async fn a_front_that_rests_beyond_its_time_holds_nothing_up() {
    for dead_letter_expired in [false, true] {
        let bench = Bench::new();
        let dead = bench.queue("dead").await;
        let spec = QueueSpec { dead_letter_expired, ..buried(5) };
        let queue = bench.queue_with(spec).await;
        let soon = unix_now().after(Duration::from_millis(1500));
        for (payload, expires_at) in [("a1", Some(soon)), ("a2", Some(soon)), ("a3", None)] {
            let message = with_key(bench.message("t", payload), "a");
            let append = Append { expires_at, ..Append::to(queue) };
            stored(&bench.commit(publish(message, [append])).await);
        }
        let consumer = bench.consumer(queue);
        let held = take(&*consumer, 9).await;
        assert_eq!(texts(&held), ["a1"]);
        drop(bench.engine.nack(queue, &[lease_of(&held[0])], Nack::Failed(None), Some(HOUR)).unwrap());
        let next = take(&*consumer, 9).await;
        assert_eq!(texts(&next), ["a3"], "both before it are over");
        let stats = bench.engine.stats(queue).unwrap();
        assert_eq!((stats.delayed, stats.ready), (0, 0));
        if dead_letter_expired {
            let graves = bench.consumer(dead);
            let mut graves = [take(&*graves, 1).await, take(&*graves, 1).await].map(|it| texts(&it)).concat();
            graves.sort();
            assert_eq!(graves, ["a1", "a2"]);
        }
    }
}

#[tokio::test]
async fn a_poison_message_holds_up_its_key_alone_and_not_for_ever() {
    let bench = Bench::new();
    let dead = bench.queue("dead").await;
    let spec = QueueSpec { retry_min_backoff: Some(Duration::from_millis(50)), ..buried(3) };
    let queue = bench.queue_with(spec).await;
    fill(&bench, queue, &[("a", "poison"), ("a", "a2"), ("b", "b1"), ("b", "b2")]).await;
    for attempt in 1..=3 {
        let victim = bench.consumer(queue);
        // Its neighbours survive: from the third time on it comes alone.
        let leased = within("the poison", async {
            loop {
                let leased = take(&*victim, 9).await;
                let (poison, others): (Vec<_>, Vec<_>) =
                    leased.into_iter().partition(|leased| text(leased) == "poison");
                bench.settle(queue, &others).await;
                assert!(others.iter().all(|leased| text(leased).starts_with('b')), "{:?}", texts(&others));
                if let [poison] = &poison[..] {
                    return poison.clone();
                }
            }
        })
        .await;
        assert_eq!(leased.attempt, attempt);
        victim.release_all(true);
    }
    let graves = bench.consumer(dead);
    assert_eq!(texts(&take(&*graves, 1).await), ["poison"]);
    assert_eq!(rounds(&bench, queue).await.concat().last().unwrap(), "a2");
}

#[tokio::test]
async fn what_was_given_back_to_rest_is_passed_by_nothing_of_its_key_over_a_restart() {
    let bench = Bench::new();
    let queue = bench.queue_with(ordered("q")).await;
    fill(&bench, queue, &[("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b2")]).await;
    let consumer = bench.consumer(queue);
    let leased = take_now(&*consumer);
    assert_eq!(texts(&leased), ["a1", "b1"]);
    for (leased, how) in leased.iter().zip([Nack::Release, Nack::Failed(None)]) {
        let given_back = bench.engine.nack(queue, &[lease_of(leased)], how, Some(HOUR)).unwrap();
        within("a mark", given_back.durable).await.unwrap();
    }
    drop(consumer);
    let bench = bench.reopen();
    assert_eq!(texts(&take_now(&*bench.consumer(queue))), [""; 0]);
    let stats = bench.engine.stats(queue).unwrap();
    assert_eq!((stats.delayed, stats.ready), (2, 2));
}

#[tokio::test]
async fn keys_pass_from_one_active_consumer_to_the_next_and_hold_up_no_lower_one() {
    let bench = Bench::new();
    let queue = bench.queue_with(QueueSpec { single_active_consumer: true, ..ordered("q") }).await;
    fill(&bench, queue, &[("a", "a1"), ("a", "a2"), ("b", "b1")]).await;
    let (first, second) = (bench.consumer(queue), bench.consumer(queue));
    assert_eq!(texts(&take_now(&*first)), ["a1", "b1"]);
    assert!(take_now(&*second).is_empty());
    drop(first);
    within("its turn", second.ready().heard()).await;
    assert_eq!(round(&bench, queue, &*second).await, ["a1", "b1"]);
    assert_eq!(round(&bench, queue, &*second).await, ["a2"]);

    let queue = bench.queue_with(ordered("ranked")).await;
    let lease = Some(Duration::from_secs(60));
    let ranked = |priority| {
        bench.engine.consumer(queue, ConsumerOptions { lease, priority, ..Default::default() }).unwrap()
    };
    let (high, low) = (ranked(1), ranked(0));
    fill(&bench, queue, &[("a", "a1"), ("a", "a2")]).await;
    let held = take_now(&*high);
    assert_eq!(texts(&held), ["a1"]);
    assert!(take_now(&*low).is_empty());
    // The higher one has no room for what its own settlement sets free.
    high.take(0, usize::MAX, &mut Vec::new()).unwrap();
    bench.settle(queue, &held).await;
    within("the wake", low.ready().heard()).await;
    assert_eq!(round(&bench, queue, &*low).await, ["a2"]);
}

#[tokio::test]
async fn what_is_forwarded_is_known_and_ordered_where_it_goes() {
    let bench = Bench::new();
    let from = bench.queue_with(ordered("from")).await;
    let to = bench.queue_with(QueueSpec { ordered_by_key: true, ..remembering("to") }).await;
    fill(&bench, from, &[("a", "a1"), ("a", "a2")]).await;
    let first = stored(&bench.commit(named(&bench, &[to], "once", "first")).await);
    let consumer = bench.consumer(from);
    let forward = |leased: &Leased| {
        let message = |id: &str, payload: &str| {
            (with_key(with_dedup_id(bench.message("t", payload.to_owned()), id), "k"), Append::to(to))
        };
        let messages =
            vec![message("once", "no"), message("new", "k1"), message("new", "no"), message("k2", "k2")];
        Op::Forward(Forward { from, lease: lease_of(leased), messages })
    };
    let held = take_now(&*consumer);
    let Outcome::All(outcomes) = bench.commit(forward(&held[0])).await else { panic!("not forwarded") };
    let known: Vec<_> = outcomes.iter().map(|outcome| matches!(outcome, Outcome::Duplicate { .. })).collect();
    assert_eq!(known, [true, false, true, false]);
    let sequence = |outcome: &Outcome| match outcome {
        Outcome::Duplicate { sequence, .. } => *sequence,
        stored_now => stored(stored_now),
    };
    assert_eq!(sequence(&outcomes[0]), first);
    assert_eq!(sequence(&outcomes[2]), sequence(&outcomes[1]));
    // The next of the key that was settled; all that follows from it is known.
    let held = take_now(&*consumer);
    assert_eq!(texts(&held), ["a2"]);
    let Outcome::All(outcomes) = bench.commit(forward(&held[0])).await else { panic!("not forwarded") };
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Duplicate { .. })), "{outcomes:?}");
    drop(consumer);
    let bench = bench.reopen();
    assert_eq!(bench.engine.stats(from).unwrap().ready, 0);
    assert_eq!(rounds(&bench, to).await, [vec!["first", "k1"], vec!["k2"]]);
}

#[tokio::test]
async fn what_goes_and_comes_by_moves_is_not_looked_at_again() {
    let bench = Bench::new();
    let dead = bench.queue_with(QueueSpec { ordered_by_key: true, ..remembering("dead") }).await;
    let spec = QueueSpec { dedup_window: Some(HOUR), ..buried(1) };
    let queue = bench.queue_with(spec).await;
    let message = with_key(with_dedup_id(bench.message("t", "m"), "id"), "k");
    stored(&bench.commit(publish(message.clone(), [Append::to(queue)])).await);
    for _ in 0..2 {
        let consumer = bench.consumer(queue);
        let leased = take(&*consumer, 1).await;
        drop(bench.engine.nack(queue, &[lease_of(&leased[0])], Nack::Failed(None), None).unwrap());
        let graves = bench.consumer(dead);
        let grave = take(&*graves, 1).await.remove(0);
        let (sequence, priority) = (grave.sequence, Priority::default());
        // Redriven: it is known there, and comes all the same.
        let op = Op::Move {
            from: dead,
            sequence,
            view: View::Leased,
            to: queue,
            message: grave.message,
            priority,
        };
        assert!(matches!(bench.commit(op).await, Outcome::Published(_)));
    }
    let again = bench.commit(publish(message, [Append::to(queue)])).await;
    assert!(matches!(again, Outcome::Duplicate { .. }), "{again:?}");
    assert_eq!(rounds(&bench, queue).await, [["m"]]);
}

#[tokio::test]
async fn a_batch_makes_room_for_all_of_it_or_none() {
    for overflow in [Overflow::DropOldest, Overflow::DeadLetter] {
        let bench = Bench::new();
        let dead = bench.queue("dead").await;
        let spec = QueueSpec { max_messages: 500, overflow, ..buried(5) };
        let queue = bench.queue_with(spec).await;
        let messages = |numbers: std::ops::Range<u32>| {
            numbers
                .map(|n| with_key(bench.message("t", n.to_string()), &(n % 400).to_string()))
                .collect::<Vec<_>>()
        };
        assert!(matches!(bench.commit(together(queue, messages(0..500))).await, Outcome::All(_)));
        let refused = refusal(bench.commit(together(queue, messages(500..1001))).await);
        let Refusal::Item { index: 500, refusal } = refused else { panic!("{refused:?}") };
        assert!(matches!(*refusal, Refusal::Full { target, .. } if target == queue), "{refusal:?}");
        assert_eq!(bench.engine.stats(queue).unwrap().ready, 500, "nothing went for it");
        // One stays with a consumer: one place less.
        let consumer = bench.consumer(queue);
        let mut held = Vec::new();
        consumer.take(1, usize::MAX, &mut held).unwrap();
        assert_eq!(texts(&held), ["0"]);
        let refused = crate::bench::refusal(bench.commit(together(queue, messages(500..1000))).await);
        assert!(matches!(refused, Refusal::Item { index: 499, .. }), "{refused:?}");
        assert!(matches!(bench.commit(together(queue, messages(500..950))).await, Outcome::All(_)));
        bench.settle(queue, &held).await;
        at_rest(&bench, queue).await;
        drop(consumer);
        let bench = bench.reopen();
        let mut left: Vec<u32> = bench.drain(queue).await.iter().map(|n| n.parse().unwrap()).collect();
        left.sort_unstable();
        assert!(left.into_iter().eq(451..950), "{overflow:?}");
        if overflow == Overflow::DeadLetter {
            let mut moved: Vec<u32> = bench.drain(dead).await.iter().map(|n| n.parse().unwrap()).collect();
            moved.sort_unstable();
            assert!(moved.into_iter().eq(1..451));
        }
    }
}

/// By chance: whatever becomes of messages, of each key one comes at a time, no one before an earlier one, and all in the end.
#[tokio::test]
async fn whatever_becomes_of_messages_no_key_is_held_up_for_ever() {
    for (seed, overflow) in [(1, Overflow::DropOldest), (2, Overflow::DeadLetter), (3, Overflow::Reject)] {
        let mut chance = crate::below::Chance(seed);
        let mut bench = Bench::with(stafett::engine::Durability::Memory);
        let dead = bench.queue_with(ordered("dead")).await;
        let spec = QueueSpec { max_messages: 12, overflow, ..buried(3) };
        let queue = bench.queue_with(spec).await;
        let mut last = [Sequence(0); 4];
        let (mut came, mut sent) = (0, 0);
        for _ in 0..3 {
            let consumers = [bench.consumer(queue), bench.consumer(queue)];
            let mut held: Vec<(Leased, usize)> = Vec::new();
            for _ in 0..800 {
                match chance.below(10) {
                    0..=3 => {
                        let count = 1 + chance.below(3);
                        let messages: Vec<_> = (0..count)
                            .map(|_| {
                                let key = chance.below(4).to_string();
                                with_key(bench.message("t", key.clone()), &key)
                            })
                            .collect();
                        let ops = if chance.below(4) == 0 {
                            vec![together(queue, messages)]
                        } else {
                            messages.into_iter().map(|m| publish(m, [Append::to(queue)])).collect()
                        };
                        within("a commit", bench.engine.commit(ops)).await.unwrap();
                        sent += count;
                    }
                    4 | 5 => {
                        let mut leased = Vec::new();
                        consumers[chance.below(2) as usize].take(3, usize::MAX, &mut leased).unwrap();
                        for leased in leased {
                            let key: usize = text(&leased).parse().unwrap();
                            assert!(leased.sequence >= last[key], "of key {key} a later one was there");
                            assert!(held.iter().all(|(_, other)| *other != key), "two of key {key}");
                            last[key] = leased.sequence;
                            came += 1;
                            held.push((leased, key));
                        }
                    }
                    6 => {
                        let ready = bench.engine.browse(queue, View::Ready, Sequence(0), 20, usize::MAX);
                        let ready = within("a browse", ready).await.unwrap().messages;
                        if !ready.is_empty() {
                            let one = &ready[chance.below(ready.len() as u64) as usize];
                            let (from, sequence, view) = (queue, one.sequence, View::Ready);
                            if chance.below(2) == 0 {
                                drop(bench.engine.remove(queue, view, &[sequence]).unwrap());
                            } else {
                                let (message, priority) = (one.message.clone(), one.priority);
                                let op = Op::Move { from, sequence, view, to: dead, message, priority };
                                within("a move", bench.engine.commit(vec![op])).await.unwrap();
                            }
                        }
                    }
                    _ if held.is_empty() => {}
                    7 => {
                        let (leased, _) = held.swap_remove(chance.below(held.len() as u64) as usize);
                        let (how, rest) = match chance.below(4) {
                            0 => (Nack::Release, None),
                            1 => (Nack::Failed(None), None),
                            2 => (Nack::Failed(None), Some(Duration::from_millis(1 + chance.below(5)))),
                            _ => (Nack::DeadLetter("no".into()), None),
                        };
                        drop(bench.engine.nack(queue, &[lease_of(&leased)], how, rest).unwrap());
                    }
                    _ => {
                        let (leased, _) = held.swap_remove(chance.below(held.len() as u64) as usize);
                        let lease = LeaseRef::of(leased.sequence);
                        drop(bench.engine.settle(queue, &[lease]).unwrap());
                    }
                }
            }
            drop((consumers, held));
            at_rest(&bench, queue).await;
            bench = bench.reopen();
        }
        let consumer = bench.consumer(queue);
        let left =
            || bench.engine.stats(queue).map(|stats| stats.ready + stats.delayed + stats.leased).unwrap();
        while left() > 0 {
            let leased = take(&*consumer, 10).await;
            for leased in &leased {
                let key: usize = text(leased).parse().unwrap();
                assert!(leased.sequence >= last[key], "of key {key} a later one was there");
                last[key] = leased.sequence;
            }
            bench.settle(queue, &leased).await;
        }
        assert!(came > 200 && sent > 500, "{came} came of {sent}");
        while bench.engine.stats(dead).unwrap().ready > 0 {
            let graves = bench.consumer(dead);
            bench.settle(dead, &take(&*graves, 100).await).await;
        }
    }
}
