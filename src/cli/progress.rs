//! The progress of a command that may take long, on a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A line on standard error with the count, the rate and the remaining time. Shows nothing if standard error is not a
/// terminal.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Starts to count `items` up to `total`. Without a total, the line has no remaining time.
    pub(super) fn new(items: &'static str, total: Option<u64>) -> Self {
        let bar = match total {
            Some(total) => {
                let template = "{human_pos} of {human_len} {msg} [{bar:20}] {per_sec}, {eta} left";
                ProgressBar::new(total).with_style(style(template))
            }
            None => ProgressBar::no_length().with_style(style("{human_pos} {msg} {per_sec}")),
        };
        Self(bar.with_message(items))
    }

    /// Sets the number of items that are done.
    pub(super) fn set(&self, done: u64) {
        self.0.set_position(done);
    }

    /// Removes the line.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

/// Builds the style of a template; an invalid one would be the default style.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
