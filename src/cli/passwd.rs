//! `stafett passwd`: the users' file.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;

use super::exit::{Exit, Failure};
use crate::auth::{self, ChangeError, DEFAULT_ITERATIONS, ITERATIONS, Verifier};

const HELP: &str = "\
The password is asked for at a terminal; else it is the first line of stdin. It is never stored: a line of the file is \
NAME:SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY, as PostgreSQL has it. The file is named by mqtt.users; a running \
broker reads it again at SIGHUP.";

/// Bytes of a password.
const MAX_PASSWORD_BYTES: u64 = 1024;

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(super) struct Passwd {
    /// The users' file; made when it is absent
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Whose password it is
    #[arg(value_name = "USER")]
    user: String,
    /// Take the user out of the file
    #[arg(long, conflicts_with = "iterations")]
    delete: bool,
    #[arg(
        long, value_name = "N", default_value_t = DEFAULT_ITERATIONS,
        help = format!(
            "How often the password is hashed, {} to {} times: more is harder to guess, and slower to check",
            ITERATIONS.start(), ITERATIONS.end()
        ),
        value_parser = clap::value_parser!(u32).range(i64::from(*ITERATIONS.start())..=i64::from(*ITERATIONS.end()))
    )]
    iterations: u32,
}

pub(super) fn run(passwd: &Passwd) -> Result<Exit, Failure> {
    let Passwd { file, user, delete, iterations } = passwd;
    let verifier = if *delete {
        None
    } else {
        let password = password(user).map_err(Failure::usage)?;
        let iterations = NonZeroU32::new(*iterations).unwrap_or(NonZeroU32::MIN);
        Some(Verifier::new(&password, iterations).map_err(Failure::usage)?)
    };
    let there = change(file, user, verifier.as_ref())?;
    let done = match (delete, there) {
        (true, _) => "deleted from",
        (false, true) => "has a new password in",
        (false, false) => "added to",
    };
    eprintln!("{user} {done} {}", file.display());
    Ok(Exit::Done)
}

/// From the terminal, twice, or from stdin.
fn password(user: &str) -> anyhow::Result<String> {
    if io::stdin().is_terminal() {
        let password = rpassword::prompt_password(format!("Password of {user}: "))?;
        if rpassword::prompt_password("Again: ")? != password {
            bail!("the two passwords differ");
        }
        return Ok(password);
    }
    let mut line = String::new();
    io::stdin()
        .lock()
        .take(MAX_PASSWORD_BYTES + 1)
        .read_line(&mut line)
        .context("cannot read the password")?;
    let password = line.strip_suffix('\n').unwrap_or(&line);
    if password.len() as u64 > MAX_PASSWORD_BYTES {
        bail!("the password has more than {MAX_PASSWORD_BYTES} bytes");
    }
    Ok(password.to_owned())
}

/// Puts another file in the place of `file`. Whoever reads it finds the old one or the new one, whole.
fn change(file: &Path, user: &str, to: Option<&Verifier>) -> Result<bool, Failure> {
    let failed = |error: io::Error, what: &str, path: &Path| {
        Failure::failed(anyhow!(error).context(format!("cannot {what} {}", path.display())))
    };
    // Through a link to what it names.
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let mut name = OsString::from(&file);
    name.push(".new");
    let new = PathBuf::from(name);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    let mut made = made.map_err(|error| {
        let another = error.kind() == io::ErrorKind::AlreadyExists;
        let mut failure = failed(error, "make", &new);
        if another {
            let why = "another stafett passwd is at work; if none is, remove what it left";
            failure.reason = failure.reason.context(why);
        }
        failure
    })?;
    let changed = (|| {
        let (before, attributes) = match File::open(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), None),
            opened => {
                let mut opened = opened.map_err(|error| failed(error, "read", &file))?;
                let mut bytes = Vec::new();
                let read = opened.read_to_end(&mut bytes).and_then(|_| opened.metadata());
                (bytes, Some(read.map_err(|error| failed(error, "read", &file))?))
            }
        };
        let (text, there) = auth::change(&before, user, to).map_err(|error| match error {
            ChangeError::File(error) => Failure::usage(anyhow!(error).context(file.display().to_string())),
            error @ ChangeError::Name(_) => Failure::usage(error),
            error => Failure::failed(error),
        })?;
        let written = made.write_all(&text).and_then(|()| {
            if let Some(attributes) = attributes {
                fchown(&made, Some(attributes.uid()), Some(attributes.gid()))?;
                made.set_permissions(attributes.permissions())?;
            }
            made.sync_all()?;
            fs::rename(&new, &file)
        });
        written.map_err(|error| failed(error, "write", &file))?;
        Ok(there)
    })();
    if changed.is_err() {
        // What is left of it is of no use.
        fs::remove_file(&new).ok();
    }
    changed
}
