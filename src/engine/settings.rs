//! What the operator decides about the store.
//!
//! Invariant: the values are in their permitted range; whoever fills the struct has checked them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::Durability;

impl Durability {
    /// Every policy, the default first.
    pub const ALL: [Self; 3] = [Self::Fsync, Self::Interval, Self::Memory];

    /// The word for it in configuration and answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Interval => "interval",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The word is none of `fsync`, `interval` and `memory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of fsync, interval, memory")]
pub struct UnknownDurability;

impl FromStr for Durability {
    type Err = UnknownDurability;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|policy| policy.name() == word).ok_or(UnknownDurability)
    }
}

/// Where and how the store keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineSettings {
    /// Directory of the store; made when it is absent. One process at a time.
    pub data_dir: PathBuf,
    /// What an acknowledgement waits for.
    pub durability: Durability,
    /// Longest time until the disk has what was acknowledged; for [`Durability::Interval`] alone.
    pub sync_interval: Duration,
    /// A caller of [`commit_alone`](super::Engine::commit_alone) may wait for the disk while a sync takes no longer than
    /// this; when it is zero it commits nothing itself. For where others are served by other threads meanwhile.
    pub callers_wait: Duration,
    /// Deduplication ids that one queue remembers; beyond it what would be one more is refused. Each takes 100 to 200
    /// bytes of memory and about as much of the store.
    pub max_dedup_ids: usize,
    /// Memory for message bodies, in bytes; beyond it bodies are read back from disk.
    pub body_cache_bytes: u64,
    /// New messages are refused when the file system has fewer bytes free.
    pub watermark_free_bytes: u64,
    /// Size of the file that is kept so that settlements can be written to a full disk, in bytes.
    pub ballast_bytes: u64,
    /// A file of which little is in use is rewritten at start if that is no more than this, in bytes; none: never.
    pub compact_at_start_bytes: Option<u64>,
    /// Where backups are made, each in a directory of its own; none: nowhere.
    pub backup_dir: Option<PathBuf>,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./stafett-data"),
            durability: Durability::default(),
            sync_interval: Duration::from_millis(100),
            callers_wait: Duration::ZERO,
            max_dedup_ids: 1_000_000,
            body_cache_bytes: 256 << 20,
            watermark_free_bytes: 512 << 20,
            ballast_bytes: 64 << 20,
            compact_at_start_bytes: Some(64 << 20),
            backup_dir: None,
        }
    }
}
