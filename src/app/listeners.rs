//! The listeners of a process, and what the public ones serve.

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

/// The listeners of a process, bound once.
pub(super) struct Listeners {
    public: Vec<BoundListener>,
    api: BoundListener,
    admin: BoundListener,
}

impl Listeners {
    /// Binds what nobody listens on for us already.
    pub(super) fn bind(config: &Config, mut inherited: Inherited) -> Result<Self, StartError> {
        let mut bind = |address: &Address, mode| {
            let given = inherited.take(address);
            given
                .map_or_else(|| server::bind(address, mode), Ok)
                .map_err(|source| StartError::Bind { address: address.clone(), source })
        };
        let listeners = Self {
            public: config
                .listen
                .iter()
                .map(|listen| bind(&listen.address, listen.socket_mode))
                .collect::<Result<_, _>>()?,
            api: bind(&config.api.address, None)?,
            admin: bind(&config.admin.address, None)?,
        };
        // Whoever listens there for us believes that it is served.
        match inherited.addresses().next() {
            None => Ok(listeners),
            Some(address) => Err(StartError::NotWanted(address.clone())),
        }
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            public: self.public.iter().map(BoundListener::try_clone).collect::<Result<_, _>>()?,
            api: self.api.try_clone()?,
            admin: self.admin.try_clone()?,
        })
    }

    /// Where clients reach it, in the configuration's order.
    pub(super) fn public(&self) -> Vec<Address> {
        self.public.iter().map(|listener| listener.local_address().clone()).collect()
    }

    /// Where upstreams do.
    pub(super) fn api(&self) -> &Address {
        self.api.local_address()
    }

    /// Where operators do.
    pub(super) fn admin(&self) -> &Address {
        self.admin.local_address()
    }

    /// The public ones, the API's and the admin's.
    pub(super) fn into_parts(self) -> (Vec<BoundListener>, BoundListener, BoundListener) {
        (self.public, self.api, self.admin)
    }
}

/// What the listeners speak: the public ones, in the configuration's order, and the API's.
#[derive(Clone, Debug)]
pub(super) struct Doors {
    public: Vec<Door>,
    pub(super) api: Protocol,
}

/// A public listener: what it serves, and who says there for whom a connection is.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub(super) serves: Serves,
    pub(super) proxy_header_from: Option<Trust>,
}

#[derive(Clone, Debug)]
pub(super) enum Serves {
    Site(Protocol),
    RedirectTo(u16),
}

impl Doors {
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
        let door = |listen: &Listen| {
            let serves = match &listen.role {
                Role::Http1 => Serves::Site(Protocol::Http1),
                Role::Http1AndH2c => Serves::Site(Protocol::Http1AndH2c),
                Role::Tls(tls) => Serves::Site(Protocol::Tls(Arc::new(Tls::open(tls)?))),
                Role::RedirectToHttps => {
                    Serves::RedirectTo(tls_port.unwrap_or_else(|| Scheme::Https.usual_port()))
                }
            };
            let proxy_header_from = listen.proxy_protocol.then(|| trusted(config));
            Ok(Door { serves, proxy_header_from })
        };
        let api = match &config.api.tls {
            None => Protocol::Http1AndH2c,
            Some(tls) => Protocol::Tls(Arc::new(Tls::open(&tls.listener)?)),
        };
        let public: Vec<Door> =
            config.listen.iter().map(door).collect::<Result<_, StartError>>()?;
        let with_tls = public.iter().filter_map(|door| match &door.serves {
            Serves::Site(Protocol::Tls(tls)) => Some(Arc::clone(tls)),
            Serves::Site(_) | Serves::RedirectTo(_) => None,
        });
        Tls::link_listeners(&with_tls.collect::<Vec<_>>());
        let doors = Self { public, api };
        metrics.set_certificates(doors.certificates(&listeners.public(), listeners.api()));
        Ok(doors)
    }

    pub(super) fn public(&self) -> impl Iterator<Item = &Door> {
        self.public.iter()
    }

    /// Returns the certificates that the listeners at these addresses present, with their expiry.
    pub(super) fn certificates(&self, public: &[Address], api: &Address) -> Vec<CertificateExpiry> {
        let tls = self.public.iter().zip(public).filter_map(|(door, address)| match &door.serves {
            Serves::Site(Protocol::Tls(tls)) => Some((tls, address)),
            Serves::Site(_) | Serves::RedirectTo(_) => None,
        });
        let api = match &self.api {
            Protocol::Tls(tls) => Some((tls, api)),
            Protocol::Http1 | Protocol::Http1AndH2c => None,
        };
        let expiries = tls.chain(api).flat_map(|(tls, address)| {
            let listener = address.to_string();
            tls.expiries().into_iter().map(move |(path, not_after)| CertificateExpiry {
                listener: listener.clone(),
                certificate: path.display().to_string(),
                not_after,
            })
        });
        expiries.collect()
    }

    /// The certificates of a configuration with the same listeners.
    pub(super) fn read_certificates(
        &self,
        config: &Config,
    ) -> Result<Vec<(Arc<Tls>, Certificates)>, TlsError> {
        let mut read = Vec::new();
        if let (Protocol::Tls(tls), Some(wanted)) = (&self.api, &config.api.tls) {
            read.push((Arc::clone(tls), tls.load(&wanted.listener)?));
        }
        for (door, listen) in self.public.iter().zip(&config.listen) {
            if let (Serves::Site(Protocol::Tls(tls)), Role::Tls(wanted)) =
                (&door.serves, &listen.role)
            {
                read.push((Arc::clone(tls), tls.load(wanted)?));
            }
        }
        Ok(read)
    }

    /// Shows them, from the next handshake on.
    pub(super) fn show(certificates: Vec<(Arc<Tls>, Certificates)>) {
        for (tls, certificates) in certificates {
            tls.install(certificates);
        }
    }
}
