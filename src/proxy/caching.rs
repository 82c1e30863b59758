//! Protection of responses against shared caches (RFC 9111), so that no client receives another's
//! session from one.

use http::header::{
    CACHE_CONTROL, EXPIRES, HeaderMap, HeaderName, HeaderValue, MaxSizeReached, PRAGMA, VARY,
};

use super::{
    list,
    names::{self, EDGE_CONTROL, SURROGATE_CONTROL, X_ACCEL_EXPIRES},
};

/// The protection that a response on a route with sessions needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protection {
    /// No session was opened, but the same request with a cookie might have had one.
    Vary,
    /// A session was opened, so the response may depend on it.
    Private,
    /// The response sets the session cookie.
    NoStore,
}

/// Restricts caching of a response, never less than the upstream did.
pub(crate) fn protect(
    headers: &mut HeaderMap,
    protection: Protection,
) -> Result<(), MaxSizeReached> {
    match protection {
        Protection::Vary => {}
        Protection::Private => add_private(headers)?,
        Protection::NoStore => {
            // RFC 9111, section 7.3: caches do store responses with Set-Cookie. Some of the removed
            // fields take precedence over Cache-Control in the caches that support them.
            names::remove_matching(headers, is_cache_field);
            headers.try_insert(CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
        }
    }
    add_vary(headers)
}

/// Adds `private`, unless the upstream has decided about shared caches.
///
/// With `public` or `s-maxage`, it states that the response is the same for all clients. Fields for
/// CDNs only (CDN-Cache-Control, RFC 9213, and its predecessors) state the same to the caches that read
/// them, and are kept; caches that read Cache-Control only still receive `private`.
fn add_private(headers: &mut HeaderMap) -> Result<(), MaxSizeReached> {
    // Quoted strings may contain commas, e.g. `private="Set-Cookie, Vary"`.
    let Some(directives) = list::quoted_members(headers, &CACHE_CONTROL) else {
        // Allow nothing if the directives cannot be parsed.
        headers.try_insert(CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
        return Ok(());
    };
    if directives.into_iter().any(is_decision) {
        return Ok(());
    }
    append_member(headers, CACHE_CONTROL, "private")
}

/// Returns whether a directive decides about shared caches. `private="field"` does not: it applies to
/// that field only (RFC 9111, section 5.2.2.7).
fn is_decision(directive: &[u8]) -> bool {
    let (name, has_argument) = match list::split_once(directive, b'=') {
        Some((name, _)) => (name, true),
        None => (directive, false),
    };
    let is = |word: &str| list::trim(name).eq_ignore_ascii_case(word.as_bytes());
    is("public") || is("s-maxage") || is("no-store") || (is("private") && !has_argument)
}

fn add_vary(headers: &mut HeaderMap) -> Result<(), MaxSizeReached> {
    let is_present = list::members(headers, &VARY)
        .any(|member| member == b"*" || member.eq_ignore_ascii_case(b"cookie"));
    if is_present { Ok(()) } else { append_member(headers, VARY, "Cookie") }
}

fn append_member(
    headers: &mut HeaderMap,
    name: HeaderName,
    member: &'static str,
) -> Result<(), MaxSizeReached> {
    let line = if headers.contains_key(&name) {
        list::joined(headers, &name, member.as_bytes())
    } else {
        None
    };
    headers.try_insert(name, line.unwrap_or_else(|| HeaderValue::from_static(member)))?;
    Ok(())
}

fn is_cache_field(name: &HeaderName) -> bool {
    [CACHE_CONTROL, EXPIRES, PRAGMA, SURROGATE_CONTROL, X_ACCEL_EXPIRES, EDGE_CONTROL]
        .contains(name)
        || name.as_str().ends_with("cdn-cache-control")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        protection: Protection,
        before: &[(&'static str, &'static str)],
        after: &[(&str, &str)],
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in before {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        protect(&mut headers, protection).unwrap();
        let mut found: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        found.sort_unstable();
        assert_eq!(found, after, "{protection:?} {before:?}");
    }

    #[test]
    fn responses_with_the_cookie_are_not_stored() {
        check(
            Protection::NoStore,
            &[
                ("cache-control", "public, max-age=60"),
                ("cache-control", "immutable"),
                ("expires", "0"),
                ("pragma", "cache"),
                ("surrogate-control", "max-age=60"),
                ("cdn-cache-control", "max-age=60"),
                ("cloudflare-cdn-cache-control", "max-age=60"),
                ("x-accel-expires", "60"),
                ("etag", "\"1\""),
            ],
            &[("cache-control", "no-store"), ("etag", "\"1\""), ("vary", "Cookie")],
        );
    }

    #[test]
    fn vary_lists_cookie_once() {
        for (before, after) in [
            (&[][..], &["Cookie"][..]),
            (&["Accept"], &["Accept, Cookie"]),
            (&["Accept", "Origin,"], &["Accept, Origin,, Cookie"]),
            (&["accept, COOKIE"], &["accept, COOKIE"]),
            (&["accept", "cookie"], &["accept", "cookie"]),
            (&["*"], &["*"]),
            (&["Cookie-X"], &["Cookie-X, Cookie"]),
        ] {
            let before: Vec<_> = before.iter().map(|value| ("vary", *value)).collect();
            let after: Vec<_> = after.iter().map(|value| ("vary", *value)).collect();
            check(Protection::Vary, &before, &after);
        }
    }

    #[test]
    fn adds_private_unless_the_upstream_decided() {
        for (before, after) in [
            (&[][..], &["private"][..]),
            (&["max-age=60", "no-cache"], &["max-age=60, no-cache, private"]),
            (&["no-cache=\"Set-Cookie, public\""], &["no-cache=\"Set-Cookie, public\", private"]),
            (&["private=\"x\""], &["private=\"x\", private"]),
            (&["PUBLIC"], &["PUBLIC"]),
            (&["max-age=1", "s-MAXage = 5"], &["max-age=1", "s-MAXage = 5"]),
            (&["Private"], &["Private"]),
            (&["no-store"], &["no-store"]),
            (&["ext=\"public"], &["no-store"]),
            (&["publicly"], &["publicly, private"]),
        ] {
            let with_vary = |values: &[&'static str]| -> Vec<_> {
                values
                    .iter()
                    .map(|value| ("cache-control", *value))
                    .chain([("vary", "Cookie")])
                    .collect()
            };
            check(Protection::Private, &with_vary(before), &with_vary(after));
        }
    }

    #[test]
    fn keeps_cdn_fields_without_set_cookie() {
        check(
            Protection::Private,
            &[("cdn-cache-control", "max-age=60"), ("surrogate-control", "max-age=60")],
            &[
                ("cache-control", "private"),
                ("cdn-cache-control", "max-age=60"),
                ("surrogate-control", "max-age=60"),
                ("vary", "Cookie"),
            ],
        );
    }
}
