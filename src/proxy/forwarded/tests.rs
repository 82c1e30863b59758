//! Who is believed, and what the upstream is told.

use proptest::prelude::*;

use super::*;

const CLIENT: &str = "203.0.113.7";
const PROXY: &str = "10.0.0.1";

fn trust(networks: &[&str]) -> Trust {
    Trust::new(networks.iter().map(|network| network.parse().unwrap()).collect())
}

fn peer(address: &str) -> Peer {
    Peer { address: address.parse().ok(), scheme: Scheme::Http }
}

/// The client and the fields of a request to shop.example:8080 that came from `from`, trusting
/// 10.0.0.0/8.
fn rewritten(from: &str, fields: &[(&str, &str)]) -> (Client, HeaderMap) {
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_static("shop.example:8080"));
    for (name, value) in fields {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    let client = rewrite(&mut headers, &trust(&["10.0.0.0/8"]), peer(from)).unwrap();
    headers.remove(HOST);
    (client, headers)
}

/// `seen` is the client's address, the scheme and the host; `lists` X-Forwarded-For and Forwarded.
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
fn a_stranger_is_not_believed() {
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
fn an_ipv6_client_is_quoted_and_a_mapped_one_is_ipv4() {
    let v6 = r#"for="[2001:db8::1]";host="shop.example:8080";proto=http"#;
    check("2001:db8::1", &[], ("2001:db8::1", "http", HOST_HERE), ("2001:db8::1", v6));
    let v4 = r#"for=203.0.113.7;host="shop.example:8080";proto=http"#;
    check("::ffff:203.0.113.7", &[], (CLIENT, "http", HOST_HERE), (CLIENT, v4));
    let proxied = [("x-forwarded-for", CLIENT)];
    let (client, _) = rewritten("::ffff:10.0.0.1", &proxied);
    assert_eq!(client.address, CLIENT.parse().ok());
}

#[test]
fn a_trusted_proxy_is_believed_and_appended_to() {
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
            "for=203.0.113.7;host=www.example;proto=https, \
             for=10.0.0.1;host=\"shop.example:8080\";proto=http",
        ),
    );
}

#[test]
fn a_trusted_proxy_may_speak_rfc_7239() {
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
            "2001:db8::1, 10.0.0.1",
            "for=1.1.1.1;proto=http;host=evil, \
             For=\"[2001:db8::1]:4711\";Proto=HTTPS;host=\"www.\\example\", for=10.0.0.2, \
             for=10.0.0.1;host=\"shop.example:8080\";proto=http",
        ),
    );
}

#[test]
fn forwarded_is_a_strangers_where_x_forwarded_is_there() {
    check(
        PROXY,
        &[("forwarded", "for=1.1.1.1;proto=https"), ("x-forwarded-for", CLIENT)],
        (CLIENT, "http", HOST_HERE),
        (
            "203.0.113.7, 10.0.0.1",
            "for=203.0.113.7;host=\"shop.example:8080\";proto=http, \
             for=10.0.0.1;host=\"shop.example:8080\";proto=http",
        ),
    );
}

#[test]
fn what_cannot_be_read_ends_the_walk() {
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
fn scheme_and_host_are_those_of_the_clients_own_hop() {
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
fn a_unix_peer_is_trusted_as_loopback_is() {
    for (networks, seen) in [
        (&["127.0.0.0/8"][..], Some(CLIENT)),
        (&["::1/128"], Some(CLIENT)),
        (&["10.0.0.0/8"], None),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(X_FORWARDED_FOR, HeaderValue::from_static(CLIENT));
        let client = rewrite(&mut headers, &trust(networks), peer("")).unwrap();
        assert_eq!(client.address, seen.and_then(|seen| seen.parse().ok()));
        assert_eq!(headers.get(X_FORWARDED_FOR).map(|line| line.to_str().unwrap()), seen);
        assert_eq!(headers.get(X_REAL_IP).map(|line| line.to_str().unwrap()), seen);
        assert!(headers[FORWARDED].to_str().unwrap().ends_with("for=unknown;proto=http"));
        assert!(!headers.contains_key(X_FORWARDED_HOST));
    }
}

proptest! {
    #[test]
    fn any_fields_are_rewritten(
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
        prop_assert!(headers.len() <= 5);
        prop_assert!(list::quoted_members(&headers, &FORWARDED).is_some());
        prop_assert!(from != CLIENT || client.address == CLIENT.parse().ok());
    }
}
