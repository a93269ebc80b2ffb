//! A users' file in use.

use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use arc_swap::ArcSwap;

use super::file::{self, Contents, FileError, MAX_FILE_BYTES};
use super::verifier::{self, DEFAULT_ITERATIONS, Key, NoRandom, SALT_BYTES, Verifier};

/// See the module. What a file says is complete; one with a line that cannot be used changes nothing.
pub struct Users {
    file: PathBuf,
    table: ArcSwap<Table>,
}

/// What a file says, ready to be looked at.
struct Table {
    contents: Contents,
    /// What salts of unknown users are made of.
    secret: Key,
    /// How many bytes these have, and how often their passwords are hashed: as of the first user.
    salt_bytes: usize,
    iterations: NonZeroU32,
}

/// A verifier to compare with.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) verifier: Verifier,
    /// False: made up, and nothing is ever right.
    pub(super) known: bool,
}

/// Why a users' file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsersError {
    /// It cannot be read.
    #[error("users: cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large.
    #[error("users: {} has more than {MAX_FILE_BYTES} bytes", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// A line cannot be used.
    #[error("users: {}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Which, and why.
        source: FileError,
    },
    /// Salts of unknown users cannot be made up.
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
}

impl Users {
    /// Reads the file.
    ///
    /// # Errors
    /// [`UsersError`]
    pub fn load(file: PathBuf) -> Result<Self, UsersError> {
        let table = Table::read(&file, None)?;
        Ok(Self { file, table: ArcSwap::from_pointee(table) })
    }

    /// Reads the file again, for who comes from now on. Returns how many users it has.
    ///
    /// # Errors
    /// [`UsersError`]; what was in use stays.
    pub fn reload(&self) -> Result<usize, UsersError> {
        let table = Table::read(&self.file, Some(&self.table.load().secret))?;
        let count = table.contents.users.len();
        self.table.store(table.into());
        Ok(count)
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The verifier of a user, or one that is made up, the same for the same name as long as the file has its secret.
    pub(super) fn find(&self, name: &str) -> Found {
        let table = self.table.load();
        // Made up in any case, so that it takes the same time.
        let made_up = table.made_up(name);
        match table.contents.users.get(name) {
            Some((verifier, _)) => Found { verifier: verifier.clone(), known: true },
            None => Found { verifier: made_up, known: false },
        }
    }
}

impl Table {
    /// Without a secret in the file, `secret` stays in use; without one, there is a new one.
    fn read(file: &Path, secret: Option<&Key>) -> Result<Self, UsersError> {
        let unreadable = |source| UsersError::Read { file: file.to_owned(), source };
        let bytes = file::read(File::open(file).map_err(unreadable)?).map_err(unreadable)?;
        let bytes = bytes.ok_or_else(|| UsersError::TooLarge { file: file.to_owned() })?;
        let contents =
            file::parse(&bytes).map_err(|source| UsersError::Line { file: file.to_owned(), source })?;
        let secret = match contents.secret.as_ref().or(secret) {
            Some(secret) => *secret,
            None => verifier::random()?,
        };
        let first = contents.first.as_ref();
        let default = NonZeroU32::new(DEFAULT_ITERATIONS).unwrap_or(NonZeroU32::MIN);
        Ok(Self {
            secret,
            salt_bytes: first.map_or(SALT_BYTES, |first| first.salt.len()),
            iterations: first.map_or(default, |first| first.iterations),
            contents,
        })
    }

    fn made_up(&self, name: &str) -> Verifier {
        let salt = verifier::hmac_sha256(&self.secret, name.as_bytes());
        let salt = salt.iter().copied().take(self.salt_bytes).collect();
        // Nobody is let in, whatever comes: see `Found::known`.
        Verifier { salt, iterations: self.iterations, stored_key: self.secret, server_key: self.secret }
    }
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Users").field("file", &self.file).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::auth::file::change;
    use crate::auth::verifier::tests::pencil;

    /// The user `user` with the password `pencil`, in a file of its own.
    pub(in crate::auth) fn users() -> (tempfile::TempDir, Users) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users");
        std::fs::write(&file, change(b"", "user", Some(&pencil())).unwrap().0).unwrap();
        (directory, Users::load(file).unwrap())
    }

    #[test]
    fn unknown_users_look_like_others_and_stay_the_same() {
        let (_directory, users) = users();
        let found = users.find("user");
        assert!(found.known && found.verifier == pencil());
        let made_up = users.find("nobody");
        assert!(!made_up.known);
        let (salt, iterations) = (made_up.verifier.salt, made_up.verifier.iterations);
        assert_eq!((salt.len(), iterations), (pencil().salt.len(), pencil().iterations));
        assert_ne!(salt, users.find("somebody").verifier.salt);
        // Over a restart, and when others come.
        let text = std::fs::read(users.file()).unwrap();
        std::fs::write(users.file(), change(&text, "other", Some(&pencil())).unwrap().0).unwrap();
        assert_eq!(users.reload().unwrap(), 2);
        assert_eq!(users.find("nobody").verifier.salt, salt);
        assert_eq!(Users::load(users.file().to_owned()).unwrap().find("nobody").verifier.salt, salt);
    }

    #[test]
    fn without_a_secret_in_the_file_there_is_one_for_the_process() {
        let (_directory, users) = users();
        std::fs::write(users.file(), "").unwrap();
        let users = Users::load(users.file().to_owned()).unwrap();
        let salt = users.find("nobody").verifier.salt;
        assert_eq!(users.reload().unwrap(), 0);
        assert_eq!(users.find("nobody").verifier.salt, salt);
        assert_ne!(Users::load(users.file().to_owned()).unwrap().find("nobody").verifier.salt, salt);
    }

    #[test]
    fn a_wrong_file_changes_nothing() {
        let (_directory, users) = users();
        std::fs::write(users.file(), "# users\nann:secret\n").unwrap();
        let error = users.reload().unwrap_err();
        assert!(matches!(&error, UsersError::Line { source, .. } if source.line == 2), "{error}");
        assert!(users.find("user").known);
        std::fs::remove_file(users.file()).unwrap();
        assert!(matches!(users.reload(), Err(UsersError::Read { .. })));
        assert!(users.find("user").known);
    }
}
