//! Wills of connections that were lost, until they are published.
//!
//! A will is published when its delay is over or its session ends, whichever comes first, unless the client comes back
//! to the session before [5: MQTT-3.1.2-8, MQTT-3.1.3-9]. When the server stops, what waits is published at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::translate::Will;
use crate::core::{Broker, Inbound, Publisher, PublisherInfo};
use crate::shutdown::Shutdown;
use crate::types::{ClientId, clock};

/// See the module.
#[derive(Debug)]
pub(super) struct Wills {
    broker: Arc<Broker>,
    shutdown: Shutdown,
    /// By client; who is told whether the will is published after all.
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    by_client: HashMap<ClientId, (u64, oneshot::Sender<Back>)>,
    next: u64,
}

/// The client has come back.
#[derive(Debug)]
struct Back {
    to_its_session: bool,
}

impl Wills {
    pub(super) fn new(broker: Arc<Broker>, shutdown: Shutdown) -> Self {
        Self { broker, shutdown, waiting: Arc::default() }
    }

    /// The connection of `client` is lost, of which `publisher` is. Its session ends after `session_expiry`.
    pub(super) fn lost(
        &self,
        client: &ClientId,
        will: Box<Will>,
        session_expiry: Duration,
        publisher: &mut Publisher,
    ) {
        let delay = will.delay.min(session_expiry);
        if delay.is_zero() {
            // Behind all that the client itself has published.
            return publish(publisher, *will);
        }
        let (back, came_back) = oneshot::channel();
        let number = {
            let mut waiting = self.waiting.lock();
            waiting.next += 1;
            let number = waiting.next;
            // One that waits still is of an earlier connection, and would have been told.
            waiting.by_client.insert(client.clone(), (number, back));
            number
        };
        let (broker, waiting, client) = (Arc::clone(&self.broker), Arc::clone(&self.waiting), client.clone());
        let stopping = self.shutdown.stopping().clone();
        self.shutdown.spawn(async move {
            let publishes = tokio::select! {
                biased;
                // Whoever has come back first keeps it, also when the server stops before this is looked at.
                back = came_back => !back.is_ok_and(|back| back.to_its_session),
                () = tokio::time::sleep(delay) => true,
                () = stopping.cancelled() => true,
            };
            {
                let mut waiting = waiting.lock();
                if waiting.by_client.get(&client).is_some_and(|(other, _)| *other == number) {
                    waiting.by_client.remove(&client);
                }
            }
            if publishes {
                let info = PublisherInfo { client_id: Some(client), ..PublisherInfo::default() };
                publish(&mut broker.publisher(info), *will);
            }
        });
    }

    /// The client is connected again: to its session, or to a new one because the old one has ended.
    pub(super) fn came_back(&self, client: &ClientId, to_its_session: bool) {
        if let Some((_, back)) = self.waiting.lock().by_client.remove(client) {
            // The task may be publishing already: the delay was over.
            drop(back.send(Back { to_its_session }));
        }
    }
}

fn publish(publisher: &mut Publisher, will: Will) {
    let mut inbound = Inbound::new(will.publish(clock::unix_now()), 0);
    inbound.receipt = false;
    // The broker sees to what waits for the store.
    publisher.publish(vec![inbound]);
}
