//! Streams out of the broker: Consume, SubscribeStream, Subscribe.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::api;
use super::api::pub_sub_service_client::PubSubServiceClient;
use super::api::queue_service_client::QueueServiceClient;
use super::{Stafett, closed};
use crate::pattern::*;

/// Deliveries handed to the runner at once, about.
const TAKE: usize = 4096;
/// The broker's bound on deliveries in one AckBatch.
const ACK: usize = 10_000;

/// What the streams that give messages have in common.
pub enum Event {
    Opened,
    Taken,
    Results(api::AckResults),
    LeaseLost(usize),
    Closing(api::StreamClosing),
}

/// A stream that gives messages.
pub trait Door: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    fn ack(batch: api::AckBatch) -> Self::Request;
    /// Appends the deliveries of `response`, each with its number; counts what the broker says it dropped.
    fn event(response: Self::Response, out: &mut Vec<Delivery<u64>>, dropped: &mut u64) -> Result<Event>;
}

/// `QueueService.Consume`.
pub struct Consume;

impl Door for Consume {
    type Request = api::ConsumeRequest;
    type Response = api::ConsumeResponse;

    fn ack(batch: api::AckBatch) -> Self::Request {
        api::ConsumeRequest { action: Some(api::consume_request::Action::Ack(batch)) }
    }

    fn event(response: Self::Response, out: &mut Vec<Delivery<u64>>, _: &mut u64) -> Result<Event> {
        use api::consume_response::Event as E;
        Ok(match response.event {
            Some(E::Messages(batch)) => {
                for leased in batch.messages {
                    ensure!(leased.delivery_id > 0, "a delivery without a number");
                    let payload = leased.message.context("a delivery without a message")?.payload;
                    out.push(Delivery { payload, token: leased.delivery_id });
                }
                Event::Taken
            }
            Some(E::Opened(_)) => Event::Opened,
            Some(E::Results(results)) => Event::Results(results),
            Some(E::LeaseLost(lost)) => Event::LeaseLost(lost.delivery_ids.len()),
            Some(E::Closing(closing)) => Event::Closing(closing),
            Some(E::Heartbeat(_) | E::BecameActive(_)) | None => Event::Taken,
        })
    }
}

fn deliveries(batch: api::DeliveryBatch, out: &mut Vec<Delivery<u64>>, dropped: &mut u64) -> Result<Event> {
    for delivery in batch.deliveries {
        *dropped += delivery.dropped_before;
        let payload = delivery.message.context("a delivery without a message")?.payload;
        out.push(Delivery { payload, token: delivery.delivery_id });
    }
    Ok(Event::Taken)
}

fn granted(opened: &api::SubscribeOpened) -> Result<()> {
    for filter in &opened.filters {
        if let Some(error) = &filter.error {
            anyhow::bail!("{}: code {}, {}", filter.filter, error.code, error.message);
        }
    }
    Ok(())
}

/// `PubSubService.SubscribeStream`.
pub struct Session;

impl Door for Session {
    type Request = api::SubscribeStreamRequest;
    type Response = api::SubscribeStreamResponse;

    fn ack(batch: api::AckBatch) -> Self::Request {
        api::SubscribeStreamRequest { action: Some(api::subscribe_stream_request::Action::Ack(batch)) }
    }

    fn event(response: Self::Response, out: &mut Vec<Delivery<u64>>, dropped: &mut u64) -> Result<Event> {
        use api::subscribe_stream_response::Event as E;
        Ok(match response.event {
            Some(E::Deliveries(batch)) => deliveries(batch, out, dropped)?,
            Some(E::Opened(opened)) => {
                granted(&opened)?;
                Event::Opened
            }
            Some(E::AckResults(results)) => Event::Results(results),
            Some(E::Closing(closing)) => Event::Closing(closing),
            Some(E::Heartbeat(_) | E::Changed(_)) | None => Event::Taken,
        })
    }
}

/// `PubSubService.Subscribe`.
pub struct Subscribe;

impl Door for Subscribe {
    type Request = ();
    type Response = api::SubscribeResponse;

    fn ack(_: api::AckBatch) -> Self::Request {}

    fn event(response: Self::Response, out: &mut Vec<Delivery<u64>>, dropped: &mut u64) -> Result<Event> {
        use api::subscribe_response::Event as E;
        Ok(match response.event {
            Some(E::Deliveries(batch)) => deliveries(batch, out, dropped)?,
            Some(E::Opened(opened)) => {
                granted(&opened)?;
                Event::Opened
            }
            Some(E::Closing(closing)) => Event::Closing(closing),
            Some(E::Heartbeat(_)) | None => Event::Taken,
        })
    }
}

pub struct StreamConsumer<D: Door> {
    /// settlements; absent where nothing is settled
    tx: Option<mpsc::Sender<D::Request>>,
    rx: Streaming<D::Response>,
    opened: bool,
    last_delivery: u64,
    ack_id: u64,
    acked_through: u64,
    failures: u64,
    leases_lost: usize,
    dropped: u64,
}

impl Stafett {
    pub(super) async fn consume(&self, id: u32, queue: u32) -> Result<StreamConsumer<Consume>> {
        let (tx, frames) = mpsc::channel(64);
        let open = api::ConsumeOpen {
            queue: self.name(queue),
            consumer_id: format!("lg-c{id}"),
            window: Some(self.window()),
            ..Default::default()
        };
        tx.send(api::ConsumeRequest { action: Some(api::consume_request::Action::Open(open)) }).await?;
        let mut client = QueueServiceClient::new(self.connect().await?).max_decoding_message_size(usize::MAX);
        let rx = client.consume(ReceiverStream::new(frames)).await?.into_inner();
        StreamConsumer::opened(Some(tx), rx).await
    }

    pub(super) async fn session(&self, id: u32, topics: Vec<u32>) -> Result<StreamConsumer<Session>> {
        let (tx, frames) = mpsc::channel(64);
        let stay = self.sessions_stay();
        let open = api::OpenSession {
            client_id: if stay { format!("lg{}-s{id}", self.run) } else { String::new() },
            session_expiry: stay.then_some(prost_types::Duration { seconds: 3600, nanos: 0 }),
            filters: self.filters(topics),
            window: Some(self.window()),
            ..Default::default()
        };
        let open = api::subscribe_stream_request::Action::Open(open);
        tx.send(api::SubscribeStreamRequest { action: Some(open) }).await?;
        let mut client =
            PubSubServiceClient::new(self.connect().await?).max_decoding_message_size(usize::MAX);
        let rx = client.subscribe_stream(ReceiverStream::new(frames)).await?.into_inner();
        StreamConsumer::opened(Some(tx), rx).await
    }

    pub(super) async fn subscribe(&self, topics: Vec<u32>) -> Result<StreamConsumer<Subscribe>> {
        let mut client =
            PubSubServiceClient::new(self.connect().await?).max_decoding_message_size(usize::MAX);
        let request = api::SubscribeRequest { filters: self.filters(topics) };
        let rx = client.subscribe(request).await?.into_inner();
        StreamConsumer::opened(None, rx).await
    }

    fn filters(&self, topics: Vec<u32>) -> Vec<api::TopicFilter> {
        let share_group = if self.a.pattern.fanout == Fanout::Queue { "lg" } else { "" };
        let filter = |t| api::TopicFilter {
            filter: self.name(t),
            share_group: share_group.into(),
            ..Default::default()
        };
        topics.into_iter().map(filter).collect()
    }
}

impl<D: Door> StreamConsumer<D> {
    /// Waits until the subscription is active.
    async fn opened(tx: Option<mpsc::Sender<D::Request>>, rx: Streaming<D::Response>) -> Result<Self> {
        let mut consumer = StreamConsumer {
            tx,
            rx,
            opened: false,
            last_delivery: 0,
            ack_id: 0,
            acked_through: 0,
            failures: 0,
            leases_lost: 0,
            dropped: 0,
        };
        let first = consumer.rx.message().await?.context("the stream ended before its first event")?;
        let mut early = Vec::new();
        consumer.take(first, &mut early)?;
        ensure!(consumer.opened && early.is_empty(), "the first event is not `opened`");
        Ok(consumer)
    }

    fn take(&mut self, response: D::Response, out: &mut Vec<Delivery<u64>>) -> Result<()> {
        let before = out.len();
        match D::event(response, out, &mut self.dropped)? {
            Event::Taken => {
                for delivery in &out[before..] {
                    ensure!(
                        delivery.token == 0 || delivery.token > self.last_delivery,
                        "delivery {} after {}",
                        delivery.token,
                        self.last_delivery
                    );
                    self.last_delivery = self.last_delivery.max(delivery.token);
                }
            }
            Event::Opened => {
                ensure!(!self.opened, "`opened` came twice");
                self.opened = true;
            }
            Event::Results(results) => {
                let through = results.acked_through;
                ensure!(
                    through >= self.acked_through && through <= self.ack_id,
                    "settled through {through}: {} was, {} was asked",
                    self.acked_through,
                    self.ack_id
                );
                self.acked_through = through;
                if let (0, Some(failure)) = (self.failures, results.failures.first()) {
                    eprintln!("ack: {failure:?}");
                }
                self.failures += results.failures.len() as u64;
            }
            Event::LeaseLost(deliveries) => self.leases_lost += deliveries,
            Event::Closing(closing) => return Err(closed(closing)),
        }
        Ok(())
    }

    async fn settle_all(&mut self, late: &mut Vec<Delivery<u64>>) -> Result<()> {
        while self.acked_through < self.ack_id {
            let response = self.rx.message().await?.context("the broker ended the stream")?;
            self.take(response, late)?;
        }
        Ok(())
    }
}

impl<D: Door> Consumer for StreamConsumer<D> {
    type Token = u64;

    async fn recv(&mut self, out: &mut Vec<Delivery<u64>>) -> Result<()> {
        while out.is_empty() {
            let response = self.rx.message().await?.context("the broker ended the stream")?;
            self.take(response, out)?;
        }
        while out.len() < TAKE {
            let Some(response) = self.rx.message().now_or_never() else { break };
            self.take(response?.context("the broker ended the stream")?, out)?;
        }
        Ok(())
    }

    async fn ack(&mut self, batch: &mut Vec<Delivery<u64>>) -> Result<()> {
        if let Some(tx) = &self.tx {
            for some in batch.chunks(ACK) {
                let delivery_ids: Vec<u64> = some.iter().map(|d| d.token).filter(|id| *id > 0).collect();
                if delivery_ids.is_empty() {
                    continue;
                }
                self.ack_id += 1;
                let ack = api::AckBatch { ack_id: self.ack_id, delivery_ids, lease_tokens: Vec::new() };
                tx.send(D::ack(ack)).await.ok().context("the broker ended the stream")?;
            }
        }
        batch.clear();
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        let mut late = Vec::new();
        let settled = tokio::time::timeout(Duration::from_secs(5), self.settle_all(&mut late)).await;
        match settled {
            Ok(Ok(())) => {}
            Ok(Err(e)) => eprintln!("settle: {e:#}"),
            Err(_) => eprintln!("settle: {} frames without an answer", self.ack_id - self.acked_through),
        }
        for (count, what) in [
            (late.len() as u64, "deliveries after the end"),
            (self.failures, "deliveries could not be settled"),
            (self.leases_lost as u64, "leases lost"),
            (self.dropped, "messages dropped, says the broker"),
        ] {
            if count > 0 {
                eprintln!("{count} {what}");
            }
        }
        Ok(())
    }
}
