//! A span, and its form for collectors: the JSON of OTLP 1 (opentelemetry-proto, `ExportTraceServiceRequest`), with
//! the attributes of the semantic conventions for HTTP servers, 1.23 and later.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use http::{Method, Version};
use serde::Serialize;

use super::trace::Recorded;
use crate::body::End;
use crate::net::scheme::Scheme;
use crate::random;

/// What is recorded of a request. Never its query, its cookies or a token.
#[derive(Debug)]
pub struct Span {
    /// Where it stands in its trace.
    pub place: Recorded,
    /// When it came, in nanoseconds since the UNIX epoch.
    pub began: u64,
    /// How the client asked.
    pub method: Method,
    /// For what, without the query.
    pub path: String,
    /// Of whom, without the port.
    pub host: Option<String>,
    /// By which scheme.
    pub scheme: Scheme,
    /// By which version of HTTP.
    pub version: Version,
    /// From where.
    pub client: Option<IpAddr>,
    /// The session's id.
    pub session: Option<String>,
    /// What it became.
    pub ended: Ended,
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// How long after it came.
    pub took: Duration,
    /// The response's status; `None` where the client hung up before.
    pub status: Option<u16>,
    /// The end of the response's body.
    pub end: End,
}

/// Who records.
#[derive(Debug)]
pub(super) struct Resource {
    name: String,
    /// Which of all processes of that name.
    instance: String,
}

impl Resource {
    pub(super) fn new(name: String) -> Self {
        Self { name, instance: format!("{:032x}", u128::from_be_bytes(random::bytes())) }
    }
}

/// The message that carries spans.
pub(super) fn message_of(resource: &Resource, spans: &[Span]) -> Vec<u8> {
    let export = Export {
        resource_spans: [ResourceSpans {
            resource: Attributed {
                attributes: vec![
                    text("service.name", &resource.name),
                    text("service.version", env!("CARGO_PKG_VERSION")),
                    text("service.instance.id", &resource.instance),
                ],
            },
            scope_spans: [ScopeSpans {
                scope: Scope { name: "cloakroom", version: env!("CARGO_PKG_VERSION") },
                spans: spans.iter().map(Line::of).collect(),
            }],
        }],
    };
    // Strings and numbers alone: nothing that could fail.
    serde_json::to_vec(&export).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Export<'a> {
    resource_spans: [ResourceSpans<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    resource: Attributed<'a>,
    scope_spans: [ScopeSpans<'a>; 1],
}

#[derive(Serialize)]
struct Attributed<'a> {
    attributes: Vec<Attribute<'a>>,
}

#[derive(Serialize)]
struct ScopeSpans<'a> {
    scope: Scope,
    spans: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Scope {
    name: &'static str,
    version: &'static str,
}

/// Ids are hexadecimal, and 64-bit integers are strings of their digits (OTLP, "JSON Protobuf Encoding").
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    trace_id: String,
    span_id: String,
    parent_span_id: String,
    name: &'a str,
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Vec<Attribute<'a>>,
    status: Status,
}

#[derive(Serialize)]
struct Status {
    code: u8,
}

#[derive(Serialize)]
struct Attribute<'a> {
    key: &'static str,
    value: Value<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Value<'a> {
    StringValue(Cow<'a, str>),
    IntValue(String),
}

/// `SPAN_KIND_SERVER`.
const SERVER: u8 = 2;

/// `STATUS_CODE_UNSET` and `STATUS_CODE_ERROR`: that all was well, a server does not say by itself.
const UNSET: u8 = 0;
const ERROR: u8 = 2;

impl<'a> Line<'a> {
    fn of(span: &'a Span) -> Self {
        let Recorded { trace, span: id, parent } = span.place;
        let took = u64::try_from(span.ended.took.as_nanos()).unwrap_or(u64::MAX);
        let error = span.error();
        Self {
            trace_id: format!("{trace:032x}"),
            span_id: format!("{id:016x}"),
            parent_span_id: parent.map(|id| format!("{id:016x}")).unwrap_or_default(),
            name: span.known_method().unwrap_or("HTTP"),
            kind: SERVER,
            start_time_unix_nano: span.began.to_string(),
            end_time_unix_nano: span.began.saturating_add(took).to_string(),
            status: Status { code: if error.is_some() { ERROR } else { UNSET } },
            attributes: span.attributes(error),
        }
    }
}

impl Span {
    /// Its method, where the world knows it: strangers could make up any number of names.
    fn known_method(&self) -> Option<&str> {
        let known = [
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
            Method::CONNECT,
            Method::TRACE,
        ];
        known.contains(&self.method).then(|| self.method.as_str())
    }

    /// What went wrong, where something did that was not the client's fault.
    fn error(&self) -> Option<String> {
        match (self.ended.status, self.ended.end) {
            (Some(status), _) if status >= 500 => Some(status.to_string()),
            (_, End::Broken) => Some("body_broken".to_owned()),
            (_, End::Idle) => Some("body_idle".to_owned()),
            _ => None,
        }
    }

    fn attributes(&self, error: Option<String>) -> Vec<Attribute<'_>> {
        let method = self.known_method();
        let original = method.is_none().then(|| self.method.as_str());
        let version = match self.version {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            _ => "1.1",
        };
        let mut attributes = vec![
            text("http.request.method", method.unwrap_or("_OTHER")),
            text("url.path", &self.path),
            text("url.scheme", self.scheme.as_str()),
            text("network.protocol.version", version),
        ];
        attributes.extend(original.map(|method| text("http.request.method_original", method)));
        attributes.extend(self.host.as_deref().map(|host| text("server.address", host)));
        attributes.extend(self.session.as_deref().map(|session| text("session.id", session)));
        attributes.extend(self.client.map(|client| owned("client.address", client.to_string())));
        attributes.extend(error.map(|error| owned("error.type", error)));
        attributes.extend(self.ended.status.map(|status| Attribute {
            key: "http.response.status_code",
            value: Value::IntValue(status.to_string()),
        }));
        attributes
    }
}

fn text<'a>(key: &'static str, value: &'a str) -> Attribute<'a> {
    Attribute { key, value: Value::StringValue(value.into()) }
}

fn owned(key: &'static str, value: String) -> Attribute<'static> {
    Attribute { key, value: Value::StringValue(value.into()) }
}
