//! Payload stamp, sequence checking, latency histograms, /proc readings and the report.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

/// CLOCK_MONOTONIC in nanoseconds; comparable between processes of one machine.
pub fn now_ns() -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut ts) };
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

// ------------------------------------------------------------------ payload

pub const STAMP_LEN: usize = 24;
const MAGIC: u16 = 0x4c47;

/// What every payload starts with. `ts` is the time the message was due (open loop) or
/// handed to the socket (closed loop); `lag_us` is how late an open-loop send was.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    pub publisher: u16,
    pub topic: u32,
    pub seq: u32,
    pub lag_us: u32,
    pub ts: u64,
}

impl Stamp {
    #[inline]
    pub fn write(&self, buf: &mut [u8]) {
        buf[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        buf[2..4].copy_from_slice(&self.publisher.to_le_bytes());
        buf[4..8].copy_from_slice(&self.topic.to_le_bytes());
        buf[8..12].copy_from_slice(&self.seq.to_le_bytes());
        buf[12..16].copy_from_slice(&self.lag_us.to_le_bytes());
        buf[16..24].copy_from_slice(&self.ts.to_le_bytes());
    }
    #[inline]
    pub fn read(buf: &[u8]) -> Option<Stamp> {
        if buf.len() < STAMP_LEN || buf[0..2] != MAGIC.to_le_bytes() {
            return None;
        }
        let u32at = |i: usize| u32::from_le_bytes(buf[i..i + 4].try_into().unwrap());
        Some(Stamp {
            publisher: u16::from_le_bytes(buf[2..4].try_into().unwrap()),
            topic: u32at(4),
            seq: u32at(8),
            lag_us: u32at(12),
            ts: u64::from_le_bytes(buf[16..24].try_into().unwrap()),
        })
    }
}

// ------------------------------------------------------------- seq checking

#[derive(Default, Clone)]
struct Seen {
    bits: Vec<u64>,
    unique: u64,
    max: i64,
}

/// Exact duplicate / reorder accounting per (publisher, topic) stream.
#[derive(Default, Clone)]
pub struct Tracker {
    streams: HashMap<(u16, u32), Seen>,
    pub received: u64,
    pub duplicates: u64,
    pub reordered: u64,
    pub garbage: u64,
}

impl Tracker {
    #[inline]
    pub fn note(&mut self, s: &Stamp) {
        self.received += 1;
        let e = self.streams.entry((s.publisher, s.topic)).or_insert_with(|| Seen {
            bits: Vec::new(),
            unique: 0,
            max: -1,
        });
        let (w, b) = ((s.seq / 64) as usize, 1u64 << (s.seq % 64));
        if w >= e.bits.len() {
            e.bits.resize((w + 1).next_power_of_two(), 0);
        }
        if e.bits[w] & b != 0 {
            self.duplicates += 1;
            return;
        }
        e.bits[w] |= b;
        e.unique += 1;
        if (s.seq as i64) < e.max {
            self.reordered += 1;
        } else {
            e.max = s.seq as i64;
        }
    }

    pub fn unique(&self) -> u64 {
        self.streams.values().map(|s| s.unique).sum()
    }

    /// Joins trackers of competing consumers: the same message at two consumers is a duplicate.
    pub fn merge_shared(&mut self, o: &Tracker) {
        self.received += o.received;
        self.duplicates += o.duplicates;
        self.reordered += o.reordered;
        self.garbage += o.garbage;
        for (k, v) in &o.streams {
            match self.streams.get_mut(k) {
                None => {
                    self.streams.insert(*k, v.clone());
                }
                Some(mine) => {
                    if mine.bits.len() < v.bits.len() {
                        mine.bits.resize(v.bits.len(), 0);
                    }
                    let mut both = 0u64;
                    for (a, b) in mine.bits.iter_mut().zip(v.bits.iter()) {
                        both += (*a & *b).count_ones() as u64;
                        *a |= *b;
                    }
                    mine.unique += v.unique - both;
                    self.duplicates += both;
                    mine.max = mine.max.max(v.max);
                }
            }
        }
    }
}

/// What one subscriber / consumer saw.
pub struct Receipt {
    pub tracker: Tracker,
    pub lat: Histogram<u64>,
    pub lag: Histogram<u64>,
    pub first_ns: u64,
    pub last_ns: u64,
}

pub fn hist() -> Histogram<u64> {
    // nanoseconds, up to 10 minutes, 3 digits
    Histogram::new_with_bounds(100, 600_000_000_000, 3).unwrap()
}

impl Default for Receipt {
    fn default() -> Self {
        Receipt { tracker: Tracker::default(), lat: hist(), lag: hist(), first_ns: 0, last_ns: 0 }
    }
}

impl Receipt {
    #[inline]
    pub fn take(&mut self, payload: &[u8], now: u64) {
        match Stamp::read(payload) {
            Some(s) => {
                self.tracker.note(&s);
                let _ = self.lat.record(now.saturating_sub(s.ts).max(100));
                if s.lag_us > 0 {
                    let _ = self.lag.record(s.lag_us as u64 * 1000);
                }
            }
            None => self.tracker.garbage += 1,
        }
        if self.first_ns == 0 {
            self.first_ns = now;
        }
        self.last_ns = now;
    }
}

pub fn quantiles(h: &Histogram<u64>) -> Value {
    let us = |q: f64| (h.value_at_quantile(q) as f64 / 100.0).round() / 10.0;
    if h.is_empty() {
        return Value::Null;
    }
    json!({ "p50": us(0.5), "p99": us(0.99), "p999": us(0.999), "max": (h.max() as f64 / 100.0).round() / 10.0 })
}

// ---------------------------------------------------------------- progress

/// Shared between publishers and subscribers of one process.
#[derive(Default)]
pub struct Progress {
    pub sent: AtomicU64,
    pub acked: AtomicU64,
    /// deliveries seen by all subscribers together
    pub received: AtomicU64,
    pub first_send_ns: AtomicU64,
    pub last_ack_ns: AtomicU64,
}

impl Progress {
    pub fn mark_first(&self) {
        let _ = self.first_send_ns.compare_exchange(0, now_ns(), Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Returns when `want` deliveries arrived or when nothing arrived for `idle`.
pub async fn wait_received(p: &Progress, want: u64, idle: Duration) {
    let mut last = p.received.load(Ordering::Relaxed);
    let mut since = now_ns();
    loop {
        let r = p.received.load(Ordering::Relaxed);
        if r >= want {
            return;
        }
        if r != last {
            last = r;
            since = now_ns();
        } else if now_ns() - since > idle.as_nanos() as u64 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

// --------------------------------------------------------------------- pacing

/// Precise asynchronous timer (timerfd), since the runtime's own timer ticks in milliseconds.
pub struct PreciseTimer {
    fd: tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
}

impl PreciseTimer {
    #[allow(deprecated)] // AsyncFd::new
    pub fn new() -> Result<Self> {
        use std::os::fd::FromRawFd;
        let fd =
            unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        anyhow::ensure!(fd >= 0, "timerfd_create failed");
        let fd = unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) };
        Ok(PreciseTimer { fd: tokio::io::unix::AsyncFd::new(fd)? })
    }

    pub async fn until(&self, at_ns: u64) {
        use std::os::fd::AsRawFd;
        if now_ns() >= at_ns {
            return;
        }
        let raw = self.fd.as_raw_fd();
        let spec = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec {
                tv_sec: (at_ns / 1_000_000_000) as i64,
                tv_nsec: (at_ns % 1_000_000_000) as i64,
            },
        };
        unsafe { libc::timerfd_settime(raw, libc::TFD_TIMER_ABSTIME, &spec, std::ptr::null_mut()) };
        loop {
            let Ok(mut g) = self.fd.readable().await else { return };
            let mut b = [0u8; 8];
            let n = unsafe { libc::read(raw, b.as_mut_ptr() as *mut _, 8) };
            if n == 8 || now_ns() >= at_ns {
                if n != 8 {
                    g.clear_ready();
                }
                return;
            }
            g.clear_ready();
        }
    }
}

/// Open-loop schedule of one publisher.
pub struct Schedule {
    start: u64,
    step_ns: f64,
    n: u64,
}

impl Schedule {
    /// `rate` in messages per second for this publisher; `phase` in 0..1 staggers publishers.
    pub fn new(rate: f64, phase: f64) -> Self {
        let step = 1e9 / rate;
        Schedule { start: now_ns() + 1_000_000 + (phase * step) as u64, step_ns: step, n: 0 }
    }
    pub fn due(&self) -> u64 {
        self.start + (self.n as f64 * self.step_ns) as u64
    }
    pub fn advance(&mut self) {
        self.n += 1;
    }
}

// ----------------------------------------------------------------------- /proc

fn tick() -> f64 {
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 }
}

pub fn cpu_of(pid: u32) -> f64 {
    let Ok(s) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    let Some(i) = s.rfind(')') else { return 0.0 };
    let f: Vec<&str> = s[i + 2..].split(' ').collect();
    let t = |k: usize| f.get(k).and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
    (t(11) + t(12)) / tick()
}

pub fn status_kb(pid: u32, key: &str) -> u64 {
    let Ok(s) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return 0 };
    s.lines()
        .find(|l| l.starts_with(key))
        .and_then(|l| l.split_whitespace().nth(1))
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

/// (busy, steal) CPU seconds of the whole machine.
fn machine_cpu() -> (f64, f64) {
    let Ok(s) = std::fs::read_to_string("/proc/stat") else { return (0.0, 0.0) };
    let v: Vec<f64> =
        s.lines().next().unwrap_or("").split_whitespace().skip(1).map(|x| x.parse().unwrap_or(0.0)).collect();
    if v.len() < 8 {
        return (0.0, 0.0);
    }
    ((v[0] + v[1] + v[2] + v[5] + v[6]) / tick(), v[7] / tick())
}

/// CPU and memory of the server, of this process and of the rest of the machine over a run.
pub struct Meter {
    pids: Vec<u32>,
    start_ns: u64,
    server: f64,
    me: f64,
    machine: (f64, f64),
    rss0: u64,
}

impl Meter {
    pub fn start(pids: &[u32]) -> Self {
        for p in pids {
            // resets VmHWM where permitted, so that the peak is this run's own
            let _ = std::fs::write(format!("/proc/{p}/clear_refs"), "5");
        }
        Meter {
            pids: pids.to_vec(),
            start_ns: now_ns(),
            server: pids.iter().map(|p| cpu_of(*p)).sum(),
            me: cpu_of(std::process::id()),
            machine: machine_cpu(),
            rss0: pids.iter().map(|p| status_kb(*p, "VmRSS")).sum(),
        }
    }

    pub fn stop(&self) -> Map<String, Value> {
        let mut m = Map::new();
        let wall = (now_ns() - self.start_ns) as f64 / 1e9;
        let server: f64 = self.pids.iter().map(|p| cpu_of(*p)).sum::<f64>() - self.server;
        let me = cpu_of(std::process::id()) - self.me;
        let (busy, steal) = machine_cpu();
        m.insert("wall_s".into(), r2(wall));
        m.insert("client_cpu_s".into(), r2(me));
        if !self.pids.is_empty() {
            m.insert("server_cpu_s".into(), r2(server));
            m.insert("server_rss_start_kb".into(), json!(self.rss0));
            m.insert(
                "server_peak_rss_kb".into(),
                json!(self.pids.iter().map(|p| status_kb(*p, "VmHWM")).sum::<u64>()),
            );
        }
        // what else ran on the machine meanwhile: the noise of this run
        m.insert("other_cpu_s".into(), r2((busy - self.machine.0 - server - me).max(0.0)));
        m.insert("steal_s".into(), r2(steal - self.machine.1));
        m
    }
}

pub fn r2(v: f64) -> Value {
    json!((v * 100.0).round() / 100.0)
}

pub fn r0(v: f64) -> Value {
    json!(v.round() as i64)
}

pub fn emit(m: Map<String, Value>) {
    println!("{}", Value::Object(m));
}

pub fn raise_nofile() -> u64 {
    unsafe {
        let mut l = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut l);
        let hard = l.rlim_max;
        let want = libc::rlimit { rlim_cur: 1_000_000, rlim_max: hard.max(1_000_000) };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &want) != 0 {
            l.rlim_cur = hard;
            libc::setrlimit(libc::RLIMIT_NOFILE, &l);
        }
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut l);
        l.rlim_cur
    }
}
