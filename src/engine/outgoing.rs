//! How far deliveries of sessions are that MQTT has given a number.

/// How far an outgoing delivery of a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// The number that the peer knows it by.
    pub packet_id: u16,
    /// What has happened.
    pub state: OutgoingState,
}

/// The steps of an outgoing delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OutgoingState {
    /// PUBLISH may have been sent.
    Sent = 1,
    /// PUBREC was seen: only PUBREL may follow.
    Received = 2,
    /// It was settled by a door without packet ids: only PUBREL may follow, and nothing is delivered.
    Settled = 3,
}
