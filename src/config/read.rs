//! Reads the file, and the variables and arguments over it, into the sections of [`File`].
//!
//! To report all wrong keys in one run, each key is deserialised by itself, in an otherwise empty file. Keys
//! that fail are left out, and the rest is deserialised as a whole.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::file::File;
use super::problem::{Place, Problem, Problems, SourceText, nearest};
use super::value::{Size, Timeout, Value as _};

/// The JSON Schema of the file, without references.
pub(super) static SCHEMA: LazyLock<Json> = LazyLock::new(|| {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<File>().to_value()
});

/// A key that a variable or an argument sets.
#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) section: String,
    pub(super) key: String,
    /// The value, as TOML.
    pub(super) value: String,
    pub(super) place: Place,
}

/// Where each key is set, by its path, e.g. `route[1].upstream`.
pub(super) type Places = BTreeMap<String, Place>;

/// Reads a file's text, overridden by `assignments`. Wrong keys are added to `problems`, and have their
/// defaults in the result.
///
/// # Errors
/// Returns the syntax error of a text that is not TOML.
pub(super) fn read(
    source: &SourceText<'_>,
    text: &str,
    assignments: &[Assignment],
    problems: &mut Problems,
) -> Result<(File, Places), Problem> {
    let mut table = DeTable::parse(text).map_err(|error| syntax_error(source, text, &error))?;
    let mut assigned = Places::new();
    for assignment in assignments {
        assign(assignment, table.get_mut(), &mut assigned, problems);
    }
    let mut reader = Reader { source, assigned, places: Places::new(), problems };
    let table = reader.table(table.into_inner(), &SCHEMA, "", &|value| value);
    let places = reader.places;
    let file = File::deserialize(value_of(table).into_deserializer());
    let file = file.map_err(|error| Problem::new("", source.whole(), error.message()))?;
    Ok((file, places))
}

fn syntax_error(source: &SourceText<'_>, text: &str, error: &toml::de::Error) -> Problem {
    let span = error.span().unwrap_or(0..0);
    let message = unquoted(text, span.start).unwrap_or_else(|| error.message().to_owned());
    Problem::new("", source.place(&span), message)
}

/// Returns what is wrong with a value that begins at `start`, if it lacks its quotes. Quotes it only
/// if it is a duration or a size: anything else may be a secret.
fn unquoted(text: &str, start: usize) -> Option<String> {
    let (before, rest) = text.split_at_checked(start)?;
    let is_value = before.trim_end().ends_with(['=', '[', ',']);
    let line = rest.lines().next()?;
    let bare = line.split(['#', ',', '}', ']', '"', '\'']).next()?.trim_end();
    if !is_value {
        None
    } else if Timeout::parse(bare).is_ok() || Size::parse(bare).is_ok() {
        Some(format!("string values must be quoted; write \"{bare}\""))
    } else if bare.starts_with(|first: char| first.is_ascii_alphabetic()) {
        Some("string values must be quoted".to_owned())
    } else {
        None
    }
}

/// Puts a value into its section, which is created if it is missing.
fn assign<'a>(
    assignment: &'a Assignment,
    file: &mut DeTable<'a>,
    assigned: &mut Places,
    problems: &mut Problems,
) {
    let Assignment { section, key, value, place } = assignment;
    // It was written by `environment::assignment`, so it parses.
    let Ok(value) = DeValue::parse(value) else { return };
    let is_array = section_of(section).is_some_and(|schema| array_of_tables(schema).is_some());
    let empty = || Spanned::new(0..0, DeValue::Table(DeTable::new()));
    if !file.contains_key(section.as_str()) {
        let missing = if is_array { array_of(empty()) } else { empty() };
        file.insert(Spanned::new(0..0, section.as_str().into()), missing);
    }
    let (table, path) = match file.get_mut(section.as_str()).map(Spanned::get_mut) {
        Some(DeValue::Array(tables)) => match &mut **tables {
            [one] => (one.get_mut(), format!("{section}[0].{key}")),
            several => {
                let count = several.len();
                let message = format!("the file has {count} of this section; set it there in each");
                return problems.error(Problem::new(
                    &format!("{section}.{key}"),
                    place.clone(),
                    message,
                ));
            }
        },
        Some(table) => (table, format!("{section}.{key}")),
        None => return,
    };
    // A section of another type is reported when it is read.
    let DeValue::Table(table) = table else { return };
    if let Some(other) = assigned.insert(path.clone(), place.clone())
        && matches!((&other, place), (Place::Variable(_), Place::Variable(_)))
    {
        let message = format!("also set by {}; remove one", other.mention());
        problems.error(Problem::new(&path, place.clone(), message));
    }
    table.insert(Spanned::new(0..0, key.as_str().into()), value);
}

fn value_of(table: DeTable<'_>) -> Spanned<DeValue<'_>> {
    Spanned::new(0..0, DeValue::Table(table))
}

fn array_of(value: Spanned<DeValue<'_>>) -> Spanned<DeValue<'_>> {
    Spanned::new(value.span(), DeValue::Array([value].into_iter().collect()))
}

/// Returns the schema's alternative that is not null, if it has only one.
fn non_null(schema: &Json) -> &Json {
    let alternatives = schema.get("anyOf").and_then(Json::as_array);
    let is_null = |schema: &Json| schema.get("type").is_some_and(|kind| kind == "null");
    match alternatives.map(Vec::as_slice) {
        Some([one, null] | [null, one]) if is_null(null) => one,
        _ => schema,
    }
}

/// Returns the schema of a section of the file.
fn section_of(name: &str) -> Option<&'static Json> {
    section(&SCHEMA)?.get(name)
}

/// Returns the schema of a key of the file.
pub(super) fn key_of(section_name: &str, key: &str) -> Option<&'static Json> {
    let schema = section_of(section_name)?;
    section(array_of_tables(schema).unwrap_or(schema))?.get(key)
}

/// Returns the keys of a section; `None` for a schema of anything else.
pub(super) fn section(schema: &Json) -> Option<&serde_json::Map<String, Json>> {
    non_null(schema).get("properties")?.as_object()
}

/// Returns the schema of each of several sections, `[[section]]`.
pub(super) fn array_of_tables(schema: &Json) -> Option<&Json> {
    items(schema).filter(|items| section(items).is_some())
}

/// Returns the schema of an array's elements.
pub(super) fn items(schema: &Json) -> Option<&Json> {
    non_null(schema).get("items")
}

/// Returns the schema of the entries of a table whose keys are not declared.
fn entries(schema: &Json) -> Option<&Json> {
    non_null(schema).get("additionalProperties").filter(|entries| entries.is_object())
}

struct Reader<'a> {
    source: &'a SourceText<'a>,
    assigned: Places,
    places: Places,
    problems: &'a mut Problems,
}

/// Puts a value at its place in an otherwise empty file.
type Wrap<'w, 'i> = &'w dyn Fn(Spanned<DeValue<'i>>) -> Spanned<DeValue<'i>>;

impl Reader<'_> {
    /// Returns the keys of a table that are right, at any depth.
    fn table<'i>(
        &mut self,
        table: DeTable<'i>,
        schema: &Json,
        path: &str,
        wrap: Wrap<'_, 'i>,
    ) -> DeTable<'i> {
        let mut right = DeTable::new();
        for (key, value) in table {
            let name = key.get_ref().to_string();
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            self.note(&path, &key.span());
            let declared = match section(schema) {
                Some(keys) => keys.get(&name),
                None => entries(schema),
            };
            let Some(declared) = declared else {
                self.unknown(&path, &name, schema);
                continue;
            };
            let wrap = |value| wrap(value_of(DeTable::from_iter([(key.clone(), value)])));
            if let Some(value) = self.value(value, declared, &path, &wrap) {
                right.insert(key.clone(), value);
            }
        }
        right
    }

    /// Notes where a key, or an element of an array, is set.
    fn note(&mut self, path: &str, span: &Range<usize>) {
        let within = |assigned: &&String| {
            path.strip_prefix(assigned.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
        };
        let assigned = self.assigned.keys().find(within).and_then(|path| self.assigned.get(path));
        let place = assigned.cloned().unwrap_or_else(|| self.source.place(span));
        self.places.insert(path.to_owned(), place);
    }

    fn error(&mut self, path: &str, message: impl Into<String>) {
        let place = self.places.get(path).cloned().unwrap_or_else(|| self.source.whole());
        self.problems.error(Problem::new(path, place, message));
    }

    /// Reports an unknown key. The one that was probably meant counts as set, so that it is not missed too.
    fn unknown(&mut self, path: &str, name: &str, schema: &Json) {
        let known = section(schema).into_iter().flatten().map(|(key, _)| key.as_str());
        let message = match nearest(name, known.clone()) {
            Some(near) => {
                let parent = path.strip_suffix(name).unwrap_or_default();
                self.places.entry(format!("{parent}{near}")).or_insert(Place::Default);
                format!("unknown key; did you mean `{near}`?")
            }
            None => {
                format!("unknown key; expected one of {}", known.collect::<Vec<_>>().join(", "))
            }
        };
        self.error(path, message);
    }

    /// Returns the value with what is right in it; `None` if nothing is.
    fn value<'i>(
        &mut self,
        value: Spanned<DeValue<'i>>,
        schema: &Json,
        path: &str,
        wrap: Wrap<'_, 'i>,
    ) -> Option<Spanned<DeValue<'i>>> {
        let span = value.span();
        let is_section = section(schema).is_some();
        if is_section || entries(schema).is_some() && value.get_ref().is_table() {
            let table = self.one_table(value, path)?;
            let table = self.table(table, schema, path, wrap);
            return Some(Spanned::new(span, DeValue::Table(table)));
        }
        let is_repeated = array_of_tables(schema).is_some();
        match items(schema) {
            Some(items) if is_repeated || value.get_ref().is_array() => {
                let mut right = DeArray::new();
                for (index, element) in self.elements(value, path)?.into_iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    self.note(&path, &element.span());
                    let wrap = |value| wrap(array_of(value));
                    if let Some(element) = self.value(element, items, &path, &wrap) {
                        right.push(element);
                    }
                }
                Some(Spanned::new(span, DeValue::Array(right)))
            }
            _ => self.leaf(value, schema, path, wrap),
        }
    }

    /// Returns the table of a section. For a wrong `[[section]]`, reports that and returns its first table, so
    /// that its keys are not reported too.
    fn one_table<'i>(&mut self, value: Spanned<DeValue<'i>>, path: &str) -> Option<DeTable<'i>> {
        let wrong = match value.into_inner() {
            DeValue::Table(table) => return Some(table),
            DeValue::Array(several) => several.into_iter().next().map(Spanned::into_inner),
            _ => None,
        };
        // An element, or a key of one, cannot be a section by its path alone.
        let message = if path.contains('[') {
            "expected a table; write { key = value, … }".to_owned()
        } else {
            format!("expected a section; write [{path}] or {path} = {{ … }}")
        };
        self.error(path, message);
        match wrong {
            Some(DeValue::Table(table)) => Some(table),
            _ => None,
        }
    }

    /// Returns the elements of an array. For a wrong `[section]`, reports that and returns its table as the only
    /// element, so that its keys are not reported too.
    fn elements<'i>(&mut self, value: Spanned<DeValue<'i>>, path: &str) -> Option<DeArray<'i>> {
        let span = value.span();
        let wrong = match value.into_inner() {
            DeValue::Array(tables) => return Some(tables),
            wrong => wrong,
        };
        self.error(path, format!("this section may be repeated; write [[{path}]]"));
        wrong.is_table().then(|| [Spanned::new(span, wrong)].into_iter().collect())
    }

    /// Returns the value if it is of its type and in its range.
    fn leaf<'i>(
        &mut self,
        value: Spanned<DeValue<'i>>,
        schema: &Json,
        path: &str,
        wrap: Wrap<'_, 'i>,
    ) -> Option<Spanned<DeValue<'i>>> {
        let file = File::deserialize(wrap(value.clone()).into_deserializer());
        if let Err(error) = file {
            let message = in_terms_of_toml(error.message());
            // Within an array or a table, the error's own place is closer than the key's.
            let part = error.span().filter(|span| span.start > value.span().start);
            match part.filter(|_| !self.assigned.contains_key(path)) {
                Some(span) => {
                    self.problems.error(Problem::new(path, self.source.place(&span), message));
                }
                None => self.error(path, message),
            }
            return None;
        }
        if let Some((min, max)) = out_of_range(value.get_ref(), non_null(schema)) {
            self.error(path, format!("out of range; expected {min} to {max}"));
            return None;
        }
        Some(value)
    }
}

/// Replaces the words that serde has for the types and values of all formats.
fn in_terms_of_toml(message: &str) -> String {
    [
        ("unknown variant", "unknown value"),
        ("missing field", "missing key"),
        ("wanted string or table", "invalid type; expected a string"),
        ("a sequence", "an array"),
        ("sequence", "an array"),
        ("a map", "a table"),
        ("invalid type: map", "invalid type: a table"),
    ]
    .into_iter()
    .fold(message.to_owned(), |message, (word, ours)| message.replace(word, ours))
}

/// Returns the bounds that a number, a duration or a size is out of.
fn out_of_range(value: &DeValue<'_>, schema: &Json) -> Option<(String, String)> {
    let text = match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(integer) => {
            i64::from_str_radix(integer.as_str(), integer.radix()).ok()?.to_string()
        }
        _ => return None,
    };
    let Some([min, max]) = schema.get("x-range").and_then(Json::as_array).map(Vec::as_slice) else {
        let min = schema.get("minimum")?.as_u64()?;
        let max = schema.get("maximum")?.as_u64()?;
        let is_inside = text.parse().is_ok_and(|number| (min..=max).contains(&number));
        return (!is_inside).then(|| (min.to_string(), max.to_string()));
    };
    let (min, max) = (min.as_str()?, max.as_str()?);
    let is_inside = match [&*text, min, max].map(Timeout::parse) {
        [Ok(Timeout(None)), ..] => true,
        [Ok(value), Ok(min), Ok(max)] => (min.0..=max.0).contains(&value.0),
        _ => match [&*text, min, max].map(Size::parse) {
            [Ok(Size(value)), Ok(Size(min)), Ok(Size(max))] => (min..=max).contains(&value),
            _ => true,
        },
    };
    (!is_inside).then(|| (min.to_owned(), max.to_owned()))
}
