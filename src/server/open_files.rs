//! The limit of open files, raised as far as the process may.
//!
//! Invariant: enough handles stay free for the store, the listeners and the logs, so that a flood of connections cannot
//! take them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Handles kept for everything that is not a connection.
pub(super) const RESERVE: u64 = 128;

/// How many files the process may have open; `None` = no limit.
pub(super) fn raise() -> Option<u64> {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    getrlimit(Resource::Nofile).current
}

/// How many connections fit: `wanted`, or what `open_files` leaves beside the reserve.
pub(super) fn connections_within(open_files: Option<u64>, wanted: u64) -> u64 {
    open_files.map_or(wanted, |files| wanted.min(files.saturating_sub(RESERVE).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise();
        assert_eq!(limit, getrlimit(Resource::Nofile).maximum);
    }

    #[test]
    fn the_reserve_is_kept() {
        assert_eq!(connections_within(None, 7), 7);
        assert_eq!(connections_within(Some(1024), 10_000), 1024 - RESERVE);
        assert_eq!(connections_within(Some(1024), 10), 10);
        assert_eq!(connections_within(Some(10), 10), 1);
    }
}
