//! Stafett: message-oriented middleware in one small server.
//!
//! Publish/subscribe, durable queues and remote calls over gRPC and MQTT, on one core and one store. Every protocol
//! translates its words into the core's nouns and back. Imports go down only, `tests/layering.rs` holds the table:
//!
//! | module | what it is |
//! |---|---|
//! | `cli` | the sub-commands and their exit codes |
//! | `server` | the composition root: opens the store, binds the doors, announces them, stops them |
//! | `config` | file, environment and flags made into the settings of each module, once |
//! | `telemetry` | what the process tells its operator on stderr |
//! | `grpc` | the gRPC door |
//! | `mqtt` | the MQTT door |
//! | `socket` | listening sockets and their connections |
//! | `tls` | TLS of the listeners |
//! | `auth` | users, passwords, SCRAM |
//! | `proxy` | the PROXY protocol |
//! | [`sys`] | what is counted, as topics under `$SYS/` |
//! | [`core`] | the broker: what all doors share |
//! | [`rate`] | how often one address may connect |
//! | [`bell`] | wakes one waiter |
//! | [`counters`] | what is counted for operators |
//! | [`connections`] | how many connections the process may hold |
//! | `causes` | an error with what is behind it, in one line |
//! | [`shutdown`] | stop, drain, cut |
//! | [`engine`] | what is asked of a store, and the embedded one |
//! | [`types`] | names, ids, topics, messages, time |

#[cfg(feature = "mqtt")]
pub mod auth;
pub mod bell;
#[cfg(any(feature = "server", feature = "mqtt"))]
mod causes;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
pub mod connections;
pub mod core;
pub mod counters;
pub mod engine;
#[cfg(feature = "grpc")]
pub mod grpc;
#[cfg(feature = "mqtt")]
pub mod mqtt;
#[cfg(feature = "mqtt")]
pub mod proxy;
pub mod rate;
#[cfg(feature = "server")]
pub mod server;
pub mod shutdown;
#[cfg(any(feature = "grpc", feature = "mqtt"))]
pub mod socket;
pub mod sys;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(any(feature = "grpc", feature = "mqtt"))]
pub mod tls;
pub mod types;
