//! Putting messages straight into a stream, for those who write a log and publish nothing.

use std::sync::Arc;

use crate::core::{Broker, CoreError};
use crate::counters::Passed;
use crate::engine::{EngineError, Op, Outcome, StreamAppend};
use crate::types::{Message, Sequence};

use super::{StreamEntry, refused};

/// What a message on its way takes beside its weight, in bytes.
const OVERHEAD: usize = 256;

impl Broker {
    /// Appends messages in a row, all of them or none; answers with the first and the last place when they are durable.
    /// With `expected`, only if the first gets that sequence. Nobody is subscribed to what is appended: it is read.
    ///
    /// Dropping the future before it waits for the store appends nothing; after that, the messages may be appended.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::OtherNext`], [`CoreError::Precondition`] `STREAM_TOO_SMALL`,
    /// [`CoreError::LowDisk`], [`CoreError::Invalid`] without messages, [`CoreError::Engine`].
    pub async fn append(
        &self,
        stream: &Arc<StreamEntry>,
        messages: Vec<Message>,
        expected: Option<Sequence>,
    ) -> Result<(Sequence, Sequence), CoreError> {
        if messages.is_empty() {
            return Err(CoreError::invalid("messages", "is empty"));
        }
        let bytes = messages.iter().map(|message| message.weight() + OVERHEAD).sum();
        let admitted = self.admission().admit(bytes).await;
        self.traffic.received(Passed::of(messages.iter().map(|message| message.payload.len())));
        let append = StreamAppend { target: stream.id, messages, expected };
        let ticket = admitted.until(self.engine.commit(vec![Op::AppendStream(append)]));
        match ticket.await?.pop() {
            Some(Outcome::Published(sequences)) => {
                let first = sequences.first().copied().flatten();
                let last = sequences.last().copied().flatten();
                first.zip(last).ok_or(CoreError::Engine(EngineError::Stopped))
            }
            Some(Outcome::Refused(refusal)) => Err(refused(&stream.name, refusal)),
            Some(Outcome::Done | Outcome::Duplicate { .. } | Outcome::All(_)) | None => {
                Err(CoreError::Engine(EngineError::Stopped))
            }
        }
    }
}
