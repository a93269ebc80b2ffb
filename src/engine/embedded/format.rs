//! What the store holds, byte by byte. Pure: no disk, no threads.
//!
//! ```text
//! meta   "format" u32 BE | "boot" u64 BE | "secret" 16 bytes | "tokens" 16 bytes, of a copy | "next_target" u32 BE
//!        "closed" u64 BE: the start after which the store was closed, see `marker`
//!        "journal" u64 BE: the record of the journal up to which all rows are here, see `log`
//! obj    [target u32 BE]                  definition, see `objects`
//! sub    [session u32 BE][filter]         subscription options
//! seq    [target u32 BE]                  next sequence u64 BE, written before the packs that prove it go
//! head   [pack u64 BE]                    [version u8][flags u8][crc32 u32 LE of all else]
//!                                         [boot u64 LE][records u32 LE][record bytes u32 LE][records][bodies if inline]
//! body   [pack u64 BE]                    [crc32 u32 LE of what follows][bodies], or nothing: reserved
//! part   [pack u64 BE][slot u16 BE][n u32 BE]  a large body, in rows of PART_BYTES; its crc32 stands in ADD
//! done   [pack u64 BE]                    [crc32 u32 LE of what follows][settled bits and marks of a pack's ADDs, as of
//!                                         which pack]
//! dedup  [queue u32 BE][first sequence u64 BE]  [crc32 u32 LE of what follows][deduplication ids, see `dedup`]
//! ```
//! A pack is what one group commit wrote in one row. Its records: ADD (a message for a target), SETTLE (it is
//! gone), MARK (attempts, delay, outgoing packet id). Numbers within records are LEB128.
//!
//! An operation whose records do not fit one row is written as a chain of heads: all but the last have
//! [`CONTINUES`], all but the first [`CONTINUED`]. The bodies of one message for many targets lie in the first, and all ADDs are
//! that pack's; where the operation has several messages each pack is [`WHOLE`], with bodies and ADDs of its own, and the last,
//! which has none, goes after all others. Recovery ignores an unfinished chain.
//!
//! Tags, flags and bits are never used again for something else.

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{decode_varint, encode_varint};

use super::hash::TextHash;
use crate::engine::{Outgoing, OutgoingState};
use crate::types::{Priority, Qos, UnixMillis};

/// The format that this program writes, and the newest that it reads.
///
/// 1 had no journal; 2 had no deduplication ids, no chains of whole packs and no keys; 3 had a journal whose checksums anyone
/// can make. What they wrote is read as it stands.
pub(super) const FORMAT: u32 = 4;
/// The first whose journal has checksums with the store's secret.
pub(super) const KEYED_JOURNAL: u32 = 4;
/// The oldest format that this program reads.
pub(super) const OLDEST_FORMAT: u32 = 1;

/// Whether this program reads a store of that format.
pub(super) fn is_known(format: u32) -> bool {
    (OLDEST_FORMAT..=FORMAT).contains(&format)
}

/// The version of a head row.
const HEAD_VERSION: u8 = 1;
/// Bodies stand in the head row.
pub(super) const INLINE: u8 = 1;
/// The operation goes on in the next pack.
pub(super) const CONTINUES: u8 = 2;
/// The operation began in an earlier pack.
pub(super) const CONTINUED: u8 = 4;
/// Of a chain: the pack has bodies and ADDs of its own.
pub(super) const WHOLE: u8 = 8;
/// Rows stay below this: sled keeps 16 of them in a leaf, and a leaf beyond a quarter segment becomes a file.
pub(super) const ROW_BYTES: usize = 16 << 10;
/// A body beyond this is stored in parts.
pub(super) const LARGE_BYTES: usize = 8 << 10;
/// The size of a part.
pub(super) const PART_BYTES: usize = 15 << 10;
/// Records and bodies together up to this size share one row.
pub(super) const INLINE_BYTES: usize = 4 << 10;
/// Bytes before the records.
pub(super) const HEAD_BYTES: usize = 22;

/// The target of retained values: no queue or session has this number.
pub(super) const RETAINED: u32 = 0;

/// What a stored row says that this program cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FormatError {
    #[error("{0} ends too early")]
    Short(&'static str),
    #[error("{0} has a wrong checksum")]
    Checksum(&'static str),
    #[error("{what} has the unknown {kind} {value}")]
    Unknown { what: &'static str, kind: &'static str, value: u64 },
    #[error("{0} is not valid: {1}")]
    Invalid(&'static str, String),
}

/// Where a body lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Another pack than the record's, or none.
    pub(super) pack: Option<u64>,
    /// In the pack's bodies; of a large body its slot.
    pub(super) offset: u16,
    pub(super) len: u32,
    /// Of a large body.
    pub(super) crc: Option<u32>,
}

/// A message for a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Add {
    pub(super) target: u32,
    pub(super) sequence: u64,
    pub(super) place: Place,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) priority: Priority,
    /// In a stream: when it was appended.
    pub(super) expires_at: Option<UnixMillis>,
    /// In a queue that keeps order by key.
    pub(super) key: Option<TextHash>,
    /// In a queue that keeps the last value.
    pub(super) value: Option<TextHash>,
    /// No message: the packet id of a QoS 2 publish that its publisher has not released.
    pub(super) incoming: Option<u16>,
    pub(super) mark: Mark,
}

/// What happens to a stored message short of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    pub(super) attempts: u32,
    /// How many of them ended with their consumer, up to [`Mark::MAX_LOSSES`].
    pub(super) losses: u8,
    pub(super) not_before: Option<UnixMillis>,
    /// It rests until then because it was given back, and was not sent to be delayed.
    pub(super) rests: bool,
    pub(super) outgoing: Option<Outgoing>,
}

/// Where an ADD stands: its pack and its place among the ADDs of that pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Location {
    pub(super) pack: u64,
    pub(super) ordinal: u32,
}

/// One record of a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Add(Add),
    Settle { target: u32, sequence: u64, of: Location },
    Mark { target: u32, sequence: u64, of: Location, mark: Mark },
}

const TAG_ADD: u8 = 1;
const TAG_SETTLE: u8 = 2;
const TAG_MARK: u8 = 3;

const HAS_EXPIRY: u8 = 1;
const HAS_MARK: u8 = 2;
const HAS_PACK: u8 = 4;
const IS_LARGE: u8 = 8;
const IS_INCOMING: u8 = 16;
const IS_RETAIN: u8 = 32;
const QOS_SHIFT: u32 = 6;
/// Above the priority.
const HAS_KEY: u8 = 0x80;
const HAS_VALUE: u8 = 0x40;

fn varint(buf: &mut impl Buf, what: &'static str) -> Result<u64, FormatError> {
    decode_varint(buf).map_err(|_| FormatError::Short(what))
}

fn byte(buf: &mut impl Buf, what: &'static str) -> Result<u8, FormatError> {
    if buf.has_remaining() { Ok(buf.get_u8()) } else { Err(FormatError::Short(what)) }
}

fn narrow<T: TryFrom<u64>>(value: u64, what: &'static str, kind: &'static str) -> Result<T, FormatError> {
    T::try_from(value).map_err(|_| FormatError::Unknown { what, kind, value })
}

/// Losses stand above the state of an outgoing message, and above them whether it rests.
const LOSSES_SHIFT: u32 = 4;
const RESTS: u8 = 1 << 6;

impl Mark {
    /// More are not told apart.
    pub(super) const MAX_LOSSES: u8 = 3;

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn encode(&self, out: &mut impl BufMut) {
        encode_varint(u64::from(self.attempts), out);
        encode_varint(self.not_before.map_or(0, |at| at.0), out);
        let rests = if self.rests { RESTS } else { 0 };
        let above = rests | self.losses.min(Self::MAX_LOSSES) << LOSSES_SHIFT;
        match self.outgoing {
            None => out.put_u8(above),
            Some(outgoing) => {
                out.put_u8(above | outgoing.state as u8);
                out.put_u16(outgoing.packet_id);
            }
        }
    }

    pub(super) fn decode(buf: &mut impl Buf) -> Result<Self, FormatError> {
        const WHAT: &str = "a mark";
        let attempts = narrow(varint(buf, WHAT)?, WHAT, "number of attempts")?;
        let not_before = Some(varint(buf, WHAT)?).filter(|&at| at != 0).map(UnixMillis);
        let value = byte(buf, WHAT)?;
        let (rests, losses) = (value & RESTS != 0, (value & !RESTS) >> LOSSES_SHIFT);
        let state = match value & ((1 << LOSSES_SHIFT) - 1) {
            0 if losses <= Self::MAX_LOSSES => {
                return Ok(Self { attempts, losses, not_before, rests, outgoing: None });
            }
            1 if losses <= Self::MAX_LOSSES => OutgoingState::Sent,
            2 if losses <= Self::MAX_LOSSES => OutgoingState::Received,
            3 if losses <= Self::MAX_LOSSES => OutgoingState::Settled,
            _ => return Err(FormatError::Unknown { what: WHAT, kind: "state", value: value.into() }),
        };
        if buf.remaining() < 2 {
            return Err(FormatError::Short(WHAT));
        }
        let outgoing = Some(Outgoing { packet_id: buf.get_u16(), state });
        Ok(Self { attempts, losses, not_before, rests, outgoing })
    }
}

impl Add {
    pub(super) fn encode(&self, out: &mut impl BufMut) {
        let mut flags = (self.qos as u8) << QOS_SHIFT;
        flags |= if self.expires_at.is_some() { HAS_EXPIRY } else { 0 };
        flags |= if self.mark.is_empty() { 0 } else { HAS_MARK };
        flags |= if self.place.pack.is_some() { HAS_PACK } else { 0 };
        flags |= if self.place.crc.is_some() { IS_LARGE } else { 0 };
        flags |= if self.incoming.is_some() { IS_INCOMING } else { 0 };
        flags |= if self.retain { IS_RETAIN } else { 0 };
        out.put_u8(TAG_ADD);
        out.put_u8(flags);
        let above =
            if self.key.is_some() { HAS_KEY } else { 0 } | if self.value.is_some() { HAS_VALUE } else { 0 };
        out.put_u8(self.priority.level() | above);
        encode_varint(u64::from(self.target), out);
        encode_varint(self.sequence, out);
        encode_varint(u64::from(self.place.offset), out);
        encode_varint(u64::from(self.place.len), out);
        if let Some(pack) = self.place.pack {
            encode_varint(pack, out);
        }
        if let Some(crc) = self.place.crc {
            out.put_u32_le(crc);
        }
        if let Some(at) = self.expires_at {
            encode_varint(at.0, out);
        }
        if let Some(id) = self.incoming {
            out.put_u16(id);
        }
        for hash in [self.key, self.value].into_iter().flatten() {
            out.put_u128_le(hash.0);
        }
        if !self.mark.is_empty() {
            self.mark.encode(out);
        }
    }

    fn decode(buf: &mut impl Buf) -> Result<Self, FormatError> {
        const WHAT: &str = "an ADD record";
        let flags = byte(buf, WHAT)?;
        let level = byte(buf, WHAT)?;
        let (level, above) = (level & !(HAS_KEY | HAS_VALUE), level);
        let unknown = |kind, value: u8| FormatError::Unknown { what: WHAT, kind, value: value.into() };
        let priority = Priority::new(level).ok_or_else(|| unknown("priority", level))?;
        let qos = Qos::from_u8(flags >> QOS_SHIFT).ok_or_else(|| unknown("qos", flags >> QOS_SHIFT))?;
        let target = narrow(varint(buf, WHAT)?, WHAT, "target")?;
        let sequence = varint(buf, WHAT)?;
        let offset = narrow(varint(buf, WHAT)?, WHAT, "offset")?;
        let len = narrow(varint(buf, WHAT)?, WHAT, "length")?;
        let pack = if flags & HAS_PACK != 0 { Some(varint(buf, WHAT)?) } else { None };
        let crc = if flags & IS_LARGE != 0 {
            if buf.remaining() < 4 {
                return Err(FormatError::Short(WHAT));
            }
            Some(buf.get_u32_le())
        } else {
            None
        };
        let expires_at = if flags & HAS_EXPIRY != 0 { Some(UnixMillis(varint(buf, WHAT)?)) } else { None };
        let incoming = if flags & IS_INCOMING != 0 {
            if buf.remaining() < 2 {
                return Err(FormatError::Short(WHAT));
            }
            Some(buf.get_u16())
        } else {
            None
        };
        let mut hash = |bit| match above & bit {
            0 => Ok(None),
            _ => buf.try_get_u128_le().map(|hash| Some(TextHash(hash))).map_err(|_| FormatError::Short(WHAT)),
        };
        let (key, value) = (hash(HAS_KEY)?, hash(HAS_VALUE)?);
        let mark = if flags & HAS_MARK != 0 { Mark::decode(buf)? } else { Mark::default() };
        let place = Place { pack, offset, len, crc };
        let retain = flags & IS_RETAIN != 0;
        Ok(Self { target, sequence, place, qos, retain, priority, expires_at, key, value, incoming, mark })
    }
}

fn put_named(out: &mut impl BufMut, target: u32, sequence: u64, of: Location) {
    encode_varint(u64::from(target), out);
    encode_varint(sequence, out);
    encode_varint(of.pack, out);
    encode_varint(u64::from(of.ordinal), out);
}

impl Record {
    pub(super) fn encode(&self, out: &mut impl BufMut) {
        match self {
            Self::Add(add) => add.encode(out),
            Self::Settle { target, sequence, of } => {
                out.put_u8(TAG_SETTLE);
                put_named(out, *target, *sequence, *of);
            }
            Self::Mark { target, sequence, of, mark } => {
                out.put_u8(TAG_MARK);
                put_named(out, *target, *sequence, *of);
                mark.encode(out);
            }
        }
    }

    fn decode(buf: &mut impl Buf) -> Result<Self, FormatError> {
        const WHAT: &str = "a record";
        let tag = byte(buf, WHAT)?;
        if tag == TAG_ADD {
            return Ok(Self::Add(Add::decode(buf)?));
        }
        if tag != TAG_SETTLE && tag != TAG_MARK {
            return Err(FormatError::Unknown { what: WHAT, kind: "tag", value: tag.into() });
        }
        let target = narrow(varint(buf, WHAT)?, WHAT, "target")?;
        let sequence = varint(buf, WHAT)?;
        let pack = varint(buf, WHAT)?;
        let ordinal = narrow(varint(buf, WHAT)?, WHAT, "ordinal")?;
        let of = Location { pack, ordinal };
        Ok(if tag == TAG_SETTLE {
            Self::Settle { target, sequence, of }
        } else {
            Self::Mark { target, sequence, of, mark: Mark::decode(buf)? }
        })
    }
}

/// A head row as read.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) flags: u8,
    #[cfg_attr(not(test), expect(dead_code, reason = "for people who read a store by hand"))]
    pub(super) boot: u64,
    pub(super) records: Vec<Record>,
    /// The bodies, if they stand here.
    pub(super) inline: Option<Bytes>,
}

/// Writes a head row.
pub(super) fn encode_head(flags: u8, boot: u64, count: u32, records: &[u8], inline: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(HEAD_BYTES + records.len() + inline.len());
    row.put_u8(HEAD_VERSION);
    row.put_u8(flags);
    row.put_u32_le(0);
    row.put_u64_le(boot);
    row.put_u32_le(count);
    row.put_u32_le(u32::try_from(records.len()).unwrap_or(u32::MAX));
    row.put_slice(records);
    row.put_slice(inline);
    let crc = head_checksum(&row);
    if let Some(place) = row.get_mut(2..6) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    row
}

/// Covers all but the checksum itself.
fn head_checksum(row: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(row.get(..2).unwrap_or_default());
    hasher.update(row.get(6..).unwrap_or_default());
    hasher.finalize()
}

/// Reads a head row.
pub(super) fn decode_head(row: &[u8]) -> Result<Head, FormatError> {
    const WHAT: &str = "a head row";
    let mut buf = row;
    if buf.remaining() < HEAD_BYTES {
        return Err(FormatError::Short(WHAT));
    }
    let version = buf.get_u8();
    if version != HEAD_VERSION {
        return Err(FormatError::Unknown { what: WHAT, kind: "version", value: version.into() });
    }
    let flags = buf.get_u8();
    let crc = buf.get_u32_le();
    if head_checksum(row) != crc {
        return Err(FormatError::Checksum(WHAT));
    }
    let boot = buf.get_u64_le();
    let count = buf.get_u32_le() as usize;
    let len = buf.get_u32_le() as usize;
    let (mut records_buf, rest) = buf.split_at_checked(len).ok_or(FormatError::Short(WHAT))?;
    let mut records = Vec::with_capacity(count.min(len));
    for _ in 0..count {
        records.push(Record::decode(&mut records_buf)?);
    }
    let inline = (flags & INLINE != 0).then(|| Bytes::copy_from_slice(rest));
    Ok(Head { flags, boot, records, inline })
}

/// The bytes before what a body or done row holds.
pub(super) const CHECKSUM_BYTES: usize = 4;

/// Writes the checksum of a row into the room that it has at its beginning.
pub(super) fn put_checksum(row: &mut [u8]) {
    if let Some((place, bytes)) = row.split_first_chunk_mut::<CHECKSUM_BYTES>() {
        *place = crc32fast::hash(bytes).to_le_bytes();
    }
}

/// Puts a checksum before the bytes of a done row.
pub(super) fn encode_checked(bytes: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(4 + bytes.len());
    row.put_u32_le(crc32fast::hash(bytes));
    row.put_slice(bytes);
    row
}

/// Takes the bytes of a body or done row from behind their checksum.
pub(super) fn decode_checked(row: &[u8], what: &'static str) -> Result<Bytes, FormatError> {
    let (crc, bytes) = row.split_at_checked(4).ok_or(FormatError::Short(what))?;
    if crc32fast::hash(bytes).to_le_bytes() != *crc {
        return Err(FormatError::Checksum(what));
    }
    Ok(Bytes::copy_from_slice(bytes))
}

/// The settled ADDs of a pack, and the marks of the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Done {
    /// The newest pack whose records this covers. Rows that were written before it was noted hold against all packs.
    pub(super) as_of: u64,
    /// One bit for each ADD: it is settled.
    pub(super) settled: Vec<u64>,
    /// Ordinal and mark of ADDs that are not.
    pub(super) marks: Vec<(u32, Mark)>,
}

impl Done {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        encode_varint(self.settled.len() as u64, &mut out);
        for word in &self.settled {
            out.put_u64_le(*word);
        }
        encode_varint(self.marks.len() as u64, &mut out);
        for (ordinal, mark) in &self.marks {
            encode_varint(u64::from(*ordinal), &mut out);
            mark.encode(&mut out);
        }
        encode_varint(self.as_of, &mut out);
        encode_checked(&out)
    }

    pub(super) fn decode(row: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "a settlement checkpoint";
        let mut buf = decode_checked(row, WHAT)?;
        let words: usize = narrow(varint(&mut buf, WHAT)?, WHAT, "length")?;
        if buf.remaining() / 8 < words {
            return Err(FormatError::Short(WHAT));
        }
        let settled = (0..words).map(|_| buf.get_u64_le()).collect();
        let count = varint(&mut buf, WHAT)?;
        let mut marks = Vec::new();
        for _ in 0..count {
            let ordinal = narrow(varint(&mut buf, WHAT)?, WHAT, "ordinal")?;
            marks.push((ordinal, Mark::decode(&mut buf)?));
        }
        let as_of = if buf.has_remaining() { varint(&mut buf, WHAT)? } else { u64::MAX };
        Ok(Self { as_of, settled, marks })
    }
}

/// The key of a part.
pub(super) fn part_key(pack: u64, slot: u16, n: u32) -> [u8; 14] {
    let mut key = [0; 14];
    let (a, rest) = key.split_at_mut(8);
    let (b, c) = rest.split_at_mut(2);
    a.copy_from_slice(&pack.to_be_bytes());
    b.copy_from_slice(&slot.to_be_bytes());
    c.copy_from_slice(&n.to_be_bytes());
    key
}

/// The first eight bytes of a key: its pack.
pub(super) fn key_pack(key: &[u8]) -> Option<u64> {
    key.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mark() -> impl Strategy<Value = Mark> {
        let states = prop_oneof![
            Just(OutgoingState::Sent),
            Just(OutgoingState::Received),
            Just(OutgoingState::Settled)
        ];
        let outgoing = proptest::option::of(
            (any::<u16>(), states).prop_map(|(packet_id, state)| Outgoing { packet_id, state }),
        );
        let at = proptest::option::of(1..u64::MAX);
        (any::<u32>(), 0..=Mark::MAX_LOSSES, at, any::<bool>(), outgoing).prop_map(
            |(attempts, losses, at, rests, outgoing)| {
                let not_before = at.map(UnixMillis);
                Mark { attempts, losses, not_before, rests, outgoing }
            },
        )
    }

    fn location() -> impl Strategy<Value = Location> {
        (any::<u64>(), any::<u32>()).prop_map(|(pack, ordinal)| Location { pack, ordinal })
    }

    fn record() -> impl Strategy<Value = Record> {
        let place = (
            proptest::option::of(any::<u64>()),
            any::<u16>(),
            any::<u32>(),
            proptest::option::of(any::<u32>()),
        )
            .prop_map(|(pack, offset, len, crc)| Place { pack, offset, len, crc });
        let numbers = (any::<u32>(), any::<u64>(), place, 0..3_u8, any::<bool>(), 0..10_u8);
        let key = (proptest::option::of(any::<u128>()), proptest::option::of(any::<u128>()));
        let add =
            (numbers, proptest::option::of(1..u64::MAX), key, proptest::option::of(any::<u16>()), mark())
                .prop_map(|((target, sequence, place, qos, retain, level), expires, key, incoming, mark)| {
                    Record::Add(Add {
                        target,
                        sequence,
                        place,
                        qos: Qos::from_u8(qos).unwrap(),
                        retain,
                        priority: Priority::new(level).unwrap(),
                        expires_at: expires.map(UnixMillis),
                        key: key.0.map(TextHash),
                        value: key.1.map(TextHash),
                        incoming,
                        mark,
                    })
                });
        prop_oneof![
            add,
            (any::<u32>(), any::<u64>(), location()).prop_map(|(target, sequence, of)| Record::Settle {
                target,
                sequence,
                of
            }),
            (any::<u32>(), any::<u64>(), location(), mark())
                .prop_map(|(target, sequence, of, mark)| Record::Mark { target, sequence, of, mark }),
        ]
    }

    proptest! {
        #[test]
        fn heads_come_back(records in proptest::collection::vec(record(), 0..20), inline: Vec<u8>) {
            let mut bytes = Vec::new();
            records.iter().for_each(|record| record.encode(&mut bytes));
            let row = encode_head(INLINE, 7, records.len() as u32, &bytes, &inline);
            let head = decode_head(&row).unwrap();
            prop_assert_eq!(head.records, records);
            prop_assert_eq!(head.inline.unwrap(), inline);
            prop_assert_eq!(head.boot, 7);
        }

        #[test]
        fn damage_is_seen(records in proptest::collection::vec(record(), 1..5), at: prop::sample::Index, bit in 0..8_u32) {
            let mut bytes = Vec::new();
            records.iter().for_each(|record| record.encode(&mut bytes));
            let mut row = encode_head(0, 7, records.len() as u32, &bytes, &[]);
            let at = at.index(row.len());
            row[at] ^= 1_u8 << bit;
            prop_assert!(decode_head(&row).is_err());
        }

        #[test]
        fn any_bytes_are_refused_or_read(row: Vec<u8>) {
            drop(decode_head(&row));
            drop(Done::decode(&row));
            drop(super::super::body::decode_message(row.into()));
        }
    }

    /// What earlier programs wrote is read, and what this one writes stays as it is.
    #[test]
    fn the_layout_of_an_add_stays() {
        let mut add = Add {
            target: 3,
            sequence: 300,
            place: Place { pack: None, offset: 2, len: 5, crc: None },
            qos: Qos::AtLeastOnce,
            retain: false,
            priority: Priority::default(),
            expires_at: None,
            key: None,
            value: None,
            incoming: None,
            mark: Mark { attempts: 1, ..Mark::default() },
        };
        let bytes = |add: &Add| {
            let mut bytes = Vec::new();
            Record::Add(add.clone()).encode(&mut bytes);
            assert_eq!(Record::decode(&mut &bytes[..]).unwrap(), Record::Add(add.clone()));
            bytes
        };
        let before = [TAG_ADD, 0x42, 4, 3, 0xac, 2, 2, 5, 1, 0, 0];
        assert_eq!(bytes(&add), before, "formats 1 to 3");
        add.key = Some(TextHash(0x0102));
        let key = [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let with_key = [&[TAG_ADD, 0x42, 0x84, 3, 0xac, 2, 2, 5][..], &key, &[1, 0, 0]].concat();
        assert_eq!(bytes(&add), with_key, "format 3");
        add.value = Some(TextHash(0x03));
        let value = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let both = [&[TAG_ADD, 0x42, 0xc4, 3, 0xac, 2, 2, 5][..], &key, &value, &[1, 0, 0]].concat();
        assert_eq!(bytes(&add), both, "format 3");
    }

    #[test]
    fn checkpoints_come_back() {
        let marks = vec![(1, Mark { attempts: 3, ..Mark::default() })];
        let done = Done { as_of: 300, settled: vec![5, u64::MAX], marks };
        assert_eq!(Done::decode(&done.encode()).unwrap(), done);
        let row = done.encode();
        let before = encode_checked(&decode_checked(&row, "it").unwrap()[..row.len() - 4 - 2]);
        assert_eq!(Done::decode(&before).unwrap(), Done { as_of: u64::MAX, ..done });
    }
}
