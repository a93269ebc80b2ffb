//! What the gRPC stack alone can do: a bare echo server and its client.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use clap::{Args, ValueEnum};
use futures::{Stream, StreamExt};
use serde_json::{Map, json};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::common::*;
use crate::pattern::*;

pub mod pb {
    tonic::include_proto!("loadgen.echo.v1");
}
use pb::echo_client::EchoClient;
use pb::echo_server::{Echo, EchoServer};
use pb::{Batch, Item};

// -------------------------------------------------------------------- server

#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    #[arg(long, default_value = "127.0.0.1:50099")]
    pub addr: SocketAddr,
    #[arg(long, default_value_t = 2)]
    pub server_threads: usize,
    /// 0: the library's default flow-control windows
    #[arg(long, default_value_t = 0)]
    pub h2_window: u32,
}

struct Svc;
type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Echo for Svc {
    async fn unary(&self, r: Request<Item>) -> Result<Response<Item>, Status> {
        Ok(Response::new(r.into_inner()))
    }
    type BidiStream = Out<Item>;
    async fn bidi(&self, r: Request<Streaming<Item>>) -> Result<Response<Out<Item>>, Status> {
        Ok(Response::new(Box::pin(r.into_inner())))
    }
    type BidiBatchStream = Out<Batch>;
    async fn bidi_batch(&self, r: Request<Streaming<Batch>>) -> Result<Response<Out<Batch>>, Status> {
        Ok(Response::new(Box::pin(r.into_inner())))
    }
}

pub async fn serve(a: ServerArgs) -> Result<()> {
    let w = (a.h2_window > 0).then_some(a.h2_window);
    eprintln!("echo server on {}, pid {}", a.addr, std::process::id());
    Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(w)
        .initial_connection_window_size(w)
        .add_service(EchoServer::new(Svc))
        .serve(a.addr)
        .await?;
    Ok(())
}

// -------------------------------------------------------------------- client

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EchoMode {
    Unary,
    Bidi,
}

#[derive(Args, Clone, Debug)]
pub struct EchoArgs {
    #[arg(long, default_value = "127.0.0.1:50099")]
    pub addr: SocketAddr,
    #[arg(long, value_enum, default_value_t = EchoMode::Unary)]
    pub mode: EchoMode,
    /// messages per gRPC frame (bidi)
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    #[arg(long, default_value_t = 0)]
    pub h2_window: u32,
    #[command(flatten)]
    pub pattern: PatternArgs,
}

async fn channel(a: &EchoArgs) -> Result<Channel> {
    let w = (a.h2_window > 0).then_some(a.h2_window);
    Ok(Endpoint::from_shared(format!("http://{}", a.addr))?
        .tcp_nodelay(true)
        .initial_stream_window_size(w)
        .initial_connection_window_size(w)
        .connect()
        .await?)
}

pub async fn run(mut a: EchoArgs) -> Result<()> {
    match a.mode {
        EchoMode::Unary => {
            a.pattern.answers_itself();
            let p = a.pattern.clone();
            crate::pattern::run(Unary { a }, p).await
        }
        EchoMode::Bidi => run_bidi(a).await,
    }
}

struct Unary {
    a: EchoArgs,
}
pub struct UnaryPub(EchoClient<Channel>);
pub struct Nobody;

impl Publisher for UnaryPub {
    async fn send(&mut self, _t: u32, payload: Bytes) -> Result<Ack> {
        let mut c = self.0.clone();
        Ok(Ack::Pending(Box::pin(async move {
            let n = payload.len();
            let r = c.unary(Item { payload }).await?;
            anyhow::ensure!(r.get_ref().payload.len() == n, "echo differs");
            Ok(())
        })))
    }
    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Consumer for Nobody {
    type Token = ();
    async fn recv(&mut self, _: &mut Vec<Delivery<()>>) -> Result<()> {
        std::future::pending().await
    }
    async fn ack(&mut self, b: &mut Vec<Delivery<()>>) -> Result<()> {
        b.clear();
        Ok(())
    }
    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

impl System for Unary {
    type P = UnaryPub;
    type C = Nobody;
    fn name(&self) -> String {
        "grpc-unary".into()
    }
    async fn setup(&self, _: &PatternArgs) -> Result<()> {
        Ok(())
    }
    async fn publisher(&self, _: u32) -> Result<UnaryPub> {
        Ok(UnaryPub(EchoClient::new(channel(&self.a).await?)))
    }
    async fn consumer(&self, _: u32, _: Vec<u32>) -> Result<Nobody> {
        Ok(Nobody)
    }
}

enum Tx {
    One(tokio::sync::mpsc::Sender<Item>),
    Many(tokio::sync::mpsc::Sender<Batch>),
}

async fn bidi_one(a: EchoArgs, id: u32, pr: Arc<Progress>) -> Result<(u64, Receipt)> {
    let p = &a.pattern;
    let batch = a.batch.max(1);
    let frames = (p.window / batch).max(1);
    let mut cl = EchoClient::new(channel(&a).await?);
    let size = p.size.max(STAMP_LEN);
    let (tx, mut rx): (Tx, Out<Vec<Bytes>>) = if batch == 1 {
        let (tx, q) = tokio::sync::mpsc::channel::<Item>(frames + 1);
        let s = cl.bidi(ReceiverStream::new(q)).await?.into_inner();
        (Tx::One(tx), Box::pin(s.map(|r| r.map(|i| vec![i.payload]))))
    } else {
        let (tx, q) = tokio::sync::mpsc::channel::<Batch>(frames + 1);
        let s = cl.bidi_batch(ReceiverStream::new(q)).await?.into_inner();
        (Tx::Many(tx), Box::pin(s.map(|r| r.map(|b| b.payloads))))
    };
    let mut pool = BytesMut::new();
    let (mut n, mut back, mut inflight) = (0u64, 0u64, 0usize);
    let (budget, deadline) = (p.budget(id), p.deadline());
    let mut rc = Receipt::default();
    pr.mark_first();
    loop {
        let now = now_ns();
        let open = n < budget && now < deadline;
        while open && inflight < frames && n < budget {
            let now = now_ns();
            let mut make = || {
                if pool.capacity() < size {
                    pool.reserve(size * 256);
                }
                pool.resize(size, 0x2e);
                Stamp { publisher: id as u16, topic: 0, seq: n as u32, lag_us: 0, ts: now }
                    .write(&mut pool[..]);
                n += 1;
                pool.split().freeze()
            };
            match &tx {
                Tx::One(t) => t.send(Item { payload: make() }).await?,
                Tx::Many(t) => t.send(Batch { payloads: (0..batch).map(|_| make()).collect() }).await?,
            }
            inflight += 1;
        }
        if inflight == 0 {
            break;
        }
        let r = rx.next().await.ok_or_else(|| anyhow::anyhow!("stream ended"))??;
        let now = now_ns();
        inflight -= 1;
        back += r.len() as u64;
        for b in &r {
            rc.take(b, now);
        }
        pr.received.store(back, Ordering::Relaxed);
    }
    Ok((n, rc))
}

async fn run_bidi(a: EchoArgs) -> Result<()> {
    let mut m = Map::new();
    m.insert("system".into(), json!(format!("grpc-bidi-batch{}", a.batch)));
    a.pattern.describe(&mut m);
    let meter = Meter::start(&a.pattern.server_pid);
    let pr = Arc::new(Progress::default());
    let hs: Vec<_> = (0..a.pattern.pubs).map(|i| tokio::spawn(bidi_one(a.clone(), i, pr.clone()))).collect();
    let (mut sent, mut recs) = (0, Vec::new());
    for h in hs {
        let (n, r) = h.await??;
        sent += n;
        recs.push(r);
    }
    m.insert("sent".into(), json!(sent));
    finish_receipts(&mut m, &recs, sent, false, pr.first_send_ns.load(Ordering::Relaxed), 0);
    m.append(&mut meter.stop());
    emit(m);
    Ok(())
}
