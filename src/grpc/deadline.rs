//! The deadline of a call: `grpc-timeout`, the only one there is.
//!
//! A call that is not answered in time ends here with DEADLINE_EXCEEDED and is dropped. Its deadline goes along in
//! the request's extensions, since a stream that has begun must end by itself.

use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tower::{Layer, Service};

/// The transport watches the same header and would say CANCELLED, and the caller has a clock of its own: the answer is
/// given a tenth of the time before them, within these bounds.
const LEAD: RangeInclusive<Duration> = Duration::from_millis(2)..=Duration::from_millis(20);

/// When the caller stops waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub(super) Instant);

/// Returns when the deadline of a call has passed; never, if it has none. Cancel safe.
pub(super) async fn passed(deadline: Option<Deadline>) {
    match deadline {
        Some(Deadline(at)) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Gives every call its deadline.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Enforce<S>;

    fn layer(&self, inner: S) -> Enforce<S> {
        Enforce { inner }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Enforce<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Enforce<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Enforced<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let deadline = timeout(request.headers()).map(|timeout| {
            let lead = (timeout / 10).clamp(*LEAD.start(), *LEAD.end());
            Instant::now() + timeout.saturating_sub(lead)
        });
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        Enforced { answer: self.inner.call(request), deadline: deadline.map(sleep_until) }
    }
}

pin_project! {
    /// The answer, or DEADLINE_EXCEEDED.
    pub(super) struct Enforced<F> {
        #[pin]
        answer: F,
        #[pin]
        deadline: Option<Sleep>,
    }
}

impl<F, R, E> Future for Enforced<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Default,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(answer) = this.answer.poll(cx) {
            return Poll::Ready(answer);
        }
        let Some(deadline) = this.deadline.as_pin_mut() else { return Poll::Pending };
        ready!(deadline.poll(cx));
        Poll::Ready(Ok(exceeded().into_http()))
    }
}

/// What a call or stream ends with at its deadline.
pub(super) fn exceeded() -> Status {
    Status::deadline_exceeded("the deadline of the call has passed")
}

/// `grpc-timeout`: at most eight digits and a unit. A header that is none is passed over.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_header() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "m", "1", "-1S", "1.5S", "123456789S", "5x"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_ends_at_its_deadline() {
        let never = tower::service_fn(|_: Request<()>| std::future::pending::<Result<Response<()>, ()>>());
        let mut service = DeadlineLayer.layer(never);
        let request = Request::builder().header("grpc-timeout", "3S").body(()).unwrap();
        let before = Instant::now();
        let answer = service.call(request).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
        assert!(before.elapsed() < Duration::from_secs(3));
    }
}
