//! A request on its way to an upstream, which several attempts may send.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Uri, Version, header};
use http_body::Body as _;
use tokio::time::Instant;

use super::request_body::{Progress, RequestBody};
use super::retry::Retry;
use super::tls::UpstreamProtocol;
use crate::body::Body;

/// A request in the form in which it is sent. Every attempt takes it, and leaves what may be sent again.
///
/// It stays in one place, since a request is large and passes many functions.
#[derive(Debug)]
pub(crate) struct Outgoing {
    request: Option<Request<RequestBody>>,
    upgrade: Upgrade,
    reuse: Reuse,
    /// Whether a connection was opened for it at the last visit.
    opened: bool,
    visit: Option<Visit>,
}

/// The upstream that a request was sent to last.
#[derive(Debug)]
struct Visit {
    upstream: UpstreamUrl,
    progress: Progressing,
}

/// The time of a visit. It is small, since every request has one.
#[derive(Debug)]
enum Progressing {
    Since(Instant),
    /// Milliseconds until the head of the response, or the error.
    Took(u32),
}

/// The URL of an upstream, for the log.
pub(crate) type UpstreamUrl = Arc<Box<str>>;

/// The upstream that has responded, or was tried last.
#[derive(Clone, Debug)]
pub(crate) struct Visited {
    pub(crate) upstream: UpstreamUrl,
    /// Milliseconds until the head of the response, or the error; if there is neither, until now.
    pub(crate) milliseconds: u32,
}

/// Whether a request asks for an upgrade to another protocol, such as WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    Requested,
    None,
}

/// Whether a request may be sent on a connection that is open already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// On a kept one, if there is one.
    Kept,
    Never,
}

impl Outgoing {
    /// Prepares a request: HTTP/1.1 in origin form, framed as its body requires.
    pub(crate) fn new(request: Request<Body>) -> Self {
        let (mut parts, body) = request.into_parts();
        parts.version = Version::HTTP_11;
        if parts.uri.authority().is_some() {
            parts.uri = origin_form(parts.uri);
        }
        // hyper trusts these fields more than the body, and would send a length without a body.
        parts.headers.remove(header::TRANSFER_ENCODING);
        match body.size_hint().exact() {
            Some(0) if !parts.headers.contains_key(header::CONTENT_LENGTH) => {}
            Some(length) => {
                parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
            None => drop(parts.headers.remove(header::CONTENT_LENGTH)),
        }
        let upgrade = if parts.headers.contains_key(header::UPGRADE) {
            Upgrade::Requested
        } else {
            Upgrade::None
        };
        let request = Request::from_parts(parts, RequestBody::new(body));
        Self { request: Some(request), upgrade, reuse: Reuse::Kept, opened: false, visit: None }
    }

    /// Returns the headers, to add fields; none that frame the body. `None` after it was sent.
    pub(crate) fn headers_mut(&mut self) -> Option<&mut HeaderMap> {
        self.request.as_mut().map(Request::headers_mut)
    }

    /// Notes that the request is sent to the upstream with this URL.
    pub(super) fn begin_visit(&mut self, upstream: &UpstreamUrl) -> Instant {
        let (upstream, started) = (Arc::clone(upstream), Instant::now());
        self.visit = Some(Visit { upstream, progress: Progressing::Since(started) });
        self.opened = false;
        started
    }

    /// Notes the response or the error, and returns the time until then.
    pub(super) fn end_visit(&mut self, started: Instant) -> Duration {
        let took = started.elapsed();
        if let Some(visit) = &mut self.visit {
            visit.progress = Progressing::Took(milliseconds(took));
        }
        took
    }

    /// Takes the upstream that the request was sent to last; `None` if it was not sent.
    pub(crate) fn take_visited(&mut self) -> Option<Visited> {
        let Visit { upstream, progress } = self.visit.take()?;
        let milliseconds = match progress {
            Progressing::Since(started) => milliseconds(started.elapsed()),
            Progressing::Took(milliseconds) => milliseconds,
        };
        Some(Visited { upstream, milliseconds })
    }

    /// Sends it on a connection of this kind.
    pub(super) fn on(self, reuse: Reuse) -> Self {
        Self { reuse, ..self }
    }

    pub(super) fn set_reuse(&mut self, reuse: Reuse) {
        self.reuse = reuse;
    }

    pub(super) fn reuse(&self) -> Reuse {
        self.reuse
    }

    /// Notes that a connection was opened for it.
    pub(super) fn set_opened(&mut self) {
        self.opened = true;
    }

    /// Returns whether a connection was opened for it at the last visit.
    pub(super) fn was_opened(&self) -> bool {
        self.opened
    }

    pub(super) fn upgrade(&self) -> Upgrade {
        self.upgrade
    }

    /// Returns the protocol to send it by. An upgrade is always requested by HTTP/1.1.
    pub(super) fn protocol(&self, configured: UpstreamProtocol) -> UpstreamProtocol {
        match self.upgrade {
            Upgrade::Requested => UpstreamProtocol::Http1,
            Upgrade::None => configured,
        }
    }

    /// Returns whether there is a request to send: it was not sent, or may be repeated.
    pub(super) fn can_be_sent(&self) -> bool {
        self.request.is_some()
    }

    /// Returns the progress of the body; `None` if it is empty.
    pub(super) fn progress(&self) -> Option<Arc<Progress>> {
        self.request.as_ref()?.body().progress()
    }

    /// Takes the request for an attempt, with a Host if it has none, and leaves a copy if it may be repeated.
    ///
    /// The caller has checked that it [can be sent](Self::can_be_sent); otherwise this is an empty request.
    pub(super) fn take(&mut self, host: &HeaderValue, retry: Retry) -> Request<RequestBody> {
        let mut request =
            self.request.take().unwrap_or_else(|| Request::new(RequestBody::new(Body::empty())));
        request.headers_mut().entry(header::HOST).or_insert_with(|| host.clone());
        self.request = retry.copy(&request);
        request
    }

    /// Puts a request back of which nothing was sent.
    pub(super) fn put_back(&mut self, request: Request<RequestBody>) {
        self.request = Some(request);
    }

    /// Drops the copy, since the request must not be repeated.
    pub(super) fn clear(&mut self) {
        self.request = None;
    }
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn origin_form(uri: Uri) -> Uri {
    uri.into_parts().path_and_query.map_or_else(|| Uri::from_static("/"), Uri::from)
}
