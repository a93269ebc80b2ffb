//! What others see of a bridge: how it is, and what it did not carry.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::mapping::Mapping;
use crate::core::{Broker, SYSTEM};
use crate::types::TopicName;
use crate::types::topic::TopicError;

/// What others see of a bridge.
#[derive(Debug)]
pub(in crate::mqtt) struct Link {
    name: String,
    mapping: Arc<Mapping>,
    connected: AtomicBool,
    dropped: AtomicU64,
    /// Why the last connection ended, where that is known.
    ended: Mutex<Option<String>>,
    state: TopicName,
    board: Board,
}

impl Link {
    /// # Errors
    /// The name of a bridge is part of a topic, which it is not fit for.
    pub(super) fn new(name: String, mapping: Arc<Mapping>, board: Board) -> Result<Self, TopicError> {
        Ok(Self {
            state: TopicName::parse(format!("{SYSTEM}/broker/connection/{name}/state").into())?,
            name,
            mapping,
            connected: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            ended: Mutex::default(),
            board,
        })
    }

    pub(in crate::mqtt) fn name(&self) -> &str {
        &self.name
    }

    /// A message was not carried, and will not be. The first time that is told, then it is counted.
    pub(in crate::mqtt) fn drops(&self, why: impl fmt::Display) {
        if self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(bridge = self.name, "a message is dropped: {why}; more of them are counted");
        } else {
            tracing::debug!(bridge = self.name, "a message is dropped: {why}");
        }
    }

    /// The other broker has said why it ends the connection.
    pub(in crate::mqtt) fn ends(&self, why: &str) {
        self.ended.lock().get_or_insert_with(|| why.to_owned());
    }

    /// Why the last connection ended, if it was said; it is not said again.
    pub(super) fn why_ended(&self) -> Option<String> {
        self.ended.lock().take()
    }

    pub(in crate::mqtt) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn tell(&self, broker: &Broker, connected: bool, how: String) {
        let was = self.connected.swap(connected, Ordering::Relaxed);
        let known = self.board.0.lock().insert(self.name.clone(), how).is_some();
        if was != connected || !known {
            let state = if connected { b"1" } else { b"0" };
            broker.set_system(self.state.clone(), Bytes::from_static(state));
        }
    }
}

/// How each bridge is, in words; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<String, String>>>);

impl Board {
    /// Name and state of each.
    #[must_use]
    pub fn list(&self) -> Vec<(String, String)> {
        self.0.lock().iter().map(|(name, how)| (name.clone(), how.clone())).collect()
    }
}
