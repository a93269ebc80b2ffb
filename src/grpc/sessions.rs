//! The part of `AdminService` that looks after sessions.

use std::sync::Arc;

use crate::core::{Broker, CoreError, SessionInfo};
use crate::grpc::bounds::page_size;
use crate::grpc::convert::{duration_of, timestamp};
use crate::grpc::proto::v1;
use crate::grpc::pubsub::filter_of;
use crate::types::ClientId;

fn client_id(field: &str, id: String) -> Result<ClientId, CoreError> {
    ClientId::parse(id).map_err(|error| CoreError::name(field, &error))
}

fn session_of(info: SessionInfo) -> v1::Session {
    let SessionInfo {
        client_id,
        principal,
        connected,
        expiry,
        ends_at,
        created_at,
        queued,
        queued_bytes,
        filters,
    } = info;
    v1::Session {
        client_id: client_id.to_string(),
        connected,
        queued,
        expires_at: ends_at.map(timestamp),
        filters: filters.into_iter().map(|(spec, options)| filter_of(&spec, &options)).collect(),
        principal: principal.to_string(),
        session_expiry: Some(duration_of(expiry)),
        queued_bytes,
        created_at: Some(timestamp(created_at)),
    }
}

pub(super) fn list(
    broker: &Broker,
    request: v1::ListSessionsRequest,
) -> Result<v1::ListSessionsResponse, CoreError> {
    let size = page_size(request.page_size)?;
    let after = match request.page_token {
        token if token.is_empty() => None,
        token => Some(client_id("page_token", token)?),
    };
    let mut page = broker.list_sessions(&request.client_id_prefix, after.as_ref(), size + 1);
    let more = page.len() > size;
    page.truncate(size);
    let next = page.last().filter(|_| more).map(|last| last.client_id.to_string());
    let sessions = page.into_iter().map(session_of).collect();
    Ok(v1::ListSessionsResponse { sessions, next_page_token: next.unwrap_or_default() })
}

pub(super) async fn delete(
    broker: &Arc<Broker>,
    request: v1::DeleteSessionRequest,
) -> Result<v1::DeleteSessionResponse, CoreError> {
    let client_id = client_id("client_id", request.client_id)?;
    Ok(v1::DeleteSessionResponse { discarded_messages: broker.delete_session(&client_id).await? })
}

pub(super) async fn disconnect(
    broker: &Arc<Broker>,
    request: v1::DisconnectClientRequest,
) -> Result<v1::DisconnectClientResponse, CoreError> {
    let client_id = client_id("client_id", request.client_id)?;
    Ok(v1::DisconnectClientResponse { was_connected: broker.disconnect_client(&client_id).await? })
}
