//! The demo's site: which page a request loads, and what a form changes.
//!
//! It uses only what every site behind the proxy can use: the headers and the session API. It stores
//! nothing itself. A form is answered with a redirect to a page.

use std::sync::Arc;

use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::api::{Api, Error, Session, json_or_text};
use super::exchange;
use super::html::Frame;
use super::page::Page;
use super::pages::{self, TestCookie};
use super::response::{asset, header, html, method_not_allowed, plain, see_other};
use crate::body::{Body, collect};
use crate::html::Form;
use crate::server::{Handler, Peer, Responding, Tasks};
use crate::time::{Clock, Timestamp};

/// The longest form in bytes: some fields of text.
const MAX_FORM: usize = 16 * 1024;

/// The time in which a form must arrive.
const FORM_DEADLINE: Duration = Duration::from_secs(10);

/// The lifetime in seconds of the session of a visitor who wants to be remembered.
const REMEMBERED: u64 = 30 * 24 * 60 * 60;

/// The site.
#[derive(Debug)]
pub(super) struct Site {
    /// Owns the connections to the session API.
    pub(super) tasks: Tasks,
    pub(super) clock: Clock,
}

/// A request with its body, and access to its session.
#[derive(Debug)]
struct Visit {
    headers: HeaderMap,
    query: Form,
    form: Form,
    api: Api,
}

impl Handler for Site {
    fn handle(self: Arc<Self>, request: Request<Incoming>, _: Peer) -> Responding {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = collect(Body::streaming(body, None), MAX_FORM, FORM_DEADLINE).await
            else {
                return plain(
                    StatusCode::BAD_REQUEST,
                    "the form is too large or did not arrive in time",
                );
            };
            let path = parts.uri.path();
            if path == Page::Exchange.path() {
                return exchange::respond(&parts.method, &parts.headers);
            }
            if let Some(asset) = asset(path) {
                return asset;
            }
            let form = Form::parse(&String::from_utf8_lossy(&body));
            let query = Form::parse(parts.uri.query().unwrap_or_default());
            let result = match Api::from_headers(&parts.headers, &self.tasks) {
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
            result.unwrap_or_else(|error| error_page(&error))
        })
    }
}

impl Site {
    /// Returns a page, with the message of the request before.
    async fn show(&self, page: Page, visit: &Visit) -> Result<Response<Body>, Error> {
        let ended = visit.query.has("ended");
        let flash = visit.flash().await?;
        let mut session = visit.api.session().await?;
        let now = self.clock.now();
        let content = match page {
            Page::Visits => {
                let before = std::mem::take(&mut session);
                session = visit.count(now).await?;
                pages::visits(&before, &session, now)
            }
            Page::Parallel => pages::parallel(&session),
            Page::Account => pages::account(&session, ended),
            Page::Values => pages::values(&session, ended),
            Page::Message => pages::MESSAGE.to_owned(),
            Page::Lifetime => pages::lifetime(&session, &visit.api.expiry().await?, now),
            Page::Cookie => pages::cookie(visit.test_cookie().await?),
            Page::Devices => pages::devices(&session, &visit.api.devices().await?, now),
            Page::Exchange => return Ok(exchange::respond(&Method::GET, &visit.headers)),
            Page::OwnSite => pages::own_site(),
        };
        let session_error = header(&visit.headers, "x-session-error");
        let frame = Frame {
            page: Some(page),
            title: page.title(),
            flash,
            session_error,
            session: Some(&session),
            received: Some(&visit.headers),
        };
        Ok(html(StatusCode::OK, frame.render(&content)))
    }
}

impl Visit {
    async fn count(&self, now: Timestamp) -> Result<Session, Error> {
        let now = now.to_string();
        let patch = json!({"increment": {"visits": 1}, "values": {"last_visit": now}});
        self.api.patch(&patch).await
    }

    /// Adds one to a counter that loses nothing, and to one that requests in parallel overwrite.
    async fn count_twice(&self) -> Result<(), Error> {
        self.api.patch(&json!({"increment": {"atomic": 1}})).await?;
        let session = self.api.session().await?;
        let overwritten = session.number("overwritten").unwrap_or_default().saturating_add(1);
        self.api.patch(&json!({"values": {"overwritten": overwritten}})).await.map(drop)
    }

    /// Checks the test cookie, if this visit follows the request that set it.
    async fn test_cookie(&self) -> Result<TestCookie, Error> {
        if !self.query.has("check") {
            return Ok(TestCookie::NotChecked);
        }
        if !self.api.test_cookie_worked().await? {
            return Ok(TestCookie::Missing);
        }
        self.api.remove_test_cookie().await?;
        Ok(TestCookie::Returned)
    }

    /// Takes the message of the request before from the session. A cookie that another response
    /// has just replaced can read the session but not change it: the page is shown without message.
    async fn flash(&self) -> Result<Option<String>, Error> {
        let json = match self.api.pop("flash").await {
            Err(Error::Refused(problem)) if problem.status == 409 => None,
            popped => popped?,
        };
        Ok(json.and_then(|json| serde_json::from_str(json.get()).ok()))
    }

    /// Leaves a message for the next page.
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
            None => self.say(&format!("“{key}” was removed before")).await,
        }
    }

    /// Returns the lifetime of a form as JSON. The API validates it.
    fn lifetime(&self) -> Value {
        let form = &self.form;
        if form.has("idle") {
            // Text that is not a number is forwarded as it is, so that the API refuses it.
            let idle = form.field("idle");
            let seconds = idle.parse::<u64>().map_or_else(|_| json!(idle), |number| json!(number));
            json!({"idle": seconds})
        } else if form.has("at") {
            // Browsers omit the seconds if they are zero (HTML, section 2.3.5.5).
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

/// Does what a form asks for, and redirects to a page.
async fn submit(path: &str, visit: &Visit) -> Result<Response<Body>, Error> {
    let Visit { api, form, .. } = visit;
    let next = match path {
        "/log-in" => visit.log_in().await.map(|()| "/account"),
        "/log-out" => api.destroy().await.map(|()| "/account?ended"),
        "/parallel" => visit.count_twice().await.map(|()| "/parallel"),
        "/parallel/reset" => {
            let patch = json!({"values": {"atomic": null, "overwritten": null}});
            api.patch(&patch).await.map(|_session| "/parallel")
        }
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

/// Returns a page that explains an error, with the status of the session API if it refused a call.
fn error_page(error: &Error) -> Response<Body> {
    let status = match error {
        Error::Refused(problem) => StatusCode::from_u16(problem.status).ok(),
        Error::NotThroughProxy => Some(StatusCode::MISDIRECTED_REQUEST),
        Error::Unreachable(_) | Error::Unreadable(_) => None,
    };
    let frame = Frame { title: "That did not work", ..Frame::default() };
    html(status.unwrap_or(StatusCode::BAD_GATEWAY), frame.render(&pages::error(error)))
}

fn not_found() -> Response<Body> {
    let frame = Frame { title: "Page not found", ..Frame::default() };
    let content = "<section><p><a href='/'>To the first page</a></p></section>";
    html(StatusCode::NOT_FOUND, frame.render(content))
}
