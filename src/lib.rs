//! Stafett: message-oriented middleware in one small server.
//!
//! Publish/subscribe, durable queues and remote calls over gRPC and MQTT, on one core and one store. Imports go down
//! only, `tests/layering.rs` holds the table; ARCHITECTURE.md has the map.
//!
//! | module | what it is |
//! |---|---|
//! | `cli` | the sub-commands and their exit codes |
//! | `server` | the composition root: binds the doors, announces them, stops them |
//! | `config` | file, environment and flags made into the settings of each module, once |
//! | `telemetry` | what the process tells its operator on stderr |
//! | `grpc` | the gRPC door |
//! | [`core`] | the broker: what all doors share |
//! | [`engine`] | what is asked of a store |
//! | [`connections`] | how many connections the process may hold |
//! | [`shutdown`] | stop, drain, cut |
//! | [`types`] | names, ids, topics, messages, time |

#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
pub mod connections;
pub mod core;
pub mod engine;
#[cfg(feature = "grpc")]
pub mod grpc;
#[cfg(feature = "server")]
pub mod server;
pub mod shutdown;
#[cfg(feature = "server")]
pub mod telemetry;
pub mod types;
