//! The contract as an OpenAPI 3.1 document, made from the table of routes.

use serde_json::{Map, Value, json};

use super::routes::{Call, ROUTES, Route, Scope};

/// The document of an API under `prefix`.
pub(super) fn document(prefix: &str) -> String {
    let mut paths = Map::new();
    for route in ROUTES {
        for base in bases(prefix, route.scope) {
            paths.insert(format!("{base}{}", route.path), path_item(route, &base));
        }
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "The session API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "How an upstream reads and writes the session of the request that it is handling, \
                and a back office any session."
        },
        "paths": paths,
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

fn bases(prefix: &str, scope: Scope) -> Vec<String> {
    match scope {
        Scope::Public | Scope::Request => vec![prefix.to_owned()],
        Scope::Session => vec![prefix.to_owned(), format!("{prefix}s/{{id}}")],
        Scope::Service => vec![format!("{prefix}s")],
    }
}

fn path_item(route: &Route, base: &str) -> Value {
    let mut item = Map::new();
    for (method, call) in route.calls {
        item.insert(method.as_str().to_ascii_lowercase(), operation(*call, route, base));
    }
    Value::Object(item)
}

fn operation(call: Call, route: &Route, base: &str) -> Value {
    let by_id = base.ends_with("{id}");
    let (summary, success) = described(call);
    let mut operation = json!({
        "operationId": format!("{call:?}{}", if by_id { "ById" } else { "" }),
        "summary": summary,
        "parameters": parameters(call, route, by_id),
        "responses": responses(success, route.scope),
        "security": match route.scope {
            Scope::Public => json!([]),
            Scope::Request | Scope::Session if !by_id => json!([{"request_token": []}]),
            _ => json!([{"service_token": []}]),
        }
    });
    if let (Some(body), Some(members)) = (body(call), operation.as_object_mut()) {
        members.insert("requestBody".to_owned(), body);
    }
    operation
}

/// What a call does, and what it answers: a status, and the schema of its body.
fn described(call: Call) -> (&'static str, &'static [(u16, Option<&'static str>)]) {
    const SESSION: &[(u16, Option<&str>)] = &[(200, Some("Session")), (204, None)];
    const VALUE: &[(u16, Option<&str>)] = &[(200, Some("Value"))];
    const EXPIRY: &[(u16, Option<&str>)] = &[(200, Some("ExpiryObject")), (204, None)];
    const DESTROYED: &[(u16, Option<&str>)] = &[(200, Some("Destroyed"))];
    const ENDED: &[(u16, Option<&str>)] = &[(200, Some("Destroyed")), (204, None)];
    const DONE: &[(u16, Option<&str>)] = &[(204, None)];
    match call {
        Call::OpenApi => ("This contract", &[(200, Some("Object"))]),
        Call::Read => ("The whole session; reading creates nothing", &[(200, Some("Session"))]),
        Call::Patch => ("Apply a patch; creates the session where there is none", SESSION),
        Call::Destroy => ("Destroy it", ENDED),
        Call::Rotate => ("New token, same session", SESSION),
        Call::ReadValues => ("The values alone", &[(200, Some("Object"))]),
        Call::ReplaceValues => ("Replace all values", SESSION),
        Call::ReadValue => ("One value", VALUE),
        Call::SetValue => ("Set it to any JSON", SESSION),
        Call::RemoveValue => ("Remove it and say what it was", VALUE),
        Call::Increment => ("Add to an integer", &[(200, Some("Integer"))]),
        Call::Append => ("Add to the end of an array", SESSION),
        Call::ReadExpiry => {
            ("Its lifetime; asking never prolongs it", &[(200, Some("ExpiryObject"))])
        }
        Call::SetExpiry => ("Give it a lifetime of its own, or null for the policy", EXPIRY),
        Call::SetTestCookie => ("Set the test cookie", DONE),
        Call::ReadTestCookie => ("Did it come back?", &[(200, Some("TestCookie"))]),
        Call::RemoveTestCookie => ("Delete it", DONE),
        Call::ListOwn => {
            ("The sessions of this session's principal", &[(200, Some("SessionList"))])
        }
        Call::DestroyOthers => ("Log out all but this one", DESTROYED),
        Call::DestroyOne => ("Log one of them out", ENDED),
        Call::List => ("List sessions", &[(200, Some("SessionPage"))]),
        Call::DestroyAll => ("Log a user out everywhere", DESTROYED),
        Call::ClearExpired => ("Remove what has expired", &[(200, Some("Removed"))]),
    }
}

fn responses(success: &[(u16, Option<&str>)], scope: Scope) -> Value {
    let mut responses = Map::new();
    for (status, schema) in success {
        let response = match schema {
            None => json!({"description": "Done"}),
            Some("Value") => json!({"description": "Done", "content": {
                "application/json": {"schema": reference("Value")},
                "text/plain": {"schema": {"type": "string"}}
            }}),
            Some(name) => {
                json!({"description": "Done", "content": {"application/json": {"schema": reference(name)}}})
            }
        };
        responses.insert(status.to_string(), response);
    }
    if scope == Scope::Public {
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

fn parameters(call: Call, route: &Route, by_id: bool) -> Value {
    let mut parameters = Vec::new();
    let mut add = |name: &str, place: &str, schema: Value| {
        // A user is logged out everywhere by name; nobody logs out all users by leaving it out.
        let required = place == "path" || (call == Call::DestroyAll && name == "principal");
        parameters.push(json!({"name": name, "in": place, "required": required, "schema": schema}));
    };
    if by_id || route.path.contains("{id}") {
        add("id", "path", json!({"type": "string", "pattern": "^[A-Za-z0-9_-]{22}$"}));
    }
    if route.path.contains("{key}") {
        add("key", "path", json!({"type": "string", "minLength": 1, "maxLength": 256}));
    }
    let names = match route.scope {
        Scope::Service => super::many::parameters(call),
        _ => super::one::parameters(call),
    };
    for name in names {
        add(
            name,
            "query",
            match *name {
                "default" => {
                    json!({"type": "string", "contentMediaType": "application/json", "pattern": "^(null|true|false|0|\"[a-z]*\")$"})
                }
                "text" | "everywhere" => json!({"type": "boolean"}),
                "limit" => {
                    json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100})
                }
                "principal" => {
                    json!({"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]+$"})
                }
                _ => json!({"type": "string"}),
            },
        );
    }
    if matches!(call, Call::Destroy | Call::DestroyOne)
        || call.writes() && route.scope == Scope::Session
    {
        add(
            "Prefer",
            "header",
            json!({"type": "string", "enum": ["return=minimal", "return=representation"]}),
        );
    }
    if call.writes() && route.scope == Scope::Session {
        add("If-Match", "header", json!({"type": "string", "pattern": "^\"[0-9a-f]{1,40}\"$"}));
    }
    if call == Call::SetValue {
        add("If-None-Match", "header", json!({"type": "string", "enum": ["*"]}));
    }
    Value::Array(parameters)
}

fn body(call: Call) -> Option<Value> {
    let schema = match call {
        Call::Patch => reference("Patch"),
        Call::ReplaceValues => reference("Object"),
        Call::SetValue | Call::Append => reference("Value"),
        Call::Increment => {
            json!({"type": "object", "properties": {"by": reference("Integer")}, "additionalProperties": false})
        }
        Call::SetExpiry => reference("Expiry"),
        _ => return None,
    };
    let required = call != Call::Increment;
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

/// The members that say how long a session lives.
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
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "if_version": {"type": "integer", "minimum": 0, "maximum": i64::MAX},
            "destroy": {"type": "boolean"},
            "clear": {"type": "boolean"},
            "values": object,
            "set": object,
            "default": object,
            "increment": {"type": "object", "propertyNames": keys, "additionalProperties": reference("Integer")},
            "expiry": reference("Expiry"),
            "principal": {"type": "string", "minLength": 1, "maxLength": 256},
            "rotate": {"type": "boolean"}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_of_the_table_is_in_the_contract() {
        let document: Value = serde_json::from_str(&document("/_session")).expect("JSON");
        for route in ROUTES {
            for base in bases("/_session", route.scope) {
                let item = &document["paths"][format!("{base}{}", route.path)];
                for (method, call) in route.calls {
                    let operation = &item[method.as_str().to_ascii_lowercase()];
                    assert!(operation["summary"].is_string(), "{call:?} at {base}{}", route.path);
                }
            }
        }
    }

    #[test]
    fn no_reference_leads_nowhere() {
        let text = document("/_session");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap_or_default();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
