//! From the keys to what each module consumes: relative paths become absolute, keys that depend on others
//! get their default, and contradictions are reported.
//!
//! The file is completed in place, so that it is the effective configuration afterwards.

mod admin;
mod context;
mod cookie;
mod headers;
mod hold;
mod listeners;
mod routes;
mod session;
mod store;
mod telemetry;
mod tls;

use super::Config;
use super::file::{self, File};
use crate::{log, proxy};

pub(super) use context::{Context, Site};

/// Builds the whole configuration. A key that is wrong is reported and its default used, so that one run
/// reports all problems.
pub(super) fn config(file: &mut File, context: &mut Context<'_>) -> Config {
    let listen = listeners::listen(file, context);
    let api = listeners::api(&mut file.api, context);
    let admin = admin::admin(&mut file.admin, context);
    let own = listeners::own(&listen, &api, &admin);
    listeners::check_distinct(&own, context);
    let (store, keys) = store::store(file, context);
    let admin = admin::with_generated_token(admin, &store.backend, context);
    let (strip_request_headers, keep_request_headers) =
        headers::stripped_and_kept(&mut file.limits, context);
    let cookie = cookie::attributes(&mut file.cookie, context);
    let proxy = proxy::config::Config {
        trusted_proxies: file.limits.trusted_proxies.iter().map(|network| network.0).collect(),
        strip_request_headers,
        keep_request_headers,
        slow: file.log.slow.map(|slow| slow.0),
        client_secret: listeners::client_secret(&file.api, context),
        routes: routes::routes(file, &own, &cookie.name, context),
    };
    Config {
        limits: listeners::limits(&file.limits),
        policy: session::policy(file, context),
        cookie,
        log: log::Config {
            format: file.log.format,
            level: file.log.level.into(),
            access: file.log.access,
            api: file.log.api,
        },
        audit: audit(&mut file.audit, context),
        telemetry: telemetry::telemetry(&mut file.telemetry, &own, context),
        state_directory: context.state_directory.clone(),
        listen,
        api,
        admin,
        keys,
        store,
        proxy,
    }
}

fn audit(audit: &mut file::Audit, context: &Context<'_>) -> crate::audit::Config {
    if let Some(path) = &mut audit.path {
        context.locate(path);
    }
    crate::audit::Config { path: audit.path.clone() }
}
