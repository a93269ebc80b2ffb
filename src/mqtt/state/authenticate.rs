//! Enhanced authentication: SCRAM-SHA-256 in AUTH packets, before CONNACK and again whenever the client wants to
//! [5: section 4.12].
//!
//! Bounded: an exchange has three messages of the client at most, and one is on at a time.

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;

use crate::auth::Users;
use crate::auth::scram::{self, Exchange, Proven, ScramError};
use crate::mqtt::codec::{Auth, AuthProperties, Packet, ReasonCode};
use crate::mqtt::violation::Violation;

/// The exchanges of one connection.
#[derive(Debug)]
pub(in crate::mqtt) struct Dialogue {
    users: Arc<Users>,
    step: Step,
}

#[derive(Debug, Default)]
enum Step {
    /// No exchange is on.
    #[default]
    Idle,
    /// The client's first message is awaited.
    Asked,
    /// Its last one is.
    Challenged(Box<Exchange>),
}

/// What comes of a message of the client.
#[derive(Debug)]
pub(in crate::mqtt) enum Heard {
    /// To be sent; the client answers it.
    Ask(Auth),
    /// It is who it says.
    Proven(Proven),
}

/// A client that was authenticated, and may be so again.
#[derive(Debug)]
pub(in crate::mqtt) struct Authenticated {
    pub(super) user: ByteString,
    /// For CONNACK.
    pub(super) signature: Bytes,
    dialogue: Dialogue,
}

/// An AUTH of ours. It has neither reason string nor user properties, so there is none to leave out
/// [5: MQTT-3.15.2-2, MQTT-3.15.2-3].
fn auth(reason: ReasonCode, data: Option<Bytes>) -> Auth {
    let properties = AuthProperties {
        authentication_method: Some(ByteString::from_static(scram::MECHANISM)), // 5: [MQTT-4.12.0-5]
        authentication_data: data,
        ..AuthProperties::default()
    };
    Auth { reason, properties: Some(Box::new(properties)) }
}

impl Dialogue {
    pub(in crate::mqtt) fn new(users: Arc<Users>) -> Self {
        Self { users, step: Step::Idle }
    }

    /// Begins with the client's first message, or asks for it.
    pub(in crate::mqtt) fn begin(&mut self, first: Option<&[u8]>) -> Result<Heard, Violation> {
        let Some(first) = first else {
            self.step = Step::Asked;
            return Ok(Heard::Ask(auth(ReasonCode::ContinueAuthentication, None)));
        };
        let exchange = Exchange::begin(&self.users, first)?;
        let challenge = exchange.challenge();
        self.step = Step::Challenged(Box::new(exchange));
        Ok(Heard::Ask(auth(ReasonCode::ContinueAuthentication, Some(challenge)))) // 5: [MQTT-4.12.0-2]
    }

    /// Takes an AUTH of the client.
    pub(in crate::mqtt) fn hear(&mut self, packet: Auth) -> Result<Heard, Violation> {
        let Auth { reason, properties } = packet;
        let properties = properties.map(|properties| *properties).unwrap_or_default();
        let data = properties.authentication_data;
        let in_turn = match self.step {
            Step::Idle => ReasonCode::ReAuthenticate,
            Step::Asked | Step::Challenged(_) => ReasonCode::ContinueAuthentication,
        };
        if reason != in_turn {
            return Err(Violation::AuthOutOfTurn);
        }
        // 5: [MQTT-4.12.0-5], [MQTT-4.12.1-1].
        if properties.authentication_method.is_none_or(|method| method != scram::MECHANISM) {
            return Err(Violation::AnotherMethod);
        }
        match std::mem::take(&mut self.step) {
            Step::Idle => self.begin(data.as_deref()),
            Step::Asked => self.begin(Some(data.as_deref().unwrap_or_default())),
            Step::Challenged(exchange) => {
                Ok(Heard::Proven(exchange.end(data.as_deref().unwrap_or_default())?))
            }
        }
    }

    /// The client that has come through.
    pub(in crate::mqtt) fn proven(self, Proven { user, signature }: Proven) -> Authenticated {
        Authenticated { user, signature, dialogue: self }
    }
}

impl Authenticated {
    /// Who it is.
    pub(in crate::mqtt) fn user(&self) -> &ByteString {
        &self.user
    }

    /// Takes an AUTH after CONNACK and answers it. The client stays who it is.
    pub(super) fn again(&mut self, packet: Auth) -> Result<Packet, Violation> {
        match self.dialogue.hear(packet)? {
            Heard::Ask(auth) => Ok(Packet::Auth(auth)),
            Heard::Proven(proven) if proven.user == self.user => {
                Ok(Packet::Auth(auth(ReasonCode::Success, Some(proven.signature))))
            }
            Heard::Proven(_) => Err(Violation::AnotherUser),
        }
    }
}

impl From<ScramError> for Violation {
    fn from(error: ScramError) -> Self {
        Self::NotAuthenticated(error)
    }
}
