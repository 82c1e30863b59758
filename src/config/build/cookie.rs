//! How the cookie is called and set.

use super::super::file::Cookie;
use super::context::Context;
use crate::session::cookie::{Attributes, SameSite};

/// The cookie's attributes.
pub(super) fn attributes(table: &Cookie, context: &mut Context<'_>) -> Attributes {
    let default = Attributes::default();
    let path = path(table, context);
    let domain = domain(table, context);
    let secure = table.secure.or(default.secure);
    let may_be_host = secure && domain.is_none() && path == "/";
    let plain = if may_be_host { default.name.as_str() } else { "id" };
    let attributes = Attributes {
        name: name(table, plain, context),
        path,
        domain,
        secure,
        http_only: table.http_only.or(default.http_only),
        same_site: table.same_site.or(default.same_site),
        partitioned: table.partitioned.or(default.partitioned),
    };
    check_prefix(table, &attributes, context);
    check_secure(table, &attributes, context);
    attributes
}

/// A token (RFC 6265, section 4.1.1, by RFC 2616).
fn name(table: &Cookie, default: &str, context: &mut Context<'_>) -> String {
    let is_token = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&b))
    };
    match table.name.found() {
        None => default.to_owned(),
        Some((name, _)) if is_token(name) && name.len() <= 128 => name.clone(),
        Some((_, origin)) => {
            let message = "is no cookie's name; write at most 128 letters, digits and signs \
                           without spaces or any of ()<>@,;:\\\"/[]?={}";
            context.error(origin, message);
            default.to_owned()
        }
    }
}

fn path(table: &Cookie, context: &mut Context<'_>) -> String {
    match table.path.found() {
        None => "/".to_owned(),
        Some((path, _))
            if path.starts_with('/')
                && path.bytes().all(|b| matches!(b, b' '..=b'~') && b != b';')
                && path.trim_end() == path =>
        {
            path.clone()
        }
        Some((_, origin)) => {
            let message = "is no cookie's path; write one that begins with a slash, in ASCII, \
                           without a semicolon";
            context.error(origin, message);
            "/".to_owned()
        }
    }
}

fn domain(table: &Cookie, context: &mut Context<'_>) -> Option<String> {
    let (domain, origin) = table.domain.found()?;
    let name = domain.strip_prefix('.').unwrap_or(domain);
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    if name.split('.').all(is_label) {
        return Some(name.to_ascii_lowercase());
    }
    let message = "is no domain; write a host's name in ASCII, without port or semicolon, as \
                   \"example.org\"";
    context.error(origin, message);
    None
}

/// What browsers demand of a name with a prefix (RFC 6265bis, section 4.1.3), whatever its case.
fn check_prefix(table: &Cookie, attributes: &Attributes, context: &mut Context<'_>) {
    let name = attributes.name.to_ascii_lowercase();
    let origin = table.name.origin("cookie.name");
    let is_host = name.starts_with("__host-");
    if (is_host || name.starts_with("__secure-")) && !attributes.secure {
        let prefix = if is_host { "__Host-" } else { "__Secure-" };
        let message = format!("{prefix} demands secure = true; choose a name without the prefix");
        context.error(&origin, message);
    }
    if is_host && attributes.path != "/" {
        let message = "__Host- demands path = \"/\"; choose a name without the prefix";
        context.error(&origin, message);
    }
    if is_host && attributes.domain.is_some() {
        let message = "__Host- demands that there is no domain; choose a name without the prefix";
        context.error(&origin, message);
    }
}

/// What browsers refuse without Secure.
fn check_secure(table: &Cookie, attributes: &Attributes, context: &mut Context<'_>) {
    if attributes.secure {
        return;
    }
    if attributes.same_site == SameSite::None {
        let origin = table.same_site.origin("cookie.same_site");
        context.error(&origin, "\"None\" demands secure = true; write \"Lax\", or set secure");
    }
    if attributes.partitioned {
        let origin = table.partitioned.origin("cookie.partitioned");
        context.error(&origin, "true demands secure = true; write false, or set secure");
    }
}
