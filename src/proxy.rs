//! The PROXY protocol, versions 1 and 2: who is behind the load balancer that made a connection.
//!
//! Invariant: exactly the header is read, and no more of it than 4 KiB; what follows is left in the stream.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;

use ppp::v2::PROTOCOL_PREFIX as PREFIX;
use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Largest header of version 2, with what it tells beside the addresses.
const MAX_BYTES: usize = 4 << 10;
/// Largest header of version 1, by its definition.
const MAX_LINE: usize = 107;

/// Whether connections begin with a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// They do not.
    #[default]
    Off,
    /// With one of version 1, a line of text.
    V1,
    /// With one of version 2, binary.
    V2,
    /// With one of either.
    Any,
}

/// The text is no [`ProxyProtocol`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of off, v1, v2, any")]
pub struct UnknownProxyProtocol;

impl FromStr for ProxyProtocol {
    type Err = UnknownProxyProtocol;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "off" => Self::Off,
            "v1" => Self::V1,
            "v2" => Self::V2,
            "any" => Self::Any,
            _ => return Err(UnknownProxyProtocol),
        })
    }
}

impl fmt::Display for ProxyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Any => "any",
        })
    }
}

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The connection ended or failed before.
    #[error("the connection ended within the PROXY header")]
    Io(#[from] io::Error),
    /// The first bytes are none.
    #[error("no PROXY header of version {0}")]
    Missing(ProxyProtocol),
    /// Version 1, and wrong.
    #[error("wrong PROXY header of version 1")]
    V1(#[from] v1::BinaryParseError),
    /// Version 2, and wrong.
    #[error("wrong PROXY header of version 2")]
    V2(#[from] v2::ParseError),
    /// Longer than is read.
    #[error("a PROXY header of more than {0} bytes")]
    TooLong(usize),
}

/// Reads the header that `expected` says. `None`: it names nobody over TCP, as for the health checks of the load balancer
/// itself. Not cancel safe: a part of the header may be lost.
///
/// # Errors
/// [`ProxyError`]
pub async fn read_header<S>(stream: &mut S, expected: ProxyProtocol) -> Result<Option<SocketAddr>, ProxyError>
where
    S: AsyncRead + Unpin,
{
    // Both are at least so long: the shortest line is "PROXY UNKNOWN" and its end.
    let mut header = vec![0; PREFIX.len()];
    stream.read_exact(&mut header).await?;
    let (first, second) = match expected {
        ProxyProtocol::Off => (false, false),
        ProxyProtocol::V1 => (true, false),
        ProxyProtocol::V2 => (false, true),
        ProxyProtocol::Any => (true, true),
    };
    if second && header == PREFIX {
        binary(stream, header).await
    } else if first && header.starts_with(b"PROXY ") {
        line(stream, header).await
    } else {
        Err(ProxyError::Missing(expected))
    }
}

async fn binary<S>(stream: &mut S, mut header: Vec<u8>) -> Result<Option<SocketAddr>, ProxyError>
where
    S: AsyncRead + Unpin,
{
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await?;
    header.extend_from_slice(&fixed);
    let [_, _, high, low] = fixed;
    let rest = usize::from(u16::from_be_bytes([high, low]));
    if header.len() + rest > MAX_BYTES {
        return Err(ProxyError::TooLong(MAX_BYTES));
    }
    let begun = header.len();
    header.resize(begun + rest, 0);
    stream.read_exact(header.get_mut(begun..).unwrap_or_default()).await?;
    let header = v2::Header::try_from(&header[..])?;
    if header.command == v2::Command::Local || header.protocol != v2::Protocol::Stream {
        return Ok(None);
    }
    Ok(match header.addresses {
        v2::Addresses::IPv4(of) => Some((of.source_address, of.source_port).into()),
        v2::Addresses::IPv6(of) => Some((of.source_address, of.source_port).into()),
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
    })
}

/// The line has no length: it is read byte by byte, so that what follows stays.
async fn line<S>(stream: &mut S, mut header: Vec<u8>) -> Result<Option<SocketAddr>, ProxyError>
where
    S: AsyncRead + Unpin,
{
    while !header.ends_with(b"\r\n") {
        if header.len() >= MAX_LINE {
            return Err(ProxyError::TooLong(MAX_LINE));
        }
        header.push(stream.read_u8().await?);
    }
    Ok(match v1::Header::try_from(&header[..])?.addresses {
        v1::Addresses::Tcp4(of) => Some((of.source_address, of.source_port).into()),
        v1::Addresses::Tcp6(of) => Some((of.source_address, of.source_port).into()),
        v1::Addresses::Unknown => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: ProxyProtocol = ProxyProtocol::Any;

    /// What `bytes` say, and what is left of them.
    async fn read(bytes: &[u8], expected: ProxyProtocol) -> (Result<Option<String>, String>, usize) {
        let mut stream = bytes;
        let told = read_header(&mut stream, expected).await;
        let told =
            told.map(|told| told.map(|address| address.to_string())).map_err(|error| error.to_string());
        (told, stream.len())
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [PREFIX, &[command, family], &length, rest].concat()
    }

    #[tokio::test]
    async fn exactly_the_header_is_read() {
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 0x1f, 0x90, 7, 0x5b];
        let mut six = [0; 36];
        six[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        six[15] = 1;
        six[33] = 9;
        let cases: [(Vec<u8>, Option<&str>); 7] = [
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 8080 1883\r\n".into(), Some("192.0.2.1:8080")),
            (b"PROXY TCP6 2001:db8::1 ::1 9 1883\r\n".into(), Some("[2001:db8::1]:9")),
            (b"PROXY UNKNOWN\r\n".into(), None),
            (v2(0x21, 0x11, &four), Some("192.0.2.1:8080")),
            (v2(0x21, 0x11, &[&four[..], &[4, 0, 1, 42]].concat()), Some("192.0.2.1:8080")),
            (v2(0x21, 0x21, &six), Some("[2001:db8::1]:9")),
            (v2(0x20, 0x00, &[]), None),
        ];
        for (header, told) in cases {
            let (read, left) = read(&[&header[..], b"MQTT"].concat(), ANY).await;
            assert_eq!(read, Ok(told.map(str::to_owned)), "{header:?}");
            assert_eq!(left, 4);
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        let cases: [(Vec<u8>, ProxyProtocol, &str); 8] = [
            (b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04".into(), ANY, "no PROXY header of version any"),
            (v2(0x20, 0x00, &[]), ProxyProtocol::V1, "no PROXY header of version v1"),
            (b"PROXY UNKNOWN\r\n".into(), ProxyProtocol::V2, "no PROXY header of version v2"),
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.1 99999 1883\r\n".into(),
                ANY,
                "wrong PROXY header of version 1",
            ),
            (v2(0x21, 0x11, &[1, 2, 3]), ANY, "wrong PROXY header of version 2"),
            (v2(0x31, 0x11, &[0; 12]), ANY, "wrong PROXY header of version 2"),
            (v2(0x21, 0x11, &[0; MAX_BYTES]), ANY, "a PROXY header of more than 4096 bytes"),
            (long, ANY, "a PROXY header of more than 107 bytes"),
        ];
        for (bytes, expected, error) in cases {
            assert_eq!(read(&bytes, expected).await.0, Err(error.to_owned()), "{bytes:?}");
        }
        assert!(matches!(read(b"PROXY TCP4 1", ANY).await.0, Err(error) if error.contains("ended")));
    }
}
