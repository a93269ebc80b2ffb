//! A connection between CONNACK and its end.
//!
//! One turn: decode all that one read brought, hand its publishes to the core as one batch, answer what is answered, fill
//! the room in the client's window; then write all of it at once and wait for whatever comes next.
//!
//! Bounds: the socket is not read while the core has as many open publishes of this connection as it may, while the
//! answer to a SUBSCRIBE is awaited, or while the client does not take what it is sent.

use std::future::pending;
use std::num::NonZeroU16;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::time::{Sleep, sleep_until};

use super::errands::{Done, Errands, Note};
use super::wire::{Io, Wire};
use crate::core::{Opened, Publisher, PublisherInfo, Receipt, Session};
use crate::engine::Outcome;
use crate::mqtt::aliases::Aliases;
use crate::mqtt::codec::{Packet, ReasonCode};
use crate::mqtt::frames::{Form, Frames};
use crate::mqtt::outbox::Mailbox;
use crate::mqtt::state::{Ask, Effects, Ending, Hello, Input, State, Stored};
use crate::mqtt::{Connected, Door};
use crate::types::{ClientId, Sequence, clock};

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
    pub(super) publisher: Publisher,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) form: Form,
    /// Taken from the mailbox.
    pub(super) frames: Frames,
    /// For what is encoded here.
    pub(super) aliases: Option<Box<Aliases>>,
    pub(super) effects: Effects,
    receipts: Vec<Receipt>,
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
    pub(super) expiry: Duration,
    _connected: Connected,
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
        let Opened { session, incoming, outgoing, expiry, .. } = opened;
        let limits = door.broker.limits();
        let publisher = door.broker.publisher(PublisherInfo {
            client_id: Some(session.client_id().clone()),
            session: session.target(),
            no_local: Some(session.key()),
            ..PublisherInfo::default()
        });
        let state =
            State::new(hello, session.target(), (incoming, outgoing), &door.settings, limits, clock::now());
        Self {
            state,
            session: Arc::new(session),
            publisher,
            form: mailbox.form(),
            frames: Frames::default(),
            aliases,
            effects: Effects::default(),
            receipts: Vec::new(),
            errands: None,
            more: true,
            waits: false,
            heard_out: false,
            published: None,
            deaf: false,
            later: None,
            expiry,
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
                        self.publisher.shrink();
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
        self.publisher.completed(&mut self.receipts).await;
    }

    pub(super) fn handle(&mut self, input: Input) {
        self.state.handle(input, clock::now(), clock::unix_now(), &mut self.effects);
    }

    /// Sets the one timer, if it rings later than anything is due. One that rings too early does no harm, so what is
    /// heard of the client does not move it.
    fn set(&mut self, timer: std::pin::Pin<&mut Sleep>) {
        let later = self.later.as_ref().map(|later| later.at);
        let idle = self.published.map(|at| at + IDLE);
        let due = [self.state.deadline(), later, idle].into_iter().flatten().min();
        let due = due.unwrap_or_else(|| clock::now() + LONG);
        let armed = timer.deadline().into_std();
        if timer.is_elapsed() || due < armed {
            timer.reset(due.into());
        }
    }

    async fn wait(&mut self, door: &Door, wire: &mut Wire, timer: std::pin::Pin<&mut Sleep>) -> Wake {
        let asks = self.errands.as_ref().is_some_and(|errands| errands.asks());
        let may_read =
            !asks && self.later.is_none() && self.publisher.pending() < door.broker.limits().publish_pending;
        let has_room = may_read && self.publisher.room().now_or_never().is_some();
        self.deaf |= !has_room;
        // A client that does not take its answers is not read either, and that is its own fault.
        let reads = has_room && wire.out.len() < HIGH_WATER;
        let drained = wire.out.len() <= LOW_WATER;
        let takes = drained && !self.more && !self.parks() && self.state.window().room() > 0;
        if !takes {
            self.stand_back();
        }
        if wire.input.is_empty() && wire.out.is_empty() {
            self.rest(door);
        }
        let Self { mailbox, publisher, receipts, session, errands, .. } = self;
        let publishing = async {
            if publisher.pending() > 0 {
                publisher.completed(receipts).await;
                Wake::Receipts
            } else if may_read && !has_room {
                publisher.room().await;
                Wake::Room
            } else {
                pending().await
            }
        };
        let errand = async {
            match errands {
                Some(errands) => errands.next().await,
                None => pending().await,
            }
        };
        tokio::select! {
            io = wire.io(&door.buffers, reads, LOW_WATER) => Wake::Io(io),
            () = mailbox.woken() => Wake::Mail,
            wake = publishing => wake,
            () = session.ready(), if takes => Wake::Stored,
            done = errand => Wake::Done(done),
            () = timer => Wake::Time,
        }
    }

    /// Gives back what only a busy connection needs.
    fn rest(&mut self, door: &Door) {
        self.receipts = Vec::new();
        self.effects.packets = Vec::new();
        self.effects.settled = Vec::new();
        self.frames.release(&door.buffers);
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
            if let Some(ending) = self.effects.ending.take() {
                if ending.after.is_zero() {
                    return Some(ending);
                }
                let at = clock::now() + ending.after;
                self.later.get_or_insert_with(|| Box::new(Later { at, ending }));
            }
            if self.effects.packets.is_empty() && self.effects.settled.is_empty() {
                return None;
            }
        }
    }

    fn decode(&mut self, wire: &mut Wire) {
        let asks = self.errands.as_ref().is_some_and(|errands| errands.asks());
        if wire.input.is_empty() || asks || self.later.is_some() {
            return;
        }
        let (now, wall) = (clock::now(), clock::unix_now());
        while !self.effects.halts() {
            match wire.decode() {
                Ok(Some(packet)) => {
                    self.state.handle(Input::Packet(packet), now, wall, &mut self.effects);
                }
                Ok(None) => return,
                Err(error) => self.state.handle(Input::Malformed(error), now, wall, &mut self.effects),
            }
        }
    }

    /// Does what the state machine says.
    pub(super) fn carry_out(&mut self, wire: &mut Wire) {
        if !self.effects.publishes.is_empty() {
            self.publisher.publish(std::mem::take(&mut self.effects.publishes));
            self.published = Some(clock::now());
        }
        self.publisher.completed_now(&mut self.receipts);
        if !self.receipts.is_empty() {
            let (now, wall) = (clock::now(), clock::unix_now());
            for receipt in self.receipts.drain(..) {
                self.state.handle(Input::Receipt(receipt), now, wall, &mut self.effects);
            }
        }
        let mut unsaid = false;
        for packet in self.effects.packets.drain(..) {
            let awaited = matches!(packet, Packet::Auth(_));
            unsaid |= !wire.send(packet, self.form) && awaited;
        }
        if unsaid {
            self.handle(Input::Closed(ReasonCode::PacketTooLarge));
        }
        self.settle();
        for (stored, how) in std::mem::take(&mut self.effects.failed) {
            drop(self.session.nack(stored.source, &[stored.sequence], how, Duration::ZERO));
        }
        for (stored, outgoing) in std::mem::take(&mut self.effects.notes) {
            let ticket = self.session.outgoing(stored.source, stored.sequence, outgoing);
            if let Some(packet_id) = NonZeroU16::new(outgoing.packet_id) {
                self.errands().note(Note { packet_id, delivery: None, ticket });
            }
        }
        for packet_id in std::mem::take(&mut self.effects.release) {
            let session = Arc::clone(&self.session);
            self.errands().release(Box::pin(async move {
                let released = session.release_incoming(packet_id.get()).await;
                (packet_id, released)
            }));
        }
        if let Some(ask) = self.effects.ask.take() {
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
        for settled in self.effects.settled.chunk_by(|a, b| a.source == b.source) {
            let Some(Stored { source, .. }) = settled.first() else { continue };
            sequences.clear();
            sequences.extend(settled.iter().map(|stored| stored.sequence));
            // Nobody waits for it; a lease that has ended is another's.
            if let Err(error) = self.session.settle(*source, &sequences) {
                tracing::debug!(client = %self.session.client_id(), %error, "not settled");
            }
        }
        self.effects.settled.clear();
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
