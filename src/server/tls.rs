//! TLS of a listener: the handshake and the choice of a certificate.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::ArcSwap;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, ParsedCertificate, ProducesTickets, ResolvesServerCert, VerifierBuilderError,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::metrics::{Resumed, TlsVersion};
use crate::net::pem::{self, Identity, PemError};
use crate::net::socket::Socket;

/// TLS settings of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsConfig {
    /// Certificates and their keys, at least one. The first is the default for clients whose server name matches none.
    pub(crate) identities: Vec<Identity>,
    /// CA certificates of clients. If set, a client without a certificate of theirs is refused.
    pub(crate) client_authorities: Option<PathBuf>,
}

/// Error of setting up TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file is unreadable or invalid.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A certificate and its key do not match, or the key is of an unsupported type.
    #[error("certificate {} does not match key {}", .identity.certificate.display(), .identity.key.display())]
    Identity {
        /// The files.
        identity: Identity,
        /// The cause.
        source: rustls::Error,
    },
    /// The CA certificates of clients are unusable.
    #[error("invalid CA certificates for clients")]
    Authorities(#[from] VerifierBuilderError),
    /// rustls rejected the settings.
    #[error("cannot set up TLS")]
    Rustls(#[from] rustls::Error),
}

/// The protocol of a connection, e.g. as negotiated by ALPN (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NegotiatedProtocol {
    Http1,
    Http2,
}

pub(super) struct Handshake {
    pub(super) protocol: NegotiatedProtocol,
    /// `None` if the client sent no server name.
    pub(super) server_name: Option<Arc<ServerName>>,
    pub(super) version: TlsVersion,
    pub(super) resumed: Resumed,
}

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// The certificates of a listener, read and validated.
#[derive(Debug)]
pub(crate) struct Certificates {
    config: Arc<ServerConfig>,
    identities: Arc<Identities>,
    /// Expiry of the certificates in each file, in seconds since the Unix epoch.
    expiries: Vec<(PathBuf, i64)>,
}

/// TLS of a listener. Its certificates can be replaced while it serves.
pub struct Tls {
    provider: Arc<CryptoProvider>,
    /// Shared by all certificates, so that TLS sessions can be resumed after they are replaced.
    ticketer: Arc<dyn ProducesTickets>,
    current: ArcSwap<Certificates>,
    /// Other listeners of the same site.
    others: OnceLock<Vec<Weak<Self>>>,
}

/// The server name in a client's handshake (RFC 6066, section 3), with the listener that received it.
#[derive(Debug)]
pub(crate) struct ServerName {
    name: Box<str>,
    tls: Arc<Tls>,
}

impl ServerName {
    /// Returns whether the client named `host`, which has no port.
    pub(crate) fn is(&self, host: &str) -> bool {
        self.name.eq_ignore_ascii_case(host)
    }

    /// Returns whether another listener has a certificate for `host` and this one has none. A client that had connected
    /// to `host` itself would then have verified a different certificate.
    pub(crate) fn is_served_elsewhere(&self, host: &str) -> bool {
        let others = self.tls.others.get().map(Vec::as_slice).unwrap_or_default();
        if others.is_empty() {
            return false;
        }
        let Ok(host) = pki_types::ServerName::try_from(host) else { return false };
        !self.tls.has_certificate_for(&host)
            && others.iter().filter_map(Weak::upgrade).any(|other| other.has_certificate_for(&host))
    }
}

impl Tls {
    /// Reads the files of `config`.
    pub(crate) fn open(config: &TlsConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(default_provider());
        let ticketer = Ticketer::new()?;
        let current = ArcSwap::from_pointee(certificates(config, &provider, &ticketer)?);
        Ok(Self { provider, ticketer, current, others: OnceLock::new() })
    }

    /// Makes the listeners of one site known to each other, once. See [`ServerName::is_served_elsewhere`].
    pub(crate) fn link_listeners(listeners: &[Arc<Self>]) {
        for listener in listeners {
            let others = listeners.iter().filter(|other| !Arc::ptr_eq(other, listener));
            // Weak, since the listeners refer to each other.
            let _ = listener.others.set(others.map(Arc::downgrade).collect());
        }
    }

    fn has_certificate_for(&self, host: &pki_types::ServerName<'_>) -> bool {
        self.current.load().identities.0.iter().any(|key| is_valid_for(key, host))
    }

    /// Reads the files of `config` for [`Tls::install`].
    pub(crate) fn load(&self, config: &TlsConfig) -> Result<Certificates, TlsError> {
        certificates(config, &self.provider, &self.ticketer)
    }

    /// Presents `certificates` from the next handshake on. Open connections are not affected.
    pub(crate) fn install(&self, certificates: Certificates) {
        self.current.store(Arc::new(certificates));
    }

    /// Returns the files of the certificates that are presented, and the seconds since the Unix epoch at which the first
    /// certificate of each expires.
    pub(crate) fn expiries(&self) -> Vec<(PathBuf, i64)> {
        self.current.load().expiries.clone()
    }

    /// Performs the handshake. It has no deadline here.
    pub(super) async fn accept(
        self: &Arc<Self>,
        socket: Socket,
    ) -> io::Result<(Socket, Handshake)> {
        let stream =
            TlsAcceptor::from(Arc::clone(&self.current.load().config)).accept(socket).await?;
        let connection = stream.get_ref().1;
        let named = |name: &str| Arc::new(ServerName { name: name.into(), tls: Arc::clone(self) });
        let handshake = Handshake {
            server_name: connection.server_name().map(named),
            protocol: match connection.alpn_protocol() {
                Some(HTTP2) => NegotiatedProtocol::Http2,
                _ => NegotiatedProtocol::Http1,
            },
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => TlsVersion::Tls12,
                _ => TlsVersion::Tls13,
            },
            resumed: match connection.handshake_kind() {
                Some(HandshakeKind::Resumed) => Resumed::Yes,
                _ => Resumed::No,
            },
        };
        Ok((Socket::Tls(Box::new(stream.into())), handshake))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

fn certificates(
    config: &TlsConfig,
    provider: &Arc<CryptoProvider>,
    ticketer: &Arc<dyn ProducesTickets>,
) -> Result<Certificates, TlsError> {
    let identities = config.identities.iter().map(|identity| certified(identity, provider));
    let identities = Arc::new(Identities(identities.collect::<Result<_, _>>()?));
    let expiries = config.identities.iter().zip(&identities.0).filter_map(|(identity, key)| {
        // A chain is valid for as long as all of its certificates are.
        let not_after = key.cert.iter().filter_map(pem::not_after).min()?;
        Some((identity.certificate.clone(), not_after))
    });
    let expiries = expiries.collect();
    let verifier: Arc<dyn ClientCertVerifier> = match &config.client_authorities {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(path) => {
            let roots = Arc::new(pem::authorities(path)?);
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider)).build()?
        }
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::<Identities>::clone(&identities));
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    config.ticketer = Arc::clone(ticketer);
    Ok(Certificates { config: Arc::new(config), identities, expiries })
}

fn certified(
    identity: &Identity,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = pem::certificates(&identity.certificate)?;
    let key = pem::key(&identity.key)?;
    let key = CertifiedKey::from_der(chain, key, provider)
        .map_err(|source| TlsError::Identity { identity: identity.clone(), source })?;
    Ok(Arc::new(key))
}

/// Certificates with their keys, in the order of the configuration.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Identities {
    /// Returns the first certificate that is valid for the client's server name, and otherwise the first of all, among
    /// those whose key type the client supports.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_supported =
            |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        let name = hello.server_name().and_then(|name| pki_types::ServerName::try_from(name).ok());
        let named = name.and_then(|name| {
            self.0.iter().filter(|key| is_valid_for(key, &name)).find(is_supported)
        });
        named.or_else(|| self.0.iter().find(is_supported)).or_else(|| self.0.first()).cloned()
    }
}

fn is_valid_for(key: &CertifiedKey, name: &pki_types::ServerName<'_>) -> bool {
    let certificate = key.end_entity_cert().and_then(ParsedCertificate::try_from);
    certificate.is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}
