//! Trace context (W3C Trace Context, level 1): the `traceparent` of a request is propagated as it is, or a new one is
//! started, so that the logs of all services have the same trace id. If a span is recorded, it becomes the parent of the
//! upstream's.

use std::fmt;
use std::ops::Range;

use bytes::BytesMut;
use http::header::{HeaderMap, HeaderName, HeaderValue, MaxSizeReached};

use super::Tracer;
use crate::random;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The length of a `traceparent` of version 00 (section 3.2.2 there).
const LINE_BYTES: usize = 55;

/// The place of the trace's id in it.
const ID: Range<usize> = 3..35;

/// The flag that the sender may have recorded the trace (section 3.2.2.5 there).
const SAMPLED: u8 = 1;

/// The id of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
// Bytes, since a number would be aligned to sixteen: many structs have one.
pub(crate) struct TraceId([u8; 16]);

/// The trace of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    id: u128,
    /// What was received, if it was valid.
    received: Option<TraceParent>,
    /// The parent of the upstream's span, unless that is what was received.
    parent: Option<u64>,
    span: Option<SpanContext>,
}

/// The place of a span of ours in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanContext {
    pub(super) trace: u128,
    pub(super) span: u64,
    /// The span of the sender.
    pub(super) parent: Option<u64>,
}

/// A parsed `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TraceParent {
    trace: u128,
    parent: u64,
    flags: u8,
}

/// The sender of a request, whose sampling decision may be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A trusted proxy, whose decision is followed.
    Trusted,
    /// A client. Following it would let it choose how much is exported.
    Untrusted,
}

impl Trace {
    /// Reads the trace of `traceparent`, or starts one if the header is missing or invalid.
    pub(crate) fn read(headers: &HeaderMap, tracer: Option<&Tracer>, sender: Sender) -> Self {
        let mut lines = headers.get_all(&TRACEPARENT).iter();
        let received = match (lines.next(), lines.next()) {
            (Some(line), None) => TraceParent::parse(line.as_bytes()),
            _ => None,
        };
        if let (Some(parent), None) = (received, tracer) {
            return Self { id: parent.trace, received, parent: None, span: None };
        }
        let id = received.map_or_else(|| u128::from_be_bytes(random::bytes()), |it| it.trace);
        // An id of zero is invalid.
        let parent = u64::from_be_bytes(random::bytes()) | 1;
        let is_sampled = |tracer: &Tracer| match (received, sender) {
            (Some(received), Sender::Trusted) => received.flags & SAMPLED != 0,
            (Some(_), Sender::Untrusted) | (None, _) => tracer.samples(id),
        };
        let span = tracer.is_some_and(is_sampled).then_some(SpanContext {
            trace: id,
            span: parent,
            parent: received.map(|received| received.parent),
        });
        Self { id, received, parent: Some(parent), span }
    }

    /// Writes the fields for the upstream, and returns the id as text. An invalid `traceparent` loses its `tracestate`
    /// (section 3.2.4 there). The values are slices of `buffer`.
    ///
    /// With a tracer, our span becomes the parent in `traceparent`, whether or not it is sampled.
    pub(crate) fn write(
        &self,
        headers: &mut HeaderMap,
        buffer: &mut BytesMut,
    ) -> Result<Option<HeaderValue>, MaxSizeReached> {
        if self.received.is_none() {
            headers.remove(&TRACESTATE);
        }
        let parent = match (self.parent, self.received) {
            (Some(parent), _) => {
                TraceParent { trace: self.id, parent, flags: u8::from(self.span.is_some()) }
            }
            // It is there, unless the client listed it in Connection.
            (None, Some(received)) if !headers.contains_key(&TRACEPARENT) => received,
            (None, _) => {
                buffer.extend_from_slice(&hex::<16, 32>(self.id.to_be_bytes()));
                return Ok(HeaderValue::from_maybe_shared(buffer.split().freeze()).ok());
            }
        };
        parent.push_to(buffer);
        let line = buffer.split().freeze();
        let id = line.slice(ID);
        if let Ok(line) = HeaderValue::from_maybe_shared(line) {
            headers.try_insert(TRACEPARENT, line)?;
        }
        Ok(HeaderValue::from_maybe_shared(id).ok())
    }

    /// Returns the id, which the logs of all services have in common.
    pub(crate) fn id(&self) -> TraceId {
        TraceId(self.id.to_be_bytes())
    }

    /// Returns the context of our span, if one is recorded.
    pub(crate) fn span(&self) -> Option<SpanContext> {
        self.span
    }
}

impl TraceParent {
    /// Appends the line of version 00.
    fn push_to(self, line: &mut BytesMut) {
        let Self { trace, parent, flags } = self;
        line.reserve(LINE_BYTES);
        line.extend_from_slice(b"00-");
        line.extend_from_slice(&hex::<16, 32>(trace.to_be_bytes()));
        line.extend_from_slice(b"-");
        line.extend_from_slice(&hex::<8, 16>(parent.to_be_bytes()));
        line.extend_from_slice(b"-");
        line.extend_from_slice(&hex::<1, 2>([flags]));
    }

    /// Parses version, trace, parent and flags, in lower case. Later versions may append more (section 3.2.2 there).
    fn parse(line: &[u8]) -> Option<Self> {
        let (known, rest) = line.split_at_checked(LINE_BYTES)?;
        let text = std::str::from_utf8(known).ok()?;
        let mut parts = text.split('-');
        let mut part = |length| parts.next().filter(|part| part.len() == length && is_hex(part));
        let (version, trace, parent, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let ends = if version == "00" { rest.is_empty() } else { matches!(rest, [] | [b'-', ..]) };
        let parsed = Self {
            trace: u128::from_str_radix(trace, 16).ok()?,
            parent: u64::from_str_radix(parent, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (ends && version != "ff" && parsed.trace != 0 && parsed.parent != 0).then_some(parsed)
    }
}

impl TraceId {
    /// Returns the id of a new trace.
    pub(crate) fn random() -> Self {
        Self(random::bytes())
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&hex::<16, 32>(self.0)).unwrap_or_default())
    }
}

/// Returns hexadecimal digits. `write!` would take ten times as long, and every request has a line.
fn hex<const BYTES: usize, const DIGITS: usize>(bytes: [u8; BYTES]) -> [u8; DIGITS] {
    const { assert!(DIGITS == 2 * BYTES) };
    let mut digits = [0; DIGITS];
    for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [digit(byte >> 4), digit(byte & 0xf)];
    }
    digits
}

fn digit(value: u8) -> u8 {
    // Without a branch, so that many digits are written at once.
    let letter = u8::from(value > 9) * (b'a' - b'9' - 1);
    b'0' + value + letter
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

    /// Reads and writes the fields, and checks the text of the id.
    fn join(headers: &mut HeaderMap, tracer: Option<&Tracer>, sender: Sender) -> Trace {
        let trace = Trace::read(headers, tracer, sender);
        let text = trace.write(headers, &mut BytesMut::new()).unwrap().unwrap();
        assert_eq!(text, trace.id().to_string());
        trace
    }

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
    fn valid_traceparent_is_propagated_unchanged() {
        for line in
            [VALID, &VALID.replacen("00", "cc", 1), &(VALID.replacen("00", "cc", 1) + "-more")]
        {
            let mut headers = head(&[line]);
            let trace = join(&mut headers, None, Sender::Trusted);
            assert_eq!(trace.id().to_string(), "0af7651916cd43dd8448eb211c80319c");
            assert_eq!((&headers[TRACEPARENT], headers.len()), (&line.parse().unwrap(), 2));
            assert_eq!(trace.span(), None);
        }
    }

    #[test]
    fn invalid_traceparent_is_replaced() {
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
                let trace = join(&mut headers, tracer.as_ref(), Sender::Trusted);
                let sent = TraceParent::parse(headers[TRACEPARENT].as_bytes()).unwrap();
                assert_eq!(headers.len(), 1, "tracestate is removed: {lines:?}");
                assert_eq!((sent.trace, sent.flags), (trace.id, flags));
                let ours = SpanContext { trace: trace.id, span: sent.parent, parent: None };
                assert_eq!(trace.span(), (flags == SAMPLED).then_some(ours));
                let another = join(&mut head(&lines), None, Sender::Trusted);
                assert_ne!(trace.id, another.id);
            }
        }
    }

    #[test]
    fn recorded_span_is_between_sender_and_upstream() {
        let mut headers = head(&[VALID]);
        let trace = join(&mut headers, Some(&tracer(0.0)), Sender::Trusted);
        let recorded = trace.span().expect("the sender has sampled it");
        assert_eq!(trace.id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((recorded.trace, recorded.parent), (trace.id, Some(0xb7ad_6b71_6920_3331)));
        let sent = TraceParent::parse(headers[TRACEPARENT].as_bytes()).unwrap();
        assert_eq!(sent, TraceParent { trace: trace.id, parent: recorded.span, flags: SAMPLED });
        assert_eq!(headers[TRACESTATE], "a=b");
    }

    #[test]
    fn untrusted_senders_do_not_decide_sampling() {
        let not_sampled = VALID.replace("-01", "-00");
        for (line, ratio, sender, recorded) in [
            (VALID, 0.0, Sender::Trusted, true),
            (VALID, 0.0, Sender::Untrusted, false),
            (&not_sampled, 1.0, Sender::Trusted, false),
            (&not_sampled, 1.0, Sender::Untrusted, true),
        ] {
            let mut headers = head(&[line]);
            let trace = join(&mut headers, Some(&tracer(ratio)), sender);
            assert_eq!(trace.span().is_some(), recorded, "{line} {ratio} {sender:?}");
            let sent = TraceParent::parse(headers[TRACEPARENT].as_bytes()).unwrap();
            assert_eq!(sent.flags, u8::from(recorded));
        }
    }

    #[test]
    fn sample_ratio_holds_for_random_traces() {
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
