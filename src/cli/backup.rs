//! `stafett backup`.

use std::io::{self, IsTerminal};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::grpc::proto::v1::admin_service_client::AdminServiceClient;
use crate::grpc::proto::v1::{BackupDone, BackupRequest, backup_response::Event};

use super::ClientOptions;
use super::client::{connect, refused};
use super::exit::{Exit, Failure};

const HELP: &str = "\
Examples:
  stafett backup monday
  stafett backup --json

The broker copies what it has stored at one moment into the directory NAME below its `store.backup_dir`, on its own \
machine, and goes on meanwhile. What was acknowledged by then and not settled is in it. The directory is a data \
directory: `stafett serve --data-dir` serves it, `stafett store check`, `export` and `import` read it. --timeout is for \
the connection alone; when this command ends early there is no backup.";

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(super) struct Backup {
    /// Its name: letters, digits, '.', '_' and '-'; without one it is called by the time
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

pub(super) async fn run(backup: &Backup, options: &ClientOptions) -> Result<Exit, Failure> {
    let mut client = AdminServiceClient::new(connect(options).await?);
    let request = BackupRequest { name: backup.name.clone().unwrap_or_default() };
    let mut events = client.backup(request).await.map_err(|status| refused(&status))?.into_inner();
    let bar = bar();
    while let Some(answer) = events.message().await.map_err(|status| refused(&status))? {
        match answer.event {
            Some(Event::Opened(_)) | None => {}
            Some(Event::Progress(progress)) => {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
            }
            Some(Event::Done(done)) => {
                bar.finish_and_clear();
                tell(&done, options.json);
                return Ok(Exit::Done);
            }
        }
    }
    Err(Failure::failed(anyhow::anyhow!("the broker did not say how the backup ended")))
}

fn bar() -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    match ProgressStyle::with_template("{spinner} {binary_bytes}/{binary_total_bytes} {wide_bar} {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn tell(done: &BackupDone, json: bool) {
    if json {
        println!("{}", json!({ "path": done.path, "bytes": done.bytes }));
    } else {
        println!("{}", done.path);
    }
}
