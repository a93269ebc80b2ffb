//! User name and password in CONNECT, and the file that they are compared with.

use rustix::process::Signal;

use super::*;

#[tokio::test]
async fn who_has_the_password_is_let_in_and_nobody_else() {
    let configured = Configured::new().await;
    let broker = configured.broker("").await;
    for version in BOTH {
        let told = |v5, v311| if version == V5 { v5 } else { v311 };
        Peer::connected(&broker, as_user(connect(version, "c"), "ann", "nna")).await.leave().await;
        for (user, password) in [("ann", "bob's"), ("ann", ""), ("nobody", "nna"), ("", "nna"), ("a:b", "x")]
        {
            let refused = refusal(&broker, as_user(connect(version, "c"), user, password)).await;
            assert_eq!(refused, told(0x86, 4), "{user} {password}");
        }
        let mut unproven = connect(version, "c");
        unproven.username = Some("ann".into());
        assert_eq!(refusal(&broker, unproven).await, told(0x86, 4));
        // Who says nothing is nobody.
        assert_eq!(refusal(&broker, connect(version, "c")).await, told(0x87, 5));
    }
    // A password alone, as 5.0 has it, is no user's.
    let mut nameless = connect(V5, "c");
    nameless.password = Some("nna".into());
    assert_eq!(refusal(&broker, nameless).await, 0x86);
    broker.counts("mqtt_logins_refused_total", 13).await;
    broker.counts("password_checks_total", 15).await;
    broker.counts("password_checks_refused_total", 0).await;
}

#[tokio::test]
async fn anonymous_clients_are_let_in_where_they_may_be() {
    let configured = Configured::new().await;
    let broker = configured.broker("anonymous = true").await;
    for version in BOTH {
        Peer::clean(&broker, version, "c").await.leave().await;
        Peer::connected(&broker, as_user(connect(version, "c"), "ann", "nna")).await.leave().await;
        // What is said is compared nevertheless.
        let wrong = refusal(&broker, as_user(connect(version, "c"), "ann", "x")).await;
        assert_eq!(wrong, if version == V5 { 0x86 } else { 4 });
    }
}

#[tokio::test]
async fn without_users_names_and_passwords_are_not_looked_at() {
    let broker = Broker::start().await;
    for version in BOTH {
        Peer::connected(&broker, as_user(connect(version, "c"), "ann", "x")).await.leave().await;
    }
    broker.counts("password_checks_total", 0).await;
}

#[tokio::test]
async fn a_listener_has_users_of_its_own() {
    let configured = Configured::new().await;
    let (_directory, path) = config_file(&format!(
        "[[mqtt.listeners]]\nname = \"x\"\nlisten = \"127.0.0.1:0\"\n{}",
        configured.line()
    ));
    let broker = Broker::start_with(&["--config", &path]).await;
    Peer::clean(&broker, V5, "c").await.leave().await;
    let open = async || Peer::open(broker.address("mqtt.x"), V5).await;
    let (_, connack) = open().await.greeted(connect(V5, "c")).await;
    assert_eq!(connack.reason, ReasonCode::NotAuthorized);
    let (peer, connack) = open().await.greeted(as_user(connect(V5, "c"), "ann", "nna")).await;
    assert_eq!(connack.reason, ReasonCode::Success);
    peer.leave().await;
}

#[tokio::test]
async fn a_hangup_reads_the_users_again() {
    let configured = Configured::new().await;
    let mut broker = configured.broker("").await;
    let mut before = Peer::connected(&broker, as_user(connect(V5, "b"), "bob", "bob's")).await;
    passwd(configured.users(), "cem", "mec").await;
    passwd(configured.users(), "ann", "another").await;
    let args = ["passwd", configured.users().to_str().unwrap(), "bob", "--delete"];
    assert_eq!(stafett(args).await.code, Some(0));
    // Not yet.
    assert_eq!(refusal(&broker, as_user(connect(V5, "c"), "cem", "mec")).await, 0x86);
    broker.process().signal(Signal::HUP);
    broker.process().says("users read again").await;
    for (user, password, let_in) in
        [("cem", "mec", true), ("ann", "another", true), ("ann", "nna", false), ("bob", "bob's", false)]
    {
        let (_, connack) = Peer::greet(&broker, as_user(connect(V5, "c"), user, password)).await;
        assert_eq!(connack.reason == ReasonCode::Success, let_in, "{user} {password}");
    }
    // Who is there stays; so do the users when the file is wrong, which is said with its line and the reason.
    before.nothing_came().await;
    std::fs::write(configured.users(), "# users\nann:secret\n").unwrap();
    broker.process().signal(Signal::HUP);
    broker.process().says("the users that were in use stay").await;
    broker.process().says("line 2: the verifier of user `ann` is not of the form").await;
    Peer::connected(&broker, as_user(connect(V5, "c"), "cem", "mec")).await.leave().await;
    before.nothing_came().await;
}

#[tokio::test]
async fn listeners_share_what_they_read_from_one_file() {
    let configured = Configured::new().await;
    let line = configured.line();
    let (_directory, path) = config_file(&format!(
        "[mqtt]\n{line}[[mqtt.listeners]]\nname = \"x\"\nlisten = \"127.0.0.1:0\"\n{line}"
    ));
    let mut broker = Broker::start_with(&["--config", &path]).await;
    broker.process().signal(Signal::HUP);
    broker.process().says("users read again").await;
    std::fs::write(configured.users(), "ann:secret\n").unwrap();
    broker.process().signal(Signal::HUP);
    broker.process().says("the users that were in use stay").await;
    assert_eq!(broker.process().stderr().matches("users read again").count(), 1);
}

#[tokio::test]
async fn a_wrong_users_file_is_named_with_its_line() {
    let configured = Configured::new().await;
    let good = std::fs::read_to_string(configured.users()).unwrap();
    let ann = good.lines().find(|line| line.starts_with("ann:")).unwrap();
    let missing = configured.directory.path().join("missing");
    let start = async |file: &Path| {
        let (directory, path) = config_file(&format!("[mqtt]\nusers = \"{}\"\n", file.display()));
        let data = directory.path().join("data");
        let flags = ["--grpc-listen", "off", "--mqtt-listen", "127.0.0.1:0"];
        let args = ["serve", "--config", &path, "--data-dir", data.to_str().unwrap()];
        let ended = stafett(args.into_iter().chain(flags)).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
        ended.stderr
    };
    let said = start(&missing).await;
    let expected = format!("the listener mqtt has no users: users: cannot read {}", missing.display());
    assert!(said.contains(&expected), "{said}");
    for (text, problem) in [
        (format!("{good}{ann}\n"), "line 4: user `ann` stands in line 2 already"),
        ("\nann\n".to_owned(), "line 2: not of the form NAME:VERIFIER"),
        (good.replace("$4096:", "$1:"), "line 2: the verifier of user `ann` is the iterations are not"),
    ] {
        std::fs::write(configured.users(), text).unwrap();
        let said = start(configured.users()).await;
        assert!(said.contains(&format!("{}: {problem}", configured.users().display())), "{said}");
    }
}

#[tokio::test]
async fn a_flood_of_passwords_holds_up_nobody() {
    let configured = Configured::new().await;
    let args = ["passwd", configured.users().to_str().unwrap(), "slow", "--iterations", "200000"];
    assert_eq!(stafett_reading("wols\n", args).await.code, Some(0));
    let broker =
        configured.broker("anonymous = true\nconnect_timeout = \"60s\"\n[limits]\npassword_checks = 1").await;
    let mut witness = Peer::subscribed(&broker, V5, "w", QOS1).await;
    let mut flood = tokio::task::JoinSet::new();
    // One more than may be checked and wait, on any machine that has fewer than 60 cores.
    for n in 0..32 {
        let version = if n % 2 == 0 { V5 } else { V311 };
        let peer = Peer::open(broker.address("mqtt"), version).await;
        flood.spawn(peer.greeted(as_user(connect(version, ""), "slow", "wols")));
    }
    let mut let_in = 0;
    while let Some(greeted) = flood.join_next().await {
        let (mut peer, connack) = greeted.unwrap();
        witness.say("w", QOS1, "x").await;
        assert_eq!(text(&witness.receive().await), "x");
        if connack.reason == ReasonCode::Success {
            let_in += 1;
            peer.leave().await;
            continue;
        }
        match peer.version {
            V5 => assert_eq!(connack.reason, ReasonCode::ServerBusy),
            V311 => assert_eq!(connack.reason.to_return_code(), Some(3)),
        }
        assert_eq!(peer.next_or_end().await, None);
    }
    assert!((2..32).contains(&let_in), "{let_in}");
    broker.counts("password_checks_refused_total", 32 - let_in).await;
    broker.counts("mqtt_logins_refused_total", 0).await;
}
