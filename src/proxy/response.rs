//! Cleaning of response heads.

use http::header::{HeaderMap, HeaderValue, SET_COOKIE};

use super::{
    hop,
    names::{self, X_SESSION_PATCH},
};
use crate::session::cookie;

/// The result of [`clean`], for the trailers and the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cleaned {
    /// Connection options; they apply to the trailers too.
    pub(crate) options: hop::Options,
    /// Number of dropped Set-Cookie fields with the name of the session cookie.
    pub(crate) session_cookies: usize,
}

/// Removes and returns the patches of an upstream, one per field, in order. Other spellings of the
/// name are not patches; [`clean`] drops them.
pub(crate) fn take_patches(headers: &mut HeaderMap) -> Vec<HeaderValue> {
    if !headers.contains_key(X_SESSION_PATCH) {
        return Vec::new();
    }
    let patches = headers.get_all(X_SESSION_PATCH).iter().cloned().collect();
    headers.remove(X_SESSION_PATCH);
    patches
}

/// Removes what must not reach a client: reserved names in any spelling, hop-by-hop fields, and
/// Set-Cookie fields with the name of the session cookie, which only the proxy sets, or of the admin page's.
pub(crate) fn clean(headers: &mut HeaderMap, cookie_name: &str) -> Cleaned {
    let options = hop::remove(headers);
    names::remove_matching(headers, names::is_reserved);
    drop_cookie(headers, cookie::ADMIN_COOKIE);
    Cleaned { options, session_cookies: drop_cookie(headers, cookie_name) }
}

/// Removes the Set-Cookie fields of a cookie, and returns their number. The others keep their order and
/// are never joined (RFC 9110, section 5.3, and RFC 6265, section 3).
fn drop_cookie(headers: &mut HeaderMap, name: &str) -> usize {
    let lines = headers.get_all(SET_COOKIE);
    let sets_it = |line: &HeaderValue| cookie::is_sent_as(line.as_bytes(), name);
    let own = lines.iter().filter(|line| sets_it(line)).count();
    if own > 0 {
        let others: Vec<_> = lines.iter().filter(|line| !sets_it(line)).cloned().collect();
        headers.remove(SET_COOKIE);
        for line in others {
            // This cannot fail: more fields than these have just been removed.
            let _ = headers.try_append(SET_COOKIE, line);
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;

    fn response(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        headers
    }

    fn check_cookie(line: &str, passes: bool) {
        let mut headers =
            response(&[("set-cookie", "z=1"), ("set-cookie", line), ("set-cookie", "a=2, b")]);
        let own = clean(&mut headers, "__Host-id").session_cookies;
        let left: Vec<_> = headers.get_all(SET_COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if passes {
            assert_eq!(left, [b"z=1", line.as_bytes(), b"a=2, b"]);
        } else {
            assert_eq!(left, [&b"z=1"[..], b"a=2, b"], "{line}");
        }
        assert_eq!(own, usize::from(!passes), "{line}");
    }

    #[test]
    fn drops_the_session_cookie_of_upstreams() {
        for own in [
            "__Host-id=x",
            " __Host-id\t=x; Path=/",
            "__Host-id=",
            "__Host-id==;a",
            // Browsers send these back without the leading "=".
            "=__Host-id=x",
            " \t= \t__Host-id=x; Path=/; Secure",
            "=__Host-id =x",
            "==__Host-id=x",
        ] {
            check_cookie(own, false);
        }
    }

    #[test]
    fn drops_the_cookie_of_the_admin_page() {
        let mut headers = response(&[
            ("set-cookie", "__cloakroom_admin=x; Path=/"),
            ("set-cookie", "= __cloakroom_admin =x"),
            ("set-cookie", "a=1"),
        ]);
        assert_eq!(clean(&mut headers, "__Host-id").session_cookies, 0);
        assert_eq!(headers.get_all(SET_COOKIE).iter().collect::<Vec<_>>(), ["a=1"]);
    }

    #[test]
    fn keeps_other_cookies_of_upstreams() {
        for other in [
            "__host-id=x",
            "__Host-idx=x",
            "__Host-id",
            "a; __Host-id=x",
            "a=__Host-id=x",
            "__Host%2Did=x",
            "\u{a0}__Host-id=x",
            "=a=__Host-id=x",
            "=__Host-id",
            "=",
            "",
            ";",
        ] {
            check_cookie(other, true);
        }
    }

    #[test]
    fn takes_patches_by_exact_name() {
        let mut headers = response(&[
            ("X-Session-Patch", "{\"a\":1}"),
            ("X_Session_Patch", "{\"b\":1}"),
            ("x-session-patch", "{\"c\":1}"),
            ("X-Session-Token", "echo"),
            ("Connection", "X-Session-Patch, X-Foo"),
            ("X-Foo", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "h2c"),
            ("Content-Length", "3"),
        ]);
        assert_eq!(take_patches(&mut headers), ["{\"a\":1}", "{\"c\":1}"]);
        assert!(take_patches(&mut headers).is_empty());
        clean(&mut headers, "id");
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["content-length"]);
    }

    proptest! {
        #[test]
        fn removes_all_reserved_names_and_cookies(
            names in proptest::collection::vec(
                "[Xx][-_.!]session[-_.~][a-z]{0,8}|set-cookie|connection|[a-z_.-]{1,9}",
                0..30,
            ),
            values in proptest::collection::vec(
                "[ \\t]?=?[ \\t]?(id|a|)[ \\t]?[=;]?[ -~]{0,9}",
                30,
            ),
        ) {
            let fields: Vec<_> = names.iter().zip(&values).map(|(n, v)| (&**n, &**v)).collect();
            let mut headers = response(&fields);
            clean(&mut headers, "id");
            prop_assert!(!headers.keys().any(names::is_reserved));
            prop_assert!(!headers.get_all(SET_COOKIE).iter().any(|line| cookie::is_sent_as(line.as_bytes(), "id")));
        }
    }
}
