//! Bytes to MQTT packets and back, without I/O.
//!
//! One packet model serves 3.1.1 and 5.0; [`Version`] is a parameter, and in 3.1.1 all properties are
//! empty. Topics and payloads of decoded packets are slices of the buffer they came in, nothing is copied.
//!
//! Invariants:
//! - Nothing is allocated for a packet before its size, and nothing for a list before its length, was
//!   checked against [`Limits`].
//! - A packet that a decoder returns obeys every rule that can be judged from that packet and the version
//!   alone; [`DecodeError`] names the rule that was broken and the reason code to answer with.
//! - [`Packet::encode`] writes a whole valid packet or nothing.
//!
//! Left to the caller, because it needs a role, a session or the peer's announced limits:
//! - where `+`, `#` and `$share` may stand in a topic *filter* (only the empty filter is refused here);
//! - which packet types and properties may come from which side (a client's PUBLISH with a subscription
//!   identifier [5: MQTT-3.3.4-6], a server's DISCONNECT with a session expiry [5: MQTT-3.14.2-2]);
//! - the empty client id [3.1.1: MQTT-3.1.3-8], aliases above the maximum, identifiers in use, quotas;
//! - whether a payload declared as UTF-8 is UTF-8.
//!
//! This module imports nothing of the crate and knows no socket, task or clock.

mod decode;
mod encode;
mod error;
mod field;
mod frame;
mod fuzz;
mod packet;
mod property;
mod publish;
mod read;
mod reason;

#[cfg(test)]
mod tests;

pub use decode::Decoder;
pub use error::{DecodeError, EncodeError};
pub use frame::{FrameInfo, Limits, PacketType, peek_frame};
#[doc(hidden)]
pub use fuzz::{Mutator, fuzz_decode};
pub use packet::{
    Ack, Auth, ConnAck, Connect, Disconnect, Packet, Publish, Qos, RetainHandling, SubAck, Subscribe,
    SubscribeFilter, SubscribeOptions, UnsubAck, Unsubscribe, Version, Will,
};
pub use property::{
    AckProperties, AuthProperties, ConnAckProperties, ConnectProperties, DisconnectProperties, MaximumQos,
    PayloadFormat, PropertyId, PublishProperties, SubscribeProperties, SubscriptionId, SubscriptionIds,
    UnsubscribeProperties, UserProperty, WillProperties,
};
pub use publish::PublishRef;
pub use reason::ReasonCode;
