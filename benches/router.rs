//! What the router costs: matching among many other subscriptions, subscribing while others publish,
//! and a million subscribers below one node.
//!
//! `cargo bench --bench router` first prints a report (ratios and percentiles, which criterion does
//! not give) and then runs the criterion groups; with a filter or options behind `--` it leaves the
//! report out.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time, and runs no server")]
#![allow(clippy::expect_used, reason = "a benchmark may stop at the first surprise")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytestring::ByteString;
use criterion::{BatchSize, Criterion, criterion_group};
use stafett::core::router::{Change, RouteCache, Router, Snapshot};
use stafett::types::topic::{TopicFilter, TopicName};

type Subscribers = Router<u64, Arc<str>>;

const MILLION: u64 = 1_000_000;
/// How many topics the publisher goes through: more than fit the processor's nearest caches.
const TOPICS: u64 = 4_096;

fn insert(filter: String, key: u64, value: &Arc<str>) -> Change<u64, Arc<str>> {
    let filter = TopicFilter::parse(ByteString::from(filter)).expect("a filter");
    Change::Insert { filter, key, value: Arc::clone(value) }
}

fn remove(filter: String, key: u64) -> Change<u64, Arc<str>> {
    Change::Remove { filter: TopicFilter::parse(ByteString::from(filter)).expect("a filter"), key }
}

fn topic(text: String) -> TopicName {
    TopicName::parse(ByteString::from(text)).expect("a topic")
}

/// Adds `changes` in batches, as a busy server would.
fn fill(router: &Subscribers, changes: impl Iterator<Item = Change<u64, Arc<str>>>) {
    let mut changes = changes.peekable();
    while changes.peek().is_some() {
        router.apply(changes.by_ref().take(1_024).collect());
    }
}

/// A router where `site/7/line/3/temp` goes to four subscribers and `others` subscriptions want other
/// topics: some far away, some of the same site and line.
fn among(others: u64) -> Subscribers {
    let (router, value) = (Router::new(), Arc::from("options"));
    for (key, filter) in
        ["site/7/line/3/temp", "site/+/line/+/temp", "site/7/#", "+/+/line/3/+"].iter().enumerate()
    {
        router.apply(vec![insert((*filter).to_owned(), key as u64, &value)]);
    }
    fill(
        &router,
        (0..others).map(|n| {
            let filter = match n % 4 {
                0 => format!("dev/{n}/cmd"),
                1 => format!("site/7/line/3/sensor-{n}"),
                2 => format!("site/{}/line/+/state", n + 8),
                _ => format!("+/{n}/alarm/#"),
            };
            insert(filter, n, &value)
        }),
    );
    router
}

/// A router with one subscriber on each of a million children of one node.
fn devices(first: u64) -> Subscribers {
    let (router, value) = (Router::new(), Arc::from("options"));
    fill(&router, (0..first).map(|n| insert(format!("dev/{n}/cmd"), n, &value)));
    router
}

fn count(snapshot: &Snapshot<u64, Arc<str>>, topic: &TopicName) -> usize {
    let mut targets = 0;
    snapshot.matches(black_box(topic), &mut |key, value| {
        black_box((key, value));
        targets += 1;
    });
    targets
}

/// The least time of a match over several rounds, in nanoseconds.
fn match_ns(router: &Subscribers) -> f64 {
    let topic = topic("site/7/line/3/temp".to_owned());
    let round = || {
        let start = Instant::now();
        for _ in 0..100_000 {
            assert_eq!(count(&router.load(), &topic), 4);
        }
        start.elapsed().as_nanos() as f64 / 100_000.0
    };
    (0..15).map(|_| round()).fold(f64::INFINITY, f64::min)
}

/// Matches topics of many devices in a loop and returns how long each match took, sorted.
fn publish_for(router: &Subscribers, duration: Duration) -> Vec<u32> {
    let topics: Vec<_> = (0..TOPICS).map(|n| topic(format!("dev/{}/cmd", n * 7_919 % MILLION))).collect();
    let mut times = Vec::with_capacity(16_000_000);
    let (start, mut last) = (Instant::now(), Instant::now());
    for topic in topics.iter().cycle() {
        assert_eq!(count(&router.load(), topic), 1);
        let now = Instant::now();
        if times.len() < times.capacity() {
            times.push((now - last).as_nanos() as u32);
        }
        if now - start > duration {
            break;
        }
        last = now;
    }
    times.sort_unstable();
    times
}

fn percentile<T: Copy + Default>(sorted: &[T], percent: f64) -> T {
    let at = (sorted.len() as f64 * percent / 100.0) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn print_times(what: &str, sorted: &[u32]) {
    let at = |percent| percentile(sorted, percent);
    println!(
        "  {what:<44} p50 {:>5} ns   p99 {:>5} ns   p99.9 {:>6} ns   {:>9} matches",
        at(50.0),
        at(99.0),
        at(99.9),
        sorted.len()
    );
}

/// Subscribes ten devices each millisecond, one change per call as connections do, until told to
/// stop. Returns how long each caller waited, sorted, and how many there were per second.
fn subscribe_until(router: &Arc<Subscribers>, stop: &AtomicBool) -> (Vec<Duration>, f64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let value: Arc<str> = Arc::from("options");
    runtime.block_on(async {
        let mut callers = tokio::task::JoinSet::new();
        let (mut waits, mut next, start) = (Vec::new(), MILLION, Instant::now());
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        while !stop.load(Ordering::Relaxed) {
            tick.tick().await;
            for _ in 0..10 {
                let (router, change) = (Arc::clone(router), insert(format!("dev/{next}/cmd"), next, &value));
                next += 1;
                callers.spawn(async move {
                    let start = Instant::now();
                    router.subscribe(change).await.expect("a batch");
                    start.elapsed()
                });
            }
            while let Some(waited) = callers.try_join_next() {
                waits.push(waited.expect("no panic"));
            }
        }
        let rate = waits.len() as f64 / start.elapsed().as_secs_f64();
        waits.sort_unstable();
        (waits, rate)
    })
}

/// The memory that is resident, where the system says so.
fn resident_bytes() -> Option<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split(' ').nth(1)?.parse::<f64>().ok()? * 4_096.0)
}

fn report() {
    let (start, before) = (Instant::now(), resident_bytes());
    let router = Arc::new(devices(MILLION));
    let rate = MILLION as f64 / start.elapsed().as_secs_f64();
    println!("1 000 000 subscribers on distinct children of one node:");
    println!("  {rate:.0} subscribes/s in batches of 1 024");
    if let Some(bytes) = resident_bytes().zip(before).map(|(after, before)| after - before) {
        println!("  about {:.0} bytes resident per subscription", bytes / MILLION as f64);
    }

    println!("publisher in a loop, 1 000 000 subscriptions:");
    print_times("nobody subscribes", &publish_for(&router, Duration::from_secs(4)));
    let stop = AtomicBool::new(false);
    let (waits, rate) = thread::scope(|scope| {
        let subscribing = scope.spawn(|| subscribe_until(&router, &stop));
        print_times("ten single subscribes each millisecond", &publish_for(&router, Duration::from_secs(4)));
        stop.store(true, Ordering::Relaxed);
        subscribing.join().expect("no panic")
    });
    println!(
        "  {rate:.0} subscribes/s, each waited p50 {:?}, p99 {:?}; {} snapshots in all",
        percentile(&waits, 50.0),
        percentile(&waits, 99.0),
        router.load().version()
    );
    drop(router);

    let (few, many) = (match_ns(&among(1_000)), match_ns(&among(MILLION)));
    println!("match of 4 targets, least of 15 rounds:");
    println!(
        "  among 1 000 others {few:.0} ns, among 1 000 000 others {many:.0} ns: ratio {:.2}",
        many / few
    );
}

fn matching(c: &mut Criterion) {
    let mut group = c.benchmark_group("match");
    let wanted = topic("site/7/line/3/temp".to_owned());
    for (name, others) in [("among 1k others", 1_000), ("among 1M others", MILLION)] {
        let router = among(others);
        group.bench_function(name, |b| b.iter(|| count(&router.load(), &wanted)));
        if others == MILLION {
            let mut cache = RouteCache::default();
            cache.get_or_insert_with(&router.load(), &wanted, || Arc::from([1_u64, 2, 3, 4]));
            group.bench_function("cached", |b| {
                b.iter(|| cache.get(&router.load(), black_box(&wanted)).map(|targets| targets.len()));
            });
        }
    }
    let popular = Subscribers::new();
    let value = Arc::from("options");
    fill(&popular, (0..100_000).map(|n| insert("news".to_owned(), n, &value)));
    let news = topic("news".to_owned());
    group.bench_function("100k subscribers of one filter", |b| b.iter(|| count(&popular.load(), &news)));
    group.finish();
}

fn changing(c: &mut Criterion) {
    let mut group = c.benchmark_group("change");
    let value: Arc<str> = Arc::from("options");
    for (name, first) in [("among 1k siblings", 1_000), ("among 1M siblings", MILLION)] {
        let (router, mut next) = (devices(first), first);
        group.bench_function(format!("insert and remove {name}"), |b| {
            b.iter(|| {
                next += 1;
                router.apply(vec![insert(format!("dev/{next}/cmd"), next, &value)]);
                router.apply(vec![remove(format!("dev/{next}/cmd"), next)])
            });
        });
        group.bench_function(format!("batch of 256 {name}"), |b| {
            let batch =
                |n: u64| (n..n + 256).map(|n| insert(format!("dev/{n}/cmd"), n, &value)).collect::<Vec<_>>();
            b.iter_batched(
                || {
                    router.apply((first..first + 256).map(|n| remove(format!("dev/{n}/cmd"), n)).collect());
                    batch(first)
                },
                |changes| router.apply(changes),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, matching, changing);

fn main() {
    // `cargo test` runs benchmarks too, to see that they work, and without this argument.
    if std::env::args().skip(1).eq(["--bench"]) {
        report();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
