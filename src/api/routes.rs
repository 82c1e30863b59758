//! The one table of the API's routes: it feeds the matcher, `Allow` and the OpenAPI document.

use http::Method;
use percent_encoding::percent_decode_str;

use crate::session::id::Id;

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The contract itself; it needs no authority.
    Public,
    /// The session of a request, by its request token.
    Request,
    /// The session of a request, or any by its id.
    Session,
    /// All sessions, by the service token.
    Service,
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    OpenApi,
    Read,
    Patch,
    Destroy,
    Rotate,
    ReadValues,
    ReplaceValues,
    ReadValue,
    SetValue,
    RemoveValue,
    Increment,
    Append,
    ReadExpiry,
    SetExpiry,
    SetTestCookie,
    ReadTestCookie,
    RemoveTestCookie,
    ListOwn,
    DestroyOthers,
    DestroyOne,
    List,
    DestroyAll,
    ClearExpired,
}

impl Call {
    /// Whether it may write, and so runs as a task that outlives its caller.
    pub(super) fn writes(self) -> bool {
        !matches!(
            self,
            Self::OpenApi
                | Self::Read
                | Self::ReadValues
                | Self::ReadValue
                | Self::ReadExpiry
                | Self::ReadTestCookie
                | Self::ListOwn
                | Self::List
        )
    }
}

/// A path under its base, and what its methods do.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) scope: Scope,
    /// The path after the base: the prefix, with an `s` where it names all sessions.
    pub(super) path: &'static str,
    pub(super) calls: &'static [(Method, Call)],
}

/// The routes. A literal segment is listed before a parameter in its place.
pub(super) const ROUTES: &[Route] = &[
    Route { scope: Scope::Public, path: "/openapi.json", calls: &[(Method::GET, Call::OpenApi)] },
    Route {
        scope: Scope::Session,
        path: "",
        calls: &[
            (Method::GET, Call::Read),
            (Method::PATCH, Call::Patch),
            (Method::DELETE, Call::Destroy),
        ],
    },
    Route { scope: Scope::Session, path: "/rotate", calls: &[(Method::POST, Call::Rotate)] },
    Route {
        scope: Scope::Session,
        path: "/values",
        calls: &[(Method::GET, Call::ReadValues), (Method::PUT, Call::ReplaceValues)],
    },
    Route {
        scope: Scope::Session,
        path: "/values/{key}",
        calls: &[
            (Method::GET, Call::ReadValue),
            (Method::PUT, Call::SetValue),
            (Method::DELETE, Call::RemoveValue),
        ],
    },
    Route {
        scope: Scope::Session,
        path: "/values/{key}/increment",
        calls: &[(Method::POST, Call::Increment)],
    },
    Route {
        scope: Scope::Session,
        path: "/values/{key}/append",
        calls: &[(Method::POST, Call::Append)],
    },
    Route {
        scope: Scope::Session,
        path: "/expiry",
        calls: &[(Method::GET, Call::ReadExpiry), (Method::PUT, Call::SetExpiry)],
    },
    Route {
        scope: Scope::Request,
        path: "/test-cookie",
        calls: &[
            (Method::GET, Call::ReadTestCookie),
            (Method::PUT, Call::SetTestCookie),
            (Method::DELETE, Call::RemoveTestCookie),
        ],
    },
    Route {
        scope: Scope::Request,
        path: "/principal/sessions",
        calls: &[(Method::GET, Call::ListOwn), (Method::DELETE, Call::DestroyOthers)],
    },
    Route {
        scope: Scope::Request,
        path: "/principal/sessions/{id}",
        calls: &[(Method::DELETE, Call::DestroyOne)],
    },
    Route {
        scope: Scope::Service,
        path: "",
        calls: &[(Method::GET, Call::List), (Method::DELETE, Call::DestroyAll)],
    },
    Route {
        scope: Scope::Service,
        path: "/clear-expired",
        calls: &[(Method::POST, Call::ClearExpired)],
    },
];

/// Whose authority a matched path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Authority {
    Public,
    Request,
    /// The service token's; for this session, or for all.
    Service(Option<Id>),
}

/// A path that the table has.
#[derive(Debug)]
pub(super) struct Matched<'a> {
    pub(super) route: &'static Route,
    pub(super) authority: Authority,
    /// What stands in the place of the path's parameter, as it was sent.
    pub(super) parameter: Option<&'a str>,
}

/// Finds a path in the table. `prefix` is the API's, `/_session` by default.
pub(super) fn find<'a>(prefix: &str, path: &'a str) -> Option<Matched<'a>> {
    let rest = path.strip_prefix(prefix)?;
    let Some(rest) = rest.strip_prefix('s') else {
        return match_under(&[Scope::Public, Scope::Request, Scope::Session], rest, |scope| {
            match scope {
                Scope::Public => Authority::Public,
                _ => Authority::Request,
            }
        });
    };
    if let Some(matched) = match_under(&[Scope::Service], rest, |_| Authority::Service(None)) {
        return Some(matched);
    }
    let rest = rest.strip_prefix('/')?;
    let (id, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let id = id_of(id)?;
    match_under(&[Scope::Session], rest, |_| Authority::Service(Some(id)))
}

/// The id in a path. Clients may encode any character of it.
pub(super) fn id_of(segment: &str) -> Option<Id> {
    Id::parse(&percent_decode_str(segment).decode_utf8().ok()?)
}

fn match_under<'a>(
    scopes: &[Scope],
    path: &'a str,
    authority: impl Fn(Scope) -> Authority,
) -> Option<Matched<'a>> {
    ROUTES.iter().filter(|route| scopes.contains(&route.scope)).find_map(|route| {
        let parameter = match_path(route.path, path)?;
        let parameter = (!parameter.is_empty()).then_some(parameter);
        Some(Matched { route, authority: authority(route.scope), parameter })
    })
}

/// What stands in the place of a form's parameter, if a path is of that form; empty where it has
/// none.
fn match_path<'a>(form: &str, path: &'a str) -> Option<&'a str> {
    let (mut form, mut path) = (form.split('/'), path.split('/'));
    let mut parameter = "";
    loop {
        match (form.next(), path.next()) {
            (None, None) => return Some(parameter),
            (Some(name), Some(segment)) if name.starts_with('{') && !segment.is_empty() => {
                parameter = segment;
            }
            (Some(literal), Some(segment)) if literal == segment => {}
            _ => return None,
        }
    }
}

impl Route {
    /// What a method does here. HEAD works where GET does.
    pub(super) fn call(&self, method: &Method) -> Option<Call> {
        let wanted = if method == Method::HEAD { &Method::GET } else { method };
        self.calls.iter().find_map(|(method, call)| (method == wanted).then_some(*call))
    }

    /// The methods that work here, for `Allow` (RFC 9110, section 10.2.1).
    pub(super) fn allow(&self) -> String {
        let head = self.calls.iter().any(|(method, _)| method == Method::GET).then_some("HEAD");
        self.calls
            .iter()
            .map(|(method, _)| method.as_str())
            .chain(head)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str) -> Option<(&'static str, Authority, Option<&str>)> {
        find("/_session", path)
            .map(|matched| (matched.route.path, matched.authority, matched.parameter))
    }

    #[test]
    fn a_path_names_one_route() {
        let id = Id::from_bytes([0; 16]);
        assert_eq!(check("/_session"), Some(("", Authority::Request, None)));
        assert_eq!(
            check("/_session/values/a%2Fb"),
            Some(("/values/{key}", Authority::Request, Some("a%2Fb")))
        );
        assert_eq!(
            check("/_session/values/a/increment"),
            Some(("/values/{key}/increment", Authority::Request, Some("a")))
        );
        assert_eq!(
            check("/_session/openapi.json"),
            Some(("/openapi.json", Authority::Public, None))
        );
        assert_eq!(check("/_sessions"), Some(("", Authority::Service(None), None)));
        assert_eq!(
            check("/_sessions/clear-expired"),
            Some(("/clear-expired", Authority::Service(None), None))
        );
        assert_eq!(
            check("/_sessions/AAAAAAAAAAAAAAAAAAAAAA"),
            Some(("", Authority::Service(Some(id)), None))
        );
        let dashes = Id::from_bytes([0xff; 16]);
        assert_eq!(
            check("/_sessions/%5F%5f___________________w"),
            Some(("", Authority::Service(Some(dashes)), None))
        );
        assert_eq!(
            check("/_sessions/AAAAAAAAAAAAAAAAAAAAAA/values/k"),
            Some(("/values/{key}", Authority::Service(Some(id)), Some("k")))
        );
    }

    #[test]
    fn what_is_not_in_the_table_is_not_found() {
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
            "/_sessions/openapi.json",
        ] {
            assert_eq!(check(path), None, "{path}");
        }
    }

    #[test]
    fn allow_lists_the_methods_and_head_where_get_works() {
        let route = find("/_session", "/_session").expect("a route").route;
        assert_eq!(route.allow(), "GET, PATCH, DELETE, HEAD");
        assert_eq!(route.call(&Method::HEAD), Some(Call::Read));
        assert_eq!(route.call(&Method::PUT), None);
    }
}
