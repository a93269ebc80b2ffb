//! Why an engine cannot open, or cannot go on.

use std::path::PathBuf;

use crate::types::TargetId;

/// Why an engine cannot go on, or cannot open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A write or sync failed: nothing is acknowledged any more; the next start recovers from disk.
    #[error("the store cannot write any more: {0}")]
    Failed(String),
    /// It was shut down.
    #[error("the store is closed")]
    Stopped,
    /// There is no such target.
    #[error("there is no such target")]
    NoSuchTarget(TargetId),
    /// What was read back is not what was written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
}

/// Why an engine did not open its store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it.
    #[error("the store in {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// Written by a newer program.
    #[error("the store in {} has format {found}, this program knows up to {known}: use a newer stafett", path.display())]
    Newer {
        /// Where.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that this program knows.
        known: u32,
    },
    /// Not what was written.
    #[error("the store in {} is damaged: {what}; `stafett store check` says more, `stafett store export` saves what is readable", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The directory cannot be used.
    #[error("cannot use the data directory {}: {what}", path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// What the system says.
        what: String,
    },
}
