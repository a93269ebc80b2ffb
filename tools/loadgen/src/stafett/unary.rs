//! One call per message: Enqueue and Publish.

use anyhow::Result;
use bytes::Bytes;
use tonic::transport::Channel;

use super::api::pub_sub_service_client::PubSubServiceClient;
use super::api::queue_service_client::QueueServiceClient;
use super::{api, message};
use crate::pattern::*;

/// Each with the names of its targets.
enum Client {
    Queue(QueueServiceClient<Channel>, Vec<String>),
    PubSub(PubSubServiceClient<Channel>, Vec<Bytes>),
}

/// All callers share one connection, as those of the bare echo do.
pub struct UnaryPublisher {
    client: Client,
    qos: api::Qos,
}

impl UnaryPublisher {
    pub fn enqueue(channel: Channel, names: Vec<String>, qos: api::Qos) -> Self {
        UnaryPublisher { client: Client::Queue(QueueServiceClient::new(channel), names), qos }
    }

    pub fn publish(channel: Channel, names: Vec<String>, qos: api::Qos) -> Self {
        let topics = names.into_iter().map(Bytes::from).collect();
        UnaryPublisher { client: Client::PubSub(PubSubServiceClient::new(channel), topics), qos }
    }
}

impl Publisher for UnaryPublisher {
    async fn send(&mut self, topic: u32, payload: Bytes) -> Result<Ack> {
        Ok(Ack::Pending(match &self.client {
            Client::Queue(client, names) => {
                let mut client = client.clone();
                let message = Some(message(&Bytes::new(), payload, self.qos));
                let request = api::EnqueueRequest { queue: names[topic as usize].clone(), message };
                Box::pin(async move {
                    client.enqueue(request).await?;
                    Ok(())
                })
            }
            Client::PubSub(client, topics) => {
                let mut client = client.clone();
                let message = Some(message(&topics[topic as usize], payload, self.qos));
                let request = api::PublishRequest { message };
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
