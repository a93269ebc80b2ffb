//! A bare forwarder of MQTT 3.1.1: it reads PUBLISH, frames it anew and writes it to the subscribers of exactly that topic.
//!
//! No broker: no wildcards, sessions, retained values or limits of windows, nothing is stored or sent again. What it reaches
//! is what the machine and the generator allow. Messages at QoS 1 and 2 are acknowledged at once and forwarded at that QoS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail, ensure};
use bytes::{Buf, BufMut, BytesMut};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::packet::*;

/// Bytes that may wait for one subscriber; beyond it its publishers are not read.
const OUTBOX: usize = 8 << 20;

#[derive(Args, Clone, Debug)]
pub struct ForwarderArgs {
    #[arg(long, default_value = "127.0.0.1:21883")]
    pub addr: SocketAddr,
    #[arg(long, default_value_t = 1)]
    pub server_threads: usize,
}

/// What waits to be written to one connection.
#[derive(Default)]
struct Outbox {
    bytes: Mutex<BytesMut>,
    filled: Notify,
    emptied: Notify,
    closed: AtomicU64,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, BytesMut> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire) != 0
    }

    fn close(&self) {
        self.closed.store(1, Ordering::Release);
        self.filled.notify_one();
        self.emptied.notify_waiters();
    }

    /// Waits until there is room.
    async fn room(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.is_closed() || self.lock().len() < OUTBOX {
                return;
            }
            emptied.await;
        }
    }
}

type Targets = Arc<Vec<(Arc<Outbox>, u8)>>;

/// Who has subscribed to which topic.
#[derive(Default)]
struct Topics {
    subscribers: Mutex<HashMap<Vec<u8>, Targets>>,
    /// counts changes, so that connections may remember what they found
    changes: AtomicU64,
}

impl Topics {
    fn change(&self, change: impl FnOnce(&mut HashMap<Vec<u8>, Targets>)) {
        change(&mut self.subscribers.lock().unwrap_or_else(PoisonError::into_inner));
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn of(&self, topic: &[u8]) -> Targets {
        let subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.get(topic).cloned().unwrap_or_default()
    }
}

pub async fn serve(a: ForwarderArgs) -> Result<()> {
    let listener = TcpListener::bind(a.addr).await?;
    eprintln!("bare MQTT forwarder on {}, pid {}", a.addr, std::process::id());
    let topics = Arc::new(Topics::default());
    loop {
        let (socket, peer) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let topics = topics.clone();
        tokio::spawn(async move {
            let outbox = Arc::new(Outbox::default());
            if let Err(e) = connection(socket, &topics, &outbox).await {
                eprintln!("{peer}: {e:#}");
            }
            outbox.close();
            topics.change(|all| {
                for targets in all.values_mut() {
                    if targets.iter().any(|(o, _)| Arc::ptr_eq(o, &outbox)) {
                        Arc::make_mut(targets).retain(|(o, _)| !Arc::ptr_eq(o, &outbox));
                    }
                }
            });
        });
    }
}

async fn writer(mut socket: OwnedWriteHalf, outbox: Arc<Outbox>) {
    let mut taken = BytesMut::new();
    loop {
        std::mem::swap(&mut *outbox.lock(), &mut taken);
        if taken.is_empty() {
            if outbox.is_closed() {
                return;
            }
            outbox.filled.notified().await;
            continue;
        }
        outbox.emptied.notify_waiters();
        if socket.write_all(&taken).await.is_err() {
            outbox.close();
            return;
        }
        taken.clear();
    }
}

/// What one connection remembers while it reads.
struct Reader<'a> {
    topics: &'a Topics,
    outbox: &'a Arc<Outbox>,
    topic: Vec<u8>,
    targets: Targets,
    seen: u64,
    next_id: u16,
}

async fn connection(socket: TcpStream, topics: &Topics, outbox: &Arc<Outbox>) -> Result<()> {
    let (mut read, write) = socket.into_split();
    tokio::spawn(writer(write, outbox.clone()));
    let mut reader =
        Reader { topics, outbox, topic: Vec::new(), targets: Targets::default(), seen: u64::MAX, next_id: 0 };
    let mut bytes = BytesMut::with_capacity(65536);
    loop {
        let goes_on = reader.take(&mut bytes)?;
        if !goes_on || outbox.is_closed() {
            return Ok(());
        }
        for (target, _) in reader.targets.iter() {
            target.room().await;
        }
        bytes.reserve(65536);
        if read.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
}

impl Reader<'_> {
    /// Takes all whole packets; false after DISCONNECT.
    fn take(&mut self, bytes: &mut BytesMut) -> Result<bool> {
        let mut at = 0;
        // Neighbours at QoS 0 on one topic go out together.
        let mut run: Range<usize> = 0..0;
        let mut goes_on = true;
        while let Some((first, head, len)) = frame(&bytes[at..])? {
            let packet = at..at + head + len;
            let body = at + head..packet.end;
            at = packet.end;
            if first & 0xf0 != 0x30 {
                goes_on = self.other(first, &bytes[body])?;
                continue;
            }
            ensure!(len >= 2, "PUBLISH without a topic");
            let topic_len = u16::from_be_bytes([bytes[body.start], bytes[body.start + 1]]) as usize;
            let qos = (first >> 1) & 3;
            let payload = body.start + 2 + topic_len + if qos > 0 { 2 } else { 0 };
            ensure!(payload <= body.end, "PUBLISH that ends early");
            let topic = &bytes[body.start + 2..body.start + 2 + topic_len];
            let changes = self.topics.changes.load(Ordering::Acquire);
            if topic != self.topic || changes != self.seen {
                self.send_run(&bytes[run.clone()]);
                run = packet.start..packet.start;
                self.topic = topic.to_vec();
                self.targets = self.topics.of(topic);
                self.seen = changes;
            }
            if first == 0x30 && run.end == packet.start {
                run.end = packet.end;
                continue;
            }
            self.send_run(&bytes[run.clone()]);
            run = packet.end..packet.end;
            if qos == 0 {
                self.send_run(&bytes[packet]);
                continue;
            }
            self.forward(qos, &bytes[payload..body.end]);
            let answer = if qos == 1 { 0x40 } else { 0x50 };
            put_ack(
                &mut self.outbox.lock(),
                answer,
                u16::from_be_bytes([bytes[payload - 2], bytes[payload - 1]]),
            );
        }
        self.send_run(&bytes[run]);
        bytes.advance(at);
        self.outbox.filled.notify_one();
        Ok(goes_on)
    }

    /// Whole packets at QoS 0, to all subscribers of the topic.
    fn send_run(&self, packets: &[u8]) {
        if !packets.is_empty() {
            for (target, _) in self.targets.iter() {
                target.lock().extend_from_slice(packets);
                target.filled.notify_one();
            }
        }
    }

    fn forward(&mut self, qos: u8, payload: &[u8]) {
        for (target, granted) in self.targets.iter() {
            let qos = qos.min(*granted);
            let mut out = target.lock();
            out.put_u8(0x30 | (qos << 1));
            put_len(&mut out, 2 + self.topic.len() + if qos > 0 { 2 } else { 0 } + payload.len());
            out.put_u16(self.topic.len() as u16);
            out.put_slice(&self.topic);
            if qos > 0 {
                self.next_id = self.next_id.checked_add(1).unwrap_or(1);
                out.put_u16(self.next_id);
            }
            out.put_slice(payload);
            drop(out);
            target.filled.notify_one();
        }
    }

    /// Any packet but PUBLISH; false for DISCONNECT.
    fn other(&mut self, first: u8, body: &[u8]) -> Result<bool> {
        let id = || body.get(..2).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
        let mut out = self.outbox.lock();
        match first & 0xf0 {
            0x10 => out.put_slice(&[0x20, 2, 0, 0]),
            0x50 => put_ack(&mut out, 0x62, id()),
            0x60 => put_ack(&mut out, 0x70, id()),
            0x40 | 0x70 => {}
            0x80 => {
                let granted = self.subscribe(&body[2..])?;
                out.put_u8(0x90);
                put_len(&mut out, 2 + granted.len());
                out.put_u16(id());
                out.put_slice(&granted);
            }
            0xc0 => out.put_slice(&[0xd0, 0]),
            0xe0 => return Ok(false),
            _ => bail!("unexpected packet {first:#x}"),
        }
        Ok(true)
    }

    fn subscribe(&self, mut filters: &[u8]) -> Result<Vec<u8>> {
        let mut granted = Vec::new();
        while filters.len() >= 2 {
            let len = filters.get_u16() as usize;
            ensure!(filters.len() > len, "SUBSCRIBE that ends early");
            let (topic, qos) = (filters[..len].to_vec(), filters[len] & 3);
            filters.advance(len + 1);
            ensure!(!topic.iter().any(|b| b"#+".contains(b)), "the forwarder has no wildcards");
            self.topics.change(|all| {
                Arc::make_mut(all.entry(topic).or_default()).push((self.outbox.clone(), qos));
            });
            granted.push(qos);
        }
        Ok(granted)
    }
}
