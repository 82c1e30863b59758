//! The access log: one event for each request, when its response is over; the count of requests, and their spans.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Method, Request, Response, Version};
use tracing::info;

use super::error::{Accepts, Error};
use super::forwarded::Client;
use super::host;
use crate::body::{Body, End};
use crate::log::ACCESS;
use crate::metrics::{Metrics, Outcome};
use crate::scheme::Scheme;
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

    pub(super) fn belongs_to(&mut self, session: Option<Id>) {
        if let Some(line) = &mut self.line {
            line.session = session;
        }
    }

    /// The response in the place of one that failed; the request still ends as one that did.
    pub(super) fn failed(&mut self, error: &Error, accepts: Accepts) -> Response<Body> {
        error.log();
        self.failure = Some(error.outcome());
        error.response(accepts)
    }

    /// Counts the request, and has its line written when the response's body is over.
    pub(super) fn finish(
        mut self,
        response: Response<Body>,
        outcome: Outcome,
        metrics: &Metrics,
    ) -> Response<Body> {
        metrics.request(self.failure.unwrap_or(outcome));
        let Some(mut line) = self.line.take() else { return response };
        line.status = response.status().as_u16();
        response.map(|body| body.with_guard(move |end| line.write(end)))
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
        let Self { began, method, path, client, session, trace, recording, status } = self;
        info!(
            target: ACCESS,
            %method,
            ?path,
            status,
            client = client.map(tracing::field::display),
            session = session.map(tracing::field::display),
            trace = trace.map(tracing::field::display),
            milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            end = match end {
                End::Complete => "complete",
                End::Broken => "broken",
                End::Dropped => "dropped",
            },
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
