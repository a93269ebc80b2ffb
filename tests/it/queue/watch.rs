//! WatchQueueStats, and how old the oldest message is.

use std::time::Duration;

use rustix::process::Signal;
use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::watch_queue_stats_response::Event;
use stafett::types::UnixMillis;
use stafett::types::clock::unix_now;
use tonic::{Code, Status, Streaming};

use super::{Queues, field, got, message, millis, named, refused, seconds};
use crate::harness::{Broker, Process, stafett, within};

fn watching(interval: Option<prost_types::Duration>) -> v1::WatchQueueStatsRequest {
    v1::WatchQueueStatsRequest { name: "q".to_owned(), interval }
}

type Watch = Streaming<v1::WatchQueueStatsResponse>;

async fn hear(watch: &mut Watch) -> Result<Option<Event>, Status> {
    Ok(within("counts", watch.message()).await?.map(|response| response.event.unwrap()))
}

async fn counted(watch: &mut Watch) -> v1::QueueStats {
    match hear(watch).await.unwrap().unwrap() {
        Event::Stats(stats) => stats,
        Event::Closing(closing) => panic!("it ends: {closing:?}"),
    }
}

#[tokio::test]
async fn counts_come_at_once_and_as_they_change() {
    let (mut broker, mut queues) = Queues::start().await;
    let mut watch = got(queues.0.watch_queue_stats(watching(seconds(3600)))).await;
    assert_eq!(counted(&mut watch).await, queues.stats("q").await);

    let mut watch = got(queues.0.watch_queue_stats(watching(millis(100)))).await;
    let first = counted(&mut watch).await;
    assert_eq!((first.ready, first.oldest_age), (0, None));
    queues.fill("q", &["1", "2", "3"]).await;
    let leased = queues.one("q").await;
    while counted(&mut watch).await.leased == 0 {}
    assert_eq!(queues.acknowledge("q", vec![leased.lease_token]).await, []);
    let last = loop {
        let counts = counted(&mut watch).await;
        if counts.acked_total == 1 {
            break counts;
        }
    };
    assert_eq!((last.ready, last.leased, last.enqueued_total), (2, 0, 3));

    // It ends with the queue, and with the broker.
    let delete = v1::DeleteQueueRequest { name: "q".to_owned(), only_if_empty: false };
    got(queues.0.delete_queue(delete)).await;
    let ended = loop {
        match hear(&mut watch).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::NotFound);
    queues.create(named("q")).await;
    let mut watch = got(queues.0.watch_queue_stats(watching(seconds(3600)))).await;
    counted(&mut watch).await;
    broker.process().signal(Signal::TERM);
    let Some(Event::Closing(closing)) = hear(&mut watch).await.unwrap() else { panic!("not closing") };
    assert_eq!(closing.status.unwrap().code, Code::Unavailable as i32);
    assert_eq!(hear(&mut watch).await.unwrap(), None);
}

#[tokio::test]
async fn an_interval_out_of_bounds_and_a_queue_that_is_not_there_are_refused() {
    let (_broker, mut queues) = Queues::start().await;
    for wrong in [millis(99), seconds(3601), seconds(-1)] {
        assert_eq!(field(&refused(queues.0.watch_queue_stats(watching(wrong))).await), "interval");
    }
    let other = v1::WatchQueueStatsRequest { name: "nobody".to_owned(), interval: None };
    assert_eq!(refused(queues.0.watch_queue_stats(other)).await.code(), Code::NotFound);
}

fn age(stats: &v1::QueueStats) -> Duration {
    Duration::try_from(stats.oldest_age.unwrap()).unwrap()
}

#[tokio::test]
async fn the_oldest_age_is_that_of_a_message_that_is_only_on_disk() {
    let (broker, mut queues) = Queues::start().await;
    let came = |leased: &v1::LeasedMessage| leased.origin.as_ref().unwrap().publish_time.unwrap();
    queues.fill("q", &["oldest", "newer"]).await;
    let peek = v1::PeekRequest { queue: "q".to_owned(), ..Default::default() };
    let oldest = came(&got(queues.0.peek(peek)).await.messages[0]);
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    let (before, came) =
        (unix_now(), UnixMillis((oldest.seconds * 1000) as u64 + oldest.nanos as u64 / 1_000_000));
    let stats = queues.stats("q").await;
    let least = before.since(came);
    assert!(age(&stats) >= least, "{stats:?}, at least {least:?}");

    // The first place counts, whatever its state; a delayed message has its place too.
    let leased = queues.receive("q", 2).await;
    assert!(age(&queues.stats("q").await) >= age(&stats));
    let later = v1::Message {
        schedule: Some(v1::message::Schedule::Delay(seconds(3600).unwrap())),
        ..message("later")
    };
    queues.enqueue("q", later).await;
    assert_eq!(queues.acknowledge("q", super::tokens(&leased)).await, []);
    let young = queues.stats("q").await;
    assert!(young.delayed == 1 && age(&young) < unix_now().since(came), "{young:?}");
}

#[tokio::test]
async fn the_counts_are_watched_from_the_command_line() {
    let (broker, mut queues) = Queues::start().await;
    let url = broker.url();
    let watch = ["queue", "watch", "q", "--server", &url, "--every", "100ms"];
    let ended = stafett(watch.iter().copied().chain(["--count", "2", "--json"])).await;
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(0), 2), "{}", ended.stderr);
    let mut process = Process::start(watch);
    process.prints("ready    delayed").await;
    queues.fill("q", &["1", "2", "3"]).await;
    process.prints("         3          0").await;
    process.signal(Signal::INT);
    assert_eq!(process.end().await.code, Some(0));
    let ended = stafett(["queue", "watch", "nobody", "--server", &url]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("nobody"), "{}", ended.stderr);
}
