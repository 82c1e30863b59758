//! The access log: one event per request, written at the end of its response, together with its metrics
//! and its span.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Method, Request, Response, Version};
use tracing::{debug, warn};

use super::error::{Accepts, Error, causes};
use super::forwarded::Client;
use crate::body::{Body, End};
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
    failure: Option<Outcome>,
}

#[derive(Debug)]
struct Entry {
    started: Instant,
    method: Method,
    path: String,
    client: Option<IpAddr>,
    route: Option<Arc<str>>,
    session: Option<PublicId>,
    trace: Option<TraceId>,
    recording: Option<Box<Recording>>,
    status: u16,
    /// Keeps the request in flight until the end of its response body.
    guard: Option<RequestGuard>,
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
    pub(super) host: Option<HeaderValue>,
}

impl Access {
    pub(super) fn new<B>(request: &Request<B>, peer: &Peer) -> Self {
        let entry = Entry {
            started: Instant::now(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            client: peer.address.map(|address| address.ip()),
            route: None,
            session: None,
            trace: None,
            recording: None,
            status: 0,
            guard: None,
        };
        Self { entry: Some(entry), failure: None }
    }

    pub(super) fn set_client(&mut self, client: &Client) {
        if let Some(entry) = &mut self.entry {
            entry.client = client.address;
        }
    }

    pub(super) fn set_trace(&mut self, trace: TraceId, recording: Option<Recording>) {
        if let Some(entry) = &mut self.entry {
            entry.trace = Some(trace);
            entry.recording = recording.map(Box::new);
        }
    }

    pub(super) fn set_route(&mut self, route: &Arc<str>) {
        if let Some(entry) = &mut self.entry {
            entry.route = Some(Arc::clone(route));
        }
    }

    pub(super) fn set_session(&mut self, session: Option<PublicId>) {
        if let Some(entry) = &mut self.entry {
            entry.session = session;
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
        self.failure = Some(error.outcome());
        match error.outcome() {
            Outcome::ClientError | Outcome::Forwarded | Outcome::Redirected => {
                debug!(%error, cause = causes(error), "request refused");
            }
            Outcome::UpstreamError | Outcome::StoreError | Outcome::InternalError => {
                self.warn(error.cause(), Some(error), "request failed");
            }
        }
        error.response(accepts)
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
            path = ?entry.path,
            route = entry.route.as_deref(),
            upstream = error.and_then(Error::upstream).map(tracing::field::display),
            session = entry.session.map(tracing::field::display),
            trace = entry.trace.as_ref().map(tracing::field::display),
            error = error.map(tracing::field::display),
            cause = error.map(|error| causes(error)).filter(|causes| !causes.is_empty()),
            suppressed,
            "{message}",
        );
    }

    /// Returns the response to the client, and counts the request as `outcome`, or as its error's. The end of the
    /// response's body writes the entry.
    pub(super) fn finish(
        mut self,
        responded: Result<Response<Body>, Error>,
        accepts: Accepts,
        outcome: Outcome,
        metrics: &Metrics,
    ) -> Response<Body> {
        let response = responded.unwrap_or_else(|error| self.error_response(&error, accepts));
        // Taken, so that dropping `self` does not log it again.
        let Some(mut entry) = self.entry.take() else { return response };
        entry.status = response.status().as_u16();
        metrics.request(self.failure.unwrap_or(outcome), entry.status, entry.started.elapsed());
        let metrics = metrics.clone();
        response.map(|body| {
            // A response ends with its body, not with its head: only then are its duration and its
            // end known.
            body.with_guard(move |end| {
                metrics.response(end.reason());
                entry.write(end);
            })
        })
    }
}

/// Logs a request whose client disconnected before the response.
impl Drop for Access {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.write(End::Dropped);
        }
    }
}

impl Entry {
    fn write(self, end: End) {
        let Self { started, method, path, client, session, trace, recording, status, .. } = self;
        log::access(|line| {
            line.display("method", &method);
            line.debug("path", &path);
            line.number("status", status.into());
            if let Some(client) = client {
                line.display("client", ip::Text(client));
            }
            if let Some(session) = session {
                line.display("session", session);
            }
            if let Some(trace) = trace {
                line.display("trace", trace);
            }
            let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            line.number("milliseconds", milliseconds);
            line.text("end", end.reason().as_str());
        });
        let Some(recording) = recording else { return };
        let Recording { tracer, context, started: started_at, version, scheme, host } = *recording;
        let status = (status != 0).then_some(status);
        tracer.record(Span {
            context,
            started_at,
            duration: started.elapsed(),
            method,
            path,
            host: host
                .and_then(|host| host.to_str().ok().map(host::without_port).map(String::from)),
            scheme,
            version,
            client,
            session: session.map(|session| session.to_string()),
            status,
            end,
        });
    }
}
