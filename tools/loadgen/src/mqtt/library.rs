//! MQTT 3.1.1 and 5 over TCP, TLS and WebSocket, with packets of rumqttc; driven by `pattern`.

use std::collections::VecDeque;

use anyhow::{Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use clap::Args;

use super::codec::{Answer, Packet, Template, Version};
use super::transport::{DoorArgs, Link};
use crate::pattern::{
    Ack, Consumer, Delivery, Fanout, PatternArgs, Phase, Publisher, Settled, System, run as run_pattern,
};

#[derive(Args, Clone, Debug)]
pub struct LibraryArgs {
    #[command(flatten)]
    pub door: DoorArgs,
    #[command(flatten)]
    pub pattern: PatternArgs,
    #[arg(long, value_enum, default_value_t = Version::V5)]
    pub version: Version,
    #[arg(long, default_value_t = 0)]
    pub qos: u8,
    /// publish with the retain flag
    #[arg(long)]
    pub retain: bool,
    /// subscribers' sessions outlive their connection (always so in the enqueue phases)
    #[arg(long)]
    pub persistent: bool,
    /// bytes encoded before each write
    #[arg(long, default_value_t = 16384)]
    pub batch_bytes: usize,
}

/// A connection and what it has read and not yet written.
struct Client {
    link: Link,
    version: Version,
    read: BytesMut,
    written: BytesMut,
}

impl Client {
    /// Connects; says whether the session was there, and how many publishes may be in flight.
    async fn connect(a: &LibraryArgs, id: &str, clean: bool) -> Result<(Client, bool, usize)> {
        let link = Link::connect(&a.door).await?;
        let mut client = Client { link, version: a.version, read: BytesMut::new(), written: BytesMut::new() };
        client.version.connect(id, clean, &mut client.written)?;
        match client.answered().await? {
            Packet::ConnAck(true, present, most) => Ok((client, present, most)),
            other => bail!("CONNECT was answered with {other:?}"),
        }
    }

    /// Writes what waits, and waits for one packet.
    async fn answered(&mut self) -> Result<Packet> {
        loop {
            self.flush().await?;
            if let Some(packet) = self.version.read(&mut self.read)? {
                return Ok(packet);
            }
            self.link.read(&mut self.read).await?;
        }
    }

    async fn subscribe(&mut self, filters: &[String], qos: u8) -> Result<()> {
        self.version.subscribe(filters, qos, &mut self.written)?;
        match self.answered().await? {
            Packet::SubAck(true) => Ok(()),
            other => bail!("SUBSCRIBE was answered with {other:?}"),
        }
    }

    /// Dropping the future loses nothing.
    async fn flush(&mut self) -> Result<()> {
        if self.written.is_empty() { Ok(()) } else { self.link.write(&mut self.written).await }
    }

    async fn disconnect(&mut self) -> Result<()> {
        self.version.disconnect(&mut self.written)?;
        self.flush().await
    }
}

struct Library(LibraryArgs);

impl Library {
    fn client_id(&self, kind: char, id: u32) -> String {
        format!("lg-{kind}{}-{id}", std::process::id())
    }

    fn filters(&self, topics: &[u32]) -> Vec<String> {
        let share = if self.0.pattern.fanout == Fanout::Queue { "$share/lg/" } else { "" };
        topics.iter().map(|t| format!("{share}lg/{t}")).collect()
    }

    fn is_offline(&self) -> bool {
        self.0.pattern.phase != Phase::Live
    }
}

pub async fn run(a: LibraryArgs) -> Result<()> {
    let pattern = a.pattern.clone();
    ensure!(a.qos <= 2, "--qos is 0, 1 or 2");
    run_pattern(Library(a), pattern).await
}

impl System for Library {
    type P = LibraryPublisher;
    type C = LibraryConsumer;

    fn name(&self) -> String {
        let a = &self.0;
        format!("mqtt {:?} {:?} q{}", a.version, a.door.transport, a.qos).to_lowercase()
    }

    async fn setup(&self, p: &PatternArgs) -> Result<()> {
        if self.is_offline() {
            // leaves subscriptions behind
            for id in 0..p.subs {
                let (mut client, _, _) = Client::connect(&self.0, &self.client_id('s', id), false).await?;
                client.subscribe(&self.filters(&p.sub_topics(id)), self.0.qos).await?;
                client.disconnect().await?;
            }
        }
        Ok(())
    }

    async fn publisher(&self, id: u32) -> Result<LibraryPublisher> {
        let a = &self.0;
        let (client, _, most) = Client::connect(a, &self.client_id('p', id), true).await?;
        ensure!(
            a.qos == 0 || a.pattern.window <= most,
            "the server lets {most} publishes be in flight, --window asks for {}",
            a.pattern.window
        );
        let templates = (0..a.pattern.topics)
            .map(|t| Template::new(a.version, &format!("lg/{t}"), a.qos, a.retain))
            .collect();
        Ok(LibraryPublisher {
            client,
            templates,
            qos: a.qos,
            batch_bytes: a.batch_bytes,
            in_flight: VecDeque::new(),
            next_id: 0,
        })
    }

    async fn consumer(&self, id: u32, topics: Vec<u32>) -> Result<LibraryConsumer> {
        let clean = !(self.0.persistent || self.is_offline());
        let (mut client, present, _) = Client::connect(&self.0, &self.client_id('s', id), clean).await?;
        if self.is_offline() {
            ensure!(present, "the session of subscriber {id} is gone");
        } else {
            client.subscribe(&self.filters(&topics), self.0.qos).await?;
        }
        Ok(LibraryConsumer { client, held: vec![false; 65536] })
    }
}

struct LibraryPublisher {
    client: Client,
    /// by topic
    templates: Vec<Template>,
    qos: u8,
    batch_bytes: usize,
    /// packet ids in the order of sending, which is that of their last acknowledgements [MQTT-4.6.0-2, -3]
    in_flight: VecDeque<u16>,
    next_id: u16,
}

impl LibraryPublisher {
    /// Takes the acknowledgements that have come.
    fn acknowledged(&mut self) -> Result<Settled> {
        let mut settled = Settled::default();
        while let Some(packet) = self.client.version.read(&mut self.client.read)? {
            let (id, accepted) = match packet {
                Packet::PubAck(id, accepted) if self.qos == 1 => (id, accepted),
                Packet::PubComp(id, accepted) if self.qos == 2 => (id, accepted),
                Packet::PubRec(id, false) if self.qos == 2 => (id, false),
                Packet::PubRec(id, true) if self.qos == 2 => {
                    self.client.version.answer(Answer::Release, id, &mut self.client.written)?;
                    continue;
                }
                Packet::PingResp => continue,
                other => bail!("unexpected at a publisher: {other:?}"),
            };
            let expected = self.in_flight.pop_front();
            ensure!(expected == Some(id), "acknowledged is {id}, the oldest in flight is {expected:?}");
            settled.done += 1;
            if !accepted {
                settled.refused += 1;
                settled.error.get_or_insert_with(|| format!("packet {id} was refused"));
            }
        }
        Ok(settled)
    }
}

impl Publisher for LibraryPublisher {
    async fn send(&mut self, topic: u32, payload: Bytes) -> Result<Ack> {
        let id = if self.qos == 0 { 0 } else { self.next_id.checked_add(1).unwrap_or(1) };
        self.templates[topic as usize].write(id, payload, &mut self.client.written)?;
        let ack = if self.qos == 0 {
            Ack::None
        } else {
            self.next_id = id;
            self.in_flight.push_back(id);
            Ack::InOrder
        };
        if self.client.written.len() >= self.batch_bytes {
            self.client.flush().await?;
        }
        Ok(ack)
    }

    async fn flush(&mut self) -> Result<()> {
        self.client.flush().await
    }

    async fn settled(&mut self) -> Result<Settled> {
        loop {
            let settled = self.acknowledged()?;
            if settled.done > 0 {
                return Ok(settled);
            }
            self.client.flush().await?;
            self.client.link.read(&mut self.client.read).await?;
        }
    }

    async fn finish(&mut self) -> Result<()> {
        self.client.disconnect().await
    }
}

struct LibraryConsumer {
    client: Client,
    /// QoS 2 packet ids between PUBLISH and PUBREL
    held: Vec<bool>,
}

impl LibraryConsumer {
    /// Takes the messages that have come, and answers them.
    fn take(&mut self, out: &mut Vec<Delivery<()>>) -> Result<()> {
        let Client { version, read, written, .. } = &mut self.client;
        while let Some(packet) = version.read(read)? {
            match packet {
                Packet::Publish { qos, id, payload } => {
                    let again = match qos {
                        0 => false,
                        1 => {
                            version.answer(Answer::Ack, id, written)?;
                            false
                        }
                        _ => {
                            version.answer(Answer::Receive, id, written)?;
                            std::mem::replace(&mut self.held[id as usize], true)
                        }
                    };
                    if !again {
                        out.push(Delivery { payload, token: () });
                    }
                }
                Packet::PubRel(id) => {
                    self.held[id as usize] = false;
                    version.answer(Answer::Complete, id, written)?;
                }
                Packet::PingResp => {}
                other => bail!("unexpected at a subscriber: {other:?}"),
            }
        }
        Ok(())
    }
}

impl Consumer for LibraryConsumer {
    type Token = ();

    async fn recv(&mut self, out: &mut Vec<Delivery<()>>) -> Result<()> {
        loop {
            // What came with CONNACK or SUBACK is there before the first read.
            self.take(out)?;
            if !out.is_empty() {
                return Ok(());
            }
            self.client.flush().await?;
            self.client.link.read(&mut self.client.read).await?;
        }
    }

    async fn ack(&mut self, batch: &mut Vec<Delivery<()>>) -> Result<()> {
        batch.clear();
        self.client.flush().await
    }

    async fn finish(&mut self) -> Result<()> {
        self.client.disconnect().await
    }
}
