//! Header exchange, for sites without an HTTP client.

use std::time::Duration;

use cloakroom::metrics::Event;
use serde_json::{Value, json};

use crate::support::raw::RawUpstream;
use crate::support::{Browser, Cloakroom, Page, Program, Script, Upstream};

const ROUTE: &str = "[[route]]\nupstream = \"UPSTREAM\"\nheader_exchange = true\nheader_exchange_max_bytes = \"200\"\n[[route]]\npath = \"/without\"\nupstream = \"UPSTREAM\"\n";

async fn started() -> (Upstream, Cloakroom, Browser) {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, ROUTE).await;
    let browser = Browser::new(&cloakroom);
    (upstream, cloakroom, browser)
}

fn patch(patch: &str) -> Script {
    Script::new().header("X-Session-Patch", patch)
}

#[track_caller]
fn failed(page: &Page) {
    assert_eq!(
        (page.status.as_u16(), page.header("content-type")),
        (502, Some("application/problem+json"))
    );
    assert!(page.body.contains("\"code\":\"session_patch_failed\""), "{}", page.body);
    assert_eq!(page.header("cache-control"), Some("no-store"));
}

#[tokio::test]
async fn site_uses_headers_only() {
    let (_upstream, _cloakroom, browser) = started().await;
    let page = browser.navigate("/", &patch("{\"values\": {\"name\": \"\\u00e9 x\"}}")).await;
    assert_eq!(
        (page.saw("x-session-data").as_deref(), page.saw("x-session-version")),
        (Some("{}"), None)
    );
    assert_eq!((page.header("x-session-patch"), page.set_cookies().len()), (None, 1));
    let page = browser
        .navigate("/", &Script::new().header("X_Session_Patch", "{\"clear\": true}").get(""))
        .await;
    assert_eq!(page.saw("x-session-data").as_deref(), Some("{\"name\":\"\\u00e9 x\"}"));
    assert_eq!(page.saw("x-session-version"), Some(page.json()["version"].to_string()));
    assert_eq!((page.header("x_session_patch"), page.set_cookies().len()), (None, 0));
}

#[tokio::test]
async fn several_patches_apply_atomically() {
    let (_upstream, _cloakroom, browser) = started().await;
    browser.navigate("/", &patch("{}").call("PUT", "/values/n", "0")).await;
    let before =
        browser.navigate("/", &Script::new().get("")).await.json()["version"].as_u64().unwrap();
    let script = patch("{\"increment\": {\"n\": 1}}, {\"increment\": {\"n\": 10}}")
        .header("X-Session-Patch", "{\"set\": {\"m\": \"a,b\"}}");
    browser.navigate("/", &script).await;
    let after = browser.navigate("/", &Script::new().get("")).await.json();
    assert_eq!(
        (after["values"].clone(), after["version"].as_u64()),
        (json!({"n": 11, "m": "a,b"}), Some(before + 1))
    );
    // Atomic: all or none.
    failed(
        &browser
            .navigate("/", &patch("{\"increment\": {\"n\": 1}}, {\"increment\": {\"m\": 1}}"))
            .await,
    );
    assert_eq!(browser.navigate("/", &Script::new().get("/values/n")).await.json(), json!(11));
}

#[tokio::test]
async fn malformed_patches_fail_without_changes() {
    let (_upstream, _cloakroom, browser) = started().await;
    browser.navigate("/", &patch("{\"values\": {\"a\": 1}}")).await;
    for text in [
        "{",
        "1",
        "{\"unknown\": 1}",
        "{\"values\": {\"a\": 1e}}",
        "{\"values\":{\"a\":2}},",
        "{\"principal\":\"a\"},{\"principal\":\"b\"}",
        "{\"principal\":\"admin \"}",
        "{\"principal\":\"\\u2003admin\"}",
        "\u{e9}",
    ] {
        failed(&browser.navigate("/", &patch(text)).await);
    }
    let deep = format!("{{\"values\": {{\"a\": {}}}}}", "[".repeat(5000));
    failed(&browser.navigate("/", &patch(&deep)).await);
    assert_eq!(browser.navigate("/", &Script::new().get("/values")).await.json(), json!({"a": 1}));
}

#[tokio::test]
async fn patches_of_failed_pages_are_ignored() {
    let (_upstream, _cloakroom, browser) = started().await;
    for (path, status) in [("/", 500), ("/without", 200)] {
        let page = browser.navigate(path, &patch("{\"values\": {\"a\": 1}}").status(status)).await;
        assert_eq!(
            (page.status.as_u16(), page.header("x-session-patch"), page.set_cookies().len()),
            (status, None, 0)
        );
    }
    assert_eq!(browser.navigate("/without", &Script::new()).await.saw("x-session-data"), None);
}

#[tokio::test]
async fn oversized_values_are_omitted() {
    let (_upstream, _cloakroom, browser) = started().await;
    browser.navigate("/", &Script::new().call("PUT", "/values/a", json!("x".repeat(200)))).await;
    let page = browser.navigate("/", &Script::new().get("/values/a")).await;
    assert_eq!(
        (page.saw("x-session-data"), page.saw("x-session-data-omitted").as_deref()),
        (None, Some("too-large"))
    );
    assert_eq!(page.last().status, 200);
}

/// Returns `X-Session-Data` and `X-Session-Data-Omitted` of the next request.
async fn exchanged(browser: &Browser, path: &str) -> (Option<String>, Option<String>) {
    let page = browser.navigate(path, &Script::new()).await;
    (page.saw("x-session-data"), page.saw("x-session-data-omitted"))
}

#[tokio::test]
async fn smallest_values_are_sent_first() {
    let upstream = Upstream::start();
    let partial = "[[route]]\nupstream = \"UPSTREAM\"\nheader_exchange = \"partial\"\nheader_exchange_max_bytes = \"64\"\n\
                   [[route]]\npath = \"/whole\"\nupstream = \"UPSTREAM\"\nheader_exchange = true\nheader_exchange_max_bytes = \"64\"\n";
    let cloakroom = Cloakroom::with(&upstream, partial).await;
    let browser = Browser::new(&cloakroom);
    let given = |data: &str, omitted: &str| {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        (text(data), text(omitted))
    };
    assert_eq!(exchanged(&browser, "/").await, given("{}", ""));
    // 14 bytes of the name leave 50 for the values.
    let put = |values: Value| Script::new().patch(&json!({"clear": true, "values": values}));
    browser.navigate("/", &put(json!({"a": "x".repeat(36), "b": 1}))).await;
    let whole = format!("{{\"a\":\"{}\",\"b\":1}}", "x".repeat(36));
    assert_eq!(whole.len(), 50);
    assert_eq!(exchanged(&browser, "/").await, given(&whole, ""));
    assert_eq!(exchanged(&browser, "/whole").await, given(&whole, ""));
    browser.navigate("/", &put(json!({"a": "x".repeat(37), "b": 1}))).await;
    assert_eq!(exchanged(&browser, "/").await, given("{\"b\":1}", "a"));
    assert_eq!(exchanged(&browser, "/whole").await, given("", "too-large"));
    // The size counts in ASCII, and names are encoded.
    browser.navigate("/", &put(json!({"\u{e9} ,": "\u{e9}".repeat(9), "b": "x".repeat(20)}))).await;
    let data = format!("{{\"b\":\"{}\"}}", "x".repeat(20));
    assert_eq!(exchanged(&browser, "/").await, given(&data, "%C3%A9%20%2C"));
    // 22 bytes of the name leave 42 for the keys.
    for (length, expected) in [(42, given("{\"b\":1}", &"k".repeat(42))), (43, given("", "*"))] {
        browser.navigate("/", &put(json!({"k".repeat(length): 1, "b": 1}))).await;
        assert_eq!(exchanged(&browser, "/").await, expected);
    }
    let page = browser.navigate("/", &Script::new().get("")).await;
    assert_eq!(page.saw("x-session-version"), Some(page.json()["version"].to_string()));
    assert_eq!(page.json()["values"], json!({"k".repeat(43): 1, "b": 1}));
    // Changes by header are the same as with all values.
    let page = browser.navigate("/", &patch("{\"remove\": 1}")).await;
    failed(&page);
    browser.navigate("/", &patch("{\"clear\": true, \"set\": {\"c\": 1}}")).await;
    assert_eq!(exchanged(&browser, "/").await, given("{\"c\":1}", ""));
}

#[tokio::test]
async fn login_by_header_rotates_and_drops_late_writes() {
    let (_upstream, cloakroom, browser) = started().await;
    browser.navigate("/", &patch("{\"values\": {\"a\": 1}}")).await;
    let parallel = browser.copy();
    let page =
        browser.navigate("/", &patch("{\"values\": {\"b\": 2}}, {\"principal\": \"ada\"}")).await;
    assert_eq!(page.set_cookies().len(), 1);
    assert_eq!(
        browser.navigate("/", &Script::new()).await.saw("x-session-principal").as_deref(),
        Some("ada")
    );
    // A navigation during the login shows a page rather than an error; a request of a script fails.
    let page = parallel.navigate("/", &patch("{\"values\": {\"a\": 2}}")).await;
    assert_eq!((page.status.as_u16(), page.set_cookies().len()), (200, 0));
    assert_eq!(cloakroom.metrics().event_count(Event::PatchDropped), 1);
    failed(&parallel.fetch("/", &patch("{\"values\": {\"a\": 2}}")).await);
    assert_eq!(
        parallel.navigate("/", &patch("{\"principal\": \"ada\"}")).await.set_cookies().len(),
        1
    );
    assert_eq!(parallel.cookie(), browser.cookie());
    cloakroom.advance(Duration::from_secs(1));
    let page = browser.navigate("/", &patch("{\"destroy\": true}")).await;
    assert!(page.set_cookies()[0].ends_with("Max-Age=0"));
}

#[tokio::test]
async fn malformed_patch_errors_name_the_byte() {
    for (patch, message) in [
        (&b"{\"values\":{\"name\":\"Zo\xeb\"}}"[..], "header X-Session-Patch, byte 21: not UTF-8"),
        (b"{values: 1}", "header X-Session-Patch, byte 1: unexpected character"),
    ] {
        let site = RawUpstream::start().await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cloakroom.toml");
        let text = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n\
             [[route]]\nupstream = \"http://{}\"\nheader_exchange = true\n",
            site.address
        );
        std::fs::write(&file, text).unwrap();
        let program = Program::start(&file);
        let browser = Browser::to(program.serving().await.public);
        let script = Script::new();
        let answer = async {
            let (mut connection, _) = site.head().await;
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Session-Patch: ";
            let response = [&head[..], patch, b"\r\n\r\n"].concat();
            tokio::io::AsyncWriteExt::write_all(&mut connection, &response).await.unwrap();
            connection
        };
        let (page, _connection) = tokio::join!(browser.fetch("/", &script), answer);
        assert_eq!(page.status, 502);
        program.wait_for_log(message).await;
        assert!(!program.log().contains("the body is not JSON"));
    }
}
