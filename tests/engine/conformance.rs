//! The core part of the suite: holds for every engine.

use std::time::Duration;

use stafett::engine::{
    Append, BacklogSpec, ConsumerOptions, Definition, Durability, Engine, EngineError, LeaseError, LeaseRef,
    Nack, Op, Outcome, Outgoing, OutgoingState, QueueSpec, Refusal, RetainHandling, SubscribeOptions, View,
};
use stafett::types::clock::unix_now;
use stafett::types::topic::FilterSpec;
use stafett::types::{Message, MessageIds, Priority, Qos, Sequence, TargetId, UnixMillis};

use crate::bench::{
    Bench, lease_of, publish, refusal, retain, spec, stored, take, take_now, text, with_dead_letters, within,
};

#[tokio::test]
async fn messages_come_in_the_order_of_their_commits() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    let ops = (0..500).map(|n| bench.publish(&[queue], n.to_string())).collect();
    let outcomes = within("the commit", bench.engine.commit(ops)).await.unwrap();
    let sequences: Vec<_> = outcomes.iter().map(stored).collect();
    assert!(sequences.is_sorted() && sequences.len() == 500);
    assert_eq!(bench.drain(queue).await, (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(bench.engine.stats(queue).unwrap().bytes, 0);
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_restart() {
    for durability in Durability::ALL {
        let bench = Bench::with(durability);
        let queue = bench.queue("q").await;
        let large = "x".repeat(300_000);
        for n in 0..10 {
            bench.put(queue, n.to_string()).await;
        }
        bench.put(queue, large.clone()).await;
        {
            let consumer = bench.consumer(queue);
            let mut leased = take_now(&*consumer);
            leased.truncate(4);
            bench.settle(queue, &leased).await;
        }
        let bench = bench.reopen();
        assert_eq!(bench.engine.stored().queues.len(), 1);
        let mut expected: Vec<String> = (4..10).map(|n| n.to_string()).collect();
        expected.push(large);
        assert_eq!(bench.drain(queue).await, expected, "{durability}");
        let bench = bench.reopen();
        assert_eq!(bench.drain(queue).await, Vec::<String>::new());
        assert!(bench.put(queue, "next").await > Sequence(11), "a sequence is never used again");
    }
}

#[tokio::test]
async fn one_publish_reaches_all_its_targets() {
    let bench = Bench::new();
    let (a, b) = (bench.queue("a").await, bench.session("s", 10).await);
    bench.commit(bench.publish(&[a, b], "both")).await;
    let bench = bench.reopen();
    assert_eq!(bench.drain(a).await, ["both"]);
    assert_eq!(bench.drain(b).await, ["both"]);
}

#[tokio::test]
async fn one_publish_reaches_thousands_of_targets() {
    let bench = Bench::new();
    let mut sessions = Vec::new();
    for n in 0..3000 {
        sessions.push(bench.session(&format!("s{n}"), 10).await);
    }
    bench.commit(bench.publish(&sessions, "to all")).await;
    bench.put(sessions[7], "after").await;
    assert_eq!(bench.drain(sessions[7]).await, ["to all", "after"]);
    let bench = bench.reopen();
    for (n, &session) in sessions.iter().enumerate() {
        let expected: &[&str] = if n == 7 { &[] } else { &["to all"] };
        assert_eq!(bench.drain(session).await, expected, "session {n}");
    }
    let bench = bench.reopen();
    assert!(sessions.iter().all(|&session| bench.engine.stats(session).unwrap().ready == 0));
}

#[tokio::test]
async fn a_full_queue_refuses_the_publish_whole() {
    let bench = Bench::new();
    let other = bench.queue("other").await;
    let full = bench.queue_with(QueueSpec { max_messages: 1, ..spec("full") }).await;
    bench.put(full, "first").await;
    let outcome = bench.commit(bench.publish(&[other, full], "second")).await;
    assert_eq!(refusal(outcome), Refusal::Full { target: full, bound: "max_messages 1".into() });
    assert_eq!(bench.engine.stats(other).unwrap().ready, 0, "nothing was stored anywhere");
    assert_eq!(bench.drain(full).await, ["first"]);
    bench.put(full, "third").await;

    let small = bench.queue_with(QueueSpec { max_bytes: 1000, ..spec("small") }).await;
    let outcome = bench.commit(bench.publish(&[small], vec![0; 1000])).await;
    assert_eq!(refusal(outcome), Refusal::Full { target: small, bound: "max_bytes 1000".into() });
}

#[tokio::test]
async fn a_full_session_drops_what_is_new_and_counts() {
    let bench = Bench::new();
    let (queue, session) = (bench.queue("q").await, bench.session("s", 2).await);
    for n in 0..4 {
        bench.commit(bench.publish(&[session, queue], n.to_string())).await;
    }
    assert_eq!(bench.engine.stats(session).unwrap().dropped_total, 2);
    assert_eq!(bench.drain(session).await, ["0", "1"]);
    assert_eq!(bench.drain(queue).await, ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn two_consumers_never_have_the_same_message() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    for n in 0..10 {
        bench.put(queue, n.to_string()).await;
    }
    let (one, two) = (bench.consumer(queue), bench.consumer(queue));
    let mut first = Vec::new();
    one.take(4, usize::MAX, &mut first).unwrap();
    let second = take_now(&*two);
    assert_eq!(first.iter().chain(&second).map(text).collect::<Vec<_>>().len(), 10);
    assert_eq!(second.iter().map(text).next().unwrap(), "4");
    drop(one);
    let again = take(&*two, 10).await;
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), ["0", "1", "2", "3"], "in their order");
    assert!(again.iter().all(|leased| leased.attempt == 1), "dropping a consumer counts nothing");
}

#[tokio::test]
async fn the_bytes_of_a_take_are_bounded_and_one_message_may_overdraw() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    for _ in 0..4 {
        bench.put(queue, vec![b'x'; 1000]).await;
    }
    let consumer = bench.consumer(queue);
    let mut out = Vec::new();
    consumer.take(10, 10, &mut out).unwrap();
    assert_eq!(out.len(), 1);
    consumer.take(10, 1500, &mut out).unwrap();
    assert_eq!(out.len(), 3);
}

#[tokio::test]
async fn a_waiting_consumer_is_woken() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    let consumer = bench.consumer(queue);
    assert!(take_now(&*consumer).is_empty());
    let (leased, _) = tokio::join!(take(&*consumer, 1), bench.put(queue, "late"));
    assert_eq!(text(&leased[0]), "late");
}

#[tokio::test]
async fn a_released_message_is_not_counted_and_a_failed_one_is() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    bench.put(queue, "m").await;
    let consumer = bench.consumer(queue);
    for (how, attempt) in
        [(Nack::Release, 1), (Nack::Failed(None), 1), (Nack::Failed(None), 2), (Nack::Release, 3)]
    {
        let leased = take(&*consumer, 1).await;
        assert_eq!(leased[0].attempt, attempt);
        let nacked = bench.engine.nack(queue, &[lease_of(&leased[0])], how, None).unwrap();
        assert_eq!(nacked.failed, []);
        within("the nack", nacked.durable).await.unwrap();
    }
    drop(consumer);
    let bench = bench.reopen();
    let consumer = bench.consumer(queue);
    assert_eq!(take(&*consumer, 1).await[0].attempt, 3, "attempts are stored");
}

#[tokio::test]
async fn a_message_is_buried_after_its_last_delivery() {
    let bench = Bench::new();
    let dead = bench.queue("dead").await;
    let queue = bench.queue_with(with_dead_letters("q", 2, "dead")).await;
    bench.put(queue, "poison").await;
    let consumer = bench.consumer(queue);
    for _ in 0..2 {
        let leased = take(&*consumer, 1).await;
        drop(bench.engine.nack(queue, &[lease_of(&leased[0])], Nack::Failed(None), None).unwrap());
    }
    let graves = bench.consumer(dead);
    let buried = take(&*graves, 1).await;
    let why = buried[0].message.extras.as_ref().unwrap().dead_letter.clone().unwrap();
    assert_eq!((why.source.as_str(), &*why.reason, why.attempts), ("q", "max deliveries reached", 2));
    assert_eq!(bench.engine.stats(queue).unwrap().leased, 0);

    bench.put(queue, "unwanted").await;
    let leased = take(&*consumer, 1).await;
    let how = Nack::DeadLetter("not ours".into());
    let nacked = bench.engine.nack(queue, &[lease_of(&leased[0])], how, None).unwrap();
    within("the burial", nacked.durable).await.unwrap();
    let buried = take(&*graves, 1).await;
    let why = buried[0].message.extras.as_ref().unwrap().dead_letter.clone().unwrap();
    assert_eq!((&*why.reason, why.attempts), ("not ours", 1));
    assert_eq!(bench.engine.stats(queue).unwrap().dead_lettered_total, 2);
}

#[tokio::test]
async fn a_lease_that_ends_counts_and_lets_another_have_it() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    bench.put(queue, "m").await;
    let short = bench
        .engine
        .consumer(
            queue,
            ConsumerOptions { lease: Some(Duration::from_secs(1)), ..ConsumerOptions::default() },
        )
        .unwrap();
    let other = bench.consumer(queue);
    let lost = take(&*short, 1).await;
    let found = take(&*other, 1).await;
    assert_eq!((found[0].sequence, found[0].attempt), (lost[0].sequence, 2));
    let settled = bench.engine.settle(queue, &[lease_of(&lost[0])]).unwrap();
    assert_eq!(settled.failed, [(0, LeaseError::Expired)], "the old lease is worth nothing");
    bench.settle(queue, &found).await;
    let settled = bench.engine.settle(queue, &[lease_of(&found[0])]).unwrap();
    assert_eq!(settled.failed, [(0, LeaseError::Unknown)]);
}

#[tokio::test]
async fn an_extended_lease_ends_later() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    bench.put(queue, "m").await;
    bench.put(queue, "marker").await;
    let short = bench
        .engine
        .consumer(
            queue,
            ConsumerOptions { lease: Some(Duration::from_secs(1)), ..ConsumerOptions::default() },
        )
        .unwrap();
    let leased = take(&*short, 2).await;
    let extended = bench.engine.extend(queue, &[lease_of(&leased[0])], Duration::from_secs(60)).unwrap();
    assert_eq!(extended, []);
    let other = bench.consumer(queue);
    let lost = take(&*other, 2).await;
    assert_eq!(
        lost.iter().map(text).collect::<Vec<_>>(),
        ["marker"],
        "only the lease that was not extended ended"
    );
    bench.settle(queue, &leased[..1]).await;
}

#[tokio::test]
async fn a_lease_of_an_earlier_start_holds_while_nobody_else_has_the_message() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    bench.put(queue, "a").await;
    bench.put(queue, "b").await;
    let leased = {
        let consumer = bench.consumer(queue);
        let leased = take(&*consumer, 2).await;
        std::mem::forget(consumer);
        leased
    };
    // A consumer that is never dropped keeps the engine: open the same data as another start would.
    let bench = bench.reopen_leaking();
    let old = |at: usize| LeaseRef { earlier_boot: true, ..lease_of(&leased[at]) };
    let settled = bench.engine.settle(queue, &[old(0)]).unwrap();
    assert_eq!(settled.failed, []);
    within("the settlement", settled.durable).await.unwrap();
    let consumer = bench.consumer(queue);
    let again = take(&*consumer, 2).await;
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), ["b"]);
    let settled = bench.engine.settle(queue, &[old(1), old(0)]).unwrap();
    assert_eq!(settled.failed, [(0, LeaseError::Expired), (1, LeaseError::Unknown)]);
}

#[tokio::test]
async fn a_delayed_message_is_never_early() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    let due = unix_now().after(Duration::from_secs(1));
    bench.put_with(Append { not_before: Some(due), ..Append::to(queue) }, "later").await;
    bench.put(queue, "now").await;
    let bench = bench.reopen();
    let consumer = bench.consumer(queue);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        for leased in take(&*consumer, 1).await {
            assert!(text(&leased) == "now" || unix_now() >= due, "it came early");
            seen.push(text(&leased));
        }
    }
    seen.sort();
    assert_eq!(seen, ["later", "now"]);
}

#[tokio::test]
async fn an_expired_message_is_not_delivered() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    let soon = unix_now().after(Duration::from_millis(50));
    bench.put_with(Append { expires_at: Some(soon), ..Append::to(queue) }, "stale").await;
    bench.put(queue, "fresh").await;
    // Another queue tells when it is over: an expiry may be kept in tenths of a second, rounded up.
    let clock = bench.queue("clock").await;
    let over = soon.after(Duration::from_millis(100));
    bench.put_with(Append { not_before: Some(over), ..Append::to(clock) }, "over").await;
    take(&*bench.consumer(clock), 1).await;
    let leased = take(&*bench.consumer(queue), 1).await;
    assert_eq!(text(&leased[0]), "fresh");
}

#[tokio::test]
async fn a_higher_priority_goes_first_where_the_queue_says_so() {
    for (priorities, expected) in [(true, ["high", "mid", "low"]), (false, ["low", "high", "mid"])] {
        let bench = Bench::new();
        let queue = bench.queue_with(QueueSpec { priorities, ..spec("q") }).await;
        for (level, payload) in [(0, "low"), (9, "high"), (4, "mid")] {
            let priority = Priority::new(level).unwrap();
            bench.put_with(Append { priority, ..Append::to(queue) }, payload).await;
        }
        let bench = bench.reopen();
        assert_eq!(bench.drain(queue).await, expected);
    }
}

#[tokio::test]
async fn retained_values_are_replaced_and_cleared() {
    let bench = Bench::new();
    for payload in ["old", "new"] {
        bench.commit(retain(bench.message("a", payload))).await;
        bench.commit(retain(bench.message("b", payload))).await;
    }
    bench.commit(retain(bench.message("b", ""))).await;
    let bench = bench.reopen();
    let retained = bench.engine.stored().retained;
    let seen: Vec<_> = retained.iter().map(|m| (m.topic.as_str(), &*m.payload)).collect();
    assert_eq!(seen, [("a", b"new".as_slice())]);
    bench.commit(retain(bench.message("a", ""))).await;
    assert!(bench.reopen().engine.stored().retained.is_empty());
}

#[tokio::test]
async fn of_retained_values_that_nobody_waits_for_the_newest_is_kept() {
    let bench = Bench::new();
    let ops = (0..100).map(|n| match retain(bench.message("a", n.to_string())) {
        Op::Publish(publish) => Op::Publish(stafett::engine::Publish { newest_only: true, ..publish }),
        other => other,
    });
    within("the commit", bench.engine.commit(ops.collect())).await.unwrap();
    let retained = bench.reopen().engine.stored().retained;
    assert_eq!(retained.len(), 1);
    assert_eq!(&*retained[0].payload, b"99");
}

#[tokio::test]
async fn sessions_keep_their_subscriptions_and_packet_ids() {
    let bench = Bench::new();
    let session = bench.session("s", 10).await;
    let filter = |text: &str| FilterSpec::parse(&text.into()).unwrap();
    let options = SubscribeOptions {
        max_qos: Qos::ExactlyOnce,
        retain_handling: RetainHandling::SendIfNew,
        ..SubscribeOptions::default()
    };
    bench.commit(Op::Subscribe(session, filter("a/+"), options)).await;
    bench.commit(Op::Subscribe(session, filter("$share/g/b"), SubscribeOptions::default())).await;
    bench.commit(Op::Unsubscribe(session, filter("$share/g/b"))).await;
    for packet_id in [7, 8] {
        let Op::Publish(publish) = bench.publish(&[], "in") else { unreachable!() };
        let op = Op::Publish(stafett::engine::Publish { incoming: Some((session, packet_id)), ..publish });
        bench.commit(op).await;
    }
    bench.commit(Op::ReleaseIncoming { session, packet_id: 8 }).await;
    bench.put(session, "out").await;
    let sequence = {
        let consumer = bench.engine.consumer(session, ConsumerOptions::default()).unwrap();
        let leased = take(&*consumer, 1).await;
        for state in [OutgoingState::Sent, OutgoingState::Settled, OutgoingState::Received] {
            let outgoing = Outgoing { packet_id: 3, state };
            bench.commit(Op::Outgoing { target: session, sequence: leased[0].sequence, outgoing }).await;
        }
        leased[0].sequence
    };
    let bench = bench.reopen();
    let stored = bench.engine.stored();
    let found = &stored.sessions[0];
    assert_eq!(found.subscriptions, [(filter("a/+"), options)]);
    assert_eq!(found.incoming, [7]);
    let consumer = bench.engine.consumer(session, ConsumerOptions::default()).unwrap();
    let leased = take(&*consumer, 1).await;
    assert_eq!(leased[0].sequence, sequence);
    assert_eq!(leased[0].outgoing, Some(Outgoing { packet_id: 3, state: OutgoingState::Received }));
    assert_eq!(leased[0].lease_expires, None);
}

#[tokio::test]
async fn a_deleted_target_is_gone_with_all_it_held() {
    let bench = Bench::new();
    let (gone, kept) = (bench.queue("gone").await, bench.queue("kept").await);
    bench.commit(bench.publish(&[gone, kept], "m")).await;
    let consumer = bench.consumer(gone);
    assert_eq!(bench.commit(Op::Delete(gone)).await, Outcome::Done);
    within("the wake", consumer.ready().heard()).await;
    let error = consumer.take(1, 1, &mut Vec::new()).unwrap_err();
    assert_eq!(error, EngineError::NoSuchTarget(gone));
    assert_eq!(refusal(bench.commit(bench.publish(&[gone], "m")).await), Refusal::Gone(gone));
    assert!(matches!(bench.commit(bench.publish(&[kept, gone], "2")).await, Outcome::Published(_)));
    drop(consumer);
    let bench = bench.reopen();
    assert_eq!(bench.engine.stored().queues.len(), 1);
    assert_eq!(bench.drain(kept).await, ["m", "2"]);
    assert!(bench.engine.next_target() > kept, "a target's number is never used again");
}

#[tokio::test]
async fn a_move_takes_here_and_puts_there_at_once() {
    let bench = Bench::new();
    let (from, to) = (bench.queue("from").await, bench.queue("to").await);
    bench.put(from, "m").await;
    {
        let consumer = bench.consumer(from);
        let leased = take(&*consumer, 1).await;
        let sequence = leased[0].sequence;
        let mut message = leased[0].message.clone();
        message.payload = "moved".into();
        let (view, priority) = (View::Leased, Priority::default());
        let op = Op::Move { from, sequence, view, to, message, priority };
        assert!(matches!(bench.commit(op.clone()).await, Outcome::Published(_)));
        assert_eq!(refusal(bench.commit(op).await), Refusal::NotLeased, "once is enough");
    }
    let bench = bench.reopen();
    assert_eq!(bench.drain(from).await, Vec::<String>::new());
    assert_eq!(bench.drain(to).await, ["moved"]);
}

#[tokio::test]
async fn a_move_takes_what_waits_and_the_bounds_of_its_queue_hold() {
    let bench = Bench::new();
    let from = bench.queue("from").await;
    let to = bench.queue_with(QueueSpec { max_messages: 1, ..spec("to") }).await;
    let mut places = Vec::new();
    for n in 0..4 {
        places.push(bench.put(from, n.to_string()).await);
    }
    let consumer = bench.consumer(from);
    let mut leased = Vec::new();
    consumer.take(1, usize::MAX, &mut leased).unwrap();
    let op = |at: usize| Op::Move {
        from,
        sequence: places[at],
        view: View::Ready,
        to,
        message: bench.message("t", at.to_string()),
        priority: Priority::default(),
    };
    assert_eq!(refusal(bench.commit(op(0)).await), Refusal::NotLeased, "it is with a consumer");
    assert!(matches!(bench.commit(op(2)).await, Outcome::Published(_)));
    let full = Refusal::Full { target: to, bound: "max_messages 1".into() };
    assert_eq!(refusal(bench.commit(op(1)).await), full);
    assert_eq!(refusal(bench.commit(op(2)).await), full, "there is no room, whatever was there");
    drop(consumer);
    let bench = bench.reopen();
    assert_eq!(bench.drain(from).await, ["0", "1", "3"]);
    assert_eq!(bench.drain(to).await, ["2"]);
}

/// What the broker keeps for itself has no bound, and what is known of its messages is as for a session's.
#[tokio::test]
async fn a_backlog_comes_back_with_its_marks() {
    let bench = Bench::new();
    let id = bench.engine.next_target();
    let spec = BacklogSpec { name: "own".into() };
    assert_eq!(bench.commit(Op::Define(id, Definition::Backlog(spec.clone()))).await, Outcome::Done);
    for n in 0..3 {
        bench.put(id, n.to_string()).await;
    }
    let marked = |packet_id| Outgoing { packet_id, state: OutgoingState::Sent };
    let sequences: Vec<_> = {
        let consumer = bench.consumer(id);
        let leased = take(&*consumer, 3).await;
        for (leased, packet_id) in leased.iter().zip([1, 1]) {
            let outgoing = marked(packet_id);
            let op = Op::Outgoing { target: id, sequence: leased.sequence, outgoing };
            assert_eq!(bench.commit(op).await, Outcome::Done);
        }
        let op = Op::Outgoing { target: id, sequence: leased[1].sequence, outgoing: marked(0) };
        assert_eq!(bench.commit(op).await, Outcome::Done);
        leased.iter().map(|leased| leased.sequence).collect()
    };
    let bench = bench.reopen();
    assert_eq!(bench.engine.stored().backlogs, [(id, spec)]);
    let consumer = bench.consumer(id);
    let leased = take(&*consumer, 3).await;
    let back: Vec<_> = leased.iter().map(|leased| (leased.sequence, leased.outgoing)).collect();
    let expected = [Some(marked(1)), Some(marked(0)), None];
    assert_eq!(back, sequences.into_iter().zip(expected).collect::<Vec<_>>());
}

#[tokio::test]
async fn browse_and_purge_go_by_view() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    for n in 0..5 {
        bench.put(queue, n.to_string()).await;
    }
    let later = unix_now().after(Duration::from_secs(3600));
    bench.put_with(Append { not_before: Some(later), ..Append::to(queue) }, "later").await;
    let consumer = bench.consumer(queue);
    let mut leased = Vec::new();
    consumer.take(2, usize::MAX, &mut leased).unwrap();
    let browse = async |view, from, max| {
        let page = within("a browse", bench.engine.browse(queue, view, from, max, usize::MAX)).await.unwrap();
        page.messages
            .iter()
            .map(|b| String::from_utf8(b.message.payload.to_vec()).unwrap())
            .collect::<Vec<_>>()
    };
    let first = Sequence(0);
    assert_eq!(browse(View::All, first, 100).await, ["0", "1", "2", "3", "4", "later"]);
    assert_eq!(browse(View::Leased, first, 100).await, ["0", "1"]);
    assert_eq!(browse(View::Delayed, first, 100).await, ["later"]);
    assert_eq!(browse(View::Ready, first, 2).await, ["2", "3"]);
    assert_eq!(browse(View::Ready, Sequence(leased[1].sequence.0 + 2), 100).await, ["3", "4"]);
    let purged = within("a purge", bench.engine.purge(queue, View::Ready).unwrap()).await.unwrap();
    assert_eq!(purged, 3);
    bench.settle(queue, &leased).await;
    drop(consumer);
    let bench = bench.reopen();
    let stats = bench.engine.stats(queue).unwrap();
    assert_eq!((stats.ready, stats.delayed, stats.leased), (0, 1, 0));
}

#[tokio::test]
async fn single_messages_are_removed_where_they_wait() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    let mut places = Vec::new();
    for n in 0..8 {
        places.push(bench.put(queue, n.to_string()).await);
    }
    let later = unix_now().after(Duration::from_secs(3600));
    let delayed = bench.put_with(Append { not_before: Some(later), ..Append::to(queue) }, "later").await;
    let consumer = bench.consumer(queue);
    let mut leased = Vec::new();
    consumer.take(1, usize::MAX, &mut leased).unwrap();
    let remove = async |view, sequences: &[Sequence]| {
        let removed = bench.engine.remove(queue, view, sequences).unwrap();
        within("a removal", removed.durable).await.unwrap();
        removed.sequences
    };
    assert_eq!(remove(View::Ready, &[delayed, places[0], places[3], places[4]]).await, places[3..5]);
    assert_eq!(remove(View::Ready, &[places[3]]).await, []);
    assert_eq!(remove(View::Delayed, &[places[6], delayed]).await, [delayed]);
    assert_eq!(remove(View::All, &[places[7], places[0]]).await, [places[7]]);
    let stats = bench.engine.stats(queue).unwrap();
    assert_eq!((stats.ready, stats.delayed, stats.leased), (4, 0, 1));
    let left = ["1", "2", "5", "6"];
    let page = within("a browse", bench.engine.browse(queue, View::Ready, Sequence(0), 2, usize::MAX));
    let page = page.await.unwrap();
    assert_eq!((page.messages.len(), page.next), (2, Some(places[5])));
    drop(consumer);
    let bench = bench.reopen();
    assert_eq!(bench.drain(queue).await, [&["0"], &left[..]].concat());
}

#[tokio::test]
async fn a_paused_queue_gives_nothing_until_it_goes_on() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    bench.put(queue, "held").await;
    bench.put(queue, "waits").await;
    let define = |paused| Op::Define(queue, Definition::Queue(QueueSpec { paused, ..spec("q") }));
    let (holder, waiter) = (bench.consumer(queue), bench.consumer(queue));
    let held = take(&*holder, 1).await;
    assert_eq!(bench.commit(define(true)).await, Outcome::Done);
    assert!(take_now(&*waiter).is_empty() && take_now(&*holder).is_empty());
    bench.put(queue, "new").await;
    bench.settle(queue, &held).await;
    assert!(take_now(&*waiter).is_empty());
    drop((holder, waiter));

    let bench = bench.reopen();
    let waiter = bench.consumer(queue);
    assert!(take_now(&*waiter).is_empty());
    let (leased, outcome) = tokio::join!(take(&*waiter, 2), bench.commit(define(false)));
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(leased.iter().map(text).collect::<Vec<_>>(), ["waits", "new"]);
}

#[tokio::test]
async fn the_oldest_is_that_with_the_first_place_wherever_it_is() {
    let bench = Bench::small_cache();
    let queue = bench.queue("q").await;
    let oldest = async |bench: &Bench| within("the oldest", bench.engine.oldest(queue)).await.unwrap();
    assert_eq!(oldest(&bench).await, None);
    let ids: Vec<_> = (1..=3).map(|day| MessageIds::new().next(UnixMillis(day * 86_400_000))).collect();
    let later = unix_now().after(Duration::from_secs(3600));
    for (at, &id) in ids.iter().enumerate() {
        let not_before = (at == 0).then_some(later);
        let message = Message { id, ..bench.message("t", "m") };
        bench.commit(publish(message, [Append { not_before, ..Append::to(queue) }])).await;
    }
    // What was stored since has pushed them out of memory.
    let other = bench.queue("other").await;
    for _ in 0..12 {
        bench.put(other, vec![0; 1 << 20]).await;
    }
    assert_eq!(oldest(&bench).await, Some(ids[0].time()), "delayed");
    within("a purge", bench.engine.purge(queue, View::Delayed).unwrap()).await.unwrap();
    assert_eq!(oldest(&bench).await, Some(ids[1].time()), "ready");
    let leased = take(&*bench.consumer(queue), 1).await;
    assert_eq!(leased[0].message.id, ids[1]);
    let consumer = bench.consumer(queue);
    let leased = take(&*consumer, 1).await;
    assert_eq!(oldest(&bench).await, Some(ids[1].time()), "leased");
    bench.settle(queue, &leased).await;
    assert_eq!(oldest(&bench).await, Some(ids[2].time()));
}

#[tokio::test]
async fn a_publish_to_nobody_is_fine() {
    let bench = Bench::new();
    let outcome = bench.commit(publish(bench.message("t", "m"), [])).await;
    assert_eq!(outcome, Outcome::Published(Default::default()));
}

/// A consumer that is lost with all that it has, `times` times in a row.
async fn lose(bench: &Bench, queue: TargetId, count: usize, times: u32) {
    for _ in 0..times {
        let consumer = bench.consumer(queue);
        assert_eq!(take_now(&*consumer).len(), count);
        consumer.release_all(true);
    }
}

#[tokio::test]
async fn what_was_lost_twice_is_handed_out_alone_and_spares_its_neighbours() {
    let bench = Bench::new();
    let dead = bench.queue("dead").await;
    let queue = bench.queue_with(with_dead_letters("q", 3, "dead")).await;
    for n in ["poison", "1", "2"] {
        bench.put(queue, n).await;
    }
    lose(&bench, queue, 3, 2).await;
    // It counts over a restart too.
    let bench = bench.reopen();
    bench.put(queue, "3").await;

    let (one, two) = (bench.consumer(queue), bench.consumer(queue));
    let poison = take(&*one, 10).await;
    assert_eq!(poison.iter().map(text).collect::<Vec<_>>(), ["poison"]);
    assert_eq!(poison[0].attempt, 3);
    assert!(take_now(&*one).is_empty(), "nothing beside it");
    let first = take(&*two, 10).await;
    assert_eq!(first.iter().map(text).collect::<Vec<_>>(), ["1"]);
    one.release_all(true);
    let graves = bench.consumer(dead);
    assert_eq!(take(&*graves, 10).await.iter().map(text).collect::<Vec<_>>(), ["poison"]);

    // Given back, it is the first again: its neighbours wait for it.
    two.release_all(false);
    let mut survived = Vec::new();
    for _ in 0..3 {
        let leased = take(&*two, 10).await;
        assert_eq!(leased.len(), 1);
        survived.extend(leased.iter().map(text));
        bench.settle(queue, &leased).await;
    }
    assert_eq!(survived, ["1", "2", "3"]);
    assert_eq!(bench.engine.stats(dead).unwrap().leased, 1, "nothing else was buried");
}

#[tokio::test]
async fn a_consumer_with_something_in_flight_waits_before_what_is_handed_out_alone() {
    let bench = Bench::new();
    bench.queue("dead").await;
    let queue = bench.queue_with(with_dead_letters("q", 9, "dead")).await;
    bench.put(queue, "suspect").await;
    lose(&bench, queue, 1, 2).await;
    let suspect = bench.consumer(queue);
    let held = take(&*suspect, 1).await;
    for n in 0..4 {
        bench.put(queue, n.to_string()).await;
    }
    let busy = bench.consumer(queue);
    let mut in_flight = Vec::new();
    busy.take(2, usize::MAX, &mut in_flight).unwrap();
    assert_eq!(in_flight.iter().map(text).collect::<Vec<_>>(), ["0", "1"]);
    drop(bench.engine.nack(queue, &[lease_of(&held[0])], Nack::Release, None).unwrap());

    // It stands first: who has something else gets neither it nor what is behind it, until he has nothing.
    assert!(take_now(&*busy).is_empty());
    bench.settle(queue, &in_flight[..1]).await;
    assert!(take_now(&*busy).is_empty());
    bench.settle(queue, &in_flight[1..]).await;
    within("to be woken", busy.ready().heard()).await;
    let alone = take_now(&*busy);
    assert_eq!(alone.iter().map(text).collect::<Vec<_>>(), ["suspect"]);

    // Somebody else goes on behind it meanwhile, and the holder when it is settled.
    let other = bench.consumer(queue);
    let mut next = Vec::new();
    other.take(1, usize::MAX, &mut next).unwrap();
    assert_eq!(next.iter().map(text).collect::<Vec<_>>(), ["2"]);
    assert!(take_now(&*busy).is_empty());
    bench.settle(queue, &alone).await;
    within("to be woken", busy.ready().heard()).await;
    assert_eq!(take_now(&*busy).iter().map(text).collect::<Vec<_>>(), ["3"]);
}

#[tokio::test]
async fn who_is_held_up_goes_on_when_another_takes_what_held_him_up() {
    let bench = Bench::new();
    bench.queue("dead").await;
    let queue = bench.queue_with(with_dead_letters("q", 9, "dead")).await;
    bench.put(queue, "suspect").await;
    lose(&bench, queue, 1, 2).await;
    let first = bench.consumer(queue);
    let held = take(&*first, 1).await;
    bench.put(queue, "0").await;
    bench.put(queue, "1").await;
    let busy = bench.consumer(queue);
    let mut in_flight = Vec::new();
    busy.take(1, usize::MAX, &mut in_flight).unwrap();
    drop(bench.engine.nack(queue, &[lease_of(&held[0])], Nack::Release, None).unwrap());
    assert!(take_now(&*busy).is_empty());
    let idle = bench.consumer(queue);
    assert_eq!(take(&*idle, 10).await.iter().map(text).collect::<Vec<_>>(), ["suspect"]);
    within("to be woken", busy.ready().heard()).await;
    assert_eq!(take_now(&*busy).iter().map(text).collect::<Vec<_>>(), ["1"]);
}

#[tokio::test]
async fn where_nothing_is_buried_nothing_is_handed_out_alone() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    for n in 0..3 {
        bench.put(queue, n.to_string()).await;
    }
    lose(&bench, queue, 3, 3).await;
    assert_eq!(take_now(&*bench.consumer(queue)).len(), 3);
}

#[tokio::test]
async fn an_expiry_that_lies_beside_the_message_is_seen_and_moved_with_it() {
    let bench = Bench::new();
    let (from, to) = (bench.queue("from").await, bench.queue("to").await);
    // As a queue's own time to live does to a copy that a binding puts in.
    let at = unix_now().after(Duration::from_secs(3600));
    let sequence = bench.put_with(Append { expires_at: Some(at), ..Append::to(from) }, "m").await;
    let page = bench.engine.browse(from, View::Ready, Sequence(0), 1, usize::MAX);
    let message = within("a browse", page).await.unwrap().messages.remove(0).message;
    let near = |found: Option<UnixMillis>| found.is_some_and(|found| found.0.abs_diff(at.0) < 100);
    assert!(near(message.expires_at), "{:?}", message.expires_at);
    let (view, priority) = (View::Ready, Priority::default());
    bench.commit(Op::Move { from, sequence, view, to, message, priority }).await;
    let bench = bench.reopen();
    let leased = take(&*bench.consumer(to), 1).await;
    assert!(near(leased[0].message.expires_at));
}
