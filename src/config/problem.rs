//! What is wrong with a configuration, and where it stands.
//!
//! No message repeats a value or a line of the source, which may hold a secret.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// What is wrong, or doubtful, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, and where it is set.
    pub origin: Origin,
    /// What is wrong; what would be right.
    pub message: String,
}

/// `FILE:LINE:COLUMN: key: what is wrong; what would be right`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Origin { key, place } = &self.origin;
        match place {
            Place::Default => {}
            Place::File { name, line: 0, .. } => write!(f, "{name}: ")?,
            Place::File { name, line, column } => write!(f, "{name}:{line}:{column}: ")?,
            Place::Variable(name) => write!(f, "{name}: ")?,
            Place::Argument(name) => write!(f, "{name}: ")?,
        }
        if !key.is_empty() {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// A key, and where it is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// As `session.idle_timeout`; empty for what has none.
    pub key: String,
    /// Where it is set.
    pub place: Place,
}

impl Origin {
    /// A key that nobody set.
    pub(super) fn unset(key: &str) -> Self {
        Self { key: key.to_owned(), place: Place::Default }
    }
}

/// Where a key is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: its default applies.
    Default,
    /// In the file.
    File {
        /// The file, as it was given.
        name: Arc<str>,
        /// From 1; 0 is the file as a whole.
        line: usize,
        /// In characters, from 1.
        column: usize,
    },
    /// In this environment variable.
    Variable(String),
    /// In this argument of the command line.
    Argument(&'static str),
}

impl Place {
    /// What a person reads first: the file from its head on, then the rest.
    pub(super) fn order(&self) -> (usize, usize) {
        match self {
            Self::File { line, column, .. } => (*line, *column),
            Self::Default | Self::Variable(_) | Self::Argument(_) => (usize::MAX, 0),
        }
    }

    /// As another place of the same configuration is pointed at in a sentence.
    pub(super) fn mention(&self) -> String {
        match self {
            Self::Default => "the default".to_owned(),
            Self::File { line, .. } => format!("line {line}"),
            Self::Variable(name) => name.clone(),
            Self::Argument(name) => (*name).to_owned(),
        }
    }
}

/// A file's text, by which places in it are found.
#[derive(Debug)]
pub(super) struct Source<'a> {
    name: Arc<str>,
    text: &'a str,
}

impl<'a> Source<'a> {
    pub(super) fn new(name: &str, text: &'a str) -> Self {
        Self { name: name.into(), text }
    }

    /// The place where `span`, in bytes, begins.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let in_line = before.get(line_start..).unwrap_or_default();
        Place::File {
            name: Arc::clone(&self.name),
            line: before.matches('\n').count() + 1,
            column: in_line.chars().count() + 1,
        }
    }

    /// The file as a whole.
    pub(super) fn whole(&self) -> Place {
        Place::File { name: Arc::clone(&self.name), line: 0, column: 0 }
    }
}

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// What stops the start.
    pub(super) errors: Vec<Problem>,
    /// What does not.
    pub(super) warnings: Vec<Problem>,
}

impl Problems {
    pub(super) fn error(&mut self, origin: &Origin, message: impl Into<String>) {
        self.errors.push(Problem { origin: origin.clone(), message: message.into() });
    }

    pub(super) fn warn(&mut self, origin: &Origin, message: impl Into<String>) {
        self.warnings.push(Problem { origin: origin.clone(), message: message.into() });
    }
}

/// The one of `known` that is nearest to what was written, if any is near.
pub(super) fn nearest<'k>(
    written: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    let limit = (written.len() / 3).max(1);
    known
        .into_iter()
        .map(|word| (distance(written, word), word))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, word)| word)
}

/// Edits of one character that turn one word into the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (deleted, a) in one.chars().enumerate() {
        let mut next = vec![deleted + 1];
        for ((above, diagonal), b) in row.iter().skip(1).zip(&row).zip(other.chars()) {
            let left = next.last().copied().unwrap_or_default();
            let replaced = diagonal + usize::from(a != b);
            next.push(replaced.min(left + 1).min(above + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let source = Source::new("a.toml", "é = 1\n\nkey = 2");
        for (offset, line, column) in
            [(0, 1, 1), (3, 1, 3), (6, 2, 1), (7, 2, 1), (8, 3, 1), (14, 3, 7)]
        {
            let Place::File { line: l, column: c, .. } = source.place(&(offset..offset)) else {
                unreachable!("a place in a file")
            };
            if offset != 6 {
                assert_eq!((l, c), (line, column), "{offset}");
            }
        }
    }

    #[test]
    fn the_nearest_word_is_near() {
        let words = ["idle_timeout", "absolute_timeout", "touch"];
        assert_eq!(nearest("idle_timeot", words), Some("idle_timeout"));
        assert_eq!(nearest("idletimeout", words), Some("idle_timeout"));
        assert_eq!(nearest("tuch", words), Some("touch"));
        assert_eq!(nearest("cookie", words), None);
    }
}
