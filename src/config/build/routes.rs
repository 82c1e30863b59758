//! The routes.

use std::time::Duration;

use http::HeaderName;
use http::uri::PathAndQuery;

use super::super::file::{File, Route};
use super::super::value::{
    ExchangeWord, HeaderExchange as HeaderExchangeKey, OneAtATime, OneOrMany,
    PrincipalHeader as PrincipalHeaderKey, Span, Text, TurnEnd, Value as _,
};
use super::context::{Context, Site};
use super::listeners::{Own, reaches};
use super::{headers, hold, tls};
use crate::client::{HealthCheck, Target, TlsConfig, UpstreamProtocol};
use crate::net::scheme::Scheme;
use crate::proxy::config::{Encoding, PrincipalHeader, RouteConfig, Session};
use crate::proxy::login::LoginPage;
use crate::proxy::route::HostPattern;
use crate::session::policy::{ExchangeMode, HeaderExchange};
use crate::store::config::OnError;

/// Builds the routes. `own` is where this process listens, and `cookie` the name of our cookie.
pub(super) fn routes(
    file: &mut File,
    own: &[Own],
    cookie: &str,
    context: &mut Context<'_>,
) -> Vec<RouteConfig> {
    if !context.is_set("route") && context.site == Site::Needed {
        let message = "no upstream is set; use --upstream http://127.0.0.1:3000, \
                       CLOAKROOM_UPSTREAM, or upstream in a [[route]] of the file";
        context.missing("route", message);
    }
    let on_error = file.store.on_error;
    let mut seen = Vec::new();
    let mut routes = Vec::new();
    for (index, table) in file.route.iter_mut().enumerate() {
        let key = format!("route[{index}]");
        let host = host(&key, table, context);
        check_path(&key, table, context);
        check_distinct(&key, host.as_ref(), &table.path, &mut seen, context);
        if let Some(upstreams) = upstreams(&key, table, own, context) {
            let mut route = route(&key, table, host, upstreams, on_error, context);
            route.hold = hold::hold(&key, table, cookie, context);
            routes.push((index, route));
        }
    }
    hold::share(&mut routes, context);
    routes.into_iter().map(|(_, route)| route).collect()
}

/// The host, path and key of a route.
type Seen = (Option<HostPattern>, String, String);

fn check_distinct(
    key: &str,
    host: Option<&HostPattern>,
    path: &str,
    seen: &mut Vec<Seen>,
    context: &mut Context<'_>,
) {
    let same = seen.iter().find(|(other_host, other_path, _)| {
        other_host.as_ref() == host && other_path.eq_ignore_ascii_case(path)
    });
    let Some((_, other_path, other)) = same else {
        seen.push((host.cloned(), path.to_owned(), key.to_owned()));
        return;
    };
    let keys = [format!("{key}.path"), format!("{key}.host")];
    let set = keys.iter().find(|key| context.is_set(key)).map_or(key, String::as_str);
    let at = context.place(other).mention();
    let message = if other_path == path {
        format!("the route at {at} has the same host and path; change one")
    } else {
        format!(
            "differs from the route at {at} in letter case only, which some servers ignore; change one"
        )
    };
    context.error(set, message);
}

fn route(
    key: &str,
    table: &mut Route,
    host: Option<HostPattern>,
    upstreams: Vec<Target>,
    on_error: OnError,
    context: &mut Context<'_>,
) -> RouteConfig {
    check_protocol(key, table, &upstreams, context);
    let principal_header = principal_header(key, table, context);
    let taken = principal_header.as_ref().map(|header| &header.name);
    let request_headers = format!("{key}.request_headers");
    RouteConfig {
        host,
        path: table.path.0.clone(),
        upstream_protocol: table.upstream_protocol,
        health: health(key, table, &upstreams, context),
        upstream_tls: upstream_tls(key, table, &upstreams, context),
        upstreams,
        session: table.session,
        header_exchange: header_exchange(table),
        require_principal: require_principal(key, table, context),
        request_headers: headers::secrets(
            &request_headers,
            &mut table.request_headers,
            taken,
            context,
        ),
        request_id: table.request_id,
        hold: None,
        principal_header,
        on_error: *table.on_error.get_or_insert(on_error),
        one_at_a_time: one_at_a_time(key, table, context),
        max_body: table.max_body.map(|size| size.0 as u64),
        min_body_rate: Some(table.min_body_rate.0 as u64).filter(|rate| *rate > 0),
        upstream_requests: table.upstream_requests.map(|count| count.0),
        connect_timeout: table.connect_timeout.0,
        response_timeout: table.response_timeout.0,
        stream_idle_timeout: table.stream_idle_timeout.0,
        tunnels: table.tunnels,
        tunnel_idle_timeout: table.tunnel_idle_timeout.0,
        upstream_idle_timeout: table.upstream_idle_timeout.0,
    }
}

fn header_exchange(table: &Route) -> Option<HeaderExchange> {
    let mode = match table.header_exchange {
        HeaderExchangeKey::Switch(false) => return None,
        HeaderExchangeKey::Switch(true) => ExchangeMode::Whole,
        HeaderExchangeKey::Word(ExchangeWord::Partial) => ExchangeMode::Partial,
    };
    Some(HeaderExchange { mode, max_bytes: table.header_exchange_max_bytes.0 })
}

fn health(
    key: &str,
    table: &mut Route,
    upstreams: &[Target],
    context: &mut Context<'_>,
) -> Option<HealthCheck> {
    let path_key = format!("{key}.health_path");
    let Some(path) = &table.health_path else {
        if !context.is_set(&path_key) {
            let message = "has no effect without health_path; set it too, e.g. \"/healthz\"";
            context.refuse(&[&format!("{key}.health_interval")], message);
        }
        return None;
    };
    if upstreams.len() == 1 {
        context.warn(&path_key, "has no effect with a single upstream");
    }
    let interval = table.health_interval.get_or_insert(Span(RouteConfig::HEALTH_INTERVAL));
    match PathAndQuery::try_from(&**path) {
        Ok(path) if path.as_str().starts_with('/') => {
            Some(HealthCheck { path, interval: interval.0 })
        }
        _ => {
            let message = "invalid path; expected one that begins with a slash, e.g. \"/healthz\"";
            context.error(&path_key, message);
            None
        }
    }
}

fn host(key: &str, table: &mut Route, context: &mut Context<'_>) -> Option<HostPattern> {
    let pattern = HostPattern::parse(table.host.as_deref()?);
    if pattern.is_none() {
        let message = "invalid host; expected one without port, e.g. \"shop.example.org\" or \
                       \"*.example.org\"";
        context.error(&format!("{key}.host"), message);
    }
    table.host = pattern.as_ref().map(|pattern| {
        Text(match pattern {
            HostPattern::Exact(host) => host.clone(),
            HostPattern::Below(host) => format!("*{host}"),
        })
    });
    pattern
}

/// A path has to mean the same to every server; otherwise no request would be known to be below it.
fn check_path(key: &str, table: &mut Route, context: &mut Context<'_>) {
    let path = &*table.path;
    let without_end = path.strip_suffix('/').unwrap_or(path);
    let is_plain = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_graphic() && !b"%\\;?#".contains(&byte))
    };
    let key = format!("{key}.path");
    if !path.starts_with('/') {
        let message = "invalid path; expected one that begins with a slash, e.g. \"/shop\"";
        context.error(&key, message);
    } else if !without_end.split('/').skip(1).all(is_plain) {
        let message = "ambiguous path; expected segments in ASCII, none of them empty or dots, \
                       without any of % \\ ; ? #";
        context.error(&key, message);
    }
    table.path = if without_end.is_empty() { "/".into() } else { without_end.into() };
}

fn upstreams(
    key: &str,
    table: &mut Route,
    own: &[Own],
    context: &mut Context<'_>,
) -> Option<Vec<Target>> {
    let upstream = format!("{key}.upstream");
    let Some(OneOrMany(targets)) = &mut table.upstream else {
        if context.site == Site::Needed && !context.is_set(&upstream) {
            context.places.insert(upstream.clone(), context.place(key));
            let message = "missing upstream; expected e.g. upstream = \"http://127.0.0.1:3000\"";
            context.error(&upstream, message);
        }
        return None;
    };
    for target in targets.iter_mut() {
        if let Target::Unix(path) = target {
            context.locate(path);
        }
        if let Some(ours) = own.iter().find(|own| reaches(target, &own.address)) {
            let message =
                format!("is this proxy itself ({}); expected the site's address", ours.key);
            context.error(&upstream, message);
        }
    }
    Some(targets.clone())
}

fn has_tls(target: &Target) -> bool {
    matches!(target, Target::Http { scheme: Scheme::Https, .. })
}

fn check_protocol(key: &str, table: &Route, upstreams: &[Target], context: &mut Context<'_>) {
    let key = format!("{key}.upstream_protocol");
    match table.upstream_protocol {
        UpstreamProtocol::Http2 if upstreams.iter().any(has_tls) => {
            context.error(&key, "\"h2c\" is HTTP/2 without TLS; use \"alpn\" for https upstreams");
        }
        UpstreamProtocol::Alpn if !upstreams.iter().all(has_tls) => {
            context.error(&key, "\"alpn\" requires https upstreams; use \"h2c\" for plain HTTP");
        }
        UpstreamProtocol::Http1 | UpstreamProtocol::Http2 | UpstreamProtocol::Alpn => {}
    }
}

fn upstream_tls(
    key: &str,
    table: &mut Route,
    upstreams: &[Target],
    context: &mut Context<'_>,
) -> TlsConfig {
    let key = format!("{key}.upstream_tls");
    let Some(tls) = &mut table.upstream_tls else { return TlsConfig::default() };
    if !upstreams.iter().any(has_tls) {
        context.error(&key, "the upstream has no TLS; remove it, or use https://");
        return TlsConfig::default();
    }
    tls::client(&key, tls, context)
}

fn require_principal(key: &str, table: &Route, context: &mut Context<'_>) -> Option<LoginPage> {
    let text = table.require_principal.as_deref()?;
    let key = format!("{key}.require_principal");
    if table.session == Session::Off {
        context.error(&key, "has no effect when session = \"off\"; remove it");
    }
    let page = LoginPage::parse(text);
    if page.is_none() {
        let message = "invalid login page; expected a path of the site or a URL, with {path} at most \
                       once for the requested path, e.g. \"/login?next={path}\"";
        context.error(&key, message);
    }
    page
}

fn one_at_a_time(key: &str, table: &Route, context: &mut Context<'_>) -> Option<Duration> {
    let on = format!("{key}.one_at_a_time");
    match table.one_at_a_time {
        OneAtATime::Switch(false) => return None,
        OneAtATime::Switch(true) => {
            context.error(&on, "invalid value; expected false or \"head\"");
        }
        OneAtATime::Until(TurnEnd::Head) => {}
    }
    match table.session {
        Session::On => {}
        Session::NoTouch => {
            context.error(&on, "has no effect when session = \"no-touch\"; remove it");
        }
        Session::Off => context.error(&on, "has no effect when session = \"off\"; remove it"),
    }
    // A page that requests its own site waits for itself: the inner request has to fail first.
    if table.one_at_a_time_wait.0 >= table.response_timeout.0 {
        let wait = format!("{key}.one_at_a_time_wait");
        let at = if context.is_set(&wait) { wait } else { on };
        let (wait, response) = (table.one_at_a_time_wait.write(), table.response_timeout.write());
        let message =
            format!("one_at_a_time_wait ({wait}) must be less than response_timeout ({response})");
        context.error(&at, message);
    }
    Some(table.one_at_a_time_wait.0)
}

fn principal_header(
    key: &str,
    table: &mut Route,
    context: &mut Context<'_>,
) -> Option<PrincipalHeader> {
    let header = table.principal_header.as_ref()?;
    let (text, encoding) = match header {
        PrincipalHeaderKey::Name(name) => (name, Encoding::Percent),
        PrincipalHeaderKey::Encoded { name, encoding } => {
            (name, encoding.unwrap_or(Encoding::Percent))
        }
    };
    let name: HeaderName = headers::name(&format!("{key}.principal_header"), text, context)?;
    let text = name.as_str().into();
    table.principal_header = Some(match encoding {
        Encoding::Percent => PrincipalHeaderKey::Name(text),
        Encoding::Utf8 => PrincipalHeaderKey::Encoded { name: text, encoding: Some(encoding) },
    });
    Some(PrincipalHeader { name, encoding })
}
