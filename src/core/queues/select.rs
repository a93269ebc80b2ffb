//! Which messages of a queue are meant: for looking, deleting and moving.

use bytestring::ByteString;

use crate::core::{Broker, CoreError};
use crate::engine::{Browsed, View};
use crate::types::{QueueName, Sequence, TopicFilter, UnixMillis};

use super::{QueueEntry, of_queue};

/// Messages that are looked at by one call of the engine, at most.
const LOOK_MESSAGES: usize = 1000;
/// No more after so many bytes.
const LOOK_BYTES: usize = 1 << 20;

/// What is asked of a message; all that is said holds. The default means every message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Select {
    /// Each of these properties is there with this value.
    pub properties: Vec<(ByteString, ByteString)>,
    /// Its topic.
    pub topic: Option<TopicFilter>,
    /// No earlier place.
    pub from: Sequence,
    /// No later place.
    pub to: Option<Sequence>,
    /// It came to the broker then or later.
    pub since: Option<UnixMillis>,
    /// It came to the broker before.
    pub before: Option<UnixMillis>,
    /// The queue that gave it up.
    pub source: Option<QueueName>,
}

impl Select {
    /// Whether nothing but its place decides if a message is meant.
    fn is_of_places(&self) -> bool {
        *self == Self { from: self.from, to: self.to, ..Self::default() }
    }

    /// Whether this message is meant.
    #[must_use]
    pub fn matches(&self, browsed: &Browsed) -> bool {
        let Browsed { sequence, message, .. } = browsed;
        let came = message.id.time();
        let extras = message.extras.as_deref();
        let has = |wanted: &(ByteString, ByteString)| {
            extras.is_some_and(|extras| extras.properties.iter().any(|property| property == wanted))
        };
        let source = extras.and_then(|extras| extras.dead_letter.as_ref()).map(|dead| &dead.source);
        *sequence >= self.from
            && self.to.is_none_or(|to| *sequence <= to)
            && self.since.is_none_or(|since| came >= since)
            && self.before.is_none_or(|before| came < before)
            && self.topic.as_ref().is_none_or(|topic| topic.matches(&message.topic))
            && self.source.as_ref().is_none_or(|wanted| source == Some(wanted))
            && self.properties.iter().all(has)
    }
}

/// A part of those that were meant.
#[derive(Debug)]
pub struct Found {
    /// In the order of their places; may be none though there are more.
    pub messages: Vec<Browsed>,
    /// The places that were looked at, in their order.
    pub looked_at: Vec<Sequence>,
    /// The last place that was looked at.
    pub through: Sequence,
    /// Where to go on; none: there is nothing more.
    pub next: Option<Sequence>,
}

impl Broker {
    /// Looks from `from` on for messages of a view that are meant, of which the caller wants `max`. Looks at no more than a
    /// thousand, or 1 MiB and one message, so that others have their turn: to be called again with what it says.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Engine`].
    pub async fn look(
        &self,
        queue: &QueueEntry,
        view: View,
        select: &Select,
        from: Sequence,
        max: usize,
    ) -> Result<Found, CoreError> {
        let from = from.max(select.from);
        let max = if select.is_of_places() { max.min(LOOK_MESSAGES) } else { LOOK_MESSAGES };
        let page = self.engine.browse(queue.id, view, from, max, LOOK_BYTES).await;
        let page = page.map_err(|error| of_queue(queue, error))?;
        let looked_at = page.messages.iter().map(|browsed| browsed.sequence).collect();
        let last = page.messages.last().map_or(from, |last| last.sequence);
        let through = page.next.map_or(last, |next| Sequence(next.0 - 1));
        let messages = page.messages.into_iter().filter(|browsed| select.matches(browsed)).collect();
        let next = page.next.filter(|next| select.to.is_none_or(|to| *next <= to));
        Ok(Found { messages, looked_at, through, next })
    }
}

/// Goes through a view once, and through no place that was given after it began: it ends where new messages come as fast
/// as it goes.
#[derive(Debug)]
pub(super) struct Walk {
    view: View,
    select: Select,
    /// None at the end.
    pub(super) next: Option<Sequence>,
}

impl Walk {
    /// From the first message that is meant on.
    pub(super) fn new(
        broker: &Broker,
        queue: &QueueEntry,
        view: View,
        select: Select,
    ) -> Result<Self, CoreError> {
        let last = broker.engine.stats(queue.id).map_err(|error| of_queue(queue, error))?.last;
        let to = select.to.map_or(last, |to| to.min(last));
        let next = Some(select.from).filter(|&from| from <= to);
        Ok(Self { view, select: Select { to: Some(to), ..select }, next })
    }

    /// The next part; none at the end.
    pub(super) async fn step(
        &mut self,
        broker: &Broker,
        queue: &QueueEntry,
    ) -> Result<Option<Found>, CoreError> {
        let Some(from) = self.next.take() else { return Ok(None) };
        let found = broker.look(queue, self.view, &self.select, from, LOOK_MESSAGES).await?;
        self.next = found.next;
        Ok(Some(found))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::Limits;
    use crate::core::queues::define::plain_queue;
    use crate::core::queues::enqueue::Enqueue;
    use crate::engine::embedded::Embedded;
    use crate::engine::{ConsumerOptions, Durability, Engine, EngineSettings};
    use crate::types::{DeadLetter, Extras, Message, MessageIds, Priority, Qos, TopicName};

    fn shown() -> Browsed {
        let dead_letter = DeadLetter {
            source: QueueName::parse("orders").unwrap(),
            reason: "rejected".into(),
            attempts: 1,
            at: UnixMillis(9),
        };
        let properties = vec![("k".into(), "1".into()), ("k".into(), "2".into()), ("l".into(), "".into())];
        let extras = Extras { properties, dead_letter: Some(dead_letter), ..Extras::default() };
        Browsed {
            sequence: Sequence(7),
            attempts: 0,
            view: View::Ready,
            priority: Priority::default(),
            until: None,
            message: Message {
                id: MessageIds::new().next(UnixMillis(1000)),
                topic: TopicName::parse("$queue/orders".into()).unwrap(),
                payload: Default::default(),
                qos: Qos::AtLeastOnce,
                retain: false,
                expires_at: None,
                extras: Some(Box::new(extras)),
            },
        }
    }

    #[test]
    fn each_condition_can_miss_and_all_must_hold() {
        let properties = |pairs: &[(&'static str, &'static str)]| Select {
            properties: pairs.iter().map(|&(k, v)| (k.into(), v.into())).collect(),
            ..Select::default()
        };
        let topic = |filter: &'static str| Select {
            topic: Some(TopicFilter::parse(filter.into()).unwrap()),
            ..Select::default()
        };
        let source =
            |name: &str| Select { source: QueueName::parse(name.to_owned()).ok(), ..Select::default() };
        let places =
            |from, to: u64| Select { from: Sequence(from), to: Some(Sequence(to)), ..Select::default() };
        let times = |since, before| Select {
            since: Some(UnixMillis(since)),
            before: Some(UnixMillis(before)),
            ..Select::default()
        };
        for (select, meant) in [
            (Select::default(), true),
            (properties(&[("k", "2"), ("l", ""), ("k", "1")]), true),
            (properties(&[("k", "2"), ("l", "x")]), false),
            (properties(&[("m", "")]), false),
            (topic("$queue/+"), true),
            (topic("orders"), false),
            (source("orders"), true),
            (source("order"), false),
            (places(7, 7), true),
            (places(8, 9), false),
            (places(0, 6), false),
            (times(1000, 1001), true),
            (times(1001, 2000), false),
            (times(0, 1000), false),
            (Select { source: QueueName::parse("other").ok(), ..properties(&[("k", "1")]) }, false),
        ] {
            assert_eq!(select.matches(&shown()), meant, "{select:?}");
        }
        let bare = Browsed { message: Message { extras: None, ..shown().message }, ..shown() };
        assert!(Select::default().matches(&bare));
        assert!(!properties(&[("k", "1")]).matches(&bare) && !source("orders").matches(&bare));
    }

    async fn put(broker: &Broker, queue: &Arc<QueueEntry>, count: usize) {
        let one = || Enqueue {
            message: Message { extras: None, ..shown().message },
            priority: Priority::default(),
            not_before: None,
        };
        let stored = broker.enqueue(queue, (0..count).map(|_| one()).collect()).await.await.unwrap();
        assert_eq!(stored.results().filter(Result::is_ok).count(), count);
    }

    #[tokio::test]
    async fn a_walk_goes_to_the_last_place_of_its_beginning_whatever_comes_and_goes() {
        let dir = tempfile::TempDir::new().unwrap();
        let settings = EngineSettings {
            data_dir: dir.path().to_owned(),
            durability: Durability::Memory,
            watermark_free_bytes: 0,
            ballast_bytes: 0,
            ..EngineSettings::default()
        };
        let engine: Arc<dyn Engine> = Arc::new(Embedded::open(settings).unwrap());
        let limits = Limits::default();
        let broker = Broker::open(Arc::clone(&engine), limits.clone()).await.unwrap();
        let spec = plain_queue(QueueName::parse("q").unwrap(), &limits, UnixMillis(0));
        broker.create_queue(spec, false).await.unwrap();
        let queue = broker.queues().get("q").unwrap();
        put(&broker, &queue, 2500).await;
        let consumer = engine.consumer(queue.id, ConsumerOptions::default()).unwrap();
        consumer.take(1400, usize::MAX, &mut Vec::new()).unwrap();

        let select = Select { from: Sequence(11), ..Select::default() };
        let mut walk = Walk::new(&broker, &queue, View::Ready, select).unwrap();
        let ahead = Select { from: Sequence(2501), ..Select::default() };
        let mut nothing = Walk::new(&broker, &queue, View::Ready, ahead).unwrap();
        // 1400 of them are ready again, and others come all the time.
        consumer.release_all(false);
        let mut seen = Vec::new();
        loop {
            put(&broker, &queue, 1100).await;
            let Some(found) = walk.step(&broker, &queue).await.unwrap() else { break };
            seen.extend(found.messages.iter().map(|browsed| browsed.sequence.0));
        }
        assert!(
            seen.iter().copied().eq(11..=2500),
            "{} from {:?} to {:?}",
            seen.len(),
            seen.first(),
            seen.last()
        );
        assert!(nothing.step(&broker, &queue).await.unwrap().is_none(), "it was not there");
    }
}
