//! Protocol-independent patterns: what a system under test must offer (`System`,
//! `Publisher`, `Consumer`) and the runners that drive it (live, enqueue-then-drain).
//!
//! To add a system: implement the three traits and call `run(system, args)`.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::{Bytes, BytesMut};
use clap::{Args, ValueEnum};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use serde_json::{Map, Value, json};

use crate::common::*;

/// How topics map to consumers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fanout {
    /// consumer i reads topics i, i+subs, … (or i mod topics): each message goes to one place
    One,
    /// every consumer reads every topic: each message goes to all consumers
    All,
    /// all consumers compete for the messages of every topic
    Queue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// consumers attached while publishers publish
    Live,
    /// publish everything, then consume everything
    EnqueueDrain,
    /// publish only
    Enqueue,
}

#[derive(Args, Clone, Debug)]
pub struct PatternArgs {
    #[arg(long, default_value_t = 1)]
    pub pubs: u32,
    #[arg(long, default_value_t = 1)]
    pub subs: u32,
    #[arg(long, default_value_t = 1)]
    pub topics: u32,
    #[arg(long, value_enum, default_value_t = Fanout::One)]
    pub fanout: Fanout,
    #[arg(long, value_enum, default_value_t = Phase::Live)]
    pub phase: Phase,
    /// payload bytes (at least 24)
    #[arg(long, default_value_t = 100)]
    pub size: usize,
    /// messages in all (over all publishers)
    #[arg(long)]
    pub count: Option<u64>,
    /// publish for this long instead
    #[arg(long)]
    pub secs: Option<f64>,
    /// open loop, messages per second over all publishers; 0: as fast as the window lets
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// unacknowledged publishes in flight per publisher
    #[arg(long, default_value_t = 100)]
    pub window: usize,
    /// without acknowledgements: how far publishing may run ahead of delivery (0: no bound)
    #[arg(long, default_value_t = 0)]
    pub e2e_window: u64,
    /// server process to account (repeatable)
    #[arg(long)]
    pub server_pid: Vec<u32>,
    /// give up after this long without a delivery, ms
    #[arg(long, default_value_t = 3000)]
    pub idle_ms: u64,
    /// copied into the report
    #[arg(long, default_value = "")]
    pub label: String,
}

impl PatternArgs {
    /// Every message is answered to its publisher: nobody consumes.
    pub fn answers_itself(&mut self) {
        (self.subs, self.phase) = (0, Phase::Enqueue);
    }
    /// Topics publisher `p` publishes to, in turn.
    pub fn pub_topics(&self, p: u32) -> Vec<u32> {
        if self.topics <= self.pubs {
            vec![p % self.topics]
        } else {
            (0..self.topics).filter(|t| t % self.pubs == p).collect()
        }
    }
    /// Topics consumer `s` reads.
    pub fn sub_topics(&self, s: u32) -> Vec<u32> {
        match self.fanout {
            Fanout::All | Fanout::Queue => (0..self.topics).collect(),
            Fanout::One if self.topics <= self.subs => vec![s % self.topics],
            Fanout::One => (0..self.topics).filter(|t| t % self.subs == s).collect(),
        }
    }
    /// Deliveries one published message on topic `t` leads to.
    pub fn copies(&self, t: u32) -> u64 {
        match self.fanout {
            Fanout::Queue => (self.subs > 0) as u64,
            _ => (0..self.subs).filter(|s| self.sub_topics(*s).contains(&t)).count() as u64,
        }
    }
    pub fn budget(&self, p: u32) -> u64 {
        match self.count {
            Some(c) => c / self.pubs as u64 + ((p as u64) < c % self.pubs as u64) as u64,
            None => u64::MAX,
        }
    }
    pub fn deadline(&self) -> u64 {
        match (self.secs, self.count) {
            (Some(s), _) => now_ns() + (s * 1e9) as u64,
            (None, Some(_)) => u64::MAX,
            (None, None) => now_ns() + 5_000_000_000,
        }
    }
    pub fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_ms)
    }
    pub fn describe(&self, m: &mut Map<String, Value>) {
        if !self.label.is_empty() {
            m.insert("label".into(), json!(self.label));
        }
        m.insert("pubs".into(), json!(self.pubs));
        m.insert("subs".into(), json!(self.subs));
        m.insert("topics".into(), json!(self.topics));
        m.insert("size".into(), json!(self.size));
        m.insert("window".into(), json!(self.window));
        if self.e2e_window > 0 {
            m.insert("e2e_window".into(), json!(self.e2e_window));
        }
        if self.rate > 0.0 {
            m.insert("rate".into(), json!(self.rate));
        }
    }
}

// -------------------------------------------------------------------- traits

pub enum Ack {
    /// handed to the transport, nothing more will be heard
    None,
    Pending(BoxFuture<'static, Result<()>>),
    /// acknowledged in the order of sending: `Publisher::settled` tells
    InOrder,
}

/// What became of the oldest messages that were answered with `Ack::InOrder`.
#[derive(Default)]
pub struct Settled {
    /// how many are settled, refused ones included
    pub done: u64,
    pub refused: u64,
    /// why the first of them was refused
    pub error: Option<String>,
}

pub struct Delivery<T> {
    pub payload: Bytes,
    pub token: T,
}

pub trait Publisher: Send + 'static {
    fn send(&mut self, topic: u32, payload: Bytes) -> impl Future<Output = Result<Ack>> + Send;
    /// Pushes out whatever is buffered.
    fn flush(&mut self) -> impl Future<Output = Result<()>> + Send;
    /// Waits until more of what is acknowledged in order is settled. Dropping the future loses nothing.
    fn settled(&mut self) -> impl Future<Output = Result<Settled>> + Send {
        std::future::pending()
    }
    /// Called once at the end: returns when everything sent has left this process.
    fn finish(&mut self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}

pub trait Consumer: Send + 'static {
    type Token: Send;
    /// Waits for at least one delivery and appends what is there.
    fn recv(&mut self, out: &mut Vec<Delivery<Self::Token>>) -> impl Future<Output = Result<()>> + Send;
    /// Acknowledges and clears the batch (a system without acknowledgements just clears it).
    fn ack(&mut self, batch: &mut Vec<Delivery<Self::Token>>) -> impl Future<Output = Result<()>> + Send;
    /// Called once at the end, so that acknowledgements reach the server.
    fn finish(&mut self) -> impl Future<Output = Result<()>> + Send;
}

pub trait System: Send + Sync + 'static {
    type P: Publisher;
    type C: Consumer;
    fn name(&self) -> String;
    /// Creates queues / streams / subscriptions that must exist before publishing.
    fn setup(&self, a: &PatternArgs) -> impl Future<Output = Result<()>> + Send;
    fn publisher(&self, id: u32) -> impl Future<Output = Result<Self::P>> + Send;
    fn consumer(&self, id: u32, topics: Vec<u32>) -> impl Future<Output = Result<Self::C>> + Send;
    /// Messages the server still holds, where it can tell.
    fn left(&self) -> impl Future<Output = Result<Option<u64>>> + Send {
        async { Ok(None) }
    }
}

// ------------------------------------------------------------------- runners

/// Blocks while publishing runs too far ahead of delivery. A stall (loss) resets the base.
pub struct E2eGate {
    pub window: u64,
    pub slack: u64,
}

impl E2eGate {
    /// Whether `pass` would wait.
    pub fn blocks(&self, pr: &Progress, expected: u64) -> bool {
        self.window > 0 && expected > pr.received.load(Ordering::Relaxed) + self.slack + self.window
    }

    pub async fn pass(&mut self, pr: &Progress, timer: &PreciseTimer, expected: impl Fn() -> u64) {
        if self.window == 0 {
            return;
        }
        let mut last = pr.received.load(Ordering::Relaxed);
        let mut since = now_ns();
        while expected() > pr.received.load(Ordering::Relaxed) + self.slack + self.window {
            tokio::task::yield_now().await;
            let r = pr.received.load(Ordering::Relaxed);
            if r != last {
                last = r;
                since = now_ns();
            } else if now_ns() - since > 300_000_000 {
                self.slack = expected().saturating_sub(r);
                return;
            } else if now_ns() - since > 20_000 {
                timer.until(now_ns() + 50_000).await;
            }
        }
    }
}

struct PubOut {
    sent: Vec<(u32, u64)>,
    ack_lat: hdrhistogram::Histogram<u64>,
    errors: u64,
}

type PendingAck = BoxFuture<'static, (u64, Result<()>)>;

/// What one publisher has sent and has not seen acknowledged, and what became of the rest.
struct InFlight {
    /// each with the time it was due, or sent in a closed loop
    any_order: FuturesUnordered<PendingAck>,
    /// the same times, oldest first
    in_order: VecDeque<u64>,
    ack_lat: hdrhistogram::Histogram<u64>,
    errors: u64,
    pr: Arc<Progress>,
}

impl InFlight {
    fn new(pr: Arc<Progress>) -> Self {
        InFlight {
            any_order: FuturesUnordered::new(),
            in_order: VecDeque::new(),
            ack_lat: hist(),
            errors: 0,
            pr,
        }
    }

    fn len(&self) -> usize {
        self.any_order.len() + self.in_order.len()
    }

    /// Waits until at least one more is settled; for ever when nothing is in flight. Cancel safe.
    async fn settle(&mut self, p: &mut impl Publisher) -> Result<()> {
        let settled = tokio::select! {
            Some(r) = self.any_order.next(), if !self.any_order.is_empty() => {
                self.note(r);
                return Ok(());
            }
            s = p.settled(), if !self.in_order.is_empty() => s?,
            else => std::future::pending().await,
        };
        ensure!(
            settled.done as usize <= self.in_order.len() && settled.refused <= settled.done,
            "more acknowledgements than messages in flight"
        );
        let now = now_ns();
        for at in self.in_order.drain(..settled.done as usize) {
            let _ = self.ack_lat.record(now.saturating_sub(at).max(100));
        }
        self.pr.acked.fetch_add(settled.done - settled.refused, Ordering::Relaxed);
        if let (0, Some(e)) = (self.errors, &settled.error) {
            eprintln!("publish: {e}");
        }
        self.errors += settled.refused;
        self.pr.last_ack_ns.store(now, Ordering::Relaxed);
        Ok(())
    }

    fn note(&mut self, (at, outcome): (u64, Result<()>)) {
        let now = now_ns();
        let _ = self.ack_lat.record(now.saturating_sub(at).max(100));
        match outcome {
            Ok(()) => {
                self.pr.acked.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => {
                if self.errors == 0 {
                    eprintln!("publish: {e:#}");
                }
                self.errors += 1;
            }
        }
        self.pr.last_ack_ns.store(now, Ordering::Relaxed);
    }
}

async fn publish_loop<P: Publisher>(
    mut p: P,
    id: u32,
    a: Arc<PatternArgs>,
    pr: Arc<Progress>,
) -> Result<PubOut> {
    let topics = a.pub_topics(id);
    let copies: Vec<u64> = topics.iter().map(|t| a.copies(*t)).collect();
    let avg_copies = copies.iter().sum::<u64>().max(1) / copies.len() as u64;
    let mut seqs = vec![0u32; topics.len()];
    let budget = a.budget(id);
    let deadline = a.deadline();
    let mut sched = (a.rate > 0.0).then(|| Schedule::new(a.rate / a.pubs as f64, id as f64 / a.pubs as f64));
    let timer = PreciseTimer::new()?;
    let mut inflight = InFlight::new(pr.clone());
    let mut gate = E2eGate { window: a.e2e_window * avg_copies.max(1), slack: 0 };
    let mut n = 0u64;
    let size = a.size.max(STAMP_LEN);
    let mut pool = BytesMut::new();
    pr.mark_first();

    while n < budget && now_ns() < deadline {
        let mut lag_us = 0;
        let mut ts = 0;
        if let Some(s) = &mut sched {
            let due = s.due();
            if now_ns() < due {
                p.flush().await?;
                loop {
                    tokio::select! {
                        _ = timer.until(due) => break,
                        r = inflight.settle(&mut p) => r?,
                    }
                }
            }
            s.advance();
            ts = due;
        }
        while inflight.len() >= a.window.max(1) {
            p.flush().await?;
            inflight.settle(&mut p).await?;
        }
        if a.e2e_window > 0 && n.is_multiple_of(16) {
            if gate.blocks(&pr, pr.sent.load(Ordering::Relaxed) * avg_copies) {
                p.flush().await?;
            }
            gate.pass(&pr, &timer, || pr.sent.load(Ordering::Relaxed) * avg_copies).await;
        }
        let k = (n % topics.len() as u64) as usize;
        let now = now_ns();
        if sched.is_some() {
            lag_us = (now.saturating_sub(ts) / 1000) as u32;
        } else {
            ts = now;
        }
        if pool.capacity() < size {
            pool.reserve(size * 256);
        }
        pool.resize(size, 0x2e);
        Stamp { publisher: id as u16, topic: topics[k], seq: seqs[k], lag_us, ts }.write(&mut pool[..]);
        let payload = pool.split().freeze();
        match p.send(topics[k], payload).await? {
            Ack::None => {}
            Ack::Pending(f) => {
                let mut f: PendingAck = Box::pin(async move { (ts, f.await) });
                // polled once here: requests leave in order, whatever the set below does
                match futures::poll!(&mut f) {
                    std::task::Poll::Ready(r) => inflight.note(r),
                    std::task::Poll::Pending => inflight.any_order.push(f),
                }
            }
            Ack::InOrder => inflight.in_order.push_back(ts),
        }
        seqs[k] += 1;
        n += 1;
        pr.sent.fetch_add(1, Ordering::Relaxed);
        if n.is_multiple_of(128) {
            tokio::task::yield_now().await;
        }
    }
    p.flush().await?;
    while inflight.len() > 0 {
        inflight.settle(&mut p).await?;
    }
    p.finish().await?;
    let sent = topics.iter().copied().zip(seqs.iter().map(|s| *s as u64)).collect();
    Ok(PubOut { sent, ack_lat: inflight.ack_lat, errors: inflight.errors })
}

async fn consume_loop<C: Consumer>(
    mut c: C,
    pr: Arc<Progress>,
    stop: tokio_util::sync::CancellationToken,
) -> Result<Receipt> {
    let mut rc = Receipt::default();
    let mut out = Vec::with_capacity(1024);
    loop {
        let r = tokio::select! {
            biased;
            _ = stop.cancelled() => break,
            r = c.recv(&mut out) => r,
        };
        if let Err(e) = r {
            eprintln!("consume: {e:#}");
            break;
        }
        let now = now_ns();
        for d in &out {
            rc.take(&d.payload, now);
        }
        let n = out.len() as u64;
        c.ack(&mut out).await?;
        out.clear();
        pr.received.fetch_add(n, Ordering::Relaxed);
    }
    c.finish().await?;
    Ok(rc)
}

pub async fn run<S: System>(sys: S, a: PatternArgs) -> Result<()> {
    let mut m = Map::new();
    m.insert("system".into(), json!(sys.name()));
    a.describe(&mut m);
    m.insert("phase".into(), json!(format!("{:?}", a.phase)));
    let a = Arc::new(a);
    let pr = Arc::new(Progress::default());
    let stop = tokio_util::sync::CancellationToken::new();

    sys.setup(&a).await?;
    let mut pubs = Vec::new();
    for i in 0..a.pubs {
        pubs.push(sys.publisher(i).await?);
    }
    let mut cons = Vec::new();
    if a.phase == Phase::Live {
        for i in 0..a.subs {
            let c = sys.consumer(i, a.sub_topics(i)).await?;
            cons.push(tokio::spawn(consume_loop(c, pr.clone(), stop.clone())));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    let meter = Meter::start(&a.server_pid);
    let handles: Vec<_> = pubs
        .into_iter()
        .enumerate()
        .map(|(i, p)| tokio::spawn(publish_loop(p, i as u32, a.clone(), pr.clone())))
        .collect();
    let mut sent: std::collections::HashMap<u32, u64> = Default::default();
    let mut ack_lat = hist();
    let mut errors = 0;
    for h in handles {
        let o = h.await??;
        for (t, n) in o.sent {
            *sent.entry(t).or_default() += n;
        }
        ack_lat.add(&o.ack_lat).unwrap();
        errors += o.errors;
    }
    let pub_end = now_ns();
    let t0 = pr.first_send_ns.load(Ordering::Relaxed);
    let total: u64 = sent.values().sum();
    let expected: u64 = sent.iter().map(|(t, n)| n * a.copies(*t)).sum();
    m.insert("sent".into(), json!(total));
    m.insert("pub_msgs_s".into(), r0(total as f64 / ((pub_end - t0) as f64 / 1e9)));
    if !ack_lat.is_empty() {
        m.insert("ack_us".into(), quantiles(&ack_lat));
    }
    m.insert("pub_errors".into(), json!(errors));

    let mut drain_t0 = 0;
    if a.phase == Phase::EnqueueDrain {
        m.insert("enqueue_res".into(), Value::Object(meter.stop()));
        let mut ready = Vec::new();
        drain_t0 = now_ns();
        for i in 0..a.subs {
            ready.push(sys.consumer(i, a.sub_topics(i)).await?);
        }
        for c in ready {
            cons.push(tokio::spawn(consume_loop(c, pr.clone(), stop.clone())));
        }
    }
    if a.phase != Phase::Enqueue {
        wait_received(&pr, expected, a.idle()).await;
    }
    let mut res = meter.stop();
    stop.cancel();
    let mut recs = Vec::new();
    for c in cons {
        recs.push(c.await??);
    }
    finish_receipts(&mut m, &recs, expected, a.fanout == Fanout::Queue, t0, drain_t0);
    if a.phase != Phase::Live
        && let Ok(Some(n)) = sys.left().await
    {
        m.insert("left_in_server".into(), json!(n));
    }
    m.append(&mut res);
    emit(m);
    Ok(())
}

/// Adds throughput, latency, loss and duplicates of all consumers to the report.
pub fn finish_receipts(
    m: &mut Map<String, Value>,
    recs: &[Receipt],
    expected: u64,
    shared: bool,
    t0: u64,
    drain_t0: u64,
) {
    if recs.is_empty() {
        return;
    }
    let mut lat = hist();
    let mut lag = hist();
    let mut all = Tracker::default();
    let (mut recv, mut uniq, mut dup, mut reord, mut garbage, mut last) = (0, 0, 0, 0, 0, 0u64);
    for r in recs {
        lat.add(&r.lat).unwrap();
        lag.add(&r.lag).unwrap();
        last = last.max(r.last_ns);
        recv += r.tracker.received;
        uniq += r.tracker.unique();
        dup += r.tracker.duplicates;
        reord += r.tracker.reordered;
        garbage += r.tracker.garbage;
        if shared {
            all.merge_shared(&r.tracker);
        }
    }
    if shared {
        uniq = all.unique();
        dup = all.duplicates;
    }
    let start = if drain_t0 > 0 { drain_t0 } else { t0 };
    m.insert("received".into(), json!(recv));
    m.insert("msgs_s".into(), r0(uniq as f64 / (last.saturating_sub(start).max(1) as f64 / 1e9)));
    m.insert("lost".into(), json!(expected as i64 - uniq as i64));
    m.insert("duplicates".into(), json!(dup));
    m.insert("reordered".into(), json!(reord));
    if garbage > 0 {
        m.insert("garbage".into(), json!(garbage));
    }
    if drain_t0 == 0 {
        m.insert("lat_us".into(), quantiles(&lat));
        if !lag.is_empty() {
            m.insert("send_lag_us".into(), quantiles(&lag));
        }
    }
}
