//! The JSON of patches, sessions and problems: nothing else knows it.

use std::fmt::Write;
use std::time::Duration;

use http::StatusCode;

use crate::session::id::Id;
use crate::session::json::{Json, JsonError};
use crate::session::patch::{ExpiryChange, Op, Patch, Replicated};
use crate::session::policy::Policy;
use crate::session::record::{Expiry, Key, Meta, Principal, Values};
use crate::time::Timestamp;

/// What is wrong with a JSON text that an upstream sent. The text is for its developer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is not JSON as we take it.
    #[error("the body is not JSON: {0}")]
    Json(#[from] JsonError),
    /// The lines of `X-Session-Patch`, joined by commas, are not JSON as we take it.
    #[error(
        "header X-Session-Patch, byte {at}: {reason}; write JSON, and text outside ASCII in it as \\uXXXX \
         or in UTF-8"
    )]
    Header {
        /// The offset of what is wrong.
        at: usize,
        /// What is wrong.
        reason: String,
    },
    /// It is no patch.
    #[error("{0}")]
    Patch(String),
    /// It is no expiry.
    #[error(
        "an expiry is {{\"idle\": SECONDS of at least 1}}, {{\"at\": RFC 3339 instant or UNIX seconds}}, \
         {{\"browser_close\": true}} (with idle beside it if wanted), or null"
    )]
    Expiry,
    /// It is no key of a value.
    #[error("a key is text of 1 to {max} bytes", max = Key::MAX_BYTES)]
    Key,
    /// It is no principal.
    #[error(
        "a principal is text of 1 to {max} bytes without control characters, and without white space at either end; \
         to log out, destroy the session",
        max = Principal::MAX_BYTES
    )]
    Principal,
    /// It is no integer.
    #[error("an increment is an integer of 64 bits")]
    Increment,
}

/// How many levels of a patch lie around its values: the patch, and its member.
const PATCH_LEVELS: usize = 2;

/// Reads a patch.
pub fn patch(text: &[u8]) -> Result<Patch, Malformed> {
    one_patch(&Json::parse(text, PATCH_LEVELS)?)
}

/// Reads the lines of `X-Session-Patch` as one patch: a list field of objects, joined by commas,
/// which may stand anywhere, since CGI servers join lines as they like.
pub fn patches<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Result<Patch, Malformed> {
    let mut text = b"[".to_vec();
    text.extend(lines.into_iter().collect::<Vec<_>>().join(&b","[..]));
    text.push(b']');
    let list = Json::parse(&text, PATCH_LEVELS + 1).map_err(|error| Malformed::Header {
        // The bracket is ours.
        at: error.at().saturating_sub(1),
        reason: error.reason().to_string(),
    })?;
    let mut joined = Patch::default();
    for element in list.elements().unwrap_or_default() {
        let contradiction =
            |error: crate::session::patch::TwoPrincipals| Malformed::Patch(error.to_string());
        joined = joined.then(one_patch(&element)?).map_err(contradiction)?;
    }
    Ok(joined)
}

fn one_patch(json: &Json) -> Result<Patch, Malformed> {
    let mut patch = Patch::default();
    let mut values = Vec::new();
    for (name, member) in object(json, "a patch")? {
        match name.as_str() {
            "if_version" => {
                let version = member.as_integer().and_then(|number| u64::try_from(number).ok());
                patch.if_version =
                    Some(version.ok_or_else(|| wrong(&name, "a version, as in the ETag"))?);
            }
            "destroy" => patch.destroy = boolean(&name, &member)?,
            "clear" => {
                if boolean(&name, &member)? {
                    values.push((0, vec![Op::Clear]));
                }
            }
            "values" => values.push((
                1,
                ops(&member, &name, |key, text| {
                    Ok(if text.is_null() { Op::Remove(key) } else { Op::Set(key, text) })
                })?,
            )),
            "set" => values.push((2, ops(&member, &name, |key, text| Ok(Op::Set(key, text)))?)),
            "default" => {
                values.push((3, ops(&member, &name, |key, text| Ok(Op::Default(key, text)))?));
            }
            "increment" => values.push((
                4,
                ops(&member, &name, |key, by| {
                    Ok(Op::Increment(key, by.as_integer().ok_or(Malformed::Increment)?))
                })?,
            )),
            "expiry" => patch.expiry = Some(expiry_of(&member)?),
            "principal" => {
                let name = member.as_string().as_deref().and_then(Principal::from_caller);
                patch.principal = Some(name.ok_or(Malformed::Principal)?);
            }
            "rotate" => patch.rotate = boolean(&name, &member)?,
            _ => {
                return Err(Malformed::Patch(format!(
                    "a patch has no member {name:?}; it has if_version, destroy, clear, values, set, default, \
                 increment, expiry, principal and rotate"
                )));
            }
        }
    }
    // The order of the members is the grammar's, not the text's.
    values.sort_by_key(|(order, _)| *order);
    let takes_over = patch.principal.clone().map(Op::ClearUnless);
    patch.ops = takes_over.into_iter().chain(values.into_iter().flat_map(|(_, ops)| ops)).collect();
    Ok(patch)
}

/// Reads an object of values: what replaces all that a session holds.
pub fn values(text: &[u8]) -> Result<Vec<Op>, Malformed> {
    let json = Json::parse(text, 1)?;
    let set = ops(&json, "values", |key, text| Ok(Op::Set(key, text)))?;
    Ok(std::iter::once(Op::Clear).chain(set).collect())
}

/// Reads a value.
pub fn value(text: &[u8]) -> Result<Json, Malformed> {
    Ok(Json::parse(text, 0)?)
}

/// Reads an element that is to stand in an array: one level less than a value.
pub fn element(text: &[u8]) -> Result<Json, Malformed> {
    let wrapped = [b"[", text, b"]"].concat();
    let list = Json::parse(&wrapped, 0)?;
    let mut elements = list.elements().unwrap_or_default();
    match (elements.pop(), elements.is_empty()) {
        (Some(element), true) => Ok(element),
        // "1,2", which is only a list within brackets, or nothing at all.
        _ => Ok(Json::parse(text, 0)?),
    }
}

/// Reads `{"by": 1}`, or nothing, which is 1.
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

/// Reads an expiry.
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

/// Whole seconds, from one to what RFC 3339 can still write.
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

/// The members of an object; `[]` is taken for `{}`, since PHP writes it so.
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
        _ => Err(wrong(name, "true or false")),
    }
}

fn wrong(name: &str, right: &str) -> Malformed {
    Malformed::Patch(format!("the member {name:?} is {right}"))
}

/// A session, as it is shown.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its id; `None` for a visitor without one.
    pub session: Option<(Id, &'a Meta)>,
    /// Its lifetimes.
    pub policy: &'a Policy,
    /// When it is shown.
    pub now: Timestamp,
}

impl View<'_> {
    /// The session object, with its values; `new` says that this request has made it.
    pub fn session(&self, values: &Values, new: bool) -> String {
        let mut out = self.head();
        out.push_str(",\"values\":");
        push_values(&mut out, values);
        let _ = write!(out, "{},\"new\":{new}}}", self.tail());
        out
    }

    /// The session object without values, for a list; `current` says whether it is the request's
    /// own, where there is one.
    pub fn listed(&self, current: Option<bool>) -> String {
        let mut out = self.head();
        out.push_str(&self.tail());
        if let Some(current) = current {
            let _ = write!(out, ",\"current\":{current}");
        }
        out.push('}');
        out
    }

    /// The expiry object.
    pub fn expiry(&self) -> String {
        format!("{{{}}}", self.lifetime())
    }

    fn head(&self) -> String {
        match self.session {
            None => "{\"id\":null,\"version\":null,\"principal\":null".to_owned(),
            Some((id, meta)) => {
                let principal = meta
                    .principal
                    .as_ref()
                    .map_or_else(Json::null, |name| Json::string(name.as_str()));
                format!("{{\"id\":\"{id}\",\"version\":{},\"principal\":{principal}", meta.version)
            }
        }
    }

    fn tail(&self) -> String {
        let mut out = match self.session {
            None => ",\"created_at\":null,\"last_seen_at\":null,".to_owned(),
            Some((_, meta)) => {
                format!(
                    ",\"created_at\":\"{}\",\"last_seen_at\":\"{}\",",
                    meta.created_at, meta.last_seen_at
                )
            }
        };
        out.push_str(&self.lifetime());
        if let Some((_, Meta { client: Some(client), .. })) = self.session {
            let address = client
                .address
                .map_or_else(Json::null, |address| Json::string(&address.to_string()));
            let agent = Json::string(&client.user_agent);
            let _ = write!(out, ",\"client\":{{\"address\":{address},\"user_agent\":{agent}}}");
        }
        out
    }

    fn lifetime(&self) -> String {
        let Some((_, meta)) = self.session else {
            return "\"expires_at\":null,\"expires_in\":null,\"expires_at_browser_close\":null,\"expiry\":null".to_owned();
        };
        let end = self.policy.expires_at(meta);
        format!(
            "\"expires_at\":\"{end}\",\"expires_in\":{},\"expires_at_browser_close\":{},\"expiry\":{}",
            end.since(self.now).as_secs(),
            self.policy.expires_at_browser_close(meta),
            own_expiry(meta.expiry),
        )
    }
}

fn own_expiry(expiry: Option<Expiry>) -> String {
    match expiry {
        None => "null".to_owned(),
        Some(Expiry::Idle(idle)) => format!("{{\"idle\":{}}}", idle.as_secs()),
        Some(Expiry::At(instant)) => format!("{{\"at\":\"{instant}\"}}"),
        Some(Expiry::BrowserClose(None)) => "{\"browser_close\":true}".to_owned(),
        Some(Expiry::BrowserClose(Some(idle))) => {
            format!("{{\"browser_close\":true,\"idle\":{}}}", idle.as_secs())
        }
    }
}

/// The values as one JSON object.
pub fn values_object(values: &Values) -> String {
    let mut out = String::new();
    push_values(&mut out, values);
    out
}

fn push_values(out: &mut String, values: &Values) {
    out.push('{');
    for (index, (key, text)) in values.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(out, "{comma}{}:{text}", Json::string(key.as_str()));
    }
    out.push('}');
}

/// The values as one JSON object in printable ASCII, for a header: what lies outside is escaped,
/// which JSON allows only in strings, where alone it can stand.
pub fn values_header(values: &Values) -> String {
    let text = values_object(values);
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, ' '..='~') {
            out.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

/// A problem, as RFC 9457 writes it, with the stable `code` that programs read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// The code.
    pub code: &'static str,
    /// What is wrong, for a developer.
    pub detail: String,
    /// Of a 503: how long it lasts, if that is known.
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// The media type of a problem.
    pub const MEDIA_TYPE: &'static str = "application/problem+json";

    /// The value of Retry-After (RFC 9110, section 10.2.3): whole seconds, at least one.
    pub fn retry_after_seconds(&self) -> u64 {
        let millis = self.retry_after.unwrap_or_default().as_millis();
        u64::try_from(millis.div_ceil(1000)).unwrap_or(u64::MAX).max(1)
    }

    /// The JSON text. Its `type` is `about:blank`, which says that the status says it all (RFC
    /// 9457, section 4.2.1).
    pub fn json(&self) -> String {
        format!(
            "{{\"type\":\"about:blank\",\"title\":{},\"status\":{},\"detail\":{},\"code\":\"{}\"}}",
            Json::string(self.status.canonical_reason().unwrap_or_default()),
            self.status.as_u16(),
            Json::string(&self.detail),
            self.code,
        )
    }
}

/// How many sessions have ended, and whether a replica has that: `null` where nobody waited for it.
pub fn destroyed(count: u64, replicated: Replicated) -> String {
    with_replicated(format!("{{\"destroyed\":{count}}}"), replicated)
}

/// An object, and beside its members whether a replica has what it tells.
pub fn with_replicated(mut object: String, replicated: Replicated) -> String {
    let told = match replicated {
        Replicated::NotAsked => "null",
        Replicated::Yes => "true",
        Replicated::No => "false",
    };
    object.truncate(object.len().saturating_sub(1));
    let _ = write!(object, ",\"replicated\":{told}}}");
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::{at, meta};

    fn key(text: &str) -> Key {
        Key::new(text).expect("a key")
    }

    fn json(text: &str) -> Json {
        Json::parse(text.as_bytes(), 0).expect("JSON")
    }

    #[test]
    fn a_patch_is_applied_in_the_grammars_order() {
        let text = br#"{"increment":{"visits":1},"default":{"theme":"dark"},"set":{"nothing":null},
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
                Op::Set(key("nothing"), Json::null()),
                Op::Default(key("theme"), json("\"dark\"")),
                Op::Increment(key("visits"), 1),
            ],
            expiry: Some(ExpiryChange::Own(Expiry::Idle(Duration::from_hours(1)))),
            principal: Some(alice),
            rotate: true,
        };
        assert_eq!(patch(text), Ok(expected));
        assert_eq!(patch(b"[]"), Ok(Patch::default()));
        assert_eq!(patch(br#"{"values":[]}"#), Ok(Patch::default()));
    }

    #[test]
    fn what_is_no_patch_is_refused() {
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
        ] {
            assert!(matches!(patch(text.as_bytes()), Err(Malformed::Patch(_))), "{text}");
        }
        assert!(matches!(patch(b"{"), Err(Malformed::Json(_))));
        assert!(matches!(patch(br#"{"values":{"a":1,"a":2}}"#), Err(Malformed::Json(_))));
        assert_eq!(patch(br#"{"values":{"":1}}"#), Err(Malformed::Key));
        assert_eq!(patch(br#"{"principal":null}"#), Err(Malformed::Principal));
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
    fn an_expiry_has_three_forms() {
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
    fn patch_lines_are_one_list() {
        let lines: [&[u8]; 2] =
            [br#"{"increment":{"a":1}},{"increment":{"a":2}}"#, br#"{"values":{"b":"x,y"}}"#];
        let ops = vec![
            Op::Increment(key("a"), 1),
            Op::Increment(key("a"), 2),
            Op::Set(key("b"), json("\"x,y\"")),
        ];
        assert_eq!(patches(lines).map(|patch| patch.ops), Ok(ops));
        assert!(patches([&br#"{"principal":"a"},{"principal":"b"}"#[..]]).is_err());
        for line in [&b"{"[..], b"", b"{},", b"{}]", b"1", b"\xff"] {
            let read = patches([line]);
            assert!(line.is_empty() == read.is_ok(), "{read:?}");
        }
    }

    #[test]
    fn an_element_nests_one_level_less_and_is_one() {
        assert_eq!(element(b" {\"a\": 1} "), Ok(json("{\"a\":1}")));
        for text in [&b"1,2"[..], b"", b"1]", b"],["] {
            assert!(element(text).is_err());
        }
        let nested = |levels: usize| ["[".repeat(levels), "]".repeat(levels)].concat();
        assert!(element(nested(127).as_bytes()).is_ok());
        assert!(element(nested(128).as_bytes()).is_err());
    }

    #[test]
    fn values_go_into_a_header_as_ascii() {
        let values: Values = [(key("é"), json("\"a\u{1f600}\u{7f} b\""))].into();
        assert_eq!(values_header(&values), r#"{"\u00e9":"a\ud83d\ude00\u007f b"}"#);
        let back = Json::parse(values_header(&values).as_bytes(), 0).expect("JSON").members();
        assert_eq!(back.expect("an object").pop().map(|(name, _)| name).as_deref(), Some("é"));
    }

    #[test]
    fn a_session_is_shown_as_the_contract_has_it() {
        let policy = Policy::default();
        let id = Id::from_bytes([0; 16]);
        let meta = meta(at(1_795_172_400));
        let view = View { session: Some((id, &meta)), policy: &policy, now: at(1_795_172_400) };
        let values = [(key("visits"), json("4"))].into();
        assert_eq!(
            view.session(&values, false),
            "{\"id\":\"AAAAAAAAAAAAAAAAAAAAAA\",\"version\":100,\"principal\":null,\"values\":{\"visits\":4},\
             \"created_at\":\"2026-11-20T11:00:00.000Z\",\"last_seen_at\":\"2026-11-20T11:00:00.000Z\",\
             \"expires_at\":\"2026-12-04T11:00:00.000Z\",\"expires_in\":1209600,\
             \"expires_at_browser_close\":false,\"expiry\":null,\"new\":false}"
        );
        let none = View { session: None, ..view };
        assert!(none.session(&Values::new(), false).starts_with("{\"id\":null,"));
        assert!(
            serde_json::from_str::<serde_json::Value>(&none.session(&Values::new(), false)).is_ok()
        );
    }
}
