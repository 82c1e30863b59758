//! TLS, of listeners and to others. The files are read, so that a mistake in one is told with all others.

use std::path::Path;

use super::super::field::{Field, Several};
use super::super::file;
use super::super::problem::Origin;
use super::context::{Context, with_causes};
use crate::client::{self, ServerTrust};
use crate::net::pem::Identity;
use crate::server;

/// That of a listener; `None` where it has none, or a mistake.
pub(super) fn server(
    table: &Several<file::Identity>,
    client_ca: &Field<String>,
    context: &mut Context<'_>,
) -> Option<server::TlsConfig> {
    let (_, origin) = table.sections().first()?;
    let identities: Option<Vec<Identity>> =
        table.sections().iter().map(|(table, origin)| identity(table, origin, context)).collect();
    let client_authorities = client_ca.value().map(|path| context.beside_file(Path::new(path)));
    let config = server::TlsConfig { identities: identities?, client_authorities };
    if let Err(error) = server::Tls::open(&config) {
        context.error(origin, with_causes(&error));
    }
    Some(config)
}

fn identity(
    table: &file::Identity,
    origin: &Origin,
    context: &mut Context<'_>,
) -> Option<Identity> {
    match (table.certificate.value(), table.key.value()) {
        (Some(certificate), Some(key)) => Some(Identity {
            certificate: context.beside_file(Path::new(certificate)),
            key: context.beside_file(Path::new(key)),
        }),
        (certificate, key) => {
            let missing = match (certificate, key) {
                (None, _) => &table.certificate,
                _ => &table.key,
            };
            if matches!(missing, Field::Unset) {
                let message = "write { certificate = \"fullchain.pem\", key = \"key.pem\" }";
                context.error(origin, message);
            }
            None
        }
    }
}

/// That of a connection that is opened here.
pub(super) fn client(
    tls: &file::ClientTls,
    origin: &Origin,
    context: &mut Context<'_>,
) -> client::TlsConfig {
    let path = |path: &String| context.beside_file(Path::new(path));
    let identity = match (tls.certificate.value(), tls.key.value()) {
        (Some(certificate), Some(key)) => {
            Some(Identity { certificate: path(certificate), key: path(key) })
        }
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            context.error(origin, "a client has both a certificate and a key");
            None
        }
    };
    let config =
        client::TlsConfig { trust: trust(tls, context), name: tls.name.value().cloned(), identity };
    if let Err(error) = client::Tls::open(&config) {
        context.error(origin, with_causes(&error));
    }
    config
}

fn trust(tls: &file::ClientTls, context: &mut Context<'_>) -> ServerTrust {
    match (tls.ca.found(), tls.verify.found()) {
        (Some((_, origin)), Some((false, _))) => {
            context.error(origin, "counts for nothing with verify = false; leave one of them out");
            ServerTrust::Insecure
        }
        (None, Some((false, origin))) => {
            let message = "whoever stands between here and there can read and change all";
            context.warn(origin, message);
            ServerTrust::Insecure
        }
        (Some((ca, _)), _) => ServerTrust::File(context.beside_file(Path::new(ca))),
        (None, _) => ServerTrust::System,
    }
}
