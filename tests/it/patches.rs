//! The members of a patch, on the API and in response headers.

use cloakroom::metrics::Event;
use serde_json::{Value, json};

use crate::support::{Browser, Cloakroom, Page, Script, Upstream};

struct World {
    _upstream: Upstream,
    cloakroom: Cloakroom,
    browser: Browser,
}

impl World {
    async fn new() -> Self {
        let upstream = Upstream::start();
        let toml = "[[route]]\nupstream = \"UPSTREAM\"\nheader_exchange = true\n";
        let cloakroom = Cloakroom::with(&upstream, toml).await;
        let browser = Browser::new(&cloakroom);
        Self { _upstream: upstream, cloakroom, browser }
    }

    async fn patch(&self, patch: Value) -> Page {
        self.browser.navigate("/", &Script::new().patch(&patch)).await
    }

    async fn session(&self) -> Value {
        self.browser.navigate("/", &Script::new().get("")).await.json()
    }
}

#[track_caller]
fn refused(page: &Page, status: u16, code: &str) {
    let response = page.last();
    let problem: Value = serde_json::from_str(&response.body).unwrap();
    assert_eq!((response.status, &problem["code"]), (status, &json!(code)));
}

#[tokio::test]
async fn members_have_their_order() {
    let world = World::new().await;
    let first = json!({"set": {"a": 1, "gone": 1, "object": {"x": 1, "y": {"z": 1}}, "list": [1]}});
    world.patch(first).await;
    let page = world
        .patch(json!({
            "merge": {"object": {"x": null, "y": {"w": [2]}}, "new": {"a": null, "b": 1}},
            "append": {"list": [2, [3]], "list2": []},
            "remove": ["gone", "missing", "a"],
            "default": {"a": 2},
            "increment": {"a": 1},
        }))
        .await;
    let expected = json!({
        "a": 3, "list": [1, 2, [3]], "list2": [], "new": {"b": 1},
        "object": {"y": {"z": 1, "w": [2]}}
    });
    assert_eq!(page.json()["values"], expected);
    refused(&world.patch(json!({"append": {"object": [1]}})).await, 422, "not_an_array");
    refused(&world.patch(json!({"append": {"list": 1}})).await, 422, "not_an_array");
    refused(&world.patch(json!({"merge": {"list": {}}})).await, 422, "not_an_object");
    refused(&world.patch(json!({"merge": {"object": 1}})).await, 422, "not_an_object");
    assert_eq!(world.session().await["values"], expected);
}

#[tokio::test]
async fn patches_that_only_take_away_create_nothing() {
    let world = World::new().await;
    for patch in [
        json!({"clear": true}),
        json!({"remove": ["a"]}),
        json!({"values": {"a": null}}),
        json!({"principal": null}),
        json!({"expiry": null}),
        json!({"destroy": true, "principal": null}),
    ] {
        let page = world.patch(patch.clone()).await;
        assert_eq!((&page.json()["id"], page.set_cookies().len()), (&Value::Null, 0), "{patch}");
    }
    for patch in [
        json!({}),
        json!({"remove": []}),
        json!({"append": {"a": []}}),
        json!({"merge": {"a": {}}}),
        json!({"principal": null, "set": {"a": 1}}),
        json!({"rotate": "id"}),
    ] {
        let visitor = Browser::new(&world.cloakroom);
        let page = visitor.navigate("/", &Script::new().patch(&patch)).await;
        assert_eq!((page.last().status, page.set_cookies().len()), (200, 1), "{patch}");
        let visitor = Browser::new(&world.cloakroom);
        let header = Script::new().header("X-Session-Patch", patch.to_string());
        assert_eq!(visitor.navigate("/", &header).await.set_cookies().len(), 1, "{patch}");
    }
    let header = Script::new().header("X-Session-Patch", "");
    assert_eq!(world.browser.navigate("/", &header).await.set_cookies().len(), 0);
}

#[tokio::test]
async fn log_out_keeps_the_values() {
    let world = World::new().await;
    world.patch(json!({"set": {"basket": [1]}, "principal": "ada"})).await;
    let before = world.browser.copy();
    let page = world.patch(json!({"principal": null})).await;
    let session = page.json();
    assert_eq!(
        (&session["principal"], &session["values"]),
        (&Value::Null, &json!({"basket": [1]}))
    );
    assert_eq!(page.set_cookies().len(), 1);
    let page = world.browser.navigate("/", &Script::new().get("")).await;
    assert_eq!(
        (page.json()["principal"].clone(), page.saw("x-session-principal")),
        (json!(null), None)
    );
    // The token of the log-in opens nothing any more.
    let page = before.navigate("/", &Script::new().get("")).await;
    assert_eq!(page.saw("x-session-error").as_deref(), Some("session_rotated"));
    assert_eq!(
        world.cloakroom.service("GET", "?principal=ada", "").await.body,
        "{\"sessions\":[],\"next\":null}"
    );
    // Without a principal nothing changes.
    assert_eq!(world.patch(json!({"principal": null})).await.set_cookies().len(), 0);
    // The same principal gets the basket back; another one does not.
    let page = world.patch(json!({"principal": "ada"})).await;
    assert_eq!(page.json()["values"], json!({"basket": [1]}));
    world.patch(json!({"principal": null})).await;
    let page = world.patch(json!({"principal": "bob"})).await;
    assert_eq!(page.json()["values"], json!({}));
}

#[tokio::test]
async fn log_out_through_a_rotated_token_succeeds() {
    for (log_out, ends) in [
        (Script::new().call("DELETE", "", ""), true),
        (Script::new().call("DELETE", "?everywhere=true", ""), true),
        (Script::new().patch(&json!({"principal": null})), false),
        (Script::new().patch(&json!({"principal": null, "set": {"flash": "bye"}})), false),
        (Script::new().patch(&json!({"destroy": true, "set": {"flash": "bye"}})), true),
        (Script::new().header("X-Session-Patch", "{\"principal\": null}"), false),
    ] {
        let world = World::new().await;
        world.patch(json!({"set": {"a": 1}})).await;
        let planted = world.browser.copy();
        world.patch(json!({"principal": "ada"})).await;
        let click = world.browser.copy();
        world.patch(json!({"rotate": true})).await;

        let page = planted.navigate("/", &log_out).await;
        let refused =
            page.status == 502 || page.calls().first().is_some_and(|call| call.status == 409);
        assert!(refused, "a token from before the log-in: {log_out:?}");
        assert_eq!(world.session().await["principal"], json!("ada"));

        let page = click.navigate("/", &log_out).await;
        assert_eq!(page.status, 200, "{log_out:?}");
        for call in page.calls() {
            assert!(matches!(call.status, 200 | 204), "{log_out:?}: {}", call.body);
            assert!(!call.body.contains("\"a\":1"), "nothing of it is returned");
        }
        let session = world.session().await;
        assert_eq!(session["principal"], json!(null), "{log_out:?}");
        assert_eq!(session["id"].is_null(), ends, "{log_out:?}");
    }
}

#[tokio::test]
async fn session_gets_another_id() {
    let world = World::new().await;
    let first = world.patch(json!({"set": {"a": 1}})).await.json()["id"].clone();
    let page = world.patch(json!({"rotate": "id", "increment": {"a": 1}})).await;
    let second = page.json()["id"].clone();
    assert_eq!((first.as_str().unwrap().len(), second.as_str().unwrap().len()), (22, 24));
    assert_eq!((page.json()["values"].clone(), page.set_cookies().len()), (json!({"a": 2}), 1));
    let page = world.browser.navigate("/", &Script::new().get("")).await;
    assert_eq!(page.saw("x-session-id").as_deref(), second.as_str());
    assert_eq!(page.json()["id"], second);
    let by_id = |id: &Value| format!("/{}", id.as_str().unwrap());
    for (method, body) in [("GET", ""), ("PATCH", "{}"), ("DELETE", "")] {
        let status = world.cloakroom.service(method, &by_id(&first), body).await.status;
        assert_eq!(status, 404, "{method}");
    }
    let listed = world.cloakroom.service("GET", "", "").await.body;
    assert!(listed.contains(second.as_str().unwrap()), "{listed}");
    assert_eq!(world.cloakroom.service("GET", &by_id(&second), "").await.status, 200);
    assert_eq!(world.cloakroom.service("DELETE", &by_id(&second), "").await.status, 204);
    assert_eq!(world.session().await["id"], json!(null));
}

#[tokio::test]
async fn lost_patches_are_dropped_on_request() {
    let world = World::new().await;
    world.patch(json!({"set": {"object": {}, "text": ""}})).await;
    let header = |patch: Value| Script::new().header("X-Session-Patch", patch.to_string());
    for (patch, status) in [
        (json!({"append": {"object": [1]}}), 502),
        (json!({"append": {"object": [1]}, "if_lost": "drop"}), 200),
        (json!({"merge": {"text": {"a": 1}}, "if_lost": "drop"}), 200),
        (json!({"set": {"a": 1}, "if_version": 1, "if_lost": "drop"}), 200),
        (json!({"increment": {"text": 1}, "if_lost": "drop"}), 502),
    ] {
        let page = world.browser.fetch("/", &header(patch.clone())).await;
        assert_eq!(page.status, status, "{patch}");
    }
    assert_eq!(world.session().await["values"], json!({"text": "", "object": {}}));
    let old = world.browser.copy();
    world.patch(json!({"rotate": true})).await;
    let flash = json!({"set": {"flash": 1}});
    assert_eq!(old.fetch("/", &header(flash)).await.status, 502);
    let flash = json!({"set": {"flash": 1}, "if_lost": "drop"});
    assert_eq!(old.fetch("/", &header(flash.clone())).await.status, 200);
    refused(&old.fetch("/", &Script::new().patch(&flash)).await, 409, "session_rotated");
    let dropped = world.cloakroom.metrics().event_count(Event::PatchDropped);
    assert_eq!(dropped, 4);
}
