//! In what the other codecs differ from ours, and the rule that ours goes by. Each line is met by the test.

use stafett::mqtt::codec::{Connect, Packet, Version};

/// Whose codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    Rmqtt,
    Rumqttc,
}

/// A codec in one of the versions.
pub(super) type Codec = (Peer, Version);

const R3: Codec = (Peer::Rmqtt, Version::V311);
const R5: Codec = (Peer::Rmqtt, Version::V5);
const U3: Codec = (Peer::Rumqttc, Version::V311);
const U5: Codec = (Peer::Rumqttc, Version::V5);

/// What we refuse and others take: our error, its rule, who takes it.
pub(super) const REFUSED: &[(&str, &str, &[Codec])] = &[
    ("ConnAckFlags", "3.1.1: section 3.2.2.1; 5: [MQTT-3.2.2-1]", &[U3, U5]),
    ("ConnectReservedFlag", "[MQTT-3.1.2-3]", &[U3, U5]),
    ("DupOnQos0", "[MQTT-3.3.1-2]", &[R3, R5, U3, U5]),
    ("DuplicateProperty", "5: section 2.2.2.2", &[U5]),
    ("EmptyFilter", "[MQTT-4.7.3-1]", &[R5, U3, U5]),
    ("EmptyPayload", "[MQTT-3.10.3-2]; 3.1.1: [MQTT-3.8.3-3]; 5: [MQTT-3.8.3-2]", &[R3, R5, U3, U5]),
    ("EmptyTopic", "[MQTT-4.7.3-1]", &[R5, U3, U5]),
    ("FixedHeaderFlags", "3.1.1: [MQTT-2.2.2-2]; 5: [MQTT-2.1.3-1]", &[U3, U5]),
    ("NoAuthenticationMethod", "5: section 3.1.2.11.10, [MQTT-4.12.0-5]", &[R5, U5]),
    ("NoLocalOnShared", "5: [MQTT-3.8.3-4]", &[R5, U5]),
    ("NullCharacter", "3.1.1: [MQTT-1.5.3-2]; 5: [MQTT-1.5.4-2]", &[R3, R5, U3, U5]),
    ("PasswordWithoutUserName", "3.1.1: [MQTT-3.1.2-22]", &[R3, U3]),
    ("PropertyValue", "5: section 2.2.2.2", &[U5]),
    ("PropertyValue(TopicAlias)", "5: [MQTT-3.3.2-8]", &[U5]),
    (
        "ReasonCode",
        "3.1.1: section 3.2.2.3, [MQTT-3.9.3-2]; 5: [MQTT-3.2.2-8], [MQTT-3.4.2-1], [MQTT-3.5.2-1], [MQTT-3.6.2-1], \
         [MQTT-3.7.2-1], [MQTT-3.9.3-2], [MQTT-3.11.3-2], [MQTT-3.14.2-1], [MQTT-3.15.2-1]",
        &[R3],
    ),
    ("ResponseTopicWildcard", "5: [MQTT-3.3.2-14]", &[R5, U5]),
    ("SessionPresentOnRefusal", "3.1.1: [MQTT-3.2.2-4]; 5: [MQTT-3.2.2-6]", &[R3, R5, U3, U5]),
    ("SubscriptionOptions", "3.1.1: [MQTT-3-8.3-4]; 5: [MQTT-3.8.3-5]", &[R3, U3, U5]),
    ("TopicWildcard", "[MQTT-3.3.2-2]; will, 3.1.1: [MQTT-4.7.1-1]; 5: [MQTT-4.7.0-1]", &[R3, R5, U3, U5]),
    ("TrailingBytes", "3.1.1: [MQTT-4.8.0-1]; 5: section 4.13.1", &[R3, R5, U3, U5]),
    ("Truncated", "3.1.1: [MQTT-4.8.0-1]; 5: section 4.13.1", &[R5, U5]),
    ("UnknownProperty", "5: section 2.2.2.2", &[U5]),
    ("UnsupportedVersion", "[MQTT-3.1.2-2]", &[R3]),
    ("VariableByteInteger", "3.1.1: section 2.2.3; 5: [MQTT-1.5.5-1]", &[R5, U5]),
    ("WillFlags", "3.1.1: [MQTT-3.1.2-11]; 5: [MQTT-3.1.2-11], [MQTT-3.1.2-13]", &[R5]),
];

/// What we take and another refuses, or takes for something else.
pub(super) struct Taken {
    pub(super) what: &'static str,
    pub(super) rule: &'static str,
    pub(super) codecs: &'static [Codec],
    pub(super) is: fn(&Packet) -> bool,
}

pub(super) const TAKEN: &[Taken] = &[
    Taken {
        what: "a client id of no bytes without a clean session is answered, and so it is read",
        rule: "3.1.1: [MQTT-3.1.3-8]; 5: [MQTT-3.1.3-6]",
        codecs: &[R3, R5],
        is: |packet| matches!(packet, Packet::Connect(c) if c.client_id.is_empty() && !c.clean_start),
    },
    Taken {
        what: "no time at all is a time to be good for",
        rule: "5: section 3.3.2.3.3, section 3.1.3.2.4",
        codecs: &[R5],
        is: |packet| match packet {
            Packet::Publish(publish) => {
                publish.properties.as_ref().is_some_and(|set| set.message_expiry == Some(0))
            }
            Packet::Connect(connect) => {
                connect.will.as_ref().is_some_and(|will| will.properties.message_expiry == Some(0))
            }
            _ => false,
        },
    },
    Taken {
        what: "user name and password come as their flags say, of any length; a password is bytes",
        rule: "3.1.1: [MQTT-3.1.2-19], [MQTT-3.1.2-21]; 5: [MQTT-3.1.2-17], [MQTT-3.1.2-19], section 3.1.3.6",
        codecs: &[U3, U5],
        is: |packet| matches!(packet, Packet::Connect(connect) if is_no_text_login(connect)),
    },
    Taken {
        what: "AUTH",
        rule: "5: [MQTT-3.15.2-1], section 3.15.2.1",
        codecs: &[U5],
        is: |packet| matches!(packet, Packet::Auth(_)),
    },
    Taken {
        what: "a DISCONNECT may leave its properties out",
        rule: "5: section 3.14.2.2.1",
        codecs: &[U5],
        is: |packet| matches!(packet, Packet::Disconnect(disconnect) if disconnect.properties.is_none()),
    },
];

/// Other than a user name and a password, both text and not empty, or neither.
fn is_no_text_login(connect: &Connect) -> bool {
    match (&connect.username, &connect.password) {
        (Some(name), Some(word)) => name.is_empty() || word.is_empty() || std::str::from_utf8(word).is_err(),
        (None, None) => false,
        _ => true,
    }
}
