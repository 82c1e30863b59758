//! The admin page: who may see and change what, and what it shows.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use cloakroom::body::Body;
use cloakroom::client::{Config, Pool, Target};
use cloakroom::server::Tasks;
use http::Request;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    Authority, Browser, Cloakroom, Flaw, PATIENCE, Page, Program, RedisServer, Script, Upstream,
    curl, needs, until,
};

const TOKEN: &str = "a-token-of-an-operator-for-the-tests";
const READ_TOKEN: &str = "a-token-that-only-reads-for-the-tests";
const COOKIE: &str = "__cloakroom_admin";

/// A program or a browser of an operator.
#[derive(Clone)]
struct Operator {
    pool: Pool,
    tasks: Tasks,
    headers: Vec<(String, String)>,
}

impl Operator {
    fn to(address: SocketAddr) -> Self {
        let target: Target = format!("http://{address}").parse().unwrap();
        let pool = Pool::new(target, Config::default());
        Self { pool, tasks: Tasks::new(), headers: Vec::new() }.with("host", "localhost:8082")
    }

    /// Sends another header with each request.
    fn with(&self, name: &str, value: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.retain(|(known, _)| known != name);
        headers.push((name.to_owned(), value.to_owned()));
        Self { headers, ..self.clone() }
    }

    fn without(&self, name: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.retain(|(known, _)| known != name);
        Self { headers, ..self.clone() }
    }

    /// A program with a token, which reads JSON.
    fn bearer(&self, token: &str) -> Self {
        self.with("authorization", &format!("Bearer {token}")).with("accept", "application/json")
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> Page {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        }
        let request = request.body(Body::full(body.to_owned())).unwrap();
        let response = self.pool.fetch(request, &self.tasks, 8 << 20, PATIENCE).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Page { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Page {
        self.send("GET", path, "").await
    }

    async fn json(&self, path: &str) -> Value {
        let page = self.with("accept", "application/json").get(path).await;
        assert_eq!(page.status, 200, "{path}: {}", page.body);
        assert_eq!(page.header("content-type"), Some("application/json"), "{path}");
        serde_json::from_str(&page.body).unwrap()
    }

    /// Logs in with a token, as the form does. Returns the browser with its cookie.
    async fn log_in(&self, token: &str) -> Self {
        let form = self.get("/sessions").await;
        assert_eq!(form.status, 401, "{}", form.body);
        let body = format!(
            "form_token={}&token={token}&next=%2Fsessions%3Fid%3Da",
            hidden(&form, "form_token")
        );
        let browser = self.with("sec-fetch-site", "same-origin");
        let page = browser.send("POST", "/login", &body).await;
        assert_eq!(page.status, 303, "{}", page.body);
        assert_eq!(page.header("location"), Some("/sessions?id=a"));
        let line = page.header("set-cookie").unwrap();
        assert!(
            line.starts_with(&format!("{COOKIE}="))
                && line.contains("; Path=/; HttpOnly; SameSite=Strict; Max-Age=900")
                && !line.contains("Secure")
                && !line.contains(token),
            "{line}"
        );
        browser.with("cookie", line.split(';').next().unwrap())
    }
}

/// Returns the value of a hidden field.
fn hidden(page: &Page, name: &str) -> String {
    let field = format!("name={name} value='");
    let value = page.body.split(&field).nth(1).unwrap_or_else(|| panic!("{}", page.body));
    value.split('\'').next().unwrap().to_owned()
}

fn code(page: &Page) -> String {
    let problem: Value = serde_json::from_str(&page.body).unwrap_or_else(|_| panic!("{page:?}"));
    assert_eq!(page.header("content-type"), Some("application/problem+json"));
    problem["code"].as_str().unwrap().to_owned()
}

fn start(text: &str, length: usize) -> &str {
    text.get(..length).unwrap()
}

fn tokens() -> String {
    format!(
        "[admin]\naddress = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"\nread_token = \"{READ_TOKEN}\"\n"
    )
}

/// Creates a session with a value, for a principal. Returns its browser and id.
async fn visit(cloakroom: &Cloakroom, principal: Option<&str>) -> (Browser, String) {
    let browser = Browser::new(cloakroom);
    let mut script = Script::new().call("PUT", "/values/colour", "\"a-hidden-value\"");
    if let Some(name) = principal {
        let patch = serde_json::json!({"principal": name}).to_string();
        script = script.call("PATCH", "", &patch);
    }
    let page = browser.navigate("/", &script).await;
    let id = page.json()["id"].as_str().unwrap().to_owned();
    (browser, id)
}

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
    assert_eq!(now["store"], serde_json::json!({"kind": "memory", "read": true, "write": true}));
    assert_eq!(now["requests"]["forwarded"]["total"], 1);
    assert!(now["requests"]["forwarded"]["per_second"].as_f64().unwrap() > 0.0);
    assert!(now["latency"]["upstream"]["p99"].as_f64().unwrap() > 0.0);
    assert!(now["latency"]["store"]["p50"].as_f64().unwrap() > 0.0);
    assert_eq!(now["upstreams"][upstream.url()], "healthy");
    assert_eq!(now["sessions"]["created"], 1);
    assert_eq!(now["session_events"]["logged_in"], 1);
    assert_eq!(now["config"]["last_reload_succeeded"], true);
    let page = stranger.get("/").await;
    for shown in
        ["memory: reading works, writing works", "<h2>The last hour</h2>", "healthy</strong>"]
    {
        assert!(page.body.contains(shown), "{shown}: {}", page.body);
    }
    for hidden in ["lovelace", &id] {
        assert!(!page.body.contains(hidden), "{hidden}: {}", page.body);
    }
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

/// Writes a configuration for the program. Returns the directory with it, which is also the state directory.
fn configuration(upstream: &Upstream, more: &str, admin: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let text = format!(
        "{more}\n[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n[admin]\n{admin}\n\
         [[route]]\nupstream = \"{}\"\n",
        upstream.url()
    );
    std::fs::write(&file, text).unwrap();
    (directory, file)
}

#[tokio::test]
async fn embedded_stores_make_a_token() {
    let upstream = Upstream::start();
    for url in ["memory:", "sqlite:cloakroom.db", "file:sessions"] {
        let more = format!("[store]\nurl = \"{url}\"\n[log]\nlevel = \"trace\"");
        let (directory, file) = configuration(&upstream, &more, "address = \"127.0.0.1:0\"");
        let path = directory.path().join("admin-token");
        let mut program = Program::start(&file);
        let operator = Operator::to(program.serving().await.admin);
        let token = std::fs::read_to_string(&path).unwrap().trim_end().to_owned();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let created = path.display().to_string();
        assert!(
            program.log().lines().any(|line| line.contains("created=") && line.contains(&created))
        );
        assert_eq!(operator.bearer(&token).get("/sessions").await.status, 200);
        let browser = operator.log_in(&token).await;
        let cookie = browser.headers.iter().find(|(name, _)| name == "cookie").unwrap().1.clone();
        assert_eq!(browser.get("/sessions").await.status, 200);
        assert_eq!(operator.bearer("wrong-token-for-the-log").get("/sessions").await.status, 401);
        program.wait_for_log("wrong token at the admin listener").await;
        program.signal("-TERM");
        program.ended().await;
        let log = program.log();
        let id = cookie.split('=').nth(1).unwrap();
        for secret in [&token, id, "wrong-token-for-the-log"] {
            assert!(!log.contains(secret), "{log}");
        }
        // The next start uses it, and creates nothing.
        let program = Program::start(&file);
        let operator = Operator::to(program.serving().await.admin);
        assert_eq!(operator.bearer(&token).get("/sessions").await.status, 200);
        assert!(!program.log().contains("admin-token"), "{}", program.log());
    }
}

#[tokio::test]
async fn pages_are_off_without_a_token_of_their_own() {
    let upstream = Upstream::start();
    let token = format!("token = \"{TOKEN}\"\n");
    for (address, token, reason) in [
        ("0.0.0.0:0", "", "there is no [admin] token"),
        ("0.0.0.0:0", token.as_str(), "off loopback, tokens need [admin] tls"),
    ] {
        let admin = format!("address = \"{address}\"\n{token}");
        let (directory, file) = configuration(&upstream, "[store]\nurl = \"memory:\"", &admin);
        let program = Program::start(&file);
        let mut address = program.serving().await.admin;
        address.set_ip([127, 0, 0, 1].into());
        let operator = Operator::to(address);
        for (method, path) in [
            ("GET", "/sessions"),
            ("GET", "/sessions/AAAAAAAAAAAAAAAAAAAAAA"),
            ("GET", "/sessions/end?principal=a"),
            ("POST", "/sessions/end"),
            ("POST", "/login"),
            ("POST", "/logout"),
            ("GET", "/audit"),
        ] {
            let page = operator.bearer(TOKEN).send(method, path, "").await;
            assert_eq!((page.status.as_u16(), code(&page).as_str()), (404, "not_found"), "{path}");
        }
        for path in ["/", "/live", "/ready", "/metrics"] {
            assert_eq!(operator.get(path).await.status, 200, "{path}");
        }
        let log = program.log();
        let lines = log.lines().filter(|line| line.contains("admin pages about sessions are off"));
        let lines: Vec<_> = lines.collect();
        assert!(lines.len() == 1 && lines[0].contains(reason), "{log}");
        assert!(!directory.path().join("admin-token").exists());
    }
}

/// Off loopback, a token is taken over TLS, and the cookie is for TLS alone.
#[tokio::test]
async fn tokens_are_taken_over_tls() {
    needs!("curl");
    let upstream = Upstream::start();
    let authority = Authority::new();
    let identity = authority.of(&["127.0.0.1"]);
    let admin = format!(
        "address = \"0.0.0.0:0\"\ntoken = \"{TOKEN}\"\ntls = {{ certificate = \"{}\", key = \"{}\" }}\n",
        identity.certificate.display(),
        identity.key.display()
    );
    let (_directory, file) = configuration(&upstream, "[store]\nurl = \"memory:\"", &admin);
    let program = Program::start(&file);
    let port = program.serving().await.admin.port();
    let ca = authority.certificate();
    let url = |path: &str| format!("https://127.0.0.1:{port}{path}");
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let json = "Accept: application/json";
    let ask = async |path: &str, more: &[&str]| {
        let url = url(path);
        let own = ["--cacert", ca.to_str().unwrap(), "-H", json, &url];
        curl(own.iter().chain(more)).await
    };
    assert_eq!(ask("/sessions", &[]).await.status, 401);
    assert_eq!(ask("/sessions", &["-H", &bearer]).await.status, 200);
    let login = ask("/login", &["-H", &bearer, "-X", "POST"]).await;
    assert_eq!(login.status, 200, "{login:?}");
    let line = login.header("set-cookie").unwrap();
    assert!(line.ends_with("; Secure"), "{line}");
    assert_eq!(ask("/ready", &[]).await.status, 200);
    let metrics = ask("/metrics", &[]).await;
    assert!(metrics.body.contains(&format!("listener=\"0.0.0.0:{port}\",certificate=")));
    // The health command knows the listener from the same file.
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("address = \"0.0.0.0:0\"", &format!("address = \"0.0.0.0:{port}\""));
    std::fs::write(&file, text).unwrap();
    let mut health = std::process::Command::new(env!("CARGO_BIN_EXE_cloakroom"));
    health.args(["health", "--config", file.to_str().unwrap()]);
    let output = health.env("STATE_DIRECTORY", file.parent().unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn client_ca_keeps_others_out() {
    needs!("curl");
    let upstream = Upstream::start();
    let authority = Authority::new();
    let (server, client) = (authority.of(&["127.0.0.1"]), authority.client(Flaw::None));
    let ca = authority.certificate();
    let admin = format!(
        "address = \"127.0.0.1:0\"\nclient_ca = \"{}\"\ntls = {{ certificate = \"{}\", key = \"{}\" }}\n",
        ca.display(),
        server.certificate.display(),
        server.key.display()
    );
    let (directory, file) = configuration(&upstream, "[store]\nurl = \"memory:\"", &admin);
    let program = Program::start(&file);
    let url = format!("https://{}/sessions", program.serving().await.admin);
    let token = std::fs::read_to_string(directory.path().join("admin-token")).unwrap();
    let bearer = format!("Authorization: Bearer {}", token.trim_end());
    let own = ["--cacert", ca.to_str().unwrap(), "-H", &bearer, &url];
    let refused = curl(own).await;
    assert!(refused.exit != 0 && refused.status == 0, "{refused:?}");
    let (certificate, key) = (client.certificate.to_str().unwrap(), client.key.to_str().unwrap());
    let accepted = curl(own.iter().chain(&["--cert", certificate, "--key", key])).await;
    assert_eq!(accepted.status, 200, "{accepted:?}");
}

#[tokio::test]
async fn tokens_are_taken_over_a_unix_socket() {
    let upstream = Upstream::start();
    let (directory, file) =
        configuration(&upstream, "[store]\nurl = \"memory:\"", "address = \"unix:admin.sock\"");
    let program = Program::start(&file);
    program.wait_for_log("serving public=").await;
    let socket = directory.path().join("admin.sock");
    let token = std::fs::read_to_string(directory.path().join("admin-token")).unwrap();
    let target: Target = format!("unix:{}", socket.display()).parse().unwrap();
    let operator = Operator {
        pool: Pool::new(target, Config::default()),
        tasks: Tasks::new(),
        headers: Vec::new(),
    };
    // Any host name leads to a socket: no page in a browser does.
    let operator = operator.with("host", "any.test");
    assert_eq!(operator.bearer(token.trim_end()).get("/sessions").await.status, 200);
    for _ in 0..5 {
        assert_eq!(operator.bearer("wrong").get("/sessions").await.status, 401);
    }
    assert_eq!(operator.bearer("wrong").get("/sessions").await.status, 429);
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

#[tokio::test]
async fn reload_takes_another_token_from_its_file() {
    let upstream = Upstream::start();
    let mut cloakroom = Cloakroom::with(&upstream, "").await;
    let path = cloakroom.directory().join("admin-token");
    let read = || std::fs::read_to_string(&path).unwrap().trim_end().to_owned();
    let (stranger, old) = (Operator::to(cloakroom.admin()), read());
    assert_eq!(stranger.bearer(&old).get("/sessions").await.status, 200);
    std::fs::remove_file(&path).unwrap();
    assert!(cloakroom.reload(&upstream, "").unwrap().is_empty());
    assert_ne!(read(), old);
    assert_eq!(stranger.bearer(&old).get("/sessions").await.status, 401);
    assert_eq!(stranger.bearer(&read()).get("/sessions").await.status, 200);
}

#[tokio::test]
async fn start_needs_no_admin_token() {
    let upstream = Upstream::start();
    let store = "[store]\nurl = \"memory:\"";
    for text in [None, Some("something else\n")] {
        let (directory, file) = configuration(&upstream, store, "address = \"127.0.0.1:0\"");
        let path = directory.path().join("admin-token");
        match text {
            None => std::fs::create_dir(&path).unwrap(),
            Some(text) => std::fs::write(&path, text).unwrap(),
        }
        let program = Program::start(&file);
        let operator = Operator::to(program.serving().await.admin);
        assert_eq!(operator.get("/").await.status, 200);
        assert_eq!(operator.get("/sessions").await.status, 404);
        assert!(program.log().contains("no admin token; set [admin] token"), "{}", program.log());
        assert!(!program.log().contains("something else"), "{}", program.log());
        if let Some(text) = text {
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
