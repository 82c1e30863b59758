//! A real browser: Debian's chromium, driven by chromedriver over the W3C `WebDriver` protocol.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloakroom::body::Body;
use cloakroom::client::{Config, Pool};
use cloakroom::server::Tasks;
use http::Request;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::PATIENCE;

/// A running chromedriver. Dropping it ends it.
pub struct Driver {
    process: Child,
    pool: Pool,
    tasks: Tasks,
}

/// A browser of its own, with cookies of its own. Dropping the driver ends it.
pub struct Window<'a> {
    driver: &'a Driver,
    session: String,
    _profile: TempDir,
}

impl Driver {
    pub async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is installed (Debian: chromium, chromium-driver)");
        let pool =
            Pool::new(format!("http://127.0.0.1:{port}").parse().unwrap(), Config::default());
        let driver = Self { process, pool, tasks: Tasks::new() };
        let deadline = Instant::now() + PATIENCE;
        while driver.ask("GET", "/status", None).await.is_err() {
            assert!(Instant::now() < deadline, "chromedriver does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        driver
    }

    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let body = body.map_or_else(Body::empty, |body| Body::full(body.to_string()));
        let request = Request::builder().method(method).uri(path).body(body).unwrap();
        let response =
            self.pool.fetch(request, &self.tasks, 64 << 20, Duration::from_mins(1)).await;
        let response = response.map_err(|error| error.to_string())?;
        let mut answer: Value =
            serde_json::from_slice(response.body()).map_err(|error| error.to_string())?;
        if response.status().is_success() {
            Ok(answer["value"].take())
        } else {
            Err(answer.to_string())
        }
    }

    pub async fn window(&self) -> Window<'_> {
        let profile = tempfile::tempdir().unwrap();
        let data = format!("--user-data-dir={}", profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &data,
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "timeouts": {"implicit": 10_000, "pageLoad": 30_000},
            "goog:chromeOptions": {"args": arguments},
        }}});
        let session = self.ask("POST", "/session", Some(&wanted)).await.unwrap();
        let session = session["sessionId"].as_str().unwrap().to_owned();
        Window { driver: self, session, _profile: profile }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Window<'_> {
    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let path = format!("/session/{}{path}", self.session);
        self.driver
            .ask(method, &path, body.as_ref())
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub async fn open(&self, url: &str) {
        self.ask("POST", "/url", Some(json!({"url": url}))).await;
    }

    async fn element(&self, css: &str) -> String {
        let found = self
            .ask("POST", "/element", Some(json!({"using": "css selector", "value": css})))
            .await;
        found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned()
    }

    pub async fn text(&self, css: &str) -> String {
        let element = self.element(css).await;
        self.ask("GET", &format!("/element/{element}/text"), None)
            .await
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// How many elements there are, without waiting for any.
    pub async fn count(&self, css: &str) -> usize {
        let script = "return document.querySelectorAll(arguments[0]).length";
        let count =
            self.ask("POST", "/execute/sync", Some(json!({"script": script, "args": [css]}))).await;
        usize::try_from(count.as_u64().unwrap()).unwrap()
    }

    /// Clicks, and waits until the page has gone that it was clicked on.
    pub async fn click(&self, css: &str) {
        let (page, element) = (self.element("html").await, self.element(css).await);
        self.ask("POST", &format!("/element/{element}/click"), Some(json!({}))).await;
        let path = format!("/session/{}/element/{page}/name", self.session);
        let deadline = Instant::now() + PATIENCE;
        while self.driver.ask("GET", &path, None).await.is_ok() {
            assert!(Instant::now() < deadline, "clicking {css} opens no page");
        }
    }

    pub async fn write(&self, css: &str, text: &str) {
        let element = self.element(css).await;
        self.ask("POST", &format!("/element/{element}/clear"), Some(json!({}))).await;
        self.ask("POST", &format!("/element/{element}/value"), Some(json!({"text": text}))).await;
    }

    /// The session cookie, which scripts do not see.
    pub async fn cookie(&self) -> Option<Value> {
        let cookies = self.ask("GET", "/cookie", None).await;
        cookies
            .as_array()
            .unwrap()
            .iter()
            .find(|cookie| cookie["name"] == super::browser::COOKIE)
            .cloned()
    }

    pub async fn delete_cookie(&self) {
        self.ask("DELETE", &format!("/cookie/{}", super::browser::COOKIE), None).await;
    }

    /// Puts a cookie back that the browser had before.
    pub async fn put_cookie(&self, cookie: &Value) {
        let mut cookie = cookie.clone();
        // A `__Host-` cookie has no domain, though the driver tells one.
        cookie.as_object_mut().unwrap().remove("domain");
        self.delete_cookie().await;
        self.ask("POST", "/cookie", Some(json!({"cookie": cookie}))).await;
    }
}
