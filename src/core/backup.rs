//! Backups: what a caller may name, and what the engine's refusals mean.

use crate::engine::backup::{BackedUp, BackingUp, BackupError};
use crate::types::{BackupName, clock};

use super::{Broker, CoreError};

/// A backup that is being made. Dropping it ends it; nothing is left then.
#[derive(Debug)]
pub struct Backup(BackingUp);

impl Broker {
    /// Begins a backup of what is stored at this moment, of this name, or of one after the time.
    ///
    /// # Errors
    /// [`CoreError::Invalid`], [`CoreError::AlreadyExists`], [`CoreError::Precondition`] if no directory is configured or
    /// another one is being made.
    pub fn back_up(&self, name: &str) -> Result<Backup, CoreError> {
        if self.draining().is_cancelled() {
            return Err(CoreError::Draining);
        }
        let name = if name.is_empty() {
            format!("backup-{}", clock::unix_now().0).into()
        } else {
            bytestring::ByteString::from(name)
        };
        let name = BackupName::parse(name).map_err(|e| CoreError::name("name", &e))?;
        self.engine().back_up(&name).map(Backup).map_err(refused)
    }
}

impl Backup {
    /// Bytes that are copied, and about how many there are.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        self.0.progress()
    }

    /// Waits until it is whole and durable.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`CoreError::Precondition`] with what stood in its way, [`CoreError::Draining`].
    pub async fn ended(&mut self) -> Result<BackedUp, CoreError> {
        self.0.ended().await.map_err(refused)
    }
}

fn refused(error: BackupError) -> CoreError {
    let what = error.to_string();
    let reason = match error {
        BackupError::Exists(name) => {
            return CoreError::AlreadyExists { kind: "backup", name, difference: String::new() };
        }
        BackupError::Stopped => return CoreError::Draining,
        BackupError::NotConfigured => "BACKUP_NOT_CONFIGURED",
        BackupError::Running => "BACKUP_RUNNING",
        BackupError::Room { .. } => "BACKUP_NO_ROOM",
        BackupError::Failed(_) => "BACKUP_FAILED",
    };
    CoreError::Precondition { reason, what }
}
