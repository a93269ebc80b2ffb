//! `stafett queue …`, as a person or a script uses it.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Broker, Ended, Process, stafett, stafett_reading};

/// Runs `stafett queue` against a broker.
async fn queue(broker: &Broker, args: &[&str]) -> Ended {
    let url = broker.url();
    stafett(["queue", "--server", &url].into_iter().chain(args.iter().copied())).await
}

/// What it printed; it must have succeeded.
async fn done(broker: &Broker, args: &[&str]) -> String {
    let ended = queue(broker, args).await;
    assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
    ended.stdout
}

/// The same as JSON, one value a line.
async fn json(broker: &Broker, args: &[&str]) -> Vec<Value> {
    let args: Vec<_> = args.iter().copied().chain(["--json"]).collect();
    done(broker, &args).await.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The exit code and stderr of what must not succeed; stdout must be empty.
async fn failed(broker: &Broker, args: &[&str]) -> (i32, String) {
    let ended = queue(broker, args).await;
    assert_eq!(ended.stdout, "");
    (ended.code.unwrap(), ended.stderr)
}

#[tokio::test]
async fn a_queue_is_made_shown_changed_and_deleted() {
    let broker = Broker::start().await;
    done(&broker, &["create", "dead"]).await;
    let create =
        ["create", "orders", "--lease", "1m", "--max-deliveries", "5", "--dead-letter-queue", "dead"];
    let more = ["--max-bytes", "64MiB", "--label", "team=a", "--bind", "shop/+/order", "--priorities"];
    let text = done(&broker, &[&create[..], &more[..]].concat()).await;
    assert!(
        text.contains("max deliveries     5\n") && text.contains("label              team=a\n"),
        "{text}"
    );

    let info = &json(&broker, &["info", "orders"]).await[0];
    assert_eq!((info["lease"].as_str(), info["max_bytes"].as_u64()), (Some("60s"), Some(64 << 20)));
    assert_eq!((&info["bindings"][0], &info["labels"]["team"]), (&"shop/+/order".into(), &"a".into()));
    assert_eq!((info["priorities"].as_bool(), info["default_ttl"].as_str()), (Some(true), None));
    assert_eq!(done(&broker, &["create", "dead", "--if-not-exists"]).await.lines().count(), 11);
    let (code, why) = failed(&broker, &["create", "dead"]).await;
    assert!(code == 1 && why.contains("AlreadyExists"), "{why}");
    let keeping = ["--ordered-by-key", "--dedup-window", "10m", "--last-value-key", "sensor"];
    let created = done(&broker, &[&["create", "kept"][..], &keeping].concat()).await;
    for line in ["order              by key", "dedup window       600s", "keeps last         of each sensor"]
    {
        assert!(created.lines().any(|told| told == line), "{created}");
    }
    assert_eq!(done(&broker, &["info", "kept"]).await, created);
    done(&broker, &["delete", "kept"]).await;

    let update = ["update", "orders", "--max-messages", "10", "--unset", "labels", "--unset", "lease"];
    let changed = &json(&broker, &update).await[0];
    assert_eq!((changed["max_messages"].as_u64(), changed["lease"].as_str()), (Some(10), Some("30s")));
    assert_eq!(changed["labels"], serde_json::json!({}));
    let (code, why) = failed(&broker, &["update", "orders"]).await;
    assert!(code == 2 && why.contains("nothing to change"), "{why}");
    let (code, _) = failed(&broker, &["update", "orders", "--lease", "1m", "--unset", "lease"]).await;
    assert_eq!(code, 2);

    let bound = &json(&broker, &["bind", "orders", "a/#", "b"]).await[0];
    assert_eq!(bound["bindings"].as_array().unwrap().len(), 3);
    let bound = &json(&broker, &["unbind", "orders", "a/#", "shop/+/order"]).await[0];
    assert_eq!(bound["bindings"], serde_json::json!(["b"]));

    assert_eq!(done(&broker, &["list"]).await, "dead\norders\n");
    assert_eq!(json(&broker, &["list", "--prefix", "o"]).await[0]["name"], "orders");
    let (code, why) = failed(&broker, &["delete", "dead"]).await;
    assert!(code == 1 && why.contains("orders"), "{why}");
    assert_eq!(done(&broker, &["delete", "orders", "--if-empty"]).await, "deleted_messages 0\n");
    let (code, why) = failed(&broker, &["info", "orders"]).await;
    assert!(code == 1 && why.contains("there is no queue `orders`"), "{why}");
}

#[tokio::test]
async fn a_message_is_sent_received_and_settled() {
    let broker = Broker::start().await;
    done(&broker, &["create", "q"]).await;
    let (code, why) = failed(&broker, &["receive", "q"]).await;
    assert_eq!((code, why.as_str()), (4, ""));

    let send =
        ["send", "q", "{}", "--content-type", "application/json", "--property", "k=v=w", "--topic", "a/b"];
    let sent = &json(&broker, &send).await[0];
    let received = &json(&broker, &["receive", "q", "--wait", "10s"]).await[0];
    assert_eq!(received["message_id"], sent["message_id"]);
    assert_eq!((received["payload"].as_str(), received["topic"].as_str()), (Some("{}"), Some("a/b")));
    assert_eq!(
        (&received["properties"], &received["content_type"]),
        (&serde_json::json!([["k", "v=w"]]), &"application/json".into())
    );
    assert_eq!(
        (received["delivery_attempt"].as_u64(), received["sequence"].as_u64()),
        (Some(1), sent["sequence"].as_u64())
    );
    let token = received["lease_token"].as_str().unwrap();
    done(&broker, &["nack", "q", token]).await;

    let text = done(&broker, &["receive", "q"]).await;
    let (token, payload) = text.trim_end().split_once('\t').unwrap();
    assert_eq!(payload, "{}");
    done(&broker, &["ack", "q", token]).await;
    let (code, why) = failed(&broker, &["ack", "q", token]).await;
    assert!(code == 1 && why.contains(token), "{why}");
    let (code, _) = failed(&broker, &["ack", "q", "no token"]).await;
    assert_eq!(code, 2);

    done(&broker, &["send", "q", "1", "2"]).await;
    assert_eq!(done(&broker, &["receive", "q", "--max", "10", "--ack"]).await, "1\n2\n");
    assert_eq!(json(&broker, &["stats", "q"]).await[0]["acked_total"], 3);
    assert!(done(&broker, &["stats", "q"]).await.contains("enqueued       3\n"));
}

#[tokio::test]
async fn a_message_that_is_named_is_sent_once() {
    let broker = Broker::start().await;
    let info = &json(&broker, &["create", "q", "--dedup-window", "10m"]).await[0];
    assert_eq!(info["dedup_window"], "600s");
    let first = &json(&broker, &["send", "q", "x", "--dedup-id", "order-7"]).await[0];
    let again = &json(&broker, &["send", "q", "x", "--dedup-id", "order-7"]).await[0];
    assert_eq!((&first["duplicate"], &again["duplicate"]), (&false.into(), &true.into()));
    assert_eq!((&first["message_id"], &first["sequence"]), (&again["message_id"], &again["sequence"]));
    let seen = &json(&broker, &["browse", "q"]).await;
    assert_eq!((seen.len(), &seen[0]["dedup_id"]), (1, &"order-7".into()));
    let info = &json(&broker, &["update", "q", "--unset", "dedup_window"]).await[0];
    assert!(info["dedup_window"].is_null());
    let (code, why) = failed(&broker, &["send", "q", "x", "--dedup-id", "order-7"]).await;
    assert!(code == 1 && why.contains("dedup_window"), "{why}");
}

#[tokio::test]
async fn messages_are_sent_together_or_not_at_all() {
    let broker = Broker::start().await;
    done(&broker, &["create", "q", "--max-messages", "600"]).await;
    let url = broker.url();
    let send = ["queue", "send", "q", "--lines", "--atomic", "--server", &url];
    let lines = |count: u32| (0..count).map(|line| format!("{line}\n")).collect::<String>();
    let ended = stafett_reading(&lines(601), send).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{}", ended.stderr);
    assert!(ended.stderr.contains("messages[600]"), "{}", ended.stderr);
    let ended = stafett_reading(&lines(600), send).await;
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(0), 600), "{}", ended.stderr);
    let ended = stafett_reading(&lines(10_001), send).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{}", ended.stderr);
    assert_eq!(json(&broker, &["stats", "q"]).await[0]["ready"], 600);
}

#[tokio::test]
async fn stdin_is_one_message_or_one_a_line() {
    let broker = Broker::start().await;
    done(&broker, &["create", "q"]).await;
    let url = broker.url();
    let ended = stafett_reading("two\nlines\n", ["queue", "send", "q", "--stdin", "--server", &url]).await;
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(0), 1), "{}", ended.stderr);
    let many: String = (0..1200).map(|line| format!("{line}\n")).collect();
    let ended = stafett_reading(&many, ["queue", "send", "q", "--lines", "--server", &url]).await;
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(0), 1200), "{}", ended.stderr);
    let taken = done(&broker, &["consume", "q", "--count", "1201"]).await;
    assert_eq!(taken, format!("two\nlines\n\n{many}"));
    let (code, why) = failed(&broker, &["send", "q"]).await;
    assert!(code == 2 && why.contains("nothing to send"), "{why}");
}

#[tokio::test]
async fn consume_ends_as_it_was_told() {
    let broker = Broker::start().await;
    done(&broker, &["create", "q"]).await;
    done(&broker, &["send", "q", "1", "2", "3"]).await;
    assert_eq!(done(&broker, &["consume", "q", "--count", "2"]).await, "1\n2\n");
    // The third was never counted as delivered.
    let rest = &json(&broker, &["consume", "q", "--idle", "200ms"]).await[0];
    assert_eq!((rest["payload"].as_str(), rest["delivery_attempt"].as_u64()), (Some("3"), Some(1)));
    let (code, _) = failed(&broker, &["consume", "q", "--idle", "10ms"]).await;
    assert_eq!(code, 4);

    let mut process = Process::start(["queue", "consume", "q", "--server", &broker.url()]);
    done(&broker, &["send", "q", "late"]).await;
    process.prints("late\n").await;
    process.signal(Signal::INT);
    let ended = process.end().await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "late\n"), "{}", ended.stderr);
    assert_eq!(json(&broker, &["stats", "q"]).await[0]["acked_total"], 4);
    let (code, why) = failed(&broker, &["consume", "nobody"]).await;
    assert!(code == 1 && why.contains("nobody"), "{why}");
}

#[tokio::test]
async fn a_queue_is_looked_after() {
    let broker = Broker::start().await;
    done(&broker, &["create", "dead"]).await;
    done(&broker, &["create", "q", "--dead-letter-queue", "dead"]).await;
    done(&broker, &["send", "q", "bad", "good"]).await;
    done(&broker, &["send", "q", "later", "--delay", "1h"]).await;
    let received = &json(&broker, &["receive", "q"]).await[0];
    let token = received["lease_token"].as_str().unwrap();
    done(&broker, &["nack", "q", token, "--kind", "dead-letter", "--reason", "not JSON"]).await;

    let dead = &json(&broker, &["receive", "dead", "--wait", "10s"]).await[0];
    assert_eq!(
        (dead["dead_letter"]["reason"].as_str(), dead["payload"].as_str()),
        (Some("not JSON"), Some("bad"))
    );
    done(&broker, &["nack", "dead", dead["lease_token"].as_str().unwrap(), "--kind", "release"]).await;
    assert_eq!(done(&broker, &["redrive", "dead"]).await, "moved 1\n");

    let payload = |seen: &Value| seen["payload"].as_str().unwrap().to_owned();
    let seen: Vec<_> = json(&broker, &["browse", "q"]).await.iter().map(payload).collect();
    assert_eq!(seen, ["good", "bad"]);
    assert!(done(&broker, &["peek", "q"]).await.ends_with("\tgood\n"));
    let later = &json(&broker, &["peek", "q", "--view", "delayed"]).await[0];
    assert!(later["deliver_at"].is_string(), "{later}");
    assert_eq!(failed(&broker, &["browse", "dead"]).await.0, 4);

    assert_eq!(done(&broker, &["purge", "q", "--view", "delayed"]).await, "purged 1\n");
    assert_eq!(json(&broker, &["purge", "q", "--view", "ready"]).await[0]["purged"], 2);
    // What a consumer holds cannot be deleted: that is not asked for.
    for held in [&["purge", "q", "--view", "leased"][..], &["cancel", "q", "1", "--view", "leased"]] {
        let (code, why) = failed(&broker, held).await;
        assert!(code == 2 && why.contains("[possible values: ready, delayed, all]"), "{why}");
    }
    let (code, _) = failed(&broker, &["purge", "q"]).await;
    assert_eq!(code, 2);
}

#[tokio::test]
async fn what_is_tried_again_and_given_up_is_set_and_shown() {
    let broker = Broker::start().await;
    done(&broker, &["create", "dead"]).await;
    let create =
        ["create", "q", "--dead-letter-queue", "dead", "--retry-min-backoff", "1s", "--max-messages", "1"];
    let more = [
        "--overflow",
        "dead-letter",
        "--single-active-consumer",
        "--dead-letter-expired",
        "--expires-after",
        "1h",
    ];
    let text = done(&broker, &[&create[..], &more[..]].concat()).await;
    for line in [
        "retry backoff      from 1s",
        "overflow           dead-letter",
        "when unused for 3600s",
        "one active at a time",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    done(&broker, &["send", "q", "1", "2"]).await;
    let dead = &json(&broker, &["receive", "dead", "--wait", "10s"]).await[0];
    assert_eq!(
        (dead["payload"].as_str(), dead["dead_letter"]["reason"].as_str()),
        (Some("1"), Some("overflow"))
    );

    let update = ["update", "q", "--retry-max-backoff", "9s", "--overflow", "drop-oldest"];
    let off =
        ["--single-active-consumer=false", "--unset", "dead_letter_expired", "--unset", "expires_after"];
    let changed = &json(&broker, &[&update[..], &off[..]].concat()).await[0];
    for (field, value) in [
        ("retry_max_backoff", Value::from("9s")),
        ("overflow", "drop-oldest".into()),
        ("single_active_consumer", false.into()),
        ("dead_letter_expired", false.into()),
        ("expires_after", Value::Null),
    ] {
        assert_eq!(changed[field], value, "{field}");
    }
    done(&broker, &["send", "q", "3"]).await;
    assert_eq!(json(&broker, &["stats", "q"]).await[0]["dropped_total"], 1);
    let received = &json(&broker, &["receive", "q"]).await[0];
    done(&broker, &["nack", "q", received["lease_token"].as_str().unwrap()]).await;
    assert_eq!(json(&broker, &["stats", "q"]).await[0]["delayed"], 1, "it rests");
    let (code, why) = failed(&broker, &["update", "q", "--retry-max-backoff", "1ms"]).await;
    assert!(code == 2 && why.contains("queue.retry_max_backoff"), "{why}");
}

#[tokio::test]
async fn a_consumer_stands_by_until_the_other_ends() {
    let broker = Broker::start().await;
    done(&broker, &["create", "q", "--single-active-consumer"]).await;
    let url = broker.url();
    let consume = ["queue", "consume", "q", "--server", &url];
    let mut first = Process::start(consume);
    done(&broker, &["send", "q", "1"]).await;
    first.prints("1\n").await;
    let mut second = Process::start(consume.into_iter().chain(["--priority", "-1"]));
    second.says("another consumer is active").await;
    first.signal(Signal::INT);
    assert_eq!(first.end().await.code, Some(0));
    second.says("this consumer is active now").await;
    done(&broker, &["send", "q", "2"]).await;
    second.prints("2\n").await;
    second.signal(Signal::INT);
    assert_eq!(second.end().await.stdout, "2\n");
    let (code, why) = failed(&broker, &["receive", "q"]).await;
    assert!(code == 1 && why.contains("single active consumer"), "{why}");
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_code_3() {
    let broker = Broker::start().await;
    let url = broker.url();
    broker.terminate().await;
    for args in [&["list"][..], &["send", "q", "x"], &["consume", "q"], &["browse", "q"]] {
        let ended = stafett(["queue", "--server", &url].into_iter().chain(args.iter().copied())).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(3), ""), "{args:?}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn every_help_has_an_example() {
    let help = stafett(["queue", "--help"]).await;
    assert_eq!(help.code, Some(0));
    for command in [
        "create", "list", "info", "update", "pause", "resume", "delete", "bind", "unbind", "send", "receive",
        "consume", "ack", "forward", "nack", "peek", "browse", "purge", "cancel", "redrive", "stats",
        "watch",
    ] {
        assert!(help.stdout.contains(&format!("\n  {command} ")), "{command} is not listed");
        let own = stafett(["queue", command, "--help"]).await;
        let example = format!("stafett queue {command} ");
        assert!(own.stdout.contains(&example), "the help of {command} has no example:\n{}", own.stdout);
    }
}
