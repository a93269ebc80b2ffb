//! Publishes that came in one read: where each goes, what of it is stored, what is offered.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use super::super::delivery::Lot;
use super::super::route::{self, Routing, Target};
use super::super::router::{Epoch, RouteCache};
use super::super::session::SessionKey;
use super::{Inbound, Published, Receipt, Sender};
use crate::core::calls::By;
use crate::core::{Broker, CoreError};
use crate::engine::{Append, Op, Outcome, Publish, Refusal};
use crate::types::{ClientId, Message, MessageId, Qos, QueueName, TargetId, UnixMillis};

/// What begins the topic of a message that goes straight into a queue.
const QUEUE_PREFIX: &str = "$queue/";

/// Publishes in a row. Invariant: `fates` has one entry per item, and every item is in one run.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) items: Vec<Inbound>,
    fates: Vec<Fate>,
    runs: Vec<Run>,
}

/// What becomes of one publish.
#[derive(Debug, PartialEq)]
enum Fate {
    /// It is offered to those of its targets that are live.
    Live,
    /// It is stored first.
    Stored,
    /// It is stored, and offered to those of its targets that are live.
    Done,
    /// The same, but all that store have it already, as this message.
    Known(MessageId),
    /// Nothing is done.
    Refused(Box<CoreError>),
}

/// Items in a row that have the same targets.
#[derive(Debug)]
pub(crate) struct Run {
    /// Where it ends in the batch.
    end: usize,
    pub(crate) targets: Arc<[Target]>,
    /// Of the routing that the targets are of.
    pub(crate) epoch: Epoch,
    subscribers: u32,
    queues: u32,
    streams: u32,
    /// Some session or share group stores what is published at QoS 1 or 2.
    stores: bool,
    /// Some session stores what is published at QoS 0, too.
    stores_all: bool,
    /// The topic names a queue.
    pub(crate) direct: bool,
}

/// Decides what becomes of publishes.
pub(crate) struct Planner<'a> {
    pub(crate) broker: &'a Arc<Broker>,
    pub(crate) name: Option<&'a ClientId>,
    pub(crate) cache: &'a mut RouteCache<Target>,
    pub(crate) no_local: Option<SessionKey>,
    /// Whether the publisher has a session that outlives its connection.
    pub(crate) durable_session: bool,
    pub(crate) now: UnixMillis,
}

impl Planner<'_> {
    /// Names, checks and routes all items. Returns the first that is to be stored.
    pub(crate) fn plan(&mut self, batch: &mut Batch) -> Option<usize> {
        let routing = self.broker.routes.now();
        let mut first = None;
        let (items, fates, runs) = (&mut batch.items, &mut batch.fates, &mut batch.runs);
        for at in 0..items.len() {
            let (before, rest) = items.split_at_mut(at);
            let Some(item) = rest.first_mut() else { break };
            item.message.id = self.broker.ids.next(self.now);
            let same = before.last().is_some_and(|last| last.message.topic == item.message.topic);
            if item.message.topic.is_reserved() {
                item.message.retain = false; // Neither queues nor calls have a retained value.
            }
            let fate = match self.route(&routing, item, same, at + 1, runs) {
                Ok(stored) => {
                    if stored {
                        Fate::Stored
                    } else {
                        Fate::Live
                    }
                }
                Err(error) => Fate::Refused(Box::new(error)),
            };
            if fate == Fate::Stored && first.is_none() {
                first = Some(at);
            }
            fates.push(fate);
        }
        first
    }

    /// Puts the item into a run, in any case, and says whether it is stored.
    fn route(
        &mut self,
        routing: &Routing,
        item: &Inbound,
        same: bool,
        end: usize,
        runs: &mut Vec<Run>,
    ) -> Result<bool, CoreError> {
        let by = By { session: self.no_local, name: self.name };
        if item.message.topic.is_reserved()
            && let Some(said) = self.broker.published_call(&item.message, by, item.not_before.is_some())
        {
            let mut run = Run::new(end, Arc::default(), routing, &item.message, true);
            run.subscribers = u32::from(said.is_ok());
            runs.push(run);
            return said.map(|()| item.incoming.is_some() && self.durable_session);
        }
        // One that is to be delayed is refused below, or for queues alone.
        if let Some(session) = self.no_local.filter(|_| item.not_before.is_none()) {
            self.broker.published_on(session, &item.message);
        }
        match runs.last_mut() {
            // An empty direct run stands for what could not be routed: each says for itself why.
            Some(run) if same && !(run.direct && run.targets.is_empty()) => run.end = end,
            _ => {
                let (targets, direct) = match self.targets(routing, &item.message) {
                    Ok(found) => found,
                    Err(error) => {
                        runs.push(Run::new(end, Arc::default(), routing, &item.message, true));
                        return Err(error);
                    }
                };
                runs.push(Run::new(end, targets, routing, &item.message, direct));
            }
        }
        let Some(run) = runs.last() else { return Ok(false) };
        if run.direct
            && let [Target::Queue(queue)] = &*run.targets
        {
            queue.check_asked(&item.message)?;
        }
        self.broker.limits.check_message(&item.message)?;
        let retain = item.message.retain;
        // A stream has it at once: it keeps what was published and when.
        if item.not_before.is_some() && (retain || run.subscribers > 0 || run.queues == 0) {
            let what = "a message that does not go to queues alone cannot be delayed";
            return Err(CoreError::Unsupported(what.to_owned()));
        }
        if retain {
            self.broker.pubsub.retained.check_room(&item.message)?;
        }
        let lasting = item.message.qos > Qos::AtMostOnce;
        Ok(run.queues > 0
            || run.streams > 0
            || run.stores_all
            || lasting && (run.stores || retain)
            || item.incoming.is_some() && self.durable_session
            // One that is on its way to the disk must not overtake.
            || retain && self.broker.pubsub.retained.is_busy(&item.message.topic))
    }

    /// The targets of a message, and whether its topic names a queue.
    fn targets(&mut self, routing: &Routing, message: &Message) -> Result<(Arc<[Target]>, bool), CoreError> {
        let topic = &message.topic;
        if topic.is_reserved() {
            let Some(name) = topic.as_str().strip_prefix(QUEUE_PREFIX) else {
                return Err(CoreError::invalid(
                    "topic",
                    format!("`{topic}`: names that begin with `$` are the server's"),
                ));
            };
            let queue = self.broker.queues().get(name).ok_or_else(|| no_queue(message))?;
            return Ok((Arc::new([Target::Queue(queue)]), true));
        }
        let targets =
            self.cache.get_or_insert_with(routing, topic, || route::targets(routing, topic, self.no_local));
        Ok((targets, false))
    }
}

fn no_queue(message: &Message) -> CoreError {
    let name = message.topic.as_str().strip_prefix(QUEUE_PREFIX).unwrap_or_default();
    match QueueName::parse(name.to_owned()) {
        Ok(_) => CoreError::NotFound { kind: "queue", name: name.to_owned() },
        Err(error) => CoreError::name("topic", &error),
    }
}

impl Run {
    fn new(end: usize, targets: Arc<[Target]>, routing: &Routing, message: &Message, direct: bool) -> Self {
        let (mut subscribers, mut queues, mut streams) = (0, 0, 0);
        let (mut stores, mut stores_all) = (false, false);
        for target in &*targets {
            match target {
                Target::Queue(_) => queues += 1,
                Target::Stream(_) => streams += 1,
                Target::Session(session) => {
                    subscribers += 1;
                    stores |= session.stores(Qos::ExactlyOnce);
                    stores_all |= session.stores(Qos::AtMostOnce);
                }
                Target::Share(group) => {
                    subscribers += 1;
                    stores |= group.target().is_some();
                }
            }
        }
        let epoch = routing.epoch(message.topic.first_level());
        Self { end, targets, epoch, subscribers, queues, streams, stores, stores_all, direct }
    }

    fn published(&self, id: MessageId, duplicate: bool) -> Published {
        let &Self { subscribers, queues, streams, .. } = self;
        Published { id, subscribers, queues, streams, duplicate }
    }

    /// Whether this session is among the targets.
    pub(crate) fn has(&self, session: SessionKey) -> bool {
        self.targets.iter().any(|target| matches!(target, Target::Session(s) if s.entry.key == session))
    }

    /// Where the engine keeps a message.
    fn appends(&self, item: &Inbound, now: UnixMillis) -> SmallVec<[Append; 2]> {
        let message = &item.message;
        let append = |target: &Target| match target {
            Target::Queue(queue) => Some(queue.append(message, item.priority, item.not_before, now)),
            Target::Stream(stream) => Some(Append::to(stream.id())),
            Target::Session(session) => {
                let id = session.entry.target.filter(|_| session.stores(message.qos))?;
                let retain = message.retain && session.retain_as_published;
                Some(Append { qos: session.granted(message.qos), retain, ..Append::to(id) })
            }
            Target::Share(group) => {
                let id = group.target().filter(|_| message.qos > Qos::AtMostOnce)?;
                Some(Append { qos: message.qos, ..Append::to(id) })
            }
        };
        self.targets.iter().filter_map(append).collect()
    }
}

impl Batch {
    /// Makes room for the next one.
    pub(crate) fn clear(&mut self) {
        self.items = Vec::new();
        self.fates.clear();
        self.runs.clear();
    }

    fn run_of(&self, at: usize) -> Option<&Run> {
        self.runs.get(self.runs.partition_point(|run| run.end <= at))
    }

    /// What the engine is to do for the items that are stored, in their order.
    pub(crate) fn ops(&self, name: Option<&ClientId>, session: Option<TargetId>, now: UnixMillis) -> Vec<Op> {
        let mut ops = Vec::new();
        for (at, (item, _)) in self.stored() {
            let Some(run) = self.run_of(at) else { continue };
            let mut message = item.message.clone();
            if let Some(name) = name {
                message.extras_mut().publisher = Some(name.clone());
            }
            let targets = run.appends(item, now);
            let retain = message.retain;
            let newest_only = retain && targets.is_empty() && message.qos == Qos::AtMostOnce;
            let incoming = session.zip(item.incoming);
            ops.push(Op::Publish(Publish { message, targets, retain, newest_only, incoming }));
        }
        ops
    }

    fn stored(&self) -> impl Iterator<Item = (usize, (&Inbound, &Fate))> {
        self.items.iter().zip(&self.fates).enumerate().filter(|(_, (_, fate))| **fate == Fate::Stored)
    }

    /// The stored items that are, or become, retained values.
    pub(crate) fn stored_retained(&self) -> impl Iterator<Item = &Message> {
        self.stored().map(|(_, (item, _))| &item.message).filter(|message| message.retain)
    }

    /// The bytes of the items that are stored.
    pub(crate) fn stored_weight(&self) -> usize {
        self.stored().map(|(_, (item, _))| item.message.weight()).sum()
    }

    /// The packet ids of the items that are stored.
    pub(crate) fn stored_incoming(&self) -> impl Iterator<Item = u16> {
        self.stored().filter_map(|(_, (item, _))| item.incoming)
    }

    /// Takes in what became of the items that were stored; `visit` hears of each whether it is now.
    pub(crate) fn settle(
        &mut self,
        outcomes: Result<Vec<Outcome>, CoreError>,
        broker: &Broker,
        mut visit: impl FnMut(&Inbound, bool),
    ) {
        let mut outcomes = outcomes.map(Vec::into_iter);
        for (at, (item, fate)) in self.items.iter().zip(&mut self.fates).enumerate() {
            if *fate != Fate::Stored {
                continue;
            }
            let run = self.runs.get(self.runs.partition_point(|run| run.end <= at));
            let direct = run.is_some_and(|run| run.direct);
            *fate = match &mut outcomes {
                Err(error) => Fate::Refused(Box::new(error.clone())),
                Ok(outcomes) => match outcomes.next() {
                    // It was deleted between routing and commit. One of several is passed over by the engine.
                    Some(Outcome::Refused(Refusal::Gone(_))) if !direct => Fate::Done,
                    Some(Outcome::Refused(Refusal::Gone(_))) => {
                        Fate::Refused(Box::new(no_queue(&item.message)))
                    }
                    Some(Outcome::Refused(refusal)) => {
                        Fate::Refused(Box::new(CoreError::refused(refusal, |id| broker.target_name(id))))
                    }
                    Some(Outcome::Published(_) | Outcome::Done | Outcome::All(_)) => Fate::Done,
                    Some(Outcome::Duplicate { id, .. }) => Fate::Known(id),
                    None => Fate::Refused(Box::new(CoreError::Engine(crate::engine::EngineError::Stopped))),
                },
            };
            visit(item, matches!(fate, Fate::Done | Fate::Known(_)));
        }
    }

    /// Offers the items of `range` to those of their targets that are live: all that are not stored, and not
    /// refused. Returns whether any wants a receipt.
    pub(crate) fn deliver(&self, range: Range<usize>, mut sender: Sender<'_>) -> bool {
        let mut receipts = false;
        let mut start = range.start;
        for at in range.clone() {
            let (Some(item), Some(fate)) = (self.items.get(at), self.fates.get(at)) else { break };
            receipts |= item.receipt;
            let live = matches!(fate, Fate::Live | Fate::Done | Fate::Known(_));
            if live && !item.message.retain {
                continue;
            }
            sender.fan.offer(self.lots(start..at), sender.name);
            start = at + 1;
            if let Some(run) = self.run_of(at).filter(|_| live) {
                sender.broker.pubsub.retained.publish(item, run, *fate == Fate::Done, &mut sender);
            }
        }
        sender.fan.offer(self.lots(start..range.end), sender.name);
        sender.broker.traffic.sent(std::mem::take(&mut sender.fan.sent));
        receipts
    }

    /// Says what became of the items of `range` that want to know.
    pub(crate) fn receipts(&self, range: Range<usize>, out: &mut Vec<Receipt>) {
        for at in range {
            let (Some(item), Some(fate), Some(run)) =
                (self.items.get(at), self.fates.get(at), self.run_of(at))
            else {
                break;
            };
            if !item.receipt {
                continue;
            }
            let result = match fate {
                Fate::Refused(error) => Err(CoreError::clone(error)),
                Fate::Live | Fate::Stored | Fate::Done => Ok(run.published(item.message.id, false)),
                &Fate::Known(id) => Ok(run.published(id, true)),
            };
            out.push(Receipt { tag: item.tag, result });
        }
    }

    /// The items of `range`, by run.
    fn lots(&self, range: Range<usize>) -> Lots<'_> {
        let runs = self.runs.partition_point(|run| run.end <= range.start);
        Lots { items: &self.items, runs: self.runs.get(runs..).unwrap_or_default(), range }
    }
}

/// Items and their targets, run by run.
#[derive(Debug, Clone)]
struct Lots<'a> {
    items: &'a [Inbound],
    runs: &'a [Run],
    range: Range<usize>,
}

impl<'a> Iterator for Lots<'a> {
    type Item = Lot<'a, Inbound>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.range.is_empty() {
            return None;
        }
        let (run, rest) = self.runs.split_first()?;
        let start = self.range.start;
        let end = run.end.min(self.range.end);
        self.runs = rest;
        self.range.start = end;
        Some(Lot { messages: self.items.get(start..end)?, targets: &run.targets })
    }
}
