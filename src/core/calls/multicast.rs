//! Requests to everyone, as doors ask for them: who they are, and that they are found.

use bytestring::ByteString;

use super::gather::{Gathering, Policy};
use super::{Counts, Request};
use crate::core::{Broker, CoreError};
use crate::types::{Message, TopicFilter, TopicName};

/// So many levels of topics are looked at for each responder that may be asked, to find those that a filter matches.
const NODES: usize = 100;

impl Broker {
    /// Asks everyone who serves one of `names`, the first of which is the request's topic: each stream, each subscriber of
    /// exactly that topic, if wanted of one with a wildcard too, and one member of each share group. Who is there for several is asked as each. Each has the
    /// request, or waits for room for it, when this returns. Never waits. The request is within
    /// [`Limits`](crate::core::Limits), as the door has checked.
    ///
    /// # Errors
    /// [`CoreError::NoResponders`], [`CoreError::Limit`] when there are too many calls or responders,
    /// [`CoreError::Draining`]. Nobody was asked then, or is told that nobody waits.
    pub fn gather(
        &self,
        names: &[TopicName],
        request: Request,
        policy: Policy,
    ) -> Result<Gathering, CoreError> {
        if self.draining.is_cancelled() {
            return Err(CoreError::Draining);
        }
        let mut listening = Vec::new();
        for name in names {
            let refused = |_: &CoreError| Counts::add(&self.calls.counts.refused);
            self.find_devices(name).inspect_err(refused)?;
            if policy.listeners {
                listening.push(self.calls.listening(name));
                self.find_listeners(name).inspect_err(refused)?;
            }
        }
        self.calls.gather(names, &request, (policy, listening))
    }

    /// The names of services, and of topics that somebody subscribes to, which `filter` matches, at least one, in their order.
    ///
    /// # Errors
    /// [`CoreError::NoResponders`]; [`CoreError::Limit`] when too many would have to be looked at.
    pub fn services_matching(&self, filter: &TopicFilter) -> Result<Vec<TopicName>, CoreError> {
        let most = self.limits.gather_responders.saturating_mul(NODES);
        let mut names = self.calls.served(filter);
        let whole = self.routes.now().names(filter, most, &mut |name| {
            names.extend(TopicName::parse(ByteString::from(name)).ok());
            true
        });
        if !whole {
            return Err(self.calls.too_many_to_ask());
        }
        if names.is_empty() {
            return Err(self.calls.nobody_named(filter.as_str()));
        }
        Ok(names.into_iter().collect())
    }

    /// Checks whether a request may have so many parts.
    ///
    /// # Errors
    /// [`CoreError::Limit`].
    pub fn check_parts(&self, count: usize) -> Result<(), CoreError> {
        let max = self.limits.gather_parts;
        match count <= max {
            true => Ok(()),
            false => Err(self.calls.refused("the request has too many parts", "gather_parts", max)),
        }
    }

    /// Gives `parts` of a request, at least one and as many as [`Self::check_parts`] allows, to those who serve: each to one of them, streams and subscribers alike, and
    /// who has answered one gets the next. A part whose responder is lost goes to another, up to
    /// [`Limits::call_tries`](crate::core::Limits) of them; what a responder says, an error too, is the part's answer. Who
    /// comes to serve later gets parts too. Never waits. `request` is what they have in common; its payload is not sent.
    ///
    /// # Errors
    /// As [`Self::gather`], and [`CoreError::Limit`] when too many parts wait for the service.
    pub fn gather_parts(
        &self,
        request: Request,
        parts: Vec<Message>,
        policy: Policy,
    ) -> Result<Gathering, CoreError> {
        if self.draining.is_cancelled() {
            return Err(CoreError::Draining);
        }
        self.find_devices(&request.message.topic).inspect_err(|_| Counts::add(&self.calls.counts.refused))?;
        self.calls.gather_parts(request, parts, policy)
    }
}
