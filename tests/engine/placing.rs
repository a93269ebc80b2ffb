//! What a queue makes of a message by what its producer said of it: known already, one of several that are stored together, one of a
//! key.

use std::time::Duration;

use stafett::engine::embedded::check;
use stafett::engine::{
    Append, Consumer, Definition, Engine, LeaseRef, Leased, Nack, Op, Outcome, QueueSpec, Refusal, View,
};
use stafett::types::clock::unix_now;
use stafett::types::{Message, Priority, Sequence, TargetId};

use crate::bench::{
    Bench, lease_of, publish, refusal, spec, stored, take, take_now, text, with_dedup_id, with_key, within,
};

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn remembering(name: &str) -> QueueSpec {
    QueueSpec { dedup_window: Some(HOUR), ..spec(name) }
}

/// A message that its producer calls `id`.
pub(crate) fn named(bench: &Bench, targets: &[TargetId], id: &str, payload: &str) -> Op {
    let message = with_dedup_id(bench.message("t", payload.to_owned()), id);
    publish(message, targets.iter().map(|&target| Append::to(target)))
}

#[tokio::test]
async fn a_message_that_comes_again_is_stored_once() {
    let bench = Bench::new();
    let queue = bench.queue_with(remembering("q")).await;
    let op = named(&bench, &[queue], "a", "first");
    let Op::Publish(first) = &op else { unreachable!("a publish is a publish") };
    let id = first.message.id;
    let sequence = stored(&bench.commit(op).await);
    let known = Outcome::Duplicate { id, sequence };
    assert_eq!(bench.commit(named(&bench, &[queue], "a", "again")).await, known);
    // Whatever becomes of it, over a restart, and where its pack has left the store.
    assert_eq!(bench.drain(queue).await, ["first"]);
    assert_eq!(bench.commit(named(&bench, &[queue], "a", "again")).await, known);
    let bench = bench.reopen();
    assert_eq!(bench.commit(named(&bench, &[queue], "a", "again")).await, known);
    let bench = bench.reopen();
    assert_eq!(bench.commit(named(&bench, &[queue], "a", "again")).await, known);
    stored(&bench.commit(named(&bench, &[queue], "b", "other")).await);
    bench.put(queue, "nameless").await;
    bench.put(queue, "nameless").await;
    assert_eq!(bench.drain(queue).await, ["other", "nameless", "nameless"]);
}

#[tokio::test]
async fn of_one_commit_the_first_is_stored() {
    let bench = Bench::new();
    let queue = bench.queue_with(remembering("q")).await;
    let ops = (0..1000).map(|n| named(&bench, &[queue], &(n % 500).to_string(), &n.to_string())).collect();
    let outcomes = within("the commit", bench.engine.commit(ops)).await.unwrap();
    for (first, again) in outcomes.iter().zip(&outcomes[500..]) {
        let Outcome::Duplicate { sequence, .. } = again else { panic!("{again:?}") };
        assert_eq!(*sequence, stored(first));
    }
    let bench = bench.reopen();
    for n in 0..500 {
        let again = bench.commit(named(&bench, &[queue], &n.to_string(), "again")).await;
        assert!(matches!(again, Outcome::Duplicate { .. }), "{n}: {again:?}");
    }
    assert_eq!(bench.drain(queue).await, (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn each_target_knows_for_itself() {
    let bench = Bench::new();
    let (a, b) = (bench.queue_with(remembering("a")).await, bench.queue_with(remembering("b")).await);
    let plain = bench.queue("plain").await;
    let first = stored(&bench.commit(named(&bench, &[a], "x", "1")).await);
    let Outcome::Published(second) = bench.commit(named(&bench, &[a, b, plain], "x", "2")).await else {
        panic!("not stored where it is not known")
    };
    assert_eq!(second[0], Some(first), "where it lies there");
    let third = bench.commit(named(&bench, &[a, b], "x", "3")).await;
    assert!(matches!(third, Outcome::Duplicate { sequence, .. } if sequence == first), "{third:?}");
    let bench = bench.reopen();
    assert_eq!(bench.drain(a).await, ["1"]);
    assert_eq!(bench.drain(b).await, ["2"]);
    assert_eq!(bench.drain(plain).await, ["2"]);
}

#[tokio::test]
async fn what_was_refused_is_not_remembered() {
    let bench = Bench::new();
    let queue = bench.queue_with(QueueSpec { max_messages: 1, ..remembering("q") }).await;
    stored(&bench.commit(named(&bench, &[queue], "a", "a")).await);
    for _ in 0..2 {
        let full = refusal(bench.commit(named(&bench, &[queue], "b", "b")).await);
        assert!(matches!(full, Refusal::Full { .. }), "{full:?}");
    }
    assert!(matches!(bench.commit(named(&bench, &[queue], "a", "a")).await, Outcome::Duplicate { .. }));
    assert_eq!(bench.drain(queue).await, ["a"]);
    stored(&bench.commit(named(&bench, &[queue], "b", "b")).await);
}

#[tokio::test]
async fn the_window_is_the_queues_as_it_is_now() {
    let bench = Bench::new();
    let queue = bench.queue_with(remembering("q")).await;
    let old = |id: &str| {
        let mut message = with_dedup_id(bench.message("t", "x"), id);
        let minute_ago = u128::from(unix_now().0 - 60_000) << 80;
        message.id = stafett::types::MessageId::from_u128(minute_ago + 1);
        publish(message, [Append::to(queue)])
    };
    stored(&bench.commit(old("a")).await);
    assert!(matches!(bench.commit(named(&bench, &[queue], "a", "x")).await, Outcome::Duplicate { .. }));
    let define = async |window| {
        let spec = QueueSpec { dedup_window: window, ..spec("q") };
        assert_eq!(bench.commit(Op::Define(queue, Definition::Queue(spec))).await, Outcome::Done);
    };
    define(Some(Duration::from_secs(50))).await;
    stored(&bench.commit(named(&bench, &[queue], "a", "x")).await);
    define(None).await;
    stored(&bench.commit(named(&bench, &[queue], "a", "x")).await);
}

#[tokio::test]
async fn a_queue_remembers_no_more_than_it_may() {
    let bench = Bench::with_settings(|settings| settings.max_dedup_ids = 3);
    let queue = bench.queue_with(remembering("q")).await;
    for id in ["a", "b", "c"] {
        stored(&bench.commit(named(&bench, &[queue], id, id)).await);
    }
    let full = refusal(bench.commit(named(&bench, &[queue], "d", "d")).await);
    assert_eq!(full, Refusal::Full { target: queue, bound: "max_dedup_ids 3".into() });
    assert!(matches!(bench.commit(named(&bench, &[queue], "a", "a")).await, Outcome::Duplicate { .. }));
    bench.put(queue, "nameless").await;
    let consumer = bench.consumer(queue);
    let taken = take(&*consumer, 10).await;
    assert_eq!(taken.iter().map(text).collect::<Vec<_>>(), ["a", "b", "c", "nameless"]);
}

/// Messages that are stored together.
pub(crate) fn together(target: TargetId, messages: impl IntoIterator<Item = Message>) -> Op {
    Op::AppendAll(messages.into_iter().map(|message| (message, Append::to(target))).collect())
}

fn count(outcome: Outcome) -> usize {
    match outcome {
        Outcome::All(outcomes) => outcomes.iter().map(stored).count(),
        other => panic!("not stored: {other:?}"),
    }
}

/// Of sizes from a few bytes to several parts, so that a few of them fill a pack.
fn sized(bench: &Bench, n: u64) -> Message {
    let size = [10, 500, 3000, 9000, 40_000][(n % 5) as usize];
    bench.message("t", format!("{n} {}", "x".repeat(size)))
}

async fn numbers(bench: &Bench, queue: TargetId) -> Vec<u64> {
    let number = |payload: &String| payload.split(' ').next().unwrap().parse().unwrap();
    bench.drain(queue).await.iter().map(number).collect()
}

#[tokio::test]
async fn what_is_stored_together_is_stored_whole_or_not_at_all() {
    let bench = Bench::new();
    let queue = bench.queue_with(QueueSpec { max_messages: 305, ..spec("q") }).await;
    assert_eq!(count(bench.commit(together(queue, (0..300).map(|n| sized(&bench, n)))).await), 300);
    let refused = refusal(bench.commit(together(queue, (0..20).map(|n| sized(&bench, n)))).await);
    let Refusal::Item { index: 5, refusal } = refused else { panic!("{refused:?}") };
    assert!(matches!(*refusal, Refusal::Full { target, .. } if target == queue), "{refusal:?}");
    assert_eq!(count(bench.commit(together(queue, (300..305).map(|n| sized(&bench, n)))).await), 5);
    let bench = bench.reopen();
    assert_eq!(numbers(&bench, queue).await, (0..305).collect::<Vec<_>>());
    assert_eq!(bench.reopen().engine.stats(queue).unwrap().bytes, 0);
}

#[tokio::test]
async fn what_was_stored_together_leaves_one_by_one() {
    for settled in [0..150_u64, 150..300, 50..250] {
        let bench = Bench::new();
        let queue = bench.queue("q").await;
        assert_eq!(count(bench.commit(together(queue, (0..300).map(|n| sized(&bench, n)))).await), 300);
        let consumer = bench.consumer(queue);
        let mut leased = take(&*consumer, 300).await;
        while leased.len() < 300 {
            leased.extend(take(&*consumer, 300).await);
        }
        let number = |leased: &Leased| -> u64 { text(leased).split(' ').next().unwrap().parse().unwrap() };
        leased.retain(|leased| settled.contains(&number(leased)));
        bench.settle(queue, &leased).await;
        drop(consumer);
        // What nothing needs any more goes while others are stored.
        let other = bench.queue("other").await;
        for _ in 0..60 {
            bench.put(other, vec![b'x'; 100_000]).await;
            bench.drain(other).await;
        }
        let bench = bench.reopen().reopen();
        let expected: Vec<_> = (0..300).filter(|n| !settled.contains(n)).collect();
        assert_eq!(numbers(&bench, queue).await, expected, "{settled:?}");
    }
}

#[tokio::test]
async fn one_that_stays_keeps_none_of_the_bodies_that_came_with_it() {
    let mut bench = Bench::new();
    let queue = bench.queue("q").await;
    let last = bench.message("t", vec![b'x'; 1 << 20]);
    let all = (0..30).map(|_| bench.message("t", vec![b'x'; 3000])).chain([last]);
    assert_eq!(count(bench.commit(together(queue, all)).await), 31);
    let consumer = bench.consumer(queue);
    let mut leased = take(&*consumer, 100).await;
    while leased.len() < 31 {
        leased.extend(take(&*consumer, 100).await);
    }
    bench.settle(queue, &leased[1..]).await;
    drop((consumer, leased));
    // What nothing needs any more goes while others are stored.
    let other = bench.queue("other").await;
    let gone = async {
        loop {
            for _ in 0..10 {
                bench.put(other, "x").await;
                bench.drain(other).await;
            }
            let closed = bench.close();
            let report = check::check(closed.dir.path(), &mut |_| {}).unwrap();
            assert!(report.is_sound(), "{report:?}");
            if report.part_bytes == 0 {
                return;
            }
            bench = closed.open();
        }
    };
    within("the bodies that nobody needs", gone).await;
}

#[tokio::test]
async fn what_is_stored_together_may_be_known_in_part() {
    let bench = Bench::with_settings(|settings| settings.max_dedup_ids = 3);
    let queue = bench.queue_with(remembering("q")).await;
    stored(&bench.commit(named(&bench, &[queue], "a", "a")).await);
    let call = |ids: &[&str]| {
        together(queue, ids.iter().map(|id| with_dedup_id(bench.message("t", id.to_string()), id)))
    };
    let refused = refusal(bench.commit(call(&["b", "a", "b", "c", "c", "d"])).await);
    assert!(matches!(refused, Refusal::Item { index: 5, .. }), "{refused:?}");
    let Outcome::All(outcomes) = bench.commit(call(&["b", "a", "b", "c"])).await else {
        panic!("not stored")
    };
    let known: Vec<_> = outcomes.iter().map(|it| matches!(it, Outcome::Duplicate { .. })).collect();
    assert_eq!(known, [false, true, true, false]);
    assert_eq!(bench.drain(queue).await, ["a", "b", "c"]);
}

pub(crate) fn ordered(name: &str) -> QueueSpec {
    QueueSpec { ordered_by_key: true, ..spec(name) }
}

/// Messages with a key each, in their order; `-` is none.
pub(crate) async fn fill(bench: &Bench, queue: TargetId, messages: &[(&str, &str)]) {
    for &(key, payload) in messages {
        let message = bench.message("t", payload.to_owned());
        let message = if key == "-" { message } else { with_key(message, key) };
        stored(&bench.commit(publish(message, [Append::to(queue)])).await);
    }
}

pub(crate) fn texts(leased: &[Leased]) -> Vec<String> {
    leased.iter().map(text).collect()
}

/// What is there at once, settled.
pub(crate) async fn round(bench: &Bench, queue: TargetId, consumer: &dyn Consumer) -> Vec<String> {
    let leased = take_now(consumer);
    bench.settle(queue, &leased).await;
    texts(&leased)
}

#[tokio::test]
async fn messages_of_a_key_come_one_at_a_time_in_their_order() {
    let bench = Bench::new();
    let queue = bench.queue_with(ordered("q")).await;
    let messages = [
        ("a", "a1"),
        ("b", "b1"),
        ("a", "a2"),
        ("-", "x"),
        ("b", "b2"),
        ("-", "y"),
        ("a", "a3"),
        ("c", "c1"),
    ];
    fill(&bench, queue, &messages).await;
    let (one, two) = (bench.consumer(queue), bench.consumer(queue));
    let mut first = Vec::new();
    one.take(2, usize::MAX, &mut first).unwrap();
    assert_eq!(texts(&first), ["a1", "b1"]);
    assert_eq!(
        round(&bench, queue, &*two).await,
        ["x", "y", "c1"],
        "other keys do not wait, and none for nobody"
    );
    assert_eq!(take_now(&*two).len(), 0);
    assert_eq!(bench.engine.stats(queue).unwrap().ready, 3);
    let looked = within("a browse", bench.engine.browse(queue, View::Ready, Sequence(0), 2, usize::MAX))
        .await
        .unwrap();
    assert_eq!(looked.messages.len(), 2);
    // Settled by one, the next is the other's, who is told.
    bench.settle(queue, &first[..1]).await;
    within("the wake", two.ready().heard()).await;
    assert_eq!(round(&bench, queue, &*two).await, ["a2"]);
    assert_eq!(round(&bench, queue, &*one).await, ["a3"]);
    bench.settle(queue, &first[1..]).await;
    assert_eq!(round(&bench, queue, &*one).await, ["b2"]);
    assert_eq!(bench.engine.stats(queue).unwrap().ready, 0);
}

#[tokio::test]
async fn order_by_key_holds_over_a_restart() {
    let bench = Bench::new();
    let queue = bench.queue_with(ordered("q")).await;
    fill(&bench, queue, &[("a", "a1"), ("b", "b1"), ("a", "a2"), ("b", "b2")]).await;
    let consumer = bench.consumer(queue);
    let leased = take_now(&*consumer);
    let rest = Duration::from_millis(1500);
    drop(bench.engine.nack(queue, &[lease_of(&leased[1])], Nack::Failed(None), Some(rest)).unwrap());
    drop(consumer);
    let bench = bench.reopen();
    let consumer = bench.consumer(queue);
    for expected in ["a1", "a2"] {
        let leased = take(&*consumer, 10).await;
        assert_eq!(texts(&leased), [expected], "b1 rests, and b2 waits for it");
        bench.settle(queue, &leased).await;
    }
    fill(&bench, queue, &[("b", "b3")]).await;
    for expected in ["b1", "b2", "b3"] {
        let leased = take(&*consumer, 10).await;
        assert_eq!(texts(&leased), [expected]);
        bench.settle(queue, &leased).await;
    }
}

#[tokio::test]
async fn what_is_given_back_holds_its_key_up() {
    let bench = Bench::new();
    let dead = bench.queue("dead").await;
    let queue = bench
        .queue_with(QueueSpec {
            max_deliveries: std::num::NonZeroU32::new(2),
            dead_letter: stafett::types::QueueName::parse("dead").ok(),
            ..ordered("q")
        })
        .await;
    fill(&bench, queue, &[("a", "a1"), ("a", "a2")]).await;
    let consumer = bench.consumer(queue);
    let nack = |leased: &Leased, how, delay| {
        let nacked = bench.engine.nack(queue, &[lease_of(leased)], how, delay).unwrap();
        assert_eq!(nacked.failed, []);
    };
    let leased = take_now(&*consumer);
    nack(&leased[0], Nack::Release, None);
    let leased = take_now(&*consumer);
    assert_eq!(texts(&leased), ["a1"]);
    nack(&leased[0], Nack::Failed(None), Some(Duration::from_millis(300)));
    assert_eq!(take_now(&*consumer).len(), 0, "it rests");
    let leased = take(&*consumer, 10).await;
    assert_eq!((texts(&leased), leased[0].attempt), (vec!["a1".to_owned()], 2));
    // Its consumer is lost with it: that was the last delivery.
    consumer.release_all(true);
    let leased = take(&*consumer, 10).await;
    assert_eq!(texts(&leased), ["a2"]);
    let graves = bench.consumer(dead);
    assert_eq!(texts(&take(&*graves, 1).await), ["a1"]);
    nack(&leased[0], Nack::DeadLetter("no".into()), None);
    fill(&bench, queue, &[("a", "a3")]).await;
    assert_eq!(texts(&take(&*consumer, 10).await), ["a3"]);
}

#[tokio::test]
async fn a_key_goes_on_when_its_front_is_gone() {
    let bench = Bench::new();
    let queue = bench.queue_with(ordered("q")).await;
    let soon = unix_now().after(Duration::from_millis(200));
    let later = unix_now().after(Duration::from_millis(1200));
    let put = async |payload: &'static str, append| {
        let message = with_key(bench.message("t", payload), "a");
        stored(&bench.commit(publish(message, [append])).await)
    };
    // One that expires in front, one that expires behind, one that is due later than those that came after it.
    put("expires", Append { expires_at: Some(soon), ..Append::to(queue) }).await;
    put("delayed", Append { not_before: Some(later), ..Append::to(queue) }).await;
    put("1", Append::to(queue)).await;
    put("expires", Append { expires_at: Some(soon), ..Append::to(queue) }).await;
    put("2", Append::to(queue)).await;
    within("the end of one", async {
        while unix_now() <= soon.after(Duration::from_millis(100)) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let consumer = bench.consumer(queue);
    let first = take(&*consumer, 10).await;
    assert_eq!(texts(&first), ["1"]);
    within("what was delayed", async {
        while bench.engine.stats(queue).unwrap().delayed > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    put("3", Append { priority: Priority::new(9).unwrap(), ..Append::to(queue) }).await;
    bench.settle(queue, &first).await;
    for expected in ["delayed", "2", "3"] {
        assert_eq!(round(&bench, queue, &*consumer).await, [expected]);
    }
    assert_eq!(bench.engine.stats(queue).unwrap().expired_total, 2);

    fill(&bench, queue, &[("a", "4"), ("a", "5"), ("b", "6")]).await;
    let leased = take_now(&*consumer);
    assert_eq!(texts(&leased), ["4", "6"]);
    let purged = within("a purge", bench.engine.purge(queue, View::Ready).unwrap()).await.unwrap();
    assert_eq!(purged, 1, "what waits for its key is ready, too");
    fill(&bench, queue, &[("a", "7")]).await;
    assert_eq!(take_now(&*consumer).len(), 0);
    bench.settle(queue, &leased).await;
    assert_eq!(round(&bench, queue, &*consumer).await, ["7"]);
    // By the token of an earlier start while another of its key is in front.
    fill(&bench, queue, &[("a", "8"), ("a", "9"), ("a", "10")]).await;
    let leased = take_now(&*consumer);
    let waiting = LeaseRef { earlier_boot: true, ..LeaseRef::of(Sequence(leased[0].sequence.0 + 1)) };
    let settled = bench.engine.settle(queue, &[waiting]).unwrap();
    assert_eq!(settled.failed, []);
    bench.settle(queue, &leased).await;
    assert_eq!(round(&bench, queue, &*consumer).await, ["10"]);
}

#[tokio::test]
async fn priorities_hold_between_keys_and_moves_join_at_the_end() {
    let bench = Bench::new();
    let queue = bench.queue_with(QueueSpec { priorities: true, ..ordered("q") }).await;
    let from = bench.queue("from").await;
    for (key, level, payload) in [("a", 1, "a1"), ("a", 9, "a2"), ("b", 5, "b1"), ("b", 1, "b2")] {
        let append = Append { priority: Priority::new(level).unwrap(), ..Append::to(queue) };
        let message = with_key(bench.message("t", payload), key);
        stored(&bench.commit(publish(message, [append])).await);
    }
    fill(&bench, from, &[("a", "moved")]).await;
    let moving = bench.consumer(from);
    let leased = take(&*moving, 1).await.remove(0);
    let (sequence, message) = (leased.sequence, leased.message);
    let op = Op::Move {
        from,
        sequence,
        view: View::Leased,
        to: queue,
        message,
        priority: Priority::new(9).unwrap(),
    };
    assert!(matches!(bench.commit(op).await, Outcome::Published(_)));
    let consumer = bench.consumer(queue);
    assert_eq!(round(&bench, queue, &*consumer).await, ["b1", "a1"]);
    assert_eq!(round(&bench, queue, &*consumer).await, ["a2", "b2"]);
    assert_eq!(round(&bench, queue, &*consumer).await, ["moved"]);
}

/// By chance, against a model: of each key one at a time, in order, and all in the end.
#[tokio::test]
async fn many_keys_and_consumers_keep_order() {
    let mut chance = crate::below::Chance(7);
    let mut bench = Bench::with(stafett::engine::Durability::Memory);
    let queue = bench.queue_with(ordered("q")).await;
    let mut done = vec![0_u64; 5];
    let mut sent = vec![0_u64; 5];
    for _ in 0..4 {
        let consumers = [bench.consumer(queue), bench.consumer(queue)];
        let mut held: Vec<(Leased, usize, u64)> = Vec::new();
        for _ in 0..600 {
            match chance.below(4) {
                0 | 1 => {
                    let key = chance.below(5) as usize;
                    sent[key] += 1;
                    fill(&bench, queue, &[(&key.to_string(), &format!("{key} {}", sent[key]))]).await;
                }
                2 => {
                    let mut leased = Vec::new();
                    consumers[chance.below(2) as usize].take(3, usize::MAX, &mut leased).unwrap();
                    for leased in leased {
                        let text = text(&leased);
                        let (key, n) = text.split_once(' ').unwrap();
                        let (key, n) = (key.parse::<usize>().unwrap(), n.parse::<u64>().unwrap());
                        assert_eq!(n, done[key] + 1, "key {key}");
                        assert!(held.iter().all(|(_, other, _)| *other != key), "two of key {key}");
                        held.push((leased, key, n));
                    }
                }
                _ if held.is_empty() => {}
                _ => {
                    let (leased, key, n) = held.swap_remove(chance.below(held.len() as u64) as usize);
                    if chance.below(3) == 0 {
                        let how = if chance.below(2) == 0 { Nack::Failed(None) } else { Nack::Release };
                        drop(bench.engine.nack(queue, &[lease_of(&leased)], how, None).unwrap());
                    } else {
                        drop(bench.engine.settle(queue, &[lease_of(&leased)]).unwrap());
                        done[key] = n;
                    }
                }
            }
        }
        drop((consumers, held));
        bench = bench.reopen();
    }
    let consumer = bench.consumer(queue);
    while bench.engine.stats(queue).unwrap().ready > 0 {
        let leased = take(&*consumer, 10).await;
        bench.settle(queue, &leased).await;
        for text in texts(&leased) {
            let (key, n) = text.split_once(' ').unwrap();
            let (key, n) = (key.parse::<usize>().unwrap(), n.parse::<u64>().unwrap());
            assert_eq!(n, done[key] + 1, "key {key}");
            done[key] = n;
        }
    }
    assert_eq!(done, sent);
}
