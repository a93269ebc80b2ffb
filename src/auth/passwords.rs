//! Passwords checked where it does not hold up anybody: hashing one takes milliseconds on purpose.
//!
//! Bounds: at most half of the machine's cores hash at the same time, in threads that may block; so many wait as is
//! configured, in the order in which they came; who comes beyond that is told to come again, and counted.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

use bytes::Bytes;
use bytestring::ByteString;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::users::{Found, Users};
use super::verifier;

/// See the module.
#[derive(Debug)]
pub struct Passwords {
    /// For those that are checked and those that wait.
    places: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    checked: AtomicU64,
    refused: AtomicU64,
}

/// So many passwords wait to be checked that this one is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many passwords wait to be checked")]
pub struct Busy;

impl Passwords {
    /// At most `waiting` passwords wait while others are checked.
    #[must_use]
    pub fn new(waiting: usize) -> Self {
        let threads = (available_parallelism().map_or(1, NonZeroUsize::get) / 2).max(1);
        let places = waiting.saturating_add(threads).min(Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(places)),
            threads: Arc::new(Semaphore::new(threads)),
            checked: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// The user, if it has this password. Who is not known costs as much as who is. Dropping the future gives the
    /// place back, at the latest when a check that has begun is done.
    ///
    /// # Errors
    /// [`Busy`]
    pub async fn check(
        &self,
        users: &Users,
        name: &str,
        password: Bytes,
    ) -> Result<Option<ByteString>, Busy> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            Busy
        })?;
        let thread = Arc::clone(&self.threads).acquire_owned().await.map_err(|_| Busy)?;
        // What cannot be a name is nobody's.
        let prepared = verifier::prepare(name).unwrap_or_default();
        let Found { verifier, known } = users.find(&prepared);
        self.checked.fetch_add(1, Ordering::Relaxed);
        let checked = spawn_blocking(move || {
            let right = verifier.is_of(&password);
            drop((thread, place));
            right
        });
        let right = match checked.await {
            Ok(right) => right,
            Err(error) => {
                tracing::error!(%error, "a password is not checked");
                false
            }
        };
        Ok((known && right).then(|| prepared.into_owned().into()))
    }

    /// By the names that operators see: checked, and refused because too many waited.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("password_checks_total", self.checked.load(Ordering::Relaxed)),
            ("password_checks_refused_total", self.refused.load(Ordering::Relaxed)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::auth::users::tests::users;

    #[tokio::test]
    async fn a_password_is_right_or_wrong() {
        let (_directory, users) = users();
        let passwords = Passwords::new(1);
        let check = async |name: &str, password: &'static [u8]| {
            passwords.check(&users, name, Bytes::from_static(password)).await.unwrap()
        };
        assert_eq!(check("user", b"pencil").await.as_deref(), Some("user"));
        assert_eq!(check("u\u{ad}ser", b"pencil").await.as_deref(), Some("user"));
        for (name, password) in [("user", &b"pen"[..]), ("user", b""), ("", b"pencil"), ("nobody", b"pencil")]
        {
            assert_eq!(check(name, password).await, None, "{name}");
        }
        assert_eq!(
            passwords.counters(),
            [("password_checks_total", 6), ("password_checks_refused_total", 0)]
        );
    }

    #[tokio::test]
    async fn who_comes_when_too_many_wait_is_told() {
        let (_directory, users) = users();
        let passwords = Passwords::new(2);
        let places = passwords.places.available_permits();
        let checks = (0..places + 3).map(|_| passwords.check(&users, "user", Bytes::from_static(b"pencil")));
        let answers = join_all(checks).await;
        assert_eq!(answers.iter().filter(|answer| **answer == Err(Busy)).count(), 3);
        assert_eq!(answers.iter().filter(|answer| matches!(answer, Ok(Some(_)))).count(), places);
        assert_eq!(passwords.places.available_permits(), places);
        assert_eq!(passwords.counters()[1].1, 3);
    }
}
