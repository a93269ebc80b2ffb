//! The gRPC door.
//!
//! Translates between the public contract in `proto/` and the core, and maps errors at one place. Takes a socket that is
//! already bound, so that whoever composes the server knows the address before anyone is served.
//!
//! Invariant: holds no state that another door cannot see. Knows nothing of the other doors, of the store or of the
//! configuration.

mod acks;
mod admin;
mod backup;
mod bounds;
mod call;
mod convert;
mod deadline;
mod deliveries;
mod feed;
mod gate;
mod health;
mod incoming;
mod log;
pub mod proto;
mod pubsub;
mod queue;
mod reflection;
mod request;
mod sessions;
mod status;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;

use crate::connections::ConnectionBudget;
use crate::core::Broker;
use crate::core::queues::consumer::Window;
use crate::counters::Traffic;
use crate::engine::OpenProgress;
use crate::rate::ConnectRate;
use crate::shutdown::Shutdown;
use crate::tls::Tls;

use admin::Admin;
pub use admin::{AdminService, BridgeSource, ServerFacts};
pub use deliveries::DeliveryBatch;
pub use health::HealthBoard;

use call::CallService;
use deadline::DeadlineLayer;
use gate::Gate;
use log::LogService;
use proto::v1::admin_service_server::AdminServiceServer;
use proto::v1::call_service_server::CallServiceServer;
use proto::v1::pub_sub_service_server::PubSubServiceServer;
use proto::v1::queue_service_server::QueueServiceServer;
use proto::v1beta1::log_service_server::LogServiceServer;
use pubsub::PubSubService;
use queue::QueueService;
use stream::Bounds;

/// What the operator decides about this door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Largest request message that is decoded, in bytes, after decompression. Larger ones end with `OUT_OF_RANGE`.
    pub max_message_bytes: u64,
    /// How many calls and streams one connection may have open at the same time.
    pub max_concurrent_streams: u64,
    /// After this time a stream is closed, so that clients spread again; `None` = never.
    pub max_stream_age: Option<Duration>,
    /// After this time a connection is told to go away, so that clients spread again; `None` = never.
    pub max_connection_age: Option<Duration>,
    /// How often a silent connection is pinged; `None` = never.
    pub keepalive_interval: Option<Duration>,
    /// A connection whose ping is not answered within this time is closed.
    pub keepalive_timeout: Duration,
    /// Messages that wait for one stream of deliveries; beyond it QoS 0 is dropped, and above QoS 0 the stream ends.
    pub outbox_messages: u64,
    /// The same in bytes.
    pub outbox_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_message_bytes: 16 << 20,
            max_concurrent_streams: 1024,
            max_stream_age: None,
            max_connection_age: None,
            keepalive_interval: Some(Duration::from_secs(30)),
            keepalive_timeout: Duration::from_secs(20),
            outbox_messages: 10_000,
            outbox_bytes: 4 << 20,
        }
    }
}

/// What this door serves as soon as the store is read back.
#[derive(Debug)]
pub struct Services {
    /// Queues and topics.
    pub broker: Arc<Broker>,
    /// Facts about the broker.
    pub admin: AdminService,
}

/// What a client offers by ALPN.
pub const ALPN: &[&str] = &["h2"];

/// Why this door ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The descriptors compiled into the program are not usable: a defect of the build.
    #[error("the descriptors for reflection are damaged")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// HTTP/2 could not be served on the socket.
    #[error("gRPC stopped")]
    Transport(#[from] tonic::transport::Error),
}

/// The services that are registered with health and listed by reflection, beside those two themselves.
pub const SERVED: [&str; 5] = [
    proto::v1::admin_service_server::SERVICE_NAME,
    proto::v1::call_service_server::SERVICE_NAME,
    proto::v1::pub_sub_service_server::SERVICE_NAME,
    proto::v1::queue_service_server::SERVICE_NAME,
    proto::v1beta1::log_service_server::SERVICE_NAME,
];

/// Wraps a generated server with what holds for each of them: the decode limit, and compression both ways.
macro_rules! tuned {
    ($server:ident, $service:expr, $settings:expr) => {
        $server::new($service)
            .max_decoding_message_size(usize::try_from($settings.max_message_bytes).unwrap_or(usize::MAX))
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
    };
}

/// The door: closed at first, so that it can answer while the store is read back. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Door {
    settings: Settings,
    /// Health and reflection.
    early: Routes,
    gate: Gate,
    shutdown: Shutdown,
}

impl Door {
    /// A door that serves health and reflection. Other calls end with `UNAVAILABLE`, saying how far the store is read
    /// back and when to try again.
    ///
    /// # Errors
    /// [`Error::Reflection`].
    pub fn new(
        settings: Settings,
        health: HealthBoard,
        progress: OpenProgress,
        shutdown: Shutdown,
    ) -> Result<Self, Error> {
        let (v1, v1alpha) = reflection::services().map_err(Error::Reflection)?;
        let health = health.into_service(shutdown.stopping().clone());
        let early = Routes::new(health).add_service(v1).add_service(v1alpha);
        Ok(Self { settings, early, gate: Gate::new(progress), shutdown })
    }

    /// Serves everything from now on, on connections that are there already too. Does nothing the second time.
    pub fn open(&self, services: Services) {
        let Services { broker, admin } = services;
        let settings = &self.settings;
        let native = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let streams = Bounds {
            max_age: settings.max_stream_age,
            max_frame_bytes: settings.max_message_bytes,
            mailbox: Window {
                messages: native(settings.outbox_messages),
                bytes: native(settings.outbox_bytes),
            },
        };
        let pubsub = PubSubService::new(Arc::clone(&broker), streams);
        let calls = CallService::new(Arc::clone(&broker), streams);
        let logs = LogService::new(Arc::clone(&broker), streams);
        let admin = Admin { service: admin, broker: Arc::clone(&broker) };
        let routes = self.early.clone();
        let routes = routes
            .add_service(tuned!(AdminServiceServer, admin, settings))
            .add_service(tuned!(CallServiceServer, calls, settings))
            .add_service(tuned!(LogServiceServer, logs, settings))
            .add_service(tuned!(PubSubServiceServer, pubsub, settings))
            .add_service(tuned!(QueueServiceServer, QueueService::new(broker, streams), settings));
        self.gate.open(routes);
    }

    /// Serves on `listener`, with or without TLS, until the stop, then tells every connection to go away (GOAWAY) and waits for them.
    ///
    /// # Errors
    /// Why the door could not be served; `Ok` only after a stop.
    pub async fn serve(
        self,
        listener: TcpListener,
        tls: Option<Arc<Tls>>,
        budget: ConnectionBudget,
        rate: ConnectRate,
        traffic: Arc<Traffic>,
    ) -> Result<(), Error> {
        let Self { settings, early, gate, shutdown } = self;
        let mut server = tonic::transport::Server::builder()
            .http2_keepalive_interval(settings.keepalive_interval)
            .http2_keepalive_timeout(Some(settings.keepalive_timeout))
            .max_concurrent_streams(u32::try_from(settings.max_concurrent_streams).unwrap_or(u32::MAX));
        if let Some(age) = settings.max_connection_age {
            server = server.max_connection_age(age);
        }
        server
            .layer(request::identify())
            .layer(request::trace())
            .layer(request::propagate())
            .layer(DeadlineLayer)
            .layer(gate)
            .add_routes(early)
            .serve_with_incoming_shutdown(
                incoming::connections(listener, budget, tls, rate, traffic),
                shutdown.stopping().clone().cancelled_owned(),
            )
            .await?;
        Ok(())
    }
}
