//! The built-in upstream: which page a request asks for, and what a form does.
//!
//! It is a site as any other: it keeps nothing, and reaches sessions as the proxy tells it to.
//! A form is answered with a redirect to a page, so that loading that again does nothing twice.

use std::time::Duration;

use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, LOCATION,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::api::{Api, Error, Session, json_or_text};
use super::exchange;
use super::form::Form;
use super::html::{Frame, Page};
use super::pages::{self, TestCookie};
use crate::body::{Body, collect};
use crate::server::{Handler, Peer, Tasks};
use crate::time::Clock;

/// The longest form: some fields of text.
const MAX_FORM: usize = 16 * 1024;

/// For a form to come in.
const FORM_DEADLINE: Duration = Duration::from_secs(10);

/// How long a visitor is remembered who asks for it.
const REMEMBERED: u64 = 30 * 24 * 60 * 60;

/// The site.
#[derive(Debug)]
pub(super) struct Site {
    /// Connections to the API are tasks of these.
    pub(super) tasks: Tasks,
    pub(super) clock: Clock,
}

/// A request that was read.
#[derive(Debug)]
struct Visit {
    headers: HeaderMap,
    query: Form,
    form: Form,
    api: Api,
}

impl Handler for Site {
    async fn handle(&self, request: Request<Incoming>, _: Peer) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let Ok(body) = collect(Body::streaming(body, None), MAX_FORM, FORM_DEADLINE).await else {
            return plain(StatusCode::BAD_REQUEST, "the form is too large, or did not come");
        };
        let path = parts.uri.path();
        if path == Page::Exchange.path() {
            return exchange::answer(&parts.method, &parts.headers);
        }
        let form = Form::parse(&String::from_utf8_lossy(&body));
        let query = Form::parse(parts.uri.query().unwrap_or_default());
        let answered = match Api::of(&parts.headers, &self.tasks) {
            Ok(api) => {
                let visit = Visit { headers: parts.headers, query, form, api };
                match parts.method {
                    Method::GET | Method::HEAD => match Page::at(path) {
                        Some(page) => self.show(page, &visit).await,
                        None => return not_found(),
                    },
                    Method::POST => submit(path, &visit).await,
                    _ => return method_not_allowed(),
                }
            }
            Err(error) => Err(error),
        };
        answered.unwrap_or_else(|error| trouble(&error))
    }
}

impl Site {
    /// A page, with what the one before had to say.
    async fn show(&self, page: Page, visit: &Visit) -> Result<Response<Body>, Error> {
        let ended = visit.query.has("ended");
        let flash = visit.flash().await?;
        let mut session = visit.api.session().await?;
        let content = match page {
            Page::Visits => {
                let before = std::mem::take(&mut session);
                session = self.count(visit).await?;
                pages::visits(&before, &session, self.clock.now())
            }
            Page::Account => pages::account(&session, ended),
            Page::Values => pages::values(&session, ended),
            Page::Message => pages::MESSAGE.to_owned(),
            Page::Lifetime => pages::lifetime(&session, &visit.api.expiry().await?),
            Page::Cookie => pages::cookie(visit.test_cookie().await?),
            Page::Devices => pages::devices(&session, &visit.api.devices().await?),
            Page::Exchange => return Ok(exchange::answer(&Method::GET, &visit.headers)),
        };
        let session_error = header(&visit.headers, "x-session-error");
        let frame = Frame {
            page: Some(page),
            title: page.title(),
            flash,
            session_error,
            session: Some(&session),
        };
        Ok(html(StatusCode::OK, frame.around(&content)))
    }

    async fn count(&self, visit: &Visit) -> Result<Session, Error> {
        let now = self.clock.now().to_string();
        let patch = json!({"increment": {"visits": 1}, "values": {"last_visit": now}});
        visit.api.patch(&patch).await
    }
}

impl Visit {
    /// What became of the test cookie, if this visit is to see.
    async fn test_cookie(&self) -> Result<TestCookie, Error> {
        if !self.query.has("check") {
            return Ok(TestCookie::NotAsked);
        }
        if !self.api.test_cookie_worked().await? {
            return Ok(TestCookie::Lost);
        }
        self.api.remove_test_cookie().await?;
        Ok(TestCookie::CameBack)
    }

    /// What the page before had to say. Through a cookie that another response has just replaced,
    /// nothing can be taken; the page is shown without.
    async fn flash(&self) -> Result<Option<String>, Error> {
        let json = match self.api.pop("flash").await {
            Err(Error::Refused(problem)) if problem.status == 409 => None,
            popped => popped?,
        };
        Ok(json.and_then(|json| serde_json::from_str(json.get()).ok()))
    }

    /// Tells the next page what to say.
    async fn say(&self, message: &str) -> Result<(), Error> {
        self.api.set("flash", json!(message).to_string()).await
    }

    async fn log_in(&self) -> Result<(), Error> {
        let expiry = if self.form.has("remember") {
            json!({"idle": REMEMBERED})
        } else {
            json!({"browser_close": true})
        };
        let patch = json!({"principal": self.form.field("name"), "expiry": expiry});
        self.api.patch(&patch).await.map(drop)
    }

    async fn remove_value(&self) -> Result<(), Error> {
        let key = self.form.field("key");
        match self.api.pop(key).await? {
            Some(json) => self.say(&format!("Removed “{key}”; it was {}", json.get())).await,
            None => self.say(&format!("There was no “{key}” any more")).await,
        }
    }

    /// The lifetime that a form asks for; the API says what is wrong with it.
    fn lifetime(&self) -> Value {
        let form = &self.form;
        if form.has("idle") {
            // What is no number goes on as it is, and is refused.
            let idle = form.field("idle");
            let seconds = idle.parse::<u64>().map_or_else(|_| json!(idle), |number| json!(number));
            json!({"idle": seconds})
        } else if form.has("at") {
            // Browsers leave the seconds out where they are zero.
            let at = form.field("at");
            let seconds = if at.matches(':').count() < 2 { ":00" } else { "" };
            json!({"at": format!("{at}{seconds}Z")})
        } else if form.has("browser_close") {
            json!({"browser_close": true})
        } else {
            Value::Null
        }
    }
}

/// What a form does, and where its visitor goes on.
async fn submit(path: &str, visit: &Visit) -> Result<Response<Body>, Error> {
    let Visit { api, form, .. } = visit;
    let next = match path {
        "/log-in" => visit.log_in().await.map(|()| "/account"),
        "/log-out" => api.destroy().await.map(|()| "/account?ended"),
        "/basket" => api.append("basket", &json!(form.field("item"))).await.map(|()| "/account"),
        "/values/set" => {
            let json = json_or_text(form.field("value"));
            api.set(form.field("key"), json).await.map(|()| "/values")
        }
        "/values/remove" => visit.remove_value().await.map(|()| "/values"),
        "/flush" => api.destroy().await.map(|()| "/values?ended"),
        "/message" => visit.say(form.field("text")).await.map(|()| "/message"),
        "/lifetime" => api.set_expiry(&visit.lifetime()).await.map(|()| "/lifetime"),
        "/cookie/test" => api.set_test_cookie().await.map(|()| "/cookie?check"),
        "/cookie/rotate" => {
            api.rotate().await?;
            visit.say("The cookie has a new value").await.map(|()| "/cookie")
        }
        "/devices/log-out" => api.log_device_out(form.field("id")).await.map(|()| "/devices"),
        "/devices/log-others-out" => {
            let others = api.log_others_out().await?;
            visit.say(&format!("Logged out elsewhere: {others}")).await.map(|()| "/devices")
        }
        _ => return Ok(not_found()),
    };
    next.map(see_other)
}

/// A page that says what went wrong. Its status is that of a refusal, else that the fault is behind.
fn trouble(error: &Error) -> Response<Body> {
    let status = match error {
        Error::Refused(problem) => StatusCode::from_u16(problem.status).ok(),
        Error::NotThroughProxy => Some(StatusCode::MISDIRECTED_REQUEST),
        Error::Unreached(_) | Error::Unreadable(_) => None,
    };
    let frame = Frame { title: "That did not work", ..Frame::default() };
    html(status.unwrap_or(StatusCode::BAD_GATEWAY), frame.around(&pages::trouble(error)))
}

fn not_found() -> Response<Body> {
    let frame = Frame { title: "There is no such page", ..Frame::default() };
    let content = "<section><p><a href='/'>To the first page</a></p></section>";
    html(StatusCode::NOT_FOUND, frame.around(content))
}

pub(super) fn method_not_allowed() -> Response<Body> {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "a page takes GET, a form POST");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
    response
}

/// A page: it loads nothing and is not kept, since it shows a session.
pub(super) fn html(status: StatusCode, page: String) -> Response<Body> {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
                  form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    respond(
        status,
        [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CACHE_CONTROL, "no-store"),
            (CONTENT_SECURITY_POLICY, policy),
        ],
        page,
    )
}

pub(super) fn see_other(path: &'static str) -> Response<Body> {
    respond(
        StatusCode::SEE_OTHER,
        [(LOCATION, path), (CACHE_CONTROL, "no-store"), (CONTENT_TYPE, "text/plain")],
        String::new(),
    )
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    respond(status, headers, format!("{text}\n"))
}

fn respond<const N: usize>(
    status: StatusCode,
    headers: [(HeaderName, &'static str); N],
    body: String,
) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A header, where it is text. A principal's bytes are UTF-8, which `to_str` would refuse.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    std::str::from_utf8(headers.get(name)?.as_bytes()).ok()
}
