//! What surrounds every call: a request id, and a span that carries it.
//!
//! The id is the caller's `x-request-id`, or else a new one; the answer repeats it, so that a caller and the log can be
//! brought together.

use http::{HeaderValue, Request};
use tower_http::classify::{GrpcErrorsAsFailures, SharedClassifier};
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::trace::{DefaultOnFailure, DefaultOnResponse, TraceLayer};
use tracing::{Level, Span};
use ulid::Ulid;

/// Gives a call a new id.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewId;

impl MakeRequestId for NewId {
    fn make_request_id<B>(&mut self, _request: &Request<B>) -> Option<RequestId> {
        let mut id = HeaderValue::try_from(Ulid::generate().to_string()).ok()?;
        // It never comes again: neither side need put it into its table of headers.
        id.set_sensitive(true);
        Some(RequestId::new(id))
    }
}

pub(super) fn identify() -> SetRequestIdLayer<NewId> {
    SetRequestIdLayer::x_request_id(NewId)
}

pub(super) fn propagate() -> PropagateRequestIdLayer {
    PropagateRequestIdLayer::x_request_id()
}

/// Tells debug lines about calls and nothing about their parts.
type Spans<B> = TraceLayer<
    SharedClassifier<GrpcErrorsAsFailures>,
    fn(&Request<B>) -> Span,
    (),
    DefaultOnResponse,
    (),
    (),
    DefaultOnFailure,
>;

/// A span per call, at level debug: without it a call costs nothing here.
pub(super) fn trace<B>() -> Spans<B> {
    TraceLayer::new_for_grpc()
        .make_span_with(span as fn(&Request<B>) -> Span)
        .on_request(())
        .on_response(DefaultOnResponse::new().level(Level::DEBUG))
        .on_body_chunk(())
        .on_eos(())
        .on_failure(DefaultOnFailure::new().level(Level::DEBUG))
}

fn span<B>(request: &Request<B>) -> Span {
    let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    tracing::debug_span!("call", method = request.uri().path(), id)
}
