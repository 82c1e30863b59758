//! The session API and its contract.

use std::time::Duration;

use cloakroom::session::token::RequestToken;
use serde_json::{Value, json};

use crate::support::{ApiResponse, Browser, Cloakroom, Script, Upstream};

/// Makes calls in one request of a new visitor, and returns the responses.
async fn calls(script: Script) -> Vec<ApiResponse> {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    Browser::new(&cloakroom).navigate("/", &script).await.calls()
}

/// Checks the status and the code, or the body, of each response.
#[track_caller]
fn check(called: &[ApiResponse], expected: &[(u16, &str)]) {
    assert_eq!(called.len(), expected.len());
    for (index, (called, (status, text))) in called.iter().zip(expected).enumerate() {
        assert_eq!(called.status, *status, "call {index}: {called:?}");
        let shown = if called.status >= 400 { called.code() } else { called.body.clone() };
        assert!(text.is_empty() || shown == *text, "call {index}: {shown} instead of {text}");
        assert_eq!(called.header("cache-control"), Some("no-store"), "call {index}");
    }
}

#[tokio::test]
async fn values_are_read_set_and_removed() {
    let called = calls(
        Script::new()
            .get("/values/a")
            .get("/values/a?default=%7B%22x%22%3A%201%7D")
            .call("PUT", "/values/a", " { \"z\" : 1.50 , \"a\" : [ ] } ")
            .get("/values/a")
            .call_with("PUT", "/values/a", &[("if-none-match", "*")], "1")
            .call_with(
                "PUT",
                "/values/b",
                &[("if-none-match", "*"), ("prefer", "return=minimal")],
                "null",
            )
            .get("/values/b")
            .get("/values")
            .call("DELETE", "/values/b", "")
            .call("DELETE", "/values/b", "")
            .call("DELETE", "/values/b?default=7", "")
            .call("PUT", "/values/t?text", "say \"hi\" \u{e9}")
            .get("/values/t")
            .get("/values/t?text")
            .get("/values/none?text&default=plain")
            .call("DELETE", "/values/t?text", ""),
    )
    .await;
    check(
        &called,
        &[
            (404, "no_such_value"),
            (200, "{\"x\":1}"),
            (200, ""),
            (200, "{\"z\":1.50,\"a\":[]}"),
            (412, "value_exists"),
            (204, ""),
            (200, "null"),
            (200, "{\"a\":{\"z\":1.50,\"a\":[]},\"b\":null}"),
            (200, "null"),
            (404, "no_such_value"),
            (200, "7"),
            (200, ""),
            (200, "\"say \\\"hi\\\" \u{e9}\""),
            (200, "say \"hi\" \u{e9}"),
            (200, "plain"),
            (200, "say \"hi\" \u{e9}"),
        ],
    );
    assert!(called[5].header("etag").is_some());
}

#[tokio::test]
async fn increments_and_appends_are_exact() {
    let called = calls(
        Script::new()
            .call("POST", "/values/n/increment", "")
            .call("POST", "/values/n/increment", "{\"by\": 9223372036854775806}")
            .call("POST", "/values/n/increment", "{\"by\": 1}")
            .call("POST", "/values/n/increment", "{\"by\": -1}")
            .call("POST", "/values/n/increment", "{\"by\": 1.5}")
            .call("PUT", "/values/s", "1.0")
            .call("POST", "/values/s/increment", "")
            .call("POST", "/values/s/append", "1")
            .call("POST", "/values/list/append", "{\"a\": 1}")
            .call("POST", "/values/list/append", "2")
            .get("/values/list"),
    )
    .await;
    check(
        &called,
        &[
            (200, "1"),
            (200, "9223372036854775807"),
            (422, "out_of_range"),
            (200, "9223372036854775806"),
            (422, "not_an_integer"),
            (200, ""),
            (422, "not_an_integer"),
            (422, "not_an_array"),
            (200, ""),
            (200, ""),
            (200, "[{\"a\":1},2]"),
        ],
    );
}

#[tokio::test]
async fn patch_applies_whole_or_not_at_all() {
    let called = calls(
        Script::new()
            .patch(&json!({"values": {"a": 1, "b": null}, "set": {"nothing": null}, "default": {"a": 2, "d": 3}, "increment": {"n": 5}}))
            .patch(&json!({"values": {"a": 9}, "increment": {"nothing": 1}}))
            .get("/values")
            .patch(&json!({"clear": true, "values": {"only": []}}))
            .call("PATCH", "", "{\"values\": [], \"unknown\": 1}")
            .call("PATCH", "", "{\"values\": {\"a\": 1, \"a\": 2}}")
            .call("PATCH", "", "{\"principal\": \"\"}")
            .call("PATCH", "", "{\"values\": {\"\": 1}}")
            .call("PATCH", "", "[]")
            .call_with("PATCH", "", &[("content-type", "application/x-www-form-urlencoded")], "{\"values\": {\"x\": 1}}")
            .call_with("PATCH", "", &[("content-type", "multipart/form-data; boundary=x")], "{}")
            .call_with("PATCH", "", &[("content-encoding", "gzip")], "{}")
            .call("PUT", "/values", "{\"whole\": null}")
            .get("/values"),
    )
    .await;
    check(
        &called,
        &[
            (200, ""),
            (422, "not_an_integer"),
            (200, "{\"a\":1,\"d\":3,\"n\":5,\"nothing\":null}"),
            (200, ""),
            (422, "invalid_patch"),
            (400, "malformed_json"),
            (422, "invalid_principal"),
            (422, "invalid_key"),
            (200, ""),
            (200, ""),
            (415, "not_json"),
            (415, "not_json"),
            (200, ""),
            (200, "{\"whole\":null}"),
        ],
    );
    assert_eq!(called[3].json()["values"], json!({"only": []}));
    assert_eq!(called[0].json()["new"], json!(true));
}

#[tokio::test]
async fn if_match_guards_session_and_value() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let browser = Browser::new(&cloakroom);
    let page = browser
        .navigate("/", &Script::new().patch(&json!({"values": {"a": 1}})).get("/values/a"))
        .await;
    let (session, value) = (
        page.calls()[0].header("etag").unwrap().to_owned(),
        page.last().header("etag").unwrap().to_owned(),
    );
    assert_eq!(session, format!("\"{}\"", page.calls()[0].json()["version"]));
    let page = browser
        .navigate(
            "/",
            &Script::new()
                .call("PUT", "/values/b", "2")
                .call_with("PATCH", "", &[("if-match", &session)], "{\"values\": {\"c\": 3}}")
                .call_with("PUT", "/values/a", &[("if-match", &value)], "5")
                .call_with("PUT", "/values/a", &[("if-match", &value)], "6")
                .call_with("DELETE", "", &[("if-match", &session)], "")
                .call_with("PATCH", "", &[("if-match", "W/\"1\"")], "{}")
                .call_with("PATCH", "", &[("if-match", "\"1\", \"2\"")], "{}")
                .patch(&json!({"if_version": 1})),
        )
        .await;
    check(
        &page.calls(),
        &[
            (200, ""),
            (412, "version_moved"),
            (200, ""),
            (412, "version_moved"),
            (412, "version_moved"),
            (412, "version_moved"),
            (400, "malformed_request"),
            (412, "version_moved"),
        ],
    );
}

#[tokio::test]
async fn paths_keys_and_methods_are_checked() {
    let long = "k".repeat(257);
    let script = Script::new()
        .get("/")
        .get("/nothing")
        .get("/values/")
        .get("/values/a/")
        .get("/values/%2e")
        .get("/values/..%2f?default=1")
        .get(&format!("/values/{long}"))
        .get("/values/a%2Fb%20%C3%A9?default=1")
        .get("/values/%ff")
        .get("/values/a?defualt=1")
        .call("POST", "", "{}")
        .call("HEAD", "", "")
        .call("OPTIONS", "/values/a", "");
    let called = calls(script).await;
    for (index, expected) in
        [404, 404, 404, 404, 422, 200, 422, 200, 422, 400, 405, 200, 405].into_iter().enumerate()
    {
        assert_eq!(called[index].status, expected, "call {index}: {:?}", called[index]);
    }
    assert_eq!(called[10].header("allow"), Some("GET, PATCH, DELETE, HEAD"));
    assert_eq!(called[12].header("allow"), Some("GET, PUT, DELETE, HEAD"));
}

#[tokio::test]
async fn session_gets_its_own_expiry() {
    let called = calls(
        Script::new()
            .get("/expiry")
            .call("PUT", "/expiry", "{\"idle\": 3600}")
            .get("/expiry")
            .call("PUT", "/expiry", "{\"browser_close\": true, \"idle\": 60}")
            .call("PUT", "/expiry", "{\"at\": \"2999-01-01T00:00:00+01:00\"}")
            .call("PUT", "/expiry", "{\"idle\": 0}")
            .call("PUT", "/expiry", "null")
            .call("PUT", "/expiry", "{\"at\": 1}")
            .get(""),
    )
    .await;
    let statuses: Vec<u16> = called.iter().map(|called| called.status).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 422, 200, 200, 200]);
    assert_eq!(
        called[0].json(),
        json!({"expires_at": null, "expires_in": null, "expires_at_browser_close": null, "expiry": null})
    );
    assert_eq!(called[2].json()["expires_in"], json!(3600));
    assert_eq!(called[3].json()["expires_at_browser_close"], json!(true));
    assert_eq!(called[4].json()["expires_at"], json!("2998-12-31T23:00:00.000Z"));
    assert_eq!(called[6].json()["expiry"], json!(null));
    // An instant that has passed ends the session at once.
    assert_eq!(called[8].json()["id"], json!(null));
}

#[tokio::test]
async fn exceeded_limits_change_nothing() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(
        &upstream,
        "[limits]\nheader_bytes = \"1MiB\"\n[session]\nmax_bytes = \"1KiB\"\nmax_values = 3\n",
    )
    .await;
    let browser = Browser::new(&cloakroom);
    let script = Script::new()
        .patch(&json!({"values": {"a": 1, "b": 2, "c": 3}}))
        .call("PUT", "/values/d", "4")
        .call("PUT", "/values/a", json!("x".repeat(1024)))
        .call("PUT", "/values/a", json!("x".repeat(100_000)))
        .get("/values");
    check(
        &browser.navigate("/", &script).await.calls(),
        &[
            (200, ""),
            (413, "too_many_values"),
            (413, "session_too_large"),
            (413, "body_too_large"),
            (200, "{\"a\":1,\"b\":2,\"c\":3}"),
        ],
    );
}

#[tokio::test]
async fn token_outlives_its_request_for_values_alone() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let browser = Browser::new(&cloakroom);
    let page = browser.navigate("/", &Script::new().patch(&json!({"values": {"a": 1}}))).await;
    let token = page.saw("x-session-token").unwrap();
    let call = async |token: &str, method: &str, path: &str, body: &str| {
        cloakroom.call(token, (method, path, body)).await
    };
    let unknown = call(&"A".repeat(RequestToken::LENGTH), "GET", "", "").await;
    assert_eq!((unknown.status, unknown.code().as_str()), (401, "request_token_unknown"));
    // The request has ended: for `request_token_linger` the token is authority over values alone.
    assert_eq!(call(&token, "PUT", "/values/late", "1").await.status, 200);
    for (method, path, body) in [
        ("POST", "/rotate", ""),
        ("PATCH", "", "{\"principal\": \"a\"}"),
        ("PUT", "/expiry", "{\"idle\": 5}"),
    ] {
        let refused = call(&token, method, path, body).await;
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (409, "response_committed"),
            "{method} {path}"
        );
    }
    assert_eq!(call(&token, "GET", "/principal/sessions", "").await.code(), "request_gone");
    cloakroom.advance(Duration::from_secs(62));
    let gone = call(&token, "GET", "", "").await;
    assert_eq!((gone.status, gone.code().as_str()), (410, "request_gone"));
    assert_eq!(browser.navigate("/", &Script::new().get("/values/late")).await.json(), json!(1));
}

#[tokio::test]
async fn test_cookie_reports_whether_it_came_back() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let browser = Browser::new(&cloakroom);
    let ask = Script::new().get("/test-cookie");
    let set = Script::new().call("PUT", "/test-cookie", "").get("/test-cookie");
    let page = browser.navigate("/", &set).await;
    assert_eq!((page.calls()[0].status, page.last().json()), (204, json!({"worked": false})));
    assert_eq!(Browser::new(&cloakroom).navigate("/", &ask).await.json(), json!({"worked": false}));
    assert_eq!(browser.navigate("/", &ask).await.json(), json!({"worked": true}));
    let page = browser
        .navigate("/", &Script::new().call("DELETE", "/test-cookie", "").get("/test-cookie"))
        .await;
    assert_eq!((page.calls()[0].status, page.last().json()), (204, json!({"worked": false})));
}

#[tokio::test]
async fn principal_lists_and_destroys_own_sessions() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let log_in = Script::new().patch(&json!({"principal": "ada"}));
    let browsers = [
        Browser::new(&cloakroom),
        Browser::new(&cloakroom),
        Browser::new(&cloakroom),
        Browser::new(&cloakroom),
    ];
    for browser in &browsers {
        assert_eq!(browser.navigate("/", &log_in).await.json()["principal"], json!("ada"));
    }
    let list = Script::new().get("/principal/sessions");
    let sessions =
        browsers[0].navigate("/", &list).await.json()["sessions"].as_array().unwrap().clone();
    assert_eq!(sessions.len(), 4);
    assert!(sessions.iter().all(|session| session.get("values").is_none()));
    assert_eq!(sessions.iter().filter(|session| session["current"] == json!(true)).count(), 1);
    let other = sessions.iter().find(|session| session["current"] == json!(false)).unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/principal/sessions/{other}");
    let script = Script::new().call("DELETE", &path, "").call("DELETE", &path, "").call(
        "DELETE",
        "/principal/sessions",
        "",
    );
    check(
        &browsers[0].navigate("/", &script).await.calls(),
        &[(204, ""), (404, "no_such_session"), (200, "{\"destroyed\":2,\"replicated\":null}")],
    );
    for browser in browsers.iter().skip(1) {
        assert_eq!(browser.navigate("/", &Script::new().get("")).await.json()["id"], json!(null));
    }
    // The session of another principal is not found.
    let other_visitor = Browser::new(&cloakroom);
    let id = other_visitor
        .navigate("/", &Script::new().patch(&json!({"principal": "bob"})))
        .await
        .json()["id"]
        .clone();
    let path = format!("/principal/sessions/{}", id.as_str().unwrap());
    check(
        &browsers[0].navigate("/", &Script::new().call("DELETE", &path, "")).await.calls(),
        &[(404, "no_such_session")],
    );
    let everywhere =
        browsers[0].navigate("/", &Script::new().call("DELETE", "?everywhere=true", "")).await;
    assert_eq!((everywhere.last().status, browsers[0].cookie()), (204, None));
    assert_eq!(
        other_visitor.navigate("/", &list).await.json()["sessions"].as_array().unwrap().len(),
        1
    );
}

#[tokio::test]
async fn service_token_opens_any_session_without_prolonging_it() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let browser = Browser::new(&cloakroom);
    let page = browser
        .navigate("/", &Script::new().patch(&json!({"principal": "ada", "values": {"a": 1}})))
        .await;
    let id = page.json()["id"].as_str().unwrap().to_owned();
    let before: Value = cloakroom.service("GET", &format!("/{id}"), "").await.json();
    cloakroom.advance(Duration::from_secs(100));
    for (method, path, body, status, code) in [
        ("PATCH", "", "{\"increment\": {\"a\": 1}}", 200, ""),
        ("POST", "/values/a/increment", "", 200, ""),
        ("PATCH", "", "{\"rotate\": true}", 422, "invalid_patch"),
        ("PATCH", "", "{\"principal\": \"bob\"}", 422, "invalid_patch"),
        ("POST", "/rotate", "", 422, "invalid_patch"),
        ("GET", "/principal/sessions", "", 404, "not_found"),
    ] {
        let called = cloakroom.service(method, &format!("/{id}{path}"), body).await;
        assert_eq!(called.status, status, "{method} {path}: {called:?}");
        assert!(code.is_empty() || called.code() == code, "{called:?}");
    }
    let after = cloakroom.service("GET", &format!("/{id}"), "").await.json();
    assert_eq!(after["values"], json!({"a": 3}));
    assert_eq!(
        (&after["last_seen_at"], &after["expires_at"]),
        (&before["last_seen_at"], &before["expires_at"])
    );
    let unknown = cloakroom.service("PATCH", "/AAAAAAAAAAAAAAAAAAAAAA", "{}").await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "no_such_session"));
    for _ in 0..4 {
        Browser::new(&cloakroom)
            .navigate("/", &Script::new().patch(&json!({"values": {"x": 1}})))
            .await;
    }
    let (mut found, mut cursor) = (0, String::new());
    loop {
        let page = cloakroom.service("GET", &format!("?limit=2{cursor}"), "").await.json();
        found += page["sessions"].as_array().unwrap().len();
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found, 5);
    assert_eq!(cloakroom.service("DELETE", "", "").await.code(), "invalid_principal");
    let destroyed = cloakroom.service("DELETE", "?principal=ada", "").await.body;
    assert_eq!(destroyed, "{\"destroyed\":1,\"replicated\":null}");
    assert_eq!(browser.navigate("/", &Script::new().get("")).await.json()["id"], json!(null));
    cloakroom.advance(Duration::from_hours(15 * 24));
    assert_eq!(cloakroom.service("POST", "/clear-expired", "").await.body, "{\"removed\":4}");
}
