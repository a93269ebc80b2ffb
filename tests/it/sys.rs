//! The values under `$SYS/`, over both doors.

use stafett::grpc::proto::v1;
use tonic::Code;

use crate::harness::{Broker, config_file, stafett};
use crate::mqtt::{Peer, QOS0, QOS1, V5, V311, connect, kept, text};
use crate::pubsub::{Topics, retained};
use crate::queue::{field, refused};

/// Told every second, so that a test sees the second time.
const OFTEN: &str = "[sys]\ninterval = \"1s\"\n";

/// Reads what comes until `topic` has this value.
async fn sees(peer: &mut Peer, topic: &str, value: &str) {
    loop {
        let publish = peer.publish().await;
        assert!(publish.topic.starts_with("$SYS/broker/"), "{publish:?}");
        assert_eq!(publish.qos, QOS0);
        if *publish.topic == *topic && text(&publish) == value {
            return;
        }
    }
}

#[tokio::test]
async fn clients_read_what_the_broker_counts() {
    let (_directory, config) = config_file(OFTEN);
    let broker = Broker::start_with(&["--config", &config]).await;
    let mut old = Peer::clean(&broker, V311, "old").await;
    let version = concat!("stafett version ", env!("CARGO_PKG_VERSION"));
    old.subscribe_and_find("$SYS/broker/version", version).await;
    let mut peer = Peer::clean(&broker, V5, "").await;
    peer.subscribe("$SYS/#", QOS1).await;
    sees(&mut peer, "$SYS/broker/clients/connected", "2").await;

    old.say("a", QOS1, "12345").await;
    old.say("b", QOS0, "678").await;
    sees(&mut peer, "$SYS/broker/publish/messages/received", "2").await;
    old.say_retained("kept", QOS1, "x").await;
    sees(&mut peer, "$SYS/broker/retained messages/count", "1").await;
    drop(old);
    sees(&mut peer, "$SYS/broker/clients/connected", "1").await;
    let mut late = Peer::clean(&broker, V5, "").await;
    late.subscribe_and_find("$SYS/broker/publish/bytes/received", "9").await;

    let mut topics = Topics::of(&broker).await;
    let first = topics.subscribe(&["$SYS/broker/clients/maximum"]).await.texts(1).await;
    assert!(["2", "3"].contains(&first[0].as_str()), "{first:?}");
    let mut told = topics.subscribe(&["$SYS/broker/uptime"]).await;
    assert!(told.texts(3).await.iter().all(|text| text.ends_with(" seconds")));
    // GetServerInfo has the same counts.
    broker.counts("publishes_received_total", 3).await;
    broker.counts("publishes_received_bytes_total", 9).await;
}

#[tokio::test]
async fn the_servers_values_are_the_servers() {
    // An upgrade of what is delivered does not store them either.
    let (_directory, config) = config_file(&format!("{OFTEN}[mqtt]\nupgrade_outgoing_qos = true\n"));
    let broker = Broker::start_with(&["--config", &config]).await;
    let mut all = Peer::subscribed(&broker, V5, "#", QOS0).await;
    let mut away = Peer::connected(&broker, kept(V5, "away")).await;
    away.subscribe("$SYS/#", QOS1).await;
    away.vanish();
    let mut watcher = Peer::clean(&broker, V5, "").await;
    watcher.subscribe("$SYS/broker/uptime", QOS1).await;
    for _ in 0..3 {
        assert_eq!(watcher.publish().await.qos, QOS0);
    }
    all.nothing_came().await;

    let mut topics = Topics::of(&broker).await;
    let delete = v1::DeleteRetainedRequest { filter: "$SYS/#".to_owned() };
    assert_eq!(field(&refused(topics.0.delete_retained(delete)).await), "filter");
    let publish = v1::PublishRequest { message: Some(retained("$SYS/broker/version", "mine")) };
    assert_eq!(refused(topics.0.publish(publish)).await.code(), Code::InvalidArgument);
    let made = stafett(["queue", "create", "q", "--bind", "$SYS/#", "--server", &broker.url()]).await;
    assert!(made.stderr.contains("$SYS"), "{made:?}");

    // Nothing was stored, for the session that is away or as retained values.
    broker.counts("messages_stored", 0).await;
    let data = broker.data();
    broker.terminate().await;
    let export = stafett(["store", "export", "--data-dir", data.path().to_str().unwrap()]).await;
    assert!(export.stdout.contains("away") && !export.stdout.contains("$SYS/broker"), "{export:?}");
}

#[tokio::test]
async fn nothing_is_told_when_that_is_switched_off() {
    let (_directory, config) = config_file("[sys]\ninterval = \"off\"\n");
    let broker = Broker::start_with(&["--config", &config]).await;
    let mut peer = Peer::connected(&broker, connect(V5, "c")).await;
    peer.subscribe("$SYS/#", QOS0).await;
    peer.nothing_came().await;
    let mut topics = Topics::of(&broker).await;
    let get = v1::GetRetainedRequest { topic: "$SYS/broker/version".to_owned() };
    assert_eq!(refused(topics.0.get_retained(get)).await.code(), Code::NotFound);
}
