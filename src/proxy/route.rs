//! Which route a request takes: first by host, then by the longest path.

use std::borrow::Cow;
use std::cmp::Reverse;

use super::{host, path};

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

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// To the route of this index.
    Route(usize),
    /// To none: 404.
    None,
    /// One server would read the path as one route's, another as another's: 400. Else a visitor could
    /// pick a route by its weaker rules and still have the upstream serve the other's page.
    Ambiguous,
}

/// The routes, in the order in which they are tried.
///
/// Where a host has routes of its own and none fits the path, those of a wildcard and then those
/// without a host are tried.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    host: Option<HostPattern>,
    /// The path in both readings: like is compared with like.
    strict: Vec<u8>,
    loose: Vec<u8>,
    index: usize,
}

impl Matcher {
    /// From each route's host and path, in the order of their indices. Of two that are equal the
    /// first is taken.
    pub fn new(routes: impl IntoIterator<Item = (Option<HostPattern>, String)>) -> Self {
        let mut entries: Vec<Entry> = routes
            .into_iter()
            .enumerate()
            .map(|(index, (host, path))| Entry {
                host,
                strict: path::strict(&path).into_owned(),
                loose: path::loose(&path).into_owned(),
                index,
            })
            .collect();
        entries.sort_by_key(|entry| {
            (HostPattern::rank(entry.host.as_ref()), Reverse(entry.loose.len()))
        });
        Self { entries }
    }

    /// The route for a Host, with or without a port, and a target's path. `*` is below `/` alone.
    pub fn find(&self, host: &str, path: &str) -> Found {
        let host = host::name(host);
        if path == "*" {
            let root = self.first(host, |entry| path::is_under(b"/", &entry.strict));
            return root.map_or(Found::None, Found::Route);
        }
        let reading = path::strict(path);
        let strict = self.first(host, |entry| path::is_under(&reading, &entry.strict));
        let loose = match path::loose(path) {
            Cow::Borrowed(_) => strict,
            Cow::Owned(reading) => self.first(host, |entry| path::is_under(&reading, &entry.loose)),
        };
        match strict {
            _ if strict != loose => Found::Ambiguous,
            Some(index) => Found::Route(index),
            None => Found::None,
        }
    }

    fn first(&self, host: &str, is_under: impl Fn(&Entry) -> bool) -> Option<usize> {
        self.entries
            .iter()
            .find(|entry| {
                entry.host.as_ref().is_none_or(|pattern| pattern.matches(host)) && is_under(entry)
            })
            .map(|entry| entry.index)
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
            ("x", "/Foo", 0),
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
        let cafe = Matcher::new([(None, "/café".to_owned()), (None, "/a%2Fb".to_owned())]);
        assert_eq!(cafe.find("x", "/caf%C3%A9/x"), Found::Route(0));
        assert_eq!(cafe.find("x", "/a%2fb"), Found::Route(1));
        assert_eq!(cafe.find("x", "/a/b"), Found::None);
        let one = Matcher::new([(None, "/a".to_owned())]);
        assert_eq!(one.find("x", "/b"), Found::None);
        assert_eq!(one.find("x", "*"), Found::None);
    }

    #[test]
    fn a_path_that_every_server_reads_alike_goes_by_that_reading() {
        for (path, route) in [
            ("/x/../foo/y", 1),
            ("/%66oo/y", 1),
            ("/foo/%2e%2e/y", 0),
            ("/foo/a%2fb", 1),
            ("/foo//x;y", 1),
            ("/a//b", 0),
        ] {
            check("x", path, Found::Route(route));
        }
    }

    #[test]
    fn a_path_of_two_routes_is_ambiguous() {
        for path in [
            "//foo",
            "/foo%2fx",
            "/foo;x/y",
            "/x/..%2ffoo",
            "/foo/..%2fx",
            "/%2566oo",
            "/foo//../x",
        ] {
            check("x", path, Found::Ambiguous);
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
    }
}
