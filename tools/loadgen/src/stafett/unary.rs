//! One call per message: Enqueue and Publish.

use anyhow::Result;
use bytes::Bytes;
use tonic::transport::Channel;

use super::api::pub_sub_service_client::PubSubServiceClient;
use super::api::queue_service_client::QueueServiceClient;
use super::{api, message};
use crate::pattern::*;

enum Client {
    Queue(QueueServiceClient<Channel>),
    PubSub(PubSubServiceClient<Channel>),
}

/// All callers share one connection, as those of the bare echo do.
pub struct UnaryPublisher {
    client: Client,
    names: Vec<String>,
    qos: api::Qos,
}

impl UnaryPublisher {
    pub fn enqueue(channel: Channel, names: Vec<String>, qos: api::Qos) -> Self {
        UnaryPublisher { client: Client::Queue(QueueServiceClient::new(channel)), names, qos }
    }

    pub fn publish(channel: Channel, names: Vec<String>, qos: api::Qos) -> Self {
        UnaryPublisher { client: Client::PubSub(PubSubServiceClient::new(channel)), names, qos }
    }
}

impl Publisher for UnaryPublisher {
    async fn send(&mut self, topic: u32, payload: Bytes) -> Result<Ack> {
        let name = &self.names[topic as usize];
        Ok(Ack::Pending(match &self.client {
            Client::Queue(client) => {
                let mut client = client.clone();
                let message = Some(message("", payload, self.qos));
                let request = api::EnqueueRequest { queue: name.clone(), message };
                Box::pin(async move {
                    client.enqueue(request).await?;
                    Ok(())
                })
            }
            Client::PubSub(client) => {
                let mut client = client.clone();
                let request = api::PublishRequest { message: Some(message(name, payload, self.qos)) };
                Box::pin(async move {
                    client.publish(request).await?;
                    Ok(())
                })
            }
        }))
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
