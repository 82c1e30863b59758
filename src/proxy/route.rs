//! Route matching: by host first, then by the longest path prefix.

use std::borrow::Cow;
use std::collections::HashMap;
use std::{fmt, iter};

use smallvec::SmallVec;

use super::path;
use super::prefix_map::PrefixMap;
use super::readings::{self, Comparison};
use crate::net::host;

/// The host or hosts of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// A single host.
    Exact(String),
    /// Every subdomain of a host, at any depth; stored with the leading dot.
    Below(String),
}

impl HostPattern {
    /// Parses `shop.example.org` or `*.example.org`. Returns `None` for anything else, such as a host
    /// with a port.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let (name, below) = match text.strip_prefix('*') {
            Some(below) => (below.strip_prefix('.')?, Some(below)),
            None => (text, None),
        };
        if name.contains('*') || !host::is_valid_name(name) {
            return None;
        }
        Some(match below {
            Some(below) => Self::Below(below.to_ascii_lowercase()),
            None => Self::Exact(name.to_ascii_lowercase()),
        })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(below) => write!(f, "*{below}"),
        }
    }
}

/// The result of matching a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteMatch {
    /// The index of the matching route.
    Route(usize),
    /// No route matches: 404.
    None,
    /// Servers may read the path as that of different routes: 400. Otherwise a client could choose a
    /// route with weaker rules and still reach a resource of another route.
    Ambiguous,
}

/// The routes, by host and path.
///
/// If a host has routes of its own but none matches the path, wildcard routes and then routes without
/// a host are tried.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    /// By host, in lower case.
    exact: HashMap<Vec<u8>, Routes>,
    /// By the labels of the host below which they match, in lower case and from the last. Those without a host have
    /// no labels.
    below: PrefixMap<Routes>,
}

/// The routes of a host pattern.
#[derive(Clone, Debug, Default)]
struct Routes {
    /// By the segments of the path, in lower case. The root has none.
    paths: PrefixMap<Route>,
    count: usize,
}

#[derive(Clone, Debug)]
struct Route {
    /// Without a trailing slash, so the root is empty.
    path: Vec<u8>,
    index: usize,
}

/// The routes that match a host, the least specific pattern first. A root route matches every path, so only
/// the first pattern has one.
struct Candidates<'a>(SmallVec<[&'a Routes; 2]>);

/// The path matches a route only if letter case is ignored. Some servers ignore it, others do not.
#[derive(Debug, PartialEq, Eq)]
struct CaseMismatch;

impl Matcher {
    /// Returns whether any route matches this host, given with or without a port.
    pub(crate) fn serves(&self, host: &str) -> bool {
        !self.candidates(host).0.is_empty()
    }

    /// Creates a matcher from each route's host and path, in the order of their indices. Paths must be
    /// plain and differ in more than letter case ([`crate::config`] ensures it).
    pub fn new(routes: impl IntoIterator<Item = (Option<HostPattern>, String)>) -> Self {
        let mut matcher = Self::default();
        for (index, (host, path)) in routes.into_iter().enumerate() {
            let routes = match &host {
                Some(HostPattern::Exact(name)) => {
                    matcher.exact.entry(name.to_ascii_lowercase().into()).or_default()
                }
                Some(HostPattern::Below(below)) => {
                    let below = below.strip_prefix('.').unwrap_or(below).to_ascii_lowercase();
                    matcher.below.entry(labels(below.as_bytes())).get_or_insert_default()
                }
                None => matcher.below.entry(iter::empty()).get_or_insert_default(),
            };
            let path = path.strip_suffix('/').unwrap_or(&path);
            let route = routes.paths.entry(segments(&lower_case(path.as_bytes())));
            route.get_or_insert_with(|| Route { path: path.into(), index });
            routes.count += 1;
        }
        matcher
    }

    /// Finds the route for a Host, with or without a port, and the path of a request target. The target
    /// `*` matches root routes only.
    ///
    /// Every reading of the path must match the same route, with and without regard to ASCII case. If
    /// only one route matches the host, there are no rules that a different reading could bypass.
    pub fn find(&self, host: &str, path: &str) -> RouteMatch {
        let routes = self.candidates(host);
        // `OPTIONS *` concerns the server as a whole (RFC 9110, section 9.3.7).
        if path == "*" {
            return routes.root().map_or(RouteMatch::None, |root| RouteMatch::Route(root.index));
        }
        // The fast path: most paths have a single reading.
        if path::is_plain(path) {
            return match routes.find(path.as_bytes()) {
                Ok(found) => found,
                Err(CaseMismatch) => routes.ambiguous(),
            };
        }
        // A root route without others takes any path, however it is read.
        if let Some(root) = routes.root()
            && routes.count() == 1
        {
            return RouteMatch::Route(root.index);
        }
        let Ok(found) = routes.find(path.as_bytes()) else { return routes.ambiguous() };
        match readings::compare(path.as_bytes(), |reading| routes.find(reading) == Ok(found)) {
            Comparison::All => found,
            Comparison::Unbounded if routes.count() < 2 => found,
            Comparison::Differs | Comparison::Unbounded => routes.ambiguous(),
        }
    }

    fn candidates(&self, host: &str) -> Candidates<'_> {
        let host = lower_case(host::name(host).as_bytes());
        let below = self.below.prefixes(parent(&host).into_iter().flat_map(labels));
        let mut routes: SmallVec<[&Routes; 2]> =
            below.chain(self.exact.get(host.as_ref())).collect();
        if let Some(last_root) = routes.iter().rposition(|routes| routes.root().is_some()) {
            routes.drain(..last_root);
        }
        Candidates(routes)
    }
}

impl Routes {
    fn root(&self) -> Option<&Route> {
        self.paths.prefixes(iter::empty()).next()
    }
}

impl Candidates<'_> {
    fn root(&self) -> Option<&Route> {
        self.0.first()?.root()
    }

    fn count(&self) -> usize {
        self.0.iter().map(|routes| routes.count).sum()
    }

    /// Finds the route with the longest path that a reading begins with, segment by segment, in the most specific
    /// pattern that has one. Requires that it match in case too.
    fn find(&self, reading: &[u8]) -> Result<RouteMatch, CaseMismatch> {
        let lower = lower_case(reading);
        let longest =
            self.0.iter().rev().find_map(|routes| routes.paths.prefixes(segments(&lower)).last());
        match longest {
            None => Ok(RouteMatch::None),
            Some(route) if reading.starts_with(&route.path) => Ok(RouteMatch::Route(route.index)),
            Some(_) => Err(CaseMismatch),
        }
    }

    /// Returns the result for a path whose readings differ. With a single route, no rules of another
    /// could be bypassed.
    fn ambiguous(&self) -> RouteMatch {
        if self.count() > 1 { RouteMatch::Ambiguous } else { RouteMatch::None }
    }
}

/// Returns the host without its first label, which is not empty.
fn parent(host: &[u8]) -> Option<&[u8]> {
    let (_, rest) = host.split_at_checked(1)?;
    rest.splitn(2, |byte| *byte == b'.').nth(1)
}

/// Returns the labels of a host, from the last.
fn labels(host: &[u8]) -> impl Iterator<Item = &[u8]> {
    host.rsplit(|byte| *byte == b'.')
}

/// Returns the segments of a path. The root without a slash has none.
fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.strip_prefix(b"/").into_iter().flat_map(|rest| rest.split(|byte| *byte == b'/'))
}

/// Returns the text with its ASCII letters in lower case.
fn lower_case(text: &[u8]) -> Cow<'_, [u8]> {
    if text.iter().any(u8::is_ascii_uppercase) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher() -> Matcher {
        Matcher::new(
            [
                (None, "/"),
                (None, "/foo"),
                (Some("*.example.org"), "/"),
                (Some("*.shop.example.org"), "/"),
                (Some("a.shop.example.org"), "/"),
                (Some("a.shop.example.org"), "/foo/bar/"),
                (Some("only.example.net"), "/admin"),
                (Some("[::1]"), "/"),
            ]
            .map(|(host, path)| {
                (host.map(|host| HostPattern::parse(host).unwrap()), path.to_owned())
            }),
        )
    }

    fn check(host: &str, path: &str, expected: RouteMatch) {
        assert_eq!(matcher().find(host, path), expected, "{host} {path}");
    }

    #[test]
    fn the_host_decides_first() {
        for (host, route) in [
            ("other.net", 0),
            ("", 0),
            ("example.org", 0),
            ("b.example.org", 2),
            ("x.y.example.org", 2),
            ("badexample.org", 0),
            ("b.shop.example.org", 3),
            ("shop.example.org", 2),
            ("a.shop.example.org", 4),
            ("A.Shop.EXAMPLE.org.:8080", 4),
            ("[::1]:80", 7),
        ] {
            check(host, "/", RouteMatch::Route(route));
        }
    }

    #[test]
    fn the_longest_path_prefix_wins() {
        for (host, path, route) in [
            ("x", "/foo", 1),
            ("x", "/foo/", 1),
            ("x", "/foo/x", 1),
            ("x", "/foobar", 0),
            ("x", "*", 0),
            ("a.shop.example.org", "/foo", 4),
            ("a.shop.example.org", "/foo/bar", 5),
            ("a.shop.example.org", "/foo/bar/x", 5),
            ("a.shop.example.org", "/foo/barx", 4),
            ("only.example.net", "/admin/x", 6),
            ("only.example.net", "/foo/x", 1),
        ] {
            check(host, path, RouteMatch::Route(route));
        }
        let one = Matcher::new([(None, "/a".to_owned())]);
        assert_eq!(one.find("x", "/b"), RouteMatch::None);
        assert_eq!(one.find("x", "*"), RouteMatch::None);
    }

    #[test]
    fn unambiguous_encoded_paths_match() {
        for (path, route) in [
            ("/x/%66oo/y", 0),
            ("/x/../y", 0),
            ("/foo/a%2fb", 1),
            ("/foo//x;y", 1),
            ("/foo/%2e/y", 1),
            ("/a//b", 0),
            ("//a/b", 0),
            ("/a%20b/%e2%82%ac?", 0),
            ("/https%3A%2F%2Fother.example%2Ffoo", 0),
            ("/foo/%2525", 1),
        ] {
            check("x", path, RouteMatch::Route(route));
        }
    }

    #[test]
    fn paths_of_two_routes_are_ambiguous() {
        for path in [
            "/Foo",
            "/FOO/x",
            "//foo",
            "//x/foo",
            "//x/FOO",
            "/\\x/foo",
            "///x/foo",
            "/%66oo",
            "/foo%2fx",
            "/foo;x/y",
            "/x/../foo/y",
            "/foo/%2e%2e/y",
            "/x/..%2ffoo",
            "/foo/..%2fx",
            "/%2566oo",
            "/%252566oo",
            "/foo//../x",
            "/foo%2fusers%2f%252e%252e%2f%252e%252e",
            "/foo/../FOO/x",
            "/x\\..\\foo",
            "/foo%3fx",
            // Encoded more often than any server decodes.
            "/foo/%25252541",
        ] {
            check("x", path, RouteMatch::Ambiguous);
        }
    }

    #[test]
    fn a_single_route_takes_every_path() {
        let strange =
            ["/A", "//x/a", "/%2525252525", "/..%2f..", "/;/\\", "/a/../b", &"/%2f..;".repeat(900)];
        for path in strange {
            check("b.example.org", path, RouteMatch::Route(2));
            let one = Matcher::new([(None, "/".to_owned())]);
            assert_eq!(one.find("x", path), RouteMatch::Route(0), "{path}");
        }
        // A single route with a path: that route or none.
        let one = Matcher::new([(None, "/a".to_owned())]);
        for (path, found) in [
            ("/a/%2525252525", RouteMatch::Route(0)),
            ("/a/../a/b", RouteMatch::Route(0)),
            ("/a;x/a", RouteMatch::None),
            ("/A", RouteMatch::None),
            ("/a/b%2f..%2fc", RouteMatch::Route(0)),
        ] {
            assert_eq!(one.find("x", path), found, "{path}");
        }
    }

    #[test]
    fn parses_hosts_and_wildcards() {
        assert_eq!(HostPattern::parse("A.b."), Some(HostPattern::Exact("a.b".to_owned())));
        assert_eq!(HostPattern::parse("*.B"), Some(HostPattern::Below(".b".to_owned())));
        for bad in ["", "*", "*.", "*b", "a.*", "a.*.b", "*.*.b", "a:80", "a/b", "*.a b", "."] {
            assert_eq!(HostPattern::parse(bad), None, "{bad}");
        }
    }

    /// The same by a list that is tried in order: by rank of the host, then from the longest path.
    struct List(Vec<(Option<HostPattern>, String, usize)>);

    impl List {
        fn new(routes: &[(Option<HostPattern>, String)]) -> Self {
            let mut list: Vec<_> = routes
                .iter()
                .enumerate()
                .map(|(index, (host, path))| {
                    (host.clone(), path.trim_end_matches('/').to_owned(), index)
                })
                .collect();
            list.sort_by_key(|(host, path, _)| {
                let rank = match host {
                    Some(HostPattern::Exact(_)) => (0, 0),
                    Some(HostPattern::Below(below)) => (1, usize::MAX - below.len()),
                    None => (2, 0),
                };
                (rank, usize::MAX - path.len())
            });
            Self(list)
        }

        /// Returns the paths and indices of the routes that match a host, up to a root route.
        fn of_host(&self, host: &str) -> Vec<(&str, usize)> {
            let host = host::name(host).to_ascii_lowercase();
            let matches = |pattern: &HostPattern| match pattern {
                HostPattern::Exact(name) => *name == host,
                HostPattern::Below(below) => host.len() > below.len() && host.ends_with(below),
            };
            let mut found = Vec::new();
            for (pattern, path, index) in &self.0 {
                if pattern.as_ref().is_none_or(matches) {
                    found.push((path.as_str(), *index));
                    if path.is_empty() {
                        break;
                    }
                }
            }
            found
        }

        fn find(&self, host: &str, reading: &[u8]) -> Result<RouteMatch, CaseMismatch> {
            let first = self.of_host(host).into_iter().find(|(path, _)| {
                path.is_empty()
                    || reading.split_at_checked(path.len()).is_some_and(|(start, rest)| {
                        start.eq_ignore_ascii_case(path.as_bytes()) && path::ends_segment(rest)
                    })
            });
            match first {
                None => Ok(RouteMatch::None),
                Some((path, index)) if reading.starts_with(path.as_bytes()) => {
                    Ok(RouteMatch::Route(index))
                }
                Some(_) => Err(CaseMismatch),
            }
        }
    }

    fn routes() -> impl Strategy<Value = Vec<(Option<HostPattern>, String)>> {
        let host = proptest::option::of("(\\*\\.)?(a\\.){0,2}(b|b\\.b|\\.b)");
        let path = "/|(/(a|b|A)){1,3}/?";
        proptest::collection::vec((host, path), 0..12).prop_map(|mut routes| {
            let mut seen = std::collections::HashSet::new();
            // The configuration refuses equal routes.
            routes.retain(|(host, path)| {
                seen.insert((host.clone(), path.trim_end_matches('/').to_ascii_lowercase()))
            });
            routes
                .into_iter()
                .map(|(host, path)| (host.map(|host| HostPattern::parse(&host).unwrap()), path))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn index_agrees_with_list(
            routes in routes(),
            host in "\\.{0,2}([abA]\\.){0,3}(b|B|b\\.b|\\.b)?\\.?",
            path in "(/(a|b|A|)){0,4}|a",
        ) {
            let (list, matcher) = (List::new(&routes), Matcher::new(routes));
            let candidates = matcher.candidates(&host);
            let of_host = list.of_host(&host);
            prop_assert_eq!(candidates.count(), of_host.len());
            let root = of_host.iter().find(|(path, _)| path.is_empty()).map(|(_, index)| *index);
            prop_assert_eq!(candidates.root().map(|root| root.index), root);
            prop_assert_eq!(candidates.find(path.as_bytes()), list.find(&host, path.as_bytes()));
            prop_assert_eq!(matcher.serves(&host), !of_host.is_empty());
        }

        #[test]
        fn matches_any_input_without_panicking(host in ".{0,20}", path in ".{0,20}") {
            let _ = matcher().find(&host, &path);
        }

        #[test]
        fn fast_path_agrees_with_full_comparison(
            host in "x|a\\.shop\\.example\\.org|only\\.example\\.net",
            path in "/((foo|bar|FOO|Foo|x|foobar|admin|\\.a|a\\.)/){0,3}(foo|x)?",
        ) {
            prop_assume!(path::is_plain(&path));
            let matcher = matcher();
            let routes = matcher.candidates(&host);
            let of = |reading: &[u8]| routes.find(reading);
            let expected = of(path.as_bytes()).ok().filter(|found| {
                readings::compare(path.as_bytes(), |reading| of(reading) == Ok(*found))
                    == Comparison::All
            });
            let expected = expected.unwrap_or_else(|| routes.ambiguous());
            prop_assert_eq!(matcher.find(&host, &path), expected);
        }

        #[test]
        fn every_reading_matches_the_same_route(path in "/[/.;%2efFoO\\\\x]{0,24}") {
            let matcher = matcher();
            if let RouteMatch::Route(index) = matcher.find("x", &path) {
                let path = path.as_bytes();
                let routes = matcher.candidates("x");
                let covered =
                    |reading: &[u8]| routes.find(reading) == Ok(RouteMatch::Route(index));
                prop_assert_eq!(readings::compare(path, covered), Comparison::All);
            }
        }
    }
}
