//! The exchange of a request with the upstream of its route: opens the session, sends the request, commits the session,
//! and returns the cleaned response with the session cookie.

use std::pin::pin;
use std::sync::Arc;

use http::header::SET_COOKIE;
use http::{HeaderValue, Response, StatusCode};
use http_body::Body as _;

use super::access::Access;
use super::caching::{self, Protection};
use super::config::Tunnels;
use super::error::{Accepts, Error, causes};
use super::exchange_headers;
use super::held_cookies::{HeldRequest, Notes};
use super::site::Route;
use super::tunnel::{Handshake, Tunnel, UpgradeRequest};
use super::{Proxy, event_streams, response, trailers};
use crate::body::Body;
use crate::client::Outgoing;
use crate::log::limited;
use crate::metrics::{Event, Outcome};
use crate::session::patch::{Op, Patch};
use crate::session::record::Key;
use crate::sessions::{
    Arrival, Committed, Failure, HeldResponse, Opened, RequestGuard, ResponseKind, WatchedSession,
};
use crate::store::Error as StoreError;
use crate::store::config::OnError;
use crate::tasks::Tasks;

/// A request whose head was checked and cleaned, and its route.
pub(super) struct Routed {
    pub(super) route: Arc<Route>,
    /// What opening the session depends on; `None` if the route has no sessions.
    pub(super) arrival: Option<Arrival>,
    /// The error for a request without a principal, if it needs one.
    pub(super) refusal: Option<Error>,
    /// Whether the declared length of the body exceeds the limit of the route.
    pub(super) is_too_large: bool,
    /// What held cookies depend on; `None` if the route holds none.
    pub(super) holding: Option<Box<HeldRequest>>,
    pub(super) outgoing: Outgoing,
    pub(super) upgrade: UpgradeRequest,
}

/// The exchange of one request. It stays in one place and its steps borrow it, since a request is large.
pub(super) struct Exchange {
    proxy: Arc<Proxy>,
    routed: Routed,
    accepts: Accepts,
    access: Access,
    /// The request was sent with held cookies.
    gives_held: bool,
}

impl Exchange {
    pub(super) fn new(proxy: Arc<Proxy>, routed: Routed, accepts: Accepts, access: Access) -> Self {
        Self { proxy, routed, accepts, access, gives_held: false }
    }

    /// Returns the response to the client. Its end completes the access log entry.
    pub(super) fn finish(&mut self, responded: Result<Response<Body>, Error>) -> Response<Body> {
        self.note_upstream();
        self.access.finish(responded, self.accepts, Outcome::Forwarded, self.proxy.metrics())
    }

    fn note_upstream(&mut self) {
        if let Some(visited) = self.routed.outgoing.take_visited() {
            self.access.set_visited(visited);
        }
    }

    /// Opens the session, sends the request, and commits the session.
    pub(super) async fn run(&mut self) -> Result<Response<Body>, Error> {
        let opened = match self.routed.arrival.take() {
            Some(arrival) => {
                self.access.begin_store_time();
                let opened = pin!(self.proxy.sessions.open(arrival)).await;
                self.access.end_store_time();
                Some(opened?)
            }
            None => None,
        };
        self.access
            .set_session(opened.as_ref().and_then(|opened| opened.guard.session().current_id()));
        let responded = pin!(self.send(opened.as_ref())).await;
        // A 101 that was not requested would turn the rest of the connection into a tunnel.
        let responded =
            responded.and_then(|response| self.routed.upgrade.validate_response(response));
        // Committed even if forwarding has failed: the error response may still need a cookie.
        let (response, guard) = match opened {
            None => (self.clean_without_session(responded?), None),
            Some(opened) => {
                self.access.begin_store_time();
                let response = pin!(self.commit(responded, &opened)).await;
                self.access.end_store_time();
                // The turn on the session ends here, before the body.
                drop(opened.turn);
                (response, Some(opened.guard))
            }
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let UpgradeRequest::WebSocket(handshake) =
                std::mem::replace(&mut self.routed.upgrade, UpgradeRequest::None)
        {
            return Box::pin(self.start_tunnel(handshake, response, guard)).await;
        }
        Ok(pin!(self.follow_session(response, guard)).await)
    }

    /// Sends the request to an upstream of its route, unless it is refused. A refusal goes the way of a response, so
    /// that it can set or delete the cookie.
    async fn send(&mut self, opened: Option<&Opened>) -> Result<Response<Body>, Error> {
        let Routed { route, refusal, is_too_large, holding, outgoing, .. } = &mut self.routed;
        if opened.and_then(Opened::principal).is_none()
            && let Some(refusal) = refusal.take()
        {
            return Err(refusal);
        }
        if *is_too_large {
            return Err(Error::TooLarge);
        }
        let Proxy { site, upstreams, sessions, tasks, .. } = &*self.proxy;
        if let Some(headers) = outgoing.headers_mut() {
            // After cleaning: the upstream can trust that these fields are the proxy's.
            site.inject(headers, route, opened, sessions.shared())?;
            if let (Some(holding), Some(opened)) = (holding, opened) {
                let now = sessions.shared().clock.now();
                self.gives_held = holding.give(headers, opened.guard.session(), now)?;
            }
        }
        let upstreams = upstreams.get(route.index()).ok_or(Error::NoRoute)?;
        Ok(pin!(upstreams.send(outgoing, tasks)).await?)
    }

    /// Starts a tunnel, which begins once the client has received the returned response.
    async fn start_tunnel(
        &mut self,
        handshake: Box<Handshake>,
        mut response: Response<Body>,
        guard: Option<RequestGuard>,
    ) -> Result<Response<Body>, Error> {
        let upstream = hyper::upgrade::on(&mut response);
        let client = handshake.accept(&mut response)?;
        let watched = watched(&self.routed.route, guard.as_ref()).await;
        let tunnel = Tunnel {
            client,
            upstream,
            metrics: self.proxy.metrics().clone(),
            guard,
            watched,
            idle_timeout: self.routed.route.tunnel_idle_timeout(),
        };
        let tasks = &self.proxy.tasks;
        tasks.run(tunnel.run(tasks.clone())).detach();
        Ok(response)
    }

    /// Keeps the request in flight until the end of its response, and ends an event stream with its session.
    async fn follow_session(
        &mut self,
        response: Response<Body>,
        guard: Option<RequestGuard>,
    ) -> Response<Body> {
        let is_stream =
            event_streams::is_event_stream(response.headers()) && !response.body().is_end_stream();
        let watched = match guard.as_ref() {
            Some(guard) if is_stream => Box::pin(watched(&self.routed.route, Some(guard))).await,
            _ => None,
        };
        self.access.hold(guard);
        match watched {
            Some(watched) => event_streams::follow(response, watched, &self.proxy.tasks),
            None => response,
        }
    }

    /// Applies the upstream's patch, commits the session, and sets its cookie.
    async fn commit(
        &mut self,
        responded: Result<Response<Body>, Error>,
        opened: &Opened,
    ) -> Response<Body> {
        let accepts = self.accepts;
        let mut response =
            responded.unwrap_or_else(|error| self.access.error_response(&error, accepts));
        let changes = self.take_changes(&mut response, opened);
        // The response may have become an error since.
        let kind = response_kind(&response);
        let Some(changes) = changes else {
            let session = opened.guard.session();
            let cookie = pin!(session.commit(kind, None, None)).await.cookie;
            let response = self.clean(response);
            return self.protect(response, cookie, opened, false);
        };
        let takes_held = changes.held.as_ref().is_some_and(|held| held.is_taken_from);
        let tasks = &self.proxy.tasks;
        let mut committed = Box::pin(commit(opened, kind, &changes, tasks)).await;
        let cookie = committed.cookie.take();
        let response = self.fail_or_drop(response, &changes, committed, opened);
        let response = self.clean(response);
        self.protect(response, cookie, opened, takes_held)
    }

    /// Takes the changes that a response asks for out of its head; `None` if there are none. A malformed patch makes the
    /// response an error.
    fn take_changes(
        &mut self,
        response: &mut Response<Body>,
        opened: &Opened,
    ) -> Option<Box<Changes>> {
        let kind = response_kind(response);
        let allows_patches = self.routed.route.header_exchange().is_some();
        let patch = exchange_headers::take_patch(response.headers_mut(), allows_patches, kind);
        let patch = patch.unwrap_or_else(|malformed| {
            let error = Error::Patch(malformed.to_string());
            *response = self.access.error_response(&error, self.accepts);
            None
        });
        let held = self.take_held(response, opened);
        (patch.is_some() || held.is_some()).then(|| Box::new(Changes { patch, held }))
    }

    /// Replaces the response by an error if a change has failed, unless the change is dropped.
    fn fail_or_drop(
        &mut self,
        mut response: Response<Body>,
        changes: &Changes,
        committed: Committed,
        opened: &Opened,
    ) -> Response<Body> {
        let (guard, accepts) = (&opened.guard, self.accepts);
        if let (Some(held), Err(failure)) = (&changes.held, committed.held) {
            if self.should_drop_held(opened, &failure) {
                guard.session().drop_held(held);
            } else {
                response = self.access.error_response(&Error::from_held_failure(failure), accepts);
            }
        }
        if let (Some(patch), Err(failure)) = (&changes.patch, committed.patched) {
            if should_drop_patch(guard, patch, &failure, &self.routed.route) {
                self.proxy.metrics().event(Event::PatchDropped);
                let keys: Vec<&str> =
                    patch.ops.iter().filter_map(Op::key).map(Key::as_str).collect();
                let cause = Some(causes(&failure)).filter(|causes| !causes.is_empty());
                limited!(info, "patch_dropped", %failure, cause, ?keys, "dropped a patch of a response header");
            } else {
                response = self.access.error_response(&Error::from_patch_failure(failure), accepts);
            }
        }
        response
    }

    /// Takes what the response does to held cookies out of its head; `None` if that is nothing.
    fn take_held(&self, response: &mut Response<Body>, opened: &Opened) -> Option<HeldResponse> {
        let holding = self.routed.holding.as_ref()?;
        let config = self.routed.route.hold()?;
        let (status, now) = (response.status(), self.proxy.sessions.shared().clock.now());
        let shared = self.proxy.sessions.shared();
        let notes = Notes {
            seen: self.proxy.site.seen(),
            same_site: shared.attributes.same_site,
            idle_timeout: shared.policy.idle_timeout,
        };
        let held = holding.take(response.headers_mut(), status, config, &notes, now);
        opened.guard.session().is_affected_by(&held).then_some(held)
    }

    /// Returns whether the response goes out without the cookies that could not be kept: the route says so, or the
    /// visitor only looks at a page and had no session before.
    fn should_drop_held(&self, opened: &Opened, failure: &Failure) -> bool {
        let is_unavailable =
            matches!(failure, Failure::NotLoaded | Failure::Store(StoreError::Unavailable(_)));
        let is_visit = opened.meta().is_none()
            && self.routed.holding.as_ref().is_some_and(|holding| holding.is_safe());
        is_visit || (is_unavailable && self.routed.route.on_error() == OnError::Anonymous)
    }

    /// Removes what must not reach the client from a response on a route without sessions.
    fn clean_without_session(&self, mut response: Response<Body>) -> Response<Body> {
        if let Some(hold) = self.routed.route.hold() {
            let removed = hold.remove_sets(response.headers_mut());
            self.proxy.metrics().events(Event::HeldCookieRemoved, removed as u64);
            // Without its Set-Cookie the response would seem fit for shared caches.
            if removed > 0 {
                // It cannot fail: a field has just been removed.
                let _ = caching::protect(response.headers_mut(), Protection::NoStore);
            }
        }
        self.clean(response)
    }

    /// Removes what must not reach the client from a response.
    fn clean(&self, mut response: Response<Body>) -> Response<Body> {
        let cleaned =
            response::clean(response.headers_mut(), &self.proxy.sessions.shared().attributes.name);
        if cleaned.session_cookies > 0 {
            let dropped = "dropped an upstream cookie with the name of the session cookie";
            self.access.warn("own_cookie", None, dropped);
        }
        let options = cleaned.options;
        response.map(|body| {
            body.with_trailers(move |trailers| trailers::clean(trailers, &[], &options))
        })
    }

    /// Protects the response from caches, and sets the session cookie.
    fn protect(
        &mut self,
        mut response: Response<Body>,
        cookie: Option<HeaderValue>,
        opened: &Opened,
        takes_held: bool,
    ) -> Response<Body> {
        let session = opened.guard.session().current_id();
        self.access.set_session(session);
        // Even an anonymous response varies: the same request with a cookie may get another one.
        let protection = match &cookie {
            Some(_) => Protection::NoStore,
            // Without its Set-Cookie the response would seem fit for shared caches.
            None if takes_held => Protection::NoStore,
            None if self.gives_held => Protection::Private,
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
            self.access.warn("head_full", None, full);
        }
        response
    }
}

/// The client may disconnect while the upstream is awaited.
impl Drop for Exchange {
    fn drop(&mut self) {
        self.note_upstream();
    }
}

/// The changes of a session that a response head asks for.
#[derive(Clone)]
struct Changes {
    patch: Option<Patch>,
    held: Option<HeldResponse>,
}

/// Commits the session with changes, as a task, so that it completes even if the client disconnects.
async fn commit(
    opened: &Opened,
    kind: ResponseKind,
    changes: &Changes,
    tasks: &Tasks,
) -> Committed {
    let session = opened.guard.session().clone();
    let (changes, turn) = (changes.clone(), opened.turn.clone());
    let commit = async move {
        let committed = session.commit(kind, changes.patch.as_ref(), changes.held.as_ref()).await;
        drop(turn);
        committed
    };
    tasks.run(commit).await.unwrap_or_else(|lost| {
        // The task panicked: the store may or may not have applied the changes.
        let unknown = || StoreError::OutcomeUnknown(lost.to_string().into()).into();
        Committed { cookie: None, patched: Err(unknown()), held: Err(unknown()) }
    })
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

/// Returns the session that a tunnel or an event stream ends with, unless the route disables that.
async fn watched(route: &Route, guard: Option<&RequestGuard>) -> Option<WatchedSession> {
    match (guard, route.tunnels()) {
        (Some(guard), Tunnels::WithSession) => guard.session().watch().await,
        _ => None,
    }
}

fn response_kind(response: &Response<Body>) -> ResponseKind {
    match response.status() {
        StatusCode::NOT_MODIFIED => ResponseKind::NotModified,
        status if status.is_server_error() => ResponseKind::Failed,
        _ => ResponseKind::Normal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every request has one, which moves through memory and lasts as long as it does.
    #[test]
    fn future_of_a_request_is_bounded() {
        fn size<'a, F>(_run: fn(&'a mut Exchange) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(Exchange::run) + size_of::<Exchange>();
        assert!(size <= 2048, "{size} bytes");
    }
}
