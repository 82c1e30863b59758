//! `GET /_session/policy`: what upstreams read of the configuration.

use serde_json::{Value, json};

use crate::support::{Browser, Cloakroom, KEY, Script, Upstream};

const ROUTES: &str = "[[route]]\nupstream = \"UPSTREAM\"\n\
     [[route]]\npath = \"/whole\"\nupstream = \"UPSTREAM\"\nheader_exchange = true\n\
     [[route]]\npath = \"/partial\"\nupstream = \"UPSTREAM\"\nheader_exchange = \"partial\"\nheader_exchange_max_bytes = \"8KiB\"\n";

async fn started(toml: &str) -> (Upstream, Cloakroom, Browser) {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &format!("{toml}{ROUTES}")).await;
    let browser = Browser::new(&cloakroom);
    (upstream, cloakroom, browser)
}

fn ask() -> Script {
    Script::new().get("/policy")
}

fn default() -> Value {
    json!({
        "idle_timeout": 1_209_600, "absolute_timeout": null, "expire_at_browser_close": false,
        "cookie": {
            "name": "__Host-id", "path": "/", "domain": null, "secure": true, "http_only": true,
            "same_site": "Lax", "partitioned": false
        },
        "max_bytes": 1_048_576, "max_values": 1024,
        "header_exchange": false, "header_exchange_max_bytes": null
    })
}

#[tokio::test]
async fn policy_is_the_configuration() {
    let (_upstream, _cloakroom, browser) = started("").await;
    assert_eq!(browser.navigate("/", &ask()).await.json(), default());
    for (path, exchange, max_bytes) in
        [("/whole", json!(true), 3072), ("/partial", json!("partial"), 8192)]
    {
        let policy = browser.navigate(path, &ask()).await.json();
        assert_eq!(
            (&policy["header_exchange"], &policy["header_exchange_max_bytes"]),
            (&exchange, &json!(max_bytes))
        );
    }
    let toml = "[session]\nidle_timeout = \"1500ms\"\nabsolute_timeout = \"1h\"\nexpire_at_browser_close = true\n\
                max_bytes = \"1KiB\"\nmax_values = 7\n\
                [cookie]\nname = \"shop\"\npath = \"/shop\"\ndomain = \"example.org\"\nhttp_only = false\n\
                same_site = \"None\"\npartitioned = true\n";
    let (_upstream, _cloakroom, browser) = started(toml).await;
    let configured = json!({
        "idle_timeout": 1, "absolute_timeout": 3600, "expire_at_browser_close": true,
        "cookie": {
            "name": "shop", "path": "/shop", "domain": "example.org", "secure": true, "http_only": false,
            "same_site": "None", "partitioned": true
        },
        "max_bytes": 1024, "max_values": 7,
        "header_exchange": false, "header_exchange_max_bytes": null
    });
    assert_eq!(browser.navigate("/", &ask()).await.json(), configured);
}

#[tokio::test]
async fn every_request_token_may_ask() {
    let (_upstream, cloakroom, browser) = started("").await;
    let log_in = Script::new().patch(&json!({"principal": "ada"}));
    let page = browser.navigate("/", &log_in.clone().get("/policy")).await;
    assert_eq!(page.json(), default());
    let (parallel, other) = (browser.copy(), Browser::new(&cloakroom));
    browser.navigate("/", &log_in).await;
    other.navigate("/", &log_in).await;
    let both = browser.copy();
    let cookies = [browser.cookie().unwrap(), other.cookie().unwrap()];
    both.set_cookie(Some(&cookies.join("; __Host-id=")));
    for (browser, error) in [(&parallel, "session_rotated"), (&both, "ambiguous_cookie")] {
        let page = browser.navigate("/", &ask()).await;
        assert_eq!(page.saw("x-session-error").as_deref(), Some(error));
        assert_eq!(page.json(), default());
    }
    let parallel = browser.copy();
    browser.navigate("/", &Script::new().call("DELETE", "", "")).await;
    let page = parallel.navigate("/", &ask()).await;
    assert_eq!(page.saw("x-session-error").as_deref(), Some("session_ended"));
    assert_eq!(page.json(), default());
    // The store is not asked.
    let toml = format!(
        "[session]\nkeys = [\"{KEY}\"]\n[store]\nurl = \"redis://127.0.0.1:9\"\non_error = \"anonymous\"\n"
    );
    let (_upstream, cloakroom, _) = started(&toml).await;
    assert_eq!(other.at(cloakroom.public()).navigate("/", &ask()).await.json(), default());
}

#[tokio::test]
async fn route_is_forgotten_with_the_request() {
    let (_upstream, cloakroom, browser) = started("").await;
    let write = Script::new().patch(&json!({"values": {"a": 1}})).get("/policy");
    // Of the second, more than its token is kept.
    for (path, script) in [("/whole", ask()), ("/whole", write)] {
        let page = browser.navigate(path, &script).await;
        assert_eq!(page.json()["header_exchange"], json!(true));
        let token = page.saw("x-session-token").unwrap();
        let late = cloakroom.call(&token, ("GET", "/policy", "")).await.json();
        let mut expected = default();
        expected["header_exchange"] = Value::Null;
        assert_eq!(late, expected);
    }
}

#[tokio::test]
async fn policy_is_a_read_like_others() {
    let (_upstream, cloakroom, browser) = started("").await;
    let script =
        Script::new().call("HEAD", "/policy", "").call("POST", "/policy", "{}").get("/policy?x=1");
    let [head, post, query] = browser.navigate("/", &script).await.calls().try_into().unwrap();
    assert_eq!((head.status, &*head.body), (200, ""));
    assert_eq!(head.header("cache-control"), Some("no-store"));
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!((query.status, &*query.code()), (400, "malformed_request"));
    let refused = cloakroom.call("forged", ("GET", "/policy", "")).await;
    assert_eq!((refused.status, &*refused.code()), (401, "request_token_unknown"));
    let by_id = cloakroom.service("GET", "/AAAAAAAAAAAAAAAAAAAAAA/policy", "").await;
    assert_eq!((by_id.status, &*by_id.code()), (404, "not_found"));
}
