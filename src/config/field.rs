//! How keys are read, from a file or the environment: a section is a struct whose fields are slots.
//!
//! Everything that is wrong is collected, so that one start tells it all. The list of a section's keys
//! comes out of the same lines as its fields, and with it the names of environment variables and the
//! suggestions for a mistyped one.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Origin, Place, Problems, Source, nearest};
use super::value::{Value, article};

/// Declares a section of the file: its keys are the names of the fields.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$key_doc:meta])* $key:ident: $slot:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(super) struct $name {
            $($(#[$key_doc])* pub(super) $key: $slot,)*
        }

        impl $crate::config::field::Section for $name {
            const KEYS: &'static [&'static str] = &[$(stringify!($key)),*];

            fn slot(&mut self, key: &str) -> Option<&mut dyn $crate::config::field::Slot> {
                match key {
                    $(stringify!($key) => Some(&mut self.$key),)*
                    _ => None,
                }
            }
        }
    };
}
pub(super) use section;

/// A table with known keys.
pub(super) trait Section: Default {
    /// Its keys.
    const KEYS: &'static [&'static str];

    /// What one of them is read into.
    fn slot(&mut self, key: &str) -> Option<&mut dyn Slot>;
}

/// What a key is read into.
pub(super) trait Slot {
    /// Takes the value from the file.
    fn read(&mut self, value: &Spanned<DeValue<'_>>, origin: Origin, input: &mut Input<'_>);

    /// Takes the value from text: of the environment or the command line.
    fn set(&mut self, text: &str, origin: Origin, problems: &mut Problems);

    /// Notes that something stands here that is wrong, and was reported: nothing is missing.
    fn mark_wrong(&mut self, _origin: Origin) {}

    /// The keys within, where it is a section.
    fn keys(&self) -> &'static [&'static str] {
        &[]
    }

    /// Takes a value within a section from text.
    fn set_within(&mut self, _key: &str, text: &str, origin: Origin, problems: &mut Problems) {
        self.set(text, origin, problems);
    }
}

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Input<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) problems: &'a mut Problems,
}

impl Input<'_> {
    /// A key within another, that stands at `span`.
    pub(super) fn origin(&self, parent: &str, key: &str, span: &Range<usize>) -> Origin {
        let key = match (parent, key) {
            ("", key) => key.to_owned(),
            (parent, "") => parent.to_owned(),
            (parent, key) => format!("{parent}.{key}"),
        };
        Origin { key, place: self.source.place(span) }
    }

    /// Reads a table's keys into a section.
    pub(super) fn fill(&mut self, section: &mut impl Section, table: &DeTable<'_>, parent: &str) {
        fn keys<S: Section>(_: &S) -> &'static [&'static str] {
            S::KEYS
        }
        for (key, value) in table {
            let origin = self.origin(parent, key.get_ref(), &key.span());
            if let Some(slot) = section.slot(key.get_ref()) {
                slot.read(value, origin, self);
                continue;
            }
            let near = self.unknown(&origin, key.get_ref(), keys(section));
            if let Some(slot) = near.and_then(|near| section.slot(near)) {
                slot.mark_wrong(origin);
            }
        }
    }

    /// Reports an unknown key; returns the one that was probably meant.
    fn unknown(
        &mut self,
        origin: &Origin,
        key: &str,
        known: &[&'static str],
    ) -> Option<&'static str> {
        let near = nearest(key, known.iter().copied());
        let message = match near {
            Some(near) => format!("unknown key; did you mean `{near}`?"),
            None => format!("unknown key; the keys here are {}", known.join(", ")),
        };
        self.problems.error(origin, message);
        near
    }
}

/// A value, once it is set.
#[derive(Debug, Default)]
pub(super) enum Field<T> {
    #[default]
    Unset,
    Set(T, Origin),
    /// Something stands there, and what is wrong with it was told.
    Wrong(Origin),
}

impl<T> Field<T> {
    /// The value, where it is set.
    pub(super) fn value(&self) -> Option<&T> {
        self.found().map(|(value, _)| value)
    }

    /// The value and where it is set, where it is.
    pub(super) fn found(&self) -> Option<(&T, &Origin)> {
        match self {
            Self::Set(value, origin) => Some((value, origin)),
            Self::Unset | Self::Wrong(_) => None,
        }
    }

    /// Where it is set; `key` is its name, for where it is not.
    pub(super) fn origin(&self, key: &str) -> Origin {
        match self {
            Self::Set(_, origin) | Self::Wrong(origin) => origin.clone(),
            Self::Unset => Origin::unset(key),
        }
    }
}

impl<T: Clone> Field<T> {
    /// The value, or the default.
    pub(super) fn or(&self, default: T) -> T {
        self.value().cloned().unwrap_or(default)
    }
}

impl<T: Value> Field<T> {
    fn take(&mut self, value: Result<T, String>, origin: Origin, problems: &mut Problems) {
        *self = match value {
            Ok(value) => Self::Set(value, origin),
            Err(message) => {
                problems.error(&origin, message);
                Self::Wrong(origin)
            }
        };
    }
}

impl<T: Value> Slot for Field<T> {
    fn read(&mut self, value: &Spanned<DeValue<'_>>, origin: Origin, input: &mut Input<'_>) {
        self.take(T::from_toml(value.get_ref()), origin, input.problems);
    }

    fn set(&mut self, text: &str, origin: Origin, problems: &mut Problems) {
        if let (Place::Variable(other), Place::Variable(_)) = (self.origin("").place, &origin.place)
        {
            let message = format!("{other} sets the same; one of them is to go");
            return problems.error(&origin, message);
        }
        self.take(T::from_text(text), origin, problems);
    }

    fn mark_wrong(&mut self, origin: Origin) {
        if matches!(self, Self::Unset) {
            *self = Self::Wrong(origin);
        }
    }
}

/// Values in a row: an array in the file, with commas between them in the environment.
#[derive(Debug)]
pub(super) struct List<T> {
    values: Vec<(T, Origin)>,
    is_wrong: bool,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { values: Vec::new(), is_wrong: false }
    }
}

impl<T> List<T> {
    /// The values, and where each is set.
    pub(super) fn values(&self) -> &[(T, Origin)] {
        &self.values
    }

    /// Returns whether nothing stands there, not even something that is wrong.
    pub(super) fn is_unset(&self) -> bool {
        self.values.is_empty() && !self.is_wrong
    }
}

impl<T: Value> List<T> {
    fn push(&mut self, value: Result<T, String>, origin: Origin, problems: &mut Problems) {
        match value {
            Ok(value) => self.values.push((value, origin)),
            Err(message) => {
                problems.error(&origin, message);
                self.is_wrong = true;
            }
        }
    }
}

impl<T: Value> Slot for List<T> {
    fn read(&mut self, value: &Spanned<DeValue<'_>>, origin: Origin, input: &mut Input<'_>) {
        let DeValue::Array(elements) = value.get_ref() else {
            self.is_wrong = true;
            let message = format!("{} is no array; write [ … ]", article(value.get_ref()));
            return input.problems.error(&origin, message);
        };
        for element in elements {
            let origin = input.origin(&origin.key, "", &element.span());
            self.push(T::from_toml(element.get_ref()), origin, input.problems);
        }
    }

    fn set(&mut self, text: &str, origin: Origin, problems: &mut Problems) {
        self.values.clear();
        for element in text.split(',').map(str::trim).filter(|element| !element.is_empty()) {
            self.push(T::from_text(element), origin.clone(), problems);
        }
    }

    fn mark_wrong(&mut self, _origin: Origin) {
        self.is_wrong = true;
    }
}

/// Values under names that the file chooses.
#[derive(Debug)]
pub(super) struct Named<T>(Vec<(String, T, Origin)>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Named<T> {
    /// Name, value and where it is set.
    pub(super) fn values(&self) -> &[(String, T, Origin)] {
        &self.0
    }
}

impl<T: Value> Slot for Named<T> {
    fn read(&mut self, value: &Spanned<DeValue<'_>>, origin: Origin, input: &mut Input<'_>) {
        let DeValue::Table(table) = value.get_ref() else {
            let message = format!("{} is no table; write {{ NAME = … }}", article(value.get_ref()));
            return input.problems.error(&origin, message);
        };
        for (name, value) in table {
            let origin = input.origin(&origin.key, name.get_ref(), &name.span());
            match T::from_toml(value.get_ref()) {
                Ok(value) => self.0.push((name.get_ref().to_string(), value, origin)),
                Err(message) => input.problems.error(&origin, message),
            }
        }
    }

    fn set(&mut self, _text: &str, origin: Origin, problems: &mut Problems) {
        problems.error(&origin, "is a table; it can only be set in the file");
    }
}

/// A section that stands once.
#[derive(Debug, Default)]
pub(super) struct Table<S>(pub(super) S);

impl<S: Section> Slot for Table<S> {
    fn read(&mut self, value: &Spanned<DeValue<'_>>, origin: Origin, input: &mut Input<'_>) {
        match value.get_ref() {
            DeValue::Table(table) => input.fill(&mut self.0, table, &origin.key),
            other => {
                let message = format!("{} is no section; write [{}]", article(other), origin.key);
                input.problems.error(&origin, message);
                // The keys of `[[section]]` are read all the same, so that none seems to be missing.
                for element in other.as_array().into_iter().flatten() {
                    if let DeValue::Table(table) = element.get_ref() {
                        input.fill(&mut self.0, table, &origin.key);
                    }
                }
            }
        }
    }

    fn set(&mut self, _text: &str, origin: Origin, problems: &mut Problems) {
        problems.error(&origin, "is a section; set its keys");
    }

    fn keys(&self) -> &'static [&'static str] {
        S::KEYS
    }

    fn set_within(&mut self, key: &str, text: &str, origin: Origin, problems: &mut Problems) {
        if let Some(slot) = self.0.slot(key) {
            slot.set(text, origin, problems);
        }
    }
}

/// A section that is not there unless it is written.
#[derive(Debug, Default)]
pub(super) struct Perhaps<S>(Option<(S, Origin)>);

impl<S> Perhaps<S> {
    /// The section, and where it stands.
    pub(super) fn found(&self) -> Option<(&S, &Origin)> {
        self.0.as_ref().map(|(section, origin)| (section, origin))
    }
}

impl<S: Section> Slot for Perhaps<S> {
    fn read(&mut self, value: &Spanned<DeValue<'_>>, origin: Origin, input: &mut Input<'_>) {
        self.0 = inline(value, origin, input);
    }

    fn set(&mut self, _text: &str, origin: Origin, problems: &mut Problems) {
        problems.error(&origin, "is a section; write it into the file");
    }
}

/// A section that is written as a value; `None`, and told, where it is another.
fn inline<S: Section>(
    value: &Spanned<DeValue<'_>>,
    origin: Origin,
    input: &mut Input<'_>,
) -> Option<(S, Origin)> {
    let DeValue::Table(table) = value.get_ref() else {
        let message = format!("{} is no table; write {{ … }}", article(value.get_ref()));
        input.problems.error(&origin, message);
        return None;
    };
    let mut section = S::default();
    input.fill(&mut section, table, &origin.key);
    Some((section, origin))
}

/// A section, or an array of them.
#[derive(Debug)]
pub(super) struct Several<S>(Vec<(S, Origin)>);

impl<S> Default for Several<S> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<S> Several<S> {
    /// The sections, and where each stands.
    pub(super) fn sections(&self) -> &[(S, Origin)] {
        &self.0
    }
}

impl<S: Section> Slot for Several<S> {
    fn read(&mut self, value: &Spanned<DeValue<'_>>, origin: Origin, input: &mut Input<'_>) {
        let DeValue::Array(elements) = value.get_ref() else {
            return self.0.extend(inline(value, origin, input));
        };
        for element in elements {
            let at = input.origin(&origin.key, "", &element.span());
            self.0.extend(inline(element, at, input));
        }
    }

    fn set(&mut self, _text: &str, origin: Origin, problems: &mut Problems) {
        problems.error(&origin, "is a section; write it into the file");
    }
}

/// A section that stands as often as wanted.
#[derive(Debug)]
pub(super) struct Tables<S> {
    sections: Vec<(S, Origin)>,
    is_wrong: bool,
}

impl<S> Default for Tables<S> {
    fn default() -> Self {
        Self { sections: Vec::new(), is_wrong: false }
    }
}

impl<S> Tables<S> {
    /// The sections, and where each stands.
    pub(super) fn sections(&self) -> &[(S, Origin)] {
        &self.sections
    }

    /// Returns whether none stands there, not even one that is wrong.
    pub(super) fn is_unset(&self) -> bool {
        self.sections.is_empty() && !self.is_wrong
    }
}

impl<S: Section> Slot for Tables<S> {
    fn read(&mut self, value: &Spanned<DeValue<'_>>, origin: Origin, input: &mut Input<'_>) {
        let DeValue::Array(elements) = value.get_ref() else {
            self.is_wrong = true;
            let message = format!("stands as often as wanted; write [[{}]]", origin.key);
            input.problems.error(&origin, message);
            // The keys of `[section]` are read all the same: this is one error and hides no other.
            if let DeValue::Table(table) = value.get_ref() {
                let mut section = S::default();
                input.fill(&mut section, table, &origin.key);
                self.sections.push((section, origin));
            }
            return;
        };
        for element in elements {
            let at = input.origin(&origin.key, "", &element.span());
            let DeValue::Table(table) = element.get_ref() else {
                let wrong = article(element.get_ref());
                let message = format!("{wrong} is no section; write [[{}]]", at.key);
                input.problems.error(&at, message);
                continue;
            };
            let mut section = S::default();
            input.fill(&mut section, table, &at.key);
            self.sections.push((section, at));
        }
    }

    fn set(&mut self, _text: &str, origin: Origin, problems: &mut Problems) {
        problems.error(&origin, "is a section; set its keys");
    }

    fn mark_wrong(&mut self, _origin: Origin) {
        self.is_wrong = true;
    }

    fn keys(&self) -> &'static [&'static str] {
        S::KEYS
    }

    fn set_within(&mut self, key: &str, text: &str, origin: Origin, problems: &mut Problems) {
        if self.sections.is_empty() {
            self.sections.push((S::default(), origin.clone()));
        }
        match self.sections.as_mut_slice() {
            [(section, _)] => {
                if let Some(slot) = section.slot(key) {
                    slot.set(text, origin, problems);
                }
            }
            several => {
                let count = several.len();
                let message = format!("the file has {count} of this section; set it there in each");
                problems.error(&origin, message);
            }
        }
    }
}
