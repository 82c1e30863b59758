//! The public proxy: it opens the session of a request, forwards the cleaned request to an upstream, and
//! returns the cleaned response with the session cookie.
//!
//! `Proxy::receive` and then `Exchange::run` read from top to bottom as the life of a request. The header rules
//! are pure functions over a message head, in the modules `request`, [`forwarded`], `via`, `response` and
//! `caching`. The proxy does not know the session API.
//!
//! A request is large, so it stays in one place. What is awaited on every request is pinned first
//! (`pin!(…).await`), since `.await` moves a future twice; what is rare is boxed.

mod access;
mod caching;
pub(crate) mod config;
mod error;
mod event_streams;
mod exchange;
mod exchange_headers;
pub mod forwarded;
pub(crate) mod held_cookies;
mod hop;
mod lines;
mod list;
pub(crate) mod login;
pub(crate) mod names;
mod path;
mod prefix_map;
mod proof;
mod readings;
mod redirect;
mod request;
mod request_id;
mod response;
pub mod route;
mod site;
mod trailers;
mod tunnel;
mod via;

use std::future::ready;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, HOST, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;

use crate::audit::Source;
use crate::body::{self, Body};
use crate::client::{Balancer, Outgoing};
use crate::metrics::{Event, Metrics, Outcome};
use crate::server::{Handler, Peer, Responding, Tasks};
use crate::session::cookie;
use crate::session::navigation::Origin;
use crate::session::record::Client;
use crate::sessions::{Arrival, Opener, TouchPolicy};
use crate::telemetry::{Sender, Trace, Tracer};

use access::{Access, Recording};
use config::Session;
use error::{Accepts, Error};
use exchange::{Exchange, Routed};
use held_cookies::HeldRequest;
use lines::Lines;
use names::X_REQUEST_ID;
use request::Recipient;
use site::Route;
use tunnel::UpgradeRequest;

pub(crate) use redirect::Redirect;
pub(crate) use site::Site;
pub(crate) use site::SiteError;

/// The public proxy of one worker.
#[derive(Debug)]
pub(crate) struct Proxy {
    site: Arc<Site>,
    /// The upstreams of each route, in the order of the routes.
    upstreams: Vec<Balancer>,
    sessions: Opener,
    tasks: Tasks,
    tracer: Option<Arc<Tracer>>,
}

impl Handler for Proxy {
    fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Responding {
        let accepts = Accepts::from_headers(request.headers());
        let mut access = Access::new(&request, &peer);
        let responded = match self.receive(request, &peer, accepts, &mut access) {
            Ok(Some(routed)) => {
                let mut exchange = Exchange::new(self, routed, accepts, access);
                return Box::pin(async move {
                    let responded = pin!(exchange.run()).await;
                    exchange.finish(responded)
                });
            }
            Ok(None) => Ok(options_response()),
            Err(error) => Err(error),
        };
        Box::pin(ready(access.finish(responded, accepts, Outcome::Forwarded, self.metrics())))
    }
}

impl Proxy {
    /// Creates a proxy for `site`, with upstream connections of its own.
    pub(crate) fn new(
        site: Arc<Site>,
        sessions: Opener,
        tasks: Tasks,
        tracer: Option<Arc<Tracer>>,
    ) -> Self {
        let metrics = &sessions.shared().metrics;
        let balancer = |route: &Arc<Route>| route.balancer(metrics);
        let upstreams = site.routes().map(balancer).collect();
        Self { site, upstreams, sessions, tasks, tracer }
    }

    fn metrics(&self) -> &Metrics {
        &self.sessions.shared().metrics
    }

    /// Receives a request: checks it, routes it and cleans its head. Returns `None` for an OPTIONS request with
    /// Max-Forwards 0, which the proxy itself answers.
    fn receive(
        &self,
        mut request: Request<Incoming>,
        peer: &Peer,
        accepts: Accepts,
        access: &mut Access,
    ) -> Result<Option<Routed>, Error> {
        // First, because hyper keeps the upgrade in the extensions of the whole request, and
        // because an extended CONNECT becomes a GET, which the checks below accept.
        let upgrade = UpgradeRequest::from_request(&mut request);
        let (mut parts, body) = request.into_parts();
        // Even a refused request has an id.
        let (trace, request_id) = self.identify(&parts.headers, peer, access);
        request::check(&parts)?;
        request::normalize_target(&mut parts)?;
        // By the path as received: what is forwarded must be what was matched.
        let found = self.site.find(&parts, peer);
        let route = found.inspect_err(|_| access.set_host(parts.headers.get(HOST)))?;
        access.set_route(route);
        // Before the session is opened, so that a loop costs no store call.
        self.site.via().append(&mut parts.headers, parts.version)?;
        if request::decrement_max_forwards(&parts.method, &mut parts.headers) == Recipient::Proxy {
            return Ok(None);
        }
        // Determined first: the steps below change the headers that it depends on.
        let origin = self.origin(&parts, peer);
        let cookies = self.sessions.take_cookies(&mut parts.headers);
        // An operator's browser sends the log-in of the admin page to every port of its host.
        cookie::take(&mut parts.headers, cookie::ADMIN_COOKIE);
        request::join_cookies(&mut parts)?;
        let holding = self.holding(route, &mut parts);
        let cleaned = request::clean(&mut parts.headers, self.site.injected());
        self.site.log_dropped(&cleaned.dropped);
        let mut lines = Lines::with_capacity(forwarded::LINES_BYTES + TRACE_BYTES);
        let client = self.rewrite_forwarded(&mut parts.headers, peer, &mut lines)?;
        access.set_client(&client);
        let own_id = trace.write(&mut parts.headers, lines.buffer())?;
        if let Some(id) = request_id.or(own_id) {
            parts.headers.try_insert(X_REQUEST_ID, id)?;
        }
        if let Some(recording) = self.recording(&trace, &parts, &client) {
            access.set_recording(recording);
        }
        upgrade.write_headers(&mut parts.headers)?;
        let route_name = Some(Arc::clone(route.name()));
        let source = Source { route: route_name, client: client.address, trace: Some(trace.id()) };
        let arrival = self.arrival(route, cookies, origin, &parts, source);
        let refusal = route.refusal(&parts, accepts);
        // A declared length is checked before the upload begins. Others are counted as they arrive.
        let is_too_large = route.max_body().is_some_and(|limit| body.size_hint().lower() > limit);
        let outgoing = self.outgoing(route, parts, body, cleaned.options);
        let route = Arc::clone(route);
        Ok(Some(Routed { route, arrival, refusal, is_too_large, holding, outgoing, upgrade }))
    }

    /// Removes the copies of held cookies from a request, and returns what the held ones depend on.
    fn holding(&self, route: &Route, parts: &mut Parts) -> Option<Box<HeldRequest>> {
        let config = route.hold()?;
        let removed = config.remove_copies(&mut parts.headers);
        if route.session() == Session::Off {
            self.metrics().events(Event::HeldCookieRemoved, removed as u64);
            return None;
        }
        Some(Box::new(HeldRequest::new(parts, config)))
    }

    /// Determines the origin of a request, before its headers are changed.
    fn origin(&self, parts: &Parts, peer: &Peer) -> Origin {
        let same_site = self.sessions.shared().attributes.same_site;
        let host = || forwarded::host(&parts.headers, self.site.rules(), peer_of(peer));
        Origin::of(&parts.method, &parts.headers, same_site, host)
    }

    /// Rewrites the forwarding fields, and logs what was removed or overwritten.
    fn rewrite_forwarded(
        &self,
        headers: &mut HeaderMap,
        peer: &Peer,
        lines: &mut Lines,
    ) -> Result<forwarded::Client, Error> {
        let (rules, peer_of) = (self.site.rules(), peer_of(peer));
        let rewritten = forwarded::rewrite_with(headers, rules, peer_of, lines)?;
        self.site.log_dropped(&rewritten.dropped);
        if rewritten.lost_https {
            self.site.log_lost_https(peer_of.address);
        }
        Ok(rewritten.client)
    }

    /// Continues or starts the trace of a request. Also returns the id of the request if it is not that of the trace.
    fn identify(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
        access: &mut Access,
    ) -> (Trace, Option<HeaderValue>) {
        let is_trusted = self.site.rules().trusts(peer_of(peer));
        // The sampling decision of a client is not followed: it could export every request.
        let sender = if is_trusted { Sender::Trusted } else { Sender::Untrusted };
        let trace = Trace::read(headers, self.tracer.as_deref(), sender);
        let received = is_trusted.then(|| request_id::received(headers)).flatten();
        let request_id = received.filter(|id| *id != trace.id().to_string().as_str()).cloned();
        access.set_ids(trace.id(), request_id.as_ref());
        (trace, request_id)
    }

    /// Returns what a span of a request records, if its trace is sampled.
    fn recording(
        &self,
        trace: &Trace,
        parts: &Parts,
        client: &forwarded::Client,
    ) -> Option<Recording> {
        let (tracer, context) = self.tracer.as_ref().zip(trace.span())?;
        Some(Recording {
            tracer: Arc::clone(tracer),
            context,
            started: self.sessions.shared().clock.nanoseconds(),
            version: parts.version,
            scheme: client.scheme,
        })
    }

    /// Returns what opening the session of a request depends on, if its route has sessions.
    fn arrival(
        &self,
        route: &Route,
        cookies: cookie::Values,
        origin: Origin,
        parts: &Parts,
        source: Source,
    ) -> Option<Arrival> {
        let touch = match route.session() {
            Session::Off => return None,
            Session::On => TouchPolicy::OnUse,
            Session::NoTouch => TouchPolicy::Never,
        };
        // The limit on new sessions does not apply to the address of a trusted proxy, which all its
        // clients share.
        let is_trusted = |address: &IpAddr| self.site.rules().trust.contains(*address);
        let address = source.client;
        let limited_address = address.filter(|address| !is_trusted(address));
        let is_recorded = self.sessions.shared().policy.record_client;
        Some(Arrival {
            origin,
            cookies,
            header_exchange: route.header_exchange(),
            touch,
            on_error: route.on_error(),
            turn_within: route.turn_within(parts),
            source: Source { client: address.filter(|_| is_recorded), ..source },
            address: limited_address,
            client: is_recorded.then(|| Client { address, user_agent: user_agent(&parts.headers) }),
        })
    }

    /// Returns the request to send, whose body is bounded by the settings of the route.
    fn outgoing(
        &self,
        route: &Route,
        mut parts: Parts,
        body: Incoming,
        options: hop::Options,
    ) -> Outgoing {
        // hyper writes the version of the request. The upstream connection decides on its own version.
        let version = std::mem::replace(&mut parts.version, Version::HTTP_11);
        // Some recipients merge trailers into the head (RFC 9110, section 6.5.1), so they are
        // cleaned by the same rules.
        let injected = Arc::clone(self.site.injected());
        let mut body = Body::streaming(body, Some(self.site.body_idle_timeout()))
            .with_trailers(move |trailers| trailers::clean(trailers, &injected, &options));
        if let Some(rate) = route.min_body_rate() {
            body = body.with_min_rate(rate);
        }
        // Some clients read the response only after they have sent the whole request. If the
        // upstream responds early, the rest must still be read.
        if version == Version::HTTP_2 {
            body = body.with_remainder(self.discard_rest());
        }
        if let Some(limit) = route.max_body() {
            body = body.with_limit(limit);
        }
        Outgoing::new(Request::from_parts(parts, body))
    }

    /// Discards the rest of a request body after its response. For HTTP/1, the connection does that.
    fn discard_rest(&self) -> impl FnOnce(Incoming) + Send + 'static {
        let tasks = self.tasks.clone();
        move |rest| {
            let draining = tasks.clone();
            let discard = async move {
                tokio::select! {
                    () = body::discard(rest) => {}
                    () = draining.draining() => {}
                }
            };
            tasks.run(discard).detach();
        }
    }
}

/// Bytes of the values of a trace and its id.
const TRACE_BYTES: usize = 64;

fn peer_of(peer: &Peer) -> forwarded::Peer {
    forwarded::Peer {
        address: peer.address.map(|address| address.ip()),
        scheme: peer.scheme,
        is_unknown: peer.is_unknown,
    }
}

/// Returns the user agent, truncated to the length that a session stores.
fn user_agent(headers: &HeaderMap) -> Box<str> {
    let agent = headers.get(USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
    let text = String::from_utf8_lossy(agent);
    let mut end = text.len().min(Client::MAX_USER_AGENT);
    // The limit may fall into a character.
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().into()
}

/// Returns the response to an OPTIONS request with Max-Forwards 0 (RFC 9110, section 7.6.2).
fn options_response() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static(request::ALLOW));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
