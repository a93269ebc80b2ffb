//! `stafett store compact`.

use clap::Args;
use serde_json::json;

use super::bar::Bar;
use super::{Exit, Failure, Place};
use crate::engine::embedded::compact::{self, CompactError};

const HELP: &str = "\
Examples:
  stafett store compact ./stafett-data
  stafett store compact --data-dir /var/lib/stafett --json

The store's file keeps the size that it had at the longest backlog: what is free in it is used again, but not given back. \
This copies what is needed into a new one beside it, compares them, and puts the new one in its place. The store must \
not be in use. Up to twice the bytes that are in use, and 64 MiB, must be free on the disk. When it ends early, for \
whatever reason, the store is as it was. Exit codes: 0 done; 1 it cannot be copied; 2 there is no store; 5 damaged, in \
use or newer.";

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(super) struct Compact {
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(compact: &Compact, json: bool) -> Result<Exit, Failure> {
    let mut bar = Bar::new();
    let report = compact::compact(&compact.place.path(), &mut |progress| bar.show(progress));
    drop(bar);
    let report = report.map_err(|error| match error {
        CompactError::Open(error) => Failure::store(error),
        other => Failure::failed(other),
    })?;
    let (before, after) = (report.before_bytes, report.after_bytes);
    if json {
        println!(
            "{}",
            json!({ "before_bytes": before, "after_bytes": after, "row_bytes": report.row_bytes })
        );
    } else {
        println!(
            "the store's file had {before} bytes and has {after}; {} of them are rows",
            report.row_bytes
        );
    }
    Ok(Exit::Done)
}
