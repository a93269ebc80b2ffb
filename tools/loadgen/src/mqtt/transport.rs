//! What MQTT is carried over: TCP, TLS (rustls), WebSocket (tungstenite), or both.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::BytesMut;
use clap::{Args, ValueEnum};
use futures::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::{WebSocketStream, client_async};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    Tcp,
    Tls,
    Ws,
    Wss,
}

#[derive(Args, Clone, Debug)]
pub struct DoorArgs {
    #[arg(long, default_value = "127.0.0.1:1883")]
    pub addr: SocketAddr,
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    pub transport: Transport,
    /// who signed the server's certificate, PEM (tls and wss); it must name the address
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// path of the WebSocket
    #[arg(long, default_value = "/mqtt")]
    pub path: String,
}

pub trait Socket: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Socket for T {}

type Boxed = Box<dyn Socket>;

/// A connection that carries bytes both ways.
pub enum Link {
    Stream(Boxed),
    WebSocket(Box<WebSocketStream<Boxed>>),
}

impl Link {
    pub async fn connect(door: &DoorArgs) -> Result<Link> {
        let tcp = TcpStream::connect(door.addr).await?;
        tcp.set_nodelay(true)?;
        let socket: Boxed = match door.transport {
            Transport::Tcp | Transport::Ws => Box::new(tcp),
            Transport::Tls | Transport::Wss => {
                let name = ServerName::from(door.addr.ip());
                Box::new(tls(door)?.connect(name, tcp).await.context("TLS handshake")?)
            }
        };
        if matches!(door.transport, Transport::Tcp | Transport::Tls) {
            return Ok(Link::Stream(socket));
        }
        let scheme = if door.transport == Transport::Wss { "wss" } else { "ws" };
        let mut request = format!("{scheme}://{}{}", door.addr, door.path).into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("mqtt"));
        let (socket, _) = client_async(request, socket).await.context("WebSocket handshake")?;
        Ok(Link::WebSocket(Box::new(socket)))
    }

    /// Waits for bytes and appends them. Dropping the future loses nothing.
    pub async fn read(&mut self, into: &mut BytesMut) -> Result<()> {
        into.reserve(65536);
        match self {
            Link::Stream(s) => ensure!(s.read_buf(into).await? > 0, "the server closed the connection"),
            Link::WebSocket(s) => std::future::poll_fn(|cx| poll_message(Pin::new(s), cx, into)).await?,
        }
        Ok(())
    }

    /// Writes all and empties the buffer. Dropping the future loses nothing: what is left is still there.
    pub async fn write(&mut self, from: &mut BytesMut) -> Result<()> {
        match self {
            Link::Stream(s) => {
                while !from.is_empty() {
                    s.write_buf(from).await?;
                }
                s.flush().await?;
            }
            Link::WebSocket(s) => {
                std::future::poll_fn(|cx| {
                    let mut s = Pin::new(&mut *s);
                    if !from.is_empty() {
                        ready!(s.as_mut().poll_ready(cx))?;
                        s.as_mut().start_send(Message::Binary(from.split().freeze()))?;
                    }
                    s.poll_flush(cx)
                })
                .await?;
            }
        }
        Ok(())
    }
}

/// Appends the bytes of the next binary message.
fn poll_message(
    mut s: Pin<&mut Box<WebSocketStream<Boxed>>>,
    cx: &mut Context<'_>,
    into: &mut BytesMut,
) -> Poll<Result<()>> {
    loop {
        return Poll::Ready(match ready!(s.as_mut().poll_next(cx)) {
            Some(Ok(Message::Binary(bytes))) => {
                into.extend_from_slice(&bytes);
                Ok(())
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(other)) => Err(anyhow::anyhow!("not a binary message: {other:?}")),
            Some(Err(e)) => Err(e.into()),
            None => Err(anyhow::anyhow!("the server closed the connection")),
        });
    }
}

fn tls(door: &DoorArgs) -> Result<TlsConnector> {
    let Some(ca) = &door.ca else { bail!("--ca is needed for this transport") };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).with_context(|| format!("{}", ca.display()))? {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
