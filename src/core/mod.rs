//! The broker: what all doors share.
//!
//! Knows no protocol, no socket and no particular store. Of tokio it uses `sync`, `time` and `task`.

pub mod error;
pub mod limits;
pub mod router;

pub use error::CoreError;
pub use limits::Limits;
