//! How the client commands reach a broker, and what its refusals mean for the exit code.

use std::error::Error;
use std::future::Future;
use std::path::Path;

use anyhow::Context;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Response, Status};

use super::ClientOptions;
use super::exit::{Exit, Failure};
use crate::causes;
use crate::grpc::proto::v1::call_service_client::CallServiceClient;

/// Runs a client command on a runtime of its own.
pub(super) fn block_on(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(command)
}

/// A connection to the broker, within the time given.
pub(super) async fn connect(options: &ClientOptions) -> Result<Channel, Failure> {
    let server = &options.server;
    let mut endpoint = Endpoint::from_shared(server.clone())
        .with_context(|| format!("--server {server:?} is not a URL"))
        .map_err(Failure::usage)?
        .connect_timeout(options.timeout);
    if !matches!(endpoint.uri().scheme_str(), Some("http" | "https")) {
        return Err(Failure::usage(anyhow::anyhow!(
            "--server {server:?} needs http:// or https:// in front"
        )));
    }
    if endpoint.uri().scheme_str() == Some("https") {
        let tls = tls(options).map_err(Failure::usage)?;
        endpoint =
            endpoint.tls_config(tls).context("the certificates cannot be used").map_err(Failure::usage)?;
    } else if options.ca.is_some() || options.cert.is_some() {
        return Err(Failure::usage(anyhow::anyhow!(
            "--ca and --cert need a --server at https://, not {server}"
        )));
    }
    endpoint.connect().await.map_err(|error| {
        let mut reason = format!("cannot reach the broker at {server} (--server)");
        causes::add(&mut reason, Some(&error));
        if reason.contains(NO_TLS) {
            reason.push_str("; no TLS is spoken there: try http:// instead of https://");
        }
        Failure { exit: Exit::Unreachable, reason: anyhow::anyhow!(reason) }
    })
}

/// A client for calls, of any size.
pub(super) async fn calls(options: &ClientOptions) -> Result<CallServiceClient<Channel>, Failure> {
    let client = CallServiceClient::new(connect(options).await?);
    Ok(client.max_encoding_message_size(usize::MAX).max_decoding_message_size(usize::MAX))
}

/// What rustls says of a peer whose first bytes are no TLS.
const NO_TLS: &str = "InvalidContentType";

/// What HTTP/2 says of a peer whose first bytes are a TLS alert.
const NO_HTTP2: &str = "frame with invalid size";

fn tls(options: &ClientOptions) -> anyhow::Result<ClientTlsConfig> {
    let read = |flag: &str, file: &Path| {
        std::fs::read(file).with_context(|| format!("--{flag}: cannot read {}", file.display()))
    };
    let mut tls = match &options.ca {
        Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("ca", ca)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&options.cert, &options.key) {
        tls = tls.identity(Identity::from_pem(read("cert", cert)?, read("key", key)?));
    }
    Ok(tls.timeout(options.timeout))
}

/// The message as a request with the deadline that the options give.
pub(super) fn request<T>(options: &ClientOptions, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(options.timeout);
    request
}

/// Asks for page after page, each with the token of the one before, and has each shown, which gives the next token, until
/// there is none.
pub(super) async fn pages<P>(
    mut ask: impl AsyncFnMut(String) -> Result<Response<P>, Status>,
    mut show: impl FnMut(P) -> Result<String, Failure>,
) -> Result<Exit, Failure> {
    let mut token = String::new();
    loop {
        let page = ask(token).await.map_err(|status| refused(&status))?;
        token = show(page.into_inner())?;
        if token.is_empty() {
            return Ok(Exit::Done);
        }
    }
}

/// What a refusal means for the exit code.
pub(super) fn refused(status: &Status) -> Failure {
    let mut reason = format!("{:?}: {}", status.code(), status.message());
    // What the broker says has no cause; what has one befell the connection.
    let cause = status.source();
    let exit = match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Exit::Unreachable,
        _ if cause.is_some() => Exit::Unreachable,
        Code::InvalidArgument => Exit::Usage,
        _ => Exit::Failed,
    };
    causes::add(&mut reason, cause);
    if cause.is_some() && reason.contains(NO_HTTP2) {
        reason.push_str("; so answers a port that speaks TLS: try https:// instead of http://");
    }
    Failure { exit, reason: anyhow::anyhow!(reason) }
}
