//! Named places in a stream, kept for readers that come again.
//!
//! Invariant: what a commit answers is durable, and a later answer never names an earlier place but for a rewind.

use crate::core::{Broker, CoreError};
use crate::engine::{Cursor, EngineError, Op, Outcome, StreamEnds};
use crate::types::{CursorName, Sequence, clock};

use super::{StreamEntry, refused};

/// How far one reader is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its cursor.
    pub name: CursorName,
    /// What it said.
    pub cursor: Cursor,
    /// How many places follow that hold, or held, a message.
    pub lag: u64,
    /// How many of these were not kept long enough.
    pub lost: u64,
}

impl StreamEntry {
    /// The cursor of this name.
    #[must_use]
    pub fn cursor(&self, name: &CursorName) -> Option<Cursor> {
        self.cursors.lock().get(name).copied()
    }
}

pub(super) fn no_such_cursor(name: &CursorName) -> CoreError {
    CoreError::NotFound { kind: "cursor", name: name.to_string() }
}

impl Broker {
    /// Says that a reader is done with everything up to `sequence` (0: with nothing), and answers when that is durable with where its
    /// cursor is. A place before that of the cursor changes nothing, unless `rewind` is said. Makes the cursor if there is none.
    ///
    /// Dropping the future does not take it back.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::OutOfRange`] beyond the last message, [`CoreError::Limit`],
    /// [`CoreError::Engine`].
    pub async fn commit_cursor(
        &self,
        stream: &StreamEntry,
        name: CursorName,
        sequence: Sequence,
        rewind: bool,
    ) -> Result<Cursor, CoreError> {
        let StreamEnds { next, .. } = self.stream_stats(stream)?.ends;
        if sequence >= next {
            let last = next.0.saturating_sub(1);
            let what = format!("{} is beyond the last message, which is {last}", sequence.0);
            return Err(CoreError::OutOfRange { field: "sequence".to_owned(), what });
        }
        let (cursor, ticket) = {
            // Under the lock, so that the store has them in the order in which they are answered.
            let mut cursors = stream.cursors.lock();
            let max = self.limits.max_cursors;
            let cursor = match cursors.get(&name) {
                Some(there) if there.sequence > sequence && !rewind => *there,
                None if cursors.len() >= max => {
                    return Err(CoreError::Limit {
                        what: "too many cursors of one stream".to_owned(),
                        max: max as u64,
                    });
                }
                _ => Cursor { sequence, committed_at: clock::unix_now() },
            };
            cursors.insert(name.clone(), cursor);
            // What changes nothing is written, too: the answer promises that the place is durable.
            (cursor, self.engine.commit(vec![Op::SetCursor(stream.id, name, Some(cursor))]))
        };
        match ticket.await?.pop() {
            Some(Outcome::Refused(refusal)) => Err(refused(&stream.name, refusal)),
            _ => Ok(cursor),
        }
    }

    /// Forgets a cursor; answers when that is durable.
    ///
    /// Dropping the future does not take it back.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] for stream or cursor, [`CoreError::Engine`].
    pub async fn delete_cursor(&self, stream: &StreamEntry, name: &CursorName) -> Result<(), CoreError> {
        let ticket = {
            let mut cursors = stream.cursors.lock();
            if cursors.remove(name).is_none() {
                return Err(no_such_cursor(name));
            }
            self.engine.commit(vec![Op::SetCursor(stream.id, name.clone(), None)])
        };
        match ticket.await?.pop() {
            Some(Outcome::Refused(refusal)) => Err(refused(&stream.name, refusal)),
            _ => Ok(()),
        }
    }

    /// Where a crash may take the newest messages back, it may leave cursors beyond the end, and their readers would pass over what
    /// gets those sequences next. Durable when it returns. Once, before anybody reads.
    pub(in crate::core) async fn pull_back_cursors(&self) -> Result<(), EngineError> {
        let mut ops = Vec::new();
        for stream in self.streams().all() {
            let last = Sequence(self.engine.stream_stats(stream.id)?.ends.next.0.saturating_sub(1));
            for (name, cursor) in &mut *stream.cursors.lock() {
                if cursor.sequence > last {
                    cursor.sequence = last;
                    ops.push(Op::SetCursor(stream.id, name.clone(), Some(*cursor)));
                }
            }
        }
        if !ops.is_empty() {
            self.engine.commit(ops).await?;
        }
        Ok(())
    }

    /// All cursors of a stream, by name.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn cursors(&self, stream: &StreamEntry) -> Result<Vec<Place>, CoreError> {
        let ends = self.stream_stats(stream)?.ends;
        let cursors = stream.cursors.lock();
        let place = |(name, &cursor): (&CursorName, &Cursor)| {
            let after = cursor.sequence.0 + 1;
            let lag = ends.next.0.saturating_sub(after);
            let lost = ends.first.0.saturating_sub(after).min(lag);
            Place { name: name.clone(), cursor, lag, lost }
        };
        Ok(cursors.iter().map(place).collect())
    }
}
