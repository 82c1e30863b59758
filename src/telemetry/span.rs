//! Spans, and their encoding: the JSON of OTLP 1 (opentelemetry-proto, `ExportTraceServiceRequest`), with the attributes
//! of the semantic conventions for HTTP servers, 1.23 and later.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use http::{Method, Version};
use serde::Serialize;

use super::trace::SpanContext;
use crate::body::End;
use crate::net::scheme::Scheme;
use crate::random;

/// The span of a request. It has neither query nor cookies nor tokens.
#[derive(Debug)]
pub(crate) struct Span {
    /// Its place in the trace.
    pub(crate) context: SpanContext,
    /// Nanoseconds since the Unix epoch.
    pub(crate) started_at: u64,
    /// The time until the response ended.
    pub(crate) duration: Duration,
    /// The method of the request.
    pub(crate) method: Method,
    /// The path, without the query.
    pub(crate) path: String,
    /// The host, without the port.
    pub(crate) host: Option<String>,
    /// The client's scheme.
    pub(crate) scheme: Scheme,
    /// The client's version of HTTP.
    pub(crate) version: Version,
    /// The client's address.
    pub(crate) client: Option<IpAddr>,
    /// The id of the session.
    pub(crate) session: Option<String>,
    /// The status of the response; `None` if the client hung up before.
    pub(crate) status: Option<u16>,
    /// The end of the response.
    pub(crate) end: End,
}

/// The process that records.
#[derive(Debug)]
pub(super) struct Resource {
    name: String,
    /// Random, to tell processes of the same name apart.
    instance: String,
}

impl Resource {
    pub(super) fn new(name: String) -> Self {
        Self { name, instance: format!("{:032x}", u128::from_be_bytes(random::bytes())) }
    }
}

/// Encodes a message with spans.
pub(super) fn encode(resource: &Resource, spans: &[Span]) -> Vec<u8> {
    let export = Export {
        resource_spans: [ResourceSpans {
            resource: ResourceMessage {
                attributes: vec![
                    text("service.name", &resource.name),
                    text("service.version", env!("CARGO_PKG_VERSION")),
                    text("service.instance.id", &resource.instance),
                ],
            },
            scope_spans: [ScopeSpans {
                scope: Scope { name: "cloakroom", version: env!("CARGO_PKG_VERSION") },
                spans: spans.iter().map(SpanMessage::new).collect(),
            }],
        }],
    };
    // Strings and numbers cannot fail to serialise.
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
    resource: ResourceMessage<'a>,
    scope_spans: [ScopeSpans<'a>; 1],
}

#[derive(Serialize)]
struct ResourceMessage<'a> {
    attributes: Vec<Attribute<'a>>,
}

#[derive(Serialize)]
struct ScopeSpans<'a> {
    scope: Scope,
    spans: Vec<SpanMessage<'a>>,
}

#[derive(Serialize)]
struct Scope {
    name: &'static str,
    version: &'static str,
}

/// A span on the wire. Ids are hexadecimal, and 64-bit integers are strings of their digits (OTLP, "JSON Protobuf Encoding").
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SpanMessage<'a> {
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

/// `STATUS_CODE_UNSET` and `STATUS_CODE_ERROR`. Instrumentation does not set OK by itself (OpenTelemetry, "Set Status").
const UNSET: u8 = 0;
const ERROR: u8 = 2;

impl<'a> SpanMessage<'a> {
    fn new(span: &'a Span) -> Self {
        let SpanContext { trace, span: id, parent } = span.context;
        let duration = u64::try_from(span.duration.as_nanos()).unwrap_or(u64::MAX);
        let error = span.error();
        Self {
            trace_id: format!("{trace:032x}"),
            span_id: format!("{id:016x}"),
            parent_span_id: parent.map(|id| format!("{id:016x}")).unwrap_or_default(),
            name: span.known_method().unwrap_or("HTTP"),
            kind: SERVER,
            start_time_unix_nano: span.started_at.to_string(),
            end_time_unix_nano: span.started_at.saturating_add(duration).to_string(),
            status: Status { code: if error.is_some() { ERROR } else { UNSET } },
            attributes: span.attributes(error),
        }
    }
}

impl Span {
    /// Returns the method if it is a standard one: clients could make up any number of names.
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

    /// Returns the attribute `error.type` if the request failed, unless it was the client's fault.
    fn error(&self) -> Option<String> {
        match (self.status, self.end) {
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
        attributes.extend(self.status.map(|status| Attribute {
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
