//! `stafett store stats`.

use std::io::{self, Write};

use clap::Args;
use serde_json::{Value, json};

use super::bar::Bar;
use super::{Exit, Failure, Place};
use crate::engine::embedded::stats::{self, Kind, StoreStats, TargetStats};

const HELP: &str = "\
Examples:
  stafett store stats ./stafett-data
  stafett store stats --data-dir /var/lib/stafett --json | jq '.targets[] | select(.messages > 0)'

The store must not be in use. Nothing that it holds is changed, but the directory must be writable: sled notes that it \
was opened. Bodies are not read: `stafett store check` does. Exit codes: 0 done; 2 there is no store; 5 damaged, in use \
or newer.";

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(super) struct Stats {
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &Stats, json: bool) -> Result<Exit, Failure> {
    let mut bar = Bar::new();
    let stats = stats::stats(&args.place.path(), &mut |progress| bar.show(progress));
    drop(bar);
    let stats = stats.map_err(Failure::store)?;
    let text = if json { format!("{}\n", as_json(&stats)) } else { as_text(&stats) };
    io::stdout().write_all(text.as_bytes()).map_err(Failure::failed)?;
    if stats.damages.is_empty() {
        return Ok(Exit::Done);
    }
    eprintln!("the store is damaged in {} places; `stafett store check` says where", stats.damages.len());
    Ok(Exit::Store)
}

fn as_json(stats: &StoreStats) -> Value {
    json!({
        "format": stats.format,
        "boot": stats.boot,
        "closed": stats.closed,
        "targets": stats.targets.iter().map(|it| json!({
            "kind": it.kind.name(),
            "name": it.name,
            "messages": it.messages,
            "delayed": it.delayed,
            "bytes": it.bytes,
            "subscriptions": it.subscriptions,
        })).collect::<Vec<_>>(),
        "retained": stats.retained,
        "retained_bytes": stats.retained_bytes,
        "unreleased": stats.unreleased,
        "packs": stats.packs,
        "live_bytes": stats.live_bytes,
        "dead_bytes": stats.dead_bytes,
        "head_bytes": stats.head_bytes,
        "file_bytes": stats.file_bytes,
        "journal_bytes": stats.journal_bytes,
        "damages": stats.damages.len(),
    })
}

fn as_text(stats: &StoreStats) -> String {
    let mut text = String::new();
    for TargetStats { kind, name, messages, bytes, delayed, subscriptions } in &stats.targets {
        let name = format!("{} {name}", kind.name());
        let also = [(*delayed, "delayed"), (*subscriptions, "subscriptions")];
        let also = also.into_iter().filter(|(count, _)| *count > 0);
        let also: String = also.map(|(count, what)| format!(", {count} {what}")).collect();
        text.push_str(&format!("{name:<40} {messages:>10} messages {bytes:>14} bytes{also}\n"));
    }
    let count = |kind| stats.targets.iter().filter(|it| it.kind == kind).count();
    let messages: u64 = stats.targets.iter().map(|it| it.messages).sum();
    let format = stats.format.map_or_else(|| "unknown".to_owned(), |format| format.to_string());
    let end = if stats.closed { "closed in order" } else { "not closed" };
    text.push_str(&format!(
        "queues           {}\nsessions         {}\nshare groups     {}\nstreams          {}\nmessages         {messages}\n\
         retained values  {} of {} bytes\nunreleased ids   {}\npacks            {}\nlive bytes       {}\n\
         dead bytes       {}\nhead bytes       {}\nstore/db         {} bytes\njournal          {} bytes\n\
         format           {format}\nstarts           {}, {end}\n",
        count(Kind::Queue),
        count(Kind::Session),
        count(Kind::Group),
        count(Kind::Stream),
        stats.retained,
        stats.retained_bytes,
        stats.unreleased,
        stats.packs,
        stats.live_bytes,
        stats.dead_bytes,
        stats.head_bytes,
        stats.file_bytes,
        stats.journal_bytes,
        stats.boot,
    ));
    text
}
