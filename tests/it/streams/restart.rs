//! What is promised holds over a stop and over a crash.

use stafett::grpc::proto::v1beta1;
use tokio::task::JoinSet;

use super::{Logs, named};
use crate::harness::Broker;

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

/// Writers publish and commit while the broker is killed, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_read_back_after_kills() {
    let broker = Broker::start().await;
    let mut logs = Logs::of(&broker).await;
    logs.create(named("s", &["t/#"])).await;
    logs.create(v1beta1::Stream { max_messages: 20, ..named("few", &["t/#"]) }).await;
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
                    let request = v1beta1::AppendRequest {
                        stream: "s".to_owned(),
                        messages: vec![message],
                        expected_next_sequence: None,
                    };
                    let Ok(answer) = logs.logs.append(request).await else { break };
                    said.0.push(payload);
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
        seen = all;
    }
    assert!(acknowledged.len() > 300);
}
