//! `stafett stream …`, as a person or a script uses it.

use serde_json::Value;

use super::Logs;
use crate::harness::{Broker, Ended, stafett};

async fn stream(broker: &Broker, args: &[&str]) -> Ended {
    let url = broker.url();
    stafett(["stream", "--server", &url].into_iter().chain(args.iter().copied())).await
}

async fn done(broker: &Broker, args: &[&str]) -> String {
    let ended = stream(broker, args).await;
    assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
    ended.stdout
}

async fn json(broker: &Broker, args: &[&str]) -> Vec<Value> {
    let args: Vec<_> = args.iter().copied().chain(["--json"]).collect();
    done(broker, &args).await.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_stream_is_made_filled_read_and_deleted() {
    let broker = Broker::start().await;
    let made = done(&broker, &["create", "s", "--filter", "t/#", "--max-age", "7d"]).await;
    assert!(made.contains("max age            604800s\nmax messages       10000000\n"), "{made}");
    let mut logs = Logs::of(&broker).await;
    logs.count("t/a", 0..3).await;
    logs.count("t/b", 3..5).await;
    assert_eq!(done(&broker, &["append", "s", "five", "six", "--expect", "6"]).await, "6\n7\n");
    let refused = stream(&broker, &["append", "s", "seven", "--expect", "6"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("sequence 8"), "{}", refused.stderr);
    assert_eq!(done(&broker, &["read", "s", "--count", "2"]).await, "1\t0\n2\t1\n");
    assert_eq!(done(&broker, &["read", "s", "--from", "6"]).await, "6\tfive\n7\tsix\n");
    assert_eq!(done(&broker, &["read", "s", "--from", "last"]).await, "7\tsix\n");
    assert_eq!(done(&broker, &["read", "s", "--topic", "t/b"]).await, "4\t3\n5\t4\n");
    let since = done(&broker, &["read", "s", "--from", "2020-01-01T00:00:00Z", "--follow", "-n", "1"]).await;
    assert_eq!(since, "1\t0\n");
    let nothing = stream(&broker, &["read", "s", "--from", "new", "--follow", "--idle", "10ms"]).await;
    assert_eq!((nothing.code, nothing.stdout.as_str()), (Some(4), ""));
    let records = json(&broker, &["read", "s", "--from", "1", "-n", "1"]).await;
    assert_eq!((&records[0]["sequence"], &records[0]["topic"]), (&1.into(), &"t/a".into()));

    // A cursor goes on where it was.
    assert_eq!(done(&broker, &["read", "s", "--cursor", "c", "-n", "3"]).await, "1\t0\n2\t1\n3\t2\n");
    assert_eq!(done(&broker, &["cursors", "s"]).await, "c\t3\t4\t0\n");
    assert_eq!(done(&broker, &["read", "s", "--cursor", "c", "-n", "1"]).await, "4\t3\n");
    assert_eq!(done(&broker, &["commit", "s", "c", "1", "--rewind"]).await, "1\n");
    // It goes on behind what was passed over, too.
    assert_eq!(done(&broker, &["read", "s", "--cursor", "d", "--topic", "t/a"]).await, "1\t0\n2\t1\n3\t2\n");
    let nothing = stream(&broker, &["read", "s", "--cursor", "e", "--topic", "u"]).await;
    assert_eq!((nothing.code, nothing.stdout.as_str()), (Some(4), ""));
    assert_eq!(done(&broker, &["cursors", "s"]).await, "c\t1\t6\t0\nd\t7\t0\t0\ne\t7\t0\t0\n");
    done(&broker, &["forget", "s", "d"]).await;
    done(&broker, &["forget", "s", "e"]).await;
    assert_eq!(json(&broker, &["cursors", "s"]).await[0]["lag"], 6);
    done(&broker, &["forget", "s", "c"]).await;
    assert_eq!(done(&broker, &["cursors", "s"]).await, "");

    let changed = json(&broker, &["update", "s", "--max-messages", "2", "--unset", "max_age"]).await;
    assert_eq!((&changed[0]["max_messages"], &changed[0]["max_age"]), (&2.into(), &Value::Null));
    crate::harness::within("the oldest to go", async { while logs.state().await.messages > 2 {} }).await;
    let gone = stream(&broker, &["read", "s", "--from", "2"]).await;
    assert_eq!((gone.stdout.as_str(), gone.code), ("6\tfive\n7\tsix\n", Some(0)));
    assert!(gone.stderr.contains("2 to 5 are not kept any more"), "{}", gone.stderr);
    let info = done(&broker, &["info", "s"]).await;
    assert!(info.contains("first sequence     6\nnext sequence      8\n"), "{info}");
    assert_eq!(done(&broker, &["list"]).await, "s\n");
    assert_eq!(done(&broker, &["delete", "s"]).await, "deleted_messages 2\n");
    let unknown = stream(&broker, &["read", "s"]).await;
    assert!(
        unknown.code == Some(1) && unknown.stderr.contains("there is no stream `s`"),
        "{}",
        unknown.stderr
    );
    let wrong = stream(&broker, &["read", "s", "--from", "yesterday"]).await;
    assert!(wrong.code == Some(2) && wrong.stderr.contains("a sequence, or a time"), "{}", wrong.stderr);
}

#[tokio::test]
async fn what_only_queues_take_is_no_option_of_append() {
    let broker = Broker::start().await;
    done(&broker, &["create", "s"]).await;
    for option in ["--delay=1s", "--dedup-id=x", "--priority=3"] {
        let ended = stream(&broker, &["append", "s", "x", option]).await;
        assert!(ended.code == Some(2) && ended.stderr.contains("unexpected argument"), "{}", ended.stderr);
    }
    let help = stafett(["stream", "append", "--help"]).await.stdout;
    assert!(help.contains("--ttl") && !help.contains("--delay"), "{help}");
    assert_eq!(done(&broker, &["append", "s", "x", "--ttl=1h", "--property=k=v"]).await, "1\n");
}
