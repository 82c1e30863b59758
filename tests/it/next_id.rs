//! The id that a visitor's session will get: `X-Session-Next-Id`, and `next_id` of the session API.

use serde_json::{Value, json};

use crate::support::{Browser, Cloakroom, KEY, Page, Script, Upstream};

const ROUTES: &str = "[[route]]\nupstream = \"UPSTREAM\"\n\
     [[route]]\npath = \"/exchange\"\nupstream = \"UPSTREAM\"\nheader_exchange = true\n\
     [[route]]\npath = \"/off\"\nupstream = \"UPSTREAM\"\nsession = \"off\"\n";

async fn started(toml: &str) -> (Upstream, Cloakroom, Browser) {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &format!("{toml}{ROUTES}")).await;
    let browser = Browser::new(&cloakroom);
    (upstream, cloakroom, browser)
}

fn read() -> Script {
    Script::new().get("")
}

fn next_id(page: &Page) -> Value {
    page.saw("x-session-next-id").into()
}

/// Checks that a request has no next id, by header and by the API.
#[track_caller]
fn has_none(page: &Page, error: Option<&str>) {
    assert_eq!(page.saw("x-session-error").as_deref(), error);
    assert_eq!((next_id(page), &page.last().json()["next_id"]), (Value::Null, &Value::Null));
}

#[tokio::test]
async fn first_write_creates_the_next_id() {
    let sealed = "[store]\nurl = \"cookie:\"\naccept_no_revocation = true\n";
    for store in ["", "[store]\nurl = \"sqlite:next.db\"\n", sealed] {
        let (_upstream, _cloakroom, browser) = started(store).await;
        let page = browser.navigate("/", &read().patch(&json!({})).get("")).await;
        let [before, created, after] = page.calls().try_into().unwrap();
        let id = next_id(&page);
        assert!(id.is_string());
        assert_eq!((&before.json()["id"], &before.json()["next_id"]), (&Value::Null, &id));
        let last = format!(",\"next_id\":{id}}}");
        assert!(before.body.ends_with(&last), "{}", before.body);
        assert_eq!(
            (created.json()["id"].clone(), after.json()["id"].clone()),
            (id.clone(), id.clone())
        );
        assert!(!created.body.contains("next_id") && !after.body.contains("next_id"));
        let page = browser.navigate("/", &read()).await;
        assert_eq!(Value::from(page.saw("x-session-id")), id);
        has_none(&page, None);
    }
}

#[tokio::test]
async fn header_patch_creates_the_next_id() {
    let (_upstream, cloakroom, _) = started("").await;
    for patch in
        ["{}", "{\"values\": {\"a\": 1}}", "{\"principal\": \"ada\"}", "{\"rotate\": \"id\"}"]
    {
        let browser = Browser::new(&cloakroom);
        let patch = Script::new().header("X-Session-Patch", patch);
        let id = next_id(&browser.navigate("/exchange", &patch).await);
        let page = browser.navigate("/exchange", &read()).await;
        assert_eq!(Value::from(page.saw("x-session-id")), id, "{patch:?}");
        has_none(&page, None);
    }
}

#[tokio::test]
async fn first_page_creates_the_next_id() {
    let (_upstream, _cloakroom, browser) = started("[session]\ncreate = \"navigation\"\n").await;
    let id = next_id(&browser.navigate("/", &Script::new()).await);
    let page = browser.navigate("/", &Script::new()).await;
    assert_eq!(Value::from(page.saw("x-session-id")), id);
}

#[tokio::test]
async fn each_request_has_another() {
    let (_upstream, _cloakroom, browser) = started("").await;
    let forged = [("x-session-next-id", "forged"), ("x_session_next_id", "forged")];
    let first = browser.send("GET", "/", &forged, &read()).await;
    let second = browser.send("GET", "/", &forged, &read()).await;
    assert_ne!(next_id(&first), next_id(&second));
    for page in [first, second] {
        assert_eq!(page.json()["next_id"], next_id(&page));
        assert!(!page.body.contains("forged"), "{}", page.body);
    }
    let page = browser.send("GET", "/off", &forged, &Script::new()).await;
    assert_eq!(next_id(&page), Value::Null);
    assert!(!page.body.contains("forged"), "{}", page.body);
}

#[tokio::test]
async fn withheld_cookie_has_a_next_id() {
    let (_upstream, _cloakroom, browser) = started("").await;
    let from_bank = [("sec-fetch-site", "cross-site"), ("sec-fetch-dest", "document")];
    let script = read().patch(&json!({"values": {"a": 1}}));
    let page = browser.send("POST", "/", &from_bank, &script).await;
    assert_eq!(page.saw("x-session-error").as_deref(), Some("cookie_withheld"));
    assert_eq!(
        (&page.calls()[0].json()["next_id"], &page.json()["id"]),
        (&next_id(&page), &next_id(&page))
    );
}

#[tokio::test]
async fn destroy_gives_another() {
    let (_upstream, _cloakroom, browser) = started("").await;
    browser.navigate("/", &Script::new().patch(&json!({"values": {"a": 1}}))).await;
    let script = Script::new().call("DELETE", "", "").get("").patch(&json!({"values": {"b": 1}}));
    let page = browser.navigate("/", &script).await;
    let [_, between, created] = page.calls().try_into().unwrap();
    assert!(between.json()["next_id"].is_string());
    assert_ne!(between.json()["next_id"].as_str(), page.saw("x-session-id").as_deref());
    assert_eq!(between.json()["next_id"], created.json()["id"]);
}

#[tokio::test]
async fn requests_that_may_create_none_have_none() {
    let (_upstream, cloakroom, browser) = started("").await;
    let log_in = Script::new().patch(&json!({"principal": "ada"}));
    browser.navigate("/", &log_in).await;
    let other = Browser::new(&cloakroom);
    other.navigate("/", &log_in).await;
    let both = browser.copy();
    let cookies = [browser.cookie().unwrap(), other.cookie().unwrap()];
    both.set_cookie(Some(&cookies.join("; __Host-id=")));
    has_none(&both.navigate("/", &read()).await, Some("ambiguous_cookie"));
    let parallel = browser.copy();
    browser.navigate("/", &log_in).await;
    has_none(&parallel.navigate("/", &read()).await, Some("session_rotated"));
    let parallel = browser.copy();
    browser.navigate("/", &Script::new().call("DELETE", "", "")).await;
    has_none(&parallel.navigate("/", &read()).await, Some("session_ended"));
}

#[tokio::test]
async fn committed_response_has_none() {
    let (upstream, cloakroom, browser) = started("").await;
    let page = browser.navigate("/", &read()).await;
    let token = page.saw("x-session-token").unwrap();
    let late = cloakroom.call(&token, ("GET", "", "")).await;
    assert_eq!((late.status, late.json()["id"].clone()), (200, Value::Null));
    assert!(!late.body.contains("next_id"), "{}", late.body);
    drop(upstream);
}

#[tokio::test]
async fn unavailable_store_gives_none() {
    let (_upstream, _cloakroom, browser) = started("").await;
    browser.navigate("/", &Script::new().patch(&json!({}))).await;
    // Its keys are the same, and its store does not answer.
    let toml = format!(
        "[session]\nkeys = [\"{KEY}\"]\n[store]\nurl = \"redis://127.0.0.1:9\"\non_error = \"anonymous\"\n"
    );
    let (_upstream, cloakroom, _) = started(&toml).await;
    let page = browser.at(cloakroom.public()).navigate("/", &Script::new()).await;
    assert_eq!(page.saw("x-session-error").as_deref(), Some("store_unavailable"));
    assert_eq!(next_id(&page), Value::Null);
}
