//! Another codec's opinion: what we encode, rumqttc decodes, encodes again, and we read what we wrote.

use bytes::BytesMut;
use proptest::prelude::*;
use rumqttc::{mqttbytes::v4, v5::mqttbytes::v5};

use super::{super::*, decoder_for, encoded, packets};

/// What rumqttc 0.25 can hold. It has one kind of login and no AUTH; DISCONNECT of 5.0 it refuses without a
/// property length and writes back changed.
fn known_there(packet: &Packet, version: Version) -> bool {
    match packet {
        Packet::Connect(connect) => match (&connect.username, &connect.password) {
            (Some(name), Some(password)) => {
                !name.is_empty() && !password.is_empty() && std::str::from_utf8(password).is_ok()
            }
            (None, None) => true,
            _ => false,
        },
        // It lacks 0x8c.
        Packet::ConnAck(connack) => connack.reason != ReasonCode::BadAuthenticationMethod,
        // It counts each identifier a byte too long and stops before the last of several.
        Packet::Publish(Publish { properties: Some(set), .. }) => set.subscription_ids.len() < 2,
        Packet::Auth(_) => false,
        Packet::Disconnect(_) => version == Version::V311,
        _ => true,
    }
}

fn through_rumqttc(wire: &mut BytesMut, version: Version) -> BytesMut {
    let mut back = BytesMut::new();
    match version {
        Version::V311 => {
            let packet = v4::Packet::read(wire, 1 << 20).expect("valid there");
            packet.write(&mut back, 1 << 20).expect("valid there");
        }
        Version::V5 => {
            let packet = v5::Packet::read(wire, None).expect("valid there");
            packet.write(&mut back, None).expect("valid there");
        }
    }
    back
}

proptest! {
    #[test]
    fn packets_survive_the_way_through_rumqttc((version, packet) in packets::versioned()) {
        if !known_there(&packet, version) {
            return Ok(());
        }
        let mut back = through_rumqttc(&mut encoded(&packet, version), version);
        prop_assert_eq!(decoder_for(&packet, version).decode(&mut back), Ok(Some(packet)));
        prop_assert!(back.is_empty());
    }
}
