//! Stafett: a message broker in one process.
//!
//! One core, several doors: every protocol translates its words into the core's nouns and back. Imports go down only,
//! `tests/layering.rs` holds the table:
//!
//! | module | what it is |
//! |---|---|
//! | `cli` | the sub-commands and their exit codes |
//! | `server` | the composition root: binds the doors, announces them, stops them |
//! | `config` | file, environment and flags made into the settings of each module, once |
//! | `telemetry` | what the process tells its operator on stderr |
//! | `grpc` | the gRPC door |
//! | [`connections`] | how many connections the process may hold |
//! | [`shutdown`] | stop, drain, cut |
//! | [`core`] | the broker that all doors share |
//! | [`engine`] | what is asked of a store |
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
