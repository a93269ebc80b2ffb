//! Queues of a run: made before it, counted and deleted after it.

use anyhow::{Context, Result};

use super::api::queue_service_client::QueueServiceClient;
use super::{Stafett, api};

impl Stafett {
    pub(super) async fn create_queues(&self) -> Result<()> {
        let mut client = QueueServiceClient::new(self.connect().await?);
        for name in self.names() {
            let queue = Some(api::Queue { name, ordered_by_key: self.a.ordered, ..Default::default() });
            client.create_queue(api::CreateQueueRequest { queue, if_not_exists: false }).await?;
        }
        Ok(())
    }

    /// How many messages the queues still hold; deletes them.
    pub(super) async fn drop_queues(&self) -> Result<u64> {
        let mut client = QueueServiceClient::new(self.connect().await?);
        let mut left = 0;
        for name in self.names() {
            let request = api::GetQueueStatsRequest { name: name.clone() };
            let stats = client.get_queue_stats(request).await?.into_inner().stats.context("no counts")?;
            left += stats.ready + stats.delayed + stats.leased;
            client.delete_queue(api::DeleteQueueRequest { name, only_if_empty: false }).await?;
        }
        Ok(left)
    }
}
