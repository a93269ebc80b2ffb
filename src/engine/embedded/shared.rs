//! What the threads of the engine share.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHasher;
use tokio::sync::watch;

use super::bodies::Bodies;
use super::counts::Counts;
use super::disk::Disk;
use super::keeper::Tasks;
use super::lanes::Lanes;
use super::readers::Pages;
use super::target::{Settings, Target};
use crate::engine::settings::EngineSettings;
use crate::engine::{Capabilities, EngineError, Health, Stored};
use crate::types::{QueueName, TargetId};

/// All targets, and queues by their name.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// The keys are numbers of our own: no peer can choose them to collide.
    by_id: HashMap<TargetId, Arc<Target>, BuildHasherDefault<FxHasher>>,
    by_queue: HashMap<QueueName, TargetId>,
}

impl Registry {
    pub(super) fn get(&self, id: TargetId) -> Option<&Arc<Target>> {
        self.by_id.get(&id)
    }

    pub(super) fn queue(&self, name: &QueueName) -> Option<&Arc<Target>> {
        self.by_queue.get(name).and_then(|id| self.by_id.get(id))
    }

    /// Makes a target or changes its settings.
    pub(super) fn define(&mut self, id: TargetId, settings: Settings) -> Arc<Target> {
        if let Some(name) = &settings.queue {
            self.by_queue.insert(name.clone(), id);
        }
        let target = self.by_id.entry(id).or_insert_with(|| Arc::new(Target::new(id, settings.clone(), 1)));
        target.settings.store(Arc::new(settings));
        target.clone()
    }

    pub(super) fn remove(&mut self, id: TargetId) -> Option<Arc<Target>> {
        let target = self.by_id.remove(&id)?;
        if let Some(name) = &target.settings.load().queue
            && self.by_queue.get(name) == Some(&id)
        {
            self.by_queue.remove(name);
        }
        Some(target)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.by_id.values()
    }

    pub(super) fn all(&self) -> Vec<Arc<Target>> {
        self.iter().cloned().collect()
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: EngineSettings,
    pub(super) capabilities: Capabilities,
    pub(super) boot: u64,
    /// Of hashes that are stored.
    pub(super) hash_secret: [u8; 16],
    /// Of tokens in the hands of peers.
    pub(super) token_secret: [u8; 16],
    pub(super) disk: Disk,
    pub(super) bodies: Bodies,
    pub(super) registry: RwLock<Registry>,
    pub(super) lanes: Lanes,
    pub(super) tasks: Tasks,
    /// What readers of streams wait for.
    pub(super) pages: Pages,
    pub(super) counts: Counts,
    pub(super) health: watch::Sender<Health>,
    pub(super) failed: AtomicBool,
    pub(super) next_target: AtomicU32,
    pub(super) next_consumer: AtomicU64,
    pub(super) stored: Mutex<Stored>,
}

impl Shared {
    pub(super) fn target(&self, id: TargetId) -> Result<Arc<Target>, EngineError> {
        self.registry.read().get(id).cloned().ok_or(EngineError::NoSuchTarget(id))
    }

    /// Nothing is acknowledged any more.
    pub(super) fn fail(&self, why: &str) -> EngineError {
        self.disk.give_up();
        if !self.failed.swap(true, Ordering::SeqCst) {
            tracing::error!("the store cannot write any more: {why}");
            self.health.send_replace(Health::Failed(why.to_owned()));
        }
        EngineError::Failed(why.to_owned())
    }

    /// Why nothing can be done, if so.
    pub(super) fn failure(&self) -> Option<EngineError> {
        match &*self.health.borrow() {
            Health::Failed(why) => Some(EngineError::Failed(why.clone())),
            _ => None,
        }
    }
}
