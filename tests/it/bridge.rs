//! Bridges between two brokers, both the real program.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use stafett::mqtt::codec::{ConnAck, ConnAckProperties, Decoder, Limits, Packet, ReasonCode, Version};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::certificates::{certified, tls_lines};
use crate::harness::{Broker, config_file, fixed_port, stafett, within};
use crate::mqtt::{BOTH, Peer, QOS0, QOS1, QOS2, V5, V311, kept, text};

/// What goes out, what comes in, and what does both under another name.
const TOPICS: &str = r#"
[[bridges.topics]]
filter = "out/#"
direction = "out"
qos = 2
[[bridges.topics]]
filter = "in/#"
direction = "in"
qos = 2
[[bridges.topics]]
filter = "both/#"
qos = 2
local_prefix = "here/"
remote_prefix = "there/"
"#;

/// A configuration with a bridge called b.
fn bridge(url: &str, lines: &str, topics: &str) -> (TempDir, String) {
    let quick = "reconnect_min = \"10ms\"\nreconnect_max = \"100ms\"";
    config_file(&format!("[[bridges]]\nname = \"b\"\nurl = \"{url}\"\n{quick}\n{lines}\n{topics}\n"))
}

fn version(version: Version) -> &'static str {
    if version == V5 { "version = \"5\"" } else { "version = \"3.1.1\"" }
}

/// A broker that is joined with the one at `remote`.
async fn joined(remote: SocketAddr, lines: &str, data: Option<Arc<TempDir>>) -> Broker {
    let (_directory, config) = bridge(&format!("mqtt://{remote}"), lines, TOPICS);
    let data = data.unwrap_or_else(|| Arc::new(tempfile::tempdir().unwrap()));
    Broker::start_in(data, &["--config", &config]).await
}

/// Where a broker may be, and come back.
fn fixed_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], fixed_port()))
}

/// The broker that was at `at` before, with what it has stored.
async fn again(at: SocketAddr, data: Arc<TempDir>) -> Broker {
    Broker::start_in(data, &["--mqtt-listen", &at.to_string()]).await
}

/// A session that is kept, with a subscription.
async fn keeper(broker: &Broker, filter: &str) -> Peer {
    let mut peer = Peer::connected(broker, kept(V5, "keeper")).await;
    peer.subscribe(filter, QOS2).await;
    peer
}

async fn resumed(broker: &Broker) -> Peer {
    let (peer, connack) = Peer::greet(broker, kept(V5, "keeper")).await;
    assert!(connack.session_present);
    peer
}

/// What comes, up to a message of this payload: payloads by topic, in order.
async fn until(peer: &mut Peer, last: &str) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    loop {
        let publish = peer.receive().await;
        let payload = text(&publish).to_owned();
        let ends = payload == last;
        all.entry(publish.topic.to_string()).or_default().push(payload);
        if ends {
            return all;
        }
    }
}

fn texts(of: &[&str]) -> Vec<String> {
    of.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn topics_go_out_in_and_both_ways_and_nothing_comes_back() {
    for spoken in BOTH {
        let there = Broker::start().await;
        let here = joined(there.address("mqtt"), version(spoken), None).await;
        here.counts("bridges_connected", 1).await;
        let mut far = Peer::subscribed(&there, V5, "out/#", QOS2).await;
        far.subscribe("there/#", QOS2).await;
        let mut near = Peer::subscribed(&here, V311, "#", QOS2).await;
        for (qos, payload) in [(QOS0, "0"), (QOS1, "1"), (QOS2, "2")] {
            near.say_among("out/a", qos, payload).await;
            let publish = far.receive().await;
            assert_eq!((&*publish.topic, publish.qos, text(&publish)), ("out/a", qos, payload), "{spoken:?}");
            far.say_among("in/b", qos, payload).await;
        }
        let got = until(&mut near, "2").await;
        assert_eq!(got["out/a"], texts(&["0", "1", "2"]));
        near.say_among("here/both/c", QOS1, "mine").await;
        assert_eq!(until(&mut far, "mine").await["there/both/c"], ["mine"]);
        far.say_among("there/both/c", QOS2, "yours").await;
        far.say_among("in/b", QOS1, "end").await;
        let got = until(&mut near, "end").await;
        // 3.1.1 has no way to ask for nothing of one's own: it comes once more, and goes no further.
        let mine: &[&str] = if spoken == V5 { &["mine", "yours"] } else { &["mine", "mine", "yours"] };
        assert_eq!(got["here/both/c"], texts(mine), "{spoken:?}");
        near.say_among("out/a", QOS1, "end").await;
        let got = until(&mut far, "end").await;
        assert_eq!(got["there/both/c"], ["yours"], "{spoken:?}: its own, and nothing comes back");
    }
}

#[tokio::test]
async fn retained_values_are_there_on_the_other_side() {
    let there = Broker::start().await;
    let mut far = Peer::clean(&there, V5, "").await;
    far.say_retained("in/value", QOS1, "far").await;
    far.say_retained("there/both/far", QOS1, "far too").await;
    let data = Arc::new(tempfile::tempdir().unwrap());
    let before = Broker::start_in(Arc::clone(&data), &[]).await;
    let mut near = Peer::clean(&before, V5, "").await;
    near.say_retained("out/value", QOS1, "near").await;
    near.say_retained("here/both/near", QOS1, "near too").await;
    before.terminate().await;
    let here = joined(there.address("mqtt"), "", Some(data)).await;
    here.counts("retained_messages", 4).await;
    there.counts("retained_messages", 4).await;
    Peer::clean(&here, V5, "").await.subscribe_and_find("in/value", "far").await;
    Peer::clean(&here, V5, "").await.subscribe_and_find("here/both/far", "far too").await;
    Peer::clean(&there, V5, "").await.subscribe_and_find("out/value", "near").await;
    Peer::clean(&there, V5, "").await.subscribe_and_find("there/both/near", "near too").await;
}

/// So many messages of `from`, and no other, in order and once each.
fn numbers(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn what_goes_out_waits_for_the_other_broker_and_comes_once() {
    for spoken in BOTH {
        let (at, far_data) = (fixed_address(), Arc::new(tempfile::tempdir().unwrap()));
        let there = again(at, Arc::clone(&far_data)).await;
        keeper(&there, "out/#").await.leave().await;
        let here = joined(at, version(spoken), None).await;
        here.counts("bridges_connected", 1).await;
        let mut near = Peer::clean(&here, V5, "").await;
        for n in 0..40 {
            near.say("out/a", QOS2, &n.to_string()).await;
        }
        there.kill9().await;
        for n in 40..80 {
            near.say("out/a", QOS2, &n.to_string()).await;
        }
        here.counts("bridges_connected", 0).await;
        let there = again(at, far_data).await;
        let near_data = here.data();
        here.kill9().await;
        let here = joined(at, version(spoken), Some(near_data)).await;
        let mut near = Peer::clean(&here, V5, "").await;
        near.say("out/a", QOS2, "80").await;
        let mut sink = resumed(&there).await;
        assert_eq!(sink.receive_texts(81).await, numbers(0, 81), "{spoken:?}");
        sink.nothing_came().await;
    }
}

#[tokio::test]
async fn what_comes_in_is_acknowledged_when_it_is_kept() {
    for spoken in BOTH {
        let there = Broker::start().await;
        let at = there.address("mqtt");
        let here = joined(at, version(spoken), None).await;
        here.counts("bridges_connected", 1).await;
        keeper(&here, "in/#").await.leave().await;
        let mut far = Peer::clean(&there, V5, "").await;
        for n in 0..40 {
            far.say("in/a", QOS2, &n.to_string()).await;
        }
        let near_data = here.data();
        here.kill9().await;
        for n in 40..80 {
            far.say("in/a", QOS2, &n.to_string()).await;
        }
        let here = joined(at, version(spoken), Some(near_data)).await;
        let mut sink = resumed(&here).await;
        assert_eq!(sink.receive_texts(80).await, numbers(0, 80), "{spoken:?}");
        sink.nothing_came().await;
    }
}

/// Kills the bridge's broker again and again while messages are under way at QoS 1.
#[tokio::test]
async fn kill_nine_loses_nothing_that_was_acknowledged() {
    let there = Broker::start().await;
    let at = there.address("mqtt");
    keeper(&there, "out/#").await.leave().await;
    let mut here = joined(at, "", None).await;
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        let mut near = Peer::clean(&here, V5, "").await;
        for n in 0..60 {
            let payload = format!("{round}.{n}");
            near.say("out/a", QOS1, &payload).await;
            acknowledged.push(payload);
        }
        let data = here.data();
        here.kill9().await;
        here = joined(at, "", Some(data)).await;
    }
    Peer::clean(&here, V5, "").await.say("out/a", QOS1, "end").await;
    let got = until(&mut resumed(&there).await, "end").await.remove("out/a").unwrap();
    let missing: Vec<_> = acknowledged.iter().filter(|payload| !got.contains(payload)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test]
async fn the_broker_starts_without_the_other_and_says_how_the_bridge_is() {
    let at = fixed_address();
    let mut here = joined(at, "", None).await;
    const STATE: &str = "$SYS/broker/connection/b/state";
    let mut watcher = Peer::clean(&here, V5, "").await;
    watcher.subscribe_and_find(STATE, "0").await;
    here.process().says("trying again").await;
    let info = stafett(["info", "--server", &here.url()]).await.stdout;
    assert!(info.contains("bridge           b mqtt://") && info.contains("not reachable"), "{info}");
    let there = again(at, Arc::new(tempfile::tempdir().unwrap())).await;
    while text(&watcher.publish().await) != "1" {}
    here.counts("bridges_connected", 1).await;
    let info = stafett(["info", "--server", &here.url()]).await.stdout;
    assert!(info.contains(&format!("bridge           b mqtt://{at} connected")), "{info}");
    there.terminate().await;
    while text(&watcher.publish().await) != "0" {}
    // It stops though the other broker is away.
    assert_eq!(here.terminate().await.code, Some(0));
}

/// Stands for a broker: the CONNECT that comes, and the answer to it, before which it does something else.
async fn answers(
    listener: &TcpListener,
    reason: ReasonCode,
    meanwhile: impl FnOnce(),
) -> (Packet, TcpStream) {
    let (mut stream, _) = within("the bridge", listener.accept()).await.unwrap();
    let mut decoder = Decoder::server(Limits::default());
    let mut bytes = BytesMut::new();
    let connect = loop {
        assert!(within("CONNECT", stream.read_buf(&mut bytes)).await.unwrap() > 0);
        if let Some(packet) = decoder.decode(&mut bytes).unwrap() {
            break packet;
        }
    };
    meanwhile();
    let properties = ConnAckProperties::default();
    let connack = Packet::ConnAck(Box::new(ConnAck { session_present: false, reason, properties }));
    let mut answer = BytesMut::new();
    connack.encode(decoder.version().unwrap(), &mut answer).unwrap();
    stream.write_all(&answer).await.unwrap();
    (connect, stream)
}

#[tokio::test]
async fn a_wrong_password_is_told_and_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let secret = format!("username = \"house\"\npassword_file = \"{}\"", file.display());
    let mut here = joined(listener.local_addr().unwrap(), &secret, None).await;
    for password in ["wrong", "right"] {
        let reason = match password {
            "right" => ReasonCode::Success,
            _ => ReasonCode::BadUserNameOrPassword,
        };
        // It is read again for the next connection.
        let change = || std::fs::write(&file, "right").unwrap();
        let (connect, _stream) = answers(&listener, reason, change).await;
        let Packet::Connect(connect) = connect else { panic!("{connect:?}") };
        assert_eq!(connect.username.as_deref(), Some("house"));
        assert_eq!(connect.password.as_deref(), Some(password.as_bytes()));
        assert_eq!(connect.client_id, "stafett.b");
    }
    here.process().says("refused: Bad User Name or Password (0x86)").await;
}

#[tokio::test]
async fn a_session_that_is_new_here_begins_anew_there() {
    for spoken in BOTH {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let lines = format!("try_private = false\n{}", version(spoken));
        let _here = joined(listener.local_addr().unwrap(), &lines, None).await;
        // In 3.1.1 the session that is forgotten needs a connection of its own.
        let cleans: &[bool] = if spoken == V5 { &[true, false] } else { &[true, false, false] };
        for &clean in cleans {
            let (connect, _stream) = answers(&listener, ReasonCode::Success, || ()).await;
            let Packet::Connect(connect) = connect else { panic!("{connect:?}") };
            assert_eq!(connect.clean_start, clean, "{spoken:?}");
        }
    }
}

#[tokio::test]
async fn what_the_other_broker_does_not_take_is_counted_and_the_rest_goes_on() {
    let (_there, config) = config_file("[limits]\nmax_payload_bytes = \"1KiB\"");
    let there = Broker::start_with(&["--config", &config]).await;
    let here = joined(there.address("mqtt"), "", None).await;
    here.counts("bridges_connected", 1).await;
    let mut far = Peer::subscribed(&there, V5, "out/#", QOS2).await;
    let mut near = Peer::clean(&here, V5, "").await;
    for (n, qos) in [QOS1, QOS2].into_iter().enumerate() {
        near.say("out/a", qos, &"x".repeat(2000)).await;
        near.say("out/a", qos, "small").await;
        assert_eq!(far.receive_texts(1).await, ["small"]);
        here.counts("bridge_messages_dropped_total", n as u64 + 1).await;
    }
}

#[tokio::test]
async fn what_we_grant_to_clients_does_not_bind_the_other_broker() {
    let there = Broker::start().await;
    let (_directory, config) = config_file(&format!(
        "[mqtt]\nretain = false\nmax_qos = 0\n[[bridges]]\nname = \"b\"\nurl = \"mqtt://{}\"\n{TOPICS}",
        there.address("mqtt")
    ));
    let here = Broker::start_with(&["--config", &config]).await;
    here.counts("bridges_connected", 1).await;
    let mut near = Peer::subscribed(&here, V5, "in/#", QOS0).await;
    Peer::clean(&there, V5, "").await.say_retained("in/a", QOS1, "comes").await;
    assert_eq!(near.receive_texts(1).await, ["comes"]);
    here.counts("bridges_connected", 1).await;
}

#[tokio::test]
async fn a_bridge_speaks_tls_with_a_certificate_of_its_own() {
    let (directory, authority) = certified();
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
    let path = directory.path().display().to_string();
    let listener = format!(
        "[[mqtt.listeners]]\nname = \"x\"\nlisten = \"127.0.0.1:0\"\n{}tls.client_cert = \"required\"\n\
         tls.client_ca = \"{path}/ca.pem\"\n",
        tls_lines(&directory)
    );
    let (_there, config) = config_file(&listener);
    let there = Broker::start_with(&["--config", &config]).await;
    let url = format!("mqtts://localhost:{}", there.address("mqtt.x").port());
    let own = format!("tls.ca = \"{path}/ca.pem\"\n{}", tls_lines(&directory));
    let (_here, config) = bridge(&url, &own, TOPICS);
    let here = Broker::start_with(&["--config", &config]).await;
    here.counts("bridges_connected", 1).await;
    let mut far = Peer::subscribed(&there, V5, "out/#", QOS1).await;
    Peer::clean(&here, V5, "").await.say("out/a", QOS1, "secret").await;
    assert_eq!(far.receive_texts(1).await, ["secret"]);
    drop(here);
    // Without a certificate it is not let in; one that we do not trust is not believed.
    let other = certified();
    std::fs::write(other.0.path().join("ca.pem"), other.1.pem()).unwrap();
    for (ca, why) in [(path.as_str(), "not connected"), (&*other.0.path().display().to_string(), "no TLS")] {
        let (_here, config) = bridge(&url, &format!("tls.ca = \"{ca}/ca.pem\""), TOPICS);
        let mut here = Broker::start_with(&["--config", &config]).await;
        here.process().says(why).await;
    }
    let (_here, config) = bridge(&url, &format!("tls.ca = \"{path}/none.pem\""), TOPICS);
    let doors = ["--grpc-listen", "off", "--mqtt-listen", "127.0.0.1:0"];
    let serve = ["serve", "--config", &config, "--data-dir", &path];
    let refused = stafett(serve.into_iter().chain(doors)).await;
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("the bridge b has no TLS"), "{}", refused.stderr);
}

#[tokio::test]
async fn the_session_of_a_bridge_is_nobody_elses() {
    let there = Broker::start().await;
    let here = joined(there.address("mqtt"), "", None).await;
    here.counts("bridges_connected", 1).await;
    let (_, connack) = Peer::greet(&here, kept(V5, "bridge.b")).await;
    assert_eq!(connack.reason, ReasonCode::ClientIdentifierNotValid);
    let mut far = Peer::subscribed(&there, V5, "out/#", QOS1).await;
    Peer::clean(&here, V5, "").await.say("out/a", QOS1, "still here").await;
    assert_eq!(far.receive_texts(1).await, ["still here"]);
}
