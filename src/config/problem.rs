//! Problems of a configuration, and the places where they are.
//!
//! No message repeats a line of the source, or a value that may be a secret.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// An error or a warning about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The key, e.g. `session.idle_timeout`; empty if the problem is not about one.
    pub(crate) key: String,
    /// Where the key is set.
    pub(crate) place: Place,
    /// What is wrong, and what would be right.
    pub(crate) message: String,
}

impl Problem {
    /// `path` may have indexes, as in `route[1].upstream`, which the place makes needless.
    pub(super) fn new(path: &str, place: Place, message: impl Into<String>) -> Self {
        let key = path.split('[').enumerate().map(|(index, part)| match part.split_once(']') {
            Some((_, after)) if index > 0 => after,
            _ => part,
        });
        Self { key: key.collect(), place, message: message.into() }
    }
}

/// `FILE:LINE:COLUMN: key: what is wrong; what would be right`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Default => {}
            Place::File { name, line: 0, .. } => write!(f, "{name}: ")?,
            Place::File { name, line, column } => write!(f, "{name}:{line}:{column}: ")?,
            Place::Variable(name) => write!(f, "{name}: ")?,
            Place::Argument(name) => write!(f, "{name}: ")?,
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Where a key is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: the default applies.
    Default,
    /// In the file.
    File {
        /// The file, as given.
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
    /// The order of a report: the file from its start, then the rest.
    pub(super) fn order(&self) -> (usize, usize) {
        match self {
            Self::File { line, column, .. } => (*line, *column),
            Self::Default | Self::Variable(_) | Self::Argument(_) => (usize::MAX, 0),
        }
    }

    /// How a message about another key refers to this place.
    pub(super) fn mention(&self) -> String {
        match self {
            Self::Default => "the default".to_owned(),
            Self::File { line, .. } => format!("line {line}"),
            Self::Variable(name) => name.clone(),
            Self::Argument(name) => (*name).to_owned(),
        }
    }
}

/// A file's text, to find places in it.
#[derive(Debug)]
pub(super) struct SourceText<'a> {
    name: Arc<str>,
    text: &'a str,
}

impl<'a> SourceText<'a> {
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

/// The problems found so far.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// Problems that prevent the start.
    pub(super) errors: Vec<Problem>,
    /// Problems that do not.
    pub(super) warnings: Vec<Problem>,
}

impl Problems {
    pub(super) fn error(&mut self, problem: Problem) {
        self.errors.push(problem);
    }

    pub(super) fn warn(&mut self, problem: Problem) {
        self.warnings.push(problem);
    }
}

/// Returns the one of `known` that is closest to what was written, if any is close.
pub(super) fn nearest<'k>(
    written: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    let limit = (written.len() / 3).max(1);
    known
        .into_iter()
        .map(|word| (strsim::levenshtein(written, word), word))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_no_index() {
        for (path, key) in [("a", "a"), ("route[1].upstream", "route.upstream"), ("a.b[0]", "a.b")]
        {
            assert_eq!(Problem::new(path, Place::Default, "").key, key);
        }
    }

    #[test]
    fn places_count_from_one() {
        let source = SourceText::new("a.toml", "é = 1\n\nkey = 2");
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
    fn suggests_close_words() {
        let words = ["idle_timeout", "absolute_timeout", "touch"];
        assert_eq!(nearest("idle_timeot", words), Some("idle_timeout"));
        assert_eq!(nearest("idletimeout", words), Some("idle_timeout"));
        assert_eq!(nearest("tuch", words), Some("touch"));
        assert_eq!(nearest("cookie", words), None);
    }
}
