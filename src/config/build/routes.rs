//! Which requests go where.

use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};

use super::super::field::{Field, Tables};
use super::super::file;
use super::super::problem::Origin;
use super::super::value::{self, Size, Upstreams};
use super::context::{Context, Site, TRANSPORT};
use super::listeners::reaches;
use super::{headers, tls};
use crate::client::{self, HealthCheck, Target, TlsConfig, UpstreamProtocol};
use crate::net::scheme::Scheme;
use crate::proxy::config::{PrincipalHeader, RouteConfig, Session, Tunnels};
use crate::proxy::login::LoginPage;
use crate::proxy::route::HostPattern;
use crate::server::Address;
use crate::store::config::OnError;

/// The most bytes of values in a header: from room for a few to more than any server takes.
const EXCHANGE: std::ops::RangeInclusive<usize> = 64..=64 * 1024;

/// The routes. `own` is where this process listens.
pub(super) fn routes(
    tables: &Tables<file::Route>,
    on_error: OnError,
    own: &[(Origin, Address)],
    context: &mut Context<'_>,
) -> Vec<RouteConfig> {
    if tables.is_unset() && context.site == Site::Needed {
        let message = "there is none; say where the site is: --upstream http://127.0.0.1:3000, \
                       CLOAKROOM_UPSTREAM, or upstream in a [[route]] of the file";
        context.missing("route", message);
    }
    let mut routes: Vec<RouteConfig> = Vec::new();
    let mut seen: Vec<(Option<HostPattern>, String, Origin)> = Vec::new();
    for (table, origin) in tables.sections() {
        let host = host(table, context);
        let path = path(table, context);
        match seen.iter().find(|(h, p, _)| *h == host && p.eq_ignore_ascii_case(&path)) {
            Some((_, other_path, other)) => {
                let origin = match (table.path.found(), table.host.found()) {
                    (Some((_, origin)), _) | (None, Some((_, origin))) => origin,
                    (None, None) => origin,
                };
                let at = other.place.mention();
                let message = if *other_path == path {
                    format!("the route at {at} has the same host and path; change one")
                } else {
                    format!(
                        "the route at {at} differs in letter case alone, which some servers ignore; \
                         change one"
                    )
                };
                context.error(origin, message);
            }
            None => seen.push((host.clone(), path.clone(), origin.clone())),
        }
        let upstreams = upstreams(table, origin, own, context);
        routes.extend(upstreams.map(|to| route(table, (host, path, to), on_error, context)));
    }
    routes
}

fn route(
    table: &file::Route,
    (host, path, upstreams): (Option<HostPattern>, String, Vec<Target>),
    on_error: OnError,
    context: &mut Context<'_>,
) -> RouteConfig {
    let default = client::Config::default();
    let upstream_tls = upstream_tls(table, &upstreams, context);
    let health = health(table, &upstreams, context);
    let to_keep = Duration::ZERO..=*TRANSPORT.end();
    RouteConfig {
        host,
        path,
        upstream_protocol: upstream_protocol(table, &upstreams, context),
        upstreams,
        health,
        upstream_tls,
        session: table.session.or(Session::On),
        header_exchange: header_exchange(table, context),
        require_principal: require_principal(table, context),
        principal_header: principal_header(&table.principal_header, context),
        request_headers: request_headers(table, context),
        on_error: table.on_error.or(on_error),
        max_body: table.max_body.value().map(|Size(bytes)| *bytes as u64),
        min_body_rate: min_body_rate(&table.min_body_rate),
        upstream_requests: table
            .upstream_requests
            .found()
            .map(|_| context.count(&table.upstream_requests, 1, &(1..=1_000_000))),
        connect_timeout: context.duration(
            &table.connect_timeout,
            default.connect_timeout,
            &TRANSPORT,
        ),
        response_timeout: context.duration(
            &table.response_timeout,
            default.response_timeout,
            &TRANSPORT,
        ),
        stream_idle_timeout: context.duration(
            &table.stream_idle_timeout,
            RouteConfig::DEFAULT_STREAM_IDLE_TIMEOUT,
            &TRANSPORT,
        ),
        tunnels: table.tunnels.or(Tunnels::WithSession),
        tunnel_idle_timeout: context.duration(
            &table.tunnel_idle_timeout,
            RouteConfig::DEFAULT_TUNNEL_IDLE_TIMEOUT,
            &TRANSPORT,
        ),
        upstream_idle_timeout: context.duration(
            &table.upstream_idle_timeout,
            default.idle_timeout,
            &to_keep,
        ),
    }
}

/// Returns the minimum rate in bytes per second; zero turns it off.
fn min_body_rate(field: &Field<Size>) -> Option<u64> {
    let bytes =
        field.value().map_or(RouteConfig::DEFAULT_MIN_BODY_RATE, |Size(bytes)| *bytes as u64);
    (bytes > 0).then_some(bytes)
}

fn health(
    table: &file::Route,
    upstreams: &[Target],
    context: &mut Context<'_>,
) -> Option<HealthCheck> {
    let interval =
        context.duration(&table.health_interval, RouteConfig::DEFAULT_HEALTH_INTERVAL, &TRANSPORT);
    let Some((path, origin)) = table.health_path.found() else {
        if let Some((_, origin)) = table.health_interval.found() {
            context.error(origin, "nobody is asked; set health_path too, as \"/healthz\"");
        }
        return None;
    };
    if upstreams.len() == 1 {
        context.warn(origin, "there is no other upstream that could have its requests");
    }
    match PathAndQuery::try_from(path.as_str()) {
        Ok(path) if path.as_str().starts_with('/') => Some(HealthCheck { path, interval }),
        _ => {
            context
                .error(origin, "is no path; write one that begins with a slash, as \"/healthz\"");
            None
        }
    }
}

fn host(table: &file::Route, context: &mut Context<'_>) -> Option<HostPattern> {
    let (host, origin) = table.host.found()?;
    let pattern = HostPattern::parse(host);
    if pattern.is_none() {
        let message = "is no host; write one without a port, as \"shop.example.org\" or \
                       \"*.example.org\"";
        context.error(origin, message);
    }
    pattern
}

/// A path that every server reads alike; else no request would be known to be below it.
fn path(table: &file::Route, context: &mut Context<'_>) -> String {
    let Some((path, origin)) = table.path.found() else {
        return "/".to_owned();
    };
    let without_end = path.strip_suffix('/').unwrap_or(path);
    let is_plain = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_graphic() && !b"%\\;?#".contains(&byte))
    };
    if !path.starts_with('/') {
        context.error(origin, "is no path; write one that begins with a slash, as \"/shop\"");
    } else if !without_end.split('/').skip(1).all(is_plain) {
        let message = "is no plain path; write segments in ASCII, none of them empty or dots, \
                       without any of % \\ ; ? #";
        context.error(origin, message);
    }
    match without_end {
        "" => "/".to_owned(),
        path => path.to_owned(),
    }
}

fn upstreams(
    table: &file::Route,
    route: &Origin,
    own: &[(Origin, Address)],
    context: &mut Context<'_>,
) -> Option<Vec<Target>> {
    let Some((Upstreams(targets), origin)) = table.upstream.found() else {
        let origin = Origin { key: "route.upstream".to_owned(), ..route.clone() };
        let message = "is missing; say where the site is, as upstream = \"http://127.0.0.1:3000\"";
        if context.site == Site::Needed && matches!(table.upstream, Field::Unset) {
            context.error(&origin, message);
        }
        return None;
    };
    let upstream = |target: &Target| {
        let target = match target {
            Target::Unix(path) => Target::Unix(context.beside_file(path)),
            http @ Target::Http { .. } => http.clone(),
        };
        if let Some((ours, _)) = own.iter().find(|(_, address)| reaches(&target, address)) {
            let message = format!("is this proxy itself ({}); write where the site is", ours.key);
            context.error(origin, message);
        }
        target
    };
    Some(targets.iter().map(upstream).collect())
}

fn has_tls(target: &Target) -> bool {
    matches!(target, Target::Http { scheme: Scheme::Https, .. })
}

fn upstream_protocol(
    table: &file::Route,
    upstreams: &[Target],
    context: &mut Context<'_>,
) -> UpstreamProtocol {
    let Some((speaks, origin)) = table.upstream_protocol.found() else {
        return UpstreamProtocol::Http1;
    };
    match speaks {
        UpstreamProtocol::Http2 if upstreams.iter().any(has_tls) => {
            context.error(origin, "is HTTP/2 in the clear; with https:// write \"alpn\"");
        }
        UpstreamProtocol::Alpn if !upstreams.iter().all(has_tls) => {
            context.error(origin, "is agreed upon with TLS; without write \"h2c\"");
        }
        UpstreamProtocol::Http1 | UpstreamProtocol::Http2 | UpstreamProtocol::Alpn => {}
    }
    *speaks
}

fn upstream_tls(table: &file::Route, upstreams: &[Target], context: &mut Context<'_>) -> TlsConfig {
    let Some((tls, origin)) = table.upstream_tls.found() else { return TlsConfig::default() };
    if !upstreams.iter().any(has_tls) {
        context.error(origin, "the upstream has no TLS; leave it out, or write https://");
        return TlsConfig::default();
    }
    tls::client(tls, origin, context)
}

fn header_exchange(table: &file::Route, context: &mut Context<'_>) -> Option<usize> {
    let default = RouteConfig::DEFAULT_HEADER_EXCHANGE_MAX_BYTES;
    let max_bytes = context.size(&table.header_exchange_max_bytes, default, &EXCHANGE);
    table.header_exchange.or(false).then_some(max_bytes)
}

fn require_principal(table: &file::Route, context: &mut Context<'_>) -> Option<LoginPage> {
    let (text, origin) = table.require_principal.found()?;
    if table.session.or(Session::On) == Session::Off {
        context.error(origin, "nobody is logged in where there is no session; leave it out");
    }
    let page = LoginPage::parse(text);
    if page.is_none() {
        let message = "is no login page; write a path of the site or an URL, in which {path} may \
                       stand once for what was asked for, as \"/login?next={path}\"";
        context.error(origin, message);
    }
    page
}

fn principal_header(
    field: &Field<value::PrincipalHeader>,
    context: &mut Context<'_>,
) -> Option<PrincipalHeader> {
    let (header, origin) = field.found()?;
    let name = headers::name(&header.name, origin, context)?;
    Some(PrincipalHeader { name, encoding: header.encoding })
}

fn request_headers(
    table: &file::Route,
    context: &mut Context<'_>,
) -> Vec<(HeaderName, HeaderValue)> {
    let principal = table.principal_header.value();
    let principal =
        principal.and_then(|header| HeaderName::from_bytes(header.name.as_bytes()).ok());
    headers::secrets(&table.request_headers, principal.as_ref(), context)
}
