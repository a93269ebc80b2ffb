//! The handle of who answers the calls of a service.

use std::fmt;
use std::sync::Arc;

use bytestring::ByteString;
use tokio::sync::Notify;

use super::call::Call;
use super::service::Service;
use super::{Answer, ReplyRefused, Request, Serve};
use crate::core::queues::consumer::Window;

/// A responder that was added with [`Broker::serve`](crate::core::Broker::serve). Dropping it takes it away: what it has
/// in hand goes to another responder or fails.
pub struct Responder {
    service: Arc<Service>,
    at: usize,
    key: u64,
    serve: Serve,
    wake: Arc<Notify>,
}

/// A request for a responder.
#[derive(Debug)]
pub struct Asked {
    /// Names it among those of this responder, ascending from 1.
    pub number: u64,
    call: Arc<Call>,
}

/// Numbers of requests that nobody waits for any more.
pub type Cancelled = Vec<u64>;

impl Asked {
    /// What is asked.
    #[must_use]
    pub fn request(&self) -> &Request {
        self.call.request()
    }

    #[cfg(test)]
    pub(super) fn call_of(&self) -> &Call {
        &self.call
    }

    /// 1 for the first responder that was asked.
    #[must_use]
    pub fn attempt(&self) -> usize {
        self.call.tries()
    }
}

impl Responder {
    pub(super) fn new(
        service: Arc<Service>,
        (at, key): (usize, u64),
        serve: Serve,
        wake: Arc<Notify>,
    ) -> Self {
        Self { service, at, key, serve, wake }
    }

    /// Its name, made up or not.
    #[must_use]
    pub fn id(&self) -> ByteString {
        self.serve.id.clone().unwrap_or_default()
    }

    /// What it serves.
    #[must_use]
    pub fn serve(&self) -> &Serve {
        &self.serve
    }

    /// Returns when there may be something to [`take`](Self::take). Cancel safe.
    pub async fn ready(&self) {
        self.wake.notified().await;
    }

    /// Takes requests that are there, as many as `frame` holds, and the numbers of those that were given up, without
    /// waiting.
    #[must_use]
    pub fn take(&self, frame: Window) -> (Vec<Asked>, Cancelled) {
        let (mut asked, mut cancelled) = (Vec::new(), Vec::new());
        let request = |number, call| asked.push(Asked { number, call });
        self.service.take(self.at, (frame.messages, frame.bytes), request, &mut cancelled);
        (asked, cancelled)
    }

    /// Passes answers on to those who wait. Returns those that nobody got, in their order.
    #[must_use]
    pub fn reply(&self, answers: Vec<Answer>) -> Vec<ReplyRefused> {
        self.service.reply(self.at, self.key, answers)
    }

    /// Takes no more requests. What it has in hand stays there.
    pub fn drain(&self) {
        self.service.drain(self.at);
    }

    /// Whether all that it was handed is answered or given up.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.service.is_idle(self.at)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.service.leave(self.at, self.key);
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").field("serve", &self.serve).finish_non_exhaustive()
    }
}
