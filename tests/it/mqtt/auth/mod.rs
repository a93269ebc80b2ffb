//! Users: passwords in CONNECT, SCRAM-SHA-256 in AUTH, whose a session is.

mod passwords;
mod scram;
mod sessions;

use std::path::{Path, PathBuf};

use super::*;
use crate::harness::{Ended, config_file, stafett, stafett_reading};

/// Gives a user a password.
async fn passwd(file: &Path, user: &str, password: &str) -> Ended {
    let args = ["passwd", file.to_str().unwrap(), user, "--iterations", "4096"];
    let ended = stafett_reading(&format!("{password}\n"), args).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
    ended
}

/// The users ann and bob, with their names backwards for passwords, and a configuration file that begins so.
pub(super) struct Configured {
    directory: tempfile::TempDir,
    users: PathBuf,
}

impl Configured {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let configured = Self { users: directory.path().join("users"), directory };
        for (user, password) in [("ann", "nna"), ("bob", "bob's")] {
            passwd(configured.users(), user, password).await;
        }
        configured
    }

    fn users(&self) -> &Path {
        &self.users
    }

    /// The line that names the users' file.
    fn line(&self) -> String {
        format!("users = \"{}\"\n", self.users().display())
    }

    /// A broker with the users' file and these lines under `[mqtt]`.
    async fn broker(&self, lines: &str) -> Broker {
        let (_directory, path) = config_file(&format!("[mqtt]\n{}{lines}\n", self.line()));
        Broker::start_with(&["--config", &path]).await
    }
}

/// With a user name and a password.
fn as_user(mut connect: Connect, user: &str, password: &str) -> Connect {
    connect.username = Some(user.into());
    connect.password = Some(Bytes::copy_from_slice(password.as_bytes()));
    connect
}

/// What a client is told whose CONNECT is refused; in 3.1.1 its return code.
async fn refusal(broker: &Broker, connect: Connect) -> u8 {
    let version = connect.version;
    let (mut peer, connack) = Peer::greet(broker, connect).await;
    assert!(connack.reason.is_failure() && !connack.session_present);
    assert_eq!(peer.next_or_end().await, None);
    match version {
        V5 => connack.reason as u8,
        V311 => connack.reason.to_return_code().unwrap(),
    }
}
