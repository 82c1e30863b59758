//! The line of a call in the log, if `[log] api` is set. It has no query, which may name a principal, and no token.

use std::time::Instant;

use http::request::Parts;

use super::TokenCall;
use super::peer::Caller;
use crate::log;
use crate::net::ip;
use crate::server::Peer;
use crate::session::id::PublicId;
use crate::sessions::{RequestSession, TokenLookup};

/// What is logged of a call in addition to its head; nothing if calls are not logged.
#[derive(Debug)]
pub(super) struct CallLine(Option<Fields>);

#[derive(Debug)]
struct Fields {
    started: Instant,
    caller: Option<&'static str>,
    /// The session that the path names.
    session: Option<PublicId>,
    /// The session of a request, whose id the call may change.
    request: Option<RequestSession>,
}

impl CallLine {
    pub(super) fn begin() -> Self {
        let fields =
            || Fields { started: Instant::now(), caller: None, session: None, request: None };
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

    pub(super) fn write(self, parts: &Parts, peer: &Peer, status: u16) {
        let Some(Fields { started, caller, session, request }) = self.0 else { return };
        log::api(|line| {
            line.display("method", &parts.method);
            line.debug("path", parts.uri.path());
            line.number("status", status.into());
            if let Some(caller) = caller {
                line.text("caller", caller);
            }
            if let Some(address) = peer.address {
                line.display("peer", ip::Text(address.ip()));
            }
            let of_request = || request.as_ref().and_then(RequestSession::current_id);
            if let Some(session) = session.or_else(of_request) {
                line.display("session", session);
            }
            if let Some(trace) = request.as_ref().and_then(RequestSession::trace) {
                line.display("trace", trace);
            }
            let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            line.number("milliseconds", milliseconds);
        });
    }
}
