//! Which route a request takes: first by host, then by the longest path.

use std::cmp::Reverse;
use std::fmt;

use super::path;
use super::readings::{self, Compared};
use crate::net::host;

/// The hosts of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This host.
    Exact(String),
    /// Every host below this one, at any depth; kept with the dot before it.
    Below(String),
}

impl HostPattern {
    /// Reads `shop.example.org` or `*.example.org`. `None` for anything else; a port is not part of it.
    pub fn parse(text: &str) -> Option<Self> {
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

    /// Exact before wildcard, longer wildcards before shorter.
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

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// To the route of this index.
    Route(usize),
    /// To none: 404.
    None,
    /// Servers may read the path as one of different routes: 400. Otherwise a visitor could pick a
    /// route by its weaker rules and still have the upstream serve another route's page.
    Ambiguous,
}

/// The routes, in the order in which they are tried.
///
/// If a host has routes of its own and none fits the path, those of a wildcard and then those without
/// a host are tried.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    host: Option<HostPattern>,
    /// Without a slash at its end; so that of the root is empty.
    path: Vec<u8>,
    index: usize,
}

impl Entry {
    fn is_root(&self) -> bool {
        self.path.is_empty()
    }

    /// Whether a path begins with its segments, ignoring ASCII case.
    fn covers(&self, path: &[u8]) -> bool {
        self.is_root()
            || path.split_at_checked(self.path.len()).is_some_and(|(start, rest)| {
                start.eq_ignore_ascii_case(&self.path) && path::ends_segment(rest)
            })
    }
}

/// The letter case decides which route a path belongs to, and some servers ignore it.
#[derive(Debug, PartialEq, Eq)]
struct CaseDecides;

impl Matcher {
    /// Returns whether any route takes requests for this host, given with or without a port.
    pub fn serves(&self, host: &str) -> bool {
        let host = host::name(host);
        self.entries.iter().any(|entry| entry.host.as_ref().is_none_or(|ours| ours.matches(host)))
    }

    /// Creates a matcher from each route's host and path, in the order of their indices. A path is
    /// plain, as `config` requires; of two routes that are equal the first is taken.
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

    /// Finds the route for a Host, with or without a port, and a target's path. `*` is below `/` alone.
    ///
    /// Every reading of the path, with and without regard to ASCII case, must lead to the same route. If
    /// only one route can take the host's requests, there is nothing that a reading could bypass.
    pub fn find(&self, host: &str, path: &str) -> Found {
        let host = host::name(host);
        if path == "*" {
            let root = self.of_host(host).find(|entry| entry.is_root());
            return root.map_or(Found::None, |root| Found::Route(root.index));
        }
        if path::is_plain(path) {
            return match first(self.of_host(host), path.as_bytes()) {
                Ok(found) => found,
                Err(CaseDecides) => self.undecided(host),
            };
        }
        let entries: Vec<&Entry> = self.of_host(host).collect();
        if let [only] = entries.as_slice()
            && only.is_root()
        {
            return Found::Route(only.index);
        }
        let of = |reading: &[u8]| first(entries.iter().copied(), reading);
        let Ok(found) = of(path.as_bytes()) else { return self.undecided(host) };
        match readings::compare(path.as_bytes(), |reading| of(reading) == Ok(found)) {
            Compared::All => found,
            Compared::Unbounded if entries.len() < 2 => found,
            Compared::Differs | Compared::Unbounded => self.undecided(host),
        }
    }

    /// The entries that can take a request for a host, in their order: none comes after a root.
    fn of_host<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Entry> {
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

    /// Between a route and none at all there is no other whose rules could be bypassed.
    fn undecided(&self, host: &str) -> Found {
        if self.of_host(host).nth(1).is_some() { Found::Ambiguous } else { Found::None }
    }
}

/// The first entry that covers a reading, which it also does with regard to case.
fn first<'a>(
    mut entries: impl Iterator<Item = &'a Entry>,
    reading: &[u8],
) -> Result<Found, CaseDecides> {
    match entries.find(|entry| entry.covers(reading)) {
        None => Ok(Found::None),
        Some(entry) if reading.starts_with(&entry.path) => Ok(Found::Route(entry.index)),
        Some(_) => Err(CaseDecides),
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

    fn check(host: &str, path: &str, expected: Found) {
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
            check(host, "/", Found::Route(route));
        }
    }

    #[test]
    fn then_the_longest_path_in_whole_segments() {
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
            check(host, path, Found::Route(route));
        }
        let one = Matcher::new([(None, "/a".to_owned())]);
        assert_eq!(one.find("x", "/b"), Found::None);
        assert_eq!(one.find("x", "*"), Found::None);
    }

    #[test]
    fn a_path_that_every_server_reads_alike_has_a_route() {
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
            check("x", path, Found::Route(route));
        }
    }

    #[test]
    fn a_path_of_two_routes_is_ambiguous() {
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
            // Deeper than anybody decodes.
            "/foo/%25252541",
        ] {
            check("x", path, Found::Ambiguous);
        }
    }

    #[test]
    fn with_one_route_nothing_is_refused() {
        let strange =
            ["/A", "//x/a", "/%2525252525", "/..%2f..", "/;/\\", "/a/../b", &"/%2f..;".repeat(900)];
        for path in strange {
            check("b.example.org", path, Found::Route(2));
            let one = Matcher::new([(None, "/".to_owned())]);
            assert_eq!(one.find("x", path), Found::Route(0), "{path}");
        }
        // Below a path of its own it is that route or none.
        let one = Matcher::new([(None, "/a".to_owned())]);
        for (path, found) in [
            ("/a/%2525252525", Found::Route(0)),
            ("/a/../a/b", Found::Route(0)),
            ("/a;x/a", Found::None),
            ("/A", Found::None),
            ("/a/b%2f..%2fc", Found::Route(0)),
        ] {
            assert_eq!(one.find("x", path), found, "{path}");
        }
    }

    #[test]
    fn patterns_are_hosts_or_a_star_and_a_host() {
        assert_eq!(HostPattern::parse("A.b."), Some(HostPattern::Exact("a.b".to_owned())));
        assert_eq!(HostPattern::parse("*.B"), Some(HostPattern::Below(".b".to_owned())));
        for bad in ["", "*", "*.", "*b", "a.*", "a.*.b", "*.*.b", "a:80", "a/b", "*.a b", "."] {
            assert_eq!(HostPattern::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_request_finds_something(host in ".{0,20}", path in ".{0,20}") {
            let _ = matcher().find(&host, &path);
        }

        #[test]
        fn the_fast_path_finds_what_the_slow_one_does(
            host in "x|a\\.shop\\.example\\.org|only\\.example\\.net",
            path in "/((foo|bar|FOO|Foo|x|foobar|admin|\\.a|a\\.)/){0,3}(foo|x)?",
        ) {
            prop_assume!(path::is_plain(&path));
            let matcher = matcher();
            let entries: Vec<&Entry> = matcher.of_host(&host).collect();
            let of = |reading: &[u8]| first(entries.iter().copied(), reading);
            let expected = of(path.as_bytes()).ok().filter(|found| {
                readings::compare(path.as_bytes(), |reading| of(reading) == Ok(*found))
                    == Compared::All
            });
            let expected = expected.unwrap_or_else(|| matcher.undecided(&host));
            prop_assert_eq!(matcher.find(&host, &path), expected);
        }

        #[test]
        fn every_reading_of_a_path_has_its_route(path in "/[/.;%2efFoO\\\\x]{0,24}") {
            let matcher = matcher();
            if let Found::Route(index) = matcher.find("x", &path) {
                let path = path.as_bytes();
                let covered = |reading: &[u8]| {
                    first(matcher.of_host("x"), reading) == Ok(Found::Route(index))
                };
                prop_assert_eq!(readings::compare(path, covered), Compared::All);
            }
        }
    }
}
