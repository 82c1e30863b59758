//! The matcher of paths.

use bytes::Bytes;
use http::Method;
use percent_encoding::percent_decode_str;

use super::calls::{DOCUMENT, PRINCIPAL, REQUEST, SERVICE, SESSIONS};
use super::operation::{Operation, Route};
use super::principal::PrincipalCall;
use super::service::ServiceCall;
use super::session::SessionCall;
use crate::session::id::PublicId;

/// A path of a table, and what it names.
#[derive(Debug)]
pub(super) enum Matched<'a> {
    Document(RouteMatch<'a, Bytes>),
    /// The session of a request, by its request token.
    OwnSession(RouteMatch<'a, SessionCall>),
    /// The sessions of the principal of that session.
    Principal(RouteMatch<'a, PrincipalCall>),
    /// Any session, by the service token.
    SessionById(PublicId, RouteMatch<'a, SessionCall>),
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
            .or_else(|| match_routes(REQUEST, rest).map(Matched::OwnSession));
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
pub(super) fn parse_id(segment: &str) -> Option<PublicId> {
    PublicId::parse(&percent_decode_str(segment).decode_utf8().ok()?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::id::Id;

    /// What a path names: the kind of call, the template, and the parameter.
    type Named = (&'static str, Option<PublicId>, &'static str, Option<String>);

    fn check(path: &str) -> Option<Named> {
        fn named<C>(
            kind: &'static str,
            id: Option<PublicId>,
            matched: &RouteMatch<'_, C>,
        ) -> Named {
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
        let id = PublicId { place: Id::from_bytes([0; 16]), counter: 0 };
        let dashes = PublicId { place: Id::from_bytes([0xff; 16]), counter: 0 };
        let other = PublicId { counter: 1, ..id };
        for (path, kind, id, template, parameter) in [
            ("/_session", "own", None, "", None),
            ("/_session/values/a%2Fb", "own", None, "/values/{key}", Some("a%2Fb")),
            ("/_session/values/a/increment", "own", None, "/values/{key}/increment", Some("a")),
            ("/_session/test-cookie", "own", None, "/test-cookie", None),
            ("/_session/policy", "own", None, "/policy", None),
            ("/_session/principal/sessions", "principal", None, "/principal/sessions", None),
            ("/_session/openapi.json", "document", None, "/openapi.json", None),
            ("/_sessions", "service", None, "", None),
            ("/_sessions/clear-expired", "service", None, "/clear-expired", None),
            ("/_sessions/AAAAAAAAAAAAAAAAAAAAAA", "by id", Some(id), "", None),
            ("/_sessions/AAAAAAAAAAAAAAAAAAAAAAAB", "by id", Some(other), "", None),
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
            "/_sessions/AAAAAAAAAAAAAAAAAAAAAA/policy",
            "/_sessions/policy",
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
