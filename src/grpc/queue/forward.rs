//! `Forward`: settles deliveries and stores what follows from them.

use crate::core::CoreError;
use crate::core::queues::forward::{ForwardItem, Forwarded};
use crate::grpc::bounds::{MAX_ITEMS, Refused, at_most_items, merged, some_items};
use crate::grpc::proto::v1;
use crate::grpc::status;

use super::QueueService;
use super::batch::enqueue_of;
use super::calls::enqueued;

/// Deliveries of one request.
const MAX_DELIVERIES: usize = 1000;
/// Messages that follow from one delivery.
const MAX_MESSAGES: usize = 100;

impl QueueService {
    pub(super) async fn forward_all(
        &self,
        request: v1::ForwardRequest,
    ) -> Result<v1::ForwardResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        some_items("items", request.items.len(), MAX_DELIVERIES)?;
        at_most_items("items", request.items.iter().map(|item| item.messages.len()).sum(), MAX_ITEMS)?;
        let (mut items, mut refused) = (Vec::with_capacity(request.items.len()), Refused::new());
        for (place, item) in request.items.into_iter().enumerate() {
            match self.item(item) {
                Ok(item) => items.push(item),
                Err(error) => refused.push_back((place, error)),
            }
        }
        let results = self.broker.forward(&queue, items).await?;
        let results = merged(results.into_iter(), refused).enumerate().map(|(place, result)| {
            told(result.map_err(|error| error.within(format_args!("items[{place}]"))))
        });
        Ok(v1::ForwardResponse { results: results.collect() })
    }

    fn item(&self, item: v1::ForwardItem) -> Result<ForwardItem, CoreError> {
        let v1::ForwardItem { lease_token: token, messages } = item;
        some_items("messages", messages.len(), MAX_MESSAGES)?;
        let message = |(at, v1::ForwardMessage { queue, message })| {
            let within = |error: CoreError| error.within(format_args!("messages[{at}]"));
            let to = self.broker.queue_named("queue", &queue).map_err(within)?;
            let message = message.ok_or_else(|| within(CoreError::invalid("message", "must be given")))?;
            let item = enqueue_of(&to, self.intake(), message);
            let item = item.map_err(|error| within(error.within("message")))?;
            Ok::<_, CoreError>((to, item))
        };
        let messages = messages.into_iter().enumerate().map(message).collect::<Result<_, _>>()?;
        Ok(ForwardItem { token, messages })
    }
}

fn told(forwarded: Forwarded) -> v1::ForwardResult {
    let outcome = match forwarded {
        Ok(stored) => {
            let messages = stored.into_iter().map(enqueued).collect();
            v1::forward_result::Outcome::Ok(v1::Forwarded { messages })
        }
        Err(error) => v1::forward_result::Outcome::Error(status::item(&error)),
    };
    v1::ForwardResult { outcome: Some(outcome) }
}
