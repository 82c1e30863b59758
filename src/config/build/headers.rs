//! Header fields that are set by configuration.

use http::{HeaderName, HeaderValue};

use super::super::field::{List, Named};
use super::super::file::Limits;
use super::super::problem::Origin;
use super::super::secret::Source;
use super::context::Context;
use crate::proxy::forwarded::is_written;
use crate::proxy::names::{is_reserved, is_same};

/// Fields by which a message is framed, routed or given to its session.
const NEVER: [&str; 15] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// The name of a field of a request that may be set by configuration.
pub(super) fn name(name: &str, origin: &Origin, context: &mut Context<'_>) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
        context.error(origin, "is no header's name; write letters, digits and dashes");
        return None;
    };
    let written_by_us = is_reserved(&name)
        || is_written(&name)
        || NEVER.iter().any(|never| is_same(&name, &HeaderName::from_static(never)));
    if written_by_us {
        context.error(origin, "is a header that this proxy writes or keeps; choose another name");
        return None;
    }
    Some(name)
}

/// Names of fields that clients send.
fn names(list: &List<String>, context: &mut Context<'_>) -> Vec<HeaderName> {
    list.values().iter().filter_map(|(text, origin)| name(text, origin, context)).collect()
}

/// Fields that are taken from untrusted peers, and fields of theirs that pass; none is both.
pub(super) fn stripped_and_kept(
    limits: &Limits,
    context: &mut Context<'_>,
) -> (Vec<HeaderName>, Vec<HeaderName>) {
    let stripped = names(&limits.strip_request_headers, context);
    let kept = names(&limits.keep_request_headers, context);
    for (text, origin) in limits.keep_request_headers.values() {
        let name = HeaderName::from_bytes(text.as_bytes());
        if name.is_ok_and(|name| stripped.iter().any(|other| is_same(other, &name))) {
            context.error(origin, "is in limits.strip_request_headers too; remove one");
        }
    }
    (stripped, kept)
}

/// Fields whose values are secrets. None of them has the name that is `taken`.
pub(super) fn secrets(
    table: &Named<Source>,
    taken: Option<&HeaderName>,
    context: &mut Context<'_>,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for (text, source, origin) in table.values() {
        let name = name(text, origin, context);
        let value = context.secret(source, origin).and_then(|secret| {
            let value = HeaderValue::from_str(secret.reveal()).ok();
            if value.is_none() {
                context.error(origin, "no header can carry it; write visible ASCII in one line");
            }
            value
        });
        let (Some(name), Some(mut value)) = (name, value) else {
            continue;
        };
        if headers.iter().map(|(other, _)| other).chain(taken).any(|other| is_same(&name, other)) {
            context.error(origin, "is set twice, whatever stands for the dash; leave one out");
            continue;
        }
        value.set_sensitive(true);
        headers.push((name, value));
    }
    headers
}
