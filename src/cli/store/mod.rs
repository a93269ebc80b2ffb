//! `stafett store`: looks after a store while no broker runs on it; `backup` asks the broker.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::exit::{Exit, Failure};
use crate::engine::EngineSettings;

mod bar;
mod check;
mod compact;
mod export;
mod import;
mod line;
mod stats;

/// The sub-commands of `stafett store`.
#[derive(Args, Debug)]
pub(super) struct Store {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what the store holds, and what of its files that takes
    Stats(stats::Stats),
    /// Compare all that the store holds with its checksums
    Check(check::Check),
    /// Write all that can be read as JSON, one object a line
    Export(export::Export),
    /// Make a store of an export
    Import(import::Import),
    /// Rewrite the store into a file that holds no more than is needed
    Compact(compact::Compact),
}

/// Where the store is.
#[derive(Args, Debug)]
struct Place {
    /// The data directory [default: ./stafett-data] [env: STAFETT_DATA_DIR]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The same, called as in serve
    #[arg(long, value_name = "DIR", conflicts_with = "dir")]
    data_dir: Option<PathBuf>,
}

impl Place {
    fn path(&self) -> PathBuf {
        given(self.dir.as_ref().or(self.data_dir.as_ref()))
    }
}

/// The data directory, of which the command line may say nothing.
fn given(dir: Option<&PathBuf>) -> PathBuf {
    let given = dir.cloned().or_else(|| std::env::var_os("STAFETT_DATA_DIR").map(PathBuf::from));
    given.unwrap_or_else(|| EngineSettings::default().data_dir)
}

pub(super) fn run(store: Store, json: bool) -> Result<Exit, Failure> {
    // The storage library panics on some damage; that is caught and told as damage.
    std::panic::set_hook(Box::new(|_| {}));
    match store.command {
        Command::Stats(stats) => stats::run(&stats, json),
        Command::Check(check) => check::run(&check, json),
        Command::Export(export) => export::run(&export),
        Command::Import(import) => import::run(&import),
        Command::Compact(compact) => compact::run(&compact, json),
    }
}
