//! Queues that are paused.

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::consume_request::Action as Ask;

use super::streams::{Consumer, opening, which};
use super::{Queues, got, message, named, payloads, seconds};
use crate::harness::{Broker, stafett};

impl Queues {
    pub(crate) async fn pause(&mut self, name: &str, paused: bool) {
        let queue = Some(v1::Queue { paused, ..named(name) });
        let update_mask = Some(prost_types::FieldMask { paths: vec!["paused".to_owned()] });
        let request = v1::UpdateQueueRequest { queue, update_mask };
        assert_eq!(got(self.0.update_queue(request)).await.queue.unwrap().paused, paused);
    }
}

#[tokio::test]
async fn a_paused_queue_takes_and_settles_and_delivers_nothing() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["1", "2"]).await;
    let mut consumer = Consumer::open(&mut queues, opening("q", 1)).await;
    let first = consumer.take(1).await;
    assert_eq!(payloads(&first), ["1"]);
    queues.pause("q", true).await;
    queues.fill("q", &["3"]).await;
    assert!(queues.is_empty("q").await);
    // What the consumer holds may be settled; nothing follows until the queue goes on.
    consumer.ask(Ask::Ack(which(1, &[1]))).await;
    assert_eq!(consumer.results().await.acked_through, 1);
    let mut waiting = queues.0.clone();
    let receive = v1::ReceiveRequest { queue: "q".to_owned(), wait: seconds(60), ..Default::default() };
    let others = async {
        queues.fill("q", &["4"]).await;
        let stats = queues.stats("q").await;
        assert_eq!((stats.ready, stats.leased, stats.acked_total), (3, 0, 1));
        queues.pause("q", false).await;
        consumer.take(1).await
    };
    let (received, second) = tokio::join!(got(waiting.receive(receive)), others);
    let received = received.messages;
    let mut both = payloads(&[received, second].concat());
    both.sort();
    assert_eq!(both, ["2", "3"], "both consumers that were there get something");
}

#[tokio::test]
async fn what_fails_while_a_queue_is_paused_waits_too() {
    let (_broker, mut queues) = Queues::start().await;
    queues.fill("q", &["x"]).await;
    let leased = queues.one("q").await;
    queues.pause("q", true).await;
    queues.nack("q", &leased.lease_token, v1::NackKind::Failed).await;
    assert!(queues.is_empty("q").await);
    queues.pause("q", false).await;
    assert_eq!(queues.one("q").await.delivery_attempt, 2);
}

#[tokio::test]
async fn a_queue_stays_paused_over_a_kill_and_programs_that_make_sure_of_it() {
    let (broker, mut queues) = Queues::start().await;
    queues.pause("q", true).await;
    queues.fill("q", &["x"]).await;
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &[]).await;
    let mut queues = Queues::of(&broker).await;
    let again = v1::CreateQueueRequest { queue: Some(named("q")), if_not_exists: true };
    assert!(got(queues.0.create_queue(again)).await.queue.unwrap().paused);
    let mut consumer = Consumer::open(&mut queues, opening("q", 1)).await;
    assert!(queues.is_empty("q").await);
    assert_eq!(queues.stats("q").await.consumers, 1);
    queues.pause("q", false).await;
    assert_eq!(payloads(&consumer.take(1).await), ["x"]);
}

#[tokio::test]
async fn a_queue_is_paused_and_resumed_from_the_command_line() {
    let (broker, mut queues) = Queues::start().await;
    let url = broker.url();
    let run = async |args: &[&str]| {
        let ended = stafett(["queue", "--server", &url].into_iter().chain(args.iter().copied())).await;
        (ended.code.unwrap(), ended.stdout + &ended.stderr)
    };
    assert!(run(&["create", "held", "--paused"]).await.1.contains("paused             yes\n"));
    queues.enqueue("held", message("x")).await;
    assert_eq!(run(&["receive", "held"]).await, (4, String::new()));
    let (code, text) = run(&["resume", "held"]).await;
    assert!(code == 0 && text.contains("paused             no\n"), "{text}");
    assert_eq!(run(&["receive", "held", "--ack"]).await, (0, "x\n".to_owned()));
    assert_eq!(run(&["pause", "held"]).await.0, 0);
    assert!(run(&["info", "held", "--json"]).await.1.contains("\"paused\":true"));
    let (code, why) = run(&["pause", "nobody"]).await;
    assert!(code == 1 && why.contains("nobody"), "{why}");
}
