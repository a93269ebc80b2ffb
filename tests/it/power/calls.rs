//! Asynchronous calls: one who makes them, one who answers, and where they are found.

use std::collections::HashMap;

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1::call_async_request::ReplyTo;
use stafett::grpc::proto::v1::serve_request::Action as Say;
use stafett::grpc::proto::v1::serve_response::Event as Asked;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::history::Sent;
use super::queues::{Caller, Gone, REPLIES};
use crate::harness::within;
use crate::queue::seconds;

/// What is called.
const SERVICE: &str = "service";

/// Whether the call with this number may be made twice.
fn is_idempotent(number: u64) -> bool {
    number.is_multiple_of(2)
}

impl Caller {
    /// Stores one call at a time.
    pub(super) async fn call(self) -> Result<(), Gone> {
        loop {
            let (sent, message) = self.new_message(9, "");
            let call = v1::CallAsyncRequest {
                service: SERVICE.to_owned(),
                request: Some(message),
                timeout: seconds(86_400),
                reply_to: Some(ReplyTo::Queue(REPLIES.to_owned())),
                idempotent: is_idempotent(sent.number),
            };
            let id = self.got(self.calls.clone().call_async(call)).await?.request_id;
            let mut state = self.history.lock();
            state.calls.insert(id, sent.number);
            state.queue(REPLIES).stored.insert(sent.number);
        }
    }

    /// Answers calls.
    /// With `keeps` one of ten waits for its answer until others come.
    pub(super) async fn serve(mut self, keeps: bool) -> Result<(), Gone> {
        let (send, frames) = mpsc::channel(64);
        let say = async |action| send.send(v1::ServeRequest { action: Some(action) }).await.map_err(|_| Gone);
        say(Say::Open(v1::ServeOpen { service: SERVICE.to_owned(), ..Default::default() })).await?;
        let mut events = self.got(self.calls.clone().serve(ReceiverStream::new(frames))).await?;
        let mut in_hand = Vec::new();
        loop {
            let event = within("an event", events.message()).await.map_err(|status| self.gone(&status))?;
            let frame = match event.and_then(|event| event.event) {
                Some(Asked::Requests(frame)) => frame,
                None | Some(Asked::Closing(_)) => return Err(Gone),
                Some(_) => continue,
            };
            for asked in frame.requests {
                let sent = Sent::of(&asked.message.unwrap().payload);
                let mut state = self.history.lock();
                if !state.handed.insert(sent.number) && !is_idempotent(sent.number) {
                    state.wrong(format!("the call {} was handed out twice", sent.number));
                }
                in_hand.push(asked.request_id);
            }
            let kept = in_hand.len().min(usize::from(keeps && self.chance.below(10) == 0));
            let answer = |request_id| v1::ServeReply { request_id, ..Default::default() };
            let replies = in_hand.drain(kept..).map(answer).collect();
            say(Say::Replies(v1::ServeReplies { replies })).await?;
        }
    }

    /// Answers calls until each that is stored has its reply, one that is stuck is a fault.
    pub(super) async fn finish_calls(mut self, serving: Self) -> Result<(), Gone> {
        let calls = self.history.lock().calls.clone();
        let over = async {
            for id in calls.keys() {
                let request = v1::AwaitReplyRequest { request_id: id.clone(), wait: seconds(15) };
                match within("an answer", self.calls.await_reply(request)).await {
                    Ok(answer) => assert!(answer.into_inner().done, "the call {id} is not answered"),
                    // Its reply is in the queue.
                    Err(status) if status.code() == Code::NotFound => {}
                    Err(status) => return Err(self.gone(&status)),
                }
            }
            Ok(())
        };
        tokio::select! {
            over = over => over,
            ended = serving.serve(false) => ended,
        }
    }

    /// The calls that are under way, or have a reply in the queue, by their numbers; and how often.
    pub(super) async fn find_calls(&mut self) -> Result<HashMap<u64, u32>, Status> {
        let calls = self.history.lock().calls.clone();
        let mut found = HashMap::new();
        for (id, number) in &calls {
            let request = v1::AwaitReplyRequest { request_id: id.clone(), wait: None };
            match within("an answer", self.calls.await_reply(request)).await {
                Ok(_) => drop(found.insert(*number, 1)),
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status),
            }
        }
        // One that was under way may have its reply meanwhile.
        let mut replies: HashMap<u64, u32> = HashMap::new();
        let browse = v1::BrowseRequest { queue: REPLIES.to_owned(), ..Default::default() };
        let mut pages = within("an answer", self.queues.browse(browse)).await?.into_inner();
        while let Some(page) = within("a page", pages.message()).await? {
            for shown in page.messages {
                let id = String::from_utf8(shown.message.unwrap().correlation_data.to_vec()).unwrap();
                // Of others nobody was told that they are stored.
                if let Some(number) = calls.get(&id) {
                    *replies.entry(*number).or_default() += 1;
                }
            }
        }
        found.extend(replies);
        Ok(found)
    }
}
