//! Takes connections from a listening socket; every door on TCP does it this way.
//!
//! Invariant: accepting goes on after every error, so that a shortage (of file handles, say) ends when the shortage does.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

/// How long accepting rests after an error that is not the fault of one peer.
const REST_AFTER_ERROR: Duration = Duration::from_millis(50);

/// The next connection, with small writes sent at once. Cancel safe: a connection that was not returned yet stays in
/// the listener's queue.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, %error, "cannot switch off Nagle's algorithm");
                }
                return (stream, peer);
            }
            Err(error) if is_peers_fault(&error) => {
                tracing::debug!(%error, "connection lost before it began")
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; trying again");
                tokio::time::sleep(REST_AFTER_ERROR).await;
            }
        }
    }
}

fn is_peers_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
