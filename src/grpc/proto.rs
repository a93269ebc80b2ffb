//! The code generated from `proto/stafett/v1`, client and server.
//!
//! Invariant: nothing is written here by hand; `build.rs` makes it. The documents of the messages stand in the `.proto`
//! files.

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]

/// Package `stafett.v1`.
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/stafett.v1.rs"));
}

/// The descriptors of every file under `proto/`, as reflection serves them.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stafett.bin"));
