//! What rmqtt-codec decodes, in our words.

use std::num::{NonZeroU16, NonZeroU32};

use rmqtt_codec::types::{Publish as TheirPublish, QoS};
use rmqtt_codec::{v3, v5};
use stafett::mqtt::codec::*;
use tokio_util::codec::Decoder as _;

use super::{Theirs, code, set, utf8};

pub(super) fn decode(frame: &[u8], version: Version) -> Theirs {
    let mut bytes = frame.into();
    let packet = match version {
        Version::V311 => v3::Codec::new(0).decode(&mut bytes).ok()?.map(|(packet, _)| three(packet)),
        Version::V5 => v5::Codec::new(0, 0).decode(&mut bytes).ok()?.map(|(packet, _)| five(packet)),
    };
    packet.filter(|_| bytes.is_empty())
}

fn qos(level: QoS) -> Qos {
    Qos::from_u8(u8::from(level)).unwrap()
}

fn ack(packet_id: NonZeroU16) -> Ack {
    Ack::new(packet_id, ReasonCode::Success)
}

fn id(number: NonZeroU32) -> SubscriptionId {
    SubscriptionId::new(number.get()).unwrap()
}

fn publish(from: TheirPublish) -> Packet {
    let properties = from.properties.map(|set| PublishProperties {
        payload_format: set.is_utf8_payload.then_some(PayloadFormat::Utf8),
        message_expiry: set.message_expiry_interval.map(NonZeroU32::get),
        topic_alias: set.topic_alias,
        response_topic: set.response_topic,
        correlation_data: set.correlation_data,
        subscription_ids: set.subscription_ids.into_iter().map(id).collect(),
        content_type: set.content_type,
        user_properties: set.user_properties,
    });
    Packet::Publish(Publish {
        dup: from.dup,
        qos: qos(from.qos),
        retain: from.retain,
        topic: from.topic,
        packet_id: from.packet_id,
        properties: set(properties.unwrap_or_default()),
        payload: from.payload,
    })
}

fn three(packet: v3::Packet) -> Packet {
    match packet {
        v3::Packet::Connect(from) => Packet::Connect(Box::new(Connect {
            version: Version::V311,
            clean_start: from.clean_session,
            keep_alive: from.keep_alive,
            client_id: from.client_id,
            will: from.last_will.map(|will| Will {
                qos: qos(will.qos),
                retain: will.retain,
                topic: will.topic,
                payload: will.message,
                properties: WillProperties::default(),
            }),
            username: from.username,
            password: from.password,
            properties: ConnectProperties::default(),
        })),
        v3::Packet::ConnectAck(from) => Packet::ConnAck(Box::new(ConnAck {
            session_present: from.session_present,
            // It knows a seventh.
            reason: ReasonCode::from_return_code(from.return_code.into())
                .unwrap_or(ReasonCode::UnspecifiedError),
            properties: ConnAckProperties::default(),
        })),
        v3::Packet::Publish(from) => publish(*from),
        v3::Packet::PublishAck { packet_id } => Packet::PubAck(ack(packet_id)),
        v3::Packet::PublishReceived { packet_id } => Packet::PubRec(ack(packet_id)),
        v3::Packet::PublishRelease { packet_id } => Packet::PubRel(ack(packet_id)),
        v3::Packet::PublishComplete { packet_id } => Packet::PubComp(ack(packet_id)),
        v3::Packet::Subscribe { packet_id, topic_filters } => {
            let filters = topic_filters.into_iter().map(|(filter, level)| SubscribeFilter {
                filter,
                options: SubscribeOptions { qos: qos(level), ..SubscribeOptions::default() },
            });
            Packet::Subscribe(Subscribe { packet_id, properties: None, filters: filters.collect() })
        }
        v3::Packet::SubscribeAck { packet_id, status } => {
            let codes = status.into_iter().map(|status| match status {
                v3::SubscribeReturnCode::Success(level) => qos(level).granted(),
                v3::SubscribeReturnCode::Failure => ReasonCode::UnspecifiedError,
            });
            Packet::SubAck(SubAck { packet_id, properties: None, codes: codes.collect() })
        }
        v3::Packet::Unsubscribe { packet_id, topic_filters } => {
            Packet::Unsubscribe(Unsubscribe { packet_id, properties: None, filters: topic_filters })
        }
        v3::Packet::UnsubscribeAck { packet_id } => {
            Packet::UnsubAck(UnsubAck { packet_id, properties: None, codes: [].into_iter().collect() })
        }
        v3::Packet::PingRequest => Packet::PingReq,
        v3::Packet::PingResponse => Packet::PingResp,
        v3::Packet::Disconnect => Packet::Disconnect(Disconnect::new(ReasonCode::Success)),
    }
}

fn connect(from: v5::Connect) -> Connect {
    Connect {
        version: Version::V5,
        clean_start: from.clean_start,
        keep_alive: from.keep_alive,
        client_id: from.client_id,
        will: from.last_will.map(|will| Will {
            qos: qos(will.qos),
            retain: will.retain,
            topic: will.topic,
            payload: will.message,
            properties: WillProperties {
                delay: will.will_delay_interval_sec,
                payload_format: will.is_utf8_payload.map(utf8),
                message_expiry: will.message_expiry_interval.map(NonZeroU32::get),
                content_type: will.content_type,
                response_topic: will.response_topic,
                correlation_data: will.correlation_data,
                user_properties: will.user_properties,
            },
        }),
        username: from.username,
        password: from.password,
        properties: ConnectProperties {
            session_expiry: Some(from.session_expiry_interval_secs),
            receive_maximum: from.receive_max,
            maximum_packet_size: from.max_packet_size,
            topic_alias_maximum: Some(from.topic_alias_max),
            request_response_information: Some(from.request_response_info),
            request_problem_information: Some(from.request_problem_info),
            authentication_method: from.auth_method,
            authentication_data: from.auth_data,
            user_properties: from.user_properties,
        },
    }
}

fn connack(from: v5::ConnectAck) -> ConnAck {
    ConnAck {
        session_present: from.session_present,
        reason: code(from.reason_code as u8),
        properties: ConnAckProperties {
            session_expiry: from.session_expiry_interval_secs,
            receive_maximum: Some(from.receive_max),
            maximum_qos: match from.max_qos {
                QoS::AtMostOnce => Some(MaximumQos::AtMostOnce),
                QoS::AtLeastOnce => Some(MaximumQos::AtLeastOnce),
                QoS::ExactlyOnce => None,
            },
            retain_available: Some(from.retain_available),
            maximum_packet_size: from.max_packet_size.and_then(NonZeroU32::new),
            assigned_client_id: from.assigned_client_id,
            topic_alias_maximum: Some(from.topic_alias_max),
            reason_string: from.reason_string,
            wildcard_subscription_available: Some(from.wildcard_subscription_available),
            subscription_ids_available: Some(from.subscription_identifiers_available),
            shared_subscription_available: Some(from.shared_subscription_available),
            server_keep_alive: from.server_keepalive_sec,
            response_information: from.response_info,
            server_reference: from.server_reference,
            authentication_method: from.auth_method,
            authentication_data: from.auth_data,
            user_properties: from.user_properties,
        },
    }
}

fn five(packet: v5::Packet) -> Packet {
    let told = |reason_string, user_properties| set(AckProperties { reason_string, user_properties });
    let first = |from: v5::PublishAck| Ack {
        packet_id: from.packet_id,
        reason: code(from.reason_code as u8),
        properties: told(from.reason_string, from.properties),
    };
    let second = |from: v5::PublishAck2| Ack {
        packet_id: from.packet_id,
        reason: code(from.reason_code as u8),
        properties: told(from.reason_string, from.properties),
    };
    match packet {
        v5::Packet::Connect(from) => Packet::Connect(Box::new(connect(*from))),
        v5::Packet::ConnectAck(from) => Packet::ConnAck(Box::new(connack(*from))),
        v5::Packet::Publish(from) => publish(*from),
        v5::Packet::PublishAck(from) => Packet::PubAck(first(from)),
        v5::Packet::PublishReceived(from) => Packet::PubRec(first(from)),
        v5::Packet::PublishRelease(from) => Packet::PubRel(second(from)),
        v5::Packet::PublishComplete(from) => Packet::PubComp(second(from)),
        v5::Packet::Subscribe(from) => {
            let filters = from.topic_filters.into_iter().map(|(filter, options)| {
                let retain_handling = match options.retain_handling {
                    v5::RetainHandling::AtSubscribe => RetainHandling::Send,
                    v5::RetainHandling::AtSubscribeNew => RetainHandling::SendIfNew,
                    v5::RetainHandling::NoAtSubscribe => RetainHandling::DoNotSend,
                };
                let (no_local, retain_as_published) = (options.no_local, options.retain_as_published);
                let options = SubscribeOptions {
                    qos: qos(options.qos),
                    no_local,
                    retain_as_published,
                    retain_handling,
                };
                SubscribeFilter { filter, options }
            });
            let properties = SubscribeProperties {
                subscription_id: from.id.map(id),
                user_properties: from.user_properties,
            };
            let filters = filters.collect();
            Packet::Subscribe(Subscribe { packet_id: from.packet_id, properties: set(properties), filters })
        }
        v5::Packet::SubscribeAck(from) => Packet::SubAck(SubAck {
            packet_id: from.packet_id,
            properties: told(from.reason_string, from.properties),
            codes: from.status.into_iter().map(|status| code(status as u8)).collect(),
        }),
        v5::Packet::Unsubscribe(from) => Packet::Unsubscribe(Unsubscribe {
            packet_id: from.packet_id,
            properties: set(UnsubscribeProperties { user_properties: from.user_properties }),
            filters: from.topic_filters,
        }),
        v5::Packet::UnsubscribeAck(from) => Packet::UnsubAck(UnsubAck {
            packet_id: from.packet_id,
            properties: told(from.reason_string, from.properties),
            codes: from.status.into_iter().map(|status| code(status as u8)).collect(),
        }),
        v5::Packet::PingRequest => Packet::PingReq,
        v5::Packet::PingResponse => Packet::PingResp,
        v5::Packet::Disconnect(from) => Packet::Disconnect(Disconnect {
            reason: code(from.reason_code as u8),
            properties: set(DisconnectProperties {
                session_expiry: from.session_expiry_interval_secs,
                reason_string: from.reason_string,
                server_reference: from.server_reference,
                user_properties: from.user_properties,
            }),
        }),
        v5::Packet::Auth(from) => Packet::Auth(Auth {
            reason: code(from.reason_code as u8),
            properties: set(AuthProperties {
                authentication_method: from.auth_method,
                authentication_data: from.auth_data,
                reason_string: from.reason_string,
                user_properties: from.user_properties,
            }),
        }),
    }
}
