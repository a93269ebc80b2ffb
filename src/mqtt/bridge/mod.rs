//! Bridges: this broker as a client of another MQTT broker, so that both share topics.
//!
//! A bridge is a session of this broker like any subscriber's: what goes out above QoS 0 waits in its backlog while the
//! other broker is away, over restarts too, and is settled when that has acknowledged it. What comes in is acknowledged when
//! it is durable here. The connection is served by the door's own machine, which knows both sides of the protocol.
//!
//! What came over a bridge does not go back over it: its subscriptions are *no local*, on both sides where the version has
//! that.
//!
//! Invariants: a bridge never keeps the broker from starting or stopping; how it is, is told under
//! `$SYS/broker/connection/<name>/state`.

mod link;
mod mapping;
mod pause;
mod settings;

use std::convert::Infallible;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::aliases::Aliases;
use super::codec::{ConnAck, Connect, ConnectProperties, MaximumQos, ReasonCode, Subscribe, Version};
use super::connection::client::{GreetError, Greeted, greet};
use super::frames::Form;
use super::outbox::Mailbox;
use super::state::{Client, Hello};
use super::stream::{Base, Stream};
use super::translate;
use super::{Counters, Door};
use crate::causes::with_causes;
use crate::core::{Broker, CloseReason, CoreError, End, Offer, OpenSession, Opened, Outbox};
use crate::shutdown::Shutdown;
use crate::socket::{Peer, Socket, keep_alive};
use crate::tls::TlsError;
use crate::tls::client::ClientTls;
use crate::types::{ClientId, Qos, clock};

pub use link::Board;
pub(super) use link::Link;
pub(super) use mapping::Grants;
pub use mapping::{Direction, Mapping, Topic, UnknownDirection};
pub use settings::{NotARemote, Password, Remote, Settings};

use mapping::Outward;
use pause::Pause;
use settings::NoPassword;

/// Whose the sessions of bridges are: no client can take them, as no user has a colon in its name.
const PRINCIPAL: ByteString = ByteString::from_static("bridge:");

/// Why a bridge cannot be had: its configuration is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetUpError {
    /// Its files for TLS are not usable.
    #[error("the bridge {bridge} has no TLS")]
    Tls {
        /// Its name.
        bridge: String,
        /// Why.
        source: Box<TlsError>,
    },
    /// Its topics are not usable.
    #[error("the bridge {bridge}: {problem}")]
    Topics {
        /// Its name.
        bridge: String,
        /// Why.
        problem: String,
    },
}

/// Why a bridge is not connected.
#[derive(Debug, thiserror::Error)]
enum BridgeError {
    #[error(transparent)]
    Password(#[from] NoPassword),
    #[error("not reachable")]
    Unreachable(#[source] std::io::Error),
    #[error("no TLS")]
    Tls(#[source] std::io::Error),
    #[error("no answer within the time for it")]
    Silent,
    #[error("{0}")]
    Greet(#[from] GreetError),
    #[error("refused: {code}{}", said.as_ref().map(|said| format!(" ({said})")).unwrap_or_default())]
    Refused { code: ReasonCode, said: Option<ByteString> },
    #[error("its session here cannot be had: {0}")]
    Session(#[from] CoreError),
    #[error("the other broker has a session that ended here; it is to begin anew")]
    Forgotten,
}

/// All bridges, ready to be run.
#[derive(Debug)]
pub struct Bridges {
    bridges: Vec<Arc<Bridge>>,
}

#[derive(Debug)]
struct Bridge {
    settings: Settings,
    link: Arc<Link>,
    tls: Option<ClientTls>,
    /// Its session here is new: the other broker is to forget what it has of an earlier one.
    fresh: AtomicBool,
}

/// What begins the client id of a bridge's session on this broker.
const LOCAL: &str = "bridge.";

impl Bridges {
    /// Reads what the bridges need.
    ///
    /// # Errors
    /// [`SetUpError`]
    pub fn set_up(all: Vec<Settings>, board: &Board) -> Result<Self, SetUpError> {
        let mut bridges = Vec::new();
        for settings in all {
            let bridge = || settings.name.clone();
            let tls =
                settings.tls.as_ref().map(|tls| ClientTls::load(tls, super::listener::MQTT)).transpose();
            let tls = tls.map_err(|source| SetUpError::Tls { bridge: bridge(), source: Box::new(source) })?;
            let problem = |problem| SetUpError::Topics { bridge: bridge(), problem };
            let mapping = Arc::new(Mapping::new(&settings.topics).map_err(problem)?);
            let link = Link::new(settings.name.clone(), mapping, board.clone());
            let link = link.map_err(|error| problem(error.to_string()))?;
            bridges.push(Arc::new(Bridge {
                settings,
                link: Arc::new(link),
                tls,
                fresh: AtomicBool::new(false),
            }));
        }
        Ok(Self { bridges })
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bridges.is_empty()
    }

    /// What is counted, by the names that operators see.
    pub fn counters(&self) -> impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static {
        let links: Vec<_> = self.bridges.iter().map(|bridge| Arc::clone(&bridge.link)).collect();
        move || {
            let connected = links.iter().filter(|link| link.is_connected()).count();
            let dropped = links.iter().map(|link| link.dropped()).sum();
            vec![
                ("bridges", links.len() as u64),
                ("bridges_connected", connected as u64),
                ("bridge_messages_dropped_total", dropped),
            ]
        }
    }

    /// Lets this broker keep from now on what is to go out. Comes before the doors open.
    pub async fn stand_ready(&self, broker: &Arc<Broker>) {
        for bridge in &self.bridges {
            let Settings { name, remote, .. } = &bridge.settings;
            bridge.link.tell(broker, false, format!("{remote} not connected yet"));
            if let Err(error) = bridge.stand_ready(broker).await {
                tracing::error!(bridge = name, %error, "nothing is kept for the other broker yet");
            }
        }
    }

    /// Connects the bridges, and again whenever a connection ends, until the stop.
    pub async fn run(
        self,
        broker: Arc<Broker>,
        settings: super::Settings,
        counters: Counters,
        shutdown: Shutdown,
    ) {
        let door = Door::of_clients(settings, broker, counters, shutdown.clone());
        for bridge in self.bridges {
            shutdown.spawn(bridge.run(Arc::clone(&door)));
        }
        shutdown.stopping().cancelled().await;
        door.stop();
    }
}

/// Takes nothing: of a bridge that is not connected.
struct Nowhere;

impl Outbox for Nowhere {
    fn offer(&self, _: &[Offer<'_>]) -> usize {
        0
    }

    fn close(&self, _: CloseReason) {}
}

impl Bridge {
    /// Makes the session and its subscriptions.
    async fn stand_ready(&self, broker: &Arc<Broker>) -> Result<(), CoreError> {
        if self.settings.clean_start {
            return Ok(());
        }
        let opened = self.open(broker, Arc::new(Nowhere)).await?;
        self.fresh.store(!opened.present, Ordering::Relaxed);
        self.subscribe(&opened, false, false).await?;
        opened.session.close(End::Clean).await;
        Ok(())
    }

    async fn open(&self, broker: &Arc<Broker>, outbox: Arc<dyn Outbox>) -> Result<Opened, CoreError> {
        let Settings { name, clean_start, session_expiry, .. } = &self.settings;
        let client_id = ClientId::parse(format!("{LOCAL}{name}"))
            .map_err(|error| CoreError::invalid("client id", error))?;
        let open = OpenSession {
            client_id: Some(client_id),
            clean_start: *clean_start,
            expiry: if *clean_start { Duration::ZERO } else { *session_expiry },
            principal: PRINCIPAL,
            outbox,
            will: None,
        };
        broker.open_session(open).await
    }

    /// Lets the session have the subscriptions that the configuration says, and no others; `new`: the other broker has
    /// none of them yet.
    async fn subscribe(&self, opened: &Opened, connected: bool, new: bool) -> Result<(), CoreError> {
        let session = &opened.session;
        let wanted = self.link.mapping().local_filters(new, connected);
        let mut others = session.filters();
        others.retain(|filter| !wanted.iter().any(|(wanted, _)| wanted == filter));
        for ended in session.unsubscribe(others).await {
            ended?;
        }
        for granted in session.subscribe(wanted).await {
            granted?;
        }
        Ok(())
    }

    async fn run(self: Arc<Self>, door: Arc<Door>) {
        let mut pause = Pause::new(&self.settings);
        let knows_bridges = self.settings.try_private && self.settings.version == Version::V311;
        let mut private = knows_bridges;
        let Settings { name, remote, .. } = &self.settings;
        let mut told = String::new();
        while !door.shutdown.stopping().is_cancelled() {
            let began = clock::now();
            let connected = tokio::select! {
                connected = self.connect(&door, private) => connected,
                () = door.shutdown.stopping().cancelled() => return,
            };
            let why = match connected {
                Ok(greeted) => {
                    told.clear();
                    let served = self.serve(&door, greeted).await;
                    let said = self.link.why_ended();
                    said.unwrap_or_else(|| served.unwrap_or_else(|error| with_causes(&error)))
                }
                // It does not know of bridges: it is a client's connection, then.
                Err(BridgeError::Greet(_) | BridgeError::Refused { .. }) if private => {
                    tracing::debug!(bridge = name, "the other broker knows no bridges: trying as a client");
                    private = false;
                    continue;
                }
                Err(error) => with_causes(&error),
            };
            self.link.tell(&door.broker, false, format!("{remote} not connected: {why}"));
            if door.shutdown.stopping().is_cancelled() {
                return;
            }
            let wait = pause.next(began);
            if why == told {
                tracing::debug!(bridge = name, %remote, why, ?wait, "still not connected; trying again");
            } else {
                tracing::warn!(bridge = name, %remote, why, "not connected; trying again");
            }
            told = why;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = door.shutdown.stopping().cancelled() => return,
            }
            // It may have refused for another reason, or be another one by now.
            private = knows_bridges;
        }
    }

    /// Up to CONNACK.
    async fn connect(&self, door: &Arc<Door>, private: bool) -> Result<Greeted, BridgeError> {
        let within = door.settings.connect_timeout;
        let password = match &self.settings.password {
            Some(password) => Some(password.read().await?),
            None => None,
        };
        let greeting = async |clean_start| {
            let Remote { host, port, .. } = &self.settings.remote;
            let stream =
                TcpStream::connect((host.as_str(), *port)).await.map_err(BridgeError::Unreachable)?;
            stream.set_nodelay(true).map_err(BridgeError::Unreachable)?;
            keep_alive((&stream).into()).map_err(BridgeError::Unreachable)?;
            let peer = Peer::Tcp(stream.peer_addr().map_err(BridgeError::Unreachable)?);
            let socket = Socket::Tcp(stream);
            let stream = match &self.tls {
                Some(tls) => {
                    let (base, early) = Base::new(socket);
                    let secured = tls.connect(host, base).await.map_err(BridgeError::Tls)?;
                    Stream::over(tokio::io::BufReader::new(secured), early)
                }
                None => Stream::from(socket),
            };
            Ok::<_, BridgeError>(
                greet(door, stream, peer, self.hello(door, &password, clean_start), private).await?,
            )
        };
        let greeted = async |clean_start| {
            timeout(within, greeting(clean_start)).await.map_err(|_| BridgeError::Silent)?
        };
        if !self.settings.clean_start && self.fresh.load(Ordering::Relaxed) {
            // This session ends with its connection, and with it whatever the other broker had. In 5.0, too: mosquitto 2
            // does not save a session that began clean.
            let clean = greeted(true).await?;
            self.accepted(&clean)?;
            clean.leave(door).await;
        }
        let greeted = greeted(self.settings.clean_start).await?;
        self.accepted(&greeted)?;
        Ok(greeted)
    }

    fn accepted(&self, greeted: &Greeted) -> Result<(), BridgeError> {
        let ConnAck { reason, properties, .. } = &greeted.connack;
        if *reason != ReasonCode::Success {
            let said = properties.reason_string.clone();
            return Err(BridgeError::Refused { code: *reason, said });
        }
        Ok(())
    }

    fn hello(&self, door: &Door, password: &Option<Bytes>, clean_start: bool) -> Connect {
        let Settings { client_id, username, version, keep_alive, session_expiry, .. } = &self.settings;
        let mut properties = ConnectProperties::default();
        if *version == Version::V5 {
            properties.receive_maximum = NonZeroU16::new(door.settings.receive_maximum());
            properties.maximum_packet_size = std::num::NonZeroU32::new(door.settings.max_packet());
            let expiry = translate::session_expiry_seconds(*session_expiry);
            properties.session_expiry = (!clean_start).then_some(expiry);
        }
        Connect {
            version: *version,
            clean_start,
            keep_alive: u16::try_from(keep_alive.as_secs()).unwrap_or(u16::MAX),
            client_id: client_id.as_str().into(),
            will: None,
            username: username.as_deref().map(ByteString::from),
            password: password.clone(),
            properties,
        }
    }

    /// Serves a connection to its end, and says why that came.
    async fn serve(&self, door: &Arc<Door>, greeted: Greeted) -> Result<String, BridgeError> {
        let (version, properties) = (self.settings.version, &greeted.connack.properties);
        let max_packet = properties.maximum_packet_size.map_or(usize::MAX, |size| size.get() as usize);
        let form = Form { version, max_packet };
        let receive_maximum = match version {
            Version::V311 => u16::try_from(self.settings.max_inflight).unwrap_or(u16::MAX),
            Version::V5 => properties.receive_maximum.map_or(u16::MAX, NonZeroU16::get),
        };
        let keep_alive = properties
            .server_keep_alive
            .unwrap_or(u16::try_from(self.settings.keep_alive.as_secs()).unwrap_or(u16::MAX));
        let grants = Grants {
            max_qos: match properties.maximum_qos {
                Some(MaximumQos::AtMostOnce) => Qos::AtMostOnce,
                Some(MaximumQos::AtLeastOnce) => Qos::AtLeastOnce,
                None => Qos::ExactlyOnce,
            },
            retain: properties.retain_available.unwrap_or(true),
        };
        let aliases = door.settings.outgoing_topic_aliases(properties.topic_alias_maximum.unwrap_or(0));
        let [theirs, ours] = Aliases::two_up_to(aliases);
        let mailbox = Mailbox::new(form, door.settings.bounds(), theirs, Arc::clone(&door.buffers));
        let outbox = Arc::new(Outward {
            mailbox: Arc::clone(&mailbox),
            mapping: Arc::clone(self.link.mapping()),
            grants,
        });
        let mut opened = self.open(&door.broker, outbox).await?;
        let resumed = greeted.connack.session_present;
        if resumed && !opened.present {
            // 5: [MQTT-3.2.2-4].
            self.fresh.store(true, Ordering::Relaxed);
            return Err(BridgeError::Forgotten);
        }
        self.fresh.store(false, Ordering::Relaxed);
        if !resumed {
            // The other broker has forgotten which numbers it used: one that comes is another message.
            for id in std::mem::take(&mut opened.incoming) {
                opened.session.release_incoming(id).await?;
            }
        }
        self.subscribe(&opened, true, !resumed).await?;
        // A number that no delivery has: those count from 1.
        let free = (1..=u16::MAX).rev().find(|id| !opened.outgoing.contains(id)).and_then(NonZeroU16::new);
        let filters = self.link.mapping().remote_filters(version);
        let subscribe = free.filter(|_| !filters.is_empty());
        let subscribe = subscribe.map(|packet_id| Subscribe { packet_id, properties: None, filters });
        let expiry = opened.expiry;
        let hello = Hello::to_server(form, receive_maximum, keep_alive, expiry, &door.settings);
        let silence = Duration::from_secs(keep_alive.into());
        let (subscribed, answered) = oneshot::channel();
        let mut client = Client::new(Arc::clone(&self.link), grants, subscribed, silence, clock::now());
        if subscribe.is_none() {
            client.ready();
        }
        let Settings { name, remote, .. } = &self.settings;
        let telling = async {
            if answered.await.is_ok() {
                tracing::info!(bridge = name, %remote, resumed, "connected");
                self.link.tell(&door.broker, true, format!("{remote} connected"));
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            why = greeted.serve(door, hello, opened, (mailbox, ours), client, subscribe) => Ok(why),
            never = telling => match never {},
        }
    }
}
