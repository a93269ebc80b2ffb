//! MQTT 3.1.1 load on raw sockets with a minimal packet writer / parser.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BufMut, BytesMut};
use clap::Args;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::common::*;
use crate::pattern::{Fanout, PatternArgs, Phase, finish_receipts};

// ----------------------------------------------------------------- packets

fn put_len(b: &mut BytesMut, mut n: usize) {
    loop {
        let d = (n % 128) as u8;
        n /= 128;
        b.put_u8(if n > 0 { d | 0x80 } else { d });
        if n == 0 {
            return;
        }
    }
}

fn put_str(b: &mut BytesMut, s: &str) {
    b.put_u16(s.len() as u16);
    b.put_slice(s.as_bytes());
}

fn put_connect(b: &mut BytesMut, id: &str, clean: bool, keepalive: u16) {
    b.put_u8(0x10);
    put_len(b, 10 + 2 + id.len());
    put_str(b, "MQTT");
    b.put_u8(4);
    b.put_u8(if clean { 2 } else { 0 });
    b.put_u16(keepalive);
    put_str(b, id);
}

fn put_subscribe(b: &mut BytesMut, pid: u16, filters: &[String], qos: u8) {
    b.put_u8(0x82);
    put_len(b, 2 + filters.iter().map(|f| f.len() + 3).sum::<usize>());
    b.put_u16(pid);
    for f in filters {
        put_str(b, f);
        b.put_u8(qos);
    }
}

#[inline]
fn put_ack(b: &mut BytesMut, first: u8, pid: u16) {
    b.put_slice(&[first, 2, (pid >> 8) as u8, pid as u8]);
}

/// (first byte, header length, body length) of the packet at the start of `b`, once complete.
#[inline]
fn frame(b: &[u8]) -> Result<Option<(u8, usize, usize)>> {
    if b.len() < 2 {
        return Ok(None);
    }
    let (mut n, mut shift, mut i) = (0usize, 0, 1);
    loop {
        let Some(d) = b.get(i) else { return Ok(None) };
        n |= ((d & 0x7f) as usize) << shift;
        i += 1;
        if d & 0x80 == 0 {
            break;
        }
        shift += 7;
        ensure!(shift <= 21, "bad remaining length");
    }
    Ok((b.len() >= i + n).then_some((b[0], i, n)))
}

// -------------------------------------------------------------------- client

#[derive(Args, Clone, Debug)]
pub struct MqttArgs {
    #[arg(long, default_value = "127.0.0.1:1883")]
    pub addr: SocketAddr,
    #[command(flatten)]
    pub pattern: PatternArgs,
    #[arg(long, default_value_t = 0)]
    pub qos: u8,
    /// subscribers' QoS, where it differs
    #[arg(long)]
    pub sub_qos: Option<u8>,
    /// publish with the retain flag
    #[arg(long)]
    pub retain: bool,
    /// subscribers use clean_session=0 (always so in the enqueue phases)
    #[arg(long)]
    pub persistent: bool,
    /// leave sessions by dropping the connection rather than with DISCONNECT (enqueue phases)
    #[arg(long)]
    pub abrupt: bool,
    /// bytes encoded before each write
    #[arg(long, default_value_t = 16384)]
    pub batch_bytes: usize,
    #[arg(long, default_value = "lg")]
    pub prefix: String,
}

async fn open(
    addr: SocketAddr,
    source: Option<Ipv4Addr>,
    id: &str,
    clean: bool,
    rbuf: &mut BytesMut,
) -> Result<(TcpStream, bool)> {
    let mut s = match source {
        None => TcpStream::connect(addr).await?,
        Some(ip) => {
            let k = TcpSocket::new_v4()?;
            k.bind(SocketAddr::new(ip.into(), 0))?;
            k.connect(addr).await?
        }
    };
    s.set_nodelay(true)?;
    let mut b = BytesMut::new();
    put_connect(&mut b, id, clean, 600);
    s.write_all(&b).await?;
    loop {
        if let Some((t, h, n)) = frame(rbuf)? {
            ensure!(t == 0x20 && n >= 2, "no CONNACK but {t:#x}");
            let (present, code) = (rbuf[h] & 1 == 1, rbuf[h + 1]);
            rbuf.advance(h + n);
            ensure!(code == 0, "CONNACK code {code}");
            return Ok((s, present));
        }
        ensure!(s.read_buf(rbuf).await? > 0, "closed before CONNACK");
    }
}

async fn subscribe(s: &mut TcpStream, filters: &[String], qos: u8, rbuf: &mut BytesMut) -> Result<()> {
    let mut b = BytesMut::new();
    put_subscribe(&mut b, 1, filters, qos);
    s.write_all(&b).await?;
    loop {
        while let Some((t, h, n)) = frame(rbuf)? {
            if t == 0x90 {
                ensure!(rbuf[h + 2..h + n].iter().all(|c| *c <= 2), "SUBACK refused");
                rbuf.advance(h + n);
                return Ok(());
            }
            rbuf.advance(h + n); // retained messages that overtook the SUBACK
        }
        ensure!(s.read_buf(rbuf).await? > 0, "closed before SUBACK");
    }
}

struct PubOut {
    sent: Vec<(u32, u64)>,
    ack_lat: hdrhistogram::Histogram<u64>,
    unacked: u64,
}

async fn publisher(
    s: TcpStream,
    mut rbuf: BytesMut,
    id: u32,
    a: Arc<MqttArgs>,
    pr: Arc<Progress>,
) -> Result<PubOut> {
    let p = &a.pattern;
    let topics = p.pub_topics(id);
    let names: Vec<String> = topics.iter().map(|t| format!("{}/{t}", a.prefix)).collect();
    let avg_copies = (topics.iter().map(|t| p.copies(*t)).sum::<u64>() / topics.len() as u64).max(1);
    let mut seqs = vec![0u32; topics.len()];
    let size = p.size.max(STAMP_LEN);
    let filler = vec![0x2eu8; size];
    let first = 0x30 | (a.qos << 1) | a.retain as u8;
    let budget = p.budget(id);
    let mut sched = (p.rate > 0.0).then(|| Schedule::new(p.rate / p.pubs as f64, id as f64 / p.pubs as f64));
    let timer = PreciseTimer::new()?;
    let mut sent_at = vec![0u64; if a.qos > 0 { 65536 } else { 0 }];
    let mut next_pid = 1u16;
    let (mut inflight, mut n) = (0usize, 0u64);
    let mut wbuf = BytesMut::with_capacity(a.batch_bytes * 2);
    let mut ack_lat = hist();
    let window = p.window.clamp(1, 60000);
    let (mut slack, mut stall_since, mut stall_recv) = (0u64, 0u64, 0u64);
    pr.mark_first();
    let deadline = p.deadline();
    let mut last_progress = now_ns();

    loop {
        let mut due = None;
        let mut blocked = false;
        let mut now = now_ns();
        let over = n >= budget || now >= deadline;
        while !over && n < budget && wbuf.len() < a.batch_bytes {
            if a.qos > 0 && inflight >= window {
                break;
            }
            let (mut ts, mut lag_us) = (now, 0);
            if let Some(sc) = &mut sched {
                let d = sc.due();
                if d > now {
                    due = Some(d);
                    break;
                }
                sc.advance();
                ts = d;
                lag_us = ((now - d) / 1000) as u32;
            }
            if p.e2e_window > 0 {
                let r = pr.received.load(Ordering::Relaxed);
                let expected = (pr.sent.load(Ordering::Relaxed) + 1) * avg_copies;
                if expected > r + slack + p.e2e_window * avg_copies {
                    if r != stall_recv || stall_since == 0 {
                        (stall_recv, stall_since) = (r, now);
                    } else if now - stall_since > 300_000_000 {
                        slack = expected - r; // lost for good: go on from here
                        stall_since = 0;
                    }
                    blocked = true;
                    break;
                }
                stall_since = 0;
            }
            let k = (n % topics.len() as u64) as usize;
            wbuf.put_u8(first);
            put_len(&mut wbuf, 2 + names[k].len() + if a.qos > 0 { 2 } else { 0 } + size);
            put_str(&mut wbuf, &names[k]);
            if a.qos > 0 {
                while sent_at[next_pid as usize] != 0 || next_pid == 0 {
                    next_pid = next_pid.wrapping_add(1);
                }
                wbuf.put_u16(next_pid);
                sent_at[next_pid as usize] = now;
                next_pid = next_pid.wrapping_add(1);
                inflight += 1;
            }
            let at = wbuf.len();
            wbuf.put_slice(&filler);
            Stamp { publisher: id as u16, topic: topics[k], seq: seqs[k], lag_us, ts }.write(&mut wbuf[at..]);
            seqs[k] += 1;
            n += 1;
            pr.sent.fetch_add(1, Ordering::Relaxed);
            if n % 32 == 0 {
                now = now_ns();
            }
        }
        if over && wbuf.is_empty() && inflight == 0 {
            break;
        }
        let mut moved = false;
        if !wbuf.is_empty() {
            match s.try_write(&wbuf) {
                Ok(k) => {
                    wbuf.advance(k);
                    moved = true;
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e).context("publisher write"),
            }
        }
        if rbuf.capacity() - rbuf.len() < 4096 {
            rbuf.reserve(65536);
        }
        match s.try_read_buf(&mut rbuf) {
            Ok(0) => {
                eprintln!("publisher {id}: server closed the connection, {inflight} unacknowledged");
                break;
            }
            Ok(_) => {
                moved = true;
                let now = now_ns();
                let mut acked = 0;
                while let Some((t, h, len)) = frame(&rbuf)? {
                    let pid = if len >= 2 { u16::from_be_bytes([rbuf[h], rbuf[h + 1]]) } else { 0 };
                    match t & 0xf0 {
                        0x40 | 0x70 => {
                            let at = std::mem::take(&mut sent_at[pid as usize]);
                            if at == 0 {
                                bail!("acknowledgement of a packet not in flight: {pid}");
                            }
                            let _ = ack_lat.record((now - at).max(100));
                            inflight -= 1;
                            acked += 1;
                        }
                        0x50 => put_ack(&mut wbuf, 0x62, pid),
                        0xd0 => {}
                        _ => bail!("unexpected packet {t:#x} at a publisher"),
                    }
                    rbuf.advance(h + len);
                }
                pr.acked.fetch_add(acked, Ordering::Relaxed);
                pr.last_ack_ns.store(now, Ordering::Relaxed);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e).context("publisher read"),
        }
        if moved {
            last_progress = now_ns();
            tokio::task::yield_now().await;
        } else {
            if over && now_ns() - last_progress > 5_000_000_000 {
                eprintln!("publisher {id}: {inflight} still unacknowledged after 5 s");
                break;
            }
            let interest =
                if wbuf.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            tokio::select! {
                r = s.ready(interest) => { r?; }
                _ = timer.until(due.unwrap_or(0)), if due.is_some() => {}
                _ = timer.until(now + 50_000), if blocked => {}
                _ = tokio::time::sleep(Duration::from_millis(1000)), if over => {}
            }
        }
    }
    let _ = s.try_write(&[0xe0, 0]);
    let sent = topics.iter().copied().zip(seqs.iter().map(|x| *x as u64)).collect();
    Ok(PubOut { sent, ack_lat, unacked: inflight as u64 })
}

async fn subscriber(
    s: TcpStream,
    mut rbuf: BytesMut,
    pr: Arc<Progress>,
    stop: CancellationToken,
) -> Result<Receipt> {
    let mut rc = Receipt::default();
    let mut wbuf = BytesMut::with_capacity(16384);
    let mut held = vec![false; 65536]; // QoS 2 packet ids between PUBLISH and PUBREL
    let mut stopping = false;
    loop {
        let mut moved = false;
        if rbuf.capacity() - rbuf.len() < 16384 {
            rbuf.reserve(262144);
        }
        match s.try_read_buf(&mut rbuf) {
            Ok(0) => {
                eprintln!("subscriber: server closed the connection");
                break;
            }
            Ok(_) => {
                moved = true;
                let now = now_ns();
                let mut got = 0u64;
                while let Some((t, h, n)) = frame(&rbuf)? {
                    let body = &rbuf[h..h + n];
                    match t & 0xf0 {
                        0x30 => {
                            let qos = (t >> 1) & 3;
                            let tl = u16::from_be_bytes([body[0], body[1]]) as usize;
                            let mut at = 2 + tl;
                            let mut deliver = true;
                            if qos > 0 {
                                let pid = u16::from_be_bytes([body[at], body[at + 1]]);
                                at += 2;
                                if qos == 1 {
                                    put_ack(&mut wbuf, 0x40, pid);
                                } else {
                                    deliver = !std::mem::replace(&mut held[pid as usize], true);
                                    put_ack(&mut wbuf, 0x50, pid);
                                }
                            }
                            if deliver {
                                rc.take(&body[at..], now);
                                got += 1;
                            }
                        }
                        0x60 => {
                            let pid = u16::from_be_bytes([body[0], body[1]]);
                            held[pid as usize] = false;
                            put_ack(&mut wbuf, 0x70, pid);
                        }
                        0xd0 | 0x90 => {}
                        _ => bail!("unexpected packet {t:#x} at a subscriber"),
                    }
                    rbuf.advance(h + n);
                }
                pr.received.fetch_add(got, Ordering::Relaxed);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => {
                eprintln!("subscriber read: {e}");
                break;
            }
        }
        if !wbuf.is_empty() {
            match s.try_write(&wbuf) {
                Ok(k) => {
                    wbuf.advance(k);
                    moved = true;
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => {
                    eprintln!("subscriber write: {e}");
                    break;
                }
            }
        }
        if moved {
            tokio::task::yield_now().await;
            continue;
        }
        if stopping && wbuf.is_empty() {
            break;
        }
        let interest =
            if wbuf.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        tokio::select! {
            r = s.ready(interest) => { r?; }
            _ = stop.cancelled(), if !stopping => { stopping = true; }
        }
    }
    let _ = s.try_write(&[0xe0, 0]);
    Ok(rc)
}

pub async fn run(a: MqttArgs) -> Result<()> {
    let a = Arc::new(a);
    let p = &a.pattern;
    let offline = p.phase != Phase::Live;
    let clean = !(a.persistent || offline);
    let sub_qos = a.sub_qos.unwrap_or(a.qos);
    let run_id = std::process::id();
    let pr = Arc::new(Progress::default());
    let stop = CancellationToken::new();
    let filters = |i: u32| -> Vec<String> {
        p.sub_topics(i)
            .iter()
            .map(|t| match p.fanout {
                Fanout::Queue => format!("$share/lg/{}/{t}", a.prefix),
                _ => format!("{}/{t}", a.prefix),
            })
            .collect()
    };

    let mut m = Map::new();
    m.insert("system".into(), json!("mqtt"));
    p.describe(&mut m);
    m.insert("qos".into(), json!(a.qos));
    m.insert("phase".into(), json!(format!("{:?}", p.phase)));

    let mut subs = Vec::new();
    for i in 0..p.subs {
        let mut rbuf = BytesMut::with_capacity(65536);
        let (mut s, _) = open(a.addr, None, &format!("lg-s{run_id}-{i}"), clean, &mut rbuf).await?;
        subscribe(&mut s, &filters(i), sub_qos, &mut rbuf).await?;
        if offline {
            // leaves a subscription behind
            if !a.abrupt {
                s.write_all(&[0xe0, 0]).await?;
            }
            let _ = s.shutdown().await;
        } else {
            subs.push(tokio::spawn(subscriber(s, rbuf, pr.clone(), stop.clone())));
        }
    }
    let mut pubs = Vec::new();
    for i in 0..p.pubs {
        let mut rbuf = BytesMut::with_capacity(4096);
        let (s, _) = open(a.addr, None, &format!("lg-p{run_id}-{i}"), true, &mut rbuf).await?;
        pubs.push((i, s, rbuf));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;

    let meter = Meter::start(&p.server_pid);
    let handles: Vec<_> =
        pubs.into_iter().map(|(i, s, b)| tokio::spawn(publisher(s, b, i, a.clone(), pr.clone()))).collect();
    let mut sent: HashMap<u32, u64> = HashMap::new();
    let mut ack_lat = hist();
    let mut unacked = 0;
    for h in handles {
        let o = h.await??;
        for (t, n) in o.sent {
            *sent.entry(t).or_default() += n;
        }
        ack_lat.add(&o.ack_lat).unwrap();
        unacked += o.unacked;
    }
    let pub_end = now_ns();
    let t0 = pr.first_send_ns.load(Ordering::Relaxed);
    let total: u64 = sent.values().sum();
    let expected: u64 = sent.iter().map(|(t, n)| n * p.copies(*t)).sum();
    m.insert("sent".into(), json!(total));
    m.insert("pub_msgs_s".into(), r0(total as f64 / ((pub_end - t0) as f64 / 1e9)));
    if !ack_lat.is_empty() {
        m.insert("ack_us".into(), quantiles(&ack_lat));
        m.insert("unacked".into(), json!(unacked));
    }

    let mut drain_t0 = 0;
    if p.phase == Phase::EnqueueDrain {
        m.insert("enqueue_res".into(), Value::Object(meter.stop()));
        drain_t0 = now_ns();
        for i in 0..p.subs {
            let mut rbuf = BytesMut::with_capacity(262144);
            let (s, present) = open(a.addr, None, &format!("lg-s{run_id}-{i}"), false, &mut rbuf).await?;
            if !present {
                eprintln!("session of subscriber {i} is gone");
            }
            subs.push(tokio::spawn(subscriber(s, rbuf, pr.clone(), stop.clone())));
        }
    }
    if p.phase != Phase::Enqueue {
        wait_received(&pr, expected, p.idle()).await;
    }
    let mut res = meter.stop();
    stop.cancel();
    let mut recs = Vec::new();
    for s in subs {
        recs.push(s.await??);
    }
    finish_receipts(&mut m, &recs, expected, p.fanout == Fanout::Queue, t0, drain_t0);
    m.append(&mut res);
    if !clean {
        for i in 0..p.subs {
            // clears the sessions
            let mut rbuf = BytesMut::new();
            if let Ok((mut s, _)) = open(a.addr, None, &format!("lg-s{run_id}-{i}"), true, &mut rbuf).await {
                let _ = s.write_all(&[0xe0, 0]).await;
            }
        }
    }
    emit(m);
    Ok(())
}

// ------------------------------------------------------------ idle connections

#[derive(Args, Clone, Debug)]
pub struct ConnsArgs {
    #[arg(long, default_value = "127.0.0.1:1883")]
    pub addr: SocketAddr,
    #[arg(long, default_value_t = 10_000)]
    pub conns: u32,
    /// connections being set up at once
    #[arg(long, default_value_t = 64)]
    pub parallel: usize,
    /// source addresses 127.0.0.2, … to spread over
    #[arg(long, default_value_t = 1)]
    pub sources: u32,
    /// of the subscriptions and of the one message to each
    #[arg(long, default_value_t = 0)]
    pub qos: u8,
    #[arg(long, default_value_t = 100)]
    pub size: usize,
    /// idle time before memory is read, s
    #[arg(long, default_value_t = 2.0)]
    pub hold: f64,
    #[arg(long)]
    pub server_pid: Vec<u32>,
    #[arg(long, default_value = "")]
    pub label: String,
}

async fn idle_conn(mut s: TcpStream, mut rbuf: BytesMut, got: Arc<AtomicU64>) -> Option<(u64, u64)> {
    loop {
        while let Some((t, h, n)) = frame(&rbuf).ok()? {
            if t & 0xf0 == 0x30 {
                let now = now_ns();
                let body = &rbuf[h..h + n];
                let qos = (t >> 1) & 3;
                let mut at = 2 + u16::from_be_bytes([body[0], body[1]]) as usize;
                if qos > 0 {
                    let mut b = BytesMut::new();
                    put_ack(&mut b, 0x40, u16::from_be_bytes([body[at], body[at + 1]]));
                    at += 2;
                    s.write_all(&b).await.ok()?;
                }
                let st = Stamp::read(&body[at..])?;
                got.fetch_add(1, Ordering::Relaxed);
                let r = (st.ts, now);
                // stay connected until the process ends
                std::mem::forget(s);
                return Some(r);
            }
            rbuf.advance(h + n);
        }
        rbuf.reserve(512);
        if s.read_buf(&mut rbuf).await.ok()? == 0 {
            return None;
        }
    }
}

pub async fn run_conns(a: ConnsArgs) -> Result<()> {
    let nofile = raise_nofile();
    ensure!(nofile > a.conns as u64 + 50, "open-file limit {nofile} is too low for {} connections", a.conns);
    let rss = |key: &str| a.server_pid.iter().map(|p| status_kb(*p, key)).sum::<u64>();
    let rss0 = rss("VmRSS");
    let meter = Meter::start(&a.server_pid);
    let got = Arc::new(AtomicU64::new(0));
    let failed = Arc::new(AtomicU64::new(0));
    let next = Arc::new(AtomicU64::new(0));
    let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
    let t0 = now_ns();
    let run_id = std::process::id();
    let mut setters = Vec::new();
    for _ in 0..a.parallel {
        let (a, got, failed, next, tx) = (a.clone(), got.clone(), failed.clone(), next.clone(), tx.clone());
        setters.push(tokio::spawn(async move {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed) as u32;
                if i >= a.conns {
                    return;
                }
                let src = (a.sources > 1).then(|| Ipv4Addr::new(127, 0, 0, 2 + (i % a.sources) as u8));
                let one = async {
                    let mut rbuf = BytesMut::with_capacity(64);
                    let (mut s, _) = open(a.addr, src, &format!("lg-c{run_id}-{i}"), true, &mut rbuf).await?;
                    subscribe(&mut s, &[format!("lgc/{i}")], a.qos, &mut rbuf).await?;
                    anyhow::Ok((s, rbuf))
                };
                match tokio::time::timeout(Duration::from_secs(20), one).await {
                    Ok(Ok((s, rbuf))) => {
                        let _ = tx.send(tokio::spawn(idle_conn(s, rbuf, got.clone())));
                    }
                    Ok(Err(e)) => {
                        if failed.fetch_add(1, Ordering::Relaxed) == 0 {
                            eprintln!("connection {i}: {e:#}");
                        }
                    }
                    Err(_) => {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }));
    }
    for s in setters {
        s.await?;
    }
    drop(tx);
    let connect_s = (now_ns() - t0) as f64 / 1e9;
    let mut tasks = Vec::new();
    while let Some(t) = rx.recv().await {
        tasks.push(t);
    }
    tokio::time::sleep(Duration::from_secs_f64(a.hold)).await;
    let rss1 = rss("VmRSS");
    let cpu_before_idle: f64 = a.server_pid.iter().map(|p| cpu_of(*p)).sum();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle_cpu = a.server_pid.iter().map(|p| cpu_of(*p)).sum::<f64>() - cpu_before_idle;

    // one message to each
    let ok = tasks.len() as u64;
    let mut rbuf = BytesMut::new();
    let (s, _) = open(a.addr, None, &format!("lg-cp{run_id}"), true, &mut rbuf).await?;
    let (mut rd, mut wr) = s.into_split();
    let reader = tokio::spawn(async move {
        let mut b = BytesMut::with_capacity(4096);
        while let Ok(n) = rd.read_buf(&mut b).await {
            if n == 0 {
                break;
            }
            b.clear();
        }
    });
    let size = a.size.max(STAMP_LEN);
    let filler = vec![0x2eu8; size];
    let t1 = now_ns();
    let mut b = BytesMut::new();
    for i in 0..a.conns {
        let name = format!("lgc/{i}");
        b.put_u8(0x30 | (a.qos << 1));
        put_len(&mut b, 2 + name.len() + if a.qos > 0 { 2 } else { 0 } + size);
        put_str(&mut b, &name);
        if a.qos > 0 {
            b.put_u16((i % 65535 + 1) as u16);
        }
        let at = b.len();
        b.put_slice(&filler);
        Stamp { publisher: 0, topic: i, seq: 0, lag_us: 0, ts: now_ns() }.write(&mut b[at..]);
        if b.len() > 4096 {
            wr.write_all(&b).await?;
            b.clear();
            // bounded: servers drop when one publisher runs far ahead
            while i as u64 > got.load(Ordering::Relaxed) + 500 && now_ns() - t1 < 20_000_000_000 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    wr.write_all(&b).await?;
    let end = now_ns() + 10_000_000_000;
    while got.load(Ordering::Relaxed) < ok && now_ns() < end {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let spread_s = (now_ns() - t1) as f64 / 1e9;
    let mut lat = hist();
    for t in tasks {
        if t.is_finished() {
            if let Ok(Some((ts, now))) = t.await {
                let _ = lat.record((now - ts).max(100));
            }
        } else {
            t.abort();
        }
    }
    reader.abort();
    let mut m = Map::new();
    m.insert("system".into(), json!("mqtt-conns"));
    if !a.label.is_empty() {
        m.insert("label".into(), json!(a.label));
    }
    m.insert("conns_asked".into(), json!(a.conns));
    m.insert("conns".into(), json!(ok));
    m.insert("failed".into(), json!(failed.load(Ordering::Relaxed)));
    m.insert("connect_rate_s".into(), r0(ok as f64 / connect_s));
    m.insert("rss_before_kb".into(), json!(rss0));
    m.insert("rss_after_kb".into(), json!(rss1));
    m.insert("rss_per_conn_bytes".into(), r0((rss1 as f64 - rss0 as f64) * 1024.0 / ok.max(1) as f64));
    m.insert("idle_cpu_2s".into(), r2(idle_cpu));
    m.insert("delivered".into(), json!(got.load(Ordering::Relaxed)));
    m.insert("lost".into(), json!(ok - got.load(Ordering::Relaxed).min(ok)));
    m.insert("msgs_s".into(), r0(got.load(Ordering::Relaxed) as f64 / spread_s));
    m.insert("lat_us".into(), quantiles(&lat));
    m.append(&mut meter.stop());
    emit(m);
    Ok(())
}
