//! How many bytes may wait for the writer.
//!
//! Publishers take their bytes before they hand a message to the engine and give them back when its ticket
//! completes: memory for messages on their way to the disk is bounded, and who comes too fast waits here.
//! Invariant: the bytes of an operation are out until its ticket completes, also when nobody waits for it any
//! more. A waiter must poll the tickets that it holds while it waits: their bytes come back when they are polled.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::engine::{EngineError, Outcome, Ticket};

/// One permit stands for so many bytes, so that the count fits and small messages cost one.
const UNIT: usize = 1024;

/// The bytes that may wait.
#[derive(Debug)]
pub struct Admission {
    permits: Arc<Semaphore>,
    units: u32,
    tasks: TaskTracker,
}

/// The right to have some bytes wait; ends when dropped.
#[derive(Debug)]
#[must_use = "the bytes count only while this is held"]
pub struct Admitted {
    permit: OwnedSemaphorePermit,
    tasks: TaskTracker,
}

impl Admission {
    /// For `bytes` in all; `tasks` runs the waits of those who left.
    #[must_use]
    pub fn new(bytes: usize, tasks: TaskTracker) -> Self {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 3);
        Self { permits: Arc::new(Semaphore::new(units as usize)), units, tasks }
    }

    /// Waits until `bytes` more may wait, first come first served. More than there are in all waits for all.
    ///
    /// Cancel safe: dropping it gives up the place in line.
    pub async fn admit(&self, bytes: usize) -> Admitted {
        let units = self.units_of(bytes);
        loop {
            // The semaphore is never closed; should it be, nothing waits for ever.
            match Arc::clone(&self.permits).acquire_many_owned(units).await {
                Ok(permit) => return Admitted { permit, tasks: self.tasks.clone() },
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// The same without waiting; none if it would wait.
    #[must_use]
    pub fn try_admit(&self, bytes: usize) -> Option<Admitted> {
        let permit = Arc::clone(&self.permits).try_acquire_many_owned(self.units_of(bytes)).ok()?;
        Some(Admitted { permit, tasks: self.tasks.clone() })
    }

    fn units_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.units)
    }

    /// As many of `bytes` as may wait now, at once: for who asked for [`room`](Self::room) before and cannot wait
    /// any more. `None` when there is none left: the bytes come in uncounted, at most what each had read.
    #[must_use]
    pub fn admit_now(&self, bytes: usize) -> Option<Admitted> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.units);
        let free = u32::try_from(self.permits.available_permits()).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.permits).try_acquire_many_owned(units.min(free)).ok()?;
        Some(Admitted { permit, tasks: self.tasks.clone() })
    }

    /// Waits until anything more may wait. Cancel safe.
    pub async fn room(&self) {
        drop(self.permits.acquire().await);
    }

    /// Bytes that may still come in.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.permits.available_permits() * UNIT
    }
}

impl Admitted {
    /// Holds the bytes until `ticket` completes.
    pub fn until(self, ticket: Ticket) -> AdmittedTicket {
        AdmittedTicket(Some((ticket, self)))
    }
}

/// A ticket that gives its bytes back when it completes. Dropping it changes nothing: the bytes stay out until
/// then.
#[derive(Debug)]
#[must_use = "what is not awaited is not known to be stored"]
pub struct AdmittedTicket(Option<(Ticket, Admitted)>);

impl Future for AdmittedTicket {
    type Output = Result<Vec<Outcome>, EngineError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some((ticket, _)) = self.0.as_mut() else { return Poll::Ready(Err(EngineError::Stopped)) };
        let result = std::task::ready!(Pin::new(ticket).poll(cx));
        self.0 = None;
        Poll::Ready(result)
    }
}

impl Drop for AdmittedTicket {
    fn drop(&mut self) {
        let Some((mut ticket, admitted)) = self.0.take() else { return };
        if ticket.try_now().is_none()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let Admitted { permit, tasks } = admitted;
            tasks.spawn_on(
                async move {
                    drop(ticket.await);
                    drop(permit);
                },
                &runtime,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_next_waits_until_a_ticket_completes() {
        let admission = Admission::new(4 * UNIT, TaskTracker::new());
        let (done, ticket) = Ticket::new();
        let mut first = admission.admit(3 * UNIT + 1).await.until(ticket);
        assert_eq!(admission.free_bytes(), 0);
        assert!(admission.admit(1).now_or_never().is_none());
        assert!((&mut first).now_or_never().is_none());

        done.send(Ok(Vec::new())).unwrap();
        assert_eq!(first.await, Ok(Vec::new()));
        assert_eq!(admission.free_bytes(), 4 * UNIT);
    }

    #[tokio::test]
    async fn bytes_stay_out_when_the_waiter_has_gone() {
        let tasks = TaskTracker::new();
        let admission = Admission::new(4 * UNIT, tasks.clone());
        let (done, ticket) = Ticket::new();
        drop(admission.admit(usize::MAX).await.until(ticket));
        assert_eq!(admission.free_bytes(), 0);

        done.send(Ok(Vec::new())).unwrap();
        tasks.close();
        tasks.wait().await;
        assert_eq!(admission.free_bytes(), 4 * UNIT);
    }
}
