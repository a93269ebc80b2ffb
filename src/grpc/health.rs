//! `grpc.health.v1.Health`: whether the broker serves, asked once or watched.
//!
//! Invariant: from the stop on, every service is NOT_SERVING, every watcher has heard it, and the watches end, so that they
//! do not hold up the drain.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// What is said about each service; clones are the same board. The empty name stands for the whole broker.
#[derive(Clone, Debug)]
pub struct HealthBoard {
    states: Arc<watch::Sender<BTreeMap<String, bool>>>,
}

impl HealthBoard {
    /// A board on which neither the broker nor any of `services` is serving yet.
    #[must_use]
    pub fn new(services: &[&str]) -> Self {
        let names = std::iter::once("").chain(services.iter().copied());
        let states = names.map(|name| (name.to_owned(), false)).collect();
        Self { states: Arc::new(watch::Sender::new(states)) }
    }

    /// Says of the broker as a whole, and so of every service, whether it serves.
    pub fn set_all(&self, serving: bool) {
        self.states.send_modify(|states| states.values_mut().for_each(|state| *state = serving));
    }

    pub(super) fn into_service(self, stopping: CancellationToken) -> HealthServer<HealthService> {
        HealthServer::new(HealthService { board: self, stopping })
    }
}

pub(super) struct HealthService {
    board: HealthBoard,
    stopping: CancellationToken,
}

fn state_of(states: &BTreeMap<String, bool>, service: &str, stopping: &CancellationToken) -> ServingStatus {
    match states.get(service) {
        None => ServingStatus::ServiceUnknown,
        Some(true) if !stopping.is_cancelled() => ServingStatus::Serving,
        Some(_) => ServingStatus::NotServing,
    }
}

struct Watching {
    service: String,
    states: watch::Receiver<BTreeMap<String, bool>>,
    stopping: CancellationToken,
    said: Option<ServingStatus>,
}

impl Watching {
    /// The next state that differs from the last one said; `None` after the stop.
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        loop {
            let stopped = self.stopping.is_cancelled();
            let state = state_of(&self.states.borrow_and_update(), &self.service, &self.stopping);
            if self.said != Some(state) {
                self.said = Some(state);
                return Some((Ok(HealthCheckResponse { status: state.into() }), self));
            }
            if stopped {
                return None;
            }
            tokio::select! {
                () = self.stopping.cancelled() => {}
                changed = self.states.changed() => changed.ok()?,
            }
        }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match state_of(&self.board.states.borrow(), &service, &self.stopping) {
            ServingStatus::ServiceUnknown => Err(Status::not_found(format!("no service named {service:?}"))),
            state => Ok(Response::new(HealthCheckResponse { status: state.into() })),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watching = Watching {
            service: request.into_inner().service,
            states: self.board.states.subscribe(),
            stopping: self.stopping.clone(),
            said: None,
        };
        Ok(Response::new(Box::pin(stream::unfold(watching, Watching::next))))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    fn request(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    #[tokio::test]
    async fn a_watch_hears_each_change_once_and_ends_with_the_stop() {
        let board = HealthBoard::new(&["a"]);
        board.set_all(true);
        let stopping = CancellationToken::new();
        let service = HealthService { board: board.clone(), stopping: stopping.clone() };
        let mut watch = service.watch(request("a")).await.unwrap().into_inner();
        let mut heard = Vec::new();
        heard.push(watch.next().await.unwrap().unwrap().status());
        board.set_all(false);
        heard.push(watch.next().await.unwrap().unwrap().status());
        board.set_all(true);
        heard.push(watch.next().await.unwrap().unwrap().status());
        stopping.cancel();
        heard.push(watch.next().await.unwrap().unwrap().status());
        let (yes, no) = (ServingStatus::Serving, ServingStatus::NotServing);
        assert_eq!(heard, [yes, no, yes, no]);
        assert!(watch.next().await.is_none());
        assert_eq!(service.check(request("")).await.unwrap().into_inner().status(), no);
    }

    #[tokio::test]
    async fn an_unknown_service_is_not_found_and_may_be_watched() {
        let service = HealthService { board: HealthBoard::new(&[]), stopping: CancellationToken::new() };
        assert_eq!(service.check(request("x")).await.unwrap_err().code(), tonic::Code::NotFound);
        let mut watch = service.watch(request("x")).await.unwrap().into_inner();
        assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    }
}
