//! Requests to the admin listener.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::super::health::target_of;
use super::super::{Failure, config, config::Environment};
use crate::body::Body;
use crate::client::{self, Pool, ServerTrust, Target, Tls, TlsConfig};
use crate::net::scheme::Scheme;
use crate::secret::Secret;
use crate::server::Tasks;

/// A search may scan many sessions.
const DEADLINE: Duration = Duration::from_secs(30);

/// Maximum size of a response, in bytes.
const MAX_BODY: usize = 16 * 1024 * 1024;

/// What is encoded in paths and queries: all but the unreserved characters (RFC 3986, section 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The admin listener of an instance.
pub(super) struct Admin {
    pool: Pool,
    tasks: Tasks,
    token: Option<Secret>,
    target: Target,
}

/// The fields of a query or a form.
#[derive(Debug, Default)]
pub(super) struct Query(String);

impl Query {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Returns the path of a session.
    pub(super) fn path_of(id: &str) -> String {
        format!("/sessions/{}", utf8_percent_encode(id, ENCODED))
    }

    pub(super) fn with(mut self, name: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            let separator = if self.0.is_empty() { "" } else { "&" };
            let value = utf8_percent_encode(value, ENCODED);
            self.0 = format!("{}{separator}{name}={value}", self.0);
        }
        self
    }

    /// Returns the target of a request.
    pub(super) fn of(&self, path: &str) -> String {
        if self.0.is_empty() { path.to_owned() } else { format!("{path}?{}", self.0) }
    }
}

impl Admin {
    /// Finds the listener and the token of a configuration.
    pub(super) fn find(
        path: Option<&Path>,
        url: Option<&str>,
        environment: &Environment,
    ) -> Result<Self, Failure> {
        let config = config::load_without_site(path, environment)?.config;
        let scheme = if config.admin.tls.is_some() { Scheme::Https } else { Scheme::Http };
        let target: Target = match url {
            Some(url) => url.parse().map_err(|error| Failure::Usage(format!("--url: {error}")))?,
            None => target_of(&config.admin.address, scheme),
        };
        // The certificate is for the names of operators. Of an address of this machine nothing else can be verified.
        let trust = if url.is_none() && config.admin.is_local() {
            ServerTrust::Insecure
        } else {
            ServerTrust::System
        };
        let has_tls = matches!(target, Target::Http { scheme: Scheme::Https, .. });
        let open = || Tls::open(&TlsConfig { trust, ..TlsConfig::default() }).map(Arc::new);
        let tls = has_tls.then(open).transpose().map_err(Failure::other)?;
        let token = config.existing_admin_token().map_err(Failure::other)?;
        let settings = client::Config { max_idle: 1, tls, ..client::Config::default() };
        let pool = Pool::new(target.clone(), settings);
        Ok(Self { pool, tasks: Tasks::new(), token, target })
    }

    pub(super) async fn get(&self, target: &str) -> Result<Value, Failure> {
        self.call(Method::GET, target, None).await
    }

    pub(super) async fn post(&self, path: &str, form: Query) -> Result<Value, Failure> {
        self.call(Method::POST, path, Some(form)).await
    }

    /// Returns the metrics in their text form.
    pub(super) async fn metrics(&self) -> Result<String, Failure> {
        let body = self.fetch(Method::GET, "/metrics", None).await?;
        String::from_utf8(body.to_vec()).map_err(Failure::other)
    }

    async fn call(
        &self,
        method: Method,
        target: &str,
        form: Option<Query>,
    ) -> Result<Value, Failure> {
        let body = self.fetch(method, target, form).await?;
        Ok(serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn fetch(
        &self,
        method: Method,
        target: &str,
        form: Option<Query>,
    ) -> Result<Bytes, Failure> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method;
        *request.uri_mut() = target.parse::<Uri>().map_err(Failure::other)?;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(token) = &self.token {
            let bearer = format!("Bearer {}", token.reveal());
            headers.insert(AUTHORIZATION, HeaderValue::try_from(bearer).map_err(Failure::other)?);
        }
        if let Some(Query(form)) = form {
            let media_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(CONTENT_TYPE, media_type);
            *request.body_mut() = Body::full(form);
        }
        let response = self
            .pool
            .fetch(request, &self.tasks, MAX_BODY, DEADLINE)
            .await
            .map_err(|error| Failure::other(format!("{}: {error}", self.target)))?;
        if response.status() == StatusCode::OK {
            return Ok(response.into_body());
        }
        let body: Value = serde_json::from_slice(response.body()).unwrap_or_default();
        let detail = body.pointer("/detail").and_then(Value::as_str);
        let detail = detail.unwrap_or("not an admin listener of this version");
        Err(Failure::other(format!("{}: {}: {detail}", self.target, response.status())))
    }
}
