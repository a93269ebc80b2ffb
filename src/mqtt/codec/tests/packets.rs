//! Strategies for valid packets in their canonical form: what a decoder gives back.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use bytestring::ByteString;
use proptest::{collection::vec, option::of, prelude::*, sample::select};

use super::super::*;

pub(super) fn version() -> impl Strategy<Value = Version> {
    select(vec![Version::V311, Version::V5])
}

pub(super) fn versioned() -> impl Strategy<Value = (Version, Packet)> {
    version().prop_flat_map(|version| (Just(version), packet(version)))
}

pub(super) fn packet(version: Version) -> BoxedStrategy<Packet> {
    use PacketType as T;
    let both = prop_oneof![
        connect(version).prop_map(|packet| Packet::Connect(Box::new(packet))),
        connack(version).prop_map(|packet| Packet::ConnAck(Box::new(packet))),
        publish(version).prop_map(Packet::Publish),
        ack(version, T::PubAck).prop_map(Packet::PubAck),
        ack(version, T::PubRec).prop_map(Packet::PubRec),
        ack(version, T::PubRel).prop_map(Packet::PubRel),
        ack(version, T::PubComp).prop_map(Packet::PubComp),
        subscribe(version).prop_map(Packet::Subscribe),
        suback(version).prop_map(Packet::SubAck),
        unsubscribe(version).prop_map(Packet::Unsubscribe),
        unsuback(version).prop_map(Packet::UnsubAck),
        select(vec![Packet::PingReq, Packet::PingResp]),
        disconnect(version).prop_map(Packet::Disconnect),
    ];
    match version {
        Version::V311 => both.boxed(),
        Version::V5 => prop_oneof![13 => both, 1 => auth().prop_map(Packet::Auth)].boxed(),
    }
}

fn text() -> impl Strategy<Value = ByteString> {
    "[a-z +#/é€😀\u{feff}]{0,12}".prop_map(ByteString::from)
}

fn topic() -> impl Strategy<Value = ByteString> {
    "[a-z/$ é€😀]{1,16}".prop_map(ByteString::from)
}

fn filter() -> impl Strategy<Value = ByteString> {
    prop_oneof![topic(), Just("#".into()), Just("a/+/c".into()), Just("$share/g/a/#".into())]
}

fn binary() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..24).prop_map(Bytes::from)
}

fn qos() -> impl Strategy<Value = Qos> {
    select(vec![Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce])
}

fn users() -> impl Strategy<Value = Vec<UserProperty>> {
    vec((text(), text()), 0..4)
}

fn subscription_id() -> impl Strategy<Value = SubscriptionId> {
    prop_oneof![1_u32..300, 1_u32..=0x0fff_ffff].prop_map(|id| SubscriptionId::new(id).expect("in range"))
}

fn payload_format() -> impl Strategy<Value = PayloadFormat> {
    select(vec![PayloadFormat::Bytes, PayloadFormat::Utf8])
}

fn reason(version: Version, packet: PacketType) -> impl Strategy<Value = ReasonCode> {
    let codes = ReasonCode::ALL.iter().copied().filter(|code| match (version, packet) {
        (Version::V5, _) => code.permitted_in(packet),
        (Version::V311, PacketType::ConnAck) => {
            code.to_return_code().and_then(ReasonCode::from_return_code) == Some(*code)
        }
        (Version::V311, PacketType::SubAck) => {
            code.permitted_in(packet) && *code <= ReasonCode::UnspecifiedError
        }
        (Version::V311, _) => *code == ReasonCode::Success,
    });
    select(codes.collect::<Vec<_>>())
}

/// Properties as a packet holds them: none in 3.1.1, `None` when there are none.
fn set<T: Clone + Default + PartialEq + std::fmt::Debug + 'static>(
    version: Version,
    strategy: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Option<Box<T>>> {
    match version {
        Version::V311 => Just(None).boxed(),
        Version::V5 => {
            of(strategy).prop_map(|set| set.filter(|set| *set != T::default()).map(Box::new)).boxed()
        }
    }
}

/// The same for sets that are held by value.
fn plain_set<T: Clone + Default + PartialEq + std::fmt::Debug + 'static>(
    version: Version,
    strategy: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<T> {
    set(version, strategy).prop_map(|set| set.map(|set| *set).unwrap_or_default()).boxed()
}

/// Method and data, never data alone.
fn authentication() -> impl Strategy<Value = (Option<ByteString>, Option<Bytes>)> {
    of((text(), of(binary()))).prop_map(|both| match both {
        Some((method, data)) => (Some(method), data),
        None => (None, None),
    })
}

fn connect(version: Version) -> impl Strategy<Value = Connect> {
    let properties = (
        of(any::<u32>()),
        of(any::<NonZeroU16>()),
        of(any::<NonZeroU32>()),
        of(any::<u16>()),
        of(any::<bool>()),
        of(any::<bool>()),
        authentication(),
        users(),
    )
        .prop_map(|(expiry, receive, size, alias, response, problem, (method, data), users)| {
            ConnectProperties {
                session_expiry: expiry,
                receive_maximum: receive,
                maximum_packet_size: size,
                topic_alias_maximum: alias,
                request_response_information: response,
                request_problem_information: problem,
                authentication_method: method,
                authentication_data: data,
                user_properties: users,
            }
        });
    let will_properties = (
        of(any::<u32>()),
        of(payload_format()),
        of(any::<u32>()),
        of(text()),
        of(topic()),
        of(binary()),
        users(),
    )
        .prop_map(|(delay, format, expiry, content, response, correlation, users)| WillProperties {
            delay,
            payload_format: format,
            message_expiry: expiry,
            content_type: content,
            response_topic: response,
            correlation_data: correlation,
            user_properties: users,
        });
    let will = (qos(), any::<bool>(), topic(), binary(), plain_set(version, will_properties)).prop_map(
        |(qos, retain, topic, payload, properties)| Will { qos, retain, topic, payload, properties },
    );
    let login = (of(text()), of(binary())).prop_map(move |(username, password)| match (version, &username) {
        (Version::V311, None) => (None, None),
        _ => (username, password),
    });
    (any::<bool>(), any::<u16>(), text(), of(will), login, plain_set(version, properties)).prop_map(
        move |(clean_start, keep_alive, client_id, will, (username, password), properties)| Connect {
            version,
            clean_start,
            keep_alive,
            client_id,
            will,
            username,
            password,
            properties,
        },
    )
}

fn connack(version: Version) -> impl Strategy<Value = ConnAck> {
    let numbers = (
        of(any::<u32>()),
        of(any::<NonZeroU16>()),
        of(select(vec![MaximumQos::AtMostOnce, MaximumQos::AtLeastOnce])),
        of(any::<bool>()),
        of(any::<NonZeroU32>()),
        of(any::<u16>()),
        of(any::<bool>()),
        of(any::<bool>()),
        of(any::<bool>()),
        of(any::<u16>()),
    );
    let texts = (of(text()), of(text()), of(text()), of(text()), authentication(), users());
    let properties = (numbers, texts).prop_map(
        |(
            (expiry, receive, qos, retain, size, alias, wildcard, ids, shared, keep_alive),
            (id, reason, response, reference, (method, data), users),
        )| ConnAckProperties {
            session_expiry: expiry,
            receive_maximum: receive,
            maximum_qos: qos,
            retain_available: retain,
            maximum_packet_size: size,
            assigned_client_id: id,
            topic_alias_maximum: alias,
            reason_string: reason,
            wildcard_subscription_available: wildcard,
            subscription_ids_available: ids,
            shared_subscription_available: shared,
            server_keep_alive: keep_alive,
            response_information: response,
            server_reference: reference,
            authentication_method: method,
            authentication_data: data,
            user_properties: users,
        },
    );
    (any::<bool>(), reason(version, PacketType::ConnAck), plain_set(version, properties)).prop_map(
        |(present, reason, properties)| ConnAck {
            session_present: present && reason == ReasonCode::Success,
            reason,
            properties,
        },
    )
}

pub(super) fn publish(version: Version) -> impl Strategy<Value = Publish> {
    let properties = (
        of(payload_format()),
        of(any::<u32>()),
        of(any::<NonZeroU16>()),
        of(topic()),
        of(binary()),
        vec(subscription_id(), 0..4),
        of(text()),
        users(),
    )
        .prop_map(|(format, expiry, alias, response, correlation, ids, content, users)| {
            PublishProperties {
                payload_format: format,
                message_expiry: expiry,
                topic_alias: alias,
                response_topic: response,
                correlation_data: correlation,
                subscription_ids: ids.into(),
                content_type: content,
                user_properties: users,
            }
        });
    let topics = (topic(), any::<bool>());
    let header = (qos(), any::<bool>(), any::<bool>(), any::<NonZeroU16>());
    (header, topics, set(version, properties), binary()).prop_map(
        |((qos, dup, retain, id), (topic, by_alias), properties, payload)| {
            let alias = properties.as_ref().is_some_and(|set| set.topic_alias.is_some());
            let above_0 = qos != Qos::AtMostOnce;
            Publish {
                dup: dup && above_0,
                qos,
                retain,
                topic: if by_alias && alias { ByteString::new() } else { topic },
                packet_id: above_0.then_some(id),
                properties,
                payload,
            }
        },
    )
}

fn ack_properties(version: Version) -> BoxedStrategy<Option<Box<AckProperties>>> {
    let properties = (of(text()), users())
        .prop_map(|(reason_string, user_properties)| AckProperties { reason_string, user_properties });
    set(version, properties)
}

fn ack(version: Version, packet: PacketType) -> impl Strategy<Value = Ack> {
    (any::<NonZeroU16>(), reason(version, packet), ack_properties(version))
        .prop_map(|(packet_id, reason, properties)| Ack { packet_id, reason, properties })
}

fn subscribe(version: Version) -> impl Strategy<Value = Subscribe> {
    let properties = (of(subscription_id()), users()).prop_map(|(subscription_id, user_properties)| {
        SubscribeProperties { subscription_id, user_properties }
    });
    let handling = select(vec![RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::DoNotSend]);
    let entry = (filter(), qos(), any::<bool>(), any::<bool>(), handling).prop_map(
        move |(filter, qos, no_local, retain_as_published, retain_handling)| {
            let no_local = no_local && !filter.starts_with("$share/");
            let options = match version {
                Version::V311 => SubscribeOptions { qos, ..SubscribeOptions::default() },
                Version::V5 => SubscribeOptions { qos, no_local, retain_as_published, retain_handling },
            };
            SubscribeFilter { filter, options }
        },
    );
    (any::<NonZeroU16>(), set(version, properties), vec(entry, 1..5))
        .prop_map(|(packet_id, properties, filters)| Subscribe { packet_id, properties, filters })
}

fn suback(version: Version) -> impl Strategy<Value = SubAck> {
    let codes = vec(reason(version, PacketType::SubAck), 1..12);
    (any::<NonZeroU16>(), ack_properties(version), codes).prop_map(|(packet_id, properties, codes)| SubAck {
        packet_id,
        properties,
        codes: codes.into(),
    })
}

fn unsubscribe(version: Version) -> impl Strategy<Value = Unsubscribe> {
    let properties = users().prop_map(|user_properties| UnsubscribeProperties { user_properties });
    (any::<NonZeroU16>(), set(version, properties), vec(filter(), 1..5))
        .prop_map(|(packet_id, properties, filters)| Unsubscribe { packet_id, properties, filters })
}

fn unsuback(version: Version) -> impl Strategy<Value = UnsubAck> {
    let codes = match version {
        Version::V311 => Just(Vec::new()).boxed(),
        Version::V5 => vec(reason(version, PacketType::UnsubAck), 1..12).boxed(),
    };
    (any::<NonZeroU16>(), ack_properties(version), codes)
        .prop_map(|(packet_id, properties, codes)| UnsubAck { packet_id, properties, codes: codes.into() })
}

fn disconnect(version: Version) -> impl Strategy<Value = Disconnect> {
    let properties = (of(any::<u32>()), of(text()), of(text()), users()).prop_map(
        |(session_expiry, reason_string, server_reference, user_properties)| DisconnectProperties {
            session_expiry,
            reason_string,
            server_reference,
            user_properties,
        },
    );
    (reason(version, PacketType::Disconnect), set(version, properties))
        .prop_map(|(reason, properties)| Disconnect { reason, properties })
}

fn auth() -> impl Strategy<Value = Auth> {
    let full = (reason(Version::V5, PacketType::Auth), text(), of(binary()), of(text()), users()).prop_map(
        |(reason, method, data, reason_string, user_properties)| Auth {
            reason,
            properties: Some(Box::new(AuthProperties {
                authentication_method: Some(method),
                authentication_data: data,
                reason_string,
                user_properties,
            })),
        },
    );
    prop_oneof![1 => Just(Auth { reason: ReasonCode::Success, properties: None }), 9 => full]
}
