//! Lines of the access log, one per request, and of the calls of the session API.
//!
//! They look like the lines of events, but are not events: to format one by `tracing` would be a seventh of the work for
//! its request.

use std::fmt;
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use tracing_subscriber::fmt::MakeWriter;

use super::filter::SWITCHES;
use super::{ACCESS, API, Format, time};

/// Where lines go; empty in a process without a log.
static LOG: OnceLock<LineLog> = OnceLock::new();

struct LineLog {
    format: Format,
    write: WriteLine,
}

/// Writes a whole line.
type WriteLine = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Sets where lines go. The first call counts.
pub(super) fn open<W>(format: Format, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    LOG.get_or_init(|| {
        // Lines that cannot be written are counted by the writer.
        let write = move |line: &[u8]| drop(writer.make_writer().write_all(line));
        LineLog { format, write: Box::new(write) }
    });
}

/// Writes a line with the fields that `fields` adds, unless the access log is off.
pub(crate) fn access(fields: impl FnOnce(&mut Line)) {
    if SWITCHES.access.load(Ordering::Relaxed) {
        write(ACCESS, fields);
    }
}

/// Returns whether the calls of the session API are logged.
pub(crate) fn logs_api() -> bool {
    SWITCHES.api.load(Ordering::Relaxed)
}

/// Writes the line of a call of the session API, with the fields that `fields` adds.
pub(crate) fn api(fields: impl FnOnce(&mut Line)) {
    write(API, fields);
}

fn write(target: &'static str, fields: impl FnOnce(&mut Line)) {
    let Some(log) = LOG.get() else { return };
    let mut line = Line::new(log.format, target);
    fields(&mut line);
    (log.write)(&line.finish());
}

/// Bytes that most lines fit into.
const LINE_BYTES: usize = 768;

/// A line that is being written. Its methods are named after the macros' forms of fields.
pub(crate) struct Line {
    format: Format,
    target: &'static str,
    bytes: Vec<u8>,
}

impl Line {
    fn new(format: Format, target: &'static str) -> Self {
        let mut bytes = Vec::with_capacity(LINE_BYTES);
        match format {
            Format::Text => {
                time::push(&mut bytes);
                bytes.extend_from_slice(b"  INFO ");
                bytes.extend_from_slice(target.as_bytes());
                bytes.push(b':');
            }
            Format::Json => {
                bytes.extend_from_slice(b"{\"timestamp\":\"");
                time::push(&mut bytes);
                bytes.extend_from_slice(b"\",\"level\":\"INFO\"");
            }
        }
        Self { format, target, bytes }
    }

    fn finish(mut self) -> Vec<u8> {
        if self.format == Format::Json {
            self.bytes.extend_from_slice(b",\"target\":\"");
            self.bytes.extend_from_slice(self.target.as_bytes());
            self.bytes.extend_from_slice(b"\"}");
        }
        self.bytes.push(b'\n');
        self.bytes
    }

    /// Adds a number.
    pub(crate) fn number(&mut self, name: &'static str, value: u64) {
        self.name(name);
        self.bytes.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Adds a value that is displayed: `%value`.
    pub(crate) fn display(&mut self, name: &'static str, value: impl fmt::Display) {
        self.name(name);
        match self.format {
            Format::Text => self.push(format_args!("{value}")),
            Format::Json => self.push_json(format_args!("{value}")),
        }
    }

    /// Adds the debug form of a text: `?value`.
    pub(crate) fn debug(&mut self, name: &'static str, value: &str) {
        self.name(name);
        match self.format {
            Format::Text => self.push_quoted(value),
            Format::Json => self.push_json(format_args!("{value:?}")),
        }
    }

    /// Adds a text: `value`.
    pub(crate) fn text(&mut self, name: &'static str, value: &str) {
        self.name(name);
        match self.format {
            Format::Text => self.push_quoted(value),
            Format::Json => self.push_json(format_args!("{value}")),
        }
    }

    fn name(&mut self, name: &'static str) {
        let (before, after): (&[u8], &[u8]) = match self.format {
            Format::Text => (b" ", b"="),
            Format::Json => (b",\"", b"\":"),
        };
        self.bytes.extend_from_slice(before);
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(after);
    }

    fn push_quoted(&mut self, value: &str) {
        let is_plain = |byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        if value.bytes().all(is_plain) {
            self.bytes.push(b'"');
            self.bytes.extend_from_slice(value.as_bytes());
            self.bytes.push(b'"');
        } else {
            self.push(format_args!("{value:?}"));
        }
    }

    fn push(&mut self, value: fmt::Arguments<'_>) {
        // `write_str` does not fail.
        let _ = fmt::Write::write_fmt(self, value);
    }

    fn push_json(&mut self, value: fmt::Arguments<'_>) {
        // A vector takes all, and text is valid JSON.
        let _ = serde_json::to_writer(&mut self.bytes, &value);
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tracing::info;

    use super::super::Config;
    use super::super::tests::subscriber_with;
    use super::*;

    /// Returns the line without its time.
    fn timeless(line: &str) -> String {
        let (before, rest) = line.split_at(line.find("20").unwrap());
        let rest = rest.get("2026-11-20T11:03:12.000000Z".len()..).unwrap();
        format!("{before}{rest}")
    }

    proptest! {
        #[test]
        fn lines_look_like_those_of_events(
            is_json: bool,
            word in "[a-z\"\\\\\n]{0,9}",
            text in any::<String>(),
            number: u64,
        ) {
            let format = if is_json { Format::Json } else { Format::Text };
            let mut line = Line::new(format, ACCESS);
            line.display("method", &word);
            line.debug("path", &text);
            line.number("status", number);
            line.text("end", &text);
            let line = String::from_utf8(line.finish()).unwrap();

            let written = Arc::new(Mutex::new(Vec::new()));
            let writer = Arc::clone(&written);
            let subscriber = subscriber_with(Config { format, ..Config::default() }, move || Shared(writer.clone()));
            tracing::subscriber::with_default(subscriber, || {
                info!(target: ACCESS, method = %word, path = ?text, status = number, end = text);
            });
            let event = String::from_utf8(written.lock().unwrap().clone()).unwrap();
            prop_assert_eq!(timeless(&line), timeless(&event));
        }
    }

    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
