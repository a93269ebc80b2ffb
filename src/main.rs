//! The `stafett` command: see [`stafett::cli`].

use std::process::ExitCode;

/// Gives what is freed back to the system within some ten seconds, whichever thread had it and whatever lies beside it.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    stafett::cli::main()
}
