//! `stafett call` and `stafett serve-with`, as a person or a script uses them.

use rustix::process::Signal;
use serde_json::Value;

use super::*;
use crate::harness::{Ended, Process, stafett, stafett_reading};

async fn call(broker: &Broker, args: &[&str]) -> Ended {
    let url = broker.url();
    stafett(["call", "--server", &url].into_iter().chain(args.iter().copied())).await
}

/// `stafett serve-with`, when it serves.
async fn serve_with(broker: &Broker, args: &[&str]) -> Process {
    let url = broker.url();
    let mut serving =
        Process::start(["serve-with", "--server", &url].into_iter().chain(args.iter().copied()));
    serving.says("serving").await;
    serving
}

#[tokio::test]
async fn a_program_serves_each_request() {
    let broker = Broker::start().await;
    let serving = serve_with(&broker, &["upper", "--id", "shell", "--", "tr", "a-z", "A-Z"]).await;
    let ended = call(&broker, &["upper", "hello", "world"]).await;
    assert_eq!((ended.code, &*ended.stdout), (Some(0), "HELLO\nWORLD\n"), "{}", ended.stderr);
    let url = broker.url();
    let ended = stafett_reading("a\nb\n", ["call", "--server", &url, "upper", "--lines"]).await;
    assert_eq!(ended.stdout, "A\nB\n");
    let ended = call(&broker, &["upper", "x", "--json", "--property", "k=v"]).await;
    let shown: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&shown["payload"], &shown["responder_id"]), (&"X".into(), &"shell".into()));
    assert!(shown["latency"].as_str().unwrap().ends_with('s'));
    serving.signal(Signal::INT);
    assert_eq!(serving.end().await.code, Some(0));
    let ended = call(&broker, &["upper", "x"]).await;
    assert_eq!(ended.code, Some(3));
    assert!(ended.stderr.contains("nobody serves `upper`"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_program_learns_who_asks_and_its_failure_is_told() {
    let broker = Broker::start().await;
    let script =
        "printf '%s %s ' \"$CALL_SERVICE\" \"$CALL_ATTEMPT\"; cat; test \"$CALL_CONTENT_TYPE\" = x/y";
    let _serving = serve_with(&broker, &["s", "--", "sh", "-c", script]).await;
    let ended = call(&broker, &["s", "in", "--content-type", "x/y"]).await;
    assert_eq!((ended.code, &*ended.stdout), (Some(0), "s 1 in\n"), "{}", ended.stderr);
    let ended = call(&broker, &["s", "in"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("exit status: 1"), "{}", ended.stderr);
    for count in ["0", "65536"] {
        let ended = stafett(["serve-with", "s", "--concurrency", count, "cat"]).await;
        assert!(ended.code == Some(2) && ended.stderr.contains("is not in 1..=65535"), "{}", ended.stderr);
    }
    let _missing = serve_with(&broker, &["none", "--", "/no/such/program"]).await;
    let ended = call(&broker, &["none", ""]).await;
    assert!(ended.stderr.contains("/no/such/program"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_program_is_ended_when_nobody_waits() {
    let broker = Broker::start().await;
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let script = format!("exec 3>{}; echo began >&3; exec sleep 1000", fifo.display());
    let _serving = serve_with(&broker, &["s", "--", "sh", "-c", &script]).await;
    let calls = Calls::of(&broker).await;
    let call = calls.begin(asking("s", ""));
    // Ends when the program has closed its end of it, with its own.
    let reading = tokio::task::spawn_blocking(move || {
        use std::io::{BufRead, BufReader};
        let mut fifo = BufReader::new(std::fs::File::open(fifo).unwrap());
        let mut line = String::new();
        fifo.read_line(&mut line).unwrap();
        (line, fifo)
    });
    let (line, mut fifo) = within("the program", reading).await.unwrap();
    assert_eq!(line, "began\n");
    call.abort();
    let end = tokio::task::spawn_blocking(move || std::io::Read::read(&mut fifo, &mut [0; 9]).unwrap());
    assert_eq!(within("its end", end).await.unwrap(), 0);
}

#[tokio::test]
async fn a_program_that_says_much_while_much_is_asked_goes_on() {
    let broker = Broker::start().await;
    let _serving = serve_with(&broker, &["cat", "--concurrency", "100", "--", "cat"]).await;
    let calls = Calls::of(&broker).await;
    let large = "x".repeat(300_000);
    let begun: Vec<_> = (0..200).map(|_| calls.begin(asking("cat", &large))).collect();
    for call in begun {
        assert_eq!(answered(call).await.len(), large.len());
    }
}

#[tokio::test]
async fn parts_are_printed_as_they_come() {
    let broker = Broker::start().await;
    let calls = Calls::of(&broker).await;
    let mut serving = Serving::open(&calls, opening("s")).await;
    let url = broker.url();
    let mut calling = Process::start(["call", "--server", &url, "s", "--stream", ""]);
    serving.one().await;
    serving.reply(vec![v1::ServeReply { more: true, ..reply(1, "first") }]).await;
    calling.prints("first\n").await;
    serving.reply(vec![reply(1, "last")]).await;
    let ended = calling.end().await;
    assert_eq!((ended.code, &*ended.stdout), (Some(0), "first\nlast\n"));
}

#[tokio::test]
async fn replies_of_all_are_printed_with_who_has_not_answered() {
    let broker = Broker::start().await;
    let url = broker.url();
    let gather = async |args: &[&str]| {
        stafett(["gather", "--server", &url].into_iter().chain(args.iter().copied())).await
    };
    let ended = gather(&["s"]).await;
    assert_eq!(ended.code, Some(3));
    assert!(ended.stderr.contains("nobody serves `s`"), "{}", ended.stderr);
    let _one = serve_with(&broker, &["s", "--id", "one", "--", "tr", "a-z", "A-Z"]).await;
    let ended = gather(&["s", "hello"]).await;
    assert_eq!((ended.code, &*ended.stdout), (Some(0), "one HELLO\n"), "{}", ended.stderr);
    assert_eq!(ended.stderr, "asked 1\n1 of 1 replied, 0 failed: complete\n");
    let _fails = serve_with(&broker, &["s", "--id", "fails", "--", "false"]).await;
    let calls = Calls::of(&broker).await;
    let mut silent = Serving::open(&calls, named("s", "silent", 0)).await;
    let ended = gather(&["s", "hello", "--timeout", "3s"]).await;
    silent.one().await;
    assert_eq!((ended.code, &*ended.stdout), (Some(1), "one HELLO\n"), "{}", ended.stderr);
    assert!(ended.stderr.contains("warning: fails: false has ended"), "{}", ended.stderr);
    assert!(
        ended.stderr.ends_with("1 of 3 replied, 1 failed: deadline; silent silent\n"),
        "{}",
        ended.stderr
    );
    assert_eq!(silent.cancelled().await.len(), 1);

    let ended = gather(&["s", "hello", "--quorum", "1", "--json"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let reply = lines.iter().find(|line| line["responder_id"] == "one").unwrap();
    assert_eq!(reply["payload"], "HELLO");
    let summary = lines.last().unwrap();
    assert_eq!((&summary["end"], &summary["asked"]), (&"quorum".into(), &3.into()));
    assert!(summary["missing"].as_array().unwrap().iter().any(|one| one["responder_id"] == "silent"));
}
