//! How the client commands reach a broker, and what its refusals mean for the exit code.

use std::future::Future;

use anyhow::Context;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::ClientOptions;
use super::exit::{Exit, Failure};

/// Runs a client command on a runtime of its own.
pub(super) fn block_on(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(command)
}

/// A connection to the broker, within the time given.
pub(super) async fn connect(options: &ClientOptions) -> Result<Channel, Failure> {
    let server = &options.server;
    let endpoint = Endpoint::from_shared(server.clone())
        .with_context(|| format!("--server {server:?} is not a URL"))
        .map_err(Failure::usage)?
        .connect_timeout(options.timeout);
    let connected =
        endpoint.connect().await.with_context(|| format!("cannot reach the broker at {server} (--server)"));
    connected.map_err(|reason| Failure { exit: Exit::Unreachable, reason })
}

/// The message as a request with the deadline that the options give.
pub(super) fn request<T>(options: &ClientOptions, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(options.timeout);
    request
}

/// What a refusal means for the exit code.
pub(super) fn refused(status: &Status) -> Failure {
    let exit = match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Exit::Unreachable,
        _ => Exit::Failed,
    };
    Failure { exit, reason: anyhow::anyhow!("{:?}: {}", status.code(), status.message()) }
}
