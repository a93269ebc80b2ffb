//! `CallService`.
//!
//! `serve` is the stream of a responder, `stream` that of a caller who takes parts, `gather` asks everyone, `later` is for
//! callers that do not wait; the other methods are here.
//! Invariant: nothing is kept here but the broker.

mod gather;
mod later;
mod serve;
mod stream;

use std::pin::Pin;
use std::sync::Arc;

use bytestring::ByteString;
use futures_util::Stream;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Extensions, Request, Response, Status, Streaming};

use crate::core::calls::{self, Caller, Calling, Gathering, Reply, ResponderFacts};
use crate::core::{Broker, CoreError};
use crate::types::{Message, TopicFilter, TopicName, UnixMillis, clock};

use super::bounds::{Answer, answer, intake, page_size};
use super::convert::{Intake, at_most, content, duration_of};
use super::deadline::Deadline;
use super::incoming::CallerAddress;
use super::proto::v1;
use super::status::{of_call, status};
use super::stream::Bounds;

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Debug)]
pub(super) struct CallService {
    broker: Arc<Broker>,
    streams: Bounds,
}

impl CallService {
    /// Serves the calls of `broker`.
    pub(super) fn new(broker: Arc<Broker>, streams: Bounds) -> Self {
        Self { broker, streams }
    }

    fn service(&self, name: String) -> Result<TopicName, CoreError> {
        service_named(&self.broker, "service", name)
    }

    /// What is asked, of one responder that answers at once, if the caller does not change that.
    fn asked(
        &self,
        (metadata, extensions): (&MetadataMap, &Extensions),
        service: TopicName,
        message: Option<v1::Message>,
    ) -> Result<calls::Request, CoreError> {
        let message = said(intake(&self.broker, clock::unix_now()), message, &service);
        let address = extensions.get::<CallerAddress>().and_then(|CallerAddress(address)| address.clone());
        Ok(calls::Request {
            message: message.map_err(|error| error.within("request"))?,
            deadline: deadline(extensions),
            caller: Caller { client_id: None, address },
            metadata: carried(metadata),
            idempotent: false,
            takes_parts: false,
            part: None,
        })
    }

    fn begin(
        &self,
        from: (&MetadataMap, &Extensions),
        service: String,
        message: Option<v1::Message>,
        (idempotent, takes_parts): (bool, bool),
    ) -> Result<Calling, CoreError> {
        let asked = self.asked(from, self.service(service)?, message)?;
        self.broker.call(calls::Request { idempotent, takes_parts, ..asked })
    }

    fn ask_all(
        &self,
        from: (&MetadataMap, &Extensions),
        request: v1::GatherRequest,
        keeps: bool,
    ) -> Result<Gathering, CoreError> {
        let v1::GatherRequest { service, request: message, policy, parts, filter, listeners } = request;
        let policy = gather::policy_of(policy, (!parts.is_empty(), listeners), keeps)?;
        if message.is_some() && !parts.is_empty() {
            return Err(CoreError::invalid("request", "has no meaning beside parts"));
        }
        if listeners && !parts.is_empty() {
            return Err(CoreError::invalid("listeners", "has no meaning beside parts"));
        }
        let whom = if filter.is_empty() { service.clone() } else { filter.clone() };
        let names = match filter {
            filter if filter.is_empty() => vec![self.service(service)?],
            _ if !service.is_empty() => {
                return Err(CoreError::invalid("filter", "stands instead of a service"));
            }
            _ if !parts.is_empty() => {
                return Err(CoreError::invalid("filter", "has no meaning beside parts"));
            }
            filter => self.broker.services_matching(&filter_named(&self.broker, filter)?)?,
        };
        let Some(first) = names.first() else { return Err(CoreError::invalid("service", "must be given")) };
        let mut asked = self.asked(from, first.clone(), message)?;
        let ends = policy.timeout.map(|timeout| clock::unix_now().after(timeout));
        asked.deadline = asked.deadline.into_iter().chain(ends).min();
        if parts.is_empty() {
            return self.broker.gather(&names, asked, policy).map_err(|error| match error {
                CoreError::NoResponders { .. } => CoreError::NoResponders { service: whom },
                other => other,
            });
        }
        self.broker.check_parts(parts.len())?;
        let intake = intake(&self.broker, clock::unix_now());
        let part = |(at, part)| {
            let message = said(intake, Some(part), first);
            message.map_err(|error| error.within(format_args!("parts[{at}]")))
        };
        let parts = parts.into_iter().enumerate().map(part).collect::<Result<_, _>>()?;
        self.broker.gather_parts(asked, parts, policy)
    }

    fn list(&self, request: v1::ListRespondersRequest) -> Result<v1::ListRespondersResponse, CoreError> {
        let size = page_size(request.page_size)?;
        let service = match request.service {
            service if service.is_empty() => None,
            service => Some(self.service(service)?),
        };
        let after = match request.page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| CoreError::invalid("page_token", "is not one"))?,
        };
        let mut page = self.broker.responders(service.as_ref(), after, size + 1);
        let more = page.len() > size;
        page.truncate(size);
        let last = page.last().filter(|_| more).map(|last| last.key.to_string());
        Ok(v1::ListRespondersResponse {
            responders: page.into_iter().map(responder_of).collect(),
            next_page_token: last.unwrap_or_default(),
        })
    }
}

#[tonic::async_trait]
impl v1::call_service_server::CallService for CallService {
    async fn call(&self, request: Request<v1::CallRequest>) -> Answer<v1::CallResponse> {
        let (metadata, extensions, request) = request.into_parts();
        let v1::CallRequest { service, request, idempotent } = request;
        let begun = self.begin((&metadata, &extensions), service, request, (idempotent, false));
        let mut calling = begun.map_err(|error| status(&error))?;
        match calling.reply().await {
            Ok(reply) => Ok(Response::new(v1::CallResponse { reply: Some(reply_of(reply)) })),
            Err(error) => Err(of_call(&error)),
        }
    }

    type CallStreamStream = Events<v1::CallStreamResponse>;

    async fn call_stream(&self, request: Request<v1::CallStreamRequest>) -> Answer<Self::CallStreamStream> {
        let (metadata, extensions, request) = request.into_parts();
        let v1::CallStreamRequest { service, request, idempotent } = request;
        let begun = self.begin((&metadata, &extensions), service, request, (idempotent, true));
        let calling = begun.map_err(|error| status(&error))?;
        Ok(Response::new(stream::serve(calling, &extensions)))
    }

    async fn call_async(&self, request: Request<v1::CallAsyncRequest>) -> Answer<v1::CallAsyncResponse> {
        let (metadata, extensions, request) = request.into_parts();
        let stored = async {
            let v1::CallAsyncRequest { service, request, timeout, reply_to, idempotent } = request;
            let deadline = Some(clock::unix_now().after(later::timeout(timeout.as_ref())?));
            let reply_to = later::reply_to(&self.broker, reply_to)?;
            let asked = self.asked((&metadata, &extensions), self.service(service)?, request)?;
            self.broker.call_async(calls::Request { deadline, idempotent, ..asked }, reply_to).await
        };
        answer(stored.await.map(|id| v1::CallAsyncResponse { request_id: id.to_string() }))
    }

    async fn await_reply(&self, request: Request<v1::AwaitReplyRequest>) -> Answer<v1::AwaitReplyResponse> {
        answer(later::await_reply(&self.broker, request.into_inner()).await)
    }

    type MulticastStream = Events<v1::MulticastResponse>;

    async fn multicast(&self, request: Request<v1::MulticastRequest>) -> Answer<Self::MulticastStream> {
        let (metadata, extensions, request) = request.into_parts();
        let v1::MulticastRequest { service, request, policy, parts, filter, listeners } = request;
        let request = v1::GatherRequest { service, request, policy, parts, filter, listeners };
        let gathering = self.ask_all((&metadata, &extensions), request, false);
        let gathering = gathering.map_err(|error| status(&error))?;
        Ok(Response::new(gather::serve(gathering, &extensions)))
    }

    async fn gather(&self, request: Request<v1::GatherRequest>) -> Answer<v1::GatherResponse> {
        let (metadata, extensions, request) = request.into_parts();
        let gathering = self.ask_all((&metadata, &extensions), request, true);
        let gathering = gathering.map_err(|error| status(&error))?;
        Ok(Response::new(gather::gather(gathering).await))
    }

    type ServeStream = Events<v1::ServeResponse>;

    async fn serve(&self, request: Request<Streaming<v1::ServeRequest>>) -> Answer<Self::ServeStream> {
        Ok(Response::new(serve::serve(&self.broker, self.streams, request)))
    }

    async fn list_responders(
        &self,
        request: Request<v1::ListRespondersRequest>,
    ) -> Answer<v1::ListRespondersResponse> {
        answer(self.list(request.into_inner()))
    }
}

/// The name of a service.
///
/// # Errors
/// [`CoreError::Invalid`] and [`CoreError::TooLarge`] naming `field`.
fn service_named(broker: &Broker, field: &str, name: String) -> Result<TopicName, CoreError> {
    let service = topic_named(broker, field, name)?;
    if service.is_reserved() {
        let what = format!("`{service}`: names that begin with `$` are the server's");
        return Err(CoreError::invalid(field, what));
    }
    Ok(service)
}

/// A topic.
///
/// # Errors
/// As of [`service_named`].
fn topic_named(broker: &Broker, field: &str, name: String) -> Result<TopicName, CoreError> {
    at_most(field, name.len(), broker.limits().max_topic_bytes)?;
    let topic = TopicName::parse(ByteString::from(name)).map_err(|error| CoreError::topic(field, &error))?;
    broker.limits().check_topic(field, &topic)?;
    Ok(topic)
}

/// Which services and topics a multicast is for.
///
/// # Errors
/// [`CoreError::Invalid`] and [`CoreError::TooLarge`].
fn filter_named(broker: &Broker, filter: String) -> Result<TopicFilter, CoreError> {
    at_most("filter", filter.len(), broker.limits().max_topic_bytes)?;
    let filter = TopicFilter::parse(ByteString::from(filter));
    let filter = filter.map_err(|error| CoreError::topic("filter", &error))?;
    if filter.as_str().starts_with('$') {
        let what = format!("`{filter}`: names that begin with `$` are the server's");
        return Err(CoreError::invalid("filter", what));
    }
    broker.limits().check_filter("filter", &filter)?;
    Ok(filter)
}

/// The message of a request or a reply.
///
/// # Errors
/// [`CoreError::Invalid`] and [`CoreError::TooLarge`] with the field's path below the message.
fn said(intake: Intake<'_>, message: Option<v1::Message>, service: &TopicName) -> Result<Message, CoreError> {
    let message = message.unwrap_or_default();
    let given = [
        ("topic", !message.topic.is_empty()),
        ("qos", message.qos() != v1::Qos::Unspecified),
        ("retain", message.retain),
        ("ttl", message.ttl.is_some()),
        ("reply_to", !message.reply_to.is_empty()),
        ("correlation_data", !message.correlation_data.is_empty()),
        ("priority", message.priority.is_some()),
        ("schedule", message.schedule.is_some()),
    ];
    if let Some((field, _)) = given.into_iter().find(|(_, given)| *given) {
        return Err(CoreError::invalid(field, "has no meaning in a call"));
    }
    Ok(intake.message(message, Some(service))?.message)
}

/// When the caller stops waiting, by the wall clock.
fn deadline(extensions: &Extensions) -> Option<UnixMillis> {
    let Deadline(at) = extensions.get()?;
    Some(clock::unix_now().after(at.saturating_duration_since(clock::now().into())))
}

/// The headers of a call that its responder gets.
fn carried(metadata: &MetadataMap) -> Arc<[(ByteString, ByteString)]> {
    let carried = metadata.iter().filter_map(|pair| {
        let KeyAndValueRef::Ascii(key, value) = pair else { return None };
        let key = key.as_str();
        let wanted = key.starts_with("x-") || matches!(key, "traceparent" | "tracestate" | "baggage");
        let value = value.to_str().ok().filter(|_| wanted)?;
        Some((key.into(), value.into()))
    });
    carried.collect()
}

fn reply_of(reply: Reply) -> v1::Reply {
    let Reply { responder, message, latency, more: _ } = reply;
    v1::Reply {
        responder_id: responder.into(),
        message: Some(content(message)),
        error: None,
        part: None,
        service: String::new(),
        latency: Some(duration_of(latency)),
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn responder_of(facts: ResponderFacts) -> v1::Responder {
    let ResponderFacts { key: _, serve, in_flight, served, errors, busy, draining, device } = facts;
    let mean = u32::try_from(served).ok().and_then(|served| busy.checked_div(served));
    v1::Responder {
        responder_id: serve.id.unwrap_or_default().into(),
        service: serve.service.as_str().to_owned(),
        group: serve.group.into(),
        in_flight: number(in_flight),
        max_concurrent_requests: number(serve.credit),
        served,
        errors,
        average_latency: mean.map(duration_of),
        metadata: serve.metadata.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
        draining,
        device,
    }
}
