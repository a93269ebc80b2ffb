//! Messages that go from queue to queue: what is forwarded, given up and sent back is never in two of them and never in none.

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::forward_result::Outcome;

use super::history::Sent;
use super::queues::{Caller, Gone};
use crate::queue::{millis, named, seconds};

/// Where they come in.
const FIRST: &str = "step.first";
/// Where they lie that were given up.
const DEAD: &str = "step.dead";
/// Where they go.
const LAST: &str = "step.last";
/// All of them.
pub(super) const STEPS: [&str; 3] = [DEAD, FIRST, LAST];
/// What the history knows all of them by: a message is in one of them.
pub(super) const PIPELINE: &str = "pipeline";

impl Caller {
    pub(super) async fn define_pipeline(&self) -> Result<(), Gone> {
        for name in STEPS {
            let dead_letter_queue = if name == FIRST { DEAD.to_owned() } else { String::new() };
            let queue = v1::Queue { dead_letter_queue, lease: seconds(600), ..named(name) };
            let request = v1::CreateQueueRequest { queue: Some(queue), if_not_exists: true };
            self.got(self.queues.clone().create_queue(request)).await?;
        }
        self.history.lock().queue(PIPELINE);
        Ok(())
    }

    /// Puts messages in, gives some of them up, forwards the others.
    pub(super) async fn step(mut self) -> Result<(), Gone> {
        loop {
            for _ in 0..5 {
                let (sent, message) = self.new_message(9, "");
                let request = v1::EnqueueRequest { queue: FIRST.to_owned(), message: Some(message) };
                self.got(self.queues.clone().enqueue(request)).await?;
                self.history.lock().queue(PIPELINE).stored.insert(sent.number);
            }
            let mut items = Vec::new();
            for leased in self.take(FIRST).await? {
                if self.chance.below(4) > 0 {
                    let message =
                        leased.message.map(|message| v1::Message { topic: String::new(), ..message });
                    let next = v1::ForwardMessage { queue: LAST.to_owned(), message };
                    items.push(v1::ForwardItem { lease_token: leased.lease_token, messages: vec![next] });
                    continue;
                }
                let request = v1::NackRequest {
                    queue: FIRST.to_owned(),
                    lease_tokens: vec![leased.lease_token],
                    kind: v1::NackKind::DeadLetter.into(),
                    ..Default::default()
                };
                self.got(self.queues.clone().nack(request)).await?;
            }
            if items.is_empty() {
                continue;
            }
            let request = v1::ForwardRequest { queue: FIRST.to_owned(), items };
            for result in self.got(self.queues.clone().forward(request)).await?.results {
                if let Some(Outcome::Error(error)) = result.outcome {
                    self.history.lock().wrong(format!("{PIPELINE}: not forwarded: {error:?}"));
                }
            }
        }
    }

    /// Sends back what was given up.
    pub(super) async fn redrive(self) -> Result<(), Gone> {
        loop {
            let filter = v1::MessageFilter { source_queue: FIRST.to_owned(), ..Default::default() };
            let request = v1::RedriveRequest {
                dead_letter_queue: DEAD.to_owned(),
                max_messages: 20,
                filter: Some(filter),
                ..Default::default()
            };
            self.got(self.queues.clone().redrive(request)).await?;
            // Until there is something to send back.
            self.got(self.queues.clone().receive(v1::ReceiveRequest {
                queue: DEAD.to_owned(),
                wait: millis(50),
                lease: seconds(1),
                ..Default::default()
            }))
            .await?;
        }
    }

    /// Settles what has come to the end; one of ten stays.
    pub(super) async fn finish_pipeline(self) -> Result<(), Gone> {
        loop {
            let leased: Vec<_> = self.take(LAST).await?;
            let number =
                |leased: &v1::LeasedMessage| Sent::of(&leased.message.as_ref().unwrap().payload).number;
            let done: Vec<_> = leased.iter().filter(|leased| number(leased) % 10 != 3).collect();
            let numbers: Vec<_> = done.iter().map(|leased| number(leased)).collect();
            if numbers.is_empty() {
                continue;
            }
            self.history.lock().queue(PIPELINE).tried.extend(&numbers);
            let lease_tokens = done.into_iter().map(|leased| leased.lease_token.clone()).collect();
            let request = v1::AcknowledgeRequest { queue: LAST.to_owned(), lease_tokens };
            let failures = self.got(self.queues.clone().acknowledge(request)).await?.failures;
            let mut state = self.history.lock();
            if !failures.is_empty() {
                state.wrong(format!("{PIPELINE}: not settled: {failures:?}"));
            }
            state.settled(PIPELINE, &numbers);
        }
    }

    async fn take(&self, queue: &str) -> Result<Vec<v1::LeasedMessage>, Gone> {
        let request = v1::ReceiveRequest {
            queue: queue.to_owned(),
            max_messages: 10,
            wait: millis(100),
            ..Default::default()
        };
        Ok(self.got(self.queues.clone().receive(request)).await?.messages)
    }
}
