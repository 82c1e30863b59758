//! The tables of the API's routes: they feed the matcher, `Allow` and the OpenAPI document.
//!
//! A call is one row: its method, contract and handler. There is a table for each kind of call, so that a row can only
//! have a handler that takes what its path provides.

use std::pin::Pin;

use bytes::Bytes;
use http::{Method, Response};
use percent_encoding::percent_decode_str;

use super::principal::PrincipalCall;
use super::problem::ApiResult;
use super::response;
use super::service::ServiceCall;
use super::session::SessionCall;
use crate::body::Body;
use crate::session::id::Id;

/// A response that is being computed.
pub(super) type Reply = Pin<Box<dyn Future<Output = ApiResult<Response<Body>>> + Send>>;

/// A path and its operations. `C` is the argument of their handlers.
#[derive(Debug)]
pub(super) struct Route<C: 'static> {
    /// The path after the base. A segment in braces is its parameter.
    pub(super) path: &'static str,
    pub(super) operations: &'static [Operation<C>],
}

/// A method at a path.
#[derive(Debug)]
pub(super) struct Operation<C: 'static> {
    pub(super) method: Method,
    pub(super) spec: Spec,
    pub(super) handler: fn(C) -> Reply,
}

/// The contract of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    /// The `operationId`.
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    pub(super) effect: Effect,
    pub(super) query: &'static [QueryParameter],
    pub(super) headers: &'static [RequestHeader],
    pub(super) body: RequestBody,
    pub(super) success: &'static [Success],
}

/// The effect of an operation. One that writes runs as a task that outlives its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Reads,
    Writes,
}

/// A parameter of the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueryParameter {
    Cursor,
    Default,
    Everywhere,
    Limit,
    Principal,
    /// A user is logged out everywhere by name: leaving the name out must not log out all users.
    RequiredPrincipal,
    Text,
}

impl QueryParameter {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cursor => "cursor",
            Self::Default => "default",
            Self::Everywhere => "everywhere",
            Self::Limit => "limit",
            Self::Principal | Self::RequiredPrincipal => "principal",
            Self::Text => "text",
        }
    }
}

/// A header of a request, besides its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestHeader {
    Prefer,
    IfMatch,
    IfNoneMatch,
}

/// The body of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestBody {
    None,
    /// JSON of this schema.
    Json(&'static str),
    /// The amount of an increment; without it, 1.
    Increment,
}

/// A status of success, and the schema of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Success {
    /// 200 with JSON.
    Json(&'static str),
    /// 200 with a value, as JSON or as plain text.
    Value,
    /// 204.
    Empty,
}

use QueryParameter::{Cursor, Default, Everywhere, Limit, Principal, RequiredPrincipal, Text};
use RequestHeader::{IfMatch, IfNoneMatch, Prefer};

const SESSION: &[Success] = &[Success::Json("Session"), Success::Empty];
const EXPIRY: &[Success] = &[Success::Json("ExpiryObject"), Success::Empty];
const DESTROYED: &[Success] = &[Success::Json("Destroyed"), Success::Empty];
const CHANGE: &[RequestHeader] = &[Prefer, IfMatch];

/// An operation that reads, without parameters: a row adds what it takes.
const fn reads(id: &'static str, summary: &'static str, success: &'static [Success]) -> Spec {
    let effect = Effect::Reads;
    Spec { id, summary, effect, query: &[], headers: &[], body: RequestBody::None, success }
}

/// An operation that writes, likewise.
const fn writes(id: &'static str, summary: &'static str, success: &'static [Success]) -> Spec {
    Spec { effect: Effect::Writes, ..reads(id, summary, success) }
}

/// An operation that changes a session under the conditions and preferences of its headers.
const fn changes(id: &'static str, summary: &'static str, success: &'static [Success]) -> Spec {
    Spec { headers: CHANGE, ..writes(id, summary, success) }
}

/// Calls without authority: the contract itself.
pub(super) const DOCUMENT: &[Route<Bytes>] = &[Route {
    path: "/openapi.json",
    operations: &[Operation {
        method: Method::GET,
        spec: reads("OpenApi", "This contract", &[Success::Json("Object")]),
        handler: |document| Box::pin(std::future::ready(Ok(response::json_bytes(document)))),
    }],
}];

/// Calls on the session of a request, or on any by its id.
pub(super) const SESSIONS: &[Route<SessionCall>] = &[
    Route {
        path: "",
        operations: &[
            Operation {
                method: Method::GET,
                spec: reads(
                    "Read",
                    "The whole session; reading creates nothing",
                    &[Success::Json("Session")],
                ),
                handler: |call| Box::pin(call.read()),
            },
            Operation {
                method: Method::PATCH,
                spec: Spec {
                    body: RequestBody::Json("Patch"),
                    ..changes(
                        "Patch",
                        "Apply a patch; creates the session where there is none",
                        SESSION,
                    )
                },
                handler: |call| Box::pin(call.patch()),
            },
            Operation {
                method: Method::DELETE,
                spec: Spec { query: &[Everywhere], ..changes("Destroy", "Destroy it", DESTROYED) },
                handler: |call| Box::pin(call.destroy()),
            },
        ],
    },
    Route {
        path: "/rotate",
        operations: &[Operation {
            method: Method::POST,
            spec: changes("Rotate", "New token, same session", SESSION),
            handler: |call| Box::pin(call.rotate()),
        }],
    },
    Route {
        path: "/values",
        operations: &[
            Operation {
                method: Method::GET,
                spec: reads("ReadValues", "The values alone", &[Success::Json("Object")]),
                handler: |call| Box::pin(call.read_values()),
            },
            Operation {
                method: Method::PUT,
                spec: Spec {
                    body: RequestBody::Json("Object"),
                    ..changes("ReplaceValues", "Replace all values", SESSION)
                },
                handler: |call| Box::pin(call.replace_values()),
            },
        ],
    },
    Route {
        path: "/values/{key}",
        operations: &[
            Operation {
                method: Method::GET,
                spec: Spec {
                    query: &[Default, Text],
                    ..reads("ReadValue", "One value", &[Success::Value])
                },
                handler: |call| Box::pin(call.read_value()),
            },
            Operation {
                method: Method::PUT,
                spec: Spec {
                    query: &[Text],
                    headers: &[Prefer, IfMatch, IfNoneMatch],
                    body: RequestBody::Json("Value"),
                    ..writes("SetValue", "Set it to any JSON", SESSION)
                },
                handler: |call| Box::pin(call.set_value()),
            },
            Operation {
                method: Method::DELETE,
                spec: Spec {
                    query: &[Default, Text],
                    ..changes("RemoveValue", "Remove it and say what it was", &[Success::Value])
                },
                handler: |call| Box::pin(call.remove_value()),
            },
        ],
    },
    Route {
        path: "/values/{key}/increment",
        operations: &[Operation {
            method: Method::POST,
            spec: Spec {
                body: RequestBody::Increment,
                ..changes("Increment", "Add to an integer", &[Success::Json("Integer")])
            },
            handler: |call| Box::pin(call.increment()),
        }],
    },
    Route {
        path: "/values/{key}/append",
        operations: &[Operation {
            method: Method::POST,
            spec: Spec {
                query: &[Text],
                body: RequestBody::Json("Value"),
                ..changes("Append", "Add to the end of an array", SESSION)
            },
            handler: |call| Box::pin(call.append()),
        }],
    },
    Route {
        path: "/expiry",
        operations: &[
            Operation {
                method: Method::GET,
                spec: reads(
                    "ReadExpiry",
                    "Its lifetime; asking never prolongs it",
                    &[Success::Json("ExpiryObject")],
                ),
                handler: |call| Box::pin(call.read_expiry()),
            },
            Operation {
                method: Method::PUT,
                spec: Spec {
                    body: RequestBody::Json("Expiry"),
                    ..changes(
                        "SetExpiry",
                        "Give it a lifetime of its own, or null for the policy",
                        EXPIRY,
                    )
                },
                handler: |call| Box::pin(call.set_expiry()),
            },
        ],
    },
];

/// Calls on the session of a request that need what its client sent.
pub(super) const TEST_COOKIE: &[Route<SessionCall>] = &[Route {
    path: "/test-cookie",
    operations: &[
        Operation {
            method: Method::GET,
            spec: reads("ReadTestCookie", "Did it come back?", &[Success::Json("TestCookie")]),
            handler: |call| Box::pin(call.read_test_cookie()),
        },
        Operation {
            method: Method::PUT,
            spec: writes("SetTestCookie", "Set the test cookie", &[Success::Empty]),
            handler: |call| Box::pin(call.set_test_cookie()),
        },
        Operation {
            method: Method::DELETE,
            spec: writes("RemoveTestCookie", "Delete it", &[Success::Empty]),
            handler: |call| Box::pin(call.remove_test_cookie()),
        },
    ],
}];

/// Calls on the sessions of the principal of a request's session.
pub(super) const PRINCIPAL: &[Route<PrincipalCall>] = &[
    Route {
        path: "/principal/sessions",
        operations: &[
            Operation {
                method: Method::GET,
                spec: reads(
                    "ListOwn",
                    "The sessions of this session's principal",
                    &[Success::Json("SessionList")],
                ),
                handler: |call| Box::pin(call.list()),
            },
            Operation {
                method: Method::DELETE,
                spec: writes(
                    "DestroyOthers",
                    "Log out all but this one",
                    &[Success::Json("Destroyed")],
                ),
                handler: |call| Box::pin(call.destroy_others()),
            },
        ],
    },
    Route {
        path: "/principal/sessions/{id}",
        operations: &[Operation {
            method: Method::DELETE,
            spec: Spec {
                headers: &[Prefer],
                ..writes("DestroyOne", "Log one of them out", DESTROYED)
            },
            handler: |call| Box::pin(call.destroy_one()),
        }],
    },
];

/// Calls on all sessions, by the service token.
pub(super) const SERVICE: &[Route<ServiceCall>] = &[
    Route {
        path: "",
        operations: &[
            Operation {
                method: Method::GET,
                spec: Spec {
                    query: &[Principal, Limit, Cursor],
                    ..reads("List", "List sessions", &[Success::Json("SessionPage")])
                },
                handler: |call| Box::pin(call.list()),
            },
            Operation {
                method: Method::DELETE,
                spec: Spec {
                    query: &[RequiredPrincipal],
                    ..writes(
                        "DestroyAll",
                        "Log a user out everywhere",
                        &[Success::Json("Destroyed")],
                    )
                },
                handler: |call| Box::pin(call.destroy_all()),
            },
        ],
    },
    Route {
        path: "/clear-expired",
        operations: &[Operation {
            method: Method::POST,
            spec: writes("ClearExpired", "Remove what has expired", &[Success::Json("Removed")]),
            handler: |call| Box::pin(call.clear_expired()),
        }],
    },
];

/// A path of a table, and what it names.
#[derive(Debug)]
pub(super) enum Matched<'a> {
    Document(RouteMatch<'a, Bytes>),
    /// The session of a request, by its request token.
    OwnSession(RouteMatch<'a, SessionCall>),
    /// The sessions of the principal of that session.
    Principal(RouteMatch<'a, PrincipalCall>),
    /// Any session, by the service token.
    SessionById(Id, RouteMatch<'a, SessionCall>),
    /// All sessions, by the service token.
    Service(RouteMatch<'a, ServiceCall>),
}

/// A route that a path matches.
#[derive(Debug)]
pub(super) struct RouteMatch<'a, C: 'static> {
    route: &'static Route<C>,
    /// The segment in place of the path's parameter, as it was sent.
    pub(super) parameter: Option<&'a str>,
}

/// The methods of a path, for `Allow` (RFC 9110, section 10.2.1).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MethodNotAllowed {
    pub(super) allow: String,
}

/// Finds a path in the tables. `prefix` is the API's, by default `/_session`.
pub(super) fn find<'a>(prefix: &str, path: &'a str) -> Option<Matched<'a>> {
    let rest = path.strip_prefix(prefix)?;
    let Some(rest) = rest.strip_prefix('s') else {
        return match_routes(DOCUMENT, rest)
            .map(Matched::Document)
            .or_else(|| match_routes(PRINCIPAL, rest).map(Matched::Principal))
            .or_else(|| match_routes(SESSIONS, rest).map(Matched::OwnSession))
            .or_else(|| match_routes(TEST_COOKIE, rest).map(Matched::OwnSession));
    };
    if let Some(matched) = match_routes(SERVICE, rest) {
        return Some(Matched::Service(matched));
    }
    let rest = rest.strip_prefix('/')?;
    let (id, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let id = parse_id(id)?;
    match_routes(SESSIONS, rest).map(|matched| Matched::SessionById(id, matched))
}

/// Parses the id in a path. Clients may encode any character of it.
pub(super) fn parse_id(segment: &str) -> Option<Id> {
    Id::parse(&percent_decode_str(segment).decode_utf8().ok()?)
}

fn match_routes<'a, C>(routes: &'static [Route<C>], path: &'a str) -> Option<RouteMatch<'a, C>> {
    routes.iter().find_map(|route| {
        let parameter = match_path(route.path, path)?;
        Some(RouteMatch { route, parameter: (!parameter.is_empty()).then_some(parameter) })
    })
}

/// Returns the segment in place of the template's parameter if a path matches; it is empty if the template has none.
fn match_path<'a>(template: &str, path: &'a str) -> Option<&'a str> {
    let (mut template, mut path) = (template.split('/'), path.split('/'));
    let mut parameter = "";
    loop {
        match (template.next(), path.next()) {
            (None, None) => return Some(parameter),
            (Some(name), Some(segment)) if name.starts_with('{') && !segment.is_empty() => {
                parameter = segment;
            }
            (Some(literal), Some(segment)) if literal == segment => {}
            _ => return None,
        }
    }
}

impl<C> RouteMatch<'_, C> {
    /// Returns the operation of a method. HEAD works where GET does (RFC 9110, section 9.3.2).
    pub(super) fn operation(
        &self,
        method: &Method,
    ) -> Result<&'static Operation<C>, MethodNotAllowed> {
        let wanted = if method == Method::HEAD { &Method::GET } else { method };
        let mut operations = self.route.operations.iter();
        let found = operations.find(|operation| operation.method == *wanted);
        found.ok_or_else(|| MethodNotAllowed { allow: self.route.allow() })
    }
}

impl<C> Route<C> {
    fn allow(&self) -> String {
        let methods = self.operations.iter().map(|operation| operation.method.as_str());
        let reads = self.operations.iter().any(|operation| operation.method == Method::GET);
        methods.chain(reads.then_some("HEAD")).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a path names: the kind of call, the template, and the parameter.
    type Named = (&'static str, Option<Id>, &'static str, Option<String>);

    fn check(path: &str) -> Option<Named> {
        fn named<C>(kind: &'static str, id: Option<Id>, matched: &RouteMatch<'_, C>) -> Named {
            (kind, id, matched.route.path, matched.parameter.map(str::to_owned))
        }
        Some(match find("/_session", path)? {
            Matched::Document(matched) => named("document", None, &matched),
            Matched::OwnSession(matched) => named("own", None, &matched),
            Matched::Principal(matched) => named("principal", None, &matched),
            Matched::SessionById(id, matched) => named("by id", Some(id), &matched),
            Matched::Service(matched) => named("service", None, &matched),
        })
    }

    #[test]
    fn paths_match_one_route() {
        let id = Id::from_bytes([0; 16]);
        let dashes = Id::from_bytes([0xff; 16]);
        for (path, kind, id, template, parameter) in [
            ("/_session", "own", None, "", None),
            ("/_session/values/a%2Fb", "own", None, "/values/{key}", Some("a%2Fb")),
            ("/_session/values/a/increment", "own", None, "/values/{key}/increment", Some("a")),
            ("/_session/test-cookie", "own", None, "/test-cookie", None),
            ("/_session/principal/sessions", "principal", None, "/principal/sessions", None),
            ("/_session/openapi.json", "document", None, "/openapi.json", None),
            ("/_sessions", "service", None, "", None),
            ("/_sessions/clear-expired", "service", None, "/clear-expired", None),
            ("/_sessions/AAAAAAAAAAAAAAAAAAAAAA", "by id", Some(id), "", None),
            ("/_sessions/%5F%5f___________________w", "by id", Some(dashes), "", None),
            (
                "/_sessions/AAAAAAAAAAAAAAAAAAAAAA/values/k",
                "by id",
                Some(id),
                "/values/{key}",
                Some("k"),
            ),
        ] {
            let expected = (kind, id, template, parameter.map(str::to_owned));
            assert_eq!(check(path), Some(expected), "{path}");
        }
    }

    #[test]
    fn other_paths_match_none() {
        for path in [
            "/",
            "/_sessio",
            "/_session/",
            "/_sessionx",
            "/_session/values/",
            "/_session/values/a/",
            "/_session/values//",
            "/_sessions/",
            "/_sessions/x",
            "/_sessions/AAAAAAAAAAAAAAAAAAAAAA/",
            "/_session/nothing",
            "/_sessions/AAAAAAAAAAAAAAAAAAAAAA/principal/sessions",
            "/_sessions/AAAAAAAAAAAAAAAAAAAAAA/test-cookie",
            "/_sessions/openapi.json",
        ] {
            assert_eq!(check(path), None, "{path}");
        }
    }

    #[test]
    fn allow_lists_methods_and_head_with_get() {
        let Some(Matched::OwnSession(matched)) = find("/_session", "/_session") else {
            panic!("no route");
        };
        let allow = "GET, PATCH, DELETE, HEAD".to_owned();
        assert_eq!(matched.operation(&Method::PUT).err(), Some(MethodNotAllowed { allow }));
        let operation = matched.operation(&Method::HEAD).expect("an operation");
        assert_eq!(operation.spec.id, "Read");
    }
}
