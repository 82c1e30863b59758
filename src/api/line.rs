//! The line of a call in the log, if `[log] api` is set. It has no query, which may name a principal, and no token.

use std::net::IpAddr;
use std::time::Instant;

use http::request::Parts;
use http::{Method, Uri};

use super::TokenCall;
use super::peer::Caller;
use crate::log;
use crate::net::ip;
use crate::server::Peer;
use crate::session::id::PublicId;
use crate::sessions::{RequestSession, TokenLookup};

/// The line of a call, which is written when this is dropped; nothing if calls are not logged. The server drops the call
/// of a caller that has gone away: its line has the status 0.
#[derive(Debug)]
pub(super) struct CallLine(Option<Box<Fields>>);

#[derive(Debug)]
struct Fields {
    started: Instant,
    method: Method,
    uri: Uri,
    peer: Option<IpAddr>,
    /// 0 before the response.
    status: u16,
    caller: Option<&'static str>,
    /// The session that the path names.
    session: Option<PublicId>,
    /// The session of a request, whose id the call may change.
    request: Option<RequestSession>,
}

impl CallLine {
    pub(super) fn begin(parts: &Parts, peer: &Peer) -> Self {
        let fields = || {
            Box::new(Fields {
                started: Instant::now(),
                method: parts.method.clone(),
                uri: parts.uri.clone(),
                peer: peer.address.map(|address| address.ip()),
                status: 0,
                caller: None,
                session: None,
                request: None,
            })
        };
        Self(log::logs_api().then(fields))
    }

    /// Notes that the service token is valid, and the session that the path names.
    pub(super) fn set_service(&mut self, session: Option<PublicId>) {
        if let Some(fields) = &mut self.0 {
            fields.caller = Some("service");
            fields.session = session;
        }
    }

    /// Notes that a request token is valid, and its request.
    pub(super) fn set_request(&mut self, call: &TokenCall) {
        if let Some(fields) = &mut self.0 {
            fields.caller = Some(match call.caller {
                Caller::Upstream => "session",
                Caller::Peer(_) => "instance",
            });
            if let Some(TokenLookup::Here(session)) = &call.request {
                fields.request = Some(session.clone());
            }
        }
    }

    /// Writes the line of a call that has a response.
    pub(super) fn finish(mut self, status: u16) {
        if let Some(fields) = &mut self.0 {
            fields.status = status;
        }
    }
}

impl Drop for CallLine {
    fn drop(&mut self) {
        if let Some(fields) = &self.0 {
            fields.write();
        }
    }
}

impl Fields {
    fn write(&self) {
        log::api(|line| {
            line.display("method", &self.method);
            line.debug("path", self.uri.path());
            line.number("status", self.status.into());
            if let Some(caller) = self.caller {
                line.text("caller", caller);
            }
            if let Some(address) = self.peer {
                line.display("peer", ip::Text(address));
            }
            let of_request = || self.request.as_ref().and_then(RequestSession::current_id);
            if let Some(session) = self.session.or_else(of_request) {
                line.display("session", session);
            }
            if let Some(trace) = self.request.as_ref().and_then(RequestSession::trace) {
                line.display("trace", trace);
            }
            let milliseconds =
                u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            line.number("milliseconds", milliseconds);
        });
    }
}
