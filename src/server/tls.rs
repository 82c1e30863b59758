//! TLS of a listener: the handshake, and which certificate a client is shown.

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

/// What a listener needs for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Who we are: at least one. The first is shown to clients that name nobody, or somebody else.
    pub identities: Vec<Identity>,
    /// The authorities of clients: one without a certificate of theirs is turned away. `None` asks
    /// for none.
    pub client_authorities: Option<PathBuf>,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A certificate and its key do not go together, or the key is of a kind that nobody knows.
    #[error("{} and {} make no identity", .identity.certificate.display(), .identity.key.display())]
    Identity {
        /// Which.
        identity: Identity,
        /// Why not.
        source: rustls::Error,
    },
    /// The authorities of clients cannot be used.
    #[error("the authorities of clients cannot be used")]
    Authorities(#[from] VerifierBuilderError),
    /// The library refused.
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// The protocol that a client and we have agreed upon (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agreed {
    Http1,
    Http2,
}

/// What came of a handshake.
pub(super) struct Handshake {
    pub(super) agreed: Agreed,
    /// `None` if the client named no host.
    pub(super) server_name: Option<Arc<ServerName>>,
    pub(super) version: TlsVersion,
    pub(super) resumed: Resumed,
}

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// What a listener shows, read and in order.
#[derive(Debug)]
pub struct Certificates {
    config: Arc<ServerConfig>,
    identities: Arc<Identities>,
    /// By file: when the certificates in it expire, in seconds since the Unix epoch.
    expiries: Vec<(PathBuf, i64)>,
}

/// TLS as a listener speaks it. Its certificates can be replaced while it serves.
pub struct Tls {
    provider: Arc<CryptoProvider>,
    /// Of sessions that are resumed, across a change of certificates too.
    ticketer: Arc<dyn ProducesTickets>,
    current: ArcSwap<Certificates>,
    /// Those of the other listeners for the same site.
    others: OnceLock<Vec<Weak<Self>>>,
}

/// The host that a client named in its handshake (RFC 6066, section 3), and the listener it did so at.
#[derive(Debug)]
pub struct ServerName {
    name: Box<str>,
    tls: Arc<Tls>,
}

impl ServerName {
    /// Returns whether the connection was opened for this host, a name without port.
    pub fn is(&self, host: &str) -> bool {
        self.name.eq_ignore_ascii_case(host)
    }

    /// Returns whether another listener has a certificate for this host and this one has none: the
    /// client would have verified another certificate on a connection of the host's own.
    pub fn is_served_elsewhere(&self, host: &str) -> bool {
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
    pub fn open(config: &TlsConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(default_provider());
        let ticketer = Ticketer::new()?;
        let current = ArcSwap::from_pointee(certificates(config, &provider, &ticketer)?);
        Ok(Self { provider, ticketer, current, others: OnceLock::new() })
    }

    /// Introduces the listeners of one site to each other, once. See [`ServerName::is_served_elsewhere`].
    pub fn link_listeners(listeners: &[Arc<Self>]) {
        for listener in listeners {
            let others = listeners.iter().filter(|other| !Arc::ptr_eq(other, listener));
            let _ = listener.others.set(others.map(Arc::downgrade).collect());
        }
    }

    fn has_certificate_for(&self, host: &pki_types::ServerName<'_>) -> bool {
        self.current.load().identities.0.iter().any(|key| is_of(key, host))
    }

    /// Reads the files of another configuration, which may have the same names.
    pub fn load(&self, config: &TlsConfig) -> Result<Certificates, TlsError> {
        certificates(config, &self.provider, &self.ticketer)
    }

    /// Shows these from the next handshake on; connections go on.
    pub fn install(&self, certificates: Certificates) {
        self.current.store(Arc::new(certificates));
    }

    /// Returns the files of the certificates that are presented, and the seconds since the Unix epoch at which the first
    /// certificate of each expires.
    pub(crate) fn expiries(&self) -> Vec<(PathBuf, i64)> {
        self.current.load().expiries.clone()
    }

    /// A client's connection after the handshake, which has no deadline here.
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
            agreed: match connection.alpn_protocol() {
                Some(HTTP2) => Agreed::Http2,
                _ => Agreed::Http1,
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

/// Whom we can be.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Identities {
    /// Of those that are of the name which the client asks for, and else of all, the first whose key
    /// the client can check.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits =
            |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        let name = hello.server_name().and_then(|name| pki_types::ServerName::try_from(name).ok());
        let named = name.and_then(|name| self.0.iter().filter(|key| is_of(key, &name)).find(fits));
        named.or_else(|| self.0.iter().find(fits)).or_else(|| self.0.first()).cloned()
    }
}

fn is_of(key: &CertifiedKey, name: &pki_types::ServerName<'_>) -> bool {
    let certificate = key.end_entity_cert().and_then(ParsedCertificate::try_from);
    certificate.is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}
