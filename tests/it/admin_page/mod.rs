//! The admin page: who may see and change what, and what it shows.

mod guard;
mod listeners;
mod load;
mod many;
mod problems;
mod sessions;

use std::net::SocketAddr;

use cloakroom::body::Body;
use cloakroom::client::{Config, Pool, Target};
use cloakroom::server::Tasks;
use http::Request;
use serde_json::Value;

use crate::support::{Browser, Cloakroom, PATIENCE, Page, Script};

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
