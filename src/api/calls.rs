//! The calls of the API, each as one row.

use bytes::Bytes;
use http::Method;

use super::operation::{Effect, Operation, RequestBody, Route, Spec, Success};
use super::principal::PrincipalCall;
use super::request::QueryParameter::{
    Cursor, Default, Everywhere, Limit, Principal, RequiredPrincipal, Text,
};
use super::request::RequestHeader;
use super::request::RequestHeader::{IfMatch, IfNoneMatch, Prefer};
use super::response;
use super::service::ServiceCall;
use super::session::SessionCall;

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

/// Calls that need the request, and not only its session: what its client sent, and its route.
pub(super) const REQUEST: &[Route<SessionCall>] = &[
    Route {
        path: "/policy",
        operations: &[Operation {
            method: Method::GET,
            spec: reads(
                "ReadPolicy",
                "The lifetimes and limits of sessions, the cookie, and header exchange",
                &[Success::Json("Policy")],
            ),
            handler: |call| Box::pin(std::future::ready(call.read_policy())),
        }],
    },
    Route {
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
    },
];

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
