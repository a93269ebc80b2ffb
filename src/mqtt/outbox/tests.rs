//! From an offer to the bytes on the wire, without a connection.

use std::collections::HashMap;
use std::num::{NonZeroU16, NonZeroU32};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::mqtt::codec::{Decoder, Limits, Packet, Publish, Version};
use crate::mqtt::out::{Out, SHARED_FROM};
use crate::mqtt::state::Window;
use crate::types::{Message, MessageId, TopicName, UnixMillis, clock};

const BOUNDS: Bounds = Bounds { bytes: 1000, messages: 5 };

fn mailbox(version: Version, bounds: Bounds) -> Arc<Mailbox> {
    Mailbox::new(Form { version, max_packet: usize::MAX }, bounds, None, Arc::default())
}

fn message(payload: impl Into<Bytes>) -> Message {
    Message {
        id: MessageId::from_u128(0),
        topic: TopicName::parse("a/b".into()).unwrap(),
        payload: payload.into(),
        qos: Qos::ExactlyOnce,
        retain: false,
        expires_at: None,
        extras: None,
    }
}

fn offer(message: &Message, qos: Qos) -> Offer<'_> {
    Offer { message, qos, retain: false, identifiers: &[], share: None, publisher: None }
}

/// What a connection has taken of a mailbox and sent.
struct Sent {
    frames: Frames,
    window: Window,
    bytes: BytesMut,
    form: Form,
    aliases: Option<Box<Aliases>>,
}

impl Sent {
    fn new(form: Form, max: u16) -> Self {
        Self {
            frames: Frames::default(),
            window: Window::new(max, Vec::new()),
            bytes: BytesMut::new(),
            form,
            aliases: None,
        }
    }

    /// The publishes that leave now.
    fn take(&mut self, mailbox: &Mailbox) -> Vec<Publish> {
        let mut out = Out::default();
        mailbox.take(&mut self.frames, true);
        self.frames.send(self.form, &mut self.window, self.aliases.as_deref_mut(), &mut out);
        let mut socket = Vec::new();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        while !out.is_empty() {
            assert!(out.poll_write(&mut cx, &mut socket).is_ready());
        }
        self.bytes.extend_from_slice(&socket);
        let mut decoder = Decoder::established(self.form.version, Limits::default());
        let mut publishes = Vec::new();
        while let Some(packet) = decoder.decode(&mut self.bytes).unwrap() {
            let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
            publishes.push(publish);
        }
        assert!(self.bytes.is_empty());
        publishes
    }
}

fn payloads(publishes: &[Publish]) -> Vec<String> {
    publishes.iter().map(|publish| String::from_utf8(publish.payload.to_vec()).unwrap()).collect()
}

#[test]
fn deliveries_leave_in_order_within_the_window() {
    for version in [Version::V311, Version::V5] {
        let mailbox = mailbox(version, BOUNDS);
        let messages = ["a", "b", "c", "d", "e"].map(message);
        let qos = [0, 1, 2, 0, 1].map(|level| Qos::from_u8(level).unwrap());
        let offers: Vec<Offer<'_>> = messages.iter().zip(qos).map(|(m, qos)| offer(m, qos)).collect();
        assert_eq!(mailbox.offer(&offers), 0);
        assert_eq!(mailbox.backlog(), 3);

        let mut sent = Sent::new(mailbox.form(), 2);
        let first = sent.take(&mailbox);
        assert_eq!(payloads(&first), ["a", "b", "c", "d"]);
        let ids: Vec<_> = first.iter().map(|publish| publish.packet_id.map(NonZeroU16::get)).collect();
        assert_eq!(ids, [None, Some(1), Some(2), None]);
        assert!(sent.take(&mailbox).is_empty(), "the window is full");
        sent.window.forget(NonZeroU16::MIN);
        let rest = sent.take(&mailbox);
        assert_eq!(payloads(&rest), ["e"]);
        assert_eq!(rest[0].packet_id.map(NonZeroU16::get), Some(3));
    }
}

#[test]
fn one_wake_is_enough_for_all_that_waits() {
    let mailbox = mailbox(Version::V311, BOUNDS);
    let message = message("x");
    assert!(mailbox.wake().heard().now_or_never().is_none());
    mailbox.offer(&[offer(&message, Qos::AtMostOnce)]);
    mailbox.offer(&[offer(&message, Qos::AtMostOnce)]);
    assert!(mailbox.wake().heard().now_or_never().is_some());
    assert!(mailbox.wake().heard().now_or_never().is_none());
    assert_eq!(Sent::new(mailbox.form(), 1).take(&mailbox).len(), 2);
    mailbox.offer(&[offer(&message, Qos::AtMostOnce)]);
    assert!(mailbox.wake().heard().now_or_never().is_some());
}

#[test]
fn beyond_the_bound_qos_0_is_dropped_and_counted() {
    let mailbox = mailbox(Version::V311, BOUNDS);
    let message = message(vec![b'x'; 300]);
    let dropped = mailbox.offer(&vec![offer(&message, Qos::AtMostOnce); 10]);
    assert_eq!(dropped, 6);
    assert_eq!(mailbox.take(&mut Frames::default(), true), None);
    assert_eq!(mailbox.offer(&[offer(&message, Qos::AtMostOnce)]), 0, "there is room again");
}

#[test]
fn beyond_the_bound_above_qos_0_the_connection_ends() {
    for (payload, taken) in [(1, BOUNDS.messages), (300, 4)] {
        let mailbox = mailbox(Version::V311, BOUNDS);
        let message = message(vec![b'x'; payload]);
        let dropped = mailbox.offer(&vec![offer(&message, Qos::AtLeastOnce); 10]);
        assert_eq!(dropped, 10 - taken);
        assert_eq!(mailbox.take(&mut Frames::default(), false), Some(ReasonCode::QuotaExceeded));
        assert_eq!(mailbox.offer(&[offer(&message, Qos::AtMostOnce)]), 1);
        mailbox.close(CloseReason::TakenOver);
        let reason = mailbox.take(&mut Frames::default(), true);
        assert_eq!(reason, Some(ReasonCode::QuotaExceeded), "the first reason holds");
    }
}

#[test]
fn what_the_receiver_does_not_take_is_left_out() {
    // 5: [MQTT-3.1.2-24], [MQTT-3.1.2-25].
    let bounds = Bounds { bytes: 1 << 20, messages: 10 };
    let form = Form { version: Version::V5, max_packet: 100 };
    let mailbox = Mailbox::new(form, bounds, None, Arc::default());
    let mut expiring = message(vec![b'x'; 200]);
    expiring.expires_at = Some(clock::unix_now().after(std::time::Duration::from_secs(60)));
    let (small, large) = (message("small"), message(vec![b'x'; 200]));
    let shared = message(vec![b'x'; SHARED_FROM]);
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
        let offers = [&large, &small, &expiring, &shared, &small].map(|message| offer(message, qos));
        assert_eq!(mailbox.offer(&offers), 0);
        let mut sent = Sent::new(form, 10);
        assert_eq!(payloads(&sent.take(&mailbox)), ["small", "small"]);
        assert_eq!(sent.window.in_flight(), if qos == Qos::AtMostOnce { 0 } else { 2 });
    }
}

#[test]
fn large_payloads_are_shared_and_stay_in_order() {
    let bounds = Bounds { bytes: 1 << 20, messages: 10 };
    let mailbox = mailbox(Version::V5, bounds);
    let (small, large) = (message("small"), message(vec![b'x'; SHARED_FROM]));
    let offers = [&small, &large, &small, &large].map(|message| offer(message, Qos::AtLeastOnce));
    mailbox.offer(&offers);
    let publishes = Sent::new(mailbox.form(), 10).take(&mailbox);
    let sizes: Vec<_> = publishes.iter().map(|publish| publish.payload.len()).collect();
    assert_eq!(sizes, [5, SHARED_FROM, 5, SHARED_FROM]);
}

#[test]
fn the_time_that_is_left_is_told_and_what_is_over_is_dropped() {
    // 5: [MQTT-3.3.2-5], [MQTT-3.3.2-6].
    let mailbox = mailbox(Version::V5, BOUNDS);
    let (mut over, mut good) = (message("over"), message("good"));
    over.expires_at = Some(UnixMillis(1));
    good.expires_at = Some(clock::unix_now().after(std::time::Duration::from_secs(100)));
    let identifiers = [NonZeroU32::MIN];
    let good = Offer { identifiers: &identifiers, ..offer(&good, Qos::AtMostOnce) };
    mailbox.offer(&[offer(&over, Qos::AtMostOnce), good, offer(&over, Qos::AtLeastOnce)]);
    let mut sent = Sent::new(mailbox.form(), 1);
    let publishes = sent.take(&mailbox);
    assert_eq!(payloads(&publishes), ["good"]);
    assert_eq!(sent.window.in_flight(), 0);
    let properties = publishes[0].properties.as_ref().unwrap();
    assert!(matches!(properties.message_expiry, Some(99..=100)));
    assert_eq!(properties.subscription_ids.len(), 1);
}

#[test]
fn packet_ids_stand_where_they_belong_in_frames_of_any_size() {
    for version in [Version::V311, Version::V5] {
        for size in (100..150).chain(16_360..16_400).chain([SHARED_FROM - 1, SHARED_FROM, 100_000]) {
            let mailbox = mailbox(version, Bounds { bytes: 1 << 20, messages: 10 });
            let message = message(vec![b'x'; size]);
            mailbox.offer(&[offer(&message, Qos::AtLeastOnce), offer(&message, Qos::ExactlyOnce)]);
            let publishes = Sent::new(mailbox.form(), 10).take(&mailbox);
            let ids: Vec<_> =
                publishes.iter().map(|publish| publish.packet_id.map(NonZeroU16::get)).collect();
            assert_eq!(ids, [Some(1), Some(2)], "{size}");
            assert!(publishes.iter().all(|publish| publish.payload.iter().all(|byte| *byte == b'x')));
        }
    }
}

/// The topics that a client understands.
fn resolved(publishes: &[Publish], known: &mut HashMap<NonZeroU16, String>, maximum: u16) -> Vec<String> {
    let topic = |publish: &Publish| {
        let alias = publish.properties.as_ref().and_then(|properties| properties.topic_alias);
        let Some(alias) = alias else { return publish.topic.to_string() };
        assert!(alias.get() <= maximum); // 5: [MQTT-3.1.2-26]
        if publish.topic.is_empty() {
            return known.get(&alias).expect("a number stands alone that stands for nothing").clone();
        }
        known.insert(alias, publish.topic.to_string());
        publish.topic.to_string()
    };
    publishes.iter().map(topic).collect()
}

proptest! {
    /// Whatever waits for the window, is encoded late, or is too large: a client understands every topic.
    #[test]
    fn a_client_understands_the_aliases_of_the_server(
        aliases in 0_u16..6,
        max_packet in prop_oneof![Just(usize::MAX), 20_usize..60],
        steps in prop::collection::vec((0_usize..6, 0_u8..3, 0_usize..40, any::<bool>(), 0_u8..4), 0..60),
    ) {
        let form = Form { version: Version::V5, max_packet };
        let bounds = Bounds { bytes: 1 << 20, messages: 100 };
        let [theirs, ours] = Aliases::two_up_to(aliases);
        let mailbox = Mailbox::new(form, bounds, theirs, Arc::default());
        let mut sent = Sent { aliases: ours, ..Sent::new(form, 2) };
        let (mut known, mut got, mut topics) = (HashMap::new(), Vec::new(), Vec::new());
        let mut take = |sent: &mut Sent, got: &mut Vec<_>| {
            let publishes = sent.take(&mailbox);
            let numbers = payloads(&publishes).into_iter().map(|payload| payload[..2].parse::<usize>().unwrap());
            got.extend(numbers.zip(resolved(&publishes, &mut known, aliases)));
        };
        for (number, (topic, qos, payload, late, then)) in steps.into_iter().enumerate() {
            let topic = ["a", "a/b/c", "sensors/1", "sensors/2", "sensors/of/this/house", "x/y/z"][topic];
            let mut message = message(format!("{number:02}{}", "x".repeat(payload)));
            message.topic = TopicName::parse(topic.into()).unwrap();
            if late {
                message.expires_at = Some(clock::unix_now().after(std::time::Duration::from_secs(600)));
            }
            let qos = Qos::from_u8(qos).unwrap();
            prop_assert_eq!(mailbox.offer(&[offer(&message, qos)]), 0);
            let id = if qos == Qos::AtMostOnce { 0 } else { 2 };
            let expiry = if late { 5 } else { 0 };
            let len = 2 + 2 + topic.len() + id + 1 + expiry + message.payload.len();
            topics.push((topic, len <= max_packet));
            match then {
                0 => take(&mut sent, &mut got),
                1 => drop(sent.window.drain()),
                _ => {}
            }
        }
        // What comes first may be too large, so that nothing leaves though more waits.
        for _ in 0..=topics.len() {
            drop(sent.window.drain());
            take(&mut sent, &mut got);
        }
        // What is not too large is there, in order; what is, if a number made it small enough.
        let mut got = got.into_iter().peekable();
        for (number, (topic, fits)) in topics.into_iter().enumerate() {
            let there = got.next_if(|(of, _)| *of == number);
            prop_assert!(there.is_some() || !fits, "{} is missing", number);
            prop_assert!(there.is_none_or(|(_, as_told)| as_told == topic), "another topic for {}", number);
        }
        prop_assert_eq!(got.next(), None);
    }
}
