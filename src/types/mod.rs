//! The nouns that every layer shares: names, ids, topics, messages, time.
//!
//! Invariant: a value of these types is valid; whoever holds one never checks it again. Knows no other module.

pub mod clock;
pub mod ids;
pub mod message;
pub mod topic;

pub use clock::UnixMillis;
pub use ids::{
    BackupName, ClientId, CursorName, MessageId, MessageIds, NameError, QueueName, Sequence, StreamName,
    TargetId,
};
pub use message::{DeadLetter, Extras, Message, Priority, Qos};
pub use topic::{TopicFilter, TopicName};
