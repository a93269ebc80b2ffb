//! `stafett call --async` and `stafett await-reply`.

use super::*;
use crate::harness::stafett;

#[tokio::test]
async fn a_call_is_stored_and_its_reply_fetched_later() {
    let broker = Broker::start().await;
    let url = broker.url();
    let run = async |args: &[&str]| stafett(args.iter().copied().chain(["--server", &url])).await;
    let ended = run(&["call", "s", "one", "two", "--async"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let ids: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(ids.len(), 2);
    let ended = run(&["await-reply", ids[0]]).await;
    assert_eq!((ended.code, &*ended.stdout), (Some(4), ""), "{}", ended.stderr);
    let calls = Calls::of(&broker).await;
    Serving::open(&calls, named("s", "r", 0)).await.echo();
    let ended = run(&["await-reply", ids[1], "--wait", "20s"]).await;
    assert_eq!((ended.code, &*ended.stdout), (Some(0), "two by r\n"), "{}", ended.stderr);
    let ended = run(&["await-reply", ids[0], "--wait", "20s", "--json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&shown["payload"], &shown["responder_id"]), (&"one by r".into(), &"r".into()));

    let ended = run(&["call", "nobody", "x", "--async", "--within", "1ms", "--json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let ended = run(&["await-reply", shown["request_id"].as_str().unwrap(), "--wait", "20s"]).await;
    assert_eq!(ended.code, Some(3));
    assert!(ended.stderr.contains("DeadlineExceeded"), "{}", ended.stderr);
    // What a responder says is an answer, whatever it is.
    for code in [Code::Unavailable, Code::InvalidArgument, Code::Cancelled] {
        let mut serving = Serving::open(&calls, opening("fails")).await;
        let id = calls.store(later("fails", "")).await;
        let request_id = serving.one().await.request_id;
        let error =
            tonic_types::pb::Status { code: code.into(), message: "on purpose".to_owned(), details: vec![] };
        serving.reply(vec![v1::ServeReply { error: Some(error), request_id, ..Default::default() }]).await;
        let ended = run(&["await-reply", &id, "--wait", "20s"]).await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("{code:?}: on purpose")), "{}", ended.stderr);
    }
    let ended = run(&["call", "nobody", "x", "--async", "--reply-queue", "none"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("there is no queue `none`"), "{}", ended.stderr);
    let ended = run(&["call", "s", "x", "--reply-topic", "t"]).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("--async"), "{}", ended.stderr);
}

#[tokio::test]
async fn an_export_shows_what_is_under_way() {
    let broker = Broker::start().await;
    Calls::of(&broker).await.store(later("s", "asked")).await;
    let data = broker.data();
    broker.kill9().await;
    let ended = stafett(["store", "export", data.path().to_str().unwrap()]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let name = "asynchronous calls";
    assert!(lines.iter().any(|line| line["type"] == "backlog" && line["name"] == name), "{}", ended.stdout);
    let call = lines.iter().find(|line| line["type"] == "message").unwrap();
    assert_eq!(
        (&call["backlog"], &call["topic"], &call["payload_base64"]),
        (&name.into(), &"s".into(), &"YXNrZWQ=".into())
    );
}
