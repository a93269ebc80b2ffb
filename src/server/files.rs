//! Files that are read again while the server runs.

use std::error::Error;
use std::sync::Arc;

use tokio::signal::unix::Signal;

use super::ServerError;
use crate::auth::Users;
use crate::shutdown::Shutdown;
use crate::tls::Tls;

/// What was made of them.
#[derive(Clone)]
pub(super) struct Files {
    pub(super) tls: Vec<Arc<Tls>>,
    pub(super) users: Vec<Arc<Users>>,
}

impl Files {
    /// Reads all of them again at every SIGHUP, for who comes from then on. What is wrong is said, and what was in use
    /// stays.
    pub(super) async fn renew(self, mut hangups: Signal, shutdown: Shutdown) -> Result<(), ServerError> {
        loop {
            tokio::select! {
                () = shutdown.stopping().cancelled() => return Ok(()),
                _ = hangups.recv() => {}
            }
            let files = self.clone();
            let renewed = tokio::task::spawn_blocking(move || files.reload());
            renewed.await.map_err(|source| ServerError::Panicked { service: "files", source })?;
        }
    }

    fn reload(&self) {
        for tls in &self.tls {
            match tls.reload() {
                Ok(()) => tracing::info!(cert = %tls.cert().display(), "certificate read again"),
                Err(error) => {
                    let error = &error as &dyn Error;
                    tracing::error!(error, "the certificate that was in use stays");
                }
            }
        }
        for users in &self.users {
            match users.reload() {
                Ok(count) => tracing::info!(file = %users.file().display(), count, "users read again"),
                Err(error) => {
                    let error = &error as &dyn Error;
                    tracing::error!(error, "the users that were in use stay");
                }
            }
        }
    }
}
