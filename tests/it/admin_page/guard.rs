//! The guard: tokens, log-ins, forms, and the cookie.

use std::time::Duration;

use serde_json::Value;

use super::{COOKIE, Operator, READ_TOKEN, TOKEN, code, hidden, tokens, visit};
use crate::support::{Browser, Cloakroom, Script, Upstream};

#[tokio::test]
async fn pages_about_sessions_need_a_token() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &tokens()).await;
    let (_, id) = visit(&cloakroom, Some("ada")).await;
    let stranger = Operator::to(cloakroom.admin());
    let (full, read) = (stranger.bearer(TOKEN), stranger.bearer(READ_TOKEN));
    for (method, path, body, read_status) in [
        ("GET", "/sessions".to_owned(), "", 200),
        ("GET", "/sessions?principal=ada".to_owned(), "", 200),
        ("GET", format!("/sessions/{id}"), "", 200),
        ("GET", format!("/sessions/{id}/end"), "", 403),
        ("GET", "/sessions/end?principal=ada".to_owned(), "", 403),
        ("POST", format!("/sessions/{id}/values"), "", 403),
        ("POST", format!("/sessions/{id}/end"), "", 403),
        ("POST", "/sessions/end".to_owned(), "principal=ada", 403),
    ] {
        let page = stranger.send(method, &path, body).await;
        assert_eq!(page.status, 401, "{method} {path}");
        assert_eq!(page.header("www-authenticate"), Some("Bearer realm=\"admin\""));
        assert!(!page.body.contains(">ada") && page.body.contains("name=token"), "{}", page.body);
        let page = stranger.with("accept", "application/json").send(method, &path, body).await;
        assert_eq!((page.status.as_u16(), code(&page).as_str()), (401, "admin_token_missing"));
        let cookie = stranger.with("cookie", &format!("{COOKIE}=AAAA"));
        assert_eq!(cookie.send(method, &path, body).await.status, 401, "{method} {path}");
        let page = read.send(method, &path, body).await;
        assert_eq!(page.status, read_status, "{method} {path}: {}", page.body);
    }
    assert_eq!(full.get(&format!("/sessions/{id}")).await.status, 200, "nothing has changed");
    for path in ["/", "/live", "/ready", "/metrics", "/admin.css"] {
        assert_eq!(stranger.get(path).await.status, 200, "{path}");
    }
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("GET", "/sessions/short", 404),
        ("GET", "/sessions/AAAAAAAAAAAAAAAAAAAAAA", 404),
        ("POST", "/sessions/AAAAAAAAAAAAAAAAAAAAAA/end", 404),
        ("POST", "/sessions", 405),
        ("GET", "/login", 405),
        ("DELETE", "/sessions/AAAAAAAAAAAAAAAAAAAAAA", 405),
        ("GET", "/sessions?limit=0", 400),
        ("GET", "/sessions?nmae=ada", 400),
        ("GET", "/sessions/end", 422),
    ] {
        let page = full.send(method, path, "").await;
        assert_eq!(page.status, status, "{method} {path}");
        code(&page);
    }
}

#[tokio::test]
async fn every_page_has_the_headers_of_the_guard() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &tokens()).await;
    let operator = Operator::to(cloakroom.admin());
    for (operator, path) in [
        (operator.clone(), "/"),
        (operator.clone(), "/sessions"),
        (operator.clone(), "/admin.css"),
        (operator.clone(), "/nothing"),
        (operator.bearer(TOKEN), "/sessions"),
        (operator.bearer("wrong"), "/sessions"),
    ] {
        let page = operator.get(path).await;
        for (name, value) in [
            (
                "content-security-policy",
                "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'",
            ),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(page.header(name), Some(value), "{path}");
        }
        assert!(!page.body.contains("<script") && !page.body.contains(" style="), "{path}");
    }
}

#[tokio::test]
async fn forms_of_other_sites_change_nothing() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &tokens()).await;
    let (_, id) = visit(&cloakroom, None).await;
    let stranger = Operator::to(cloakroom.admin());
    let browser = stranger.log_in(TOKEN).await;
    let path = format!("/sessions/{id}/end");
    let form = format!("form_token={}", hidden(&browser.get(&path).await, "form_token"));
    let json = browser.with("accept", "application/json");
    let refused = async |operator: &Operator, body: &str| {
        let page = operator.send("POST", &path, body).await;
        (page.status.as_u16(), code(&page))
    };
    for site in ["cross-site", "same-site", "none", "Same-Origin", ""] {
        let browser = json.with("sec-fetch-site", site);
        let expected = (403, "cross_site_request".to_owned());
        assert_eq!(refused(&browser, &form).await, expected, "{site}");
        let page = browser.send("POST", "/logout", &form).await;
        assert_eq!(page.status, 403, "{site}");
        let program = stranger.bearer(TOKEN).with("sec-fetch-site", site);
        assert_eq!(refused(&program, "").await, expected, "{site}");
        let log_in = format!("token={TOKEN}");
        let page = stranger.with("sec-fetch-site", site).send("POST", "/login", &log_in).await;
        assert!(page.status == 403 && page.header("set-cookie").is_none(), "{page:?}");
    }
    let browser = json.without("sec-fetch-site");
    assert_eq!(refused(&browser, &form).await, (403, "cross_site_request".to_owned()));
    // A form token of another log-in, of the log-in form, or none.
    let other = stranger.log_in(TOKEN).await;
    let others = hidden(&other.get(&path).await, "form_token");
    let of_login = hidden(&stranger.get("/sessions").await, "form_token");
    for body in
        ["", "form_token=", &format!("form_token={others}"), &format!("form_token={of_login}")]
    {
        assert_eq!(refused(&json, body).await, (403, "form_token_wrong".to_owned()), "{body}");
    }
    // The right token in another media type, as a page of another origin could send it.
    let page = json.with("content-type", "text/plain").send("POST", &path, "").await;
    assert_eq!(page.status, 403);
    // A page that leads a browser here by its own name (DNS rebinding).
    for path in ["/", "/sessions", "/login"] {
        let rebound = json.with("host", "evil.test").get(path).await;
        assert_eq!(
            (rebound.status.as_u16(), code(&rebound).as_str()),
            (421, "misdirected_request")
        );
    }
    assert_eq!(stranger.bearer(TOKEN).get(&format!("/sessions/{id}")).await.status, 200);
    let page = json.send("POST", &path, &form).await;
    assert_eq!(
        (page.status.as_u16(), page.body.as_str()),
        (200, "{\"ended\":1,\"replicated\":null}")
    );
}

#[tokio::test]
async fn a_log_in_ends_after_15_minutes_and_at_log_out() {
    let upstream = Upstream::start();
    let mut cloakroom = Cloakroom::with(&upstream, &tokens()).await;
    let stranger = Operator::to(cloakroom.admin());
    let browser = stranger.log_in(READ_TOKEN).await;
    cloakroom.advance(Duration::from_secs(899));
    let page = browser.get("/sessions").await;
    assert!(page.status == 200 && page.body.contains("read only, until"), "{}", page.body);
    cloakroom.advance(Duration::from_secs(1));
    assert_eq!(browser.get("/sessions").await.status, 401);

    let browser = stranger.log_in(TOKEN).await;
    let form = format!("form_token={}", hidden(&browser.get("/sessions").await, "form_token"));
    let page = browser.send("POST", "/logout", &form).await;
    assert_eq!((page.status.as_u16(), page.header("location")), (303, Some("/")));
    assert!(page.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(browser.get("/sessions").await.status, 401);

    // Another token ends all log-ins, without a restart.
    let browser = stranger.log_in(TOKEN).await;
    assert!(cloakroom.reload(&upstream, &tokens()).unwrap().is_empty());
    assert_eq!(browser.get("/sessions").await.status, 200);
    let renewed = tokens().replace(TOKEN, "another-token-of-an-operator");
    assert!(cloakroom.reload(&upstream, &renewed).unwrap().is_empty());
    assert_eq!(browser.get("/sessions").await.status, 401);
    assert_eq!(stranger.bearer(TOKEN).get("/sessions").await.status, 401);
    assert_eq!(stranger.bearer("another-token-of-an-operator").get("/sessions").await.status, 200);
}

#[tokio::test]
async fn wrong_tokens_are_limited() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &tokens()).await;
    let stranger = Operator::to(cloakroom.admin());
    let browser = stranger.log_in(TOKEN).await;
    for _ in 0..5 {
        let page = stranger.bearer("a-wrong-token").get("/sessions").await;
        assert_eq!((page.status.as_u16(), code(&page).as_str()), (401, "admin_token_wrong"));
    }
    for token in ["a-wrong-token", TOKEN] {
        let page = stranger.bearer(token).get("/sessions").await;
        assert_eq!((page.status.as_u16(), code(&page).as_str()), (429, "too_many_wrong_tokens"));
        assert_eq!(page.header("retry-after"), Some("60"));
    }
    assert_eq!(browser.get("/sessions").await.status, 200, "log-ins go on");
    assert_eq!(stranger.get("/").await.status, 200);
    let audit = browser.json("/audit?kind=wrong_token").await;
    assert_eq!(audit["entries"].as_array().unwrap().len(), 5);
    assert_eq!(audit["entries"][0]["client"], "127.0.0.1");
    assert_eq!(audit["entries"][0]["by"], "operator");
    cloakroom.advance(Duration::from_mins(1));
    assert_eq!(stranger.bearer(TOKEN).get("/sessions").await.status, 200);
}

/// The public side never passes the log-in of an operator to a site, or one of a site to an operator's browser.
#[tokio::test]
async fn public_side_removes_the_cookie() {
    let upstream = Upstream::start();
    for toml in ["", "[[route]]\nupstream = \"UPSTREAM\"\nsession = \"off\"\n"] {
        let cloakroom = Cloakroom::with(&upstream, toml).await;
        let browser = Browser::new(&cloakroom);
        browser.jar.lock().unwrap().insert(COOKIE.to_owned(), "an-id-of-a-log-in".to_owned());
        browser.jar.lock().unwrap().insert("other".to_owned(), "kept".to_owned());
        let script = Script::new()
            .header("set-cookie", format!("{COOKIE}=of-the-site; Path=/"))
            .header("set-cookie", "mine=1; Path=/");
        let page = browser.send_without_keeping("GET", "/", &[], &script).await;
        assert_eq!(page.saw("cookie").as_deref(), Some("other=kept"));
        let set: Vec<_> = page.headers.get_all("set-cookie").iter().collect();
        assert_eq!(set, ["mine=1; Path=/"]);
    }
}
