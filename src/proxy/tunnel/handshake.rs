//! The handshake of a tunnel: what the client asks for, what the upstream is asked for instead, and
//! what each is told.
//!
//! Upstreams are always asked by HTTP/1.1. A client of HTTP/2 has no key in its request (RFC 8441,
//! section 5), so we make one, and check what the upstream makes of it.

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

/// What RFC 6455, section 1.3, joins to a key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// What a request asks for beside its answer.
#[derive(Debug)]
pub(crate) enum Asked {
    /// Nothing.
    Nothing,
    /// A WebSocket.
    WebSocket(Handshake),
}

/// A client's wish for a WebSocket.
#[derive(Debug)]
pub(crate) struct Handshake {
    /// The client's connection, once it has its answer.
    client: OnUpgrade,
    /// What the upstream's answer must prove that it knows; `None` where the client asks for it.
    accept: Option<HeaderValue>,
    key: Option<HeaderValue>,
}

impl Asked {
    /// What a request asks for. One by extended CONNECT becomes the GET that it stands for.
    pub(crate) fn of<B>(request: &mut Request<B>) -> Self {
        let handshake = match request.version() {
            Version::HTTP_11 if is_upgrade(request) => {
                Handshake { client: hyper::upgrade::on(request), accept: None, key: None }
            }
            Version::HTTP_2 if is_extended_connect(request) => {
                *request.method_mut() = Method::GET;
                let key = STANDARD.encode(random::bytes::<16>());
                let client = hyper::upgrade::on(request);
                Handshake { client, accept: accept(&key), key: HeaderValue::try_from(key).ok() }
            }
            _ => return Self::Nothing,
        };
        Self::WebSocket(handshake)
    }

    /// An upstream's answer, unless it switches to something else than was asked for.
    pub(crate) fn judge(&self, response: Response<Body>) -> Result<Response<Body>, Error> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        match self {
            Self::WebSocket(handshake) if handshake.is_answered_by(response.headers()) => {
                Ok(response)
            }
            Self::WebSocket(_) | Self::Nothing => Err(Error::Switched),
        }
    }

    /// Asks the upstream for the same, in a head from which everything of the hop was taken.
    pub(crate) fn write(&self, headers: &mut HeaderMap) -> Result<(), MaxSizeReached> {
        let Self::WebSocket(handshake) = self else { return Ok(()) };
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
    /// Whether an answer that switches protocols does what was asked for.
    fn is_answered_by(&self, headers: &HeaderMap) -> bool {
        let to = headers.get(UPGRADE);
        to.is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()))
            && self.accept.as_ref().is_none_or(|key| headers.get(SEC_WEBSOCKET_ACCEPT) == Some(key))
    }

    /// Makes of the upstream's answer, cleaned, the client's; and gives its connection.
    pub(crate) fn agree(self, response: &mut Response<Body>) -> Result<OnUpgrade, MaxSizeReached> {
        if self.accept.is_some() {
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
    request.method() == Method::GET
        && names(&CONNECTION, b"upgrade")
        && names(&UPGRADE, b"websocket")
}

fn is_extended_connect<B>(request: &Request<B>) -> bool {
    let protocol = request.extensions().get::<Protocol>();
    request.method() == Method::CONNECT
        && protocol.is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"))
}

fn accept(key: &str) -> Option<HeaderValue> {
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    HeaderValue::try_from(STANDARD.encode(digest)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_rfc_is_accepted_as_it_says() {
        let accepted = accept("dGhlIHNhbXBsZSBub25jZQ==").expect("a header");
        assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
