//! Values of header fields, which share one buffer.

use std::fmt::{self, Write as _};

use bytes::BytesMut;
use http::HeaderValue;

/// Values that are written one after the other. They share the buffer, so that neither a value nor a copy of
/// one costs an allocation of its own.
pub(super) struct Lines(BytesMut);

impl Lines {
    /// Creates a buffer; more than `capacity` bytes need another one.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(BytesMut::with_capacity(capacity))
    }

    /// Returns the buffer, to append to the value.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.0
    }

    /// Appends to the value, without the cost of formatting.
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Appends to the value.
    pub(super) fn push(&mut self, arguments: fmt::Arguments<'_>) {
        // This fails only if more than `usize::MAX` bytes are written.
        let _ = self.0.write_fmt(arguments);
    }

    /// Writes and takes the value that `text` displays; `None` if it is empty or not valid in a header.
    pub(super) fn of(&mut self, text: impl fmt::Display) -> Option<HeaderValue> {
        self.push(format_args!("{text}"));
        self.take()
    }

    /// Takes the value that was written; `None` if it is empty or not valid in a header.
    pub(super) fn take(&mut self) -> Option<HeaderValue> {
        let line = self.0.split().freeze();
        if line.is_empty() { None } else { HeaderValue::from_maybe_shared(line).ok() }
    }
}
