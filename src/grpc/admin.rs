//! `AdminService`: what an operator asks a running broker.
//!
//! Invariant: information comes from counters and facts alone; it never waits, and never fails.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::core::Broker;
use crate::counters::Counters;
use crate::types::UnixMillis;

use super::backup;
use super::bounds::answer;
use super::convert::timestamp;
use super::proto::v1;
use super::sessions;

/// What does not change while the process runs.
#[derive(Clone, Debug, Default)]
pub struct ServerFacts {
    /// When the process started to serve.
    pub started_at: UnixMillis,
    /// What works, one short name per capability.
    pub features: Vec<&'static str>,
    /// How many connections are accepted at the same time.
    pub max_connections: u64,
    /// What an acknowledgement waits for; `None` while nothing is stored.
    pub durability: Option<&'static str>,
    /// Name of each door and the address it is bound to.
    pub doors: Vec<(String, String)>,
}

/// Gives the name of each bridge to another broker and how it is; must not block.
pub type BridgeSource = Box<dyn Fn() -> Vec<(String, String)> + Send + Sync>;

/// The service.
pub struct AdminService {
    facts: ServerFacts,
    counters: Counters,
    bridges: BridgeSource,
}

impl AdminService {
    /// Answers with `facts` and with what is counted at that moment.
    #[must_use]
    pub fn new(mut facts: ServerFacts, counters: Counters, bridges: BridgeSource) -> Self {
        facts.features.sort_unstable();
        Self { facts, counters, bridges }
    }

    fn info(&self) -> v1::GetServerInfoResponse {
        let counters: HashMap<String, u64> =
            self.counters.list().map(|(name, count)| (name.to_owned(), count)).collect();
        v1::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Some(timestamp(self.facts.started_at)),
            counters,
            features: self.facts.features.iter().map(|name| (*name).to_owned()).collect(),
            max_connections: self.facts.max_connections,
            durability: self.facts.durability.unwrap_or_default().to_owned(),
            bridges: (self.bridges)().into_iter().collect(),
            doors: self.facts.doors.iter().map(|(name, at)| ((*name).to_owned(), at.clone())).collect(),
        }
    }
}

impl fmt::Debug for AdminService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminService").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// The service as it is served, over a broker.
pub(super) struct Admin {
    pub(super) service: AdminService,
    pub(super) broker: Arc<Broker>,
}

#[tonic::async_trait]
impl v1::admin_service_server::AdminService for Admin {
    async fn get_server_info(
        &self,
        _request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        Ok(Response::new(self.service.info()))
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        answer(sessions::list(&self.broker, request.into_inner()))
    }

    async fn delete_session(
        &self,
        request: Request<v1::DeleteSessionRequest>,
    ) -> Result<Response<v1::DeleteSessionResponse>, Status> {
        answer(sessions::delete(&self.broker, request.into_inner()).await)
    }

    async fn disconnect_client(
        &self,
        request: Request<v1::DisconnectClientRequest>,
    ) -> Result<Response<v1::DisconnectClientResponse>, Status> {
        answer(sessions::disconnect(&self.broker, request.into_inner()).await)
    }

    type BackupStream = backup::Events;

    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        answer(backup::serve(&self.broker, &request.into_inner().name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_the_counters_of_every_source() {
        let facts = ServerFacts {
            started_at: UnixMillis(1_500),
            features: vec!["reflection", "health"],
            ..ServerFacts::default()
        };
        let counters = Counters::new(vec![Box::new(|| vec![("a", 1)]), Box::new(|| vec![("b_total", 2)])]);
        let service = AdminService::new(facts, counters, Box::new(|| vec![("b".into(), "up".into())]));
        let answer = service.info();
        assert_eq!(answer.counters, HashMap::from([("a".to_owned(), 1), ("b_total".to_owned(), 2)]));
        assert_eq!(answer.bridges["b"], "up");
        assert_eq!(answer.started_at, Some(prost_types::Timestamp { seconds: 1, nanos: 500_000_000 }));
        assert_eq!(answer.features, ["health", "reflection"]);
    }
}
