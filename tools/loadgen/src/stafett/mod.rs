//! The broker of this repository over gRPC: queues, publish/subscribe, and their unary methods; remote calls.

mod calls;
mod down;
mod lean;
mod setup;
mod unary;
mod up;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use tonic::transport::{Channel, Endpoint};

use self::calls::Caller;
use self::down::{Consume, Session, StreamConsumer, Subscribe};
use self::pb::stafett::v1 as api;
use self::unary::UnaryPublisher;
use self::up::{BatchPublisher, Produce, Publish};
use crate::pattern::*;

#[allow(dead_code, clippy::large_enum_variant, reason = "generated from the whole contract")]
mod pb {
    include!(concat!(env!("OUT_DIR"), "/stafett.rs"));
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Produce and Consume streams
    Queue,
    /// unary Enqueue, `--window` callers; Consume stream
    Enqueue,
    /// PublishStream, and what --subscribe says
    Pubsub,
    /// unary Publish, `--window` callers, and what --subscribe says
    Publish,
    /// unary Call, `--window` callers; a responder in this process answers on a Serve stream
    Call,
}

impl Mode {
    fn is_queue(self) -> bool {
        matches!(self, Mode::Queue | Mode::Enqueue)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SubscribeWith {
    /// Subscribe: at most once, nothing to settle
    Plain,
    /// SubscribeStream: within a window, each delivery settled
    Stream,
}

#[derive(Args, Clone, Debug)]
pub struct StafettArgs {
    #[arg(long, default_value = "127.0.0.1:50051")]
    pub addr: String,
    #[arg(long, value_enum, default_value_t = Mode::Queue)]
    pub mode: Mode,
    /// streams: messages in one frame at most; a frame takes what is there when the window is full
    #[arg(long, default_value_t = 256)]
    pub batch: usize,
    /// 0: at most once, 1: at least once (queues store whatever it is)
    #[arg(long, default_value_t = 1)]
    pub qos: u8,
    #[arg(long, value_enum, default_value_t = SubscribeWith::Stream)]
    pub subscribe: SubscribeWith,
    /// unsettled deliveries allowed to a consumer
    #[arg(long, default_value_t = 1024)]
    pub prefetch: u32,
    /// queues ordered by key: each publisher is a key, and its order is looked at as without
    #[arg(long)]
    pub ordered: bool,
    /// 0: the library's default HTTP/2 flow-control windows
    #[arg(long, default_value_t = 0)]
    pub h2_window: u32,
    #[command(flatten)]
    pub pattern: PatternArgs,
}

pub async fn run(mut a: StafettArgs) -> Result<()> {
    if a.mode == Mode::Call {
        a.pattern.answers_itself();
    }
    let p = &a.pattern;
    ensure!(a.qos <= 1, "QoS 2 is not for gRPC publishers");
    ensure!(a.batch >= 1 && a.prefetch >= 1, "--batch and --prefetch begin at 1");
    ensure!(!a.ordered || a.mode.is_queue(), "--ordered is of queues");
    if a.mode.is_queue() {
        ensure!(
            !a.ordered || p.subs <= p.topics,
            "competing consumers show no order: --ordered needs one a queue"
        );
        ensure!(p.topics <= p.pubs, "a publisher feeds one queue: --topics is at most --pubs");
        ensure!(
            p.subs <= p.topics || p.fanout == Fanout::Queue,
            "consumers of one queue compete: --fanout queue"
        );
        ensure!(p.fanout != Fanout::All || p.topics == 1, "a consumer reads one queue");
        ensure!(p.fanout != Fanout::Queue || p.topics == 1, "a consumer reads one queue");
    }
    let pattern = a.pattern.clone();
    crate::pattern::run(Stafett { a, run: std::process::id() }, pattern).await
}

/// The broker as the runner sees it.
struct Stafett {
    a: StafettArgs,
    /// keeps the names of this run apart
    run: u32,
}

impl Stafett {
    async fn connect(&self) -> Result<Channel> {
        let window = (self.a.h2_window > 0).then_some(self.a.h2_window);
        Endpoint::from_shared(format!("http://{}", self.a.addr))?
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(5))
            .initial_stream_window_size(window)
            .initial_connection_window_size(window)
            .connect()
            .await
            .with_context(|| format!("connect to {}", self.a.addr))
    }

    /// The queue, or the topic, that stands for number `t`.
    fn name(&self, t: u32) -> String {
        if self.a.mode.is_queue() { format!("lg{}-{t}", self.run) } else { format!("lg{}/{t}", self.run) }
    }

    fn names(&self) -> Vec<String> {
        (0..self.a.pattern.topics).map(|t| self.name(t)).collect()
    }

    fn qos(&self) -> api::Qos {
        if self.a.qos == 0 { api::Qos::AtMostOnce } else { api::Qos::AtLeastOnce }
    }

    fn window(&self) -> api::Window {
        api::Window { max_outstanding_messages: self.a.prefetch.min(65_535), max_outstanding_bytes: 0 }
    }

    /// Sessions outlive their stream when nobody is there while publishing.
    fn sessions_stay(&self) -> bool {
        self.a.pattern.phase != Phase::Live
    }
}

fn message(topic: &Bytes, payload: Bytes, qos: api::Qos) -> lean::Message {
    lean::Message { topic: topic.clone(), payload, qos: qos.into(), ordering_key: Bytes::new() }
}

/// What a broker says when it ends a stream.
fn closed(closing: api::StreamClosing) -> anyhow::Error {
    let status = closing.status.unwrap_or_default();
    anyhow::anyhow!("the broker closed the stream: code {}, {}", status.code, status.message)
}

pub enum Up {
    Produce(BatchPublisher<Produce>),
    Publish(BatchPublisher<Publish>),
    Unary(UnaryPublisher),
    Call(Caller),
}

impl Publisher for Up {
    async fn send(&mut self, topic: u32, payload: Bytes) -> Result<Ack> {
        match self {
            Up::Produce(p) => p.send(topic, payload).await,
            Up::Publish(p) => p.send(topic, payload).await,
            Up::Unary(p) => p.send(topic, payload).await,
            Up::Call(p) => p.send(topic, payload).await,
        }
    }

    async fn flush(&mut self) -> Result<()> {
        match self {
            Up::Produce(p) => p.flush().await,
            Up::Publish(p) => p.flush().await,
            Up::Unary(p) => p.flush().await,
            Up::Call(p) => p.flush().await,
        }
    }

    async fn settled(&mut self) -> Result<Settled> {
        match self {
            Up::Produce(p) => p.settled().await,
            Up::Publish(p) => p.settled().await,
            Up::Unary(p) => p.settled().await,
            Up::Call(p) => p.settled().await,
        }
    }
}

pub enum Down {
    Consume(StreamConsumer<Consume>),
    Session(StreamConsumer<Session>),
    Subscribe(StreamConsumer<Subscribe>),
}

impl Consumer for Down {
    /// `delivery_id`; 0 when there is nothing to settle.
    type Token = u64;

    async fn recv(&mut self, out: &mut Vec<Delivery<u64>>) -> Result<()> {
        match self {
            Down::Consume(c) => c.recv(out).await,
            Down::Session(c) => c.recv(out).await,
            Down::Subscribe(c) => c.recv(out).await,
        }
    }

    async fn ack(&mut self, batch: &mut Vec<Delivery<u64>>) -> Result<()> {
        match self {
            Down::Consume(c) => c.ack(batch).await,
            Down::Session(c) => c.ack(batch).await,
            Down::Subscribe(c) => c.ack(batch).await,
        }
    }

    async fn finish(&mut self) -> Result<()> {
        match self {
            Down::Consume(c) => c.finish().await,
            Down::Session(c) => c.finish().await,
            Down::Subscribe(c) => c.finish().await,
        }
    }
}

impl System for Stafett {
    type P = Up;
    type C = Down;

    fn name(&self) -> String {
        match self.a.mode {
            Mode::Queue => "stafett-produce-consume".into(),
            Mode::Enqueue => "stafett-enqueue-consume".into(),
            Mode::Pubsub => format!("stafett-publish-stream-q{}", self.a.qos),
            Mode::Publish => format!("stafett-publish-q{}", self.a.qos),
            Mode::Call => "stafett-call".into(),
        }
    }

    async fn setup(&self, a: &PatternArgs) -> Result<()> {
        if self.a.mode.is_queue() {
            return self.create_queues().await;
        }
        if self.a.mode == Mode::Call {
            for service in self.names() {
                calls::echo(self.connect().await?, service).await?;
            }
            return Ok(());
        }
        if self.sessions_stay() && a.subs > 0 {
            ensure!(
                self.a.subscribe == SubscribeWith::Stream && self.a.qos == 1,
                "without a consumer attached only a session keeps messages: --subscribe stream --qos 1"
            );
            for i in 0..a.subs {
                self.session(i, a.sub_topics(i)).await?;
            }
        }
        Ok(())
    }

    async fn publisher(&self, id: u32) -> Result<Up> {
        let channel = self.connect().await?;
        Ok(match self.a.mode {
            Mode::Queue => Up::Produce(self.produce(channel, id).await?),
            Mode::Pubsub => Up::Publish(self.publish(channel).await?),
            Mode::Enqueue => Up::Unary(UnaryPublisher::enqueue(channel, self.names(), self.qos())),
            Mode::Publish => Up::Unary(UnaryPublisher::publish(channel, self.names(), self.qos())),
            Mode::Call => Up::Call(Caller::new(channel, self.names())),
        })
    }

    async fn consumer(&self, id: u32, topics: Vec<u32>) -> Result<Down> {
        Ok(match (self.a.mode.is_queue(), self.a.subscribe) {
            (true, _) => match topics[..] {
                [queue] => Down::Consume(self.consume(id, queue).await?),
                _ => bail!("a consumer reads one queue"),
            },
            (false, SubscribeWith::Stream) => Down::Session(self.session(id, topics).await?),
            (false, SubscribeWith::Plain) => Down::Subscribe(self.subscribe(topics).await?),
        })
    }

    async fn left(&self) -> Result<Option<u64>> {
        if self.a.mode.is_queue() { self.drop_queues().await.map(Some) } else { Ok(None) }
    }
}
