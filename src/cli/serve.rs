//! `stafett serve`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::server::{Ready, ServerError, Stopped};
use crate::{config, server, telemetry};

use super::exit::{Exit, Failure};

const READY: &str = "\
When every configured door accepts, one line is written to stdout: ready grpc=ADDRESS mqtt=ADDRESS mqtt.NAME=ADDRESS …
Everything else goes to stderr. SIGTERM and ctrl-c finish what is in flight and end with code 0; a second one cuts and \
ends with code 1. A setting is taken from the flag, else from the environment, else from the file, else the default; \
stafett.default.toml lists all of them.";

/// The flags of `stafett serve`; each but the last two overrides a setting.
#[derive(Args, Debug)]
#[command(after_help = READY)]
pub(super) struct Serve {
    /// Where the store keeps its data [default: ./stafett-data] [env: STAFETT_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// gRPC: HOST:PORT, port 0 for any free one, or off [default: 127.0.0.1:50051] [env: STAFETT_GRPC_LISTEN]
    #[arg(long, value_name = "ADDR")]
    grpc_listen: Option<String>,
    /// MQTT: HOST:PORT, port 0 for any free one, or off [default: 127.0.0.1:1883] [env: STAFETT_MQTT_LISTEN]
    #[arg(long, value_name = "ADDR")]
    mqtt_listen: Option<String>,
    /// What an acknowledgement waits for: fsync, interval or memory [default: fsync] [env: STAFETT_DURABILITY]
    #[arg(long, value_name = "POLICY")]
    durability: Option<String>,
    /// error, warn, info, debug, trace or off; or by module, as in info,stafett::grpc=debug [default: info] [env:
    /// STAFETT_LOG_LEVEL]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json [default: text] [env: STAFETT_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE", env = "STAFETT_CONFIG")]
    config: Option<PathBuf>,
    /// Print the settings that would hold, as a configuration file, and end
    #[arg(long)]
    check_config: bool,
}

impl Serve {
    fn flags(&self) -> impl Iterator<Item = (&'static str, String)> {
        [
            ("store.data_dir", &self.data_dir),
            ("grpc.listen", &self.grpc_listen),
            ("mqtt.listen", &self.mqtt_listen),
            ("store.durability", &self.durability),
            ("log.level", &self.log_level),
            ("log.format", &self.log_format),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value.clone()?)))
    }
}

/// How long the runtime may take to drop what was cut.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(super) fn run(serve: &Serve) -> Result<Exit, Failure> {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let loaded = config::load(serve.config.as_deref(), environment, serve.flags()).map_err(Failure::usage)?;
    if serve.check_config {
        for warning in loaded.warnings {
            eprintln!("warning: {warning}");
        }
        io::stdout().write_all(config::render(&loaded.settings).as_bytes()).map_err(Failure::failed)?;
        return Ok(Exit::Done);
    }

    telemetry::start(&loaded.settings.log).map_err(Failure::failed)?;
    for warning in loaded.warnings {
        tracing::warn!("{warning}");
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?;
    let result = runtime.block_on(server::run(loaded.settings, announce));
    runtime.shutdown_timeout(LAST_WORDS);
    match result {
        Ok(Stopped::Clean) => {
            tracing::info!("stopped");
            Ok(Exit::Done)
        }
        Ok(Stopped::Deadline) => {
            tracing::warn!("stopped at the drain deadline; what was in flight is dropped");
            Ok(Exit::Done)
        }
        Ok(Stopped::Cut) => Ok(Exit::Failed),
        Err(error) if error.is_configuration() => Err(Failure::usage(error)),
        Err(ServerError::Store(error)) => Err(Failure::store(error)),
        Err(error) => Err(Failure::failed(error)),
    }
}

fn announce(ready: &Ready) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{ready}")?;
    stdout.flush()
}
