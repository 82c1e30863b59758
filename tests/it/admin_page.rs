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

use crate::support::{Browser, Cloakroom, PATIENCE, Page, Program, Script, Upstream, until};

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

fn tokens() -> String {
    format!("[admin]\ntoken = \"{TOKEN}\"\nread_token = \"{READ_TOKEN}\"\n")
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
        "principal=ada%20%26%20%3Cb%3E'>ada &amp; &lt;b&gt;</a>".to_owned(),
        "<code>colour</code>".to_owned(),
        ">22</td>".to_owned(),
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
