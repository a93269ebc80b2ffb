//! Publishing, subscribing, sessions, share groups and retained values, on the embedded engine.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are not seen as tests, and what they spawn ends with them"
)]

pub(in crate::core) mod bed;
mod publish;
mod queue_topics;
mod retain;
mod sessions;
mod shares;
mod taken;

use bed::{Bed, Got, Inbox, filter, message, options, qos1, topic, within};
