//! Redis Streams: XADD, XREADGROUP, XACK.

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value, cmd};

use crate::pattern::*;

#[derive(Args, Clone, Debug)]
pub struct RedisArgs {
    #[arg(long, default_value = "redis://127.0.0.1:6379/")]
    pub url: String,
    /// entries per XREADGROUP
    #[arg(long, default_value_t = 256)]
    pub prefetch: usize,
    /// delete entries once acknowledged, as a queue does
    #[arg(long)]
    pub xdel: bool,
    #[command(flatten)]
    pub pattern: PatternArgs,
}

pub async fn run(a: RedisArgs) -> Result<()> {
    let p = a.pattern.clone();
    crate::pattern::run(Streams { a, run: std::process::id() }, p).await
}

struct Streams {
    a: RedisArgs,
    run: u32,
}

impl Streams {
    async fn connect(&self) -> Result<MultiplexedConnection> {
        let cfg =
            redis::AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(2048);
        Ok(redis::Client::open(self.a.url.as_str())?
            .get_multiplexed_async_connection_with_config(&cfg)
            .await?)
    }
    fn key(&self, t: u32) -> String {
        format!("lg{}:{t}", self.run)
    }
}

pub struct RedisPub {
    c: MultiplexedConnection,
    keys: Vec<String>,
}

impl Publisher for RedisPub {
    async fn send(&mut self, topic: u32, payload: Bytes) -> Result<Ack> {
        let mut c = self.c.clone();
        let mut k: Cmd = cmd("XADD");
        k.arg(&self.keys[topic as usize]).arg("*").arg("d").arg(&payload[..]);
        Ok(Ack::Pending(Box::pin(async move {
            c.send_packed_command(&k).await?;
            Ok(())
        })))
    }
    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

pub struct RedisCon {
    c: MultiplexedConnection,
    keys: Vec<String>,
    name: String,
    count: usize,
    xdel: bool,
}

impl Consumer for RedisCon {
    type Token = (usize, Bytes);

    async fn recv(&mut self, out: &mut Vec<Delivery<Self::Token>>) -> Result<()> {
        let mut k = cmd("XREADGROUP");
        k.arg("GROUP")
            .arg("g")
            .arg(&self.name)
            .arg("COUNT")
            .arg(self.count)
            .arg("BLOCK")
            .arg(200)
            .arg("STREAMS");
        for s in &self.keys {
            k.arg(s);
        }
        for _ in &self.keys {
            k.arg(">");
        }
        // [[key, [[id, [field, value]], …]], …]
        if let Value::Array(streams) = self.c.send_packed_command(&k).await? {
            for s in streams {
                let Value::Array(mut kv) = s else { continue };
                let (Some(Value::Array(entries)), Some(Value::BulkString(key))) = (kv.pop(), kv.pop()) else {
                    continue;
                };
                let ki = self.keys.iter().position(|x| x.as_bytes() == &key[..]).unwrap_or(0);
                for e in entries {
                    let Value::Array(mut iv) = e else { continue };
                    let (Some(Value::Array(mut fv)), Some(Value::BulkString(id))) = (iv.pop(), iv.pop())
                    else {
                        continue;
                    };
                    let Some(Value::BulkString(d)) = fv.pop() else { continue };
                    out.push(Delivery { payload: d.into(), token: (ki, id.into()) });
                }
            }
        }
        Ok(())
    }

    async fn ack(&mut self, batch: &mut Vec<Delivery<Self::Token>>) -> Result<()> {
        for ki in 0..self.keys.len() {
            let mut k = cmd("XACK");
            k.arg(&self.keys[ki]).arg("g");
            let mut d = cmd("XDEL");
            d.arg(&self.keys[ki]);
            let mut n = 0;
            for m in batch.iter().filter(|m| m.token.0 == ki) {
                k.arg(&m.token.1[..]);
                d.arg(&m.token.1[..]);
                n += 1;
            }
            if n == 0 {
                continue;
            }
            self.c.send_packed_command(&k).await?;
            if self.xdel {
                self.c.send_packed_command(&d).await?;
            }
        }
        batch.clear();
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

impl System for Streams {
    type P = RedisPub;
    type C = RedisCon;

    fn name(&self) -> String {
        "redis-streams".into()
    }

    async fn setup(&self, a: &PatternArgs) -> Result<()> {
        let mut c = self.connect().await?;
        for t in 0..a.topics {
            let mut k = cmd("XGROUP");
            k.arg("CREATE").arg(self.key(t)).arg("g").arg("$").arg("MKSTREAM");
            c.send_packed_command(&k).await?;
        }
        Ok(())
    }

    async fn publisher(&self, _id: u32) -> Result<RedisPub> {
        Ok(RedisPub {
            c: self.connect().await?,
            keys: (0..self.a.pattern.topics).map(|t| self.key(t)).collect(),
        })
    }

    async fn consumer(&self, id: u32, topics: Vec<u32>) -> Result<RedisCon> {
        Ok(RedisCon {
            c: self.connect().await?,
            keys: topics.iter().map(|t| self.key(*t)).collect(),
            name: format!("c{id}"),
            count: self.a.prefetch,
            xdel: self.a.xdel,
        })
    }

    async fn left(&self) -> Result<Option<u64>> {
        let mut c = self.connect().await?;
        let mut n = 0;
        for t in 0..self.a.pattern.topics {
            let mut k = cmd("XPENDING");
            k.arg(self.key(t)).arg("g");
            if let Value::Array(v) = c.send_packed_command(&k).await?
                && let Some(Value::Int(i)) = v.first()
            {
                n += *i as u64;
            }
            let mut d = cmd("UNLINK");
            d.arg(self.key(t));
            c.send_packed_command(&d).await?;
        }
        Ok(Some(n))
    }
}
