//! Reads a store that nobody serves, changes nothing that it says, and goes on behind what is damaged.
//!
//! It follows `recovery`: a message is alive when the newest ADD of its target and sequence is not settled. Where
//! `recovery` refuses the store, a [`Damage`] is noted here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::bodies::{read_large, read_pack};
use super::body::decode_message;
use super::disk::{Disk, damaged};
use super::format::{self, Add, CONTINUED, CONTINUES, Done, Head, Location, Record, WHOLE};
use super::ledger::Ledger;
use super::log;
use super::marker::Marker;
use super::objects;
use super::rows::{Rows, guarded};
use crate::engine::{Cursor, Definition, EngineError, OpenError, SubscribeOptions};
use crate::types::topic::FilterSpec;
use crate::types::{CursorName, Message};

/// sled's cache while a store is read from end to end.
const CACHE_BYTES: u64 = 32 << 20;

/// The place of a damage that keeps sled from opening the store.
pub(super) const THE_FILE: &str = "the file store/db";

/// Something that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which row: `the head of pack 7`.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
    /// What is lost by it.
    pub consequence: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.place, self.what, self.consequence)
    }
}

/// Where a long reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is read.
    pub phase: &'static str,
    /// How much of it.
    pub done: u64,
    /// Of how much, if that is known.
    pub total: Option<u64>,
}

/// A message that would be delivered, or what stands in its place.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) add: Add,
    pub(super) location: Location,
}

/// An open store.
#[derive(Debug)]
pub(super) struct Offline {
    pub(super) disk: Disk,
    /// What is wrong with the file as a whole, and where the copy is that is read instead.
    copied: Option<(String, Scratch)>,
    /// What is wrong with the journal.
    journal: Option<String>,
}

/// A directory that is removed in the end.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// What is in it, bodies aside.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) definitions: BTreeMap<u32, Definition>,
    pub(super) subscriptions: BTreeMap<u32, Vec<(FilterSpec, SubscribeOptions)>>,
    /// The next sequence of each target.
    pub(super) sequences: BTreeMap<u32, u64>,
    /// Of streams.
    pub(super) cursors: BTreeMap<u32, Vec<(CursorName, Cursor)>>,
    /// By target and sequence. What belongs to a deleted target is left out.
    pub(super) live: Vec<Live>,
    /// Numbers of the packs whose heads can be read.
    pub(super) packs: BTreeSet<u64>,
    pub(super) last_pack: u64,
    pub(super) head_bytes: u64,
    /// Of bodies, those in heads too, settled or not.
    pub(super) body_bytes: u64,
    pub(super) damages: Vec<Damage>,
    /// Rows that a crash left half done; the next start clears them.
    pub(super) leftovers: u64,
    /// Packs of a chain without an end.
    pub(super) unfinished: u64,
    /// Whether definitions are missing, so that messages may have a target without a name.
    pub(super) nameless: bool,
}

impl Contents {
    pub(super) fn damage(&mut self, place: impl fmt::Display, what: impl fmt::Display, lost: &str) {
        let (place, what) = (place.to_string(), what.to_string());
        self.damages.push(Damage { place, what, consequence: lost.to_owned() });
    }

    /// What is alive of one target.
    pub(super) fn live_of(&self, target: u32) -> impl Iterator<Item = &Live> {
        let start = self.live.partition_point(|live| live.add.target < target);
        self.live.iter().skip(start).take_while(move |live| live.add.target == target)
    }

    /// How a target is called in what people read.
    pub(super) fn name(&self, target: u32) -> String {
        match self.definitions.get(&target) {
            Some(Definition::Queue(queue)) => format!("queue {}", queue.name),
            Some(Definition::Session(session)) => format!("session {}", session.client_id),
            Some(Definition::Group(group)) => format!("group {}", group.filter),
            Some(Definition::Backlog(backlog)) => format!("backlog {}", backlog.name),
            Some(Definition::Stream(stream)) => format!("stream {}", stream.name),
            None if target == format::RETAINED => "retained values".to_owned(),
            None => format!("target {target}"),
        }
    }
}

impl Offline {
    /// Takes the store's lock and opens it.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        Self { disk: Disk::open_existing(path, CACHE_BYTES)?, copied: None, journal: None }.replayed(path)
    }

    /// The same; if sled does not open the file, a copy of it is read as far as it can be.
    pub(super) fn open_or_copy(path: &Path) -> Result<Self, OpenError> {
        let what = match Self::open(path) {
            Err(OpenError::Damaged { what, .. }) => what,
            other => return other,
        };
        let scratch = Scratch(path.join("salvage"));
        drop(std::fs::remove_dir_all(&scratch.0));
        let disk = Disk::open_copy(path, &scratch.0, CACHE_BYTES)?;
        Self { disk, copied: Some((what, scratch)), journal: None }.replayed(path)
    }

    /// With what stands in the journal, unless the store is newer than this program.
    fn replayed(mut self, path: &Path) -> Result<Self, OpenError> {
        match self.format() {
            Ok(Some(found)) if found > format::FORMAT => {
                return Err(OpenError::Newer { path: path.to_owned(), found, known: format::FORMAT });
            }
            _ => {}
        }
        self.journal = guarded(|| log::replay(&self.disk, path)).err();
        Ok(self)
    }

    /// The open store, if it is one that is served as it is, heads and bodies aside.
    pub(super) fn sound(self, path: &Path) -> Result<Disk, OpenError> {
        let what = match self.format() {
            Ok(Some(found)) if format::is_known(found) => None,
            Ok(Some(found)) => Some(format!("it has the unknown format {found}")),
            Ok(None) => Some("it has no format".to_owned()),
            Err(what) => Some(what),
        };
        match what.or(self.journal).or_else(|| Marker::missing(path, &self.disk.trees)) {
            Some(what) => Err(damaged(path, what)),
            None => Ok(self.disk),
        }
    }

    pub(super) fn format(&self) -> Result<Option<u32>, String> {
        let row = guarded(|| self.disk.trees.meta.get("format"))?;
        row.map(|row| {
            row.as_ref().try_into().map(u32::from_be_bytes).map_err(|_| "is not a number".to_owned())
        })
        .transpose()
    }

    /// Reads all but the bodies.
    pub(super) fn contents(&self, tell: &mut dyn FnMut(Progress)) -> Contents {
        let mut contents = Contents::default();
        if let Some((what, _)) = &self.copied {
            contents.damage(
                THE_FILE,
                what,
                "what was written after the damage is lost; a copy was read up to it",
            );
        }
        if let Some(what) = &self.journal {
            contents.damage("the journal", what, "what was written last is lost; the broker does not start");
        }
        self.meta(&mut contents);
        self.definitions(&mut contents);
        let mut ledger = Ledger::default();
        let mut adds = self.heads(&mut contents, &mut ledger, tell);
        contents.body_bytes = body_bytes(&adds);
        self.checkpoints(&mut contents, &mut ledger);
        adds.sort_by_key(|live| (live.add.target, live.add.sequence, live.location));
        // A rewritten message stands twice: what counts is where it was written last.
        for live in adds {
            let next = contents.sequences.entry(live.add.target).or_insert(1);
            *next = (*next).max(live.add.sequence.saturating_add(1));
            let same = |it: &Live| (it.add.target, it.add.sequence) == (live.add.target, live.add.sequence);
            if contents.live.last().is_some_and(same) {
                contents.live.pop();
            }
            contents.live.push(live);
        }
        let Contents { live, definitions, nameless, .. } = &mut contents;
        live.retain_mut(|live| {
            live.add.mark = ledger.mark_of(live.location);
            let target = live.add.target;
            ledger.is_live(live.location)
                && (*nameless || target == format::RETAINED || definitions.contains_key(&target))
        });
        contents
    }

    fn meta(&self, contents: &mut Contents) {
        let place = "the format of the store";
        match self.format() {
            Ok(Some(found)) if format::is_known(found) => {}
            Ok(Some(found)) => contents.damage(place, format!("{found} is unknown"), "it is not opened"),
            Ok(None) => contents.damage(place, "is missing", "it is not opened"),
            Err(what) => contents.damage(place, what, "it is not opened"),
        }
        for (key, bytes) in [("boot", 8), ("secret", 16)] {
            let lost = "lease tokens that were given out may not be known any more";
            match guarded(|| self.disk.trees.meta.get(key)) {
                Ok(row) if row.as_ref().is_none_or(|row| row.len() == bytes) => {}
                Ok(_) => contents.damage(format!("the row {key}"), "has a wrong length", lost),
                Err(what) => contents.damage(format!("the row {key}"), what, lost),
            }
        }
    }

    fn definitions(&self, contents: &mut Contents) {
        let trees = &self.disk.trees;
        let lost = "a queue, session or share group is lost, with the name that its messages have";
        for row in Rows::new(&trees.obj, 4) {
            let (place, read) = match row {
                Ok((key, value)) => match target_of(&key) {
                    Some(id) => {
                        let read = objects::decode(&value).map_err(|e| e.to_string());
                        (format!("the definition of target {id}"), read.map(|it| (id, it)))
                    }
                    None => ("a definition".to_owned(), Err("has a wrong key".to_owned())),
                },
                Err(what) => ("definitions".to_owned(), Err(what)),
            };
            match read {
                Ok((id, definition)) => drop(contents.definitions.insert(id, definition)),
                Err(what) => {
                    contents.nameless = true;
                    contents.damage(place, what, lost);
                }
            }
        }
        for row in Rows::new(&trees.sub, 4) {
            let (place, read) = match row {
                Ok((key, value)) => {
                    let id = target_of(&key);
                    let filter = key.get(4..).unwrap_or_default();
                    let stream =
                        id.filter(|id| matches!(contents.definitions.get(id), Some(Definition::Stream(_))));
                    if let Some(id) = stream {
                        match objects::decode_cursor(filter, &value) {
                            Ok(cursor) => contents.cursors.entry(id).or_default().push(cursor),
                            Err(what) => {
                                let place = format!("the cursor {}", String::from_utf8_lossy(filter));
                                contents.damage(place, what, "its reader does not know how far it was");
                            }
                        }
                        continue;
                    }
                    let read = objects::decode_subscription(filter, &value).map_err(|e| e.to_string());
                    let place = format!("the subscription {}", String::from_utf8_lossy(filter));
                    (place, read.and_then(|it| id.map(|id| (id, it)).ok_or("has a wrong key".to_owned())))
                }
                Err(what) => ("subscriptions".to_owned(), Err(what)),
            };
            match read {
                Ok((id, it)) if contents.definitions.contains_key(&id) => {
                    contents.subscriptions.entry(id).or_default().push(it);
                }
                Ok(_) => contents.leftovers += u64::from(!contents.nameless),
                Err(what) => contents.damage(place, what, "its session does not get those messages any more"),
            }
        }
        for row in Rows::new(&trees.seq, 4) {
            let wrong = match row {
                Ok((key, value)) => match (target_of(&key), value.first_chunk()) {
                    (Some(id), Some(next)) if key.len() == 4 && value.len() == 8 => {
                        contents.sequences.insert(id, u64::from_be_bytes(*next));
                        continue;
                    }
                    _ => "is not a number".to_owned(),
                },
                Err(what) => what,
            };
            contents.damage("a sequence row", wrong, "sequence numbers may be given out again");
        }
    }

    /// Reads all heads. Returns every ADD, settled or not.
    fn heads(
        &self,
        contents: &mut Contents,
        ledger: &mut Ledger,
        tell: &mut dyn FnMut(Progress),
    ) -> Vec<Live> {
        const LOST: &str = "its messages are lost, and what it settled may be delivered again";
        let mut adds = Vec::new();
        let mut chain: Vec<(u64, Head)> = Vec::new();
        let mut broken = false;
        for row in Rows::new(&self.disk.trees.head, 8) {
            let (pack, head) = match row {
                Ok((key, value)) => {
                    let Some(pack) = format::key_pack(&key).filter(|_| key.len() == 8) else {
                        contents.damage("a head", "has a wrong key", LOST);
                        continue;
                    };
                    contents.last_pack = contents.last_pack.max(pack);
                    contents.head_bytes += value.len() as u64;
                    contents.packs.insert(pack);
                    (pack, format::decode_head(&value).map_err(|e| e.to_string()))
                }
                Err(what) => {
                    let place = format!("heads after pack {}", contents.last_pack);
                    contents.damage(
                        place,
                        what,
                        "their messages are lost, and what they settled may be delivered again",
                    );
                    broken = true;
                    continue;
                }
            };
            tell(Progress { phase: "heads", done: contents.packs.len() as u64, total: None });
            let head = match head {
                Ok(head) => head,
                Err(what) => {
                    contents.damage(format!("the head of pack {pack}"), what, LOST);
                    broken = true;
                    continue;
                }
            };
            let (continued, goes_on) = (head.flags & CONTINUED != 0, head.flags & CONTINUES != 0);
            if continued && head.flags & WHOLE == 0 && chain.is_empty() {
                // Its first pack was about to be removed; or its head is what is damaged.
                contents.leftovers += u64::from(!broken);
                continue;
            }
            if !continued && !chain.is_empty() {
                let place =
                    format!("the chain that begins with pack {}", chain.first().map_or(pack, |it| it.0));
                contents.damage(place, "has no end", "the messages of one publish may be there in part");
                accept(std::mem::take(&mut chain), ledger, &mut adds);
            }
            chain.push((pack, head));
            if !goes_on {
                accept(std::mem::take(&mut chain), ledger, &mut adds);
                broken = false;
            }
        }
        // The crash came in the middle of an operation: none of it happened.
        contents.unfinished = chain.len() as u64;
        contents.leftovers += contents.unfinished;
        if let Some((first, _)) = chain.first() {
            contents.last_pack = first.saturating_sub(1);
        }
        for (pack, _) in chain {
            contents.packs.remove(&pack);
        }
        adds
    }

    fn checkpoints(&self, contents: &mut Contents, ledger: &mut Ledger) {
        const LOST: &str = "messages that are settled may be delivered again";
        for row in Rows::new(&self.disk.trees.done, 8) {
            match row {
                Ok((key, value)) => match (format::key_pack(&key), Done::decode(&value)) {
                    (Some(pack), Ok(done)) if ledger.contains(pack) => ledger.restore(pack, &done),
                    (Some(_), Ok(_)) => contents.leftovers += 1,
                    (None, _) => contents.damage("a settlement checkpoint", "has a wrong key", LOST),
                    (Some(pack), Err(e)) => {
                        contents.damage(format!("the checkpoint of pack {pack}"), e, LOST)
                    }
                },
                Err(what) => contents.damage("settlement checkpoints", what, LOST),
            }
        }
    }
}

/// The targets of one message stand behind each other, and share its body.
fn body_bytes(adds: &[Live]) -> u64 {
    let mut last = None;
    let mut bytes = 0;
    for Live { add, location } in adds.iter().filter(|live| live.add.incoming.is_none()) {
        let body = Some((location.pack, add.place.crc, add.place.offset));
        bytes += if body == last { 0 } else { u64::from(add.place.len) };
        last = body;
    }
    bytes
}

fn target_of(key: &[u8]) -> Option<u32> {
    key.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// What is wrong, without saying again that the store is damaged.
fn cause(error: EngineError) -> String {
    match error {
        EngineError::Damaged(what) => what,
        other => other.to_string(),
    }
}

/// Takes over the records of a pack, or of a chain: the bodies lie in the first, or in each.
fn accept(chain: Vec<(u64, Head)>, ledger: &mut Ledger, adds: &mut Vec<Live>) {
    let Some(first) = chain.first().map(|(pack, _)| *pack) else { return };
    for (pack, head) in chain {
        let home = if head.flags & WHOLE == 0 { first } else { pack };
        ledger.begin(pack, 0);
        for record in head.records {
            match record {
                Record::Add(add) => {
                    let Some(ordinal) = ledger.add(home) else { continue };
                    let location = Location { pack: home, ordinal };
                    if !add.mark.is_empty() {
                        ledger.mark(location, add.mark);
                    }
                    adds.push(Live { add, location });
                }
                Record::Settle { of, .. } => drop(ledger.settle(of)),
                Record::Mark { of, mark, .. } => ledger.read_mark(of, mark, pack),
            }
        }
        ledger.seal(pack, 0, 0, &mut Vec::new());
    }
}

/// Reads bodies, the last pack's kept.
pub(super) struct BodyReader<'a> {
    disk: &'a Disk,
    last: Option<(u64, Result<Bytes, String>)>,
}

impl<'a> BodyReader<'a> {
    pub(super) fn new(offline: &'a Offline) -> Self {
        Self { disk: &offline.disk, last: None }
    }

    /// The bodies of a pack are these.
    pub(super) fn keep(&mut self, pack: u64, bodies: Result<Bytes, String>) {
        self.last = Some((pack, bodies));
    }

    /// The message of an ADD, its checksum compared.
    pub(super) fn message(&mut self, live: &Live) -> Result<Message, String> {
        let (place, pack) = (live.add.place, live.location.pack);
        let len = place.len as usize;
        let bytes = match place.crc {
            Some(crc) => {
                let bytes = guarded(|| read_large(&self.disk.trees, pack, place.offset, len).map_err(cause))?;
                if bytes.len() != len || crc32fast::hash(&bytes) != crc {
                    return Err("the parts of its body have a wrong checksum".to_owned());
                }
                bytes
            }
            None => {
                if self.last.as_ref().is_none_or(|(last, _)| *last != pack) {
                    let read = guarded(|| read_pack(&self.disk.trees, pack).map_err(cause));
                    self.last = Some((pack, read));
                }
                let bodies = match &self.last {
                    Some((_, Ok(bodies))) => bodies,
                    Some((_, Err(what))) => return Err(what.clone()),
                    None => return Err("its pack was not read".to_owned()),
                };
                let start = usize::from(place.offset);
                let end = start.checked_add(len).filter(|&end| end <= bodies.len());
                bodies.slice(start..end.ok_or("its body ends too early")?)
            }
        };
        decode_message(bytes).map_err(|e| e.to_string())
    }
}
