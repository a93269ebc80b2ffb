//! `CallStream`: the parts of one answer, as they come and as the caller reads.

use tonic::Extensions;

use crate::core::calls::Calling;
use crate::grpc::deadline::{Deadline, exceeded, passed};
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::call_stream_response::Event;
use crate::grpc::status::of_call;
use crate::grpc::stream::{Events, Served, run};

use super::reply_of;

/// Serves one stream.
pub(super) fn serve(calling: Calling, extensions: &Extensions) -> super::Events<v1::CallStreamResponse> {
    let mut events = Events::new();
    events.say(v1::CallStreamResponse { event: Some(Event::Opened(v1::CallOpened {})) });
    let deadline = extensions.get::<Deadline>().copied();
    run(Answering { calling, deadline, events })
}

struct Answering {
    calling: Calling,
    deadline: Option<Deadline>,
    events: Events<v1::CallStreamResponse>,
}

impl Served for Answering {
    type Event = v1::CallStreamResponse;

    fn said(&mut self) -> &mut Events<v1::CallStreamResponse> {
        &mut self.events
    }

    async fn step(&mut self) {
        let Self { calling, deadline, events } = self;
        tokio::select! {
            biased;
            said = calling.next() => match said {
                Some(Ok(reply)) => {
                    let event = Event::Reply(reply_of(reply));
                    events.say(v1::CallStreamResponse { event: Some(event) });
                }
                Some(Err(error)) => events.fail(of_call(&error)),
                None => events.end(),
            },
            () = passed(*deadline) => events.fail(exceeded()),
        }
    }
}
