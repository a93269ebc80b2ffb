//! What a value may look like: addresses, durations, sizes, numbers, words.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::listeners::{Transport, UnknownTransport};
use crate::core::calls::{NotAPair, TopicPair};
use crate::engine::Durability;
use crate::mqtt::bridge::{Direction, NotARemote, Remote, UnknownDirection};
use crate::mqtt::codec::Version;
use crate::mqtt::{DeniedFilter, UnknownVersion, Versions};
use crate::proxy::{ProxyProtocol, UnknownProxyProtocol};
use crate::socket::{self, Address};
use crate::telemetry;
use crate::tls::{ClientCert, UnknownClientCert};
use crate::types::topic::TopicError;

/// Where a door listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere: the door stays shut.
    Off,
    /// At a host (name, IPv4, or IPv6 in brackets) and port; port 0 takes any free one.
    At {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
}

impl Listen {
    /// At `host` and `port`.
    #[must_use]
    pub fn at(host: &str, port: u16) -> Self {
        Self::At { host: host.to_owned(), port }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// The text is neither `HOST:PORT` nor `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be HOST:PORT with a port from 0 (any free one) to 65535, or off")]
pub struct NotAnAddress;

impl FromStr for Listen {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self::Off);
        }
        match text.parse() {
            Ok(Address::Tcp { host, port }) => Ok(Self::At { host, port }),
            Ok(Address::Unix(_)) | Err(_) => Err(NotAnAddress),
        }
    }
}

/// A place for a number.
#[derive(Debug)]
pub enum Number<'a> {
    /// On the wire or on disk.
    Wide(&'a mut u64),
    /// In memory.
    Native(&'a mut usize),
}

impl Number<'_> {
    fn get(&self) -> u64 {
        match self {
            Self::Wide(number) => **number,
            Self::Native(number) => u64::try_from(**number).unwrap_or(u64::MAX),
        }
    }

    /// Puts `value` there; `None` when it does not fit.
    fn put(self, value: u64) -> Option<()> {
        match self {
            Self::Wide(number) => *number = value,
            Self::Native(number) => *number = value.try_into().ok()?,
        }
        Some(())
    }
}

impl<'a> From<&'a mut u64> for Number<'a> {
    fn from(number: &'a mut u64) -> Self {
        Self::Wide(number)
    }
}

impl<'a> From<&'a mut usize> for Number<'a> {
    fn from(number: &'a mut usize) -> Self {
        Self::Native(number)
    }
}

/// A place for a value, and what may be put there.
#[derive(Debug)]
pub enum Slot<'a> {
    /// A path, not empty.
    Path(&'a mut PathBuf),
    /// A path, or `off`.
    OptionalPath(&'a mut Option<PathBuf>),
    /// A word of letters, digits, `-` and `_`.
    Name(&'a mut String),
    /// A text, or an empty one for none.
    OptionalText(&'a mut Option<String>),
    /// The same, never shown.
    Secret(&'a mut Option<String>),
    /// Any text.
    Text(&'a mut String),
    /// Another broker.
    Remote(&'a mut Option<Remote>),
    /// A version of MQTT.
    Version(&'a mut Version),
    /// Which way a bridge carries messages.
    Direction(&'a mut Direction),
    /// A path of a request, or `any`.
    HttpPath(&'a mut Option<String>),
    /// Yes or no.
    Switch(&'a mut bool),
    /// Yes or no, or `auto`: as other settings have it.
    AutoSwitch(&'a mut Option<bool>),
    /// Versions of MQTT.
    Versions(&'a mut Versions),
    /// Topic filters, each with or without `=` before it.
    DeniedFilters(&'a mut Vec<DeniedFilter>),
    /// Pairs of topics.
    TopicPairs(&'a mut Vec<TopicPair>),
    /// Texts, any number of them.
    Texts(&'a mut Vec<String>),
    /// Where a listener is.
    Address(&'a mut Address),
    /// Permissions of a file, octal.
    FileMode(&'a mut u32),
    /// Whether connections begin with a PROXY header.
    ProxyProtocol(&'a mut ProxyProtocol),
    /// Whether clients show a certificate.
    ClientCert(&'a mut ClientCert),
    /// What is carried over the sockets of a listener.
    Transport(&'a mut Transport),
    /// An address or `off`.
    Listen(&'a mut Listen),
    /// A time with its unit.
    Duration(&'a mut Duration, RangeInclusive<Duration>),
    /// A time with its unit, or `off`.
    OptionalDuration(&'a mut Option<Duration>, RangeInclusive<Duration>),
    /// A number of bytes, with or without a unit.
    Bytes(Number<'a>, RangeInclusive<u64>),
    /// A number of bytes, with or without a unit, or `off`.
    OptionalBytes(&'a mut Option<u64>, RangeInclusive<u64>),
    /// A number.
    Count(Number<'a>, RangeInclusive<u64>),
    /// A number, or `off`.
    OptionalCount(&'a mut Option<u64>, RangeInclusive<u64>),
    /// What an acknowledgement waits for.
    Durability(&'a mut Durability),
    /// A level, or levels by module.
    LogLevel(&'a mut String),
    /// How a log line looks.
    LogFormat(&'a mut telemetry::Format),
}

impl<'a> Slot<'a> {
    /// A number of bytes within `range`.
    pub fn bytes(place: impl Into<Number<'a>>, range: RangeInclusive<u64>) -> Self {
        Self::Bytes(place.into(), range)
    }

    /// A number within `range`.
    pub fn count(place: impl Into<Number<'a>>, range: RangeInclusive<u64>) -> Self {
        Self::Count(place.into(), range)
    }

    /// Puts the value there, or says what is permitted.
    ///
    /// # Errors
    /// What is permitted, as the end of a sentence.
    pub fn set(self, text: &str) -> Result<(), String> {
        match self {
            Self::Path(_) if text.is_empty() => return Err("must be a path".to_owned()),
            Self::Path(path) => *path = PathBuf::from(text),
            Self::OptionalPath(path) if text == "off" => *path = None,
            Self::OptionalPath(_) if text.is_empty() => return Err("must be a path, or off".to_owned()),
            Self::OptionalPath(path) => *path = Some(PathBuf::from(text)),
            Self::Name(name) => {
                let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                if text.is_empty() || text.len() > 64 || !text.chars().all(fits) {
                    return Err("must be a word of 1 to 64 letters, digits, - and _".to_owned());
                }
                text.clone_into(name);
            }
            Self::OptionalText(value) | Self::Secret(value) => {
                *value = Some(text.to_owned()).filter(|text| !text.is_empty());
            }
            Self::Text(value) => text.clone_into(value),
            Self::Remote(remote) => {
                *remote = Some(text.parse().map_err(|error: NotARemote| error.to_string())?);
            }
            Self::Version(version) => {
                *version = match text {
                    "3.1.1" => Version::V311,
                    "5" => Version::V5,
                    _ => return Err("must be one of 3.1.1, 5".to_owned()),
                }
            }
            Self::Direction(direction) => {
                *direction = text.parse().map_err(|error: UnknownDirection| error.to_string())?
            }
            Self::HttpPath(path) if text == "any" => *path = None,
            Self::HttpPath(path) => {
                if !text.starts_with('/') {
                    return Err("must be a path from / on, or any".to_owned());
                }
                *path = Some(text.to_owned());
            }
            Self::Switch(switch) => {
                *switch = text.parse().map_err(|_| "must be true or false")?;
            }
            Self::AutoSwitch(switch) if text == "auto" => *switch = None,
            Self::AutoSwitch(switch) => {
                *switch = Some(text.parse().map_err(|_| "must be true, false or auto")?);
            }
            Self::Versions(versions) => {
                let names = parse_texts(text)?;
                *versions = Versions::parse(&names).map_err(|error: UnknownVersion| error.to_string())?;
            }
            Self::DeniedFilters(filters) => {
                let parsed: Result<_, _> = parse_texts(text)?.iter().map(|text| text.parse()).collect();
                *filters = parsed.map_err(|error: TopicError| error.to_string())?;
            }
            Self::TopicPairs(pairs) => {
                let parsed: Result<_, _> = parse_texts(text)?.iter().map(|text| text.parse()).collect();
                *pairs = parsed.map_err(|error: NotAPair| error.to_string())?;
            }
            Self::Texts(texts) => *texts = parse_texts(text)?,
            Self::Address(address) => {
                *address = text.parse().map_err(|error: socket::NotAnAddress| error.to_string())?
            }
            Self::FileMode(mode) => {
                let fitting = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
                *mode = fitting.ok_or("must be permissions of a file, octal, as 660")?;
            }
            Self::ProxyProtocol(expected) => {
                *expected = text.parse().map_err(|error: UnknownProxyProtocol| error.to_string())?
            }
            Self::ClientCert(asks) => {
                *asks = text.parse().map_err(|error: UnknownClientCert| error.to_string())?
            }
            Self::Transport(transport) => {
                *transport = text.parse().map_err(|error: UnknownTransport| error.to_string())?
            }
            Self::Listen(listen) => {
                *listen = text.parse().map_err(|error: NotAnAddress| error.to_string())?
            }
            Self::Duration(duration, range) => *duration = parse_duration(text, &range, "")?,
            Self::OptionalDuration(duration, _) if text == "off" => *duration = None,
            Self::OptionalDuration(duration, range) => {
                *duration = Some(parse_duration(text, &range, ", or off")?)
            }
            Self::Bytes(bytes, range) => {
                let value = bytes_within(text, &range)?;
                bytes.put(value).ok_or_else(|| permitted_bytes(&range))?;
            }
            Self::OptionalBytes(bytes, _) if text == "off" => *bytes = None,
            Self::OptionalBytes(bytes, range) => {
                let value = bytes_within(text, &range).map_err(|permitted| format!("{permitted}, or off"))?;
                *bytes = Some(value);
            }
            Self::Count(count, range) => {
                let value = count_within(text, &range)?;
                count.put(value).ok_or_else(|| permitted_count(&range))?;
            }
            Self::OptionalCount(count, _) if text == "off" => *count = None,
            Self::OptionalCount(count, range) => {
                let value = count_within(text, &range).map_err(|permitted| format!("{permitted}, or off"))?;
                *count = Some(value);
            }
            Self::Durability(policy) => {
                *policy = text
                    .parse()
                    .map_err(|error: crate::engine::settings::UnknownDurability| error.to_string())?;
            }
            Self::LogLevel(level) => {
                telemetry::parse_level(text).map_err(|error| error.to_string())?;
                text.clone_into(level);
            }
            Self::LogFormat(format) => {
                *format = text.parse().map_err(|error: telemetry::UnknownFormat| error.to_string())?;
            }
        }
        Ok(())
    }

    /// The value as it is written in the environment or in a flag.
    #[must_use]
    pub fn show(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::OptionalPath(path) => {
                path.as_ref().map_or_else(|| "off".to_owned(), |path| path.display().to_string())
            }
            Self::Name(name) => (*name).clone(),
            Self::OptionalText(text) => text.as_deref().unwrap_or_default().to_owned(),
            Self::Secret(text) => text.as_ref().map_or_else(String::new, |_| "(set)".to_owned()),
            Self::Text(text) => (*text).clone(),
            Self::Remote(remote) => remote.as_ref().map(ToString::to_string).unwrap_or_default(),
            Self::Version(Version::V311) => "3.1.1".to_owned(),
            Self::Version(Version::V5) => "5".to_owned(),
            Self::Direction(direction) => direction.to_string(),
            Self::HttpPath(path) => path.as_deref().unwrap_or("any").to_owned(),
            Self::Switch(switch) => switch.to_string(),
            Self::AutoSwitch(switch) => switch.map_or_else(|| "auto".to_owned(), |switch| switch.to_string()),
            Self::Versions(versions) => show_texts(versions.names()),
            Self::DeniedFilters(filters) => show_texts(filters.iter().map(ToString::to_string).collect()),
            Self::TopicPairs(pairs) => show_texts(pairs.iter().map(ToString::to_string).collect()),
            Self::Texts(texts) => show_texts((*texts).clone()),
            Self::Address(address) => address.to_string(),
            Self::FileMode(mode) => format!("{mode:03o}"),
            Self::ProxyProtocol(expected) => expected.to_string(),
            Self::ClientCert(asks) => asks.to_string(),
            Self::Transport(transport) => transport.to_string(),
            Self::Listen(listen) => listen.to_string(),
            Self::Duration(duration, _) => show_duration(**duration),
            Self::OptionalDuration(duration, _) => duration.map_or_else(|| "off".to_owned(), show_duration),
            Self::Bytes(bytes, _) => ShowBytes(bytes.get()).to_string(),
            Self::OptionalBytes(bytes, _) => {
                bytes.map_or_else(|| "off".to_owned(), |bytes| ShowBytes(bytes).to_string())
            }
            Self::Count(count, _) => count.get().to_string(),
            Self::OptionalCount(count, _) => {
                count.map_or_else(|| "off".to_owned(), |count| count.to_string())
            }
            Self::Durability(policy) => policy.to_string(),
            Self::LogLevel(level) => (*level).clone(),
            Self::LogFormat(format) => format.to_string(),
        }
    }

    /// The value as it is written in a file.
    #[must_use]
    pub fn show_toml(&self) -> String {
        match self {
            Self::Count(..)
            | Self::Switch(_)
            | Self::AutoSwitch(Some(_))
            | Self::Versions(_)
            | Self::DeniedFilters(_)
            | Self::TopicPairs(_)
            | Self::Texts(_)
            | Self::OptionalCount(Some(_), _) => self.show(),
            _ => toml::Value::String(self.show()).to_string(),
        }
    }
}

/// A TOML array of strings, in one text so that every layer can say it.
fn parse_texts(text: &str) -> Result<Vec<String>, String> {
    const PERMITTED: &str = r#"must be a list of texts, as ["a", "b"]"#;
    let table: toml::Table = format!("texts = {text}").parse().map_err(|_| PERMITTED)?;
    let Some(toml::Value::Array(texts)) = table.get("texts").filter(|_| table.len() == 1) else {
        return Err(PERMITTED.to_owned());
    };
    let texts = texts.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
    texts.ok_or_else(|| PERMITTED.to_owned())
}

/// Texts as [`parse_texts`] takes them.
pub(super) fn show_texts(texts: Vec<String>) -> String {
    toml::Value::from(texts).to_string()
}

fn parse_duration(text: &str, range: &RangeInclusive<Duration>, or: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).ok().filter(|duration| range.contains(duration)).ok_or_else(|| {
        let (low, high) = (show_duration(*range.start()), show_duration(*range.end()));
        format!("must be a time with its unit between {low} and {high}{or}")
    })
}

/// The time in the largest unit that needs no fraction.
fn show_duration(duration: Duration) -> String {
    const UNITS: [(&str, u128); 5] = [
        ("days", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
    ];
    let nanos = duration.as_nanos();
    match UNITS.iter().find(|(_, size)| nanos >= *size && nanos.is_multiple_of(*size)) {
        Some((unit, size)) => format!("{}{unit}", nanos / size),
        None if nanos == 0 => "0s".to_owned(),
        None => format!("{nanos}ns"),
    }
}

fn bytes_within(text: &str, range: &RangeInclusive<u64>) -> Result<u64, String> {
    parse_bytes(text).filter(|bytes| range.contains(bytes)).ok_or_else(|| permitted_bytes(range))
}

fn permitted_bytes(range: &RangeInclusive<u64>) -> String {
    format!("must be between {} and {}", ShowBytes(*range.start()), ShowBytes(*range.end()))
}

fn count_within(text: &str, range: &RangeInclusive<u64>) -> Result<u64, String> {
    text.parse().ok().filter(|count| range.contains(count)).ok_or_else(|| permitted_count(range))
}

fn permitted_count(range: &RangeInclusive<u64>) -> String {
    format!("must be a number between {} and {}", range.start(), range.end())
}

const UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A number of bytes, with or without a unit.
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) =
        UNITS.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size))).unwrap_or((text, 1));
    number.trim_end().parse::<u64>().ok()?.checked_mul(unit)
}

/// Bytes in the largest unit that needs no fraction.
struct ShowBytes(u64);

impl fmt::Display for ShowBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting = UNITS.iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size));
        match fitting {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:1", "localhost:0", "[::1]:65535", "off"] {
            assert_eq!(good.parse::<Listen>().unwrap().to_string(), good);
        }
        for bad in ["", ":1", "1", "a:", "a:65536", "::1:2", "a b:1", "OFF", "unix:/x"] {
            assert_eq!(bad.parse::<Listen>(), Err(NotAnAddress), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("17", 17), ("17B", 17), ("4KiB", 4096), ("2 MiB", 2 << 20)] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for bad in ["", "KiB", "-1", "1KB", "1.5MiB", "99999999999TiB", "4kib"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
        for (bytes, text) in [(0, "0B"), (1023, "1023B"), (1024, "1KiB"), (3 << 30, "3GiB"), (1025, "1025B")]
        {
            assert_eq!(ShowBytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn durations() {
        for text in ["0s", "7ns", "1500ms", "90s", "2m", "25h", "365days"] {
            assert_eq!(show_duration(humantime::parse_duration(text).unwrap()), text);
        }
        let mut duration = Some(Duration::ZERO);
        let range = Duration::from_secs(1)..=Duration::from_secs(60);
        Slot::OptionalDuration(&mut duration, range.clone()).set("off").unwrap();
        assert_eq!(duration, None);
        Slot::OptionalDuration(&mut duration, range.clone()).set("1m").unwrap();
        assert_eq!(duration, Some(Duration::from_secs(60)));
        let problem = Slot::OptionalDuration(&mut duration, range).set("61s").unwrap_err();
        assert_eq!(problem, "must be a time with its unit between 1s and 1m, or off");
        let mut bytes = Some(0);
        Slot::OptionalBytes(&mut bytes, 1..=1024).set("1KiB").unwrap();
        assert_eq!(bytes, Some(1024));
        let problem = Slot::OptionalBytes(&mut bytes, 1..=1024).set("2KiB").unwrap_err();
        assert_eq!(problem, "must be between 1B and 1KiB, or off");
        Slot::OptionalBytes(&mut bytes, 1..=1024).set("off").unwrap();
        assert_eq!(bytes, None);
    }
}
