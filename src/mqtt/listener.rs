//! One listener of the door: what it is bound to, what lies over its sockets, and its limits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::stream::{Base, Stream};
use super::{Settings, websocket};
use crate::auth::{Users, UsersError};
use crate::proxy::{self, ProxyError, ProxyProtocol};
use crate::rate::ConnectRate;
use crate::socket::{self, Address, Bound, Peer, Socket};
use crate::tls::{self, Tls, TlsError};

/// What the operator decides about one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSettings {
    /// What it is called; empty for the first one.
    pub name: String,
    /// Where it listens.
    pub address: Address,
    /// The permissions of its file, where it is one.
    pub unix_mode: u32,
    /// Whether connections begin with who is behind a load balancer.
    pub proxy_protocol: ProxyProtocol,
    /// TLS, if it has any.
    pub tls: Option<tls::Settings>,
    /// WebSocket, if that is what it speaks.
    pub websocket: Option<websocket::Settings>,
    /// How it serves.
    pub settings: Settings,
}

/// Permissions of a socket's file unless told otherwise: its owner and group may connect.
pub const UNIX_MODE: u32 = 0o660;

impl ListenerSettings {
    /// A plain one at `address`, without a name.
    #[must_use]
    pub fn plain(address: Address, settings: Settings) -> Self {
        Self {
            name: String::new(),
            address,
            unix_mode: UNIX_MODE,
            proxy_protocol: ProxyProtocol::Off,
            tls: None,
            websocket: None,
            settings,
        }
    }

    /// Its name on the ready line: `mqtt`, or `mqtt.NAME`.
    #[must_use]
    pub fn door(&self) -> String {
        if self.name.is_empty() { "mqtt".to_owned() } else { format!("mqtt.{}", self.name) }
    }
}

/// Why a listener cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Its address is not free.
    #[error("cannot listen on {address} ({setting})")]
    Bind {
        /// The address as configured.
        address: Address,
        /// The setting that changes it.
        setting: String,
        /// Why.
        source: std::io::Error,
    },
    /// Its files for TLS are not usable.
    #[error("the listener {listener} has no TLS")]
    Tls {
        /// Its name.
        listener: String,
        /// Why.
        source: Box<TlsError>,
    },
    /// Its users' file is not usable.
    #[error("the listener {listener} has no users")]
    Users {
        /// Its name.
        listener: String,
        /// Why.
        source: UsersError,
    },
}

/// Files of users that are read, each once: the salts of unknown users are the same at all listeners.
pub type UsersFiles = HashMap<PathBuf, Arc<Users>>;

/// A listener that is bound.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: socket::Listener,
    pub(super) settings: Settings,
    pub(super) layers: Layers,
    pub(super) users: Option<Arc<Users>>,
    bound: Bound,
    door: String,
}

/// What lies over the sockets of a listener, in this order.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    proxy_protocol: ProxyProtocol,
    tls: Option<Arc<Tls>>,
    websocket: Option<Arc<websocket::Settings>>,
}

/// Why nothing lies over a socket: its peer did not do its part.
#[derive(Debug, thiserror::Error)]
pub(super) enum LayerError {
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("{0} connects too often")]
    Rate(SocketAddr),
    #[error("no TLS")]
    Tls(#[source] std::io::Error),
    #[error("no WebSocket")]
    WebSocket(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a client may offer by ALPN.
pub(super) const MQTT: &[&str] = &["mqtt"];
/// The same where MQTT is over WebSocket, over HTTP.
const HTTP: &[&str] = &["http/1.1"];

impl Listener {
    /// Reads the files for TLS and that of the users, and binds the address. A file of users that is in `users` is not read
    /// again, one that is not is put there.
    ///
    /// # Errors
    /// [`ListenError`]
    pub async fn bind(of: ListenerSettings, users: &mut UsersFiles) -> Result<Self, ListenError> {
        let door = of.door();
        let alpn = if of.websocket.is_some() { HTTP } else { MQTT };
        let tls = match of.tls {
            Some(settings) => match Tls::load(settings, alpn) {
                Ok(tls) => Some(Arc::new(tls)),
                Err(error) => return Err(ListenError::Tls { listener: door, source: Box::new(error) }),
            },
            None => None,
        };
        let users = match of.settings.users.clone() {
            None => None,
            Some(file) => match users.entry(file) {
                Entry::Occupied(read) => Some(Arc::clone(read.get())),
                Entry::Vacant(place) => match Users::load(place.key().clone()) {
                    Ok(users) => Some(Arc::clone(place.insert(Arc::new(users)))),
                    Err(source) => return Err(ListenError::Users { listener: door, source }),
                },
            },
        };
        let bound = async {
            let socket = socket::Listener::bind(&of.address, of.unix_mode).await?;
            Ok((socket.bound()?, socket))
        };
        let (bound, socket) = bound.await.map_err(|source| ListenError::Bind {
            setting: if of.name.is_empty() { "--mqtt-listen".to_owned() } else { format!("{door}: listen") },
            address: of.address,
            source,
        })?;
        let websocket = of.websocket.map(Arc::new);
        let layers = Layers { proxy_protocol: of.proxy_protocol, tls, websocket };
        Ok(Self { socket, settings: of.settings, layers, users, bound, door })
    }

    /// Its name on the ready line.
    #[must_use]
    pub fn door(&self) -> &str {
        &self.door
    }

    /// Where it is.
    #[must_use]
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Its TLS, to be told when the files have changed.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.layers.tls.clone()
    }
}

impl Layers {
    /// Nothing.
    pub(super) fn none() -> Self {
        Self { proxy_protocol: ProxyProtocol::Off, tls: None, websocket: None }
    }

    /// Whether a socket is taken as it is.
    pub(super) fn is_empty(&self) -> bool {
        self.proxy_protocol == ProxyProtocol::Off && self.tls.is_none() && self.websocket.is_none()
    }

    /// Whether a header tells who has connected: the socket does not.
    pub(super) fn tells_peer(&self) -> bool {
        self.proxy_protocol != ProxyProtocol::Off
    }

    /// Whether a peer can be told something without a handshake that costs.
    pub(super) fn tells_cheaply(&self) -> bool {
        self.tls.is_none()
    }

    /// Puts everything over `socket`, and finds out who is at its other end; one that a header tells of is asked for
    /// before any handshake. Not cancel safe: the socket is lost.
    pub(super) async fn over(
        &self,
        mut socket: Socket,
        peer: Peer,
        rate: &ConnectRate,
    ) -> Result<(Stream, Peer), LayerError> {
        let peer = match self.proxy_protocol {
            ProxyProtocol::Off => peer,
            expected => match proxy::read_header(&mut socket, expected).await? {
                Some(told) if !rate.admits(told.ip()) => return Err(LayerError::Rate(told)),
                Some(told) => Peer::Tcp(told),
                None => peer,
            },
        };
        let upgrade = |error| LayerError::WebSocket(error);
        let (base, early) = Base::new(socket);
        let stream = match (&self.tls, &self.websocket) {
            (None, None) => Stream::from(base),
            (Some(tls), None) => Stream::over(tls.accept(base).await.map_err(LayerError::Tls)?, early),
            (Some(tls), Some(settings)) => {
                let secured = tls.accept(base).await.map_err(LayerError::Tls)?;
                let accepted = websocket::accept(secured, settings).await;
                Stream::over(accepted.map_err(|error| upgrade(error))?, early)
            }
            (None, Some(settings)) => {
                let accepted = websocket::accept(base, settings).await;
                Stream::over(accepted.map_err(|error| upgrade(error))?, early)
            }
        };
        Ok((stream, peer))
    }
}
