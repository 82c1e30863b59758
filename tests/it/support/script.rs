//! Scripts for the pages of the upstream: calls of the session API, then a response.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Steps of a page, in the order in which they run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Script {
    pub calls: Vec<Call>,
    /// Gate of the upstream to wait at before the response; see [`super::Upstream::open`].
    pub wait: Option<String>,
    /// Gate to wait at before the calls.
    pub wait_before: Option<String>,
    pub status: Option<u16>,
    pub headers: Vec<(String, String)>,
    pub body: Option<String>,
}

/// A call of the session API with the token of the request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// Response to a call of the session API.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApiResponse {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Script {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a call; the path is appended to X-Session-Url.
    pub fn call(self, method: &str, path: &str, body: impl ToString) -> Self {
        self.call_with(method, path, &[], body)
    }

    pub fn call_with(
        mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl ToString,
    ) -> Self {
        self.calls.push(Call {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            body: body.to_string(),
        });
        self
    }

    pub fn get(self, path: &str) -> Self {
        self.call("GET", path, "")
    }

    pub fn patch(self, patch: &Value) -> Self {
        self.call("PATCH", "", patch)
    }

    pub fn wait(mut self, gate: &str) -> Self {
        self.wait = Some(gate.to_owned());
        self
    }

    pub fn wait_before(mut self, gate: &str) -> Self {
        self.wait_before = Some(gate.to_owned());
        self
    }

    pub fn status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn body(mut self, body: &str) -> Self {
        self.body = Some(body.to_owned());
        self
    }

    pub fn to_header(&self) -> String {
        // JSON may escape every character, so that a script of any text fits into an ASCII header.
        let text = serde_json::to_string(self).unwrap();
        let escape = |c: char| {
            if c.is_ascii() {
                c.to_string()
            } else {
                c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
            }
        };
        text.chars().map(escape).collect()
    }
}

impl ApiResponse {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find_map(|(known, value)| known.eq_ignore_ascii_case(name).then_some(value.as_str()))
    }

    /// Returns the code of the problem document.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}
