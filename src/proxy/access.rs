//! The access log: one event per request, written at the end of its response, together with its metrics
//! and its span.

use std::net::IpAddr;
use std::slice::SliceIndex;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::HeaderValue;
use http::{Method, Request, Response, Version};
use tracing::{debug, warn};

use super::error::{Accepts, Error, causes};
use super::forwarded::Client;
use super::names::X_REQUEST_ID;
use super::site::Route;
use crate::body::{Body, End};
use crate::client::Visited;
use crate::log::{self, Permit};
use crate::metrics::{Metrics, Outcome};
use crate::net::scheme::Scheme;
use crate::net::{host, ip};
use crate::server::Peer;
use crate::session::id::PublicId;
use crate::sessions::RequestGuard;
use crate::telemetry::{Span, SpanContext, TraceId, Tracer};

/// What is logged about a request. Never its query, its cookies or a token.
#[derive(Debug)]
pub(super) struct Access {
    entry: Option<Entry>,
}

#[derive(Debug)]
struct Entry {
    started: Instant,
    method: Method,
    texts: Texts,
    client: Option<IpAddr>,
    route: Option<Arc<Route>>,
    visited: Option<Visited>,
    store_time: StoreTime,
    session: Option<PublicId>,
    trace: Option<TraceId>,
    recording: Option<Box<Recording>>,
    status: u16,
    /// The outcome of its error, if the proxy has responded with one.
    failure: Option<Outcome>,
    /// Keeps the request in flight until the end of its response body.
    guard: Option<RequestGuard>,
}

/// The time in which the session of a request was opened and committed. It is small, since every request has one.
#[derive(Debug)]
enum StoreTime {
    /// In milliseconds.
    Total(u32),
    /// It is being opened or committed, since this time or, if it is not the first time, as if since then.
    Since(Instant),
}

impl StoreTime {
    fn begin(&mut self) {
        let now = Instant::now();
        let before = Duration::from_millis(self.milliseconds());
        *self = Self::Since(now.checked_sub(before).unwrap_or(now));
    }

    fn end(&mut self) {
        *self = Self::Total(u32::try_from(self.milliseconds()).unwrap_or(u32::MAX));
    }

    fn milliseconds(&self) -> u64 {
        match self {
            Self::Total(total) => (*total).into(),
            Self::Since(start) => milliseconds(start.elapsed()),
        }
    }
}

/// Bytes that most hosts fit into.
const HOST_BYTES: usize = 40;

/// The texts of a request, in one allocation: the path, the host, and the id if that is not that of the trace.
#[derive(Debug)]
struct Texts {
    text: Vec<u8>,
    // Small, since every request has them. The limit of a head is less than what they can hold.
    path_bytes: u32,
    host_bytes: u32,
}

impl Texts {
    fn new<B>(request: &Request<B>) -> Self {
        let path = request.uri().path();
        let mut text = Vec::with_capacity(path.len() + HOST_BYTES);
        text.extend_from_slice(path.as_bytes());
        Self { text, path_bytes: length(path.as_bytes()), host_bytes: 0 }
    }

    fn path_end(&self) -> usize {
        self.path_bytes as usize
    }

    fn host_end(&self) -> usize {
        self.path_end() + self.host_bytes as usize
    }

    fn path(&self) -> &str {
        self.slice(..self.path_end())
    }

    /// Returns a part as text. Of the parts, a path alone may have other bytes than ASCII.
    fn slice(&self, range: impl SliceIndex<[u8], Output = [u8]>) -> &str {
        self.text.get(range).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    /// Returns the host without its port, if it is known.
    fn host(&self) -> Option<&str> {
        let host = host::without_port(self.slice(self.path_end()..self.host_end()));
        (!host.is_empty()).then_some(host)
    }

    fn request_id(&self) -> Option<&str> {
        let id = self.slice(self.host_end()..);
        (!id.is_empty()).then_some(id)
    }

    fn set_host(&mut self, host: Option<&HeaderValue>) {
        let host = host.map(HeaderValue::as_bytes).unwrap_or_default();
        if self.host_end() == self.text.len() {
            self.text.truncate(self.path_end());
            self.text.extend_from_slice(host);
        } else {
            self.text.splice(self.path_end()..self.host_end(), host.iter().copied());
        }
        self.host_bytes = length(host);
    }

    fn set_request_id(&mut self, id: &str) {
        self.text.truncate(self.host_end());
        self.text.extend_from_slice(id.as_bytes());
    }

    fn into_path(mut self) -> String {
        self.text.truncate(self.path_end());
        String::from_utf8(self.text).unwrap_or_default()
    }
}

fn length(text: &[u8]) -> u32 {
    u32::try_from(text.len()).unwrap_or(u32::MAX)
}

/// What a span records in addition to the access log entry.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) tracer: Arc<Tracer>,
    pub(super) context: SpanContext,
    /// Nanoseconds since the UNIX epoch.
    pub(super) started: u64,
    pub(super) version: Version,
    pub(super) scheme: Scheme,
}

impl Access {
    pub(super) fn new<B>(request: &Request<B>, peer: &Peer) -> Self {
        let entry = Entry {
            started: Instant::now(),
            method: request.method().clone(),
            texts: Texts::new(request),
            client: peer.address.map(|address| address.ip()),
            route: None,
            visited: None,
            store_time: StoreTime::Total(0),
            session: None,
            trace: None,
            recording: None,
            status: 0,
            failure: None,
            guard: None,
        };
        Self { entry: Some(entry) }
    }

    /// Sets the host of a request whose client is not determined.
    pub(super) fn set_host(&mut self, host: Option<&HeaderValue>) {
        // A malformed one may contain a password.
        let is_valid = |host: &&HeaderValue| host.to_str().is_ok_and(host::is_valid);
        if let Some(entry) = &mut self.entry {
            entry.texts.set_host(host.filter(is_valid));
        }
    }

    pub(super) fn set_client(&mut self, client: &Client) {
        if let Some(entry) = &mut self.entry {
            entry.client = client.address;
            entry.texts.set_host(client.host.as_ref());
        }
    }

    /// Sets the trace, and the id of the request if it is another.
    pub(super) fn set_ids(&mut self, trace: TraceId, request_id: Option<&HeaderValue>) {
        if let Some(entry) = &mut self.entry {
            entry.trace = Some(trace);
            if let Some(id) = request_id.and_then(|id| id.to_str().ok()) {
                entry.texts.set_request_id(id);
            }
        }
    }

    pub(super) fn set_recording(&mut self, recording: Recording) {
        if let Some(entry) = &mut self.entry {
            entry.recording = Some(Box::new(recording));
        }
    }

    pub(super) fn set_route(&mut self, route: &Arc<Route>) {
        if let Some(entry) = &mut self.entry {
            entry.route = Some(Arc::clone(route));
        }
    }

    /// Sets the upstream that has responded, or was tried last.
    pub(super) fn set_visited(&mut self, visited: Visited) {
        if let Some(entry) = &mut self.entry {
            entry.visited = Some(visited);
        }
    }

    pub(super) fn set_session(&mut self, session: Option<PublicId>) {
        if let Some(entry) = &mut self.entry {
            entry.session = session;
        }
    }

    /// Begins to count the time of the session, if slow requests are logged.
    pub(super) fn begin_store_time(&mut self) {
        if let Some(entry) = &mut self.entry
            && entry.slow().is_some()
        {
            entry.store_time.begin();
        }
    }

    pub(super) fn end_store_time(&mut self) {
        if let Some(entry) = &mut self.entry
            && entry.slow().is_some()
        {
            entry.store_time.end();
        }
    }

    /// Keeps a request in flight until the end of its response body.
    pub(super) fn hold(&mut self, guard: Option<RequestGuard>) {
        if let Some(entry) = &mut self.entry {
            entry.guard = guard;
        }
    }

    /// Logs an error and returns the response for it. The request counts as failed.
    pub(super) fn error_response(&mut self, error: &Error, accepts: Accepts) -> Response<Body> {
        if let Some(entry) = &mut self.entry {
            entry.failure = Some(error.outcome());
        }
        match error.outcome() {
            Outcome::ClientError | Outcome::Forwarded | Outcome::Redirected => {
                debug!(%error, cause = causes(error), "request refused");
            }
            Outcome::UpstreamError | Outcome::StoreError | Outcome::InternalError => {
                self.warn(error.cause(), Some(error), "request failed");
            }
        }
        error.response(accepts, self.entry.as_mut().map(Entry::id).unwrap_or_default())
    }

    /// Logs a warning with the fields of the request, at most one per second for each `cause`.
    pub(super) fn warn(&self, cause: &'static str, error: Option<&Error>, message: &str) {
        let (Some(Permit { suppressed }), Some(entry)) = (log::permit(cause), &self.entry) else {
            return;
        };
        warn!(
            method = %entry.method,
            // Quoted, because the client chooses the path: it must not look like other fields of
            // the line.
            path = ?entry.texts.path(),
            route = entry.route(),
            upstream = error.and_then(Error::upstream).map(tracing::field::display),
            session = entry.session.map(tracing::field::display),
            trace = entry.trace.as_ref().map(tracing::field::display),
            request_id = entry.texts.request_id(),
            error = error.map(tracing::field::display),
            cause = error.map(|error| causes(error)).filter(|causes| !causes.is_empty()),
            suppressed,
            "{message}",
        );
    }

    /// Returns the response to the client, and counts the request as `outcome`, or as its error's. The end of the
    /// response's body writes the entry.
    pub(super) fn finish(
        &mut self,
        responded: Result<Response<Body>, Error>,
        accepts: Accepts,
        outcome: Outcome,
        metrics: &Metrics,
    ) -> Response<Body> {
        let mut response = responded.unwrap_or_else(|error| self.error_response(&error, accepts));
        // Taken, so that dropping `self` does not log it again.
        let Some(mut entry) = self.entry.take() else { return response };
        entry.status = response.status().as_u16();
        if entry.route.as_ref().is_some_and(|route| route.sends_request_id())
            && let Ok(id) = HeaderValue::try_from(entry.id())
        {
            // A full head goes out without.
            let _ = response.headers_mut().try_insert(X_REQUEST_ID, id);
        }
        let took = entry.started.elapsed();
        metrics.request(entry.failure.unwrap_or(outcome), entry.status, took);
        entry.warn_if_slow(took);
        let metrics = metrics.clone();
        response.map(|body| {
            // A response ends with its body, not with its head: only then are its duration and its
            // end known.
            body.with_counting_guard(move |end, bytes| {
                metrics.response(end.reason());
                entry.write(end, bytes);
            })
        })
    }
}

/// Logs a request whose client disconnected before the response.
impl Drop for Access {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.warn_if_slow(entry.started.elapsed());
            entry.write(End::Dropped, 0);
        }
    }
}

impl Entry {
    /// Logs a request whose response head took too long, or whose client did not wait that long.
    fn warn_if_slow(&self, took: Duration) {
        if self.slow().is_none_or(|slow| took <= slow) {
            return;
        }
        let Some(Permit { suppressed }) = log::permit("slow") else { return };
        warn!(
            method = %self.method,
            path = ?self.texts.path(),
            status = Some(self.status).filter(|status| *status != 0),
            host = self.texts.host(),
            route = self.route(),
            upstream = self.visited.as_ref().map(|visited| tracing::field::display(&visited.upstream)),
            session = self.session.map(tracing::field::display),
            trace = self.trace.map(tracing::field::display),
            request_id = self.texts.request_id(),
            store_ms = self.store_time.milliseconds(),
            upstream_ms = self.visited.as_ref().map(|visited| visited.milliseconds),
            milliseconds = milliseconds(took),
            suppressed,
            "slow request",
        );
    }

    /// Returns the time after which the request is slow; `None` if that is not logged.
    fn slow(&self) -> Option<Duration> {
        self.route.as_ref()?.slow()
    }

    fn write(self, end: End, bytes: u64) {
        log::access(|line| self.add_fields(line, end, bytes));
        self.record(end);
    }

    fn add_fields(&self, line: &mut log::Line, end: End, bytes: u64) {
        line.display("method", &self.method);
        line.debug("path", self.texts.path());
        line.number("status", self.status.into());
        if let Some(client) = self.client {
            line.display("client", ip::Text(client));
        }
        if let Some(host) = self.texts.host() {
            line.text("host", host);
        }
        if let Some(route) = self.route() {
            line.text("route", route);
        }
        if let Some(visited) = &self.visited {
            line.display("upstream", &visited.upstream);
        }
        if let Some(session) = self.session {
            line.display("session", session);
        }
        if let Some(trace) = self.trace {
            line.display("trace", trace);
        }
        if let Some(id) = self.texts.request_id() {
            line.text("request_id", id);
        }
        line.number("bytes", bytes);
        if let Some(visited) = &self.visited {
            line.number("upstream_ms", visited.milliseconds.into());
        }
        line.number("milliseconds", milliseconds(self.started.elapsed()));
        line.text("end", end.reason().as_str());
    }

    /// Records the span of the request, if its trace is sampled.
    fn record(mut self, end: End) {
        let Some(recording) = self.recording.take() else { return };
        let Recording { tracer, context, started: started_at, version, scheme } = *recording;
        tracer.record(Span {
            context,
            started_at,
            duration: self.started.elapsed(),
            host: self.texts.host().map(str::to_owned),
            scheme,
            version,
            client: self.client,
            session: self.session.map(|session| session.to_string()),
            status: Some(self.status).filter(|status| *status != 0),
            end,
            method: self.method,
            path: self.texts.into_path(),
        });
    }

    /// Returns the id of the request. One that was refused before it had any gets a new one.
    fn id(&mut self) -> String {
        match self.texts.request_id() {
            Some(id) => id.to_owned(),
            None => self.trace.get_or_insert_with(TraceId::random).to_string(),
        }
    }

    fn route(&self) -> Option<&str> {
        self.route.as_ref().map(|route| &**route.name())
    }
}

/// Returns a duration in whole milliseconds.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
