//! What the examples share: a connection, and streams that are opened again when the broker was away.

use std::error::Error as _;
use std::process;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

/// The contract, as it is generated.
#[allow(clippy::doc_lazy_continuation, clippy::large_enum_variant)]
pub mod pb {
    tonic::include_proto!("stafett.v1");
}

/// What every example is told.
#[derive(clap::Args)]
pub struct Client {
    /// The broker, as HOST:PORT
    #[arg(long, default_value = "127.0.0.1:50051")]
    server: String,
    /// Longest wait for an answer, in seconds
    #[arg(long, default_value_t = 5.0)]
    timeout: f64,
}

impl Client {
    /// A channel, which connects when it is used, and again when the connection is lost.
    pub fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.server)).unwrap_or_else(|error| {
            eprintln!("--server {}: {error}", self.server);
            process::exit(2);
        });
        // A connection that is silently gone is noticed after half a minute.
        endpoint
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .connect_lazy()
    }

    /// `--timeout`.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }

    /// A request with `--timeout` as its deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout());
        request
    }

    /// Runs `stream` until ctrl-c or SIGTERM cancel its token. It runs again, after the pause that it returns, when the
    /// broker has closed it or cannot be reached.
    pub async fn keep_open(
        &self,
        stream: impl AsyncFn(Channel, &CancellationToken) -> Result<Duration, Status>,
    ) {
        let stop = CancellationToken::new();
        tokio::spawn(cancel_at_signal(stop.clone()));
        let channel = self.channel();
        while !stop.is_cancelled() {
            let pause = match stream(channel.clone(), &stop).await {
                Ok(pause) => pause,
                Err(status) if is_away(&status) => {
                    eprintln!("trying again: {}", status.message());
                    Duration::from_secs(1)
                }
                Err(status) => fail(&status),
            };
            let _ = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
        println!("stopped");
    }
}

/// Whether it is worth trying again. A connection that breaks under a stream is Unknown to tonic; it is told from what the
/// broker says by its source.
fn is_away(status: &Status) -> bool {
    status.code() == Code::Unavailable || (status.code() == Code::Unknown && status.source().is_some())
}

async fn cancel_at_signal(stop: CancellationToken) {
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be caught");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    stop.cancel();
}

/// Says what went wrong, with the broker's reason where it gives one, as NO_RESPONDERS; ends with code 1.
pub fn fail(status: &Status) -> ! {
    let code = match status.code() {
        // What tonic calls a deadline that has passed on this side; nothing here cancels a request.
        Code::Cancelled => Code::DeadlineExceeded,
        code => code,
    };
    let reason = status.get_details_error_info().map_or_else(|| format!("{code:?}"), |info| info.reason);
    eprintln!("{reason}: {}", status.message());
    process::exit(1);
}

/// What goes to the broker on a stream, and what sends on it: `open` first, `drain` when `stop` is cancelled. What cannot
/// be sent any more is lost; the next event says why.
pub fn outgoing<F: Send + 'static>(
    stop: &CancellationToken,
    open: F,
    drain: F,
) -> (mpsc::Sender<F>, ReceiverStream<F>) {
    let (frames, outgoing) = mpsc::channel(16);
    frames.try_send(open).expect("an empty channel has room");
    let (stop, draining) = (stop.clone(), frames.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => drop(draining.send(drain).await),
            () = draining.closed() => {}
        }
    });
    (frames, ReceiverStream::new(outgoing))
}

/// How long the broker asks to wait before the stream is opened again.
pub fn pause_of(closing: &pb::StreamClosing) -> Duration {
    closing.reconnect_after.and_then(|pause| pause.try_into().ok()).unwrap_or(Duration::from_secs(1))
}
