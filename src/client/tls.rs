//! TLS to an upstream: verification of its certificate, and a client certificate.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName, UnixTime};
use rustls::server::VerifierBuilderError;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsConnector;

use crate::net::pem::{self, Identity, PemError};
use crate::net::socket::Socket;

/// TLS settings of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsConfig {
    /// Verification of the upstream's certificate.
    pub(crate) trust: ServerTrust,
    /// Server name that is sent and verified; by default the host of the target.
    pub(crate) name: Option<String>,
    /// Client certificate, for an upstream that requests one.
    pub(crate) identity: Option<Identity>,
}

/// Certificate authorities that an upstream's certificate is verified against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ServerTrust {
    /// The CA certificates of the system.
    #[default]
    System,
    /// Only the CA certificates of this file.
    File(PathBuf),
    /// No verification: the connection is open to man-in-the-middle attacks.
    Insecure,
}

/// Error of setting up TLS to an upstream.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file is unreadable or invalid.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// The system has no CA certificates.
    #[error("no system CA certificates found; set `ca`")]
    NoAuthorities,
    /// The CA certificates are unusable.
    #[error("invalid CA certificates")]
    Authorities(#[from] VerifierBuilderError),
    /// The server name is not a DNS name or IP address.
    #[error("invalid server name {0:?}")]
    Name(String, #[source] InvalidDnsNameError),
    /// rustls rejected the settings, e.g. a client certificate that does not match its key.
    #[error("cannot set up TLS")]
    Rustls(#[from] rustls::Error),
}

/// Protocol of the requests to an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    #[serde(rename = "http1")]
    Http1,
    /// HTTP/2; without TLS, with prior knowledge (RFC 9113, section 3.3).
    #[serde(rename = "h2c")]
    Http2,
    /// HTTP/2 or HTTP/1.1, as negotiated by ALPN (RFC 7301).
    #[serde(rename = "alpn")]
    Alpn,
}

/// Protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NegotiatedProtocol {
    Http1,
    Http2,
}

impl UpstreamProtocol {
    /// Returns the protocol of a connection without TLS, where nothing is negotiated.
    pub(super) fn in_cleartext(self) -> NegotiatedProtocol {
        match self {
            Self::Http1 => NegotiatedProtocol::Http1,
            Self::Http2 | Self::Alpn => NegotiatedProtocol::Http2,
        }
    }
}

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// TLS to an upstream, with a connector per [`UpstreamProtocol`].
pub struct Tls {
    http1: TlsConnector,
    http2: TlsConnector,
    alpn: TlsConnector,
    name: Option<ServerName<'static>>,
}

impl Tls {
    /// Reads the files of `config`.
    pub(crate) fn open(config: &TlsConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier(&config.trust, provider)?);
        let client = match &config.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                builder.with_client_auth_cert(pem::certificates(certificate)?, pem::key(key)?)?
            }
        };
        let offering = |protocols: &[&[u8]]| {
            let mut client = client.clone();
            client.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            TlsConnector::from(Arc::new(client))
        };
        let name = config.name.as_deref().map(server_name).transpose()?;
        let (http1, http2) = (offering(&[HTTP1]), offering(&[HTTP2]));
        Ok(Self { http1, http2, alpn: offering(&[HTTP2, HTTP1]), name })
    }

    /// Performs the handshake with `host`. It has no deadline here.
    pub(super) async fn connect(
        &self,
        host: &str,
        socket: Socket,
        protocol: UpstreamProtocol,
    ) -> io::Result<(Socket, NegotiatedProtocol)> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(host).map_err(io::Error::other)?,
        };
        let connector = match protocol {
            UpstreamProtocol::Http1 => &self.http1,
            UpstreamProtocol::Http2 => &self.http2,
            UpstreamProtocol::Alpn => &self.alpn,
        };
        let stream = connector.connect(name, socket).await?;
        let negotiated = match (protocol, stream.get_ref().1.alpn_protocol()) {
            (_, Some(HTTP2)) => NegotiatedProtocol::Http2,
            (UpstreamProtocol::Http1 | UpstreamProtocol::Alpn, _) => NegotiatedProtocol::Http1,
            // Over TLS, HTTP/2 has to be negotiated by ALPN (RFC 9113, section 3.2).
            (UpstreamProtocol::Http2, _) => {
                return Err(io::Error::other("the upstream does not support HTTP/2"));
            }
        };
        Ok((Socket::Tls(Box::new(stream.into())), negotiated))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Parses a DNS name, or an IP address without brackets.
fn server_name(text: &str) -> Result<ServerName<'static>, TlsError> {
    let name = ServerName::try_from(text.to_owned());
    name.map_err(|source| TlsError::Name(text.to_owned(), source))
}

fn verifier(
    trust: &ServerTrust,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let roots = match trust {
        ServerTrust::Insecure => return Ok(Arc::new(Insecure(provider))),
        ServerTrust::File(path) => pem::authorities(path)?,
        ServerTrust::System => {
            let mut roots = RootCertStore::empty();
            // Stores often contain a few certificates that cannot be parsed; they are skipped.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoAuthorities);
            }
            roots
        }
    };
    Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?)
}

/// Accepts every certificate, but still verifies that the upstream has its key.
#[derive(Debug)]
struct Insecure(Arc<CryptoProvider>);

impl ServerCertVerifier for Insecure {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
