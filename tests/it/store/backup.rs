//! `Backup` of the real program: one moment of all queues, while producers and consumers go on.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use stafett::engine::backup::BackedUp;
use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::admin_service_client::AdminServiceClient;
use stafett::grpc::proto::v1::backup_response::Event;
use stafett::grpc::proto::v1::queue_service_client::QueueServiceClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::*;
use crate::harness::within;
use crate::queue::{field, got, message as text, named, reason};

type Admin = AdminServiceClient<Channel>;
type Queues = QueueServiceClient<Channel>;

/// Each producer waits for its acknowledgements.
const PRODUCERS: u64 = 3;

/// A broker that may make backups, and where they are.
pub(super) async fn broker(data: &Path, backups: &Path) -> Broker {
    let environment = [("STAFETT_STORE_BACKUP_DIR", backups.to_str().unwrap().to_owned())];
    Broker::try_start(data, &[], &environment).await.unwrap_or_else(|ended| panic!("{}", ended.stderr))
}

/// Something to copy that takes a while.
async fn load(queues: &mut Queues, mib: u32) {
    got(queues.create_queue(v1::CreateQueueRequest { queue: Some(named("load")), if_not_exists: false }))
        .await;
    for n in 0..mib {
        let payload = Bytes::from(vec![n as u8; 4096]);
        let messages = vec![v1::Message { payload, ..Default::default() }; 256];
        let request = v1::EnqueueBatchRequest { queue: "load".into(), messages, ..Default::default() };
        got(queues.enqueue_batch(request)).await;
    }
}

/// A backup to its end.
pub(super) async fn back_up(admin: &mut Admin, name: &str) -> Result<v1::BackupDone, Status> {
    let mut events = admin.backup(v1::BackupRequest { name: name.into() }).await?.into_inner();
    let first = events.message().await?.unwrap().event;
    assert!(matches!(first, Some(Event::Opened(_))), "{first:?}");
    let mut last = 0;
    loop {
        match events.message().await?.unwrap().event.unwrap() {
            Event::Opened(_) => panic!("it opened twice"),
            Event::Progress(progress) => {
                assert!(
                    progress.done_bytes >= last && progress.done_bytes <= progress.total_bytes,
                    "{progress:?}"
                );
                last = progress.done_bytes;
            }
            Event::Done(done) => return Ok(done),
        }
    }
}

/// What was said to the clients.
#[derive(Default)]
struct History {
    /// Acknowledged to who sent them.
    stored: Mutex<HashSet<u64>>,
    /// Somebody was about to settle them.
    tried: Mutex<HashSet<u64>>,
    /// Acknowledged to who settled them.
    settled: Mutex<HashSet<u64>>,
    /// Somebody sent them.
    sent: AtomicU64,
    over: AtomicBool,
}

impl History {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Sends into `first`, whence they go through `second`.
    async fn produce(self: Arc<Self>, mut queues: Queues, producer: u64) {
        for n in 0.. {
            if self.is_over() {
                return;
            }
            let number = n * PRODUCERS + producer;
            let request =
                v1::EnqueueRequest { queue: "first".into(), message: Some(text(&number.to_string())) };
            self.sent.fetch_max(number, Ordering::Relaxed);
            got(queues.enqueue(request)).await;
            self.stored.lock().insert(number);
        }
    }

    async fn take(&self, queues: &mut Queues, queue: &str) -> Vec<(u64, Bytes)> {
        let wait = crate::queue::millis(200);
        let request = v1::ReceiveRequest { queue: queue.into(), max_messages: 4, wait, ..Default::default() };
        let leased = got(queues.receive(request)).await.messages;
        let number = |it: &v1::LeasedMessage| {
            let payload = it.message.as_ref().unwrap().payload.clone();
            String::from_utf8(payload.to_vec()).unwrap().parse().unwrap()
        };
        leased.iter().map(|it| (number(it), it.lease_token.clone())).collect()
    }

    /// Settles in `first` and sends to `second`, in one act.
    async fn forward(self: Arc<Self>, mut queues: Queues) {
        while !self.is_over() {
            for (number, lease_token) in self.take(&mut queues, "first").await {
                let message = Some(text(&number.to_string()));
                let messages = vec![v1::ForwardMessage { queue: "second".into(), message }];
                let items = vec![v1::ForwardItem { lease_token, messages }];
                got(queues.forward(v1::ForwardRequest { queue: "first".into(), items })).await;
            }
        }
    }

    /// Settles every third of `second`; the others stay leased.
    async fn settle(self: Arc<Self>, mut queues: Queues) {
        while !self.is_over() {
            let taken = self.take(&mut queues, "second").await;
            for (number, token) in taken.into_iter().filter(|(number, _)| number % 3 == 0) {
                self.tried.lock().insert(number);
                let request = v1::AcknowledgeRequest { queue: "second".into(), lease_tokens: vec![token] };
                got(queues.acknowledge(request)).await;
                self.settled.lock().insert(number);
            }
        }
    }

    /// Waits until so many more are stored and settled.
    async fn goes_on(&self, count: usize) {
        let counts = || (self.stored.lock().len(), self.settled.lock().len());
        let (stored, settled) = counts();
        within("the load", async {
            while counts().0 < stored + count || counts().1 < settled + count / 10 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// The numbers in a queue of an export.
fn numbers(lines: &[Value], queue: &str) -> Vec<u64> {
    let of_queue = of_type(lines, "message").into_iter().filter(|line| line["queue"] == queue);
    of_queue.map(|line| String::from_utf8(payload(line)).unwrap().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_one_moment_of_all_queues_while_everyone_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let backups = directory.path().join("backups");
    let broker = broker(&directory.path().join("data"), &backups).await;
    let mut queues = Queues::new(broker.grpc().await);
    load(&mut queues, 24).await;
    for name in ["first", "second"] {
        got(queues.create_queue(v1::CreateQueueRequest { queue: Some(named(name)), if_not_exists: false }))
            .await;
    }
    let history = Arc::<History>::default();
    let mut tasks = JoinSet::new();
    for producer in 0..PRODUCERS {
        tasks.spawn(history.clone().produce(queues.clone(), producer));
    }
    tasks.spawn(history.clone().forward(Queues::new(broker.grpc().await)));
    tasks.spawn(history.clone().settle(Queues::new(broker.grpc().await)));

    let mut admin = Admin::new(broker.grpc().await);
    let mut moments = Vec::new();
    for round in 0..3 {
        history.goes_on(100).await;
        let (stored, settled) = (history.stored.lock().clone(), history.settled.lock().clone());
        let done = back_up(&mut admin, &format!("b{round}")).await.unwrap();
        let during = history.stored.lock().len() - stored.len();
        println!("backup {round}: {} bytes, {} stored before, {during} meanwhile", done.bytes, stored.len());
        let (tried, sent) = (history.tried.lock().clone(), history.sent.load(Ordering::Relaxed));
        moments.push((PathBuf::from(done.path), stored, settled, tried, sent, during));
    }
    assert!(moments.iter().any(|moment| moment.5 > 0), "nothing was stored while the backups were made");
    history.over.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    broker.kill9().await;

    for (path, stored, settled, tried, sent, _) in moments {
        let ended = store("check", &path, &[]).await;
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        let copy = directory.path().join("copy");
        let args = ["store", "import", path.to_str().unwrap(), "--data-dir", copy.to_str().unwrap()];
        let ended = stafett(args).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let exported = lines(&store("export", &copy, &[]).await.stdout);
        fs::remove_dir_all(&copy).unwrap();
        let (first, second) = (numbers(&exported, "first"), numbers(&exported, "second"));
        let there: HashSet<u64> = first.iter().chain(&second).copied().collect();
        // A step from one to the other is there whole or not at all.
        assert_eq!(there.len(), first.len() + second.len(), "a message is in both queues");
        let lost: Vec<_> = stored.difference(&there).filter(|n| !tried.contains(n)).collect();
        assert!(lost.is_empty(), "acknowledged before and not in it: {lost:?}");
        let back: Vec<_> = settled.intersection(&there).collect();
        assert!(back.is_empty(), "settled before and in it: {back:?}");
        assert!(there.iter().all(|&n| n <= sent), "it has what nobody had sent yet");
        for producer in 0..PRODUCERS {
            let last = there.iter().filter(|&n| n % PRODUCERS == producer).max().copied().unwrap_or(0);
            let hole = (producer..last).step_by(usize::try_from(PRODUCERS).unwrap());
            let holes: Vec<_> = hole.filter(|n| !there.contains(n) && !tried.contains(n)).collect();
            assert!(holes.is_empty(), "{holes:?} of a producer are missing, though {last} is there");
        }
        let load = numbers_of(&exported, "load");
        assert_eq!(load, 24 * 256);
        // It is served as it is.
        let broker = Broker::try_start(&path, &[], &[]).await.unwrap_or_else(|it| panic!("{}", it.stderr));
        assert_eq!(broker.count("messages_stored").await, (there.len() + load) as u64);
        assert_eq!(broker.terminate().await.code, Some(0));
    }
}

fn numbers_of(lines: &[Value], queue: &str) -> usize {
    of_type(lines, "message").into_iter().filter(|line| line["queue"] == queue).count()
}

/// An engine that may make backups, where a commit that is alone is its caller's.
fn open_with(backups: &Path, data: &Path) -> Embedded {
    let settings = EngineSettings {
        data_dir: data.to_owned(),
        watermark_free_bytes: 0,
        ballast_bytes: 0,
        backup_dir: Some(backups.to_owned()),
        callers_wait: Duration::MAX,
        ..EngineSettings::default()
    };
    Embedded::open(settings).unwrap()
}

async fn made(engine: &Embedded, name: &str) -> BackedUp {
    let name = stafett::types::BackupName::parse(name.to_owned()).unwrap();
    within("the backup", engine.back_up(&name).unwrap().ended()).await.unwrap()
}

#[tokio::test]
async fn what_the_journal_alone_has_is_in_a_backup() {
    let directory = tempfile::tempdir().unwrap();
    let backups = directory.path().join("backups");
    let engine = open_with(&backups, &directory.path().join("data"));
    done(&engine, vec![Op::Define(ORDERS, super::queue("orders"))]).await;
    let mut stored = 0;
    for round in 0..5 {
        // One at a time: sled is given the rows of several commits together.
        for _ in 0..11 {
            stored += 1;
            let Op::Publish(alone) = publish(message("shop/orders", stored.to_string()), &[ORDERS]) else {
                unreachable!()
            };
            engine.commit_alone(alone).await.unwrap();
        }
        let backup = made(&engine, &round.to_string()).await;
        let lines = lines(&super::care::export(&backup.path).await);
        assert!(numbers(&lines, "orders").into_iter().eq(1..=stored), "backup {round}");
    }
}

#[tokio::test]
async fn a_backup_has_all_that_is_stored() {
    let directory = super::care::various().await;
    let before = super::care::export(directory.path()).await;
    let backups = tempfile::tempdir().unwrap();
    let engine = open_with(backups.path(), directory.path());
    let secret = engine.secret();
    let done = made(&engine, "all").await;
    engine.close().unwrap();
    drop(engine);
    assert!(super::care::export(&done.path).await == before, "the backup is not what was there");
    assert_ne!(open(&done.path).secret(), secret, "tokens of the one are good for the other");
}

#[tokio::test]
async fn what_cannot_be_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let (data, backups) = (directory.path().join("data"), directory.path().join("backups"));
    let broker = broker(&data, &backups).await;
    let mut queues = Queues::new(broker.grpc().await);
    load(&mut queues, 16).await;
    let mut admin = Admin::new(broker.grpc().await);
    for name in ["../x", "a/b", ".hidden", "..", "a b", &"x".repeat(129)] {
        let refused = back_up(&mut admin, name).await.unwrap_err();
        assert_eq!((refused.code(), field(&refused).as_str()), (Code::InvalidArgument, "name"), "{name}");
    }
    assert!(!backups.exists(), "something was made");

    // Whoever goes away ends it, and nothing is left.
    let request = |name: &str| v1::BackupRequest { name: name.into() };
    let mut tries = 0..10;
    loop {
        let mut events = got(admin.backup(request("left"))).await;
        events.message().await.unwrap();
        let Err(refused) = admin.backup(request("second")).await else {
            // The first was done already.
            assert!(tries.next().is_some(), "two at a time, again and again");
            drop(events);
            while admin.backup(request("left")).await.is_err_and(|it| it.code() != Code::AlreadyExists) {}
            for name in ["left", "second"] {
                drop(fs::remove_dir_all(backups.join(name)));
            }
            continue;
        };
        assert_eq!(reason(&refused.get_error_details()), "BACKUP_RUNNING", "{refused}");
        break;
    }
    let done = within("the end of the other", async {
        loop {
            match back_up(&mut admin, "left").await {
                Err(status) if reason(&status.get_error_details()) == "BACKUP_RUNNING" => {}
                other => return other.unwrap(),
            }
        }
    })
    .await;
    assert_eq!(Path::new(&done.path), backups.join("left"));
    let refused = back_up(&mut admin, "left").await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    let names = |path: &Path| {
        let names = fs::read_dir(path).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&backups), ["left"]);

    // The command, which names it after the time, and one that a stop ends.
    let url = broker.url();
    let ended = stafett(["backup", "--server", &url]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let path = PathBuf::from(ended.stdout.trim_end());
    assert_eq!(store("check", &path, &[]).await.code, Some(0));
    let mut events = got(admin.backup(request("late"))).await;
    events.message().await.unwrap();
    assert_eq!(broker.terminate().await.code, Some(0));
    assert!(!backups.join(".late.partial").exists(), "a part of it is left");
    if backups.join("late").exists() {
        assert_eq!(store("check", &backups.join("late"), &[]).await.code, Some(0));
    }

    let broker = Broker::start().await;
    let ended = stafett(["backup", "x", "--server", &broker.url()]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("no directory for backups is configured (store.backup_dir)"),
        "{}",
        ended.stderr
    );
}
