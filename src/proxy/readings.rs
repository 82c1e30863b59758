//! The readings of a path: every path that a server may derive from it before it selects a resource.
//!
//! Servers decode once, twice or never, resolve dot segments or keep them, merge slashes, read a
//! backslash as a slash, strip `;parameters`, or read a leading `//name` as an authority. These steps
//! are applied here in any order and any number of times, so that one of the readings is that of any
//! server which combines them. Only decoding is bounded, to [`DECODINGS`] times.

use std::collections::HashSet;

use super::path::{escape, is_unreserved};

/// Most times that a path is decoded by a chain of proxies, servers and frameworks.
const DECODINGS: usize = 3;

/// Bounds the work for one path, by the number of readings and by their total size. Real paths have a
/// few readings.
const MAX_READINGS: usize = 128;
const MAX_BYTES: usize = 128 * 1024;

/// The result of comparing the readings of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// All readings passed.
    All,
    /// At least one reading did not pass.
    Differs,
    /// There are too many readings to compare, or another decoding would add one.
    Unbounded,
}

/// A normalization step of some server; returns `None` if it changes nothing.
type Step = fn(&[u8]) -> Option<Vec<u8>>;

/// The steps that do not count as a decoding.
const STEPS: [Step; 9] = [
    |path| replaced(path, b'\\', b'/'),
    merge_slashes,
    strip_parameters,
    truncate,
    |path| resolve_dots(path, false),
    |path| resolve_dots(path, true),
    |path| drop_authority(path, false),
    |path| drop_authority(path, true),
    |path| decode(path, is_unreserved),
];

/// Decodings of a path. Some servers keep an encoded slash encoded.
const DECODERS: [Step; 2] =
    [|path| decode(path, |_| true), |path| decode(path, |byte| !matches!(byte, b'/' | b'\\'))];

/// Passes every reading of a path to `passes`, the path itself first, until one does not pass.
pub(super) fn compare(path: &[u8], mut passes: impl FnMut(&[u8]) -> bool) -> Comparison {
    // Checked first, because it is cheap.
    if exceeds_decodings(path) {
        return Comparison::Unbounded;
    }
    let mut seen = Seen::default();
    let mut level = Vec::from_iter(seen.take(path.to_vec()));
    // Each round starts from the readings with one more decoding. The other steps are not limited.
    for _ in 0..=DECODINGS {
        let mut next = 0;
        while let Some(reading) = level.get(next) {
            // One reading that differs is enough to reject the path.
            if !passes(reading) {
                return Comparison::Differs;
            }
            let further: Vec<_> = STEPS
                .iter()
                .filter_map(|step| step(reading))
                .filter_map(|r| seen.take(r))
                .collect();
            level.extend(further);
            next += 1;
            if seen.is_full() {
                return Comparison::Unbounded;
            }
        }
        let decoded = level.iter().flat_map(|reading| DECODERS.map(|decoder| decoder(reading)));
        level = decoded.flatten().filter_map(|reading| seen.take(reading)).collect();
        if seen.is_full() {
            return Comparison::Unbounded;
        }
    }
    Comparison::All
}

/// The distinct readings found so far.
#[derive(Default)]
struct Seen {
    readings: HashSet<Vec<u8>>,
    bytes: usize,
}

impl Seen {
    /// Returns the reading if it is new and within the bounds.
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

/// Returns whether a path is still encoded after [`DECODINGS`] decodings.
fn exceeds_decodings(path: &[u8]) -> bool {
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

/// Strips the parameters of each segment: a `;` and what follows it.
fn strip_parameters(path: &[u8]) -> Option<Vec<u8>> {
    let mut in_parameters = false;
    let kept = path.iter().copied().filter(|byte| {
        in_parameters = *byte != b'/' && (in_parameters || *byte == b';');
        !in_parameters
    });
    path.contains(&b';').then(|| kept.collect())
}

/// Truncates at a byte that, once decoded, begins a query or a fragment, or ends a C string.
fn truncate(path: &[u8]) -> Option<Vec<u8>> {
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#' | 0))?;
    path.get(..end).map(<[u8]>::to_vec)
}

/// Removes dot segments (RFC 3986, section 5.2.4). Browsers and Node read `%2e` as a dot here, and
/// decode nothing else (URL Standard, section 4.1, "single-dot URL path segment").
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

/// Counts the dots of a segment; `None` if it has other characters.
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

/// Removes a leading `//authority` or `/\authority` (RFC 3986, section 3.2). Browsers and Node allow
/// any number of slashes before it (URL Standard, section 4.4, "special authority ignore slashes
/// state").
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
        let comparison = compare(path.as_bytes(), |reading| {
            readings.push(String::from_utf8_lossy(reading).into_owned());
            true
        });
        assert_eq!(comparison, Comparison::All, "{path}");
        readings
    }

    #[test]
    fn each_step_adds_its_reading() {
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
    fn bounds_the_work_for_one_path() {
        let deep = "/%2525252f";
        let many = "/;%252e%5c/..//%2f%3f".repeat(100);
        let long = format!("/{}%20", "a/../".repeat(50_000));
        for path in [deep, &many, &long] {
            assert_eq!(compare(path.as_bytes(), |_| true), Comparison::Unbounded);
        }
        let long = format!("/a%20{}", "b".repeat(30_000));
        assert_eq!(compare(long.as_bytes(), |_| true), Comparison::All);
    }

    #[test]
    fn stops_at_the_first_difference() {
        let mut calls = 0;
        let comparison = compare(b"//a/../b;c", |_| {
            calls += 1;
            calls < 2
        });
        assert_eq!((comparison, calls), (Comparison::Differs, 2));
    }
}
