//! TLS to an upstream: whom we believe, and who we are.

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

/// How TLS to an upstream is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Whom we believe.
    pub trust: ServerTrust,
    /// The name that its certificate must have, and that we ask for; `None` is its host.
    pub name: Option<String>,
    /// Who we are, where it asks.
    pub identity: Option<Identity>,
}

/// Whose word counts for who an upstream is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServerTrust {
    /// The authorities of this machine.
    #[default]
    System,
    /// Those of this file, and no other.
    File(PathBuf),
    /// Its own: whoever stands between us reads and writes all.
    Insecure,
}

/// Why there is no TLS to an upstream.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// This machine has no authorities.
    #[error("this machine knows no authorities; name a file of them")]
    NoAuthorities,
    /// The authorities cannot be used.
    #[error("the authorities cannot be used")]
    Authorities(#[from] VerifierBuilderError),
    /// It is no name that a certificate could have.
    #[error("{0:?} is no name of a server")]
    Name(String, #[source] InvalidDnsNameError),
    /// The library refused: our certificate and its key do not go together.
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// Which protocol is spoken to an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    #[serde(rename = "http1")]
    Http1,
    /// HTTP/2, also in the clear (RFC 9113, section 3.3).
    #[serde(rename = "h2c")]
    Http2,
    /// With TLS, what the upstream chooses.
    #[serde(rename = "alpn")]
    Alpn,
}

/// Which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agreed {
    Http1,
    Http2,
}

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// TLS to an upstream, ready for handshakes.
pub struct Tls {
    http1: TlsConnector,
    http2: TlsConnector,
    either: TlsConnector,
    name: Option<ServerName<'static>>,
}

impl Tls {
    /// Reads the files of `config`.
    pub fn open(config: &TlsConfig) -> Result<Self, TlsError> {
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
        Ok(Self { http1, http2, either: offering(&[HTTP2, HTTP1]), name })
    }

    /// A connection to `host` after the handshake, which has no deadline here.
    pub(super) async fn connect(
        &self,
        host: &str,
        socket: Socket,
        speaks: UpstreamProtocol,
    ) -> io::Result<(Socket, Agreed)> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(host).map_err(io::Error::other)?,
        };
        let connector = match speaks {
            UpstreamProtocol::Http1 => &self.http1,
            UpstreamProtocol::Http2 => &self.http2,
            UpstreamProtocol::Alpn => &self.either,
        };
        let stream = connector.connect(name, socket).await?;
        let agreed = match (speaks, stream.get_ref().1.alpn_protocol()) {
            (_, Some(HTTP2)) => Agreed::Http2,
            (UpstreamProtocol::Http1 | UpstreamProtocol::Alpn, _) => Agreed::Http1,
            (UpstreamProtocol::Http2, _) => {
                return Err(io::Error::other("the upstream speaks no HTTP/2"));
            }
        };
        Ok((Socket::Tls(Box::new(stream.into())), agreed))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A name, or an IP address without brackets.
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
            // One that cannot be read is not believed; the others are.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoAuthorities);
            }
            roots
        }
    };
    Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?)
}

/// Takes every certificate; that the upstream has its key is checked all the same.
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
