//! The kind of a request, as far as its cookie is concerned: whether the visitor opens a page, and
//! whether the browser has withheld the cookie.

use http::header::{ACCEPT, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, ORIGIN};
use http::{HeaderValue, Method};

use super::cookie::SameSite;

/// The origin of a request, according to its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The kind of navigation. The response to one may delete a cookie of no session.
    pub(crate) navigation: Navigation,
    /// The request comes from another site, and `same_site` makes the browser withhold our cookie.
    pub(crate) withholds_cookie: bool,
}

/// The kind of navigation that a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Navigation {
    /// A top-level navigation by GET or HEAD.
    Safe,
    /// A top-level navigation by another method: a form.
    Form,
    /// No navigation: an image, a script, a frame, a call from a script, a prefetch, or no browser.
    None,
}

impl Origin {
    /// Determines the origin from the Fetch metadata (W3C Fetch Metadata Request Headers) or, if there
    /// is none, from the headers of browsers without it. Call it before headers are changed. `host`
    /// returns the host that the browser requested, as trusted proxies report it.
    pub(crate) fn of(
        method: &Method,
        headers: &HeaderMap,
        same_site: SameSite,
        host: impl FnOnce() -> Option<HeaderValue>,
    ) -> Self {
        let safe = matches!(*method, Method::GET | Method::HEAD);
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let metadata = headers.keys().any(|name| name.as_str().starts_with("sec-fetch-"));
        let opens_page = if metadata {
            let prefetch = text("sec-purpose").is_some_and(|purpose| purpose.contains("prefetch"));
            text("sec-fetch-dest") == Some("document") && !prefetch
        } else {
            *method == Method::GET && accepts_html(headers)
        };
        let navigation = match (opens_page, safe) {
            (false, _) => Navigation::None,
            (true, true) => Navigation::Safe,
            (true, false) => Navigation::Form,
        };
        let cross_site = if metadata {
            text("sec-fetch-site") == Some("cross-site")
        } else {
            is_from_another_host(headers, host)
        };
        let withholds_cookie = cross_site
            && match same_site {
                SameSite::None => false,
                SameSite::Strict => true,
                SameSite::Lax => navigation != Navigation::Safe,
            };
        Self { navigation, withholds_cookie }
    }
}

/// Returns whether Accept has text/html. `*/*` does not count.
fn accepts_html(headers: &HeaderMap) -> bool {
    accepted(headers).any(|media| media.eq_ignore_ascii_case("text/html"))
}

/// Returns the media ranges of Accept, in order, without those of weight zero, which are not
/// acceptable (RFC 9110 12.4.2).
pub(crate) fn accepted(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).filter_map(|range| {
        let mut parts = range.split(';');
        let media = parts.next().unwrap_or_default().trim();
        let is_zero = |weight: &str| {
            weight.strip_prefix('0').is_some_and(|rest| rest.bytes().all(|b| b".0".contains(&b)))
        };
        let is_refused = parts.any(|parameter| {
            parameter.split_once('=').is_some_and(|(name, weight)| {
                name.trim().eq_ignore_ascii_case("q") && is_zero(weight.trim())
            })
        });
        (!is_refused).then_some(media)
    })
}

/// Returns whether a script sent the request: its Fetch metadata says that it is no navigation, or it
/// has the header that jQuery and other libraries set.
pub(crate) fn is_of_script(headers: &HeaderMap) -> bool {
    let is = |name: &str, value: &str| {
        headers.get(name).map(|line| line.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
    };
    is("sec-fetch-mode", "navigate") == Some(false)
        || is("x-requested-with", "XMLHttpRequest") == Some(true)
}

/// Returns whether a browser loads a part of a page that is not a document and no call of a script, e.g. an image (W3C
/// Fetch Metadata Request Headers).
pub(crate) fn is_asset(method: &Method, headers: &HeaderMap) -> bool {
    const ASSETS: [&[u8]; 8] =
        [b"image", b"style", b"script", b"font", b"audio", b"video", b"track", b"manifest"];
    let destination = headers.get("sec-fetch-dest").map(HeaderValue::as_bytes).unwrap_or_default();
    matches!(*method, Method::GET | Method::HEAD) && ASSETS.contains(&destination)
}

/// Returns whether the request is a CORS preflight: a question of the browser, without cookies,
/// whether a script may send its request (Fetch Standard, "CORS-preflight request").
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Returns whether `Origin` has another host than the request. Ports and `null` are ignored.
fn is_from_another_host(headers: &HeaderMap, host: impl FnOnce() -> Option<HeaderValue>) -> bool {
    let Some(origin) = headers.get(ORIGIN).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    if origin == "null" {
        return false;
    }
    let host = host();
    let named = host.as_ref().and_then(|value| value.to_str().ok());
    let origin = origin.split_once("://").map_or(origin, |(_, rest)| rest);
    !named.is_some_and(|named| host_of(named).eq_ignore_ascii_case(host_of(origin)))
}

fn host_of(authority: &str) -> &str {
    let bracketed = authority.find(']').and_then(|end| authority.get(..=end));
    bracketed.unwrap_or_else(|| authority.split(':').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(
        method: &str,
        same_site: SameSite,
        headers: &[(&'static str, &'static str)],
    ) -> Origin {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let host = || Some(HeaderValue::from_static("shop.example:8080"));
        Origin::of(&method, &map, same_site, host)
    }

    #[test]
    fn prefetch_is_not_a_navigation() {
        let check = |method, headers, expected| {
            assert_eq!(origin(method, SameSite::Lax, headers).navigation, expected, "{headers:?}");
        };
        check("GET", &[("sec-fetch-dest", "document")], Navigation::Safe);
        check("POST", &[("sec-fetch-dest", "document")], Navigation::Form);
        check("GET", &[("sec-fetch-dest", "iframe"), ("accept", "text/html")], Navigation::None);
        check(
            "GET",
            &[("sec-fetch-dest", "document"), ("sec-purpose", "prefetch;prerender")],
            Navigation::None,
        );
        check("GET", &[("accept", "application/xml, text/html;q=0.9")], Navigation::Safe);
        check("GET", &[("accept", "*/*")], Navigation::None);
        check("GET", &[("accept", "application/json, text/html; Q=0.000")], Navigation::None);
        check("GET", &[("accept", "text/html;level=1;q=0.1")], Navigation::Safe);
        check("POST", &[("accept", "text/html")], Navigation::None);
        check("GET", &[], Navigation::None);
    }

    #[test]
    fn same_site_withholds_the_cookie_cross_site() {
        let form: &[_] = &[("sec-fetch-site", "cross-site"), ("sec-fetch-dest", "document")];
        let check = |method, same_site, headers, expected| {
            assert_eq!(
                origin(method, same_site, headers).withholds_cookie,
                expected,
                "{method} {same_site:?} {headers:?}"
            );
        };
        check("POST", SameSite::Lax, form, true);
        check("GET", SameSite::Lax, form, false);
        check("GET", SameSite::Strict, form, true);
        check("POST", SameSite::None, form, false);
        check(
            "GET",
            SameSite::Lax,
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-dest", "image")],
            true,
        );
        check("POST", SameSite::Lax, &[("sec-fetch-site", "same-site")], false);
    }

    #[test]
    fn origin_counts_without_fetch_metadata() {
        let check = |origin_header, expected| {
            let headers: &[_] = &[("origin", origin_header)];
            assert_eq!(
                origin("POST", SameSite::Lax, headers).withholds_cookie,
                expected,
                "{origin_header}"
            );
        };
        check("https://pay.example", true);
        check("https://shop.example", false);
        check("http://SHOP.example:9", false);
        check("null", false);
    }

    #[test]
    fn scripts_assets_and_preflights_are_recognized() {
        let map = |fields: &[(&'static str, &'static str)]| {
            fields
                .iter()
                .map(|(name, value)| {
                    (http::HeaderName::from_static(name), HeaderValue::from_static(value))
                })
                .collect::<HeaderMap>()
        };
        for (fields, expected) in [
            (&[][..], false),
            (&[("sec-fetch-mode", "navigate")], false),
            (&[("sec-fetch-mode", "cors")], true),
            (&[("sec-fetch-mode", "websocket")], true),
            (&[("x-requested-with", "xmlhttprequest")], true),
            (&[("x-requested-with", "com.example.browser")], false),
        ] {
            assert_eq!(is_of_script(&map(fields)), expected, "{fields:?}");
        }
        let asks = map(&[("origin", "null"), ("access-control-request-method", "PUT")]);
        for (method, destination, expected) in [
            (Method::GET, "image", true),
            (Method::HEAD, "manifest", true),
            (Method::POST, "image", false),
            (Method::GET, "document", false),
            (Method::GET, "iframe", false),
            (Method::GET, "empty", false),
        ] {
            let headers = map(&[("sec-fetch-dest", destination)]);
            assert_eq!(is_asset(&method, &headers), expected, "{method} {destination}");
        }
        assert!(!is_asset(&Method::GET, &HeaderMap::new()));
        assert!(is_preflight(&Method::OPTIONS, &asks));
        assert!(!is_preflight(&Method::GET, &asks));
        assert!(!is_preflight(&Method::OPTIONS, &map(&[("origin", "null")])));
    }
}
