//! What is promised holds over a stop and over a crash.

use stafett::grpc::proto::{v1, v1beta1};
use tokio::task::JoinSet;

use super::{Logs, from_first, named};
use crate::harness::{Broker, stafett, within};
use crate::queue::{got, seconds};

/// What a stream of few keeps.
const FEW: usize = 20;

#[tokio::test]
async fn streams_and_cursors_outlive_the_broker() {
    let (broker, mut logs) = Logs::start().await;
    logs.count("t/1", 0..20).await;
    logs.commit("reader", 12, false).await;
    let before = logs.all().await;
    let data = broker.data();
    broker.terminate().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut logs = Logs::of(&broker).await;
    assert_eq!(logs.all().await, before);
    assert_eq!(logs.cursors().await, [("reader".to_owned(), 12, 8, 0)]);
    logs.count("t/1", 20..21).await;
    assert_eq!(logs.all().await.last(), Some(&(21, "20".to_owned())));
}

/// Everything in a stream.
async fn all_of(logs: &mut Logs, stream: &str) -> Vec<(u64, String)> {
    let request = v1beta1::ReadRequest { stream: stream.to_owned(), follow: false, ..from_first() };
    logs.read(request).await.rest().await
}

/// Writers publish, append and commit while the broker is killed, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_read_back_after_kills() {
    let broker = Broker::start().await;
    let mut logs = Logs::of(&broker).await;
    logs.create(named("s", &["t/#"])).await;
    logs.create(v1beta1::Stream { max_messages: FEW as u64, ..named("few", &["t/#"]) }).await;
    let mut data = broker.data();
    let mut running = broker;
    let mut acknowledged: Vec<String> = Vec::new();
    let mut seen: Vec<(u64, String)> = Vec::new();
    let mut committed = 0;
    for round in 0..3 {
        let mut writers = JoinSet::new();
        for writer in 0..3 {
            let mut logs = Logs::of(&running).await;
            writers.spawn(async move {
                let mut said = (Vec::new(), 0);
                for n in 0.. {
                    let payload = format!("{round}.{writer}.{n}");
                    let message = crate::queue::message(&payload);
                    // For both streams.
                    let message = v1::Message { topic: format!("t/{writer}"), ..message };
                    let request = v1::PublishRequest { message: Some(message) };
                    if logs.topics.publish(request).await.is_err() {
                        break;
                    }
                    said.0.push(payload.clone());
                    let appended = format!("a{payload}");
                    let request = v1beta1::AppendRequest {
                        stream: "s".to_owned(),
                        messages: vec![crate::queue::message(&appended)],
                        expected_next_sequence: None,
                    };
                    let Ok(answer) = logs.logs.append(request).await else { break };
                    said.0.push(appended);
                    let request = v1beta1::CommitCursorRequest {
                        stream: "s".to_owned(),
                        cursor: "reader".to_owned(),
                        sequence: answer.into_inner().first_sequence,
                        rewind: false,
                    };
                    let Ok(answer) = logs.logs.commit_cursor(request).await else { break };
                    said.1 = answer.into_inner().committed_sequence;
                }
                said
            });
        }
        let mut logs = Logs::of(&running).await;
        while logs.state().await.next_sequence < 150 * (round + 1) {}
        running.kill9().await;
        for (said, cursor) in writers.join_all().await {
            acknowledged.extend(said);
            committed = committed.max(cursor);
        }
        running = Broker::start_in(data, &[]).await;
        data = running.data();
        let mut logs = Logs::of(&running).await;
        let all = logs.all().await;
        assert!(all.starts_with(&seen), "what was read once is read again, in its place");
        assert!(all.iter().map(|(sequence, _)| *sequence).eq(1..=all.len() as u64));
        let payloads: std::collections::HashSet<_> = all.iter().map(|(_, payload)| payload).collect();
        assert_eq!(payloads.len(), all.len(), "each once");
        assert!(acknowledged.iter().all(|payload| payloads.contains(payload)), "something is lost");
        let (_, cursor, ..) = logs.cursors().await.remove(0);
        assert!(
            (committed..=all.len() as u64).contains(&cursor),
            "{committed} was committed, {cursor} is there"
        );
        // What was published is in both, or in neither: the other one has the last of it.
        let mut published: Vec<_> = all.iter().map(|(_, payload)| payload.clone()).collect();
        published.retain(|payload| !payload.starts_with('a'));
        let few = all_of(&mut logs, "few").await;
        let first = published.len() - FEW;
        assert!(few.iter().map(|(sequence, _)| *sequence).eq(first as u64 + 1..=published.len() as u64));
        assert!(few.iter().map(|(_, payload)| payload).eq(&published[first..]));
        seen = all;
    }
    assert!(acknowledged.len() > 300);
}

/// Nothing is left in the store that has the sequences of what has gone.
#[tokio::test]
async fn sequences_go_on_after_a_kill_though_all_has_gone() {
    let (mut broker, mut logs) = Logs::start().await;
    logs.count("t/1", 0..20).await;
    let short = v1beta1::UpdateStreamRequest {
        stream: Some(v1beta1::Stream { max_age: seconds(1), ..named("s", &[]) }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["max_age".into()] }),
    };
    got(logs.logs.update_stream(short)).await;
    within("all to go", async { while logs.state().await.messages > 0 {} }).await;
    let data = broker.data();
    // Packs go while other things are written.
    loop {
        for _ in 0..50 {
            assert_eq!(logs.commit("reader", 20, false).await, 20);
        }
        broker.kill9().await;
        let path = data.path().to_str().unwrap();
        let ended = stafett(["store", "check", path, "--json"]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        broker = Broker::start_in(data.clone(), &[]).await;
        logs = Logs::of(&broker).await;
        let state = logs.state().await;
        assert_eq!((state.first_sequence, state.next_sequence, state.messages), (21, 21, 0));
        if report["packs"] == 0 {
            break;
        }
    }
    assert_eq!(logs.append(&["20"], Some(21)).await.unwrap().first_sequence, 21);
}
