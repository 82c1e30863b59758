//! The session cookie's attributes.

use super::super::file::Cookie;
use super::super::value::Text;
use super::context::Context;
use crate::session::cookie::{ADMIN_COOKIE, Attributes, SameSite};

/// Builds the attributes.
pub(super) fn attributes(cookie: &mut Cookie, context: &mut Context<'_>) -> Attributes {
    check_path(cookie, context);
    check_domain(cookie, context);
    let may_have_prefix = cookie.secure && cookie.domain.is_none() && &*cookie.path == "/";
    let default = if may_have_prefix { "__Host-id" } else { "id" };
    check_name(cookie, context);
    let name = cookie.name.get_or_insert_with(|| default.into()).0.clone();
    let attributes = Attributes {
        name,
        path: cookie.path.0.clone(),
        domain: cookie.domain.as_ref().map(|domain| domain.0.clone()),
        secure: cookie.secure,
        http_only: cookie.http_only,
        same_site: cookie.same_site,
        partitioned: cookie.partitioned,
    };
    check_prefix(&attributes, context);
    check_secure(&attributes, context);
    attributes
}

/// A name is a token (RFC 6265, section 4.1.1).
fn check_name(cookie: &Cookie, context: &mut Context<'_>) {
    let is_token = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&b))
    };
    if cookie.name.as_deref().is_some_and(|name| !is_token(name) || name.len() > 128) {
        let message = "invalid cookie name; expected at most 128 letters, digits and signs without \
                       spaces or any of ()<>@,;:\\\"/[]?={}";
        context.error("cookie.name", message);
    }
    if cookie.name.as_deref() == Some(ADMIN_COOKIE) {
        let message = "is the cookie of the admin page, which sites never see; choose another name";
        context.error("cookie.name", message);
    }
}

fn check_path(cookie: &mut Cookie, context: &mut Context<'_>) {
    let path = &*cookie.path;
    let is_plain = path.bytes().all(|b| matches!(b, b' '..=b'~') && b != b';');
    if !path.starts_with('/') || !is_plain || path.trim_end() != path {
        let message =
            "invalid cookie path; expected ASCII that begins with a slash and has no semicolon";
        context.error("cookie.path", message);
        cookie.path = "/".into();
    }
}

fn check_domain(cookie: &mut Cookie, context: &mut Context<'_>) {
    let Some(Text(domain)) = &cookie.domain else { return };
    let name = domain.strip_prefix('.').unwrap_or(domain);
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    if name.split('.').all(is_label) {
        cookie.domain = Some(Text(name.to_ascii_lowercase()));
        return;
    }
    let message =
        "invalid domain; expected a host name in ASCII without port, e.g. \"example.org\"";
    context.error("cookie.domain", message);
    cookie.domain = None;
}

/// Browsers refuse names with these prefixes, in any case, otherwise (RFC 6265bis, section 4.1.3).
fn check_prefix(attributes: &Attributes, context: &mut Context<'_>) {
    let name = attributes.name.to_ascii_lowercase();
    let is_host = name.starts_with("__host-");
    let prefix = if is_host { "__Host-" } else { "__Secure-" };
    let requirements = [
        ((is_host || name.starts_with("__secure-")) && !attributes.secure, "secure = true"),
        (is_host && attributes.path != "/", "path = \"/\""),
        (is_host && attributes.domain.is_some(), "that domain is unset"),
    ];
    for (_, requirement) in requirements.iter().filter(|(is_violated, _)| *is_violated) {
        let message = format!("{prefix} requires {requirement}; choose a name without the prefix");
        context.error("cookie.name", message);
    }
}

/// Browsers refuse these cookies without Secure.
fn check_secure(attributes: &Attributes, context: &mut Context<'_>) {
    if attributes.secure {
        return;
    }
    if attributes.same_site == SameSite::None {
        let message = "\"None\" requires secure = true; use \"Lax\", or set secure";
        context.error("cookie.same_site", message);
    }
    if attributes.partitioned {
        context.error("cookie.partitioned", "requires secure = true; remove it, or set secure");
    }
}
