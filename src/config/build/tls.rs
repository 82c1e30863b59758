//! TLS, as a server and as a client. The files are read, so that a mistake in one is reported with all others.

use std::path::PathBuf;

use super::super::file::{ClientTls, Identity};
use super::super::value::OneOrMany;
use super::context::{Context, with_causes};
use crate::client::{self, ServerTrust};
use crate::net::pem;
use crate::server;

/// Builds the TLS of a listener. `key` is the path of its `tls`.
pub(super) fn server(
    key: &str,
    tls: Option<&mut OneOrMany<Identity>>,
    client_ca: Option<&mut PathBuf>,
    context: &mut Context<'_>,
) -> Option<server::TlsConfig> {
    let OneOrMany(identities) = tls?;
    let identities = identities.iter_mut().map(|Identity { certificate, key }| {
        context.locate(certificate);
        context.locate(key);
        pem::Identity { certificate: certificate.clone(), key: key.clone() }
    });
    let identities = identities.collect();
    let client_authorities = client_ca.map(|path| {
        context.locate(path);
        path.clone()
    });
    let config = server::TlsConfig { identities, client_authorities };
    if let Err(error) = server::Tls::open(&config) {
        context.error(key, with_causes(&error));
    }
    Some(config)
}

/// Builds the TLS of connections that are opened here. `key` is the path of the section.
pub(super) fn client(
    key: &str,
    tls: &mut ClientTls,
    context: &mut Context<'_>,
) -> client::TlsConfig {
    for path in [&mut tls.ca, &mut tls.certificate, &mut tls.key].into_iter().flatten() {
        context.locate(path);
    }
    let identity = match (&tls.certificate, &tls.key) {
        (Some(certificate), Some(key)) => {
            Some(pem::Identity { certificate: certificate.clone(), key: key.clone() })
        }
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            context.error(key, "a client certificate needs both certificate and key");
            None
        }
    };
    let name = tls.name.as_ref().map(|name| name.0.clone());
    let config = client::TlsConfig { trust: trust(key, tls, context), name, identity };
    if let Err(error) = client::Tls::open(&config) {
        context.error(key, with_causes(&error));
    }
    config
}

fn trust(key: &str, tls: &ClientTls, context: &mut Context<'_>) -> ServerTrust {
    match (&tls.ca, tls.verify) {
        (Some(_), false) => {
            context.error(&format!("{key}.ca"), "has no effect when verify = false; remove one");
            ServerTrust::Insecure
        }
        (None, false) => {
            let message = "certificate verification is off: open to man-in-the-middle attacks";
            context.warn(&format!("{key}.verify"), message);
            ServerTrust::Insecure
        }
        (Some(ca), true) => ServerTrust::File(ca.clone()),
        (None, true) => ServerTrust::System,
    }
}
