//! JSON Merge Patch (RFC 7396) on texts: what the patch does not touch stays byte for byte.

use std::collections::HashMap;

use super::scanner::{Scanner, unescape};

/// Merges one object into another; `None` if one of them is not an object.
pub(super) fn merged(target: &str, patch: &str) -> Option<String> {
    let changes = Changes::of(patch)?;
    Some(changes.merge_into(Scanner::members(target)?))
}

/// The members of a patch that have not been applied yet, by their unescaped names.
struct Changes<'a>(HashMap<String, Change<'a>>);

struct Change<'a> {
    /// The place in the patch.
    at: usize,
    /// The name as it is written, with its quotation marks.
    raw_name: &'a str,
    text: &'a str,
}

impl<'a> Changes<'a> {
    /// Returns the members of a patch; `None` if it is not an object.
    fn of(patch: &'a str) -> Option<Self> {
        let members = Scanner::members(patch)?.into_iter().enumerate();
        let change = |(at, (raw_name, text))| (unescape(raw_name), Change { at, raw_name, text });
        Some(Self(members.map(change).collect()))
    }

    /// Returns the object of `members` with the changes: changed members in their place, new ones at the end.
    fn merge_into(mut self, members: Vec<(&str, &str)>) -> String {
        let mut out = Object::default();
        for (raw_name, text) in members {
            match self.0.remove(&unescape(raw_name)) {
                None => out.push(raw_name, text),
                Some(change) => out.push_merged(raw_name, Some(text), change.text),
            }
        }
        let mut new: Vec<Change<'_>> = self.0.into_values().collect();
        new.sort_unstable_by_key(|change| change.at);
        for change in new {
            out.push_merged(change.raw_name, None, change.text);
        }
        out.finish()
    }
}

/// An object that is being written.
#[derive(Default)]
struct Object(String);

impl Object {
    fn push(&mut self, raw_name: &str, text: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        for part in [raw_name, ":", text] {
            self.0.push_str(part);
        }
    }

    /// Writes a member whose change is `patch`; null removes it.
    fn push_merged(&mut self, raw_name: &str, text: Option<&str>, patch: &str) {
        match Changes::of(patch) {
            // A target that is not an object counts as an empty one.
            Some(changes) => {
                let members = text.and_then(Scanner::members).unwrap_or_default();
                self.push(raw_name, &changes.merge_into(members));
            }
            None if patch == "null" => {}
            None => self.push(raw_name, patch),
        }
    }

    fn finish(mut self) -> String {
        self.0.push_str(if self.0.is_empty() { "{}" } else { "}" });
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    #[track_caller]
    fn check(target: &str, patch: &str, expected: Option<&str>) {
        assert_eq!(merged(target, patch).as_deref(), expected, "{target} {patch}");
    }

    /// The object cases of RFC 7396, appendix A.
    #[test]
    fn examples_of_the_rfc_hold() {
        for (target, patch, expected) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            check(target, patch, Some(expected));
        }
        check("[1,2]", r#"{"a":"b"}"#, None);
        check(r#"{"a":"b"}"#, r#"["c"]"#, None);
    }

    #[test]
    fn untouched_text_stays() {
        let target = r#"{"big":1e400,"\u0061":[1.0,"\u00e9"],"deep":{"x":-0,"y":{"z":1.00}}}"#;
        check(
            target,
            r#"{"a":2,"deep":{"y":{"w":"\/"}}}"#,
            Some(r#"{"big":1e400,"\u0061":2,"deep":{"x":-0,"y":{"z":1.00,"w":"\/"}}}"#),
        );
        check(target, "{}", Some(target));
    }

    /// The algorithm of RFC 7396, section 2.
    fn rfc(target: Value, patch: Value) -> Value {
        let Value::Object(patch) = patch else { return patch };
        let mut object = match target {
            Value::Object(object) => object,
            _ => Map::new(),
        };
        for (name, value) in patch {
            if value.is_null() {
                object.remove(&name);
            } else {
                let old = object.remove(&name).unwrap_or_default();
                object.insert(name, rfc(old, value));
            }
        }
        Value::Object(object)
    }

    fn any_object() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i8>().prop_map(Into::into),
            Just(Value::Array(Vec::new())),
        ];
        let value = leaf.prop_recursive(4, 24, 4, |inner| {
            prop::collection::hash_map("[ab\"é]{0,2}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect()))
        });
        prop::collection::hash_map("[ab\"é]{0,2}", value, 0..4)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn agrees_with_the_rfc(target in any_object(), patch in any_object()) {
            let text = merged(&target.to_string(), &patch.to_string()).expect("objects");
            let parsed: Value = serde_json::from_str(&text).expect("JSON");
            prop_assert_eq!(parsed, rfc(target, patch));
        }
    }
}
