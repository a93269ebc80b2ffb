//! Making, changing and deleting queues.
//!
//! Changes stand in one line: each is checked against what the one before left, is durable, takes effect and only
//! then is answered. A change that has begun goes on when its caller leaves.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Definition, Op, Outcome, Overflow, QueueSpec, Refusal, Usage};
use crate::types::{QueueName, TopicFilter, UnixMillis};

use super::{QueueEntry, checked_lease, of_queue};
use crate::core::difference::Differences;
use crate::core::{Broker, CoreError, Limits, filters};

/// Beyond it a bound on deliveries bounds nothing.
const MAX_DELIVERIES: u32 = 10_000;
/// What a queue may remember for so long is bounded by number, too.
const DEDUP_WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);
/// Shorter is no time to begin in; longer is never.
const EXPIRES_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(365 * 86_400);
/// The longest name of a property that a queue keeps the last value of.
const LAST_VALUE_KEY_BYTES: usize = 256;
/// Labels are words, not documents.
const LABEL_BYTES: usize = 256;

/// The settings of a queue of which nothing but the name was said.
#[must_use]
pub fn plain_queue(name: QueueName, limits: &Limits, now: UnixMillis) -> QueueSpec {
    QueueSpec {
        max_messages: limits.queue_messages,
        max_bytes: limits.queue_bytes,
        ..QueueSpec::new(name, limits.default_lease, now)
    }
}

impl Broker {
    /// Makes a queue; answers when it is durable. With `if_not_exists`, one that is there with equal settings is
    /// fine.
    ///
    /// Dropping the future does not stop it.
    ///
    /// # Errors
    /// [`CoreError::Invalid`], [`CoreError::Limit`], [`CoreError::Precondition`] for a dead letter queue that is
    /// not there, [`CoreError::AlreadyExists`] with the difference, [`CoreError::Engine`].
    pub async fn create_queue(
        self: &Arc<Self>,
        mut spec: QueueSpec,
        if_not_exists: bool,
    ) -> Result<Arc<QueueSpec>, CoreError> {
        filters::once(&mut spec.bindings);
        check(&spec, &self.limits)?;
        let broker = Arc::clone(self);
        self.to_the_end(async move {
            let _line = Arc::clone(&broker.queues.changing).lock_owned().await;
            if let Some(existing) = broker.queues().get(spec.name.as_str()) {
                let there = existing.spec_owned();
                let difference = difference(&there, &spec);
                if if_not_exists && difference.is_empty() {
                    return Ok(there);
                }
                let name = spec.name.to_string();
                return Err(CoreError::AlreadyExists { kind: "queue", name, difference });
            }
            if broker.queues().count() >= broker.limits.max_queues {
                return Err(limit("queues", broker.limits.max_queues));
            }
            broker.check_dead_letter(&spec)?;
            let id = broker.engine.next_target();
            broker.define(Op::Define(id, Definition::Queue(spec.clone()))).await?;
            let entry = QueueEntry::new(id, spec)
                .ok_or_else(|| CoreError::invalid("queue.name", "not a topic level"))?;
            let spec = entry.spec_owned();
            broker.routes.bind(&entry, &spec.bindings).await;
            broker.queues.list.insert(&entry);
            broker.queues.expiry.changed.ring();
            Ok(spec)
        })
        .await
    }

    /// Changes settings; answers when that is durable. Name and time of making stay.
    ///
    /// Dropping the future does not stop it.
    ///
    /// # Errors
    /// As [`Broker::create_queue`], and [`CoreError::NotFound`].
    pub async fn update_queue(
        self: &Arc<Self>,
        name: &QueueName,
        change: impl FnOnce(&mut QueueSpec) -> Result<(), CoreError> + Send + 'static,
    ) -> Result<Arc<QueueSpec>, CoreError> {
        let broker = Arc::clone(self);
        let name = name.clone();
        self.to_the_end(async move {
            let _line = Arc::clone(&broker.queues.changing).lock_owned().await;
            let entry = broker.queue(&name)?;
            let old = entry.spec_owned();
            let mut new = QueueSpec::clone(&old);
            change(&mut new)?;
            new.name = old.name.clone();
            new.created_at = old.created_at;
            filters::once(&mut new.bindings);
            check(&new, &broker.limits)?;
            if new == *old {
                return Ok(old);
            }
            if new.priorities != old.priorities {
                return Err(CoreError::Precondition {
                    reason: "QUEUE_PRIORITIES_FIXED",
                    what: format!("whether `{name}` has priorities was decided when it was made"),
                });
            }
            if new.ordered_by_key != old.ordered_by_key {
                return Err(CoreError::Precondition {
                    reason: "QUEUE_ORDER_FIXED",
                    what: format!("whether `{name}` is ordered by key was decided when it was made"),
                });
            }
            if new.last_value_key != old.last_value_key {
                return Err(CoreError::Precondition {
                    reason: "QUEUE_LAST_VALUE_FIXED",
                    what: format!(
                        "of which property `{name}` keeps the last value was decided when it was made"
                    ),
                });
            }
            if new.dead_letter != old.dead_letter {
                broker.check_dead_letter(&new)?;
            }
            broker.define(Op::Define(entry.id, Definition::Queue(new.clone()))).await?;
            let new = Arc::new(new);
            entry.spec.store(Arc::clone(&new));
            broker.queues.expiry.changed.ring();
            broker.routes.bind(&entry, &filters::beyond(&new.bindings, &old.bindings)).await;
            broker.routes.unbind(&entry, &filters::beyond(&old.bindings, &new.bindings)).await;
            Ok(new)
        })
        .await
    }

    /// Adds bindings; those that are there already are fine.
    ///
    /// Dropping the future does not stop it.
    ///
    /// # Errors
    /// As [`Broker::update_queue`].
    pub async fn bind_queue(
        self: &Arc<Self>,
        name: &QueueName,
        filters: Vec<TopicFilter>,
    ) -> Result<Arc<QueueSpec>, CoreError> {
        self.update_queue(name, |spec| {
            spec.bindings.extend(filters);
            Ok(())
        })
        .await
    }

    /// Removes bindings; those that are not there are fine.
    ///
    /// Dropping the future does not stop it.
    ///
    /// # Errors
    /// As [`Broker::update_queue`].
    pub async fn unbind_queue(
        self: &Arc<Self>,
        name: &QueueName,
        filters: Vec<TopicFilter>,
    ) -> Result<Arc<QueueSpec>, CoreError> {
        self.update_queue(name, move |spec| {
            spec.bindings.retain(|filter| !filters.contains(filter));
            Ok(())
        })
        .await
    }

    /// Deletes a queue with its messages, and says how many there were.
    ///
    /// Dropping the future does not stop it.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Precondition`] if another queue names it as dead letter queue or, with
    /// `only_if_empty`, if it is not empty, [`CoreError::Engine`].
    pub async fn delete_queue(
        self: &Arc<Self>,
        name: &QueueName,
        only_if_empty: bool,
    ) -> Result<u64, CoreError> {
        let broker = Arc::clone(self);
        let name = name.clone();
        self.to_the_end(async move {
            let _line = Arc::clone(&broker.queues.changing).lock_owned().await;
            let entry = broker.queue(&name)?;
            let stats = broker.engine.stats(entry.id).map_err(|error| of_queue(&entry, error))?;
            let op = if only_if_empty { Op::DeleteEmpty(entry.id) } else { Op::Delete(entry.id) };
            match broker.undefine(&entry, op).await? {
                Some(Refusal::NotEmpty { messages }) => Err(CoreError::Precondition {
                    reason: "QUEUE_NOT_EMPTY",
                    what: format!("the queue `{name}` has {messages} messages"),
                }),
                Some(refusal) => Err(CoreError::refused(refusal, |_| name.to_string())),
                None => Ok(stats.ready + stats.delayed + stats.leased),
            }
        })
        .await
    }

    /// Deletes a queue if it is still to be deleted when nobody uses it for `after`, and nobody has used it beyond `usage`.
    /// Whether it is deleted.
    pub(in crate::core) async fn delete_if_unused(
        self: &Arc<Self>,
        entry: &Arc<QueueEntry>,
        usage: Usage,
        after: Duration,
    ) -> Result<bool, CoreError> {
        let broker = Arc::clone(self);
        let entry = Arc::clone(entry);
        self.to_the_end(async move {
            let _line = Arc::clone(&broker.queues.changing).lock_owned().await;
            if entry.spec().expires_after.is_none_or(|now| now > after) {
                return Ok(false);
            }
            Ok(broker.undefine(&entry, Op::DeleteUnused(entry.id, usage)).await?.is_none())
        })
        .await
    }

    /// Has `op` delete a queue, or says why not.
    async fn undefine(&self, entry: &Arc<QueueEntry>, op: Op) -> Result<Option<Refusal>, CoreError> {
        let name = &entry.name;
        if let Some(user) = self.queues().all().iter().find(|q| q.spec().dead_letter.as_ref() == Some(name)) {
            return Err(CoreError::Precondition {
                reason: "DEAD_LETTER_QUEUE_IN_USE",
                what: format!("`{name}` is the dead letter queue of `{}`", user.name),
            });
        }
        if let Some(Outcome::Refused(refusal)) = self.engine.commit(vec![op]).await?.pop() {
            return Ok(Some(refusal));
        }
        self.queues.list.remove(entry);
        self.routes.unbind(entry, &entry.spec_owned().bindings).await;
        Ok(None)
    }

    /// Hands in one change of a definition and waits until it is durable.
    async fn define(&self, op: Op) -> Result<(), CoreError> {
        match self.engine.commit(vec![op]).await?.pop() {
            Some(Outcome::Refused(refusal)) => Err(CoreError::refused(refusal, |id| self.target_name(id))),
            _ => Ok(()),
        }
    }

    /// The dead letter queue of `spec` is there, and what goes round never comes back.
    fn check_dead_letter(&self, spec: &QueueSpec) -> Result<(), CoreError> {
        let Some(first) = &spec.dead_letter else { return Ok(()) };
        let mut next = Some(first.clone());
        while let Some(name) = next {
            if name == spec.name {
                let what = "messages that are given up would come back to this queue";
                return Err(CoreError::invalid("queue.dead_letter_queue", what));
            }
            let Some(entry) = self.queues().get(name.as_str()) else {
                return Err(CoreError::Precondition {
                    reason: "DEAD_LETTER_QUEUE_MISSING",
                    what: format!("the dead letter queue `{name}` does not exist: create it first"),
                });
            };
            if name == *first && entry.spec().last_value_key.is_some() {
                return Err(CoreError::Precondition {
                    reason: "DEAD_LETTER_QUEUE_KEEPS_LAST",
                    what: format!(
                        "the queue `{name}` keeps last values: dead letters would take each other's place"
                    ),
                });
            }
            next = entry.spec().dead_letter.clone();
        }
        Ok(())
    }
}

fn limit(what: &str, max: usize) -> CoreError {
    CoreError::Limit { what: format!("too many {what}"), max: max as u64 }
}

/// Everything that can be said of one definition alone.
fn check(spec: &QueueSpec, limits: &Limits) -> Result<(), CoreError> {
    checked_lease("queue.lease", spec.lease, limits)?;
    if spec.max_deliveries.is_some() && spec.dead_letter.is_none() {
        let what = "needs a dead_letter_queue, where messages go that were given up";
        return Err(CoreError::invalid("queue.max_deliveries", what));
    }
    if spec.overflow == Overflow::DeadLetter && spec.dead_letter.is_none() {
        let what = "needs a dead_letter_queue, where the oldest messages go";
        return Err(CoreError::invalid("queue.overflow", what));
    }
    if spec.dead_letter_expired && spec.dead_letter.is_none() {
        let what = "needs a dead_letter_queue, where expired messages go";
        return Err(CoreError::invalid("queue.dead_letter_expired", what));
    }
    if spec.dead_letter.as_ref() == Some(&spec.name) {
        return Err(CoreError::invalid(
            "queue.dead_letter_queue",
            "a queue cannot be its own dead letter queue",
        ));
    }
    check_backoff(spec, limits)?;
    if spec.default_ttl.is_some_and(|ttl| ttl < Duration::from_secs(1)) {
        return Err(CoreError::invalid("queue.default_ttl", "must be at least 1 s"));
    }
    if let Some(after) = spec.expires_after.filter(|after| !EXPIRES_AFTER.contains(after)) {
        let (least, most) = (EXPIRES_AFTER.start(), EXPIRES_AFTER.end());
        let what = format!("{after:?} is not within {least:?} and {most:?}");
        return Err(CoreError::invalid("queue.expires_after", what));
    }
    if spec.max_deliveries.is_some_and(|max| max.get() > MAX_DELIVERIES) {
        return Err(CoreError::invalid("queue.max_deliveries", format!("must be at most {MAX_DELIVERIES}")));
    }
    if let Some(property) = &spec.last_value_key {
        if property.len() > LAST_VALUE_KEY_BYTES {
            let what = format!("must have at most {LAST_VALUE_KEY_BYTES} bytes");
            return Err(CoreError::invalid("queue.last_value_key", what));
        }
        if property.chars().any(char::is_control) {
            return Err(CoreError::invalid("queue.last_value_key", "must have no control characters"));
        }
    }
    if spec.dedup_window.is_some_and(|window| !DEDUP_WINDOW.contains(&window)) {
        return Err(CoreError::invalid("queue.dedup_window", "must be 1 s to 7 d"));
    }
    for (field, bound) in [("queue.max_messages", spec.max_messages), ("queue.max_bytes", spec.max_bytes)] {
        if bound == 0 {
            return Err(CoreError::invalid(field, "must be at least 1"));
        }
    }
    filters::check(&spec.bindings, "queue", "queue.bindings", limits)?;
    if spec.labels.len() > limits.max_properties {
        return Err(limit("labels", limits.max_properties));
    }
    for (key, value) in &spec.labels {
        if key.is_empty() || key.len() > LABEL_BYTES || value.len() > LABEL_BYTES {
            let what = format!("keys have 1 to {LABEL_BYTES} bytes, values at most {LABEL_BYTES}");
            return Err(CoreError::invalid(format!("queue.labels[{key:?}]"), what));
        }
    }
    Ok(())
}

/// A shortest rest that is long enough to be one, and no longest without it or below it.
fn check_backoff(spec: &QueueSpec, limits: &Limits) -> Result<(), CoreError> {
    let (min, max) = (spec.retry_min_backoff, spec.retry_max_backoff);
    let within = Duration::from_millis(1)..=limits.max_lease;
    for (field, rest) in [("queue.retry_min_backoff", min), ("queue.retry_max_backoff", max)] {
        if let Some(rest) = rest.filter(|rest| !within.contains(rest)) {
            let (least, most) = (within.start(), within.end());
            return Err(CoreError::invalid(field, format!("{rest:?} is not within {least:?} and {most:?}")));
        }
    }
    match (min, max) {
        (None, Some(_)) => {
            Err(CoreError::invalid("queue.retry_max_backoff", "needs a retry_min_backoff, where rests begin"))
        }
        (Some(min), Some(max)) if max < min => {
            let what = format!("{max:?} is below retry_min_backoff, which is {min:?}");
            Err(CoreError::invalid("queue.retry_max_backoff", what))
        }
        _ => Ok(()),
    }
}

/// In words, what `asked` has different from `there`; empty if nothing. Whether it is paused is the operator's: a program
/// that makes sure of its queue finds it while it is, too.
fn difference(there: &QueueSpec, asked: &QueueSpec) -> String {
    let mut out = Differences::default();
    out.compare_filters("bindings", &there.bindings, &asked.bindings);
    out.compare("lease", &there.lease, &asked.lease);
    out.compare("max_deliveries", &there.max_deliveries, &asked.max_deliveries);
    out.compare("dead_letter_queue", &there.dead_letter, &asked.dead_letter);
    out.compare("retry_min_backoff", &there.retry_min_backoff, &asked.retry_min_backoff);
    out.compare("retry_max_backoff", &there.retry_max_backoff, &asked.retry_max_backoff);
    out.compare("default_ttl", &there.default_ttl, &asked.default_ttl);
    out.compare("max_messages", &there.max_messages, &asked.max_messages);
    out.compare("max_bytes", &there.max_bytes, &asked.max_bytes);
    out.compare("overflow", &there.overflow, &asked.overflow);
    out.compare("priorities", &there.priorities, &asked.priorities);
    out.compare("ordered_by_key", &there.ordered_by_key, &asked.ordered_by_key);
    let single = (&there.single_active_consumer, &asked.single_active_consumer);
    out.compare("single_active_consumer", single.0, single.1);
    out.compare("dedup_window", &there.dedup_window, &asked.dedup_window);
    out.compare("last_value_key", &there.last_value_key, &asked.last_value_key);
    out.compare("labels", &there.labels, &asked.labels);
    out.compare("expires_after", &there.expires_after, &asked.expires_after);
    out.compare("dead_letter_expired", &there.dead_letter_expired, &asked.dead_letter_expired);
    out.words()
}
