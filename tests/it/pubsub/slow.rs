//! A subscriber that does not keep up stops nobody.

use stafett::grpc::proto::v1;
use tonic::Code;

use super::{Topics, at_most_once, filter, message};
use crate::harness::{Broker, config_file};

/// Larger than what sockets and HTTP/2 windows hold.
const LARGE: usize = 64 << 10;
const COUNT: usize = 200;

#[tokio::test]
async fn a_slow_subscriber_loses_and_others_do_not() {
    let (file, path) = config_file("[grpc]\noutbox_messages = 50\noutbox_bytes = \"16MiB\"\n");
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut topics = Topics::of(&broker).await;
    // Each on a connection of its own: HTTP/2 bounds what a connection has not read.
    let mut slow = Topics::of(&broker).await.subscribe(&["t"]).await;
    let mut slow_but_sure = {
        let open = v1::OpenSession { filters: vec![filter("t")], ..Default::default() };
        Topics::of(&broker).await.open(open).await
    };
    let mut fast = Topics::of(&broker).await.subscribe(&["t"]).await;
    for n in 0..COUNT {
        let body = format!("{n:08}{}", "x".repeat(LARGE));
        let message = if n % 2 == 0 { at_most_once("t", &body) } else { message("t", &body) };
        topics.publish(message).await;
        let heard = fast.texts(1).await;
        assert_eq!(heard[0][..8], body[..8]);
    }
    // What must not be lost ends the stream; the rest is counted.
    let (closing, status) = slow_but_sure.ended().await;
    assert_eq!(Code::from(closing.status.unwrap().code), Code::ResourceExhausted);
    assert_eq!(status.unwrap().code(), Code::ResourceExhausted);
    broker.counts("subscribers_cut_total", 1).await;
    topics.publish(at_most_once("t", "last")).await;
    let (mut heard, mut lost) = (0, 0);
    while heard + lost < COUNT {
        let event = slow.next().await.unwrap().unwrap();
        let Some(v1::subscribe_response::Event::Deliveries(batch)) = event.event else { panic!("{event:?}") };
        heard += batch.deliveries.len();
        lost += batch.deliveries.iter().map(|d| usize::try_from(d.dropped_before).unwrap()).sum::<usize>();
        if lost == 0 && heard >= 50 {
            // There is room again: what comes now says what was lost.
            topics.publish(at_most_once("t", "again")).await;
        }
    }
    assert!(lost > 0, "{heard} heard");
    drop(file);
}
