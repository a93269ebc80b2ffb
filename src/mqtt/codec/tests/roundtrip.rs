//! What is encoded comes back, however it is cut up on the way.

use std::num::NonZeroU16;

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use proptest::{collection::vec, prelude::*};

use super::{super::*, decoder_for, encoded, packets};

proptest! {
    #[test]
    fn decoding_an_encoded_packet_gives_it_back((version, packet) in packets::versioned()) {
        let mut wire = encoded(&packet, version);
        prop_assert_eq!(packet.encoded_len(version), Ok(wire.len()));
        let mut decoder = decoder_for(&packet, version);
        let whole = wire.clone().freeze();
        prop_assert_eq!(decoder.clone().decode_frame(whole), Ok(packet.clone()));
        prop_assert_eq!(decoder.decode(&mut wire), Ok(Some(packet)));
        prop_assert!(wire.is_empty());
        prop_assert_eq!(decoder.version(), Some(version));
    }

    #[test]
    fn a_stream_fed_byte_by_byte_gives_the_same_packets(
        (version, sent) in packets::version().prop_flat_map(|version| {
            let later = packets::packet(version)
                .prop_filter("a second CONNECT is refused", |packet| !matches!(packet, Packet::Connect(_)));
            (Just(version), vec(later, 0..6))
        })
    ) {
        let wire: Vec<u8> = sent.iter().flat_map(|packet| encoded(packet, version)).collect();
        let mut decoder = Decoder::established(version, Limits::default());
        let mut buf = BytesMut::new();
        let mut got = Vec::new();
        for byte in wire {
            buf.extend_from_slice(&[byte]);
            got.extend(decoder.decode(&mut buf).expect("valid"));
        }
        prop_assert_eq!(got, sent);
        prop_assert!(buf.is_empty());
    }

    #[test]
    fn a_packet_cut_short_is_never_taken_for_whole((version, packet) in packets::versioned(), cut in 1_usize..40) {
        let wire = encoded(&packet, version);
        let mut part = BytesMut::from(&wire[..wire.len().saturating_sub(cut)]);
        let before = part.clone();
        prop_assert_eq!(decoder_for(&packet, version).decode(&mut part), Ok(None));
        prop_assert_eq!(part, before);
    }

    #[test]
    fn an_answer_without_diagnostics_is_no_longer_and_still_valid((version, packet) in packets::versioned()) {
        let mut bare = packet.clone();
        bare.omit_diagnostics();
        let mut wire = encoded(&bare, version);
        prop_assert!(wire.len() <= packet.encoded_len(version).expect("valid"));
        prop_assert_eq!(decoder_for(&bare, version).decode(&mut wire), Ok(Some(bare)));
    }

    #[test]
    fn a_borrowed_publish_is_encoded_as_an_owned_one(
        (version, publish) in packets::version().prop_flat_map(|version| (Just(version), packets::publish(version)))
    ) {
        let mut borrowed = BytesMut::new();
        let view = PublishRef::from(&publish);
        prop_assert_eq!(view.encode(version, &mut borrowed), Ok(()));
        prop_assert_eq!(view.encoded_len(version), Ok(borrowed.len()));
        let mut head = BytesMut::new();
        view.encode_head(version, &mut head).unwrap();
        head.extend_from_slice(&publish.payload);
        prop_assert_eq!(&head, &borrowed);
        prop_assert_eq!(borrowed, encoded(&Packet::Publish(publish), version));
    }
}

fn publish(topic: &str, payload: Bytes) -> Publish {
    Publish {
        dup: false,
        qos: Qos::AtMostOnce,
        retain: false,
        topic: topic.into(),
        packet_id: None,
        properties: None,
        payload,
    }
}

#[test]
fn topic_and_payload_are_slices_of_the_buffer() {
    let sent = Packet::Publish(publish("a/b", Bytes::from(vec![7; 4096])));
    let mut wire = encoded(&sent, Version::V5);
    let memory = wire.as_ptr_range();
    let mut decoder = Decoder::established(Version::V5, Limits::default());
    let Ok(Some(Packet::Publish(got))) = decoder.decode(&mut wire) else { panic!("a PUBLISH") };
    assert!(memory.contains(&got.topic.as_ptr()));
    assert!(memory.contains(&got.payload.as_ptr()));
}

#[test]
fn a_plain_packet_is_small() {
    assert!(size_of::<Packet>() <= 96, "{}", size_of::<Packet>());
    assert!(size_of::<Decoder>() <= 40, "{}", size_of::<Decoder>());
}

#[test]
fn a_packet_as_large_as_the_limit_is_taken_and_one_byte_more_is_not() {
    for payload_bytes in [0_usize, 100, 123, 124, 125, 126, 127, 128, 16_000, 16_380, 16_384, 3_000_000] {
        let packet = Packet::Publish(publish("t", Bytes::from(vec![0; payload_bytes])));
        let wire = encoded(&packet, Version::V311);
        let size = wire.len();
        let decode = |max_packet_size| {
            let limits = Limits { max_packet_size, ..Limits::default() };
            Decoder::established(Version::V311, limits).decode(&mut wire.clone())
        };
        let limit = u32::try_from(size).expect("small");
        assert_eq!(decode(limit), Ok(Some(packet)));
        assert_eq!(decode(limit - 1), Err(DecodeError::PacketTooLarge { size, limit: limit - 1 }));
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    use EncodeError as E;
    let id = NonZeroU16::MIN;
    let long = ByteString::from("x".repeat(65_536));
    let auth = Packet::Auth(Auth { reason: ReasonCode::Success, properties: None });
    let connect = |version, username: Option<ByteString>, password: Option<Bytes>| {
        Packet::Connect(Box::new(Connect {
            version,
            clean_start: true,
            keep_alive: 0,
            client_id: ByteString::new(),
            will: None,
            username,
            password,
            properties: ConnectProperties::default(),
        }))
    };
    let connack = |session_present, reason| {
        Packet::ConnAck(Box::new(ConnAck {
            session_present,
            reason,
            properties: ConnAckProperties::default(),
        }))
    };
    let subscribe = |filter: &str, options| {
        let filters = vec![SubscribeFilter { filter: filter.into(), options }];
        Packet::Subscribe(Subscribe { packet_id: id, properties: None, filters })
    };
    let plain = publish("t", Bytes::new());
    let (no_local, both) =
        (SubscribeOptions { no_local: true, ..Default::default() }, [Version::V311, Version::V5]);
    let huge = AckProperties {
        user_properties: vec![("x".repeat(60_000).into(), "y".repeat(60_000).into()); 2_300],
        ..AckProperties::default()
    };
    let cases: &[(&[Version], Packet, E)] = &[
        (&both, Packet::Publish(publish(&long, Bytes::new())), E::FieldTooLong(65_536)),
        (&both, connect(Version::V5, Some(long.clone()), None), E::FieldTooLong(65_536)),
        (&both, connect(Version::V5, None, Some(long.clone().into_bytes())), E::FieldTooLong(65_536)),
        (&both, subscribe(&long, SubscribeOptions::default()), E::FieldTooLong(65_536)),
        (
            &both[1..],
            Packet::PubAck(Ack { properties: Some(Box::new(huge)), ..Ack::new(id, ReasonCode::Success) }),
            E::PacketTooLarge,
        ),
        (&both, Packet::Publish(publish("", Bytes::new())), E::EmptyTopic),
        (&both, subscribe("", SubscribeOptions::default()), E::EmptyTopic),
        (&both, Packet::Publish(Publish { packet_id: Some(id), ..plain.clone() }), E::PacketId),
        (&both, Packet::Publish(Publish { qos: Qos::ExactlyOnce, ..plain.clone() }), E::PacketId),
        (&both, Packet::Publish(Publish { dup: true, ..plain }), E::DupOnQos0),
        (
            &both,
            Packet::Unsubscribe(Unsubscribe { packet_id: id, properties: None, filters: vec![] }),
            E::EmptyPayload,
        ),
        (
            &both,
            Packet::SubAck(SubAck { packet_id: id, properties: None, codes: [].into_iter().collect() }),
            E::EmptyPayload,
        ),
        (&both, connack(true, ReasonCode::NotAuthorized), E::SessionPresentOnRefusal),
        // 3.1.1: [MQTT-3.2.2-6] no return code fits.
        (&both[..1], connack(false, ReasonCode::ProtocolError), E::ReasonCode(ReasonCode::ProtocolError)),
        (&both[1..], connack(false, ReasonCode::GrantedQos1), E::ReasonCode(ReasonCode::GrantedQos1)),
        (&both[..1], connect(Version::V311, None, Some(Bytes::new())), E::NotInVersion),
        (&both[..1], subscribe("t", no_local), E::NotInVersion),
        (&both[..1], Packet::PubAck(Ack::new(id, ReasonCode::QuotaExceeded)), E::NotInVersion),
        (&both[..1], Packet::PubRec(Ack::new(id, ReasonCode::QuotaExceeded)), E::NotInVersion),
        (&both[..1], Packet::Disconnect(Disconnect::new(ReasonCode::DisconnectWithWill)), E::NotInVersion),
        (&both[..1], auth, E::NotInVersion),
        // 5: [MQTT-3.6.2-1].
        (
            &both[1..],
            Packet::PubRel(Ack::new(id, ReasonCode::QuotaExceeded)),
            E::ReasonCode(ReasonCode::QuotaExceeded),
        ),
    ];
    for (versions, packet, error) in cases {
        for &version in *versions {
            let mut out = BytesMut::from("before");
            assert_eq!(
                packet.encode(version, &mut out),
                Err(*error),
                "{version:?} {:?}",
                packet.packet_type()
            );
            assert_eq!(packet.encoded_len(version), Err(*error));
            assert_eq!(&out[..], b"before");
        }
    }
}

#[test]
fn a_payload_over_the_remaining_length_is_refused() {
    const MAX: usize = 0x0fff_ffff;
    // Zeroed, never touched: only counted.
    let payload = vec![0; MAX];
    let len = |version, payload_bytes| {
        PublishRef { topic: "t", payload: &payload[..payload_bytes], ..PublishRef::default() }
            .encoded_len(version)
    };
    assert_eq!(len(Version::V311, MAX - 3), Ok(MAX + 5));
    assert_eq!(len(Version::V311, MAX - 2), Err(EncodeError::PacketTooLarge));
    assert_eq!(len(Version::V5, MAX - 4), Ok(MAX + 5));
    assert_eq!(len(Version::V5, MAX - 3), Err(EncodeError::PacketTooLarge));
}

#[test]
fn reasons_translate_to_3_1_1() {
    let id = NonZeroU16::MIN;
    let wire = |packet: Packet| encoded(&packet, Version::V311).to_vec();
    assert_eq!(wire(Packet::PubAck(Ack::new(id, ReasonCode::NoMatchingSubscribers))), [0x40, 2, 0, 1]);
    assert_eq!(wire(Packet::PubComp(Ack::new(id, ReasonCode::PacketIdentifierNotFound))), [0x70, 2, 0, 1]);
    // 3.1.1: [MQTT-3.9.3-2].
    let codes = [ReasonCode::GrantedQos2, ReasonCode::NotAuthorized, ReasonCode::QuotaExceeded];
    let suback = SubAck { packet_id: id, properties: None, codes: codes.into_iter().collect() };
    assert_eq!(wire(Packet::SubAck(suback)), [0x90, 5, 0, 1, 2, 0x80, 0x80]);
    let connack = |reason| {
        let properties = ConnAckProperties::default();
        wire(Packet::ConnAck(Box::new(ConnAck { session_present: false, reason, properties })))
    };
    for (reason, code) in [
        (ReasonCode::Success, 0),
        (ReasonCode::UnsupportedProtocolVersion, 1),
        (ReasonCode::ClientIdentifierNotValid, 2),
        (ReasonCode::ServerBusy, 3),
        (ReasonCode::BadUserNameOrPassword, 4),
        (ReasonCode::Banned, 5),
    ] {
        assert_eq!(connack(reason), [0x20, 2, 0, code]);
    }
}

#[test]
fn short_forms_are_used_in_5() {
    let id = NonZeroU16::MIN;
    let wire = |packet: Packet| encoded(&packet, Version::V5).to_vec();
    assert_eq!(wire(Packet::PubAck(Ack::new(id, ReasonCode::Success))), [0x40, 2, 0, 1]);
    assert_eq!(wire(Packet::PubRec(Ack::new(id, ReasonCode::NotAuthorized))), [0x50, 3, 0, 1, 0x87]);
    assert_eq!(wire(Packet::Disconnect(Disconnect::new(ReasonCode::Success))), [0xe0, 0]);
    assert_eq!(wire(Packet::Disconnect(Disconnect::new(ReasonCode::SessionTakenOver))), [0xe0, 1, 0x8e]);
    assert_eq!(wire(Packet::Auth(Auth { reason: ReasonCode::Success, properties: None })), [0xf0, 0]);
}
