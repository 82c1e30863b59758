//! The listeners, and the limits of connections to them.

use std::net::{IpAddr, Ipv4Addr};

use super::super::file::{self, File};
use super::super::value::Text;
use super::super::{Listen, Role};
use super::context::Context;
use super::tls;
use crate::admin;
use crate::api::config::{self as api_config, can_be_dialled, url_at};
use crate::client::{InvalidTarget, Target};
use crate::net::host;
use crate::net::scheme::Scheme;
use crate::secret::Secret;
use crate::server::{Address, Limits};

/// A listener of this process.
#[derive(Debug)]
pub(super) struct Own {
    /// The key of its address, e.g. `listen[0].address`.
    path: String,
    /// The same without index, for messages.
    pub(super) key: &'static str,
    pub(super) address: Address,
}

/// Builds the public listeners: at least one.
pub(super) fn listen(file: &mut File, context: &mut Context<'_>) -> Vec<Listen> {
    if file.listen.is_empty() {
        file.listen.push(file::Listen::default());
    }
    let trusts = !file.limits.trusted_proxies.is_empty();
    let listeners = file.listen.iter_mut().enumerate();
    let listeners: Vec<Listen> = listeners
        .map(|(index, listen)| {
            let key = format!("listen[{index}]");
            locate(&mut listen.address, context);
            if matches!(listen.address, Address::Tcp(_)) && listen.socket_mode.is_some() {
                let message = "an IP address has no socket file; remove it, or use unix:PATH";
                context.error(&format!("{key}.socket_mode"), message);
            }
            if listen.proxy_protocol && !trusts && !context.is_set("limits.trusted_proxies[0]") {
                let message = "has no effect without trusted proxies; set limits.trusted_proxies";
                context.error(&format!("{key}.proxy_protocol"), message);
            }
            Listen {
                address: listen.address.clone(),
                socket_mode: listen.socket_mode.map(|mode| mode.0),
                proxy_protocol: listen.proxy_protocol,
                role: role(&key, listen, context),
            }
        })
        .collect();
    let is_target = |listen: &Listen| {
        matches!((&listen.role, &listen.address), (Role::Tls(_), Address::Tcp(_)))
    };
    if !listeners.iter().any(is_target) {
        for index in 0..file.listen.len() {
            if file.listen.get(index).is_some_and(|listen| listen.redirect_to_https) {
                let key = format!("listen[{index}].redirect_to_https");
                context.error(&key, "no listener has tls on a port to redirect to");
            }
        }
    }
    listeners
}

fn role(key: &str, listen: &mut file::Listen, context: &mut Context<'_>) -> Role {
    let tls = tls::server(&format!("{key}.tls"), listen.tls.as_mut(), None, context);
    let h2c = format!("{key}.h2c");
    match (tls, listen.redirect_to_https, listen.h2c) {
        (None, false, false) => Role::Http1,
        (None, false, true) => Role::Http1AndH2c,
        (None, true, false) => Role::RedirectToHttps,
        (Some(tls), false, false) => Role::Tls(tls),
        (Some(tls), true, _) => {
            let key = format!("{key}.redirect_to_https");
            context.error(&key, "this listener has tls itself; remove one of them");
            Role::Tls(tls)
        }
        (Some(tls), false, true) => {
            context
                .error(&h2c, "has no effect with tls, where clients negotiate HTTP/2; remove it");
            Role::Tls(tls)
        }
        (None, true, true) => {
            context.error(&h2c, "has no effect on a redirect listener; remove it");
            Role::RedirectToHttps
        }
    }
}

/// Makes the path of a socket absolute.
pub(super) fn locate(address: &mut Address, context: &Context<'_>) {
    match address {
        Address::Unix(path) => context.locate(path),
        Address::Tcp(_) => {}
    }
}

/// Checks the host names that a listener accepts.
pub(super) fn hosts(key: &str, hosts: &[Text], context: &mut Context<'_>) -> Vec<String> {
    for (index, name) in hosts.iter().enumerate() {
        if !host::is_valid_name(name) || name.contains('*') {
            let message =
                "invalid host name; expected one without port, e.g. \"sessions.internal\"";
            context.error(&format!("{key}[{index}]"), message);
        }
    }
    hosts.iter().map(|name| name.0.clone()).collect()
}

/// Builds the session API.
pub(super) fn api(api: &mut file::Api, context: &mut Context<'_>) -> api_config::Config {
    locate(&mut api.address, context);
    check_prefix(&mut api.prefix, context);
    let tls = api_tls(api, context);
    let scheme = if tls.is_some() { Scheme::Https } else { Scheme::Http };
    let url = url(api, scheme, context);
    let service_token = api.service_token.as_ref();
    let service_token = service_token.and_then(|source| context.token("api.service_token", source));
    let instance_url = instance_url(api, scheme, context);
    api.instance_url = instance_url.as_ref().map(|url| Text(url.to_string()));
    api_config::Config {
        address: api.address.clone(),
        tls,
        url,
        instance_url,
        hosts: hosts("api.hosts", &api.hosts, context),
        prefix: api.prefix.0.clone(),
        service_token,
    }
}

fn api_tls(api: &mut file::Api, context: &mut Context<'_>) -> Option<api_config::Tls> {
    let listener = tls::server("api.tls", api.tls.as_mut(), api.client_ca.as_mut(), context);
    if !context.is_set("api.tls") {
        let message = "has no effect without TLS on the API; set api.tls too, or remove it";
        context.refuse(&["api.client_ca", "api.instance_tls"], message);
    }
    let instances = api.instance_tls.as_mut();
    let instances = instances.map(|tls| tls::client("api.instance_tls", tls, context));
    Some(api_config::Tls { listener: listener?, instances: instances.unwrap_or_default() })
}

/// Reads the secret that the proxy shares with its sites.
pub(super) fn client_secret(api: &file::Api, context: &mut Context<'_>) -> Option<Secret> {
    /// Sites have no reason for a shorter key of HMAC-SHA-256 than its output (RFC 2104, section 3).
    const MIN_BYTES: usize = 32;
    let key = "api.client_secret";
    let secret = context.secret(key, api.client_secret.as_ref()?)?;
    let length = secret.reveal().len();
    if length < MIN_BYTES {
        let message = format!(
            "is too short ({length} bytes); expected at least {MIN_BYTES}, e.g. those that \
             `cloakroom generate-key` prints"
        );
        context.error(key, message);
        return None;
    }
    Some(secret)
}

fn check_prefix(prefix: &mut Text, context: &mut Context<'_>) {
    let is_plain = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    };
    if !prefix.strip_prefix('/').is_some_and(|segments| segments.split('/').all(is_plain)) {
        let message = "invalid prefix; expected a slash and segments of letters, digits, -, ., _ and ~, \
                       without a slash at the end, e.g. \"/_session\"";
        context.error("api.prefix", message);
        *prefix = api_config::Config::DEFAULT_PREFIX.into();
    }
}

fn url(api: &mut file::Api, scheme: Scheme, context: &mut Context<'_>) -> String {
    let Some(Text(url)) = &api.url else {
        let url = url_at(&api.address, scheme, &api.prefix).unwrap_or_else(|| {
            let message = "upstreams cannot connect to a wildcard address; set api.url to where they \
                           reach this listener, e.g. \"http://10.0.0.7:8081/_session\"";
            context.error("api.address", message);
            String::new()
        });
        api.url = Some(Text(url.clone()));
        return url;
    };
    let schemes = ["http://", "https://", "http+unix://"];
    let rest = schemes.iter().find_map(|scheme| url.strip_prefix(scheme));
    let is_plain = |rest: &str| {
        !rest.starts_with('/')
            && !rest.is_empty()
            && rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#@\"<>\\".contains(&byte))
    };
    if !rest.is_some_and(is_plain) {
        let message = "invalid URL for upstreams; expected \"http://HOST:PORT/_session\", without \
                       user, query or fragment";
        context.error("api.url", message);
    }
    let url = url.trim_end_matches('/').to_owned();
    if !url.ends_with(&*api.prefix) {
        let prefix = &*api.prefix;
        context.warn("api.url", format!("does not end with the API's prefix, {prefix}"));
    }
    api.url = Some(Text(url.clone()));
    url
}

fn instance_url(api: &file::Api, scheme: Scheme, context: &mut Context<'_>) -> Option<Target> {
    let url = api.instance_url.as_ref()?;
    let wrong = match url.parse() {
        Ok(Target::Http { scheme: Scheme::Https, .. }) if scheme == Scheme::Http => {
            "is https, which the API needs api.tls for"
        }
        Ok(Target::Http { scheme: Scheme::Http, .. }) if scheme == Scheme::Https => {
            "is http, and the API has TLS"
        }
        Ok(target) if can_be_dialled(&target) => return Some(target),
        Ok(Target::Http { .. }) => "is a wildcard address, or too long",
        Err(InvalidTarget::Path) => "has more than a host and a port",
        Err(InvalidTarget::User) => "has a user or a password",
        Ok(Target::Unix(_)) | Err(InvalidTarget::Malformed) => "invalid URL for other hosts",
    };
    let right = "expected where other instances reach this one, e.g. \"http://10.0.0.7:8081\"";
    context.error("api.instance_url", format!("{wrong}; {right}"));
    None
}

/// Lists every address that this process listens at.
pub(super) fn own(
    listen: &[Listen],
    api: &api_config::Config,
    admin: &admin::config::Config,
) -> Vec<Own> {
    let public = listen.iter().enumerate().map(|(index, listen)| Own {
        path: format!("listen[{index}].address"),
        key: "listen.address",
        address: listen.address.clone(),
    });
    let other = |key: &'static str, address: &Address| Own {
        path: key.to_owned(),
        key,
        address: address.clone(),
    };
    public
        .chain([other("api.address", &api.address), other("admin.address", &admin.address)])
        .collect()
}

/// Checks that no two listeners have one address.
pub(super) fn check_distinct(own: &[Own], context: &mut Context<'_>) {
    for (index, listener) in own.iter().enumerate() {
        let mut earlier = own.iter().take(index);
        if let Some(other) = earlier.find(|other| overlap(&listener.address, &other.address)) {
            let place = context.place(&other.path).mention();
            let message =
                format!("is taken by {} ({place}); choose another port or path", other.key);
            context.error(&listener.path, message);
        }
    }
}

/// Returns whether the system refuses to bind both; port 0 is another one each time.
fn overlap(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Tcp(one), Address::Tcp(other)) => {
            let wide =
                |ip: IpAddr, to: IpAddr| ip.is_unspecified() && (ip.is_ipv6() || to.is_ipv4());
            one.port() == other.port()
                && one.port() != 0
                && (one.ip() == other.ip()
                    || wide(one.ip(), other.ip())
                    || wide(other.ip(), one.ip()))
        }
        (one, other) => one == other,
    }
}

/// Returns whether a connection to `target` would reach a listener at `address`, without resolving names.
pub(super) fn reaches(target: &Target, address: &Address) -> bool {
    match (target, address) {
        (Target::Unix(path), Address::Unix(own)) => path == own,
        (Target::Http { host, port, .. }, Address::Tcp(own)) => {
            let ip = match host.as_str() {
                "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                host => host.parse().ok(),
            };
            ip.is_some_and(|ip| {
                *port == own.port()
                    && (ip == own.ip() || (own.ip().is_unspecified() && ip.is_loopback()))
            })
        }
        _ => false,
    }
}

/// Builds the limits of client connections.
pub(super) fn limits(limits: &file::Limits) -> Limits {
    Limits {
        connections: limits.connections.0,
        connections_per_address: limits.connections_per_address.map(|count| count.0),
        header_timeout: limits.header_timeout.0,
        header_bytes: limits.header_bytes.0,
        headers: limits.headers.0,
        body_idle_timeout: limits.body_idle_timeout.0,
        idle_timeout: limits.idle_timeout.0,
        predrain: limits.predrain.0,
        drain_timeout: limits.drain_timeout.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_overlap_every_address() {
        for (one, other, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("unix:/a", "unix:/a", true),
            ("unix:/a", "unix:/b", false),
            ("unix:/a", "127.0.0.1:80", false),
        ] {
            let (a, b): (Address, Address) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(overlap(&a, &b), expected, "{one} {other}");
            assert_eq!(overlap(&b, &a), expected, "{other} {one}");
        }
    }

    #[test]
    fn own_listeners_are_recognised_as_upstreams() {
        for (target, address, expected) in [
            ("http://127.0.0.1:80", "127.0.0.1:80", true),
            ("http://localhost", "127.0.0.1:80", true),
            ("http://127.0.0.1:80", "0.0.0.0:80", true),
            ("http://[::1]:80", "[::]:80", true),
            ("http://127.0.0.1:81", "0.0.0.0:80", false),
            ("http://10.0.0.1:80", "0.0.0.0:80", false),
            ("http://app:80", "0.0.0.0:80", false),
            ("unix:/a", "unix:/a", true),
            ("unix:/a", "127.0.0.1:80", false),
        ] {
            let reached = reaches(&target.parse().unwrap(), &address.parse().unwrap());
            assert_eq!(reached, expected, "{target} {address}");
        }
    }
}
