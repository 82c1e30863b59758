//! A client with a cookie jar: as much of a browser as the tests need.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use cloakroom::body::Body;
use cloakroom::client::{Config, Error as FetchError, Pool, Target};
use cloakroom::server::Tasks;
use http::{HeaderMap, Request, StatusCode};
use serde_json::Value;

use super::script::{ApiResponse, Script};
use super::upstream::Seen;
use super::{Cloakroom, PATIENCE};

/// Default name of the session cookie.
pub const COOKIE: &str = "__Host-id";

/// A client with a cookie jar. Clones share the jar.
#[derive(Clone)]
pub struct Browser {
    pool: Pool,
    tasks: Tasks,
    pub jar: Arc<Mutex<BTreeMap<String, String>>>,
}

/// A response whose body was read to its end.
#[derive(Debug)]
pub struct Page {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Browser {
    pub fn new(cloakroom: &Cloakroom) -> Self {
        Self::to(cloakroom.public())
    }

    pub fn to(address: SocketAddr) -> Self {
        let target: Target = format!("http://{address}").parse().unwrap();
        Self {
            pool: Pool::new(target, Config::default()),
            tasks: Tasks::new(),
            jar: Arc::default(),
        }
    }

    /// Returns another browser with a copy of this one's cookies.
    pub fn copy(&self) -> Self {
        let jar = self.jar.lock().unwrap().clone();
        Self { jar: Arc::new(Mutex::new(jar)), ..self.clone() }
    }

    /// Returns a browser that shares this jar and sends its requests to another instance.
    pub fn at(&self, address: SocketAddr) -> Self {
        Self { jar: Arc::clone(&self.jar), ..Self::to(address) }
    }

    /// Returns the session cookie, if the jar has one.
    pub fn cookie(&self) -> Option<String> {
        self.jar.lock().unwrap().get(COOKIE).cloned()
    }

    pub fn set_cookie(&self, value: Option<&str>) {
        let mut jar = self.jar.lock().unwrap();
        match value {
            Some(value) => drop(jar.insert(COOKIE.to_owned(), value.to_owned())),
            None => drop(jar.remove(COOKIE)),
        }
    }

    /// Opens a page, as typing its address does.
    pub async fn navigate(&self, path: &str, script: &Script) -> Page {
        self.send(
            "GET",
            path,
            &[("sec-fetch-dest", "document"), ("sec-fetch-site", "none")],
            script,
        )
        .await
    }

    /// Sends a request as a script of the page does.
    pub async fn fetch(&self, path: &str, script: &Script) -> Page {
        self.send(
            "GET",
            path,
            &[("sec-fetch-dest", "empty"), ("sec-fetch-site", "same-origin")],
            script,
        )
        .await
    }

    /// Sends any request with the cookies of the jar, and stores the cookies of the response.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        script: &Script,
    ) -> Page {
        let page = self.send_without_keeping(method, path, headers, script).await;
        self.keep(&page);
        page
    }

    /// Sends a request as [`Self::send`] does, but the response never reaches the jar.
    pub async fn send_without_keeping(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        script: &Script,
    ) -> Page {
        self.try_send(method, path, headers, script).await.expect("a response")
    }

    /// Sends a request that may fail, because the proxy may have exited.
    pub async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        script: &Script,
    ) -> Result<Page, FetchError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("x-script", script.to_header());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let cookies: Vec<String> = self
            .jar
            .lock()
            .unwrap()
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        if !cookies.is_empty() {
            request = request.header("cookie", cookies.join("; "));
        }
        let request = request.body(Body::empty()).unwrap();
        let response = self.pool.fetch(request, &self.tasks, 64 << 20, PATIENCE).await?;
        let (parts, body) = response.into_parts();
        Ok(Page {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    /// Stores the cookies of a response.
    pub fn keep(&self, page: &Page) {
        let mut jar = self.jar.lock().unwrap();
        for line in page.headers.get_all("set-cookie") {
            let cookie = cookie::Cookie::parse(line.to_str().unwrap()).unwrap();
            let name = cookie.name().to_owned();
            match cookie.max_age() {
                Some(age) if age.is_zero() => drop(jar.remove(&name)),
                _ => drop(jar.insert(name, cookie.value().to_owned())),
            }
        }
    }
}

impl Page {
    /// Parses the body as the upstream's report of the request.
    pub fn seen(&self) -> Seen {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.body))
    }

    /// Returns the responses to the upstream's calls of the session API.
    pub fn calls(&self) -> Vec<ApiResponse> {
        self.seen().calls
    }

    /// Returns the response to its last call.
    pub fn last(&self) -> ApiResponse {
        self.calls().pop().expect("a call")
    }

    /// Returns the JSON of the response to its last call, which must have succeeded.
    pub fn json(&self) -> Value {
        let called = self.last();
        assert!(called.status < 300, "{called:?}");
        called.json()
    }

    /// Returns the value of a header of the request, as the upstream received it.
    pub fn saw(&self, name: &str) -> Option<String> {
        self.seen().headers.into_iter().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Returns the Set-Cookie lines of the session cookie.
    pub fn set_cookies(&self) -> Vec<String> {
        let lines =
            self.headers.get_all("set-cookie").iter().map(|line| line.to_str().unwrap().to_owned());
        lines.filter(|line| line.starts_with(&format!("{COOKIE}="))).collect()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}
