//! A small client of the session API, as a site in any language would have one: it knows the HTTP
//! and the JSON of the documentation, and nothing of what serves them.

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

/// For one call.
const DEADLINE: Duration = Duration::from_secs(5);

/// The longest answer: a session holds at most 1 MiB, and the list of devices is short.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// The session API, with the authority of one request.
#[derive(Debug)]
pub(super) struct Api {
    pool: Pool,
    tasks: Tasks,
    /// The path of `X-Session-Url`.
    prefix: String,
    token: HeaderValue,
}

/// Why a call was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The request did not come through the proxy, which would have told where the API is.
    #[error("this request did not come through the proxy")]
    NotThroughProxy,
    /// The API was not reached.
    #[error("the session API was not reached")]
    Unreached(#[from] client::Error),
    /// The API refused.
    #[error("the session API refused: {}", .0.detail)]
    Refused(Problem),
    /// The API answered what it should not.
    #[error("the session API's answer is not what was expected")]
    Unreadable(#[from] serde_json::Error),
}

/// A problem, as the API writes it.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) detail: String,
}

/// A session; each value is the JSON text that the API keeps.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Session {
    pub(super) id: Option<String>,
    pub(super) version: Option<u64>,
    pub(super) principal: Option<String>,
    pub(super) values: BTreeMap<String, Box<RawValue>>,
    pub(super) created_at: Option<String>,
    pub(super) last_seen_at: Option<String>,
}

/// How long a session lives.
#[derive(Debug, Deserialize)]
pub(super) struct Expiry {
    pub(super) expires_at: Option<String>,
    pub(super) expires_in: Option<u64>,
    pub(super) expires_at_browser_close: Option<bool>,
    /// The session's own, where it does not follow the policy.
    #[serde(rename = "expiry")]
    pub(super) own: Option<Box<RawValue>>,
}

/// A session of the principal, in the list of devices.
#[derive(Debug, Deserialize)]
pub(super) struct Device {
    pub(super) id: String,
    pub(super) created_at: String,
    pub(super) last_seen_at: String,
    pub(super) current: bool,
    pub(super) client: Option<Client>,
}

/// Who began a session.
#[derive(Debug, Deserialize)]
pub(super) struct Client {
    pub(super) address: Option<String>,
    pub(super) user_agent: String,
}

impl Session {
    /// A value that is text.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        serde_json::from_str(self.values.get(key)?.get()).ok()
    }

    /// A value that is a number.
    pub(super) fn number(&self, key: &str) -> Option<i64> {
        serde_json::from_str(self.values.get(key)?.get()).ok()
    }

    /// A value that is a list of texts.
    pub(super) fn texts(&self, key: &str) -> Vec<String> {
        let text = self.values.get(key).map_or("[]", |value| value.get());
        serde_json::from_str(text).unwrap_or_default()
    }
}

impl Api {
    /// The API as the proxy has told it in a request's head.
    pub(super) fn of(headers: &HeaderMap, tasks: &Tasks) -> Result<Self, Error> {
        let told = || {
            let url: Uri = headers.get("x-session-url")?.to_str().ok()?.parse().ok()?;
            let target: Target = format!("http://{}", url.authority()?).parse().ok()?;
            Some((target, url.path().to_owned(), headers.get("x-session-token")?.clone()))
        };
        let (target, prefix, token) = told().ok_or(Error::NotThroughProxy)?;
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

    /// Removes a value; answers the JSON text that it was, if there was one.
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
        struct Answer {
            worked: bool,
        }
        let answer: Answer = self.read(Method::GET, "/test-cookie", None).await?;
        Ok(answer.worked)
    }

    pub(super) async fn remove_test_cookie(&self) -> Result<(), Error> {
        self.call(Method::DELETE, "/test-cookie", None).await.map(drop)
    }

    pub(super) async fn devices(&self) -> Result<Vec<Device>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            sessions: Vec<Device>,
        }
        let answer: Answer = self.read(Method::GET, "/principal/sessions", None).await?;
        Ok(answer.sessions)
    }

    pub(super) async fn log_device_out(&self, id: &str) -> Result<(), Error> {
        let path = format!("/principal/sessions/{}", encoded(id));
        self.call(Method::DELETE, &path, None).await.map(drop)
    }

    /// Answers how many that were.
    pub(super) async fn log_others_out(&self) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct Answer {
            destroyed: u64,
        }
        let answer: Answer = self.read(Method::DELETE, "/principal/sessions", None).await?;
        Ok(answer.destroyed)
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
        let response = self.pool.fetch(request, &self.tasks, MAX_ANSWER, DEADLINE).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(Error::Refused(serde_json::from_slice(response.body())?))
    }
}

/// Text as JSON: as it is where it is JSON, else as a string.
pub(super) fn json_or_text(text: &str) -> String {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(json) => json.get().to_owned(),
        Err(_no_json) => json!(text).to_string(),
    }
}

fn value_path(key: &str) -> String {
    format!("/values/{}", encoded(key))
}

fn encoded(segment: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(segment, NON_ALPHANUMERIC)
}
