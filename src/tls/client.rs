//! TLS of connections that we open.
//!
//! Invariant: whom we connect to is verified, by the authority that is configured and by the name that was asked for.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, crypto};

pub use tokio_rustls::client::TlsStream;

use super::{TlsError, certificates, not_a_pair, private_key, roots};

/// What the operator decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Who signs the certificates of those we connect to, PEM.
    pub ca: PathBuf,
    /// Our own certificate and its private key, PEM, where they are asked for.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// What handshakes use.
#[derive(Clone)]
pub struct ClientTls(TlsConnector);

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls")
    }
}

impl ClientTls {
    /// Reads the files. `alpn` is what we offer.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn load(settings: &Settings, alpn: &[&str]) -> Result<Self, TlsError> {
        let Settings { ca, own } = settings;
        let unusable = |source| TlsError::Unusable { setting: "tls.ca", file: ca.clone(), source };
        let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(roots("tls.ca", ca)?);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => builder
                .with_client_auth_cert(certificates("tls.cert", cert)?, private_key(key)?)
                .map_err(|error| not_a_pair(error, cert, key))?,
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Shakes hands over `stream` with who is called `host`. Not cancel safe: the stream is lost.
    ///
    /// # Errors
    /// Why it came to nothing: the certificate does not verify, or the socket failed.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.0.connect(name, stream).await
    }
}
