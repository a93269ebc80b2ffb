//! CONNECT and CONNACK: what is checked, what is agreed.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;

use super::authenticate::Authenticated;
use crate::auth::scram;
use crate::core::{CoreError, Will};
use crate::mqtt::Settings;
use crate::mqtt::codec::{ConnAck, ConnAckProperties, Connect, PacketType, ReasonCode, Version};
use crate::mqtt::frames::Form;
use crate::mqtt::translate;
use crate::mqtt::violation::{self, Violation};
use crate::types::{ClientId, NameError};

/// A CONNECT that was accepted so far: the session is still to be opened.
#[derive(Debug)]
pub(in crate::mqtt) struct Hello {
    pub(in crate::mqtt) version: Version,
    /// None: the server makes a name up.
    pub(in crate::mqtt) client_id: Option<ClientId>,
    pub(in crate::mqtt) clean_start: bool,
    /// As asked for.
    pub(in crate::mqtt) expiry: Duration,
    /// The keep alive that holds, in seconds; 0: none.
    pub(in crate::mqtt) keep_alive: u16,
    /// It is not the one that was asked for.
    server_keep_alive: bool,
    /// Of the client, and within the server's own bound.
    pub(in crate::mqtt) receive_maximum: u16,
    /// Of the client [5: MQTT-3.1.2-26, MQTT-3.1.2-27].
    pub(in crate::mqtt) topic_alias_maximum: u16,
    pub(in crate::mqtt) form: Form,
    pub(in crate::mqtt) problem_information: bool,
    pub(in crate::mqtt) will: Option<Box<Will>>,
    /// Who it says it is, until that is found out.
    pub(in crate::mqtt) login: Login,
    /// Who it is; empty: nobody in particular.
    pub(in crate::mqtt) principal: ByteString,
    /// What it was authenticated by, if not by a password as it is.
    pub(in crate::mqtt) authenticated: Option<Box<Authenticated>>,
}

/// How a client says who it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::mqtt) enum Login {
    /// It does not, or there is nothing to compare it with.
    #[default]
    Anonymous,
    /// User name and password of CONNECT.
    Password { name: ByteString, password: Bytes },
    /// By the one method that there is, with its first words if CONNECT has them.
    Method { data: Option<Bytes> },
}

/// A CONNECT that is refused.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::mqtt) struct Refused {
    pub(in crate::mqtt) code: ReasonCode,
    pub(in crate::mqtt) why: String,
}

impl From<CoreError> for Refused {
    fn from(error: CoreError) -> Self {
        Self { code: violation::refusal(&error, PacketType::ConnAck), why: error.to_string() }
    }
}

/// What became of the session.
#[derive(Debug)]
pub(in crate::mqtt) struct Session<'a> {
    pub(in crate::mqtt) client_id: &'a ClientId,
    pub(in crate::mqtt) present: bool,
    pub(in crate::mqtt) expiry: Duration,
}

impl Hello {
    /// Checks a CONNECT that the codec has accepted.
    ///
    /// # Errors
    /// [`Refused`] with the code for CONNACK.
    pub(in crate::mqtt) fn check(connect: Connect, settings: &Settings) -> Result<Self, Refused> {
        let form = Form::of(&connect);
        if let Err(why) = settings.terms.check_version(connect.version) {
            return Err(Refused { code: ReasonCode::UnsupportedProtocolVersion, why });
        }
        let login = Login::of(&connect, settings)?;
        let Connect { version, clean_start, keep_alive, client_id, will, properties, .. } = connect;
        let bad_client_id = |why: String| Refused { code: ReasonCode::ClientIdentifierNotValid, why };
        // 3.1.1: [MQTT-3.1.3-7], [MQTT-3.1.3-8]. In 5 the client learns its name [5: MQTT-3.1.3-6].
        if version == Version::V311 && client_id.is_empty() && !clean_start {
            return Err(bad_client_id("a session that is to be kept needs a client id".to_owned()));
        }
        let client_id = match ClientId::parse(&*client_id) {
            Ok(id) => Some(id),
            Err(NameError::Empty { .. }) => None,
            // 3.1.1: [MQTT-3.1.3-9]; 5: [MQTT-3.1.3-8].
            Err(error) => return Err(bad_client_id(error.to_string())),
        };
        if let Some(will) = &will
            && let Err(violation) = settings.terms.check_will(will)
        {
            return Err(Refused { code: violation.code(), why: violation.to_string() });
        }
        let will = match will {
            Some(will) => Some(Box::new(translate::will(will).map_err(|error| Refused::will(&error))?)),
            None => None,
        };
        let expiry = match version {
            // 3.1.1: [MQTT-3.1.2-4], [MQTT-3.1.2-6].
            Version::V311 if clean_start => Duration::ZERO,
            Version::V311 => Duration::MAX,
            Version::V5 => translate::session_expiry(properties.session_expiry.unwrap_or(0)),
        };
        let agreed = keep_alive_within(keep_alive, version, settings.keep_alive_ceiling);
        let max_inflight = u16::try_from(settings.max_inflight).unwrap_or(u16::MAX);
        Ok(Self {
            version,
            client_id,
            clean_start,
            expiry,
            keep_alive: agreed,
            server_keep_alive: agreed != keep_alive,
            receive_maximum: properties.receive_maximum.map_or(u16::MAX, NonZeroU16::get).min(max_inflight),
            topic_alias_maximum: properties.topic_alias_maximum.unwrap_or(0),
            form,
            problem_information: properties.request_problem_information.unwrap_or(true),
            will,
            login,
            principal: ByteString::new(),
            authenticated: None,
        })
    }

    /// What is agreed with a server that we have connected to: `receive_maximum` and `form` are its own.
    pub(in crate::mqtt) fn to_server(
        form: Form,
        receive_maximum: u16,
        keep_alive: u16,
        expiry: Duration,
        settings: &Settings,
    ) -> Self {
        let max_inflight = u16::try_from(settings.max_inflight).unwrap_or(u16::MAX);
        Self {
            version: form.version,
            client_id: None,
            clean_start: expiry.is_zero(),
            expiry,
            keep_alive,
            server_keep_alive: false,
            receive_maximum: receive_maximum.min(max_inflight),
            form,
            topic_alias_maximum: 0,
            problem_information: true,
            will: None,
            login: Login::Anonymous,
            principal: ByteString::new(),
            authenticated: None,
        }
    }

    /// The CONNACK that tells what was agreed. What is not supported is never announced.
    pub(in crate::mqtt) fn accepted(&self, session: &Session<'_>, settings: &Settings) -> ConnAck {
        let mut properties = ConnAckProperties::default();
        if self.version == Version::V5 {
            if session.expiry != self.expiry {
                properties.session_expiry = Some(translate::session_expiry_seconds(session.expiry));
            }
            properties.receive_maximum = NonZeroU16::new(settings.receive_maximum());
            properties.maximum_packet_size = NonZeroU32::new(settings.max_packet());
            properties.topic_alias_maximum = Some(settings.topic_alias_maximum()).filter(|max| *max > 0);
            settings.terms.announce(&mut properties);
            // 5: [MQTT-3.2.2-16], [MQTT-3.1.3-7].
            if self.client_id.is_none() {
                properties.assigned_client_id = Some(session.client_id.to_byte_string());
            }
            // 5: [MQTT-3.2.2-22].
            properties.server_keep_alive = self.server_keep_alive.then_some(self.keep_alive);
            if let Some(authenticated) = &self.authenticated {
                // 5: [MQTT-4.12.0-5], [MQTT-4.12.0-6].
                properties.authentication_method = Some(ByteString::from_static(scram::MECHANISM));
                properties.authentication_data = Some(authenticated.signature.clone());
            }
        }
        // 3.1.1: [MQTT-3.2.2-1] to [MQTT-3.2.2-3]; 5: [MQTT-3.2.2-2], [MQTT-3.2.2-3].
        ConnAck { session_present: session.present, reason: ReasonCode::Success, properties }
    }
}

impl Login {
    fn of(connect: &Connect, settings: &Settings) -> Result<Self, Refused> {
        let Connect { username, password, properties, .. } = connect;
        // 5: [MQTT-4.12.0-1].
        if let Some(method) = &properties.authentication_method {
            if settings.users.is_none() || *method != scram::MECHANISM {
                let why = format!("the authentication method `{method}` is not supported");
                return Err(Refused { code: ReasonCode::BadAuthenticationMethod, why });
            }
            return Ok(Self::Method { data: properties.authentication_data.clone() });
        }
        let says_who = username.is_some() || password.is_some();
        if says_who && settings.users.is_some() {
            let (name, password) = (username.clone(), password.clone());
            return Ok(Self::Password {
                name: name.unwrap_or_default(),
                password: password.unwrap_or_default(),
            });
        }
        if !settings.admits_anonymous() {
            let why = "a user name and a password, or SCRAM-SHA-256, are needed".to_owned();
            return Err(Refused { code: ReasonCode::NotAuthorized, why });
        }
        Ok(Self::Anonymous)
    }
}

impl Refused {
    /// Of a user name or a password.
    pub(in crate::mqtt) fn login() -> Self {
        let why = "the user is not known or the password is wrong".to_owned();
        Self { code: ReasonCode::BadUserNameOrPassword, why }
    }

    /// Of a packet of ours that the client does not take.
    pub(in crate::mqtt) fn too_large(packet: &str) -> Self {
        let why = format!("the client's maximum packet size does not admit {packet}");
        Self { code: ReasonCode::PacketTooLarge, why }
    }

    /// Of a step of enhanced authentication.
    pub(in crate::mqtt) fn violation(violation: &Violation) -> Self {
        Self { code: violation.code(), why: format!("{violation} ({})", violation.rule()) }
    }

    /// Of a will that could not be published.
    pub(in crate::mqtt) fn will(error: &CoreError) -> Self {
        Self { code: violation::refusal(error, PacketType::PubAck), why: error.to_string() }
    }

    /// The CONNACK that tells it; `None` when 3.1.1 has no code for it [3.1.1: MQTT-3.2.2-6].
    pub(in crate::mqtt) fn connack(&self, version: Version) -> Option<ConnAck> {
        if version == Version::V311 {
            self.code.to_return_code()?;
        }
        let reason_string = Some(self.why.as_str().into());
        let properties = ConnAckProperties { reason_string, ..ConnAckProperties::default() };
        // 3.1.1: [MQTT-3.2.2-4]; 5: [MQTT-3.2.2-6].
        Some(ConnAck { session_present: false, reason: self.code, properties })
    }
}

/// The keep alive in seconds: the client's, or the operator's where that is shorter. 3.1.1 cannot be told another.
fn keep_alive_within(asked: u16, version: Version, ceiling: Option<Duration>) -> u16 {
    let Some(ceiling) = ceiling.filter(|_| version == Version::V5) else { return asked };
    let ceiling = u16::try_from(ceiling.as_secs()).unwrap_or(u16::MAX).max(1);
    if asked == 0 { ceiling } else { asked.min(ceiling) }
}
