//! What an acknowledged enqueue costs, against the least that a disk allows.
//!
//! `cargo bench --bench engine` runs the embedded engine and a raw log in turn, on the same disk with the same
//! bytes: writers that each wait for their ticket, against writers whose bytes one thread appends with one pwrite
//! and one fdatasync for all that wait. It prints the median of several rounds and the ratio. With `profile SHAPE`
//! behind `--` only the engine runs, without pause, for a profiler; with `backlog N` it says how much memory N
//! waiting messages take, with `through N` how fast N messages go through a queue and what is written for them. `STAFETT_BENCH_DIR` names the directory to write to, else the target directory is used;
//! `STAFETT_BENCH_ROUNDS` and `STAFETT_BENCH_SECONDS` say how often and how long.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time, and runs no server")]
#![allow(clippy::expect_used, reason = "a benchmark may stop at the first surprise")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use smallvec::smallvec;
use stafett::engine::embedded::Embedded;
use stafett::engine::{
    Append, ConsumerOptions, Definition, Engine, EngineSettings, LeaseRef, Op, Outcome, Publish, QueueSpec,
    queue_topic,
};
use stafett::types::clock::unix_now;
use stafett::types::{Message, MessageIds, Qos, QueueName, TargetId, TopicName};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Who writes how much at once.
#[derive(Clone, Copy)]
struct Shape {
    writers: usize,
    batch: usize,
    bytes: usize,
    /// The least ratio to the raw log that is wanted.
    goal: Option<f64>,
}

const SHAPES: [Shape; 8] = [
    Shape { writers: 1, batch: 1, bytes: 100, goal: Some(0.6) },
    Shape { writers: 1, batch: 1, bytes: 256, goal: Some(0.6) },
    Shape { writers: 64, batch: 1, bytes: 100, goal: Some(0.5) },
    Shape { writers: 64, batch: 1, bytes: 256, goal: Some(0.5) },
    Shape { writers: 256, batch: 1, bytes: 100, goal: Some(0.35) },
    Shape { writers: 256, batch: 1, bytes: 256, goal: Some(0.35) },
    Shape { writers: 1, batch: 1024, bytes: 256, goal: None },
    Shape { writers: 4, batch: 1024, bytes: 256, goal: None },
];

/// What the stored form of a message has beside topic and payload.
const ENVELOPE: usize = 26;

struct Report {
    per_second: f64,
    median: Duration,
    worst: Duration,
}

fn report(took: Duration, batch: usize, mut waits: Vec<Duration>) -> Report {
    waits.sort_unstable();
    let at = |share: f64| waits.get((waits.len() as f64 * share) as usize).copied().unwrap_or_default();
    Report { per_second: (waits.len() * batch) as f64 / took.as_secs_f64(), median: at(0.5), worst: at(0.99) }
}

/// The least that a disk allows: one thread appends what waits with one write and one sync, and tells who waits.
struct RawLog {
    queue: Mutex<RawQueue>,
    more: Condvar,
}

#[derive(Default)]
struct RawQueue {
    waiting: Vec<(Vec<Bytes>, oneshot::Sender<()>)>,
    closed: bool,
}

impl RawLog {
    fn open(path: &Path) -> (Arc<Self>, std::thread::JoinHandle<()>) {
        let log = Arc::new(Self { queue: Mutex::default(), more: Condvar::new() });
        let (file, writer) = (File::create(path).expect("a file"), Arc::clone(&log));
        (log, std::thread::spawn(move || writer.write_to(&file)))
    }

    fn write_to(&self, file: &File) {
        let (mut packed, mut end) = (Vec::new(), 0);
        loop {
            let waiting = {
                let mut queue = self.queue.lock();
                while queue.waiting.is_empty() {
                    if queue.closed {
                        return;
                    }
                    self.more.wait(&mut queue);
                }
                std::mem::take(&mut queue.waiting)
            };
            packed.clear();
            waiting.iter().flat_map(|(messages, _)| messages).for_each(|it| packed.extend_from_slice(it));
            file.write_all_at(&packed, end).expect("a write");
            file.sync_data().expect("a sync");
            end += packed.len() as u64;
            for (_, done) in waiting {
                done.send(()).ok();
            }
        }
    }
}

/// What is measured.
#[derive(Clone)]
enum Store {
    Raw(Arc<RawLog>),
    Engine(Arc<Embedded>),
}

/// What every message has.
struct Content {
    ids: MessageIds,
    topic: TopicName,
    payload: Bytes,
    /// As many bytes as the stored form has.
    raw: Bytes,
}

impl Content {
    fn new(bytes: usize) -> Self {
        let topic = queue_topic(&QueueName::parse("bench").expect("a name")).expect("a topic");
        let raw = Bytes::from(vec![b'x'; ENVELOPE + topic.as_str().len() + bytes]);
        Self { ids: MessageIds::new(), topic, payload: Bytes::from(vec![b'x'; bytes]), raw }
    }

    fn op(&self) -> Op {
        Op::Publish(Publish {
            message: Message {
                id: self.ids.next_now(),
                topic: self.topic.clone(),
                payload: self.payload.clone(),
                qos: Qos::AtLeastOnce,
                retain: false,
                expires_at: None,
                extras: None,
            },
            targets: smallvec![Append::to(QUEUE)],
            retain: false,
            newest_only: false,
            incoming: None,
        })
    }
}

const QUEUE: TargetId = TargetId(1);

impl Store {
    async fn put(&self, batch: usize, content: &Content) {
        match self {
            Self::Raw(log) => {
                let messages = (0..batch).map(|_| content.raw.clone()).collect();
                let (done, wait) = oneshot::channel();
                log.queue.lock().waiting.push((messages, done));
                log.more.notify_one();
                wait.await.expect("the writer");
            }
            Self::Engine(engine) => {
                let outcomes = engine.commit((0..batch).map(|_| content.op()).collect()).await;
                let outcomes = outcomes.expect("a commit");
                assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Published(_))));
            }
        }
    }

    /// Lets writers put messages until the time is over.
    fn measure(&self, runtime: &Runtime, shape: Shape, time: Duration) -> Report {
        let stop = Arc::new(AtomicBool::new(false));
        let content = Arc::new(Content::new(shape.bytes));
        let start = Instant::now();
        let waits = runtime.block_on(async {
            let mut writers = JoinSet::new();
            for _ in 0..shape.writers {
                let (store, stop, content) = (self.clone(), Arc::clone(&stop), Arc::clone(&content));
                writers.spawn(async move {
                    let mut waits = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let before = Instant::now();
                        store.put(shape.batch, &content).await;
                        waits.push(before.elapsed());
                    }
                    waits
                });
            }
            tokio::time::sleep(time).await;
            stop.store(true, Ordering::Relaxed);
            writers.join_all().await.concat()
        });
        report(start.elapsed(), shape.batch, waits)
    }
}

fn queue() -> Definition {
    Definition::Queue(QueueSpec {
        max_bytes: u64::MAX / 2,
        ..QueueSpec::new(QueueName::parse("bench").expect("a name"), Duration::from_secs(30), unix_now())
    })
}

fn open_engine(directory: &Path) -> Arc<Embedded> {
    let settings = EngineSettings {
        data_dir: directory.to_owned(),
        watermark_free_bytes: 0,
        ballast_bytes: 0,
        ..EngineSettings::default()
    };
    let engine = Embedded::open(settings).expect("a store");
    let defined = engine.commit(vec![Op::Define(QUEUE, queue())]).wait_blocking();
    defined.expect("a queue");
    Arc::new(engine)
}

fn scratch() -> tempfile::TempDir {
    let parent = std::env::var_os("STAFETT_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    std::fs::create_dir_all(&parent).expect("a directory to write to");
    tempfile::tempdir_in(parent).expect("a directory")
}

fn measure_raw(runtime: &Runtime, shape: Shape, time: Duration) -> Report {
    let directory = scratch();
    let (log, thread) = RawLog::open(&directory.path().join("log"));
    let report = Store::Raw(Arc::clone(&log)).measure(runtime, shape, time);
    log.queue.lock().closed = true;
    log.more.notify_one();
    thread.join().expect("the writer");
    report
}

fn measure_engine(runtime: &Runtime, shape: Shape, time: Duration) -> Report {
    let directory = scratch();
    let engine = open_engine(directory.path());
    let report = Store::Engine(Arc::clone(&engine)).measure(runtime, shape, time);
    engine.close().expect("all is written");
    report
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn number(variable: &str, default: f64) -> f64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn compare(runtime: &Runtime, filter: Option<&str>) {
    let rounds = number("STAFETT_BENCH_ROUNDS", 5.0) as usize;
    let time = Duration::from_secs_f64(number("STAFETT_BENCH_SECONDS", 1.0));
    println!("acknowledged enqueues, fsync, median of {rounds} rounds of {time:?} in turn with a raw log");
    println!(
        "writers  batch  bytes |   raw msgs/s  p50 ms  p99 ms | engine msgs/s  p50 ms  p99 ms | ratio  goal"
    );
    for shape in SHAPES {
        let name = format!("{}x{}x{}", shape.writers, shape.batch, shape.bytes);
        if filter.is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        let (mut raw, mut engine) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            raw.push(measure_raw(runtime, shape, time));
            engine.push(measure_engine(runtime, shape, time));
        }
        let rate = |reports: &[Report]| median(reports.iter().map(|it| it.per_second).collect());
        let wait = |reports: &[Report], of: fn(&Report) -> Duration| {
            median(reports.iter().map(|it| of(it).as_secs_f64() * 1e3).collect())
        };
        let ratios = raw.iter().zip(&engine).map(|(raw, engine)| engine.per_second / raw.per_second);
        println!(
            "{:7}  {:5}  {:5} | {:12.0}  {:6.2}  {:6.2} | {:13.0}  {:6.2}  {:6.2} | {:5.2}  {}",
            shape.writers,
            shape.batch,
            shape.bytes,
            rate(&raw),
            wait(&raw, |it| it.median),
            wait(&raw, |it| it.worst),
            rate(&engine),
            wait(&engine, |it| it.median),
            wait(&engine, |it| it.worst),
            median(ratios.collect()),
            shape.goal.map_or_else(|| "-".to_owned(), |goal| goal.to_string()),
        );
    }
}

/// The memory of this process that is resident, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

/// Says how much memory `messages` of 100 bytes take that wait, and again after a restart.
fn backlog(messages: usize) {
    let directory = scratch();
    let mega = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let cache = 16 << 20;
    let settings = EngineSettings {
        data_dir: directory.path().to_owned(),
        watermark_free_bytes: 0,
        ballast_bytes: 0,
        body_cache_bytes: cache,
        ..EngineSettings::default()
    };
    let before = resident_bytes();
    println!("before opening                    {:7.1} MiB", mega(before));
    let engine = Embedded::open(settings.clone()).expect("a store");
    engine.commit(vec![Op::Define(QUEUE, queue())]).wait_blocking().expect("a queue");
    println!("open, nothing waits               {:7.1} MiB", mega(resident_bytes()));
    let content = Content::new(100);
    for left in (1..=messages.div_ceil(1000)).rev() {
        engine.commit((0..1000).map(|_| content.op()).collect()).wait_blocking().expect("a commit");
        if (left - 1) % (messages / 4000).max(1) == 0 {
            let stats = engine.stats(QUEUE).expect("the queue");
            println!("{:9} wait                    {:7.1} MiB", stats.ready, mega(resident_bytes()));
        }
    }
    engine.close().expect("all is written");
    drop(engine);
    println!("closed                            {:7.1} MiB", mega(resident_bytes()));
    let start = Instant::now();
    let engine = Embedded::open(settings).expect("the store");
    let took = start.elapsed();
    let stats = engine.stats(QUEUE).expect("the queue");
    println!(
        "{:9} wait, opened in {took:4.1?}   {:7.1} MiB; {:.1} MiB of bodies, cache {:.1} MiB, index {:.1} MiB",
        stats.ready,
        mega(resident_bytes()),
        mega(stats.bytes),
        mega(cache),
        mega(stats.ready * 32),
    );
}

/// What this process has handed to the system to write, in bytes, where the system says so.
fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    written.and_then(|bytes| bytes.parse().ok()).unwrap_or_default()
}

/// Lets messages of 256 bytes go through a queue of ten thousand: 64 in, 64 out and settled, all durable.
fn through(messages: usize) {
    const DEPTH: usize = 10_000;
    let directory = scratch();
    let engine = open_engine(directory.path());
    let content = Content::new(256);
    let put = |count: usize| {
        engine.commit((0..count).map(|_| content.op()).collect()).wait_blocking().expect("a commit");
    };
    put(DEPTH);
    let consumer = engine.consumer(QUEUE, ConsumerOptions::default()).expect("a consumer");
    let (start, before) = (Instant::now(), written_bytes());
    let (mut taken, mut leases) = (Vec::new(), Vec::new());
    for _ in 0..messages.div_ceil(64) {
        put(64);
        consumer.take(64, usize::MAX, &mut taken).expect("messages");
        assert_eq!(taken.len(), 64);
        leases.extend(taken.drain(..).map(|it| LeaseRef::of(it.sequence)));
        let settled = engine.settle(QUEUE, &leases).expect("a settlement");
        settled.durable.wait_blocking().expect("a commit");
        leases.clear();
    }
    let took = start.elapsed();
    let payload = messages as u64 * content.raw.len() as u64;
    println!(
        "{:.0} msgs/s through a queue of {DEPTH}; {:.1} bytes written for each stored; file {:.1} MiB",
        messages as f64 / took.as_secs_f64(),
        (written_bytes() - before) as f64 / payload as f64,
        std::fs::metadata(directory.path().join("store/db")).map_or(0, |it| it.len()) as f64
            / f64::from(1 << 20),
    );
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["profile", shape] => {
            let mut numbers = shape.split('x').filter_map(|number| number.parse().ok());
            let mut next = || numbers.next().expect("WRITERSxBATCHxBYTES");
            let shape = Shape { writers: next(), batch: next(), bytes: next(), goal: None };
            let time = Duration::from_secs_f64(number("STAFETT_BENCH_SECONDS", 10.0));
            let before = written_bytes();
            let report = measure_engine(&runtime, shape, time);
            let messages = report.per_second * time.as_secs_f64();
            let written = (written_bytes() - before) as f64 / messages / (shape.bytes + ENVELOPE) as f64;
            println!(
                "{:.0} msgs/s, p50 {:?}, p99 {:?}, about {written:.1} bytes written for each stored",
                report.per_second, report.median, report.worst
            );
        }
        ["through", messages] => through(messages.parse().expect("a number")),
        ["backlog", messages] => backlog(messages.parse().expect("a number")),
        // Tests build and start benchmarks too: they need no figures.
        [] if !std::env::args().any(|word| word == "--bench") => {}
        [] => compare(&runtime, None),
        [filter, ..] => compare(&runtime, Some(filter)),
    }
}
