//! `Redrive` and `RedriveStream`.

use crate::core::CoreError;
use crate::core::queues::redrive::{Redriven, Redriving, Stayed};
use crate::grpc::bounds::FIRST_ERRORS;
use crate::grpc::proto::v1;
use crate::grpc::status;
use crate::types::Sequence;

use super::QueueService;
use super::select::select_of;

/// A move that goes on, and how many errors were told of.
pub(super) struct Progress {
    redriving: Redriving,
    told: usize,
}

impl Progress {
    /// The next part; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<v1::RedriveProgress>, CoreError> {
        let Some((sum, stayed)) = self.redriving.step().await? else { return Ok(None) };
        let Redriven { moved, stayed: stay, looked_at, through } = sum;
        let errors = errors(stayed, FIRST_ERRORS - self.told);
        self.told += errors.len();
        let through_sequence = through.0;
        Ok(Some(v1::RedriveProgress { moved, stayed: stay, looked_at, through_sequence, errors }))
    }
}

fn errors(stayed: Stayed, max: usize) -> Vec<v1::RedriveError> {
    let error = |(place, error): (Sequence, CoreError)| v1::RedriveError {
        sequence: place.0,
        error: Some(status::item(&error)),
    };
    stayed.into_iter().take(max).map(error).collect()
}

impl QueueService {
    /// Begins a move.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Invalid`].
    pub(super) fn redriving(&self, request: v1::RedriveRequest) -> Result<Progress, CoreError> {
        let from = self.broker.queue_named("dead_letter_queue", &request.dead_letter_queue)?;
        let to = match request.destination.as_str() {
            "" => None,
            name => Some(self.broker.queue_named("destination", name)?),
        };
        let max = Some(u64::from(request.max_messages)).filter(|&max| max > 0);
        let redriving = self.broker.redrive(&from, to, select_of(request.filter)?, max)?;
        Ok(Progress { redriving, told: 0 })
    }

    /// A move to its end.
    pub(super) async fn redrive_all(
        &self,
        request: v1::RedriveRequest,
    ) -> Result<v1::RedriveResponse, CoreError> {
        let mut redriving = self.redriving(request)?.redriving;
        let mut answer = v1::RedriveResponse::default();
        let mut first = None;
        while let Some((sum, stayed)) = redriving.step().await? {
            (answer.moved, answer.stayed) = (sum.moved, sum.stayed);
            first = first.or_else(|| stayed.first().map(|(_, error)| error.clone()));
            let room = FIRST_ERRORS - answer.first_errors.len();
            answer.first_errors.extend(errors(stayed, room));
        }
        match first {
            Some(error) if answer.moved == 0 => Err(error),
            _ => Ok(answer),
        }
    }
}
