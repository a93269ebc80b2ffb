//! Stafett: message-oriented middleware in one small server.
//!
//! Publish/subscribe, durable queues and remote calls over gRPC and MQTT, on one core and one store. The layers,
//! from the bottom: [`types`], [`engine`], [`core`], then the doors. ARCHITECTURE.md has the map.

pub mod core;
pub mod engine;
pub mod types;
