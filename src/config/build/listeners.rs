//! The listeners, and what connections to them may take.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::super::field::{Field, List, Tables};
use super::super::file::{self, File};
use super::super::problem::Origin;
use super::super::{Listen, Role};
use super::context::{Context, TRANSPORT};
use super::tls;
use crate::admin;
use crate::api::config::{self as api_config, can_be_dialled, url_at};
use crate::client::{InvalidTarget, Target};
use crate::net::host;
use crate::net::scheme::Scheme;
use crate::secret::Secret;
use crate::server::{Address, Limits};

const PUBLIC: SocketAddr = loopback(8080);
const API: SocketAddr = loopback(8081);
const ADMIN: SocketAddr = loopback(8082);

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// The public listeners: at least one.
pub(super) fn listen(
    tables: &Tables<file::Listen>,
    limits: &file::Limits,
    context: &mut Context<'_>,
) -> Vec<Listen> {
    if tables.sections().is_empty() {
        return vec![Listen {
            address: Address::Tcp(PUBLIC),
            socket_mode: None,
            proxy_protocol: false,
            role: Role::Http1,
        }];
    }
    let listener = |(table, _): &(file::Listen, Origin)| {
        let address = address(&table.address, PUBLIC, context);
        if let (Address::Tcp(_), Some((_, origin))) = (&address, table.socket_mode.found()) {
            let message = "an IP address has no socket file; leave it out, or listen at unix:PATH";
            context.error(origin, message);
        }
        let socket_mode = table.socket_mode.value().map(|mode| mode.0);
        let proxy_protocol = table.proxy_protocol.found();
        if let Some((true, origin)) = proxy_protocol
            && limits.trusted_proxies.values().is_empty()
        {
            let message =
                "nobody is trusted to say whose a connection is; set limits.trusted_proxies";
            context.error(origin, message);
        }
        let proxy_protocol = proxy_protocol.is_some_and(|(wanted, _)| *wanted);
        Listen { address, socket_mode, proxy_protocol, role: role(table, context) }
    };
    let listeners: Vec<Listen> = tables.sections().iter().map(listener).collect();
    let is_target = |listen: &Listen| {
        matches!((&listen.role, &listen.address), (Role::Tls(_), Address::Tcp(_)))
    };
    if !listeners.iter().any(is_target) {
        for (table, _) in tables.sections() {
            if let Some((true, origin)) = table.redirect_to_https.found() {
                let message = "there is no listener with tls at a port to send clients to";
                context.error(origin, message);
            }
        }
    }
    listeners
}

fn role(table: &file::Listen, context: &mut Context<'_>) -> Role {
    let redirects = table.redirect_to_https.found().filter(|(redirects, _)| **redirects);
    let h2c = table.h2c.found().filter(|(h2c, _)| **h2c);
    let tls = tls::server(&table.tls, &Field::Unset, context);
    match (tls, redirects, h2c) {
        (None, None, None) => Role::Http1,
        (None, None, Some(_)) => Role::Http1AndH2c,
        (None, Some(_), None) => Role::RedirectToHttps,
        (Some(tls), None, None) => Role::Tls(tls),
        (Some(tls), Some((_, origin)), _) => {
            context.error(origin, "this listener has tls itself; leave one of them out");
            Role::Tls(tls)
        }
        (Some(tls), None, Some((_, origin))) => {
            context.error(origin, "with tls a client has HTTP/2 if it asks; leave it out");
            Role::Tls(tls)
        }
        (None, Some(_), Some((_, origin))) => {
            context.error(origin, "nobody is served here; leave it out");
            Role::RedirectToHttps
        }
    }
}

fn address(field: &Field<Address>, default: SocketAddr, context: &Context<'_>) -> Address {
    match field.value() {
        None => Address::Tcp(default),
        Some(Address::Unix(path)) => Address::Unix(context.beside_file(path)),
        Some(address) => address.clone(),
    }
}

/// The admin listener.
pub(super) fn admin(table: &file::Admin, context: &mut Context<'_>) -> admin::config::Config {
    let address = address(&table.address, ADMIN, context);
    admin::config::Config { address, hosts: hosts(&table.hosts, context) }
}

/// Names that a listener answers to.
fn hosts(list: &List<String>, context: &mut Context<'_>) -> Vec<String> {
    for (name, origin) in list.values() {
        if !host::is_valid_name(name) || name.contains('*') {
            let message =
                "is not a host name; write one without a port, e.g. \"sessions.internal\"";
            context.error(origin, message);
        }
    }
    list.values().iter().map(|(name, _)| name.clone()).collect()
}

/// The session API.
pub(super) fn api(table: &file::Api, context: &mut Context<'_>) -> api_config::Config {
    let address = address(&table.address, API, context);
    let prefix = prefix(&table.prefix, context);
    let tls = api_tls(table, context);
    let scheme = if tls.is_some() { Scheme::Https } else { Scheme::Http };
    let url = url(table, (&address, scheme), &prefix, context);
    let token = table.service_token.found();
    let service_token = token.and_then(|(source, origin)| {
        let secret = context.secret(source, origin)?;
        check_token(&secret, origin, context);
        Some(secret)
    });
    let instance_url = instance_url(&table.instance_url, scheme, context);
    let hosts = hosts(&table.hosts, context);
    api_config::Config { address, tls, url, instance_url, hosts, prefix, service_token }
}

fn api_tls(table: &file::Api, context: &mut Context<'_>) -> Option<api_config::Tls> {
    let listener = tls::server(&table.tls, &table.client_ca, context);
    if listener.is_none() && table.tls.sections().is_empty() {
        let keys = [
            table.client_ca.found().map(|(_, origin)| origin),
            table.instance_tls.found().map(|(_, origin)| origin),
        ];
        for origin in keys.into_iter().flatten() {
            context.error(origin, "there is no TLS on the API; set api.tls too, or leave it out");
        }
    }
    let instances = table.instance_tls.found();
    let instances = instances.map(|(tls, origin)| tls::client(tls, origin, context));
    Some(api_config::Tls { listener: listener?, instances: instances.unwrap_or_default() })
}

/// It comes in a header, and stands between a stranger and all sessions.
fn check_token(token: &Secret, origin: &Origin, context: &mut Context<'_>) {
    if !token.reveal().bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = "no header can carry it; write letters, digits and signs without spaces, \
                       as `cloakroom generate-key` prints";
        context.error(origin, message);
    } else if token.reveal().len() < 16 {
        let message = "is short enough to be guessed; `cloakroom generate-key` prints a better one";
        context.warn(origin, message);
    }
}

fn prefix(field: &Field<String>, context: &mut Context<'_>) -> String {
    let default = || api_config::Config::DEFAULT_PREFIX.to_owned();
    let Some((prefix, origin)) = field.found() else {
        return default();
    };
    let is_plain = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    };
    match prefix.strip_prefix('/') {
        Some(segments) if segments.split('/').all(is_plain) => prefix.clone(),
        _ => {
            let message = "is no prefix; write a slash and one segment or more of letters, digits, \
                           -, ., _ and ~, without a slash at the end, as \"/_session\"";
            context.error(origin, message);
            default()
        }
    }
}

fn url(
    table: &file::Api,
    (address, scheme): (&Address, Scheme),
    prefix: &str,
    context: &mut Context<'_>,
) -> String {
    let Some((url, origin)) = table.url.found() else {
        return url_at(address, scheme, prefix).unwrap_or_else(|| {
            let origin = table.address.origin("api.address");
            let message = "upstreams cannot be told a wildcard address; set api.url to where they \
                           reach this listener, as \"http://10.0.0.7:8081/_session\"";
            context.error(&origin, message);
            String::new()
        });
    };
    let schemes = ["http://", "https://", "http+unix://"];
    let rest = schemes.iter().find_map(|scheme| url.strip_prefix(scheme));
    let is_plain = |rest: &str| {
        !rest.starts_with('/')
            && !rest.is_empty()
            && rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#@\"<>\\".contains(&byte))
    };
    if !rest.is_some_and(is_plain) {
        let message = "is no URL that upstreams can be told; write \"http://HOST:PORT/_session\", \
                       without user, query or fragment";
        context.error(origin, message);
    }
    let url = url.trim_end_matches('/');
    if !url.ends_with(prefix) {
        let message =
            format!("does not end with the API's prefix; mostly it is to end with {prefix}");
        context.warn(origin, message);
    }
    url.to_owned()
}

fn instance_url(
    field: &Field<String>,
    speaks: Scheme,
    context: &mut Context<'_>,
) -> Option<Target> {
    let (url, origin) = field.found()?;
    let wrong = match url.parse() {
        Ok(Target::Http { scheme: Scheme::Https, .. }) if speaks == Scheme::Http => {
            "asks for TLS, which the API has with api.tls alone"
        }
        Ok(Target::Http { scheme: Scheme::Http, .. }) if speaks == Scheme::Https => {
            "is in the clear, and the API has TLS"
        }
        Ok(target) if can_be_dialled(&target) => return Some(target),
        Ok(Target::Http { .. }) => "is a wildcard address, or too long",
        Err(InvalidTarget::Path) => "has more than a host and a port",
        Err(InvalidTarget::User) => "has a user or a password",
        Ok(Target::Unix(_)) | Err(InvalidTarget::Malformed) => "is no URL of another host's",
    };
    let right = "write where other instances reach this one, as \"http://10.0.0.7:8081\"";
    context.error(origin, format!("{wrong}; {right}"));
    None
}

/// Every address that this process listens at, and where it is set.
pub(super) fn own(
    file: &File,
    listen: &[Listen],
    api: &api_config::Config,
    admin: &admin::config::Config,
) -> Vec<(Origin, Address)> {
    let set =
        file.listen.sections().iter().map(|(table, _)| table.address.origin("listen.address"));
    let origins = set.chain(std::iter::repeat(Origin::unset("listen.address")));
    let public = listen.iter().map(|listen| listen.address.clone());
    let mut own: Vec<_> = origins.zip(public).collect();
    own.push((file.api.0.address.origin("api.address"), api.address.clone()));
    own.push((file.admin.0.address.origin("admin.address"), admin.address.clone()));
    own
}

/// No two listeners have one address.
pub(super) fn check_apart(own: &[(Origin, Address)], context: &mut Context<'_>) {
    for (index, (origin, address)) in own.iter().enumerate() {
        let earlier = own.iter().take(index).find(|(_, other)| overlap(address, other));
        if let Some((other, _)) = earlier {
            let whose = format!("{} ({})", other.key, other.place.mention());
            context.error(origin, format!("is taken by {whose}; write another port or path"));
        }
    }
}

/// Whether the system refuses to bind both; port 0 is another one each time.
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

/// Whether a connection to `target` comes to a listener at `address`, as far as its text tells.
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

/// What a client's connection may take.
pub(super) fn limits(table: &file::Limits, context: &mut Context<'_>) -> Limits {
    let default = Limits::default();
    let to_drain = Duration::ZERO..=*TRANSPORT.end();
    Limits {
        connections: context.count(&table.connections, default.connections, &(1..=1_000_000)),
        connections_per_address: table
            .connections_per_address
            .found()
            .map(|_| context.count(&table.connections_per_address, 1, &(1..=1_000_000))),
        header_timeout: context.duration(&table.header_timeout, default.header_timeout, &TRANSPORT),
        header_bytes: context.size(
            &table.header_bytes,
            default.header_bytes,
            &(1024..=1024 * 1024),
        ),
        headers: context.count(&table.headers, default.headers, &(8..=10_000)),
        body_idle_timeout: context.duration(
            &table.body_idle_timeout,
            default.body_idle_timeout,
            &TRANSPORT,
        ),
        idle_timeout: context.duration(&table.idle_timeout, default.idle_timeout, &TRANSPORT),
        predrain: context.duration(&table.predrain, default.predrain, &to_drain),
        drain_timeout: context.duration(&table.drain_timeout, default.drain_timeout, &to_drain),
    }
}

/// Whose forwarding headers are believed.
pub(super) fn trusted_proxies(table: &file::Limits) -> Vec<IpNet> {
    table.trusted_proxies.values().iter().map(|(network, _)| *network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_takes_the_port_of_every_address() {
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
    fn an_upstream_that_is_a_listener_of_ours_is_seen() {
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
