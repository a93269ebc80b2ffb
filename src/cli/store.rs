//! `stafett store`: looks after a store while no broker runs on it.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::engine::embedded::check::{self, CheckReport, Damage, Progress};
use crate::engine::embedded::export::{self, ExportError, Item, Waiting};
use crate::engine::{
    Definition, EngineSettings, OutgoingState, Overflow, QueueSpec, SessionSpec, SubscribeOptions,
};
use crate::types::clock::now;
use crate::types::topic::FilterSpec;
use crate::types::{Message, UnixMillis};

use super::exit::{Exit, Failure};

/// The sub-commands of `stafett store`.
#[derive(Args, Debug)]
pub(super) struct Store {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare all that the store holds with its checksums
    Check(Check),
    /// Write all that can be read as JSON, one object a line
    Export(Export),
}

const CHECK_HELP: &str = "\
Examples:
  stafett store check ./stafett-data
  stafett store check --data-dir /var/lib/stafett --json

The store must not be in use. Nothing that it holds is changed, but the directory must be writable: sled notes that it \
was opened. Each damage is told with what is lost by it, and the check goes \
on behind it. Exit codes: 0 sound; 2 there is no store; 5 damaged, in use or newer.";

const EXPORT_HELP: &str = "\
Examples:
  stafett store export ./stafett-data --output backup.jsonl
  stafett store export /var/lib/stafett | jq 'select(.type == \"message\" and .queue == \"orders\")'

The store must not be in use. Nothing that it holds is changed, but the directory must be writable: sled notes that it \
was opened. Each line has a type: queue, session, group, retained or \
message; the messages of a target stand in their order. What cannot be read is skipped and told on stderr. Exit codes: \
0 all is written; 1 the output failed; 2 there is no store; 5 something was skipped, or the store is in use or newer.";

/// Where the store is.
#[derive(Args, Debug)]
struct Place {
    /// The data directory [default: ./stafett-data] [env: STAFETT_DATA_DIR]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The same, called as in serve
    #[arg(long, value_name = "DIR", conflicts_with = "dir")]
    data_dir: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(after_help = CHECK_HELP)]
struct Check {
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
#[command(after_help = EXPORT_HELP)]
struct Export {
    #[command(flatten)]
    place: Place,
    /// Write to this file, which must not be there yet, instead of stdout
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Place {
    fn path(&self) -> PathBuf {
        let given = self.dir.clone().or_else(|| self.data_dir.clone());
        let given = given.or_else(|| std::env::var_os("STAFETT_DATA_DIR").map(PathBuf::from));
        given.unwrap_or_else(|| EngineSettings::default().data_dir)
    }
}

pub(super) fn run(store: Store, json: bool) -> Result<Exit, Failure> {
    // The storage library panics on some damage; that is caught and told as damage.
    std::panic::set_hook(Box::new(|_| {}));
    match store.command {
        Command::Check(check) => run_check(&check, json),
        Command::Export(export) => run_export(&export),
    }
}

fn run_check(check: &Check, json: bool) -> Result<Exit, Failure> {
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

fn run_export(export: &Export) -> Result<Exit, Failure> {
    let mut bar = Bar::new();
    let mut tell = |progress| bar.show(progress);
    let path = export.place.path();
    let report = match &export.output {
        Some(output) => {
            let file = File::create_new(output)
                .with_context(|| format!("cannot make the file {} (--output)", output.display()))
                .map_err(Failure::usage)?;
            let mut out = BufWriter::new(&file);
            let report = export::export(&path, &mut tell, &mut |item| line(&mut out, &item));
            let written =
                report.and_then(|report| Ok(out.flush().and_then(|()| file.sync_all()).map(|()| report)?));
            if matches!(written, Err(ExportError::Open(_))) {
                // Nothing came out of it: the file must not look like an export.
                drop(std::fs::remove_file(output));
            }
            written
        }
        None => {
            let mut out = BufWriter::new(io::stdout().lock());
            let report = export::export(&path, &mut tell, &mut |item| line(&mut out, &item));
            report.and_then(|report| Ok(out.flush().map(|()| report)?))
        }
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

fn line(out: &mut impl Write, item: &Item<'_>) -> io::Result<()> {
    let value = match item {
        Item::Target { definition: Definition::Queue(queue), .. } => queue_json(queue),
        Item::Target { definition: Definition::Session(session), subscriptions, incoming, .. } => {
            session_json(session, subscriptions, incoming)
        }
        Item::Target { definition: Definition::Group(group), .. } => json!({
            "type": "group",
            "filter": group.filter.to_string(),
            "max_messages": group.max_messages,
            "max_bytes": group.max_bytes,
        }),
        Item::Target { definition: Definition::Backlog(backlog), .. } => {
            json!({ "type": "backlog", "name": backlog.name.to_string() })
        }
        Item::Target { definition: Definition::Stream(stream), cursors, .. } => json!({
            "type": "stream",
            "name": stream.name.to_string(),
            "filters": stream.filters.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "max_age_seconds": stream.max_age.map(seconds),
            "max_messages": stream.max_messages,
            "max_bytes": stream.max_bytes,
            "created_at": date(Some(stream.created_at)),
            "cursors": cursors.iter().map(|(name, cursor)| json!({
                "name": name.to_string(),
                "sequence": cursor.sequence.0,
                "committed_at": date(Some(cursor.committed_at)),
            })).collect::<Vec<_>>(),
        }),
        Item::Retained(message) => {
            let mut value = json!({ "type": "retained", "expires_at": date(message.expires_at) });
            message_json(&mut value, message);
            value
        }
        Item::Message(waiting) => waiting_json(waiting),
    };
    writeln!(out, "{}", without_nulls(value))
}

fn date(at: Option<UnixMillis>) -> Option<String> {
    let at = std::time::UNIX_EPOCH.checked_add(Duration::from_millis(at?.0))?;
    Some(humantime::format_rfc3339_millis(at).to_string())
}

/// None: for ever.
fn seconds(duration: Duration) -> Option<f64> {
    (duration != Duration::MAX).then_some(duration.as_secs_f64())
}

/// What a thing does not have is left out.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>().into()
        }
        other => other,
    }
}

fn queue_json(queue: &QueueSpec) -> Value {
    json!({
        "type": "queue",
        "name": queue.name.to_string(),
        "bindings": queue.bindings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "lease_seconds": seconds(queue.lease),
        "max_deliveries": queue.max_deliveries,
        "dead_letter": queue.dead_letter.as_ref().map(ToString::to_string),
        "dead_letter_expired": queue.dead_letter_expired,
        "retry_min_backoff_seconds": queue.retry_min_backoff.and_then(seconds),
        "retry_max_backoff_seconds": queue.retry_max_backoff.and_then(seconds),
        "default_ttl_seconds": queue.default_ttl.and_then(seconds),
        "max_messages": queue.max_messages,
        "max_bytes": queue.max_bytes,
        "overflow": match queue.overflow {
            Overflow::Reject => "reject",
            Overflow::DropOldest => "drop-oldest",
            Overflow::DeadLetter => "dead-letter",
        },
        "priorities": queue.priorities,
        "ordered_by_key": queue.ordered_by_key,
        "single_active_consumer": queue.single_active_consumer,
        "dedup_window_seconds": queue.dedup_window.and_then(seconds),
        "expires_after_seconds": queue.expires_after.and_then(seconds),
        "paused": queue.paused,
        "labels": queue.labels,
        "created_at": date(Some(queue.created_at)),
    })
}

fn session_json(
    session: &SessionSpec,
    subscriptions: &[(FilterSpec, SubscribeOptions)],
    incoming: &[u16],
) -> Value {
    let subscription = |(filter, options): &(FilterSpec, SubscribeOptions)| {
        without_nulls(json!({
            "filter": filter.to_string(),
            "max_qos": options.max_qos as u8,
            "upgrade_qos": options.upgrade_qos,
            "no_local": options.no_local,
            "retain_as_published": options.retain_as_published,
            "retain_handling": options.retain_handling as u8,
            "identifier": options.identifier,
        }))
    };
    json!({
        "type": "session",
        "name": session.client_id.to_string(),
        "principal": session.principal.to_string(),
        "expiry_seconds": seconds(session.expiry),
        "created_at": date(Some(session.created_at)),
        "last_connected": date(Some(session.last_connected)),
        "max_messages": session.max_messages,
        "max_bytes": session.max_bytes,
        "subscriptions": subscriptions.iter().map(subscription).collect::<Vec<_>>(),
        "unreleased_packet_ids": incoming,
    })
}

fn waiting_json(waiting: &Waiting<'_>) -> Value {
    let mut value = json!({ "type": "message" });
    let (kind, name) = match waiting.target {
        Some(Definition::Queue(queue)) => ("queue", json!(queue.name.to_string())),
        Some(Definition::Session(session)) => ("session", json!(session.client_id.to_string())),
        Some(Definition::Group(group)) => ("group", json!(group.filter.to_string())),
        Some(Definition::Backlog(backlog)) => ("backlog", json!(backlog.name.to_string())),
        Some(Definition::Stream(stream)) => ("stream", json!(stream.name.to_string())),
        None => ("target", json!(waiting.target_id)),
    };
    let outgoing = waiting.outgoing.map(|outgoing| {
        let state = match outgoing.state {
            OutgoingState::Sent => "sent",
            OutgoingState::Received => "received",
            OutgoingState::Settled => "settled",
        };
        json!({ "packet_id": outgoing.packet_id, "state": state })
    });
    set(&mut value, kind, name);
    set(&mut value, "sequence", waiting.sequence.0);
    set(&mut value, "attempts", waiting.attempts);
    set(&mut value, "priority", waiting.priority.level());
    set(&mut value, "granted_qos", waiting.qos as u8);
    set(&mut value, "retain_flag", waiting.retain);
    set(&mut value, "not_before", date(waiting.not_before));
    set(&mut value, "expires_at", date(waiting.expires_at));
    set(&mut value, "outgoing", outgoing);
    message_json(&mut value, &waiting.message);
    value
}

fn set(value: &mut Value, name: &str, to: impl Into<Value>) {
    if let Value::Object(map) = value {
        map.insert(name.to_owned(), to.into());
    }
}

fn message_json(value: &mut Value, message: &Message) {
    set(value, "message_id", message.id.to_string());
    set(value, "published_at", date(Some(message.id.time())));
    set(value, "topic", message.topic.to_string());
    set(value, "qos", message.qos as u8);
    set(value, "retain", message.retain);
    set(value, "payload_base64", STANDARD.encode(&message.payload));
    let Some(extras) = &message.extras else { return };
    let properties = extras.properties.iter().map(|(key, value)| json!([key.to_string(), value.to_string()]));
    let dead_letter = extras.dead_letter.as_ref().map(|dead| {
        json!({
            "source": dead.source.to_string(),
            "reason": dead.reason.to_string(),
            "attempts": dead.attempts,
            "at": date(Some(dead.at)),
        })
    });
    set(value, "properties", properties.collect::<Vec<_>>());
    set(value, "payload_is_utf8", extras.payload_is_utf8);
    set(value, "content_type", extras.content_type.as_ref().map(ToString::to_string));
    set(value, "reply_to", extras.reply_to.as_ref().map(ToString::to_string));
    set(value, "correlation_data_base64", extras.correlation_data.as_ref().map(|data| STANDARD.encode(data)));
    set(value, "ordering_key", extras.ordering_key.as_ref().map(ToString::to_string));
    set(value, "dedup_id", extras.dedup_id.as_ref().map(ToString::to_string));
    set(value, "publisher", extras.publisher.as_ref().map(ToString::to_string));
    set(value, "dead_letter", dead_letter);
}

/// How far it is, on a terminal and when it takes long.
struct Bar {
    started: Instant,
    shown: Option<ProgressBar>,
    calls: u32,
}

/// Shorter than this nobody wonders.
const SILENT: Duration = Duration::from_secs(1);
/// Between two looks at the clock.
const CALLS: u32 = 256;

impl Bar {
    fn new() -> Self {
        Self { started: now(), shown: None, calls: 0 }
    }

    fn show(&mut self, progress: Progress) {
        self.calls = self.calls.wrapping_add(1);
        if !self.calls.is_multiple_of(CALLS) || now() < self.started + SILENT || !io::stderr().is_terminal() {
            return;
        }
        let bar = self.shown.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let template = "{spinner} {msg} {human_pos}/{human_len} {wide_bar} {elapsed}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        bar.set_message(progress.phase);
        match progress.total {
            Some(total) => bar.set_length(total),
            None => bar.unset_length(),
        }
        bar.set_position(progress.done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}
