//! Header exchange: the session's headers in requests, and patches in responses.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::config::{Encoding, RouteConfig};
use super::error::Error;
use super::lines::Lines;
use super::names;
use super::response;
use crate::session::patch::Patch;
use crate::session::policy::{ExchangeMode, HeaderExchange};
use crate::session::record::Values;
use crate::sessions::{Opened, ResponseKind, Shared};
use crate::wire::{self, Malformed};

/// The usual length of the token and the id, with the authority of an instance.
const LINES_BYTES: usize = 160;

/// Adds the session's headers to a cleaned request head.
pub(super) fn inject(
    headers: &mut HeaderMap,
    opened: &Opened,
    shared: &Shared,
    route: &RouteConfig,
) -> Result<(), Error> {
    let session = opened.guard.session();
    let mut lines = Lines::with_capacity(LINES_BYTES);
    session.token().sign_into(&shared.ring, &shared.instance, lines.buffer());
    if let Some(mut token) = lines.take() {
        token.set_sensitive(true);
        headers.try_insert(names::X_SESSION_TOKEN, token)?;
    }
    if let Some(id) = session.presented_id()
        && let Some(id) = lines.of(id)
    {
        headers.try_insert(names::X_SESSION_ID, id)?;
    }
    if let Some(id) = session.next_id()
        && let Some(id) = lines.of(id)
    {
        headers.try_insert(names::X_SESSION_NEXT_ID, id)?;
    }
    if let Some(principal) = opened.principal() {
        if let Some(header) = &route.principal_header {
            headers.try_insert(&header.name, encode(principal.as_str(), header.encoding)?)?;
        }
        let principal = encode(principal.as_str(), Encoding::Percent)?;
        headers.try_insert(names::X_SESSION_PRINCIPAL, principal)?;
    }
    if let Some(error) = session.error() {
        headers.try_insert(names::X_SESSION_ERROR, HeaderValue::from_static(error.code()))?;
    }
    match route.header_exchange {
        Some(exchange) => inject_data(headers, opened, exchange),
        None => Ok(()),
    }
}

/// Adds the values as far as they fit. A truncated value would be worse than none.
fn inject_data(
    headers: &mut HeaderMap,
    opened: &Opened,
    exchange: HeaderExchange,
) -> Result<(), Error> {
    match exchange.mode {
        ExchangeMode::Whole => inject_all(headers, &opened.values, exchange.max_bytes)?,
        ExchangeMode::Partial => inject_smallest(headers, &opened.values, exchange.max_bytes)?,
    }
    if let Some(meta) = opened.meta() {
        headers.try_insert(names::X_SESSION_VERSION, HeaderValue::from(meta.version))?;
    }
    Ok(())
}

/// Adds all values, or none.
fn inject_all(headers: &mut HeaderMap, values: &Values, max_bytes: usize) -> Result<(), Error> {
    let data = wire::values_header(values);
    // Common servers limit a single header to 8 KiB, or all of them together.
    if data.len() > room(&names::X_SESSION_DATA, max_bytes) {
        headers.try_insert(names::X_SESSION_DATA_OMITTED, HeaderValue::from_static("too-large"))?;
    } else {
        headers.try_insert(names::X_SESSION_DATA, sensitive(data.as_bytes())?)?;
    }
    Ok(())
}

/// Adds the smallest values, and the keys of the others. If the keys do not fit, adds no value: the upstream could not
/// distinguish a value that was omitted from one that is missing.
fn inject_smallest(
    headers: &mut HeaderMap,
    values: &Values,
    max_bytes: usize,
) -> Result<(), Error> {
    let partial = wire::values_within(values, room(&names::X_SESSION_DATA, max_bytes));
    let omitted = wire::keys_header(&partial.omitted);
    if omitted.len() > room(&names::X_SESSION_DATA_OMITTED, max_bytes) {
        headers.try_insert(names::X_SESSION_DATA_OMITTED, HeaderValue::from_static("*"))?;
        return Ok(());
    }
    headers.try_insert(names::X_SESSION_DATA, sensitive(partial.data.as_bytes())?)?;
    if !omitted.is_empty() {
        headers.try_insert(names::X_SESSION_DATA_OMITTED, sensitive(omitted.as_bytes())?)?;
    }
    Ok(())
}

/// Returns the most bytes of a value, if name and value have `max_bytes`.
fn room(name: &HeaderName, max_bytes: usize) -> usize {
    max_bytes.saturating_sub(name.as_str().len())
}

/// Removes the upstream's patch from its response. Returns it unless the route does not allow patches,
/// the upstream has failed, or the list of patches is empty.
pub(super) fn take_patch(
    headers: &mut HeaderMap,
    is_allowed: bool,
    head: ResponseKind,
) -> Result<Option<Patch>, Malformed> {
    let lines = response::take_patches(headers);
    if !is_allowed || head == ResponseKind::Failed || lines.is_empty() {
        return Ok(None);
    }
    wire::patches(lines.iter().map(HeaderValue::as_bytes))
}

/// Encodes a principal, which has no control characters, as a header value.
fn encode(principal: &str, encoding: Encoding) -> Result<HeaderValue, Error> {
    /// Recipients may read other bytes as Latin-1, as UTF-8, or reject them (RFC 9110, section 5.5).
    const NOT_VISIBLE: &AsciiSet = &CONTROLS.add(b' ').add(b'%');
    match encoding {
        Encoding::Percent => {
            let text: Cow<'_, str> = utf8_percent_encode(principal, NOT_VISIBLE).into();
            value(text.as_bytes())
        }
        Encoding::Utf8 => value(principal.as_bytes()),
    }
}

fn value(bytes: &[u8]) -> Result<HeaderValue, Error> {
    HeaderValue::from_bytes(bytes).map_err(Error::Header)
}

fn sensitive(bytes: &[u8]) -> Result<HeaderValue, Error> {
    let mut value = value(bytes)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_principals_as_configured() {
        for (principal, percent) in [
            ("ada", "ada"),
            ("ada@example.org", "ada@example.org"),
            ("DOMAIN\\ada", "DOMAIN\\ada"),
            ("a b", "a%20b"),
            ("100%", "100%25"),
            ("Zo\u{eb}", "Zo%C3%AB"),
            ("\u{738b}", "%E7%8E%8B"),
            ("~!\"#$&'()*+,/:;<=>?[]^_`{|}", "~!\"#$&'()*+,/:;<=>?[]^_`{|}"),
        ] {
            assert_eq!(encode(principal, Encoding::Percent).expect("a value"), percent);
            let raw = encode(principal, Encoding::Utf8).expect("a value");
            assert_eq!(raw.as_bytes(), principal.as_bytes());
        }
    }
}
