//! `stafett.v1.DeliveryBatch`: a frame of deliveries, encoded while it is gathered.
//!
//! A delivery is written by [`Outgoing::encode`], all but its number, which is not known before it leaves, and then put
//! into a frame as it is: no tree of messages is built, measured and copied for it. `build.rs` puts this type where the
//! generated one would be. Invariant: what is written reads as the contract says; the tests compare it with what is
//! generated.

use std::num::NonZeroU32;

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{
    DecodeContext, WireType, bool, encode_key, encode_varint, encoded_len_varint, int32, key_len, message,
    skip_field, uint32, uint64,
};
use prost::{DecodeError, Message as _};
use smallvec::SmallVec;

use super::convert::{self, qos_of, timestamp};
use super::proto::v1;
use crate::types::{Message, MessageId, Qos, UnixMillis};

/// The field of the frame.
const DELIVERIES: u32 = 1;
/// The field of a delivery that is its number.
const DELIVERY_ID: u32 = 3;

/// Messages in the order in which they are due.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeliveryBatch {
    /// What was received. What the broker sends stands in `encoded` alone.
    pub deliveries: Vec<v1::Delivery>,
    encoded: Vec<u8>,
}

/// A delivery on its way out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing<'a> {
    /// As published.
    pub(super) message: &'a Message,
    /// Of this delivery.
    pub(super) qos: Qos,
    /// Of this delivery.
    pub(super) retain: bool,
    /// Who published, where that is not in the message.
    pub(super) publisher: Option<&'a str>,
    /// Of the filters that match.
    pub(super) identifiers: &'a [NonZeroU32],
    /// From 1.
    pub(super) attempt: u32,
    /// It was there before the filter.
    pub(super) retained: bool,
    /// How many were lost before it.
    pub(super) dropped_before: u64,
}

impl DeliveryBatch {
    /// Makes room for so many bytes.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.encoded.reserve(bytes);
    }

    /// Whether nothing was put in.
    pub(super) fn is_empty(&self) -> bool {
        self.encoded.is_empty()
    }

    /// Adds a delivery that is encoded; 0: it has no number, since nothing is to be settled.
    pub(super) fn push(&mut self, encoded: &[u8], delivery_id: u64) {
        let number = if delivery_id > 0 { uint64::encoded_len(DELIVERY_ID, &delivery_id) } else { 0 };
        begin(DELIVERIES, encoded.len() + number, &mut self.encoded);
        self.encoded.extend_from_slice(encoded);
        if delivery_id > 0 {
            uint64::encode(DELIVERY_ID, &delivery_id, &mut self.encoded);
        }
    }
}

impl Outgoing<'_> {
    /// Appends its fields, without the number.
    pub(super) fn encode(&self, now: UnixMillis, out: &mut Vec<u8>) {
        let &Outgoing { qos, attempt, retained, dropped_before, .. } = self;
        debug_assert!(attempt > 0 && qos_of(qos) != v1::Qos::Unspecified);
        let body = Body::new(self, now);
        let mut id = [0; MessageId::TEXT_BYTES];
        let origin = Origin::new(self, &mut id);
        let identifiers: SmallVec<[u32; 4]> = self.identifiers.iter().map(|id| id.get()).collect();
        begin(1, body.len(), out);
        body.write(out);
        begin(2, origin.len(), out);
        origin.write(out);
        uint32::encode_packed(4, &identifiers, out);
        uint32::encode(5, &attempt, out);
        if retained {
            bool::encode(6, &true, out);
        }
        if dropped_before > 0 {
            uint64::encode(7, &dropped_before, out);
        }
    }
}

/// `stafett.v1.Message`.
struct Body<'a> {
    topic: &'a [u8],
    payload: &'a [u8],
    qos: i32,
    retain: bool,
    /// What few messages have.
    rest: Option<v1::Message>,
}

impl<'a> Body<'a> {
    fn new(delivery: &Outgoing<'a>, now: UnixMillis) -> Self {
        let message = delivery.message;
        let rest = (message.extras.is_some() || message.expires_at.is_some()).then(|| v1::Message {
            topic: String::new(),
            payload: Bytes::new(),
            qos: v1::Qos::Unspecified.into(),
            retain: false,
            ..convert::message(message.clone(), delivery.qos, now)
        });
        Self {
            topic: message.topic.as_str().as_bytes(),
            payload: &message.payload,
            qos: qos_of(delivery.qos).into(),
            retain: delivery.retain,
            rest,
        }
    }

    fn len(&self) -> usize {
        bytes_len(1, self.topic)
            + bytes_len(2, self.payload)
            + int32::encoded_len(6, &self.qos)
            + if self.retain { bool::encoded_len(7, &true) } else { 0 }
            + self.rest.as_ref().map_or(0, v1::Message::encoded_len)
    }

    fn write(&self, out: &mut Vec<u8>) {
        put_bytes(1, self.topic, out);
        put_bytes(2, self.payload, out);
        int32::encode(6, &self.qos, out);
        if self.retain {
            bool::encode(7, &true, out);
        }
        if let Some(rest) = &self.rest {
            rest.encode_raw(out);
        }
    }
}

/// `stafett.v1.Origin`.
struct Origin<'a> {
    id: &'a [u8],
    time: prost_types::Timestamp,
    publisher: &'a [u8],
}

impl<'a> Origin<'a> {
    fn new(delivery: &Outgoing<'a>, id: &'a mut [u8; MessageId::TEXT_BYTES]) -> Self {
        let message = delivery.message;
        let own = || Some(message.extras.as_ref()?.publisher.as_ref()?.as_str());
        Self {
            id: message.id.write(id).as_bytes(),
            time: timestamp(message.id.time()),
            publisher: delivery.publisher.or_else(own).unwrap_or_default().as_bytes(),
        }
    }

    fn len(&self) -> usize {
        bytes_len(1, self.id) + message::encoded_len(2, &self.time) + bytes_len(3, self.publisher)
    }

    fn write(&self, out: &mut Vec<u8>) {
        put_bytes(1, self.id, out);
        message::encode(2, &self.time, out);
        put_bytes(3, self.publisher, out);
    }
}

/// Begins a field of so many bytes.
#[inline]
fn begin(tag: u32, len: usize, out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    // Most are short: not worth a call.
    match u8::try_from(len) {
        Ok(len) if len < 0x80 => out.push(len),
        _ => encode_varint(len as u64, out),
    }
}

fn nested_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

fn put_bytes(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    if !bytes.is_empty() {
        begin(tag, bytes.len(), out);
        out.extend_from_slice(bytes);
    }
}

fn bytes_len(tag: u32, bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { nested_len(tag, bytes.len()) }
}

impl prost::Message for DeliveryBatch {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.encoded);
        message::encode_repeated(DELIVERIES, &self.deliveries, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            DELIVERIES => message::merge_repeated(wire_type, &mut self.deliveries, buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        self.encoded.len() + message::encoded_len_repeated(DELIVERIES, &self.deliveries)
    }

    fn clear(&mut self) {
        self.deliveries.clear();
        self.encoded.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::{ClientId, Extras};

    const NOW: UnixMillis = UnixMillis(1_800_000_000_123);

    fn usual() -> Message {
        Message {
            id: MessageId::from_u128(u128::from(NOW.0) << 80 | 7),
            topic: "a/b".parse().unwrap(),
            payload: Bytes::from_static(b"x"),
            qos: Qos::AtLeastOnce,
            retain: false,
            expires_at: None,
            extras: None,
        }
    }

    fn outgoing(message: &Message) -> Outgoing<'_> {
        Outgoing {
            message,
            qos: Qos::AtMostOnce,
            retain: false,
            publisher: None,
            identifiers: &[],
            attempt: 1,
            retained: false,
            dropped_before: 0,
        }
    }

    /// What the contract's own types would say.
    fn generated(delivery: &Outgoing<'_>, delivery_id: u64) -> v1::Delivery {
        let mut message = delivery.message.clone();
        message.retain = delivery.retain;
        let mut origin = convert::origin(&message);
        if let Some(publisher) = delivery.publisher {
            origin.publisher_id = publisher.to_owned();
        }
        v1::Delivery {
            message: Some(convert::message(message, delivery.qos, NOW)),
            origin: Some(origin),
            delivery_id,
            subscription_ids: delivery.identifiers.iter().map(|id| id.get()).collect(),
            delivery_attempt: delivery.attempt,
            retained: delivery.retained,
            dropped_before: delivery.dropped_before,
        }
    }

    #[test]
    fn what_is_written_reads_as_the_contract_says() {
        let usual = usual();
        let large = Message { payload: vec![7; 70_000].into(), ..usual.clone() };
        let extras = Extras {
            subscription: None,
            payload_is_utf8: true,
            content_type: Some("text/plain".into()),
            reply_to: Some("r".parse().unwrap()),
            correlation_data: Some(Bytes::from_static(b"c")),
            ordering_key: Some("key".into()),
            dedup_id: Some("once".into()),
            properties: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
            publisher: Some(ClientId::parse("me").unwrap()),
            dead_letter: None,
        };
        let rich = Message {
            payload: Bytes::new(),
            expires_at: Some(NOW.after(Duration::from_secs(9))),
            extras: Some(Box::new(extras)),
            ..usual.clone()
        };
        let ids = [1, 300, 268_435_455].map(|id| NonZeroU32::new(id).unwrap());
        let deliveries = [
            (outgoing(&usual), 0),
            (Outgoing { qos: Qos::AtLeastOnce, ..outgoing(&large) }, 1),
            (Outgoing { qos: Qos::ExactlyOnce, identifiers: &ids, ..outgoing(&rich) }, u64::MAX),
            (Outgoing { retain: true, retained: true, publisher: Some("other"), ..outgoing(&rich) }, 300),
            (Outgoing { attempt: u32::MAX, dropped_before: 300, ..outgoing(&usual) }, 0),
        ];
        let mut frame = DeliveryBatch::default();
        assert!(frame.is_empty());
        for (delivery, number) in &deliveries {
            let mut encoded = Vec::new();
            delivery.encode(NOW, &mut encoded);
            frame.push(&encoded, *number);
        }
        assert!(!frame.is_empty());
        let encoded = frame.encode_to_vec();
        assert_eq!(encoded.len(), frame.encoded_len());
        let read = DeliveryBatch::decode(&encoded[..]).unwrap();
        let expected = deliveries.each_ref().map(|(delivery, number)| generated(delivery, *number));
        assert_eq!(read.deliveries, expected);
        assert_eq!(DeliveryBatch::decode(&read.encode_to_vec()[..]).unwrap(), read);
    }

    #[test]
    fn a_field_that_came_later_is_passed_over() {
        let one = DeliveryBatch { deliveries: vec![v1::Delivery::default()], ..Default::default() };
        let mut encoded = one.encode_to_vec();
        uint32::encode(9, &1, &mut encoded);
        assert_eq!(DeliveryBatch::decode(&encoded[..]).unwrap(), one);
        uint32::encode(DELIVERIES, &1, &mut encoded);
        assert!(DeliveryBatch::decode(&encoded[..]).is_err());
    }
}
