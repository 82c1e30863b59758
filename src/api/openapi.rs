//! The contract as an OpenAPI 3.1 document, generated from the tables of routes.

use serde_json::{Map, Value, json};

use super::calls::{DOCUMENT, PRINCIPAL, REQUEST, SERVICE, SESSIONS};
use super::operation::{RequestBody, Route, Spec, Success};
use super::request::{QueryParameter, RequestHeader};

/// Generates the document of an API under `prefix`.
pub(super) fn document(prefix: &str) -> String {
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "The session API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "How an upstream reads and writes the session of the request that it is handling, \
                and a back office any session."
        },
        "paths": paths(prefix),
        "components": {
            "securitySchemes": {
                "request_token": {"type": "apiKey", "in": "header", "name": "X-Session-Token"},
                "service_token": {"type": "http", "scheme": "bearer"}
            },
            "schemas": schemas()
        }
    });
    document.to_string()
}

/// The credentials of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Security {
    None,
    RequestToken,
    ServiceToken,
}

/// A path under which a table of routes is served.
struct Base {
    path: String,
    security: Security,
    /// Appended to operation ids, which must be unique.
    suffix: &'static str,
}

fn paths(prefix: &str) -> Map<String, Value> {
    let base = |path, security| Base { path, security, suffix: "" };
    let own = base(prefix.to_owned(), Security::RequestToken);
    let by_id =
        Base { suffix: "ById", ..base(format!("{prefix}s/{{id}}"), Security::ServiceToken) };
    let mut paths = Map::new();
    add_paths(&mut paths, &base(prefix.to_owned(), Security::None), DOCUMENT);
    add_paths(&mut paths, &own, SESSIONS);
    add_paths(&mut paths, &by_id, SESSIONS);
    add_paths(&mut paths, &own, REQUEST);
    add_paths(&mut paths, &own, PRINCIPAL);
    add_paths(&mut paths, &base(format!("{prefix}s"), Security::ServiceToken), SERVICE);
    paths
}

fn add_paths<C>(paths: &mut Map<String, Value>, base: &Base, routes: &[Route<C>]) {
    for route in routes {
        let path = format!("{}{}", base.path, route.path);
        let item = paths.entry(path.clone()).or_insert_with(|| json!({}));
        for described in route.operations {
            let method = described.method.as_str().to_ascii_lowercase();
            item[method] = operation(&described.spec, &path, base);
        }
    }
}

fn operation(spec: &Spec, path: &str, base: &Base) -> Value {
    let mut operation = json!({
        "operationId": format!("{}{}", spec.id, base.suffix),
        "summary": spec.summary,
        "parameters": parameters(spec, path),
        "responses": responses(spec.success, base.security),
        "security": match base.security {
            Security::None => json!([]),
            Security::RequestToken => json!([{"request_token": []}]),
            Security::ServiceToken => json!([{"service_token": []}]),
        }
    });
    if let (Some(body), Some(members)) = (body(spec.body), operation.as_object_mut()) {
        members.insert("requestBody".to_owned(), body);
    }
    operation
}

fn responses(success: &[Success], security: Security) -> Value {
    let mut responses = Map::new();
    for success in success {
        let (status, response) = match success {
            Success::Empty => ("204", json!({"description": "Done"})),
            Success::Value => (
                "200",
                json!({"description": "Done", "content": {
                    "application/json": {"schema": reference("Value")},
                    "text/plain": {"schema": {"type": "string"}}
                }}),
            ),
            Success::Json(name) => (
                "200",
                json!({"description": "Done", "content": {"application/json": {"schema": reference(name)}}}),
            ),
        };
        responses.insert(status.to_owned(), response);
    }
    if security == Security::None {
        return Value::Object(responses);
    }
    let refusals = [
        (400, "The request, or its JSON, is malformed"),
        (401, "The token is missing or none of ours"),
        (404, "There is no such value, session or path"),
        (409, "The session is gone, rotated away or ambiguous, or the response's head has left"),
        (
            410,
            "The request that the token was made for is over, or the instance that forwarded it is gone",
        ),
        (412, "A precondition failed"),
        (413, "The body or the session would be too large"),
        (415, "The body is not JSON"),
        (422, "The change cannot be made"),
        (501, "Sessions live in cookies, which cannot be listed, nor ended from elsewhere"),
        (
            503,
            "The store did not answer or is full, or too many sessions were created from the client's address; nothing has changed",
        ),
        (504, "Whether the change was made is not known"),
    ];
    for (status, description) in refusals {
        let content = json!({"application/problem+json": {"schema": reference("Problem")}});
        responses
            .insert(status.to_string(), json!({"description": description, "content": content}));
    }
    Value::Object(responses)
}

fn parameters(spec: &Spec, path: &str) -> Value {
    let parameter = |name: &str, place: &str, required: bool, schema: Value| json!({"name": name, "in": place, "required": required, "schema": schema});
    let mut parameters = Vec::new();
    if path.contains("{id}") {
        let schema = json!({"type": "string", "pattern": "^[A-Za-z0-9_-]{22}$"});
        parameters.push(parameter("id", "path", true, schema));
    }
    if path.contains("{key}") {
        let schema = json!({"type": "string", "minLength": 1, "maxLength": 256});
        parameters.push(parameter("key", "path", true, schema));
    }
    for query in spec.query {
        let schema = match query {
            QueryParameter::Default => {
                json!({"type": "string", "contentMediaType": "application/json", "pattern": "^(null|true|false|0|\"[a-z]*\")$"})
            }
            QueryParameter::Text | QueryParameter::Everywhere => json!({"type": "boolean"}),
            QueryParameter::Limit => {
                json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100})
            }
            QueryParameter::Principal | QueryParameter::RequiredPrincipal => {
                json!({"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]+$"})
            }
            QueryParameter::Cursor => json!({"type": "string"}),
        };
        let required = *query == QueryParameter::RequiredPrincipal;
        parameters.push(parameter(query.name(), "query", required, schema));
    }
    for header in spec.headers {
        let (name, schema) = match header {
            RequestHeader::Prefer => (
                "Prefer",
                json!({"type": "string", "enum": ["return=minimal", "return=representation"]}),
            ),
            RequestHeader::IfMatch => {
                ("If-Match", json!({"type": "string", "pattern": "^\"[0-9a-f]{1,40}\"$"}))
            }
            RequestHeader::IfNoneMatch => {
                ("If-None-Match", json!({"type": "string", "enum": ["*"]}))
            }
        };
        parameters.push(parameter(name, "header", false, schema));
    }
    Value::Array(parameters)
}

fn body(body: RequestBody) -> Option<Value> {
    let (required, schema) = match body {
        RequestBody::None => return None,
        RequestBody::Json(name) => (true, reference(name)),
        RequestBody::Increment => (
            false,
            json!({"type": "object", "properties": {"by": reference("Integer")}, "additionalProperties": false}),
        ),
    };
    Some(json!({"required": required, "content": {"application/json": {"schema": schema}}}))
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn schemas() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    let list = json!({"type": "array", "items": reference("ListedSession")});
    let one_count = |name: &str| {
        let mut properties = Map::new();
        properties.insert(name.to_owned(), count.clone());
        json!({"type": "object", "required": [name], "properties": properties})
    };
    json!({
        "Value": {"description": "Any JSON"},
        "Object": {"type": "object"},
        "Integer": {"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX},
        "Session": session(&["values", "new"]),
        "ListedSession": session(&[]),
        "SessionList": {"type": "object", "required": ["sessions"], "properties": {"sessions": list}},
        "SessionPage": {"type": "object", "required": ["sessions", "next"], "properties": {
            "sessions": list, "next": {"type": ["string", "null"]}
        }},
        "ExpiryObject": {"type": "object", "required": LIFETIME, "properties": lifetime()},
        "OwnExpiry": own_expiry(),
        "Expiry": {"oneOf": [{"type": "null"}, reference("OwnExpiry")]},
        "Patch": patch(),
        "Policy": policy(),
        "TestCookie": {"type": "object", "required": ["worked"], "properties": {"worked": {"type": "boolean"}}},
        "Destroyed": {"type": "object", "required": ["destroyed", "replicated"], "properties": {
            "destroyed": count, "replicated": {"type": ["boolean", "null"]}
        }},
        "Removed": one_count("removed"),
        "Problem": {
            "type": "object",
            "required": ["type", "title", "status", "detail", "code"],
            "properties": {
                "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"},
                "detail": {"type": "string"}, "code": {"type": "string"}
            }
        }
    })
}

/// The members of the lifetime of a session.
const LIFETIME: [&str; 4] = ["expires_at", "expires_in", "expires_at_browser_close", "expiry"];

fn lifetime() -> Map<String, Value> {
    let members = [
        ("expires_at", json!({"type": ["string", "null"], "format": "date-time"})),
        ("expires_in", json!({"type": ["integer", "null"], "minimum": 0})),
        ("expires_at_browser_close", json!({"type": ["boolean", "null"]})),
        ("expiry", json!({"oneOf": [{"type": "null"}, reference("OwnExpiry")]})),
    ];
    members.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

fn session(more: &[&str]) -> Value {
    let instant = json!({"type": ["string", "null"], "format": "date-time"});
    let members = [
        ("id", json!({"type": ["string", "null"]})),
        ("version", json!({"type": ["integer", "null"], "minimum": 0})),
        ("principal", json!({"type": ["string", "null"]})),
        ("created_at", instant.clone()),
        ("last_seen_at", instant),
    ];
    let optional = [
        ("values", reference("Object")),
        ("new", json!({"type": "boolean"})),
        ("current", json!({"type": "boolean"})),
        ("held_cookies", json!({"type": "array", "items": {"type": "string"}})),
        ("next_id", json!({"type": "string"})),
        (
            "client",
            json!({"type": "object", "properties": {
                "address": {"type": ["string", "null"]}, "user_agent": {"type": "string"}
            }}),
        ),
    ];
    let required: Vec<&str> =
        members.iter().map(|(name, _)| *name).chain(LIFETIME).chain(more.iter().copied()).collect();
    let mut properties = lifetime();
    properties.extend(
        members.clone().into_iter().chain(optional).map(|(name, schema)| (name.to_owned(), schema)),
    );
    json!({"type": "object", "properties": properties, "required": required})
}

fn policy() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    let optional_count = json!({"type": ["integer", "null"], "minimum": 0});
    let cookie = object(&json!({
        "name": {"type": "string"}, "path": {"type": "string"}, "domain": {"type": ["string", "null"]},
        "secure": {"type": "boolean"}, "http_only": {"type": "boolean"},
        "same_site": {"type": "string", "enum": ["Strict", "Lax", "None"]},
        "partitioned": {"type": "boolean"}
    }));
    object(&json!({
        "idle_timeout": count, "absolute_timeout": optional_count,
        "expire_at_browser_close": {"type": "boolean"},
        "cookie": cookie,
        "max_bytes": count, "max_values": count,
        "header_exchange": {"enum": [true, false, "partial", null]},
        "header_exchange_max_bytes": optional_count
    }))
}

/// Returns the schema of an object that has all these members.
fn object(members: &Value) -> Value {
    let required: Vec<String> =
        members.as_object().into_iter().flat_map(|members| members.keys().cloned()).collect();
    json!({"type": "object", "required": required, "properties": members})
}

fn own_expiry() -> Value {
    let idle = json!({"type": "integer", "minimum": 1, "maximum": 253_402_300_799_i64});
    let form = |properties: Value, required: &str| json!({"type": "object", "properties": properties, "required": [required], "additionalProperties": false});
    json!({"oneOf": [
        form(json!({"idle": idle}), "idle"),
        form(json!({"at": {"oneOf": [
            {"type": "string", "format": "date-time"},
            {"type": "number", "minimum": 0, "maximum": 253_402_300_799_i64}
        ]}}), "at"),
        form(json!({"browser_close": {"const": true}, "idle": idle}), "browser_close")
    ]})
}

fn patch() -> Value {
    let keys = json!({"minLength": 1, "maxLength": 256});
    let object = json!({"type": "object", "propertyNames": keys});
    let of = |values: Value| json!({"type": "object", "propertyNames": keys, "additionalProperties": values});
    let key = json!({"type": "string", "minLength": 1, "maxLength": 256});
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "if_version": {"type": "integer", "minimum": 0, "maximum": i64::MAX},
            "destroy": {"type": "boolean"},
            "clear": {"type": "boolean"},
            "values": object,
            "remove": {"type": "array", "items": key},
            "set": object,
            "default": object,
            "increment": of(reference("Integer")),
            "append": of(json!({"type": "array"})),
            "merge": of(json!({"type": "object"})),
            "expiry": reference("Expiry"),
            "principal": {"type": ["string", "null"], "minLength": 1, "maxLength": 256},
            "rotate": {"enum": [true, false, "id"]},
            "if_lost": {"const": "drop"}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operation_ids_are_unique() {
        let document: Value = serde_json::from_str(&document("/_session")).expect("JSON");
        let paths = document["paths"].as_object().expect("an object").values();
        let mut ids: Vec<&str> = paths
            .flat_map(|item| item.as_object().expect("an object").values())
            .map(|operation| operation["operationId"].as_str().expect("an id"))
            .collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    #[test]
    fn references_resolve() {
        let text = document("/_session");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap_or_default();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
