//! What an engine promises, asked of each engine, and asked again after the process was killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../power/mod.rs"]
mod below;
mod bench;
mod conformance;
mod crash;
mod embedded;
mod forward;
mod giving_up;
mod keys;
mod last_value;
mod placing;
mod power;
mod streams;
mod turns;
mod whole;
