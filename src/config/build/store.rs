//! Where records live, and the keys that go with them.

use std::sync::Arc;
use std::time::Duration;

use super::super::file::{self, File};
use super::super::keys::{self, Keys};
use super::super::problem::{Origin, Place};
use super::super::secret::Source;
use super::context::Context;
use super::store_url::{self, StoreUrl};
use crate::session::key_ring::{Key, KeyRing};
use crate::store::config::{Backend, Config, OnError, RedisUrl};

const DEFAULT_URL: &str = "sqlite:cloakroom.db";
const DEFAULT_KEY_PREFIX: &str = "cloakroom:";
/// The key that an embedded store makes, beside its data.
const KEY_FILE: &str = "session-key";

/// The store, and where its keys come from.
pub(super) fn store(file: &File, context: &mut Context<'_>) -> (Config, Keys) {
    let table = &file.store.0;
    let config = Config {
        backend: backend(table, context),
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
        Ok(StoreUrl::Redis(url)) => return redis(url, table, &origin, context),
        Ok(StoreUrl::Memory) => None,
        Ok(StoreUrl::Sqlite(path)) => context.in_state(&path, &origin),
        Err(message) => {
            context.error(&origin, message);
            return Backend::Memory;
        }
    };
    if let Some((_, origin)) = table.password.found() {
        context.error(origin, "only a redis store has a password; leave it out");
    }
    parsed.map_or(Backend::Memory, |path| Backend::Sqlite { path })
}

fn redis(
    mut url: RedisUrl,
    table: &file::Store,
    origin: &Origin,
    context: &mut Context<'_>,
) -> Backend {
    if url.password.is_some() && matches!(origin.place, Place::File { .. }) {
        let message = "the password stands in the file, for all who read it; \
                       write password = { file = \"…\" } or { env = \"NAME\" }";
        context.warn(origin, message);
    }
    if let Some((source, origin)) = table.password.found() {
        if url.password.is_some() {
            context.error(origin, "the URL has a password too; leave one of them out");
        }
        url.password = context.secret(source, origin);
    }
    let key_prefix = key_prefix(table, context);
    Backend::Redis { url, key_prefix }
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
        Backend::Sqlite { path } => Keys::BesideData(path.with_file_name(KEY_FILE)),
        Backend::Redis { .. } if sources.is_empty() => {
            let message = "a shared store needs session.keys, the same for every instance; \
                           `cloakroom generate-key` makes one";
            context.error(store, message);
            Keys::InMemory
        }
        Backend::Redis { .. } | Backend::Memory => Keys::InMemory,
    }
}

fn key(source: &Source, origin: &Origin, context: &mut Context<'_>) -> Option<Key> {
    let text = context.secret_in_state(source, origin)?;
    let key = keys::parse(&text);
    if key.is_none() {
        context.error(origin, format!("is no session key; {}", keys::RIGHT));
    }
    key
}
