//! What tests within the engine share.

use std::path::Path;

use bytes::Bytes;

use crate::engine::settings::EngineSettings;
use crate::engine::{Append, Op, Publish};
use crate::types::{Message, MessageIds, Qos, TargetId, TopicName};

/// A store in `data_dir` that a small disk can hold.
pub(super) fn settings(data_dir: &Path) -> EngineSettings {
    EngineSettings {
        data_dir: data_dir.to_owned(),
        ballast_bytes: 0,
        watermark_free_bytes: 1 << 20,
        ..EngineSettings::default()
    }
}

/// A message for one target.
pub(super) fn publish(to: TargetId, payload: &'static str, qos: Qos) -> Op {
    let message = Message {
        id: MessageIds::new().next_now(),
        topic: TopicName::parse("t".into()).unwrap(),
        payload: Bytes::from_static(payload.as_bytes()),
        qos,
        retain: false,
        expires_at: None,
        extras: None,
    };
    let targets = [Append { qos, ..Append::to(to) }].into_iter().collect();
    Op::Publish(Publish { message, targets, retain: false, newest_only: false, incoming: None })
}
