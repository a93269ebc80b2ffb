//! A connection that we have opened to another broker: CONNECT and CONNACK, then the same machine as for clients.

use std::sync::Arc;

use bytes::BytesMut;

use super::live::Live;
use super::wire::{Io, Wire};
use super::{Door, end};
use crate::core::Opened;
use crate::mqtt::aliases::Aliases;
use crate::mqtt::codec::{
    self, ConnAck, Connect, DecodeError, Decoder, Disconnect, Limits, Packet, ReasonCode, Subscribe, Version,
    peek_frame,
};
use crate::mqtt::frames::Form;
use crate::mqtt::outbox::Mailbox;
use crate::mqtt::state::{Client, Hello};
use crate::mqtt::stream::Stream;
use crate::socket::Peer;

/// Why there is no CONNACK.
#[derive(Debug, thiserror::Error)]
pub(in crate::mqtt) enum GreetError {
    #[error("the connection was closed before CONNACK")]
    Closed,
    #[error("the connection was lost before CONNACK: {0}")]
    Lost(#[from] std::io::Error),
    #[error("what came is no CONNACK: {0}")]
    Malformed(#[from] DecodeError),
    #[error("{0:?} came instead of CONNACK")]
    Other(codec::PacketType),
    #[error("CONNECT cannot be said: {0}")]
    Unsayable(#[from] codec::EncodeError),
}

/// A connection whose CONNECT was answered.
pub(in crate::mqtt) struct Greeted {
    wire: Wire,
    peer: Peer,
    version: Version,
    pub(in crate::mqtt) connack: ConnAck,
}

/// What stands in front of the protocol level in a CONNECT: the length and the name.
const BEFORE_LEVEL: usize = 6;
/// Says in the protocol level of 3.1.1 that a bridge connects: mosquitto then sends nothing back and keeps retain flags.
const BRIDGE: u8 = 0x80;

/// Says CONNECT and waits for the answer. `private`: as a bridge.
pub(in crate::mqtt) async fn greet(
    door: &Door,
    stream: Stream,
    peer: Peer,
    connect: Connect,
    private: bool,
) -> Result<Greeted, GreetError> {
    let version = connect.version;
    let limits = Limits { max_packet_size: door.settings.max_packet(), ..Limits::default() };
    let decoder = Decoder::established(version, limits);
    let mut wire = Wire::new(stream, decoder, Arc::clone(&door.counters.0.traffic));
    let mut bytes = BytesMut::new();
    Packet::Connect(Box::new(connect)).encode(version, &mut bytes)?;
    if private
        && let Some(frame) = peek_frame(&bytes, &Limits { max_packet_size: u32::MAX, ..limits })?
        && let Some(level) = bytes.get_mut(frame.header_len + BEFORE_LEVEL)
    {
        *level |= BRIDGE;
    }
    wire.out.bytes().extend_from_slice(&bytes);
    wire.out.count(1);
    loop {
        match wire.decode()? {
            Some(Packet::ConnAck(connack)) => return Ok(Greeted { wire, peer, version, connack: *connack }),
            Some(other) => return Err(GreetError::Other(other.packet_type())),
            None => {}
        }
        match wire.io(&door.buffers, true, usize::MAX).await? {
            Io::Read | Io::Wrote => {}
            Io::Eof => return Err(GreetError::Closed),
        }
    }
}

impl Greeted {
    /// Says DISCONNECT and waits, for a bounded time, for the server to end the connection.
    pub(in crate::mqtt) async fn leave(mut self, door: &Door) {
        let form = Form { version: self.version, max_packet: usize::MAX };
        let goodbye = Disconnect { reason: ReasonCode::Success, properties: None };
        self.wire.send(Packet::Disconnect(goodbye), form);
        end::linger(door, &mut self.wire).await;
    }

    /// Serves the connection to its end, and says why that came.
    pub(in crate::mqtt) async fn serve(
        self,
        door: &Arc<Door>,
        hello: Hello,
        opened: Opened,
        (mailbox, aliases): (Arc<Mailbox>, Option<Box<Aliases>>),
        client: Client,
        subscribe: Option<Subscribe>,
    ) -> String {
        let Self { mut wire, peer, .. } = self;
        let form = hello.form;
        let mut live = Live::new(door, hello, opened, mailbox, aliases);
        live.state.become_client(client);
        if let Some(subscribe) = subscribe {
            wire.send(Packet::Subscribe(subscribe), form);
        }
        let ending = live.serve(door, &mut wire).await;
        let why = match &ending.tell {
            Some((code, why)) if why.is_empty() => code.to_string(),
            Some((_, why)) => why.clone(),
            None => "the connection was lost".to_owned(),
        };
        Box::pin(end::end(door, wire, live, *ending, peer)).await;
        why
    }
}
