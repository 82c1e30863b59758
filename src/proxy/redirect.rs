//! The plain HTTP listener that redirects clients to the TLS listener.

use std::sync::Arc;

use http::header::{CACHE_CONTROL, HOST, LOCATION};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use percent_encoding::{CONTROLS, utf8_percent_encode};

use super::access::Access;
use super::error::{Accepts, Error};
use super::request;
use crate::body::Body;
use crate::metrics::{Metrics, Outcome};
use crate::net::host;
use crate::net::scheme::Scheme;
use crate::server::{Handler, Peer, Responding};

/// Redirects every request to the same host and path over HTTPS.
#[derive(Clone, Debug)]
pub(crate) struct Redirect {
    port: u16,
    metrics: Metrics,
}

impl Redirect {
    /// Creates a redirect to the TLS listener at `port`.
    pub(crate) fn new(port: u16, metrics: Metrics) -> Self {
        Self { port, metrics }
    }

    /// Returns the URL to redirect to. Requests that the proxy would reject are not redirected.
    fn location<B>(&self, request: Request<B>) -> Result<HeaderValue, Error> {
        let (mut parts, _body) = request.into_parts();
        request::check(&parts)?;
        request::normalize_target(&mut parts)?;
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        // The port of the Host is that of this listener.
        let name = host::without_port(host.unwrap_or_default());
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        // The target of an OPTIONS request may be `*`, which has no path.
        let path = path.strip_prefix('*').unwrap_or(path);
        if name.is_empty() {
            return Err(Error::NoRoute);
        }
        let port = match self.port {
            port if port == Scheme::Https.default_port() => String::new(),
            port => format!(":{port}"),
        };
        // Clients may send other bytes than ASCII, whose meaning in a header is not defined (RFC 9110, section 5.5).
        let path = utf8_percent_encode(path, CONTROLS);
        HeaderValue::try_from(format!("https://{name}{port}{path}")).map_err(Error::Header)
    }
}

impl Handler for Redirect {
    fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Responding {
        Box::pin(async move {
            let accepts = Accepts::from_headers(request.headers());
            let mut access = Access::new(&request, &peer);
            access.set_host(request.headers().get(HOST));
            let responded = self.location(request).map(redirect);
            access.finish(responded, accepts, Outcome::Redirected, &self.metrics)
        })
    }
}

/// Returns a 308 (RFC 9110, section 15.4.9), which preserves the method. It is not cacheable, because
/// the site may go back to plain HTTP.
fn redirect(location: HeaderValue) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(LOCATION, location);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(port: u16, target: &str, host: &str, expected: Option<&str>) {
        let request = Request::get(target).header("host", host).body(()).expect("a request");
        let location = Redirect::new(port, Metrics::new()).location(request).ok();
        assert_eq!(location.as_ref().map(|line| line.to_str().expect("ASCII")), expected);
    }

    #[test]
    fn redirects_to_the_same_host_and_path() {
        check(443, "/a?b=c", "shop.example.org", Some("https://shop.example.org/a?b=c"));
        check(443, "/", "shop.example.org:80", Some("https://shop.example.org/"));
        check(8443, "/%2F//x", "[::1]:8080", Some("https://[::1]:8443/%2F//x"));
        check(443, "http://other.example.org/x", "a", Some("https://other.example.org/x"));
    }

    #[test]
    fn malformed_requests_are_not_redirected() {
        for host in ["", "a/b", "me@a", "a b"] {
            check(443, "/", host, None);
        }
    }
}
