//! Looking for messages: by state, by property, by topic, place and time.

use stafett::grpc::proto::v1;
use tonic::Code;

use super::{Queues, field, got, message, named, payloads, refused, seconds};
use crate::harness::{Broker, stafett, within};

/// A message with properties.
pub(super) fn with(payload: &str, properties: &[(&str, &str)]) -> v1::Message {
    let property = |&(key, value): &(&str, &str)| v1::Property { key: key.into(), value: value.into() };
    v1::Message { properties: properties.iter().map(property).collect(), ..message(payload) }
}

/// One that is not due for an hour.
pub(super) fn later(message: v1::Message) -> v1::Message {
    let schedule = Some(v1::message::Schedule::Delay(seconds(3600).unwrap()));
    v1::Message { schedule, ..message }
}

/// A filter by properties.
pub(super) fn having(properties: &[(&str, &str)]) -> Option<v1::MessageFilter> {
    let properties = with("", properties).properties;
    Some(v1::MessageFilter { properties, ..Default::default() })
}

impl Queues {
    pub(super) async fn browse(&mut self, request: v1::BrowseRequest) -> Vec<v1::LeasedMessage> {
        let mut pages = got(self.0.browse(request)).await;
        let mut seen = Vec::new();
        while let Some(page) = within("a page", pages.message()).await.unwrap() {
            let last = page.messages.last().map_or(0, |last| last.sequence);
            assert!(page.through_sequence >= last, "{page:?}");
            seen.extend(page.messages);
        }
        seen
    }
}

fn browsing(view: v1::QueueView, filter: Option<v1::MessageFilter>) -> v1::BrowseRequest {
    v1::BrowseRequest { queue: "q".to_owned(), view: view.into(), filter, ..Default::default() }
}

#[tokio::test]
async fn messages_are_found_by_state_and_attribute() {
    let (_broker, mut queues) = Queues::start().await;
    for (payload, properties) in
        [("a", &[("tenant", "7")][..]), ("b", &[("tenant", "8"), ("kind", "x")]), ("c", &[("kind", "x")])]
    {
        queues.enqueue("q", with(payload, properties)).await;
    }
    queues.enqueue("q", later(with("d", &[("kind", "x"), ("tenant", "7")]))).await;
    queues.enqueue("q", v1::Message { topic: "shop/1/order".to_owned(), ..message("e") }).await;
    let leased = queues.one("q").await;
    assert_eq!(payloads(&[leased]), ["a"]);

    let all = queues.browse(browsing(v1::QueueView::All, None)).await;
    assert_eq!(payloads(&all), ["a", "b", "c", "d", "e"]);
    let states: Vec<_> = all.iter().map(v1::LeasedMessage::state).collect();
    let (ready, delayed) = (v1::QueueView::Ready, v1::QueueView::Delayed);
    assert_eq!(states, [v1::QueueView::Leased, ready, ready, delayed, ready]);

    let filter = v1::MessageFilter::default;
    let by_topic = |topic: &str| Some(v1::MessageFilter { topic_filter: topic.to_owned(), ..filter() });
    let places = |from: usize, to: usize| {
        let (from_sequence, to_sequence) = (all[from].sequence, all[to].sequence);
        Some(v1::MessageFilter { from_sequence, to_sequence, ..filter() })
    };
    for (view, filter, expected) in [
        (v1::QueueView::All, having(&[("tenant", "7")]), &["a", "d"][..]),
        (v1::QueueView::All, having(&[("tenant", "7"), ("kind", "x")]), &["d"]),
        (v1::QueueView::All, having(&[("kind", "x")]), &["b", "c", "d"]),
        (v1::QueueView::Ready, having(&[("kind", "x")]), &["b", "c"]),
        (v1::QueueView::Delayed, having(&[("kind", "x")]), &["d"]),
        (v1::QueueView::Leased, having(&[("tenant", "7")]), &["a"]),
        (v1::QueueView::All, having(&[("tenant", "9")]), &[]),
        (v1::QueueView::All, by_topic("shop/+/order"), &["e"]),
        (v1::QueueView::All, by_topic("$queue/+"), &["a", "b", "c", "d"]),
        (v1::QueueView::All, places(1, 3), &["b", "c", "d"]),
        (v1::QueueView::Unspecified, places(2, 2), &["c"]),
    ] {
        let found = queues.browse(browsing(view, filter.clone())).await;
        assert_eq!(payloads(&found), expected, "{view:?} {filter:?}");
    }

    let came = |shown: &v1::LeasedMessage| shown.origin.as_ref().unwrap().publish_time.unwrap();
    let key = |at: prost_types::Timestamp| (at.seconds, at.nanos);
    let middle = came(&all[2]);
    for (since, before) in [(Some(middle), None), (None, Some(middle))] {
        let filter = v1::MessageFilter { since, before, ..filter() };
        let meant = |shown: &&v1::LeasedMessage| (key(came(shown)) >= key(middle)) == since.is_some();
        let expected: Vec<_> = all.iter().filter(meant).cloned().collect();
        let found = queues.browse(browsing(v1::QueueView::All, Some(filter))).await;
        assert_eq!(payloads(&found), payloads(&expected));
    }
}

#[tokio::test]
async fn a_search_is_bounded_and_goes_on_where_it_ended() {
    let (broker, mut queues) = Queues::start().await;
    let messages: Vec<_> =
        (0..2500).map(|n| with(&n.to_string(), &[("even", if n % 2 == 0 { "yes" } else { "no" })])).collect();
    for chunk in messages.chunks(500) {
        let request =
            v1::EnqueueBatchRequest { queue: "q".to_owned(), messages: chunk.to_vec(), atomic: false };
        got(queues.0.enqueue_batch(request)).await;
    }
    // What is looked for is only on disk.
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    let mut found = Vec::new();
    let mut from_sequence = 0;
    loop {
        let request = v1::BrowseRequest {
            from_sequence,
            max_messages: 400,
            ..browsing(v1::QueueView::Ready, having(&[("even", "yes")]))
        };
        let mut pages = got(queues.0.browse(request)).await;
        let before = found.len();
        while let Some(page) = within("a page", pages.message()).await.unwrap() {
            found.extend(payloads(&page.messages));
            from_sequence = page.through_sequence + 1;
        }
        assert!(found.len() <= before + 400);
        if found.len() == before {
            break;
        }
    }
    let expected: Vec<_> = (0..2500).step_by(2).map(|n| n.to_string()).collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_filter_that_can_mean_nothing_is_named() {
    let (_broker, mut queues) = Queues::start().await;
    let wrong = v1::MessageFilter { topic_filter: "a/#/b".to_owned(), ..Default::default() };
    let status = refused(queues.0.browse(browsing(v1::QueueView::Ready, Some(wrong)))).await;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "filter.topic_filter"));
    let other = v1::BrowseRequest { queue: "nobody".to_owned(), ..Default::default() };
    assert_eq!(refused(queues.0.browse(other)).await.code(), Code::NotFound);
}

#[tokio::test]
async fn messages_are_looked_for_from_the_command_line() {
    let (broker, mut queues) = Queues::start().await;
    queues.create(named("dead")).await;
    queues.enqueue("q", with("a", &[("tenant", "7")])).await;
    queues.enqueue("q", later(with("b", &[("tenant", "7"), ("kind", "x")]))).await;
    queues.enqueue("q", with("c", &[("tenant", "8")])).await;
    let url = broker.url();
    let browse = async |args: &[&str]| {
        let all = ["queue", "browse", "q", "--server", &url, "--view", "all"];
        let ended = stafett(all.into_iter().chain(args.iter().copied())).await;
        let payload = |line: &str| line.split_once('\t').map(|(_, payload)| payload.to_owned());
        (ended.code.unwrap(), ended.stdout.lines().filter_map(payload).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(browse(&[]).await, (0, "a b c".to_owned()));
    assert_eq!(browse(&["--where", "tenant=7"]).await, (0, "a b".to_owned()));
    assert_eq!(browse(&["--where", "tenant=7", "--where", "kind=x"]).await, (0, "b".to_owned()));
    assert_eq!(browse(&["--where", "tenant=7", "-n", "1"]).await, (0, "a".to_owned()));
    assert_eq!(browse(&["--where", "tenant=9"]).await, (4, String::new()));
    assert_eq!(browse(&["--newer-than", "1h"]).await, (0, "a b c".to_owned()));
    assert_eq!(browse(&["--older-than", "1h"]).await, (4, String::new()));
    assert_eq!(browse(&["--source", "dead"]).await, (4, String::new()));
    assert_eq!(browse(&["--where", "tenant"]).await.0, 2);
    let ended =
        stafett(["queue", "browse", "q", "--server", &url, "--view", "delayed", "--json"]).await.stdout;
    assert!(ended.contains("\"state\":\"delayed\""), "{ended}");
}
