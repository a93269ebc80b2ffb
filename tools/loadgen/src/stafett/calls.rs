//! Remote calls: the responder on a `Serve` stream and a connection of its own, the callers on another.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::api::call_service_client::CallServiceClient;
use super::api::serve_request::Action;
use super::api::serve_response::Event;
use super::{api, closed, message};
use crate::pattern::*;

/// Each message is a call; it is acknowledged when its reply is there. All callers share one connection.
pub struct Caller {
    client: CallServiceClient<Channel>,
    services: Vec<String>,
}

impl Caller {
    pub fn new(channel: Channel, services: Vec<String>) -> Self {
        Caller { client: CallServiceClient::new(channel), services }
    }
}

impl Publisher for Caller {
    async fn send(&mut self, topic: u32, payload: Bytes) -> Result<Ack> {
        let mut client = self.client.clone();
        let service = self.services[topic as usize].clone();
        Ok(Ack::Pending(Box::pin(async move {
            let request = Some(message(&Bytes::new(), payload.clone(), api::Qos::Unspecified));
            let answer = client.call(api::CallRequest { service, request, idempotent: false }).await?;
            let reply = answer.into_inner().reply.and_then(|reply| reply.message);
            ensure!(reply.is_some_and(|reply| reply.payload == payload), "the reply differs");
            Ok(())
        })))
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Serves `service` with what it is asked, from its return to the end of the run.
pub async fn echo(channel: Channel, service: String) -> Result<()> {
    let (send, frames) = mpsc::channel(64);
    let open = api::ServeOpen { service, max_concurrent_requests: 65_535, ..Default::default() };
    send.send(api::ServeRequest { action: Some(Action::Open(open)) }).await?;
    let events = CallServiceClient::new(channel).serve(ReceiverStream::new(frames)).await;
    let mut events = events.context("serve")?.into_inner();
    match events.message().await?.and_then(|event| event.event) {
        Some(Event::Opened(_)) => {}
        other => bail!("not opened: {other:?}"),
    }
    tokio::spawn(async move {
        if let Err(e) = answer(events, send).await {
            eprintln!("serve: {e:#}");
        }
    });
    Ok(())
}

async fn answer(
    mut events: Streaming<api::ServeResponse>,
    send: mpsc::Sender<api::ServeRequest>,
) -> Result<()> {
    while let Some(event) = events.message().await? {
        let frame = match event.event {
            Some(Event::Requests(frame)) => frame,
            Some(Event::Refused(refused)) => bail!("replies were refused: {refused:?}"),
            Some(Event::Closing(closing)) => return Err(closed(closing)),
            _ => continue,
        };
        let reply = |asked: api::IncomingRequest| {
            let payload = asked.message.unwrap_or_default().payload;
            let message = Some(message(&Bytes::new(), payload, api::Qos::Unspecified));
            api::ServeReply { request_id: asked.request_id, message, ..Default::default() }
        };
        let replies = frame.requests.into_iter().map(reply).collect();
        send.send(api::ServeRequest { action: Some(Action::Replies(api::ServeReplies { replies })) }).await?;
    }
    Ok(())
}
