//! Reading a stream from somewhere on.
//!
//! A reader reads the log itself, at its own pace and a page at a time, so what is appended while it reads comes in its turn: there is
//! no seam between what was there and what is new. What retention took before the reader came to it is told, place by place.
//!
//! Invariant: every sequence from the start on is given once, told as skipped, or passed over because of the filter or its own
//! expiry, in order.

use std::fmt;
use std::sync::Arc;

use crate::bell::Bell;
use crate::core::{Broker, CoreError};
use crate::engine::{EngineError, Logged, StreamEnds, StreamReader};
use crate::types::{CursorName, Sequence, TopicFilter, UnixMillis, clock};

use super::cursors::no_such_cursor;
use super::{StreamEntry, of_stream};

/// Where a reader begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// With the oldest message that is kept.
    First,
    /// With the newest.
    Last,
    /// With what comes next.
    New,
    /// With this one.
    Sequence(Sequence),
    /// With the first that was appended then or later.
    Time(UnixMillis),
    /// Behind the place of a cursor, which must be there.
    Committed(CursorName),
    /// The same, or the first when there is no such cursor yet.
    CommittedOrFirst(CursorName),
}

/// One reader.
pub struct Reading {
    stream: Arc<StreamEntry>,
    reader: Box<dyn StreamReader>,
    filter: Option<TopicFilter>,
    next: Sequence,
}

/// What comes next in a stream.
#[derive(Debug, Clone)]
pub enum Item {
    /// A message.
    Message(Logged),
    /// These were there, up to the last one, and were not kept long enough; or were lost with a crash, where that is permitted.
    Skipped {
        /// The first.
        from: Sequence,
        /// The last.
        to: Sequence,
    },
}

/// What one look gave.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// In order.
    pub items: Vec<Item>,
    /// Whether [`Reading::next`] is another than before. If not, there is nothing yet: [`Reading::ready`] is woken.
    pub moved: bool,
}

impl Broker {
    /// Begins to read a stream: what `filter` wants of it, or all.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] for stream or cursor, [`CoreError::OutOfRange`] for a sequence beyond the next one.
    pub fn read_stream(
        &self,
        stream: &Arc<StreamEntry>,
        start: &Start,
        filter: Option<TopicFilter>,
    ) -> Result<Reading, CoreError> {
        let of = |error: EngineError| of_stream(stream, error);
        let reader = self.engine.stream_reader(stream.id).map_err(of)?;
        let StreamEnds { first, next } = self.engine.stream_stats(stream.id).map_err(of)?.ends;
        let next = match start {
            Start::First => first,
            Start::Last => first.max(Sequence(next.0.saturating_sub(1))),
            Start::New => next,
            Start::Sequence(sequence) if *sequence > next => {
                let what = format!("{} is beyond the next message, which will be {}", sequence.0, next.0);
                return Err(CoreError::OutOfRange { field: "sequence".to_owned(), what });
            }
            Start::Sequence(sequence) => *sequence,
            Start::Time(time) => self.engine.stream_at(stream.id, *time).map_err(of)?,
            Start::Committed(name) => behind(stream, name).ok_or_else(|| no_such_cursor(name))?,
            Start::CommittedOrFirst(name) => behind(stream, name).unwrap_or(first),
        };
        Ok(Reading { stream: Arc::clone(stream), reader, filter, next: next.max(Sequence(1)) })
    }
}

fn behind(stream: &StreamEntry, name: &CursorName) -> Option<Sequence> {
    stream.cursor(name).map(|cursor| Sequence(cursor.sequence.0 + 1))
}

impl Reading {
    /// What it reads.
    #[must_use]
    pub fn stream(&self) -> &Arc<StreamEntry> {
        &self.stream
    }

    /// The place that is looked at next.
    #[must_use]
    pub fn next(&self) -> Sequence {
        self.next
    }

    /// Looks at what comes next: at most `max` messages, and no more after `max_bytes` as they are stored (one may overdraw). Never
    /// waits.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] when the stream was deleted; [`CoreError::Engine`].
    pub fn read(&mut self, max: usize, max_bytes: usize) -> Result<Part, CoreError> {
        self.look(max, max_bytes).map_err(|error| of_stream(&self.stream, error))
    }

    pub(super) fn look(&mut self, max: usize, max_bytes: usize) -> Result<Part, EngineError> {
        let page = self.reader.read(self.next, max, max_bytes)?;
        let before = self.next;
        let mut part = Part { items: Vec::with_capacity(page.messages.len()), ..Part::default() };
        let now = clock::unix_now();
        for logged in page.messages {
            self.skip_to(logged.sequence, &mut part);
            self.next = Sequence(logged.sequence.0 + 1);
            let wanted = self.filter.as_ref().is_none_or(|filter| filter.matches(&logged.message.topic));
            if wanted && !logged.message.is_expired(now) {
                part.items.push(Item::Message(logged));
            }
        }
        self.skip_to(page.ends.first, &mut part);
        part.moved = self.next > before;
        Ok(part)
    }

    fn skip_to(&mut self, sequence: Sequence, part: &mut Part) {
        if sequence > self.next {
            part.items.push(Item::Skipped { from: self.next, to: Sequence(sequence.0 - 1) });
            self.next = sequence;
        }
    }

    /// Woken when [`read`](Self::read) may move on that did not.
    #[must_use]
    pub fn ready(&self) -> &Arc<Bell> {
        self.reader.ready()
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading")
            .field("stream", &self.stream)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
