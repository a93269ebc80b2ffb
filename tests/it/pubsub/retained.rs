//! Retained messages.

use stafett::grpc::proto::v1;
use tonic::Code;

use super::{Topics, filter, message, retained, text, texts};
use crate::harness::Broker;
use crate::queue::{field, got, refused, seconds};

impl Topics {
    async fn get(&mut self, topic: &str) -> v1::GetRetainedResponse {
        got(self.0.get_retained(v1::GetRetainedRequest { topic: topic.to_owned() })).await
    }

    async fn list(&mut self, filter: &str, page_size: i32, page_token: String) -> v1::ListRetainedResponse {
        let filter = filter.to_owned();
        got(self.0.list_retained(v1::ListRetainedRequest { filter, page_size, page_token })).await
    }
}

fn topics_of(page: &v1::ListRetainedResponse) -> Vec<&str> {
    page.messages.iter().map(|message| message.topic.as_str()).collect()
}

#[tokio::test]
async fn the_last_value_is_kept_read_and_deleted() {
    let (broker, mut topics) = Topics::start().await;
    topics.publish(retained("a/1", "old")).await;
    let published = topics.publish(retained("a/1", "new")).await;
    topics.publish(v1::Message { ttl: seconds(3600), ..retained("a/2", "2") }).await;
    topics.publish(v1::Message { qos: v1::Qos::AtMostOnce.into(), ..retained("b", "3") }).await;
    topics.publish(message("c", "not kept")).await;
    topics.publish(retained("gone", "x")).await;
    topics.publish(retained("gone", "")).await;

    let kept = topics.get("a/1").await;
    assert_eq!((text(kept.message.as_ref()), kept.message.unwrap().retain), ("new".to_owned(), true));
    assert_eq!(kept.origin.unwrap().message_id, published.message_id);
    assert!(topics.get("a/2").await.message.unwrap().ttl.unwrap().seconds > 3000);
    for topic in ["gone", "c", "never"] {
        let request = v1::GetRetainedRequest { topic: topic.to_owned() };
        assert_eq!(refused(topics.0.get_retained(request)).await.code(), Code::NotFound);
    }

    let page = topics.list("", 2, String::new()).await;
    assert_eq!(topics_of(&page), ["a/1", "a/2"]);
    let rest = topics.list("", 2, page.next_page_token).await;
    assert_eq!((topics_of(&rest), rest.next_page_token.as_str()), (vec!["b"], ""));
    assert_eq!(topics_of(&topics.list("a/+", 0, String::new()).await), ["a/1", "a/2"]);
    let request = v1::ListRetainedRequest { filter: "a/#/b".to_owned(), ..Default::default() };
    assert_eq!(field(&refused(topics.0.list_retained(request)).await), "filter");
    let request = v1::ListRetainedRequest { page_size: -1, ..Default::default() };
    assert_eq!(field(&refused(topics.0.list_retained(request)).await), "page_size");
    let nothing = v1::DeleteRetainedRequest { filter: String::new() };
    assert_eq!(field(&refused(topics.0.delete_retained(nothing)).await), "filter");

    let delete = v1::DeleteRetainedRequest { filter: "a/#".to_owned() };
    assert_eq!(got(topics.0.delete_retained(delete)).await.deleted, 2);
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut topics = Topics::of(&broker).await;
    assert_eq!(topics_of(&topics.list("#", 10, String::new()).await), ["b"]);
}

#[tokio::test]
async fn a_new_subscription_gets_values_first() {
    let (_broker, mut topics) = Topics::start().await;
    for n in 0..3 {
        topics.publish(retained(&format!("t/{n}"), &n.to_string())).await;
    }
    let mut plain = topics.subscribe(&["t/+"]).await;
    topics.publish(message("t/0", "live")).await;
    let deliveries = plain.deliveries(4).await;
    assert_eq!(deliveries.iter().map(|d| d.retained).collect::<Vec<_>>(), [true, true, true, false]);
    assert_eq!(deliveries[3].message.as_ref().unwrap().topic, "t/0");

    let handling =
        |which: v1::RetainHandling| v1::TopicFilter { retain_handling: which.into(), ..filter("t/1") };
    let mut stream = topics.session("s", &[]).await;
    stream.add(vec![handling(v1::RetainHandling::SendIfNew)]).await;
    let first = stream.deliveries(1).await;
    assert_eq!((texts(&first), first[0].retained), (vec!["1".to_owned()], true));
    stream.add(vec![handling(v1::RetainHandling::SendIfNew)]).await;
    stream.add(vec![handling(v1::RetainHandling::DoNotSend)]).await;
    stream.add(vec![handling(v1::RetainHandling::Unspecified)]).await;
    assert_eq!(stream.texts(1).await, ["1"]);
}

#[tokio::test]
async fn many_values_come_whole() {
    let (_broker, mut topics) = Topics::start().await;
    let messages = (0..5000).map(|n| retained(&format!("t/{n:04}"), &n.to_string())).collect();
    let results = got(topics.0.publish_batch(v1::PublishBatchRequest { messages })).await.results;
    assert_eq!(results.len(), 5000);
    // At least once, within a small window, and at most once.
    let window = Some(v1::Window { max_outstanding_messages: 100, max_outstanding_bytes: 0 });
    let open = v1::OpenSession { window, filters: vec![filter("t/#")], ..Default::default() };
    let mut stream = topics.open(open).await;
    let mut seen = Vec::new();
    while seen.len() < 5000 {
        let stafett::grpc::proto::v1::subscribe_stream_response::Event::Deliveries(batch) =
            stream.hear().await
        else {
            continue;
        };
        stream.acks += 1;
        let ack = v1::AckBatch {
            ack_id: stream.acks,
            delivery_ids: batch.deliveries.iter().map(|d| d.delivery_id).collect(),
            lease_tokens: Vec::new(),
        };
        seen.extend(batch.deliveries.into_iter().map(|d| d.message.unwrap().topic));
        stream.say(v1::subscribe_stream_request::Action::Ack(ack)).await;
    }
    assert!(seen.is_sorted() && seen.len() == 5000);
    let mut plain = topics.subscribe(&["#"]).await;
    assert_eq!(plain.deliveries(5000).await.len(), 5000);
}
