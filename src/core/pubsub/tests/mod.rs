//! Publishing, subscribing, sessions, share groups and retained values, on the embedded engine.

mod bed;
mod publish;
mod queue_topics;
mod retain;
mod sessions;
mod shares;

use bed::{Bed, Got, Inbox, filter, message, options, qos1, topic, within};
