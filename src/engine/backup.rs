//! A copy of all that is stored at one moment, made while the engine goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::oneshot;

use crate::types::UnixMillis;

/// What a backup has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackedUp {
    /// Where it is, on the machine of the engine.
    pub path: PathBuf,
    /// The moment: it has what was acknowledged by then, and is settled nowhere.
    pub at: UnixMillis,
    /// Bytes of its rows.
    pub bytes: u64,
}

/// Why there is no backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// This engine makes none, or was not told where.
    #[error("no directory for backups is configured (store.backup_dir)")]
    NotConfigured,
    /// One at a time.
    #[error("another backup is being made")]
    Running,
    /// There is one of this name.
    #[error("there is a backup `{0}`")]
    Exists(String),
    /// The disk is too full, or became so.
    #[error("{free_bytes} bytes are free for it, up to {needed_bytes} are needed")]
    Room {
        /// What is free.
        free_bytes: u64,
        /// What may be needed, with what is kept free.
        needed_bytes: u64,
    },
    /// The engine stops, or nobody waits for it any more.
    #[error("it was ended before it was whole")]
    Stopped,
    /// Something could not be read or written.
    #[error("{0}")]
    Failed(String),
}

/// How far it is, and whether it shall go on: what an engine that makes one shares with who waits for it.
#[derive(Debug, Default)]
pub struct Course {
    done: AtomicU64,
    total: AtomicU64,
    stopped: AtomicBool,
    over: AtomicBool,
}

impl Course {
    /// So many bytes of so many are copied.
    pub fn tell(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// It shall not go on.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether it shall not go on.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Nothing is done for it any more: said before who waits for it is told, who may begin another one then.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether nothing is done for it any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// A backup that is being made. Dropping it ends it, and removes what there is of it.
#[derive(Debug)]
pub struct BackingUp {
    course: Arc<Course>,
    end: oneshot::Receiver<Result<BackedUp, BackupError>>,
}

impl BackingUp {
    /// One, with what tells of its end.
    pub fn new(course: Arc<Course>) -> (oneshot::Sender<Result<BackedUp, BackupError>>, Self) {
        let (send, end) = oneshot::channel();
        (send, Self { course, end })
    }

    /// Bytes that are copied, and about how many there are.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        let Course { done, total, .. } = &*self.course;
        (done.load(Ordering::Relaxed), total.load(Ordering::Relaxed))
    }

    /// Waits until it is whole and durable.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`BackupError`]: then nothing is left of it.
    pub async fn ended(&mut self) -> Result<BackedUp, BackupError> {
        (&mut self.end).await.unwrap_or(Err(BackupError::Stopped))
    }
}

impl Drop for BackingUp {
    fn drop(&mut self) {
        self.course.stop();
    }
}
