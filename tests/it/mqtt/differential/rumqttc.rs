//! What rumqttc decodes, in our words.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes as mqtt5;
use rumqttc::v5::mqttbytes::v5;
use stafett::mqtt::codec::*;

use super::{Theirs, code, set, utf8};

pub(super) fn decode(frame: &[u8], version: Version) -> Theirs {
    let mut bytes = BytesMut::from(frame);
    let packet = match version {
        Version::V311 => three(v4::Packet::read(&mut bytes, usize::MAX).ok()?),
        Version::V5 => five(v5::Packet::read(&mut bytes, None).ok()?),
    };
    packet.filter(|_| bytes.is_empty())
}

/// The code whose name is that of the variant.
fn named(variant: impl std::fmt::Debug) -> ReasonCode {
    let name = format!("{variant:?}");
    let ours = match &*name {
        "Success(AtMostOnce)" => "Success",
        "Success(AtLeastOnce)" => "GrantedQos1",
        "Success(ExactlyOnce)" => "GrantedQos2",
        "Failure" | "Unspecified" => "UnspecifiedError",
        "ImplementationSpecific" => "ImplementationSpecificError",
        "PkidInUse" => "PacketIdentifierInUse",
        "SubscriptionIdNotSupported" => "SubscriptionIdentifiersNotSupported",
        "SharedSubscriptionsNotSupported" => "SharedSubscriptionsNotSupported",
        "BadUserNamePassword" => "BadUserNameOrPassword",
        "QoSNotSupported" => "QosNotSupported",
        "BadClientId" => "ClientIdentifierNotValid",
        "RefusedProtocolVersion" => "UnsupportedProtocolVersion",
        "Continue" => "ContinueAuthentication",
        "ReAuthentivate" => "ReAuthenticate",
        other => other,
    };
    let known = ReasonCode::ALL.iter().find(|code| format!("{code:?}") == ours);
    *known.unwrap_or_else(|| panic!("{name}"))
}

fn users(pairs: Vec<(String, String)>) -> Vec<UserProperty> {
    pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn text(string: Option<String>) -> Option<ByteString> {
    string.map(ByteString::from)
}

fn topic(bytes: Bytes) -> Option<ByteString> {
    ByteString::try_from(bytes).ok()
}

fn ack(pkid: u16) -> Option<Ack> {
    Some(Ack::new(NonZeroU16::new(pkid)?, ReasonCode::Success))
}

fn login(both: (String, String)) -> (Option<ByteString>, Option<Bytes>) {
    let (username, password) = both;
    (
        Some(username).filter(|name| !name.is_empty()).map(Into::into),
        Some(password).filter(|word| !word.is_empty()).map(Into::into),
    )
}

/// `None` where it lets pass what we have no word for.
fn three(packet: v4::Packet) -> Option<Packet> {
    let qos = |level: rumqttc::QoS| Qos::from_u8(level as u8);
    Some(match packet {
        v4::Packet::Connect(from) => {
            let (username, password) =
                from.login.map(|login| self::login((login.username, login.password))).unwrap_or_default();
            let will = match from.last_will {
                None => None,
                Some(will) => Some(Will {
                    qos: qos(will.qos)?,
                    retain: will.retain,
                    topic: will.topic.into(),
                    payload: will.message,
                    properties: WillProperties::default(),
                }),
            };
            Packet::Connect(Box::new(Connect {
                version: Version::V311,
                clean_start: from.clean_session,
                keep_alive: from.keep_alive,
                client_id: from.client_id.into(),
                will,
                username,
                password,
                properties: ConnectProperties::default(),
            }))
        }
        v4::Packet::ConnAck(from) => Packet::ConnAck(Box::new(ConnAck {
            session_present: from.session_present,
            reason: ReasonCode::from_return_code(from.code as u8)?,
            properties: ConnAckProperties::default(),
        })),
        v4::Packet::Publish(from) => Packet::Publish(Publish {
            dup: from.dup,
            qos: qos(from.qos)?,
            retain: from.retain,
            topic: from.topic.into(),
            packet_id: NonZeroU16::new(from.pkid),
            properties: None,
            payload: from.payload,
        }),
        v4::Packet::PubAck(from) => Packet::PubAck(ack(from.pkid)?),
        v4::Packet::PubRec(from) => Packet::PubRec(ack(from.pkid)?),
        v4::Packet::PubRel(from) => Packet::PubRel(ack(from.pkid)?),
        v4::Packet::PubComp(from) => Packet::PubComp(ack(from.pkid)?),
        v4::Packet::Subscribe(from) => {
            let filters = from.filters.into_iter().map(|filter| {
                let options = SubscribeOptions { qos: qos(filter.qos)?, ..SubscribeOptions::default() };
                Some(SubscribeFilter { filter: filter.path.into(), options })
            });
            let filters = filters.collect::<Option<_>>()?;
            Packet::Subscribe(Subscribe { packet_id: NonZeroU16::new(from.pkid)?, properties: None, filters })
        }
        v4::Packet::SubAck(from) => Packet::SubAck(SubAck {
            packet_id: NonZeroU16::new(from.pkid)?,
            properties: None,
            codes: from.return_codes.into_iter().map(named).collect(),
        }),
        v4::Packet::Unsubscribe(from) => Packet::Unsubscribe(Unsubscribe {
            packet_id: NonZeroU16::new(from.pkid)?,
            properties: None,
            filters: from.topics.into_iter().map(Into::into).collect(),
        }),
        v4::Packet::UnsubAck(from) => Packet::UnsubAck(UnsubAck {
            packet_id: NonZeroU16::new(from.pkid)?,
            properties: None,
            codes: [].into_iter().collect(),
        }),
        v4::Packet::PingReq => Packet::PingReq,
        v4::Packet::PingResp => Packet::PingResp,
        v4::Packet::Disconnect => Packet::Disconnect(Disconnect::new(ReasonCode::Success)),
    })
}

fn flag(value: Option<u8>) -> Option<bool> {
    value.map(|value| value != 0)
}

fn connect(from: v5::Connect, will: Option<v5::LastWill>, login: Option<v5::Login>) -> Option<Packet> {
    let (username, password) =
        login.map(|login| self::login((login.username, login.password))).unwrap_or_default();
    let will = match will {
        None => None,
        Some(will) => Some(Will {
            qos: Qos::from_u8(will.qos as u8)?,
            retain: will.retain,
            topic: topic(will.topic)?,
            payload: will.message,
            properties: will.properties.map_or_else(WillProperties::default, |set| WillProperties {
                delay: set.delay_interval,
                payload_format: flag(set.payload_format_indicator).map(utf8),
                message_expiry: set.message_expiry_interval,
                content_type: text(set.content_type),
                response_topic: text(set.response_topic),
                correlation_data: set.correlation_data,
                user_properties: users(set.user_properties),
            }),
        }),
    };
    let properties = from.properties.map_or_else(ConnectProperties::default, |set| ConnectProperties {
        session_expiry: set.session_expiry_interval,
        receive_maximum: set.receive_maximum.and_then(NonZeroU16::new),
        maximum_packet_size: set.max_packet_size.and_then(NonZeroU32::new),
        topic_alias_maximum: set.topic_alias_max,
        request_response_information: flag(set.request_response_info),
        request_problem_information: flag(set.request_problem_info),
        authentication_method: text(set.authentication_method),
        authentication_data: set.authentication_data,
        user_properties: users(set.user_properties),
    });
    Some(Packet::Connect(Box::new(Connect {
        version: Version::V5,
        clean_start: from.clean_start,
        keep_alive: from.keep_alive,
        client_id: from.client_id.into(),
        will,
        username,
        password,
        properties,
    })))
}

fn connack(from: v5::ConnAck) -> Packet {
    let properties = from.properties.map_or_else(ConnAckProperties::default, |set| ConnAckProperties {
        session_expiry: set.session_expiry_interval,
        receive_maximum: set.receive_max.and_then(NonZeroU16::new),
        maximum_qos: set.max_qos.and_then(|level| match level {
            0 => Some(MaximumQos::AtMostOnce),
            1 => Some(MaximumQos::AtLeastOnce),
            _ => None,
        }),
        retain_available: flag(set.retain_available),
        maximum_packet_size: set.max_packet_size.and_then(NonZeroU32::new),
        assigned_client_id: text(set.assigned_client_identifier),
        topic_alias_maximum: set.topic_alias_max,
        reason_string: text(set.reason_string),
        wildcard_subscription_available: flag(set.wildcard_subscription_available),
        subscription_ids_available: flag(set.subscription_identifiers_available),
        shared_subscription_available: flag(set.shared_subscription_available),
        server_keep_alive: set.server_keep_alive,
        response_information: text(set.response_information),
        server_reference: text(set.server_reference),
        authentication_method: text(set.authentication_method),
        authentication_data: set.authentication_data,
        user_properties: users(set.user_properties),
    });
    let (session_present, reason) = (from.session_present, named(from.code));
    Packet::ConnAck(Box::new(ConnAck { session_present, reason, properties }))
}

/// An acknowledgement of any kind.
macro_rules! ack {
    ($kind:ident, $from:ident) => {{
        let properties = $from.properties.map(|set| told(set.reason_string, set.user_properties));
        let (packet_id, reason) = (NonZeroU16::new($from.pkid)?, named($from.reason));
        Packet::$kind(Ack { packet_id, reason, properties: properties.flatten() })
    }};
}

fn told(reason_string: Option<String>, pairs: Vec<(String, String)>) -> Option<Box<AckProperties>> {
    set(AckProperties { reason_string: text(reason_string), user_properties: users(pairs) })
}

fn five(packet: v5::Packet) -> Option<Packet> {
    let qos = |level: mqtt5::QoS| Qos::from_u8(level as u8);
    let number = |id: usize| u32::try_from(id).ok().and_then(SubscriptionId::new);
    Some(match packet {
        v5::Packet::Connect(from, will, login) => connect(from, will, login)?,
        v5::Packet::ConnAck(from) => connack(from),
        v5::Packet::Publish(from) => {
            let properties = match from.properties {
                None => None,
                Some(properties) => set(PublishProperties {
                    payload_format: flag(properties.payload_format_indicator).map(utf8),
                    message_expiry: properties.message_expiry_interval,
                    topic_alias: properties.topic_alias.and_then(NonZeroU16::new),
                    response_topic: text(properties.response_topic),
                    correlation_data: properties.correlation_data,
                    subscription_ids: properties
                        .subscription_identifiers
                        .into_iter()
                        .map(number)
                        .collect::<Option<_>>()?,
                    content_type: text(properties.content_type),
                    user_properties: users(properties.user_properties),
                }),
            };
            Packet::Publish(Publish {
                dup: from.dup,
                qos: qos(from.qos)?,
                retain: from.retain,
                topic: topic(from.topic)?,
                packet_id: NonZeroU16::new(from.pkid),
                properties,
                payload: from.payload,
            })
        }
        v5::Packet::PubAck(from) => ack!(PubAck, from),
        v5::Packet::PubRec(from) => ack!(PubRec, from),
        v5::Packet::PubRel(from) => ack!(PubRel, from),
        v5::Packet::PubComp(from) => ack!(PubComp, from),
        v5::Packet::Subscribe(from) => {
            let filters = from.filters.into_iter().map(|filter| {
                let retain_handling = match filter.retain_forward_rule {
                    v5::RetainForwardRule::OnEverySubscribe => RetainHandling::Send,
                    v5::RetainForwardRule::OnNewSubscribe => RetainHandling::SendIfNew,
                    v5::RetainForwardRule::Never => RetainHandling::DoNotSend,
                };
                let (no_local, retain_as_published) = (filter.nolocal, filter.preserve_retain);
                let options = SubscribeOptions {
                    qos: qos(filter.qos)?,
                    no_local,
                    retain_as_published,
                    retain_handling,
                };
                Some(SubscribeFilter { filter: filter.path.into(), options })
            });
            let filters = filters.collect::<Option<_>>()?;
            let properties = from.properties.and_then(|properties| {
                let subscription_id = properties.id.and_then(number);
                set(SubscribeProperties {
                    subscription_id,
                    user_properties: users(properties.user_properties),
                })
            });
            Packet::Subscribe(Subscribe { packet_id: NonZeroU16::new(from.pkid)?, properties, filters })
        }
        v5::Packet::SubAck(from) => Packet::SubAck(SubAck {
            packet_id: NonZeroU16::new(from.pkid)?,
            properties: from.properties.and_then(|set| told(set.reason_string, set.user_properties)),
            codes: from.return_codes.into_iter().map(named).collect(),
        }),
        v5::Packet::Unsubscribe(from) => Packet::Unsubscribe(Unsubscribe {
            packet_id: NonZeroU16::new(from.pkid)?,
            properties: from.properties.and_then(|properties| {
                set(UnsubscribeProperties { user_properties: users(properties.user_properties) })
            }),
            filters: from.filters.into_iter().map(Into::into).collect(),
        }),
        v5::Packet::UnsubAck(from) => Packet::UnsubAck(UnsubAck {
            packet_id: NonZeroU16::new(from.pkid)?,
            properties: from.properties.and_then(|set| told(set.reason_string, set.user_properties)),
            codes: from.reasons.into_iter().map(named).collect(),
        }),
        v5::Packet::PingReq(_) => Packet::PingReq,
        v5::Packet::PingResp(_) => Packet::PingResp,
        v5::Packet::Disconnect(from) => Packet::Disconnect(Disconnect {
            reason: code(from.reason_code as u8),
            properties: from.properties.and_then(|properties| {
                set(DisconnectProperties {
                    session_expiry: properties.session_expiry_interval,
                    reason_string: text(properties.reason_string),
                    server_reference: text(properties.server_reference),
                    user_properties: users(properties.user_properties),
                })
            }),
        }),
        v5::Packet::Auth(from) => Packet::Auth(Auth {
            reason: named(from.code),
            properties: from.properties.and_then(|properties| {
                set(AuthProperties {
                    authentication_method: text(properties.method),
                    authentication_data: properties.data,
                    reason_string: text(properties.reason),
                    user_properties: users(properties.user_properties),
                })
            }),
        }),
    })
}
