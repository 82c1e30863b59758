//! What kind of request it is, as far as its cookie goes: a page that the visitor opens, or one
//! from which the browser has withheld the cookie.

use http::header::{ACCEPT, HOST, HeaderMap, ORIGIN};
use http::{Method, Uri};

use super::cookie::SameSite;

/// What the request's headers say of how it came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The visitor opens a page: its response may take a cookie away that opens nothing.
    pub navigation: Navigation,
    /// It comes from another site, and `same_site` keeps our cookie from it.
    pub withholds_cookie: bool,
}

/// Whether the visitor opens a page with the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Navigation {
    /// A top-level navigation by GET or HEAD.
    Safe,
    /// A top-level navigation by another method: a form.
    Form,
    /// An image, a script, a frame, a call from a script, a prefetch; or no browser.
    None,
}

impl Origin {
    /// Reads the Fetch metadata (W3C Fetch Metadata Request Headers) or, where none came, what
    /// browsers without it send. To be read before headers are changed; `authority` is the host
    /// that the request names.
    pub fn of(method: &Method, uri: &Uri, headers: &HeaderMap, same_site: SameSite) -> Self {
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
            is_from_another_host(uri, headers)
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

/// Whether Accept names text/html; `*/*` does not.
fn accepts_html(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok()).any(|line| {
        line.split(',').any(|range| {
            let media = range.split(';').next().unwrap_or_default().trim();
            media.eq_ignore_ascii_case("text/html")
        })
    })
}

/// Whether `Origin` names another host than the request's, ports apart. `null` says nothing.
fn is_from_another_host(uri: &Uri, headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    if origin == "null" {
        return false;
    }
    let named = uri
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| headers.get(HOST).and_then(|value| value.to_str().ok()));
    let origin = origin.split_once("://").map_or(origin, |(_, rest)| rest);
    !named.is_some_and(|named| host_of(named).eq_ignore_ascii_case(host_of(origin)))
}

fn host_of(authority: &str) -> &str {
    let bracketed = authority.find(']').and_then(|end| authority.get(..=end));
    bracketed.unwrap_or_else(|| authority.split(':').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn origin(
        method: &str,
        same_site: SameSite,
        headers: &[(&'static str, &'static str)],
    ) -> Origin {
        let mut map = HeaderMap::new();
        map.insert(HOST, HeaderValue::from_static("shop.example:8080"));
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        Origin::of(&method, &Uri::from_static("/"), &map, same_site)
    }

    #[test]
    fn a_navigation_is_a_document_that_is_no_prefetch() {
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
        check("POST", &[("accept", "text/html")], Navigation::None);
        check("GET", &[], Navigation::None);
    }

    #[test]
    fn same_site_withholds_the_cookie_from_other_sites() {
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
    fn without_fetch_metadata_the_origin_says_it() {
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
}
