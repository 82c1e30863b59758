//! The admin listener, and the tokens of its pages.

use super::super::file;
use super::context::Context;
use super::{listeners, tls};
use crate::admin::config::{Config, TokenSource};
use crate::store::config::StoreKind;

/// The token that is generated for an embedded store.
const TOKEN_FILE: &str = "admin-token";

/// Builds the admin listener. [`with_generated_token`] completes it.
pub(super) fn admin(admin: &mut file::Admin, context: &mut Context<'_>) -> Config {
    listeners::locate(&mut admin.address, context);
    let tls = tls::server("admin.tls", admin.tls.as_mut(), admin.client_ca.as_mut(), context);
    if !context.is_set("admin.tls") {
        let message = "has no effect without TLS on the listener; set admin.tls too, or remove it";
        context.refuse(&["admin.client_ca"], message);
    }
    let given = admin.token.as_ref().and_then(|source| context.token("admin.token", source));
    let read_token =
        admin.read_token.as_ref().and_then(|source| context.token("admin.read_token", source));
    if given.is_some() && given == read_token {
        context.error("admin.read_token", "is the same as admin.token; choose another one");
    }
    let config = Config {
        address: admin.address.clone(),
        tls,
        hosts: listeners::hosts("admin.hosts", &admin.hosts, context),
        token: given.map_or(TokenSource::None, TokenSource::Given),
        read_token,
        show_values: admin.show_values,
    };
    if !config.is_private() {
        for key in ["admin.token", "admin.read_token"] {
            if context.is_set(key) {
                let message = "would cross the network in plain text, so the pages that need it are off; set \
                               admin.tls, or listen at a loopback address or unix:PATH";
                context.warn(key, message);
            }
        }
    }
    config
}

/// Adds the token that a start generates: for an embedded store, if only this machine reaches the listener.
/// Other stores are shared, and so is the token of their operators.
pub(super) fn with_generated_token(
    config: Config,
    store: &StoreKind,
    context: &Context<'_>,
) -> Config {
    if config.token != TokenSource::None || !config.is_local() || context.is_set("admin.token") {
        return config;
    }
    let path = match store {
        // In the state directory, unless the data is elsewhere.
        StoreKind::Sqlite { path } | StoreKind::File { directory: path } => {
            Some(path.with_file_name(TOKEN_FILE))
        }
        StoreKind::Memory => context.state_path(TOKEN_FILE),
        StoreKind::Redis(_) | StoreKind::Cookies => None,
    };
    Config { token: path.map_or(TokenSource::None, TokenSource::File), ..config }
}
