//! The composition root: binds the doors, announces them, supervises them, stops them.
//!
//! Invariant: [`run`] announces only when every configured door accepts, and returns only when every service has ended or
//! was cut. Services run in one set; the first that fails or panics stops the server.

mod files;
mod open_files;
mod services;
mod signals;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinError;

use crate::auth::Passwords;
use crate::config::{Listen, MqttDoor, Settings};
use crate::connections::ConnectionBudget;
use crate::core::Broker;
use crate::counters::{CounterSource, Counters, Traffic};
use crate::engine::embedded::Embedded;
use crate::engine::{Engine, EngineError, EngineSettings, Health, OpenError, OpenProgress};
use crate::grpc::{self, AdminService, HealthBoard, ServerFacts};
use crate::mqtt::bridge::{Board, Bridges, SetUpError};
use crate::mqtt::{self, UsersFiles};
use crate::rate::{self, ConnectRate};
use crate::shutdown::Shutdown;
use crate::socket::{Address, Bound};
use crate::tls::{self, Tls, TlsError};
use crate::types::clock;

use crate::sys::Reporter;
use files::Files;
use futures_util::FutureExt;
use services::Services;
use signals::Signals;

/// While a sync takes no longer than this, a caller whose commit is alone may wait for it: one worker of the runtime at most.
const CALLERS_WAIT: Duration = Duration::from_millis(2);
/// What works in this build, as `GetServerInfo` lists it.
const FEATURES: [&str; 8] =
    ["calls", "compression", "health", "mqtt", "pubsub", "queues", "reflection", "streams"];

/// Why the server did not start, or ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Every door is off.
    #[error("no door is open: give --grpc-listen or --mqtt-listen an address")]
    NoDoor,
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The store could not write any more; what was acknowledged is on disk.
    #[error(transparent)]
    StoreFailed(#[from] EngineError),
    /// A door's address cannot be had.
    #[error("cannot listen on {address} ({flag})")]
    Bind {
        /// The address as configured.
        address: String,
        /// The flag that changes it.
        flag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A listener of the MQTT door cannot be had.
    #[error(transparent)]
    Listen(#[from] mqtt::ListenError),
    /// The files of the gRPC door's TLS do not go together.
    #[error("the listener grpc has no TLS")]
    GrpcFiles(#[from] tls::Incomplete),
    /// The gRPC door's TLS cannot be had.
    #[error("the listener grpc has no TLS")]
    GrpcTls(#[source] Box<TlsError>),
    /// A bridge cannot be had.
    #[error(transparent)]
    Bridge(#[from] SetUpError),
    /// The process cannot be told to stop.
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
    /// The ready line could not be written.
    #[error("cannot say that the broker is ready")]
    Announce(#[source] io::Error),
    /// The gRPC door failed.
    #[error("the gRPC door failed")]
    Grpc(#[from] grpc::Error),
    /// A service ended without being told to.
    #[error("the {0} service ended by itself")]
    Ended(&'static str),
    /// A service panicked: a defect.
    #[error("the {service} service panicked")]
    Panicked {
        /// Its name.
        service: &'static str,
        /// The panic.
        source: JoinError,
    },
}

impl ServerError {
    /// Whether another configuration is all that it takes.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        let Self::Listen(listener) = self else {
            return matches!(self, Self::NoDoor | Self::GrpcFiles(_) | Self::GrpcTls(_) | Self::Bridge(_));
        };
        matches!(listener, mqtt::ListenError::Tls { .. } | mqtt::ListenError::Users { .. })
    }
}

/// How the server ended when it was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Everything in flight was finished.
    Clean,
    /// The drain deadline passed; the rest was cut.
    Deadline,
    /// A second signal came; the rest was cut.
    Cut,
}

/// The doors that accept, with the addresses they are bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    doors: Vec<(String, Bound)>,
}

impl Ready {
    /// Name and address of each door.
    #[must_use]
    pub fn doors(&self) -> &[(String, Bound)] {
        &self.doors
    }
}

/// The ready line: `ready`, then ` name=address` for each door.
impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ready")?;
        self.doors.iter().try_for_each(|(name, address)| write!(f, " {name}={address}"))
    }
}

/// Serves until SIGTERM or ctrl-c, then drains. `announce` is called once, when every configured door accepts.
///
/// # Errors
/// [`ServerError`]; when it came after the announcement, the other services were drained first.
pub async fn run<F>(mut settings: Settings, announce: F) -> Result<Stopped, ServerError>
where
    F: FnOnce(&Ready) -> io::Result<()>,
{
    if Handle::current().metrics().num_workers() > 1 {
        settings.store.callers_wait = CALLERS_WAIT;
    }
    run_on(settings, |store, progress| Ok(Arc::new(Embedded::open_telling(store, progress)?)), announce).await
}

/// The same on the store that `open` opens, on a thread that may block. Meanwhile the gRPC door answers: health says
/// NOT_SERVING, calls are told to come again. MQTT clients wait in the queue of the listening socket.
///
/// # Errors
/// As [`run`].
pub async fn run_on<O, F>(settings: Settings, open: O, announce: F) -> Result<Stopped, ServerError>
where
    O: FnOnce(EngineSettings, &OpenProgress) -> Result<Arc<dyn Engine>, OpenError> + Send + 'static,
    F: FnOnce(&Ready) -> io::Result<()>,
{
    let mut signals = Signals::install().map_err(ServerError::Signals)?;
    let hangups = signals::hangups().map_err(ServerError::Signals)?;
    let started_at = clock::unix_now();
    let open_files = open_files::raise();
    let budget =
        ConnectionBudget::new(open_files::connections_within(open_files, settings.limits.connections));
    let (grpc_budget, mqtt_budget) = (budget.part(budget.limit()), budget.part(budget.limit()));
    let (grpc_rate, mqtt_rate) = connect_rates(settings.limits.connect_rate);
    let mqtt_counters = mqtt::Counters::default();
    let grpc_traffic: Arc<Traffic> = Arc::default();
    let passwords = Arc::new(Passwords::new(settings.limits.password_checks));
    let shutdown = Shutdown::new(&settings.shutdown);
    let mut services = Services::default();

    let mut ready = Ready::default();
    let grpc_listener = bind_grpc(&settings.grpc.listen, &mut ready).await?;
    let board_of_bridges = Board::default();
    let bridges = Bridges::set_up(settings.bridges, &board_of_bridges)?;
    let bridge_settings = settings.mqtt.settings.clone();
    let mut users = UsersFiles::new();
    let mqtt_listeners = bind_mqtt(settings.mqtt, &mut users, &mut ready).await?;
    let grpc_tls = match settings.grpc.tls.complete()? {
        Some(of) => {
            Some(Arc::new(Tls::load(of, grpc::ALPN).map_err(|error| ServerError::GrpcTls(Box::new(error)))?))
        }
        None => None,
    };
    let files = Files {
        tls: mqtt_listeners.iter().filter_map(mqtt::Listener::tls).chain(grpc_tls.clone()).collect(),
        users: users.into_values().collect(),
    };
    services.start("files", files.renew(hangups, shutdown.clone()));
    if ready.doors.is_empty() {
        return Err(ServerError::NoDoor);
    }

    let board = HealthBoard::new(&grpc::SERVED);
    let progress = OpenProgress::default();
    let door = match grpc_listener {
        Some(listener) => {
            let door =
                grpc::Door::new(settings.grpc.settings, board.clone(), progress.clone(), shutdown.clone())?;
            let traffic = Arc::clone(&grpc_traffic);
            let served = door.clone().serve(
                listener,
                grpc_tls.clone(),
                grpc_budget.clone(),
                grpc_rate.clone(),
                traffic,
            );
            services.start("grpc", async { Ok(served.await?) });
            Some(door)
        }
        None => None,
    };

    let (store, limits) = (settings.store.clone(), settings.limits.core.clone());
    let opened = async {
        let engine = tokio::task::spawn_blocking(move || open(store, &progress))
            .await
            .map_err(|source| ServerError::Panicked { service: "store", source })??;
        let broker = Broker::open(Arc::clone(&engine), limits).await?;
        Ok::<_, ServerError>((engine, broker))
    };
    let (engine, broker) = tokio::select! {
        opened = opened => opened?,
        // Nobody was told of anything yet: the store is left as a crash would leave it.
        cause = services.cause(&shutdown, &mut signals) => {
            return services.stop(cause, &shutdown, &mut signals).await;
        }
    };

    services.start("broker", drain(Arc::clone(&broker), shutdown.clone()));
    services.start("store", watch_store(Arc::clone(&engine), board.clone(), shutdown.clone()));
    let counters = Counters::new(vec![
        connection_counters(budget.clone(), grpc_budget, mqtt_budget.clone()),
        core_counters(Arc::clone(&broker)),
        rate_counters(grpc_rate, mqtt_rate.clone()),
        byte_counters(grpc_traffic),
        Box::new(bridges.counters()),
        Box::new({
            let passwords = Arc::clone(&passwords);
            move || passwords.counters()
        }),
        Box::new({
            let counters = mqtt_counters.clone();
            move || counters.list()
        }),
    ]);
    if let Some(interval) = settings.sys.interval {
        let reporter = Reporter::new(Arc::clone(&broker), counters.clone());
        services.start("sys", reporter.run(interval, shutdown.clone()).map(Ok));
    }
    bridges.stand_ready(&broker).await;
    if let Some(door) = door {
        let facts = ServerFacts {
            started_at,
            features: FEATURES.to_vec(),
            max_connections: budget.limit(),
            durability: Some(engine.capabilities().durability.name()),
            doors: ready.doors.iter().map(|(name, address)| (name.clone(), address.to_string())).collect(),
        };
        let admin = AdminService::new(facts, counters, Box::new(move || board_of_bridges.list()));
        door.open(grpc::Services { broker: Arc::clone(&broker), admin });
    }
    if !bridges.is_empty() {
        let bridges =
            bridges.run(Arc::clone(&broker), bridge_settings, mqtt_counters.clone(), shutdown.clone());
        services.start("bridges", bridges.map(Ok));
    }
    if !mqtt_listeners.is_empty() {
        let door = mqtt::serve(
            mqtt_listeners,
            broker,
            mqtt_budget,
            mqtt_rate,
            passwords,
            mqtt_counters,
            shutdown.clone(),
        );
        services.start("mqtt", async {
            door.await;
            Ok(())
        });
    }

    board.set_all(true);
    announce(&ready).map_err(ServerError::Announce)?;
    greet(&ready, grpc_tls.is_some(), &budget, open_files);
    let cause = services.cause(&shutdown, &mut signals).await;
    let stopped = services.stop(cause, &shutdown, &mut signals).await?;
    tokio::task::spawn_blocking(move || engine.close())
        .await
        .map_err(|source| ServerError::Panicked { service: "store", source })??;
    Ok(stopped)
}

/// Tells when the store cannot write any more: nothing is served from then on, and the server ends.
async fn watch_store(
    engine: Arc<dyn Engine>,
    board: HealthBoard,
    shutdown: Shutdown,
) -> Result<(), ServerError> {
    let mut health = engine.health();
    let failed = async {
        loop {
            if let Health::Failed(why) = &*health.borrow_and_update() {
                return why.clone();
            }
            if health.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        why = failed => {
            board.set_all(false);
            Err(ServerError::StoreFailed(EngineError::Failed(why)))
        }
        () = shutdown.stopping().cancelled() => Ok(()),
    }
}

/// Lets the broker end with the stop: streams are closed by plan, what it does on its own is finished.
async fn drain(broker: Arc<Broker>, shutdown: Shutdown) -> Result<(), ServerError> {
    shutdown.stopping().cancelled().await;
    broker.drain();
    broker.drained().await;
    Ok(())
}

/// Binds every listener of the MQTT door and notes it.
async fn bind_mqtt(
    door: MqttDoor,
    users: &mut UsersFiles,
    ready: &mut Ready,
) -> Result<Vec<mqtt::Listener>, ServerError> {
    let MqttDoor { listen, settings, listeners } = door;
    let first = match listen {
        Listen::Off => None,
        Listen::At { host, port } => {
            Some(mqtt::ListenerSettings::plain(Address::Tcp { host, port }, settings))
        }
    };
    let mut bound = Vec::new();
    for listener in first.into_iter().chain(listeners) {
        let listener = mqtt::Listener::bind(listener, users).await?;
        ready.doors.push((listener.door().to_owned(), listener.bound().clone()));
        bound.push(listener);
    }
    Ok(bound)
}

/// Binds the gRPC door's address and notes it; `None` when the door is off.
async fn bind_grpc(listen: &Listen, ready: &mut Ready) -> Result<Option<TcpListener>, ServerError> {
    let Listen::At { .. } = listen else { return Ok(None) };
    let address = listen.to_string();
    let bound = async {
        let listener = TcpListener::bind(&address).await?;
        Ok((listener.local_addr()?, listener))
    };
    match bound.await {
        Ok((at, listener)) => {
            ready.doors.push(("grpc".to_owned(), Bound::Tcp(at)));
            Ok(Some(listener))
        }
        Err(source) => Err(ServerError::Bind { address, flag: "--grpc-listen", source }),
    }
}

fn core_counters(broker: Arc<Broker>) -> CounterSource {
    Box::new(move || broker.counters())
}

/// One bound, and a count for each door.
fn connect_rates(settings: rate::Settings) -> (ConnectRate, ConnectRate) {
    let grpc = ConnectRate::new(settings);
    let mqtt = grpc.part();
    (grpc, mqtt)
}

fn rate_counters(grpc: ConnectRate, mqtt: ConnectRate) -> CounterSource {
    Box::new(move || {
        vec![
            ("connects_rate_refused_total", grpc.refused() + mqtt.refused()),
            ("connects_rate_untracked_total", grpc.untracked()),
            ("grpc_connects_rate_refused_total", grpc.refused()),
            ("mqtt_connects_rate_refused_total", mqtt.refused()),
        ]
    })
}

fn byte_counters(grpc: Arc<Traffic>) -> CounterSource {
    Box::new(move || {
        let (received, sent) = grpc.totals();
        vec![("grpc_bytes_received_total", received.bytes), ("grpc_bytes_sent_total", sent.bytes)]
    })
}

/// Of all doors, and of each.
fn connection_counters(
    all: ConnectionBudget,
    grpc: ConnectionBudget,
    mqtt: ConnectionBudget,
) -> CounterSource {
    Box::new(move || {
        vec![
            ("connections", all.open()),
            ("connections_total", all.accepted()),
            ("connections_refused_total", all.refused()),
            ("grpc_connections", grpc.open()),
            ("grpc_connections_total", grpc.accepted()),
            ("grpc_connections_refused_total", grpc.refused()),
            ("mqtt_connections", mqtt.open()),
            ("mqtt_connections_total", mqtt.accepted()),
            ("mqtt_connections_refused_total", mqtt.refused()),
        ]
    })
}

/// What a person wants to know now.
fn greet(ready: &Ready, secure: bool, budget: &ConnectionBudget, open_files: Option<u64>) {
    for (door, address) in ready.doors() {
        tracing::info!(door, %address, "listening");
    }
    match open_files {
        Some(files) => tracing::info!(
            connections = budget.limit(),
            open_files = files,
            "at most that many connections; {} open files are kept for the rest",
            open_files::RESERVE
        ),
        None => tracing::info!(connections = budget.limit(), "at most that many connections"),
    }
    if let Some((_, Bound::Tcp(address))) = ready.doors().iter().find(|(door, _)| door == "grpc") {
        let scheme = if secure { "https" } else { "http" };
        tracing::info!("try: stafett info --server {scheme}://{}", reachable(*address));
    }
}

/// The address as a client on this machine would write it.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_names_every_door() {
        let tcp = |address: &str| Bound::Tcp(address.parse().unwrap());
        let ready = Ready {
            doors: vec![
                ("grpc".to_owned(), tcp("127.0.0.1:50051")),
                ("mqtt".to_owned(), tcp("[::1]:1883")),
                ("mqtt.local".to_owned(), Bound::Unix("/run/m.sock".into())),
            ],
        };
        let line = "ready grpc=127.0.0.1:50051 mqtt=[::1]:1883 mqtt.local=unix:/run/m.sock";
        assert_eq!(ready.to_string(), line);
    }
}
