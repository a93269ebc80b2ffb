//! Deliveries on their way to one connection, in order.
//!
//! What is usual is encoded at once, one frame after the other in one buffer: a publisher's task appends, the
//! connection takes the buffer whole and writes it. A frame above QoS 0 gets its packet id when its turn comes; until
//! then a placeholder stands there. Few deliveries are kept as messages and encoded late: those whose remaining time is
//! told, those that go back to their share group when the connection is lost, and large ones, whose payload is shared.
//!
//! Invariants: deliveries leave in the order in which they came, so one that waits for the receiver's window holds up
//! what comes after it [5: section 4.9]; nothing of a publisher's read buffer is held that is much smaller than it.

use std::collections::VecDeque;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use smallvec::SmallVec;

use super::aliases::{Alias, Aliases};
use super::buffers::Buffers;
use super::codec::{Connect, Version};
use super::out::{Out, SHARED_FROM};
use super::state::{Origin, Window};
use super::translate::Delivery;
use crate::core::share::ShareGroup;
use crate::core::{Offer, TooLarge};
use crate::types::{Message, Qos, UnixMillis, clock};

/// How the receiver takes its packets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) version: Version,
    /// Bytes of the largest packet that it takes [5: MQTT-3.1.2-24].
    pub(super) max_packet: usize,
}

impl Form {
    /// As CONNECT says.
    pub(super) fn of(connect: &Connect) -> Self {
        let max_packet =
            connect.properties.maximum_packet_size.map_or(usize::MAX, |size| size.get() as usize);
        Self { version: connect.version, max_packet }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: BytesMut,
    /// Of all bytes that were ever appended, where `bytes` begins.
    base: u64,
    marks: VecDeque<Mark>,
    kept_weight: usize,
    above_qos0: u32,
    /// How many frames there are in `bytes`, as long as all of these are there.
    frames: u32,
}

/// Something in front of the bytes at `at`, or a frame that begins there.
#[derive(Debug)]
struct Mark {
    at: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A frame that lacks its packet id.
    Frame { len: u32, id_at: u32, qos: Qos },
    /// A message that is encoded when its turn comes.
    Kept(Box<Kept>),
}

#[derive(Debug)]
struct Kept {
    message: Message,
    qos: Qos,
    retain: bool,
    identifiers: SmallVec<[NonZeroU32; 1]>,
    share: Option<Arc<ShareGroup>>,
}

/// How long a frame and its topic are.
struct Written {
    len: usize,
    topic_len: usize,
}

/// What stands where a packet id will.
const PLACEHOLDER: Option<NonZeroU16> = NonZeroU16::new(1);

/// Whether the receiver takes a packet as large as this delivery [5: MQTT-3.1.2-24].
pub(super) fn fits(offer: &Offer<'_>, form: Form) -> Result<(), TooLarge> {
    if form.max_packet == usize::MAX {
        return Ok(());
    }
    let Offer { message, qos, retain, identifiers, .. } = *offer;
    let packet_id = if qos > Qos::AtMostOnce { PLACEHOLDER } else { None };
    let delivery = Delivery { message, qos, retain, dup: false, packet_id, identifiers };
    // Whatever is left of its time takes as many bytes.
    let expiry = message.expires_at.map(|_| 0);
    let len = delivery.with(expiry, |publish| publish.encoded_len(form.version)).unwrap_or(usize::MAX);
    if len > form.max_packet { Err(TooLarge { len, max: form.max_packet }) } else { Ok(()) }
}

/// Encodes one delivery at the end of `out`, under an alias of its topic where there are `aliases`; what the receiver does
/// not take is left out [5: MQTT-3.1.2-25]. Returns whether it is there.
pub(super) fn encode(
    delivery: &Delivery<'_>,
    expiry: Option<u32>,
    form: Form,
    aliases: Option<&mut Aliases>,
    out: &mut Out,
) -> bool {
    let topic = delivery.message.topic.as_str();
    Aliases::apply(aliases, topic, |alias| encode_as(delivery, expiry, alias, form, out).then_some(()))
        .is_some()
}

fn encode_as(
    delivery: &Delivery<'_>,
    expiry: Option<u32>,
    alias: Option<Alias>,
    form: Form,
    out: &mut Out,
) -> bool {
    let payload = &delivery.message.payload;
    let shared = payload.len() >= SHARED_FROM;
    let before = out.bytes().len();
    let encoded = delivery.with(expiry, |publish| {
        let aliased = alias.map(|alias| alias.put(publish));
        let publish = aliased.as_ref().unwrap_or(publish);
        if shared {
            publish.encode_head(form.version, out.bytes())
        } else {
            publish.encode(form.version, out.bytes())
        }
    });
    let elsewhere = if shared { payload.len() } else { 0 };
    let fits = encoded.is_ok() && out.bytes().len() - before + elsewhere <= form.max_packet;
    if !fits {
        out.bytes().truncate(before);
        return false;
    }
    if shared {
        out.share(payload.clone());
    }
    out.count(1);
    true
}

impl Frames {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.marks.is_empty()
    }

    /// Bytes that wait.
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + self.kept_weight
    }

    /// Deliveries above QoS 0 that wait.
    pub(super) fn above_qos0(&self) -> usize {
        self.above_qos0 as usize
    }

    /// Appends a delivery, under an alias of its topic where there are `aliases`, in the order of these.
    pub(super) fn push(
        &mut self,
        offer: &Offer<'_>,
        form: Form,
        aliases: Option<&mut Aliases>,
        buffers: &Buffers,
    ) {
        let Offer { message, qos, retain, identifiers, share, .. } = *offer;
        if message.expires_at.is_some() || share.is_some() || message.payload.len() >= SHARED_FROM {
            self.keep(offer);
            return;
        }
        if self.bytes.capacity() == 0 {
            self.bytes = buffers.to_write();
        }
        let packet_id = if qos > Qos::AtMostOnce { PLACEHOLDER } else { None };
        let delivery = Delivery { message, qos, retain, dup: false, packet_id, identifiers };
        let before = self.bytes.len();
        let topic = message.topic.as_str();
        let written = Aliases::apply(aliases, topic, |alias| self.append(&delivery, alias, form));
        if let Some(Written { len, topic_len }) = written
            && qos > Qos::AtMostOnce
        {
            let id_at = header_len(len) + 2 + topic_len;
            let as_u32 = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let what = What::Frame { len: as_u32(len), id_at: as_u32(id_at), qos };
            self.marks.push_back(Mark { at: self.base + before as u64, what });
            self.above_qos0 += 1;
        }
    }

    /// Encodes at the end, unless the receiver does not take it.
    fn append(&mut self, delivery: &Delivery<'_>, alias: Option<Alias>, form: Form) -> Option<Written> {
        let before = self.bytes.len();
        let (encoded, topic_len) = delivery.with(None, |publish| {
            let aliased = alias.map(|alias| alias.put(publish));
            let publish = aliased.as_ref().unwrap_or(publish);
            (publish.encode(form.version, &mut self.bytes), publish.topic.len())
        });
        let len = self.bytes.len() - before;
        if encoded.is_err() || len > form.max_packet {
            self.bytes.truncate(before);
            return None;
        }
        self.frames += 1;
        Some(Written { len, topic_len })
    }

    fn keep(&mut self, offer: &Offer<'_>) {
        let message = if offer.message.payload.len() >= SHARED_FROM {
            offer.message.clone()
        } else {
            offer.message.detached()
        };
        self.kept_weight += message.weight();
        self.above_qos0 += u32::from(offer.qos > Qos::AtMostOnce);
        let kept = Kept {
            message,
            qos: offer.qos,
            retain: offer.retain,
            identifiers: offer.identifiers.into(),
            share: offer.share.cloned(),
        };
        let at = self.base + self.bytes.len() as u64;
        self.marks.push_back(Mark { at, what: What::Kept(Box::new(kept)) });
    }

    /// Moves to `out` what may be sent now: up to the first delivery that the window does not admit.
    /// What is encoded only now is so under `aliases`, which are others than those of [`push`](Self::push).
    pub(super) fn send(
        &mut self,
        form: Form,
        window: &mut Window,
        mut aliases: Option<&mut Aliases>,
        out: &mut Out,
    ) {
        while let Some(mark) = self.marks.front_mut() {
            let at = mark.at;
            match &mut mark.what {
                What::Frame { len, id_at, qos } => {
                    let start = usize::try_from(at - self.base).unwrap_or(usize::MAX);
                    let Some(id) = window.begin(*qos, Origin::Live, out.position() + start as u64) else {
                        return self.flush_to(at, out);
                    };
                    window.weigh(id, *len as usize);
                    let id_at = start.saturating_add(*id_at as usize);
                    if let Some(mut place) = self.bytes.get_mut(id_at..) {
                        place.put_u16(id.get());
                    }
                    debug_assert!(start + *len as usize <= self.bytes.len());
                    self.above_qos0 -= 1;
                    self.marks.pop_front();
                }
                What::Kept(_) => {
                    self.flush_to(at, out);
                    let Some(Mark { what: What::Kept(kept), .. }) = self.marks.pop_front() else { return };
                    let (weight, above_qos0) = (kept.message.weight(), kept.qos > Qos::AtMostOnce);
                    if let Some(kept) = kept.send(form, window, aliases.as_deref_mut(), out) {
                        self.marks.push_front(Mark { at, what: What::Kept(kept) });
                        return;
                    }
                    self.kept_weight -= weight;
                    self.above_qos0 -= u32::from(above_qos0);
                }
            }
        }
        self.base += self.bytes.len() as u64;
        out.count(std::mem::take(&mut self.frames));
        out.append(&mut self.bytes);
    }

    /// Moves the bytes before `at`.
    fn flush_to(&mut self, at: u64, out: &mut Out) {
        let count = usize::try_from(at - self.base).unwrap_or(usize::MAX).min(self.bytes.len());
        if count > 0 {
            out.bytes().extend_from_slice(&self.bytes.split_to(count));
            self.base += count as u64;
            out.count(std::mem::take(&mut self.frames));
        }
    }

    /// What waits for its share group, above QoS 0: it goes back when the connection is lost.
    pub(super) fn into_shared(self) -> impl Iterator<Item = (Arc<ShareGroup>, Message)> {
        self.marks.into_iter().filter_map(|mark| match mark.what {
            What::Kept(kept) if kept.qos > Qos::AtMostOnce => Some((kept.share?, kept.message)),
            _ => None,
        })
    }

    /// Gives the memory back when nothing waits.
    pub(super) fn release(&mut self, buffers: &Buffers) {
        if self.is_empty() {
            buffers.give_back(std::mem::take(&mut self.bytes));
            self.marks = VecDeque::new();
        }
    }
}

impl Kept {
    /// Sends it or returns it: the window does not admit it. One whose time is over, or that the receiver does not
    /// take, is dropped [MQTT-3.3.2-5].
    fn send(
        self: Box<Self>,
        form: Form,
        window: &mut Window,
        aliases: Option<&mut Aliases>,
        out: &mut Out,
    ) -> Option<Box<Self>> {
        let now = || if self.message.expires_at.is_some() { clock::unix_now() } else { UnixMillis(0) };
        let mut delivery = Delivery {
            message: &self.message,
            qos: self.qos,
            retain: self.retain,
            dup: false,
            packet_id: None,
            identifiers: &self.identifiers,
        };
        let expiry = delivery.remaining(now())?;
        if self.qos > Qos::AtMostOnce {
            let origin = match &self.share {
                Some(group) if self.qos == Qos::AtLeastOnce => {
                    Origin::Share(Box::new((Arc::clone(group), self.message.clone())))
                }
                _ => Origin::Live,
            };
            delivery.packet_id = window.begin(self.qos, origin, out.position());
            let Some(id) = delivery.packet_id else { return Some(self) };
            window.weigh(id, self.message.weight());
        }
        if !encode(&delivery, expiry, form, aliases, out)
            && let Some(id) = delivery.packet_id
        {
            window.forget(id);
        }
        None
    }
}

/// Bytes of the fixed header of a packet of `len` bytes.
const fn header_len(len: usize) -> usize {
    match len {
        0..=129 => 2,
        130..=16_386 => 3,
        16_387..=2_097_155 => 4,
        _ => 5,
    }
}
