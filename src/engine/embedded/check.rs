//! Compares what a store holds with what was written: formats, checksums, and that every message can be read.

use std::collections::BTreeMap;
use std::path::Path;

use super::dedup;
use super::disk::STORE;
use super::format::{self, RETAINED};
use super::marker::Marker;
use super::offline::{BodyReader, Contents, Live, Offline, THE_FILE};
use super::rows::Rows;
use crate::engine::OpenError;

pub use super::offline::{Damage, Progress};

/// What a target holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetReport {
    /// `queue orders`, `session door-7`, `retained values`, …
    pub name: String,
    /// Messages that would be delivered.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Commits that are still needed or not cleared yet.
    pub packs: u64,
    /// Bytes of their heads, with the bodies that stand there.
    pub head_bytes: u64,
    /// Bytes of rows of bodies.
    pub body_bytes: u64,
    /// Bytes of the parts of large messages.
    pub part_bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Queues, sessions and share groups, and the retained values.
    pub targets: Vec<TargetReport>,
    /// Rows that a crash left half done; the next start clears them. No damage.
    pub leftovers: u64,
    /// Of them, commits of one operation that a crash cut off: none of it happened.
    pub unfinished: u64,
    /// What is not what was written.
    pub damages: Vec<Damage>,
}

/// Checks the store in a data directory. Blocks; changes nothing but what sled itself does when it opens.
///
/// # Errors
/// [`OpenError`] when the store is locked, newer or not there.
pub fn check(data_dir: &Path, tell: &mut dyn FnMut(Progress)) -> Result<CheckReport, OpenError> {
    let file_bytes = std::fs::metadata(data_dir.join(STORE).join("db")).map_or(0, |it| it.len());
    let offline = match Offline::open(data_dir) {
        Ok(offline) => offline,
        Err(OpenError::Damaged { what, .. }) => {
            let consequence = "the broker does not start; an export saves what was written before the damage";
            let (place, consequence) = (THE_FILE.to_owned(), consequence.to_owned());
            let damages = vec![Damage { place, what, consequence }];
            return Ok(CheckReport { file_bytes, damages, ..CheckReport::default() });
        }
        Err(other) => return Err(other),
    };
    let mut contents = offline.contents(tell);
    if let Some(what) = Marker::missing(data_dir, &offline.disk.trees) {
        contents.damage("the store", what, "what was written last is lost; the broker does not start");
    }
    let mut report = CheckReport {
        packs: contents.packs.len() as u64,
        head_bytes: contents.head_bytes,
        file_bytes,
        leftovers: contents.leftovers,
        unfinished: contents.unfinished,
        targets: totals(&contents),
        ..CheckReport::default()
    };
    bodies(&offline, &mut contents, &mut report, tell);
    parts(&offline, &mut contents, &mut report, tell);
    ids(&offline, &mut contents);
    blobs(data_dir, &mut contents);
    report.damages = contents.damages;
    Ok(report)
}

fn totals(contents: &Contents) -> Vec<TargetReport> {
    let mut by_target: BTreeMap<u32, (u64, u64)> =
        contents.definitions.keys().map(|&id| (id, (0, 0))).collect();
    for live in contents.live.iter().filter(|live| live.add.incoming.is_none()) {
        let (messages, bytes) = by_target.entry(live.add.target).or_default();
        *messages += 1;
        *bytes += u64::from(live.add.place.len);
    }
    let report = |(id, (messages, bytes))| TargetReport { name: contents.name(id), messages, bytes };
    by_target.into_iter().map(report).collect()
}

/// Every row of bodies, and every message that lies in one or in a head.
fn bodies(
    offline: &Offline,
    contents: &mut Contents,
    report: &mut CheckReport,
    tell: &mut dyn FnMut(Progress),
) {
    let mut by_pack: BTreeMap<u64, Vec<Live>> = BTreeMap::new();
    for live in std::mem::take(&mut contents.live) {
        if live.add.incoming.is_none() {
            by_pack.entry(live.location.pack).or_default().push(live);
        }
    }
    let total = Some(by_pack.len() as u64);
    let mut done = 0;
    let mut reader = BodyReader::new(offline);
    for row in Rows::new(&offline.disk.trees.body, 8) {
        let (pack, row) = match row {
            Ok((key, row)) => match format::key_pack(&key).filter(|_| key.len() == 8) {
                Some(pack) => (pack, row),
                None => {
                    contents.damage("a row of bodies", "has a wrong key", "it belongs to no message");
                    continue;
                }
            },
            Err(what) => {
                contents.damage("rows of bodies", what, "their messages, named below, cannot be delivered");
                continue;
            }
        };
        report.body_bytes += row.len() as u64;
        if row.is_empty() {
            // Reserved.
            continue;
        }
        if !contents.packs.contains(&pack) {
            orphan(contents, pack, format!("the bodies of pack {pack}"));
            continue;
        }
        let bodies = format::decode_checked(&row, "its row").map_err(|e| e.to_string());
        let lives = by_pack.remove(&pack);
        if let (Err(what), None) = (&bodies, &lives) {
            contents.damage(format!("the bodies of pack {pack}"), what, "nothing: its messages are settled");
        }
        reader.keep(pack, bodies);
        done += u64::from(lives.is_some());
        tell(Progress { phase: "bodies", done, total });
        messages(&mut reader, contents, pack, &lives.unwrap_or_default());
    }
    // In heads, in parts, or nowhere.
    for (pack, lives) in by_pack {
        done += 1;
        tell(Progress { phase: "bodies", done, total });
        messages(&mut reader, contents, pack, &lives);
    }
}

/// The messages of a pack that are alive: those that cannot be read are told together, by what is wrong.
fn messages(reader: &mut BodyReader<'_>, contents: &mut Contents, pack: u64, lives: &[Live]) {
    let mut wrong: BTreeMap<String, BTreeMap<u32, u64>> = BTreeMap::new();
    for live in lives {
        if let Err(what) = reader.message(live) {
            *wrong.entry(what).or_default().entry(live.add.target).or_default() += 1;
        }
    }
    for (what, targets) in wrong {
        let lost = targets.iter().map(|(&target, count)| format!("{count} of {}", contents.name(target)));
        let lost = format!("messages that cannot be delivered: {}", lost.collect::<Vec<_>>().join(", "));
        let refused = if targets.contains_key(&RETAINED) { "; the store is not opened" } else { "" };
        contents.damage(format!("the bodies of pack {pack}"), what, &format!("{lost}{refused}"));
    }
}

/// A row whose head is not there: bodies go before their heads, so the head was lost, or never written.
fn orphan(contents: &mut Contents, pack: u64, place: String) {
    if pack > contents.last_pack {
        contents.leftovers += 1;
    } else if contents.damages.last().is_none_or(|last| last.place != place) {
        contents.damage(
            place,
            "have no head",
            "their messages are lost, and what it settled may be delivered again",
        );
    }
}

/// Every row of parts belongs to a pack. Their checksum is the message's, compared with it.
fn parts(
    offline: &Offline,
    contents: &mut Contents,
    report: &mut CheckReport,
    tell: &mut dyn FnMut(Progress),
) {
    for (done, row) in (1..).zip(Rows::new(&offline.disk.trees.part, 8)) {
        tell(Progress { phase: "parts", done, total: None });
        match row {
            Ok((key, row)) => {
                report.part_bytes += row.len() as u64;
                match format::key_pack(&key).filter(|_| key.len() == 14) {
                    Some(pack) if contents.packs.contains(&pack) => {}
                    Some(pack) => orphan(contents, pack, format!("the parts of pack {pack}")),
                    None => contents.damage("a part", "has a wrong key", "it belongs to no message"),
                }
            }
            Err(what) => {
                contents.damage("parts", what, "large messages, named above if they are waiting, are lost");
            }
        }
    }
}

/// What queues remember of the messages that they took.
fn ids(offline: &Offline, contents: &mut Contents) {
    const LOST: &str = "the store is not opened";
    for row in Rows::new(&offline.disk.trees.dedup, 4) {
        let wrong = match row {
            Ok((key, row)) => match (dedup::queue_of(&key), dedup::decode(&row)) {
                (Some(_), Ok(_)) => continue,
                (None, _) => "has a wrong key".to_owned(),
                (_, Err(e)) => e.to_string(),
            },
            Err(what) => what,
        };
        contents.damage("a row of deduplication ids", wrong, LOST);
    }
}

/// sled puts what is too large for it into files that it never syncs.
fn blobs(data_dir: &Path, contents: &mut Contents) {
    let files = std::fs::read_dir(data_dir.join(STORE).join("blobs")).map_or(0, Iterator::count);
    if files > 0 {
        contents.damage(
            "the directory blobs",
            format!("holds {files} files"),
            "rows that are too large were written; a power cut may lose them",
        );
    }
}

impl CheckReport {
    /// Whether everything is what was written.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damages.is_empty()
    }

    /// How many messages would be delivered, retained values aside.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.targets.iter().filter(|it| it.name != "retained values").map(|it| it.messages).sum()
    }
}
