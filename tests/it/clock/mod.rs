//! The wall clock is set by a day while the broker runs: what is delayed comes when the clock says so and never before, what
//! is leased may be settled until then, nothing is lost.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use stafett::grpc::proto::v1;
use tempfile::TempDir;
use tonic_types::RpcStatusExt;

use crate::harness::Broker;
use crate::queue::{Queues, got, message, named, payloads, reason, seconds};
use crate::streams::{self, Logs};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

fn shim() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clock-{}.so", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clock/shim.c");
        let built = Command::new("cc")
            .args(["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .status();
        assert!(built.expect("a C compiler, cc").success(), "the shim was not built");
        library
    })
}

/// A clock that can be set.
struct Set {
    directory: TempDir,
    step: File,
}

impl Set {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("step");
        std::fs::write(&path, 0_i64.to_ne_bytes()).unwrap();
        let step = OpenOptions::new().write(true).open(path).unwrap();
        Self { directory, step }
    }

    /// So many seconds from the true time.
    fn to(&self, step: i64) {
        self.step.write_all_at(&step.to_ne_bytes(), 0).unwrap();
    }

    /// A broker that goes by it, with a queue `q`.
    async fn start(&self) -> (Broker, Queues) {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let environment =
            [("LD_PRELOAD", text(shim())), ("CLOCK_STEP", text(&self.directory.path().join("step")))];
        let broker = Broker::try_start(&self.directory.path().join("data"), &[], &environment).await.unwrap();
        let mut queues = Queues::of(&broker).await;
        let queue = v1::Queue { lease: seconds(600), ..named("q") };
        got(queues.0.create_queue(v1::CreateQueueRequest { queue: Some(queue), if_not_exists: true })).await;
        (broker, queues)
    }
}

fn delayed(payload: &str, delay: i64) -> v1::Message {
    let schedule = Some(v1::message::Schedule::Delay(seconds(delay).unwrap()));
    v1::Message { schedule, ..message(payload) }
}

#[tokio::test]
async fn a_clock_that_is_set_forward_by_a_day_loses_nothing() {
    let set = Set::new();
    let (_broker, mut queues) = set.start().await;
    queues.fill("q", &["held"]).await;
    let held = queues.one("q").await;
    queues.enqueue("q", delayed("soon", HOUR)).await;
    queues.enqueue("q", delayed("in two days", 2 * DAY)).await;
    assert!(queues.is_empty("q").await);

    set.to(DAY);
    // By the clock the lease is over, and an hour has passed.
    let mut came = Vec::new();
    while came.len() < 2 {
        let leased = queues.one("q").await;
        came.push((payloads(std::slice::from_ref(&leased)).remove(0), leased.delivery_attempt));
    }
    came.sort();
    assert_eq!(came, [("held".to_owned(), 2), ("soon".to_owned(), 1)]);
    let failures = queues.acknowledge("q", vec![held.lease_token]).await;
    assert_eq!(reason(&failures[0].error.as_ref().unwrap().get_error_details()), "LEASE_EXPIRED");
    let stats = queues.stats("q").await;
    assert_eq!((stats.ready, stats.leased, stats.delayed), (0, 2, 1));
}

#[tokio::test]
async fn a_clock_that_is_set_back_by_a_day_makes_nothing_early_and_loses_nothing() {
    let set = Set::new();
    let (broker, mut queues) = set.start().await;
    queues.fill("q", &["held", "ready"]).await;
    let held = queues.one("q").await;
    queues.enqueue("q", delayed("in an hour", HOUR)).await;

    set.to(-DAY);
    assert_eq!(payloads(&[queues.one("q").await]), ["ready"]);
    // What comes from now on goes by the clock as it is.
    queues.enqueue("q", v1::Message { ttl: seconds(60), ..delayed("in a second", 1) }).await;
    let new = queues.one("q").await;
    assert_eq!(payloads(std::slice::from_ref(&new)), ["in a second"]);
    let came = |leased: &v1::LeasedMessage| leased.origin.as_ref().unwrap().publish_time.unwrap().seconds;
    assert!(came(&new) < came(&held) - HOUR, "the broker goes by the clock that was set");
    let stats = queues.stats("q").await;
    assert_eq!((stats.ready, stats.leased, stats.delayed), (0, 3, 1));
    assert_eq!(queues.acknowledge("q", vec![held.lease_token]).await, []);

    // Nor after a restart.
    broker.kill9().await;
    let (broker, mut queues) = set.start().await;
    let stats = queues.stats("q").await;
    assert_eq!((stats.ready, stats.delayed), (2, 1));
    let delete = v1::DeleteQueueRequest { name: "q".to_owned(), only_if_empty: false };
    assert_eq!(got(queues.0.delete_queue(delete)).await.deleted_messages, 3);
    broker.terminate().await;
}

#[tokio::test]
async fn the_times_of_a_stream_stay_in_order_when_the_clock_is_set_back() {
    let set = Set::new();
    let (mut broker, _) = set.start().await;
    let mut logs = Logs::of(&broker).await;
    logs.create(streams::named("s", &["t"])).await;
    logs.count("t", 0..2).await;
    let last = logs.state().await.last_time;
    set.to(-DAY);
    for numbers in [2..4, 4..6] {
        logs.count("t", numbers).await;
        assert_eq!(logs.state().await.last_time, last, "it counts as appended with the last one");
        broker.kill9().await;
        (broker, _) = set.start().await;
        logs = Logs::of(&broker).await;
        let state = logs.state().await;
        assert_eq!((state.messages, state.last_time), (state.next_sequence - 1, last));
    }
    set.to(0);
    logs.count("t", 6..7).await;
    assert!(logs.state().await.last_time.unwrap().seconds >= last.unwrap().seconds);
}
