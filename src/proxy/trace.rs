//! `traceparent` (W3C Trace Context, level 1): a request's place in a trace, passed on as it came, or begun here,
//! so that the logs of all who work on it can name it alike.

use std::fmt;

use http::header::{HeaderMap, HeaderName, HeaderValue, MaxSizeReached};

use crate::random;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace that a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trace([u8; 16]);

impl Trace {
    /// That of the head; where it names none, or not as it has to be done, a new one is written into it. What
    /// was said of a trace that nobody can name goes (section 3.2.4 there).
    pub(super) fn of(headers: &mut HeaderMap) -> Result<Self, MaxSizeReached> {
        let mut lines = headers.get_all(&TRACEPARENT).iter();
        let found = match (lines.next(), lines.next()) {
            (Some(line), None) => Self::parse(line.as_bytes()),
            _ => None,
        };
        if let Some(trace) = found {
            return Ok(trace);
        }
        let trace = Self(random::bytes());
        // Not sampled: nobody here has recorded anything.
        let parent = u64::from_be_bytes(random::bytes()) | 1;
        let line = format!("00-{trace}-{parent:016x}-00");
        headers.remove(&TRACESTATE);
        if let Ok(line) = HeaderValue::try_from(line) {
            headers.try_insert(TRACEPARENT, line)?;
        }
        Ok(trace)
    }

    /// Version, trace, parent and flags, in lower case; later versions may say more (section 3.2.2 there).
    fn parse(line: &[u8]) -> Option<Self> {
        let (known, rest) = line.split_at_checked(55)?;
        let text = std::str::from_utf8(known).ok()?;
        let mut parts = text.split('-');
        let mut part = |length| parts.next().filter(|part| part.len() == length && is_hex(part));
        let (version, trace, parent, _flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let ends = if version == "00" { rest.is_empty() } else { matches!(rest, [] | [b'-', ..]) };
        let is_zero = |part: &str| part.bytes().all(|digit| digit == b'0');
        if !ends || version == "ff" || is_zero(trace) || is_zero(parent) {
            return None;
        }
        u128::from_str_radix(trace, 16).ok().map(|number| Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

fn is_hex(part: &str) -> bool {
    part.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn head(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(TRACEPARENT, line.parse().unwrap());
        }
        headers.insert(TRACESTATE, HeaderValue::from_static("a=b"));
        headers
    }

    #[test]
    fn what_names_a_trace_goes_on_as_it_came() {
        for line in
            [VALID, &VALID.replacen("00", "cc", 1), &(VALID.replacen("00", "cc", 1) + "-more")]
        {
            let mut headers = head(&[line]);
            let trace = Trace::of(&mut headers).unwrap();
            assert_eq!(trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
            assert_eq!((&headers[TRACEPARENT], headers.len()), (&line.parse().unwrap(), 2));
        }
    }

    #[test]
    fn what_does_not_is_replaced() {
        for lines in [
            vec![],
            vec![VALID, VALID],
            vec![""],
            vec!["00"],
            vec![&VALID.to_uppercase()],
            vec![&(VALID.to_owned() + "-more")],
            vec![&VALID.replacen("00", "ff", 1)],
            vec![&VALID.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32))],
            vec![&VALID.replace("b7ad6b7169203331", &"0".repeat(16))],
            vec![&VALID.replace('-', "_")],
        ] {
            let mut headers = head(&lines);
            let trace = Trace::of(&mut headers).unwrap();
            let line = headers[TRACEPARENT].clone();
            assert_eq!(headers.len(), 1, "its state goes: {lines:?}");
            assert_eq!(Trace::parse(line.as_bytes()), Some(trace));
            assert!(line.to_str().unwrap().ends_with("-00"));
            let another = Trace::of(&mut head(&lines)).unwrap();
            assert_ne!(trace, another);
        }
    }
}
