//! Adding and ending subscriptions of a session.
//!
//! A subscription is, in this order: noted in the session, handed to the engine if the session is durable, in the
//! router, durable, and only then answered; after that it gets retained values.

use std::sync::Arc;

use super::Session;
use super::entry::{SessionEntry, Subscription};
use super::sources::Kind;
use crate::core::queues::QueueEntry;
use crate::core::route::{Route, RouteChange, RouteKey};
use crate::core::router::Change;
use crate::core::share::ShareGroup;
use crate::core::streams::subscription::{self, REPLAY_PREFIX};
use crate::core::system::SYSTEM;
use crate::core::{Broker, CoreError};
use crate::engine::{Definition, GroupSpec, Op, Outcome, RetainHandling, SubscribeOptions, Ticket};
use crate::types::topic::FilterSpec;
use crate::types::{Qos, TargetId, TopicFilter};

/// What begins a filter that joins a queue's consumers.
pub(super) const QUEUE_PREFIX: &str = "$queue/";
/// Retained values that are offered before SUBSCRIBE is answered.
const REPLAY_AT_ONCE: usize = 256;

/// What a filter asks for.
#[derive(Debug)]
enum Asked {
    /// Messages by the router.
    Topics,
    /// A part in a share group.
    Share,
    /// A part in the consumption of a queue.
    Queue(Arc<QueueEntry>),
    /// What a stream has and gets.
    Stream(subscription::Asked),
}

/// What is to be done for several filters together.
#[derive(Debug, Default)]
struct Work {
    ops: Vec<Op>,
    routes: Vec<RouteChange>,
}

impl Work {
    /// Does it. Dropping the future, once polled, does not take that back.
    async fn done(self, broker: &Broker) -> Result<(), CoreError> {
        let ticket =
            if self.ops.is_empty() { Ticket::ready(Ok(Vec::new())) } else { broker.engine.commit(self.ops) };
        broker.routes.change(self.routes).await;
        let refused = ticket.await?.into_iter().find_map(|outcome| match outcome {
            Outcome::Refused(refusal) => Some(refusal),
            _ => None,
        });
        refused.map_or(Ok(()), |refusal| Err(CoreError::refused(refusal, |id| id.0.to_string())))
    }
}

impl Session {
    /// Adds or replaces subscriptions; the results stand in their order: the highest level that each will get. When
    /// this returns they are in effect, and on disk if the session is durable. Retained values are offered to the
    /// outbox: the first of them before this returns, the rest as [`take`](Self::take) is called.
    ///
    /// Dropping the future: the subscriptions may be in effect or not.
    pub async fn subscribe(
        &self,
        filters: Vec<(FilterSpec, SubscribeOptions)>,
    ) -> Vec<Result<Qos, CoreError>> {
        let mut work = Work::default();
        let mut answers = Vec::with_capacity(filters.len());
        let mut added = Vec::new();
        let mut replays: Vec<(TopicFilter, SubscribeOptions)> = Vec::new();
        for (spec, mut options) in filters {
            let spec = detached(&spec);
            // At a higher level they would be stored.
            options.upgrade_qos &= spec.filter().first_level() != SYSTEM;
            let answer = self.add(&spec, options, &mut work).map(|(granted, was_there)| {
                let replays_for = match options.retain_handling {
                    RetainHandling::Send => true,
                    RetainHandling::SendIfNew => !was_there,
                    RetainHandling::DoNotSend => false,
                };
                // [MQTT-3.8.4-3]; a share gets no retained values.
                if replays_for
                    && matches!(&spec, FilterSpec::Plain(filter) if !is_queue(filter) && !is_replay(filter))
                {
                    replays.push((spec.filter().clone(), options));
                }
                added.push(spec);
                granted
            });
            answers.push(answer);
        }
        if let Err(error) = work.done(&self.broker).await {
            // Not on disk, so not in effect: what was noted goes again. Nobody hears what becomes of that.
            self.unsubscribe(added).await;
            return answers.into_iter().map(|answer| answer.and(Err(error.clone()))).collect();
        }
        self.broker.calls.subscribed(|| added);
        if !replays.is_empty() {
            let retained = &self.broker.pubsub.retained;
            for (filter, options) in replays {
                let replay = retained.replay(filter, options.levels(), options.identifier);
                self.entry.replays.lock().begin(replay);
            }
            self.replay(REPLAY_AT_ONCE);
            self.attachment.changed.ring();
        }
        answers
    }

    /// What it is subscribed to.
    #[must_use]
    pub fn filters(&self) -> Vec<FilterSpec> {
        self.entry.state.lock().subscriptions.iter().map(|(spec, _)| spec.clone()).collect()
    }

    /// Notes one subscription. Returns what it grants and whether it was there before.
    fn add(
        &self,
        spec: &FilterSpec,
        options: SubscribeOptions,
        work: &mut Work,
    ) -> Result<(Qos, bool), CoreError> {
        let broker = &self.broker;
        let asked = broker.asked(spec, &options)?;
        {
            let state = self.entry.state.lock();
            if state.ended || !self.entry.has(&self.attachment) {
                return Err(taken_over());
            }
            let max = broker.limits.max_subscriptions;
            if state.subscriptions.len() >= max && !state.subscriptions.contains(spec) {
                return Err(CoreError::Limit { what: "too many subscriptions".to_owned(), max: max as u64 });
            }
        }
        let mut group = None;
        let mut granted = options.max_qos;
        match asked {
            Asked::Stream(asked) => {
                // Of this connection alone: nothing is noted.
                let subscription = broker.subscribe_stream(asked, options, self.client_id())?;
                self.attachment.add_stream(spec, options, subscription, broker.limits.session_streams)?;
                return Ok((granted.min(Qos::AtLeastOnce), true));
            }
            Asked::Topics => {
                work.routes.push(Change::Insert {
                    filter: spec.filter().clone(),
                    key: RouteKey::Session(self.entry.key),
                    value: Route::Session(Arc::clone(&self.entry), options),
                });
            }
            Asked::Share => {
                let joined = broker.join_group(spec, &self.entry, options, work)?;
                if let Some(target) = joined.target() {
                    broker.consume_group(&self.entry, &joined, target);
                }
                group = Some(joined);
            }
            Asked::Queue(queue) => {
                granted = granted.min(Qos::AtLeastOnce);
                let kind = Kind::Queue(spec.clone(), Default::default());
                let lease = Some(queue.spec().lease);
                self.attachment.add_source(broker.source(queue.id(), lease, kind)?);
            }
        }
        if let Some(target) = self.entry.target {
            work.ops.push(Op::Subscribe(target, spec.clone(), options));
        }
        let old = self.entry.state.lock().put(spec.clone(), Subscription { options, group });
        Ok((granted, old.is_some()))
    }

    /// Ends subscriptions, and says of each whether it was there. When this returns that is in effect, and on disk
    /// if the session is durable.
    ///
    /// Dropping the future: the subscriptions may be in effect or not.
    pub async fn unsubscribe(&self, filters: Vec<FilterSpec>) -> Vec<Result<bool, CoreError>> {
        let mut work = Work::default();
        let mut answers = Vec::with_capacity(filters.len());
        let mut ended = Vec::new();
        for spec in filters {
            if is_replay(spec.filter()) {
                answers.push(Ok(self.attachment.end_stream(&spec)));
                continue;
            }
            let old = {
                let mut state = self.entry.state.lock();
                if state.ended || !self.entry.has(&self.attachment) {
                    answers.push(Err(taken_over()));
                    continue;
                }
                state.take(&spec)
            };
            let Some(old) = old else {
                answers.push(Ok(false));
                continue;
            };
            self.broker.end_subscription(&self.entry, &spec, &old, &mut work);
            self.entry.replays.lock().end(spec.filter());
            self.attachment.sources.lock().remove(|kind| match (kind, &old.group) {
                (Kind::Group(group), Some(left)) => Arc::ptr_eq(group, left),
                (Kind::Queue(consumed, _), None) => *consumed == spec,
                _ => false,
            });
            if is_queue(spec.filter()) {
                self.attachment.changed.ring();
            }
            if let Some(target) = self.entry.target {
                work.ops.push(Op::Unsubscribe(target, spec.clone()));
            }
            ended.push(spec);
            answers.push(Ok(true));
        }
        self.broker.calls.unsubscribed(self.entry.key, &ended);
        match work.done(&self.broker).await {
            Ok(()) => answers,
            Err(error) => answers.into_iter().map(|answer| answer.and(Err(error.clone()))).collect(),
        }
    }
}

impl Broker {
    /// What a filter asks for, if that may be asked.
    fn asked(&self, spec: &FilterSpec, options: &SubscribeOptions) -> Result<Asked, CoreError> {
        self.limits.check_filter("filter", spec.filter())?;
        match spec {
            FilterSpec::Shared { filter, .. } => {
                if options.no_local {
                    // [MQTT-3.8.3-4]
                    return Err(CoreError::invalid(
                        "no_local",
                        "a shared subscription cannot leave out its own",
                    ));
                }
                if is_queue(filter) {
                    let what = "a queue is shared by all its consumers already: subscribe to `$queue/<name>`";
                    return Err(CoreError::invalid("filter", what));
                }
                if is_replay(filter) {
                    let what =
                        "a stream is read by each for himself: subscribe to `$replay/<start>/<filter>`";
                    return Err(CoreError::invalid("filter", what));
                }
                Ok(Asked::Share)
            }
            FilterSpec::Plain(filter) if is_replay(filter) => {
                let rest = filter.as_str().strip_prefix(REPLAY_PREFIX).unwrap_or_default();
                self.asked_of_stream(rest).map(Asked::Stream)
            }
            FilterSpec::Plain(filter) => match filter.as_str().strip_prefix(QUEUE_PREFIX) {
                None => Ok(Asked::Topics),
                Some(_) if filter.is_wildcard() => {
                    Err(CoreError::invalid("filter", "`$queue/<name>` names one queue, without wildcards"))
                }
                Some(name) => match self.queues().get(name) {
                    Some(queue) => Ok(Asked::Queue(queue)),
                    None => Err(CoreError::NotFound { kind: "queue", name: name.to_owned() }),
                },
            },
        }
    }

    /// Makes a session a member of a group. When the group becomes durable by that, all members consume from it.
    fn join_group(
        self: &Arc<Self>,
        spec: &FilterSpec,
        entry: &Arc<SessionEntry>,
        options: SubscribeOptions,
        work: &mut Work,
    ) -> Result<Arc<ShareGroup>, CoreError> {
        let max = self.limits.max_group_members;
        let joined = self
            .pubsub
            .groups
            .join(|| self.pubsub.next_share(), spec, entry, options, max, || self.define_group(spec))
            .ok_or_else(|| CoreError::Limit {
                what: "too many members of one share group".into(),
                max: max as u64,
            })?;
        if let Some((target, ticket)) = joined.defined {
            // A task, since members wait for it that have nothing to do with this subscription.
            let (broker, group) = (Arc::clone(self), Arc::clone(&joined.group));
            self.tasks.spawn(async move {
                if ticket.await.is_ok() {
                    group.members().iter().for_each(|member| broker.consume_group(member, &group, target));
                }
            });
        }
        work.routes.push(joined.route);
        Ok(joined.group)
    }

    /// Makes a target for a group: in front of all that is stored for it. What waits for the member's subscription
    /// waits for this too.
    fn define_group(&self, filter: &FilterSpec) -> (TargetId, Ticket) {
        let id = self.engine.next_target();
        let spec = GroupSpec {
            filter: filter.clone(),
            max_messages: self.limits.session_messages,
            max_bytes: self.limits.session_bytes,
        };
        (id, self.engine.commit(vec![Op::Define(id, Definition::Group(spec))]))
    }

    /// Lets the connection of a member, if it has one, take from the group's target.
    pub(super) fn consume_group(&self, member: &SessionEntry, group: &Arc<ShareGroup>, target: TargetId) {
        if let Some(attached) = &*member.attached.load()
            // One that is gone again has nothing to take; one that is still to come is joined when it is there.
            && let Ok(source) = self.source(target, None, Kind::Group(Arc::clone(group)))
        {
            attached.add_source(source);
        }
    }

    /// Takes a subscription out of the router or its group.
    fn end_subscription(
        &self,
        entry: &SessionEntry,
        spec: &FilterSpec,
        subscription: &Subscription,
        work: &mut Work,
    ) {
        match &subscription.group {
            Some(group) => {
                let left = self.pubsub.groups.leave(group, entry.key);
                work.routes.extend(left.route);
                work.ops.extend(left.target.map(Op::Delete));
            }
            None if is_queue(spec.filter()) => {}
            None => work
                .routes
                .push(Change::Remove { filter: spec.filter().clone(), key: RouteKey::Session(entry.key) }),
        }
    }

    /// Ends all subscriptions of a session that is being deleted: what the router and the engine are to do.
    pub(super) fn end_subscriptions(&self, entry: &SessionEntry) -> (Vec<RouteChange>, Vec<Op>) {
        let subscriptions = std::mem::take(&mut entry.state.lock().subscriptions);
        let mut work = Work::default();
        for (spec, subscription) in subscriptions.iter() {
            self.end_subscription(entry, spec, subscription, &mut work);
        }
        (work.routes, work.ops)
    }

    /// Adds a subscription that was stored; `group` is the target that its group had. Returns what the router is to
    /// do.
    pub(super) fn restore_subscription(
        &self,
        entry: &Arc<SessionEntry>,
        spec: FilterSpec,
        options: SubscribeOptions,
        group_target: Option<TargetId>,
    ) -> Option<RouteChange> {
        let (route, group) = match &spec {
            FilterSpec::Plain(filter) if is_queue(filter) => (None, None),
            FilterSpec::Plain(filter) => {
                let value = Route::Session(Arc::clone(entry), options);
                let key = RouteKey::Session(entry.key);
                (Some(Change::Insert { filter: filter.clone(), key, value }), None)
            }
            FilterSpec::Shared { .. } => {
                let next = || self.pubsub.next_share();
                let target = || match group_target {
                    Some(target) => (target, Ticket::ready(Ok(Vec::new()))),
                    None => self.define_group(&spec),
                };
                let joined = self.pubsub.groups.join(next, &spec, entry, options, usize::MAX, target)?;
                (Some(joined.route), Some(joined.group))
            }
        };
        entry.state.lock().put(spec, Subscription { options, group });
        route
    }

    /// Lets a new connection of a session take from all that its subscriptions name.
    pub(super) fn consume_subscribed(&self, entry: &SessionEntry) {
        let subscriptions: Vec<_> = {
            let state = entry.state.lock();
            let with_source =
                state.subscriptions.iter().filter(|(spec, s)| s.group.is_some() || is_queue(spec.filter()));
            with_source.map(|(spec, s)| (spec.clone(), s.group.clone())).collect()
        };
        for (spec, group) in subscriptions {
            match group {
                Some(group) => {
                    if let Some(target) = group.target() {
                        self.consume_group(entry, &group, target);
                    }
                }
                None => {
                    let name = spec.filter().as_str().strip_prefix(QUEUE_PREFIX).unwrap_or_default();
                    // A queue that was deleted meanwhile has nothing for anybody.
                    let Some(queue) = self.queues().get(name) else { continue };
                    let lease = Some(queue.spec().lease);
                    let kind = Kind::Queue(spec.clone(), Default::default());
                    if let (Some(attached), Ok(source)) =
                        (&*entry.attached.load(), self.source(queue.id(), lease, kind))
                    {
                        attached.add_source(source);
                    }
                }
            }
        }
    }
}

fn is_queue(filter: &TopicFilter) -> bool {
    filter.as_str().starts_with(QUEUE_PREFIX)
}

fn is_replay(filter: &TopicFilter) -> bool {
    filter.as_str().starts_with(REPLAY_PREFIX)
}

/// A filter with bytes of its own: it is kept longer than the packet it came in.
fn detached(spec: &FilterSpec) -> FilterSpec {
    match spec {
        FilterSpec::Plain(filter) => FilterSpec::Plain(filter.detached()),
        FilterSpec::Shared { group, filter } => {
            FilterSpec::Shared { group: group.detached(), filter: filter.detached() }
        }
    }
}

pub(super) fn taken_over() -> CoreError {
    CoreError::Precondition {
        reason: "SESSION_TAKEN_OVER",
        what: "the session is with another connection, or deleted".to_owned(),
    }
}
