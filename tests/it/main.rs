//! Behaviour of the real program, one module per subject.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../power/mod.rs"]
mod below;
mod bridge;
mod call;
mod certificates;
mod client_commands;
mod clock;
mod configuration;
mod grpc_door;
mod grpc_tls;
mod harness;
mod mqtt;
mod passwd;
mod power;
mod process;
mod pubsub;
mod queue;
mod recovering;
mod store;
mod streams;
mod sys;
