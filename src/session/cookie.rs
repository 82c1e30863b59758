//! The session cookie: taking it out of a request's cookies, setting and deleting it.

use std::time::Duration;

use bytes::Bytes;
use http::header::{COOKIE, HeaderMap, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::secret::Secret;

/// The cookie of a log-in at the admin page. Cookies know no ports: if a site is on the same host, browsers
/// send it there too, so the public listeners remove it in both directions.
pub(crate) const ADMIN_COOKIE: &str = "__cloakroom_admin";

/// The name and the attributes of the session cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// The name, which is case-sensitive.
    pub(crate) name: String,
    /// The path of the requests that carry it.
    pub(crate) path: String,
    /// The domain, if subdomains get it too.
    pub(crate) domain: Option<String>,
    /// Sent over TLS and to localhost only.
    pub(crate) secure: bool,
    /// Hidden from scripts.
    pub(crate) http_only: bool,
    /// The cross-site requests that carry it.
    pub(crate) same_site: SameSite,
    /// Kept separately for each site that embeds this one.
    pub(crate) partitioned: bool,
}

/// The cross-site requests that carry the cookie (RFC 6265bis, section 5.6.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub(crate) enum SameSite {
    /// None.
    Strict,
    /// Top-level navigations by a safe method.
    Lax,
    /// All; browsers demand Secure for it.
    None,
}

impl Default for Attributes {
    fn default() -> Self {
        Self {
            name: "__Host-id".to_owned(),
            path: "/".to_owned(),
            domain: None,
            secure: true,
            http_only: true,
            same_site: SameSite::Lax,
            partitioned: false,
        }
    }
}

impl Attributes {
    /// Returns the Set-Cookie that gives the browser `token`. Without `max_age` the cookie ends with
    /// the browser. It is marked sensitive, so that no `Debug` of headers prints it.
    pub(crate) fn set(&self, token: &Secret, max_age: Option<Duration>) -> HeaderValue {
        self.line(token.reveal(), max_age)
    }

    /// Returns the Set-Cookie that deletes the cookie.
    pub(crate) fn delete(&self) -> HeaderValue {
        self.line("", Some(Duration::ZERO))
    }

    fn line(&self, value: &str, max_age: Option<Duration>) -> HeaderValue {
        let mut cookie = cookie::Cookie::build((self.name.as_str(), value))
            .path(self.path.as_str())
            .secure(self.secure)
            .http_only(self.http_only)
            .same_site(match self.same_site {
                SameSite::Strict => cookie::SameSite::Strict,
                SameSite::Lax => cookie::SameSite::Lax,
                SameSite::None => cookie::SameSite::None,
            });
        if let Some(domain) = &self.domain {
            cookie = cookie.domain(domain.as_str());
        }
        if let Some(max_age) = max_age {
            let seconds = i64::try_from(max_age.as_secs()).unwrap_or(i64::MAX);
            cookie = cookie.max_age(time::Duration::seconds(seconds));
        }
        if self.partitioned {
            cookie = cookie.partitioned(true);
        }
        let mut line = HeaderValue::from_str(&cookie.build().to_string())
            .expect("configuration takes only names, paths and domains that fit a header");
        line.set_sensitive(true);
        line
    }
}

/// The values of a request's cookies of one name: mostly a single one.
pub type Values = SmallVec<[Secret; 1]>;

/// Removes every cookie called `name` from a request's Cookie lines, and returns their values.
/// The other cookies stay as they are, to the byte.
///
/// All values are returned, because only the tag shows which of them is ours: another host of the
/// domain may set as many as the request head holds, and browsers send those with a longer path
/// first (RFC 6265 section 5.4).
///
/// Pairs are split at `;` alone and trimmed of spaces and tabs, as in RFC 6265
/// section 5.4: no quoting, no decoding, no `$Version`. Parsers that do more have had security bugs.
pub fn take(headers: &mut HeaderMap, name: &str) -> Values {
    let mut found = Values::new();
    let has_it = |line: &HeaderValue| {
        pairs(line.as_bytes()).any(|pair| value_of(pair, name.as_bytes()).is_some())
    };
    if !headers.get_all(COOKIE).iter().any(has_it) {
        return found;
    }
    let lines: SmallVec<[HeaderValue; 2]> = headers.get_all(COOKIE).iter().cloned().collect();
    headers.remove(COOKIE);
    for line in lines {
        let rest = if has_it(&line) {
            cut(line.as_bytes(), name.as_bytes(), &mut found)
        } else {
            Some(line)
        };
        if let Some(mut rest) = rest {
            rest.set_sensitive(true);
            // This cannot exceed the capacity of the map, since as many lines were removed before.
            let _ = headers.try_append(COOKIE, rest);
        }
    }
    found
}

fn pairs(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b';')
}

/// Returns whether a Set-Cookie makes a browser send a cookie that [`take`] finds under `name`.
///
/// A cookie without a name (`=id=x`) is sent as its value alone (RFC 6265bis 5.8.3), and browsers
/// remove white space around name and value (5.6).
pub(crate) fn is_sent_as(line: &[u8], name: &str) -> bool {
    let mut sent = trim(pairs(line).next().unwrap_or_default());
    while let [b'=', value @ ..] = sent {
        sent = trim(value);
    }
    value_of(sent, name.as_bytes()).is_some()
}

/// Returns the value of a pair if its name is `name`.
fn value_of<'a>(pair: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let after = trim(pair).strip_prefix(name)?;
    trim(after).strip_prefix(b"=").map(trim)
}

/// Returns a line without the cookies called `name`, whose values are added to `found`; `None` if no others are left.
fn cut(line: &[u8], name: &[u8], found: &mut Values) -> Option<HeaderValue> {
    let mut rest = Vec::new();
    let mut is_first = true;
    for pair in pairs(line) {
        if let Some(value) = value_of(pair, name) {
            // A value that is not UTF-8 is counted as an invalid token.
            let text = str::from_utf8(value).unwrap_or("\u{fffd}");
            found.push(Secret::new(text.to_owned()));
        } else if std::mem::take(&mut is_first) {
            rest.reserve_exact(line.len());
            rest.extend_from_slice(pair.trim_ascii_start());
        } else {
            rest.push(b';');
            rest.extend_from_slice(pair);
        }
    }
    if rest.is_empty() { None } else { HeaderValue::from_maybe_shared(Bytes::from(rest)).ok() }
}

fn trim(bytes: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = bytes.iter().position(|byte| !blank(byte)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    bytes.get(start..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(lines: &[&str], values: &[&str], rest: &[&str]) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(COOKIE, HeaderValue::from_bytes(line.as_bytes()).expect("a header"));
        }
        let taken = take(&mut headers, "__Host-id");
        let taken: Vec<_> = taken.iter().map(Secret::reveal).collect();
        let left: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(taken, values);
        assert_eq!(left, rest.iter().map(|line| line.as_bytes()).collect::<Vec<_>>());
    }

    #[test]
    fn other_cookies_keep_their_bytes() {
        check(&["__Host-id=x"], &["x"], &[]);
        check(&["a=1; __Host-id=x; b=2"], &["x"], &["a=1; b=2"]);
        check(&["__Host-id=x; a=\"q;  r\";b"], &["x"], &["a=\"q;  r\";b"]);
        check(&["a=1;__Host-id=x"], &["x"], &["a=1"]);
        check(&["a=1", "__Host-id=x", "b=2; __Host-id=y"], &["x", "y"], &["a=1", "b=2"]);
        check(&["a=1;; b=\u{e9} ;"], &[], &["a=1;; b=\u{e9} ;"]);
    }

    #[test]
    fn only_the_exact_name_is_taken() {
        for line in [
            "=__Host-id=bad",
            "..Host-id=x",
            "__Host%2Did=x",
            "__host-id=x",
            "_[Host-id=x",
            "\u{85}__Host-id=x",
            "\u{a0}__Host-id=x",
            "$Version=1,__Host-id=x",
            "__Host-idx=1",
            "x__Host-id=1",
            "__Host-id",
        ] {
            check(&[line], &[], &[line]);
        }
        check(&["=__Host-id=bad; __Host-id=good"], &["good"], &["=__Host-id=bad"]);
        check(
            &["$Version=1; a=\"b; __Host-id=evil; c=\""],
            &["evil"],
            &["$Version=1; a=\"b; c=\""],
        );
        check(&["__Host-id \t= x "], &["x"], &[]);
    }

    #[test]
    fn all_cookies_of_the_name_are_taken() {
        let values: Vec<String> = (0..500).map(|number| number.to_string()).collect();
        let line = format!("__Host-id={}; a=b", values.join("; __Host-id="));
        check(&[&line], &values.iter().map(String::as_str).collect::<Vec<_>>(), &["a=b"]);
    }

    #[test]
    fn odd_lines_take_linear_time() {
        check(&[";;;=;"], &[], &[";;;=;"]);
        check(&["__Host-id_chunks=999999999"], &[], &["__Host-id_chunks=999999999"]);
        check(&[&";".repeat(8192)], &[], &[&";".repeat(8192)]);
    }

    #[test]
    fn set_cookie_has_the_configured_attributes() {
        let token = Secret::new("t0ken".to_owned());
        let default = Attributes::default();
        let line = default.set(&token, Some(Duration::from_mins(1)));
        assert_eq!(line, "__Host-id=t0ken; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=60");
        assert!(line.is_sensitive());
        assert_eq!(
            default.set(&token, None),
            "__Host-id=t0ken; HttpOnly; SameSite=Lax; Secure; Path=/"
        );
        assert_eq!(
            default.delete(),
            "__Host-id=; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=0"
        );
        let wide = Attributes {
            name: "id".to_owned(),
            domain: Some("example.org".to_owned()),
            secure: false,
            http_only: false,
            same_site: SameSite::Strict,
            ..default
        };
        assert_eq!(wide.set(&token, None), "id=t0ken; SameSite=Strict; Path=/; Domain=example.org");
    }

    proptest! {
        #[test]
        fn without_a_cookie_of_ours_no_byte_moves(line in "[ -~]{0,60}") {
            prop_assume!(!line.contains("__Host-id") && HeaderValue::from_str(&line).is_ok());
            check(&[&line], &[], &[&line]);
        }

        #[test]
        fn nothing_of_ours_is_left(before in "[a-z=; ]{0,20}", after in "[a-z=; ]{0,20}") {
            let mut headers = HeaderMap::new();
            let line = format!("{before}; __Host-id=x; {after}");
            headers.append(COOKIE, HeaderValue::from_str(&line).expect("a header"));
            prop_assert_eq!(take(&mut headers, "__Host-id").len(), 1);
            prop_assert!(headers.get_all(COOKIE).iter().all(|line| !line.to_str().unwrap().contains("__Host-id")));
        }
    }
}
