//! The `stafett` command: see [`stafett::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    stafett::cli::main()
}
