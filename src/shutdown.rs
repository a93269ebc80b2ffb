//! Stop, drain, cut.
//!
//! Three steps, each at most once: *stop* (take nothing new, tell the peers, finish what is in flight), *drain* (wait for
//! that, up to a deadline), *cut* (drop what is left). Whoever serves a peer watches [`Shutdown::stopping`] and, where it
//! may wait for a peer after that, [`Shutdown::cutting`].
//!
//! Invariant: every task that serves a peer is spawned here or is a service that the server waits for, so that nothing is
//! lost when the process ends within its deadline.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What the operator decides about the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Longest wait for what is in flight when the process is told to stop; then it is cut.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { drain_timeout: Duration::from_secs(20) }
    }
}

/// The handle of one shutdown; clones are the same one.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stop: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
    drain_timeout: Duration,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Everything in flight was finished.
    Clean,
    /// The deadline passed, or someone cut; the rest was dropped.
    Forced,
}

impl Shutdown {
    /// A shutdown that nobody has asked for yet.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
            drain_timeout: settings.drain_timeout,
        }
    }

    /// Cancelled when nothing new may begin.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Cancelled when nothing may be waited for any more.
    #[must_use]
    pub fn cutting(&self) -> &CancellationToken {
        &self.cut
    }

    /// The longest that [`Shutdown::drain`] waits.
    #[must_use]
    pub fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    /// Runs `task`, which serves one peer, so that the drain waits for it. The task logs its own end.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task);
    }

    /// Begins to stop. Does nothing the second time.
    pub fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
    }

    /// Ends the wait of [`Shutdown::drain`].
    pub fn cut(&self) {
        self.stop();
        self.cut.cancel();
    }

    /// Stops, then waits for `services` and every spawned task up to the deadline; at the deadline it cuts.
    ///
    /// Cancel safe: dropping the future leaves the stop in force, and another call waits again.
    pub async fn drain<F>(&self, services: F) -> Drained
    where
        F: Future<Output = ()>,
    {
        self.stop();
        let finished = async {
            services.await;
            self.tasks.wait().await;
        };
        tokio::select! {
            biased;
            () = self.cut.cancelled() => Drained::Forced,
            outcome = tokio::time::timeout(self.drain_timeout, finished) => {
                if outcome.is_ok() {
                    Drained::Clean
                } else {
                    self.cut();
                    Drained::Forced
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_seconds(seconds: u64) -> Shutdown {
        Shutdown::new(&Settings { drain_timeout: Duration::from_secs(seconds) })
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_tasks_that_end_in_time() {
        let shutdown = with_seconds(5);
        let stopping = shutdown.stopping().clone();
        shutdown.spawn(async move {
            stopping.cancelled().await;
            tokio::time::sleep(Duration::from_secs(4)).await;
        });
        assert_eq!(shutdown.drain(async {}).await, Drained::Clean);
        assert!(!shutdown.cutting().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn cuts_at_the_deadline() {
        let shutdown = with_seconds(5);
        shutdown.spawn(std::future::pending());
        assert_eq!(shutdown.drain(async {}).await, Drained::Forced);
        assert!(shutdown.cutting().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn cuts_when_told_so() {
        let shutdown = with_seconds(3600);
        let cut = shutdown.clone();
        let (drained, ()) = tokio::join!(shutdown.drain(std::future::pending()), async move { cut.cut() });
        assert_eq!(drained, Drained::Forced);
    }
}
