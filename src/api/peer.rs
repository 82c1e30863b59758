//! Calls between instances: those that go to the instance that forwarded the request, and those
//! that come from another.
//!
//! A call that came from another instance is never passed on, so none goes round in circles.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH,
    IF_NONE_MATCH, RETRY_AFTER,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Response};
use tracing::debug;

use super::problem::{self, Answered};
use super::routes::Call;
use crate::body::Body;
use crate::client::{self, Pool, Target, Tls};
use crate::log::limited;
use crate::net::scheme::Scheme;
use crate::server::Tasks;
use crate::session::peer::{Instance, PassedCall, Voucher};
use crate::sessions::{Sessions, Shared};

/// A passed call carries what vouches for it, and its answer the receipt.
const X_SESSION_PEER: HeaderName = HeaderName::from_static("x-session-peer");

/// What goes with a passed call beside its token.
const REQUEST_HEADERS: [HeaderName; 5] =
    [ACCEPT, CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH, HeaderName::from_static("prefer")];

/// What comes back with its answer: all that the API's answers have.
const RESPONSE_HEADERS: [HeaderName; 6] = [
    CACHE_CONTROL,
    CONTENT_TYPE,
    ETAG,
    RETRY_AFTER,
    HeaderName::from_static("preference-applied"),
    HeaderName::from_static("x-content-type-options"),
];

/// For the whole of a passed call; in it, for the connection.
const DEADLINE: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Who makes a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Caller {
    /// An upstream.
    Upstream,
    /// Another instance.
    Peer(Voucher),
}

/// Who makes a call of this token and body.
pub(super) fn caller(
    parts: &Parts,
    token: &HeaderValue,
    body: &[u8],
    shared: &Shared,
) -> Answered<Caller> {
    let mut lines = parts.headers.get_all(X_SESSION_PEER).iter();
    let voucher = match (lines.next(), lines.next()) {
        (None, _) => return Ok(Caller::Upstream),
        (Some(line), None) => line.as_bytes(),
        (Some(_), Some(_)) => return Err(problem::peer_unknown()),
    };
    let (method, target) = (parts.method.as_str(), target(parts));
    let call = PassedCall { token: token.as_bytes(), method, target: target.as_str(), body };
    let voucher = call.verify(&shared.ring, voucher, shared.clock.now());
    voucher.map(Caller::Peer).ok_or_else(problem::peer_unknown)
}

/// The answer to another instance's call.
pub(super) fn receipted(
    mut response: Response<Body>,
    voucher: Voucher,
    shared: &Shared,
) -> Response<Body> {
    if let Ok(receipt) = HeaderValue::from_str(voucher.receipt(&shared.ring).reveal()) {
        response.headers_mut().insert(X_SESSION_PEER, receipt);
    }
    response
}

/// A call on its way to the instance that forwarded its request.
#[derive(Debug)]
pub(super) struct Errand {
    sessions: Sessions,
    tasks: Tasks,
    peers: Option<Arc<Tls>>,
    owner: Instance,
    call: Call,
    method: Method,
    target: PathAndQuery,
    headers: HeaderMap,
    token: HeaderValue,
    body: Bytes,
    limit: usize,
}

impl Errand {
    /// The same call, on the same authority. Its answer has at most `limit` bytes.
    pub(super) fn new(
        (sessions, tasks): (Sessions, Tasks),
        (owner, peers): (Instance, Option<Arc<Tls>>),
        call: Call,
        parts: &Parts,
        (token, body): (&HeaderValue, Bytes),
        limit: usize,
    ) -> Self {
        let mut headers = HeaderMap::new();
        for name in REQUEST_HEADERS {
            for line in parts.headers.get_all(&name) {
                headers.append(&name, line.clone());
            }
        }
        let (token, target) = (token.clone(), target(parts));
        // What HEAD leaves out, this instance leaves out itself.
        let method = if call.writes() { parts.method.clone() } else { Method::GET };
        Self { sessions, tasks, peers, owner, call, method, target, headers, token, body, limit }
    }

    /// Passes the call, and answers what the owner answers.
    pub(super) async fn run(self) -> Answered<Response<Body>> {
        let shared = self.sessions.shared();
        let Some(owner) = self.owner_target() else {
            return Err(problem::instance_gone());
        };
        let (request, voucher) = self.request()?;
        let config = client::Config {
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: DEADLINE,
            max_idle: 0,
            tls: self.peers.clone(),
            ..client::Config::default()
        };
        // A connection of its own: none that is kept may have been closed meanwhile.
        let pool = Pool::new(owner.clone(), config);
        match pool.fetch(request, &self.tasks, self.limit, DEADLINE).await {
            Ok(answer) if is_received(&answer, voucher, shared) => Ok(passed_back(answer)),
            Ok(answer) => {
                let status = answer.status();
                // Another program there, or an instance with other keys, another time or prefix.
                limited!(warn, "peer", %owner, status = status.as_u16(), "unexpected response from peer (not a Cloakroom instance, or different keys)");
                Err(self.unanswered(status.is_server_error()))
            }
            Err(error) => {
                let cause = &error as &dyn std::error::Error;
                debug!(%owner, error = cause, "an instance did not answer");
                Err(self.unanswered(!error.is_connect()))
            }
        }
    }

    /// Where the owner is, if it can be another than this one.
    fn owner_target(&self) -> Option<Target> {
        let authority = &self.owner.authority;
        let is_other =
            !authority.is_empty() && *authority != self.sessions.shared().instance.authority;
        // Those that share a store are configured alike.
        let scheme = if self.peers.is_some() { Scheme::Https } else { Scheme::Http };
        is_other.then(|| format!("{}://{authority}", scheme.as_str()).parse().ok()).flatten()
    }

    fn request(&self) -> Answered<(Request<Body>, Voucher)> {
        let shared = self.sessions.shared();
        let call = PassedCall {
            token: self.token.as_bytes(),
            method: self.method.as_str(),
            target: self.target.as_str(),
            body: &self.body,
        };
        let voucher = call.sign(&shared.ring, shared.clock.now());
        let mut vouched = HeaderValue::from_str(voucher.text().reveal())
            .map_err(|_invalid| problem::internal())?;
        vouched.set_sensitive(true);
        let mut request = Request::new(Body::full(self.body.clone()));
        self.method.clone_into(request.method_mut());
        *request.uri_mut() = self.target.clone().into();
        self.headers.clone_into(request.headers_mut());
        request.headers_mut().insert("x-session-token", self.token.clone());
        request.headers_mut().insert(X_SESSION_PEER, vouched);
        Ok((request, voucher))
    }

    /// Where nobody of ours answered: a change may have been made nevertheless if it was sent.
    fn unanswered(&self, may_be_done: bool) -> crate::wire::Problem {
        if may_be_done && self.call.writes() {
            problem::instance_silent()
        } else {
            problem::instance_gone()
        }
    }
}

fn target(parts: &Parts) -> PathAndQuery {
    let target = parts.uri.path_and_query().cloned();
    target.unwrap_or_else(|| PathAndQuery::from_static("/"))
}

fn is_received(answer: &Response<Bytes>, voucher: Voucher, shared: &Shared) -> bool {
    let receipt = answer.headers().get(X_SESSION_PEER);
    receipt.is_some_and(|receipt| voucher.is_received(&shared.ring, receipt.as_bytes()))
}

/// The owner's answer, as this instance's.
fn passed_back(answer: Response<Bytes>) -> Response<Body> {
    let (parts, body) = answer.into_parts();
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = parts.status;
    for name in RESPONSE_HEADERS {
        if let Some(value) = parts.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}
