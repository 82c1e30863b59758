//! Priorities of lines for the journal of systemd, which reads them at the beginning of a line (`sd-daemon(3)`).

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What reads standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receiver {
    /// A terminal, a file, or a program that takes lines as they are.
    File,
    /// The journal.
    Journal,
}

impl Receiver {
    /// Returns the prefix of lines of a level. The journal takes a line without one for `info`.
    fn prefix(self, level: Level) -> &'static str {
        match (self, level) {
            (Self::File, _) | (Self::Journal, Level::INFO) => "",
            (Self::Journal, Level::ERROR) => "<3>",
            (Self::Journal, Level::WARN) => "<4>",
            (Self::Journal, _) => "<7>",
        }
    }
}

/// Returns a text of several lines for `receiver`, each of which is an error.
pub(crate) fn as_error(text: &str, receiver: Receiver) -> String {
    let prefix = receiver.prefix(Level::ERROR);
    text.lines().flat_map(|line| [prefix, line, "\n"]).collect()
}

/// A format of lines, each with its priority.
pub(super) struct Prioritized<F> {
    pub(super) format: F,
    pub(super) receiver: Receiver,
}

impl<S, N, F> FormatEvent<S, N> for Prioritized<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(self.receiver.prefix(*event.metadata().level()))?;
        self.format.format_event(context, writer, event)
    }
}
