//! The effective configuration as TOML, with every secret hidden.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::value::{Word, write_duration, write_size};
use super::{Config, Keys, Role};
use crate::client::{ServerTrust, TlsConfig};
use crate::proxy::config::{Encoding, PrincipalHeader, RouteConfig};
use crate::proxy::route::HostPattern;
use crate::server;
use crate::session::policy::Policy;
use crate::store::config::{Address, Backend, DurableDestroy, Redis, Topology};
use crate::telemetry;

/// What stands in a secret's place.
const HIDDEN: &str = "[hidden]";

/// The configuration in the order of `config.example.toml`.
pub(super) fn toml(config: &Config) -> String {
    let mut page = Page(String::new());
    listeners(&mut page, config);
    session(&mut page, config);
    cookie(&mut page, config);
    store(&mut page, config);
    page.section("[log]");
    page.word("format", config.log.format);
    page.word("level", config.log.level);
    page.plain("access", config.log.access);
    if let Some(config) = &config.telemetry {
        page.section("[telemetry]");
        telemetry(&mut page, config);
    }
    for route in &config.proxy.routes {
        page.section("[[route]]");
        route_of(&mut page, route);
    }
    page.0
}

fn role(page: &mut Page, role: &Role) {
    match role {
        Role::Http1 => {}
        Role::Http1AndH2c => page.plain("h2c", true),
        Role::RedirectToHttps => page.plain("redirect_to_https", true),
        Role::Tls(tls) => server_tls(page, tls),
    }
}

fn server_tls(page: &mut Page, tls: &server::TlsConfig) {
    let path = |path: &Path| quoted(&path.display().to_string());
    let identities = tls.identities.iter().map(|identity| {
        let (certificate, key) = (path(&identity.certificate), path(&identity.key));
        format!("{{ certificate = {certificate}, key = {key} }}")
    });
    let identities = identities.collect::<Vec<_>>().join(", ");
    page.plain("tls", format_args!("[{identities}]"));
    if let Some(authorities) = &tls.client_authorities {
        page.text("client_ca", authorities.display());
    }
}

fn listeners(page: &mut Page, config: &Config) {
    for listen in &config.listen {
        page.section("[[listen]]");
        page.text("address", &listen.address);
        if let Some(mode) = listen.socket_mode {
            page.text("socket_mode", format_args!("{mode:04o}"));
        }
        if listen.proxy_protocol {
            page.plain("proxy_protocol", true);
        }
        role(page, &listen.role);
    }
    limits(page, config);
    api(page, config);
    page.section("[admin]");
    page.text("address", &config.admin.address);
    page.list("hosts", config.admin.hosts.iter().map(String::as_str));
}

fn limits(page: &mut Page, config: &Config) {
    let limits = &config.limits;
    let trusted: Vec<String> =
        config.proxy.trusted_proxies.iter().map(|network| quoted(&network.to_string())).collect();
    page.section("[limits]");
    page.plain("trusted_proxies", format_args!("[{}]", trusted.join(", ")));
    let stripped = config.proxy.strip_request_headers.iter().map(HeaderName::as_str);
    page.list("strip_request_headers", stripped);
    let kept = config.proxy.keep_request_headers.iter().map(HeaderName::as_str);
    page.list("keep_request_headers", kept);
    page.plain("connections", limits.connections);
    if let Some(connections) = limits.connections_per_address {
        page.plain("connections_per_address", connections);
    }
    if let Some(sessions) = config.policy.new_sessions_per_address {
        page.plain("new_sessions_per_address", sessions);
    }
    page.duration("header_timeout", limits.header_timeout);
    page.text("header_bytes", write_size(limits.header_bytes));
    page.plain("headers", limits.headers);
    page.duration("body_idle_timeout", limits.body_idle_timeout);
    page.duration("idle_timeout", limits.idle_timeout);
    page.duration("predrain", limits.predrain);
    page.duration("drain_timeout", limits.drain_timeout);
}

fn api(page: &mut Page, config: &Config) {
    page.section("[api]");
    page.text("address", &config.api.address);
    if let Some(tls) = &config.api.tls {
        server_tls(page, &tls.listener);
        client_tls(page, "instance_tls", &tls.instances);
    }
    page.text("url", &config.api.url);
    if let Some(url) = &config.api.instance_url {
        page.text("instance_url", url);
    }
    page.list("hosts", config.api.hosts.iter().map(String::as_str));
    page.text("prefix", &config.api.prefix);
    if config.api.service_token.is_some() {
        page.text("service_token", HIDDEN);
    }
    page.duration("request_token_linger", config.policy.request_token_linger);
}

fn session(page: &mut Page, config: &Config) {
    let policy: &Policy = &config.policy;
    page.section("[session]");
    match &config.keys {
        Keys::Given(_) => page.plain("keys", format_args!("[{}]", quoted(HIDDEN))),
        Keys::BesideData(path) => page.comment(format_args!("the key is {}", path.display())),
        Keys::InMemory => page.comment("the key lives as long as the process"),
    }
    page.duration("idle_timeout", policy.idle_timeout);
    page.duration_or_never("absolute_timeout", policy.absolute_timeout);
    page.duration_or_never("unproven_timeout", policy.unproven_timeout);
    page.duration_or_never("rotate_every", policy.rotate_every);
    page.duration("rotation_grace", policy.rotation_grace);
    page.word("on_replay", policy.on_replay);
    page.plain("expire_at_browser_close", policy.expire_at_browser_close);
    page.word("create", policy.create);
    page.word("touch", policy.touch);
    page.duration("touch_interval", policy.touch_interval);
    page.text("max_bytes", write_size(policy.max_bytes));
    page.plain("max_values", policy.max_values);
    if let Some(max) = policy.max_per_principal {
        page.plain("max_per_principal", max);
    }
    page.word("at_max_per_principal", policy.at_max_per_principal);
    page.plain("record_client", policy.record_client);
}

fn cookie(page: &mut Page, config: &Config) {
    let cookie = &config.cookie;
    page.section("[cookie]");
    page.text("name", &cookie.name);
    page.text("path", &cookie.path);
    if let Some(domain) = &cookie.domain {
        page.text("domain", domain);
    }
    page.plain("secure", cookie.secure);
    page.plain("http_only", cookie.http_only);
    page.word("same_site", cookie.same_site);
    page.plain("partitioned", cookie.partitioned);
}

fn store(page: &mut Page, config: &Config) {
    page.section("[store]");
    match &config.store.backend {
        Backend::Memory => page.text("url", "memory:"),
        Backend::Sqlite { path } => page.text("url", format_args!("sqlite:{}", path.display())),
        Backend::File { directory } => {
            page.text("url", format_args!("file:{}", directory.display()));
        }
        Backend::Redis(redis) => store_redis(page, redis),
        Backend::Cookies => {
            page.text("url", "cookie:");
            page.plain("accept_no_revocation", true);
        }
    }
    page.duration("timeout", config.store.timeout);
    page.word("on_error", config.store.on_error);
    if let Some(bytes) = config.store.cache {
        page.plain("cache", format_args!("{{ max_bytes = {} }}", quoted(&write_size(bytes))));
    }
}

fn store_redis(page: &mut Page, redis: &Redis) {
    page.text("url", redis_url(redis));
    if redis.password.is_some() {
        page.text("password", HIDDEN);
    }
    if redis.sentinel_password.is_some() {
        page.text("sentinel_password", HIDDEN);
    }
    if let Some(tls) = &redis.tls {
        let client = tls.client.as_ref();
        let files = [
            ("ca", tls.ca.as_ref()),
            ("certificate", client.map(|client| &client.certificate)),
            ("key", client.map(|client| &client.key)),
        ];
        let files = files.into_iter().filter_map(|(key, path)| Some((key, path?)));
        let files: Vec<String> = files
            .map(|(key, path)| format!("{key} = {}", quoted(&path.display().to_string())))
            .collect();
        page.plain("tls", format_args!("{{ {} }}", files.join(", ")));
    }
    page.text("key_prefix", &redis.key_prefix);
    match redis.durable_destroy {
        DurableDestroy::Auto => {}
        DurableDestroy::On => page.plain("durable_destroy", true),
        DurableDestroy::Off => page.plain("durable_destroy", false),
    }
}

fn redis_url(redis: &Redis) -> String {
    let encoded = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    let user = redis.user.as_deref().map_or_else(String::new, |user| encoded(user) + "@");
    let scheme = if redis.tls.is_some() { "rediss" } else { "redis" };
    let joined = |addresses: &[Address]| {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    let database = redis.database;
    match &redis.topology {
        Topology::Server(Address::Unix(path)) => {
            format!("{scheme}+unix://{user}{}?db={database}", path.display())
        }
        Topology::Server(address) => format!("{scheme}://{user}{address}/{database}"),
        Topology::Sentinel { sentinels, service } => {
            let (sentinels, service) = (joined(sentinels), encoded(service));
            format!("{scheme}+sentinel://{user}{sentinels}/{service}?db={database}")
        }
        Topology::Cluster { nodes } => format!("{scheme}+cluster://{user}{}", joined(nodes)),
    }
}

fn route_of(page: &mut Page, route: &RouteConfig) {
    match &route.host {
        Some(HostPattern::Exact(host)) => page.text("host", host),
        Some(HostPattern::Below(host)) => page.text("host", format_args!("*{host}")),
        None => {}
    }
    page.text("path", &route.path);
    upstreams(page, route);
    page.word("session", route.session);
    page.plain("header_exchange", route.header_exchange.is_some());
    if let Some(bytes) = route.header_exchange {
        page.text("header_exchange_max_bytes", write_size(bytes));
    }
    if let Some(PrincipalHeader { name, encoding }) = &route.principal_header {
        match encoding {
            Encoding::Percent => page.text("principal_header", name),
            Encoding::Utf8 => {
                let (name, encoding) = (quoted(name.as_str()), quoted(encoding.word()));
                let header = format_args!("{{ name = {name}, encoding = {encoding} }}");
                page.plain("principal_header", header);
            }
        }
    }
    if let Some(login) = &route.require_principal {
        page.text("require_principal", login.text());
    }
    headers(page, "request_headers", &route.request_headers);
    page.word("on_error", route.on_error);
    if let Some(bytes) = route.max_body {
        page.text("max_body", write_size(usize::try_from(bytes).unwrap_or(usize::MAX)));
    }
    let rate = usize::try_from(route.min_body_rate.unwrap_or(0)).unwrap_or(usize::MAX);
    page.text("min_body_rate", write_size(rate));
    if let Some(requests) = route.upstream_requests {
        page.plain("upstream_requests", requests);
    }
    page.duration("connect_timeout", route.connect_timeout);
    page.duration("response_timeout", route.response_timeout);
    page.duration("stream_idle_timeout", route.stream_idle_timeout);
    page.word("tunnels", route.tunnels);
    page.duration("tunnel_idle_timeout", route.tunnel_idle_timeout);
    page.duration("upstream_idle_timeout", route.upstream_idle_timeout);
}

fn upstreams(page: &mut Page, route: &RouteConfig) {
    match route.upstreams.as_slice() {
        [one] => page.text("upstream", one),
        several => {
            let several: Vec<String> = several.iter().map(|one| quoted(&one.to_string())).collect();
            page.plain("upstream", format_args!("[{}]", several.join(", ")));
        }
    }
    if let Some(check) = &route.health {
        page.text("health_path", &check.path);
        page.duration("health_interval", check.interval);
    }
    page.word("upstream_protocol", route.upstream_protocol);
    client_tls(page, "upstream_tls", &route.upstream_tls);
}

fn telemetry(page: &mut Page, config: &telemetry::Config) {
    page.text("otlp_url", &config.collector);
    headers(page, "otlp_headers", &config.headers);
    client_tls(page, "tls", &config.tls);
    page.text("service_name", &config.service_name);
    page.plain("sample_ratio", config.sample_ratio);
}

fn headers(page: &mut Page, key: &str, headers: &[(HeaderName, HeaderValue)]) {
    let hidden = |name: &HeaderName| format!("{} = {}", quoted(name.as_str()), quoted(HIDDEN));
    let headers: Vec<String> = headers.iter().map(|(name, _)| hidden(name)).collect();
    if !headers.is_empty() {
        page.plain(key, format_args!("{{ {} }}", headers.join(", ")));
    }
}

fn client_tls(page: &mut Page, key: &str, tls: &TlsConfig) {
    let path = |path: &Path| quoted(&path.display().to_string());
    let identity = tls.identity.as_ref();
    let parts = [
        ("ca", if let ServerTrust::File(ca) = &tls.trust { Some(path(ca)) } else { None }),
        ("verify", (tls.trust == ServerTrust::Insecure).then(|| "false".to_owned())),
        ("name", tls.name.as_deref().map(quoted)),
        ("certificate", identity.map(|identity| path(&identity.certificate))),
        ("key", identity.map(|identity| path(&identity.key))),
    ];
    let parts = parts.into_iter().filter_map(|(part, value)| Some(format!("{part} = {}", value?)));
    let parts: Vec<String> = parts.collect();
    if !parts.is_empty() {
        page.plain(key, format_args!("{{ {} }}", parts.join(", ")));
    }
}

/// TOML that is being written. Writing to a `String` cannot fail.
struct Page(String);

impl Page {
    fn section(&mut self, head: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        let _ = writeln!(self.0, "{gap}{head}");
    }

    fn comment(&mut self, text: impl fmt::Display) {
        let _ = writeln!(self.0, "# {}", text.to_string().escape_debug());
    }

    fn plain(&mut self, key: &str, value: impl fmt::Display) {
        let _ = writeln!(self.0, "{key} = {value}");
    }

    fn text(&mut self, key: &str, value: impl fmt::Display) {
        self.plain(key, quoted(&value.to_string()));
    }

    /// Values in a row; without any, the key is left out.
    fn list<'a>(&mut self, key: &str, values: impl Iterator<Item = &'a str>) {
        let values: Vec<String> = values.map(quoted).collect();
        if !values.is_empty() {
            self.plain(key, format_args!("[{}]", values.join(", ")));
        }
    }

    fn word(&mut self, key: &str, value: impl Word) {
        self.text(key, value.word());
    }

    fn duration(&mut self, key: &str, duration: Duration) {
        self.text(key, write_duration(duration));
    }

    fn duration_or_never(&mut self, key: &str, duration: Option<Duration>) {
        self.text(key, duration.map_or_else(|| "never".to_owned(), write_duration));
    }
}

/// A basic string (TOML 1.0).
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(control));
            }
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}
