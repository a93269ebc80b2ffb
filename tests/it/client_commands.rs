//! `stafett info` and `stafett health` against a running broker.

use std::net::TcpListener;

use crate::harness::{Broker, stafett};

#[tokio::test]
async fn health_says_serving() {
    let broker = Broker::start().await;
    let ended = stafett(["health", "--server", &broker.url()]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "SERVING\n"));
    let ended = stafett(["--json", "health", "stafett.v1.AdminService", "--server", &broker.url()]).await;
    assert_eq!(ended.code, Some(0));
    let answer: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(answer["status"], "SERVING");
}

#[tokio::test]
async fn health_of_an_unknown_service_fails() {
    let broker = Broker::start().await;
    let ended = stafett(["health", "nobody", "--server", &broker.url()]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
    assert!(ended.stderr.contains("nobody"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_code_3() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for command in ["health", "info"] {
        let ended = stafett([command, "--server", &format!("http://{free}")]).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(3), ""), "{}", ended.stderr);
        assert!(ended.stderr.contains(&free.to_string()), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_code_3() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", silent.local_addr().unwrap());
    let ended = stafett(["health", "--timeout", "100ms", "--server", &server]).await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
}

#[tokio::test]
async fn a_server_that_is_no_url_is_a_usage_error() {
    for server in ["not a url", "localhost:50051", "mqtt://localhost", "localhost"] {
        let ended = stafett(["info", "--server", server]).await;
        assert_eq!(ended.code, Some(2), "{server}: {}", ended.stderr);
        assert!(ended.stderr.contains("--server") && ended.stderr.contains(server), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn info_says_version_and_doors() {
    let broker = Broker::start().await;
    let ended = stafett(["info", "--server", &broker.url(), "--json"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let info: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["doors"]["grpc"], broker.address("grpc").to_string());
    let ended = stafett(["info", "--server", &broker.url()]).await;
    assert!(ended.stdout.contains(env!("CARGO_PKG_VERSION")), "{}", ended.stdout);
}

#[tokio::test]
async fn times_that_no_clock_can_count_are_as_long_as_anyone_waits() {
    const EVER: &str = "200000000000000d";
    let broker = Broker::start().await;
    let url = broker.url();
    let ask = async |args: &[&str]| stafett(args.iter().copied().chain(["--server", &url])).await;
    let ended = ask(&["health", "--timeout", EVER]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "SERVING\n"), "{}", ended.stderr);
    let ended = ask(&["await-reply", "01KAQ5G3B6M8E9R3ZT0Y6Q4W7X", "--wait", EVER]).await;
    assert!(ended.code == Some(2) && ended.stderr.contains("wait: "), "{}", ended.stderr);
    ask(&["queue", "create", "q"]).await;
    ask(&["queue", "send", "q", "x"]).await;
    let ended = ask(&["queue", "consume", "q", "-n", "1", "--idle", EVER]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "x\n"), "{}", ended.stderr);
    ask(&["stream", "create", "s"]).await;
    ask(&["stream", "append", "s", "x"]).await;
    let ended = ask(&["stream", "read", "s", "-n", "1", "--follow", "--idle", EVER]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "1\tx\n"), "{}", ended.stderr);
    ask(&["pub", "t", "x", "--retain"]).await;
    let ended = ask(&["sub", "t", "-n", "1", "--idle", EVER]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "x\n"), "{}", ended.stderr);
}
