//! From the file's keys to what each module consumes: defaults, bounds, and rules between keys.
//!
//! A key that is wrong is told and its default goes on, so that one start tells everything.

mod context;
mod cookie;
mod headers;
mod listeners;
mod redis_url;
mod routes;
mod session;
mod store;
mod store_url;
mod telemetry;
mod tls;

use super::Config;
use super::file::File;
use crate::log;
use crate::proxy;

pub(super) use context::{Context, Site};

/// The whole configuration.
pub(super) fn config(file: &File, context: &mut Context<'_>) -> Config {
    let listen = listeners::listen(&file.listen, &file.limits.0, context);
    let api = listeners::api(&file.api.0, context);
    let admin = listeners::admin(&file.admin.0, context);
    let own = listeners::own(file, &listen, &api, &admin);
    listeners::check_apart(&own, context);
    let (store, keys) = store::store(file, context);
    let (strip_request_headers, keep_request_headers) =
        headers::stripped_and_kept(&file.limits.0, context);
    let proxy = proxy::config::Config {
        trusted_proxies: listeners::trusted_proxies(&file.limits.0),
        strip_request_headers,
        keep_request_headers,
        routes: routes::routes(&file.route, store.on_error, &own, context),
    };
    Config {
        limits: listeners::limits(&file.limits.0, context),
        policy: session::policy(file, context),
        cookie: cookie::attributes(&file.cookie.0, context),
        log: log::Config {
            format: file.log.0.format.or(log::Config::default().format),
            level: file.log.0.level.or(log::Config::default().level),
            access: file.log.0.access.or(log::Config::default().access),
        },
        telemetry: telemetry::telemetry(&file.telemetry.0, &own, context),
        state_directory: context.used_state_directory(),
        listen,
        api,
        admin,
        keys,
        store,
        proxy,
    }
}
