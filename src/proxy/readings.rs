//! The readings of a path: every text that a server may take it for before it looks for a page.
//!
//! Servers decode once, twice or never, resolve dot segments or keep them, merge slashes, take a
//! backslash for a slash, cut `;parameters` off, or take a leading `//name` for an authority. Such
//! steps are applied in any order and any number of times here, so that a server which is built of
//! them reads a path in one of these ways. Decoding alone is bounded: at most [`DECODINGS`] times.

use std::collections::HashSet;

use super::path::{escape, is_unreserved};

/// How often a path is decoded by the servers, frameworks and proxies behind one another that we
/// reckon with.
const DECODINGS: usize = 3;

/// Bounds the work for one path: this many readings, and this many bytes of them together. Real paths
/// have a few.
const MAX_READINGS: usize = 128;
const MAX_BYTES: usize = 128 * 1024;

/// What became of comparing the readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// All of them passed.
    All,
    /// One of them did not.
    Differs,
    /// A fourth decoding would give another one, or there are too many to compare.
    Unbounded,
}

/// A step of a server; `None` if it changes nothing.
type Step = fn(&[u8]) -> Option<Vec<u8>>;

/// The steps that do not count as a decoding.
const STEPS: [Step; 9] = [
    |path| replaced(path, b'\\', b'/'),
    merge_slashes,
    cut_parameters,
    truncate,
    |path| resolve_dots(path, false),
    |path| resolve_dots(path, true),
    |path| drop_authority(path, false),
    |path| drop_authority(path, true),
    |path| decode(path, is_unreserved),
];

/// Some servers keep an encoded slash encoded.
const DECODERS: [Step; 2] =
    [|path| decode(path, |_| true), |path| decode(path, |byte| !matches!(byte, b'/' | b'\\'))];

/// Gives every reading of a path to `passes`, the path itself first, until one does not pass.
pub(super) fn compare(path: &[u8], mut passes: impl FnMut(&[u8]) -> bool) -> Compared {
    if is_deeper(path) {
        return Compared::Unbounded;
    }
    let mut seen = Seen::default();
    let mut level = Vec::from_iter(seen.take(path.to_vec()));
    for _ in 0..=DECODINGS {
        let mut next = 0;
        while let Some(reading) = level.get(next) {
            if !passes(reading) {
                return Compared::Differs;
            }
            let further: Vec<_> = STEPS
                .iter()
                .filter_map(|step| step(reading))
                .filter_map(|r| seen.take(r))
                .collect();
            level.extend(further);
            next += 1;
            if seen.is_full() {
                return Compared::Unbounded;
            }
        }
        let decoded = level.iter().flat_map(|reading| DECODERS.map(|decoder| decoder(reading)));
        level = decoded.flatten().filter_map(|reading| seen.take(reading)).collect();
        if seen.is_full() {
            return Compared::Unbounded;
        }
    }
    Compared::All
}

/// The readings so far.
#[derive(Default)]
struct Seen {
    readings: HashSet<Vec<u8>>,
    bytes: usize,
}

impl Seen {
    /// Returns a reading that is new.
    fn take(&mut self, reading: Vec<u8>) -> Option<Vec<u8>> {
        if self.is_full() || !self.readings.insert(reading.clone()) {
            return None;
        }
        self.bytes += reading.len();
        Some(reading)
    }

    fn is_full(&self) -> bool {
        self.readings.len() >= MAX_READINGS || self.bytes >= MAX_BYTES
    }
}

fn is_deeper(path: &[u8]) -> bool {
    let all = |path: &[u8]| decode(path, |_| true);
    let mut decoded = all(path);
    for _ in 0..DECODINGS {
        decoded = decoded.as_deref().and_then(all);
    }
    decoded.is_some()
}

/// Decodes once, from left to right, the escapes of bytes that are `wanted`.
fn decode(path: &[u8], wanted: impl Fn(u8) -> bool) -> Option<Vec<u8>> {
    if !path.contains(&b'%') {
        return None;
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [byte, tail @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, tail @ ..] => escape(*high, *low).map(|byte| (byte, tail)),
            _ => None,
        };
        let (byte, tail) = escaped.filter(|(byte, _)| wanted(*byte)).unwrap_or((*byte, tail));
        decoded.push(byte);
        rest = tail;
    }
    (decoded.len() != path.len()).then_some(decoded)
}

fn replaced(path: &[u8], from: u8, to: u8) -> Option<Vec<u8>> {
    let replace = |byte: &u8| if *byte == from { to } else { *byte };
    path.contains(&from).then(|| path.iter().map(replace).collect())
}

fn merge_slashes(path: &[u8]) -> Option<Vec<u8>> {
    let mut merged = path.to_vec();
    merged.dedup_by(|one, other| *one == b'/' && *other == b'/');
    (merged.len() != path.len()).then_some(merged)
}

/// Of each segment what stands before a `;`.
fn cut_parameters(path: &[u8]) -> Option<Vec<u8>> {
    let mut in_parameters = false;
    let kept = path.iter().copied().filter(|byte| {
        in_parameters = *byte != b'/' && (in_parameters || *byte == b';');
        !in_parameters
    });
    path.contains(&b';').then(|| kept.collect())
}

/// To a parser after a decoding, a query, a fragment or the end of a C string begins here.
fn truncate(path: &[u8]) -> Option<Vec<u8>> {
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#' | 0))?;
    path.get(..end).map(<[u8]>::to_vec)
}

/// RFC 3986 5.2.4. Browsers and Node take `%2e` for a dot here, and decode nothing else
/// (URL Standard 4.1, "single-dot URL path segment").
fn resolve_dots(path: &[u8], also_encoded: bool) -> Option<Vec<u8>> {
    let mut changed = false;
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in path.split(|byte| *byte == b'/').skip(1) {
        match dots(segment, also_encoded) {
            Some(1) => changed = true,
            Some(2) => {
                changed = true;
                kept.pop();
            }
            _ => kept.push(segment),
        }
    }
    changed.then(|| [b"/", kept.join(&b'/').as_slice()].concat())
}

/// How many dots a segment is made of; `None` if of anything else.
fn dots(segment: &[u8], also_encoded: bool) -> Option<usize> {
    let mut count = 0;
    let mut rest = segment;
    loop {
        rest = match rest {
            [] => return Some(count),
            [b'.', tail @ ..] | [b'%', b'2', b'e' | b'E', tail @ ..]
                if rest.starts_with(b".") || also_encoded =>
            {
                tail
            }
            _ => return None,
        };
        count += 1;
    }
}

/// Without a leading `//authority` or `/\authority` (RFC 3986 3.2). Browsers and Node take any number
/// of slashes before it (URL Standard 4.4, "special authority ignore slashes state").
fn drop_authority(path: &[u8], any_slashes: bool) -> Option<Vec<u8>> {
    let [b'/', rest @ ..] = path else { return None };
    let is_slash = |byte: &u8| matches!(byte, b'/' | b'\\');
    let rest = match rest {
        [first, rest @ ..] if is_slash(first) => rest,
        _ => return None,
    };
    let skipped = rest.iter().take_while(|byte| any_slashes && is_slash(byte)).count();
    let authority = rest.get(skipped..)?;
    let end = authority
        .iter()
        .position(|byte| *byte == b'/' || (any_slashes && *byte == b'\\'))
        .unwrap_or(authority.len());
    match authority.get(end..)? {
        [] => Some(b"/".to_vec()),
        path => Some(path.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(path: &str) -> Vec<String> {
        let mut readings = Vec::new();
        let compared = compare(path.as_bytes(), |reading| {
            readings.push(String::from_utf8_lossy(reading).into_owned());
            true
        });
        assert_eq!(compared, Compared::All, "{path}");
        readings
    }

    #[test]
    fn each_step_gives_its_reading() {
        for (path, reading) in [
            ("/%61dmin", "/admin"),
            ("/%2561dmin", "/admin"),
            ("/%252561dmin", "/admin"),
            ("/%%35c", "/\\"),
            ("/a%2f%2561", "/a/a"),
            ("/x/%2e%2E/a%2fb", "/a%2fb"),
            ("//x/admin", "/admin"),
            ("//x/admin", "//x/admin"),
            ("/\\x/admin", "/admin"),
            ("///x/admin", "/x/admin"),
            ("/\\/x\\admin", "/admin"),
            ("//x", "/"),
            ("/a//b", "/a/b"),
            ("/a\\b", "/a/b"),
            ("/a/../b", "/a/../b"),
            ("/a/../b", "/b"),
            ("/a/..;x/b", "/b"),
            ("/a;x/b", "/a/b"),
            ("/a%3fx/../b", "/a"),
            ("/a%00b", "/a"),
            // The dots are resolved before and after the slash is decoded, as in Node.
            ("/a/b%2fc/../..%2fd", "/d"),
        ] {
            assert!(readings(path).iter().any(|r| r == reading), "{path}: {:?}", readings(path));
        }
    }

    #[test]
    fn a_plain_path_has_one_reading() {
        for path in ["/", "/a/b.c/d_e", "/.well-known/x", "/a/", "/%zz", "/100%"] {
            assert_eq!(readings(path), [path]);
        }
    }

    #[test]
    fn the_work_is_bounded() {
        let deep = "/%2525252f";
        let many = "/;%252e%5c/..//%2f%3f".repeat(100);
        let long = format!("/{}%20", "a/../".repeat(50_000));
        for path in [deep, &many, &long] {
            assert_eq!(compare(path.as_bytes(), |_| true), Compared::Unbounded);
        }
        let long = format!("/a%20{}", "b".repeat(30_000));
        assert_eq!(compare(long.as_bytes(), |_| true), Compared::All);
    }

    #[test]
    fn comparing_stops_at_the_first_that_differs() {
        let mut calls = 0;
        let compared = compare(b"//a/../b;c", |_| {
            calls += 1;
            calls < 2
        });
        assert_eq!((compared, calls), (Compared::Differs, 2));
    }
}
