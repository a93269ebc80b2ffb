//! Responders that are subscribers: a session that answers what it is sent on a topic.
//!
//! A service is called by its name, which is a topic. Who subscribes to exactly that topic answers, and of each share group
//! that it matches every member; what has a wildcard alone only listens, and is asked where everyone is and that is wanted. A
//! request is a message on the service's topic with [`REPLY_TOPIC`] as its response topic; the correlation data names the request:
//!
//! ```text
//! [responder: u64 BE][number: u64 BE]
//! ```
//!
//! A client of 3.1.1 knows neither: see [`topics`](super::topics).
//!
//! Invariant: an answer is taken from the session that was asked alone.

#[cfg(all(test, feature = "embedded"))]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::service::Service;
use super::{Answer, Audience, Calls, Counts, Part, ReplyRefused, Request, Said, Serve};
use crate::core::delivery::{Answers, Offer, TooLarge};
use crate::core::route::{Route, Routing};
use crate::core::router::Epoch;
use crate::core::session::{SessionEntry, SessionKey};
use crate::core::{Broker, CoreError};
use crate::types::topic::FilterSpec;
use crate::types::{Message, Qos, TopicFilter, TopicName};

/// Where devices answer.
pub(crate) const REPLY_TOPIC: &str = "$reply";

/// A session that may be asked.
#[derive(Debug, Clone)]
pub(super) struct Device {
    session: Arc<SessionEntry>,
    /// What it has subscribed to.
    filter: FilterSpec,
    answers: Answers,
    /// Where it answers.
    reply_to: TopicName,
}

/// Why a device was not asked.
#[derive(Debug)]
pub(super) enum NotAsked {
    /// It does not answer for this service any more.
    Left,
    /// Too much waits for it, or its connection is about to end.
    Full,
    /// It takes no packet as large as the request.
    TooLarge(TooLarge),
}

impl Device {
    pub(super) fn key(&self) -> SessionKey {
        self.session.key
    }

    /// Whether it knows no correlation data: what it says next is its answer.
    pub(super) fn says_no_number(&self) -> bool {
        self.answers == Answers::ByTopic
    }

    /// Whether it is one of a share group.
    pub(super) fn is_member(&self) -> bool {
        matches!(self.filter, FilterSpec::Shared { .. })
    }

    /// Whether it is there and still subscribes.
    pub(super) fn answers(&self) -> bool {
        answers(&self.session) == self.answers
            && self.session.state.lock().subscriptions.contains(&self.filter)
    }

    /// Sends it a request.
    pub(super) fn ask(&self, key: u64, number: u64, request: &Request) -> Result<(), NotAsked> {
        if !self.answers() {
            return Err(NotAsked::Left);
        }
        let message = self.packet(key, number, request);
        let offer = offer_of(&message, request);
        // What it does not take another may get: that is no loss of its session.
        let attached = self.session.attached.load();
        let Some(attached) = attached.as_ref() else { return Err(NotAsked::Left) };
        attached.outbox.takes(&offer).map_err(NotAsked::TooLarge)?;
        if attached.outbox.offer(&[offer]) == 0 { Ok(()) } else { Err(NotAsked::Full) }
    }

    /// Whether it takes a packet as large as the request.
    pub(super) fn takes(&self, request: &Request) -> Result<(), TooLarge> {
        let attached = self.session.attached.load();
        let Some(attached) = attached.as_ref() else { return Ok(()) };
        attached.outbox.takes(&offer_of(&self.packet(0, 0, request), request))
    }

    /// A request as it is sent.
    fn packet(&self, key: u64, number: u64, request: &Request) -> Message {
        let mut message = request.message.clone();
        message.expires_at = request.deadline;
        let mut correlation = [0; 16];
        correlation[..8].copy_from_slice(&key.to_be_bytes());
        correlation[8..].copy_from_slice(&number.to_be_bytes());
        let extras = message.extras_mut();
        extras.reply_to = Some(self.reply_to.clone());
        extras.correlation_data = Some(Bytes::copy_from_slice(&correlation));
        if let Some(Part { index, count }) = request.part {
            extras.properties.push((ByteString::from_static(PART), format!("{index}/{count}").into()));
        }
        message
    }
}

fn offer_of<'a>(message: &'a Message, request: &'a Request) -> Offer<'a> {
    Offer {
        message,
        qos: Qos::AtMostOnce,
        retain: false,
        identifiers: &[],
        share: None,
        publisher: request.caller.client_id.as_ref(),
    }
}

/// How a session answers now.
fn answers(session: &SessionEntry) -> Answers {
    session.attached.load().as_ref().map_or(Answers::Never, |attached| attached.outbox.answers())
}

/// With which of its own subscriptions a session hears what is published on a topic that it does not subscribe to by its name.
fn listening(session: &SessionEntry, exact: &FilterSpec, name: &TopicName) -> Option<FilterSpec> {
    let state = session.state.lock();
    if state.subscriptions.contains(exact) {
        return None;
    }
    let hears = |spec: &&FilterSpec| matches!(spec, FilterSpec::Plain(filter) if filter.matches(name));
    state.subscriptions.iter().map(|(spec, _)| spec).find(hears).cloned()
}

/// A device and what it offers.
pub(super) type Candidate = (Device, Serve);
/// When those who answer for a service may have changed.
pub(super) type Seen = (Epoch, u64);

/// Where the devices that were found are.
#[derive(Debug, Default)]
pub(super) struct Index {
    places: Mutex<Places>,
}

/// A device's place.
#[derive(Debug, Clone)]
struct Known {
    session: SessionKey,
    /// Where it answers.
    reply_to: TopicName,
    service: Arc<Service>,
    at: usize,
}

#[derive(Debug, Default)]
struct Places {
    by_key: FxHashMap<u64, Known>,
    by_session: FxHashMap<SessionKey, FxHashSet<u64>>,
    /// By what a session is asked on, and by where it answers if it knows no correlation data. The names come from peers.
    by_topic: HashMap<(SessionKey, TopicName), SmallVec<[u64; 2]>>,
}

impl Known {
    /// Where what it publishes is of interest here, and when it ends a subscription.
    fn topics(&self) -> impl Iterator<Item = &TopicName> + use<'_> {
        let answers_by_topic = self.reply_to.as_str() != REPLY_TOPIC;
        [self.service.name()].into_iter().chain(Some(&self.reply_to).filter(|_| answers_by_topic))
    }
}

impl Places {
    fn known(&self, keys: impl Iterator<Item = u64>) -> Vec<(u64, Known)> {
        keys.filter_map(|key| Some((key, self.by_key.get(&key)?.clone()))).collect()
    }
}

impl Index {
    pub(super) fn add(&self, key: u64, device: &Device, service: &Arc<Service>, at: usize) {
        let session = device.key();
        let (reply_to, service) = (device.reply_to.clone(), Arc::clone(service));
        let known = Known { session, reply_to, service, at };
        let mut places = self.places.lock();
        for topic in known.topics() {
            let keys = places.by_topic.entry((session, topic.clone())).or_default();
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        places.by_session.entry(session).or_default().insert(key);
        places.by_key.insert(key, known);
    }

    pub(super) fn remove(&self, key: u64) {
        let mut places = self.places.lock();
        let Some(known) = places.by_key.remove(&key) else { return };
        for topic in known.topics() {
            let place = (known.session, topic.clone());
            if let Some(keys) = places.by_topic.get_mut(&place) {
                keys.retain(|other| *other != key);
                if keys.is_empty() {
                    places.by_topic.remove(&place);
                }
            }
        }
        if let Some(keys) = places.by_session.get_mut(&known.session) {
            keys.remove(&key);
            if keys.is_empty() {
                places.by_session.remove(&known.session);
            }
        }
    }

    fn get(&self, key: u64) -> Option<Known> {
        self.places.lock().by_key.get(&key).cloned()
    }

    fn of_session(&self, session: SessionKey) -> Vec<(u64, Known)> {
        let places = self.places.lock();
        places.known(places.by_session.get(&session).into_iter().flatten().copied())
    }

    /// Where a session is asked on a topic, or answers on it.
    fn on_topic(&self, session: SessionKey, topic: &TopicName) -> Vec<(u64, Known)> {
        let places = self.places.lock();
        places.known(places.by_topic.get(&(session, topic.clone())).into_iter().flatten().copied())
    }

    /// How many places, sessions and topics are known.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 3] {
        let places = self.places.lock();
        [places.by_key.len(), places.by_session.len(), places.by_topic.len()]
    }
}

impl Calls {
    /// A session has no connection any more: what it has in hand goes to another or fails.
    pub(crate) fn session_left(&self, session: SessionKey) {
        for (key, Known { service, at, .. }) in self.devices.of_session(session) {
            service.leave(at, key);
        }
    }

    /// A session has ended subscriptions: where it was asked for them it is asked no more, and what waits for it alone ends.
    pub(crate) fn unsubscribed(&self, session: SessionKey, filters: &[FilterSpec]) {
        for spec in filters {
            let places = match spec {
                FilterSpec::Plain(filter) if !filter.is_wildcard() => {
                    let Ok(topic) = TopicName::parse(filter.to_byte_string()) else { continue };
                    self.devices.on_topic(session, &topic)
                }
                FilterSpec::Plain(filter) | FilterSpec::Shared { filter, .. } => {
                    let mut places = self.devices.of_session(session);
                    places.retain(|(_, known)| filter.matches(known.service.name()));
                    places
                }
            };
            for (key, Known { service, at, .. }) in places {
                service.stop_if_gone(at, key);
            }
        }
    }

    /// Takes what a session publishes as the answer of a device that knows no correlation data, if it has one in hand.
    pub(crate) fn answer_on(&self, session: SessionKey, topic: &TopicName, said: impl Fn() -> Said) {
        for (key, Known { reply_to, service, at, .. }) in self.devices.on_topic(session, topic) {
            if reply_to == *topic {
                service.reply_next(at, key, &said);
            }
        }
    }

    /// Passes the answer of a device on. `correlation` is what it repeats of the request.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] when that is nothing of ours, [`CoreError::Denied`] when another was asked,
    /// [`CoreError::Precondition`] when nobody waits.
    pub(crate) fn answer(
        &self,
        session: Option<SessionKey>,
        correlation: Option<&[u8]>,
        said: Said,
    ) -> Result<(), CoreError> {
        let parts = correlation.and_then(|data| data.split_first_chunk::<8>());
        let parts = parts.and_then(|(key, rest)| Some((*key, rest.try_into().ok()?)));
        let Some((key, number)) =
            parts.map(|(key, number)| (u64::from_be_bytes(key), u64::from_be_bytes(number)))
        else {
            Counts::add(&self.counts.replies_unknown);
            return Err(CoreError::invalid("correlation data", "is not that of a request"));
        };
        let Some(Known { session: asked, service, at, .. }) = self.devices.get(key) else {
            Counts::add(&self.counts.replies_unknown);
            return Err(CoreError::invalid("correlation data", "is not that of a request in hand"));
        };
        if session != Some(asked) {
            Counts::add(&self.counts.replies_forged);
            return Err(CoreError::Denied("the request was sent to another client".to_owned()));
        }
        let refused = service.reply(at, key, vec![Answer { number, said }]).pop();
        match refused {
            None => Ok(()),
            Some(ReplyRefused::Wrong { error, .. }) => Err(error),
            Some(why) => Err(CoreError::Precondition { reason: why.reason(), what: why.to_string() }),
        }
    }
}

impl Broker {
    /// Brings what is known of the devices that answer for a service up to date.
    ///
    /// # Errors
    /// [`CoreError::Limit`] when there are too many responders.
    pub(super) fn find_devices(&self, name: &TopicName) -> Result<(), CoreError> {
        self.find(Audience::Serving, name)
    }

    /// The same of those who only listen.
    pub(super) fn find_listeners(&self, name: &TopicName) -> Result<(), CoreError> {
        self.find(Audience::Listening, name)
    }

    fn find(&self, audience: Audience, name: &TopicName) -> Result<(), CoreError> {
        let routing = self.routes.now();
        let seen = (routing.epoch(name.first_level()), self.calls.reconnects());
        let service = self.calls.service_of(audience, name);
        if service.as_ref().is_some_and(|service| service.has_seen(seen)) {
            return Ok(());
        }
        let candidates = self.candidates(audience, &routing, name);
        if service.is_none() && candidates.is_empty() {
            return Ok(());
        }
        let refresh = |service: &Arc<Service>| service.refresh(seen, candidates);
        let refreshed = self.calls.service_with(audience, name, refresh);
        if let Some(service) = self.calls.service_of(audience, name).filter(|service| service.is_empty()) {
            self.calls.forget(&service);
        }
        refreshed
    }

    fn candidates(&self, audience: Audience, routing: &Routing, name: &TopicName) -> Vec<Candidate> {
        let (Ok(exact), Ok(reply_to)) =
            (TopicFilter::parse(name.to_byte_string()), TopicName::parse(REPLY_TOPIC.into()))
        else {
            return Vec::new();
        };
        let exact = FilterSpec::Plain(exact);
        let mut found = Vec::new();
        let pairs = &self.limits.device_topics;
        let mut add = |session: &Arc<SessionEntry>, filter: &FilterSpec, group: ByteString| {
            let answers = answers(session);
            let (reply_to, credit) = match answers {
                Answers::Never => return,
                Answers::ByProperties => (reply_to.clone(), self.limits.device_calls),
                Answers::ByTopic => match pairs.iter().find_map(|pair| pair.reply_to(name)) {
                    Some(reply_to) => (reply_to, 1),
                    None => return,
                },
            };
            let device = Device { session: Arc::clone(session), filter: filter.clone(), answers, reply_to };
            let serve = Serve {
                service: name.detached(),
                group,
                id: Some(session.client_id.to_byte_string()),
                credit,
                metadata: Vec::new(),
            };
            found.push((device, serve));
        };
        routing.matches(name, &mut |_, route| match route {
            Route::Session(session, _) => {
                let filter = match audience {
                    Audience::Serving => Some(&exact)
                        .filter(|exact| session.state.lock().subscriptions.contains(exact))
                        .cloned(),
                    Audience::Listening => listening(session, &exact, name),
                };
                if let Some(filter) = filter {
                    add(session, &filter, ByteString::new());
                }
            }
            Route::Share(group) if audience == Audience::Serving => {
                let named = ByteString::from(group.spec.to_string());
                for session in &group.members() {
                    add(session, &group.spec, named.clone());
                }
            }
            Route::Queue(_) | Route::Stream(_) | Route::Share(_) => {}
        });
        // One session may be there on several ways; it is one responder, and its own subscription counts before those in
        // groups: it is asked in any case, then.
        found.sort_by_key(|(device, _)| device.is_member());
        let mut sessions = std::collections::HashSet::new();
        found.retain(|(device, _)| sessions.insert(device.key()));
        found
    }
}

/// The answer as the contract of devices has it: the user property [`ERROR`] makes an error of it.
pub(super) fn said(mut message: Message) -> Said {
    message.expires_at = None;
    message.retain = false;
    let Some(extras) = &mut message.extras else { return Said::Last(message) };
    extras.reply_to = None;
    extras.correlation_data = None;
    let error = extras.properties.iter().find(|(key, _)| *key == *ERROR).map(|(_, value)| value.clone());
    match error {
        None => Said::Last(message),
        Some(word) => Said::Fault(super::Fault {
            code: super::published::code_of(&word),
            message: super::published::error_text(&message.payload),
            details: Bytes::new(),
        }),
    }
}

/// The user property of a request that is one of the parts of a larger one.
const PART: &str = "stafett-part";
/// The user property of an answer that says that it is an error, and which.
pub(super) const ERROR: &str = "stafett-error";
