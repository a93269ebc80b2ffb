//! MQTT 3.1.1 load on raw sockets with a minimal packet writer / parser; `library` has the other versions and transports.

mod codec;
mod conns;
mod forward;
mod library;
mod packet;
mod transport;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
use packet::*;

pub use conns::{ConnsArgs, run_conns};
pub use forward::{ForwarderArgs, serve as forward};
pub use library::{LibraryArgs, run as run_library};

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

/// Writes what the socket takes now; whether that was anything.
fn write_some(s: &TcpStream, wbuf: &mut BytesMut) -> std::io::Result<bool> {
    if wbuf.is_empty() {
        return Ok(false);
    }
    match s.try_write(wbuf) {
        Ok(k) => {
            wbuf.advance(k);
            Ok(true)
        }
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
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
        let mut moved = write_some(&s, &mut wbuf).context("publisher write")?;
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

/// What a subscriber makes of what it reads.
struct Sink {
    receipt: Receipt,
    /// QoS 2 packet ids between PUBLISH and PUBREL
    held: Vec<bool>,
}

impl Sink {
    /// Takes all whole packets, and writes what answers them; how many messages were among them.
    fn parse(&mut self, rbuf: &mut BytesMut, wbuf: &mut BytesMut) -> Result<u64> {
        let now = now_ns();
        let mut got = 0;
        while let Some((t, h, n)) = frame(rbuf)? {
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
                            put_ack(wbuf, 0x40, pid);
                        } else {
                            deliver = !std::mem::replace(&mut self.held[pid as usize], true);
                            put_ack(wbuf, 0x50, pid);
                        }
                    }
                    if deliver {
                        self.receipt.take(&body[at..], now);
                        got += 1;
                    }
                }
                0x60 => {
                    let pid = u16::from_be_bytes([body[0], body[1]]);
                    self.held[pid as usize] = false;
                    put_ack(wbuf, 0x70, pid);
                }
                0xd0 | 0x90 => {}
                _ => bail!("unexpected packet {t:#x} at a subscriber"),
            }
            rbuf.advance(h + n);
        }
        Ok(got)
    }
}

async fn subscriber(
    s: TcpStream,
    mut rbuf: BytesMut,
    pr: Arc<Progress>,
    stop: CancellationToken,
) -> Result<Receipt> {
    let mut sink = Sink { receipt: Receipt::default(), held: vec![false; 65536] };
    let mut wbuf = BytesMut::with_capacity(16384);
    let mut stopping = false;
    // What came with CONNACK in one read: the server may have nothing more to send before it is acknowledged.
    pr.received.fetch_add(sink.parse(&mut rbuf, &mut wbuf)?, Ordering::Relaxed);
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
                pr.received.fetch_add(sink.parse(&mut rbuf, &mut wbuf)?, Ordering::Relaxed);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => {
                eprintln!("subscriber read: {e}");
                break;
            }
        }
        match write_some(&s, &mut wbuf) {
            Ok(wrote) => moved |= wrote,
            Err(e) => {
                eprintln!("subscriber write: {e}");
                break;
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
    Ok(sink.receipt)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that has sent CONNACK and its whole window at once waits for acknowledgements before it sends more.
    #[tokio::test]
    async fn what_came_with_connack_is_acknowledged() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut rbuf = BytesMut::new();
        for pid in 1..=3u16 {
            rbuf.put_slice(&[0x32, 2 + 1 + 2 + STAMP_LEN as u8, 0, 1, b't']);
            rbuf.put_u16(pid);
            let mut stamp = [0; STAMP_LEN];
            Stamp { publisher: 0, topic: 0, seq: pid as u32, lag_us: 0, ts: 1 }.write(&mut stamp);
            rbuf.put_slice(&stamp);
        }
        let (progress, stop) = (Arc::new(Progress::default()), CancellationToken::new());
        let reader = tokio::spawn(subscriber(socket, rbuf, progress.clone(), stop.clone()));
        let mut acks = [0; 12];
        tokio::time::timeout(Duration::from_secs(30), server.read_exact(&mut acks)).await.unwrap().unwrap();
        assert_eq!(acks, [0x40, 2, 0, 1, 0x40, 2, 0, 2, 0x40, 2, 0, 3]);
        stop.cancel();
        assert_eq!(reader.await.unwrap().unwrap().tracker.unique(), 3);
        assert_eq!(progress.received.load(Ordering::Relaxed), 3);
    }
}
