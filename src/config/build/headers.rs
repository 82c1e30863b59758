//! Header fields that the configuration names.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};

use super::super::file::Limits;
use super::super::secret::SecretSource;
use super::super::value::Text;
use super::context::Context;
use crate::proxy::forwarded::is_written;
use crate::proxy::names::{is_reserved, is_same};

/// Fields that frame or route a message, or that give it a session or an id.
const NEVER: [&str; 16] = [
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
    "x-request-id",
];

/// Reads the name of a request header that the configuration may set.
pub(super) fn name(key: &str, name: &str, context: &mut Context<'_>) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
        context.error(key, "invalid header name; expected letters, digits and dashes");
        return None;
    };
    let is_ours = is_reserved(&name)
        || is_written(&name)
        || NEVER.iter().any(|never| is_same(&name, &HeaderName::from_static(never)));
    if is_ours {
        context.error(key, "is a header that this proxy writes or keeps; choose another name");
        return None;
    }
    Some(name)
}

/// Reads a list of names, which are lower case afterwards.
fn names(key: &str, list: &mut [Text], context: &mut Context<'_>) -> Vec<HeaderName> {
    let named = |(index, text): (usize, &mut Text)| {
        let name = name(&format!("{key}[{index}]"), text, context)?;
        *text = name.as_str().into();
        Some(name)
    };
    list.iter_mut().enumerate().filter_map(named).collect()
}

/// Reads the fields that are removed from untrusted peers' requests, and those that are kept; none is both.
pub(super) fn stripped_and_kept(
    limits: &mut Limits,
    context: &mut Context<'_>,
) -> (Vec<HeaderName>, Vec<HeaderName>) {
    let stripped =
        names("limits.strip_request_headers", &mut limits.strip_request_headers, context);
    let kept = names("limits.keep_request_headers", &mut limits.keep_request_headers, context);
    for (index, text) in limits.keep_request_headers.iter().enumerate() {
        let name = HeaderName::from_bytes(text.as_bytes());
        if name.is_ok_and(|name| stripped.iter().any(|other| is_same(other, &name))) {
            let key = format!("limits.keep_request_headers[{index}]");
            context.error(&key, "is in limits.strip_request_headers too; remove one");
        }
    }
    (stripped, kept)
}

/// Reads fields whose values are secrets; none of them has the name that is `taken`. `key` is the path of the
/// table.
pub(super) fn secrets(
    key: &str,
    table: &mut BTreeMap<String, SecretSource>,
    taken: Option<&HeaderName>,
    context: &mut Context<'_>,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
    let mut effective = BTreeMap::new();
    for (text, source) in std::mem::take(table) {
        let key = format!("{key}.{text}");
        let name = name(&key, &text, context);
        let value = context.secret(&key, &source).and_then(|secret| {
            let value = HeaderValue::from_str(secret.reveal()).ok();
            if value.is_none() {
                context.error(&key, "invalid header value; expected visible ASCII in one line");
            }
            value
        });
        let (Some(name), Some(mut value)) = (name, value) else {
            continue;
        };
        if headers.iter().map(|(other, _)| other).chain(taken).any(|other| is_same(&name, other)) {
            context.error(&key, "is set twice (- and _ are the same here); remove one");
            continue;
        }
        value.set_sensitive(true);
        effective.insert(name.to_string(), source);
        headers.push((name, value));
    }
    *table = effective;
    headers
}
