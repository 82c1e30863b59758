//! The WebSocket handshake: the client's request, the request to the upstream, and both responses.
//!
//! The request to an upstream is always HTTP/1.1. An HTTP/2 client sends no key (RFC 8441, section 5),
//! so the proxy generates one and verifies the upstream's response to it.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, MaxSizeReached, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;

use super::super::error::Error;
use super::super::list;
use crate::body::Body;
use crate::random;

/// The GUID that is appended to a key before hashing (RFC 6455, section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// The protocol upgrade that a request asks for.
#[derive(Debug)]
pub(crate) enum UpgradeRequest {
    None,
    WebSocket(Box<Handshake>),
}

/// The handshake of a client that requests a WebSocket.
#[derive(Debug)]
pub(crate) struct Handshake {
    /// The client's connection, available once the response is sent.
    client: OnUpgrade,
    /// The expected Sec-WebSocket-Accept; `None` if the client verifies it itself.
    accept: Option<HeaderValue>,
    /// The generated key, for an HTTP/2 client.
    key: Option<HeaderValue>,
}

impl UpgradeRequest {
    /// Determines the upgrade that a request asks for. An extended CONNECT becomes the equivalent GET.
    pub(crate) fn from_request<B>(request: &mut Request<B>) -> Self {
        let handshake = match request.version() {
            Version::HTTP_11 if is_upgrade(request) => {
                Handshake { client: hyper::upgrade::on(request), accept: None, key: None }
            }
            Version::HTTP_2 if is_extended_connect(request) => {
                // RFC 8441, section 5: CONNECT replaces GET in the handshake over HTTP/2.
                *request.method_mut() = Method::GET;
                let key = STANDARD.encode(random::bytes::<16>());
                let client = hyper::upgrade::on(request);
                Handshake { client, accept: accept_for(&key), key: HeaderValue::try_from(key).ok() }
            }
            _ => return Self::None,
        };
        Self::WebSocket(Box::new(handshake))
    }

    /// Returns the upstream's response, unless it switches to a protocol that was not requested.
    pub(crate) fn validate_response(
        &self,
        response: Response<Body>,
    ) -> Result<Response<Body>, Error> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        match self {
            Self::WebSocket(handshake) if handshake.is_accepted_by(response.headers()) => {
                Ok(response)
            }
            Self::WebSocket(_) | Self::None => Err(Error::Switched),
        }
    }

    /// Adds the upgrade to a request whose hop-by-hop fields have been removed.
    pub(crate) fn write_headers(&self, headers: &mut HeaderMap) -> Result<(), MaxSizeReached> {
        let Self::WebSocket(handshake) = self else { return Ok(()) };
        // Hop-by-hop fields are removed from every request, so the upgrade is added again here.
        headers.try_insert(CONNECTION, HeaderValue::from_static("upgrade"))?;
        headers.try_insert(UPGRADE, WEBSOCKET)?;
        if let Some(key) = &handshake.key {
            headers.try_insert(SEC_WEBSOCKET_KEY, key.clone())?;
            headers.try_insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))?;
        }
        Ok(())
    }
}

impl Handshake {
    /// Returns whether the head of a 101 response accepts this handshake.
    fn is_accepted_by(&self, headers: &HeaderMap) -> bool {
        let upgrade = headers.get(UPGRADE);
        upgrade.is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()))
            && self.accept.as_ref().is_none_or(|key| headers.get(SEC_WEBSOCKET_ACCEPT) == Some(key))
    }

    /// Converts the upstream's cleaned response to that for the client, and returns the client's
    /// connection.
    pub(crate) fn accept(self, response: &mut Response<Body>) -> Result<OnUpgrade, MaxSizeReached> {
        if self.accept.is_some() {
            // RFC 8441, section 5: over HTTP/2, success is a 200 without Sec-WebSocket-Accept.
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
        } else {
            let headers = response.headers_mut();
            headers.try_insert(CONNECTION, HeaderValue::from_static("upgrade"))?;
            headers.try_insert(UPGRADE, WEBSOCKET)?;
        }
        Ok(self.client)
    }
}

fn is_upgrade<B>(request: &Request<B>) -> bool {
    let names = |header, name: &[u8]| {
        list::members(request.headers(), header).any(|member| member.eq_ignore_ascii_case(name))
    };
    // RFC 6455, section 4.2.1, requires all three.
    request.method() == Method::GET
        && names(&CONNECTION, b"upgrade")
        && names(&UPGRADE, b"websocket")
}

fn is_extended_connect<B>(request: &Request<B>) -> bool {
    let protocol = request.extensions().get::<Protocol>();
    request.method() == Method::CONNECT
        && protocol.is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"))
}

/// Computes Sec-WebSocket-Accept for a key (RFC 6455, section 4.2.2).
fn accept_for(key: &str) -> Option<HeaderValue> {
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    HeaderValue::try_from(STANDARD.encode(digest)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computes_the_accept_key_of_the_rfc() {
        let accepted = accept_for("dGhlIHNhbXBsZSBub25jZQ==").expect("a header");
        assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
