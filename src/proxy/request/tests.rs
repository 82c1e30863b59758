//! Tests of accepted, rejected and cleaned heads.

use http::Request;
use proptest::prelude::*;

use super::*;

/// Returns a head, given `METHOD TARGET VERSION` and its fields.
fn head(line: &str, fields: &[(&str, &str)]) -> Parts {
    let mut words = line.split(' ');
    let mut request = Request::builder().method(words.next().unwrap()).uri(words.next().unwrap());
    request = request.version(match words.next() {
        Some("0.9") => Version::HTTP_09,
        Some("1.0") => Version::HTTP_10,
        Some("2") => Version::HTTP_2,
        _ => Version::HTTP_11,
    });
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// Checks the status of a rejection; 200 if the request is accepted.
fn check_status(line: &str, fields: &[(&str, &str)], status: u16) {
    let answer = check(&head(line, fields)).map_or_else(|no| no.status.as_u16(), |()| 200);
    assert_eq!(answer, status, "{line} {fields:?}");
}

#[test]
fn requires_one_valid_host() {
    check_status("GET /", &[("host", "a:80")], 200);
    check_status("GET /", &[], 400);
    check_status("GET /", &[("host", "")], 400);
    check_status("GET /", &[("host", "a"), ("host", "a")], 400);
    check_status("GET /", &[("host", "a/b")], 400);
    check_status("GET /", &[("host", "u@a")], 400);
    check_status("GET /", &[("host", "a,b")], 400);
    check_status("GET /", &[("host", "a;b")], 400);
    check_status("GET http://a,b/", &[("host", "a")], 400);
    check_status("GET https://a;b/ 2", &[], 400);
    check_status("GET http://a/", &[("host", "b")], 200);
    check_status("GET http://a/", &[], 400);
    check_status("GET http://a/ 1.0", &[], 200);
    check_status("GET http://a/", &[("host", "a"), ("host", "b")], 400);
    check_status("GET / 1.0", &[], 200);
    check_status("GET / 1.0", &[("host", "a"), ("host", "b")], 400);
    check_status("GET https://a/ 2", &[], 200);
    check_status("GET https://a/ 2", &[("host", "A")], 200);
    check_status("GET https://a/ 2", &[("host", "b")], 400);
    check_status("GET / 2", &[], 400);
}

#[test]
fn checks_target_form_by_method() {
    let host = &[("host", "a")];
    check_status("OPTIONS *", host, 200);
    check_status("GET *", host, 400);
    check_status("GET a:80", host, 400);
    check_status("GET ftp://a/", host, 400);
    check_status("GET http://u@a/", host, 400);
    check_status("TRACE /", host, 405);
    check_status("CONNECT a:80", host, 405);
    check_status("FROB /", host, 200);
    check_status("GET / 0.9", host, 505);
}

#[test]
fn accepts_only_chunked_transfer_encoding() {
    for (lines, status) in [
        (&["chunked"][..], 200),
        (&["Chunked"], 200),
        (&["chunked", "chunked"], 400),
        (&["chunked, chunked"], 400),
        (&[",chunked"], 400),
        (&["chunked,"], 400),
        (&[""], 400),
        (&["identity"], 400),
        (&["chunked, gzip"], 400),
        (&["xchunked"], 400),
        (&["chunked;a=b"], 400),
        (&["gzip, chunked"], 501),
        (&["gzip", "chunked"], 400),
    ] {
        let mut fields = vec![("host", "a")];
        fields.extend(lines.iter().map(|line| ("transfer-encoding", *line)));
        check_status("POST /", &fields, status);
    }
    check_status("POST / 1.0", &[("host", "a"), ("transfer-encoding", "chunked")], 400);
}

#[test]
fn accepts_only_100_continue() {
    check_status("PUT /", &[("host", "a"), ("expect", "100-Continue")], 200);
    check_status("PUT /", &[("host", "a"), ("expect", "y")], 417);
    check_status("PUT /", &[("host", "a"), ("expect", "100-continue, x")], 417);
    check_status("PUT /", &[("host", "a"), ("expect", "100-continue"), ("expect", "x")], 417);
}

#[test]
fn normalizes_absolute_form_targets() {
    for (target, path, host) in [
        ("http://b:8080/x?y", "/x?y", "b:8080"),
        ("http://b?y", "/?y", "b"),
        ("http://b", "/", "b"),
        ("/x?y", "/x?y", "a"),
        ("*", "*", "a"),
    ] {
        let mut parts = head(&format!("OPTIONS {target}"), &[("host", "a")]);
        normalize_target(&mut parts).unwrap();
        assert_eq!(parts.uri.to_string(), path);
        assert_eq!(parts.headers.get_all(HOST).iter().collect::<Vec<_>>(), [host]);
    }
    let mut parts = head("GET / 1.0", &[]);
    normalize_target(&mut parts).unwrap();
    assert_eq!(parts.headers[HOST], "");
}

#[test]
fn decrements_max_forwards() {
    for (value, recipient, left) in [
        ("0", Recipient::Proxy, "0"),
        ("00", Recipient::Proxy, "00"),
        ("1", Recipient::Upstream, "0"),
        ("10", Recipient::Upstream, "9"),
        ("99999999999999999999", Recipient::Upstream, "4294967294"),
        ("-1", Recipient::Upstream, "-1"),
        ("+1", Recipient::Upstream, "+1"),
        ("", Recipient::Upstream, ""),
    ] {
        let mut headers = head("OPTIONS *", &[("max-forwards", value)]).headers;
        assert_eq!(decrement_max_forwards(&Method::GET, &mut headers), Recipient::Upstream);
        assert_eq!(decrement_max_forwards(&Method::OPTIONS, &mut headers), recipient, "{value}");
        assert_eq!(headers[MAX_FORWARDS], left, "{value}");
    }
}

#[test]
fn removes_fields_that_clients_may_not_send() {
    let fields = [
        ("X-Session-Token", "a"),
        ("x_session_token", "a"),
        ("X.Session.Id", "a"),
        ("X-Session-Patch", "a"),
        ("Proxy", "http://evil"),
        ("X_Remote_User", "root"),
        ("X-From-Proxy", "guess"),
        ("Transfer_Encoding", "chunked"),
        ("Content_Length", "5"),
        ("Proxy_Connection", "keep-alive"),
        ("Expect", "100-continue"),
        ("Connection", "close, X-Foo, Cookie, Host"),
        ("X-Foo", "a"),
        ("TE", "gzip;q=0.5, Trailers"),
        ("Trailer", "X-Checksum"),
        ("Cookie", "a=1"),
        ("Cookie", "b=2"),
        ("Host", "a"),
    ];
    let mut headers = head("GET /", &fields).headers;
    let injected =
        [HeaderName::from_static("x-remote-user"), HeaderName::from_static("x-from-proxy")];
    let cleaned = clean(&mut headers, &injected);
    assert!(cleaned.dropped.iter().any(|name| name == "transfer_encoding"), "{cleaned:?}");
    let mut left: Vec<_> =
        headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    left.sort_unstable();
    assert_eq!(
        left,
        [
            ("connection", "te"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("host", "a"),
            ("te", "trailers"),
            ("trailer", "X-Checksum"),
        ]
    );
}

proptest! {
    #[test]
    fn any_accepted_head_normalizes_and_cleans(
        names in proptest::collection::vec(
            "[Xx][-_.!]session[-_.~][a-z]{0,8}|host|te|connection|expect\
             |transfer-encoding|max-forwards|[a-z_.-]{1,9}",
            0..30,
        ),
        values in proptest::collection::vec(
            "[ -~\\x{80}-\\x{ff}]{0,20}|chunked|x-session-id, x-foo",
            30,
        ),
        target in "(/|\\*|http://)[a-z%.@:;\\[\\]/?*]{0,12}",
    ) {
        let Ok(uri) = target.parse::<Uri>() else { return Ok(()) };
        let mut parts = head("OPTIONS /", &[]);
        parts.uri = uri;
        for (name, value) in names.iter().zip(&values) {
            let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) else { continue };
            parts.headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
        }
        let accepted = check(&parts).is_ok();
        let normalized = normalize_target(&mut parts);
        prop_assert!(!accepted || normalized.is_ok());
        prop_assert!(!accepted || parts.uri.path().starts_with(['/', '*']));
        decrement_max_forwards(&Method::OPTIONS, &mut parts.headers);
        clean(&mut parts.headers, &[]);
        prop_assert!(!parts.headers.keys().any(names::is_reserved));
    }
}
