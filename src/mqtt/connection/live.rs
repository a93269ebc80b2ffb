//! A connection between CONNACK and its end.
//!
//! One turn: decode all that one read brought, hand its publishes to the core as one batch, answer what is answered, fill
//! the room in the client's window; then write all of it at once and wait for whatever comes next.
//!
//! Bounds: the socket is not read while the core has as many open publishes of this connection as it may, while the
//! answer to a SUBSCRIBE is awaited, or while the client does not take what it is sent.

use std::future::{Future, poll_fn};
use std::num::NonZeroU16;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::time::{Sleep, sleep_until};

use super::errands::{Done, Errands, Note};
use super::wire::{Io, Wire};
use crate::core::{Opened, Publisher, Receipt, Session};
use crate::engine::Outcome;
use crate::mqtt::aliases::Aliases;
use crate::mqtt::codec::{Packet, ReasonCode};
use crate::mqtt::frames::{Form, Frames};
use crate::mqtt::outbox::Mailbox;
use crate::mqtt::state::{Ask, Effects, Ending, Hello, Input, State, Stored};
use crate::mqtt::{Connected, Door};
use crate::types::{ClientId, Sequence, UnixMillis, clock};

/// While more waits to be written, no more deliveries are taken.
pub(super) const LOW_WATER: usize = 256 << 10;
/// While more waits to be written, the peer is not read: it does not take the answers.
const HIGH_WATER: usize = 1 << 20;
/// After so long without a publish, what helps to publish fast is given back.
const IDLE: Duration = Duration::from_secs(10);
/// When no time is limited.
const LONG: Duration = Duration::from_secs(86_400);

/// See the module.
pub(super) struct Live {
    pub(super) state: State,
    pub(super) session: Arc<Session>,
    /// While the client publishes, and some time after.
    pub(super) publisher: Option<Box<Publisher>>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) form: Form,
    /// While something goes on.
    pub(super) busy: Option<Box<Busy>>,
    /// For what is encoded here.
    pub(super) aliases: Option<Box<Aliases>>,
    pub(super) errands: Option<Box<Errands>>,
    /// The session may have more.
    pub(super) more: bool,
    /// The broker ends the connection, and what the client had said by then is read.
    pub(super) heard_out: bool,
    /// The session may wake this connection for what others could take.
    pub(super) waits: bool,
    /// When something was published last, until that is long ago.
    published: Option<Instant>,
    /// The client was not read for a while, through no fault of its own.
    deaf: bool,
    /// The end that comes when this time is over; until then the peer is not read.
    later: Option<Box<Later>>,
    _connected: Connected,
}

/// What a connection needs only while something goes on.
#[derive(Default)]
pub(super) struct Busy {
    pub(super) effects: Effects,
    receipts: Vec<Receipt>,
    /// Taken from the mailbox.
    pub(super) frames: Frames,
}

/// An end that is to come.
struct Later {
    at: Instant,
    ending: Box<Ending>,
}

/// What a connection was woken by.
enum Wake {
    Io(std::io::Result<Io>),
    Mail,
    Receipts,
    Room,
    Stored,
    Done(Done),
    Time,
}

impl Live {
    pub(super) fn new(
        door: &Arc<Door>,
        hello: Hello,
        opened: Opened,
        mailbox: Arc<Mailbox>,
        aliases: Option<Box<Aliases>>,
    ) -> Self {
        let Opened { session, incoming, outgoing, .. } = opened;
        let limits = door.broker.limits();
        let state =
            State::new(hello, session.target(), (incoming, outgoing), &door.settings, limits, clock::now());
        Self {
            state,
            session: Arc::new(session),
            publisher: None,
            form: mailbox.form(),
            busy: None,
            aliases,
            errands: None,
            more: true,
            waits: false,
            heard_out: false,
            published: None,
            deaf: false,
            later: None,
            _connected: door.join(&mailbox),
            mailbox,
        }
    }

    pub(super) fn client_id(&self) -> &ClientId {
        self.session.client_id()
    }

    /// Serves until the end, and says which.
    pub(super) async fn serve(&mut self, door: &Door, wire: &mut Wire) -> Box<Ending> {
        let mut timer = pin!(sleep_until(clock::now().into()));
        loop {
            self.heard_out = self.mailbox.ends();
            if self.heard_out {
                // What the client said before that counts, its DISCONNECT above all.
                wire.read_now(&door.buffers);
            }
            if let Some(ending) = self.turn(wire) {
                return ending;
            }
            self.set(timer.as_mut());
            let input = match self.wait(door, wire, timer.as_mut()).await {
                Wake::Io(Ok(Io::Read | Io::Wrote)) | Wake::Mail | Wake::Receipts | Wake::Room => continue,
                Wake::Stored => {
                    self.more = true;
                    continue;
                }
                Wake::Io(Ok(Io::Eof) | Err(_)) => Input::Lost,
                Wake::Time => {
                    let now = clock::now();
                    if let Some(later) = self.later.take_if(|later| later.at <= now) {
                        return later.ending;
                    }
                    if self.published.take_if(|at| *at + IDLE <= now).is_some() {
                        if self.pending() > 0 || self.has_receipts() {
                            self.published = Some(now);
                        } else {
                            self.publisher = None;
                        }
                    }
                    if std::mem::take(&mut self.deaf) {
                        self.state.excuse(now);
                    }
                    Input::Deadline
                }
                Wake::Done(done) => match self.done(done, wire) {
                    Some(input) => input,
                    None => continue,
                },
            };
            self.handle(input);
        }
    }

    /// Waits for receipts. Cancel safe.
    pub(super) async fn receive(&mut self) {
        poll_fn(|cx| self.poll_receive(cx)).await;
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let receipts = &mut self.busy.get_or_insert_default().receipts;
        match &self.publisher {
            Some(publisher) => publisher.poll_completed(cx, receipts),
            None => Poll::Pending,
        }
    }

    /// Takes the receipts that are there, and says whether there are any. Asked when nothing is [pending](Self::pending) any
    /// more, there will be no others: another task than this one may have brought the last of them.
    pub(super) fn has_receipts(&mut self) -> bool {
        let Some(publisher) = &mut self.publisher else { return false };
        let receipts = &mut self.busy.get_or_insert_default().receipts;
        publisher.completed_now(receipts);
        !receipts.is_empty()
    }

    /// How many publishes wait for the store.
    pub(super) fn pending(&self) -> usize {
        self.publisher.as_ref().map_or(0, |publisher| publisher.pending())
    }

    pub(super) fn handle(&mut self, input: Input) {
        self.handle_at(input, clock::now(), clock::unix_now());
    }

    fn handle_at(&mut self, input: Input, now: Instant, wall: UnixMillis) {
        self.state.handle(input, now, wall, &mut self.busy.get_or_insert_default().effects);
    }

    pub(super) fn busy(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    /// Sets the one timer, if it rings later than anything is due. One that rings too early does no harm, so what is
    /// heard of the client does not move it.
    fn set(&mut self, timer: Pin<&mut Sleep>) {
        let later = self.later.as_ref().map(|later| later.at);
        let idle = self.published.map(|at| at + IDLE);
        let due = [self.state.deadline(), later, idle].into_iter().flatten().min();
        let due = due.unwrap_or_else(|| clock::now() + LONG);
        let armed = timer.deadline().into_std();
        if timer.is_elapsed() || due < armed {
            timer.reset(due.into());
        }
    }

    async fn wait(&mut self, door: &Door, wire: &mut Wire, mut timer: Pin<&mut Sleep>) -> Wake {
        let asks = self.asks();
        let pending = self.pending();
        if pending == 0 && self.has_receipts() {
            return Wake::Receipts;
        }
        let may_read = !asks && self.later.is_none() && pending < door.broker.limits().publish_pending;
        let has_room = may_read && door.broker.admission().room().now_or_never().is_some();
        self.deaf |= !has_room;
        // A client that does not take its answers is not read either, and that is its own fault.
        let reads = has_room && wire.out.len() < HIGH_WATER;
        let drained = wire.out.len() <= LOW_WATER;
        let takes = drained && !self.more && !self.parks() && self.state.window().room() > 0;
        if !takes {
            self.stand_back();
        }
        // Seldom, and of some size.
        let mut room =
            (pending == 0 && may_read && !has_room).then(|| Box::pin(door.broker.admission().room()));
        // What each turn sees to anyway comes last. One that is always ready keeps no other waiting: the socket is
        // behind what is done with for good, and takes its share of the task's time only.
        poll_fn(|cx| {
            if let Some(errands) = &mut self.errands
                && let Poll::Ready(done) = errands.poll_next(cx)
            {
                return Poll::Ready(Wake::Done(done));
            }
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Wake::Time);
            }
            if let Poll::Ready(io) = wire.poll_io(cx, &door.buffers, reads, LOW_WATER) {
                return Poll::Ready(Wake::Io(io));
            }
            if takes && self.session.poll_ready(cx).is_ready() {
                return Poll::Ready(Wake::Stored);
            }
            if pending == 0 && wire.input.is_empty() && wire.out.is_empty() {
                self.rest(door);
            }
            if pending > 0 && self.poll_receive(cx).is_ready() {
                return Poll::Ready(Wake::Receipts);
            }
            if let Some(room) = &mut room
                && room.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Wake::Room);
            }
            self.mailbox.wake().poll_heard(cx).map(|()| Wake::Mail)
        })
        .await
    }

    /// Gives back what only a busy connection needs.
    fn rest(&mut self, door: &Door) {
        if let Some(busy) = &mut self.busy
            && busy.frames.is_empty()
            && busy.effects.is_empty()
            && busy.receipts.is_empty()
        {
            busy.frames.release(&door.buffers);
            self.busy = None;
        }
        self.state.release();
        self.errands.take_if(|errands| errands.is_empty());
    }

    /// Everything that can be done without waiting.
    fn turn(&mut self, wire: &mut Wire) -> Option<Box<Ending>> {
        self.decode(wire);
        loop {
            self.carry_out(wire);
            if let Err(error) = self.deliver(wire) {
                tracing::debug!(client = %self.client_id(), %error, "the connection cannot go on");
                self.handle(Input::Closed(ReasonCode::UnspecifiedError));
            }
            if let Some(ending) = self.busy().effects.ending.take() {
                if ending.after.is_zero() {
                    return Some(ending);
                }
                let at = clock::now() + ending.after;
                self.later.get_or_insert_with(|| Box::new(Later { at, ending }));
            }
            let effects = &self.busy().effects;
            if effects.packets.is_empty() && effects.settled.is_empty() {
                return None;
            }
        }
    }

    fn decode(&mut self, wire: &mut Wire) {
        if wire.input.is_empty() || self.asks() || self.later.is_some() {
            return;
        }
        let (now, wall) = (clock::now(), clock::unix_now());
        while !self.busy().effects.halts() {
            match wire.decode() {
                Ok(Some(packet)) => {
                    self.handle_at(Input::Packet(packet), now, wall);
                }
                Ok(None) => return,
                Err(error) => self.handle_at(Input::Malformed(error), now, wall),
            }
        }
    }

    /// Does what the state machine says.
    pub(super) fn carry_out(&mut self, wire: &mut Wire) {
        let Self { busy, publisher, session, state, form, .. } = self;
        let Busy { effects, receipts, .. } = &mut **busy.get_or_insert_default();
        if !effects.publishes.is_empty() {
            let publisher = publisher.get_or_insert_with(|| Box::new(session.publisher()));
            publisher.publish(std::mem::take(&mut effects.publishes));
            self.published = Some(clock::now());
        }
        if let Some(publisher) = publisher {
            publisher.completed_now(receipts);
        }
        if !receipts.is_empty() {
            let (now, wall) = (clock::now(), clock::unix_now());
            for receipt in receipts.drain(..) {
                state.handle(Input::Receipt(receipt), now, wall, effects);
            }
        }
        let mut unsaid = false;
        for packet in effects.packets.drain(..) {
            let awaited = matches!(packet, Packet::Auth(_));
            unsaid |= !wire.send(packet, *form) && awaited;
        }
        if unsaid {
            self.handle(Input::Closed(ReasonCode::PacketTooLarge));
        }
        self.settle();
        for (stored, how) in std::mem::take(&mut self.busy().effects.failed) {
            drop(self.session.nack(stored.source, &[stored.sequence], how, None));
        }
        for (stored, outgoing) in std::mem::take(&mut self.busy().effects.notes) {
            let ticket = self.session.outgoing(stored.source, stored.sequence, outgoing);
            if let Some(packet_id) = NonZeroU16::new(outgoing.packet_id) {
                self.errands().note(Note { packet_id, delivery: None, ticket });
            }
        }
        for packet_id in std::mem::take(&mut self.busy().effects.release) {
            let session = Arc::clone(&self.session);
            self.errands().release(Box::pin(async move {
                let released = session.release_incoming(packet_id.get()).await;
                (packet_id, released)
            }));
        }
        if let Some(ask) = self.busy().effects.ask.take() {
            let session = Arc::clone(&self.session);
            self.errands().ask(match *ask {
                Ask::Subscribe(asked, filters) => Box::pin(async move {
                    let answers = session.subscribe(filters).await;
                    Input::Subscribed(asked, answers)
                }),
                Ask::Unsubscribe(asked, filters) => Box::pin(async move {
                    let answers = session.unsubscribe(filters).await;
                    Input::Unsubscribed(asked, answers)
                }),
            });
        }
    }

    /// Whether the next packet of the client has to wait for an answer.
    pub(super) fn asks(&self) -> bool {
        self.errands.as_ref().is_some_and(|errands| errands.asks())
    }

    /// Whether deliveries wait for room or for their packet id: none is taken before they have it.
    pub(super) fn parks(&self) -> bool {
        self.errands.as_ref().is_some_and(|errands| !errands.parked.is_empty())
    }

    pub(super) fn errands(&mut self) -> &mut Errands {
        self.errands.get_or_insert_default()
    }

    /// Settles what is done with, one call for each source in a row.
    fn settle(&mut self) {
        let mut sequences: Vec<Sequence> = Vec::new();
        let Self { busy, session, .. } = self;
        let Some(Busy { effects, .. }) = busy.as_deref_mut() else { return };
        for settled in effects.settled.chunk_by(|a, b| a.source == b.source) {
            let Some(Stored { source, .. }) = settled.first() else { continue };
            sequences.clear();
            sequences.extend(settled.iter().map(|stored| stored.sequence));
            // Nobody waits for it; a lease that has ended is another's.
            if let Err(error) = session.settle(*source, &sequences) {
                tracing::debug!(client = %session.client_id(), %error, "not settled");
            }
        }
        effects.settled.clear();
    }

    /// Takes in what came of an errand. What is left for the state machine is returned.
    fn done(&mut self, done: Done, wire: &mut Wire) -> Option<Input> {
        let (error, what) = match done {
            Done::Asked(input) => return Some(input),
            Done::Released(packet_id, Ok(())) => return Some(Input::Released(packet_id)),
            Done::Noted(packet_id, delivery, Ok(outcomes)) => {
                if let Some(Outcome::Refused(refusal)) = outcomes.first() {
                    // It was purged, or its lease is another's.
                    tracing::debug!(client = %self.client_id(), %refusal, "a delivery is gone");
                    self.state.window().forget(packet_id);
                    return None;
                }
                let Some(waiting) = delivery else { return Some(Input::Noted(packet_id)) };
                if self.state.started(packet_id, wire.out.position()) {
                    self.send_numbered(&waiting.delivery, packet_id, waiting.dup, wire);
                }
                return None;
            }
            Done::Released(_, Err(error)) => (error, "a released packet id is not stored"),
            Done::Noted(_, _, Err(error)) => (error, "the step of a delivery is not stored"),
        };
        tracing::debug!(client = %self.client_id(), %error, what);
        Some(Input::Closed(ReasonCode::UnspecifiedError))
    }
}
