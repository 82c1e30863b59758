//! The store, and the session keys that go with it.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::file::{self, File};
use super::super::keys::{self, Keys};
use super::super::problem::Place;
use super::super::secret::{Literal, SecretSource};
use super::super::value::OneAtATime;
use super::context::Context;
use crate::redis::config::{ClientCertificate, Password, Tls, Topology};
use crate::session::key_ring::{Key, KeyRing};
use crate::session::policy::OnReplay;
use crate::store::config::{Config, DurableDestroy, Redis, StoreKind};
use crate::store::url::{Encryption, RedisUrl};

/// The key that is generated for an embedded store, in the directory of its data.
const AUTO_KEY_FILE: &str = "auto-session-key";
/// Its name in earlier releases, which is also what operators call their own.
const OLD_AUTO_KEY_FILE: &str = "session-key";

/// Builds the store, and finds its session keys.
pub(super) fn store(file: &mut File, context: &mut Context<'_>) -> (Config, Keys) {
    let backend = backend(&mut file.store, context);
    check_revocation(file, &backend, context);
    let store = &file.store;
    let config = Config {
        cache: cache(store, &backend, context),
        backend,
        timeout: store.timeout.0,
        on_error: store.on_error,
    };
    let keys = keys(&file.session, &config.backend, context);
    (config, keys)
}

fn backend(store: &mut file::Store, context: &mut Context<'_>) -> StoreKind {
    if let Some(path) = store.url.path_mut() {
        context.locate_in_state("store.url", path);
    }
    let kind = match store.url.kind() {
        Ok(kind) => kind,
        Err(url) => return StoreKind::Redis(Box::new(redis(url.clone(), store, context))),
    };
    let keys = ["password", "sentinel_password", "durable_destroy", "tls"];
    let keys = keys.map(|key| format!("store.{key}"));
    context.refuse(&keys.each_ref().map(String::as_str), "applies to redis stores only; remove it");
    kind
}

/// Sealed cookies are stored by their clients alone, so whatever needs a list of sessions is refused, and
/// the operator has to accept that sessions cannot be revoked.
fn check_revocation(file: &File, backend: &StoreKind, context: &mut Context<'_>) {
    if !matches!(backend, StoreKind::Cookies) {
        let message = "has no effect on a store that can revoke sessions; remove it";
        return context.refuse(&["store.accept_no_revocation"], message);
    }
    if file.store.accept_no_revocation != Some(true) {
        let message = "a copied cookie is valid until it expires, even after a log-out; set \
                       accept_no_revocation = true to accept this";
        context.error("store.url", message);
    }
    if file.session.unproven_timeout.0.is_some() {
        context.error("session.unproven_timeout", "sealed cookies need no store; remove it");
    }
    for (index, route) in file.route.iter().enumerate() {
        if route.one_at_a_time != OneAtATime::Switch(false) {
            let key = format!("route[{index}].one_at_a_time");
            let message = "a request with a sealed cookie brings its session along, so waiting is in vain; remove it";
            context.error(&key, message);
        }
    }
    let message = "sealed cookies can be neither listed nor revoked; remove it";
    context.refuse(&["api.service_token", "session.max_per_principal"], message);
    if file.session.on_replay == OnReplay::Revoke {
        context.error("session.on_replay", message);
    }
}

fn cache(store: &file::Store, backend: &StoreKind, context: &mut Context<'_>) -> Option<usize> {
    let cache = store.cache.as_ref()?;
    match backend {
        StoreKind::Cookies => {
            context.error("store.cache", "sealed cookies need no cache; remove it");
        }
        backend if backend.can_be_cached() => {}
        _ => context.error("store.cache", "cannot be kept coherent with a cluster; remove it"),
    }
    Some(cache.max_bytes.0)
}

fn redis(url: RedisUrl, store: &mut file::Store, context: &mut Context<'_>) -> Redis {
    if url.password.is_some() && matches!(context.place("store.url"), Place::File { .. }) {
        let message =
            "password stored in plain text; use password = { file = \"…\" } or { env = \"NAME\" }";
        context.warn("store.url", message);
    }
    let given = password("store.password", store.password.as_ref(), context);
    if url.password.is_some() && store.password.is_some() {
        context.error("store.password", "the URL has a password too; remove one of them");
    }
    let key = "store.sentinel_password";
    let sentinel_password = password(key, store.sentinel_password.as_ref(), context);
    if matches!(url.topology, Topology::Server(_) | Topology::Cluster { .. }) {
        context.refuse(&[key], "the URL has no sentinels; remove it");
    }
    check_key_prefix(store, context);
    if let Some(password) = &url.password {
        store.password = Some(SecretSource::Literal(Literal(password.clone())));
    }
    Redis {
        topology: url.topology,
        user: url.user,
        password: given.or_else(|| url.password.map(Password::Fixed)),
        sentinel_password,
        database: url.database,
        tls: tls(&mut store.tls, url.encryption, context),
        key_prefix: store.key_prefix.0.clone(),
        durable_destroy: match store.durable_destroy {
            None => DurableDestroy::Auto,
            Some(true) => DurableDestroy::On,
            Some(false) => DurableDestroy::Off,
        },
    }
}

/// Reads a password. Its file is read again for each connection; a mistake is reported now.
fn password(
    key: &str,
    source: Option<&SecretSource>,
    context: &mut Context<'_>,
) -> Option<Password> {
    let source = source?;
    let secret = context.secret(key, source)?;
    Some(match source {
        SecretSource::File { file: path } => {
            let mut path = path.clone();
            context.locate(&mut path);
            Password::File(path)
        }
        SecretSource::Variable { .. } | SecretSource::Literal(_) => Password::Fixed(secret),
    })
}

fn tls(
    tls: &mut Option<file::StoreTls>,
    encryption: Encryption,
    context: &mut Context<'_>,
) -> Option<Tls> {
    if encryption == Encryption::None {
        context.refuse(&["store.tls"], "the URL does not begin with rediss; remove it");
        return None;
    }
    let Some(file::StoreTls { ca, certificate, key }) = tls else { return Some(Tls::default()) };
    let mut located = |name: &str, path: &mut Option<PathBuf>| {
        let path = path.as_mut()?;
        context.locate(path);
        if let Err(error) = std::fs::File::open(&*path) {
            let message = format!("{} cannot be read: {error}", path.display());
            context.error(&format!("store.tls.{name}"), message);
        }
        Some(path.clone())
    };
    let ca = located("ca", ca);
    let client = match (located("certificate", certificate), located("key", key)) {
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            context.error("store.tls", "a client certificate needs both certificate and key");
            None
        }
    };
    Some(Tls { ca, client })
}

/// Braces would move the hash tag, which decides the slot of a key in a cluster.
fn check_key_prefix(store: &file::Store, context: &mut Context<'_>) {
    if store.key_prefix.len() > 256 || store.key_prefix.contains(['{', '}']) {
        context
            .error("store.key_prefix", "invalid prefix; expected at most 256 bytes without braces");
    }
}

fn keys(session: &file::Session, backend: &StoreKind, context: &mut Context<'_>) -> Keys {
    let sources = session.keys.iter().flatten().enumerate();
    let read = sources
        .filter_map(|(index, source)| key(&format!("session.keys[{index}]"), source, context));
    let read: Vec<Key> = read.collect();
    if let Some((first, older)) = read.split_first() {
        return Keys::Given(Arc::new(KeyRing::new(first, older)));
    }
    if let Some(path) = backend.path() {
        let [new, old] = [AUTO_KEY_FILE, OLD_AUTO_KEY_FILE].map(|name| path.with_file_name(name));
        return Keys::BesideData(if !new.exists() && old.exists() { old } else { new });
    }
    let is_missing =
        session.keys.as_ref().is_some_and(Vec::is_empty) || !context.is_set("session.keys");
    if backend.is_shared() && is_missing {
        let message = "shared sessions need session.keys, the same for every instance; \
                       `cloakroom generate-key` prints one";
        context.error("store.url", message);
    }
    Keys::InMemory
}

fn key(path: &str, source: &SecretSource, context: &mut Context<'_>) -> Option<Key> {
    let text = context.session_key(path, source)?;
    let key = keys::parse(&text);
    if key.is_none() {
        context.error(path, format!("invalid session key; {}", keys::RIGHT));
    }
    key
}
