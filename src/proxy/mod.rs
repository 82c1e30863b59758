//! The public proxy: it opens the session of a request, forwards the cleaned request to an upstream, and
//! returns the cleaned response with the session cookie.
//!
//! `Proxy::serve` reads from top to bottom as the life of a request. The header rules are pure functions
//! over a message head, in the modules `request`, [`forwarded`], `via`, `response` and `caching`. The
//! proxy does not know the session API.

mod access;
mod caching;
pub(crate) mod config;
mod error;
mod event_streams;
mod exchange_headers;
pub mod forwarded;
mod hop;
mod lines;
mod list;
pub(crate) mod login;
pub(crate) mod names;
mod path;
mod readings;
mod redirect;
mod request;
mod response;
pub mod route;
mod site;
mod trailers;
mod tunnel;
mod via;

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, SET_COOKIE, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use tracing::debug;

use crate::body::{self, Body};
use crate::client::{Balancer, Outgoing};
use crate::metrics::{Event, Metrics, Outcome};
use crate::server::{Handler, Peer, Tasks};
use crate::session::cookie;
use crate::session::navigation::Origin;
use crate::session::patch::Patch;
use crate::session::record::Client;
use crate::sessions::{
    Arrival, Failure, Opened, Opener, RequestGuard, ResponseKind, TouchPolicy, WatchedSession,
};
use crate::store::Error as StoreError;
use crate::store::config::OnError;
use crate::telemetry::{Sender, Trace, Tracer};

use access::{Access, Recording};
use caching::Protection;
use config::{Session, Tunnels};
use error::{Accepts, Error};
use request::Recipient;
use site::Route;
use tunnel::{Handshake, Tunnel, UpgradeRequest};

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
    async fn handle(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let accepts = Accepts::from_headers(request.headers());
        let mut access = Access::new(&request, &peer);
        match self.serve(request, &peer, accepts, &mut access).await {
            Ok(response) => access.finish(response, Outcome::Forwarded, self.metrics()),
            Err(error) => {
                let response = access.error_response(&error, accepts);
                access.finish(response, error.outcome(), self.metrics())
            }
        }
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
        let balancer = |route: &Route| route.balancer(metrics);
        let upstreams = site.routes().map(balancer).collect();
        Self { site, upstreams, sessions, tasks, tracer }
    }

    fn metrics(&self) -> &Metrics {
        &self.sessions.shared().metrics
    }

    /// Serves a request: routes it, opens its session, cleans its head, forwards it, and commits the
    /// session.
    async fn serve(
        &self,
        mut request: Request<Incoming>,
        peer: &Peer,
        accepts: Accepts,
        access: &mut Access,
    ) -> Result<Response<Body>, Error> {
        // First, because hyper keeps the upgrade in the extensions of the whole request, and
        // because an extended CONNECT becomes a GET, which the checks below accept.
        let upgrade = UpgradeRequest::from_request(&mut request);
        let (mut parts, body) = request.into_parts();
        request::check(&parts)?;
        request::normalize_target(&mut parts)?;
        // By the path as received: what is forwarded must be what was matched.
        let route = self.site.find(&parts, peer)?;
        access.set_route(route.name());
        // Before the session is opened, so that a loop costs no store call.
        self.site.via().append(&mut parts.headers, parts.version)?;
        if request::decrement_max_forwards(&parts.method, &mut parts.headers) == Recipient::Proxy {
            return Ok(options_response());
        }
        // Determined first: the steps below change the headers that it depends on.
        let origin = self.origin(&parts, peer);
        let cookies = self.sessions.take_cookies(&mut parts.headers);
        request::join_cookies(&mut parts)?;
        let cleaned = request::clean(&mut parts.headers, self.site.injected());
        self.site.log_dropped(&cleaned.dropped);
        let client = self.rewrite_forwarded(&mut parts.headers, peer)?;
        access.set_client(&client);
        self.start_trace(&mut parts, peer, &client, access)?;

        let opened = self.open(route, cookies, origin, &parts.headers, client.address).await?;
        access.set_session(opened.as_ref().and_then(|opened| opened.guard.session().current_id()));
        // After cleaning: the upstream can trust that these fields are the proxy's.
        self.site.inject(&mut parts.headers, route, opened.as_ref(), self.sessions.shared())?;
        upgrade.write_headers(&mut parts.headers)?;

        // A refusal goes the way of a response, so that it can set or delete the cookie.
        let outgoing = route
            .admit(&parts, opened.as_ref().and_then(Opened::principal), accepts)
            .and_then(|()| self.outgoing(route, parts, body, cleaned.options));
        let response = match outgoing {
            Ok(mut outgoing) => self.forward(route, &mut outgoing).await,
            Err(error) => Err(error),
        };
        // A 101 that was not requested would turn the rest of the connection into a tunnel.
        let response = response.and_then(|response| upgrade.validate_response(response));
        // Committed even if forwarding has failed: the error response may still need a cookie.
        let (response, guard) = match opened {
            None => (self.clean(response?, access), None),
            Some(opened) => {
                let response = self.commit(response, &opened, route, accepts, access).await;
                (response, Some(opened.guard))
            }
        };
        match upgrade {
            UpgradeRequest::WebSocket(handshake)
                if response.status() == StatusCode::SWITCHING_PROTOCOLS =>
            {
                Box::pin(self.start_tunnel(handshake, response, route, guard)).await
            }
            _ => Ok(self.follow_session(response, route, guard, access).await),
        }
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
    ) -> Result<forwarded::Client, Error> {
        let rewritten = forwarded::rewrite(headers, self.site.rules(), peer_of(peer))?;
        self.site.log_dropped(&rewritten.dropped);
        if rewritten.lost_https {
            self.site.log_lost_https(peer_of(peer).address);
        }
        Ok(rewritten.client)
    }

    /// Continues or starts the trace of a request, and records a span if the trace is sampled.
    fn start_trace(
        &self,
        parts: &mut Parts,
        peer: &Peer,
        client: &forwarded::Client,
        access: &mut Access,
    ) -> Result<(), Error> {
        // The sampling decision of a client is not followed: it could export every request.
        let is_trusted = self.site.rules().trusts(peer_of(peer));
        let sender = if is_trusted { Sender::Trusted } else { Sender::Untrusted };
        let trace = Trace::join(&mut parts.headers, self.tracer.as_deref(), sender)?;
        let recording = self.tracer.as_ref().zip(trace.span()).map(|(tracer, context)| Recording {
            tracer: Arc::clone(tracer),
            context,
            started: self.sessions.shared().clock.nanoseconds(),
            version: parts.version,
            scheme: client.scheme,
            host: client.host.clone(),
        });
        access.set_trace(trace, recording);
        Ok(())
    }

    /// Opens the session of a request, if its route has sessions.
    fn open(
        &self,
        route: &Route,
        cookies: cookie::Values,
        origin: Origin,
        headers: &HeaderMap,
        address: Option<IpAddr>,
    ) -> impl Future<Output = Result<Option<Opened>, StoreError>> + Send + use<'_> {
        let arrival = self.arrival(route, cookies, origin, headers, address);
        async move {
            match arrival {
                Some(arrival) => self.sessions.open(arrival).await.map(Some),
                None => Ok(None),
            }
        }
    }

    /// Returns what opening the session of a request depends on, if its route has sessions.
    fn arrival(
        &self,
        route: &Route,
        cookies: cookie::Values,
        origin: Origin,
        headers: &HeaderMap,
        address: Option<IpAddr>,
    ) -> Option<Arrival> {
        let touch = match route.session() {
            Session::Off => return None,
            Session::On => TouchPolicy::OnUse,
            Session::NoTouch => TouchPolicy::Never,
        };
        // The limit on new sessions does not apply to the address of a trusted proxy, which all its
        // clients share.
        let is_trusted = |address: &IpAddr| self.site.rules().trust.contains(*address);
        let limited_address = address.filter(|address| !is_trusted(address));
        let is_recorded = self.sessions.shared().policy.record_client;
        Some(Arrival {
            origin,
            cookies,
            wants_values: route.header_exchange().is_some(),
            touch,
            on_error: route.on_error(),
            address: limited_address,
            client: is_recorded.then(|| Client { address, user_agent: user_agent(headers) }),
        })
    }

    /// Starts a tunnel, which begins once the client has received the returned response.
    async fn start_tunnel(
        &self,
        handshake: Handshake,
        mut response: Response<Body>,
        route: &Route,
        guard: Option<RequestGuard>,
    ) -> Result<Response<Body>, Error> {
        let upstream = hyper::upgrade::on(&mut response);
        let client = handshake.accept(&mut response)?;
        let watched = self.watched(route, guard.as_ref()).await;
        let tunnel = Tunnel {
            client,
            upstream,
            metrics: self.metrics().clone(),
            guard,
            watched,
            idle_timeout: route.tunnel_idle_timeout(),
        };
        self.tasks.run(tunnel.run(self.tasks.clone())).detach();
        Ok(response)
    }

    /// Returns the session that a tunnel or an event stream ends with, unless the route disables that.
    async fn watched(&self, route: &Route, guard: Option<&RequestGuard>) -> Option<WatchedSession> {
        match (guard, route.tunnels()) {
            (Some(guard), Tunnels::WithSession) => guard.session().watch().await,
            _ => None,
        }
    }

    /// Keeps the request in flight until the end of its response, and ends an event stream with its session.
    async fn follow_session(
        &self,
        response: Response<Body>,
        route: &Route,
        guard: Option<RequestGuard>,
        access: &mut Access,
    ) -> Response<Body> {
        let is_stream =
            event_streams::is_event_stream(response.headers()) && !response.body().is_end_stream();
        let watched = match guard.as_ref() {
            Some(guard) if is_stream => Box::pin(self.watched(route, Some(guard))).await,
            _ => None,
        };
        access.hold(guard);
        match watched {
            Some(watched) => event_streams::follow(response, watched, &self.tasks),
            None => response,
        }
    }

    /// Sends a request to an upstream of its route.
    async fn forward(
        &self,
        route: &Route,
        outgoing: &mut Outgoing,
    ) -> Result<Response<Body>, Error> {
        let upstreams = self.upstreams.get(route.index()).ok_or(Error::NoRoute)?;
        Ok(upstreams.send(outgoing, &self.tasks).await?)
    }

    /// Returns the request to send, whose body is bounded by the settings of the route.
    fn outgoing(
        &self,
        route: &Route,
        mut parts: Parts,
        body: Incoming,
        options: hop::Options,
    ) -> Result<Outgoing, Error> {
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
            // A declared length is checked before the upload begins. Others are counted as they
            // arrive.
            if body.size_hint().lower() > limit {
                return Err(Error::TooLarge);
            }
            body = body.with_limit(limit);
        }
        Ok(Outgoing::new(Request::from_parts(parts, body)))
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

    /// Applies the upstream's patch, commits the session, and sets its cookie.
    async fn commit(
        &self,
        response: Result<Response<Body>, Error>,
        opened: &Opened,
        route: &Route,
        accepts: Accepts,
        access: &mut Access,
    ) -> Response<Body> {
        let guard = &opened.guard;
        let mut response = response.unwrap_or_else(|error| access.error_response(&error, accepts));
        let kind = response_kind(&response);
        let allows_patches = route.header_exchange().is_some();
        let patch = match exchange_headers::take_patch(response.headers_mut(), allows_patches, kind)
        {
            Ok(patch) => patch,
            Err(malformed) => {
                response = access.error_response(&Error::Patch(malformed.to_string()), accepts);
                None
            }
        };
        // The response may have become an error since.
        let kind = response_kind(&response);
        let (cookie, applied) = self.commit_patch(guard, kind, patch.as_ref()).await;
        if let (Some(patch), Err(failure)) = (&patch, applied) {
            if should_drop_patch(guard, patch, &failure, route) {
                self.metrics().event(Event::PatchDropped);
                debug!(%failure, "dropped a patch");
            } else {
                response = access.error_response(&Error::from_patch_failure(&failure), accepts);
            }
        }
        let response = self.clean(response, access);
        finish(response, cookie, opened, access)
    }

    /// Removes what must not reach the client from a response.
    fn clean(&self, mut response: Response<Body>, access: &Access) -> Response<Body> {
        let cleaned =
            response::clean(response.headers_mut(), &self.sessions.shared().attributes.name);
        if cleaned.session_cookies > 0 {
            let dropped = "dropped an upstream cookie with the name of the session cookie";
            access.warn("own_cookie", None, dropped);
        }
        let options = cleaned.options;
        response.map(|body| {
            body.with_trailers(move |trailers| trailers::clean(trailers, &[], &options))
        })
    }

    /// Commits the session. With a patch, this runs as a task, so that it completes even if the client
    /// disconnects.
    async fn commit_patch(
        &self,
        guard: &RequestGuard,
        kind: ResponseKind,
        patch: Option<&Patch>,
    ) -> (Option<HeaderValue>, Result<(), Failure>) {
        let Some(patch) = patch.cloned() else {
            return guard.session().commit(kind, None).await;
        };
        let session = guard.session().clone();
        let commit = async move { session.commit(kind, Some(&patch)).await };
        self.tasks.run(commit).await.unwrap_or_else(|lost| {
            // The task panicked: the store may or may not have applied the patch.
            let unknown = StoreError::OutcomeUnknown(lost.to_string().into());
            (None, Err(unknown.into()))
        })
    }
}

/// Returns whether a patch that failed is dropped without an error response.
fn should_drop_patch(
    guard: &RequestGuard,
    patch: &Patch,
    failure: &Failure,
    route: &Route,
) -> bool {
    let is_unavailable =
        matches!(failure, Failure::NotLoaded | Failure::Store(StoreError::Unavailable(_)));
    (is_unavailable && route.on_error() == OnError::Anonymous)
        || guard.session().should_drop_patch(patch, failure)
}

/// Protects the response from caches, and sets the session cookie.
fn finish(
    mut response: Response<Body>,
    cookie: Option<HeaderValue>,
    opened: &Opened,
    access: &mut Access,
) -> Response<Body> {
    let session = opened.guard.session().current_id();
    access.set_session(session);
    // Even an anonymous response varies: the same request with a cookie may get another one.
    let protection = match &cookie {
        Some(_) => Protection::NoStore,
        None if opened.meta().is_some() || session.is_some() => Protection::Private,
        None => Protection::Vary,
    };
    let headers = response.headers_mut();
    let protected = caching::protect(headers, protection);
    let set = match cookie {
        Some(line) => headers.try_append(SET_COOKIE, line).map(drop),
        None => Ok(()),
    };
    if protected.and(set).is_err() {
        let full = "response head is full; session headers were omitted";
        access.warn("head_full", None, full);
    }
    response
}

fn response_kind(response: &Response<Body>) -> ResponseKind {
    match response.status() {
        StatusCode::NOT_MODIFIED => ResponseKind::NotModified,
        status if status.is_server_error() => ResponseKind::Failed,
        _ => ResponseKind::Normal,
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every request has one, which moves through memory and lasts as long as it does.
    #[test]
    fn future_of_a_request_is_bounded() {
        fn size<F>(_handle: fn(&'static Proxy, Request<Incoming>, Peer) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(<Proxy as Handler>::handle);
        assert!(size <= 4608, "{size} bytes");
    }
}
