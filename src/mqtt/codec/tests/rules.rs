//! The rules one by one: what must be refused with which code, and what must be taken.

use std::collections::BTreeSet;

use bytes::BytesMut;

use super::{super::*, frame, hex};
use DecodeError as E;

/// Rule, what is wrong, first byte, body, error.
type Case = (&'static str, &'static str, u8, &'static str, DecodeError);

const LIMITS: Limits = Limits {
    max_packet_size: 300,
    max_user_properties: 2,
    max_subscription_ids: 2,
    max_filters_per_packet: 2,
};

const CONNECT: &[Case] = &[
    ("MQTT-3.1.0-1", "PINGREQ first", 0xc0, "", E::FirstNotConnect),
    ("MQTT-3.1.0-1", "PUBLISH first", 0x30, "0001 74", E::FirstNotConnect),
    ("MQTT-3.1.0-1", "HTTP", b'G', "45 54", E::FirstNotConnect),
    ("MQTT-2.1.3-1", "CONNECT with flags", 0x11, "0004 4d515454 04 02 003c 0000", E::FixedHeaderFlags),
    ("MQTT-3.1.2-1", "name in small letters", 0x10, "0004 6d717474 04 02 003c 0000", E::ProtocolName),
    ("MQTT-3.1.2-1", "name not UTF-8", 0x10, "0004 ffffffff 04 02 003c 0000", E::ProtocolName),
    ("MQTT-3.1.2-1", "empty name", 0x10, "0000 04 02 003c 0000", E::ProtocolName),
    ("MQTT-3.1.2-2", "level 3", 0x10, "0004 4d515454 03 02 003c 0000", E::UnsupportedVersion { level: 3 }),
    ("MQTT-3.1.2-2", "level 6", 0x10, "0004 4d515454 06 02 003c 0000", E::UnsupportedVersion { level: 6 }),
    (
        "MQTT-3.1.2-2",
        "level 4, bridge",
        0x10,
        "0004 4d515454 84 02 003c 0000",
        E::UnsupportedVersion { level: 0x84 },
    ),
    ("MQTT-3.1.2-2", "3.1", 0x10, "0006 4d5149736470 03 02 003c 0000", E::UnsupportedVersion { level: 3 }),
    ("MQTT-3.1.2-3", "reserved flag", 0x10, "0004 4d515454 04 03 003c 0000", E::ConnectReservedFlag),
    ("MQTT-3.1.2-11", "will QoS without will", 0x10, "0004 4d515454 04 0a 003c 0000", E::WillFlags),
    ("MQTT-3.1.2-13", "will retain without will", 0x10, "0004 4d515454 05 22 003c 00 0000", E::WillFlags),
    ("MQTT-3.1.2-14", "will QoS 3", 0x10, "0004 4d515454 04 1e 003c 0000 0001 77 0000", E::Qos),
    ("MQTT-3.1.2-12", "will QoS 3 in 5", 0x10, "0004 4d515454 05 1e 003c 00 0000 00 0001 77 0000", E::Qos),
    (
        "MQTT-3.1.2-22",
        "password alone",
        0x10,
        "0004 4d515454 04 42 003c 0000 0001 70",
        E::PasswordWithoutUserName,
    ),
    ("MQTT-4.8.0-1", "no client id", 0x10, "0004 4d515454 04 02 003c", E::Truncated),
    ("MQTT-4.8.0-1", "no user name", 0x10, "0004 4d515454 04 82 003c 0000", E::Truncated),
    ("MQTT-4.8.0-1", "no password", 0x10, "0004 4d515454 04 c2 003c 0000 0001 75", E::Truncated),
    ("MQTT-4.8.0-1", "no will message", 0x10, "0004 4d515454 04 06 003c 0000 0001 77", E::Truncated),
    ("MQTT-4.8.0-1", "bytes after the payload", 0x10, "0004 4d515454 04 02 003c 0000 00", E::TrailingBytes),
    ("MQTT-1.5.3-2", "client id with U+0000", 0x10, "0004 4d515454 04 02 003c 0001 00", E::NullCharacter),
    ("MQTT-1.5.3-1", "client id not UTF-8", 0x10, "0004 4d515454 04 02 003c 0001 ff", E::Utf8),
    (
        "MQTT-4.7.0-1",
        "will topic with wildcard",
        0x10,
        "0004 4d515454 04 06 003c 0000 0001 23 0000",
        E::TopicWildcard,
    ),
    ("MQTT-4.7.3-1", "empty will topic", 0x10, "0004 4d515454 04 06 003c 0000 0000 0000", E::EmptyTopic),
    (
        "3.1.2.11.10",
        "authentication data alone",
        0x10,
        "0004 4d515454 05 02 003c 04 160001 61 0000",
        E::NoAuthenticationMethod,
    ),
    (
        "2.2.2.2",
        "receive maximum 0",
        0x10,
        "0004 4d515454 05 02 003c 03 210000 0000",
        E::PropertyValue(PropertyId::ReceiveMaximum),
    ),
    (
        "2.2.2.2",
        "maximum packet size 0",
        0x10,
        "0004 4d515454 05 02 003c 05 2700000000 0000",
        E::PropertyValue(PropertyId::MaximumPacketSize),
    ),
    (
        "2.2.2.2",
        "request problem information 2",
        0x10,
        "0004 4d515454 05 02 003c 02 1702 0000",
        E::PropertyValue(PropertyId::RequestProblemInformation),
    ),
    (
        "2.2.2.2",
        "request response information 2",
        0x10,
        "0004 4d515454 05 02 003c 02 1902 0000",
        E::PropertyValue(PropertyId::RequestResponseInformation),
    ),
    (
        "2.2.2.2",
        "receive maximum twice",
        0x10,
        "0004 4d515454 05 02 003c 06 210001210001 0000",
        E::DuplicateProperty(PropertyId::ReceiveMaximum),
    ),
    (
        "2.2.2.2",
        "topic alias in CONNECT",
        0x10,
        "0004 4d515454 05 02 003c 03 230001 0000",
        E::PropertyNotAllowed(PropertyId::TopicAlias),
    ),
    ("2.2.2.2", "property 0x7f", 0x10, "0004 4d515454 05 02 003c 02 7f00 0000", E::UnknownProperty(0x7f)),
    (
        "2.2.2.2",
        "will delay among CONNECT's",
        0x10,
        "0004 4d515454 05 02 003c 05 1800000000 0000",
        E::PropertyNotAllowed(PropertyId::WillDelayInterval),
    ),
    (
        "2.2.2.2",
        "session expiry in a will",
        0x10,
        "0004 4d515454 05 06 003c 00 0000 05 1100000000 0001 77 0000",
        E::PropertyNotAllowed(PropertyId::SessionExpiryInterval),
    ),
    (
        "MQTT-3.3.2-14",
        "will's response topic with wildcard",
        0x10,
        "0004 4d515454 05 06 003c 00 0000 04 080001 2b 0001 77 0000",
        E::ResponseTopicWildcard,
    ),
    ("4.13.1", "properties longer than the packet", 0x10, "0004 4d515454 05 02 003c 7f 0000", E::Truncated),
    (
        "4.13.1",
        "property longer than its list",
        0x10,
        "0004 4d515454 05 02 003c 02 2100 010000",
        E::Truncated,
    ),
    (
        "MQTT-1.5.5-1",
        "padded property length",
        0x10,
        "0004 4d515454 05 02 003c 8000 0000",
        E::VariableByteInteger,
    ),
    (
        "MQTT-1.5.4-2",
        "user property with U+0000",
        0x10,
        "0004 4d515454 05 02 003c 07 26 0001 6e 0001 00 0000",
        E::NullCharacter,
    ),
    (
        "4.13.2",
        "three user properties",
        0x10,
        "0004 4d515454 05 02 003c 0f 2600000000 2600000000 2600000000 0000",
        E::TooManyUserProperties,
    ),
];

/// The same in both versions.
const BOTH: &[Case] = &[
    ("MQTT-3.1.0-2", "second CONNECT", 0x10, "0004 4d515454 04 02 003c 0000", E::SecondConnect),
    ("2.2.1", "type 0", 0x00, "", E::PacketType(0)),
    ("MQTT-2.2.2-2", "CONNACK with flags", 0x21, "0000", E::FixedHeaderFlags),
    ("MQTT-2.2.2-2", "PUBACK with flags", 0x42, "0001", E::FixedHeaderFlags),
    ("MQTT-2.2.2-2", "PUBREL without its flags", 0x60, "0001", E::FixedHeaderFlags),
    ("MQTT-2.2.2-2", "PUBREL with all flags", 0x6f, "0001", E::FixedHeaderFlags),
    ("MQTT-2.2.2-2", "SUBSCRIBE without its flags", 0x80, "0001 0001 74 00", E::FixedHeaderFlags),
    ("MQTT-2.2.2-2", "UNSUBSCRIBE without its flags", 0xa0, "0001 0001 74", E::FixedHeaderFlags),
    ("MQTT-2.2.2-2", "PINGREQ with flags", 0xc1, "", E::FixedHeaderFlags),
    ("MQTT-2.2.2-2", "DISCONNECT with flags", 0xe4, "", E::FixedHeaderFlags),
    ("4.13.1", "PINGREQ with a body", 0xc0, "00", E::TrailingBytes),
    ("4.13.1", "PINGRESP with a body", 0xd0, "00", E::TrailingBytes),
    ("MQTT-3.3.1-4", "PUBLISH at QoS 3", 0x36, "0001 74 0001", E::Qos),
    ("MQTT-3.3.1-2", "DUP at QoS 0", 0x38, "0001 74 00", E::DupOnQos0),
    ("MQTT-3.3.2-2", "PUBLISH to #", 0x30, "0003 612f23 00", E::TopicWildcard),
    ("MQTT-3.3.2-2", "PUBLISH to +", 0x30, "0001 2b 00", E::TopicWildcard),
    ("MQTT-4.7.3-1", "empty topic", 0x30, "0000 00", E::EmptyTopic),
    ("MQTT-1.5.3-2", "topic with U+0000", 0x30, "0002 6100 00", E::NullCharacter),
    ("MQTT-1.5.4-1", "topic with a surrogate", 0x30, "0003 eda080 00", E::Utf8),
    ("MQTT-1.5.4-1", "overlong U+0000", 0x30, "0002 c080 00", E::Utf8),
    ("MQTT-2.3.1-1", "PUBLISH with id 0", 0x32, "0001 74 0000 00", E::PacketIdZero),
    ("4.13.1", "PUBLISH without id", 0x32, "0001 74", E::Truncated),
    ("4.13.1", "topic past the end", 0x30, "0005 74", E::Truncated),
    ("MQTT-2.3.1-1", "PUBACK with id 0", 0x40, "0000", E::PacketIdZero),
    ("MQTT-2.3.1-1", "PUBREL with id 0", 0x62, "0000", E::PacketIdZero),
    ("4.13.1", "PUBACK cut short", 0x40, "00", E::Truncated),
    ("MQTT-2.3.1-1", "SUBSCRIBE with id 0", 0x82, "0000 0001 74 00", E::PacketIdZero),
    ("MQTT-2.3.1-1", "UNSUBSCRIBE with id 0", 0xa2, "0000 0001 74", E::PacketIdZero),
    ("3.2.2.1", "reserved CONNACK flags", 0x20, "0200 00", E::ConnAckFlags),
];

const V311: &[Case] = &[
    ("2.2.1", "AUTH", 0xf0, "", E::PacketType(15)),
    ("MQTT-3.8.3-3", "SUBSCRIBE without filter", 0x82, "0001", E::EmptyPayload),
    ("MQTT-3.10.3-2", "UNSUBSCRIBE without filter", 0xa2, "0001", E::EmptyPayload),
    ("MQTT-4.7.3-1", "SUBSCRIBE to an empty filter", 0x82, "0001 0000 00", E::EmptyFilter),
    ("MQTT-4.7.3-1", "UNSUBSCRIBE from an empty filter", 0xa2, "0001 0000", E::EmptyFilter),
    ("MQTT-3-8.3-4", "options of 5", 0x82, "0001 0001 74 04", E::SubscriptionOptions),
    ("MQTT-3-8.3-4", "subscription at QoS 3", 0x82, "0001 0001 74 03", E::SubscriptionQos),
    ("4.13.1", "filter without QoS", 0x82, "0001 0001 74", E::Truncated),
    ("4.13.2", "three filters", 0xa2, "0001 000174 000174 000174", E::TooManyFilters),
    ("4.13.1", "PUBACK with a reason", 0x40, "0001 00", E::TrailingBytes),
    ("4.13.1", "UNSUBACK with a code", 0xb0, "0001 00", E::TrailingBytes),
    ("4.13.1", "DISCONNECT with a reason", 0xe0, "00", E::TrailingBytes),
    ("3.2.2.3", "reserved return code", 0x20, "0006", E::ReasonCode(6)),
    ("MQTT-3.2.2-4", "session present in a refusal", 0x20, "0105", E::SessionPresentOnRefusal),
    ("MQTT-3.9.3-2", "SUBACK code 3", 0x90, "0001 03", E::ReasonCode(3)),
    ("MQTT-3.9.3-2", "SUBACK code of 5", 0x90, "0001 87", E::ReasonCode(0x87)),
    ("MQTT-3.8.3-3", "SUBACK without code", 0x90, "0001", E::EmptyPayload),
];

const V5: &[Case] = &[
    ("MQTT-2.1.3-1", "AUTH with flags", 0xf1, "", E::FixedHeaderFlags),
    ("MQTT-3.8.3-2", "SUBSCRIBE without filter", 0x82, "0001 00", E::EmptyPayload),
    ("MQTT-3.10.3-2", "UNSUBSCRIBE without filter", 0xa2, "0001 00", E::EmptyPayload),
    ("MQTT-4.7.3-1", "SUBSCRIBE to an empty filter", 0x82, "0001 00 0000 00", E::EmptyFilter),
    ("MQTT-3.8.3-5", "reserved option bits", 0x82, "0001 00 0001 74 40", E::SubscriptionOptions),
    ("3.8.3.1", "subscription at QoS 3", 0x82, "0001 00 0001 74 03", E::SubscriptionQos),
    ("3.8.3.1", "retain handling 3", 0x82, "0001 00 0001 74 30", E::RetainHandling),
    ("MQTT-3.8.3-4", "no local, shared", 0x82, "0001 00 000a 2473686172652f672f74 04", E::NoLocalOnShared),
    (
        "2.2.2.2",
        "subscription identifier 0",
        0x82,
        "0001 02 0b00 0001 74 00",
        E::PropertyValue(PropertyId::SubscriptionIdentifier),
    ),
    (
        "2.2.2.2",
        "two identifiers",
        0x82,
        "0001 04 0b01 0b02 0001 74 00",
        E::DuplicateProperty(PropertyId::SubscriptionIdentifier),
    ),
    (
        "2.2.2.2",
        "identifier in UNSUBSCRIBE",
        0xa2,
        "0001 02 0b01 0001 74",
        E::PropertyNotAllowed(PropertyId::SubscriptionIdentifier),
    ),
    (
        "MQTT-1.5.5-1",
        "identifier of five bytes",
        0x82,
        "0001 06 0bffffffff7f 0001 74 00",
        E::VariableByteInteger,
    ),
    ("MQTT-3.3.2-8", "topic alias 0", 0x30, "0001 74 03 230000", E::PropertyValue(PropertyId::TopicAlias)),
    (
        "2.2.2.2",
        "alias twice",
        0x30,
        "0001 74 06 230001 230001",
        E::DuplicateProperty(PropertyId::TopicAlias),
    ),
    (
        "2.2.2.2",
        "payload format 2",
        0x30,
        "0001 74 02 0102",
        E::PropertyValue(PropertyId::PayloadFormatIndicator),
    ),
    (
        "2.2.2.2",
        "content type twice",
        0x30,
        "0001 74 06 030000 030000",
        E::DuplicateProperty(PropertyId::ContentType),
    ),
    (
        "2.2.2.2",
        "reason string in PUBLISH",
        0x30,
        "0001 74 03 1f0000",
        E::PropertyNotAllowed(PropertyId::ReasonString),
    ),
    (
        "2.2.2.2",
        "identifier 0 in PUBLISH",
        0x30,
        "0001 74 02 0b00",
        E::PropertyValue(PropertyId::SubscriptionIdentifier),
    ),
    ("4.13.2", "three identifiers in PUBLISH", 0x30, "0001 74 06 0b01 0b02 0b03", E::TooManySubscriptionIds),
    ("MQTT-3.3.2-14", "response topic with wildcard", 0x30, "0001 74 04 080001 23", E::ResponseTopicWildcard),
    ("MQTT-4.7.3-1", "empty response topic", 0x30, "0001 74 03 080000", E::EmptyTopic),
    ("4.13.1", "PUBLISH without property length", 0x30, "0001 74", E::Truncated),
    ("MQTT-3.4.2-1", "PUBACK with PUBREL's reason", 0x40, "0001 92", E::ReasonCode(0x92)),
    ("MQTT-3.5.2-1", "PUBREC with an unknown reason", 0x50, "0001 7f", E::ReasonCode(0x7f)),
    ("MQTT-3.6.2-1", "PUBREL with PUBACK's reason", 0x62, "0001 10", E::ReasonCode(0x10)),
    ("MQTT-3.7.2-1", "PUBCOMP with PUBACK's reason", 0x70, "0001 87", E::ReasonCode(0x87)),
    ("MQTT-3.14.2-1", "DISCONNECT with CONNACK's reason", 0xe0, "86", E::ReasonCode(0x86)),
    ("MQTT-3.15.2-1", "AUTH with another reason", 0xf0, "87 00", E::ReasonCode(0x87)),
    ("MQTT-3.2.2-8", "CONNACK with DISCONNECT's reason", 0x20, "00 8e 00", E::ReasonCode(0x8e)),
    ("MQTT-3.9.3-2", "SUBACK with UNSUBACK's code", 0x90, "0001 00 11", E::ReasonCode(0x11)),
    ("MQTT-3.11.3-2", "UNSUBACK with SUBACK's code", 0xb0, "0001 00 01", E::ReasonCode(1)),
    ("MQTT-3.10.3-2", "UNSUBACK without code", 0xb0, "0001 00", E::EmptyPayload),
    ("4.13.1", "bytes after PUBACK's properties", 0x40, "0001 00 00 00", E::TrailingBytes),
    ("4.13.1", "bytes after DISCONNECT's properties", 0xe0, "00 00 00", E::TrailingBytes),
    ("MQTT-3.2.2-6", "session present in a refusal", 0x20, "01 87 00", E::SessionPresentOnRefusal),
    ("2.2.2.2", "maximum QoS 2", 0x20, "00 00 02 2402", E::PropertyValue(PropertyId::MaximumQos)),
    ("2.2.2.2", "retain available 2", 0x20, "00 00 02 2502", E::PropertyValue(PropertyId::RetainAvailable)),
    ("MQTT-4.12.0-5", "CONNACK with data alone", 0x20, "00 00 03 160000", E::NoAuthenticationMethod),
    ("MQTT-4.12.0-5", "AUTH without method", 0xf0, "18 00", E::NoAuthenticationMethod),
    ("MQTT-4.12.0-5", "AUTH with data alone", 0xf0, "18 03 160000", E::NoAuthenticationMethod),
    ("4.13.1", "AUTH without property length", 0xf0, "18", E::Truncated),
];

fn check(cases: &[Case], decoder: &Decoder) {
    for (rule, what, first, body, error) in cases {
        let got = decoder.clone().decode(&mut frame(*first, body));
        assert_eq!(got, Err(*error), "{rule}: {what}");
        assert!(error.rule().contains(rule), "{what}: {} does not cite {rule}", error.rule());
        let code = error.reason_code();
        let sendable = [PacketType::ConnAck, PacketType::Disconnect].map(|kind| code.permitted_in(kind));
        assert!(sendable.contains(&true), "{what}: {code} can be sent in neither answer");
    }
}

#[test]
fn connects_that_must_be_refused() {
    check(CONNECT, &Decoder::server(LIMITS));
}

#[test]
fn packets_that_must_be_refused_in_3_1_1() {
    let decoder = Decoder::established(Version::V311, LIMITS);
    check(BOTH, &decoder);
    check(V311, &decoder);
}

#[test]
fn packets_that_must_be_refused_in_5() {
    let decoder = Decoder::established(Version::V5, LIMITS);
    check(BOTH, &decoder);
    check(V5, &decoder);
}

#[test]
fn every_error_is_provoked_by_a_rule() {
    let name = |error: &DecodeError| {
        format!("{error:?}").split(|c: char| !c.is_alphanumeric()).next().map(str::to_owned).expect("a name")
    };
    let provoked: BTreeSet<String> =
        [CONNECT, BOTH, V311, V5].concat().iter().map(|case| name(&case.4)).collect();
    // PacketTooLarge has a test of its own.
    assert_eq!(provoked.len() + 1, 38, "{provoked:#?}");
}

#[test]
fn reason_codes_of_errors_are_the_standards() {
    use ReasonCode as R;
    for (error, code) in [
        (E::Truncated, R::MalformedPacket),
        (E::FixedHeaderFlags, R::MalformedPacket),
        (E::TopicWildcard, R::MalformedPacket),
        (E::UnknownProperty(0), R::MalformedPacket),
        (E::PropertyNotAllowed(PropertyId::TopicAlias), R::MalformedPacket),
        (E::DuplicateProperty(PropertyId::TopicAlias), R::ProtocolError),
        (E::PropertyValue(PropertyId::ReceiveMaximum), R::ProtocolError),
        (E::PropertyValue(PropertyId::TopicAlias), R::TopicAliasInvalid),
        (E::EmptyTopic, R::ProtocolError),
        (E::EmptyPayload, R::ProtocolError),
        (E::NoLocalOnShared, R::ProtocolError),
        (E::UnsupportedVersion { level: 3 }, R::UnsupportedProtocolVersion),
        (E::ProtocolName, R::UnsupportedProtocolVersion),
        (E::PacketTooLarge { size: 2, limit: 1 }, R::PacketTooLarge),
        (E::TooManyUserProperties, R::QuotaExceeded),
    ] {
        assert_eq!(error.reason_code(), code, "{error}");
    }
}

#[test]
fn the_fixed_header_is_refused_before_the_body_is_there() {
    let peek = |bytes: &str| peek_frame(&hex(bytes), &LIMITS);
    assert_eq!(peek(""), Ok(None));
    assert_eq!(peek("30"), Ok(None));
    assert_eq!(peek("30 80"), Ok(None));
    let info = FrameInfo { packet_type: PacketType::Publish, flags: 0xb, header_len: 3, total_len: 131 };
    assert_eq!(peek("3b 8001"), Ok(Some(info)));
    assert_eq!(peek("00"), Err(E::PacketType(0)));
    assert_eq!(peek("80"), Err(E::FixedHeaderFlags));
    // 5: [MQTT-1.5.5-1] padded, and five bytes long.
    assert_eq!(peek("30 8000"), Err(E::VariableByteInteger));
    assert_eq!(peek("30 ff8000"), Err(E::VariableByteInteger));
    assert_eq!(peek("30 80808000"), Err(E::VariableByteInteger));
    assert_eq!(peek("30 ffffff"), Ok(None));
    assert_eq!(peek("30 ffffffff"), Err(E::VariableByteInteger));
    assert_eq!(peek("30 ffffff7f"), Err(E::PacketTooLarge { size: 0x0fff_ffff + 5, limit: 300 }));
    // The role is judged by the first byte alone.
    assert_eq!(Decoder::server(LIMITS).decode(&mut BytesMut::from(&[0xc0][..])), Err(E::FirstNotConnect));
}

#[test]
fn the_version_is_known_when_connect_is_refused_later() {
    for (level, version) in [("04", Version::V311), ("05", Version::V5)] {
        let mut decoder = Decoder::server(LIMITS);
        let refused = decoder.decode(&mut frame(0x10, &format!("0004 4d515454 {level} 03 003c 0000")));
        assert_eq!(refused, Err(E::ConnectReservedFlag));
        assert_eq!(decoder.version(), Some(version));
    }
}

#[test]
fn a_frame_must_be_one_packet() {
    let decode = |bytes: &str| Decoder::established(Version::V5, LIMITS).decode_frame(hex(bytes).into());
    assert_eq!(decode("c000"), Ok(Packet::PingReq));
    assert_eq!(decode("c0"), Err(E::Truncated));
    assert_eq!(decode("3004 0001"), Err(E::Truncated));
    assert_eq!(decode("c000 c000"), Err(E::TrailingBytes));
}

#[test]
fn packets_that_must_be_taken() {
    let v5 = |first, body| Decoder::established(Version::V5, LIMITS).decode(&mut frame(first, body));
    let taken = |first, body| v5(first, body).expect("valid").expect("whole");
    // 5: an alias stands in for the topic.
    let Packet::Publish(publish) = taken(0x30, "0000 03 230005") else { panic!("a PUBLISH") };
    assert_eq!(publish.properties.expect("an alias").topic_alias.map(|alias| alias.get()), Some(5));
    // 5: [MQTT-3.3.4-4] several identifiers; [MQTT-3.3.2-18] user properties in order, names repeated.
    let body = "0001 74 12 0b07 26 0001 6e 0001 32 0b01 26 0001 6e 0001 31";
    let Packet::Publish(publish) = taken(0x30, body) else { panic!("a PUBLISH") };
    let properties = publish.properties.expect("properties");
    assert_eq!(properties.subscription_ids.iter().map(|id| id.get()).collect::<Vec<_>>(), [7, 1]);
    assert_eq!(properties.user_properties, [("n".into(), "2".into()), ("n".into(), "1".into())]);
    // 3.1.1: [MQTT-1.5.3-3]; 5: [MQTT-1.5.4-3] U+FEFF stays.
    let Packet::Publish(publish) = taken(0x30, "0004 efbbbf74 00") else { panic!("a PUBLISH") };
    assert_eq!(publish.topic, "\u{feff}t");
    // The long form of an acknowledgement says the same as the short one.
    assert_eq!(v5(0x40, "0001 00 00"), v5(0x40, "0001"));
    assert_eq!(v5(0x40, "0001 00"), v5(0x40, "0001"));
    assert_eq!(v5(0xe0, "00 00"), v5(0xe0, ""));
    // 5: section 3.15.2.1.
    assert_eq!(v5(0xf0, ""), Ok(Some(Packet::Auth(Auth { reason: ReasonCode::Success, properties: None }))));
    // 5 allows a password without a user name.
    let mut connect = frame(0x10, "0004 4d515454 05 42 003c 00 0000 0001 70");
    let Ok(Some(Packet::Connect(connect))) = Decoder::server(LIMITS).decode(&mut connect) else {
        panic!("a CONNECT")
    };
    assert_eq!((connect.username, connect.password.as_deref()), (None, Some(&b"p"[..])));
}

#[test]
fn there_is_a_name_and_a_packet_for_every_reason_code() {
    for value in 0..=u8::MAX {
        let Some(code) = ReasonCode::from_u8(value) else { continue };
        assert_eq!(code as u8, value);
        assert!(!code.name().is_empty());
    }
    assert_eq!(ReasonCode::ALL.len(), 43);
    assert!(ReasonCode::ALL.is_sorted());
}
