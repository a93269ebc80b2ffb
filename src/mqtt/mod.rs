//! The MQTT door: 3.1.1 and 5.0 through one packet model.
//!
//! [`codec`] turns bytes into packets and back and knows nothing of the rest of the crate.

pub mod codec;
