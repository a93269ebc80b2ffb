//! How a command ends: the exit codes, all of them.

use std::fmt;
use std::process::ExitCode;

use crate::causes::with_causes;
use crate::engine::OpenError;

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: the operation failed.
    Failed,
    /// 2: wrong usage or configuration. (clap ends with the same code.)
    Usage,
    /// 3: the broker cannot be reached, nobody serves what is called, or the deadline passed.
    Unreachable,
    /// 4: there was nothing to receive, or there is no reply yet.
    Nothing,
    /// 5: the store is locked, damaged or newer.
    Store,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::Nothing => 4,
            Exit::Store => 5,
        })
    }
}

/// A command that did not do what was asked, and why.
#[derive(Debug)]
pub struct Failure {
    /// How it ends.
    pub exit: Exit,
    /// Why, with its causes.
    pub reason: anyhow::Error,
}

impl Failure {
    /// Wrong usage or configuration.
    pub(super) fn usage(reason: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Usage, reason: reason.into() }
    }

    /// The store cannot be opened. A directory that cannot be used is a matter of configuration.
    pub(super) fn store(error: OpenError) -> Self {
        let exit = if matches!(error, OpenError::Unusable { .. }) { Exit::Usage } else { Exit::Store };
        Self { exit, reason: error.into() }
    }

    /// The operation failed.
    pub(super) fn failed(reason: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Failed, reason: reason.into() }
    }
}

/// The reason and its causes on one line.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&with_causes(self.reason.as_ref()))
    }
}
