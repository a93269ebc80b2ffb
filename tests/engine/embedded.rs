//! What the embedded engine promises beyond the suite: its directory, its rows, its memory.

use stafett::engine::embedded::Embedded;
use stafett::engine::{Definition, Durability, Engine, Op, OpenError, QueueSpec, Ticket};
use stafett::types::{Sequence, TargetId};

use crate::bench::{Bench, settings, spec, stored, take, text, within};

#[test]
fn a_store_has_one_process() {
    let bench = Bench::new();
    let error = Embedded::open(settings(bench.path(), Durability::Fsync)).unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = Embedded::open(settings(&path, Durability::Fsync)).unwrap_err();
        assert!(matches!(error, OpenError::Unusable { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn large_messages_make_no_files_of_their_own() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    let sizes = [0, 1, 4000, 8191, 8192, 8193, 15_360, 16_384, 100_000, 3_000_000];
    for size in sizes {
        bench.put(queue, vec![b'x'; size]).await;
    }
    let bench = bench.reopen();
    let consumer = bench.consumer(queue);
    for size in sizes {
        assert_eq!(take(&*consumer, 1).await[0].message.payload.len(), size);
    }
    let blobs = std::fs::read_dir(bench.path().join("store/blobs")).map_or(0, Iterator::count);
    assert_eq!(blobs, 0, "sled never syncs its blob files");
}

#[tokio::test]
async fn a_commit_of_ones_own_comes_behind_what_was_handed_in_before() {
    for durability in [Durability::Fsync, Durability::Interval, Durability::Memory] {
        commits_of_ones_own(Bench::with(durability)).await;
    }
}

async fn commits_of_ones_own(bench: Bench) {
    let queue = bench.queue("q").await;
    let alone = || match bench.publish(&[queue], "alone") {
        Op::Publish(publish) => bench.engine.commit_alone(publish),
        _ => unreachable!("a publish is a publish"),
    };
    let (mut last, mut own) = (Sequence(0), 0);
    for round in 0..60 {
        let mut tickets = Vec::new();
        for at in 0..8 {
            if at == 7 && round % 2 == 0 {
                tickets.push(bench.engine.commit(vec![bench.publish(&[queue], "waits")]));
            }
            let mut ticket = alone();
            match ticket.try_now() {
                Some(done) => {
                    own += 1;
                    tickets.push(Ticket::ready(done));
                }
                None if at < 7 => tickets.push(Ticket::ready(within("a commit", ticket).await)),
                None => tickets.push(ticket),
            }
        }
        for ticket in tickets {
            let sequence = stored(&within("a commit", ticket).await.unwrap()[0]);
            assert!(sequence > last, "{sequence:?} after {last:?}");
            last = sequence;
        }
    }
    assert!(own > 0, "no caller committed by itself");
    let bench = bench.reopen();
    let consumer = bench.consumer(queue);
    let mut left = 60 * 8 + 30;
    while left > 0 {
        left -= take(&*consumer, left).await.len();
    }
}

#[tokio::test]
async fn a_backlog_beyond_the_memory_is_read_back_in_order() {
    let bench = Bench::small_cache();
    let queue = bench.queue("q").await;
    let body = "x".repeat(1000);
    for batch in 0..20 {
        let ops =
            (0..1000).map(|n| bench.publish(&[queue], format!("{:06}{body}", batch * 1000 + n))).collect();
        within("the commit", bench.engine.commit(ops)).await.unwrap();
    }
    let consumer = bench.consumer(queue);
    let mut next = 0;
    while next < 20_000 {
        let leased = take(&*consumer, 500).await;
        for leased in &leased {
            assert_eq!(text(leased)[..6], format!("{next:06}"));
            next += 1;
        }
        bench.settle(queue, &leased).await;
    }
}

#[tokio::test]
async fn what_is_settled_leaves_the_store() {
    let bench = Bench::with(Durability::Memory);
    let (queue, pinned) = (bench.queue("q").await, bench.queue("pinned").await);
    let body = vec![b'x'; 2000];
    bench.put(pinned, "stays").await;
    for round in 0..40 {
        let ops = (0..1000).map(|_| bench.publish(&[queue], body.clone())).collect();
        within("the commit", bench.engine.commit(ops)).await.unwrap();
        if round % 10 == 0 {
            bench.put(pinned, format!("stays {round}")).await;
        }
        assert_eq!(bench.drain(queue).await.len(), 1000);
    }
    let bytes = std::fs::metadata(bench.path().join("store/db")).unwrap().len();
    // 80 MB went through, 2 MB at a time.
    assert!(bytes < 64 << 20, "the file has {bytes} bytes");
    let bench = bench.reopen();
    assert_eq!(bench.drain(pinned).await, ["stays", "stays 0", "stays 10", "stays 20", "stays 30"]);
    assert_eq!(bench.engine.stats(queue).unwrap().ready, 0);
}

#[tokio::test]
async fn sequences_that_an_earlier_start_gave_out_are_not_given_again() {
    let bench = Bench::new();
    let queue = bench.queue("q").await;
    let last = bench.put(queue, "m").await;
    let bench = bench.reopen();
    assert_eq!(bench.drain(queue).await, ["m"]);
    // Its pack goes while others are stored.
    let other = bench.queue("other").await;
    for _ in 0..60 {
        bench.put(other, vec![b'x'; 100_000]).await;
        bench.drain(other).await;
    }
    let bench = bench.reopen();
    let next = bench.put(queue, "next").await;
    assert!(next > last, "{next:?} came again");
}

#[tokio::test]
async fn old_packs_that_are_mostly_dead_are_rewritten() {
    let bench = Bench::with(Durability::Memory);
    let (queue, other) = (bench.queue("q").await, bench.queue_with(QueueSpec { ..spec("other") }).await);
    let ops = (0..2000).map(|n| bench.publish(&[queue], format!("{n:04}{}", "y".repeat(500)))).collect();
    within("the commit", bench.engine.commit(ops)).await.unwrap();
    let consumer = bench.consumer(queue);
    let leased = take(&*consumer, 2000).await;
    let (keep, settle): (Vec<_>, Vec<_>) = leased.into_iter().enumerate().partition(|(n, _)| n % 20 == 0);
    bench.settle(queue, &settle.into_iter().map(|(_, leased)| leased).collect::<Vec<_>>()).await;
    // Enough goes through elsewhere that the packs count as old.
    for _ in 0..12 {
        let ops = (0..1000).map(|_| bench.publish(&[other], vec![b'z'; 2000])).collect();
        within("the commit", bench.engine.commit(ops)).await.unwrap();
        bench.drain(other).await;
    }
    let (first, second) = keep.split_at(50);
    bench.settle(queue, &first.iter().map(|(_, leased)| leased.clone()).collect::<Vec<_>>()).await;
    drop(consumer);
    let bench = bench.reopen();
    let expected: Vec<_> = second.iter().map(|(_, leased)| text(leased)).collect();
    assert_eq!(bench.drain(queue).await, expected);
    assert_eq!(bench.reopen().drain(queue).await, Vec::<String>::new());
}

#[tokio::test]
async fn settlements_survive_with_a_checkpoint_and_without() {
    let mut bench = Bench::with(Durability::Memory);
    let queue = bench.queue("q").await;
    let mut expected: Vec<String> = Vec::new();
    for round in 0..6 {
        let ops =
            (0..300).map(|n| bench.publish(&[queue], format!("{round}-{n}-{}", "x".repeat(700)))).collect();
        within("the commit", bench.engine.commit(ops)).await.unwrap();
        expected.extend((0..300).map(|n| format!("{round}-{n}-{}", "x".repeat(700))));
        let consumer = bench.consumer(queue);
        let leased = take(&*consumer, 10_000).await;
        let (settle, keep): (Vec<_>, Vec<_>) =
            leased.into_iter().enumerate().partition(|(n, _)| n % 3 != round % 3);
        bench.settle(queue, &settle.into_iter().map(|(_, leased)| leased).collect::<Vec<_>>()).await;
        expected = keep.iter().map(|(_, leased)| text(leased)).collect();
        drop(consumer);
        bench = bench.reopen();
    }
    assert_eq!(bench.drain(queue).await, expected);
}

#[test]
fn closing_makes_durable_what_was_not_waited_for() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = Bench::with(Durability::Interval);
    let queue = runtime.block_on(bench.queue("q"));
    drop(bench.engine.commit((0..100).map(|n| bench.publish(&[queue], n.to_string())).collect()));
    let bench = bench.reopen();
    assert_eq!(runtime.block_on(bench.drain(queue)).len(), 100);
    bench.engine.close().unwrap();
    let ticket = bench.engine.commit(vec![bench.publish(&[queue], "late")]);
    assert!(runtime.block_on(async { within("the refusal", ticket).await }).is_err());
}

#[tokio::test]
async fn a_store_that_comes_back_shorter_is_refused() {
    for closed in [true, false] {
        let bench = Bench::new();
        let queue = bench.queue("q").await;
        bench.put(queue, "m").await;
        let old = tempfile::tempdir().unwrap();
        let bench = bench.reopen();
        if closed {
            bench.engine.close().unwrap();
        }
        let db = std::fs::read(bench.path().join("store/db")).unwrap();
        std::fs::create_dir(old.path().join("store")).unwrap();
        for name in ["store/conf", "state"] {
            std::fs::copy(bench.path().join(name), old.path().join(name)).unwrap();
        }
        // What a disk may do to a file: its second half is zeros from here on, or all of it.
        for kept in [0, 600] {
            let mut damaged = db.clone();
            damaged[kept..].fill(0);
            std::fs::write(old.path().join("store/db"), damaged).unwrap();
            let error = Embedded::open(settings(old.path(), Durability::Fsync)).unwrap_err();
            assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        }
    }
}

#[tokio::test]
async fn a_publish_to_thousands_stays_whole_over_a_checkpoint() {
    let bench = Bench::new();
    let queues: Vec<_> = (0..4000).map(|_| bench.engine.next_target()).collect();
    let define = |(n, &id): (usize, &TargetId)| Op::Define(id, Definition::Queue(spec(&format!("q{n}"))));
    within("the queues", bench.engine.commit(queues.iter().enumerate().map(define).collect())).await.unwrap();
    bench.commit(bench.publish(&queues, "to all")).await;
    assert_eq!(bench.drain(queues[0]).await, ["to all"]);
    // Checkpoints are written after so many bytes.
    let other = bench.queue("other").await;
    for _ in 0..12 {
        bench.put(other, vec![b'x'; 8 << 20]).await;
        bench.drain(other).await;
    }
    let bench = bench.reopen();
    assert_eq!(bench.engine.stats(queues[0]).unwrap().ready, 0);
    for queue in &queues[1..] {
        assert_eq!(bench.engine.stats(*queue).unwrap().ready, 1);
    }
}
