//! How a caller learns that something is durable.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::{EngineError, Outcome};

/// Completes when what it covers is durable, in order. Dropping it changes nothing.
#[derive(Debug)]
#[must_use = "what is not awaited is not known to be stored"]
pub struct Ticket<T = Vec<Outcome>>(oneshot::Receiver<Result<T, EngineError>>);

impl<T> Ticket<T> {
    /// A ticket and its other end.
    pub fn new() -> (oneshot::Sender<Result<T, EngineError>>, Self) {
        let (send, receive) = oneshot::channel();
        (send, Self(receive))
    }

    /// A ticket that is complete.
    pub fn ready(result: Result<T, EngineError>) -> Self {
        let (send, ticket) = Self::new();
        drop(send.send(result));
        ticket
    }

    /// What it came to, if it is complete.
    pub fn try_now(&mut self) -> Option<Result<T, EngineError>> {
        match self.0.try_recv() {
            Ok(result) => Some(result),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(EngineError::Stopped)),
        }
    }

    /// Waits on a thread that is not a runtime's.
    ///
    /// # Errors
    /// As the engine says.
    pub fn wait_blocking(self) -> Result<T, EngineError> {
        self.0.blocking_recv().unwrap_or(Err(EngineError::Stopped))
    }
}

impl<T> Future for Ticket<T> {
    type Output = Result<T, EngineError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|result| result.unwrap_or(Err(EngineError::Stopped)))
    }
}
