//! A real browser: Debian's chromium, driven by chromedriver over the W3C `WebDriver` protocol.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cloakroom::body::Body;
use cloakroom::client::{Config, Pool};
use cloakroom::server::Tasks;
use http::Request;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::PATIENCE;

/// A running chromedriver. Dropping it ends it and its browsers.
pub struct Driver {
    port: u16,
    pool: Pool,
    tasks: Tasks,
    /// Ended when dropped, should it not have heard before.
    _process: Child,
    /// Kept, so that it may go on writing.
    _lines: Lines<BufReader<ChildStdout>>,
    /// Removed after the browsers that write there.
    profiles: Mutex<Vec<TempDir>>,
}

/// A browser of its own, with cookies of its own. Dropping the driver ends it.
pub struct Window<'a> {
    driver: &'a Driver,
    session: String,
}

impl Driver {
    pub async fn start() -> Self {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver can be run; Debian: apt-get install chromium chromium-driver");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = tokio::time::timeout(PATIENCE, port(&mut lines));
        let port = port.await.expect("chromedriver says on which port it is");
        let target = format!("http://127.0.0.1:{port}").parse().unwrap();
        let pool = Pool::new(target, Config::default());
        let profiles = Mutex::default();
        Self { port, pool, tasks: Tasks::new(), _process: process, _lines: lines, profiles }
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
        self.window_with(json!({})).await
    }

    /// A browser that takes no cookies.
    pub async fn window_without_cookies(&self) -> Window<'_> {
        self.window_with(json!({"profile.default_content_setting_values.cookies": 2})).await
    }

    async fn window_with(&self, preferences: Value) -> Window<'_> {
        let profile = tempfile::tempdir().unwrap();
        let data = format!("--user-data-dir={}", profile.path().display());
        self.profiles.lock().unwrap().push(profile);
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
            "goog:chromeOptions": {"args": arguments, "prefs": preferences},
        }}});
        let session = self.ask("POST", "/session", Some(&wanted)).await;
        let session = session.expect(
            "chromium starts under chromedriver; Debian: apt-get install chromium chromium-driver",
        );
        Window { driver: self, session: session["sessionId"].as_str().unwrap().to_owned() }
    }
}

/// The port that chromedriver chose.
async fn port(lines: &mut Lines<BufReader<ChildStdout>>) -> u16 {
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some((_, rest)) = line.split_once("started successfully on port ") {
            return rest.trim_end_matches('.').parse().unwrap();
        }
    }
    panic!("chromedriver ended at once");
}

impl Drop for Driver {
    /// Killed alone, it would leave its browsers behind.
    fn drop(&mut self) {
        let shut_down = || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /shutdown HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")?;
            // It answers after they are gone.
            stream.read(&mut [0; 1])
        };
        // Where it does not hear, it is killed.
        let _: std::io::Result<usize> = shut_down();
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
        let page = self.element("html").await;
        self.click_only(css).await;
        let path = format!("/session/{}/element/{page}/name", self.session);
        let deadline = Instant::now() + PATIENCE;
        while self.driver.ask("GET", &path, None).await.is_ok() {
            assert!(Instant::now() < deadline, "clicking {css} opens no page");
        }
    }

    /// Clicks what opens no page.
    pub async fn click_only(&self, css: &str) {
        let element = self.element(css).await;
        self.ask("POST", &format!("/element/{element}/click"), Some(json!({}))).await;
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
