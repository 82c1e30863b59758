//! `traceparent` (W3C Trace Context, level 1): a request's place in a trace, passed on as it came, or begun here,
//! so that the logs of all who work on it can name it alike. Where spans are recorded, ours stands between its
//! sender's and the upstream's.

use std::fmt;

use http::header::{HeaderMap, HeaderName, HeaderValue, MaxSizeReached};

use super::Tracer;
use crate::random;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The bit of `traceparent` that says that its sender has recorded (section 3.2.2.5 there).
const SAMPLED: u8 = 1;

/// The trace that a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    id: u128,
    recorded: Option<Recorded>,
}

/// Where a span of ours stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub(super) trace: u128,
    pub(super) span: u64,
    /// The span that it is a part of.
    pub(super) parent: Option<u64>,
}

/// What a `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    trace: u128,
    parent: u64,
    flags: u8,
}

impl Trace {
    /// That of the head; where it names none, or not as it has to be, a new one is written into it. What
    /// was said of a trace that nobody can name goes (section 3.2.4 there).
    ///
    /// With a tracer the head then names our span; whether that is recorded is what its sender decided, where
    /// that is `believed`, and else what the tracer decides.
    pub fn of(
        headers: &mut HeaderMap,
        tracer: Option<&Tracer>,
        believed: bool,
    ) -> Result<Self, MaxSizeReached> {
        let mut lines = headers.get_all(&TRACEPARENT).iter();
        let said = match (lines.next(), lines.next()) {
            (Some(line), None) => Said::parse(line.as_bytes()),
            _ => None,
        };
        if let (Some(said), None) = (said, tracer) {
            return Ok(Self { id: said.trace, recorded: None });
        }
        if said.is_none() {
            headers.remove(&TRACESTATE);
        }
        let trace = said.map_or_else(|| u128::from_be_bytes(random::bytes()), |said| said.trace);
        let span = u64::from_be_bytes(random::bytes()) | 1;
        let samples = |tracer: &Tracer| match said {
            Some(said) if believed => said.flags & SAMPLED != 0,
            _ => tracer.samples(trace),
        };
        let recorded = tracer.is_some_and(samples).then_some(Recorded {
            trace,
            span,
            parent: said.map(|said| said.parent),
        });
        let flags = u8::from(recorded.is_some());
        if let Ok(line) = HeaderValue::try_from(format!("00-{trace:032x}-{span:016x}-{flags:02x}"))
        {
            headers.try_insert(TRACEPARENT, line)?;
        }
        Ok(Self { id: trace, recorded })
    }

    /// Our span of it, where one is recorded.
    pub fn recorded(&self) -> Option<Recorded> {
        self.recorded
    }
}

impl Said {
    /// Version, trace, parent and flags, in lower case; later versions may say more (section 3.2.2 there).
    fn parse(line: &[u8]) -> Option<Self> {
        let (known, rest) = line.split_at_checked(55)?;
        let text = std::str::from_utf8(known).ok()?;
        let mut parts = text.split('-');
        let mut part = |length| parts.next().filter(|part| part.len() == length && is_hex(part));
        let (version, trace, parent, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let ends = if version == "00" { rest.is_empty() } else { matches!(rest, [] | [b'-', ..]) };
        let said = Self {
            trace: u128::from_str_radix(trace, 16).ok()?,
            parent: u64::from_str_radix(parent, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (ends && version != "ff" && said.trace != 0 && said.parent != 0).then_some(said)
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.id)
    }
}

fn is_hex(part: &str) -> bool {
    part.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::TlsConfig;
    use crate::metrics::Metrics;
    use crate::telemetry::Config;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn head(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(TRACEPARENT, line.parse().unwrap());
        }
        headers.insert(TRACESTATE, HeaderValue::from_static("a=b"));
        headers
    }

    fn tracer(sample_ratio: f64) -> Tracer {
        let config = Config {
            collector: "http://127.0.0.1:4318".parse().unwrap(),
            tls: TlsConfig::default(),
            headers: Vec::new(),
            service_name: "cloakroom".to_owned(),
            sample_ratio,
        };
        Tracer::new(config, Metrics::new()).unwrap()
    }

    #[test]
    fn what_names_a_trace_goes_on_as_it_came() {
        for line in
            [VALID, &VALID.replacen("00", "cc", 1), &(VALID.replacen("00", "cc", 1) + "-more")]
        {
            let mut headers = head(&[line]);
            let trace = Trace::of(&mut headers, None, true).unwrap();
            assert_eq!(trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
            assert_eq!((&headers[TRACEPARENT], headers.len()), (&line.parse().unwrap(), 2));
            assert_eq!(trace.recorded(), None);
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
            for (tracer, flags) in [(None, 0), (Some(tracer(1.0)), SAMPLED)] {
                let mut headers = head(&lines);
                let trace = Trace::of(&mut headers, tracer.as_ref(), true).unwrap();
                let said = Said::parse(headers[TRACEPARENT].as_bytes()).unwrap();
                assert_eq!(headers.len(), 1, "its state goes: {lines:?}");
                assert_eq!((said.trace, said.flags), (trace.id, flags));
                let ours = Recorded { trace: trace.id, span: said.parent, parent: None };
                assert_eq!(trace.recorded(), (flags == SAMPLED).then_some(ours));
                let another = Trace::of(&mut head(&lines), None, true).unwrap();
                assert_ne!(trace.id, another.id);
            }
        }
    }

    #[test]
    fn a_recorded_span_is_between_its_senders_and_the_upstreams() {
        let mut headers = head(&[VALID]);
        let trace = Trace::of(&mut headers, Some(&tracer(0.0)), true).unwrap();
        let recorded = trace.recorded().expect("its sender decided so");
        assert_eq!(trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((recorded.trace, recorded.parent), (trace.id, Some(0xb7ad_6b71_6920_3331)));
        let said = Said::parse(headers[TRACEPARENT].as_bytes()).unwrap();
        assert_eq!(said, Said { trace: trace.id, parent: recorded.span, flags: SAMPLED });
        assert_eq!(headers[TRACESTATE], "a=b");
    }

    #[test]
    fn whether_one_is_recorded_strangers_do_not_decide() {
        let not_sampled = VALID.replace("-01", "-00");
        for (line, ratio, believed, recorded) in [
            (VALID, 0.0, true, true),
            (VALID, 0.0, false, false),
            (&not_sampled, 1.0, true, false),
            (&not_sampled, 1.0, false, true),
        ] {
            let mut headers = head(&[line]);
            let trace = Trace::of(&mut headers, Some(&tracer(ratio)), believed).unwrap();
            assert_eq!(trace.recorded().is_some(), recorded, "{line} {ratio} {believed}");
            let said = Said::parse(headers[TRACEPARENT].as_bytes()).unwrap();
            assert_eq!(said.flags, u8::from(recorded));
        }
    }

    #[test]
    fn of_random_traces_as_many_are_recorded_as_wanted() {
        let (half, none, all) = (tracer(0.5), tracer(0.0), tracer(1.0));
        let ids = (0..10_000u32).map(|_| u128::from_be_bytes(random::bytes()));
        let recorded = ids
            .filter(|id| {
                assert!(all.samples(*id) && !none.samples(*id));
                half.samples(*id)
            })
            .count();
        // Six standard deviations.
        assert!((4_700..=5_300).contains(&recorded), "{recorded} of 10,000");
    }
}
