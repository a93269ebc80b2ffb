//! Reading a stream from somewhere on.
//!
//! A reader reads the log itself, at its own pace and a page at a time, so what is appended while it reads comes in its turn: there is
//! no seam between what was there and what is new. What retention took before the reader came to it is told, and so is what
//! cannot be read.
//!
//! Invariant: every sequence from the start on is given once, told as skipped, or passed over because of the filter or its own
//! expiry, in order.

use std::fmt;
use std::sync::Arc;

use crate::bell::Bell;
use crate::core::{Broker, CoreError};
use crate::engine::{EngineError, Found, Logged, StreamEnds, StreamReader};
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
    next: Sequence,
}

/// What comes next in a stream.
#[derive(Debug, Clone)]
pub enum Item {
    /// A message.
    Message(Logged),
    /// These were there, up to the last one, and are not given.
    Skipped {
        /// The first.
        from: Sequence,
        /// The last.
        to: Sequence,
        /// Why not.
        why: Missing,
    },
}

/// Why a message that was in a stream is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It was not kept long enough; or was lost with a crash, where that is permitted.
    NotKept,
    /// It is there, and cannot be read.
    Unreadable,
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
        let reader = self.engine.stream_reader(stream.id, filter).map_err(of)?;
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
        Ok(Reading { stream: Arc::clone(stream), reader, next: next.max(Sequence(1)) })
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
        let mut part = Part::default();
        let now = clock::unix_now();
        for found in page.found {
            let sequence = found.sequence();
            self.skip_to(sequence, &mut part);
            self.next = Sequence(sequence.0 + 1);
            match found {
                Found::Message(logged) if !logged.message.is_expired(now) => {
                    part.items.push(Item::Message(logged));
                }
                Found::Message(_) | Found::PassedOver(_) => {}
                Found::Unreadable(from) => {
                    part.items.push(Item::Skipped { from, to: from, why: Missing::Unreadable });
                }
            }
        }
        self.skip_to(page.ends.first, &mut part);
        part.moved = self.next > before;
        Ok(part)
    }

    fn skip_to(&mut self, sequence: Sequence, part: &mut Part) {
        if sequence > self.next {
            let (from, to) = (self.next, Sequence(sequence.0 - 1));
            part.items.push(Item::Skipped { from, to, why: Missing::NotKept });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Limits;
    use crate::core::streams::define::plain_stream;
    use crate::engine::StreamPage;
    use crate::types::{Message, MessageIds, Qos, StreamName, TargetId};

    /// Gives the same page to each who asks.
    #[derive(Debug)]
    struct Page(StreamPage, Arc<Bell>);

    impl StreamReader for Page {
        fn read(&self, _: Sequence, _: usize, _: usize) -> Result<StreamPage, EngineError> {
            Ok(self.0.clone())
        }

        fn ready(&self) -> &Arc<Bell> {
            &self.1
        }
    }

    #[test]
    fn every_place_is_given_told_or_passed_over() {
        let message = |sequence| {
            let message = Message {
                id: MessageIds::new().next_now(),
                topic: "t".parse().unwrap(),
                payload: bytes::Bytes::new(),
                qos: Qos::AtLeastOnce,
                retain: false,
                expires_at: None,
                extras: None,
            };
            Found::Message(Logged { sequence: Sequence(sequence), appended_at: UnixMillis(1), message })
        };
        let (passed, damaged) = (Found::PassedOver(Sequence(4)), Found::Unreadable(Sequence(5)));
        let found = vec![message(3), passed, damaged, message(8)];
        let ends = StreamEnds { first: Sequence(3), next: Sequence(9) };
        let page = StreamPage { found, ends };
        let spec = plain_stream(StreamName::parse("s").unwrap(), &Limits::default(), UnixMillis(1));
        let stream = StreamEntry::new(TargetId(1), spec, Vec::new()).unwrap();
        let reader = Box::new(Page(page, Arc::default()));
        let mut reading = Reading { stream, reader, next: Sequence(1) };
        let part = reading.read(9, 9).unwrap();
        let told = |item: &Item| match item {
            Item::Message(logged) => (logged.sequence.0, logged.sequence.0, None),
            Item::Skipped { from, to, why } => (from.0, to.0, Some(*why)),
        };
        let (not_kept, unreadable) = (Some(Missing::NotKept), Some(Missing::Unreadable));
        let expected = [(1, 2, not_kept), (3, 3, None), (5, 5, unreadable), (6, 7, not_kept), (8, 8, None)];
        assert_eq!(part.items.iter().map(told).collect::<Vec<_>>(), expected);
        assert!(part.moved && reading.next() == Sequence(9));
    }
}
