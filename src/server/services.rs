//! What runs until the server stops, and how it is stopped.

use std::collections::HashMap;
use std::future::Future;

use tokio::task::{Id, JoinSet};

use crate::shutdown::{Drained, Shutdown};

use super::signals::Signals;
use super::{ServerError, Stopped};

/// The services, in one set: the first that ends, fails or panics stops the server.
#[derive(Default)]
pub(super) struct Services {
    running: JoinSet<Result<(), ServerError>>,
    names: HashMap<Id, &'static str>,
}

/// Why the server stops: it was told to, or something failed.
pub(super) type Cause = Option<ServerError>;

impl Services {
    pub(super) fn start<F>(&mut self, name: &'static str, service: F)
    where
        F: Future<Output = Result<(), ServerError>> + Send + 'static,
    {
        let id = self.running.spawn(service).id();
        self.names.insert(id, name);
    }

    /// The next one that ends, and how; `None` when all have. Cancel safe.
    async fn next(&mut self) -> Option<(&'static str, Result<(), ServerError>)> {
        Some(match self.running.join_next_with_id().await? {
            Ok((id, result)) => (self.name(id), result),
            Err(source) => {
                let service = self.name(source.id());
                (service, Err(ServerError::Panicked { service, source }))
            }
        })
    }

    fn name(&self, id: Id) -> &'static str {
        self.names.get(&id).copied().unwrap_or("unnamed")
    }

    /// Waits for a signal or for a service that ends by itself. Cancel safe.
    pub(super) async fn cause(&mut self, shutdown: &Shutdown, signals: &mut Signals) -> Cause {
        tokio::select! {
            signal = signals.next() => {
                let timeout = humantime::format_duration(shutdown.drain_timeout());
                tracing::info!("{signal}: stopping, for at most {timeout}; a second signal cuts");
                None
            }
            // Without any service there is nothing that could end.
            Some(ended) = self.next() => Some(match ended {
                (_, Err(error)) => error,
                (name, Ok(())) => ServerError::Ended(name),
            }),
        }
    }

    /// Drains, unless a second signal cuts.
    ///
    /// # Errors
    /// The cause, or what failed while stopping.
    pub(super) async fn stop(
        mut self,
        cause: Cause,
        shutdown: &Shutdown,
        signals: &mut Signals,
    ) -> Result<Stopped, ServerError> {
        let mut failure = cause;
        let rest = async {
            while let Some((service, result)) = self.next().await {
                if let Err(error) = result {
                    tracing::error!(
                        service,
                        error = &error as &dyn std::error::Error,
                        "failed while stopping"
                    );
                    failure.get_or_insert(error);
                }
            }
        };
        let stopped = tokio::select! {
            drained = shutdown.drain(rest) => match drained {
                Drained::Clean => Stopped::Clean,
                Drained::Forced => Stopped::Deadline,
            },
            signal = signals.next() => {
                shutdown.cut();
                tracing::warn!("{signal}: cut, what was in flight is dropped");
                Stopped::Cut
            }
        };
        match failure {
            Some(error) => Err(error),
            None => Ok(stopped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn stopped(mut services: Services, shutdown: &Shutdown) -> ServerError {
        let mut signals = Signals::install().unwrap();
        let cause = services.cause(shutdown, &mut signals).await;
        services.stop(cause, shutdown, &mut signals).await.unwrap_err()
    }

    #[tokio::test]
    async fn the_first_failure_stops_the_others() {
        let shutdown = Shutdown::new(&crate::shutdown::Settings::default());
        let mut services = Services::default();
        let stopping = shutdown.stopping().clone();
        services.start("patient", async move {
            stopping.cancelled().await;
            Ok(())
        });
        services.start("hasty", async { Ok(()) });
        let error = stopped(services, &shutdown).await;
        assert!(matches!(error, ServerError::Ended("hasty")), "{error}");
    }

    #[tokio::test]
    async fn a_panic_stops_the_server() {
        let shutdown = Shutdown::new(&crate::shutdown::Settings::default());
        let mut services = Services::default();
        services.start("broken", async { panic!("on purpose") });
        let error = stopped(services, &shutdown).await;
        assert_eq!(error.to_string(), "the broken service panicked");
    }
}
