//! Where records live, and the keys that go with them.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::super::field::Field;
use super::super::file::{self, File};
use super::super::keys::{self, Keys};
use super::super::problem::{Origin, Place};
use super::super::secret::Source;
use super::super::value::Timeout;
use super::context::Context;
use super::redis_url::{Encryption, RedisUrl};
use super::store_url::{self, StoreUrl};
use crate::session::key_ring::{Key, KeyRing};
use crate::session::policy::OnReplay;
use crate::store::config::{
    Backend, ClientCertificate, Config, DurableDestroy, OnError, Password, Redis, Tls, Topology,
};

const DEFAULT_URL: &str = "sqlite:cloakroom.db";
const DEFAULT_KEY_PREFIX: &str = "cloakroom:";
const DEFAULT_CACHE: usize = 64 * 1024 * 1024;
/// From what is worth it to what a process should hold.
const CACHE: RangeInclusive<usize> = 1024 * 1024..=64 * 1024 * 1024 * 1024;
/// The key that is made for an embedded store, in the directory of its data.
const AUTO_KEY_FILE: &str = "auto-session-key";
/// Its name in earlier releases, which is also what operators call their own.
const OLD_AUTO_KEY_FILE: &str = "session-key";

/// The store, and where its keys come from.
pub(super) fn store(file: &File, context: &mut Context<'_>) -> (Config, Keys) {
    let table = &file.store.0;
    let backend = backend(table, context);
    check_revocation(file, &backend, context);
    let config = Config {
        cache: cache(table, &backend, context),
        backend,
        timeout: context.duration(
            &table.timeout,
            Duration::from_millis(500),
            &(Duration::from_millis(1)..=Duration::from_mins(1)),
        ),
        on_error: table.on_error.or(OnError::Fail),
    };
    let origin = table.url.origin("store.url");
    let keys = keys(&file.session.0, &config.backend, &origin, context);
    (config, keys)
}

fn backend(table: &file::Store, context: &mut Context<'_>) -> Backend {
    let origin = table.url.origin("store.url");
    let url = table.url.value().map_or(DEFAULT_URL, String::as_str);
    let parsed = match store_url::parse(url) {
        Ok(StoreUrl::Redis(url)) => {
            return Backend::Redis(Box::new(redis(url, table, &origin, context)));
        }
        Ok(StoreUrl::Memory) => Some(Backend::Memory),
        Ok(StoreUrl::Cookies) => Some(Backend::Cookies),
        Ok(StoreUrl::Sqlite(path)) => {
            context.in_state(&path, &origin).map(|path| Backend::Sqlite { path })
        }
        Ok(StoreUrl::File(path)) => {
            context.in_state(&path, &origin).map(|directory| Backend::File { directory })
        }
        Err(message) => {
            context.error(&origin, message);
            return Backend::Memory;
        }
    };
    for (origin, what) in only_of_redis(table) {
        context.error(&origin, format!("only a redis store has {what}; leave it out"));
    }
    parsed.unwrap_or(Backend::Memory)
}

/// Sessions in cookies are nowhere else: that has to be accepted, and with it that nothing works
/// which needs the others.
fn check_revocation(file: &File, backend: &Backend, context: &mut Context<'_>) {
    let (table, session) = (&file.store.0, &file.session.0);
    let accepted = table.accept_no_revocation.found();
    if !matches!(backend, Backend::Cookies) {
        if let Some((_, origin)) = accepted {
            context.error(origin, "the store can end sessions; leave it out");
        }
        return;
    }
    if accepted.is_none_or(|(accepts, _)| !accepts) {
        let message = "whoever has copied a cookie has its session until that expires, after a \
                       log-out too; write accept_no_revocation = true if that will do";
        context.error(&table.url.origin("store.url"), message);
    }
    let revokes = session.on_replay.found().filter(|(what, _)| **what == OnReplay::Revoke);
    if let Some((Timeout::After(_), origin)) = session.unproven_timeout.found() {
        context.error(origin, "sessions in cookies take up no store; leave it out");
    }
    let found = [
        file.api.0.service_token.found().map(|(_, origin)| origin),
        session.max_per_principal.found().map(|(_, origin)| origin),
        revokes.map(|(_, origin)| origin),
    ];
    for origin in found.into_iter().flatten() {
        let message = "sessions in cookies can be neither listed nor ended from elsewhere; \
                       leave it out";
        context.error(origin, message);
    }
}

fn cache(table: &file::Store, backend: &Backend, context: &mut Context<'_>) -> Option<usize> {
    let (cache, origin) = table.cache.found()?;
    match backend {
        backend if backend.can_be_cached() => {}
        Backend::Cookies => context.error(origin, "cookies need no store; leave it out"),
        _ => context.error(origin, "is not kept coherent with a cluster; leave it out"),
    }
    Some(context.size(&cache.max_bytes, DEFAULT_CACHE, &CACHE))
}

fn only_of_redis(table: &file::Store) -> Vec<(Origin, &'static str)> {
    let tls = &table.tls.0;
    let found = [
        (table.password.found().map(|(_, origin)| origin), "a password"),
        (table.sentinel_password.found().map(|(_, origin)| origin), "sentinels"),
        (table.durable_destroy.found().map(|(_, origin)| origin), "replicas"),
        (tls.ca.found().map(|(_, origin)| origin), "certificates"),
        (tls.certificate.found().map(|(_, origin)| origin), "certificates"),
        (tls.key.found().map(|(_, origin)| origin), "certificates"),
    ];
    found.into_iter().filter_map(|(origin, what)| Some((origin?.clone(), what))).collect()
}

fn redis(url: RedisUrl, table: &file::Store, origin: &Origin, context: &mut Context<'_>) -> Redis {
    if url.password.is_some() && matches!(origin.place, Place::File { .. }) {
        let message = "the password stands in the file, for all who read it; \
                       write password = { file = \"…\" } or { env = \"NAME\" }";
        context.warn(origin, message);
    }
    let given = password(&table.password, context);
    if let (Some(_), Some((_, origin))) = (&url.password, table.password.found()) {
        context.error(origin, "the URL has a password too; leave one of them out");
    }
    let sentinel_password = password(&table.sentinel_password, context);
    if let (Topology::Server(_) | Topology::Cluster { .. }, Some((_, origin))) =
        (&url.topology, table.sentinel_password.found())
    {
        context.error(origin, "the URL names no sentinels; leave it out");
    }
    Redis {
        topology: url.topology,
        user: url.user,
        password: given.or_else(|| url.password.map(Password::Fixed)),
        sentinel_password,
        database: url.database,
        tls: tls(&table.tls.0, url.tls, context),
        key_prefix: key_prefix(table, context),
        durable_destroy: match table.durable_destroy.value() {
            None => DurableDestroy::Auto,
            Some(true) => DurableDestroy::On,
            Some(false) => DurableDestroy::Off,
        },
    }
}

/// A password's file is looked at now, so that a mistake is told at the start, and read again for
/// each connection.
fn password(field: &Field<Source>, context: &mut Context<'_>) -> Option<Password> {
    let (source, origin) = field.found()?;
    let secret = context.secret(source, origin)?;
    Some(match source {
        Source::File(path) => Password::File(context.beside_file(path)),
        Source::Variable(_) | Source::Literal(_) | Source::Given(_) => Password::Fixed(secret),
    })
}

fn tls(table: &file::StoreTls, encryption: Encryption, context: &mut Context<'_>) -> Option<Tls> {
    let fields = [&table.ca, &table.certificate, &table.key];
    let found = fields.map(|field| field.found().map(|(path, origin)| (path.clone(), origin)));
    if encryption == Encryption::None {
        for (_, origin) in found.into_iter().flatten() {
            context.error(origin, "the URL does not begin with rediss; leave it out");
        }
        return None;
    }
    let mut path = |field: Option<(String, &Origin)>| {
        let (path, origin) = field?;
        let path = context.beside_file(Path::new(&path));
        if let Err(error) = std::fs::File::open(&path) {
            context.error(origin, format!("{} cannot be read: {error}", path.display()));
        }
        Some(path)
    };
    let [ca, certificate, key] = found;
    let (of_certificate, of_key) = (table.certificate.found(), table.key.found());
    let (ca, certificate, key) = (path(ca), path(certificate), path(key));
    let client = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            if let Some((_, origin)) = of_certificate.or(of_key) {
                context.error(origin, "a client has both a certificate and a key");
            }
            None
        }
    };
    Some(Tls { ca, client })
}

/// Braces would move the hash tag, by which a cluster puts keys together.
fn key_prefix(table: &file::Store, context: &mut Context<'_>) -> String {
    let is_plain = |prefix: &str| prefix.len() <= 256 && !prefix.contains(['{', '}']);
    match table.key_prefix.found() {
        Some((prefix, _)) if is_plain(prefix) => return prefix.clone(),
        Some((_, origin)) => {
            context.error(origin, "is no prefix; write at most 256 bytes without braces");
        }
        None => {}
    }
    DEFAULT_KEY_PREFIX.to_owned()
}

fn keys(
    table: &file::Session,
    backend: &Backend,
    store: &Origin,
    context: &mut Context<'_>,
) -> Keys {
    let sources = table.keys.values();
    let read: Vec<Key> =
        sources.iter().filter_map(|(source, origin)| key(source, origin, context)).collect();
    if let Some((first, older)) = read.split_first() {
        return Keys::Given(Arc::new(KeyRing::new(first, older)));
    }
    match backend {
        Backend::Sqlite { path } | Backend::File { directory: path } => {
            let [new, old] =
                [AUTO_KEY_FILE, OLD_AUTO_KEY_FILE].map(|name| path.with_file_name(name));
            Keys::BesideData(if !new.exists() && old.exists() { old } else { new })
        }
        Backend::Redis(_) | Backend::Cookies if table.keys.is_unset() => {
            let message = "sessions that are shared need session.keys, the same for every instance; \
                           `cloakroom generate-key` makes one";
            context.error(store, message);
            Keys::InMemory
        }
        Backend::Redis(_) | Backend::Cookies | Backend::Memory => Keys::InMemory,
    }
}

fn key(source: &Source, origin: &Origin, context: &mut Context<'_>) -> Option<Key> {
    let text = context.session_key(source, origin)?;
    let key = keys::parse(&text);
    if key.is_none() {
        context.error(origin, format!("is no session key; {}", keys::RIGHT));
    }
    key
}
