//! Receiving: filters, shares, windows, streams and their ends.

use rustix::process::Signal;
use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::subscribe_stream_request::Action;
use stafett::grpc::proto::v1::subscribe_stream_response::Event;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::{Topics, filter, message, session, text, texts};
use crate::harness::{Broker, config_file, within};
use crate::queue::{Queues, field, got, named, refused, seconds};
use crate::streams::Logs;

#[tokio::test]
async fn what_came_of_a_stream_may_be_acknowledged_after_its_end() {
    let (broker, mut logs) = Logs::start().await;
    logs.count("t/a", 0..3).await;
    let name = "$replay/first:s/t/#";
    let mut stream = Topics::of(&broker).await.session("reader", &[name]).await;
    assert_eq!(stream.opened.filters[0].error, None);
    let deliveries = stream.deliveries(3).await;
    assert_eq!(texts(&deliveries), ["0", "1", "2"]);
    assert_eq!(stream.ack(&deliveries[..1]).await, []);
    assert_eq!(stream.remove(&[name]).await[0].error, None);
    assert_eq!(stream.ack(&deliveries[1..]).await, []);
}

#[tokio::test]
async fn filters_say_what_comes() {
    let (_broker, mut topics) = Topics::start().await;
    let with_id = |text: &str, subscription_id| v1::TopicFilter { subscription_id, ..filter(text) };
    let open = v1::OpenSession {
        filters: vec![
            with_id("a/+", 1),
            with_id("a/#", 2),
            v1::TopicFilter { max_qos: v1::Qos::AtMostOnce.into(), ..filter("low") },
            filter("b/#/c"),
            v1::TopicFilter { no_local: true, share_group: "g".to_owned(), ..filter("x") },
        ],
        ..Default::default()
    };
    let mut stream = topics.open(open).await;
    let codes: Vec<_> =
        stream.opened.filters.iter().map(|f| f.error.as_ref().map(|e| Code::from(e.code))).collect();
    assert_eq!(codes, [None, None, None, Some(Code::InvalidArgument), Some(Code::InvalidArgument)]);
    let granted: Vec<_> = stream.opened.filters.iter().map(|f| f.granted_qos()).collect();
    assert_eq!(granted[..3], [v1::Qos::AtLeastOnce, v1::Qos::AtLeastOnce, v1::Qos::AtMostOnce]);
    let window = stream.opened.window.unwrap();
    assert!(window.max_outstanding_messages > 0 && window.max_outstanding_bytes > 0);

    topics.publish(message("a/1", "both")).await;
    topics.publish(message("a", "one")).await;
    topics.publish(message("low", "low")).await;
    topics.publish(message("b/c", "none")).await;
    let deliveries = stream.deliveries(3).await;
    let told: Vec<_> = deliveries
        .iter()
        .map(|d| (text(d.message.as_ref()), d.subscription_ids.clone(), d.message.as_ref().unwrap().qos()))
        .collect();
    assert_eq!(told[0].0, "both");
    let mut ids = told[0].1.clone();
    ids.sort_unstable();
    assert_eq!((ids, told[0].2), (vec![1, 2], v1::Qos::AtLeastOnce));
    assert_eq!(told[1], ("one".to_owned(), vec![2], v1::Qos::AtLeastOnce));
    assert_eq!(told[2], ("low".to_owned(), vec![], v1::Qos::AtMostOnce));
    assert_eq!(deliveries.iter().map(|d| d.delivery_id).collect::<Vec<_>>(), [1, 2, 0]);
    assert_eq!(stream.ack(&deliveries[..2]).await, []);
    let failures = stream.ack_ids(vec![1, 77]).await;
    assert_eq!(failures.iter().map(|f| f.delivery_id).collect::<Vec<_>>(), [1, 77]);

    let added = stream.add(vec![filter("c"), filter("")]).await;
    assert_eq!((added[0].error.is_none(), added[1].error.is_some()), (true, true));
    let removed = stream.remove(&["a/+", "a/#", "never"]).await;
    assert_eq!(removed.iter().map(|f| f.error.is_some()).collect::<Vec<_>>(), [false, false, true]);
    topics.publish(message("a/1", "gone")).await;
    topics.publish(message("c", "new")).await;
    assert_eq!(stream.texts(1).await, ["new"]);
    stream.finish().await;
}

#[tokio::test]
async fn a_plain_subscription_is_all_or_nothing() {
    let (_broker, mut topics) = Topics::start().await;
    let request = v1::SubscribeRequest { filters: vec![filter("a"), filter("a/#/b")] };
    let status = refused(topics.0.subscribe(request)).await;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "filters[1].filter"));
    let status = refused(topics.0.subscribe(v1::SubscribeRequest { filters: Vec::new() })).await;
    assert_eq!(field(&status), "filters");
    let request = v1::SubscribeRequest { filters: vec![filter("a"), filter("$queue/none")] };
    assert_eq!(refused(topics.0.subscribe(request)).await.code(), Code::NotFound);
    assert_eq!(topics.publish(message("a", "")).await.matched_subscribers, 0);
}

#[tokio::test]
async fn a_share_gives_each_message_to_one_member() {
    let (_broker, mut topics) = Topics::start().await;
    let shared = v1::TopicFilter { share_group: "g".to_owned(), ..filter("jobs/+") };
    let open = |client_id: &str| v1::OpenSession {
        client_id: client_id.to_owned(),
        filters: vec![shared.clone()],
        ..Default::default()
    };
    let mut a = topics.open(open("a")).await;
    let mut b = topics.open(open("b")).await;
    assert_eq!(a.opened.filters[0].share_group, "g");
    for n in 0..10 {
        let published = topics.publish(message("jobs/1", &n.to_string())).await;
        assert_eq!(published.matched_subscribers, 1);
    }
    let (of_a, of_b) = (a.deliveries(5).await, b.deliveries(5).await);
    let mut all: Vec<_> = texts(&of_a).into_iter().chain(texts(&of_b)).collect();
    all.sort();
    assert_eq!(all, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
    // What one had not settled goes to the other when it leaves.
    assert_eq!(a.ack(&of_a[..3]).await, []);
    drop(a);
    let mut again = b.texts(2).await;
    again.sort();
    let mut left = texts(&of_a[3..]);
    left.sort();
    assert_eq!(again, left);
}

#[tokio::test]
async fn a_durable_share_keeps_what_nobody_takes() {
    let (_broker, mut topics) = Topics::start().await;
    let shared = v1::TopicFilter { share_group: "g".to_owned(), ..filter("jobs/+") };
    let open = |id: &str| v1::OpenSession { filters: vec![shared.clone()], ..session(id, &[]) };
    let mut a = topics.open(open("a")).await;
    topics.publish(message("jobs/1", "1")).await;
    let first = a.deliveries(1).await;
    assert_eq!(a.ack(&first).await, []);
    a.finish().await;
    for n in 2..=4 {
        assert_eq!(topics.publish(message("jobs/1", &n.to_string())).await.matched_subscribers, 1);
    }
    // A member that was never there before takes the backlog.
    let mut b = topics.open(open("b")).await;
    assert_eq!(b.texts(3).await, ["2", "3", "4"]);
}

#[tokio::test]
async fn a_stream_consumes_queues_too() {
    let (broker, mut topics) = Topics::start().await;
    let mut queues = Queues::of(&broker).await;
    queues.create(named("q")).await;
    queues.fill("q", &["1", "2", "3"]).await;
    let mut stream =
        topics.open(v1::OpenSession { filters: vec![filter("$queue/q")], ..Default::default() }).await;
    let deliveries = stream.deliveries(3).await;
    assert_eq!(texts(&deliveries), ["1", "2", "3"]);
    assert_eq!(stream.ack(&deliveries[..1]).await, []);
    stream.finish().await;
    // Without a session it is settled by being sent.
    let mut plain = topics.subscribe(&["$queue/q"]).await;
    assert_eq!(plain.texts(2).await, ["2", "3"]);
    queues.fill("q", &["4"]).await;
    assert_eq!(plain.texts(1).await, ["4"]);
    drop(plain);
    assert!(queues.is_empty("q").await);
}

#[tokio::test]
async fn a_window_bounds_what_is_outstanding() {
    let (_broker, mut topics) = Topics::start().await;
    let window = Some(v1::Window { max_outstanding_messages: 2, max_outstanding_bytes: 0 });
    for open in [
        v1::OpenSession { window, filters: vec![filter("t")], ..Default::default() },
        v1::OpenSession { window, ..session("s", &["t"]) },
    ] {
        let mut stream = topics.open(open).await;
        for n in 0..5 {
            topics.publish(message("t", &n.to_string())).await;
        }
        let first = stream.deliveries(2).await;
        assert_eq!(texts(&first), ["0", "1"]);
        assert_eq!(stream.ack(&first[1..]).await, []);
        assert_eq!(stream.texts(1).await, ["2"]);
        assert_eq!(stream.ack_ids(vec![first[0].delivery_id, 3]).await, []);
        assert_eq!(stream.texts(2).await, ["3", "4"]);
        stream.finish().await;
    }
}

#[tokio::test]
async fn a_stream_of_deliveries_has_its_rules() {
    let (_broker, mut topics) = Topics::start().await;
    let unnamed = v1::OpenSession { session_expiry: seconds(1), ..Default::default() };
    let window = Some(v1::Window { max_outstanding_messages: 100_000, max_outstanding_bytes: 0 });
    let wide = v1::OpenSession { window, ..Default::default() };
    for (first, named) in [
        (Action::Ack(v1::AckBatch::default()), "open"),
        (Action::Open(unnamed), "open.client_id"),
        (Action::Open(wide), "open.window.max_outstanding_messages"),
        (
            Action::Open(v1::OpenSession { client_id: "\u{1}".to_owned(), ..Default::default() }),
            "open.client_id",
        ),
    ] {
        let (send, frames) = mpsc::channel(1);
        send.send(v1::SubscribeStreamRequest { action: Some(first) }).await.unwrap();
        let mut events = got(topics.0.subscribe_stream(ReceiverStream::new(frames))).await;
        let status = within("the refusal", events.message()).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, named));
    }
    let mut stream = topics.open(v1::OpenSession::default()).await;
    stream
        .say(Action::Ack(v1::AckBatch {
            ack_id: 1,
            lease_tokens: vec![vec![1].into()],
            ..Default::default()
        }))
        .await;
    let (closing, status) = stream.ended().await;
    assert_eq!(Code::from(closing.status.unwrap().code), Code::InvalidArgument);
    assert_eq!(field(&status.unwrap()), "ack.lease_tokens");
}

#[tokio::test]
async fn the_broker_says_why_it_ends_a_stream() {
    let (file, path) = config_file("[grpc]\nmax_stream_age = \"1s\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut topics = Topics::of(&broker).await;
    let mut stream = topics.session("s", &["t"]).await;
    let mut plain = topics.subscribe(&["t"]).await;
    topics.publish(message("t", "kept")).await;
    let delivered = stream.deliveries(1).await;
    assert_eq!(delivered[0].delivery_attempt, 1);
    let (closing, status) = stream.ended().await;
    assert_eq!(Code::from(closing.status.unwrap().code), Code::Unavailable);
    assert!(closing.reconnect_after.is_some() && status.is_none(), "{status:?}");
    assert_eq!(plain.texts(1).await, ["kept"]);
    let event = plain.next().await.unwrap().unwrap().event;
    assert!(matches!(event, Some(v1::subscribe_response::Event::Closing(_))), "{event:?}");
    let again = topics.session("s", &[]).await.deliveries(1).await;
    assert_eq!((texts(&again), again[0].delivery_attempt), (vec!["kept".to_owned()], 2));
    drop(file);
}

#[tokio::test]
async fn a_stop_tells_every_stream() {
    let (mut broker, mut topics) = Topics::start().await;
    let mut stream = topics.session("s", &["t"]).await;
    broker.process().signal(Signal::TERM);
    let (closing, _) = stream.ended().await;
    assert_eq!(Code::from(closing.status.unwrap().code), Code::Unavailable);
    let ended = broker.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[tokio::test]
async fn a_client_may_say_that_it_is_alive() {
    let (_broker, mut topics) = Topics::start().await;
    let mut stream = topics.open(v1::OpenSession::default()).await;
    stream.say(Action::Heartbeat(v1::Heartbeat::default())).await;
    let added = stream.add(vec![filter("t")]).await;
    assert_eq!(added.len(), 1);
    topics.publish(message("t", "x")).await;
    assert!(matches!(stream.hear().await, Event::Deliveries(_)));
}
