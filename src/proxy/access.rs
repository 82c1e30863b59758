//! The access log: one event for each request, when its response is over; the count of requests, and their spans.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Method, Request, Response, Version};
use tracing::{debug, info, warn};

use super::error::{Accepts, Error, causes};
use super::forwarded::Client;
use crate::body::{Body, End};
use crate::log::{self, ACCESS, Permit};
use crate::metrics::{Metrics, Outcome};
use crate::net::host;
use crate::net::scheme::Scheme;
use crate::server::Peer;
use crate::session::id::Id;
use crate::telemetry::{Ended, Recorded, Span, Trace, Tracer};

/// What is told of a request. Never its query, its cookies or a token.
#[derive(Debug)]
pub(super) struct Access {
    line: Option<Line>,
    failure: Option<Outcome>,
}

#[derive(Debug)]
struct Line {
    began: Instant,
    method: Method,
    path: String,
    client: Option<IpAddr>,
    route: Option<Arc<str>>,
    session: Option<Id>,
    trace: Option<Trace>,
    recording: Option<Recording>,
    status: u16,
}

/// What a span tells beside the access log's line.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) tracer: Arc<Tracer>,
    pub(super) place: Recorded,
    /// Nanoseconds since the UNIX epoch.
    pub(super) began: u64,
    pub(super) version: Version,
    pub(super) scheme: Scheme,
    pub(super) host: Option<HeaderValue>,
}

impl Access {
    pub(super) fn of<B>(request: &Request<B>, peer: &Peer) -> Self {
        let line = Line {
            began: Instant::now(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            client: peer.address.map(|address| address.ip()),
            route: None,
            session: None,
            trace: None,
            recording: None,
            status: 0,
        };
        Self { line: Some(line), failure: None }
    }

    pub(super) fn comes_from(&mut self, client: &Client) {
        if let Some(line) = &mut self.line {
            line.client = client.address;
        }
    }

    pub(super) fn is_of(&mut self, trace: Trace, recording: Option<Recording>) {
        if let Some(line) = &mut self.line {
            line.trace = Some(trace);
            line.recording = recording;
        }
    }

    pub(super) fn set_route(&mut self, route: &Arc<str>) {
        if let Some(line) = &mut self.line {
            line.route = Some(Arc::clone(route));
        }
    }

    pub(super) fn belongs_to(&mut self, session: Option<Id>) {
        if let Some(line) = &mut self.line {
            line.session = session;
        }
    }

    /// Returns the response in place of one that failed, and logs why; the request still counts as failed.
    pub(super) fn failed(&mut self, error: &Error, accepts: Accepts) -> Response<Body> {
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

    /// Logs a warning with what is known of the request; at most one a second for each `cause`.
    pub(super) fn warn(&self, cause: &'static str, error: Option<&Error>, message: &str) {
        let (Some(Permit { left_out }), Some(line)) = (log::permit(cause), &self.line) else {
            return;
        };
        warn!(
            method = %line.method,
            path = ?line.path,
            route = line.route.as_deref(),
            upstream = error.and_then(Error::upstream).map(tracing::field::display),
            session = line.session.map(tracing::field::display),
            trace = line.trace.as_ref().map(tracing::field::display),
            error = error.map(tracing::field::display),
            cause = error.map(|error| causes(error)).filter(|causes| !causes.is_empty()),
            left_out,
            "{message}",
        );
    }

    /// Counts the request, and has its line written when the response's body is over.
    pub(super) fn finish(
        mut self,
        response: Response<Body>,
        outcome: Outcome,
        metrics: &Metrics,
    ) -> Response<Body> {
        let Some(mut line) = self.line.take() else { return response };
        line.status = response.status().as_u16();
        metrics.request(self.failure.unwrap_or(outcome), line.status, line.began.elapsed());
        let metrics = metrics.clone();
        response.map(|body| {
            body.with_guard(move |end| {
                metrics.response(end.reason());
                line.write(end);
            })
        })
    }
}

/// A request whose client hung up before there was a response.
impl Drop for Access {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            line.write(End::Dropped);
        }
    }
}

impl Line {
    fn write(self, end: End) {
        let Self { began, method, path, client, session, trace, recording, status, .. } = self;
        info!(
            target: ACCESS,
            %method,
            ?path,
            status,
            client = client.map(tracing::field::display),
            session = session.map(tracing::field::display),
            trace = trace.map(tracing::field::display),
            milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            end = end.reason().as_str(),
        );
        let Some(Recording { tracer, place, began: at, version, scheme, host }) = recording else {
            return;
        };
        let status = (status != 0).then_some(status);
        tracer.record(Span {
            place,
            began: at,
            method,
            path,
            host: host
                .and_then(|host| host.to_str().ok().map(host::without_port).map(String::from)),
            scheme,
            version,
            client,
            session: session.map(|session| session.to_string()),
            ended: Ended { took: began.elapsed(), status, end },
        });
    }
}
