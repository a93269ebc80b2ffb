//! NATS core and JetStream through async-nats.

use std::time::Duration;

use anyhow::Result;
use async_nats::jetstream::{self, consumer::pull, stream};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::{FutureExt, StreamExt};

use crate::pattern::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    Core,
    Js,
    /// request/reply, `--window` callers; a responder in this process answers
    Call,
}

#[derive(Args, Clone, Debug)]
pub struct NatsArgs {
    #[arg(long, default_value = "127.0.0.1:4222")]
    pub addr: String,
    #[arg(long, value_enum, default_value_t = Mode::Core)]
    pub mode: Mode,
    /// JetStream: messages leave the stream once acknowledged
    #[arg(long)]
    pub workqueue: bool,
    /// JetStream: memory instead of file storage
    #[arg(long)]
    pub memory: bool,
    /// JetStream: pull batch, and unacknowledged deliveries allowed
    #[arg(long, default_value_t = 1024)]
    pub prefetch: usize,
    #[command(flatten)]
    pub pattern: PatternArgs,
}

pub async fn run(mut a: NatsArgs) -> Result<()> {
    if a.mode == Mode::Call {
        a.pattern.answers_itself();
    }
    let p = a.pattern.clone();
    crate::pattern::run(Nats { a, run: std::process::id() }, p).await
}

struct Nats {
    a: NatsArgs,
    run: u32,
}

impl Nats {
    async fn connect(&self) -> Result<async_nats::Client> {
        Ok(async_nats::ConnectOptions::new()
            .subscription_capacity(1 << 20)
            .client_capacity(4096)
            .connect(&self.a.addr)
            .await?)
    }
    fn js(&self, c: async_nats::Client) -> jetstream::Context {
        jetstream::ContextBuilder::new().timeout(Duration::from_secs(30)).max_ack_inflight(1 << 17).build(c)
    }
    fn stream_name(&self) -> String {
        format!("LG{}", self.run)
    }
    /// Answers each request on a subject with what it says, from its return to the end of the run.
    async fn echo(&self, subject: String) -> Result<()> {
        let c = self.connect().await?;
        let mut requests = c.subscribe(subject).await?;
        c.flush().await?;
        tokio::spawn(async move {
            while let Some(m) = requests.next().await {
                let Some(to) = m.reply else { continue };
                if let Err(e) = c.publish(to, m.payload).await {
                    eprintln!("reply: {e:#}");
                }
            }
        });
        Ok(())
    }
    fn subject(&self, t: u32) -> String {
        format!("lg{}.{t}", self.run)
    }
}

pub enum NatsPub {
    Core(async_nats::Client, Vec<async_nats::Subject>),
    Js(jetstream::Context, Vec<async_nats::Subject>),
    Call(async_nats::Client, Vec<async_nats::Subject>),
}

impl Publisher for NatsPub {
    async fn send(&mut self, topic: u32, payload: Bytes) -> Result<Ack> {
        match self {
            NatsPub::Core(c, s) => {
                c.publish(s[topic as usize].clone(), payload).await?;
                Ok(Ack::None)
            }
            NatsPub::Js(js, s) => {
                let f = js.publish(s[topic as usize].clone(), payload).await?;
                Ok(Ack::Pending(Box::pin(async move {
                    f.await?;
                    Ok(())
                })))
            }
            NatsPub::Call(c, s) => {
                let (c, subject) = (c.clone(), s[topic as usize].clone());
                Ok(Ack::Pending(Box::pin(async move {
                    let reply = c.request(subject, payload.clone()).await?;
                    anyhow::ensure!(reply.payload == payload, "the reply differs");
                    Ok(())
                })))
            }
        }
    }
    async fn flush(&mut self) -> Result<()> {
        // the client's own task writes as soon as it can; nothing is held back here
        Ok(())
    }
    async fn finish(&mut self) -> Result<()> {
        if let NatsPub::Core(c, _) = self {
            c.flush().await?;
        }
        Ok(())
    }
}

pub enum NatsCon {
    Core(futures::stream::SelectAll<async_nats::Subscriber>, async_nats::Client),
    Js(Box<pull::Stream>, async_nats::Client),
}

impl Consumer for NatsCon {
    type Token = Option<jetstream::message::Acker>;

    async fn recv(&mut self, out: &mut Vec<Delivery<Self::Token>>) -> Result<()> {
        match self {
            NatsCon::Core(s, _) => {
                let m = s.next().await.ok_or_else(|| anyhow::anyhow!("subscription ended"))?;
                out.push(Delivery { payload: m.payload, token: None });
                while out.len() < 1024 {
                    match s.next().now_or_never() {
                        Some(Some(m)) => out.push(Delivery { payload: m.payload, token: None }),
                        _ => break,
                    }
                }
            }
            NatsCon::Js(s, _) => {
                let m = s.next().await.ok_or_else(|| anyhow::anyhow!("consumer ended"))??;
                let (m, k) = m.split();
                out.push(Delivery { payload: m.payload, token: Some(k) });
                while out.len() < 1024 {
                    match s.next().now_or_never() {
                        Some(Some(m)) => {
                            let (m, k) = m?.split();
                            out.push(Delivery { payload: m.payload, token: Some(k) });
                        }
                        _ => break,
                    }
                }
            }
        }
        Ok(())
    }

    async fn ack(&mut self, batch: &mut Vec<Delivery<Self::Token>>) -> Result<()> {
        for d in batch.drain(..) {
            if let Some(k) = d.token {
                k.ack().await.map_err(|e| anyhow::anyhow!("{e}"))?;
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        match self {
            NatsCon::Core(_, c) | NatsCon::Js(_, c) => c.flush().await?,
        }
        Ok(())
    }
}

impl System for Nats {
    type P = NatsPub;
    type C = NatsCon;

    fn name(&self) -> String {
        match self.a.mode {
            Mode::Core => "nats-core".into(),
            Mode::Call => "nats-request".into(),
            Mode::Js => format!(
                "jetstream-{}-{}",
                if self.a.memory { "memory" } else { "file" },
                if self.a.workqueue { "workqueue" } else { "limits" }
            ),
        }
    }

    async fn setup(&self, a: &PatternArgs) -> Result<()> {
        match self.a.mode {
            Mode::Core => return Ok(()),
            Mode::Call => {
                for t in 0..a.topics {
                    self.echo(self.subject(t)).await?;
                }
                return Ok(());
            }
            Mode::Js => {}
        }
        let js = self.js(self.connect().await?);
        let st = js
            .create_stream(stream::Config {
                name: self.stream_name(),
                subjects: vec![format!("lg{}.*", self.run)],
                storage: if self.a.memory { stream::StorageType::Memory } else { stream::StorageType::File },
                retention: if self.a.workqueue {
                    stream::RetentionPolicy::WorkQueue
                } else {
                    stream::RetentionPolicy::Limits
                },
                ..Default::default()
            })
            .await?;
        for i in 0..if a.fanout == Fanout::Queue { a.subs.min(1) } else { a.subs } {
            let topics = a.sub_topics(i);
            st.create_consumer(pull::Config {
                durable_name: Some(format!("c{i}")),
                ack_policy: jetstream::consumer::AckPolicy::Explicit,
                max_ack_pending: (self.a.prefetch * 4).max(1024) as i64,
                filter_subjects: if a.topics == 1 || a.fanout != Fanout::One {
                    vec![]
                } else {
                    topics.iter().map(|t| self.subject(*t)).collect()
                },
                ..Default::default()
            })
            .await?;
        }
        Ok(())
    }

    async fn publisher(&self, _id: u32) -> Result<NatsPub> {
        let c = self.connect().await?;
        let subjects = (0..self.a.pattern.topics).map(|t| self.subject(t).into()).collect();
        Ok(match self.a.mode {
            Mode::Core => NatsPub::Core(c, subjects),
            Mode::Call => NatsPub::Call(c, subjects),
            Mode::Js => NatsPub::Js(self.js(c), subjects),
        })
    }

    async fn consumer(&self, id: u32, topics: Vec<u32>) -> Result<NatsCon> {
        let c = self.connect().await?;
        match self.a.mode {
            Mode::Core | Mode::Call => {
                let mut subs = Vec::new();
                for t in topics {
                    subs.push(match self.a.pattern.fanout {
                        Fanout::Queue => c.queue_subscribe(self.subject(t), "lg".into()).await?,
                        _ => c.subscribe(self.subject(t)).await?,
                    });
                }
                c.flush().await?;
                Ok(NatsCon::Core(futures::stream::select_all(subs), c))
            }
            Mode::Js => {
                let st = self.js(c.clone()).get_stream(self.stream_name()).await?;
                let name =
                    if self.a.pattern.fanout == Fanout::Queue { "c0".into() } else { format!("c{id}") };
                let con: jetstream::consumer::Consumer<pull::Config> =
                    st.get_consumer(&name).await.map_err(|e| anyhow::anyhow!("{e}"))?;
                let s = con.stream().max_messages_per_batch(self.a.prefetch).messages().await?;
                Ok(NatsCon::Js(Box::new(s), c))
            }
        }
    }

    async fn left(&self) -> Result<Option<u64>> {
        if self.a.mode != Mode::Js || self.a.pattern.subs == 0 {
            return Ok(None);
        }
        let js = self.js(self.connect().await?);
        let st = js.get_stream(self.stream_name()).await?;
        let mut con: jetstream::consumer::Consumer<pull::Config> =
            st.get_consumer("c0").await.map_err(|e| anyhow::anyhow!("{e}"))?;
        let mut i = con.info().await?;
        for _ in 0..20 {
            if i.num_ack_pending == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await; // acknowledgements still on their way
            i = con.info().await?;
        }
        let n = i.num_pending + i.num_ack_pending as u64;
        js.delete_stream(self.stream_name()).await?;
        Ok(Some(n))
    }
}
