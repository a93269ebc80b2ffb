//! Making, changing and deleting streams.
//!
//! Changes stand in one line: each is checked against what the one before left, is durable, takes effect and only
//! then is answered. A change that has begun goes on when its caller leaves.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Definition, Op, Outcome, StreamSpec};
use crate::types::{StreamName, UnixMillis};

use super::{StreamEntry, of_stream, refused};
use crate::core::difference::Differences;
use crate::core::{Broker, CoreError, Limits, filters};

/// Ages are looked at about that often; longer is never.
const MAX_AGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(10 * 365 * 86_400);

/// The settings of a stream of which nothing but the name was said.
#[must_use]
pub fn plain_stream(name: StreamName, limits: &Limits, now: UnixMillis) -> StreamSpec {
    StreamSpec {
        name,
        filters: Vec::new(),
        max_age: None,
        max_messages: limits.stream_messages,
        max_bytes: limits.stream_bytes,
        created_at: now,
    }
}

impl Broker {
    /// Makes a stream; answers when it is durable and gets what is published. With `if_not_exists`, one that is there with
    /// equal settings is fine.
    ///
    /// Dropping the future does not stop it.
    ///
    /// # Errors
    /// [`CoreError::Invalid`], [`CoreError::Limit`], [`CoreError::AlreadyExists`] with the difference,
    /// [`CoreError::Engine`].
    pub async fn create_stream(
        self: &Arc<Self>,
        mut spec: StreamSpec,
        if_not_exists: bool,
    ) -> Result<Arc<StreamEntry>, CoreError> {
        filters::once(&mut spec.filters);
        check(&spec, &self.limits)?;
        let broker = Arc::clone(self);
        self.to_the_end(async move {
            let _line = Arc::clone(&broker.streams.changing).lock_owned().await;
            if let Some(existing) = broker.streams().get(spec.name.as_str()) {
                let difference = difference(&existing.spec(), &spec);
                if if_not_exists && difference.is_empty() {
                    return Ok(existing);
                }
                let name = spec.name.to_string();
                return Err(CoreError::AlreadyExists { kind: "stream", name, difference });
            }
            let max = broker.limits.max_streams;
            if broker.streams().count() >= max {
                return Err(CoreError::Limit { what: "too many streams".to_owned(), max: max as u64 });
            }
            let id = broker.engine.next_target();
            let entry = StreamEntry::new(id, spec.clone(), Vec::new())
                .ok_or_else(|| CoreError::invalid("stream.name", "not a topic level"))?;
            broker.define_stream(&spec.name, Op::Define(id, Definition::Stream(spec.clone()))).await?;
            broker.streams.list.insert(&entry);
            broker.routes.record(&entry, &spec.filters).await;
            Ok(entry)
        })
        .await
    }

    /// Changes settings; answers when that is durable. Name and time of making stay. What is beyond a bound that was
    /// lowered goes soon after.
    ///
    /// Dropping the future does not stop it.
    ///
    /// # Errors
    /// As [`Broker::create_stream`], and [`CoreError::NotFound`].
    pub async fn update_stream(
        self: &Arc<Self>,
        name: &StreamName,
        change: impl FnOnce(&mut StreamSpec) -> Result<(), CoreError> + Send + 'static,
    ) -> Result<Arc<StreamEntry>, CoreError> {
        let broker = Arc::clone(self);
        let name = name.clone();
        self.to_the_end(async move {
            let _line = Arc::clone(&broker.streams.changing).lock_owned().await;
            let entry = broker.stream(&name)?;
            let old = entry.spec_owned();
            let mut new = StreamSpec::clone(&old);
            change(&mut new)?;
            new.name = old.name.clone();
            new.created_at = old.created_at;
            filters::once(&mut new.filters);
            check(&new, &broker.limits)?;
            if new == *old {
                return Ok(entry);
            }
            broker.define_stream(&name, Op::Define(entry.id, Definition::Stream(new.clone()))).await?;
            let new = Arc::new(new);
            entry.spec.store(Arc::clone(&new));
            broker.routes.record(&entry, &filters::beyond(&new.filters, &old.filters)).await;
            broker.routes.unrecord(&entry, &filters::beyond(&old.filters, &new.filters)).await;
            Ok(entry)
        })
        .await
    }

    /// Deletes a stream with its messages and cursors, and says how many messages there were. Its readers are told.
    ///
    /// Dropping the future does not stop it.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Engine`].
    pub async fn delete_stream(self: &Arc<Self>, name: &StreamName) -> Result<u64, CoreError> {
        let broker = Arc::clone(self);
        let name = name.clone();
        self.to_the_end(async move {
            let _line = Arc::clone(&broker.streams.changing).lock_owned().await;
            let entry = broker.stream(&name)?;
            let stats = broker.engine.stream_stats(entry.id).map_err(|error| of_stream(&entry, error))?;
            broker.define_stream(&name, Op::Delete(entry.id)).await?;
            broker.streams.list.remove(&entry);
            broker.routes.unrecord(&entry, &entry.spec_owned().filters).await;
            Ok(stats.messages)
        })
        .await
    }

    /// Hands in one change of a definition and waits until it is durable.
    async fn define_stream(&self, name: &StreamName, op: Op) -> Result<(), CoreError> {
        match self.engine.commit(vec![op]).await?.pop() {
            Some(Outcome::Refused(refusal)) => Err(refused(name, refusal)),
            _ => Ok(()),
        }
    }
}

/// Everything that can be said of one definition alone.
fn check(spec: &StreamSpec, limits: &Limits) -> Result<(), CoreError> {
    if let Some(age) = spec.max_age.filter(|age| !MAX_AGE.contains(age)) {
        let (least, most) = (MAX_AGE.start(), MAX_AGE.end());
        return Err(CoreError::invalid(
            "stream.max_age",
            format!("{age:?} is not within {least:?} and {most:?}"),
        ));
    }
    for (field, bound) in [("stream.max_messages", spec.max_messages), ("stream.max_bytes", spec.max_bytes)] {
        if bound == 0 {
            return Err(CoreError::invalid(field, "must be at least 1"));
        }
    }
    filters::check(&spec.filters, "stream", "stream.filters", limits)
}

/// In words, what `asked` has different from `there`; empty if nothing.
fn difference(there: &StreamSpec, asked: &StreamSpec) -> String {
    let mut out = Differences::default();
    out.compare_filters("filters", &there.filters, &asked.filters);
    out.compare("max_age", &there.max_age, &asked.max_age);
    out.compare("max_messages", &there.max_messages, &asked.max_messages);
    out.compare("max_bytes", &there.max_bytes, &asked.max_bytes);
    out.words()
}
