//! The publishes of one connection that wait for their tickets, in order.
//!
//! The line is advanced by whoever comes first: the connection, the task that puts retained values in order, or,
//! when the connection is gone, a task of the broker. Lock order: a line, then the order of retained values, then a
//! shard of retained values, then an outbox.

use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::super::admission::Admitted;
use super::super::delivery::FanOut;
use super::super::session::entry::Incoming;
use super::super::session::{SessionEntry, SessionKey};
use super::batch::Batch;
use super::{Receipt, Sender};
use crate::core::{Broker, CoreError};
use crate::engine::{EngineError, Outcome, Ticket};
use crate::types::{ClientId, clock};

/// What is known of a commit.
type Stored = Result<Vec<Outcome>, EngineError>;

/// See the module.
pub(crate) struct Line {
    pub(crate) broker: Arc<Broker>,
    name: Option<ClientId>,
    pub(crate) session: Option<Arc<SessionEntry>>,
    pub(crate) no_local: Option<SessionKey>,
    /// Publishes in the line. Only the owner makes it grow.
    pending: AtomicUsize,
    pub(crate) state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    flights: VecDeque<Flight>,
    pub(crate) receipts: Vec<Receipt>,
    /// Who waits for receipts.
    waker: Option<Waker>,
    fan: FanOut,
}

/// A batch in the line.
struct Flight {
    batch: Batch,
    /// What stands before was delivered at once.
    from: usize,
    wait: Wait,
    /// Held for the bytes on their way to the disk.
    _admitted: Option<Admitted>,
}

/// What a batch waits for, beside those before it.
enum Wait {
    Nothing,
    Ticket(Ticket),
    /// Its turn among all retained publishes.
    Turn,
    Over(Stored),
}

impl State {
    pub(crate) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Line {
    pub(crate) fn new(
        broker: Arc<Broker>,
        name: Option<ClientId>,
        session: Option<Arc<SessionEntry>>,
        no_local: Option<SessionKey>,
    ) -> Self {
        Self { broker, name, session, no_local, pending: AtomicUsize::new(0), state: Mutex::default() }
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending.load(Ordering::Acquire)
    }

    pub(crate) fn sender<'a>(&'a self, fan: &'a mut FanOut) -> Sender<'a> {
        Sender { broker: &self.broker, name: self.name.as_ref(), no_local: self.no_local, fan }
    }

    /// Puts a batch, whose items before `from` are done, at the end; what is to be stored goes to the engine.
    pub(crate) fn enqueue(line: &Arc<Self>, batch: Batch, from: usize, stores: bool) {
        let broker = &line.broker;
        let mut state = line.state.lock();
        line.pending.fetch_add(batch.items.len() - from, Ordering::Release);
        let mut admitted = None;
        let wait = if stores {
            admitted = broker.admission.admit_now(batch.stored_weight());
            if let Some(incoming) = line.incoming() {
                incoming.begin(batch.stored_incoming());
            }
            let ops = batch.ops(line.name.as_ref(), line.session_target(), clock::unix_now());
            let retained = &broker.pubsub.retained;
            if retained.reserve(batch.stored_retained()) {
                retained.commit_in_order(broker, ops, line);
                Wait::Turn
            } else {
                Wait::Ticket(broker.engine.commit(ops))
            }
        } else {
            Wait::Nothing
        };
        state.flights.push_back(Flight { batch, from, wait, _admitted: admitted });
        // Whoever waits for receipts has not seen this ticket.
        state.wake();
    }

    pub(crate) fn name(&self) -> Option<&ClientId> {
        self.name.as_ref()
    }

    fn incoming(&self) -> Option<&Incoming> {
        self.session.as_ref()?.incoming.as_deref()
    }

    fn session_target(&self) -> Option<crate::types::TargetId> {
        self.session.as_ref().and_then(|session| session.target)
    }

    /// Appends receipts to `out`, or registers who is to be woken when there are some.
    pub(crate) fn poll_receipts(&self, cx: &mut Context<'_>, out: &mut Vec<Receipt>) -> Poll<()> {
        let mut state = self.state.lock();
        self.advance(&mut state, Some(cx));
        if state.receipts.is_empty() {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        out.append(&mut state.receipts);
        Poll::Ready(())
    }

    /// The first batch that waits for its turn among the retained has it.
    pub(crate) fn turn(&self, stored: Stored) {
        let mut state = self.state.lock();
        if let Some(flight) = state.flights.iter_mut().find(|flight| matches!(flight.wait, Wait::Turn)) {
            flight.wait = Wait::Over(stored);
        }
        self.advance(&mut state, None);
        state.wake();
    }

    /// Delivers what is at its turn. With `cx`, the task is woken when a ticket completes.
    fn advance(&self, state: &mut State, mut cx: Option<&mut Context<'_>>) {
        while let Some(flight) = state.flights.front_mut() {
            let stored = match &mut flight.wait {
                Wait::Nothing => None,
                Wait::Turn => return,
                Wait::Over(stored) => Some(mem::replace(stored, Ok(Vec::new()))),
                Wait::Ticket(ticket) => {
                    let now = match cx.as_deref_mut() {
                        Some(cx) => match Pin::new(ticket).poll(cx) {
                            Poll::Ready(stored) => Some(stored),
                            Poll::Pending => None,
                        },
                        None => ticket.try_now(),
                    };
                    match now {
                        None => return,
                        stored => stored,
                    }
                }
            };
            if let Some(stored) = stored {
                self.settle(&mut flight.batch, stored);
            }
            let Some(Flight { batch, from, .. }) = state.flights.pop_front() else { return };
            let range = from..batch.items.len();
            let count = range.len();
            batch.deliver(range.clone(), self.sender(&mut state.fan));
            batch.receipts(range, &mut state.receipts);
            self.pending.fetch_sub(count, Ordering::Release);
        }
    }

    /// Takes in what became of a commit.
    fn settle(&self, batch: &mut Batch, stored: Stored) {
        batch.settle(stored.map_err(CoreError::Engine), &self.broker, |item, ok| {
            if let (Some(incoming), Some(id)) = (self.incoming(), item.incoming) {
                incoming.end(id, ok);
            }
            if !ok && item.message.retain {
                self.broker.pubsub.retained.give_up(&item.message.topic);
            }
        });
    }

    /// The owner has gone: a task sees to what waits.
    pub(crate) fn finish(line: &Arc<Self>) {
        if line.pending() == 0 {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return; // Without a runtime nobody is connected who could be offered anything.
        };
        let rest = Arc::clone(line);
        let task = async move {
            std::future::poll_fn(|cx| {
                let mut state = rest.state.lock();
                rest.advance(&mut state, Some(cx));
                state.receipts.clear();
                if state.flights.is_empty() {
                    return Poll::Ready(());
                }
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
        };
        line.broker.tasks.spawn_on(task, &runtime);
    }
}
