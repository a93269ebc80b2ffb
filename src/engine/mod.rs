//! What the broker asks of a store.
//!
//! Invariant: knows `types` and nothing above it.

pub mod settings;

pub use settings::{Durability, EngineSettings};
