//! Hands out everything of a store that can be read: definitions, retained values, messages.

use std::path::Path;

use super::format::{self, Mark};
use super::offline::{BodyReader, Offline};
use crate::engine::{Cursor, Definition, OpenError, Outgoing, SubscribeOptions};
use crate::types::topic::FilterSpec;
use crate::types::{CursorName, Message, Priority, Qos, Sequence, UnixMillis};

pub use super::offline::{Damage, Progress};

/// One thing that a store holds.
#[derive(Debug)]
pub enum Item<'a> {
    /// A queue, session, share group or stream.
    Target {
        /// What it is.
        definition: &'a Definition,
        /// The place that the next message gets there.
        next_sequence: u64,
        /// What a session subscribed to.
        subscriptions: &'a [(FilterSpec, SubscribeOptions)],
        /// Packet ids of QoS 2 publishes that a session has not released, and the place of each.
        incoming: &'a [(u16, Sequence)],
        /// How far readers of a stream are.
        cursors: &'a [(CursorName, Cursor)],
    },
    /// The retained value of a topic.
    Retained(&'a Message),
    /// A message that waits in a target.
    Message(&'a Waiting<'a>),
}

/// A message that waits in a target.
#[derive(Debug)]
pub struct Waiting<'a> {
    /// Where; none if its definition is lost.
    pub target: Option<&'a Definition>,
    /// The number of the target.
    pub target_id: u32,
    /// Its place there.
    pub sequence: Sequence,
    /// What the subscription granted.
    pub qos: Qos,
    /// The retain flag to hand on.
    pub retain: bool,
    /// Its priority there.
    pub priority: Priority,
    /// From then on it is not delivered there.
    pub expires_at: Option<UnixMillis>,
    /// Deliveries that were counted and not settled.
    pub attempts: u32,
    /// How many of them ended with their consumer.
    pub losses: u8,
    /// Not delivered earlier.
    pub not_before: Option<UnixMillis>,
    /// It rests until then because it was given back, and keeps the place of its key.
    pub rests: bool,
    /// When it was appended, in a stream.
    pub appended_at: Option<UnixMillis>,
    /// How far its delivery to a session is.
    pub outgoing: Option<Outgoing>,
    /// The message.
    pub message: Message,
}

/// What an export came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportReport {
    /// Queues, sessions, share groups, streams and backlogs.
    pub targets: u64,
    /// Retained values.
    pub retained: u64,
    /// Messages.
    pub messages: u64,
    /// Messages and retained values that cannot be read.
    pub skipped: u64,
    /// What could not be read.
    pub damages: Vec<Damage>,
}

/// Why an export ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The store cannot be opened at all.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Whoever takes the items cannot go on.
    #[error("cannot write the export")]
    Output(#[from] std::io::Error),
}

/// Hands every readable thing of the store in a data directory to `take`: definitions, then retained values, then
/// messages by target and sequence. Blocks; changes nothing but what sled itself does when it opens. A file
/// that sled does not open is copied within the data directory, and the copy read up to the damage.
///
/// # Errors
/// [`ExportError`].
pub fn export(
    data_dir: &Path,
    tell: &mut dyn FnMut(Progress),
    take: &mut dyn FnMut(Item<'_>) -> std::io::Result<()>,
) -> Result<ExportReport, ExportError> {
    let offline = Offline::open_or_copy(data_dir)?;
    let mut contents = offline.contents(tell);
    let mut report = ExportReport::default();
    for (id, definition) in &contents.definitions {
        let unreleased = contents.live_of(*id);
        let unreleased = unreleased.filter_map(|it| Some((it.add.incoming?, Sequence(it.add.sequence))));
        let incoming: Vec<_> = unreleased.collect();
        let subscriptions = contents.subscriptions.get(id).map_or(&[][..], Vec::as_slice);
        let next_sequence = contents.sequences.get(id).copied().unwrap_or(1);
        let cursors = contents.cursors.get(id).map_or(&[][..], Vec::as_slice);
        take(Item::Target { definition, next_sequence, subscriptions, incoming: &incoming, cursors })?;
        report.targets += 1;
    }
    let live = std::mem::take(&mut contents.live);
    let total = Some(live.len() as u64);
    let mut reader = BodyReader::new(&offline);
    for (done, live) in (1..).zip(live) {
        tell(Progress { phase: "messages", done, total });
        if live.add.incoming.is_some() {
            continue;
        }
        let target_id = live.add.target;
        let message = match reader.message(&live) {
            Ok(message) => message,
            Err(what) => {
                report.skipped += 1;
                let place = format!("message {} of {}", live.add.sequence, contents.name(target_id));
                contents.damage(place, what, "it is not exported");
                continue;
            }
        };
        if target_id == format::RETAINED {
            report.retained += 1;
            take(Item::Retained(&message))?;
            continue;
        }
        let target = contents.definitions.get(&target_id);
        // A stream keeps the one where others keep the other.
        let (appended_at, expires_at) = match target {
            Some(Definition::Stream(_)) => (live.add.expires_at, message.expires_at),
            _ => (None, live.add.expires_at.or(message.expires_at)),
        };
        let Mark { attempts, losses, not_before, rests, outgoing } = live.add.mark;
        report.messages += 1;
        take(Item::Message(&Waiting {
            target,
            target_id,
            sequence: Sequence(live.add.sequence),
            qos: live.add.qos,
            retain: live.add.retain,
            priority: live.add.priority,
            expires_at,
            attempts,
            losses,
            not_before,
            rests,
            appended_at,
            outgoing,
            message,
        }))?;
    }
    report.damages = contents.damages;
    Ok(report)
}
