//! Many idle connections: how fast they come, what each costs the server, and one message to each.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::{Buf, BufMut, BytesMut};
use clap::Args;
use serde_json::{Map, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::packet::*;
use super::{open, subscribe};
use crate::common::*;

#[derive(Args, Clone, Debug)]
pub struct ConnsArgs {
    #[arg(long, default_value = "127.0.0.1:1883")]
    pub addr: SocketAddr,
    #[arg(long, default_value_t = 10_000)]
    pub conns: u32,
    /// connections being set up at once
    #[arg(long, default_value_t = 64)]
    pub parallel: usize,
    /// source addresses to spread over, others in each run: the ports of the last one's are not free yet
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
                let [.., high, low] = run_id.to_be_bytes();
                let src = (a.sources > 1)
                    .then(|| Ipv4Addr::new(127, 1 + high % 254, low, 2 + (i % a.sources) as u8));
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
