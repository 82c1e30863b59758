//! A real browser: Chromium, driven by chromedriver over the W3C `WebDriver` protocol.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloakroom::body::Body;
use cloakroom::client::{Config, Pool};
use cloakroom::server::Tasks;
use http::Request;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::PATIENCE;

/// A running chromedriver. Dropping it stops it and its browsers.
pub struct Driver {
    port: u16,
    pool: Pool,
    tasks: Tasks,
    /// Killed when dropped, in case the shutdown request of [`Driver::drop`] failed.
    _process: Child,
    /// Kept open: chromedriver would die of a closed pipe.
    _lines: Lines<BufReader<ChildStdout>>,
    /// Removed last, after the browsers that write there have exited.
    profiles: Mutex<Vec<TempDir>>,
}

/// A browser with its own profile and cookies. Dropping the driver stops it.
pub struct Window<'a> {
    driver: &'a Driver,
    session: String,
}

impl Driver {
    pub async fn start() -> Self {
        // It exits if the port that it has drawn is taken by then.
        for _ in 0..5 {
            if let Some(driver) = Self::try_start().await {
                return driver;
            }
        }
        panic!("chromedriver exited at start");
    }

    async fn try_start() -> Option<Self> {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver starts; on Debian: apt-get install chromium chromium-driver");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = tokio::time::timeout(PATIENCE, port(&mut lines));
        let port = port.await.expect("chromedriver prints its port or exits")?;
        let target = format!("http://127.0.0.1:{port}").parse().unwrap();
        let (pool, tasks) = (Pool::new(target, Config::default()), Tasks::new());
        let profiles = Mutex::default();
        Some(Self { port, pool, tasks, _process: process, _lines: lines, profiles })
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
        self.window_with(json!({}), "normal").await
    }

    /// Opens a browser whose commands do not wait until a page has loaded, so that the test can interfere.
    pub async fn window_without_waiting(&self) -> Window<'_> {
        self.window_with(json!({}), "none").await
    }

    /// Opens a browser that blocks cookies.
    pub async fn window_without_cookies(&self) -> Window<'_> {
        let preferences = json!({"profile.default_content_setting_values.cookies": 2});
        self.window_with(preferences, "normal").await
    }

    async fn window_with(&self, preferences: Value, strategy: &str) -> Window<'_> {
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
            "pageLoadStrategy": strategy,
            "timeouts": {"implicit": 10_000, "pageLoad": 30_000},
            "goog:chromeOptions": {"args": arguments, "prefs": preferences},
        }}});
        let session = self.ask("POST", "/session", Some(&wanted)).await;
        let session = session.expect(
            "chromium starts under chromedriver; on Debian: apt-get install chromium chromium-driver",
        );
        Window { driver: self, session: session["sessionId"].as_str().unwrap().to_owned() }
    }
}

/// Reads the port that chromedriver has chosen; `None` if it has exited.
async fn port(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<u16> {
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some((_, rest)) = line.split_once("started successfully on port ") {
            return Some(rest.trim_end_matches('.').parse().unwrap());
        }
    }
    None
}

impl Drop for Driver {
    /// Asks chromedriver to shut down: if it were killed, its browsers would go on running.
    fn drop(&mut self) {
        let shut_down = || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /shutdown HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")?;
            // It responds once they have exited.
            stream.read(&mut [0; 1])
        };
        // If this fails, dropping the child kills it.
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

    /// Counts the elements that match, without waiting for one to appear.
    pub async fn count(&self, css: &str) -> usize {
        let script = "return document.querySelectorAll(arguments[0]).length";
        let count =
            self.ask("POST", "/execute/sync", Some(json!({"script": script, "args": [css]}))).await;
        usize::try_from(count.as_u64().unwrap()).unwrap()
    }

    /// Runs the body of an async function in the page, and returns its result.
    pub async fn run(&self, script: &str) -> Value {
        let script = format!("return (async () => {{ {script} }})()");
        self.ask("POST", "/execute/sync", Some(json!({"script": script, "args": []}))).await
    }

    /// Sends a command of the Chrome `DevTools` Protocol.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.ask("POST", "/goog/cdp/execute", Some(body)).await
    }

    /// Returns what the window shows, as PNG.
    pub async fn screenshot(&self) -> Vec<u8> {
        let image = self.ask("GET", "/screenshot", None).await;
        STANDARD.decode(image.as_str().unwrap()).unwrap()
    }

    /// Presses keys in the element that has the focus. Keys without a character have code points of the `WebDriver`
    /// standard, such as U+E004 for Tab and U+E007 for Enter.
    pub async fn press(&self, keys: &str) {
        let active = self.ask("GET", "/element/active", None).await;
        let element = active.as_object().unwrap().values().next().unwrap().as_str().unwrap();
        self.ask("POST", &format!("/element/{element}/value"), Some(json!({"text": keys}))).await;
    }

    /// Sends further commands to the other one of two tabs.
    pub async fn switch_tab(&self) {
        let current = self.ask("GET", "/window", None).await;
        let handles = self.ask("GET", "/window/handles", None).await;
        let other = handles.as_array().unwrap().iter().find(|handle| **handle != current).unwrap();
        self.ask("POST", "/window", Some(json!({"handle": other}))).await;
    }

    /// Clicks an element and waits until its page has been replaced.
    pub async fn click(&self, css: &str) {
        let page = self.element("html").await;
        self.click_only(css).await;
        let path = format!("/session/{}/element/{page}/name", self.session);
        let deadline = Instant::now() + PATIENCE;
        while self.driver.ask("GET", &path, None).await.is_ok() {
            assert!(Instant::now() < deadline, "clicking {css} opens no page");
        }
    }

    /// Clicks an element that opens no page.
    pub async fn click_only(&self, css: &str) {
        let element = self.element(css).await;
        self.ask("POST", &format!("/element/{element}/click"), Some(json!({}))).await;
    }

    pub async fn write(&self, css: &str, text: &str) {
        let element = self.element(css).await;
        self.ask("POST", &format!("/element/{element}/clear"), Some(json!({}))).await;
        self.ask("POST", &format!("/element/{element}/value"), Some(json!({"text": text}))).await;
    }

    /// Returns the session cookie, which scripts cannot read.
    pub async fn cookie(&self) -> Option<Value> {
        let cookies = self.ask("GET", "/cookie", None).await;
        cookies
            .as_array()
            .unwrap()
            .iter()
            .find(|cookie| cookie["name"] == super::browser::COOKIE)
            .cloned()
    }

    /// Returns the names of all cookies of the page, including those that scripts cannot read, in alphabetical order.
    pub async fn cookie_names(&self) -> Vec<String> {
        let cookies = self.ask("GET", "/cookie", None).await;
        let names = cookies.as_array().unwrap().iter().map(|cookie| cookie["name"].as_str());
        let mut names: Vec<String> = names.map(|name| name.unwrap().to_owned()).collect();
        names.sort();
        names
    }

    pub async fn delete_cookie(&self) {
        self.ask("DELETE", &format!("/cookie/{}", super::browser::COOKIE), None).await;
    }

    /// Restores a cookie that the browser had before.
    pub async fn put_cookie(&self, cookie: &Value) {
        let mut cookie = cookie.clone();
        // The driver reports a domain, but a `__Host-` cookie must not have one (RFC 6265bis,
        // section 4.1.3).
        cookie.as_object_mut().unwrap().remove("domain");
        self.delete_cookie().await;
        self.ask("POST", "/cookie", Some(json!({"cookie": cookie}))).await;
    }
}
