//! Deleting what a filter means, and cancelling what is scheduled.

use stafett::grpc::proto::v1;
use tonic::Code;

use super::browse::{having, later, with};
use super::{Queues, field, got, message, payloads, refused};
use crate::harness::{Broker, stafett};

fn purging(view: v1::QueueView, filter: Option<v1::MessageFilter>) -> v1::PurgeRequest {
    v1::PurgeRequest { queue: "q".to_owned(), view: view.into(), filter }
}

fn deleting(view: v1::QueueView, sequences: &[u64]) -> v1::DeleteMessagesRequest {
    let sequences = sequences.to_vec();
    v1::DeleteMessagesRequest { queue: "q".to_owned(), view: view.into(), sequences, ..Default::default() }
}

async fn left(queues: &mut Queues) -> Vec<String> {
    let view = v1::QueueView::All.into();
    let browse = v1::BrowseRequest { queue: "q".to_owned(), view, ..Default::default() };
    payloads(&queues.browse(browse).await)
}

#[tokio::test]
async fn a_purge_takes_what_is_meant_and_nothing_that_is_leased() {
    let (broker, mut queues) = Queues::start().await;
    for n in 0..30 {
        let tenant = if n % 3 == 0 { "7" } else { "8" };
        queues.enqueue("q", with(&n.to_string(), &[("tenant", tenant)])).await;
    }
    for payload in ["later 7", "later 8"] {
        queues.enqueue("q", later(with(payload, &[("tenant", &payload[6..])]))).await;
    }
    let leased = queues.one("q").await;
    assert_eq!(payloads(std::slice::from_ref(&leased)), ["0"]);
    let purged = got(queues.0.purge(purging(v1::QueueView::Ready, having(&[("tenant", "7")])))).await.purged;
    assert_eq!(purged, 9);
    let purged = got(queues.0.purge(purging(v1::QueueView::All, having(&[("tenant", "7")])))).await.purged;
    assert_eq!(purged, 1, "the delayed one; what is leased stays");
    assert_eq!(queues.acknowledge("q", vec![leased.lease_token]).await, []);
    let kept: Vec<_> = (0..30).filter(|n| n % 3 != 0).map(|n| n.to_string()).collect();
    let kept = [kept, vec!["later 8".to_owned()]].concat();

    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    assert_eq!(left(&mut queues).await, kept, "and it is on disk");
    // What is left comes in its order past the gaps.
    assert_eq!(payloads(&queues.receive("q", 3).await), kept[..3]);
    assert_eq!(got(queues.0.purge(purging(v1::QueueView::All, None))).await.purged, 18);
    let wrong = v1::MessageFilter { topic_filter: "#/a".to_owned(), ..Default::default() };
    let status = refused(queues.0.purge(purging(v1::QueueView::All, Some(wrong)))).await;
    assert_eq!(field(&status), "filter.topic_filter");
}

#[tokio::test]
async fn what_is_scheduled_is_seen_and_cancelled() {
    let (broker, mut queues) = Queues::start().await;
    let mut sequences = Vec::new();
    let mut ids = Vec::new();
    for payload in ["a", "b", "c", "d"] {
        let stored = queues.enqueue("q", later(message(payload))).await;
        sequences.push(stored.sequence);
        ids.push(stored.message_id);
    }
    let ready = queues.enqueue("q", message("ready")).await.sequence;
    let delayed = v1::QueueView::Delayed;
    let deleted = got(queues.0.delete_messages(deleting(delayed, &[sequences[1], ready, 1 << 40]))).await;
    assert_eq!(deleted.deleted_sequences, [sequences[1]], "what is ready is not scheduled any more");
    let by_id = |view, at: &[usize]| v1::DeleteMessagesRequest {
        message_ids: at.iter().map(|&at| ids[at].clone()).collect(),
        ..deleting(view, &[])
    };
    let deleted = got(queues.0.delete_messages(by_id(delayed, &[2, 1]))).await.deleted_sequences;
    assert_eq!(deleted, [sequences[2]]);
    let both = v1::DeleteMessagesRequest { sequences: vec![ready], ..by_id(v1::QueueView::All, &[3]) };
    let deleted = got(queues.0.delete_messages(both)).await.deleted_sequences;
    assert_eq!(deleted, [sequences[3], ready]);

    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    assert_eq!(left(&mut queues).await, ["a"]);
    let stats = queues.stats("q").await;
    assert_eq!((stats.ready, stats.delayed), (0, 1));
}

#[tokio::test]
async fn what_cannot_be_deleted_is_named() {
    let (_broker, mut queues) = Queues::start().await;
    let delayed = v1::QueueView::Delayed;
    for (wrong, named) in [
        (deleting(delayed, &[]), "sequences"),
        (deleting(v1::QueueView::Unspecified, &[1]), "view"),
        (deleting(v1::QueueView::Leased, &[1]), "view"),
        (deleting(delayed, &vec![1; 10_001]), "sequences"),
        (
            v1::DeleteMessagesRequest { message_ids: vec!["x".to_owned()], ..deleting(delayed, &[]) },
            "message_ids[0]",
        ),
        (
            v1::DeleteMessagesRequest { message_ids: vec![String::new(); 101], ..deleting(delayed, &[]) },
            "message_ids",
        ),
    ] {
        let status = refused(queues.0.delete_messages(wrong)).await;
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, named));
    }
}

#[tokio::test]
async fn messages_are_cancelled_and_purged_from_the_command_line() {
    let (broker, mut queues) = Queues::start().await;
    let stored = queues.enqueue("q", later(with("a", &[("tenant", "7")]))).await;
    queues.enqueue("q", with("b", &[("tenant", "7")])).await;
    queues.enqueue("q", with("c", &[("tenant", "8")])).await;
    let url = broker.url();
    let run = async |args: &[&str]| {
        let ended = stafett(["queue", "--server", &url].into_iter().chain(args.iter().copied())).await;
        (ended.code.unwrap(), ended.stdout, ended.stderr)
    };
    let (code, out, why) = run(&["cancel", "q", &stored.sequence.to_string(), "999"]).await;
    assert_eq!((code, out.as_str()), (1, "deleted 1\n"));
    assert!(why.contains("1 of 2 were not there"), "{why}");
    let again = queues.enqueue("q", later(message("again"))).await;
    assert_eq!(run(&["cancel", "q", &again.message_id]).await.1, "deleted 1\n");
    let (code, out, _) = run(&["purge", "q", "--view", "all", "--where", "tenant=7"]).await;
    assert_eq!((code, out.as_str()), (0, "purged 1\n"));
    assert_eq!(left(&mut queues).await, ["c"]);
}
