//! `stafett store export`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value};

use super::bar::Bar;
use super::line::{Header, Line, VERSION};
use super::{Exit, Failure, Place};
use crate::engine::embedded::check::Damage;
use crate::engine::embedded::export::{self, ExportError, ExportReport};

const EXPORT_HELP: &str = "\
Examples:
  stafett store export ./stafett-data --output backup.jsonl
  stafett store export /var/lib/stafett | jq 'select(.type == \"message\" and .queue == \"orders\")'

The store must not be in use. Nothing that it holds is changed, but the directory must be writable: sled notes that it \
was opened. Each line has a type: export (the first), queue, \
session, group, backlog, stream, retained, message or end (the last); the messages of a target stand in their order. `stafett \
store import` makes a store of it. What cannot be read is skipped and told on stderr. Exit codes: \
0 all is written; 1 the output failed; 2 there is no store; 5 something was skipped, or the store is in use or newer.";

#[derive(Args, Debug)]
#[command(after_help = EXPORT_HELP)]
pub(super) struct Export {
    #[command(flatten)]
    place: Place,
    /// Write to this file, which must not be there yet, instead of stdout
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(export: &Export) -> Result<Exit, Failure> {
    let mut bar = Bar::new();
    let path = export.place.path();
    let report = match &export.output {
        Some(output) => {
            let file = File::create_new(output)
                .with_context(|| format!("cannot make the file {} (--output)", output.display()))
                .map_err(Failure::usage)?;
            let written =
                write(&path, &mut bar, &file).and_then(|report| Ok(file.sync_all().map(|()| report)?));
            if matches!(written, Err(ExportError::Open(_))) {
                // Nothing came out of it: the file must not look like an export.
                drop(std::fs::remove_file(output));
            }
            written
        }
        None => write(&path, &mut bar, io::stdout().lock()),
    };
    drop(bar);
    let report = report.map_err(|error| match error {
        ExportError::Open(error) => Failure::store(error),
        other => Failure::failed(other),
    })?;
    report.damages.iter().for_each(|damage: &Damage| eprintln!("damaged: {damage}"));
    eprintln!(
        "exported {} targets, {} retained values, {} messages",
        report.targets, report.retained, report.messages
    );
    if report.damages.is_empty() {
        return Ok(Exit::Done);
    }
    eprintln!(
        "the store is damaged: {} messages were skipped, {} damages in all; `stafett store check` says more",
        report.skipped,
        report.damages.len()
    );
    Ok(Exit::Store)
}

fn write(path: &Path, bar: &mut Bar, out: impl Write) -> Result<ExportReport, ExportError> {
    let mut out = BufWriter::new(out);
    let mut begun = false;
    let report = export::export(path, &mut |progress| bar.show(progress), &mut |item| {
        if !std::mem::replace(&mut begun, true) {
            line(&mut out, &Line::Export(Header { version: VERSION }))?;
        }
        line(&mut out, &Line::from(&item))
    })?;
    if !begun {
        line(&mut out, &Line::Export(Header { version: VERSION }))?;
    }
    line(&mut out, &Line::from(&report))?;
    out.flush()?;
    Ok(report)
}

fn line(out: &mut impl Write, line: &Line) -> io::Result<()> {
    let value = match serde_json::to_value(line)? {
        // What a thing does not have is left out.
        Value::Object(map) => {
            map.into_iter().filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>().into()
        }
        other => other,
    };
    writeln!(out, "{value}")
}
