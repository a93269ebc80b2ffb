//! Looks after the free space of the disk.

use super::lanes::deadline;
use super::writer::{SPACE_EVERY, Writer};
use crate::engine::Health;
use crate::types::clock::now;

/// The free space is looked at after so many logical bytes, however fast they come.
const SPACE_BYTES: u64 = 1 << 20;

impl Writer {
    /// Looks at the free space: refuses below the watermark, gives the ballast up when there is next to nothing.
    pub(super) fn check_space(&mut self) {
        self.next_space_check = deadline(SPACE_EVERY);
        self.next_space_check_bytes = self.packer.log.written + SPACE_BYTES;
        let watermark_bytes = self.shared.settings.watermark_free_bytes;
        let Ok(free_bytes) = self.shared.disk.free_bytes() else { return };
        let ballast = self.shared.disk.ballast_bytes();
        if free_bytes < watermark_bytes {
            if self.low_disk.is_none() {
                tracing::warn!(
                    free_bytes,
                    watermark_bytes,
                    "the disk is nearly full: new messages are refused"
                );
            }
            if free_bytes < ballast && self.shared.disk.drop_ballast() {
                tracing::warn!(ballast, "gave up the ballast, so that settlements find room");
            }
            self.low_disk = Some((free_bytes, watermark_bytes));
            // From here on before every commit: others may take what is left at once.
            self.next_space_check = now();
            self.shared.health.send_if_modified(|health| {
                let low = Health::LowDisk { free_bytes, watermark_bytes };
                let new = matches!(health, Health::Ok);
                if new {
                    *health = low;
                }
                new
            });
        } else if self.low_disk.is_some() && free_bytes >= watermark_bytes + ballast / 2 {
            tracing::info!(free_bytes, "there is room on the disk again");
            self.low_disk = None;
            if let Err(error) = self.shared.disk.put_ballast() {
                tracing::warn!(%error, "cannot reserve the ballast again");
            }
            self.shared.health.send_if_modified(|health| {
                let low = matches!(health, Health::LowDisk { .. });
                if low {
                    *health = Health::Ok;
                }
                low
            });
        }
    }
}
