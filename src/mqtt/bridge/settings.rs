//! What the operator decides about a bridge.

use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;

use super::mapping::Topic;
use crate::mqtt::codec::Version;
use crate::tls::client as tls;

/// Where the other broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// With TLS.
    pub secure: bool,
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// The text is no [`Remote`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be mqtt://HOST or mqtts://HOST, with or without :PORT, and nothing else")]
pub struct NotARemote;

impl FromStr for Remote {
    type Err = NotARemote;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once("://").ok_or(NotARemote)?;
        let (secure, usual) = match scheme {
            "mqtt" => (false, 1883),
            "mqtts" => (true, 8883),
            _ => return Err(NotARemote),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().ok().filter(|port| *port > 0).ok_or(NotARemote)?)
            }
            _ => (rest, usual),
        };
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let plain = inner.is_none() && host.contains(':');
        let host = inner.unwrap_or(host);
        let odd = |c: char| c.is_whitespace() || matches!(c, '/' | '@' | '?' | '#' | '[' | ']');
        if host.is_empty() || plain || host.contains(odd) {
            return Err(NotARemote);
        }
        Ok(Self { secure, host: host.to_owned(), port })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "mqtts" } else { "mqtt" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
#[error("no password: {0}")]
pub(super) struct NoPassword(String);

/// Where a password is. Read for each connection.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// In the configuration.
    Text(String),
    /// In a file, whose last line break does not count.
    File(PathBuf),
    /// In a variable of the environment.
    Variable(String),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Variable(name) => f.debug_tuple("Variable").field(name).finish(),
        }
    }
}

impl Password {
    pub(super) async fn read(&self) -> Result<Bytes, NoPassword> {
        Ok(match self {
            Self::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Self::File(path) => {
                let path = path.clone();
                let named = path.display().to_string();
                let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
                let read = read.map_err(std::io::Error::other).flatten();
                let mut bytes = read.map_err(|error| NoPassword(format!("{named}: {error}")))?;
                for end in [b'\n', b'\r'] {
                    bytes.pop_if(|last| *last == end);
                }
                bytes.into()
            }
            Self::Variable(name) => {
                let value = std::env::var_os(name).ok_or_else(|| NoPassword(format!("{name} is not set")))?;
                value.into_vec().into()
            }
        })
    }
}

/// What the operator decides about one bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What it is called.
    pub name: String,
    /// The other broker.
    pub remote: Remote,
    /// What we are called there.
    pub client_id: String,
    /// Who we are there.
    pub username: Option<String>,
    /// How that is shown.
    pub password: Option<Password>,
    /// What is spoken.
    pub version: Version,
    /// The longest silence of ours.
    pub keep_alive: Duration,
    /// Nothing is kept while the brokers are apart.
    pub clean_start: bool,
    /// How long both sides keep what the other does not take.
    pub session_expiry: Duration,
    /// Whether the other broker is told, in a 3.1.1 CONNECT, that we are a bridge; it is asked again without, if it does
    /// not know that.
    pub try_private: bool,
    /// Deliveries above QoS 0 that a broker of 3.1.1 may have unacknowledged: it cannot say how many it takes, and
    /// mosquitto drops what is more at QoS 2 (20, unless told otherwise). In 5 the other broker says it.
    pub max_inflight: u64,
    /// The pause after the first failure.
    pub reconnect_min: Duration,
    /// The longest pause.
    pub reconnect_max: Duration,
    /// TLS, for mqtts.
    pub tls: Option<tls::Settings>,
    /// What is carried.
    pub topics: Vec<Topic>,
}

impl Settings {
    /// The client id of a bridge of this name, unless it has another.
    #[must_use]
    pub fn usual_client_id(name: &str) -> String {
        format!("stafett.{name}")
    }

    /// What is usual, for a bridge of this name.
    #[must_use]
    pub fn new(name: String, remote: Remote) -> Self {
        Self {
            client_id: Self::usual_client_id(&name),
            name,
            remote,
            username: None,
            password: None,
            version: Version::V5,
            keep_alive: Duration::from_secs(60),
            clean_start: false,
            session_expiry: Duration::from_secs(7 * 86_400),
            try_private: true,
            max_inflight: 20,
            reconnect_min: Duration::from_secs(1),
            reconnect_max: Duration::from_secs(60),
            tls: None,
            topics: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes() {
        for (text, shown) in [
            ("mqtt://a", "mqtt://a:1883"),
            ("mqtts://broker.example/", "mqtts://broker.example:8883"),
            ("mqtt://10.0.0.1:1884", "mqtt://10.0.0.1:1884"),
            ("mqtt://[::1]:1884", "mqtt://[::1]:1884"),
            ("mqtts://[2001:db8::1]", "mqtts://[2001:db8::1]:8883"),
        ] {
            assert_eq!(text.parse::<Remote>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "a:1883",
            "http://a",
            "mqtt://",
            "mqtt://:1",
            "mqtt://a:0",
            "mqtt://a:x",
            "mqtt://u:p@a",
            "mqtt://::1",
            "mqtt://a/b",
            "mqtt://a b",
        ] {
            assert_eq!(bad.parse::<Remote>(), Err(NotARemote), "{bad}");
        }
    }
}
