//! Settling here and storing there is one act.

use stafett::engine::{Append, Engine, Forward, LeaseRef, Leased, Nack, Op, Outcome, QueueSpec, Refusal};
use stafett::types::clock::unix_now;
use stafett::types::{Sequence, TargetId};

use std::time::Duration;

use crate::bench::{Bench, lease_of, refusal, spec, stored, take, take_now, with_key, within};

fn forward(bench: &Bench, from: TargetId, leased: &Leased, to: &[(TargetId, Vec<u8>)]) -> Op {
    let message =
        |(to, payload): &(TargetId, Vec<u8>)| (bench.message("t", payload.clone()), Append::to(*to));
    let messages = to.iter().map(message).collect();
    Op::Forward(Forward { from, lease: lease_of(leased), messages })
}

fn places(outcome: Outcome) -> Vec<Sequence> {
    match outcome {
        Outcome::All(outcomes) => outcomes.iter().map(stored).collect(),
        other => panic!("not forwarded: {other:?}"),
    }
}

#[tokio::test]
async fn what_is_settled_and_what_follows_from_it_are_one() {
    let bench = Bench::new();
    let (from, one, two) = (bench.queue("from").await, bench.queue("one").await, bench.queue("two").await);
    bench.put(from, "a").await;
    bench.put(from, "b").await;
    let consumer = bench.consumer(from);
    let leased = take(&*consumer, 2).await;
    let to = [(one, b"1".to_vec()), (two, b"2".to_vec()), (one, b"3".to_vec())];
    assert_eq!(places(bench.commit(forward(&bench, from, &leased[0], &to)).await).len(), 3);
    let again = bench.commit(forward(&bench, from, &leased[0], &to)).await;
    assert_eq!(refusal(again), Refusal::NotLeased, "once is enough");
    let stats = bench.engine.stats(from).unwrap();
    assert_eq!((stats.leased, stats.acked_total), (1, 1));
    drop(consumer);
    let bench = bench.reopen();
    assert_eq!(bench.drain(from).await, ["b"]);
    assert_eq!(bench.drain(one).await, ["1", "3"]);
    assert_eq!(bench.drain(two).await, ["2"]);
}

#[tokio::test]
async fn what_follows_may_fill_many_packs_and_has_its_key() {
    let bench = Bench::new();
    let (from, to) = (bench.queue("from").await, bench.queue("to").await);
    let lines = bench.queue_with(QueueSpec { ordered_by_key: true, ..spec("lines") }).await;
    bench.put(from, "a").await;
    let consumer = bench.consumer(from);
    let leased = take(&*consumer, 1).await;
    let large = (0..60_usize).map(|n| (bench.message("t", vec![b'x'; 5000 + n]), Append::to(to)));
    let keyed = ["1", "2"].map(|n| (with_key(bench.message("t", n), "k"), Append::to(lines)));
    let messages = large.chain(keyed).collect();
    let lease = lease_of(&leased[0]);
    assert_eq!(places(bench.commit(Op::Forward(Forward { from, lease, messages })).await).len(), 62);
    drop(consumer);
    let bench = bench.reopen();
    let sizes: Vec<_> = bench.drain(to).await.iter().map(String::len).collect();
    assert_eq!(sizes, (5000..5060).collect::<Vec<_>>());
    let consumer = bench.consumer(lines);
    assert_eq!(take(&*consumer, 9).await.len(), 1, "one of a key at a time");
    assert_eq!(bench.engine.stats(from).unwrap().ready, 0);
}

#[tokio::test]
async fn when_one_message_has_no_room_nothing_is_done() {
    let bench = Bench::new();
    let (from, free) = (bench.queue("from").await, bench.queue("free").await);
    let small = bench.queue_with(QueueSpec { max_messages: 2, ..spec("small") }).await;
    bench.put(from, "a").await;
    let consumer = bench.consumer(from);
    let leased = take(&*consumer, 1).await;
    let to = [(free, b"1".to_vec()), (small, b"2".to_vec()), (small, b"3".to_vec()), (small, b"4".to_vec())];
    let full = Refusal::Full { target: small, bound: "max_messages 2".into() };
    assert_eq!(refusal(bench.commit(forward(&bench, from, &leased[0], &to)).await), full);
    let gone = TargetId(999);
    let lost = forward(&bench, from, &leased[0], &[(free, b"1".to_vec()), (gone, b"2".to_vec())]);
    assert_eq!(refusal(bench.commit(lost).await), Refusal::Gone(gone));
    assert_eq!(bench.engine.stats(free).unwrap().enqueued_total, 0);
    // The delivery is held as before, and goes on.
    places(bench.commit(forward(&bench, from, &leased[0], &to[..3])).await);
    assert_eq!(bench.drain(small).await, ["2", "3"]);
}

#[tokio::test]
async fn a_full_queue_takes_what_follows_from_its_own_message() {
    let bench = Bench::new();
    let full = bench.queue_with(QueueSpec { max_messages: 1, max_bytes: 200, ..spec("q") }).await;
    bench.put(full, vec![b'x'; 100]).await;
    let consumer = bench.consumer(full);
    let leased = take(&*consumer, 1).await;
    let two = [(full, b"1".to_vec()), (full, b"2".to_vec())];
    refusal(bench.commit(forward(&bench, full, &leased[0], &two)).await);
    // Later: the usual way to try again in an hour.
    let later = unix_now().after(Duration::from_secs(3600));
    let append = Append { not_before: Some(later), ..Append::to(full) };
    let messages = vec![(bench.message("t", vec![b'y'; 100]), append)];
    let op = Op::Forward(Forward { from: full, lease: lease_of(&leased[0]), messages });
    places(bench.commit(op).await);
    let bench = {
        drop(consumer);
        bench.reopen()
    };
    let stats = bench.engine.stats(full).unwrap();
    assert_eq!((stats.ready, stats.delayed), (0, 1));
}

#[tokio::test]
async fn a_queue_beyond_its_bound_takes_what_makes_it_no_larger() {
    let bench = Bench::new();
    let grave = spec("dead").name;
    // What is given up goes there beyond its bound.
    let dead = bench.queue_with(QueueSpec { max_messages: 1, max_bytes: 100, ..spec("dead") }).await;
    let from = bench.queue_with(QueueSpec { dead_letter: Some(grave), ..spec("from") }).await;
    for _ in 0..3 {
        bench.put(from, vec![b'x'; 50]).await;
    }
    let consumer = bench.consumer(from);
    let leases: Vec<LeaseRef> = take(&*consumer, 3).await.iter().map(lease_of).collect();
    let nacked = bench.engine.nack(from, &leases, Nack::DeadLetter("no".into()), None).unwrap();
    within("the nack", nacked.durable).await.unwrap();
    let consumer = bench.consumer(dead);
    let leased = take(&*consumer, 1).await;
    for larger in [vec![(dead, b"1".to_vec()), (dead, b"2".to_vec())], vec![(dead, vec![b'x'; 200])]] {
        let refused = refusal(bench.commit(forward(&bench, dead, &leased[0], &larger)).await);
        assert!(matches!(refused, Refusal::Full { .. }), "{refused}");
    }
    places(bench.commit(forward(&bench, dead, &leased[0], &[(dead, b"1".to_vec())])).await);
    assert_eq!(bench.engine.stats(dead).unwrap().ready, 3);
}

#[tokio::test]
async fn a_lease_that_is_lost_forwards_nothing() {
    let bench = Bench::new();
    let (from, to) = (bench.queue("from").await, bench.queue("to").await);
    bench.put(from, "a").await;
    let (one, other) = (bench.consumer(from), bench.consumer(from));
    let leased = take(&*one, 1).await;
    let nacked = bench.engine.nack(from, &[lease_of(&leased[0])], Nack::Failed(None), None).unwrap();
    within("the nack", nacked.durable).await.unwrap();
    let to = [(to, b"1".to_vec())];
    assert_eq!(refusal(bench.commit(forward(&bench, from, &leased[0], &to)).await), Refusal::NotLeased);
    let second = take_now(&*other);
    assert_eq!(refusal(bench.commit(forward(&bench, from, &leased[0], &to)).await), Refusal::NotLeased);
    let whoever = Op::Forward(Forward {
        from,
        lease: LeaseRef { earlier_boot: true, ..lease_of(&second[0]) },
        messages: Vec::new(),
    });
    assert_eq!(refusal(bench.commit(whoever).await), Refusal::NotLeased, "of an earlier start");
    places(bench.commit(forward(&bench, from, &second[0], &to)).await);
}

#[tokio::test]
async fn what_follows_may_be_much() {
    let bench = Bench::new();
    let (from, to) = (bench.queue("from").await, bench.queue("to").await);
    let sizes = [10, 7_000, 9_000, 7_000, 100_000, 6_000, 10, 8_000];
    let messages: Vec<_> = (0..800).map(|n| (to, vec![b'a' + (n % 26) as u8; sizes[n % 8]])).collect();
    bench.put(from, "a").await;
    bench.put(from, "b").await;
    let consumer = bench.consumer(from);
    let leased = take(&*consumer, 2).await;
    places(bench.commit(forward(&bench, from, &leased[0], &messages[..16])).await);
    places(bench.commit(forward(&bench, from, &leased[1], &messages)).await);
    drop(consumer);
    let bench = bench.reopen();
    let expected = messages[..16].iter().chain(&messages).map(|(_, payload)| payload);
    let found = bench.drain(to).await;
    assert!(found.iter().map(|text| text.as_bytes()).eq(expected.map(Vec::as_slice)), "{}", found.len());
    let bench = bench.reopen();
    assert_eq!(bench.engine.stats(from).unwrap().ready + bench.engine.stats(to).unwrap().ready, 0);
}
