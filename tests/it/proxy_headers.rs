//! Headers of requests at the upstream and of responses at the client, over raw sockets.

use serde_json::json;

use crate::support::raw::exchange;
use crate::support::{Browser, Cloakroom, Program, Script, Seen, Upstream};

const ROUTES: &str = "[[route]]\nupstream = \"UPSTREAM\"\n[[route]]\npath = \"/off\"\nupstream = \"UPSTREAM\"\nsession = \"off\"\nrequest_headers = { X-From-Proxy = \"yes\" }\nprincipal_header = \"X-Remote-User\"\n[[route]]\npath = \"/poll\"\nupstream = \"UPSTREAM\"\nsession = \"no-touch\"\n";

async fn started(toml: &str) -> (Upstream, Cloakroom) {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, toml).await;
    (upstream, cloakroom)
}

fn all<'a>(seen: &'a Seen, name: &str) -> Vec<&'a str> {
    seen.headers
        .iter()
        .filter(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
        .collect()
}

#[tokio::test]
async fn clients_cannot_forge_session_headers() {
    let (upstream, cloakroom) = started(ROUTES).await;
    for path in ["/", "/off", "/poll"] {
        for method in ["GET", "OPTIONS", "DELETE"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close, X-Session-Token, X-Session-Url, Host, Cookie\r\n\
                 CONNECTION:\r\nconnection: x-session-id, X-Gone\r\nX-Gone: 1\r\nCookie: z=1\r\nX-Session-Token: forged\r\n\
                 X-Session-Token: forged\r\nx_session_token: forged\r\nX.Session-ID: forged\r\nX-Session_Principal: forged\r\n\
                 X-Session-Anything: forged\r\nX-Remote-User: forged\r\nx_remote_user: forged\r\nX-From-Proxy: forged\r\nProxy: http://evil\r\n\
                 Transfer_Encoding: chunked\r\nContent_Length: 5\r\nContent.Length: 5\r\nProxy_Connection: forged\r\n\
                 Client-IP: forged\r\nTrue_Client_IP: forged\r\nX-Remote-Addr: forged\r\nX-Original-Host: forged\r\n\
                 Upgrade: h2c\r\nHTTP2-Settings: x\r\nTE: gzip\r\nKeep-Alive: 5\r\nX-Kept: 1\r\n\r\n"
            );
            let answer = exchange(cloakroom.public(), &request).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            let seen = upstream.seen().pop().unwrap();
            let text = format!("{:?}", seen.headers);
            assert!(path == "/off" || all(&seen, "x-session-token").len() == 1, "{text}");
            assert!(!text.contains("forged"), "{text}");
            for gone in [
                "x-gone",
                "proxy",
                "upgrade",
                "http2-settings",
                "te",
                "keep-alive",
                "x_session_token",
                "transfer_encoding",
                "content_length",
                "content.length",
            ] {
                assert_eq!(all(&seen, gone), [""; 0], "{gone}");
            }
            assert_eq!(
                (all(&seen, "x-kept"), all(&seen, "cookie"), all(&seen, "host")),
                (vec!["1"], vec!["z=1"], vec!["a"])
            );
            assert_eq!(all(&seen, "via").len(), 1);
            let given = if path == "/off" { &["yes"][..] } else { &[] };
            assert_eq!(all(&seen, "x-from-proxy"), given);
        }
    }
}

#[tokio::test]
async fn malformed_requests_are_rejected() {
    let (upstream, cloakroom) = started("").await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a;b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\nContent-Length: 0\r\n\r\n", 417),
        ("GET / HTTP/1.1\r\nHost: a\r\n: hidden\r\n\r\n", 400),
        ("GET http://b/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200),
        ("GET / HTTP/1.0\r\n\r\n", 200),
    ] {
        let answer = exchange(cloakroom.public(), request).await;
        let said: u16 = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        assert_eq!(said, status, "{request:?}: {answer}");
    }
    let seen: Vec<_> = upstream.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[0].target.as_str(), all(&seen[0], "host")), ("/x", vec!["b"]));
}

#[tokio::test]
async fn api_is_not_on_public_listeners() {
    let (upstream, cloakroom) = started("").await;
    for path in [
        "/_session",
        "/_sessions",
        "/_session/values",
        "//_session",
        "/%5fsession",
        "/./_session",
        "/x/../_session",
        "/_session%2fvalues",
        "/_session;a=b/values",
        "/_session/",
        "/%255fsession",
        "/_sessions/x?q",
    ] {
        let answer = exchange(
            cloakroom.public(),
            &format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    assert_eq!(upstream.seen().len(), 0);
    let answer = exchange(
        cloakroom.public(),
        "GET /_sessionx HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn only_trusted_proxies_set_forwarded_headers() {
    for (trusted, address, chain) in
        [("", "127.0.0.1", "127.0.0.1"), ("127.0.0.0/8", "203.0.113.7", "203.0.113.7, 127.0.0.1")]
    {
        let toml = format!(
            "[limits]\ntrusted_proxies = [{}]\n[session]\nrecord_client = true\n",
            if trusted.is_empty() { String::new() } else { format!("\"{trusted}\"") }
        );
        let (_upstream, cloakroom) = started(&toml).await;
        let browser = Browser::new(&cloakroom);
        let headers = [
            ("x-forwarded-for", "203.0.113.7"),
            ("x-forwarded-proto", "https"),
            ("x-original-url", "/admin"),
        ];
        let page =
            browser.send("GET", "/", &headers, &Script::new().call("PUT", "/values/a", "1")).await;
        assert_eq!(page.saw("x-forwarded-for").as_deref(), Some(chain));
        assert_eq!(
            page.saw("x-forwarded-proto").as_deref(),
            Some(if trusted.is_empty() { "http" } else { "https" })
        );
        assert_eq!(page.saw("x-original-url").is_some(), !trusted.is_empty());
        assert_eq!(page.json()["client"]["address"], json!(address));
    }
}

#[tokio::test]
async fn loops_end_at_the_first_round() {
    let (_upstream, second) = started("").await;
    let first = started(&format!("[[route]]\nupstream = \"http://{}\"\n", second.public())).await.1;
    let page = Browser::new(&first).navigate("/", &Script::new()).await;
    assert_eq!(all(&page.seen(), "via").join(",").split(',').count(), 2);
    // A proxy whose upstream is a third proxy, which forwards back to the first.
    let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let back = started(&format!("[[route]]\nupstream = \"http://{own}\"\n")).await.1;
    let toml = format!(
        "[[listen]]\naddress = \"{own}\"\n[[route]]\nupstream = \"http://{}\"\n",
        back.public()
    );
    let _round = started(&toml).await;
    let answer = exchange(own, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 508"), "{answer}");
}

#[tokio::test]
async fn upstreams_cannot_set_the_session_cookie() {
    let (_upstream, cloakroom) = started("").await;
    let script = Script::new()
        .header("Set-Cookie", "a=1; Path=/")
        .header("Set-Cookie", "__Host-id=stolen; Path=/; Secure")
        .header("Set-Cookie", "=__Host-id=stolen; Path=/; Secure")
        .header("Set-Cookie", " \t=\t __Host-id=stolen")
        .header("Set-Cookie", "b=2, c=3")
        .header("X-Session-Token", "leak")
        .header("x_session_id", "leak")
        .header("Connection", "X-Hop")
        .header("X-Hop", "1")
        .header("Keep-Alive", "timeout=5");
    let page = Browser::new(&cloakroom).navigate("/", &script).await;
    let cookies: Vec<_> = page.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1; Path=/", "b=2, c=3"]);
    for name in ["x-session-token", "x_session_id", "x-hop", "keep-alive"] {
        assert_eq!(page.header(name), None, "{name}");
    }
    assert_eq!(page.header("vary"), Some("Cookie"));
}

#[tokio::test]
async fn strips_and_keeps_configured_names() {
    let limits = |trusted: &str| {
        format!(
            "[limits]\ntrusted_proxies = [{trusted}]\nstrip_request_headers = [\"X-SSL-Verify\"]\n\
             keep_request_headers = [\"X-Original-Name\"]\n"
        )
    };
    let sent =
        [("x_ssl_verify", "ok"), ("x-original-name", "a.png"), ("x-client-ip", "203.0.113.7")];
    for (trusted, passed) in [("", [false, true, false]), ("\"127.0.0.1\"", [true; 3])] {
        let (_upstream, cloakroom) = started(&limits(trusted)).await;
        let page = Browser::new(&cloakroom).send("GET", "/", &sent, &Script::new()).await;
        assert_eq!(sent.map(|(name, _)| page.saw(name).is_some()), passed, "{trusted}");
    }
}

#[tokio::test]
async fn dropped_headers_are_logged_once() {
    let upstream = Upstream::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let text = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n\
         [[route]]\nupstream = \"{}\"\n",
        upstream.url()
    );
    std::fs::write(&file, text).unwrap();
    let program = Program::start(&file);
    let browser = Browser::to(program.serving().await.public);
    let fields =
        [("x-forwarded-proto", "https"), ("client-ip", "10.0.0.1"), ("content_length", "5")];
    for _ in 0..20 {
        assert_eq!(browser.send("GET", "/", &fields, &Script::new()).await.status, 200);
    }
    // Log lines are written in order.
    browser.send("GET", "/last", &[], &Script::new()).await;
    program.wait_for_log("/last").await;
    let log = program.log();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("overwrote X-Forwarded-Proto: https of an untrusted peer"), 1, "{log}");
    assert_eq!(lines("key=\"limits.trusted_proxies\""), 1, "{log}");
    for name in ["x-forwarded-proto", "client-ip", "content_length"] {
        assert_eq!(lines(&format!("header=\"{name}\"")), 1, "{log}");
    }
}
