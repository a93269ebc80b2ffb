//! One connection: the only task that reads and writes its socket.
//!
//! ```text
//! layers laid ─▶ CONNECT ─▶ authenticated ─▶ session opened ─▶ CONNACK ─▶ served ─▶ told why ─▶ session given back ─▶ half closed ─▶ closed
//! ```
//!
//! Invariants: a peer is told why, where its version has a word for it, before its connection is closed; the session is
//! given back before the connection lingers for a slow peer; a peer's fault is logged at debug level.

mod authenticate;
pub(super) mod client;
mod deliver;
mod end;
mod errands;
mod live;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep_until, timeout};

use super::Door;
use super::aliases::Aliases;
use super::codec::{ConnAck, Connect, DecodeError, Decoder, Limits, Packet, ReasonCode, Version};
use super::frames::Form;
use super::listener::LayerError;
use super::outbox::Mailbox;
use super::state::{Hello, Refused, Session};
use super::stream::Stream;
use crate::connections::ConnectionPermit;
use crate::core::{CoreError, OpenSession, Opened};
use crate::socket::{Peer, Socket};
use crate::types::clock;

use live::Live;
use wire::{Io, Wire};

/// What is read of a peer that has not shown who it is.
const CONNECT_BYTES: u32 = 128 << 10;
/// How long a peer has to take what it is told last, and to close its side after that.
const LINGER: Duration = Duration::from_secs(2);
/// How long a peer beyond the budget has to say which version it speaks.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);

/// Serves one connection to its end.
pub(super) async fn run(door: Arc<Door>, arrived: Box<(Socket, Peer)>, permit: ConnectionPermit) {
    // What comes before and after takes more room than what lasts: it is given back.
    let Some((mut wire, mut live, peer)) = Box::pin(arrive(&door, arrived)).await else { return };
    let ending = live.serve(&door, &mut wire).await;
    Box::pin(end::end(&door, wire, live, *ending, *peer)).await;
    drop(permit);
}

/// All that comes before a connection is served.
async fn arrive(door: &Arc<Door>, arrived: Box<(Socket, Peer)>) -> Option<(Wire, Live, Box<Peer>)> {
    let (socket, mut peer) = *arrived;
    let until = clock::now() + door.settings.connect_timeout;
    let stream = if door.layers.is_empty() {
        socket.into()
    } else {
        let laid = lay(door, socket, peer, until).await?;
        peer = laid.1;
        laid.0
    };
    let mut wire = new_wire(door, stream);
    let live = begin(door, &mut wire, peer, until).await?;
    Some((wire, live, Box::new(peer)))
}

/// Tells a peer beyond a bound so, if its CONNECT is there soon.
pub(super) async fn refuse(door: Arc<Door>, socket: Socket, peer: Peer, code: ReasonCode) {
    let until = clock::now() + REFUSED_WITHIN;
    let Some((stream, _)) = lay(&door, socket, peer, until).await else { return };
    let mut wire = new_wire(&door, stream);
    let connect = timeout(REFUSED_WITHIN, read_connect(&door, &mut wire)).await;
    if let Ok(Ok(connect)) = connect {
        let why = match code {
            ReasonCode::ConnectionRateExceeded => "this address connects too often",
            _ => "the server has as many connections as it may",
        };
        let refused = Refused { code, why: why.to_owned() };
        refuse_with(&mut wire, refused.connack(connect.version), Form::of(&connect));
        end::linger(&door, &mut wire).await;
    }
}

/// Puts what the listener has over the socket. `None`: the peer did not do its part in time.
async fn lay(door: &Door, socket: Socket, peer: Peer, until: Instant) -> Option<(Stream, Peer)> {
    tokio::select! {
        laid = door.layers.over(socket, peer, &door.rate) => match laid {
            Ok(laid) => return Some(laid),
            Err(error) => {
                if !matches!(error, LayerError::Rate(_)) {
                    door.counters.refused();
                }
                tracing::debug!(%peer, error = &error as &dyn std::error::Error, "no connection");
            }
        },
        () = sleep_until(until.into()) => {
            door.counters.timed_out();
            tracing::debug!(%peer, "not connected within the time for it");
        }
        () = door.shutdown.stopping().cancelled() => {}
    }
    None
}

fn new_wire(door: &Door, stream: Stream) -> Wire {
    let max_packet_size = door.settings.max_packet().min(CONNECT_BYTES);
    let decoder = Decoder::server(Limits { max_packet_size, ..Limits::default() });
    Wire::new(stream, decoder, Arc::clone(&door.counters.0.traffic))
}

/// Why there is no CONNECT, or none that counts.
enum NoConnect {
    /// The peer is gone.
    Gone,
    /// What came is none.
    Bad(DecodeError),
    /// It is refused.
    Refused(Refused, Form),
}

/// Reads up to the first packet. Cancel safe.
async fn read_connect(door: &Door, wire: &mut Wire) -> Result<Connect, NoConnect> {
    match read_packet(door, wire).await? {
        Packet::Connect(connect) => Ok(*connect),
        // [MQTT-3.1.0-1]; the codec sees to it that this is the first.
        _ => Err(NoConnect::Bad(DecodeError::FirstNotConnect)),
    }
}

/// Writes what waits and reads up to the next packet. Cancel safe.
async fn read_packet(door: &Door, wire: &mut Wire) -> Result<Packet, NoConnect> {
    loop {
        match wire.decode() {
            Ok(Some(packet)) => return Ok(packet),
            Err(error) => return Err(NoConnect::Bad(error)),
            Ok(None) => {}
        }
        match wire.io(&door.buffers, true, usize::MAX).await {
            Ok(Io::Read | Io::Wrote) => {}
            Ok(Io::Eof) | Err(_) => return Err(NoConnect::Gone),
        }
    }
}

/// Reads CONNECT and finds out who the client is. Not cancel safe.
async fn greet(door: &Door, wire: &mut Wire) -> Result<Hello, NoConnect> {
    let connect = read_connect(door, wire).await?;
    let form = Form::of(&connect);
    let mut hello =
        Hello::check(connect, &door.settings).map_err(|refused| NoConnect::Refused(refused, form))?;
    authenticate::authenticate(door, wire, &mut hello).await?;
    Ok(hello)
}

/// From the first byte to CONNACK. `None`: it came to nothing, and the peer was told what there was to tell.
async fn begin(door: &Arc<Door>, wire: &mut Wire, peer: Peer, until: Instant) -> Option<Live> {
    let hello = tokio::select! {
        hello = greet(door, wire) => hello,
        () = sleep_until(until.into()) => {
            door.counters.timed_out();
            tracing::debug!(%peer, "no CONNECT within the time for it, or none that was authenticated");
            return None;
        }
        () = door.shutdown.stopping().cancelled() => return None,
    };
    let greeted = match hello {
        Ok(hello) => {
            let form = hello.form;
            open(door, wire, hello).await.map_err(|refused| NoConnect::Refused(refused, form))
        }
        Err(error) => Err(error),
    };
    match greeted {
        Ok(live) => {
            let version = live.form.version;
            tracing::debug!(%peer, client = %live.client_id(), ?version, "connected");
            Some(live)
        }
        Err(NoConnect::Gone) => None,
        Err(NoConnect::Bad(error)) => {
            door.counters.refused();
            tracing::debug!(%peer, %error, rule = error.rule(), "no CONNECT");
            let version = wire.decoder.version();
            if let Some((connack, version)) = answer(&error, version) {
                refuse_with(wire, Some(connack), Form { version, max_packet: usize::MAX });
                end::linger(door, wire).await;
            }
            None
        }
        Err(NoConnect::Refused(refused, form)) => {
            door.counters.refused();
            tracing::debug!(%peer, code = %refused.code, why = refused.why, "CONNECT refused");
            refuse_with(wire, refused.connack(form.version), form);
            end::linger(door, wire).await;
            None
        }
    }
}

/// The CONNACK for a CONNECT that is none, where there is one.
fn answer(error: &DecodeError, version: Option<Version>) -> Option<(ConnAck, Version)> {
    let refused = Refused { code: error.reason_code(), why: format!("{error} ({})", error.rule()) };
    let version = match (error, version) {
        // Up to level 4 a peer understands return code 1 of 3.1.1 [3.1.1: MQTT-3.1.2-2], above it 0x84 [5: MQTT-3.1.2-2].
        (DecodeError::UnsupportedVersion { level: 0..=4 }, _) => Version::V311,
        (DecodeError::UnsupportedVersion { .. }, _) => Version::V5,
        // 3.1.1: [MQTT-3.1.4-1]: closed without CONNACK.
        (_, Some(Version::V5)) => Version::V5,
        _ => return None,
    };
    Some((refused.connack(version)?, version))
}

fn refuse_with(wire: &mut Wire, connack: Option<ConnAck>, form: Form) {
    if let Some(connack) = connack {
        wire.send(Packet::ConnAck(Box::new(connack)), form);
    }
}

/// Opens the session and queues CONNACK, ahead of everything else [3.1.1 and 5: MQTT-3.2.0-1].
async fn open(door: &Arc<Door>, wire: &mut Wire, mut hello: Hello) -> Result<Live, Refused> {
    if let Some(will) = &hello.will {
        will.check(door.broker.limits()).map_err(|error| Refused::will(&error))?;
    }
    let aliases = door.settings.outgoing_topic_aliases(hello.topic_alias_maximum);
    // What publishers encode leaves in their order, what this connection encodes comes in between.
    let [theirs, ours] = Aliases::two_up_to(aliases);
    let mailbox = Mailbox::new(hello.form, door.settings.bounds(), theirs, Arc::clone(&door.buffers));
    let opened = door.broker.open_session(OpenSession {
        client_id: hello.client_id.clone(),
        clean_start: hello.clean_start,
        expiry: hello.expiry,
        principal: hello.principal.clone(),
        outbox: Arc::clone(&mailbox) as _,
        will: hello.will.take(),
    });
    let opened: Result<Opened, CoreError> = opened.await;
    let opened = opened?;
    let session =
        Session { client_id: opened.session.client_id(), present: opened.present, expiry: opened.expiry };
    let connack = hello.accepted(&session, &door.settings);
    if !wire.send(Packet::ConnAck(Box::new(connack)), hello.form) {
        // [MQTT-3.1.2-8]: a connection that was not accepted has none.
        opened.session.withdraw_will();
        return Err(Refused::too_large("CONNACK"));
    }
    wire.decoder.limits_mut().max_packet_size = door.settings.max_packet();
    hello.expiry = opened.expiry.min(hello.expiry);
    Ok(Live::new(door, hello, opened, mailbox, ours))
}
