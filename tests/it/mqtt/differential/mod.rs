//! Other codecs' opinions of the same bytes: rmqtt-codec's and rumqttc's.
//!
//! The bytes are packets of the codec's property tests, what the cases send, and seeded mutations of both. What we take,
//! the others take for the same, and what we refuse, they refuse: but for the tables of [`known`], each of whose lines
//! names the rule that says so, and is met.

mod generated;
mod known;
mod rmqtt;
mod rumqttc;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::panic::catch_unwind;

use rustc_hash::FxHasher;
use stafett::mqtt::codec::*;

use self::known::{Codec, Peer, REFUSED, TAKEN};
use super::fuzz::streams;
use super::{BOTH, V5};

/// Mutations of each packet.
const MUTATIONS: usize = 30;

/// What another codec makes of a frame; none when it refuses it.
type Theirs = Option<Packet>;

fn code(number: u8) -> ReasonCode {
    ReasonCode::from_u8(number).unwrap()
}

fn utf8(is: bool) -> PayloadFormat {
    if is { PayloadFormat::Utf8 } else { PayloadFormat::Bytes }
}

/// A set as packets hold it: none when it is empty.
fn set<T: Default + PartialEq>(set: T) -> Option<Box<T>> {
    (set != T::default()).then(|| Box::new(set))
}

/// Without what says what its lack says, too.
fn plain(mut packet: Packet) -> Packet {
    match &mut packet {
        Packet::Connect(connect) => {
            let set = &mut connect.properties;
            set.session_expiry.take_if(|seconds| *seconds == 0);
            set.topic_alias_maximum.take_if(|maximum| *maximum == 0);
            set.request_response_information.take_if(|asked| !*asked);
            set.request_problem_information.take_if(|asked| *asked);
        }
        Packet::ConnAck(connack) => {
            let set = &mut connack.properties;
            set.receive_maximum.take_if(|maximum| maximum.get() == u16::MAX);
            set.topic_alias_maximum.take_if(|maximum| *maximum == 0);
            set.retain_available.take_if(|available| *available);
            set.wildcard_subscription_available.take_if(|available| *available);
            set.subscription_ids_available.take_if(|available| *available);
            set.shared_subscription_available.take_if(|available| *available);
        }
        Packet::Publish(publish) => {
            if let Some(mut properties) = publish.properties.take() {
                properties.payload_format.take_if(|format| *format == PayloadFormat::Bytes);
                publish.properties = set(*properties);
            }
        }
        _ => {}
    }
    packet
}

/// `[first byte][remaining length][body]`, as many bytes as it says.
fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    let mut length = body.len();
    while length > 0x7f {
        frame.push(length as u8 | 0x80);
        length >>= 7;
    }
    frame.push(length as u8);
    frame.extend_from_slice(body);
    frame
}

/// Whole packets, and no second CONNECT.
fn corpus(version: Version) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for packet in generated::packets(version, 600) {
        let mut bytes = bytes::BytesMut::new();
        packet.encode(version, &mut bytes).unwrap();
        frames.push(bytes.to_vec());
    }
    let cases = streams().into_iter().filter(|(of, _)| *of == version);
    let mut seen = BTreeSet::new();
    for (_, bytes) in cases {
        let mut rest = &bytes[..];
        while let Ok(Some(info)) = peek_frame(rest, &Limits::default()) {
            let Some((frame, after)) = rest.split_at_checked(info.total_len) else { break };
            rest = after;
            if seen.insert(frame.to_vec()) {
                frames.push(frame.to_vec());
            }
        }
    }
    frames
}

/// One of them, its body broken and its length made to fit.
fn mutated(frame: &[u8], mutator: &mut Mutator) -> Vec<u8> {
    let header = peek_frame(frame, &Limits::default()).unwrap().unwrap().header_len;
    let mut body = frame[header..].to_vec();
    for _ in 0..=mutator.below(3) {
        mutator.mutate(&mut body);
    }
    let flip = if mutator.below(8) == 0 { 1 << mutator.below(8) } else { 0 };
    framed(frame[0] ^ flip, &body)
}

/// Whether it is a CONNECT of the other version that we serve.
fn is_of_the_other(frame: &[u8], version: Version) -> bool {
    let name = frame.windows(7).position(|bytes| bytes.starts_with(b"\0\x04MQTT"));
    let level = name.and_then(|at| frame.get(at + 6));
    frame[0] >> 4 == 1 && BOTH.iter().any(|other| *other != version && level == Some(&other.level()))
}

fn ours(frame: &[u8], version: Version) -> Result<Packet, DecodeError> {
    let limits = Limits {
        max_user_properties: 1 << 16,
        max_subscription_ids: 1 << 16,
        max_filters_per_packet: 1 << 16,
        ..Limits::default()
    };
    let mut decoder = match frame[0] >> 4 {
        1 => Decoder::server(limits),
        _ => Decoder::established(version, limits),
    };
    let packet = decoder.decode(&mut frame.into())?.expect("a whole packet");
    Ok(plain(packet))
}

/// What another codec makes of it; a panic there is a refusal.
fn theirs(peer: Peer, frame: &[u8], version: Version) -> Theirs {
    let decode = match peer {
        Peer::Rmqtt => rmqtt::decode,
        Peer::Rumqttc => rumqttc::decode,
    };
    catch_unwind(|| decode(frame, version)).ok().flatten().map(plain)
}

/// The name of an error as [`REFUSED`] has it.
fn name(error: &DecodeError) -> String {
    let name = format!("{error:?}");
    match name.split(['(', ' ']).next() {
        Some(variant) if *error != DecodeError::PropertyValue(PropertyId::TopicAlias) => variant.to_owned(),
        _ => name,
    }
}

/// A seed that is the frame's own, so that no frame's mutations depend on the others.
fn seed(frame: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    frame.hash(&mut hasher);
    hasher.finish().max(1)
}

/// The line of a table that knows of a difference: the table and the place in it.
fn known(
    codec: Codec,
    ours: &Result<Packet, DecodeError>,
    theirs: &Theirs,
) -> Result<Option<(bool, usize)>, ()> {
    let found = match (ours, theirs) {
        (Err(error), Some(_)) => REFUSED
            .iter()
            .position(|(of, rule, codecs)| {
                *of == name(error) && *rule == error.rule() && codecs.contains(&codec)
            })
            .map(|line| (false, line)),
        (Ok(ours), theirs) if theirs.as_ref() != Some(ours) => TAKEN
            .iter()
            .position(|taken| taken.codecs.contains(&codec) && (taken.is)(ours))
            .map(|line| (true, line)),
        _ => return Ok(None),
    };
    found.map(Some).ok_or(())
}

#[test]
fn others_decode_the_same() {
    let (mut agreed, mut met, mut unknown) = ([0; 2], BTreeSet::new(), BTreeMap::new());
    for version in BOTH {
        for whole in corpus(version) {
            let mut mutator = Mutator::seeded(seed(&whole));
            for round in 0..=MUTATIONS {
                let frame = if round == 0 { whole.clone() } else { mutated(&whole, &mut mutator) };
                if is_of_the_other(&frame, version) {
                    continue;
                }
                let ours = ours(&frame, version);
                for peer in [Peer::Rmqtt, Peer::Rumqttc] {
                    let theirs = theirs(peer, &frame, version);
                    match known((peer, version), &ours, &theirs) {
                        Ok(Some((taken, line))) => drop(met.insert((taken, line, (peer, version == V5)))),
                        Ok(None) => agreed[usize::from(ours.is_ok())] += 1,
                        Err(()) => {
                            let what = format!("{peer:?}, {version:?}: {frame:02x?}\n{ours:?}\n{theirs:?}");
                            let kind = ours.as_ref().map(Packet::packet_type).map_err(name);
                            unknown.entry(format!("{peer:?} {version:?} {kind:?}")).or_insert(what);
                        }
                    }
                }
            }
        }
    }
    assert!(
        unknown.is_empty(),
        "no table knows:\n{}",
        unknown.into_values().collect::<Vec<_>>().join("\n\n")
    );
    let refused = REFUSED.iter().enumerate().map(|(line, (what, _, codecs))| (false, line, *what, *codecs));
    let taken = TAKEN.iter().enumerate().map(|(line, taken)| (true, line, taken.what, taken.codecs));
    for (table, line, what, codecs) in refused.chain(taken) {
        for (peer, version) in codecs {
            let seen = met.contains(&(table, line, (*peer, *version == V5)));
            assert!(seen, "{what}: {peer:?} no longer differs in {version:?}");
        }
    }
    for taken in TAKEN {
        assert!(taken.rule.contains("section") || taken.rule.contains("[MQTT-"), "{}", taken.what);
    }
    // Were nearly all refused, or nearly all taken, it would say little.
    assert!(agreed.iter().all(|count| *count > 10_000), "{agreed:?}");
}
