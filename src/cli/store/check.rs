//! `stafett store check`.

use std::io::{self, Write};

use clap::Args;
use serde_json::{Value, json};

use super::bar::Bar;
use super::{Exit, Failure, Place};
use crate::engine::embedded::check::{self, CheckReport};

const CHECK_HELP: &str = "\
Examples:
  stafett store check ./stafett-data
  stafett store check --data-dir /var/lib/stafett --json

The store must not be in use. Nothing that it holds is changed, but the directory must be writable: sled notes that it \
was opened. Each damage is told with what is lost by it, and the check goes \
on behind it. Exit codes: 0 sound; 2 there is no store; 5 damaged, in use or newer.";

#[derive(Args, Debug)]
#[command(after_help = CHECK_HELP)]
pub(super) struct Check {
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(check: &Check, json: bool) -> Result<Exit, Failure> {
    let mut bar = Bar::new();
    let report = check::check(&check.place.path(), &mut |progress| bar.show(progress));
    drop(bar);
    let report = report.map_err(Failure::store)?;
    let text = if json { format!("{}\n", check_json(&report)) } else { check_text(&report) };
    io::stdout().write_all(text.as_bytes()).map_err(Failure::failed)?;
    Ok(if report.is_sound() { Exit::Done } else { Exit::Store })
}

fn check_json(report: &CheckReport) -> Value {
    json!({
        "sound": report.is_sound(),
        "packs": report.packs,
        "messages": report.messages(),
        "head_bytes": report.head_bytes,
        "body_bytes": report.body_bytes,
        "part_bytes": report.part_bytes,
        "file_bytes": report.file_bytes,
        "leftovers": report.leftovers,
        "targets": report.targets.iter().map(|it| {
            json!({ "name": it.name, "messages": it.messages, "bytes": it.bytes })
        }).collect::<Vec<_>>(),
        "damages": report.damages.iter().map(|it| {
            json!({ "place": it.place, "what": it.what, "consequence": it.consequence })
        }).collect::<Vec<_>>(),
    })
}

fn check_text(report: &CheckReport) -> String {
    let mut text: String = report.damages.iter().map(|damage| format!("damaged: {damage}\n")).collect();
    for target in &report.targets {
        text.push_str(&format!(
            "{:<40} {:>10} messages {:>14} bytes\n",
            target.name, target.messages, target.bytes
        ));
    }
    text.push_str(&format!(
        "{} messages in {} packs; {} bytes of heads, {} of bodies, {} of parts, in a file of {}\n",
        report.messages(),
        report.packs,
        report.head_bytes,
        report.body_bytes,
        report.part_bytes,
        report.file_bytes,
    ));
    if report.leftovers > 0 {
        text.push_str(&format!("{} rows that a crash left; the next start clears them\n", report.leftovers));
    }
    if report.is_sound() {
        text.push_str("sound\n");
    } else {
        text.push_str(&format!(
            "{} damages; `stafett store export` saves what is readable\n",
            report.damages.len()
        ));
    }
    text
}
