//! Clients of another hand: rumqttc in both versions, over everything that it speaks.

use std::collections::HashMap;
use std::time::Duration;

use rumqttc::v5::Event as EventFive;
use rumqttc::v5::mqttbytes as five;
use rumqttc::v5::mqttbytes::v5::Packet as PacketFive;
use rumqttc::{Event as EventThree, LastWill, Packet as PacketThree, QoS, TlsConfiguration, Transport};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::*;
use crate::certificates::{Authority, BOTH_TLS, certified, tls_lines};
use crate::harness::{config_file, fixed_port};

/// What comes from a connection.
#[derive(Debug, PartialEq)]
enum Told {
    Ended,
    /// CONNACK: whether a session was there.
    Connected(bool),
    Subscribed,
    /// A publish of ours is acknowledged to the end.
    Acknowledged,
    /// Topic, payload, QoS, retain.
    Message(String, String, u8, bool),
}

/// A will at a QoS, retained.
type Gone = Option<(&'static str, u8)>;

/// What rumqttc speaks over.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Over {
    Tcp,
    Tls,
    Ws,
    Wss,
}

/// A broker and one of the ways to it.
struct Door {
    broker: Option<Broker>,
    over: Over,
    version: Version,
    authority: Authority,
    config: (TempDir, String),
    /// Told when the broker is back.
    back: watch::Sender<()>,
    _certificate: TempDir,
}

/// Each way in each version.
fn ways() -> impl Iterator<Item = (Version, Over)> {
    let all = [Over::Tcp, Over::Tls, Over::Ws, Over::Wss];
    BOTH.into_iter().flat_map(move |version| all.map(|over| (version, over)))
}

impl Door {
    async fn open((version, over): (Version, Over)) -> Self {
        let (certificate, authority) = certified();
        let tls = matches!(over, Over::Tls | Over::Wss).then(|| tls_lines(&certificate));
        let web = matches!(over, Over::Ws | Over::Wss).then_some("transport = \"websocket\"\n");
        let config = config_file(&format!(
            "[[mqtt.listeners]]\nname = \"x\"\nlisten = \"127.0.0.1:{}\"\n{}{}",
            fixed_port(),
            tls.unwrap_or_default(),
            web.unwrap_or_default(),
        ));
        let broker = Some(Broker::start_with(&["--config", &config.1]).await);
        let back = watch::Sender::new(());
        Self { broker, over, version, authority, config, back, _certificate: certificate }
    }

    /// The broker ends, by SIGTERM or as in a crash, and comes back on its store.
    async fn restart(&mut self, crash: bool) {
        let broker = self.broker.take().unwrap();
        let data = broker.data();
        if crash {
            broker.kill9().await;
        } else {
            assert_eq!(broker.terminate().await.code, Some(0));
        }
        self.broker = Some(Broker::start_in(data, &["--config", &self.config.1]).await);
        self.back.send_replace(());
    }

    fn transport(&self) -> (String, u16, Transport) {
        let port = self.broker.as_ref().unwrap().address("mqtt.x").port();
        let tls = || TlsConfiguration::Rustls(self.authority.client(BOTH_TLS, None).into());
        match self.over {
            Over::Tcp => ("127.0.0.1".to_owned(), port, Transport::Tcp),
            Over::Tls => ("localhost".to_owned(), port, Transport::Tls(tls())),
            Over::Ws => (format!("ws://localhost:{port}/mqtt"), port, Transport::Ws),
            Over::Wss => (format!("wss://localhost:{port}/mqtt"), port, Transport::Wss(tls())),
        }
    }

    /// A client that is connected; whether its session was there.
    async fn client(&self, client_id: &str, kept: bool, will: Gone) -> (Client, bool) {
        let (host, port, transport) = self.transport();
        let (tell, told) = mpsc::channel(100);
        let mut task = JoinSet::new();
        let keep_alive = Duration::from_secs(30);
        let sender = match self.version {
            V311 => {
                let mut options = rumqttc::MqttOptions::new(client_id, host, port);
                options.set_keep_alive(keep_alive).set_clean_session(!kept).set_transport(transport);
                if let Some((topic, qos)) = will {
                    options.set_last_will(LastWill::new(topic, "gone", three(qos), true));
                }
                let (client, events) = rumqttc::AsyncClient::new(options, 10);
                task.spawn(run_three(events, tell, self.back.subscribe()));
                Sender::Three(client)
            }
            V5 => {
                let mut options = rumqttc::v5::MqttOptions::new(client_id, host, port);
                options.set_keep_alive(keep_alive).set_clean_start(!kept).set_transport(transport);
                options.set_session_expiry_interval(kept.then_some(3600));
                if let Some((topic, qos)) = will {
                    let will = five::v5::LastWill::new(topic, "gone", five(qos), true, None);
                    options.set_last_will(will);
                }
                let (client, events) = rumqttc::v5::AsyncClient::new(options, 10);
                task.spawn(run_five(events, tell, self.back.subscribe()));
                Sender::Five(client)
            }
        };
        let mut client = Client { sender, told, task, held: VecDeque::new() };
        let present = client.connected().await;
        (client, present)
    }

    async fn clean(&self, client_id: &str) -> Client {
        self.client(client_id, false, None).await.0
    }
}

fn three(qos: u8) -> QoS {
    rumqttc::qos(qos).unwrap()
}

fn five(qos: u8) -> five::QoS {
    five::qos(qos).unwrap()
}

enum Sender {
    Three(rumqttc::AsyncClient),
    Five(rumqttc::v5::AsyncClient),
}

/// A client and what it is told. It comes back when its connection ends.
struct Client {
    sender: Sender,
    told: mpsc::Receiver<Told>,
    task: JoinSet<()>,
    held: VecDeque<Told>,
}

/// Makes what an event loop says known; comes back when the broker does. rumqttc hands a message at QoS 2 out with its
/// PUBLISH; it counts with its PUBREL.
macro_rules! run {
    ($name:ident, $events:ty, $event:ident, $packet:ident) => {
        async fn $name(mut events: $events, tell: mpsc::Sender<Told>, mut back: watch::Receiver<()>) {
            let mut begun: HashMap<u16, Told> = HashMap::new();
            loop {
                let event = events.poll().await;
                let lost = event.is_err();
                let told = match event {
                    Err(_) => Told::Ended,
                    Ok($event::Incoming($packet::ConnAck(connack))) => {
                        Told::Connected(connack.session_present)
                    }
                    Ok($event::Incoming($packet::SubAck(_))) => Told::Subscribed,
                    Ok($event::Incoming($packet::PubAck(_) | $packet::PubComp(_))) => Told::Acknowledged,
                    Ok($event::Incoming($packet::Publish(publish))) => {
                        let topic = String::from_utf8(publish.topic.into()).unwrap();
                        let payload = String::from_utf8(publish.payload.to_vec()).unwrap();
                        let told = Told::Message(topic, payload, publish.qos as u8, publish.retain);
                        if publish.qos as u8 == 2 {
                            begun.insert(publish.pkid, told);
                            continue;
                        }
                        told
                    }
                    Ok($event::Incoming($packet::PubRel(release))) => match begun.remove(&release.pkid) {
                        Some(told) => told,
                        None => continue,
                    },
                    Ok(_) => continue,
                };
                if tell.send(told).await.is_err() || lost && back.changed().await.is_err() {
                    return;
                }
            }
        }
    };
}

run!(run_three, rumqttc::EventLoop, EventThree, PacketThree);
run!(run_five, rumqttc::v5::EventLoop, EventFive, PacketFive);

impl Client {
    /// Waits until it is told something that `wanted` takes; what else comes is kept.
    async fn told<T>(&mut self, what: &str, wanted: impl Fn(&Told) -> Option<T>) -> T {
        if let Some(at) = self.held.iter().position(|told| wanted(told).is_some()) {
            return wanted(&self.held.remove(at).unwrap()).unwrap();
        }
        loop {
            let told = within(what, self.told.recv()).await.unwrap();
            match wanted(&told) {
                Some(found) => return found,
                None => self.held.push_back(told),
            }
        }
    }

    async fn connected(&mut self) -> bool {
        let present = |told: &Told| if let Told::Connected(present) = told { Some(*present) } else { None };
        self.told("CONNACK", present).await
    }

    async fn next(&mut self) -> (String, String, u8, bool) {
        let message = |told: &Told| match told {
            Told::Message(topic, payload, qos, retain) => {
                Some((topic.clone(), payload.clone(), *qos, *retain))
            }
            _ => None,
        };
        self.told("a message", message).await
    }

    async fn expect(&mut self, topic: &str, payload: &str, qos: u8, retain: bool) {
        assert_eq!(self.next().await, (topic.to_owned(), payload.to_owned(), qos, retain));
    }

    async fn subscribe(&mut self, filter: &str, qos: u8) {
        match &self.sender {
            Sender::Three(client) => client.subscribe(filter, three(qos)).await.unwrap(),
            Sender::Five(client) => client.subscribe(filter, five(qos)).await.unwrap(),
        }
        self.told("SUBACK", |told| (*told == Told::Subscribed).then_some(())).await;
    }

    /// Publishes, and waits until it is acknowledged to the end.
    async fn say(&mut self, topic: &str, payload: &str, qos: u8, retain: bool) {
        match &self.sender {
            Sender::Three(client) => client.publish(topic, three(qos), retain, payload).await.unwrap(),
            Sender::Five(client) => {
                client.publish(topic, five(qos), retain, payload.to_owned()).await.unwrap();
            }
        }
        if qos > 0 {
            self.told("an acknowledgement", |told| (*told == Told::Acknowledged).then_some(())).await;
        }
    }

    /// DISCONNECT, and the broker closes.
    async fn leave(mut self) {
        match &self.sender {
            Sender::Three(client) => client.disconnect().await.unwrap(),
            Sender::Five(client) => client.disconnect().await.unwrap(),
        }
        self.told("the end", |told| (*told == Told::Ended).then_some(())).await;
    }

    /// The connection ends without DISCONNECT.
    async fn vanish(mut self) {
        self.task.shutdown().await;
    }
}

#[tokio::test]
async fn each_qos_both_ways() {
    for way in ways() {
        let door = Door::open(way).await;
        let mut sender = door.clean("sender").await;
        for granted in 0..=2 {
            let mut receiver = door.clean("receiver").await;
            receiver.subscribe("shop/+/orders", granted).await;
            for qos in 0..=2 {
                for payload in ["smörgås", &"x".repeat(5000), "last"] {
                    sender.say("shop/1/orders", payload, qos, false).await;
                    receiver.expect("shop/1/orders", payload, qos.min(granted), false).await;
                }
            }
            receiver.leave().await;
        }
    }
}

#[tokio::test]
async fn retained_values() {
    for way in ways() {
        let door = Door::open(way).await;
        let mut watcher = door.clean("watcher").await;
        watcher.subscribe("temp/+", 2).await;
        for qos in 0..=2 {
            let topic = format!("temp/{qos}");
            watcher.say(&topic, "20", qos, true).await;
            watcher.expect(&topic, "20", qos, false).await;
            let mut late = door.clean("late").await;
            late.subscribe("temp/+", 2).await;
            late.expect(&topic, "20", qos, true).await;
            watcher.say(&topic, "", qos, true).await;
            for client in [&mut watcher, &mut late] {
                client.expect(&topic, "", qos, false).await;
            }
            late.leave().await;
        }
    }
}

#[tokio::test]
async fn wills() {
    for way in ways() {
        let door = Door::open(way).await;
        let mut watcher = door.clean("watcher").await;
        watcher.subscribe("state/+", 2).await;
        for (qos, topic) in (0..).zip(["state/0", "state/1", "state/2"]) {
            door.client("lost", false, Some((topic, qos))).await.0.vanish().await;
            watcher.expect(topic, "gone", qos, false).await;
            let mut late = door.clean("late").await;
            late.subscribe(topic, 2).await;
            late.expect(topic, "gone", qos, true).await;
            late.leave().await;
            door.client("polite", false, Some((topic, qos))).await.0.leave().await;
            watcher.say("state/end", "end", 1, false).await;
            watcher.expect("state/end", "end", 1, false).await;
        }
    }
}

#[tokio::test]
async fn a_session_that_is_away_over_a_restart() {
    for way in ways() {
        let mut door = Door::open(way).await;
        for crash in [false, true] {
            let (mut away, present) = door.client("kitchen", true, None).await;
            assert_eq!(present, crash);
            if !present {
                away.subscribe("shop/#", 2).await;
            }
            away.leave().await;
            let mut sender = door.clean("sender").await;
            for n in 0..10 {
                sender.say("shop/1", &format!("missed {n}"), 1 + n % 2, false).await;
            }
            sender.leave().await;
            door.restart(crash).await;
            door.clean("sender").await.say("shop/1", "after it", 2, false).await;
            let (mut back, present) = door.client("kitchen", true, None).await;
            assert!(present);
            let mut came = [Vec::new(), Vec::new(), Vec::new()];
            for _ in 0..11 {
                let (_, payload, qos, _) = back.next().await;
                came[usize::from(qos)].push(payload);
            }
            // What is released later counts later: their order is that of each QoS.
            let missed = |parity| (0..10).filter(move |n| n % 2 == parity).map(|n| format!("missed {n}"));
            assert_eq!(came[1], missed(0).collect::<Vec<_>>());
            assert_eq!(came[2], missed(1).chain(["after it".to_owned()]).collect::<Vec<_>>());
            back.leave().await;
        }
    }
}

#[tokio::test]
async fn a_session_that_is_there_over_a_restart() {
    for way in ways() {
        let mut door = Door::open(way).await;
        let (mut stays, _) = door.client("kitchen", true, None).await;
        stays.subscribe("shop/#", 2).await;
        for crash in [false, true] {
            door.clean("sender").await.say("shop/1", "before", 2, false).await;
            stays.expect("shop/1", "before", 2, false).await;
            // It ends a connection on which an earlier one's PUBREL comes again: its PUBCOMP is to be stored first.
            stays.subscribe("nothing", 0).await;
            door.restart(crash).await;
            door.clean("sender").await.say("shop/1", "meanwhile", 2, false).await;
            stays.expect("shop/1", "meanwhile", 2, false).await;
            assert!(stays.connected().await);
            stays.say("shop/1", "after", 2, false).await;
            stays.expect("shop/1", "after", 2, false).await;
        }
    }
}

#[tokio::test]
async fn rumqttc_tells_and_is_told_properties() {
    use five::QoS;
    use five::v5::PublishProperties;
    use rumqttc::v5::{AsyncClient, MqttOptions};

    let broker = Broker::start().await;
    let address = broker.address("mqtt");
    let options = MqttOptions::new("five", address.ip().to_string(), address.port());
    let (client, mut events) = AsyncClient::new(options, 10);
    client.subscribe("five/#", QoS::ExactlyOnce).await.unwrap();
    let properties = PublishProperties {
        content_type: Some("text/plain".to_owned()),
        user_properties: vec![("k".to_owned(), "1".to_owned()), ("k".to_owned(), "2".to_owned())],
        response_topic: Some("re/ply".to_owned()),
        correlation_data: Some(Bytes::from_static(b"c")),
        message_expiry_interval: Some(100),
        ..PublishProperties::default()
    };
    let mut received = Vec::new();
    let mut published = 0;
    while received.len() < 3 {
        match within("an event", events.poll()).await.unwrap() {
            EventFive::Incoming(PacketFive::SubAck(_)) => {
                for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
                    published += 1;
                    let payload = published.to_string();
                    let publish =
                        client.publish_with_properties("five/x", qos, false, payload, properties.clone());
                    publish.await.unwrap();
                }
            }
            EventFive::Incoming(PacketFive::Publish(publish)) => received.push(publish),
            _ => {}
        }
    }
    for (n, publish) in (1..).zip(&received) {
        let told = publish.properties.as_ref().unwrap();
        assert_eq!(publish.payload, n.to_string());
        assert_eq!(told.user_properties, properties.user_properties);
        assert_eq!(told.content_type, properties.content_type);
        assert_eq!(told.response_topic, properties.response_topic);
        assert_eq!(told.correlation_data, properties.correlation_data);
        assert!(matches!(told.message_expiry_interval, Some(99..=100)));
    }
}
