//! The guard: who may see the pages, and change anything.
//!
//! A program sends `Authorization: Bearer TOKEN`. A browser sends the token once, and gets a cookie that names an entry in
//! this process. Browsers send that cookie with requests that pages of other origins cause, so a form also needs
//! `Sec-Fetch-Site: same-origin` and a token that only our own pages contain.

use std::net::IpAddr;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use tracing::info;

use super::attempts::Attempts;
use super::config::{Config, Tokens};
use super::logins::{Login, Logins, Right, random_text};
use super::problem::{self, PageResult};
use crate::audit::{Audit, By, Entry, Source};
use crate::html::Form;
use crate::log::limited;
use crate::metrics::Event;
use crate::secret::Secret;
use crate::server::Peer;
use crate::session::cookie::{self, ADMIN_COOKIE};
use crate::time::Timestamp;

/// An operator.
#[derive(Clone, Debug)]
pub(super) enum Operator {
    /// A program with a token.
    Bearer(Right),
    /// A browser.
    LoggedIn(Login),
}

/// Whether the pages that need a token are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    On,
    /// Not, for this reason.
    Off(&'static str),
}

/// The log-ins and attempts, which a reload keeps.
#[derive(Debug)]
pub(super) struct GuardState {
    pub(super) logins: Logins,
    attempts: Attempts,
    /// The token of the log-in form. It is that of the process: a page of another origin cannot read it.
    pub(super) login_form: Secret,
}

impl Default for GuardState {
    fn default() -> Self {
        Self { logins: Logins::default(), attempts: Attempts::default(), login_form: random_text() }
    }
}

impl Availability {
    /// Decides for a listener.
    pub(super) fn of(config: &Config, tokens: &Tokens) -> Self {
        if tokens.full.is_none() && tokens.read.is_none() {
            Self::Off("there is no [admin] token")
        } else if config.is_private() {
            Self::On
        } else {
            Self::Off("off loopback, tokens need [admin] tls")
        }
    }
}

impl Operator {
    pub(super) fn right(&self) -> Right {
        match self {
            Self::Bearer(right) => *right,
            Self::LoggedIn(login) => login.right,
        }
    }
}

/// The parts of a request that say who sent it.
#[derive(Debug)]
pub(super) struct Credentials {
    /// The token, if there is an Authorization header.
    bearer: Option<Secret>,
    /// The values of our cookie.
    cookies: cookie::Values,
    client: Option<IpAddr>,
}

impl Credentials {
    /// Takes them out of a request.
    pub(super) fn take(headers: &mut HeaderMap, peer: &Peer) -> Self {
        let cookies = cookie::take(headers, ADMIN_COOKIE);
        let lines: Vec<HeaderValue> = headers.get_all(AUTHORIZATION).iter().cloned().collect();
        headers.remove(AUTHORIZATION);
        let bearer = match lines.as_slice() {
            [] => None,
            [line] => Some(bearer(line.as_bytes())),
            // None of them counts.
            _ => Some(Secret::new(String::new())),
        };
        Self { bearer, cookies, client: peer.address.map(|address| address.ip()) }
    }
}

/// Returns the token of an Authorization line; empty for another scheme.
fn bearer(line: &[u8]) -> Secret {
    let parts = line.split_at_checked("Bearer ".len());
    let token = parts.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    let token = token.and_then(|(_, token)| std::str::from_utf8(token.trim_ascii()).ok());
    Secret::new(token.unwrap_or_default().to_owned())
}

/// The guard of one configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard<'a> {
    pub(super) tokens: &'a Tokens,
    pub(super) state: &'a GuardState,
    pub(super) audit: &'a Audit,
    pub(super) now: Timestamp,
}

impl Guard<'_> {
    /// Identifies the sender of a request. If it has an Authorization header, that alone counts.
    pub(super) fn identify(&self, credentials: &Credentials) -> PageResult<Operator> {
        match &credentials.bearer {
            Some(token) => {
                Ok(Operator::Bearer(self.check_token(token.reveal(), credentials.client)?))
            }
            None => self.logged_in(credentials).ok_or_else(problem::token_missing),
        }
    }

    /// Returns the log-in of a browser.
    pub(super) fn logged_in(&self, credentials: &Credentials) -> Option<Operator> {
        self.state.logins.find(&credentials.cookies, self.now).map(Operator::LoggedIn)
    }

    /// Creates a log-in from the form, or for the token of a program.
    pub(super) fn log_in(
        &self,
        credentials: &Credentials,
        headers: &HeaderMap,
        form: &Form,
    ) -> PageResult<Login> {
        let right = if let Some(token) = &credentials.bearer {
            check_origin_of_program(headers)?;
            self.check_token(token.reveal(), credentials.client)?
        } else {
            check_origin_of_form(headers)?;
            check_form_token(form, &self.state.login_form)?;
            self.check_token(form.field("token"), credentials.client)?
        };
        info!(
            client = credentials.client.map(tracing::field::display),
            ?right,
            "operator logged in"
        );
        Ok(self.state.logins.create(right, self.now))
    }

    /// Checks a request that changes or reveals something.
    pub(super) fn check_change(
        operator: &Operator,
        headers: &HeaderMap,
        form: &Form,
    ) -> PageResult<()> {
        match operator {
            Operator::Bearer(_) => check_origin_of_program(headers),
            Operator::LoggedIn(login) => {
                check_origin_of_form(headers)?;
                check_form_token(form, &login.form_token)
            }
        }
    }

    fn check_token(&self, given: &str, client: Option<IpAddr>) -> PageResult<Right> {
        self.state.attempts.check(client, self.now).map_err(|rest| {
            let client = client.map(tracing::field::display);
            limited!(
                warn,
                "admin_tokens_limited",
                client,
                "too many wrong tokens at the admin listener"
            );
            problem::too_many_attempts(rest)
        })?;
        let is = |token: &Option<Secret>| {
            token.as_ref().is_some_and(|token| token.matches(given.as_bytes()))
        };
        // Both are compared in any case.
        let (full, read) = (is(&self.tokens.full), is(&self.tokens.read));
        match (full, read) {
            (true, _) => Ok(Right::Full),
            (false, true) => Ok(Right::Read),
            (false, false) if given.is_empty() => Err(problem::token_missing()),
            (false, false) => {
                self.state.attempts.failed(client, self.now);
                let entry = Entry::new(Event::WrongToken, By::Operator);
                self.audit.record(entry.from(Source { client, ..Source::default() }));
                let client = client.map(tracing::field::display);
                limited!(warn, "admin_token_wrong", client, "wrong token at the admin listener");
                Err(problem::token_wrong())
            }
        }
    }
}

/// Checks that a form was sent by a page of this origin (Fetch Metadata). Browsers send the header to localhost and over
/// TLS, which is where tokens are taken.
fn check_origin_of_form(headers: &HeaderMap) -> PageResult<()> {
    if fetch_site(headers) == Some(b"same-origin") { Ok(()) } else { Err(problem::cross_site()) }
}

/// A program sends no such header, and no foreign page can add an Authorization header without our consent.
fn check_origin_of_program(headers: &HeaderMap) -> PageResult<()> {
    match fetch_site(headers) {
        None | Some(b"same-origin") => Ok(()),
        Some(_) => Err(problem::cross_site()),
    }
}

fn fetch_site(headers: &HeaderMap) -> Option<&[u8]> {
    let mut lines = headers.get_all("sec-fetch-site").iter();
    match (lines.next(), lines.next()) {
        (None, _) => None,
        (Some(line), None) => Some(line.as_bytes()),
        (Some(_), Some(_)) => Some(b""),
    }
}

fn check_form_token(form: &Form, token: &Secret) -> PageResult<()> {
    let given = form.get("form_token").unwrap_or_default();
    if token.matches(given.as_bytes()) { Ok(()) } else { Err(problem::form_token_wrong()) }
}
