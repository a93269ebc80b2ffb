//! Clients of the gRPC door: queues, topics, retained values, definitions.

use std::collections::VecDeque;
use std::sync::Arc;

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::call_service_client::CallServiceClient;
use stafett::grpc::proto::v1::consume_request::Action as Ask;
use stafett::grpc::proto::v1::consume_response::Event as Told;
use stafett::grpc::proto::v1::produce_request::Action as Say;
use stafett::grpc::proto::v1::produce_response::Event as Heard;
use stafett::grpc::proto::v1::pub_sub_service_client::PubSubServiceClient;
use stafett::grpc::proto::v1::queue_service_client::QueueServiceClient;
use stafett::types::clock::unix_now;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::history::{Found, History, Order, Sent};
use super::pipeline::{PIPELINE, STEPS};
use crate::below::Chance;
use crate::harness::within;
use crate::queue::{millis, named, seconds, which};

/// Fed by three lines, emptied by two consumers.
pub(super) const WORK: &str = "work";
/// Bound to what the session `live` gets.
pub(super) const BOUND: &str = "bound";
/// Of delayed messages.
pub(super) const LATER: &str = "later";
/// Takes what is sent again once.
pub(super) const ONCE: &str = "once";
/// Ordered by key, emptied by two consumers.
pub(super) const LINES: &str = "lines";
/// Of replies to asynchronous calls.
pub(super) const REPLIES: &str = "replies";
/// Paused and resumed by the one who works with it.
pub(super) const HELD: &str = "held";
/// Comes and goes.
const PASSING: &str = "passing";

/// The first of the lines that are keys.
const KEYS: u64 = 100;

/// The broker is gone.
#[derive(Debug)]
pub(super) struct Gone;

/// What the gRPC door is asked with.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) queues: QueueServiceClient<Channel>,
    pub(super) topics: PubSubServiceClient<Channel>,
    pub(super) calls: CallServiceClient<Channel>,
    pub(super) history: Arc<History>,
    pub(super) chance: Chance,
}

impl Caller {
    pub(super) fn new(channel: Channel, history: &Arc<History>, seed: u64) -> Self {
        Self {
            queues: QueueServiceClient::new(channel.clone()),
            topics: PubSubServiceClient::new(channel.clone()),
            calls: CallServiceClient::new(channel),
            history: Arc::clone(history),
            chance: Chance(seed),
        }
    }

    /// The answer, unless the broker is gone or stores nothing any more.
    pub(super) async fn got<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Gone> {
        match within("an answer", call).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(self.gone(&status)),
        }
    }

    pub(super) fn gone(&self, status: &Status) -> Gone {
        let expected = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
        if !expected.contains(&status.code()) {
            self.history.lock().wrong(format!("refused: {status}"));
        }
        Gone
    }

    pub(super) fn message(sent: Sent, topic: &str) -> v1::Message {
        v1::Message { topic: topic.to_owned(), payload: sent.payload().into(), ..Default::default() }
    }

    pub(super) fn new_message(&self, line: u64, topic: &str) -> (Sent, v1::Message) {
        let sent = self.history.lock().next(line);
        (sent, Self::message(sent, topic))
    }

    /// The queues, unless they are there.
    pub(super) async fn define(&self) -> Result<(), Gone> {
        let plain = |name| v1::Queue { lease: seconds(600), ..named(name) };
        for (name, queue) in [
            (WORK, plain(WORK)),
            (BOUND, v1::Queue { bindings: vec!["live/#".to_owned()], ..plain(BOUND) }),
            (LATER, plain(LATER)),
            (HELD, plain(HELD)),
            (REPLIES, plain(REPLIES)),
            (LINES, v1::Queue { ordered_by_key: true, ..plain(LINES) }),
            (ONCE, v1::Queue { dedup_window: seconds(86_400), ..plain(ONCE) }),
        ] {
            let request = v1::CreateQueueRequest { queue: Some(queue), if_not_exists: true };
            match within("an answer", self.queues.clone().create_queue(request)).await {
                // With the label that an earlier run has given it.
                Err(status) if name == HELD && status.code() == Code::AlreadyExists => {}
                answer => drop(self.got(std::future::ready(answer)).await?),
            }
            self.history.lock().queue(name);
        }
        Ok(())
    }

    /// One message at a time.
    pub(super) async fn enqueue(self) -> Result<(), Gone> {
        loop {
            let (sent, message) = self.new_message(1, "");
            let request = v1::EnqueueRequest { queue: WORK.to_owned(), message: Some(message) };
            self.got(self.queues.clone().enqueue(request)).await?;
            self.history.lock().queue(WORK).stored.insert(sent.number);
        }
    }

    /// Batches, several in flight.
    pub(super) async fn produce(self) -> Result<(), Gone> {
        let (send, frames) = mpsc::channel(64);
        let say =
            async |action| send.send(v1::ProduceRequest { action: Some(action) }).await.map_err(|_| Gone);
        say(Say::Open(v1::ProduceOpen { queue: WORK.to_owned(), ..Default::default() })).await?;
        let mut events = self.got(self.queues.clone().produce(ReceiverStream::new(frames))).await?;
        let mut waiting: VecDeque<(u64, Vec<Sent>)> = VecDeque::new();
        let mut batch_id = 0;
        loop {
            while waiting.len() < 3 {
                let (batch, messages): (Vec<_>, Vec<_>) = (0..10).map(|_| self.new_message(2, "")).unzip();
                batch_id += 1;
                say(Say::Batch(v1::PublishBatch { batch_id, messages })).await?;
                waiting.push_back((batch_id, batch));
            }
            let event = within("an event", events.message()).await.map_err(|status| self.gone(&status))?;
            match event.and_then(|event| event.event) {
                Some(Heard::Ack(ack)) => {
                    let mut state = self.history.lock();
                    while waiting.front().is_some_and(|(id, _)| *id <= ack.through_batch_id) {
                        let (id, batch) = waiting.pop_front().unwrap();
                        let refused = |at| ack.errors.iter().any(|e| e.batch_id == id && e.index == at);
                        let stored =
                            (0..).zip(batch).filter(|(at, _)| !refused(*at)).map(|(_, sent)| sent.number);
                        state.queue(WORK).stored.extend(stored);
                    }
                }
                None | Some(Heard::Closing(_)) => return Err(Gone),
                Some(_) => {}
            }
        }
    }

    /// Batches that are stored whole.
    pub(super) async fn enqueue_whole(mut self) -> Result<(), Gone> {
        loop {
            let count = 1 + self.chance.below(60);
            let (batch, messages): (Vec<_>, Vec<_>) = (0..count).map(|_| self.new_message(3, "")).unzip();
            let numbers: Vec<_> = batch.iter().map(|sent| sent.number).collect();
            self.history.lock().whole.push(numbers.clone());
            let request = v1::EnqueueBatchRequest { queue: WORK.to_owned(), messages, atomic: true };
            self.got(self.queues.clone().enqueue_batch(request)).await?;
            self.history.lock().queue(WORK).stored.extend(numbers);
        }
    }

    /// Each message with a name of its own, often twice at a time; what may be stored, and what is, is sent again.
    pub(super) async fn enqueue_once(mut self) -> Result<(), Gone> {
        loop {
            let (sent, before) = self.history.lock().name(&mut self.chance);
            let dedup_id = sent.number.to_string();
            let message = Some(v1::Message { dedup_id, ..Self::message(sent, "") });
            let request = v1::EnqueueRequest { queue: ONCE.to_owned(), message };
            let twice = self.chance.below(2) == 0;
            let enqueue = async || self.got(self.queues.clone().enqueue(request.clone())).await;
            let again = async || if twice { enqueue().await.map(Some) } else { Ok(None) };
            let (first, again) = tokio::join!(enqueue(), again());
            let answers: Vec<_> = [Some(first?), again?].into_iter().flatten().collect();
            self.history.lock().stored_once(sent, before, &answers);
        }
    }

    /// Two consumers hold nothing together; one of ten messages stays.
    pub(super) async fn receive(mut self, queue: &'static str) -> Result<(), Gone> {
        let mut order = Order::default();
        loop {
            let max_messages = 1 + self.chance.below(30) as u32;
            let messages = self.lease(queue, max_messages, &mut order).await?;
            let taken: Vec<_> = messages.into_iter().filter(|(sent, _)| sent.number % 10 != 3).collect();
            self.settle(queue, taken).await?;
        }
    }

    async fn lease(
        &mut self,
        queue: &'static str,
        max_messages: u32,
        order: &mut Order,
    ) -> Result<Vec<(Sent, v1::LeasedMessage)>, Gone> {
        let request = v1::ReceiveRequest {
            queue: queue.to_owned(),
            max_messages,
            wait: seconds(5),
            ..Default::default()
        };
        let answer = self.got(self.queues.clone().receive(request)).await?;
        Ok(self.seen(queue, answer.messages, order))
    }

    fn seen(
        &self,
        queue: &'static str,
        messages: Vec<v1::LeasedMessage>,
        order: &mut Order,
    ) -> Vec<(Sent, v1::LeasedMessage)> {
        let at = unix_now().0;
        let mut state = self.history.lock();
        let mut seen = Vec::new();
        for leased in messages {
            let sent = Sent::of(&leased.message.as_ref().unwrap().payload);
            state.leased(queue, sent, at);
            // What is delayed or given back is put in where it belongs.
            if queue != LATER && leased.delivery_attempt == 1 && !order.goes_on(sent) {
                state.wrong(format!("{queue}: {} came behind a later one of its line", sent.number));
            }
            seen.push((sent, leased));
        }
        seen
    }

    async fn settle(
        &mut self,
        queue: &'static str,
        messages: Vec<(Sent, v1::LeasedMessage)>,
    ) -> Result<(), Gone> {
        if messages.is_empty() {
            return Ok(());
        }
        let (sent, leased): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
        let numbers: Vec<_> = sent.iter().map(|sent| sent.number).collect();
        self.history.lock().queue(queue).tried.extend(&numbers);
        let lease_tokens = leased.into_iter().map(|leased| leased.lease_token).collect();
        let request = v1::AcknowledgeRequest { queue: queue.to_owned(), lease_tokens };
        let answer = self.got(self.queues.clone().acknowledge(request)).await?;
        let mut state = self.history.lock();
        if !answer.failures.is_empty() {
            state.wrong(format!("{queue}: not settled: {:?}", answer.failures));
        }
        state.settled(queue, &numbers);
        Ok(())
    }

    /// Messages of three keys.
    pub(super) async fn enqueue_lines(mut self) -> Result<(), Gone> {
        loop {
            let line = KEYS + self.chance.below(3);
            let (sent, message) = self.new_message(line, "");
            let message = Some(v1::Message { ordering_key: sent.line.to_string(), ..message });
            let request = v1::EnqueueRequest { queue: LINES.to_owned(), message };
            self.got(self.queues.clone().enqueue(request)).await?;
            self.history.lock().queue(LINES).stored.insert(sent.number);
        }
    }

    /// Of each key one at a time, in their order, whoever takes it; some are given back and come again first.
    pub(super) async fn receive_lines(mut self) -> Result<(), Gone> {
        loop {
            let mut messages = self.lease(LINES, 3, &mut Order::default()).await?;
            let back = messages.pop_if(|_| self.chance.below(4) == 0);
            if let Some((sent, leased)) = back {
                self.history.lock().given_back(&[sent.number]);
                let kind = v1::NackKind::Failed.into();
                let lease_tokens = vec![leased.lease_token];
                let nack =
                    v1::NackRequest { queue: LINES.to_owned(), lease_tokens, kind, ..Default::default() };
                self.got(self.queues.clone().nack(nack)).await?;
            }
            self.settle(LINES, messages).await?;
        }
    }

    /// On a stream, within a window. One of ten deliveries fails and comes again.
    pub(super) async fn consume(self) -> Result<(), Gone> {
        let (send, frames) = mpsc::channel(64);
        let ask =
            async |action| send.send(v1::ConsumeRequest { action: Some(action) }).await.map_err(|_| Gone);
        let window = v1::Window { max_outstanding_messages: 50, max_outstanding_bytes: 0 };
        ask(Ask::Open(v1::ConsumeOpen {
            queue: BOUND.to_owned(),
            window: Some(window),
            ..Default::default()
        }))
        .await?;
        let mut events = self.got(self.queues.clone().consume(ReceiverStream::new(frames))).await?;
        let mut waiting: VecDeque<(u64, Vec<u64>)> = VecDeque::new();
        let mut order = Order::default();
        let mut ack_id = 0;
        loop {
            let event = within("an event", events.message()).await.map_err(|status| self.gone(&status))?;
            match event.and_then(|event| event.event) {
                Some(Told::Messages(frame)) => {
                    let messages = self.seen(BOUND, frame.messages, &mut order);
                    let failed = |(sent, leased): &(Sent, v1::LeasedMessage)| {
                        sent.number % 10 == 7 && leased.delivery_attempt == 1
                    };
                    let (failed, done): (Vec<_>, Vec<_>) = messages.into_iter().partition(failed);
                    for (actual, is_done) in [(done, true), (failed, false)] {
                        if actual.is_empty() {
                            continue;
                        }
                        ack_id += 1;
                        let numbers: Vec<_> = actual.iter().map(|(sent, _)| sent.number).collect();
                        let ids: Vec<_> = actual.iter().map(|(_, leased)| leased.delivery_id).collect();
                        let which = which(ack_id, &ids);
                        if is_done {
                            self.history.lock().queue(BOUND).tried.extend(&numbers);
                            ask(Ask::Ack(which)).await?;
                            waiting.push_back((ack_id, numbers));
                        } else {
                            self.history.lock().given_back(&numbers);
                            let kind = v1::NackKind::Failed.into();
                            let nack = v1::NackBatch { which: Some(which), kind, ..Default::default() };
                            ask(Ask::Nack(nack)).await?;
                        }
                    }
                }
                Some(Told::Results(results)) => {
                    let mut state = self.history.lock();
                    if !results.failures.is_empty() {
                        state.wrong(format!("{BOUND}: not settled: {:?}", results.failures));
                    }
                    while waiting.front().is_some_and(|(id, _)| *id <= results.acked_through) {
                        let (_, numbers) = waiting.pop_front().unwrap();
                        state.settled(BOUND, &numbers);
                    }
                }
                None | Some(Told::Closing(_)) => return Err(Gone),
                Some(_) => {}
            }
        }
    }

    /// Messages that have to wait, some of which are cancelled, and their consumer.
    pub(super) async fn delay(mut self) -> Result<(), Gone> {
        loop {
            let (sent, message) = self.new_message(4, "");
            let is_cancelled = self.chance.below(4) == 0;
            let delay = if is_cancelled { 3_600_000 } else { 100 + self.chance.below(1400) };
            self.history.lock().not_before.insert(sent.number, unix_now().0 + delay);
            let schedule = Some(v1::message::Schedule::Delay(millis(delay as i32).unwrap()));
            let message = Some(v1::Message { schedule, ..message });
            let request = v1::EnqueueRequest { queue: LATER.to_owned(), message };
            let stored = self.got(self.queues.clone().enqueue(request)).await?;
            self.history.lock().queue(LATER).stored.insert(sent.number);
            if is_cancelled {
                self.history.lock().queue(LATER).tried.insert(sent.number);
                let request = v1::DeleteMessagesRequest {
                    queue: LATER.to_owned(),
                    view: v1::QueueView::Delayed.into(),
                    sequences: vec![stored.sequence],
                    message_ids: Vec::new(),
                };
                let answer = self.got(self.queues.clone().delete_messages(request)).await?;
                let mut state = self.history.lock();
                if answer.deleted_sequences != [stored.sequence] {
                    state.wrong(format!("{LATER}: {} was not there to be cancelled", sent.number));
                }
                state.settled(LATER, &[sent.number]);
            }
        }
    }

    pub(super) async fn receive_delayed(mut self) -> Result<(), Gone> {
        loop {
            let messages = self.lease(LATER, 10, &mut Order::default()).await?;
            self.settle(LATER, messages).await?;
        }
    }

    /// One publish that goes to a queue and a session, each whole or not at all.
    pub(super) async fn publish(self) -> Result<(), Gone> {
        loop {
            let (sent, message) = self.new_message(5, "live/grpc");
            let request = v1::PublishRequest { message: Some(message) };
            let answer = self.got(self.topics.clone().publish(request)).await?;
            let mut state = self.history.lock();
            if (answer.matched_queues, answer.matched_subscribers) != (1, 1) {
                state.wrong(format!("live/grpc: not both targets: {answer:?}"));
            }
            state.queue(BOUND).stored.insert(sent.number);
            state.live.said.stored.insert(sent.number);
        }
    }

    /// Values that are kept, replaced and cleared.
    pub(super) async fn retain(mut self) -> Result<(), Gone> {
        loop {
            let topic = format!("state/grpc/{}", self.chance.below(4));
            let (sent, message) = self.new_message(6, &topic);
            let is_value = self.chance.below(4) > 0;
            let payload = if is_value { message.payload } else { Default::default() };
            self.history.lock().register(&topic).send(sent.number, is_value);
            let message = Some(v1::Message { retain: true, payload, ..message });
            self.got(self.topics.clone().publish(v1::PublishRequest { message })).await?;
            self.history.lock().register(&topic).acknowledge(sent.number);
        }
    }

    /// A queue that is made and deleted.
    pub(super) async fn come_and_go(mut self) -> Result<(), Gone> {
        let mut is_there = true;
        loop {
            let sent = self.history.lock().next(7);
            self.history.lock().register(PASSING).send(sent.number, !is_there);
            if is_there {
                // Of an earlier run, it may be gone already.
                let request = v1::DeleteQueueRequest { name: PASSING.to_owned(), ..Default::default() };
                match within("an answer", self.queues.delete_queue(request)).await {
                    Err(status) if status.code() != Code::NotFound => return Err(self.gone(&status)),
                    _ => {}
                }
            } else {
                let labels = [("number".to_owned(), sent.number.to_string())].into();
                let queue = Some(v1::Queue { labels, ..named(PASSING) });
                let request = v1::CreateQueueRequest { queue, if_not_exists: false };
                self.got(self.queues.clone().create_queue(request)).await?;
            }
            self.history.lock().register(PASSING).acknowledge(sent.number);
            is_there = !is_there;
        }
    }

    /// A queue that is paused, gets a message, gives none, and is resumed and emptied.
    pub(super) async fn pause(mut self) -> Result<(), Gone> {
        loop {
            for paused in [true, false] {
                let sent = self.history.lock().next(8);
                self.history.lock().register(HELD).send(sent.number, paused);
                let labels = [("number".to_owned(), sent.number.to_string())].into();
                let queue = Some(v1::Queue { paused, labels, ..named(HELD) });
                let paths = ["labels", "paused"].map(str::to_owned).to_vec();
                let update_mask = Some(prost_types::FieldMask { paths });
                let request = v1::UpdateQueueRequest { queue, update_mask };
                self.got(self.queues.clone().update_queue(request)).await?;
                self.history.lock().register(HELD).acknowledge(sent.number);
                if paused {
                    let (sent, message) = self.new_message(8, "");
                    let request = v1::EnqueueRequest { queue: HELD.to_owned(), message: Some(message) };
                    self.got(self.queues.clone().enqueue(request)).await?;
                    self.history.lock().queue(HELD).stored.insert(sent.number);
                }
                let request =
                    v1::ReceiveRequest { queue: HELD.to_owned(), max_messages: 10, ..Default::default() };
                let answer = self.got(self.queues.clone().receive(request)).await?;
                let messages = self.seen(HELD, answer.messages, &mut Order::default());
                if paused && !messages.is_empty() {
                    self.history.lock().wrong(format!("{HELD}: it is paused and gives {messages:?}"));
                }
                self.settle(HELD, messages).await?;
            }
        }
    }

    /// What is in the store.
    pub(super) async fn find(&mut self) -> Result<Found, Status> {
        let mut found = Found::default();
        let steps = STEPS.map(|step| (step, PIPELINE));
        for (queue, known_as) in
            [WORK, BOUND, LATER, HELD, ONCE, LINES].map(|queue| (queue, queue)).into_iter().chain(steps)
        {
            let numbers = found.queues.entry(known_as).or_default();
            let view = v1::QueueView::All.into();
            let browse = v1::BrowseRequest { queue: queue.to_owned(), view, ..Default::default() };
            let mut pages = match within("an answer", self.queues.browse(browse)).await {
                Err(status) if status.code() == Code::NotFound => {
                    found.queues.remove(known_as);
                    continue;
                }
                pages => pages?.into_inner(),
            };
            while let Some(page) = within("a page", pages.message()).await? {
                for shown in page.messages {
                    *numbers.entry(Sent::of(&shown.message.unwrap().payload).number).or_default() += 1;
                }
            }
        }
        if self.history.lock().queues.contains_key(REPLIES) {
            found.queues.insert(REPLIES, self.find_calls().await?);
        }
        let mut all = v1::ListRetainedRequest { filter: "state/#".to_owned(), ..Default::default() };
        loop {
            let page = within("an answer", self.topics.list_retained(all.clone())).await?.into_inner();
            let values = page.messages.into_iter().map(|m| (m.topic, Some(Sent::of(&m.payload).number)));
            found.registers.extend(values);
            if page.next_page_token.is_empty() {
                break;
            }
            all.page_token = page.next_page_token;
        }
        let get = v1::GetQueueRequest { name: HELD.to_owned() };
        match within("an answer", self.queues.get_queue(get)).await {
            Ok(answer) => {
                let queue = answer.into_inner().queue.unwrap();
                let number = queue.labels.get("number").filter(|_| queue.paused).and_then(|n| n.parse().ok());
                found.registers.insert(HELD.to_owned(), number);
            }
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status),
        }
        let get = v1::GetQueueRequest { name: PASSING.to_owned() };
        match within("an answer", self.queues.get_queue(get)).await {
            Ok(answer) => {
                let labels = answer.into_inner().queue.unwrap().labels;
                found.registers.insert(PASSING.to_owned(), labels["number"].parse().ok());
            }
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status),
        }
        Ok(found)
    }
}
