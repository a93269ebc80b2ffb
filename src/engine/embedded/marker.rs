//! How far the store has come, said beside it.
//!
//! sled takes damage behind its last snapshot for the torn end of a write and drops what follows, be it all. The file
//! `state` holds the newest start that was made durable and whether the store was closed after it, so that a store that
//! comes back shorter is refused instead of served as if nothing had been there.
//!
//! ```text
//! stafett store\nboot <number>\n<open | closed>\n
//! ```
//! What was written after the newest start is covered by the journal, see `log`, but for the policies that have none.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use super::disk::Trees;

pub(super) const NAME: &str = "state";
const TITLE: &str = "stafett store";

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) boot: u64,
    pub(super) closed: bool,
}

/// A number of the meta tree.
pub(super) fn meta_number(trees: &Trees, key: &str) -> sled::Result<u64> {
    Ok(trees.meta.get(key)?.as_deref().and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_be_bytes(*b)))
}

impl Marker {
    /// What stands beside the store; a store of an earlier program has none.
    fn read(data_dir: &Path) -> io::Result<Option<Self>> {
        let text = match std::fs::read_to_string(data_dir.join(NAME)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let mut lines = text.lines();
        let boot = (lines.next() == Some(TITLE))
            .then(|| lines.next()?.strip_prefix("boot ")?.parse().ok())
            .flatten();
        match (boot, lines.next()) {
            (Some(boot), Some("open")) => Ok(Some(Self { boot, closed: false })),
            (Some(boot), Some("closed")) => Ok(Some(Self { boot, closed: true })),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("the file {NAME} is not readable"))),
        }
    }

    /// Replaces what stands beside the store, durably.
    pub(super) fn write(self, data_dir: &Path) -> io::Result<()> {
        let new = data_dir.join(".state");
        let mut file = File::create(&new)?;
        let word = if self.closed { "closed" } else { "open" };
        write!(file, "{TITLE}\nboot {}\n{word}\n", self.boot)?;
        file.sync_all()?;
        std::fs::rename(&new, data_dir.join(NAME))?;
        File::open(data_dir)?.sync_all()
    }

    /// What is missing of the store, if so.
    pub(super) fn missing(data_dir: &Path, trees: &Trees) -> Option<String> {
        let marker = match Self::read(data_dir) {
            Ok(None) => return None,
            Ok(Some(marker)) => marker,
            Err(error) => return Some(error.to_string()),
        };
        let (boot, closed) = match (meta_number(trees, "boot"), meta_number(trees, "closed")) {
            (Ok(boot), Ok(closed)) => (boot, closed),
            (Err(error), _) | (_, Err(error)) => return Some(error.to_string()),
        };
        if boot < marker.boot {
            return Some(format!(
                "it has come to start {boot}, but start {} was made: its end is missing",
                marker.boot
            ));
        }
        (marker.closed && closed < marker.boot).then(|| {
            format!("it was closed after start {}, but the end of what was written is missing", marker.boot)
        })
    }
}
