//! Tests of trust, of rewriting, and of the agreement of both families.

use proptest::prelude::*;

use super::*;

const CLIENT: &str = "203.0.113.7";
const PROXY: &str = "10.0.0.1";

fn rules(networks: &[&str]) -> Rules {
    let trust = Trust::new(networks.iter().map(|network| network.parse().unwrap()).collect());
    Rules { trust, ..Rules::default() }
}

fn peer(address: &str) -> Peer {
    Peer { address: address.parse().ok(), scheme: Scheme::Http, is_unknown: false }
}

fn fields_of(fields: &[(&str, &str)]) -> HeaderMap {
    let of = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    fields.iter().map(of).collect()
}

/// Returns the client and the fields of a request to shop.example:8080 from `from`, with 10.0.0.0/8
/// trusted.
fn rewritten(from: &str, fields: &[(&str, &str)]) -> (Client, HeaderMap) {
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_static("shop.example:8080"));
    for (name, value) in fields {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    let client = rewrite(&mut headers, &rules(&["10.0.0.0/8"]), peer(from)).unwrap().client;
    headers.remove(HOST);
    (client, headers)
}

/// Checks a rewrite: `seen` is the address, the scheme and the host of the client; `lists` are
/// X-Forwarded-For and Forwarded.
fn check(from: &str, fields: &[(&str, &str)], seen: (&str, &str, &str), lists: (&str, &str)) {
    let (client, headers) = rewritten(from, fields);
    let address = client.address.map(|address| address.to_string()).unwrap_or_default();
    let host = client.host.unwrap();
    assert_eq!((&*address, client.scheme.as_str(), host.to_str().unwrap()), seen, "{fields:?}");
    let lines = |name| headers.get_all(name).iter().collect::<Vec<_>>();
    assert_eq!(lines(X_FORWARDED_FOR), [lists.0], "{fields:?}");
    assert_eq!(lines(FORWARDED), [lists.1], "{fields:?}");
    assert_eq!(lines(X_FORWARDED_PROTO), [seen.1]);
    assert_eq!(lines(X_FORWARDED_HOST), [seen.2]);
    assert_eq!(lines(X_REAL_IP), [seen.0]);
}

const HOST_HERE: &str = "shop.example:8080";

#[test]
fn ignores_untrusted_peers() {
    let fields = [
        ("X-Forwarded-For", "1.1.1.1"),
        ("X_Forwarded_For", "1.1.1.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil"),
        ("X-Forwarded-Prefix", "/evil"),
        ("X-Forwarded-Uri", "/evil"),
        ("Forwarded", "for=1.1.1.1;proto=https"),
        ("X-Real-IP", "1.1.1.1"),
        ("X-Original-URL", "/admin"),
        ("X-Rewrite-URL", "/admin"),
    ];
    let own = r#"for=203.0.113.7;host="shop.example:8080";proto=http"#;
    check(CLIENT, &fields, (CLIENT, "http", HOST_HERE), (CLIENT, own));
    let (_, headers) = rewritten(CLIENT, &fields);
    assert_eq!(headers.len(), 5);
}

#[test]
fn quotes_ipv6_and_unmaps_ipv4() {
    let v6 = r#"for="[2001:db8::1]";host="shop.example:8080";proto=http"#;
    check("2001:db8::1", &[], ("2001:db8::1", "http", HOST_HERE), ("2001:db8::1", v6));
    let v4 = r#"for=203.0.113.7;host="shop.example:8080";proto=http"#;
    check("::ffff:203.0.113.7", &[], (CLIENT, "http", HOST_HERE), (CLIENT, v4));
    let proxied = [("x-forwarded-for", CLIENT)];
    let (client, _) = rewritten("::ffff:10.0.0.1", &proxied);
    assert_eq!(client.address, CLIENT.parse().ok());
}

#[test]
fn appends_to_fields_of_trusted_proxies() {
    check(
        PROXY,
        &[
            ("x-forwarded-for", "1.1.1.1, 203.0.113.7"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "www.example"),
            ("x-real-ip", "1.1.1.1"),
        ],
        (CLIENT, "https", "www.example"),
        (
            "1.1.1.1, 203.0.113.7, 10.0.0.2, 10.0.0.1",
            "for=1.1.1.1, for=203.0.113.7;host=www.example;proto=https, for=10.0.0.2, for=10.0.0.1",
        ),
    );
}

#[test]
fn accepts_forwarded_from_trusted_proxies() {
    check(
        PROXY,
        &[
            ("forwarded", "for=1.1.1.1;proto=http;host=evil"),
            (
                "forwarded",
                "For=\"[2001:db8::1]:4711\";Proto=HTTPS;host=\"www.\\example\", for=10.0.0.2",
            ),
        ],
        ("2001:db8::1", "https", "www.example"),
        (
            "1.1.1.1, 2001:db8::1, 10.0.0.2, 10.0.0.1",
            "for=1.1.1.1, for=\"[2001:db8::1]:4711\";host=www.example;proto=https, for=10.0.0.2, \
             for=10.0.0.1",
        ),
    );
}

#[test]
fn x_forwarded_takes_precedence_over_forwarded() {
    check(
        PROXY,
        &[("forwarded", "for=1.1.1.1;proto=https"), ("x-forwarded-for", CLIENT)],
        (CLIENT, "http", HOST_HERE),
        (
            "203.0.113.7, 10.0.0.1",
            "for=203.0.113.7;host=\"shop.example:8080\";proto=http, for=10.0.0.1",
        ),
    );
}

#[test]
fn invalid_hops_end_the_walk() {
    for (list, client) in [
        ("203.0.113.7, garbage", PROXY),
        ("203.0.113.7, unknown, 10.0.0.3", "10.0.0.3"),
        ("1.1.1.1, _hidden, 203.0.113.7:99", CLIENT),
        ("10.0.0.5, 10.0.0.3", "10.0.0.5"),
        ("[::ffff:203.0.113.7]:1", CLIENT),
        (",, ,", PROXY),
        ("1.1.1.1 203.0.113.7", PROXY),
    ] {
        let (seen, _) = rewritten(PROXY, &[("x-forwarded-for", list)]);
        assert_eq!(seen.address, client.parse().ok(), "{list}");
    }
    for list in ["for=\"203.0.113.7", "for=203.0.113.7;for=1.1.1.1", "203.0.113.7", "for", "=;=,;"]
    {
        let (seen, _) = rewritten(PROXY, &[("forwarded", list)]);
        assert_eq!(seen.address, PROXY.parse().ok(), "{list}");
    }
    let (_, headers) = rewritten(PROXY, &[("forwarded", "for=\"x")]);
    assert_eq!(headers[FORWARDED], "for=10.0.0.1;host=\"shop.example:8080\";proto=http");
}

#[test]
fn uses_scheme_and_host_of_the_client_hop() {
    for (hops, schemes, scheme) in [
        (CLIENT, "http, https", "https"),
        (CLIENT, "https, http", "http"),
        ("203.0.113.7, 10.0.0.2", "http, https, http", "https"),
        ("203.0.113.7, 10.0.0.2", "https", "https"),
        (CLIENT, "wss", "https"),
        (CLIENT, "gopher", "http"),
    ] {
        let fields = [("x-forwarded-for", hops), ("x-forwarded-proto", schemes)];
        assert_eq!(rewritten(PROXY, &fields).0.scheme.as_str(), scheme, "{hops} {schemes}");
    }
    let (client, _) = rewritten(PROXY, &[("x-forwarded-host", "a b")]);
    assert_eq!(client.host.unwrap(), HOST_HERE);
}

#[test]
fn unix_peers_are_trusted_like_loopback() {
    for (networks, seen) in [
        (&["127.0.0.0/8"][..], Some(CLIENT)),
        (&["::1/128"], Some(CLIENT)),
        (&["10.0.0.0/8"], None),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(X_FORWARDED_FOR, HeaderValue::from_static(CLIENT));
        let client = rewrite(&mut headers, &rules(networks), peer("")).unwrap().client;
        assert_eq!(client.address, seen.and_then(|seen| seen.parse().ok()));
        assert_eq!(headers.get(X_FORWARDED_FOR).map(|line| line.to_str().unwrap()), seen);
        assert_eq!(headers.get(X_REAL_IP).map(|line| line.to_str().unwrap()), seen);
        let forwarded = match seen {
            Some(_) => "for=203.0.113.7;proto=http, for=unknown",
            None => "for=unknown;proto=http",
        };
        assert_eq!(headers[FORWARDED], forwarded);
        assert!(!headers.contains_key(X_FORWARDED_HOST));
    }
}

/// Returns the values that Symfony's `Request::getTrustedValues` reads from both families of fields, for
/// the addresses, the scheme, the host and the port of the client. Symfony responds with 400 if they
/// differ.
fn symfony_values(headers: &HeaderMap) -> Vec<(Vec<String>, Vec<String>)> {
    let listed = |name: &HeaderName| -> Vec<String> {
        let members = list::members(headers, name);
        members.map(|member| String::from_utf8_lossy(member).into_owned()).collect()
    };
    let elements = list::quoted_members(headers, &FORWARDED).unwrap();
    let parameter = |wanted: &str| -> Vec<String> {
        let pairs = elements.iter().flat_map(|element| list::quoted_split(element, b';'));
        let pairs = pairs.map(|pair| str::from_utf8(pair).unwrap().split_once('=').unwrap());
        let named = pairs.filter(|(name, _)| *name == wanted);
        named.map(|(_, value)| value.trim_matches('"').to_owned()).collect()
    };
    let addresses = |texts: Vec<String>| -> Vec<String> {
        let bare = texts.iter().map(|text| match text.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap(),
            None if text.contains('.') => text.split(':').next().unwrap(),
            None => text,
        });
        bare.filter(|text| text.parse::<IpAddr>().is_ok()).map(str::to_owned).collect()
    };
    let hosts = parameter("host");
    let port_of = |host: &String| match host.rsplit_once(':') {
        Some((_, port)) if !host.ends_with(']') => port.to_owned(),
        _ => if headers[X_FORWARDED_PROTO] == "https" { "443" } else { "80" }.to_owned(),
    };
    let ports = hosts.iter().map(port_of).collect();
    vec![
        (addresses(listed(&X_FORWARDED_FOR)), addresses(parameter("for"))),
        (listed(&X_FORWARDED_PROTO), parameter("proto")),
        (listed(&X_FORWARDED_HOST), hosts),
        (listed(&X_FORWARDED_PORT), ports),
    ]
}

fn check_agreement(fields: &[(&str, &str)], headers: &HeaderMap) {
    for (x_forwarded, forwarded) in symfony_values(headers) {
        let is_silent = x_forwarded.is_empty() || forwarded.is_empty();
        assert!(is_silent || x_forwarded == forwarded, "{fields:?}: {headers:?}");
    }
}

#[test]
fn families_agree_behind_a_tls_terminator() {
    for fields in [
        &[("x-forwarded-proto", "https")][..],
        &[("x-forwarded-proto", "https"), ("x-forwarded-for", "1.1.1.1, 203.0.113.7")],
        &[("x-forwarded-proto", "https"), ("x-forwarded-host", "www.example")],
        &[("forwarded", "for=1.1.1.1;proto=http;host=evil, for=203.0.113.7;proto=https")],
        &[("forwarded", "proto=https;host=www.example")],
        &[("forwarded", "by=10.0.0.9, for=203.0.113.7;proto=https, for=10.0.0.3;host=inner")],
        &[("x-forwarded-for", "::ffff:203.0.113.7")],
        &[("x-forwarded-for", "[2001:db8::1]:99, 203.0.113.7:99")],
        &[("x-forwarded-for", "203.0.113.7, garbage, _name, unknown")],
    ] {
        let (_, headers) = rewritten(PROXY, fields);
        check_agreement(fields, &headers);
        assert_eq!(headers[FORWARDED].to_str().unwrap().matches("proto=").count(), 1);
    }
}

#[test]
fn omits_host_if_the_port_differs() {
    for (port, host, says_host) in [
        ("443", "www.example", true),
        ("8443", "www.example:8443", true),
        ("8443", "www.example", false),
        ("443", "[2001:db8::1]", true),
        ("8443", "[2001:db8::1]:8443", true),
        ("443, 8080", "www.example", false),
    ] {
        let fields = [
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", host),
            ("x-forwarded-port", port),
        ];
        let (client, headers) = rewritten(PROXY, &fields);
        check_agreement(&fields, &headers);
        assert_eq!(headers[FORWARDED].to_str().unwrap().contains("host="), says_host, "{fields:?}");
        assert_eq!(
            (headers[X_FORWARDED_PORT].to_str().unwrap(), client.host.unwrap()),
            (port, HeaderValue::from_static(host))
        );
    }
}

#[test]
fn unknown_clients_are_not_trusted() {
    let mut headers = fields_of(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-host", "evil")]);
    let unknown = Peer { is_unknown: true, ..peer(PROXY) };
    let rules = rules(&["10.0.0.0/8"]);
    assert_eq!(host(&headers, &rules, peer(PROXY)).unwrap(), "evil");
    assert_eq!(host(&headers, &rules, unknown), None);
    let rewritten = rewrite(&mut headers, &rules, unknown).unwrap();
    assert_eq!(rewritten.client.address, PROXY.parse().ok());
    assert_eq!(headers[X_FORWARDED_FOR], PROXY);
    assert!(!headers.contains_key(X_FORWARDED_HOST));
    assert!(!rewritten.lost_https);
}

#[test]
fn strips_and_keeps_configured_names() {
    let name = HeaderName::from_static;
    let rules = Rules {
        strip: vec![name("x-ssl-verify")],
        keep: vec![name("x-original-name")],
        ..rules(&["10.0.0.0/8"])
    };
    let sent = [("X_SSL_Verify", "ok"), ("X-Original-Name", "a.png"), ("X-Original-URL", "/")];
    let mut headers = fields_of(&sent);
    let rewritten = rewrite(&mut headers, &rules, peer(CLIENT)).unwrap();
    assert_eq!(rewritten.dropped, ["x_ssl_verify", "x-original-url"]);
    assert_eq!(headers["x-original-name"], "a.png");
    let mut headers = fields_of(&sent);
    assert_eq!(rewrite(&mut headers, &rules, peer(PROXY)).unwrap().dropped, [""; 0]);
}

#[test]
fn detects_https_lost_from_untrusted_peers() {
    for (from, field, scheme, lost) in [
        (CLIENT, ("x-forwarded-proto", "https"), Scheme::Http, true),
        (CLIENT, ("x-forwarded-proto", "http, HTTPS"), Scheme::Http, true),
        (CLIENT, ("x-forwarded-proto", "http"), Scheme::Http, false),
        (CLIENT, ("x-forwarded-proto", "https"), Scheme::Https, false),
        (PROXY, ("x-forwarded-proto", "https"), Scheme::Http, false),
    ] {
        let mut headers = fields_of(&[field]);
        let from = Peer { scheme, ..peer(from) };
        let rewritten = rewrite(&mut headers, &rules(&["10.0.0.0/8"]), from).unwrap();
        assert_eq!(rewritten.lost_https, lost, "{from:?} {field:?}");
    }
}

proptest! {
    #[test]
    fn rewrites_any_fields_consistently(
        lines in proptest::collection::vec(
            (
                "forwarded|x-forwarded-(for|proto|host)|x_real_ip",
                r#"(for|proto|host|[0-9a-f.:,;= "\\\[\]]|10\.0\.0\.2){0,12}"#,
            ),
            0..6,
        ),
        from in proptest::sample::select(vec!["10.0.0.1", "203.0.113.7", ""]),
    ) {
        let fields: Vec<_> = lines.iter().map(|(name, value)| (&**name, &**value)).collect();
        let (client, headers) = rewritten(from, &fields);
        prop_assert!(headers.len() <= 6);
        check_agreement(&fields, &headers);
        prop_assert!(list::quoted_members(&headers, &FORWARDED).is_some());
        prop_assert!(from != CLIENT || client.address == CLIENT.parse().ok());
    }
}
