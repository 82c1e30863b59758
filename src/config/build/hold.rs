//! The cookies of the site that routes hold.

use std::sync::Arc;

use http::Method;

use super::super::file::Route;
use super::super::value::HeldCookie;
use super::context::Context;
use crate::proxy::config::{RouteConfig, Session};
use crate::proxy::held_cookies::{HeldName, HoldConfig, RequestPattern};
use crate::session::cookie::ADMIN_COOKIE;

/// Cookies that scripts of the site read, so that the browser has to keep them.
const FOR_SCRIPTS: [&str; 4] = ["csrftoken", "XSRF-TOKEN", "_csrf", "csrf_token"];

/// Builds what one route holds. `own` is the name of our cookie.
pub(super) fn hold(
    key: &str,
    table: &Route,
    own: &str,
    context: &mut Context<'_>,
) -> Option<Arc<HoldConfig>> {
    let names = format!("{key}.hold_cookies");
    let cookies: Vec<HeldName> = table.hold_cookies.iter().map(held_name).collect();
    for held in &cookies {
        check_name(&names, &held.name, own, context);
    }
    let rotate_on = rotate_on(key, table, context);
    if table.session == Session::Off {
        let message = "has no effect when session = \"off\"; the cookies that other routes to the \
                       same upstream hold are removed there";
        context.refuse(&[&names, &format!("{key}.rotate_on")], message);
        return None;
    }
    if cookies.is_empty() {
        context.refuse(&[&format!("{key}.rotate_on")], "has no effect without hold_cookies");
        return None;
    }
    if let Some(twice) = repeated(&cookies) {
        context.error(&names, format!("has {twice} twice; remove one"));
    }
    let names_log_in = rotate_on.as_ref().is_some_and(|patterns| !patterns.is_empty());
    if let (Some(held), false) = (cookies.iter().find(|held| !held.rotates), names_log_in) {
        let message = format!(
            "{} has rotate = false, so a log-in is seen by rotate_on alone; set it, e.g. \
             rotate_on = [\"POST /login\"]",
            held.name
        );
        context.error(&names, message);
    }
    Some(Arc::new(HoldConfig { cookies, rotate_on }))
}

fn held_name(cookie: &HeldCookie) -> HeldName {
    match cookie {
        HeldCookie::Name(name) => HeldName { name: name.0.clone(), rotates: true },
        HeldCookie::Detailed { name, rotate } => {
            HeldName { name: name.0.clone(), rotates: *rotate }
        }
    }
}

fn repeated(cookies: &[HeldName]) -> Option<&str> {
    let names = cookies.iter().map(|held| held.name.as_str());
    names
        .enumerate()
        .find(|(at, name)| cookies.iter().take(*at).any(|held| held.name == *name))
        .map(|(_, name)| name)
}

fn check_name(key: &str, name: &str, own: &str, context: &mut Context<'_>) {
    let is_token = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}*".contains(&b));
    if !is_token {
        context.error(key, format!("invalid cookie name {name:?}; expected e.g. \"PHPSESSID\""));
    } else if name == ADMIN_COOKIE {
        context.error(key, format!("{name} is the cookie of the admin page; sites never see it"));
    } else if name == own {
        context.error(key, format!("{name} is our own cookie (cookie.name); hold the site's"));
    } else if FOR_SCRIPTS.contains(&name) {
        let message =
            format!("{name} is usually read by scripts of the site, which will not find it");
        context.warn(key, message);
    }
}

fn rotate_on(key: &str, table: &Route, context: &mut Context<'_>) -> Option<Vec<RequestPattern>> {
    let key = format!("{key}.rotate_on");
    let patterns = table.rotate_on.as_ref()?;
    let parsed = patterns.iter().filter_map(|text| {
        let pattern = pattern(text);
        if pattern.is_none() {
            let message = format!("invalid request {:?}; expected e.g. \"POST /login\"", &**text);
            context.error(&key, message);
        }
        pattern
    });
    Some(parsed.collect())
}

fn pattern(text: &str) -> Option<RequestPattern> {
    let (method, path) = text.split_once(' ')?;
    let method = Method::from_bytes(method.as_bytes()).ok()?;
    let is_upper = method.as_str().bytes().all(|byte| byte.is_ascii_uppercase());
    let (path, is_prefix) = match path.strip_suffix('*') {
        Some(path) => (path, true),
        None => (path, false),
    };
    let is_path = path.starts_with('/') && !path.contains(['*', ' ', '?', '#']);
    (is_upper && is_path).then(|| RequestPattern { method, path: path.to_owned(), is_prefix })
}

/// Checks that all routes with sessions to one upstream hold the same cookies, and lets those without sessions know
/// them. `routes` has the number of each in the file.
pub(super) fn share(routes: &mut [(usize, RouteConfig)], context: &mut Context<'_>) {
    for at in 0..routes.len() {
        let Some(((index, route), others)) = split(routes, at) else { continue };
        let is_shared =
            |other: &RouteConfig| other.upstreams.iter().any(|one| route.upstreams.contains(one));
        let mut shared =
            others.filter(|(_, other)| other.session != Session::Off && is_shared(other));
        if route.session == Session::Off {
            route.hold = shared.find_map(|(_, other)| other.hold.clone());
        } else if let Some((other, _)) =
            shared.find(|(other, config)| *other < index && names(config) != names(route))
        {
            let place = context.place(&format!("route[{other}]")).mention();
            let message = format!(
                "the route at {place} has the same upstream and other hold_cookies; hold the same \
                 cookies on both, or the site's log-in is valid on one alone"
            );
            let key = format!("route[{index}]");
            let set = format!("{key}.hold_cookies");
            let key = if context.is_set(&set) { set } else { key };
            context.error(&key, message);
        }
    }
}

type Numbered = (usize, RouteConfig);

/// Returns a route, and all others.
fn split(
    routes: &mut [Numbered],
    at: usize,
) -> Option<((usize, &mut RouteConfig), impl Iterator<Item = &Numbered>)> {
    let (before, rest) = routes.split_at_mut_checked(at)?;
    let ((index, route), after) = rest.split_first_mut()?;
    Some(((*index, route), before.iter().chain(after.iter())))
}

fn names(route: &RouteConfig) -> Vec<&HeldName> {
    let mut names: Vec<&HeldName> = route.hold.iter().flat_map(|hold| &hold.cookies).collect();
    names.sort_by(|one, other| one.name.cmp(&other.name));
    names
}
