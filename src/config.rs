//! File, environment and flags made into the settings of each module, once.
//!
//! Layers, the later one winning: built-in default, TOML file, environment, flag. Each setting has one name per layer,
//! and all of them stand in one table ([`entries`]): `grpc.listen` in the file, `STAFETT_GRPC_LISTEN` in the
//! environment, `--grpc-listen` as a flag.
//!
//! Invariant: what [`load`] returns is in its permitted range. An error names the place, the key and the range. Nothing
//! below `server` imports this module; each module owns its settings, this one fills them.

mod bridges;
pub mod entries;
mod file;
pub mod listeners;
pub mod value;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::engine::EngineSettings;
use crate::{core, grpc, mqtt, rate, shutdown, sys, telemetry, tls};

use entries::{ENTRIES, Entry};
pub use value::Listen;

/// Everything an operator decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `[store]`
    pub store: EngineSettings,
    /// `[grpc]`
    pub grpc: GrpcDoor,
    /// `[mqtt]`
    pub mqtt: MqttDoor,
    /// `[[bridges]]`
    pub bridges: Vec<mqtt::bridge::Settings>,
    /// `[limits]`
    pub limits: Limits,
    /// `[sys]`
    pub sys: sys::Settings,
    /// `[log]`
    pub log: telemetry::Settings,
    /// `[shutdown]`
    pub shutdown: shutdown::Settings,
}

/// The gRPC door and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcDoor {
    /// Where it listens.
    pub listen: Listen,
    /// How it serves.
    pub settings: grpc::Settings,
    /// Its TLS.
    pub tls: tls::Files,
}

impl Default for GrpcDoor {
    fn default() -> Self {
        let listen = Listen::at("127.0.0.1", 50051);
        Self { listen, settings: grpc::Settings::default(), tls: tls::Files::default() }
    }
}

/// The MQTT door and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttDoor {
    /// Where its first listener is.
    pub listen: Listen,
    /// How it serves.
    pub settings: mqtt::Settings,
    /// `[[mqtt.listeners]]`: further ones.
    pub listeners: Vec<mqtt::ListenerSettings>,
}

impl Default for MqttDoor {
    fn default() -> Self {
        let listen = Listen::at("127.0.0.1", 1883);
        Self { listen, settings: mqtt::Settings::default(), listeners: Vec::new() }
    }
}

/// What is bounded over all doors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the same time over all doors, unless the limit of open files allows fewer.
    pub connections: u64,
    /// How often one address may connect, over all doors.
    pub connect_rate: rate::Settings,
    /// Passwords that wait to be checked; who comes beyond that is told to come again.
    pub password_checks: usize,
    /// What the core bounds.
    pub core: core::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1_000_000,
            password_checks: 1024,
            connect_rate: rate::Settings::default(),
            core: core::Limits::default(),
        }
    }
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of a file, from 1.
    File(PathBuf, usize),
    /// A variable of the environment.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Why the configuration cannot be used. The operator corrects the named place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{place}: not TOML: {problem}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        problem: String,
    },
    /// There is no such setting.
    #[error("{place}: unknown key {key}{}", suggestion(nearest))]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key as written, with its section.
        key: String,
        /// The valid key that looks most like it.
        nearest: Option<&'static str>,
    },
    /// What a listener or a bridge has does not fit together.
    #[error("{place}: {problem}")]
    Table {
        /// Where.
        place: Place,
        /// What is missing, or too much.
        problem: String,
    },
    /// The settings of the gRPC door do not fit together.
    #[error("[grpc]: {0}")]
    Grpc(#[from] tls::Incomplete),
    /// Those of the first listener of the MQTT door do not.
    #[error("[mqtt]: {0}")]
    Mqtt(#[from] mqtt::NobodyMayConnect),
    /// The value is not permitted.
    #[error("{place}: {key} = {value:?} is not permitted: {problem}")]
    Value {
        /// Where.
        place: Place,
        /// The key, with its section.
        key: &'static str,
        /// The value as written.
        value: String,
        /// What is permitted.
        problem: String,
    },
}

fn suggestion(nearest: &Option<&'static str>) -> String {
    nearest.map(|key| format!("; did you mean {key}?")).unwrap_or_default()
}

/// What the layers say, and what looks wrong in them without being an error.
#[derive(Debug)]
pub struct Loaded {
    /// The result.
    pub settings: Settings,
    /// Sentences for the operator.
    pub warnings: Vec<String>,
}

/// Reads the layers: `file`, then `environment`, then `flags` (key and value).
///
/// # Errors
/// [`ConfigError`] for the first thing that is wrong, in the order of the layers.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: impl IntoIterator<Item = (&'static str, String)>,
) -> Result<Loaded, ConfigError> {
    let mut settings = Settings::default();
    let mut warnings = Vec::new();
    let mut tables = file::Tables::default();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        tables = file::apply(&mut settings, path, &text)?;
    }
    for (name, text) in environment {
        if let Some(entry) = ENTRIES.iter().find(|entry| entry.variable() == name) {
            set(&mut settings, entry, &text, || Place::Environment(name))?;
        } else if let Some(known) = misspelt_variable(&name) {
            warnings.push(format!("{name} is not a setting and does nothing; did you mean {known}?"));
        }
    }
    for (key, text) in flags {
        if let Some(entry) = ENTRIES.iter().find(|entry| entry.key == key) {
            set(&mut settings, entry, &text, || Place::Flag(entry.flag.unwrap_or(key).to_owned()))?;
        }
    }
    listeners::complete(&mut settings, tables.listeners)?;
    bridges::complete(&mut settings, tables.bridges)?;
    settings.grpc.tls.clone().complete()?;
    if settings.mqtt.listen != Listen::Off {
        settings.mqtt.settings.check()?;
    }
    Ok(Loaded { settings, warnings })
}

/// The effective settings as a configuration file.
#[must_use]
pub fn render(settings: &Settings) -> String {
    let mut settings = settings.clone();
    let mut text = String::new();
    let mut section = "";
    for entry in &ENTRIES {
        let (of, name) = entry.split();
        if of != section {
            text.push_str(if section.is_empty() { "[" } else { "\n[" });
            text.push_str(of);
            text.push_str("]\n");
            section = of;
        }
        text.push_str(&format!("{name} = {}\n", (entry.slot)(&mut settings).show_toml()));
    }
    text.push_str(&listeners::render(&settings.mqtt.listeners));
    text.push_str(&bridges::render(&settings.bridges));
    text
}

fn set(
    settings: &mut Settings,
    entry: &Entry,
    text: &str,
    place: impl FnOnce() -> Place,
) -> Result<(), ConfigError> {
    (entry.slot)(settings).set(text).map_err(|problem| ConfigError::Value {
        place: place(),
        key: entry.key,
        value: text.to_owned(),
        problem,
    })
}

/// The candidate nearest to `word`, if it is near enough to be a slip.
fn nearest<T: AsRef<str>>(word: &str, candidates: impl IntoIterator<Item = T>) -> Option<T> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(word, candidate.as_ref()), candidate))
        .filter(|(likeness, _)| *likeness >= 0.7)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate)
}

/// The setting's variable that `name` was probably meant to be. Variables of the client commands and those that
/// orchestrators inject for a service called "stafett" (STAFETT_PORT_…, STAFETT_SERVICE_…) are left alone.
fn misspelt_variable(name: &str) -> Option<String> {
    const OTHERS: [&str; 5] =
        ["STAFETT_CONFIG", "STAFETT_SERVER", "STAFETT_CA", "STAFETT_PORT", "STAFETT_SERVICE_"];
    if !name.starts_with("STAFETT_") || OTHERS.iter().any(|other| name.starts_with(other)) {
        return None;
    }
    nearest(name, ENTRIES.iter().map(Entry::variable))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT_FILE: &str = include_str!("../stafett.default.toml");

    fn from_file(text: &str) -> Result<Settings, ConfigError> {
        let mut settings = Settings::default();
        let tables = file::apply(&mut settings, Path::new("x.toml"), text)?;
        listeners::complete(&mut settings, tables.listeners)?;
        Ok(settings)
    }

    fn from_environment(name: &str, text: &str) -> Result<Loaded, ConfigError> {
        load(None, [(name.to_owned(), text.to_owned())], [])
    }

    #[test]
    fn the_default_file_says_what_is_built_in() {
        assert_eq!(from_file(DEFAULT_FILE).unwrap(), Settings::default());
        for entry in &ENTRIES {
            let (_, name) = entry.split();
            let written = format!("\n{name} = {}\n", (entry.slot)(&mut Settings::default()).show_toml());
            assert!(DEFAULT_FILE.contains(&written), "the default file lacks {written:?} for {}", entry.key);
        }
    }

    #[test]
    fn what_is_rendered_can_be_read_again() {
        let mut settings = Settings::default();
        settings.grpc.listen = Listen::Off;
        settings.grpc.settings.max_connection_age = Some(std::time::Duration::from_secs(90));
        settings.log.level = "warn".to_owned();
        assert_eq!(from_file(&render(&settings)).unwrap(), settings);
    }

    #[test]
    fn later_layers_win() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stafett.toml");
        std::fs::write(&path, "[log]\nlevel = \"warn\"\nformat = \"json\"\n[grpc]\nlisten = \"a:1\"\n")
            .unwrap();
        let environment = [("STAFETT_GRPC_LISTEN", "b:2"), ("STAFETT_LOG_LEVEL", "debug")]
            .map(|(k, v)| (k.into(), v.into()));
        let loaded = load(Some(&path), environment, [("grpc.listen", "c:3".to_owned())]).unwrap();
        assert_eq!(loaded.settings.log.format, telemetry::Format::Json);
        assert_eq!(loaded.settings.log.level, "debug");
        assert_eq!(loaded.settings.grpc.listen, Listen::at("c", 3));
    }

    #[test]
    fn an_unknown_key_names_the_line_and_the_nearest_key() {
        let error = from_file("# one\n[grpc]\nlisten = \"off\"\nkeepalive_intreval = \"1s\"\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "x.toml:4: unknown key grpc.keepalive_intreval; did you mean grpc.keepalive_interval?"
        );
        let error = from_file("[grcp]\nlisten = \"off\"\n").unwrap_err();
        assert_eq!(error.to_string(), "x.toml:1: unknown key grcp; did you mean grpc?");
        let error = from_file("nothing_like_it = 1\n").unwrap_err();
        assert_eq!(error.to_string(), "x.toml:1: unknown key nothing_like_it");
    }

    #[test]
    fn a_value_out_of_range_names_the_key_and_the_range() {
        let error = from_file("[grpc]\nmax_message_bytes = 1\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "x.toml:2: grpc.max_message_bytes = \"1\" is not permitted: must be between 64KiB and 1GiB"
        );
        let error = from_environment("STAFETT_GRPC_MAX_MESSAGE_BYTES", "much").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("STAFETT_GRPC_MAX_MESSAGE_BYTES: grpc.max_message_bytes = \"much\"")
        );
        let error = load(None, [], [("store.durability", "maybe".to_owned())]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--durability: store.durability = \"maybe\" is not permitted: must be one of fsync, interval, memory"
        );
        assert!(from_file("[log]\nlevel = \"verbose\"\n").is_err());
        assert!(from_file("[grpc]\nlisten = [1]\n").is_err());
        assert!(from_file("grpc = 1\n").is_err());
        assert!(from_file("[grpc\n").unwrap_err().to_string().starts_with("x.toml:1: not TOML"));
    }

    #[test]
    fn the_files_of_grpc_come_together() {
        let error = from_environment("STAFETT_GRPC_TLS_CERT", "c.pem").unwrap_err();
        assert_eq!(error.to_string(), "[grpc]: tls.cert needs tls.key");
        let settings = from_file("[grpc]\ntls = { cert = \"c.pem\", key = \"k.pem\" }\n").unwrap();
        let tls = settings.grpc.tls.clone().complete().unwrap().unwrap();
        assert_eq!((tls.cert.to_str(), tls.key.to_str()), (Some("c.pem"), Some("k.pem")));
        assert_eq!(from_file(&render(&settings)).unwrap(), settings);
        let error = from_file("[grpc.tls]\ncret = \"c.pem\"\n").unwrap_err();
        assert_eq!(error.to_string(), "x.toml:2: unknown key grpc.tls.cret; did you mean grpc.tls.cert?");
    }

    #[test]
    fn somebody_may_connect() {
        let error = from_environment("STAFETT_MQTT_ANONYMOUS", "false").unwrap_err();
        assert_eq!(error.to_string(), "[mqtt]: anonymous = false needs users: who else may connect");
        let error = from_environment("STAFETT_MQTT_ANONYMOUS", "no").unwrap_err();
        assert!(error.to_string().ends_with("must be true, false or auto"), "{error}");
        let variables = [("STAFETT_MQTT_ANONYMOUS", "false"), ("STAFETT_MQTT_USERS", "users")];
        let variables = variables.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let loaded = load(None, variables, []).unwrap();
        assert_eq!(from_file(&render(&loaded.settings)).unwrap(), loaded.settings);
        // Nobody comes there.
        let off = [("mqtt.listen", "off".to_owned())];
        assert!(load(None, [("STAFETT_MQTT_ANONYMOUS".to_owned(), "false".to_owned())], off).is_ok());
    }

    #[test]
    fn a_misspelt_variable_is_said_and_foreign_ones_are_not() {
        let loaded = from_environment("STAFETT_GRPC_LISTN", "off").unwrap();
        assert!(loaded.warnings[0].contains("did you mean STAFETT_GRPC_LISTEN?"), "{:?}", loaded.warnings);
        for foreign in ["STAFETT_PORT_50051_TCP", "STAFETT_SERVICE_HOST", "STAFETT_SERVER", "PATH"] {
            assert!(from_environment(foreign, "x").unwrap().warnings.is_empty(), "{foreign}");
        }
    }

    #[test]
    fn every_key_has_one_name_per_layer() {
        for entry in &ENTRIES {
            let variable = match entry.flag {
                Some(flag) => flag.trim_start_matches("--").to_uppercase().replace('-', "_"),
                None => entry.key.to_uppercase().replace('.', "_"),
            };
            assert_eq!(entry.variable(), format!("STAFETT_{variable}"));
            assert_eq!(ENTRIES.iter().filter(|other| other.variable() == entry.variable()).count(), 1);
        }
    }
}
