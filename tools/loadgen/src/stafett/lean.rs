//! Messages and deliveries with the fields that a run fills in or looks at; `build.rs` puts them where the generated ones
//! would be. What else a delivery carries is passed over unread.

use bytes::Bytes;

/// `stafett.v1.Message`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    #[prost(bytes = "bytes", tag = "1")]
    pub topic: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub payload: Bytes,
    #[prost(int32, tag = "6")]
    pub qos: i32,
    #[prost(bytes = "bytes", tag = "11")]
    pub ordering_key: Bytes,
}

/// The body of a delivery.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Body {
    #[prost(bytes = "bytes", tag = "2")]
    pub payload: Bytes,
}

/// `stafett.v1.Delivery`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Delivery {
    #[prost(message, optional, tag = "1")]
    pub message: Option<Body>,
    #[prost(uint64, tag = "3")]
    pub delivery_id: u64,
    #[prost(uint64, tag = "7")]
    pub dropped_before: u64,
}

/// `stafett.v1.LeasedMessage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LeasedMessage {
    #[prost(message, optional, tag = "1")]
    pub message: Option<Body>,
    #[prost(uint64, tag = "3")]
    pub delivery_id: u64,
}
