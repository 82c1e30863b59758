//! A small client of the session API, as a site in any language could have one. It is written after
//! the API's documentation and shares no code with the API.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::body::Body;
use crate::client::{self, Pool, Target};
use crate::server::Tasks;

/// The deadline of one call.
const DEADLINE: Duration = Duration::from_secs(5);

/// The longest response in bytes: a session holds at most 1 MiB, and the list of devices is short.
const MAX_RESPONSE: usize = 4 * 1024 * 1024;

/// The session API, with the authority of one request.
#[derive(Debug)]
pub(super) struct Api {
    pool: Pool,
    tasks: Tasks,
    /// The path of `X-Session-Url`.
    prefix: String,
    token: HeaderValue,
}

/// The reason why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The request has no URL and token of the session API.
    #[error("this request did not come through the proxy")]
    NotThroughProxy,
    /// The API could not be reached.
    #[error("the session API could not be reached")]
    Unreachable(#[from] client::Error),
    /// The API refused the call.
    #[error("the session API refused the call: {}", .0.detail)]
    Refused(Problem),
    /// The response is not the JSON of the documentation.
    #[error("unexpected response from the session API")]
    Unreadable(#[from] serde_json::Error),
}

/// A problem document of the API (RFC 9457).
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) detail: String,
}

/// A session. Its values are the JSON text that the API stores.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Session {
    pub(super) id: Option<String>,
    pub(super) version: Option<u64>,
    pub(super) principal: Option<String>,
    pub(super) values: BTreeMap<String, Box<RawValue>>,
    pub(super) created_at: Option<String>,
    pub(super) last_seen_at: Option<String>,
}

/// The lifetime of a session.
#[derive(Debug, Deserialize)]
pub(super) struct Expiry {
    pub(super) expires_at: Option<String>,
    pub(super) expires_in: Option<u64>,
    pub(super) expires_at_browser_close: Option<bool>,
    /// The session's own lifetime, if it does not follow the policy.
    #[serde(rename = "expiry")]
    pub(super) own: Option<Box<RawValue>>,
}

/// A session in the list of the principal's devices.
#[derive(Debug, Deserialize)]
pub(super) struct Device {
    pub(super) id: String,
    pub(super) created_at: String,
    pub(super) last_seen_at: String,
    pub(super) current: bool,
    pub(super) client: Option<Client>,
}

/// The client that created a session.
#[derive(Debug, Deserialize)]
pub(super) struct Client {
    pub(super) address: Option<String>,
    pub(super) user_agent: String,
}

impl Session {
    /// Returns a value if it is a string.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        serde_json::from_str(self.values.get(key)?.get()).ok()
    }

    /// Returns a value if it is an integer.
    pub(super) fn number(&self, key: &str) -> Option<i64> {
        serde_json::from_str(self.values.get(key)?.get()).ok()
    }

    /// Returns a value if it is an array of strings, else an empty list.
    pub(super) fn texts(&self, key: &str) -> Vec<String> {
        let text = self.values.get(key).map_or("[]", |value| value.get());
        serde_json::from_str(text).unwrap_or_default()
    }
}

impl Api {
    /// Reads the URL and the token that the proxy added to a request.
    pub(super) fn from_headers(headers: &HeaderMap, tasks: &Tasks) -> Result<Self, Error> {
        let added = || {
            let url: Uri = headers.get("x-session-url")?.to_str().ok()?.parse().ok()?;
            let target: Target = format!("http://{}", url.authority()?).parse().ok()?;
            Some((target, url.path().to_owned(), headers.get("x-session-token")?.clone()))
        };
        let (target, prefix, token) = added().ok_or(Error::NotThroughProxy)?;
        let pool = Pool::new(target, client::Config::default());
        Ok(Self { pool, tasks: tasks.clone(), prefix, token })
    }

    pub(super) async fn session(&self) -> Result<Session, Error> {
        self.read(Method::GET, "", None).await
    }

    pub(super) async fn patch(&self, patch: &Value) -> Result<Session, Error> {
        self.read(Method::PATCH, "", Some(patch.to_string())).await
    }

    pub(super) async fn destroy(&self) -> Result<(), Error> {
        self.call(Method::DELETE, "", None).await.map(drop)
    }

    pub(super) async fn rotate(&self) -> Result<(), Error> {
        self.call(Method::POST, "/rotate", None).await.map(drop)
    }

    pub(super) async fn set(&self, key: &str, json: String) -> Result<(), Error> {
        self.call(Method::PUT, &value_path(key), Some(json)).await.map(drop)
    }

    /// Removes a value and returns its JSON text; `None` if there was no such value.
    pub(super) async fn pop(&self, key: &str) -> Result<Option<Box<RawValue>>, Error> {
        match self.read(Method::DELETE, &value_path(key), None).await {
            Ok(value) => Ok(Some(value)),
            Err(Error::Refused(problem)) if problem.code == "no_such_value" => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn append(&self, key: &str, value: &Value) -> Result<(), Error> {
        self.call(Method::POST, &format!("{}/append", value_path(key)), Some(value.to_string()))
            .await
            .map(drop)
    }

    pub(super) async fn expiry(&self) -> Result<Expiry, Error> {
        self.read(Method::GET, "/expiry", None).await
    }

    pub(super) async fn set_expiry(&self, expiry: &Value) -> Result<(), Error> {
        self.call(Method::PUT, "/expiry", Some(expiry.to_string())).await.map(drop)
    }

    pub(super) async fn set_test_cookie(&self) -> Result<(), Error> {
        self.call(Method::PUT, "/test-cookie", None).await.map(drop)
    }

    pub(super) async fn test_cookie_worked(&self) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Response {
            worked: bool,
        }
        let response: Response = self.read(Method::GET, "/test-cookie", None).await?;
        Ok(response.worked)
    }

    pub(super) async fn remove_test_cookie(&self) -> Result<(), Error> {
        self.call(Method::DELETE, "/test-cookie", None).await.map(drop)
    }

    pub(super) async fn devices(&self) -> Result<Vec<Device>, Error> {
        #[derive(Deserialize)]
        struct Response {
            sessions: Vec<Device>,
        }
        let response: Response = self.read(Method::GET, "/principal/sessions", None).await?;
        Ok(response.sessions)
    }

    pub(super) async fn log_device_out(&self, id: &str) -> Result<(), Error> {
        let path = format!("/principal/sessions/{}", encode(id));
        self.call(Method::DELETE, &path, None).await.map(drop)
    }

    /// Destroys the principal's other sessions and returns their number.
    pub(super) async fn log_others_out(&self) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct Response {
            destroyed: u64,
        }
        let response: Response = self.read(Method::DELETE, "/principal/sessions", None).await?;
        Ok(response.destroyed)
    }

    async fn read<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<T, Error> {
        Ok(serde_json::from_slice(&self.call(method, path, body).await?)?)
    }

    async fn call(&self, method: Method, path: &str, body: Option<String>) -> Result<Bytes, Error> {
        let uri = format!("{}{path}", self.prefix).parse().or(Err(Error::NotThroughProxy))?;
        let body = body.map_or_else(Body::empty, Body::full);
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        request.headers_mut().insert("x-session-token", self.token.clone());
        let response = self.pool.fetch(request, &self.tasks, MAX_RESPONSE, DEADLINE).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(Error::Refused(serde_json::from_slice(response.body())?))
    }
}

/// Returns text as it is if it is JSON, else as a JSON string.
pub(super) fn json_or_text(text: &str) -> String {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(json) => json.get().to_owned(),
        Err(_no_json) => json!(text).to_string(),
    }
}

fn value_path(key: &str) -> String {
    format!("/values/{}", encode(key))
}

fn encode(segment: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(segment, NON_ALPHANUMERIC)
}
