//! `stafett store import`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;

use super::bar::Bar;
use super::line::{End, Line, VERSION};
use super::{Exit, Failure, given};
use crate::engine::OpenError;
use crate::engine::embedded::check::Progress;
use crate::engine::embedded::import::{self, Import as Store, ImportError, Place};

const HELP: &str = "\
Examples:
  stafett store import backup.jsonl --data-dir ./restored
  stafett store export ./stafett-data | stafett store import - --data-dir ./copy
  stafett store import /var/backups/stafett/monday --data-dir ./restored

What `stafett store export` wrote, or the directory of a backup, becomes the store of a data directory that has none: \
all of it, or nothing when it ends early for whatever reason. Order, attempts, delays, expiry, packet ids, the \
reasons of dead letters and the cursors of streams are kept. A message that several queues, sessions or streams had together is stored once for each. What queues remember of deduplication \
ids whose messages are gone is in backups, not in exports. \
Exit codes: 0 all is imported; 1 the import failed; 2 the input is no export, or the data directory is not empty; \
5 the store is in use.";

/// The longest line: the largest message in base64, and what stands beside it.
const MAX_LINE_BYTES: u64 = 3 << 30;

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(super) struct Import {
    /// What export wrote, `-` for stdin, or the directory of a backup
    #[arg(value_name = "FROM")]
    from: PathBuf,
    /// The data directory [default: ./stafett-data] [env: STAFETT_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Leave out messages for queues and sessions whose definition was lost to damage
    #[arg(long)]
    skip_lost: bool,
}

pub(super) fn run(import: &Import) -> Result<Exit, Failure> {
    let path = given(import.data_dir.as_ref());
    if import.from.is_dir() {
        let mut bar = Bar::new();
        let rows = import::copy(&import.from, &path, &mut |progress| bar.show(progress)).map_err(refused)?;
        drop(bar);
        eprintln!("imported {rows} rows into {}", path.display());
        return Ok(Exit::Done);
    }
    let (counted, skipped) = if import.from == Path::new("-") {
        read(io::stdin().lock(), &path, import.skip_lost)
    } else {
        let file = File::open(&import.from)
            .with_context(|| format!("cannot read {}", import.from.display()))
            .map_err(Failure::usage)?;
        read(BufReader::with_capacity(1 << 20, file), &path, import.skip_lost)
    }?;
    eprintln!(
        "imported {} targets, {} retained values, {} messages into {}",
        counted.targets,
        counted.retained,
        counted.messages,
        path.display()
    );
    if skipped > 0 {
        eprintln!("left out {skipped} messages whose queue or session was lost");
    }
    Ok(Exit::Done)
}

fn refused(error: ImportError) -> Failure {
    match error {
        ImportError::Open(error @ OpenError::Locked(_)) => Failure::store(error),
        ImportError::Open(_) | ImportError::Write(_) => Failure::failed(error),
        other => Failure::usage(other),
    }
}

/// Says at which line it is, and takes no line without end.
struct Lines<R> {
    input: R,
    number: u64,
    text: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// The next line, or none behind the last.
    fn next(&mut self) -> Result<Option<Line>, Failure> {
        self.text.clear();
        self.number += 1;
        let read = self.input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut self.text);
        let read = read.with_context(|| format!("cannot read line {}", self.number));
        if read.map_err(Failure::failed)? == 0 {
            return Ok(None);
        }
        let text = self.text.trim_ascii_end();
        let line = serde_json::from_slice(text);
        line.map(Some).map_err(|e| self.wrong(e))
    }

    fn wrong(&self, what: impl std::fmt::Display) -> Failure {
        Failure::usage(anyhow!("line {}: {what}; nothing is imported", self.number))
    }
}

/// What was imported, and how many messages were left out.
fn read(input: impl BufRead, path: &Path, skip_lost: bool) -> Result<(End, u64), Failure> {
    let mut lines = Lines { input, number: 0, text: Vec::new() };
    match lines.next()? {
        Some(Line::Export(header)) if header.version <= VERSION => {}
        Some(Line::Export(header)) => {
            let version = header.version;
            return Err(lines.wrong(format!(
                "the export has version {version}, this program reads up to {VERSION}: use a newer stafett"
            )));
        }
        _ => return Err(lines.wrong("an export begins with a line of the type export")),
    }
    let mut store = Store::begin(path).map_err(refused)?;
    let (mut counted, mut skipped) = (End::default(), 0);
    let mut bar = Bar::new();
    let end = loop {
        let Some(line) = lines.next()? else {
            return Err(lines.wrong("the end of the export is missing"));
        };
        let target = match line {
            Line::Export(_) => return Err(lines.wrong("another export begins")),
            Line::End(end) => break end,
            Line::Queue(line) => line.given(),
            Line::Session(line) => line.given(),
            Line::Group(line) => line.given(),
            Line::Backlog(line) => Ok(line.given()),
            Line::Stream(line) => line.given(),
            Line::Retained(line) => {
                let message = line.retained().map_err(|what| lines.wrong(what))?;
                store.retained(&message).map_err(|e| at(&lines, e))?;
                counted.retained += 1;
                continue;
            }
            Line::Message(line) => {
                let given = line.given().map_err(|what| lines.wrong(what))?;
                counted.messages += 1;
                bar.show(Progress { phase: "messages", done: counted.messages, total: None });
                if skip_lost && matches!(given.place, Place::Lost(_)) {
                    skipped += 1;
                } else {
                    store.message(&given).map_err(|e| at(&lines, e))?;
                }
                continue;
            }
        };
        store.target(&target.map_err(|what| lines.wrong(what))?).map_err(|e| at(&lines, e))?;
        counted.targets += 1;
    };
    if end != counted {
        return Err(lines.wrong(format!("{end} should stand before it, but {counted} do")));
    }
    if lines.next()?.is_some() {
        return Err(lines.wrong("something follows the end of the export"));
    }
    store.finish().map_err(refused)?;
    counted.messages -= skipped;
    Ok((counted, skipped))
}

/// What is wrong with the line is told with its number.
fn at<R: BufRead>(lines: &Lines<R>, error: ImportError) -> Failure {
    match error {
        ImportError::Open(_) | ImportError::Write(_) => refused(error),
        ImportError::Lost(_) => lines.wrong(format!("{error}; --skip-lost leaves such messages out")),
        other => lines.wrong(other),
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { targets, retained, messages } = self;
        write!(f, "{targets} targets, {retained} retained values and {messages} messages")
    }
}
