//! End to end: browser, proxy, upstream, session API, store, cookie.

use serde_json::json;

use crate::support::{Browser, Cloakroom, Script, Upstream};

#[tokio::test]
async fn visit_counter_counts_requests() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let browser = Browser::new(&cloakroom);
    let visit = Script::new().call("POST", "/values/visits/increment", "");
    for expected in 1..=5 {
        let page = browser.navigate("/", &visit).await;
        assert_eq!(page.json(), json!(expected));
        assert_eq!(page.set_cookies().len(), usize::from(expected == 1));
    }
    browser.set_cookie(None);
    assert_eq!(browser.navigate("/", &visit).await.json(), json!(1));
}

#[tokio::test]
async fn reading_creates_no_session() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let browser = Browser::new(&cloakroom);
    let page = browser.navigate("/", &Script::new().get("").get("/values")).await;
    assert_eq!(page.calls()[0].json()["id"], json!(null));
    assert_eq!(page.last().json(), json!({}));
    assert_eq!(page.set_cookies(), [""; 0]);
    assert_eq!(browser.cookie(), None);
}

#[tokio::test]
async fn upstream_never_sees_the_cookie() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let browser = Browser::new(&cloakroom);
    browser
        .navigate("/", &Script::new().call("PATCH", "", r#"{"values": {"a": [1, 2.50]}}"#))
        .await;
    let forged = [
        ("x-session-token", "a"),
        ("X_Session_Token", "b"),
        ("x.session.id", "c"),
        ("cookie", "z=1"),
    ];
    let page = browser.send("GET", "/page?q=1", &forged, &Script::new().get("")).await;
    assert_eq!(page.json()["values"], json!({"a": [1, 2.5]}));
    assert!(page.last().body.contains("[1,2.50]"));
    let seen = page.seen();
    let session: Vec<_> = seen
        .headers
        .iter()
        .filter(|(name, _)| name.contains("session"))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(session.len(), 3, "{session:?}");
    assert_eq!(page.saw("cookie").as_deref(), Some("z=1"));
    assert_eq!(seen.target, "/page?q=1");
}
