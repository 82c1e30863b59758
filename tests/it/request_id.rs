//! The id of a request: at its upstream, in log lines, and on responses of the proxy.

use serde_json::Value;

use crate::support::raw::exchange;
use crate::support::{Browser, Cloakroom, Page, Script, Upstream};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

const TRUSTED: &str = "[limits]\ntrusted_proxies = [\"127.0.0.1\"]\n";

/// Sends a request with these lines; returns its `X-Request-Id`, and the id in its `traceparent`, as the site received
/// them.
async fn sent(proxy: &Cloakroom, upstream: &Upstream, lines: &str) -> (Vec<String>, String) {
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}Connection: close\r\n\r\n");
    let response = exchange(proxy.public(), &request).await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert!(!response.to_ascii_lowercase().contains("\r\nx-request-id:"), "{response}");
    let seen = upstream.take_seen().pop().unwrap();
    let named = |name: &str| {
        let lines = seen.headers.iter().filter(|(known, _)| known == name);
        lines.map(|(_, line)| line.clone()).collect::<Vec<_>>()
    };
    assert!(named("x_request_id").is_empty());
    let trace = named("traceparent").concat().split('-').nth(1).unwrap().to_owned();
    (named("x-request-id"), trace)
}

#[tokio::test]
async fn upstream_receives_the_id_of_the_trace() {
    let upstream = Upstream::start();
    let proxy = Cloakroom::start(&upstream).await;
    let own = "X-Request-Id: mine\r\nx_request_id: mine\r\n";
    let (ids, trace) = sent(&proxy, &upstream, own).await;
    assert_eq!(ids, [trace]);
    let traced = format!("traceparent: 00-{TRACE}-b7ad6b7169203331-01\r\n{own}");
    assert_eq!(sent(&proxy, &upstream, &traced).await.0, [TRACE]);
    // A field that the client lists as one of its connection is replaced too.
    let listed = format!("{traced}Connection: traceparent, x-request-id\r\n");
    let (ids, trace) = sent(&proxy, &upstream, &listed).await;
    assert_eq!((ids, trace.as_str()), (vec![TRACE.to_owned()], TRACE));
}

#[tokio::test]
async fn trusted_proxy_gives_the_id() {
    let upstream = Upstream::start();
    let proxy = Cloakroom::with(&upstream, TRUSTED).await;
    let traced = format!("traceparent: 00-{TRACE}-b7ad6b7169203331-01\r\n");
    let id = format!("{traced}X-Request-Id: edge-7\r\n");
    assert_eq!(sent(&proxy, &upstream, &id).await.0, ["edge-7"]);
    for invalid in ["X-Request-Id: two words\r\n", "X-Request-Id: a\r\nX-Request-Id: b\r\n"] {
        let lines = format!("{traced}{invalid}");
        assert_eq!(sent(&proxy, &upstream, &lines).await.0, [TRACE], "{invalid}");
    }
}

fn problem(page: &Page) -> Value {
    serde_json::from_str(&page.body).unwrap()
}

#[tokio::test]
async fn error_pages_and_problems_have_the_id() {
    let upstream = Upstream::start();
    let toml = format!(
        "{TRUSTED}[[route]]\nupstream = \"{}\"\n[[route]]\npath = \"/down\"\n\
         upstream = \"http://127.0.0.1:1\"\nrequest_id = true\n",
        upstream.url()
    );
    let proxy = Cloakroom::with(&upstream, &toml).await;
    let browser = Browser::new(&proxy);
    let (html, json) = (("accept", "text/html"), ("accept", "application/json"));
    let traceparent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let traced = ("traceparent", traceparent.as_str());
    let page = browser.send("GET", "/down", &[html, traced], &Script::new()).await;
    assert!(page.body.contains(&format!("Request id: {TRACE}<")), "{}", page.body);
    assert_eq!(page.header("x-request-id"), Some(TRACE));

    let id = ("x-request-id", "<edge>");
    let page = browser.send("GET", "/down", &[json, traced, id], &Script::new()).await;
    assert_eq!(problem(&page)["request_id"], "<edge>");
    assert_eq!(page.header("x-request-id"), Some("<edge>"));
    let page = browser.send("GET", "/down", &[html, traced, id], &Script::new()).await;
    assert!(page.body.contains("Request id: &lt;edge&gt;<"), "{}", page.body);

    // A request that has no route has an id nevertheless.
    let page = browser.send("GET", "/_session", &[json, traced], &Script::new()).await;
    assert_eq!((page.status.as_u16(), &problem(&page)["request_id"]), (404, &TRACE.into()));
    assert_eq!(page.header("x-request-id"), None);
}

#[tokio::test]
async fn route_sends_the_id_to_the_client() {
    let upstream = Upstream::start();
    let route = format!("[[route]]\nupstream = \"{}\"\n", upstream.url());
    let script = Script::new().header("X-Request-Id", "the site's");
    for (more, expected) in [("", "the site's"), ("request_id = true\n", TRACE)] {
        let proxy = Cloakroom::with(&upstream, &format!("{route}{more}")).await;
        let traceparent = format!("00-{TRACE}-b7ad6b7169203331-01");
        let traced = [("traceparent", traceparent.as_str())];
        let page = Browser::new(&proxy).send("GET", "/", &traced, &script).await;
        assert_eq!(page.header("x-request-id"), Some(expected));
    }
}
