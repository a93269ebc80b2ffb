//! Builds the rows of a commit: records and bodies into packs, packs into rows of bounded size.

use bytes::Bytes;
use sled::IVec;

use super::bodies::{Bodies, BodyKey};
use super::dedup::Dedup;
use super::disk::{Disk, Tree};
use super::format::{
    Add, CHECKSUM_BYTES, CONTINUED, CONTINUES, HEAD_BYTES, INLINE, INLINE_BYTES, LARGE_BYTES, Location,
    PART_BYTES, Place, ROW_BYTES, Record, WHOLE, encode_head, part_key, put_checksum,
};
use super::ledger::Ledger;
use super::log::Log;

/// What the records of one operation may need of a head before it is written as a chain.
const RECORDS_BYTES: usize = ROW_BYTES - HEAD_BYTES - 64;
/// No record is longer.
pub(super) const RECORD_BYTES: usize = 112;

/// The pack that is being built.
#[derive(Debug)]
struct Open {
    pack: u64,
    flags: u8,
    records: Vec<u8>,
    count: u32,
    /// As the row will be: behind room for its checksum.
    bodies: Vec<u8>,
    slots: u16,
    part_bytes: usize,
    names: Vec<u64>,
}

/// Writes packs in their order.
#[derive(Debug)]
pub(super) struct Packer {
    boot: u64,
    next_pack: u64,
    open: Option<Open>,
    /// The first pack of the chain that is being written.
    chain: Option<u64>,
    /// What is written is one operation of several messages, which fill several packs: those that are sealed.
    linked: Option<Vec<u64>>,
    pub(super) log: Log,
    /// Body rows below this pack are there, if only as empty ones.
    reserved: u64,
    spare: (Vec<u8>, Vec<u8>, Vec<u64>),
}

/// Body rows are made empty, so many at once, before the first of them is filled. sled splits a leaf of 17 rows by
/// writing all of them again, and ascending rows fill the upper half alone: full rows would be written almost three
/// times. Empty ones are split for nothing, and filling them splits no leaf.
const RESERVE_PACKS: u64 = 64;
/// The newest leaf has at most so many rows, and none of them may be filled when it is split.
const LEAF_ROWS: u64 = 17;

/// The bytes that a body takes of a row.
fn in_row(body: usize) -> usize {
    if body > LARGE_BYTES { 0 } else { body }
}

/// A row could not be written.
pub(super) type Failed = String;

/// What the packer writes to and keeps account in.
#[derive(Debug)]
pub(super) struct Books<'a> {
    pub(super) disk: &'a Disk,
    pub(super) bodies: &'a Bodies,
    pub(super) ledger: &'a mut Ledger,
    pub(super) dedup: &'a mut Dedup,
}

impl Packer {
    pub(super) fn new(boot: u64, next_pack: u64, log: Log) -> Self {
        Self {
            boot,
            next_pack,
            open: None,
            chain: None,
            linked: None,
            log,
            reserved: 0,
            spare: Default::default(),
        }
    }

    /// The newest pack that was sealed, or 0.
    pub(super) fn last(&self) -> u64 {
        self.next_pack - 1
    }

    /// Whether all that was staged is in sled.
    pub(super) fn is_sealed(&self) -> bool {
        self.open.is_none()
    }

    fn open(&mut self, ledger: &mut Ledger, flags: u8) -> &mut Open {
        let Self { next_pack, open, spare, log, .. } = self;
        open.get_or_insert_with(|| {
            let pack = *next_pack;
            *next_pack += 1;
            ledger.begin(pack, log.written);
            let (records, mut bodies, names) = std::mem::take(spare);
            bodies.resize(CHECKSUM_BYTES, 0);
            Open { pack, flags, records, count: 0, bodies, slots: 0, part_bytes: 0, names }
        })
    }

    /// Makes room for one operation: its records and its body must end up in one pack, or in a chain of its own.
    pub(super) fn begin_op(
        &mut self,
        books: &mut Books<'_>,
        records: usize,
        body: usize,
    ) -> Result<(), Failed> {
        let need = records * RECORD_BYTES;
        let body = in_row(body);
        if self.linked.is_some() {
            if !self.has_room(need, body, 1) {
                self.link(books)?;
            }
        } else if Self::chains(records) {
            self.seal(books, 0)?;
            let pack = self.open(books.ledger, 0).pack;
            self.chain = Some(pack);
        } else if !self.has_room(need, body, 1) {
            self.seal(books, 0)?;
        }
        Ok(())
    }

    /// Whether one operation with so many records is written as a chain.
    pub(super) fn chains(records: usize) -> bool {
        records * RECORD_BYTES > RECORDS_BYTES
    }

    /// Whether so much fits the open pack, or there is none.
    fn has_room(&self, records: usize, bodies: usize, slots: usize) -> bool {
        self.open.as_ref().is_none_or(|open| {
            open.records.len() + records <= RECORDS_BYTES
                && open.bodies.len() + bodies <= ROW_BYTES
                && usize::from(open.slots) + slots <= usize::from(u16::MAX)
        })
    }

    /// What is begun from here until [`Packer::end_all`], operations of so many records and such bodies, becomes one: it
    /// ends up in one pack, or in a chain of whole ones. Each has fewer records than a pack has room for.
    pub(super) fn begin_all(
        &mut self,
        books: &mut Books<'_>,
        ops: impl Iterator<Item = (usize, usize)>,
    ) -> Result<(), Failed> {
        let sum = |(need, bodies, count), (records, body)| {
            (need + records * RECORD_BYTES, bodies + in_row(body), count + 1)
        };
        let (need, bodies, count) = ops.fold((0, CHECKSUM_BYTES, 0), sum);
        if self.has_room(need, bodies, count) && self.open.is_some() {
            return Ok(());
        }
        self.seal(books, 0)?;
        let several = need > RECORDS_BYTES || bodies > ROW_BYTES || count > usize::from(u16::MAX);
        self.linked = several.then(Vec::new);
        Ok(())
    }

    /// The last of them is written. The last pack of several says that all are there, and stays until the others are gone: it
    /// is an empty one, so that no bodies stay with it.
    pub(super) fn end_all(&mut self, books: &mut Books<'_>) -> Result<(), Failed> {
        if self.linked.as_ref().is_some_and(|before| !before.is_empty()) {
            self.link(books)?;
        }
        let Some(before) = self.linked.take() else { return Ok(()) };
        if let Some(open) = &self.open {
            before.iter().for_each(|&pack| books.ledger.follow(open.pack, pack));
        }
        self.seal(books, 0)
    }

    /// Goes on in the next pack.
    fn link(&mut self, books: &mut Books<'_>) -> Result<(), Failed> {
        self.seal(books, CONTINUES | WHOLE)?;
        let before = self.last();
        self.linked.get_or_insert_default().push(before);
        self.open(books.ledger, CONTINUED | WHOLE);
        Ok(())
    }

    /// The operation is complete: a chain ends here.
    pub(super) fn end_op(&mut self, books: &mut Books<'_>) -> Result<(), Failed> {
        if self.chain.is_some() {
            self.seal(books, 0)?;
            self.chain = None;
        }
        Ok(())
    }

    /// Puts a body into the operation's pack.
    pub(super) fn body(&mut self, books: &mut Books<'_>, body: &Bytes) -> Result<Place, Failed> {
        let len = u32::try_from(body.len()).map_err(|_| "a message has more than 4 GiB".to_owned())?;
        let open = self.open(books.ledger, 0);
        if body.len() <= LARGE_BYTES {
            let offset = open.bodies.len() - CHECKSUM_BYTES;
            let offset = u16::try_from(offset).map_err(|_| "a body row is too long".to_owned())?;
            open.bodies.extend_from_slice(body);
            return Ok(Place { pack: None, offset, len, crc: None });
        }
        let (pack, slot) = (open.pack, open.slots);
        open.slots += 1;
        for (n, part) in (0_u32..).zip(body.chunks(PART_BYTES)) {
            self.log.insert(books.disk, Tree::Part, &part_key(pack, slot, n), part)?;
        }
        if let Some(open) = &mut self.open {
            open.part_bytes += body.len();
        }
        books.bodies.put(BodyKey::large(pack, slot), body.clone());
        Ok(Place { pack: None, offset: slot, len, crc: Some(crc32fast::hash(body)) })
    }

    /// Appends an ADD whose body [`Packer::body`] has placed. Returns where it stands.
    pub(super) fn add(&mut self, books: &mut Books<'_>, mut add: Add) -> Result<Location, Failed> {
        self.turn_page(books)?;
        let pack = self.open(books.ledger, 0).pack;
        let home = self.chain.unwrap_or(pack);
        if home != pack {
            add.place.pack = Some(home);
        }
        let ordinal = books.ledger.add(home).ok_or_else(|| format!("pack {home} is not in the books"))?;
        if !add.mark.is_empty() {
            books.ledger.mark(Location { pack: home, ordinal }, add.mark);
        }
        let open = self.open(books.ledger, 0);
        add.encode(&mut open.records);
        open.count += 1;
        Ok(Location { pack: home, ordinal })
    }

    /// Appends another record, which names a pack.
    pub(super) fn record(&mut self, books: &mut Books<'_>, record: &Record) -> Result<(), Failed> {
        self.turn_page(books)?;
        let open = self.open(books.ledger, 0);
        if let Record::Settle { of, .. } | Record::Mark { of, .. } = record
            && open.names.last() != Some(&of.pack)
        {
            open.names.push(of.pack);
        }
        record.encode(&mut open.records);
        open.count += 1;
        Ok(())
    }

    /// This pack may not go before `pack`.
    pub(super) fn depend_on(&mut self, books: &mut Books<'_>, pack: u64) {
        self.open(books.ledger, 0).names.push(pack);
    }

    /// Within a chain: goes on in the next pack when this one is full.
    fn turn_page(&mut self, books: &mut Books<'_>) -> Result<(), Failed> {
        let full = self.open.as_ref().is_some_and(|open| open.records.len() + RECORD_BYTES > RECORDS_BYTES);
        if full {
            self.seal(books, if self.chain.is_some() { CONTINUES } else { 0 })?;
            if let Some(first) = self.chain {
                let pack = self.open(books.ledger, CONTINUED).pack;
                books.ledger.follow(pack, first);
            }
        }
        Ok(())
    }

    /// Makes sure that there are rows for the bodies of this pack and of those that fill its leaf.
    fn reserve(&mut self, books: &Books<'_>, pack: u64) -> Result<(), Failed> {
        if pack + LEAF_ROWS < self.reserved {
            return Ok(());
        }
        let first = self.reserved.max(pack);
        self.reserved = first + RESERVE_PACKS;
        for pack in first..self.reserved {
            self.log.insert(books.disk, Tree::Body, &pack.to_be_bytes(), &[])?;
        }
        Ok(())
    }

    /// Writes the open pack: bodies and deduplication ids, then the head that implies them.
    pub(super) fn seal(&mut self, books: &mut Books<'_>, flags: u8) -> Result<(), Failed> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let key = open.pack.to_be_bytes();
        let here = open.bodies.get(CHECKSUM_BYTES..).unwrap_or_default();
        let has_bodies = !here.is_empty();
        let inline = open.records.len() + here.len() <= INLINE_BYTES;
        let here = if inline { here } else { &[] };
        let flags = flags | open.flags | if inline { INLINE } else { 0 };
        let head = IVec::from(encode_head(flags, self.boot, open.count, &open.records, here));
        let mut bytes = open.part_bytes + head.len();
        let mut kept = (inline && has_bodies).then(|| Bytes::copy_from_slice(here));
        if !inline && has_bodies {
            put_checksum(&mut open.bodies);
            let body = IVec::from(open.bodies.as_slice());
            bytes += body.len();
            // The row and what is kept in memory are the same bytes.
            kept = Some(Bytes::from_owner(body.clone()).slice(CHECKSUM_BYTES..));
            self.reserve(books, open.pack)?;
            self.log.insert(books.disk, Tree::Body, &key, body)?;
        }
        for (key, row) in books.dedup.take_rows() {
            self.log.insert(books.disk, Tree::Dedup, &key, row)?;
        }
        self.log.insert(books.disk, Tree::Head, &key, head)?;
        if let Some(kept) = kept {
            books.bodies.put(BodyKey::pack(open.pack), kept);
        }
        books.ledger.seal(open.pack, bytes, open.slots, &mut open.names);
        open.records.clear();
        open.bodies.clear();
        self.spare = (open.records, open.bodies, open.names);
        Ok(())
    }
}
