//! `stafett pub` and `stafett sub`, as a person or a script uses them.

use serde_json::Value;

use crate::harness::{Broker, Ended, Process, stafett, stafett_reading};

async fn run(broker: &Broker, args: &[&str]) -> Ended {
    let url = broker.url();
    stafett(args.iter().copied().chain(["--server", &url])).await
}

/// Starts `stafett sub` and waits until it has subscribed.
async fn sub(broker: &Broker, args: &[&str]) -> Process {
    let url = broker.url();
    let mut process =
        Process::start(["sub"].into_iter().chain(args.iter().copied()).chain(["--server", &url]));
    process.says("subscribed as").await;
    process
}

#[tokio::test]
async fn what_is_published_is_printed() {
    let broker = Broker::start().await;
    let text = sub(&broker, &["news/+", "-t", "-n", "3"]).await;
    let json = sub(&broker, &["news/#", "--json", "--count", "3", "--qos", "0"]).await;
    let published = run(&broker, &["pub", "news/a", "1", "2"]).await;
    assert_eq!(published.code, Some(0), "{}", published.stderr);
    assert!(
        published.stdout.lines().all(|line| line.ends_with(" 2 subscribers 0 queues")),
        "{}",
        published.stdout
    );
    let third =
        ["pub", "news/b", "3", "--property", "k=v", "--content-type", "text/plain", "--qos", "0", "--json"];
    let published = run(&broker, &third).await;
    let answer: Value = serde_json::from_str(&published.stdout).unwrap();
    assert_eq!(answer["matched_subscribers"], 2);

    let text = text.end().await;
    assert_eq!(
        (text.code, text.stdout.as_str()),
        (Some(0), "news/a 1\nnews/a 2\nnews/b 3\n"),
        "{}",
        text.stderr
    );
    let json = json.end().await;
    let lines: Vec<Value> = json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((json.code, lines.len()), (Some(0), 3), "{}", json.stderr);
    assert_eq!((&lines[2]["payload"], &lines[2]["qos"]), (&"3".into(), &0.into()));
    assert_eq!(lines[2]["properties"], serde_json::json!([["k", "v"]]));
    assert_eq!(lines[0]["retained"], false);
}

#[tokio::test]
async fn payloads_come_from_stdin_lines_and_files() {
    let broker = Broker::start().await;
    let url = broker.url();
    let printed = sub(&broker, &["t", "-n", "7"]).await;
    let ended = stafett_reading("a\nb", ["pub", "t", "--lines", "--server", &url]).await;
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(0), 2), "{}", ended.stderr);
    let ended = stafett_reading("c", ["pub", "t", "--stdin", "--server", &url]).await;
    assert_eq!(ended.code, Some(0));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("payload");
    std::fs::write(&path, "d").unwrap();
    let ended = run(&broker, &["pub", "t", "--file", path.to_str().unwrap()]).await;
    assert_eq!(ended.code, Some(0));
    let ended = run(&broker, &["pub", "t", "e", "--count", "3"]).await;
    assert_eq!(ended.stdout.lines().count(), 3);
    assert_eq!(printed.end().await.stdout, "a\nb\nc\nd\ne\ne\ne\n");

    for (args, why) in [
        (&["pub", "t"][..], "nothing to send"),
        (&["pub", "t", "--file", "/nonexistent/x"], "--file"),
        (&["pub", "t", "x", "--property", "novalue"], "KEY=VALUE"),
        (&["pub", "t", "x", "--qos", "2"], "--qos"),
        (&["sub"], "FILTER"),
        (&["sub", "t", "--session-expiry", "1h"], "--client-id"),
    ] {
        let ended = run(&broker, args).await;
        assert!(ended.code == Some(2) && ended.stderr.contains(why), "{args:?}: {}", ended.stderr);
    }
    let ended = run(&broker, &["pub", "a/+", "x"]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("permitted in filters only"), "{}", ended.stderr);
    let ended = run(&broker, &["sub", "a/#/b"]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("must be the last level"), "{}", ended.stderr);
}

#[tokio::test]
async fn sessions_and_retained_messages_wait() {
    let broker = Broker::start().await;
    let session = ["orders/#", "--client-id", "billing", "--session-expiry", "1h", "--idle", "10ms"];
    let first = run(&broker, &[&["sub"][..], &session].concat()).await;
    assert_eq!((first.code, first.stdout.as_str()), (Some(4), ""), "{}", first.stderr);
    run(&broker, &["pub", "orders/1", "kept"]).await;
    run(&broker, &["pub", "state/1", "on", "--retain"]).await;
    let second = run(&broker, &["sub", "orders/#", "--client-id", "billing", "-n", "1"]).await;
    assert_eq!((second.code, second.stdout.as_str()), (Some(0), "kept\n"));
    assert!(second.stderr.contains("which was there"), "{}", second.stderr);

    let retained = run(&broker, &["sub", "state/+", "-n", "1", "--json"]).await;
    let line: Value = serde_json::from_str(&retained.stdout).unwrap();
    assert_eq!((&line["payload"], &line["retained"]), (&"on".into(), &true.into()));
    let never = run(&broker, &["sub", "state/+", "--retained", "never", "--idle", "10ms"]).await;
    assert_eq!(never.code, Some(4));
    run(&broker, &["pub", "state/1", "", "--retain"]).await;
    let gone = run(&broker, &["sub", "state/+", "--idle", "10ms"]).await;
    assert_eq!(gone.code, Some(4));
    assert_eq!(run(&broker, &["sub", "state/+", "--count", "0"]).await.code, Some(4));
}

#[tokio::test]
async fn a_share_splits_the_work_between_commands() {
    let broker = Broker::start().await;
    let a = sub(&broker, &["jobs", "--share", "g", "-n", "2"]).await;
    let b = sub(&broker, &["jobs", "--share", "g", "-n", "2"]).await;
    run(&broker, &["pub", "jobs", "1", "2", "3", "4"]).await;
    let (a, b) = (a.end().await.stdout, b.end().await.stdout);
    let mut all: Vec<_> = a.lines().chain(b.lines()).collect();
    all.sort_unstable();
    assert_eq!((a.lines().count(), all), (2, vec!["1", "2", "3", "4"]));
}
