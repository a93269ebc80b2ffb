//! The real program on a disk whose power fails, killed in the middle of its writes, and on a disk that fails, while clients
//! work at both doors.
//!
//! `tests/power/shim.c` lies below the broker, and kills it at a call. Between two cuts a broker without it opens what the disk has left, and the
//! clients' [`history`] is compared with what it finds: nothing acknowledged is lost, nothing settled comes back, order holds,
//! QoS 2 is exactly once, also in a session that goes to the other door in between, wills come unless they
//! were withdrawn, nothing delayed is early, no message is leased twice at a time, publishes with two targets reach
//! both, messages of a key come one at a time and in order, atomic batches are there whole or not at all, what is sent again
//! under its name is stored once, retained values and definitions are the newest or what was under way, an asynchronous call is
//! there or has one reply, and is handed out once unless it is idempotent.
//!
//! `STAFETT_CUTS` and `STAFETT_SEED` make it longer or repeat a run; `tests/power/run` does so.

mod calls;
mod history;
mod pipeline;
mod queues;
mod roaming;
mod sessions;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::below::{Chance, Disk, Fault, setting};
use crate::harness::{Broker, Ended};
use history::History;
use queues::{Caller, Gone, ONCE, WORK};
use roaming::Roamer;
use sessions::{Clients, Reader};

/// Much longer than any run takes.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// When the disk is told what to do.
#[derive(Debug, Clone, Copy, PartialEq)]
enum When {
    /// Before the store is opened.
    Opening,
    /// When the doors are open.
    Working,
}

/// A broker on such a disk.
struct Machine {
    disk: Disk,
    history: Arc<History>,
    durability: &'static str,
    seed: u64,
}

impl Machine {
    fn new(durability: &'static str, seed: u64) -> Self {
        Self { disk: Disk::new(seed), history: Arc::default(), durability, seed: seed * 1_000_000 }
    }

    async fn start(&self, data: &Path, below: Vec<(&'static str, String)>) -> Result<Broker, Ended> {
        let mut environment = below;
        environment.push(("STAFETT_STORE_BALLAST_BYTES", "8MiB".to_owned()));
        environment.push(("STAFETT_SHUTDOWN_DRAIN_TIMEOUT", "2s".to_owned()));
        Broker::try_start(data, &["--durability", self.durability], &environment).await
    }

    /// Runs the broker and its clients until it ends by what the disk does, and leaves what the disk has kept.
    async fn run(&mut self, when: When, order: &str) -> Ended {
        self.seed += 1;
        if when == When::Opening {
            self.disk.order(order);
        }
        let environment = self.disk.environment(self.seed);
        let ended = match self.start(&self.disk.data(), environment).await {
            Ok(broker) => {
                match when {
                    When::Working => self.disk.order(order),
                    // What failed while the store was opened was not needed.
                    When::Opening if order.starts_with("fail") => self.disk.order("cut any 300"),
                    When::Opening => {}
                }
                if timeout(ENDS_WITHIN, self.work(&broker)).await.is_err() {
                    panic!("seed {}: {order}: the broker goes on", self.seed);
                }
                broker.end().await
            }
            Err(ended) => ended,
        };
        self.disk.restart();
        ended
    }

    /// Works until the broker is gone.
    async fn work(&self, broker: &Broker) -> Result<(), Gone> {
        {
            let mut state = self.history.lock();
            state.held.clear();
            state.roam.starts();
        }
        let caller = async |of: u64| {
            let channel = broker.try_grpc().await.ok_or(Gone)?;
            Ok(Caller::new(channel, &self.history, self.seed * 100 + of))
        };
        let setting_up = caller(0).await?;
        setting_up.define().await?;
        setting_up.define_pipeline().await?;
        let clients = Clients::new(broker.address("mqtt"), &self.history);
        let live = clients.attach(Reader::Live).await?;
        let exact = clients.attach(Reader::Exact).await?;
        let roamer = async |of| Ok(Roamer::new(caller(of).await?, broker.address("mqtt")));
        roamer(23).await?.define().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(clients.clone().read(Reader::Live, live, None));
        tasks.spawn(clients.clone().read(Reader::Exact, exact, None));
        tasks.spawn(clients.clone().publish(Chance(self.seed)));
        tasks.spawn(clients.publish_exactly(false));
        tasks.spawn(caller(1).await?.enqueue());
        tasks.spawn(caller(2).await?.produce());
        tasks.spawn(caller(3).await?.receive(WORK));
        tasks.spawn(caller(4).await?.receive(WORK));
        tasks.spawn(caller(5).await?.publish());
        tasks.spawn(caller(6).await?.consume());
        tasks.spawn(caller(7).await?.delay());
        tasks.spawn(caller(8).await?.receive_delayed());
        tasks.spawn(caller(9).await?.retain());
        tasks.spawn(caller(10).await?.come_and_go());
        tasks.spawn(caller(11).await?.pause());
        tasks.spawn(caller(12).await?.step());
        tasks.spawn(caller(13).await?.redrive());
        tasks.spawn(caller(14).await?.finish_pipeline());
        tasks.spawn(caller(15).await?.call());
        tasks.spawn(caller(16).await?.serve(true));
        tasks.spawn(caller(17).await?.enqueue_once());
        tasks.spawn(caller(18).await?.receive(ONCE));
        tasks.spawn(caller(19).await?.enqueue_whole());
        tasks.spawn(caller(20).await?.enqueue_lines());
        tasks.spawn(caller(21).await?.receive_lines());
        tasks.spawn(caller(22).await?.receive_lines());
        tasks.spawn(roamer(24).await?.roam());
        tasks.spawn(roamer(25).await?.publish());
        tasks.spawn(roamer(26).await?.publish_exactly());
        while let Some(ended) = tasks.join_next().await {
            let Err(Gone) = ended.unwrap() else { continue };
        }
        Err(Gone)
    }

    /// Compares what a broker without such a disk finds with the history. With `sessions` also what these still get, which
    /// goes on where the store stood; without, it finds it in a copy.
    async fn check(&self, sessions: bool) -> Result<(), Fault> {
        let copy = (!sessions).then(|| self.disk.copy());
        let data = copy.as_ref().map_or_else(|| self.disk.data(), |copy| copy.path().to_owned());
        let opened = self.start(&data, Vec::new()).await;
        let broker =
            opened.map_err(|ended| Fault::Other(format!("the store does not open: {}", ended.stderr)))?;
        let found = Caller::new(broker.grpc().await, &self.history, 0).find().await;
        let found = found.map_err(|status| Fault::Other(status.to_string()))?;
        self.history.check(&found).map_err(Fault::Promise)?;
        if sessions {
            let mut task = JoinSet::new();
            let mqtt = broker.address("mqtt");
            let roamer = Roamer::new(Caller::new(broker.grpc().await, &self.history, self.seed), mqtt);
            task.spawn(finish(Clients::new(mqtt, &self.history), roamer));
            // A panic says what did not come.
            let Some(Ok(Ok(()))) = task.join_next().await else {
                self.history.check_sessions().map_err(Fault::Promise)?;
                return Err(Fault::Other("a session did not end".to_owned()));
            };
            self.history.check_sessions().map_err(Fault::Promise)?;
            let caller = async |of| Caller::new(broker.grpc().await, &self.history, of);
            if let Err(Gone) = caller(0).await.finish_calls(caller(1).await).await {
                return Err(Fault::Other("stored calls are not answered".to_owned()));
            }
            let found = caller(2).await.find().await.map_err(|status| Fault::Other(status.to_string()))?;
            self.history.check(&found).map_err(Fault::Promise)?;
        }
        let ended = broker.terminate().await;
        if ended.code == Some(0) { Ok(()) } else { Err(Fault::Other(format!("it stopped with {ended:?}"))) }
    }
}

/// What is under way is finished, and the sessions get all that is theirs.
async fn finish(clients: Clients, roamer: Roamer) -> Result<(), Gone> {
    clients.clone().publish_exactly(true).await?;
    for reader in [Reader::Live, Reader::Exact] {
        let peer = clients.attach(reader).await?;
        let last = clients.mark(reader).await?;
        clients.clone().read(reader, peer, Some(last)).await?;
    }
    roamer.finish().await
}

#[tokio::test]
async fn nothing_promised_at_either_door_is_broken_by_a_power_cut_or_kill_9() {
    let cuts = setting("STAFETT_CUTS", 4);
    let first = setting("STAFETT_SEED", 1);
    let mut chance = Chance(first);
    let mut machine = Machine::new("fsync", first);
    for cut in 1..=cuts {
        let (when, most) = match cut % 4 {
            // What the cuts before have left is read back.
            0 | 3 => (When::Opening, 60),
            _ => (When::Working, 900),
        };
        let end = if cut % 3 == 2 { "kill" } else { "cut" };
        // Of all calls, about half are syncs; before one there is always something to lose.
        let (kind, most) = if cut % 2 == 1 { ("sync", most / 2) } else { ("any", most) };
        let order = format!("{end} {kind} {}", 1 + chance.below(most));
        let ended = machine.run(when, &order).await;
        assert_eq!(ended.code, None, "it ended by itself: {}", ended.stderr);
        if let Err(what) = machine.check(cut % 4 == 1 || cut == cuts).await {
            panic!("{cut}, {when:?}, {order}: {what}");
        }
        let ((stored, settled), seen) = (machine.history.counts(), &machine.disk.seen);
        let (writes, names) = (seen.of("lost_writes"), seen.of("lost_names"));
        println!(
            "{cut} of {cuts}, {when:?}, {order}; in all {stored} stored, {settled} settled, {writes} writes and {names} \
             names cut off, none lost"
        );
    }
    let seen = &machine.disk.seen;
    let kinds: &[&str] = if Disk::is_shim() { &["write", "sync", "range"] } else { &["write", "sync"] };
    let saw_all = kinds.iter().all(|kind| seen.of(kind) > 0);
    assert!(saw_all && seen.of("unsynced") > 0, "the disk saw too little: {seen:?}");
    assert_eq!(machine.history.idle(), Vec::<String>::new(), "nothing was promised of these");
    let (stored, settled) = machine.history.counts();
    assert!(stored > 100 && settled > 100, "too little was done: {stored} stored, {settled} settled");
    println!("{cuts} cuts of seed {first}: {stored} stored, {settled} settled, none lost; {seen:?}");
}

#[tokio::test]
async fn a_broker_that_acknowledges_before_its_sync_is_caught() {
    for durability in ["memory", "interval"] {
        let mut machine = Machine::new(durability, 7);
        let mut chance = Chance(7);
        let mut caught = None;
        for _ in 0..10 {
            machine.run(When::Working, &format!("cut any {}", 5 + chance.below(30))).await;
            match machine.check(false).await {
                Ok(()) => continue,
                Err(Fault::Promise(what)) => caught = Some(what),
                Err(Fault::Other(what)) => panic!("{durability}: {what}"),
            }
            break;
        }
        println!(
            "{durability}: {}",
            caught.unwrap_or_else(|| panic!("what policy {durability} loses was not seen"))
        );
    }
}

/// For ever, or once, so that what comes later would succeed.
const FOR_EVER: u64 = 0;

/// When a call fails, of which kind, the how manyth, and how often.
fn failure(chance: &mut Chance) -> (When, &'static str, u64, u64) {
    let when = if chance.below(3) == 0 { When::Opening } else { When::Working };
    let (kind, most) = match when {
        When::Working => {
            [("any", 200), ("write", 200), ("sync", 200), ("range", 8)][chance.below(4) as usize]
        }
        When::Opening => {
            let names = ["create", "rename", "unlink", "mkdir"].map(|kind| (kind, 3));
            let kinds = [("any", 40), ("write", 12), ("sync", 12), ("range", 3)];
            kinds.into_iter().chain(names).nth(chance.below(8) as usize).unwrap()
        }
    };
    (when, kind, 1 + chance.below(most), chance.below(2))
}

#[tokio::test]
async fn a_disk_that_fails_ends_the_broker_and_nothing_that_it_promised() {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    let rounds = setting("STAFETT_CUTS", 5);
    let first = setting("STAFETT_SEED", 1);
    let mut chance = Chance(first);
    let mut machine = Machine::new("fsync", first);
    let mut working = 0;
    for round in 0..rounds {
        let errno = if round % 2 == 0 { EIO } else { ENOSPC };
        let (when, kind, at, times) = match round {
            // These once ended it in a panic, and without the reason in words.
            0 => (When::Working, "sync", 20, FOR_EVER),
            1 => (When::Working, "range", 1, 1),
            _ => failure(&mut chance),
        };
        working += u64::from(when == When::Working);
        let order = format!("fail {kind} {at} {errno} {times}");
        let ended = machine.run(when, &order).await;
        let about = format!("round {round}, {when:?}, {order}");
        let says = if errno == EIO { "os error 5" } else { "os error 28" };
        let in_words = ended.stderr.contains(says) && !ended.stderr.contains("panicked");
        let expected = match (when, ended.code) {
            (When::Working, code) => code == Some(1) && in_words,
            (When::Opening, None) => true,
            (When::Opening, Some(code)) => code != 0 && in_words,
        };
        if !expected {
            panic!("{about}: ended with {:?}:\n{}", ended.code, ended.stderr);
        }
        if let Err(what) = machine.check(round % 2 == 1 || round + 1 == rounds).await {
            panic!("{about}: {what}");
        }
        println!("{about}: {:?}, {}", ended.code, ended.stderr.lines().last().unwrap_or_default());
    }
    let seen = &machine.disk.seen;
    assert!(seen.of("failed") >= working && working > 0, "the disk did not fail: {seen:?}");
    let (stored, settled) = machine.history.counts();
    println!("{rounds} failures of seed {first}: {stored} stored, {settled} settled, none lost; {seen:?}");
}
