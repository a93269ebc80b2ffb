//! Streams into the broker: batches in frames, acknowledged in order by number.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::api;
use super::api::pub_sub_service_client::PubSubServiceClient;
use super::api::queue_service_client::QueueServiceClient;
use super::{Stafett, closed, lean, message};
use crate::pattern::*;

/// Bytes of a message in a frame beside topic and payload, more than enough.
const FIELDS: usize = 32;

/// What the two streams that take batches have in common.
pub enum Event {
    Opened(api::PublishStreamOpened),
    Ack(api::PublishAck),
    Closing(api::StreamClosing),
    Silence,
}

/// A stream that takes batches.
pub trait Door: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    fn batch(batch: api::PublishBatch) -> Self::Request;
    fn event(response: Self::Response) -> Event;
}

/// `QueueService.Produce`.
pub struct Produce;

impl Door for Produce {
    type Request = api::ProduceRequest;
    type Response = api::ProduceResponse;

    fn batch(batch: api::PublishBatch) -> Self::Request {
        api::ProduceRequest { action: Some(api::produce_request::Action::Batch(batch)) }
    }

    fn event(response: Self::Response) -> Event {
        use api::produce_response::Event as E;
        match response.event {
            Some(E::Opened(e)) => Event::Opened(e),
            Some(E::Ack(e)) => Event::Ack(e),
            Some(E::Closing(e)) => Event::Closing(e),
            Some(E::Heartbeat(_)) | None => Event::Silence,
        }
    }
}

/// `PubSubService.PublishStream`.
pub struct Publish;

impl Door for Publish {
    type Request = api::PublishStreamRequest;
    type Response = api::PublishStreamResponse;

    fn batch(batch: api::PublishBatch) -> Self::Request {
        api::PublishStreamRequest { action: Some(api::publish_stream_request::Action::Batch(batch)) }
    }

    fn event(response: Self::Response) -> Event {
        use api::publish_stream_response::Event as E;
        match response.event {
            Some(E::Opened(e)) => Event::Opened(e),
            Some(E::Ack(e)) => Event::Ack(e),
            Some(E::Closing(e)) => Event::Closing(e),
            Some(E::Heartbeat(_)) | None => Event::Silence,
        }
    }
}

pub struct BatchPublisher<D: Door> {
    tx: mpsc::Sender<D::Request>,
    rx: Streaming<D::Response>,
    /// topic of a message by its number; empty where the stream has one queue
    topics: Vec<Bytes>,
    /// of every message; empty where the queue has no order by key
    ordering_key: Bytes,
    qos: api::Qos,
    batch: usize,
    batch_bytes: usize,
    next: Vec<lean::Message>,
    /// of `next`, as encoded, at most
    next_bytes: usize,
    batch_id: u64,
    /// (batch, how many messages) of those that are not acknowledged
    open: VecDeque<(u64, u64)>,
}

impl Stafett {
    pub(super) async fn produce(&self, channel: Channel, id: u32) -> Result<BatchPublisher<Produce>> {
        let queue = self.name(self.a.pattern.pub_topics(id)[0]);
        let (tx, frames) = self.frames();
        let open = api::ProduceOpen { queue, ..Default::default() };
        tx.send(api::ProduceRequest { action: Some(api::produce_request::Action::Open(open)) }).await?;
        let rx = QueueServiceClient::new(channel).produce(frames).await?.into_inner();
        let topics = vec![Bytes::new(); self.a.pattern.topics as usize];
        let ordering_key = if self.a.ordered { Bytes::from(id.to_string()) } else { Bytes::new() };
        Ok(BatchPublisher { ordering_key, ..BatchPublisher::opened(self, tx, rx, topics).await? })
    }

    pub(super) async fn publish(&self, channel: Channel) -> Result<BatchPublisher<Publish>> {
        let (tx, frames) = self.frames();
        let open = api::PublishOpen::default();
        let open = api::publish_stream_request::Action::Open(open);
        tx.send(api::PublishStreamRequest { action: Some(open) }).await?;
        let rx = PubSubServiceClient::new(channel).publish_stream(frames).await?.into_inner();
        let topics = self.names().into_iter().map(Bytes::from).collect();
        BatchPublisher::opened(self, tx, rx, topics).await
    }

    /// Room for every frame of a full window: sending never waits.
    fn frames<T>(&self) -> (mpsc::Sender<T>, ReceiverStream<T>) {
        let (tx, rx) = mpsc::channel(self.a.pattern.window.max(1) + 2);
        (tx, ReceiverStream::new(rx))
    }
}

impl<D: Door> BatchPublisher<D> {
    async fn opened(
        system: &Stafett,
        tx: mpsc::Sender<D::Request>,
        mut rx: Streaming<D::Response>,
        topics: Vec<Bytes>,
    ) -> Result<Self> {
        let first = rx.message().await?.context("the stream ended before its first event")?;
        let opened = match D::event(first) {
            Event::Opened(opened) => opened,
            Event::Closing(closing) => return Err(closed(closing)),
            _ => anyhow::bail!("the first event is not `opened`"),
        };
        ensure!(
            system.a.batch <= opened.max_batch_messages as usize,
            "the broker takes {} messages in a batch, not {}",
            opened.max_batch_messages,
            system.a.batch
        );
        Ok(BatchPublisher {
            tx,
            rx,
            topics,
            ordering_key: Bytes::new(),
            qos: system.qos(),
            batch: system.a.batch,
            batch_bytes: opened.max_batch_bytes.try_into().unwrap_or(usize::MAX),
            next_bytes: 0,
            next: Vec::with_capacity(system.a.batch),
            batch_id: 0,
            open: VecDeque::new(),
        })
    }

    fn take(&mut self, response: D::Response, settled: &mut Settled) -> Result<()> {
        let ack = match D::event(response) {
            Event::Ack(ack) => ack,
            Event::Closing(closing) => return Err(closed(closing)),
            Event::Opened(_) => anyhow::bail!("`opened` came twice"),
            Event::Silence => return Ok(()),
        };
        let before = settled.done;
        while let Some((_, messages)) = self.open.pop_front_if(|(batch, _)| *batch <= ack.through_batch_id) {
            settled.done += messages;
        }
        ensure!(settled.done > before, "batch {} is acknowledged, which is not open", ack.through_batch_id);
        ensure!(
            ack.through_batch_id <= self.batch_id,
            "batch {} is acknowledged, which was not sent",
            ack.through_batch_id
        );
        settled.refused += ack.errors.len() as u64;
        if let (None, Some(error)) = (&settled.error, ack.errors.into_iter().next()) {
            let status = error.error.unwrap_or_default();
            settled.error = Some(format!("code {}, {}", status.code, status.message));
        }
        Ok(())
    }
}

impl<D: Door> Publisher for BatchPublisher<D> {
    async fn send(&mut self, topic: u32, payload: Bytes) -> Result<Ack> {
        let name = &self.topics[topic as usize];
        let bytes = FIELDS + name.len() + payload.len();
        let ordering_key = self.ordering_key.clone();
        let message = lean::Message { ordering_key, ..message(name, payload, self.qos) };
        if self.next_bytes + bytes > self.batch_bytes {
            self.flush().await?;
        }
        self.next.push(message);
        self.next_bytes += bytes;
        if self.next.len() >= self.batch {
            self.flush().await?;
        }
        Ok(Ack::InOrder)
    }

    async fn flush(&mut self) -> Result<()> {
        if self.next.is_empty() {
            return Ok(());
        }
        let messages = std::mem::replace(&mut self.next, Vec::with_capacity(self.batch));
        self.next_bytes = 0;
        self.batch_id += 1;
        self.open.push_back((self.batch_id, messages.len() as u64));
        let batch = api::PublishBatch { batch_id: self.batch_id, messages };
        if self.tx.send(D::batch(batch)).await.is_err() {
            // the broker's own reason waits on the other half
            let mut settled = Settled::default();
            while let Some(response) = self.rx.message().await? {
                self.take(response, &mut settled)?;
            }
            anyhow::bail!("the broker ended the stream");
        }
        Ok(())
    }

    async fn settled(&mut self) -> Result<Settled> {
        let mut settled = Settled::default();
        while settled.done == 0 {
            let response = self.rx.message().await?.context("the broker ended the stream")?;
            self.take(response, &mut settled)?;
        }
        while let Some(response) = self.rx.message().now_or_never() {
            self.take(response?.context("the broker ended the stream")?, &mut settled)?;
        }
        Ok(settled)
    }
}
