//! What the process tells its operator: lines on stderr.
//!
//! Invariant: stdout is never written here; it belongs to the command that runs.

use std::fmt;
use std::io::{self, IsTerminal};
use std::str::FromStr;

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// The word is none of `text` and `json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of text, json")]
pub struct UnknownFormat;

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(UnknownFormat),
        }
    }
}

/// What the operator decides about logging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`, `off`), or levels by module as in `info,stafett::grpc=debug`.
    pub level: String,
    /// How a line looks.
    pub format: Format,
}

impl Default for Settings {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::Text }
    }
}

/// The text is no level, nor levels by module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be error, warn, info, debug, trace or off, or levels by module as in info,stafett::grpc=debug")]
pub struct UnknownLevel;

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The level is not one.
    #[error("the log level {0}")]
    Level(#[from] UnknownLevel),
    /// Logging has been started before in this process.
    #[error("logging runs already")]
    Running(#[from] TryInitError),
}

/// What passes under `level`; a module's own level counts before the general one. sled repeats an error that the
/// engine reports once, hundreds of times: it is heard only by its own level (`info,sled=error`).
///
/// # Errors
/// [`UnknownLevel`].
pub fn parse_level(level: &str) -> Result<Targets, UnknownLevel> {
    let quiet = Targets::new().with_target("sled", LevelFilter::OFF);
    level.split(',').try_fold(quiet, |targets, part| match part.split_once('=') {
        None => Ok(targets.with_default(one_level(part)?)),
        Some(("", _)) => Err(UnknownLevel),
        Some((module, level)) => Ok(targets.with_target(module, one_level(level)?)),
    })
}

fn one_level(word: &str) -> Result<LevelFilter, UnknownLevel> {
    Ok(match word {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return Err(UnknownLevel),
    })
}

/// Sends the process's log lines to stderr from now on.
///
/// # Errors
/// [`TelemetryError`].
pub fn start(settings: &Settings) -> Result<(), TelemetryError> {
    let filter = parse_level(&settings.level)?;
    let lines =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let registry = tracing_subscriber::registry();
    match settings.format {
        Format::Text => registry.with(lines.with_target(false).with_filter(filter)).try_init()?,
        Format::Json => registry.with(lines.json().flatten_event(true).with_filter(filter)).try_init()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_module_may_have_its_own_level() {
        let targets = parse_level("warn,stafett::grpc=debug").unwrap();
        assert!(targets.would_enable("stafett::grpc::admin", &Level::DEBUG));
        assert!(!targets.would_enable("stafett::server", &Level::INFO));
        assert!(targets.would_enable("stafett::server", &Level::WARN));
    }

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for bad in ["", "verbose", "INFO", "stafett=", "=info", "info,", "stafett::grpc"] {
            assert_eq!(parse_level(bad).unwrap_err(), UnknownLevel, "{bad:?}");
        }
    }
}
