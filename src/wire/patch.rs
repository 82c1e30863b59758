//! Parsing of patches and their parts.

use std::time::Duration;

use super::malformed::Malformed;
use crate::session::json::Json;
use crate::session::patch::{ExpiryChange, Op, Patch, PrincipalChange, Rotate, TwoPrincipals};
use crate::session::record::{Expiry, Key, Principal};
use crate::time::Timestamp;

/// The levels of a patch around its values: the patch itself, and its member.
const PATCH_LEVELS: usize = 2;

/// Parses a patch.
pub fn patch(text: &[u8]) -> Result<Patch, Malformed> {
    one_patch(&Json::parse(text, PATCH_LEVELS)?)
}

/// Parses the lines of `X-Session-Patch` as one patch; `None` if they have none.
///
/// The header is a list of objects, separated by commas (RFC 9110, section 5.6.1). A line may hold
/// several of them, since CGI servers join lines, or a part of one.
pub fn patches<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<Patch>, Malformed> {
    let mut text = b"[".to_vec();
    text.extend(lines.into_iter().collect::<Vec<_>>().join(&b","[..]));
    text.push(b']');
    let list = Json::parse(&text, PATCH_LEVELS + 1).map_err(|error| Malformed::Header {
        // The bracket was added here.
        at: error.at().saturating_sub(1),
        reason: error.reason().to_string(),
    })?;
    let two_principals = |error: TwoPrincipals| Malformed::Patch(error.to_string());
    let patches = list.elements().unwrap_or_default().into_iter();
    let joined = patches
        .map(|element| one_patch(&element))
        .reduce(|joined, next| joined?.then(next?).map_err(two_principals));
    joined.transpose()
}

fn one_patch(json: &Json) -> Result<Patch, Malformed> {
    let mut patch = Patch::default();
    let mut values = Vec::new();
    for (name, member) in object(json, "a patch")? {
        match name.as_str() {
            "if_version" => patch.if_version = Some(version(&name, &member)?),
            "if_lost" => patch.drops_if_lost = drops(&name, &member)?,
            "destroy" => patch.destroy = boolean(&name, &member)?,
            "expiry" => patch.expiry = Some(expiry_of(&member)?),
            "principal" => patch.principal = Some(principal(&member)?),
            "rotate" => patch.rotate = rotate(&name, &member)?,
            _ => values.push(changes(&name, &member)?),
        }
    }
    if patch.drops_if_lost && (patch.destroy || patch.principal.is_some() || patch.rotate.is_some())
    {
        let detail =
            "a patch with destroy, principal or rotate has no if_lost: it must not be lost";
        return Err(Malformed::Patch(detail.to_owned()));
    }
    // The grammar defines the order of the members: a JSON object has none.
    values.sort_by_key(|(order, _)| *order);
    let takes_over = patch.log_in().cloned().map(Op::ClearUnless);
    patch.ops = takes_over.into_iter().chain(values.into_iter().flat_map(|(_, ops)| ops)).collect();
    Ok(patch)
}

/// Parses a member that changes values, and returns its place in the order of the grammar.
fn changes(name: &str, member: &Json) -> Result<(u8, Vec<Op>), Malformed> {
    Ok(match name {
        "clear" => (0, if boolean(name, member)? { vec![Op::Clear] } else { Vec::new() }),
        "values" => (
            1,
            ops(member, name, |key, text| {
                Ok(if text.is_null() { Op::Remove(key) } else { Op::Set(key, text) })
            })?,
        ),
        "remove" => (2, removals(name, member)?),
        "set" => (3, ops(member, name, |key, text| Ok(Op::Set(key, text)))?),
        "default" => (4, ops(member, name, |key, text| Ok(Op::Default(key, text)))?),
        "increment" => (
            5,
            ops(member, name, |key, by| {
                Ok(Op::Increment(key, by.as_integer().ok_or(Malformed::Increment)?))
            })?,
        ),
        "append" => (6, ops(member, name, append)?),
        "merge" => (7, ops(member, name, merge)?),
        _ => {
            return Err(Malformed::Patch(format!(
                "a patch has no member {name:?}; it has if_version, if_lost, destroy, clear, values, remove, set, \
                 default, increment, append, merge, expiry, principal and rotate"
            )));
        }
    })
}

fn version(name: &str, member: &Json) -> Result<u64, Malformed> {
    let version = member.as_integer().and_then(|number| u64::try_from(number).ok());
    version.ok_or_else(|| wrong_member(name, "a version, as in the ETag"))
}

fn drops(name: &str, member: &Json) -> Result<bool, Malformed> {
    match member.as_str() {
        "\"drop\"" => Ok(true),
        _ => Err(wrong_member(name, "\"drop\"")),
    }
}

fn principal(member: &Json) -> Result<PrincipalChange, Malformed> {
    if member.is_null() {
        return Ok(PrincipalChange::LogOut);
    }
    let name = member.as_string().as_deref().and_then(Principal::from_caller);
    name.map(PrincipalChange::LogIn).ok_or(Malformed::Principal)
}

fn rotate(name: &str, member: &Json) -> Result<Option<Rotate>, Malformed> {
    match member.as_str() {
        "true" => Ok(Some(Rotate::Token)),
        "false" => Ok(None),
        "\"id\"" => Ok(Some(Rotate::Id)),
        _ => Err(wrong_member(name, "true, false or \"id\"")),
    }
}

fn removals(name: &str, member: &Json) -> Result<Vec<Op>, Malformed> {
    let keys = member.elements().ok_or_else(|| wrong_member(name, "an array of keys"))?;
    let removal = |key: Json| key.as_string().as_deref().and_then(Key::new).map(Op::Remove);
    keys.into_iter().map(|key| removal(key).ok_or(Malformed::Key)).collect()
}

fn append(key: Key, elements: Json) -> Result<Op, Malformed> {
    match elements.within_brackets() {
        Some(_) => Ok(Op::Append(key, elements)),
        None => Err(Malformed::NotAnArray(key)),
    }
}

fn merge(key: Key, object: Json) -> Result<Op, Malformed> {
    if object.is_object() { Ok(Op::Merge(key, object)) } else { Err(Malformed::NotAnObject(key)) }
}

/// Parses an object of values that replaces all values of a session.
pub fn values(text: &[u8]) -> Result<Vec<Op>, Malformed> {
    let json = Json::parse(text, 1)?;
    let set = ops(&json, "values", |key, text| Ok(Op::Set(key, text)))?;
    Ok(std::iter::once(Op::Clear).chain(set).collect())
}

/// Parses a value.
pub fn value(text: &[u8]) -> Result<Json, Malformed> {
    Ok(Json::parse(text, 0)?)
}

/// Parses an element to append to an array: it may nest one level less than a value.
pub fn element(text: &[u8]) -> Result<Json, Malformed> {
    let wrapped = [b"[", text, b"]"].concat();
    let list = Json::parse(&wrapped, 0)?;
    let mut elements = list.elements().unwrap_or_default();
    match (elements.pop(), elements.is_empty()) {
        (Some(element), true) => Ok(element),
        // Only within brackets "1,2" and "" are JSON. Report the error without them.
        _ => Ok(Json::parse(text, 0)?),
    }
}

/// Parses an increment such as `{"by": 1}`. An empty body is 1.
pub fn increment(text: &[u8]) -> Result<i64, Malformed> {
    if text.trim_ascii().is_empty() {
        return Ok(1);
    }
    let mut by = 1;
    for (name, member) in object(&Json::parse(text, 1)?, "an increment")? {
        match name.as_str() {
            "by" => by = member.as_integer().ok_or(Malformed::Increment)?,
            _ => {
                return Err(Malformed::Patch(format!(
                    "an increment has no member {name:?}; it has by"
                )));
            }
        }
    }
    Ok(by)
}

/// Parses an expiry.
pub fn expiry(text: &[u8]) -> Result<ExpiryChange, Malformed> {
    expiry_of(&Json::parse(text, 1)?)
}

fn expiry_of(json: &Json) -> Result<ExpiryChange, Malformed> {
    if json.is_null() {
        return Ok(ExpiryChange::Policy);
    }
    let (mut idle, mut at, mut browser_close) = (None, None, false);
    for (name, member) in json.members().ok_or(Malformed::Expiry)? {
        match name.as_str() {
            "idle" => idle = Some(seconds(&member).ok_or(Malformed::Expiry)?),
            "at" => at = Some(instant(&member).ok_or(Malformed::Expiry)?),
            "browser_close" => {
                browser_close =
                    boolean(&name, &member).map_err(|_not_a_boolean| Malformed::Expiry)?;
            }
            _ => return Err(Malformed::Expiry),
        }
    }
    Ok(ExpiryChange::Own(match (idle, at, browser_close) {
        (idle, None, true) => Expiry::BrowserClose(idle),
        (Some(idle), None, false) => Expiry::Idle(idle),
        (None, Some(at), false) => Expiry::At(at),
        _ => return Err(Malformed::Expiry),
    }))
}

/// Parses whole seconds, from one to the largest duration that leads to an RFC 3339 date.
fn seconds(json: &Json) -> Option<Duration> {
    let seconds = u64::try_from(json.as_integer()?).ok()?;
    let longest = Timestamp::MAX.since(Timestamp::default()).as_secs();
    (1..=longest).contains(&seconds).then(|| Duration::from_secs(seconds))
}

fn instant(json: &Json) -> Option<Timestamp> {
    if let Some(text) = json.as_string() {
        return Timestamp::parse_rfc3339(&text);
    }
    let seconds: f64 = json.as_str().parse().ok()?;
    let longest = Timestamp::MAX.since(Timestamp::default());
    let since = Duration::try_from_secs_f64(seconds).ok().filter(|since| *since <= longest)?;
    Some(Timestamp::default() + since)
}

/// Returns the members of an object. `[]` counts as `{}`, because PHP encodes an empty array so.
fn object(json: &Json, what: &str) -> Result<Vec<(String, Json)>, Malformed> {
    if json.as_str() == "[]" {
        return Ok(Vec::new());
    }
    json.members().ok_or_else(|| Malformed::Patch(format!("{what} is a JSON object")))
}

fn ops(
    json: &Json,
    what: &str,
    op: impl Fn(Key, Json) -> Result<Op, Malformed>,
) -> Result<Vec<Op>, Malformed> {
    let members = object(json, &format!("the member {what:?}"))?;
    members
        .into_iter()
        .map(|(name, text)| op(Key::new(&name).ok_or(Malformed::Key)?, text))
        .collect()
}

fn boolean(name: &str, json: &Json) -> Result<bool, Malformed> {
    match json.as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(wrong_member(name, "true or false")),
    }
}

fn wrong_member(name: &str, right: &str) -> Malformed {
    Malformed::Patch(format!("the member {name:?} is {right}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::at;

    fn key(text: &str) -> Key {
        Key::new(text).expect("a key")
    }

    fn json(text: &str) -> Json {
        Json::parse(text.as_bytes(), 0).expect("JSON")
    }

    #[test]
    fn ops_have_the_order_of_the_grammar() {
        let text = br#"{"merge":{"o":{"a":1},"p":[]},"append":{"l":[1, 2]},"remove":["b","b"],"increment":{"visits":1},
            "default":{"theme":"dark"},"set":{"nothing":null},
            "values":{"cart":[1, 2],"coupon":null},"clear":true,"principal":"alice","if_version":7,"rotate":true,
            "expiry":{"idle":3600}}"#;
        let alice = Principal::new("alice").expect("a principal");
        let expected = Patch {
            if_version: Some(7),
            destroy: false,
            ops: vec![
                Op::ClearUnless(alice.clone()),
                Op::Clear,
                Op::Set(key("cart"), json("[1,2]")),
                Op::Remove(key("coupon")),
                Op::Remove(key("b")),
                Op::Remove(key("b")),
                Op::Set(key("nothing"), Json::null()),
                Op::Default(key("theme"), json("\"dark\"")),
                Op::Increment(key("visits"), 1),
                Op::Append(key("l"), json("[1,2]")),
                Op::Merge(key("o"), json("{\"a\":1}")),
                Op::Merge(key("p"), json("[]")),
            ],
            expiry: Some(ExpiryChange::Own(Expiry::Idle(Duration::from_hours(1)))),
            principal: Some(PrincipalChange::LogIn(alice)),
            rotate: Some(Rotate::Token),
            held: None,
            drops_if_lost: false,
        };
        assert_eq!(patch(text), Ok(expected));
        assert_eq!(patch(b"[]"), Ok(Patch::default()));
        assert_eq!(patch(br#"{"values":[]}"#), Ok(Patch::default()));
    }

    #[test]
    fn log_outs_and_rotations_are_read() {
        let log_out = Patch { principal: Some(PrincipalChange::LogOut), ..Patch::default() };
        assert_eq!(patch(br#"{"principal":null}"#), Ok(log_out));
        for (text, rotate) in
            [("true", Some(Rotate::Token)), ("\"id\"", Some(Rotate::Id)), ("false", None)]
        {
            let text = format!("{{\"rotate\":{text}}}");
            assert_eq!(patch(text.as_bytes()), Ok(Patch { rotate, ..Patch::default() }));
        }
    }

    #[test]
    fn list_is_dropped_only_if_each_of_it_is() {
        let drops =
            |text: &str| patches([text.as_bytes()]).map(|patch| patch.unwrap().drops_if_lost);
        assert_eq!(drops(r#"{"set":{"a":1},"if_lost":"drop"}"#), Ok(true));
        assert_eq!(drops(r#"{"if_lost":"drop"},{"set":{"a":1},"if_lost":"drop"}"#), Ok(true));
        assert_eq!(drops(r#"{"if_lost":"drop"},{"set":{"a":1}}"#), Ok(false));
        assert_eq!(drops(r#"{"principal":null},{"if_lost":"drop"}"#), Ok(false));
        assert!(patches([&br#"{"principal":"a"},{"principal":null}"#[..]]).is_err());
    }

    #[test]
    fn invalid_patches_are_refused() {
        for text in [
            "1",
            "[1]",
            r#"{"unknown":1}"#,
            r#"{"values":1}"#,
            r#"{"values":[1]}"#,
            r#"{"clear":1}"#,
            r#"{"destroy":null}"#,
            r#"{"if_version":-1}"#,
            r#"{"if_version":"7"}"#,
            r#"{"rotate":"yes"}"#,
            r#"{"remove":{"a":1}}"#,
            r#"{"if_lost":"fail"}"#,
            r#"{"if_lost":"drop","destroy":true}"#,
            r#"{"if_lost":"drop","principal":null}"#,
            r#"{"if_lost":"drop","rotate":"id"}"#,
        ] {
            assert!(matches!(patch(text.as_bytes()), Err(Malformed::Patch(_))), "{text}");
        }
        assert!(matches!(patch(b"{"), Err(Malformed::Json(_))));
        assert!(matches!(patch(br#"{"values":{"a":1,"a":2}}"#), Err(Malformed::Json(_))));
        assert_eq!(patch(br#"{"values":{"":1}}"#), Err(Malformed::Key));
        assert_eq!(patch(br#"{"principal":""}"#), Err(Malformed::Principal));
        assert_eq!(patch(br#"{"remove":["a",1]}"#), Err(Malformed::Key));
        assert_eq!(patch(br#"{"append":{"a":1}}"#), Err(Malformed::NotAnArray(key("a"))));
        assert_eq!(patch(br#"{"merge":{"a":[1]}}"#), Err(Malformed::NotAnObject(key("a"))));
        assert_eq!(patch(br#"{"principal":"a\nb"}"#), Err(Malformed::Principal));
        for space in [' ', '\t', '\u{a0}', '\u{2003}', '\u{3000}', '\u{85}'] {
            for name in [format!("{space}ada"), format!("ada{space}"), space.to_string()] {
                let text = format!("{{\"principal\":{}}}", serde_json::json!(name));
                assert_eq!(patch(text.as_bytes()), Err(Malformed::Principal), "{name:?}");
            }
        }
        assert!(patch("{\"principal\":\"ada l.\u{a0}k\"}".as_bytes()).is_ok());
        assert_eq!(patch(br#"{"increment":{"a":1.5}}"#), Err(Malformed::Increment));
    }

    #[test]
    fn expiry_has_three_forms() {
        let own = |text: &str| match expiry(text.as_bytes()) {
            Ok(ExpiryChange::Own(expiry)) => Some(expiry),
            _ => None,
        };
        let minute = Duration::from_mins(1);
        assert_eq!(own(r#"{"idle":60}"#), Some(Expiry::Idle(minute)));
        assert_eq!(own(r#"{"at":"1970-01-01T00:01:00Z"}"#), Some(Expiry::At(at(60))));
        assert_eq!(own(r#"{"at":60}"#), Some(Expiry::At(at(60))));
        assert_eq!(own(r#"{"at":60.5}"#), Some(Expiry::At(Timestamp::from_millis(60_500))));
        assert_eq!(own(r#"{"browser_close":true}"#), Some(Expiry::BrowserClose(None)));
        assert_eq!(
            own(r#"{"browser_close":true,"idle":60}"#),
            Some(Expiry::BrowserClose(Some(minute)))
        );
        assert_eq!(expiry(b"null"), Ok(ExpiryChange::Policy));
        for text in [
            "{}",
            "1",
            r#"{"idle":0}"#,
            r#"{"idle":1.5}"#,
            r#"{"idle":-1}"#,
            r#"{"at":"tomorrow"}"#,
            r#"{"at":-1}"#,
            r#"{"idle":1,"at":1}"#,
            r#"{"browser_close":false}"#,
            r#"{"until":1}"#,
            r#"{"at":1e300}"#,
            r#"{"at":true}"#,
        ] {
            assert_eq!(expiry(text.as_bytes()), Err(Malformed::Expiry), "{text}");
        }
    }

    #[test]
    fn lines_are_one_list() {
        let lines: [&[u8]; 2] =
            [br#"{"increment":{"a":1}},{"increment":{"a":2}}"#, br#"{"values":{"b":"x,y"}}"#];
        let ops = vec![
            Op::Increment(key("a"), 1),
            Op::Increment(key("a"), 2),
            Op::Set(key("b"), json("\"x,y\"")),
        ];
        assert_eq!(patches(lines).map(|patch| patch.unwrap().ops), Ok(ops));
        assert!(patches([&br#"{"principal":"a"},{"principal":"b"}"#[..]]).is_err());
        for line in [&b"{"[..], b"", b"{},", b"{}]", b"1", b"\xff"] {
            let read = patches([line]);
            assert!(line.is_empty() == read.is_ok(), "{read:?}");
        }
    }

    #[test]
    fn element_nests_one_level_less() {
        assert_eq!(element(b" {\"a\": 1} "), Ok(json("{\"a\":1}")));
        for text in [&b"1,2"[..], b"", b"1]", b"],["] {
            assert!(element(text).is_err());
        }
        let nested = |levels: usize| ["[".repeat(levels), "]".repeat(levels)].concat();
        assert!(element(nested(127).as_bytes()).is_ok());
        assert!(element(nested(128).as_bytes()).is_err());
    }
}
