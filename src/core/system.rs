//! Values of the server's own, under `$SYS/`.
//!
//! Invariant: they are in memory alone; nothing of them is stored, for nobody. Clients read them as they read any retained
//! value, and cannot set them: `$` names are refused to publishers.

use bytes::Bytes;

use super::delivery::FanOut;
use super::publisher::{Inbound, Sender};
use super::{Broker, CoreError};
use crate::types::{Message, Qos, TopicFilter, TopicName};

/// The first level of their names.
pub const SYSTEM: &str = "$SYS";

impl Broker {
    /// Sets the retained value of `topic`, which is below [`SYSTEM`], and offers it at QoS 0 to who is connected and
    /// subscribes to it. An empty payload removes the value. Never waits.
    pub fn set_system(&self, topic: TopicName, payload: Bytes) {
        debug_assert_eq!(topic.first_level(), SYSTEM);
        let message = Message {
            id: self.ids.next_now(),
            topic,
            payload,
            qos: Qos::AtMostOnce,
            retain: true,
            expires_at: None,
            extras: None,
        };
        let mut fan = FanOut::default();
        let mut sender = Sender { broker: self, name: None, no_local: None, fan: &mut fan };
        self.pubsub.retained.set_unstored(&Inbound::new(message, 0), &mut sender);
        self.traffic.sent(fan.sent);
    }
}

/// Whether the retained values that a filter matches are for clients to remove.
pub(super) fn may_clear(filter: &TopicFilter) -> Result<(), CoreError> {
    if filter.first_level() == SYSTEM {
        return Err(CoreError::invalid("filter", format!("`{SYSTEM}/…` is the server's")));
    }
    Ok(())
}
