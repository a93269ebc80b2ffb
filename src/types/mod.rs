//! The nouns that every layer shares.
//!
//! Invariant: a value of these types is valid; whoever holds one never checks it again. Knows no other module.

pub mod clock;

pub use clock::UnixMillis;
