//! One client's session on its stream: what is delivered next, and what its frames do.

use std::sync::Arc;
use std::time::Duration;

use crate::core::queues::consumer::Window;
use crate::core::{Broker, CoreError, OpenSession, Opened, SessionDelivery};
use crate::grpc::acks::Acks;
use crate::grpc::bounds::some_items;
use crate::grpc::convert::{duration, duration_of};
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::subscribe_stream_request::Action;
use crate::grpc::stream::{Bounds, End};
use crate::types::{ClientId, clock};

use super::filters::{Wanted, spec_of, told, wanted_of};
use super::held::Held;
use super::mailbox::Mailbox;
use super::voice::stored;
use super::will::will_of;
use super::{ANYONE, FRAME, MAX_FILTERS};

/// What there is after the first frame.
pub(super) struct Open {
    pub(super) held: Held,
    /// It was opened with an expiry of 0.
    ends_with_stream: bool,
    /// The session may have something to take.
    pub(super) hungry: bool,
    /// The session may be woken for what comes next.
    waiting: bool,
    taken: Vec<SessionDelivery>,
    pub(super) acks: Acks,
    pub(super) end: Option<End>,
}

/// Opens the session that a client asks for.
pub(super) async fn open_session(
    broker: &Arc<Broker>,
    bounds: Bounds,
    open: v1::OpenSession,
    window: Window,
) -> Result<(v1::SubscribeOpened, Open), CoreError> {
    let expiry = match &open.session_expiry {
        Some(given) => duration("open.session_expiry", given)?,
        None => Duration::ZERO,
    };
    let client_id = match open.client_id.as_str() {
        "" if expiry.is_zero() => None,
        "" => {
            return Err(CoreError::invalid(
                "open.client_id",
                "must be given for a session that outlives the stream",
            ));
        }
        id => {
            Some(ClientId::parse(id.to_owned()).map_err(|error| CoreError::name("open.client_id", &error))?)
        }
    };
    let will = match open.will {
        Some(will) => Some(will_of(broker, will).map_err(|error| error.within("open.will"))?),
        None => None,
    };
    let mailbox = Mailbox::new(bounds.mailbox);
    let open = OpenSession {
        client_id,
        clean_start: open.clean_start,
        expiry,
        principal: ANYONE,
        outbox: mailbox.clone(),
        will,
    };
    let Opened { session, present, expiry, .. } = broker.open_session(open).await?;
    let opened = v1::SubscribeOpened {
        session_id: session.client_id().to_string(),
        session_present: present,
        session_expiry: Some(duration_of(expiry)),
        ..Default::default()
    };
    let open = Open {
        ends_with_stream: expiry.is_zero(),
        held: Held::new(session, mailbox, window),
        hungry: true,
        waiting: false,
        taken: Vec::new(),
        acks: Acks::default(),
        end: None,
    };
    Ok((opened, open))
}

impl Open {
    /// What goes out as one frame.
    pub(super) fn frame(&mut self) -> Result<v1::DeliveryBatch, CoreError> {
        let now = clock::unix_now();
        let held = &mut self.held;
        let mut frame = v1::DeliveryBatch::default();
        let mailbox = Arc::clone(&held.mailbox);
        let mut encoded = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        loop {
            let place = Window { messages: FRAME.messages - count, bytes: FRAME.bytes.saturating_sub(bytes) };
            let room = held.room();
            let filled = mailbox.fill(&mut frame, place, room, now, |waiting| held.live(waiting));
            count += filled.messages;
            bytes += filled.bytes;
            let room = held.room();
            let max = room.messages.min(FRAME.messages - count).min(mailbox.room());
            let max_bytes = room.bytes.min(FRAME.bytes.saturating_sub(bytes));
            if max == 0 || max_bytes == 0 {
                if !held.has_room() && std::mem::take(&mut self.waiting) {
                    held.session.take(0, 0, &mut self.taken)?;
                }
                return Ok(frame);
            }
            if !self.hungry {
                return Ok(frame);
            }
            held.session.take(max, max_bytes, &mut self.taken)?;
            self.waiting = self.taken.len() < max;
            if self.taken.is_empty() && !mailbox.has_some() {
                self.hungry = false;
                return Ok(frame);
            }
            for delivery in self.taken.drain(..).filter(|delivery| !delivery.is_settled()) {
                count += 1;
                bytes += delivery.leased.message.weight();
                let number = held.stored(&delivery);
                encoded.clear();
                stored(&delivery).encode(now, &mut encoded);
                frame.push(&encoded, number);
            }
        }
    }

    /// Does what a frame says.
    pub(super) async fn action(
        &mut self,
        action: Option<Action>,
    ) -> Result<Option<v1::FiltersChanged>, CoreError> {
        match action {
            None => Err(CoreError::invalid("action", "must be given")),
            Some(Action::Open(_)) => Err(CoreError::invalid("open", "the stream is open already")),
            Some(Action::Heartbeat(_)) => Ok(None),
            Some(Action::Add(add)) => {
                some_items("add.filters", add.filters.len(), MAX_FILTERS)?;
                let filters = self.add("add.filters", add.filters).await;
                self.hungry = true;
                Ok(Some(v1::FiltersChanged { filters }))
            }
            Some(Action::Remove(remove)) => {
                some_items("remove.filters", remove.filters.len(), MAX_FILTERS)?;
                let filters = self.remove(remove.filters).await;
                Ok(Some(v1::FiltersChanged { filters }))
            }
            Some(Action::Close(close)) => {
                self.close(close).await?;
                Ok(None)
            }
            Some(Action::Ack(ack)) => {
                self.acks.check("ack", &ack, false)?;
                let v1::AckBatch { ack_id, delivery_ids, lease_tokens } = ack;
                if !lease_tokens.is_empty() {
                    let what = "a session's deliveries have numbers alone";
                    return Err(CoreError::invalid("ack.lease_tokens", what));
                }
                let (failures, durable) = self.held.settle(ack_id, delivery_ids)?;
                self.acks.push(ack_id, failures, durable);
                self.hungry = true;
                Ok(None)
            }
        }
    }

    /// The client takes its leave.
    async fn close(&mut self, close: v1::CloseSession) -> Result<(), CoreError> {
        if let Some(given) = &close.session_expiry {
            let field = "close.session_expiry";
            let expiry = duration(field, given)?;
            if self.ends_with_stream && !expiry.is_zero() {
                let what = "the session was opened to end with the stream";
                return Err(CoreError::invalid(field, what));
            }
            self.held.session.set_expiry(expiry).await?;
        }
        if !close.publish_will {
            self.held.session.withdraw_will();
        }
        self.end = Some(End::Done);
        Ok(())
    }

    /// Subscribes to what is well said, and tells of each what became of it.
    pub(super) async fn add(&self, field: &str, filters: Vec<v1::TopicFilter>) -> Vec<v1::FilterResult> {
        let mut wanted: Vec<Wanted> = Vec::with_capacity(filters.len());
        let mut refused = Vec::with_capacity(filters.len());
        for (at, filter) in filters.iter().enumerate() {
            match wanted_of(filter) {
                Ok(filter) => {
                    wanted.push(filter);
                    refused.push(None);
                }
                Err(error) => refused.push(Some(error.within(format_args!("{field}[{at}]")))),
            }
        }
        let mut granted = self.held.session.subscribe(wanted).await.into_iter();
        let results = refused.into_iter().map(|refused| match refused {
            Some(error) => Err(error),
            None => granted.next().unwrap_or(Err(CoreError::Draining)).map(Some),
        });
        filters
            .into_iter()
            .zip(results)
            .map(|(filter, result)| told(filter.filter, filter.share_group, result))
            .collect()
    }

    async fn remove(&self, filters: Vec<v1::FilterName>) -> Vec<v1::FilterResult> {
        let mut specs = Vec::with_capacity(filters.len());
        let mut refused = Vec::with_capacity(filters.len());
        for (at, name) in filters.iter().enumerate() {
            match spec_of(&name.filter, &name.share_group) {
                Ok(spec) => {
                    specs.push(spec);
                    refused.push(None);
                }
                Err(error) => refused.push(Some(error.within(format_args!("remove.filters[{at}]")))),
            }
        }
        let mut were_there = self.held.session.unsubscribe(specs).await.into_iter();
        let results = filters.into_iter().zip(refused).map(|(name, refused)| {
            let result = match refused.map_or_else(|| were_there.next().unwrap_or(Ok(false)), Err) {
                Ok(true) => Ok(None),
                Ok(false) => Err(CoreError::NotFound { kind: "subscription", name: name.filter.clone() }),
                Err(error) => Err(error),
            };
            told(name.filter, name.share_group, result)
        });
        results.collect()
    }
}
