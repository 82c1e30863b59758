//! The demo without a browser: its pages, what they say of errors, and where it listens.

use std::net::TcpListener;

use cloakroom::body::Body;
use cloakroom::client::{Config, Pool};
use cloakroom::demo::{Demo, Error, Options};
use cloakroom::server::Tasks;
use http::{Request, StatusCode};

use crate::support::{Browser, PATIENCE, Page, Script};

fn start(port: u16) -> Result<Demo, Error> {
    crate::support::init_log();
    Demo::start(Options { port: Some(port) })
}

fn visitor(demo: &Demo) -> Browser {
    Browser::to(([127, 0, 0, 1], demo.port()).into())
}

async fn get(visitor: &Browser, path: &str) -> Page {
    visitor.navigate(path, &Script::new()).await
}

/// Sends a form, and keeps the cookie that comes back.
async fn submit(demo: &Demo, visitor: &Browser, path: &str, form: &str) -> Page {
    let target = format!("http://127.0.0.1:{}", demo.port()).parse().unwrap();
    let cookie = visitor.cookie().map_or_else(String::new, |value| format!("__Host-id={value}"));
    let request = Request::post(path)
        .header("content-type", "application/x-www-form-urlencoded")
        .header("cookie", cookie)
        .body(Body::full(form.to_owned()))
        .unwrap();
    let pool = Pool::new(target, Config::default());
    let response = pool.fetch(request, &Tasks::new(), 1 << 20, PATIENCE).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let page = Page { status: parts.status, headers: parts.headers, body };
    visitor.keep(&page);
    page
}

const PAGES: [&str; 8] =
    ["/account", "/values", "/message", "/lifetime", "/cookie", "/devices", "/", "/exchange"];

#[tokio::test]
async fn every_page_is_there_for_strangers_and_for_those_who_are_known() {
    let demo = start(0).unwrap();
    let visitor = visitor(&demo);
    for path in PAGES {
        assert_eq!(visitor.cookie().is_some(), path == "/exchange", "looking at {path}");
        let page = get(&visitor, path).await;
        assert_eq!(page.status, 200, "{path}");
        assert!(page.body.contains("id=session>"), "{path} has a footer");
        assert!(!page.body.contains("<script"), "{path}");
    }
    for path in PAGES {
        let page = get(&visitor, path).await;
        assert_eq!(page.status, 200, "{path}");
        assert!(page.body.contains("id=session-id>"), "{path} names the session");
    }
    assert_eq!(get(&visitor, "/nothing").await.status, 404);
    assert_eq!(visitor.send("DELETE", "/", &[], &Script::new()).await.status, 405);
    assert!(demo.stop().await);
}

#[tokio::test]
async fn a_form_is_answered_with_a_redirect_and_a_refusal_with_a_page_that_says_why() {
    let demo = start(0).unwrap();
    let visitor = visitor(&demo);
    for (path, form, next) in [
        ("/values/set", "key=%3Cb%3E&value=%22%3Ci%3E%22", "/values"),
        ("/lifetime", "at=2099-11-20T11%3A03", "/lifetime"),
        ("/log-in", "name=%3Cu%3E", "/account"),
    ] {
        let page = submit(&demo, &visitor, path, form).await;
        assert_eq!(page.status, StatusCode::SEE_OTHER, "{path}: {}", page.body);
        assert_eq!(page.header("location"), Some(next));
    }
    let values = get(&visitor, "/values").await.body;
    assert!(values.contains("&lt;b&gt;") && values.contains("&quot;&lt;i&gt;&quot;"));
    assert!(values.contains("id=principal>&lt;u&gt;<"));
    assert!(!values.contains("<b>") && !values.contains("<i>") && !values.contains("<u>"));

    let stranger = self::visitor(&demo);
    for (path, form, status, code) in [
        ("/values/set", "key=&value=1", 404, "not_found"),
        ("/lifetime", "idle=soon", 422, "invalid_expiry"),
        ("/lifetime", "at=", 422, "invalid_expiry"),
        ("/log-in", "name=", 422, "invalid_principal"),
        ("/cookie/rotate", "", 404, "no_such_session"),
    ] {
        let page = submit(&demo, &stranger, path, form).await;
        assert_eq!(page.status.as_u16(), status, "{path}: {}", page.body);
        assert!(page.body.contains(code) && page.body.contains("role=alert"), "{}", page.body);
        assert_eq!(stranger.cookie(), None, "{path} changed nothing");
    }
    let page = submit(&demo, &stranger, "/message", &format!("text={}", "a".repeat(20_000))).await;
    assert_eq!(page.status, 400);
}

#[tokio::test]
async fn other_ports_are_taken_where_the_usual_ones_are_not_free() {
    // Whoever has them, two demos at once cannot both.
    let demos = [(); 2].map(|()| Demo::start(Options::default()).unwrap());
    assert_ne!(demos[0].port(), demos[1].port());
    for demo in demos {
        assert_eq!(demo.url(), format!("http://localhost:{}/", demo.port()));
        assert!(demo.text().contains(&demo.url()));
        assert_eq!(get(&visitor(&demo), "/").await.status, 200);
        assert!(demo.stop().await);
    }
}

#[tokio::test]
async fn a_port_that_was_asked_for_is_taken_or_refused() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = start(taken.local_addr().unwrap().port()).unwrap_err();
    assert!(matches!(error, Error::Start(_)), "{error}");
}
