//! Routes that require a principal.

use serde_json::json;

use crate::support::{Browser, Cloakroom, Page, Script, Upstream};

const ROUTES: &str = "[[route]]\nupstream = \"UPSTREAM\"\n\
    [[route]]\npath = \"/members\"\nupstream = \"UPSTREAM\"\n\
    require_principal = \"/members/login?next={path}\"\n";

async fn ask(browser: &Browser, method: &str, path: &str, accept: &str, script: &Script) -> Page {
    browser.send(method, path, &[("accept", accept)], script).await
}

#[tokio::test]
async fn redirects_to_login_and_back() {
    let upstream = Upstream::start();
    let proxy = Cloakroom::with(&upstream, ROUTES).await;
    let browser = Browser::new(&proxy);
    let html = "text/html,*/*;q=0.8";
    browser.navigate("/", &Script::new().call("PUT", "/values/a", "1")).await;
    let before = upstream.seen().len();
    for method in ["GET", "POST"] {
        let page = ask(&browser, method, "/members/a?b=c", html, &Script::new()).await;
        assert_eq!(page.status, 303);
        assert_eq!(page.header("location"), Some("/members/login?next=%2Fmembers%2Fa%3Fb%3Dc"));
    }
    let page = ask(&browser, "GET", "/members/a", "application/json", &Script::new()).await;
    assert_eq!((page.status.as_u16(), page.header("www-authenticate")), (401, Some("Cookie")));
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&page.body).unwrap()["code"],
        "not_logged_in"
    );
    assert_eq!(upstream.seen().len(), before, "the site saw none of it");
    // The login page is below the route, and accessible without a principal.
    let log_in = Script::new().patch(&json!({"principal": "ada"}));
    let page = ask(&browser, "POST", "/members/login?next=%2Fmembers%2Fa", html, &log_in).await;
    assert_eq!(page.last().status, 200);
    let page = ask(&browser, "GET", "/members/a", html, &Script::new()).await;
    assert_eq!(
        (page.status.as_u16(), page.saw("x-session-principal").as_deref()),
        (200, Some("ada"))
    );
    browser.navigate("/", &Script::new().call("DELETE", "", "")).await;
    assert_eq!(ask(&browser, "GET", "/members/a", html, &Script::new()).await.status, 303);
}

#[tokio::test]
async fn no_spelling_bypasses_the_login() {
    let upstream = Upstream::start();
    let proxy = Cloakroom::with(&upstream, ROUTES).await;
    let browser = Browser::new(&proxy);
    for path in [
        "/members",
        "/members/",
        "/%6dembers/a",
        "/members/login/../a",
        "/members/login%2f..%2fa",
        "/members/login;x",
        "/x/../members/a",
        "//members/a",
        "/members//login",
    ] {
        let page = ask(&browser, "GET", path, "text/html", &Script::new()).await;
        assert!([303, 400].contains(&page.status.as_u16()), "{path}: {}", page.status);
    }
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test]
async fn scripts_are_not_redirected() {
    let proxy = Cloakroom::with(&Upstream::start(), ROUTES).await;
    let browser = Browser::new(&proxy);
    let page: &[_] = &[("accept", "text/html"), ("sec-fetch-mode", "navigate")];
    for (headers, status) in [
        (page, 303),
        (&[("accept", "text/html, */*; q=0.01"), ("x-requested-with", "XMLHttpRequest")], 401),
        (&[("accept", "text/html"), ("sec-fetch-mode", "cors")], 401),
        (&[("accept", "text/html"), ("sec-fetch-mode", "same-origin")], 401),
        (&[("accept", "application/json, text/html;q=0")], 401),
        (&[("accept", "text/html;q=0.0, */*")], 401),
        (&[("accept", "text/html;q=0.1")], 303),
    ] {
        let answer = browser.send("GET", "/members/a", headers, &Script::new()).await;
        assert_eq!(answer.status, status, "{headers:?}");
        assert_eq!(answer.header("location").is_some(), status == 303, "{headers:?}");
    }
}

#[tokio::test]
async fn cors_preflights_reach_the_site() {
    let upstream = Upstream::start();
    let proxy = Cloakroom::with(&upstream, ROUTES).await;
    let browser = Browser::new(&proxy);
    let preflight: &[_] =
        &[("origin", "https://app.example"), ("access-control-request-method", "PUT")];
    let allow = Script::new().header("Access-Control-Allow-Origin", "https://app.example");
    let page = browser.send("OPTIONS", "/members/a", preflight, &allow).await;
    assert_eq!(page.status, 200);
    assert_eq!(page.header("access-control-allow-origin"), Some("https://app.example"));
    for (method, headers) in
        [("OPTIONS", &preflight[..1]), ("OPTIONS", &preflight[1..]), ("PUT", preflight)]
    {
        let page = browser.send(method, "/members/a", headers, &Script::new()).await;
        assert_eq!(page.status, 401, "{method} {headers:?}");
    }
    assert_eq!(upstream.seen().len(), 1);
}
