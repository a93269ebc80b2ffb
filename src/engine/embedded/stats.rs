//! What a store that nobody serves holds, and what of its files that takes. Reads all but the bodies.

use std::collections::BTreeMap;
use std::path::Path;

use super::disk::STORE;
use super::journal;
use super::marker::meta_number;
use super::offline::{Contents, Damage, Live, Offline, Progress};
use super::rows::guarded;
use crate::engine::{Definition, OpenError};
use crate::types::UnixMillis;
use crate::types::clock::unix_now;

/// What kind of thing holds messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A queue.
    Queue,
    /// A session that outlives its connection.
    Session,
    /// The backlog of a share group.
    Group,
    /// What the broker has for itself.
    Backlog,
    /// A stream.
    Stream,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Session => "session",
            Self::Group => "group",
            Self::Backlog => "backlog",
            Self::Stream => "stream",
        }
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetStats {
    /// What it is.
    pub kind: Kind,
    /// Its name, client id or filter.
    pub name: String,
    /// Messages that wait, or that a stream keeps.
    pub messages: u64,
    /// Of these: to be delivered later.
    pub delayed: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// What a session subscribed to.
    pub subscriptions: u64,
}

/// What a store holds. Bytes are those of rows and files, without what the file system adds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// The format, if it can be read.
    pub format: Option<u32>,
    /// How often it was opened to be served.
    pub boot: u64,
    /// Whether it was closed after the newest of them.
    pub closed: bool,
    /// Queues, sessions, share groups, backlogs and streams, in the order in which they were made.
    pub targets: Vec<TargetStats>,
    /// Retained values.
    pub retained: u64,
    /// Bytes of these.
    pub retained_bytes: u64,
    /// Packet ids of QoS 2 publishes that are not released.
    pub unreleased: u64,
    /// Commits that are needed or not cleared yet.
    pub packs: u64,
    /// Bytes of bodies that someone waits for.
    pub live_bytes: u64,
    /// Bytes of bodies that nobody waits for any more.
    pub dead_bytes: u64,
    /// Bytes of heads, with the bodies that stand there.
    pub head_bytes: u64,
    /// Bytes of sled's file.
    pub file_bytes: u64,
    /// Bytes of the journal.
    pub journal_bytes: u64,
    /// What is not what was written; `check` says more.
    pub damages: Vec<Damage>,
}

/// Looks at the store in a data directory. Blocks; changes nothing but what sled itself does when it opens.
///
/// # Errors
/// [`OpenError`] when the store is locked, newer, not there, or damaged so that sled does not open it.
pub fn stats(data_dir: &Path, tell: &mut dyn FnMut(Progress)) -> Result<StoreStats, OpenError> {
    let bytes_of = |path: &Path| std::fs::metadata(path).map_or(0, |it| it.len());
    let offline = Offline::open(data_dir)?;
    let contents = offline.contents(tell);
    let number = |key| guarded(|| meta_number(&offline.disk.trees, key)).unwrap_or(0);
    let (boot, closed) = (number("boot"), number("closed"));
    let retained = || contents.live_of(super::format::RETAINED);
    let now = unix_now();
    Ok(StoreStats {
        format: offline.format().ok().flatten(),
        boot,
        closed: boot > 0 && closed == boot,
        targets: contents.definitions.iter().map(|(&id, it)| target(&contents, id, it, now)).collect(),
        retained: retained().count() as u64,
        retained_bytes: retained().map(|live| u64::from(live.add.place.len)).sum(),
        unreleased: contents.live.iter().filter(|live| live.add.incoming.is_some()).count() as u64,
        packs: contents.packs.len() as u64,
        live_bytes: live_bytes(&contents.live),
        dead_bytes: contents.body_bytes.saturating_sub(live_bytes(&contents.live)),
        head_bytes: contents.head_bytes,
        file_bytes: bytes_of(&data_dir.join(STORE).join("db")),
        journal_bytes: bytes_of(&data_dir.join(journal::NAME)),
        damages: contents.damages,
    })
}

fn target(contents: &Contents, id: u32, definition: &Definition, now: UnixMillis) -> TargetStats {
    let (kind, name) = match definition {
        Definition::Queue(queue) => (Kind::Queue, queue.name.to_string()),
        Definition::Session(session) => (Kind::Session, session.client_id.to_string()),
        Definition::Group(group) => (Kind::Group, group.filter.to_string()),
        Definition::Backlog(backlog) => (Kind::Backlog, backlog.name.to_string()),
        Definition::Stream(stream) => (Kind::Stream, stream.name.to_string()),
    };
    let subscriptions = contents.subscriptions.get(&id).map_or(0, |it| it.len() as u64);
    let mut stats = TargetStats { kind, name, messages: 0, delayed: 0, bytes: 0, subscriptions };
    for live in contents.live_of(id).filter(|live| live.add.incoming.is_none()) {
        stats.messages += 1;
        stats.delayed += u64::from(live.add.mark.not_before.is_some_and(|at| at > now));
        stats.bytes += u64::from(live.add.place.len);
    }
    stats
}

/// A body that several targets wait for counts once.
fn live_bytes(live: &[Live]) -> u64 {
    let bodies = live.iter().filter(|live| live.add.incoming.is_none()).map(|live| {
        let place = live.add.place;
        ((live.location.pack, place.crc.is_some(), place.offset), place.len)
    });
    bodies.collect::<BTreeMap<_, _>>().values().map(|&len| u64::from(len)).sum()
}
