//! The MQTT door: 3.1.1 and 5.0 through one packet model.
//!
//! ```text
//! socket ⇄ connection ─ packets ─▶ state ─ effects ─▶ connection ─▶ core: Publisher, Session
//!              ▲                                                         │
//!              └───────────── outbox ◀──── deliveries ───────────────────┘
//! ```
//!
//! - [`codec`]: bytes ⇄ packets; knows nothing of the rest of the crate;
//! - `state`: the protocol without I/O: a packet or an event in, effects out;
//! - `connection`: one task, the only reader and writer of its socket;
//! - [`bridge`]: this broker as a client of another one;
//! - `listener`, `stream`, `websocket`: what is bound, and what lies over its sockets; `terms`: what it grants;
//! - `outbox`, `frames`, `aliases`, `out`, `buffers`: deliveries on their way to the socket;
//! - `translate`, `violation`: the one place each where words and errors are mapped;
//!
//! Takes listeners that are already bound. Rules are cited by their number where they are enforced and where they are
//! tested, with the version where the numbers differ.
//!
//! Invariant: holds no state that another door cannot see. Knows nothing of the other doors,
//! of the store or of the configuration.

mod aliases;
pub mod bridge;
mod buffers;
pub mod codec;
mod connection;
mod frames;
mod fuzz;
mod listener;
mod out;
mod outbox;
mod state;
mod stream;
mod terms;
mod translate;
mod violation;
pub mod websocket;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::auth::{Passwords, Users};
use crate::connections::ConnectionBudget;
use crate::core::Broker;
use crate::counters::Traffic;
use crate::rate::ConnectRate;
use crate::shutdown::Shutdown;
use crate::socket::Peer;

use buffers::Buffers;
use codec::ReasonCode;
#[doc(hidden)]
pub use fuzz::fuzz_connection;
use listener::Layers;
use outbox::{Bounds, Mailbox};
#[doc(hidden)]
pub use state::fuzz_state;

pub use listener::{ListenError, Listener, ListenerSettings, UNIX_MODE, UsersFiles};
pub use terms::{DeniedFilter, Terms, UnknownVersion, Versions};

/// What the operator decides about how clients are served, for each listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Connections at the same time, if not fewer are allowed over all doors.
    pub max_connections: u64,
    /// Largest packet that is taken, in bytes.
    pub max_packet_bytes: u64,
    /// How long a new connection has to send its CONNECT, with all that comes before it.
    pub connect_timeout: Duration,
    /// The longest keep alive, told to 5.0 clients that ask for a longer one or none; `None` = as they ask.
    pub keep_alive_ceiling: Option<Duration>,
    /// How many publishes above QoS 0 a 5.0 client may have unacknowledged: 1 to 65535.
    pub receive_maximum: u64,
    /// How many deliveries above QoS 0 one client may have unacknowledged, if it does not ask for fewer: 1 to 65535.
    pub max_inflight: u64,
    /// The same in bytes: no other delivery begins while so many are unacknowledged; `None` = as many as there are.
    pub max_inflight_bytes: Option<u64>,
    /// How many topic aliases a 5.0 client may use: 0 to 65535. Each holds a topic.
    pub topic_alias_maximum: u64,
    /// How many topic aliases deliveries to one client have, if it allows as many: 0 to 65535. Each holds a topic.
    pub outgoing_topic_aliases: u64,
    /// Bytes that wait for one client; beyond it QoS 0 is dropped, and above QoS 0 the client is disconnected.
    pub outbox_bytes: u64,
    /// Deliveries above QoS 0 that wait for one client whose session ends with its connection; beyond it the client is
    /// disconnected.
    pub outbox_messages: u64,
    /// What is granted of all that the protocol has.
    pub terms: Arc<Terms>,
    /// Who may connect by a password, as it is or by SCRAM-SHA-256; without it names and passwords are not looked at.
    pub users: Option<PathBuf>,
    /// Whether clients may connect that do not say who they are; `None` = as long as there is no users' file.
    pub anonymous: Option<bool>,
}

/// Nobody could connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("anonymous = false needs users: who else may connect")]
pub struct NobodyMayConnect;

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_connections: 1_000_000,
            max_packet_bytes: 4 << 20,
            connect_timeout: Duration::from_secs(10),
            keep_alive_ceiling: None,
            receive_maximum: 1024,
            max_inflight: 1024,
            max_inflight_bytes: None,
            topic_alias_maximum: 16,
            outgoing_topic_aliases: 16,
            outbox_bytes: 4 << 20,
            outbox_messages: 10_000,
            terms: Arc::default(),
            users: None,
            anonymous: None,
        }
    }
}

impl Settings {
    /// Whether what is said of users fits together.
    ///
    /// # Errors
    /// [`NobodyMayConnect`]
    pub fn check(&self) -> Result<(), NobodyMayConnect> {
        if self.users.is_some() || self.admits_anonymous() { Ok(()) } else { Err(NobodyMayConnect) }
    }

    /// Whether clients may connect that do not say who they are.
    fn admits_anonymous(&self) -> bool {
        self.anonymous.unwrap_or(self.users.is_none())
    }

    fn receive_maximum(&self) -> u16 {
        u16::try_from(self.receive_maximum).unwrap_or(u16::MAX).max(1)
    }

    fn topic_alias_maximum(&self) -> u16 {
        u16::try_from(self.topic_alias_maximum).unwrap_or(u16::MAX)
    }

    fn max_packet(&self) -> u32 {
        u32::try_from(self.max_packet_bytes).unwrap_or(u32::MAX)
    }

    /// Those that a client gets which allows so many.
    fn outgoing_topic_aliases(&self, allowed: u16) -> u16 {
        u16::try_from(self.outgoing_topic_aliases).unwrap_or(u16::MAX).min(allowed)
    }

    fn bounds(&self) -> Bounds {
        let native = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Bounds { bytes: native(self.outbox_bytes), messages: native(self.outbox_messages) }
    }
}

/// What this door counts since the start; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    connects_refused: AtomicU64,
    connect_timeouts: AtomicU64,
    /// Packets, and all bytes that are MQTT.
    traffic: Arc<Traffic>,
    logins_refused: AtomicU64,
}

impl Counters {
    /// By the names that operators see.
    #[must_use]
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        let (received, sent) = self.0.traffic.totals();
        vec![
            ("mqtt_connects_refused_total", self.0.connects_refused.load(Ordering::Relaxed)),
            ("mqtt_connect_timeouts_total", self.0.connect_timeouts.load(Ordering::Relaxed)),
            ("mqtt_packets_received_total", received.messages),
            ("mqtt_packets_sent_total", sent.messages),
            ("mqtt_bytes_received_total", received.bytes),
            ("mqtt_bytes_sent_total", sent.bytes),
            ("mqtt_logins_refused_total", self.0.logins_refused.load(Ordering::Relaxed)),
        ]
    }

    /// What should have been a CONNECT, or a handshake before it, was none or was refused.
    fn refused(&self) {
        self.0.connects_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A password or a proof was wrong.
    fn login_refused(&self) {
        self.0.logins_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// No CONNECT came within the time for it.
    fn timed_out(&self) {
        self.0.connect_timeouts.fetch_add(1, Ordering::Relaxed);
    }
}

/// Connections beyond a bound of a listener that are told so at the same time; more are closed unread.
const TOLD_TO_GO: usize = 32;

/// What the connections of one listener share.
#[derive(Debug)]
struct Door {
    settings: Settings,
    layers: Layers,
    rate: ConnectRate,
    /// As the settings name them.
    users: Option<Arc<Users>>,
    /// Of all listeners.
    passwords: Arc<Passwords>,
    broker: Arc<Broker>,
    counters: Counters,
    /// Of all listeners.
    buffers: Arc<Buffers>,
    shutdown: Shutdown,
    connected: Mutex<FxHashMap<u64, Arc<Mailbox>>>,
    next: AtomicU64,
}

/// A connection among those that are told of a stop.
#[derive(Debug)]
struct Connected {
    door: Arc<Door>,
    number: u64,
}

impl Door {
    /// Notes a connection, to be told when the server stops.
    fn join(self: &Arc<Self>, mailbox: &Arc<Mailbox>) -> Connected {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.connected.lock().insert(number, Arc::clone(mailbox));
        if self.shutdown.stopping().is_cancelled() {
            mailbox.end(ReasonCode::ServerShuttingDown);
        }
        Connected { door: Arc::clone(self), number }
    }

    fn stop(&self) {
        let connected: Vec<_> = self.connected.lock().values().cloned().collect();
        for mailbox in connected {
            mailbox.end(ReasonCode::ServerShuttingDown);
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.door.connected.lock().remove(&self.number);
    }
}

impl Door {
    /// What connections share that we open ourselves.
    fn of_clients(
        settings: Settings,
        broker: Arc<Broker>,
        counters: Counters,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings,
            layers: Layers::none(),
            rate: ConnectRate::default(),
            users: None,
            passwords: Arc::new(Passwords::new(0)),
            broker,
            counters,
            buffers: Arc::default(),
            shutdown,
            connected: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }
}

/// Serves every listener until `shutdown` stops, then tells every client to go. The connections end in tasks of
/// `shutdown`.
pub async fn serve(
    listeners: Vec<Listener>,
    broker: Arc<Broker>,
    budget: ConnectionBudget,
    rate: ConnectRate,
    passwords: Arc<Passwords>,
    counters: Counters,
    shutdown: Shutdown,
) {
    let buffers = Arc::default();
    let mut serving = JoinSet::new();
    for listener in listeners {
        let Listener { socket, settings, layers, users, .. } = listener;
        let budget = budget.part(settings.max_connections);
        let door = Arc::new(Door {
            settings,
            layers,
            rate: rate.clone(),
            users,
            passwords: Arc::clone(&passwords),
            broker: Arc::clone(&broker),
            counters: counters.clone(),
            buffers: Arc::clone(&buffers),
            shutdown: shutdown.clone(),
            connected: Mutex::default(),
            next: AtomicU64::new(0),
        });
        serving.spawn(door.serve(socket, budget));
    }
    serving.join_all().await;
}

impl Door {
    async fn serve(self: Arc<Self>, listener: crate::socket::Listener, budget: ConnectionBudget) {
        let told_to_go = Arc::new(Semaphore::new(TOLD_TO_GO));
        loop {
            let (socket, peer) = tokio::select! {
                biased;
                () = self.shutdown.stopping().cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let code = if !self.admits(peer) {
                tracing::debug!(%peer, "connection refused: its address connects too often");
                if !self.layers.tells_cheaply() {
                    continue;
                }
                ReasonCode::ConnectionRateExceeded
            } else if let Some(permit) = budget.try_acquire() {
                let arrived = Box::new((socket, peer));
                self.shutdown.spawn(connection::run(Arc::clone(&self), arrived, permit));
                continue;
            } else {
                tracing::debug!(%peer, limit = budget.limit(), "connection refused: all are taken");
                ReasonCode::QuotaExceeded
            };
            if let Ok(place) = Arc::clone(&told_to_go).try_acquire_owned() {
                let refused = connection::refuse(Arc::clone(&self), socket, peer, code);
                self.shutdown.spawn(async move {
                    refused.await;
                    drop(place);
                });
            }
        }
        drop(listener);
        self.stop();
    }

    /// Whether who has connected may do so now, as far as that is known.
    fn admits(&self, peer: Peer) -> bool {
        match peer {
            Peer::Tcp(address) if !self.layers.tells_peer() => self.rate.admits(address.ip()),
            Peer::Tcp(_) | Peer::Unix => true,
        }
    }
}
