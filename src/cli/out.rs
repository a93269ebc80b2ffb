//! Results on stdout.
//!
//! Invariant: a reader that leaves (`| head`) ends the command without a word, never with a panic.

use std::fmt::Display;
use std::io::{self, Write};

use super::exit::Failure;

/// One line.
pub(super) fn line(text: impl Display) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(Failure::failed)
}

/// Text that has its lines already.
pub(super) fn text(text: &str) -> Result<(), Failure> {
    io::stdout().write_all(text.as_bytes()).map_err(Failure::failed)
}

/// Whether the reader of stdout has left.
pub(super) fn reader_left(failure: &Failure) -> bool {
    let error = failure.reason.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
