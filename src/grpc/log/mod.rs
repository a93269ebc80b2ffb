//! `LogService`.
//!
//! Here are the methods; `definition` has a stream's settings, `read` the reading. Invariant: nothing is kept here but the
//! broker.

mod definition;
mod read;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use tonic::{Request, Status};

use crate::core::streams::StreamEntry;
use crate::core::streams::cursors::Place;
use crate::core::{Broker, CoreError};
use crate::engine::StreamSpec;
use crate::types::{CursorName, Message, Sequence, clock};

use super::bounds::{Answer, MAX_ITEMS, answer, intake, page_size, some_items};
use super::convert::{Accepted, timestamp};
use super::proto::{v1, v1beta1};
use super::stream::Bounds;
use definition::{cursor_name, fields_of, set, spec_of, state_of, stream_name, stream_of};

/// The service.
#[derive(Debug)]
pub(super) struct LogService {
    broker: Arc<Broker>,
    streams: Bounds,
}

impl LogService {
    /// Serves the streams of `broker`.
    pub(super) fn new(broker: Arc<Broker>, streams: Bounds) -> Self {
        Self { broker, streams }
    }

    async fn create(
        &self,
        request: v1beta1::CreateStreamRequest,
    ) -> Result<v1beta1::CreateStreamResponse, CoreError> {
        let stream = request.stream.ok_or_else(|| CoreError::invalid("stream", "must be given"))?;
        let spec = spec_of(&stream, self.broker.limits())?;
        let entry = self.broker.create_stream(spec, request.if_not_exists).await?;
        Ok(v1beta1::CreateStreamResponse { stream: Some(stream_of(&entry.spec())) })
    }

    async fn update(
        &self,
        request: v1beta1::UpdateStreamRequest,
    ) -> Result<v1beta1::UpdateStreamResponse, CoreError> {
        let stream = request.stream.ok_or_else(|| CoreError::invalid("stream", "must be given"))?;
        let name = stream_name("stream.name", &stream.name)?;
        let fields = fields_of(request.update_mask)?;
        let limits = self.broker.limits().clone();
        let change = move |spec: &mut StreamSpec| {
            fields.iter().try_for_each(|field| set(spec, field, &stream, &limits))
        };
        let entry = self.broker.update_stream(&name, change).await?;
        Ok(v1beta1::UpdateStreamResponse { stream: Some(stream_of(&entry.spec())) })
    }

    fn list(&self, request: &v1beta1::ListStreamsRequest) -> Result<v1beta1::ListStreamsResponse, CoreError> {
        let size = page_size(request.page_size)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(stream_name("page_token", token)?),
        };
        let mut page = self.broker.streams().page(&request.name_prefix, after.as_ref(), size + 1);
        let more = page.len() > size;
        page.truncate(size);
        let next = page.last().filter(|_| more).map(|last| last.name().to_string());
        let streams = page.iter().map(|entry| stream_of(&entry.spec())).collect();
        Ok(v1beta1::ListStreamsResponse { streams, next_page_token: next.unwrap_or_default() })
    }

    async fn append_all(
        &self,
        request: v1beta1::AppendRequest,
    ) -> Result<v1beta1::AppendResponse, CoreError> {
        let stream = self.broker.stream_named("stream", &request.stream)?;
        some_items("messages", request.messages.len(), MAX_ITEMS)?;
        let mut messages = Vec::with_capacity(request.messages.len());
        for (at, message) in request.messages.into_iter().enumerate() {
            let taken = self.message_of(&stream, message);
            messages.push(taken.map_err(|error| error.within(format_args!("messages[{at}]")))?);
        }
        let expected = request.expected_next_sequence.map(Sequence);
        let (first, last) = self.broker.append(&stream, messages, expected).await?;
        Ok(v1beta1::AppendResponse { first_sequence: first.0, last_sequence: last.0 })
    }

    fn message_of(&self, stream: &StreamEntry, message: v1::Message) -> Result<Message, CoreError> {
        if message.retain {
            return Err(CoreError::invalid("retain", "is for topics: a stream keeps everything it gets"));
        }
        if message.priority.is_some() {
            return Err(CoreError::invalid("priority", "is for queues"));
        }
        if !message.dedup_id.is_empty() {
            return Err(CoreError::invalid("dedup_id", "is for queues"));
        }
        if message.schedule.is_some() {
            return Err(CoreError::invalid("schedule", "is for queues"));
        }
        let intake = intake(&self.broker, clock::unix_now());
        let Accepted { message, .. } = intake.message(message, Some(stream.topic()))?;
        if message.topic.is_reserved() && message.topic != *stream.topic() {
            let what = format!("`{}`: names that begin with `$` are the server's", message.topic);
            return Err(CoreError::invalid("topic", what));
        }
        Ok(message)
    }

    async fn commit(
        &self,
        request: v1beta1::CommitCursorRequest,
    ) -> Result<v1beta1::CommitCursorResponse, CoreError> {
        let stream = self.broker.stream_named("stream", &request.stream)?;
        let name = cursor_name("cursor", &request.cursor)?;
        let sequence = Sequence(request.sequence);
        let cursor = self.broker.commit_cursor(&stream, name, sequence, request.rewind).await?;
        Ok(v1beta1::CommitCursorResponse { committed_sequence: cursor.sequence.0 })
    }

    fn list_all_cursors(
        &self,
        request: &v1beta1::ListCursorsRequest,
    ) -> Result<v1beta1::ListCursorsResponse, CoreError> {
        let stream = self.broker.stream_named("stream", &request.stream)?;
        let size = page_size(request.page_size)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(cursor_name("page_token", token)?),
        };
        let mut places = self.broker.cursors(&stream)?;
        places.retain(|place| after.as_ref().is_none_or(|after| place.name > *after));
        let more = places.len() > size;
        places.truncate(size);
        let next = places.last().filter(|_| more).map(|last| last.name.to_string());
        let cursor = |Place { name, cursor, lag, lost }| v1beta1::Cursor {
            name: CursorName::to_string(&name),
            committed_sequence: cursor.sequence.0,
            commit_time: Some(timestamp(cursor.committed_at)),
            lag,
            lost,
        };
        let cursors = places.into_iter().map(cursor).collect();
        Ok(v1beta1::ListCursorsResponse { cursors, next_page_token: next.unwrap_or_default() })
    }
}

#[tonic::async_trait]
impl v1beta1::log_service_server::LogService for LogService {
    async fn create_stream(
        &self,
        request: Request<v1beta1::CreateStreamRequest>,
    ) -> Answer<v1beta1::CreateStreamResponse> {
        answer(self.create(request.into_inner()).await)
    }

    async fn get_stream(
        &self,
        request: Request<v1beta1::GetStreamRequest>,
    ) -> Answer<v1beta1::GetStreamResponse> {
        let found = || {
            let entry = self.broker.stream_named("name", &request.get_ref().name)?;
            let state = Some(state_of(&self.broker.stream_stats(&entry)?));
            Ok(v1beta1::GetStreamResponse { stream: Some(stream_of(&entry.spec())), state })
        };
        answer(found())
    }

    async fn update_stream(
        &self,
        request: Request<v1beta1::UpdateStreamRequest>,
    ) -> Answer<v1beta1::UpdateStreamResponse> {
        answer(self.update(request.into_inner()).await)
    }

    async fn list_streams(
        &self,
        request: Request<v1beta1::ListStreamsRequest>,
    ) -> Answer<v1beta1::ListStreamsResponse> {
        answer(self.list(request.get_ref()))
    }

    async fn delete_stream(
        &self,
        request: Request<v1beta1::DeleteStreamRequest>,
    ) -> Answer<v1beta1::DeleteStreamResponse> {
        let deleted = async {
            let name = stream_name("name", &request.get_ref().name)?;
            self.broker.delete_stream(&name).await
        };
        answer(deleted.await.map(|deleted_messages| v1beta1::DeleteStreamResponse { deleted_messages }))
    }

    async fn append(&self, request: Request<v1beta1::AppendRequest>) -> Answer<v1beta1::AppendResponse> {
        answer(self.append_all(request.into_inner()).await)
    }

    type ReadStream = Pin<Box<dyn Stream<Item = Result<v1beta1::ReadResponse, Status>> + Send>>;

    async fn read(&self, request: Request<v1beta1::ReadRequest>) -> Answer<Self::ReadStream> {
        answer(read::serve(&self.broker, self.streams, request))
    }

    async fn commit_cursor(
        &self,
        request: Request<v1beta1::CommitCursorRequest>,
    ) -> Answer<v1beta1::CommitCursorResponse> {
        answer(self.commit(request.into_inner()).await)
    }

    async fn list_cursors(
        &self,
        request: Request<v1beta1::ListCursorsRequest>,
    ) -> Answer<v1beta1::ListCursorsResponse> {
        answer(self.list_all_cursors(request.get_ref()))
    }

    async fn delete_cursor(
        &self,
        request: Request<v1beta1::DeleteCursorRequest>,
    ) -> Answer<v1beta1::DeleteCursorResponse> {
        let request = request.into_inner();
        let deleted = async {
            let stream = self.broker.stream_named("stream", &request.stream)?;
            let name = cursor_name("cursor", &request.cursor)?;
            self.broker.delete_cursor(&stream, &name).await
        };
        answer(deleted.await.map(|()| v1beta1::DeleteCursorResponse {}))
    }
}
