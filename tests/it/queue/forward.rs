//! Settling here and enqueuing there, in one act.

use bytes::Bytes;
use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::consume_request::Action as Ask;
use stafett::grpc::proto::v1::forward_result::Outcome;
use tonic::Code;
use tonic_types::RpcStatusExt;

use super::browse::later;
use super::streams::{Consumer, opening, which};
use super::{Queues, field, got, message, named, payloads, reason, refused};
use crate::harness::{Broker, stafett};

pub(super) fn item(lease_token: &Bytes, to: &[(&str, v1::Message)]) -> v1::ForwardItem {
    let message = |(queue, message): &(&str, v1::Message)| v1::ForwardMessage {
        queue: (*queue).to_owned(),
        message: Some(message.clone()),
    };
    v1::ForwardItem { lease_token: lease_token.clone(), messages: to.iter().map(message).collect() }
}

fn forwarding(items: Vec<v1::ForwardItem>) -> v1::ForwardRequest {
    v1::ForwardRequest { queue: "q".to_owned(), items }
}

impl Queues {
    pub(super) async fn forward(
        &mut self,
        items: Vec<v1::ForwardItem>,
    ) -> Vec<Result<v1::Forwarded, String>> {
        let results = got(self.0.forward(forwarding(items))).await.results;
        let told = results.into_iter().map(|result| match result.outcome.unwrap() {
            Outcome::Ok(forwarded) => Ok(forwarded),
            Outcome::Error(error) => {
                let details = error.get_error_details();
                let fields =
                    details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
                let field: String = fields.into_iter().map(|violation| violation.field).collect();
                Err(format!("{}{field}", reason(&details)))
            }
        });
        told.collect()
    }

    async fn left(&mut self, queue: &str) -> Vec<String> {
        let view = v1::QueueView::All.into();
        payloads(&self.browse(v1::BrowseRequest { queue: queue.into(), view, ..Default::default() }).await)
    }
}

#[tokio::test]
async fn each_item_is_done_whole_or_not_at_all() {
    let (broker, mut queues) = Queues::start().await;
    queues.create(named("next")).await;
    queues.create(v1::Queue { max_messages: 1, ..named("small") }).await;
    queues.fill("q", &["1", "2", "3", "4"]).await;
    let mut leased = Vec::new();
    while leased.len() < 4 {
        leased.extend(queues.receive("q", 4).await);
    }
    let token = |at: usize| &leased[at].lease_token;
    let wrong = v1::Message { retain: true, ..message("x") };
    let results = queues
        .forward(vec![
            item(token(0), &[("next", message("1a")), ("small", message("1b")), ("q", later(message("1c")))]),
            item(token(1), &[("next", message("2a")), ("small", message("2b"))]),
            item(token(2), &[("next", message("3a")), ("next", wrong)]),
            item(token(3), &[("nobody", message("4a"))]),
            item(&Bytes::from_static(b"no token"), &[("next", message("5a"))]),
            item(token(0), &[("next", message("6a"))]),
        ])
        .await;
    let ok = results[0].as_ref().unwrap();
    assert_eq!(ok.messages.len(), 3);
    let errors: Vec<_> = results[1..].iter().map(|result| result.as_ref().unwrap_err().as_str()).collect();
    assert_eq!(
        errors,
        ["QUEUE_FULL", "items[2].messages[1].message.retain", "", "items[4].lease_token", "LEASE_EXPIRED"]
    );
    // What was refused is still leased; an acknowledgement settles it.
    assert_eq!(queues.acknowledge("q", vec![token(1).clone()]).await, []);

    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    assert_eq!(queues.left("q").await, ["3", "4", "1c"]);
    assert_eq!(queues.left("next").await, ["1a"]);
    assert_eq!(queues.left("small").await, ["1b"]);
    // A lease of before the crash is good as long as nobody else has the message.
    let results = queues.forward(vec![item(token(2), &[("next", message("3a"))])]).await;
    assert!(results[0].is_ok(), "{results:?}");
    assert_eq!(queues.left("next").await, ["1a", "3a"]);
}

#[tokio::test]
async fn a_delivery_of_a_stream_is_forwarded_by_its_token() {
    let (_broker, mut queues) = Queues::start().await;
    queues.create(named("next")).await;
    queues.fill("q", &["1", "2"]).await;
    let open = v1::ConsumeOpen { want_tokens: true, ..opening("q", 1) };
    let mut consumer = Consumer::open(&mut queues, open).await;
    let first = consumer.take(1).await.remove(0);
    let results = queues.forward(vec![item(&first.lease_token, &[("next", message("1a"))])]).await;
    assert!(results[0].is_ok(), "{results:?}");
    consumer.ask(Ask::Ack(which(1, &[first.delivery_id]))).await;
    // The room is there at once, the answer when the acknowledgement is done.
    let second = consumer.take_past_results(1).await;
    assert_eq!(payloads(&second), ["2"]);
    assert_eq!(queues.left("next").await, ["1a"]);
    let again = queues.acknowledge("q", vec![first.lease_token]).await;
    assert_eq!(reason(&again[0].error.as_ref().unwrap().get_error_details()), "LEASE_EXPIRED");
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_named() {
    let (_broker, mut queues) = Queues::start().await;
    let token = Bytes::from_static(b"x");
    let many = vec![("q", message("x")); 101];
    for (items, named) in [
        (vec![], "items"),
        (vec![item(&token, &[("q", message("x"))]); 1001], "items"),
        (vec![item(&token, &many[..100]); 101], "items"),
    ] {
        let status = refused(queues.0.forward(forwarding(items))).await;
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, named));
    }
    for (item, named) in
        [(item(&token, &[]), "items[0].messages"), (item(&token, &many), "items[0].messages")]
    {
        assert_eq!(queues.forward(vec![item]).await, [Err(named.to_owned())]);
    }
}

#[tokio::test]
async fn a_message_is_forwarded_from_the_command_line() {
    let (broker, mut queues) = Queues::start().await;
    queues.create(named("next")).await;
    queues.fill("q", &["1"]).await;
    let url = broker.url();
    let run = async |args: &[&str]| {
        let ended = stafett(["queue", "--server", &url].into_iter().chain(args.iter().copied())).await;
        (ended.code.unwrap(), ended.stdout, ended.stderr)
    };
    let received = run(&["receive", "q"]).await.1;
    let token = received.split_once('\t').unwrap().0;
    let (code, id, why) =
        run(&["forward", "q", token, "--to", "next", "made of 1", "--property", "k=v"]).await;
    assert_eq!((code, id.trim_end().len()), (0, 26), "{why}");
    let next = queues.one("next").await;
    assert_eq!(payloads(std::slice::from_ref(&next)), ["made of 1"]);
    assert_eq!(next.message.unwrap().properties[0].key, "k");
    assert_eq!(queues.left("q").await, Vec::<String>::new());
    let (code, _, why) = run(&["forward", "q", token, "--to", "next", "again"]).await;
    assert!(code == 1 && why.contains("lease"), "{why}");
}
