//! MQTT over WebSocket (RFC 6455): binary messages as a stream of bytes.
//!
//! Invariant: where one message ends and the next begins means nothing to the packets in them [MQTT-6.0.0-2]; what is not
//! yet taken is one message at most, and what is not yet written is no more than one frame, answers to pings included.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

/// The name of MQTT among the sub-protocols [MQTT-6.0.0-3, MQTT-6.0.0-4].
const PROTOCOL: &str = "mqtt";
/// Kept for reading as long as a connection lasts.
const READ_BUFFER: usize = 4 << 10;
/// Payload of one frame to the client.
const FRAME: usize = 64 << 10;
/// Most that waits to be written: a frame with its header. Answers to pings that do not fit give way to the last one.
const WRITE_BUFFER: usize = FRAME + 16;

/// What the operator decides about the WebSockets of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The path that requests have to name; `None` = any.
    pub path: Option<String>,
    /// The origins that a browser may come from; empty = any. A request without one is no browser's.
    pub origins: Vec<String>,
    /// Largest message that is taken, in bytes, its fragments together.
    pub max_message_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { path: None, origins: Vec::new(), max_message_bytes: 4 << 20 }
    }
}

/// Answers the request to upgrade. Not cancel safe: the stream is lost.
///
/// # Errors
/// Why there is no WebSocket; the peer was told where it sent a request at all.
pub(super) async fn accept<S>(stream: S, settings: &Settings) -> Result<WebSocket<S>, Box<Error>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let largest = usize::try_from(settings.max_message_bytes).unwrap_or(usize::MAX);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BUFFER)
        .max_message_size(Some(largest))
        .max_frame_size(Some(largest));
    #[expect(clippy::result_large_err, reason = "the library says what it looks like")]
    let answer = |request: &Request, response: Response| match check(request, settings) {
        Ok(()) => {
            let mut response = response;
            // [MQTT-6.0.0-4]
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
            Ok(response)
        }
        Err((status, why)) => Err(refused(status, why)),
    };
    let inner = accept_hdr_async_with_config(stream, answer, Some(config)).await?;
    Ok(WebSocket { inner, came: Bytes::new(), reads: Reads::Messages })
}

fn check(request: &Request, settings: &Settings) -> Result<(), (StatusCode, &'static str)> {
    if settings.path.as_ref().is_some_and(|path| path != request.uri().path()) {
        return Err((StatusCode::NOT_FOUND, "there is no MQTT at this path\n"));
    }
    let origin = request.headers().get(header::ORIGIN);
    if let Some(origin) = origin.filter(|_| !settings.origins.is_empty())
        && !settings.origins.iter().any(|allowed| origin.as_bytes().eq_ignore_ascii_case(allowed.as_bytes()))
    {
        return Err((StatusCode::FORBIDDEN, "this origin is not among those allowed\n"));
    }
    if !offers_mqtt(request.headers()) {
        return Err((StatusCode::BAD_REQUEST, "the sub-protocol mqtt is not offered [MQTT-6.0.0-3]\n"));
    }
    Ok(())
}

/// [MQTT-6.0.0-3]
fn offers_mqtt(headers: &HeaderMap) -> bool {
    let offers = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let mut names = offers.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    names.any(|name| name.trim() == PROTOCOL)
}

fn refused(status: StatusCode, why: &'static str) -> ErrorResponse {
    let mut response = ErrorResponse::new(Some(why.to_owned()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(why.len()));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// See the module.
pub(super) struct WebSocket<S> {
    inner: WebSocketStream<S>,
    /// Of the last message.
    came: Bytes,
    reads: Reads,
}

/// What is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    Messages,
    /// What a peer still sends that was told why it is closed, so that it can hear it.
    Rest,
    Nothing,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Waits until `came` has something, or nothing will come. Pings are answered on the way.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.came.is_empty() && self.reads == Reads::Messages {
            match ready!(Pin::new(&mut self.inner).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.came = bytes,
                // The answer to a close is sent when more is asked for.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(self.refuse(
                        CloseCode::Unsupported,
                        "a text message [MQTT-6.0.0-1]",
                        cx,
                    ));
                }
                Some(Err(Error::Capacity(CapacityError::MessageTooLong { max_size, .. }))) => {
                    let why = format!("a message of more than {max_size} bytes");
                    return Poll::Ready(self.refuse(CloseCode::Size, &why, cx));
                }
                Some(Err(Error::Io(error))) => {
                    self.reads = Reads::Nothing;
                    return Poll::Ready(Err(error));
                }
                Some(Err(error)) => {
                    return Poll::Ready(self.refuse(CloseCode::Protocol, &error.to_string(), cx));
                }
                None => self.reads = Reads::Nothing,
            }
        }
        while self.reads == Reads::Rest {
            let mut bytes = [0; 1024];
            let mut rest = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(self.inner.get_mut()).poll_read(cx, &mut rest));
            if read.is_err() || rest.filled().is_empty() {
                self.reads = Reads::Nothing;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the peer why nothing more is read, if it can be told at once.
    fn refuse(&mut self, code: CloseCode, why: &str, cx: &mut Context<'_>) -> io::Result<()> {
        self.reads = Reads::Rest;
        let reason = why.get(..why.floor_char_boundary(123)).unwrap_or_default();
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        let mut inner = Pin::new(&mut self.inner);
        if matches!(inner.as_mut().poll_ready(cx), Poll::Ready(Ok(())))
            && inner.as_mut().start_send(close).is_ok()
        {
            // One that does not take it is closed all the same.
            let _flushed = inner.poll_flush(cx).is_ready();
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, why.to_owned()))
    }
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::other(error),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let came = ready!(self.as_mut().poll_fill_buf(cx))?;
        let count = came.len().min(buf.remaining());
        buf.put_slice(came.get(..count).unwrap_or_default());
        self.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncBufRead for WebSocket<S> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        ready!(this.poll_message(cx))?;
        Poll::Ready(Ok(&this.came))
    }

    fn consume(mut self: Pin<&mut Self>, count: usize) {
        let count = count.min(self.came.len());
        self.came.advance(count);
        if self.came.is_empty() {
            // Nothing of the message is held on to.
            self.came = Bytes::new();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// One frame of what fits into it.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let all: usize = bufs.iter().map(|part| part.len()).sum();
        if this.reads == Reads::Rest {
            return Poll::Ready(Ok(all)); // After the close nothing can be sent.
        }
        // What was written before has left, answers to pings among it.
        ready!(Pin::new(&mut this.inner).poll_flush(cx)).map_err(into_io)?;
        let mut payload = BytesMut::with_capacity(all.min(FRAME));
        for part in bufs {
            let room = FRAME - payload.len();
            payload.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
        }
        let taken = payload.len();
        let sent = Pin::new(&mut this.inner).start_send(Message::Binary(payload.freeze()));
        Poll::Ready(sent.map(|()| taken).map_err(into_io))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx).map_err(into_io)
    }

    /// Sends the close; the peer's is read.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx).map_err(into_io)
    }
}
