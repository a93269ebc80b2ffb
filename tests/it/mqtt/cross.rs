//! One topic space behind both doors.

use stafett::grpc::proto::v1;
use stafett::mqtt::codec::PayloadFormat;

use super::*;
use crate::pubsub::{Topics, message, retained};

#[tokio::test]
async fn what_a_device_publishes_reaches_grpc_with_all_that_it_says() {
    let broker = Broker::start().await;
    let mut over_grpc = Topics::of(&broker).await.subscribe(&["d/#"]).await;
    let mut device = Peer::clean(&broker, V5, "device").await;
    let properties = PublishProperties {
        payload_format: Some(PayloadFormat::Utf8),
        content_type: Some("text/plain".into()),
        response_topic: Some("d/reply".into()),
        correlation_data: Some(Bytes::from_static(b"c")),
        user_properties: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
        ..PublishProperties::default()
    };
    let publish = publish("d/x", QOS1, 1, "x");
    let said = device.say_packet(Publish { properties: Some(Box::new(properties)), ..publish }).await;
    assert_eq!(said, ReasonCode::Success);
    Peer::clean(&broker, V311, "").await.say("d/old", QOS2, "y").await;

    let deliveries = over_grpc.deliveries(2).await;
    let [first, second] = &deliveries[..] else { panic!() };
    let first = first.message.as_ref().unwrap();
    assert_eq!((&*first.topic, &first.payload[..]), ("d/x", &b"x"[..]));
    assert_eq!((&*first.content_type, &*first.reply_to), ("text/plain", "d/reply"));
    assert!(first.payload_is_utf8);
    assert_eq!(&first.correlation_data[..], b"c");
    let pairs: Vec<_> = first.properties.iter().map(|pair| (&*pair.key, &*pair.value)).collect();
    assert_eq!(pairs, [("k", "1"), ("k", "2")]);
    assert_eq!(second.message.as_ref().unwrap().topic, "d/old");
}

#[tokio::test]
async fn what_is_published_over_grpc_reaches_devices() {
    let broker = Broker::start().await;
    let mut topics = Topics::of(&broker).await;
    let mut live = Peer::subscribed(&broker, V311, "d/+", QOS1).await;
    let mut away = Peer::connected(&broker, kept(V5, "away")).await;
    away.subscribe("d/+", QOS1).await;
    away.leave().await;
    let sent = v1::Message { content_type: "text/plain".into(), ..message("d/x", "x") };
    assert_eq!(topics.publish(sent).await.matched_subscribers, 2);
    assert_eq!(text(&live.receive().await), "x");
    let mut away = Peer::connected(&broker, kept(V5, "away")).await;
    let publish = away.receive().await;
    assert_eq!(properties_of(&publish).content_type.as_deref(), Some("text/plain"));
}

#[tokio::test]
async fn a_retained_value_of_one_door_greets_at_the_other() {
    let broker = Broker::start().await;
    let mut topics = Topics::of(&broker).await;
    topics.publish(retained("r/grpc", "1")).await;
    let mut device = Peer::clean(&broker, V5, "").await;
    device.say_retained("r/mqtt", QOS1, "2").await;
    assert_eq!(topics.subscribe(&["r/mqtt"]).await.texts(1).await, ["2"]);
    device.subscribe_and_find("r/grpc", "1").await;
}
