//! What the pages show, and what they end.

use std::time::Duration;

use serde_json::Value;

use super::listeners::configuration;
use super::{Operator, READ_TOKEN, TOKEN, code, hidden, start, tokens, visit};
use crate::support::{
    Browser, Cloakroom, Echo, Program, RedisServer, Script, Upstream, needs, socket, until,
};

#[tokio::test]
async fn a_log_in_sees_finds_and_ends() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &tokens()).await;
    let (visitor, id) = visit(&cloakroom, Some("ada & <b>")).await;
    visit(&cloakroom, None).await;
    let browser = Operator::to(cloakroom.admin()).log_in(TOKEN).await;
    let page = browser.get("/sessions").await;
    assert_eq!(page.status, 200);
    for shown in [
        format!("<a href='/sessions/{id}'>"),
        "principal=ada%20%26%20%3Cb%3E' class=long>ada &amp; &lt;b&gt;</a>".to_owned(),
        "<code>colour</code>".to_owned(),
        ">22</div></td>".to_owned(),
    ] {
        assert!(page.body.contains(&shown), "{shown}: {}", page.body);
    }
    let path = format!("/sessions/{id}/end");
    let confirmation = browser.get(&path).await;
    assert!(confirmation.body.contains("End 1 session?"), "{}", confirmation.body);
    let form_token = hidden(&confirmation, "form_token");
    let ended = browser.send("POST", &path, &format!("form_token={form_token}")).await;
    assert_eq!(ended.status, 200, "{}", ended.body);
    assert!(ended.body.contains("1 session ended"), "{}", ended.body);
    let next = visitor.navigate("/", &Script::new().get("")).await;
    assert_eq!(next.json()["id"], Value::Null, "the session is out at the next request");
    let again = browser.send("POST", &path, &format!("form_token={form_token}")).await;
    assert_eq!(again.status, 404);
}

#[tokio::test]
async fn all_sessions_of_a_principal_end_except_one() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &tokens()).await;
    let mut visitors = Vec::new();
    for _ in 0..3 {
        visitors.push(visit(&cloakroom, Some("ada")).await);
    }
    let (_, of_bob) = visit(&cloakroom, Some("bob")).await;
    let kept = &visitors[0].1;
    let browser = Operator::to(cloakroom.admin()).log_in(TOKEN).await;
    let page = browser.get(&format!("/sessions/{kept}")).await;
    assert!(page.body.contains(&format!("/sessions/end?principal=ada&amp;except={kept}'")));
    let path = format!("/sessions/end?principal=ada&except={kept}");
    let page = browser.get(&path).await;
    assert!(page.body.contains("End 2 sessions?"), "{}", page.body);
    assert_eq!(browser.json(&path).await["count"], 2);
    let full = Operator::to(cloakroom.admin()).bearer(TOKEN);
    // A wrong exception ends nothing.
    for wrong in ["", "x", "AAAAAAAAAAAAAAAAAAAAAA", &of_bob] {
        let page =
            full.send("POST", "/sessions/end", &format!("principal=ada&except={wrong}")).await;
        assert_eq!((page.status.as_u16(), code(&page).as_str()), (409, "not_of_the_principal"));
    }
    let page = full.send("POST", "/sessions/end", "prinicpal=ada").await;
    assert_eq!(page.status, 400);
    let token = hidden(&browser.get(&path).await, "form_token");
    let body = format!("form_token={token}&principal=ada&except={kept}");
    let page = browser.send("POST", "/sessions/end", &body).await;
    assert!(page.body.contains("2 sessions ended"), "{}", page.body);
    let list = full.json("/sessions?principal=ada").await;
    assert_eq!((&list["matched"], &list["sessions"][0]["id"]), (&1.into(), &kept.as_str().into()));
    for (visitor, id) in &visitors {
        let page = visitor.navigate("/", &Script::new().get("")).await;
        assert_eq!(page.json()["id"] == id.as_str(), id == kept, "{id}");
    }
    let page = full.send("POST", "/sessions/end", "principal=ada").await;
    assert_eq!(page.body, "{\"ended\":1,\"replicated\":null}");
    let page = full.send("POST", "/sessions/end", "principal=ada").await;
    assert_eq!(page.body, "{\"ended\":0,\"replicated\":null}");
    let entries = full.json("/audit?kind=destroyed&principal=ada").await;
    let entries = entries["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 3);
    assert!(
        entries.iter().all(|entry| entry["by"] == "operator" && entry["client"] == "127.0.0.1")
    );
}

#[tokio::test]
async fn search_finds_one_among_many() {
    let upstream = Upstream::start();
    let toml = format!("{}[session]\nrecord_client = true\n", tokens());
    let cloakroom = Cloakroom::with(&upstream, &toml).await;
    let (_, oldest) = visit(&cloakroom, Some("needle")).await;
    let mut ids = vec![oldest.clone()];
    for _ in 0..40 {
        cloakroom.advance(Duration::from_secs(1));
        ids.push(visit(&cloakroom, None).await.1);
    }
    let full = Operator::to(cloakroom.admin()).bearer(READ_TOKEN);
    let found = async |query: &str| {
        let list = full.json(&format!("/sessions?{query}")).await;
        let sessions = list["sessions"].as_array().unwrap().iter();
        sessions.map(|one| one["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(found("principal=needle").await, std::slice::from_ref(&oldest));
    assert_eq!(found(&format!("id={oldest}")).await, std::slice::from_ref(&oldest));
    let prefix = start(&oldest, 8);
    assert_eq!(found(&format!("id={prefix}")).await, std::slice::from_ref(&oldest));
    assert_eq!(found(&format!("id={prefix}&principal=other")).await, [""; 0]);
    assert_eq!(found("address=127.0.0.1&limit=500").await.len(), 41);
    assert_eq!(found("address=192.0.2.1").await, [""; 0]);
    // Newest first, in pages.
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let list = full.json(&format!("/sessions?limit=15&cursor={cursor}")).await;
        assert_eq!((&list["matched"], &list["complete"]), (&41.into(), &true.into()));
        let sessions = list["sessions"].as_array().unwrap();
        paged.extend(sessions.iter().map(|one| one["id"].as_str().unwrap().to_owned()));
        match list["next"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    ids.reverse();
    assert_eq!(paged, ids);
    let one = &full.json("/sessions?principal=needle").await["sessions"][0];
    assert_eq!((&one["bytes"], &one["keys"][0]), (&22.into(), &"colour".into()));
    assert_eq!(one["client"]["address"], "127.0.0.1");
    // The same on the pages of a browser.
    let browser = Operator::to(cloakroom.admin()).log_in(READ_TOKEN).await;
    let page = browser.get("/sessions?address=127.0.0.1&limit=40").await;
    let next = page
        .body
        .split("<a href='/sessions?cursor=")
        .nth(1)
        .unwrap_or_else(|| panic!("{}", page.body));
    let query = next.split('\'').next().unwrap().replace("&amp;", "&");
    let page = browser.get(&format!("/sessions?cursor={query}")).await;
    assert!(page.body.contains(&oldest), "{}", page.body);
}

#[tokio::test]
async fn values_are_shown_once_and_recorded() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &tokens()).await;
    let (visitor, id) = visit(&cloakroom, Some("ada")).await;
    let browser = Operator::to(cloakroom.admin()).log_in(TOKEN).await;
    let path = format!("/sessions/{id}");
    let form = format!("form_token={}", hidden(&browser.get(&path).await, "form_token"));
    let secrets = ["a-hidden-value", TOKEN, READ_TOKEN, &visitor.cookie().unwrap()];
    let hides = async |operator: &Operator| {
        for path in ["/", "/sessions", &path, &format!("{path}/end"), "/audit", "/metrics"] {
            for operator in [operator.clone(), operator.with("accept", "application/json")] {
                let page = operator.get(path).await;
                assert_eq!(page.status, 200, "{path}");
                for secret in secrets {
                    assert!(!page.body.contains(secret), "{path}: {}", page.body);
                }
            }
        }
    };
    hides(&browser).await;
    let page = browser.send("POST", &format!("{path}/values"), &form).await;
    assert!(page.status == 200 && page.body.contains("a-hidden-value"), "{}", page.body);
    let program = Operator::to(cloakroom.admin()).bearer(TOKEN);
    let page = program.send("POST", &format!("{path}/values"), "").await;
    let expected = format!("{{\"id\":\"{id}\",\"values\":{{\"colour\":\"a-hidden-value\"}}}}");
    assert_eq!(page.body, expected);
    let shown = browser.json("/audit?kind=values_shown").await;
    let entries = shown["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(
        (&entries[0]["session"], &entries[0]["principal"]),
        (&id.as_str().into(), &"ada".into())
    );
    assert_eq!(browser.json(&path).await["entries"][0]["event"], "values_shown");
    hides(&browser).await;

    let hidden_values = format!("{}show_values = false\n", tokens());
    let cloakroom = Cloakroom::with(&upstream, &hidden_values).await;
    let (_, id) = visit(&cloakroom, None).await;
    let program = Operator::to(cloakroom.admin()).bearer(TOKEN);
    let page = program.send("POST", &format!("/sessions/{id}/values"), "").await;
    assert_eq!((page.status.as_u16(), code(&page).as_str()), (403, "values_hidden"));
    assert_eq!(
        program.json("/audit?kind=values_shown").await["entries"].as_array().unwrap().len(),
        0
    );
}

#[tokio::test]
async fn audit_page_is_filtered_and_paged() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &tokens()).await;
    let (_, id) = visit(&cloakroom, Some("ada")).await;
    let later = cloakroom.now().to_string();
    cloakroom.advance(Duration::from_mins(1));
    for _ in 0..3 {
        visit(&cloakroom, Some("bob")).await;
    }
    let reader = Operator::to(cloakroom.admin()).bearer(READ_TOKEN);
    let entries = async |query: &str| {
        reader.json(&format!("/audit?{query}")).await["entries"].as_array().unwrap().clone()
    };
    let of_ada = entries("principal=ada").await;
    assert!(!of_ada.is_empty() && of_ada.iter().all(|entry| entry["session"] == id.as_str()));
    assert_eq!(
        entries(&format!("id={}", start(&id, 10))).await.len(),
        entries(&format!("id={id}")).await.len()
    );
    assert_eq!(entries("kind=logged_in&principal=bob").await.len(), 3);
    assert!(
        entries(&format!("until={later}")).await.iter().all(|entry| entry["principal"] != "bob")
    );
    let since = format!("since={}", start(&cloakroom.now().to_string(), 19));
    assert!(entries(&since).await.iter().all(|entry| entry["principal"] != "ada"));
    let all = entries("").await;
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = reader.json(&format!("/audit?limit=2&cursor={cursor}")).await;
        paged.extend(page["entries"].as_array().unwrap().clone());
        match page["next"].as_u64() {
            Some(next) => cursor = next.to_string(),
            None => break,
        }
    }
    assert_eq!(paged, all);
    let html = reader.with("accept", "text/html").get("/audit?kind=logged_in").await;
    assert!(html.body.contains("<option value='logged_in' selected>logged in"), "{}", html.body);
    assert!(html.body.contains(&format!("<a href='/sessions/{id}'>")), "{}", html.body);
}

#[tokio::test]
async fn now_shows_what_the_instance_does() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, "").await;
    let (_browser, id) = visit(&cloakroom, Some("lovelace")).await;
    let stranger = Operator::to(cloakroom.admin());
    let now = stranger.json("/").await;
    assert_eq!(now["version"], env!("CARGO_PKG_VERSION"));
    let store = &now["store"];
    assert_eq!((&store["kind"], &store["read"]), (&"memory".into(), &true.into()));
    assert_eq!((&store["write"], &store["write_age_seconds"]), (&true.into(), &0.into()));
    assert_eq!(now["requests"]["forwarded"]["total"], 1);
    assert!(now["requests"]["forwarded"]["per_second"].as_f64().unwrap() > 0.0);
    assert!(now["latency"]["upstream"]["p99"].as_f64().unwrap() > 0.0);
    assert!(now["latency"]["store"]["p50"].as_f64().unwrap() > 0.0);
    let site = &now["upstreams"][upstream.url()];
    assert_eq!((&site["state"], &site["requests"]["total"]), (&"healthy".into(), &1.into()));
    assert_eq!((&site["failures"]["total"], &site["in_flight"]), (&0.into(), &0.into()));
    assert!(site["latency"]["p99"].as_f64().unwrap() > 0.0, "{site}");
    assert!(now["session_event_rates"]["created"]["recent_per_second"].as_f64().unwrap() > 0.0);
    let key = now["session_keys"]["own"][0].as_str().unwrap();
    assert_eq!(key.len(), 16);
    assert_eq!(now["sessions"]["created"], 1);
    assert_eq!(now["session_events"]["logged_in"], 1);
    assert_eq!(now["config"]["last_reload_succeeded"], true);
    let page = stranger.get("/").await;
    for shown in [
        "memory: reading works (0 s ago), writing works",
        "<h2>The last hour</h2>",
        "healthy</strong>",
        key,
    ] {
        assert!(page.body.contains(shown), "{shown}: {}", page.body);
    }
    for hidden in ["lovelace", &id] {
        assert!(!page.body.contains(hidden), "{hidden}: {}", page.body);
    }
}

/// Lists, finds and ends sessions, whatever keeps them.
async fn check_store(url: &str) {
    let upstream = Upstream::start();
    let toml = format!("{}[store]\nurl = \"{url}\"\n", tokens());
    let cloakroom = Cloakroom::with(&upstream, &toml).await;
    let (_, first) = visit(&cloakroom, Some("ada")).await;
    cloakroom.advance(Duration::from_secs(1));
    let (visitor, second) = visit(&cloakroom, Some("ada")).await;
    cloakroom.advance(Duration::from_secs(1));
    let (_, third) = visit(&cloakroom, None).await;
    let full = Operator::to(cloakroom.admin()).bearer(TOKEN);
    let listed = async |query: &str| {
        let list = full.json(&format!("/sessions?{query}")).await;
        let sessions = list["sessions"].as_array().unwrap().iter();
        sessions.map(|one| one["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed("").await, [third.clone(), second.clone(), first.clone()], "{url}");
    assert_eq!(listed("principal=ada").await, [second.clone(), first.clone()], "{url}");
    assert_eq!(
        listed(&format!("id={}", start(&first, 10))).await,
        std::slice::from_ref(&first),
        "{url}"
    );
    let page = full.send("POST", &format!("/sessions/{second}/end"), "").await;
    assert!(page.body.starts_with("{\"ended\":1,\"replicated\":"), "{url}: {}", page.body);
    let next = visitor.navigate("/", &Script::new().get("")).await;
    assert_eq!(next.json()["id"], Value::Null, "{url}");
    let page = full.send("POST", "/sessions/end", "principal=ada").await;
    assert!(page.body.starts_with("{\"ended\":1,"), "{url}: {}", page.body);
    assert_eq!(listed("").await, [third], "{url}");
}

#[tokio::test]
async fn sessions_of_embedded_stores_are_listed_and_ended() {
    for url in ["sqlite:cloakroom.db", "file:sessions"] {
        check_store(url).await;
    }
}

#[tokio::test]
async fn sessions_in_redis_are_listed_and_ended() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    check_store(&format!("redis://127.0.0.1:{}/0", server.port())).await;
}

#[tokio::test]
async fn sessions_in_cookies_cannot_be_listed() {
    let upstream = Upstream::start();
    let store = "[store]\nurl = \"cookie:\"\naccept_no_revocation = true\n";
    let cloakroom = Cloakroom::with(&upstream, &format!("{}{store}", tokens())).await;
    let full = Operator::to(cloakroom.admin()).bearer(TOKEN);
    let page = full.get("/sessions").await;
    assert_eq!((page.status.as_u16(), code(&page).as_str()), (501, "not_supported"));
    assert_eq!(full.get("/audit").await.status, 200);
    assert_eq!(full.get("/").await.status, 200);
}

/// On the program, as an operator and a visitor use it.
#[tokio::test]
async fn form_that_ends_a_session_closes_its_websocket() {
    let (upstream, echo) = (Upstream::start(), Echo::start().await);
    let more = format!(
        "[store]\nurl = \"memory:\"\n[[route]]\npath = \"/ws\"\nupstream = \"http://{}\"\n",
        echo.address
    );
    let admin = format!("address = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"");
    let (_directory, file) = configuration(&upstream, &more, &admin);
    let program = Program::start(&file);
    let serving = program.serving().await;
    let visitor = Browser::to(serving.public);
    let page =
        visitor.navigate("/", &Script::new().call("PUT", "/values/cart", "[1]").get("")).await;
    let id = page.json()["id"].as_str().unwrap().to_owned();
    let cookie = format!("__Host-id={}", visitor.cookie().unwrap());
    let mut bound = socket(serving.public, "/ws", &[("cookie", &cookie)]).await.unwrap();
    let mut other = socket(serving.public, "/ws", &[]).await.unwrap();
    assert!(bound.echoes("a").await && other.echoes("b").await);
    let operator = Operator::to(serving.admin).log_in(TOKEN).await;
    let path = format!("/sessions/{id}/end");
    let form_token = hidden(&operator.get(&path).await, "form_token");
    let ended = operator.send("POST", &path, &format!("form_token={form_token}")).await;
    assert!(ended.body.contains("1 session ended"), "{}", ended.body);
    assert_eq!(bound.closed_with().await, Some(1008));
    until("the site receives the close", || echo.closed() == [Some(1008)]).await;
    assert!(other.echoes("c").await, "that of another visitor stays open");
}

#[tokio::test]
async fn audit_page_counts_principals_and_addresses() {
    let upstream = Upstream::start();
    let toml = format!("{}[session]\nrecord_client = true\n", tokens());
    let cloakroom = Cloakroom::with(&upstream, &toml).await;
    for principal in ["ada", "bob", "bob"] {
        visit(&cloakroom, Some(principal)).await;
    }
    let reader = Operator::to(cloakroom.admin()).bearer(READ_TOKEN);
    let first = reader.json("/audit?kind=logged_in&limit=1").await;
    let expected = serde_json::json!({"events": 3, "principals": 2, "addresses": 1});
    assert_eq!(first["matched"], expected);
    let next = format!("/audit?kind=logged_in&limit=1&cursor={}", first["next"]);
    assert_eq!(reader.json(&next).await["matched"], expected, "of all pages");
    let html = reader.with("accept", "text/html").get("/audit?kind=logged_in&principal=ada").await;
    let counts = "<p id=matched>1 entry, 1 principal, 1 client address.</p>";
    assert!(html.body.contains(counts), "{}", html.body);
}
