//! How far a long reading or writing is, on stderr.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::engine::embedded::check::Progress;
use crate::types::clock::now;

/// How far it is, on a terminal and when it takes long.
pub(super) struct Bar {
    started: Instant,
    shown: Option<ProgressBar>,
    /// Where there is no terminal: when the last line was written.
    told: Instant,
    calls: u32,
}

/// Shorter than this nobody wonders.
const SILENT: Duration = Duration::from_secs(1);
/// Between two lines where there is no terminal.
const LINES: Duration = Duration::from_secs(10);
/// Between two looks at the clock.
const CALLS: u32 = 256;

impl Bar {
    pub(super) fn new() -> Self {
        Self { started: now(), shown: None, told: now(), calls: 0 }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        self.calls = self.calls.wrapping_add(1);
        if !self.calls.is_multiple_of(CALLS) || now() < self.started + SILENT {
            return;
        }
        if !io::stderr().is_terminal() {
            if now() >= self.told + LINES {
                self.told = now();
                let of = progress.total.map(|total| format!(" of {total}")).unwrap_or_default();
                eprintln!("{}: {}{of}", progress.phase, progress.done);
            }
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
