//! What a call brings beside its path: query, preconditions, preferences, body.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, IF_MATCH, IF_NONE_MATCH};
use http::request::Parts;
use percent_encoding::percent_decode_str;

use super::problem::{self, Answered};
use crate::body::{Body, CollectError, collect};
use crate::session::record::{Key, Principal};

/// The query of a call. Which parameters a call takes, it says itself; another is an error, since
/// a misspelt `default` would lose what it says.
#[derive(Debug, Default)]
pub(super) struct Query {
    parameters: Vec<(String, String)>,
}

impl Query {
    pub(super) fn read(parts: &Parts, allowed: &[&str]) -> Answered<Self> {
        let mut parameters: Vec<(String, String)> = Vec::new();
        let pairs =
            parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        for pair in pairs {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            if !allowed.contains(&name.as_str()) {
                return Err(problem::malformed_request(format!(
                    "there is no parameter {name:?} here"
                )));
            }
            if parameters.iter().any(|(known, _)| *known == name) {
                return Err(problem::malformed_request(format!(
                    "the parameter {name:?} stands there twice"
                )));
            }
            parameters.push((name, value));
        }
        Ok(Self { parameters })
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find_map(|(known, value)| (known == name).then_some(value.as_str()))
    }

    /// A parameter that is there or not: `?text`, `?text=true`.
    pub(super) fn flag(&self, name: &str) -> Answered<bool> {
        match self.text(name) {
            None | Some("false") => Ok(false),
            Some("" | "true") => Ok(true),
            Some(_) => {
                Err(problem::malformed_request(format!("the parameter {name:?} is true or false")))
            }
        }
    }

    pub(super) fn principal(&self) -> Answered<Option<Principal>> {
        self.text("principal")
            .map(|name| Principal::from_caller(name).ok_or_else(problem::invalid_principal))
            .transpose()
    }

    /// From 1 to 1,000; 100 where it is not said.
    pub(super) fn limit(&self) -> Answered<usize> {
        let Some(text) = self.text("limit") else { return Ok(100) };
        let limit = text.parse().ok().filter(|limit| (1..=1000).contains(limit));
        limit.ok_or_else(|| {
            problem::malformed_request("limit is a number from 1 to 1000".to_owned())
        })
    }
}

/// Decodes a part of a query, as forms write it: `+` is a space.
fn decode(text: &str) -> Answered<String> {
    let text = text.replace('+', " ");
    let decoded = percent_decode_str(&text).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_not_utf8| problem::malformed_request("the query is not UTF-8".to_owned()))
}

/// The key in a path. `.` and `..` are refused, since clients resolve them.
pub(super) fn key(segment: &str) -> Answered<Key> {
    let text =
        percent_decode_str(segment).decode_utf8().map_err(|_not_utf8| problem::invalid_key())?;
    if matches!(&*text, "." | "..") {
        return Err(problem::invalid_key());
    }
    Key::new(&text).ok_or_else(problem::invalid_key)
}

/// An entity tag that a request is conditional on (RFC 9110, section 13.1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// `*`: whatever is there.
    Any,
    /// This one. A weak tag never matches, and so is kept with what makes it none of ours.
    Tag(String),
}

pub(super) fn if_match(headers: &HeaderMap) -> Answered<Option<Match>> {
    let one_tag = || problem::malformed_request("If-Match names one ETag, or *".to_owned());
    let mut lines = headers.get_all(IF_MATCH).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return if headers.contains_key(IF_MATCH) { Err(one_tag()) } else { Ok(None) };
    };
    let text = line.to_str().map_err(|_not_ascii| one_tag())?.trim();
    if text == "*" {
        return Ok(Some(Match::Any));
    }
    if text.starts_with("W/") {
        return Ok(Some(Match::Tag(text.to_owned())));
    }
    let tag = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(one_tag)?;
    if tag.contains('"') { Err(one_tag()) } else { Ok(Some(Match::Tag(tag.to_owned()))) }
}

/// Whether the call is to be done only where nothing is there yet.
pub(super) fn if_none_match_any(headers: &HeaderMap) -> Answered<bool> {
    match headers.get(IF_NONE_MATCH).map(|value| value.as_bytes().trim_ascii()) {
        None => Ok(false),
        Some(b"*") => Ok(true),
        Some(_) => Err(problem::malformed_request("If-None-Match is * here".to_owned())),
    }
}

/// What the caller wants to be told of a change (RFC 7240, section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preference {
    /// What the call answers by itself.
    None,
    Minimal,
    Representation,
}

/// The first preference that says so.
pub(super) fn preference(headers: &HeaderMap) -> Preference {
    let lines = headers.get_all("prefer").iter().filter_map(|line| line.to_str().ok());
    let mut preferences = lines.flat_map(|line| line.split(',')).filter_map(|preference| {
        let preference = preference.split(';').next().unwrap_or_default();
        match preference.replace([' ', '\t', '"'], "").to_ascii_lowercase().as_str() {
            "return=minimal" => Some(Preference::Minimal),
            "return=representation" => Some(Preference::Representation),
            _ => None,
        }
    });
    preferences.next().unwrap_or(Preference::None)
}

/// Reads a call's body, whatever its Content-Type says, save one that is certainly something else.
pub(super) async fn body(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    deadline: Duration,
) -> Answered<Bytes> {
    let multipart = headers.get(CONTENT_TYPE).is_some_and(|media| {
        media.as_bytes().to_ascii_lowercase().trim_ascii_start().starts_with(b"multipart/")
    });
    let encoded = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"));
    if multipart || encoded {
        return Err(problem::not_json());
    }
    match collect(body, limit, deadline).await {
        Ok(bytes) => Ok(bytes),
        Err(CollectError::TooLarge) => Err(problem::body_too_large(limit)),
        Err(CollectError::TimedOut) => {
            Err(problem::malformed_request("the body took too long".to_owned()))
        }
        Err(CollectError::Broken(_)) => {
            Err(problem::malformed_request("the body was cut short".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;

    fn query(text: &str, allowed: &[&str]) -> Answered<Query> {
        let (parts, ()) =
            Request::get(format!("/_session?{text}")).body(()).expect("a request").into_parts();
        Query::read(&parts, allowed)
    }

    #[test]
    fn a_query_is_read_as_forms_write_it() {
        let read = query("default=%7B%22a%22%3A+1%7D&text", &["default", "text"]).expect("a query");
        assert_eq!(read.text("default"), Some("{\"a\": 1}"));
        assert_eq!(read.flag("text").ok(), Some(true));
        assert!(query("defualt=1", &["default"]).is_err());
        assert!(query("text&text", &["text"]).is_err());
        assert!(query("text=%ff", &["text"]).is_err());
        assert!(query("limit=0", &["limit"]).expect("a query").limit().is_err());
    }

    #[test]
    fn a_key_is_decoded_once_and_never_resolved() {
        assert_eq!(key("a%2Fb%20c").ok(), Key::new("a/b c"));
        assert_eq!(key("%252e").ok(), Key::new("%2e"));
        for segment in [".", "..", "%2e", "%2E%2e", "%ff", &"k".repeat(257)] {
            assert!(key(segment).is_err(), "{segment}");
        }
    }

    #[test]
    fn preconditions_name_one_tag() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(IF_MATCH, HeaderValue::from_static(text));
            if_match(&headers).ok().flatten()
        };
        assert_eq!(read("\"7\""), Some(Match::Tag("7".to_owned())));
        assert_eq!(read("*"), Some(Match::Any));
        assert_eq!(read("W/\"7\""), Some(Match::Tag("W/\"7\"".to_owned())));
        assert_eq!(read("\"7\", \"8\""), None);
        assert_eq!(read("7"), None);
    }

    #[test]
    fn minimal_answers_are_asked_for_among_others() {
        let mut headers = HeaderMap::new();
        headers.insert("prefer", HeaderValue::from_static("wait=5, Return=Minimal; x=y"));
        assert_eq!(preference(&headers), Preference::Minimal);
        headers.insert("prefer", HeaderValue::from_static("return=representation"));
        assert_eq!(preference(&headers), Preference::Representation);
        headers.remove("prefer");
        assert_eq!(preference(&headers), Preference::None);
    }
}
