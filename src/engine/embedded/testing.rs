//! What tests within the engine share.

use std::path::Path;

use bytes::Bytes;

use super::disk::Disk;
use crate::engine::settings::EngineSettings;
use crate::engine::{Append, Op, Publish, QueueSpec};
use crate::types::{Message, MessageIds, Qos, QueueName, TargetId, TopicName, UnixMillis};

/// A store in `data_dir` that a small disk can hold.
pub(super) fn settings(data_dir: &Path) -> EngineSettings {
    EngineSettings {
        data_dir: data_dir.to_owned(),
        ballast_bytes: 0,
        watermark_free_bytes: 1 << 20,
        ..EngineSettings::default()
    }
}

/// A queue without anything particular.
pub(super) fn spec(name: &str) -> QueueSpec {
    QueueSpec::new(QueueName::parse(name).unwrap(), std::time::Duration::from_secs(30), UnixMillis(1))
}

/// A message.
pub(super) fn message(payload: impl Into<Bytes>) -> Message {
    Message {
        id: MessageIds::new().next_now(),
        topic: TopicName::parse("t".into()).unwrap(),
        payload: payload.into(),
        qos: Qos::AtLeastOnce,
        retain: false,
        expires_at: None,
        extras: None,
    }
}

/// A message for one target.
pub(super) fn publish(to: TargetId, payload: &'static str, qos: Qos) -> Op {
    let message = Message { qos, ..message(payload) };
    let targets = [Append { qos, ..Append::to(to) }].into_iter().collect();
    Op::Publish(Publish { message, targets, retain: false, newest_only: false, incoming: None })
}

/// Takes away the last packs, as when the power is cut while they are on their way to the file. How many there were.
pub(super) fn lose_packs(disk: Disk, missing: usize) -> usize {
    let heads: Vec<_> = disk.trees.head.iter().keys().map(Result::unwrap).collect();
    for head in heads.iter().rev().take(missing) {
        disk.trees.head.remove(head).unwrap();
    }
    disk.sync().unwrap();
    heads.len()
}
