//! TLS of the listeners: files made into what a handshake needs, and read again on demand. [`client`] is the other side.
//!
//! TLS 1.2 and 1.3 by rustls. Invariant: what is in use is complete and fits together; files that do not are refused with
//! their names, and what was in use stays.

pub mod client;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

pub use tokio_rustls::server::TlsStream;

/// How long a peer that was refused has to hear it.
const LINGER: Duration = Duration::from_secs(2);

/// The files of one listener as they are configured: TLS is off without a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// See [`Settings::cert`].
    pub cert: Option<PathBuf>,
    /// See [`Settings::key`].
    pub key: Option<PathBuf>,
    /// See [`Settings::client_ca`].
    pub client_ca: Option<PathBuf>,
    /// See [`Settings::client_cert`].
    pub client_cert: ClientCert,
}

/// A setting that others need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Incomplete(&'static str);

impl Files {
    /// What they come to; `None`: TLS is off.
    ///
    /// # Errors
    /// [`Incomplete`] says which is missing.
    pub fn complete(self) -> Result<Option<Settings>, Incomplete> {
        let Self { cert, key, client_ca, client_cert } = self;
        let clients = client_cert != ClientCert::Off;
        match (cert, key) {
            (Some(_), Some(_)) if clients && client_ca.is_none() => Err(Incomplete(
                "tls.client_cert needs tls.client_ca: who may sign the certificates of clients",
            )),
            (Some(cert), Some(key)) => Ok(Some(Settings { cert, key, client_ca, client_cert })),
            (None, None) if clients || client_ca.is_some() => {
                Err(Incomplete("certificates of clients need TLS: give tls.cert and tls.key"))
            }
            (None, None) => Ok(None),
            (Some(_), None) => Err(Incomplete("tls.cert needs tls.key")),
            (None, Some(_)) => Err(Incomplete("tls.key needs tls.cert")),
        }
    }
}

impl From<Settings> for Files {
    fn from(of: Settings) -> Self {
        let Settings { cert, key, client_ca, client_cert } = of;
        Self { cert: Some(cert), key: Some(key), client_ca, client_cert }
    }
}

/// What the operator decides about TLS of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The certificate and those between it and its root, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// Who may sign the certificates of clients, PEM; needed when they are asked for.
    pub client_ca: Option<PathBuf>,
    /// Whether clients are asked for a certificate.
    pub client_cert: ClientCert,
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCert {
    /// They are not asked.
    #[default]
    Off,
    /// They may; one that does not verify is refused.
    Optional,
    /// They must.
    Required,
}

/// The text is no [`ClientCert`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of off, optional, required")]
pub struct UnknownClientCert;

impl FromStr for ClientCert {
    type Err = UnknownClientCert;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "off" => Self::Off,
            "optional" => Self::Optional,
            "required" => Self::Required,
            _ => return Err(UnknownClientCert),
        })
    }
}

impl fmt::Display for ClientCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Optional => "optional",
            Self::Required => "required",
        })
    }
}

/// Why the files cannot be used. Names the setting and the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The file cannot be read.
    #[error("{setting}: cannot read {}", file.display())]
    Read {
        /// Which setting names it.
        setting: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is nothing in it of what should be.
    #[error("{setting}: no {what} in {}", file.display())]
    Empty {
        /// Which setting names it.
        setting: &'static str,
        /// What is looked for.
        what: &'static str,
        /// The file.
        file: PathBuf,
    },
    /// It is not PEM.
    #[error("{setting}: {} is not PEM", file.display())]
    NotPem {
        /// Which setting names it.
        setting: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A certificate or key that cannot be used.
    #[error("{setting}: {} cannot be used", file.display())]
    Unusable {
        /// Which setting names it.
        setting: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Key and certificate are not of one pair.
    #[error("tls.key: the key in {} is not that of the certificate in {}", key.display(), cert.display())]
    Mismatch {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        cert: PathBuf,
    },
    /// Clients are asked for certificates that nobody may sign.
    #[error("tls.client_ca is missing: tls.client_cert asks for certificates, and none would be trusted")]
    NoClientCa,
    /// The roots cannot be used.
    #[error("tls.client_ca: {} cannot be used", file.display())]
    Verifier {
        /// The file.
        file: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
}

/// What handshakes of one listener use.
pub struct Tls {
    settings: Settings,
    alpn: &'static [&'static str],
    config: ArcSwap<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files. A client that offers protocols (ALPN) has to offer one of `alpn`.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn load(settings: Settings, alpn: &'static [&'static str]) -> Result<Self, TlsError> {
        let config = config(&settings, alpn)?;
        Ok(Self { settings, alpn, config: ArcSwap::new(config) })
    }

    /// The file of the certificate.
    #[must_use]
    pub fn cert(&self) -> &Path {
        &self.settings.cert
    }

    /// Reads the files again, for the handshakes that come.
    ///
    /// # Errors
    /// [`TlsError`]; what was in use stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.config.store(config(&self.settings, self.alpn)?);
        Ok(())
    }

    /// Shakes hands over `stream`. Not cancel safe: the stream is lost.
    ///
    /// # Errors
    /// Why it came to nothing; the peer was sent an alert where there was something to tell, and had a while to hear it.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = TlsAcceptor::from(self.config.load_full());
        match acceptor.accept(stream).into_fallible().await {
            Ok(stream) => Ok(stream),
            Err((error, stream)) => {
                // In TLS 1.3 the peer speaks before it hears of a refusal: closed with that unread, a reset would take
                // the alert away.
                drop(timeout(LINGER, drain(stream)).await);
                Err(error)
            }
        }
    }
}

/// Closes our side, and reads what still comes.
async fn drain<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<()> {
    stream.shutdown().await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
}

fn config(settings: &Settings, alpn: &[&str]) -> Result<Arc<ServerConfig>, TlsError> {
    let Settings { cert, key, client_ca, client_cert } = settings;
    let provider = Arc::new(crypto::ring::default_provider());
    let chain = certificates("tls.cert", cert)?;
    let key_der = private_key(key)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Unusable { setting: "tls.key", file: key.clone(), source })?;
    let builder = match (client_cert, client_ca) {
        (ClientCert::Off, _) => builder.with_no_client_auth(),
        (_, None) => return Err(TlsError::NoClientCa),
        (asks, Some(file)) => {
            let roots = roots("tls.client_ca", file)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match asks {
                ClientCert::Required => verifier,
                ClientCert::Optional | ClientCert::Off => verifier.allow_unauthenticated(),
            };
            let verifier =
                verifier.build().map_err(|source| TlsError::Verifier { file: file.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config =
        builder.with_single_cert(chain, key_der).map_err(|error| not_a_pair(error, cert, key))?;
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// What is wrong with a certificate and its key.
fn not_a_pair(error: rustls::Error, cert: &Path, key: &Path) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatch { key: key.to_owned(), cert: cert.to_owned() }
        }
        rustls::Error::InvalidCertificate(_) => {
            TlsError::Unusable { setting: "tls.cert", file: cert.to_owned(), source: error }
        }
        source => TlsError::Unusable { setting: "tls.key", file: key.to_owned(), source },
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const SETTING: &str = "tls.key";
    PrivateKeyDer::from_pem_slice(&read(SETTING, file)?).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            TlsError::Empty { setting: SETTING, what: "private key", file: file.to_owned() }
        }
        source => TlsError::NotPem { setting: SETTING, file: file.to_owned(), source },
    })
}

/// Those who sign, as trusted.
fn roots(setting: &'static str, file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(setting, file)? {
        roots.add(root).map_err(|source| TlsError::Unusable { setting, file: file.to_owned(), source })?;
    }
    Ok(roots)
}

fn read(setting: &'static str, file: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(file).map_err(|source| TlsError::Read { setting, file: file.to_owned(), source })
}

fn certificates(setting: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(setting, file)?;
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::NotPem { setting, file: file.to_owned(), source })?;
    if chain.is_empty() {
        return Err(TlsError::Empty { setting, what: "certificate", file: file.to_owned() });
    }
    Ok(chain)
}
