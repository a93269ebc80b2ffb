//! The sub-commands of `stafett`.
//!
//! Invariant: stdout carries results alone, stderr everything meant for people. Every end has its exit code in
//! [`exit::Exit`].

mod await_reply;
mod backup;
mod call;
mod client;
pub mod exit;
mod gather;
mod health;
mod info;
mod message;
mod out;
mod passwd;
mod payload;
mod publish;
mod queue;
mod serve;
mod serve_with;
mod session;
mod store;
mod stream;
mod subscribe;
mod taking;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use exit::{Exit, Failure};

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 the operation failed; 2 wrong usage or configuration; 3 the broker cannot be reached, nobody \
serves what is called, or the deadline passed; 4 nothing to receive, or no reply yet; 5 the store is locked, damaged or newer";

const EXAMPLES: &str = "\
Examples:
  stafett serve
  stafett serve --grpc-listen 0.0.0.0:50051 --log-format json
  stafett health --server http://127.0.0.1:50051
  stafett info --json
  stafett sub 'sensors/#'
  stafett pub sensors/7 21.5 --retain
  stafett serve-with text/upper -- tr a-z A-Z
  stafett call text/upper hello
  stafett call text/upper hello --async
  stafett gather text/upper hello
  stafett queue create orders
  stafett queue send orders 'hello'
  stafett queue receive orders --ack
  stafett stream create readings --filter 'sensors/#'
  stafett stream read readings --follow
  stafett session list
  stafett backup monday
  stafett store check ./stafett-data";

/// A message broker in one process.
#[derive(Debug, Parser)]
#[command(name = "stafett", version, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct Cli {
    #[command(flatten)]
    client: ClientOptions,
    #[command(subcommand)]
    command: Command,
}

/// How the client commands reach a broker.
#[derive(Args, Clone, Debug)]
struct ClientOptions {
    /// The broker to ask, for every command but serve, passwd and store
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "STAFETT_SERVER",
        default_value = "http://127.0.0.1:50051",
        help_heading = "Client options"
    )]
    server: String,
    /// Who signed the certificate of a broker at https://, PEM; without it those whom the system trusts
    #[arg(long, global = true, value_name = "FILE", env = "STAFETT_CA", help_heading = "Client options")]
    ca: Option<PathBuf>,
    /// The certificate to show to a broker that asks for one, PEM
    #[arg(long, global = true, value_name = "FILE", requires = "key", help_heading = "Client options")]
    cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, global = true, value_name = "FILE", requires = "cert", help_heading = "Client options")]
    key: Option<PathBuf>,
    /// Longest wait for an answer, with its unit: 500ms, 5s, 1m
    #[arg(
        long, global = true, value_name = "TIME", default_value = "5s",
        value_parser = message::wait, help_heading = "Client options"
    )]
    timeout: Duration,
    /// Print each result as one JSON object on a line of its own
    #[arg(long, global = true, help_heading = "Client options")]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker until SIGTERM or ctrl-c
    Serve(serve::Serve),
    /// Show the version, features and counters of a running broker
    Info,
    /// Ask a running broker whether it serves (gRPC health check)
    Health(health::Health),
    /// Publish messages
    Pub(Box<publish::Publish>),
    /// Subscribe, and print what comes
    Sub(subscribe::Subscribe),
    /// Call a service, and print the reply
    Call(Box<call::Call>),
    /// Print the reply to a call that was stored
    AwaitReply(await_reply::AwaitReply),
    /// Ask everyone who serves, and print the replies
    Gather(Box<gather::Gather>),
    /// Serve a service with a program that runs per request
    ServeWith(serve_with::ServeWith),
    /// Make queues, put messages in, take them out, look after them
    Queue(Box<queue::Queue>),
    /// Make streams, append to them, read them again and again
    Stream(Box<stream::Stream>),
    /// See the sessions of clients, and end them
    Session(session::Session),
    /// Give a user of MQTT a password, or take the user away
    Passwd(passwd::Passwd),
    /// Have a running broker make a backup of its store
    Backup(backup::Backup),
    /// Look after a store while no broker runs on it
    Store(store::Store),
}

/// Runs what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let local = [
        ("serve", &["server", "ca", "cert", "key", "timeout", "json"][..]),
        ("passwd", &["server", "ca", "cert", "key", "timeout", "json"]),
        ("store", &["server", "ca", "cert", "key", "timeout"]),
    ];
    let misplaced = local.into_iter().find_map(|(command, flags)| {
        let matches = matches.subcommand_matches(command)?;
        let innermost = matches.subcommand().map_or(matches, |(_, matches)| matches);
        let given = |id: &&&str| innermost.value_source(id) == Some(ValueSource::CommandLine);
        Some((command, *flags.iter().find(given)?))
    });
    let result = match misplaced {
        Some((command, flag)) => {
            Err(Failure::usage(anyhow::anyhow!("--{flag} is for the client commands, not for {command}")))
        }
        None => dispatch(cli),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if !out::reader_left(&failure) {
                eprintln!("error: {failure}");
            }
            failure.exit.into()
        }
    }
}

fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    match cli.command {
        Command::Serve(serve) => serve::run(&serve),
        Command::Info => client::block_on(info::run(&cli.client)),
        Command::Health(health) => client::block_on(health::run(&health, &cli.client)),
        Command::Pub(publish) => client::block_on(publish.run(&cli.client)),
        Command::Sub(subscribe) => client::block_on(subscribe.run(&cli.client)),
        Command::Call(call) => client::block_on(call.run(&cli.client)),
        Command::AwaitReply(awaiting) => client::block_on(awaiting.run(&cli.client)),
        Command::Gather(gather) => client::block_on(gather.run(&cli.client)),
        Command::ServeWith(serve) => client::block_on(serve.run(&cli.client)),
        Command::Queue(queue) => client::block_on(queue::run(&queue, &cli.client)),
        Command::Stream(stream) => client::block_on(stream::run(&stream, &cli.client)),
        Command::Session(session) => client::block_on(session::run(&session, &cli.client)),
        Command::Passwd(passwd) => passwd::run(&passwd),
        Command::Backup(backup) => client::block_on(backup::run(&backup, &cli.client)),
        Command::Store(store) => store::run(store, cli.client.json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_serve_says_the_defaults() {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut("serve").unwrap().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for entry in &crate::config::entries::ENTRIES {
            let Some(flag) = entry.flag else { continue };
            let default = (entry.slot)(&mut crate::config::Settings::default()).show();
            assert!(help.contains(flag), "no {flag}");
            let said = format!("[default: {default}] [env: {}]", entry.variable());
            assert!(help.contains(&said), "{flag} does not say {said}: {help}");
        }
    }
}
