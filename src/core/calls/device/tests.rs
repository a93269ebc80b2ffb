//! Devices that come and go, on a broker with sessions.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use super::*;
use crate::core::pubsub::tests::bed::{self, Bed, options, subscribe, topic, within};
use crate::core::{CloseReason, Limits, OpenSession, Outbox, Session};
use crate::types::ClientId;

/// A connection that answers so, and takes everything.
struct Answering(Answers);

impl Outbox for Answering {
    fn offer(&self, _: &[Offer<'_>]) -> usize {
        0
    }

    fn close(&self, _: CloseReason) {}

    fn answers(&self) -> Answers {
        self.0
    }
}

async fn device(bed: &Bed, answers: Answers) -> Session {
    let opened = bed.broker.open_session(OpenSession {
        client_id: Some(ClientId::parse("device").unwrap()),
        clean_start: true,
        expiry: std::time::Duration::ZERO,
        principal: ByteString::new(),
        outbox: Arc::new(Answering(answers)),
        will: None,
    });
    within(opened).await.unwrap().session
}

fn responders(bed: &Bed) -> u64 {
    bed.broker.calls.counters().into_iter().find(|(name, _)| *name == "responders").unwrap().1
}

#[tokio::test]
async fn a_gateway_is_found_by_the_topic_that_it_answers_on() {
    const TOPICS: usize = 200;
    let pair = "lamps/+/set -> lamps/+/state".parse().unwrap();
    let bed = Bed::with(Limits { device_topics: vec![pair], ..Limits::default() }).await;
    let calls = &bed.broker.calls;
    let gateway = device(&bed, Answers::ByTopic).await;
    for number in 0..TOPICS {
        let name = format!("lamps/{number}/set");
        subscribe(&gateway, &[(&name, options(Qos::AtLeastOnce))]).await;
        bed.broker.find_devices(&topic(&name)).unwrap();
    }
    // What it is asked on, and where it answers.
    assert_eq!(calls.devices.sizes(), [TOPICS, 1, 2 * TOPICS]);
    let session = gateway.key();
    assert_eq!(calls.devices.on_topic(session, &topic("lamps/7/state")).len(), 1);
    assert_eq!(calls.devices.on_topic(session, &topic("lamps/7/set")).len(), 1);
    assert_eq!(calls.devices.on_topic(session, &topic("lamps/7/on")).len(), 0);
    within(gateway.unsubscribe(vec![bed::filter("lamps/7/set")])).await.remove(0).unwrap();
    assert_eq!(calls.devices.sizes(), [TOPICS - 1, 1, 2 * (TOPICS - 1)]);
    within(gateway.close(crate::core::End::Clean)).await;
    assert_eq!(calls.devices.sizes(), [0; 3]);
    assert_eq!(responders(&bed), 0);
}
#[tokio::test]
async fn who_looked_before_does_not_take_away_who_has_come_since() {
    let bed = Bed::with(Limits::default()).await;
    let (calls, s) = (&bed.broker.calls, topic("s"));
    let lamp = device(&bed, Answers::ByProperties).await;
    // Two calls look at the same time: the one that looked first has its turn last.
    let early = bed.broker.routes.now();
    let seen = (early.epoch(s.first_level()), calls.reconnects());
    let found = bed.broker.candidates(Audience::Serving, &early, &s);
    subscribe(&lamp, &[("s", options(Qos::AtLeastOnce))]).await;
    bed.broker.find_devices(&s).unwrap();
    assert_eq!(responders(&bed), 1);
    calls.service(&s).unwrap().refresh(seen, found).unwrap();
    assert_eq!(responders(&bed), 1);
    assert!(calls.service(&s).unwrap().has_seen((bed.broker.routes.now().epoch("s"), calls.reconnects())));
}
