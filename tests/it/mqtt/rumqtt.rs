//! Clients of another hand: rumqttc in both versions.

use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, Incoming, MqttOptions, QoS};
use tokio::task::JoinSet;

use super::*;

/// A client whose publishes are gathered.
struct Client {
    client: AsyncClient,
    received: tokio::sync::mpsc::Receiver<(String, String, bool)>,
    subscribed: tokio::sync::mpsc::Receiver<()>,
    _task: JoinSet<()>,
}

impl Client {
    fn new(broker: &Broker, client_id: &str, clean: bool) -> Self {
        let address = broker.address("mqtt");
        let mut options = MqttOptions::new(client_id, address.ip().to_string(), address.port());
        options.set_keep_alive(Duration::from_secs(5)).set_clean_session(clean);
        let (client, events) = AsyncClient::new(options, 10);
        let (send, received) = tokio::sync::mpsc::channel(100);
        let (acked, subscribed) = tokio::sync::mpsc::channel(10);
        let mut task = JoinSet::new();
        task.spawn(Self::run(events, send, acked));
        Self { client, received, subscribed, _task: task }
    }

    async fn run(
        mut events: EventLoop,
        send: tokio::sync::mpsc::Sender<(String, String, bool)>,
        acked: tokio::sync::mpsc::Sender<()>,
    ) {
        while let Ok(event) = events.poll().await {
            match event {
                Event::Incoming(Incoming::Publish(publish)) => {
                    let text = String::from_utf8(publish.payload.to_vec()).unwrap();
                    send.send((publish.topic, text, publish.retain)).await.unwrap();
                }
                Event::Incoming(Incoming::SubAck(_)) => acked.send(()).await.unwrap(),
                _ => {}
            }
        }
    }

    async fn subscribe(&mut self, filter: &str, qos: QoS) {
        self.client.subscribe(filter, qos).await.unwrap();
        within("SUBACK", self.subscribed.recv()).await.unwrap();
    }

    async fn next(&mut self) -> (String, String, bool) {
        within("a publish", self.received.recv()).await.unwrap()
    }
}

#[tokio::test]
async fn rumqttc_publishes_and_subscribes_in_3_1_1() {
    let broker = Broker::start().await;
    let mut subscriber = Client::new(&broker, "sub", true);
    subscriber.subscribe("r/+/x", QoS::ExactlyOnce).await;
    let publisher = Client::new(&broker, "pub", true);
    for (n, qos) in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce].into_iter().enumerate() {
        publisher.client.publish("r/a/x", qos, false, n.to_string()).await.unwrap();
        assert_eq!(subscriber.next().await, ("r/a/x".to_owned(), n.to_string(), false));
    }
    publisher.client.publish("r/kept/x", QoS::AtLeastOnce, true, "kept").await.unwrap();
    assert_eq!(subscriber.next().await.1, "kept");
    let mut late = Client::new(&broker, "late", true);
    late.subscribe("r/kept/#", QoS::AtLeastOnce).await;
    assert_eq!(late.next().await, ("r/kept/x".to_owned(), "kept".to_owned(), true));
}

#[tokio::test]
async fn rumqttc_finds_its_session_again() {
    let broker = Broker::start().await;
    let mut away = Client::new(&broker, "away", false);
    away.subscribe("k/#", QoS::AtLeastOnce).await;
    drop(away);
    let mut publisher = Peer::clean(&broker, V311, "").await;
    for n in 0..10 {
        publisher.say("k/x", QOS1, &n.to_string()).await;
    }
    let mut back = Client::new(&broker, "away", false);
    for n in 0..10 {
        assert_eq!(back.next().await.1, n.to_string());
    }
}

#[tokio::test]
async fn rumqttc_publishes_and_subscribes_in_5() {
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};

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
            Event::Incoming(Packet::SubAck(_)) => {
                for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
                    published += 1;
                    let payload = published.to_string();
                    let publish =
                        client.publish_with_properties("five/x", qos, false, payload, properties.clone());
                    publish.await.unwrap();
                }
            }
            Event::Incoming(Packet::Publish(publish)) => received.push(publish),
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
