//! Route matching: by host first, then by the longest path prefix.

use std::cmp::Reverse;
use std::fmt;

use super::path;
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

    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => host.eq_ignore_ascii_case(name),
            Self::Below(below) => {
                let (host, below) = (host.as_bytes(), below.as_bytes());
                host.len() > below.len()
                    && host
                        .split_at_checked(host.len() - below.len())
                        .is_some_and(|(_, end)| end.eq_ignore_ascii_case(below))
            }
        }
    }

    /// Orders exact hosts before wildcards, and longer wildcards before shorter ones.
    fn rank(pattern: Option<&Self>) -> (u8, Reverse<usize>) {
        match pattern {
            Some(Self::Exact(_)) => (0, Reverse(0)),
            Some(Self::Below(below)) => (1, Reverse(below.len())),
            None => (2, Reverse(0)),
        }
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

/// The routes, in the order in which they are tried.
///
/// If a host has routes of its own but none matches the path, wildcard routes and then routes without
/// a host are tried.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    host: Option<HostPattern>,
    /// Without a trailing slash, so the root is empty.
    path: Vec<u8>,
    index: usize,
}

impl Entry {
    fn is_root(&self) -> bool {
        self.path.is_empty()
    }

    /// Returns whether a path begins with the entry's segments, ignoring ASCII case.
    fn matches(&self, path: &[u8]) -> bool {
        self.is_root()
            || path.split_at_checked(self.path.len()).is_some_and(|(start, rest)| {
                start.eq_ignore_ascii_case(&self.path) && path::ends_segment(rest)
            })
    }
}

/// The path matches a route only if letter case is ignored. Some servers ignore it, others do not.
#[derive(Debug, PartialEq, Eq)]
struct CaseMismatch;

impl Matcher {
    /// Returns whether any route matches this host, given with or without a port.
    pub(crate) fn serves(&self, host: &str) -> bool {
        let host = host::name(host);
        self.entries.iter().any(|entry| entry.host.as_ref().is_none_or(|ours| ours.matches(host)))
    }

    /// Creates a matcher from each route's host and path, in the order of their indices. Paths must be
    /// plain ([`crate::config`] ensures it); the first of two equal routes wins.
    pub fn new(routes: impl IntoIterator<Item = (Option<HostPattern>, String)>) -> Self {
        let mut entries: Vec<Entry> = routes
            .into_iter()
            .enumerate()
            .map(|(index, (host, path))| {
                let path = path.strip_suffix('/').unwrap_or(&path).as_bytes().to_owned();
                Entry { host, path, index }
            })
            .collect();
        entries.sort_by_key(|entry| {
            (HostPattern::rank(entry.host.as_ref()), Reverse(entry.path.len()))
        });
        Self { entries }
    }

    /// Finds the route for a Host, with or without a port, and the path of a request target. The target
    /// `*` matches root routes only.
    ///
    /// Every reading of the path must match the same route, with and without regard to ASCII case. If
    /// only one route matches the host, there are no rules that a different reading could bypass.
    pub fn find(&self, host: &str, path: &str) -> RouteMatch {
        let host = host::name(host);
        // `OPTIONS *` concerns the server as a whole (RFC 9110, section 9.3.7).
        if path == "*" {
            let root = self.matching_host(host).find(|entry| entry.is_root());
            return root.map_or(RouteMatch::None, |root| RouteMatch::Route(root.index));
        }
        // The fast path: most paths have a single reading.
        if path::is_plain(path) {
            return match first(self.matching_host(host), path.as_bytes()) {
                Ok(found) => found,
                Err(CaseMismatch) => self.ambiguous(host),
            };
        }
        let entries: Vec<&Entry> = self.matching_host(host).collect();
        // A root route without others takes any path, however it is read.
        if let [only] = entries.as_slice()
            && only.is_root()
        {
            return RouteMatch::Route(only.index);
        }
        let of = |reading: &[u8]| first(entries.iter().copied(), reading);
        let Ok(found) = of(path.as_bytes()) else { return self.ambiguous(host) };
        match readings::compare(path.as_bytes(), |reading| of(reading) == Ok(found)) {
            Comparison::All => found,
            Comparison::Unbounded if entries.len() < 2 => found,
            Comparison::Differs | Comparison::Unbounded => self.ambiguous(host),
        }
    }

    /// Returns the entries that match a host, in order. A root entry matches every path, so it is the
    /// last.
    fn matching_host<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Entry> {
        let mut has_root = false;
        self.entries
            .iter()
            .filter(move |entry| entry.host.as_ref().is_none_or(|pattern| pattern.matches(host)))
            .take_while(move |entry| {
                let is_reached = !has_root;
                has_root |= entry.is_root();
                is_reached
            })
    }

    /// Returns the result for a path whose readings differ. With a single route, no rules of another
    /// could be bypassed.
    fn ambiguous(&self, host: &str) -> RouteMatch {
        if self.matching_host(host).nth(1).is_some() {
            RouteMatch::Ambiguous
        } else {
            RouteMatch::None
        }
    }
}

/// Finds the first entry that matches a reading, and requires that it match in case too.
fn first<'a>(
    mut entries: impl Iterator<Item = &'a Entry>,
    reading: &[u8],
) -> Result<RouteMatch, CaseMismatch> {
    match entries.find(|entry| entry.matches(reading)) {
        None => Ok(RouteMatch::None),
        Some(entry) if reading.starts_with(&entry.path) => Ok(RouteMatch::Route(entry.index)),
        Some(_) => Err(CaseMismatch),
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

    proptest! {
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
            let entries: Vec<&Entry> = matcher.matching_host(&host).collect();
            let of = |reading: &[u8]| first(entries.iter().copied(), reading);
            let expected = of(path.as_bytes()).ok().filter(|found| {
                readings::compare(path.as_bytes(), |reading| of(reading) == Ok(*found))
                    == Comparison::All
            });
            let expected = expected.unwrap_or_else(|| matcher.ambiguous(&host));
            prop_assert_eq!(matcher.find(&host, &path), expected);
        }

        #[test]
        fn every_reading_matches_the_same_route(path in "/[/.;%2efFoO\\\\x]{0,24}") {
            let matcher = matcher();
            if let RouteMatch::Route(index) = matcher.find("x", &path) {
                let path = path.as_bytes();
                let covered = |reading: &[u8]| {
                    first(matcher.matching_host("x"), reading) == Ok(RouteMatch::Route(index))
                };
                prop_assert_eq!(readings::compare(path, covered), Comparison::All);
            }
        }
    }
}
