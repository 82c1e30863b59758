//! The pages: from a request to its response.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use tracing::{error, info};

use super::audit::Query;
use super::end::{Ended, Selection};
use super::guard::{Availability, Credentials, Guard, Operator};
use super::list::List;
use super::logins::Right;
use super::now::{Now, Sources};
use super::page::{self, LogInForm, Viewer};
use super::problem::{self, PageResult};
use super::response::{self, Format};
use super::route::{Route, Unknown};
use super::search::Search;
use super::session::{Session, SessionValues};
use super::summary::Summary;
use super::{Readiness, Settings, State};
use crate::audit::{By, Entry, Filter, Source};
use crate::body::{Body, CollectError, collect};
use crate::html::Form;
use crate::metrics::Event;
use crate::server::{Peer, Tasks};
use crate::session::id::PublicId;
use crate::sessions::{Directory, Sessions};
use crate::store::Want;
use crate::wire::Problem;

/// The maximum size of a form: a principal and two ids, percent-encoded.
const MAX_FORM: usize = 8 * 1024;

/// The time in which a form must arrive.
const FORM_DEADLINE: Duration = Duration::from_secs(10);

/// The maximum number of audit entries on the page of a session.
const MAX_ENTRIES: usize = 50;

/// The pages of one configuration.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    pub(super) sessions: Sessions,
    /// Changes run as tasks of their own, so that they complete although the client hangs up.
    pub(super) tasks: Tasks,
    pub(super) settings: Arc<Settings>,
    pub(super) state: Arc<State>,
    pub(super) readiness: Arc<Readiness>,
}

/// A request to a page, before it is known who sent it.
struct Call<'a> {
    parts: &'a Parts,
    format: Format,
    peer: &'a Peer,
    credentials: Credentials,
    route: Route,
    form: Form,
}

impl Call<'_> {
    fn is_change(&self) -> bool {
        self.parts.method == Method::POST
    }
}

impl Pages {
    /// Returns the response to a request.
    pub(super) async fn respond(
        &self,
        mut parts: Parts,
        body: Body,
        peer: &Peer,
    ) -> Response<Body> {
        let format = Format::of(&parts.headers);
        let credentials = Credentials::take(&mut parts.headers, peer);
        let next = match parts.method {
            Method::GET | Method::HEAD => {
                parts.uri.path_and_query().map_or("/", |path| path.as_str())
            }
            // The page that a form is on, rather than its action.
            _ => "/sessions",
        };
        let login = LogInForm { form_token: &self.state.guard.login_form, next };
        match self.call(&parts, format, peer, credentials, body).await {
            Ok(response) => response,
            Err(problem) if problem.status == StatusCode::METHOD_NOT_ALLOWED => {
                let allow = Route::find(parts.uri.path()).map_or("GET, HEAD", Route::allow);
                response::with_allow(page::refuse(&problem, format, &login), allow)
            }
            Err(problem) => page::refuse(&problem, format, &login),
        }
    }

    /// Refuses a request before it is known what it asks for.
    pub(super) fn refuse(&self, problem: &Problem, headers: &HeaderMap) -> Response<Body> {
        let login = LogInForm { form_token: &self.state.guard.login_form, next: "/" };
        page::refuse(problem, Format::of(headers), &login)
    }

    async fn call(
        &self,
        parts: &Parts,
        format: Format,
        peer: &Peer,
        credentials: Credentials,
        body: Body,
    ) -> PageResult<Response<Body>> {
        let route = match (Route::find(parts.uri.path()), self.settings.availability) {
            (Err(Unknown::Path), _) => return Err(problem::not_found()),
            (Ok(route @ (Route::Now | Route::Stylesheet)), _) | (Ok(route), Availability::On) => {
                route
            }
            (_, Availability::Off(reason)) => return Err(problem::pages_off(reason)),
            (Err(Unknown::Id), Availability::On) => {
                self.guard().identify(&credentials)?;
                return Err(problem::no_such_session());
            }
        };
        if !route.allows(&parts.method) {
            return Err(problem::method_not_allowed(route.allow()));
        }
        let form = match parts.method {
            Method::POST => form(&parts.headers, body).await?,
            _ => Form::parse(parts.uri.query().unwrap_or_default()),
        };
        let call = Call { parts, format, peer, credentials, route, form };
        match route {
            Route::Stylesheet => Ok(response::stylesheet()),
            Route::Now => self.now(&call).await,
            Route::LogIn => self.log_in(&call),
            Route::LogOut => self.log_out(&call),
            Route::Sessions
            | Route::Session(_)
            | Route::Values(_)
            | Route::End(_)
            | Route::EndAll
            | Route::Audit => self.serve(&call).await,
        }
    }

    fn guard(&self) -> Guard<'_> {
        Guard {
            tokens: &self.settings.tokens,
            state: &self.state.guard,
            audit: &self.sessions.shared().audit,
            now: self.sessions.shared().clock.now(),
        }
    }

    /// Returns all sessions, for changes by the operator at `peer`.
    fn directory(&self, peer: &Peer) -> PageResult<Directory> {
        Ok(self.sessions.directory(By::Operator)?.for_request(source(peer)))
    }

    /// Serves the page that needs no token.
    async fn now(&self, call: &Call<'_>) -> PageResult<Response<Body>> {
        let store = self.readiness.report(&self.sessions, &self.tasks).await;
        let now = Now::read(&Sources {
            shared: self.sessions.shared(),
            state: &self.state,
            settings: &self.settings,
            store,
        });
        let operator = self.guard().logged_in(&call.credentials);
        let viewer = Viewer { operator: operator.as_ref(), show_values: false };
        page::render(&now, call.format, &viewer)
    }

    fn log_in(&self, call: &Call<'_>) -> PageResult<Response<Body>> {
        let login = self.guard().log_in(&call.credentials, &call.parts.headers, &call.form)?;
        let response = match call.format {
            Format::Html => response::see_other(next(&call.form)),
            Format::Json => {
                let until = login.until;
                let token = login.form_token.reveal();
                response::json(format!("{{\"until\":\"{until}\",\"form_token\":\"{token}\"}}"))
            }
        };
        Ok(response::with_cookie(response, &login, call.peer))
    }

    fn log_out(&self, call: &Call<'_>) -> PageResult<Response<Body>> {
        let operator = self.guard().identify(&call.credentials)?;
        Guard::check_change(&operator, &call.parts.headers, &call.form)?;
        if let Operator::LoggedIn(login) = operator {
            self.state.guard.logins.remove(&login.id);
        }
        let response = match call.format {
            Format::Html => response::see_other("/"),
            Format::Json => response::json("{}".to_owned()),
        };
        Ok(response::without_cookie(response, call.peer))
    }

    /// Serves a page that needs a token.
    async fn serve(&self, call: &Call<'_>) -> PageResult<Response<Body>> {
        let operator = self.authorize(call)?;
        let viewer = Viewer { operator: Some(&operator), show_values: self.settings.show_values };
        let shared = self.sessions.shared();
        match call.route {
            Route::Sessions => {
                let search = Search::parse(&call.form)?;
                let found = search.run(&self.directory(call.peer)?).await?;
                let list = List { search, found, policy: &shared.policy, now: shared.clock.now() };
                page::render(&list, call.format, &viewer)
            }
            Route::Session(id) => {
                page::render(&self.session(id, call).await?, call.format, &viewer)
            }
            Route::Values(id) => page::render(&self.values(id, call).await?, call.format, &viewer),
            Route::End(id) => self.end(Selection::One(id), call, &viewer).await,
            Route::EndAll => self.end(Selection::parse(&call.form)?, call, &viewer).await,
            Route::Audit => {
                let trail = Query::parse(&call.form)?.run(&shared.audit);
                page::render(&trail, call.format, &viewer)
            }
            Route::Now | Route::Stylesheet | Route::LogIn | Route::LogOut => {
                Err(problem::not_found())
            }
        }
    }

    /// Checks that the sender may do what the request asks for.
    fn authorize(&self, call: &Call<'_>) -> PageResult<Operator> {
        let operator = self.guard().identify(&call.credentials)?;
        if call.is_change() {
            Guard::check_change(&operator, &call.parts.headers, &call.form)?;
        }
        // A page that asks for the confirmation of a change is of no use without the right to it.
        let needs_full = call.is_change() || matches!(call.route, Route::End(_) | Route::EndAll);
        if needs_full && operator.right() != Right::Full {
            return Err(problem::read_only());
        }
        Ok(operator)
    }

    async fn session(&self, id: PublicId, call: &Call<'_>) -> PageResult<Session<'_>> {
        let shared = self.sessions.shared();
        let found = self.directory(call.peer)?.find(id, Want::Values).await?.session;
        let (place, record) = found.ok_or_else(problem::no_such_session)?;
        let name = id.to_string();
        let filter = Filter { session: Some(&name), ..Filter::default() };
        Ok(Session {
            summary: Summary::of(place, record),
            policy: &shared.policy,
            now: shared.clock.now(),
            entries: shared.audit.recent(&filter, MAX_ENTRIES),
        })
    }

    /// Returns the values of a session, which is recorded first.
    async fn values(&self, id: PublicId, call: &Call<'_>) -> PageResult<SessionValues> {
        if !self.settings.show_values {
            return Err(problem::values_hidden());
        }
        let found = self.directory(call.peer)?.find(id, Want::Values).await?.session;
        let (_, record) = found.ok_or_else(problem::no_such_session)?;
        let entry = Entry::new(Event::ValuesShown, By::Operator);
        let entry = entry.of(id, record.meta.principal.as_ref()).from(source(call.peer));
        self.sessions.shared().audit.record(entry);
        Ok(SessionValues { id: id.to_string(), values: record.values })
    }

    /// Asks for a confirmation, or ends sessions.
    async fn end(
        &self,
        selection: Selection,
        call: &Call<'_>,
        viewer: &Viewer<'_>,
    ) -> PageResult<Response<Body>> {
        let directory = self.directory(call.peer)?;
        if !call.is_change() {
            return page::render(&selection.confirm(&directory).await?, call.format, viewer);
        }
        let client = call.peer.address.map(|address| address.ip());
        let end = async move {
            let ended = selection.end(&directory).await?;
            let client = client.map(tracing::field::display);
            info!(ended = ended.0.count, client, "operator ended sessions");
            Ok(ended)
        };
        let ended: PageResult<Ended> = self.tasks.run(end).await.unwrap_or_else(|panic| {
            error!(%panic, "ending sessions panicked");
            Err(problem::internal())
        });
        page::render(&ended?, call.format, viewer)
    }
}

/// Returns what the audit trail has about an operator's request.
fn source(peer: &Peer) -> Source {
    Source { client: peer.address.map(|address| address.ip()), ..Source::default() }
}

/// Returns the path to open after a log-in: one of this listener.
fn next(form: &Form) -> &str {
    let next = form.get("next").unwrap_or_default();
    // Browsers read `//host` and `/\host` as another host.
    let is_own = next.starts_with('/')
        && !next.starts_with("//")
        && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if is_own { next } else { "/sessions" }
}

async fn form(headers: &HeaderMap, body: Body) -> PageResult<Form> {
    let bytes = collect(body, MAX_FORM, FORM_DEADLINE).await.map_err(|error| match error {
        CollectError::TooLarge => problem::body_too_large(MAX_FORM),
        CollectError::TimedOut | CollectError::Broken(_) => {
            problem::malformed_request("the form is incomplete")
        }
    })?;
    let is_form = headers.get(CONTENT_TYPE).is_some_and(|media| {
        let media = media.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        media.trim_ascii().eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
    });
    if !bytes.is_empty() && !is_form {
        let detail = "the body must be a form (application/x-www-form-urlencoded)";
        return Err(Problem {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ..problem::malformed_request(detail)
        });
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| problem::malformed_request(format!("the form is not UTF-8: {error}")))?;
    Ok(Form::parse(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_in_leads_to_our_own_pages() {
        for (given, path) in [
            ("/sessions?id=a", "/sessions?id=a"),
            ("/", "/"),
            ("//evil.test", "/sessions"),
            ("/%5Cevil.test", "/sessions"),
            ("http://evil.test/", "/sessions"),
            ("/a%0Ab", "/sessions"),
            ("", "/sessions"),
        ] {
            assert_eq!(next(&Form::parse(&format!("next={given}"))), path, "{given}");
        }
    }
}
