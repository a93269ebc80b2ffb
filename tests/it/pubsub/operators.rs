//! What operators see of sessions, and what they may do with them.

use std::num::NonZeroU32;

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::admin_service_client::AdminServiceClient;
use stafett::mqtt::codec::ReasonCode;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt;

use super::{Action, Event, Topics, filter, message, session};
use crate::harness::{Broker, config_file, stafett};
use crate::mqtt::{Peer, QOS1, QOS2, V5, V311, kept, text, will};
use crate::queue::{field, got, reason, refused, seconds};

struct Operator(AdminServiceClient<Channel>);

impl Operator {
    async fn of(broker: &Broker) -> Self {
        Self(AdminServiceClient::new(broker.grpc().await))
    }

    async fn list(&mut self, request: v1::ListSessionsRequest) -> v1::ListSessionsResponse {
        got(self.0.list_sessions(request)).await
    }

    /// The session of one client, if it has one.
    async fn session(&mut self, client_id: &str) -> Option<v1::Session> {
        let request =
            v1::ListSessionsRequest { client_id_prefix: client_id.to_owned(), ..Default::default() };
        self.list(request).await.sessions.into_iter().find(|session| session.client_id == client_id)
    }

    async fn delete(&mut self, client_id: &str) -> u64 {
        let request = v1::DeleteSessionRequest { client_id: client_id.to_owned() };
        got(self.0.delete_session(request)).await.discarded_messages
    }

    async fn disconnect(&mut self, client_id: &str) -> bool {
        let request = v1::DisconnectClientRequest { client_id: client_id.to_owned() };
        got(self.0.disconnect_client(request)).await.was_connected
    }
}

/// A device with a will, and who gets wills.
async fn device(broker: &Broker, client_id: &str) -> (Peer, Peer) {
    let watcher = Peer::subscribed(broker, V5, "wills/#", QOS1).await;
    let mut connect = kept(V5, client_id);
    connect.will = Some(will("wills/device", "lost"));
    (Peer::connected(broker, connect).await, watcher)
}

#[tokio::test]
async fn sessions_of_both_doors_are_listed_page_by_page() {
    let broker = Broker::start().await;
    let (mut topics, mut operator) = (Topics::of(&broker).await, Operator::of(&broker).await);
    let mut peer = Peer::connected(&broker, kept(V5, "a-device")).await;
    peer.subscribe_identified("s/+", QOS2, 7).await;
    peer.subscribe("$share/g/s/+", QOS1).await;
    peer.leave().await;
    for n in 0..3 {
        topics.publish(message("s/1", &n.to_string())).await;
    }
    let open = v1::OpenSession { session_expiry: seconds(60), ..session("b-stream", &["t"]) };
    let mut stream = topics.open(open).await;
    topics.publish(message("t", "under way")).await;
    assert_eq!(stream.texts(1).await, ["under way"]);
    let _once = Peer::clean(&broker, V311, "c-once").await;

    let all = operator.list(v1::ListSessionsRequest::default()).await;
    assert_eq!(all.next_page_token, "");
    let [away, there, once] = &all.sessions[..] else { panic!("{all:?}") };
    assert_eq!((&*away.client_id, away.connected, away.queued), ("a-device", false, 3));
    assert!(away.queued_bytes > 0);
    let seconds_of = |at: Option<prost_types::Timestamp>| at.unwrap().seconds;
    let left = seconds_of(away.expires_at) - seconds_of(away.created_at);
    assert!(left >= 3599, "{away:?}");
    assert_eq!((away.session_expiry, &*away.principal), (seconds(3600), ""));
    let shared = v1::TopicFilter { share_group: "g".to_owned(), ..filter("s/+") };
    let plain = v1::TopicFilter { subscription_id: NonZeroU32::new(7).unwrap().get(), ..filter("s/+") };
    let options = |qos: v1::Qos, filter: v1::TopicFilter| v1::TopicFilter {
        max_qos: qos.into(),
        retain_handling: v1::RetainHandling::Send.into(),
        ..filter
    };
    let expected = [options(v1::Qos::ExactlyOnce, plain), options(v1::Qos::AtLeastOnce, shared)];
    assert_eq!(away.filters, expected);
    assert_eq!((&*there.client_id, there.connected, there.queued), ("b-stream", true, 1));
    assert_eq!((there.session_expiry, there.expires_at), (seconds(60), None));
    assert_eq!((&*once.client_id, once.connected, once.session_expiry), ("c-once", true, seconds(0)));

    // Page by page, and by prefix.
    let mut seen = Vec::new();
    let mut request = v1::ListSessionsRequest { page_size: 1, ..Default::default() };
    loop {
        let page = operator.list(request.clone()).await;
        seen.extend(page.sessions.into_iter().map(|session| session.client_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(seen, ["a-device", "b-stream", "c-once"]);
    assert!(operator.session("b-stream").await.is_some() && operator.session("b").await.is_none());
    let later =
        v1::ListSessionsRequest { client_id_prefix: "b".into(), page_token: "c".into(), page_size: 9 };
    assert_eq!(operator.list(later).await.sessions, []);
    for (wrong, named) in [
        (v1::ListSessionsRequest { page_size: -1, ..Default::default() }, "page_size"),
        (v1::ListSessionsRequest { page_token: "\u{1}".into(), ..Default::default() }, "page_token"),
    ] {
        assert_eq!(field(&refused(operator.0.list_sessions(wrong)).await), named);
    }
}

#[tokio::test]
async fn a_session_is_deleted_with_all_that_it_has() {
    let broker = Broker::start().await;
    let (mut topics, mut operator) = (Topics::of(&broker).await, Operator::of(&broker).await);
    // Away.
    topics.session("away", &["t"]).await.finish().await;
    for n in 0..5 {
        topics.publish(message("t", &n.to_string())).await;
    }
    assert_eq!(operator.delete("away").await, 5);
    assert_eq!(topics.publish(message("t", "")).await.matched_subscribers, 0);
    // At either door, with what is under way.
    let mut stream = topics.session("stream", &["t"]).await;
    topics.publish(message("t", "1")).await;
    assert_eq!(stream.texts(1).await, ["1"]);
    assert_eq!(operator.delete("stream").await, 1);
    let (_, status) = stream.ended().await;
    let status = status.unwrap();
    assert_eq!((status.code(), reason(&status.get_error_details())), (Code::Aborted, "SESSION_DELETED"));
    let (device, mut watcher) = device(&broker, "device").await;
    assert_eq!(operator.delete("device").await, 0);
    assert_eq!(text(&watcher.receive().await), "lost");
    assert_eq!(device.told().await, Some(ReasonCode::AdministrativeAction));
    // For good.
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut operator = Operator::of(&broker).await;
    assert_eq!(operator.list(v1::ListSessionsRequest::default()).await.sessions, []);
    let gone = v1::DeleteSessionRequest { client_id: "away".to_owned() };
    assert_eq!(refused(operator.0.delete_session(gone)).await.code(), Code::NotFound);
    assert_eq!(
        field(&refused(operator.0.delete_session(v1::DeleteSessionRequest::default())).await),
        "client_id"
    );
}

#[tokio::test]
async fn a_client_is_disconnected_and_keeps_its_session() {
    let broker = Broker::start().await;
    let (mut topics, mut operator) = (Topics::of(&broker).await, Operator::of(&broker).await);
    let mut stream = topics.session("stream", &["t"]).await;
    topics.publish(message("t", "1")).await;
    assert_eq!(stream.texts(1).await, ["1"]);
    assert!(operator.disconnect("stream").await);
    let (_, status) = stream.ended().await;
    assert_eq!(reason(&status.unwrap().get_error_details()), "CLIENT_DISCONNECTED");
    assert!(!operator.disconnect("stream").await);
    let again = topics.session("stream", &[]).await.deliveries(1).await;
    assert_eq!(again[0].delivery_attempt, 2);
    let (device, mut watcher) = device(&broker, "device").await;
    assert!(operator.disconnect("device").await);
    assert_eq!(text(&watcher.receive().await), "lost");
    assert_eq!(device.told().await, Some(ReasonCode::AdministrativeAction));
    assert!(!operator.session("device").await.unwrap().connected);
    // One that is not kept is gone with that.
    let once = Peer::clean(&broker, V5, "once").await;
    assert!(operator.disconnect("once").await);
    assert_eq!(once.told().await, Some(ReasonCode::AdministrativeAction));
    let gone = v1::DisconnectClientRequest { client_id: "once".to_owned() };
    assert_eq!(refused(operator.0.disconnect_client(gone)).await.code(), Code::NotFound);
}

/// More than HTTP/2 lets a stream have that is not read.
const LARGE: usize = 256 << 10;
const COUNT: u64 = 8;

#[tokio::test]
async fn a_session_is_taken_from_a_client_that_does_not_read() {
    let (file, path) = config_file("[limits]\nrelease_within = \"100ms\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let (mut topics, mut operator) = (Topics::of(&broker).await, Operator::of(&broker).await);
    let mut watcher = Peer::subscribed(&broker, V5, "wills/#", QOS1).await;
    let will = v1::Will { message: Some(message("wills/c", "lost")), delay: None };
    let open = v1::OpenSession { will: Some(will), ..session("c", &["t"]) };
    let mut stalled = Topics::of(&broker).await.open(open).await;
    for _ in 0..COUNT {
        topics.publish(message("t", &"x".repeat(LARGE))).await;
    }
    assert!(operator.disconnect("c").await);
    assert_eq!(text(&watcher.receive().await), "lost");
    // It is kept as long as it was to be, with all that it has.
    let away = operator.session("c").await.unwrap();
    assert_eq!((away.connected, away.queued, away.session_expiry), (false, COUNT, seconds(3600)));
    let seconds_of = |at: Option<prost_types::Timestamp>| at.unwrap().seconds;
    assert!(seconds_of(away.expires_at) - seconds_of(away.created_at) >= 3599, "{away:?}");
    let mut back = Topics::of(&broker).await.session("c", &[]).await;
    assert!(back.opened.session_present);
    let Event::Deliveries(batch) = back.hear().await else { panic!("no deliveries") };
    assert_eq!(batch.deliveries[0].delivery_attempt, 2);
    // What the first one says now comes too late, and so does its end.
    let at_once = v1::CloseSession { session_expiry: seconds(0), ..Default::default() };
    stalled.say(Action::Close(at_once)).await;
    let (_, status) = stalled.ended().await;
    assert_eq!(reason(&status.unwrap().get_error_details()), "CLIENT_DISCONNECTED");
    assert_eq!(operator.session("c").await.unwrap().session_expiry, seconds(3600));
    assert!(operator.disconnect("c").await);
    assert!(operator.session("c").await.is_some());
    watcher.nothing_came().await;
    drop(file);
}

#[tokio::test]
async fn the_command_line_looks_after_sessions() {
    let (broker, mut topics) = Topics::start().await;
    let url = broker.url();
    let run = async |args: &[&str]| {
        let args = [&["session"], args, &["--server", &url]].concat();
        let ended = stafett(args).await;
        (ended.code, ended.stdout, ended.stderr)
    };
    topics.session("a", &["t"]).await.finish().await;
    let mut stream = topics.session("b", &["t"]).await;
    topics.publish(message("t", "1")).await;
    stream.deliveries(1).await;
    let done = |stdout: &str| (Some(0), stdout.to_owned(), String::new());
    assert_eq!(run(&["list"]).await, done("a\taway\t1\nb\tconnected\t1\n"));
    assert_eq!(run(&["list", "--prefix", "b"]).await, done("b\tconnected\t1\n"));
    let (_, json, _) = run(&["list", "--prefix", "a", "--json"]).await;
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&value["session_expiry"], &value["filters"][0]["max_qos"]),
        (&"3600s".into(), &"at_least_once".into())
    );
    assert_eq!(run(&["disconnect", "b"]).await, done("disconnected\n"));
    stream.ended().await;
    assert_eq!(run(&["disconnect", "b"]).await, done("not connected\n"));
    assert_eq!(run(&["delete", "b"]).await, done("discarded_messages 1\n"));
    let (code, _, stderr) = run(&["delete", "b"]).await;
    assert_eq!((code, stderr.contains("there is no session `b`")), (Some(1), true), "{stderr}");
}
