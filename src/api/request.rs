//! The parts of a request besides its path: query, preconditions, preferences, body.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, IF_MATCH, IF_NONE_MATCH};
use http::request::Parts;
use percent_encoding::percent_decode_str;

use super::problem::{self, ApiResult};
use crate::body::{Body, CollectError, collect};
use crate::session::record::{Key, Principal};

/// A parameter of the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueryParameter {
    Cursor,
    Default,
    Everywhere,
    Limit,
    Principal,
    /// A user is logged out everywhere by name: leaving the name out must not log out all users.
    RequiredPrincipal,
    Text,
}

impl QueryParameter {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cursor => "cursor",
            Self::Default => "default",
            Self::Everywhere => "everywhere",
            Self::Limit => "limit",
            Self::Principal | Self::RequiredPrincipal => "principal",
            Self::Text => "text",
        }
    }
}

/// A header of a request, besides its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestHeader {
    Prefer,
    IfMatch,
    IfNoneMatch,
}

/// The query of a call.
#[derive(Debug, Default)]
pub(super) struct Query {
    parameters: Vec<(QueryParameter, String)>,
}

impl Query {
    /// Parses a query. Other parameters than the allowed ones are an error: a misspelt `default` would be lost silently.
    pub(super) fn parse(parts: &Parts, allowed: &[QueryParameter]) -> ApiResult<Self> {
        let mut parameters: Vec<(QueryParameter, String)> = Vec::new();
        let pairs =
            parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        for pair in pairs {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            let Some(parameter) = allowed.iter().copied().find(|known| known.name() == name) else {
                return Err(problem::malformed_request(format!("unknown parameter {name:?}")));
            };
            if parameters.iter().any(|(known, _)| *known == parameter) {
                return Err(problem::malformed_request(format!("duplicate parameter {name:?}")));
            }
            parameters.push((parameter, value));
        }
        Ok(Self { parameters })
    }

    pub(super) fn get(&self, parameter: QueryParameter) -> Option<&str> {
        let mut parameters = self.parameters.iter();
        parameters.find_map(|(known, value)| (*known == parameter).then_some(value.as_str()))
    }

    /// Returns whether a flag is set: `?text` and `?text=true`.
    pub(super) fn flag(&self, parameter: QueryParameter) -> ApiResult<bool> {
        match self.get(parameter) {
            None | Some("false") => Ok(false),
            Some("" | "true") => Ok(true),
            Some(_) => {
                let name = parameter.name();
                Err(problem::malformed_request(format!("{name:?} must be true or false")))
            }
        }
    }

    pub(super) fn principal(&self) -> ApiResult<Option<Principal>> {
        self.get(QueryParameter::Principal)
            .or_else(|| self.get(QueryParameter::RequiredPrincipal))
            .map(|name| Principal::from_caller(name).ok_or_else(problem::invalid_principal))
            .transpose()
    }

    /// Returns the length of a page, from 1 to 1,000; 100 by default.
    pub(super) fn limit(&self) -> ApiResult<usize> {
        let Some(text) = self.get(QueryParameter::Limit) else { return Ok(100) };
        let limit = text.parse().ok().filter(|limit| (1..=1000).contains(limit));
        limit.ok_or_else(|| {
            problem::malformed_request("limit must be a number from 1 to 1000".to_owned())
        })
    }
}

/// Decodes a part of a query (`application/x-www-form-urlencoded`): `+` is a space.
fn decode(text: &str) -> ApiResult<String> {
    let text = text.replace('+', " ");
    let decoded = percent_decode_str(&text).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_not_utf8| problem::malformed_request("the query must be UTF-8".to_owned()))
}

/// Parses the key in a path. `.` and `..` are not allowed, since clients resolve them (RFC 3986, section 5.2.4).
pub(super) fn key(segment: &str) -> ApiResult<Key> {
    let text =
        percent_decode_str(segment).decode_utf8().map_err(|_not_utf8| problem::invalid_key())?;
    if matches!(&*text, "." | "..") {
        return Err(problem::invalid_key());
    }
    Key::new(&text).ok_or_else(problem::invalid_key)
}

/// The If-Match of a request (RFC 9110, section 13.1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum IfMatch {
    /// `*`: any current representation.
    Any,
    /// One entity tag. A weak one never matches, so it keeps its `W/`, which no tag of ours has.
    Tag(String),
}

pub(super) fn if_match(headers: &HeaderMap) -> ApiResult<Option<IfMatch>> {
    let one_tag = || problem::malformed_request("If-Match must be one ETag, or *".to_owned());
    let mut lines = headers.get_all(IF_MATCH).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return if headers.contains_key(IF_MATCH) { Err(one_tag()) } else { Ok(None) };
    };
    let text = line.to_str().map_err(|_not_ascii| one_tag())?.trim();
    if text == "*" {
        return Ok(Some(IfMatch::Any));
    }
    if text.starts_with("W/") {
        return Ok(Some(IfMatch::Tag(text.to_owned())));
    }
    let tag = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(one_tag)?;
    if tag.contains('"') { Err(one_tag()) } else { Ok(Some(IfMatch::Tag(tag.to_owned()))) }
}

/// Returns whether If-None-Match is `*`: the call applies only if there is no value yet (RFC 9110, section 13.1.2).
pub(super) fn if_none_match_any(headers: &HeaderMap) -> ApiResult<bool> {
    match headers.get(IF_NONE_MATCH).map(|value| value.as_bytes().trim_ascii()) {
        None => Ok(false),
        Some(b"*") => Ok(true),
        Some(_) => Err(problem::malformed_request("If-None-Match must be * here".to_owned())),
    }
}

/// The representation that the caller wants in the response to a change (RFC 7240, section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preference {
    /// The default of the operation.
    None,
    Minimal,
    Representation,
}

/// Returns the first `return` preference.
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

/// Reads the body of a call. Its Content-Type is not checked, except for multipart forms: clients send JSON with any type.
pub(super) async fn body(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    deadline: Duration,
) -> ApiResult<Bytes> {
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
            Err(problem::malformed_request("the body is incomplete".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;

    fn query(text: &str, allowed: &[QueryParameter]) -> ApiResult<Query> {
        let (parts, ()) =
            Request::get(format!("/_session?{text}")).body(()).expect("a request").into_parts();
        Query::parse(&parts, allowed)
    }

    #[test]
    fn query_is_decoded_like_a_form() {
        use QueryParameter::{Default, Limit, Text};
        let read = query("default=%7B%22a%22%3A+1%7D&text", &[Default, Text]).expect("a query");
        assert_eq!(read.get(Default), Some("{\"a\": 1}"));
        assert_eq!(read.flag(Text).ok(), Some(true));
        assert!(query("defualt=1", &[Default]).is_err());
        assert!(query("text&text", &[Text]).is_err());
        assert!(query("text=%ff", &[Text]).is_err());
        assert!(query("limit=0", &[Limit]).expect("a query").limit().is_err());
    }

    #[test]
    fn key_is_decoded_once_and_never_resolved() {
        assert_eq!(key("a%2Fb%20c").ok(), Key::new("a/b c"));
        assert_eq!(key("%252e").ok(), Key::new("%2e"));
        for segment in [".", "..", "%2e", "%2E%2e", "%ff", &"k".repeat(257)] {
            assert!(key(segment).is_err(), "{segment}");
        }
    }

    #[test]
    fn if_match_has_one_tag() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(IF_MATCH, HeaderValue::from_static(text));
            if_match(&headers).ok().flatten()
        };
        assert_eq!(read("\"7\""), Some(IfMatch::Tag("7".to_owned())));
        assert_eq!(read("*"), Some(IfMatch::Any));
        assert_eq!(read("W/\"7\""), Some(IfMatch::Tag("W/\"7\"".to_owned())));
        assert_eq!(read("\"7\", \"8\""), None);
        assert_eq!(read("7"), None);
    }

    #[test]
    fn return_preference_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.insert("prefer", HeaderValue::from_static("wait=5, Return=Minimal; x=y"));
        assert_eq!(preference(&headers), Preference::Minimal);
        headers.insert("prefer", HeaderValue::from_static("return=representation"));
        assert_eq!(preference(&headers), Preference::Representation);
        headers.remove("prefer");
        assert_eq!(preference(&headers), Preference::None);
    }
}
