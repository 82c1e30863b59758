//! The listeners of the process, and the service of each public listener.

use std::io;
use std::sync::Arc;

use super::{StartError, trusted};
use crate::config::{Config, Listen, Role};
use crate::metrics::{CertificateExpiry, Metrics};
use crate::net::scheme::Scheme;
use crate::net::trust::Trust;
use crate::server::{
    self, Address, BoundListener, Certificates, Inherited, Protocol, Tls, TlsError,
};
use crate::time::Clock;
use tracing::warn;

/// The listeners of the process. They are bound once and shared by the workers.
pub(super) struct Listeners {
    public: Vec<BoundListener>,
    api: BoundListener,
    admin: BoundListener,
}

impl Listeners {
    /// Binds the configured addresses, except those of inherited sockets.
    ///
    /// # Errors
    /// Fails if an address cannot be bound, or if an inherited socket matches no configured listener.
    pub(super) fn bind(config: &Config, mut inherited: Inherited) -> Result<Self, StartError> {
        let mut bind = |address: &Address, mode, setting| {
            let socket = inherited.take(address);
            socket
                .map_or_else(|| server::bind(address, mode), Ok)
                .map_err(|source| StartError::Bind { address: address.clone(), setting, source })
        };
        let listeners = Self {
            public: config
                .listen
                .iter()
                .map(|listen| {
                    bind(&listen.address, listen.socket_mode, "[[listen]] address, or --listen")
                })
                .collect::<Result<_, _>>()?,
            api: bind(&config.api.address, None, "[api] address")?,
            admin: bind(&config.admin.address, None, "[admin] address")?,
        };
        // The service manager would queue connections that are never accepted.
        match inherited.addresses().next() {
            None => Ok(listeners),
            Some(address) => Err(StartError::UnexpectedSocket(address.clone())),
        }
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            public: self.public.iter().map(BoundListener::try_clone).collect::<Result<_, _>>()?,
            api: self.api.try_clone()?,
            admin: self.admin.try_clone()?,
        })
    }

    /// Returns the addresses of the public listeners, in the order of the configuration.
    pub(super) fn public(&self) -> Vec<Address> {
        self.public.iter().map(|listener| listener.local_address().clone()).collect()
    }

    pub(super) fn api(&self) -> &Address {
        self.api.local_address()
    }

    pub(super) fn admin(&self) -> &Address {
        self.admin.local_address()
    }

    /// Splits into the public, API and admin listeners.
    pub(super) fn into_parts(self) -> (Vec<BoundListener>, BoundListener, BoundListener) {
        (self.public, self.api, self.admin)
    }
}

/// The services of the public listeners, in the order of the configuration, and the protocols of the API
/// and admin listeners.
#[derive(Clone, Debug)]
pub(super) struct ListenerRoles {
    public: Vec<PublicListener>,
    pub(super) api: Protocol,
    pub(super) admin: Protocol,
}

/// The service of a public listener, and the proxies that may send it the PROXY protocol.
#[derive(Clone, Debug)]
pub(super) struct PublicListener {
    pub(super) service: Service,
    pub(super) proxy_header_from: Option<Trust>,
}

#[derive(Clone, Debug)]
pub(super) enum Service {
    Site(Protocol),
    RedirectTo(u16),
}

impl ListenerRoles {
    /// Loads the certificates, and exports their expiry to `metrics`.
    pub(super) fn open(
        config: &Config,
        listeners: &Listeners,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let bound = config.listen.iter().zip(&listeners.public);
        let tls_port = bound.clone().find_map(|(listen, bound)| match bound.local_address() {
            Address::Tcp(address) if matches!(listen.role, Role::Tls(_)) => Some(address.port()),
            Address::Tcp(_) | Address::Unix(_) => None,
        });
        let open = |listen: &Listen| {
            let service = match &listen.role {
                Role::Http1 => Service::Site(Protocol::Http1),
                Role::Http1AndH2c => Service::Site(Protocol::Http1AndH2c),
                Role::Tls(tls) => Service::Site(Protocol::Tls(Arc::new(Tls::open(tls)?))),
                Role::RedirectToHttps => {
                    Service::RedirectTo(tls_port.unwrap_or_else(|| Scheme::Https.default_port()))
                }
            };
            let proxy_header_from = listen.proxy_protocol.then(|| trusted(config));
            Ok(PublicListener { service, proxy_header_from })
        };
        let api = match &config.api.tls {
            None => Protocol::Http1AndH2c,
            Some(tls) => Protocol::Tls(Arc::new(Tls::open(&tls.listener)?)),
        };
        let admin = match &config.admin.tls {
            None => Protocol::Http1,
            Some(tls) => Protocol::Tls(Arc::new(Tls::open(tls)?)),
        };
        let public: Vec<PublicListener> =
            config.listen.iter().map(open).collect::<Result<_, StartError>>()?;
        let with_tls = public.iter().filter_map(|listener| match &listener.service {
            Service::Site(Protocol::Tls(tls)) => Some(Arc::clone(tls)),
            Service::Site(_) | Service::RedirectTo(_) => None,
        });
        // So that each listener knows which names the others serve, for 421 (RFC 9110, section
        // 15.5.20).
        Tls::link_listeners(&with_tls.collect::<Vec<_>>());
        let roles = Self { public, api, admin };
        let certificates =
            roles.certificates(&listeners.public(), listeners.api(), listeners.admin());
        warn_of_expiry(&certificates);
        metrics.set_certificates(certificates);
        Ok(roles)
    }

    pub(super) fn public(&self) -> impl Iterator<Item = &PublicListener> {
        self.public.iter()
    }

    /// Returns the certificates that the listeners at these addresses present, with their expiry.
    pub(super) fn certificates(
        &self,
        public: &[Address],
        api: &Address,
        admin: &Address,
    ) -> Vec<CertificateExpiry> {
        let tls = self.public.iter().zip(public).filter_map(|(listener, address)| match &listener
            .service
        {
            Service::Site(Protocol::Tls(tls)) => Some((tls, address)),
            Service::Site(_) | Service::RedirectTo(_) => None,
        });
        let inner = [(&self.api, api), (&self.admin, admin)];
        let inner = inner.into_iter().filter_map(|(protocol, address)| match protocol {
            Protocol::Tls(tls) => Some((tls, address)),
            Protocol::Http1 | Protocol::Http1AndH2c => None,
        });
        let expiries = tls.chain(inner).flat_map(|(tls, address)| {
            let name = address.to_string();
            tls.expiries().into_iter().map(move |(path, not_after)| CertificateExpiry {
                listener: name.clone(),
                certificate: path.display().to_string(),
                not_after,
            })
        });
        expiries.collect()
    }

    /// Reads the certificates of a configuration with the same listeners.
    pub(super) fn read_certificates(
        &self,
        config: &Config,
    ) -> Result<Vec<(Arc<Tls>, Certificates)>, TlsError> {
        let mut read = Vec::new();
        if let (Protocol::Tls(tls), Some(wanted)) = (&self.api, &config.api.tls) {
            read.push((Arc::clone(tls), tls.load(&wanted.listener)?));
        }
        if let (Protocol::Tls(tls), Some(wanted)) = (&self.admin, &config.admin.tls) {
            read.push((Arc::clone(tls), tls.load(wanted)?));
        }
        for (listener, listen) in self.public.iter().zip(&config.listen) {
            if let (Service::Site(Protocol::Tls(tls)), Role::Tls(wanted)) =
                (&listener.service, &listen.role)
            {
                read.push((Arc::clone(tls), tls.load(wanted)?));
            }
        }
        Ok(read)
    }

    /// Installs certificates, which apply from the next handshake on.
    pub(super) fn install_certificates(certificates: Vec<(Arc<Tls>, Certificates)>) {
        for (tls, certificates) in certificates {
            tls.install(certificates);
        }
    }
}

/// The time before the end of a certificate in which the log has a warning, in seconds: two weeks.
const EXPIRES_SOON: i64 = 14 * 24 * 3600;

/// Warns of certificates that clients refuse, or soon will. By the system's clock, as clients have it.
pub(super) fn warn_of_expiry(certificates: &[CertificateExpiry]) {
    let now = Clock::System.now().as_millis() / 1000;
    for CertificateExpiry { listener, certificate, not_after } in certificates {
        let days = (not_after - now) / (24 * 3600);
        if *not_after <= now {
            warn!(
                listener,
                certificate,
                days_ago = -days,
                "certificate has expired; renew it and reload"
            );
        } else if not_after - now < EXPIRES_SOON {
            warn!(listener, certificate, days, "certificate expires soon; renew it and reload");
        }
    }
}
