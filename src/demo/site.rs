//! The demo's site: which page a request is for, and what that page does to the session.

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::io;
use std::time::Duration;

use super::api::{Api, Error, json_or_text};
use super::form::Form;
use super::pages;
use crate::body::{Body, collect};
use crate::server::{Address, Handler, Peer, Settings, Tasks};
use crate::time::Clock;

/// The page that works by header exchange.
pub(super) const EXCHANGE: &str = "/exchange";

/// Serves the site on a free port.
pub(super) fn serve(tasks: &Tasks, settings: Settings) -> io::Result<Address> {
    super::listen(Site { tasks: tasks.clone() }, settings, tasks)
}

#[derive(Debug)]
struct Site {
    tasks: Tasks,
}

/// What a request is answered.
enum Answer {
    Page(String),
    /// After a form: reload shows the page, and sends nothing again.
    SeeOther(&'static str),
    NotFound,
}

type Answered = Result<Answer, Error>;

const MAX_FORM: usize = 16 * 1024;

impl Handler for Site {
    async fn handle(&self, request: Request<Incoming>, _peer: Peer) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        if path == EXCHANGE {
            return exchange(&parts.headers);
        }
        let body = Body::streaming(body, Some(Duration::from_secs(10)));
        let form = collect(body, MAX_FORM, Duration::from_secs(10)).await.unwrap_or_default();
        let form = Form::parse(&String::from_utf8_lossy(&form));
        let answered = match Api::of(&parts.headers, &self.tasks) {
            Ok(api) if parts.method == Method::POST => post(&api, path, &form).await,
            Ok(api) => get(&api, path).await,
            Err(error) => Err(error),
        };
        match answered {
            Ok(Answer::Page(page)) => html(StatusCode::OK, page),
            Ok(Answer::SeeOther(place)) => see_other(place),
            Ok(Answer::NotFound) => html(StatusCode::NOT_FOUND, pages::not_found()),
            Err(error) => html(StatusCode::BAD_GATEWAY, pages::failed(&error)),
        }
    }
}

async fn get(api: &Api, path: &str) -> Answered {
    match path {
        "/" => home(api).await,
        "/expiry" => {
            let (session, expiry, flash) =
                (api.session().await?, api.expiry().await?, flash(api).await?);
            Ok(Answer::Page(pages::expiry(&session, &expiry, flash.as_deref())))
        }
        "/test-cookie" => {
            api.set_test_cookie().await?;
            Ok(Answer::SeeOther("/test-cookie/check"))
        }
        "/test-cookie/check" => {
            let worked = api.test_cookie_worked().await?;
            if worked {
                api.remove_test_cookie().await?;
            }
            Ok(Answer::Page(pages::test_cookie(&api.session().await?, worked)))
        }
        "/devices" => {
            let flash = flash(api).await?;
            let (session, devices) = (api.session().await?, api.devices().await?);
            Ok(Answer::Page(pages::devices(&session, &devices, flash.as_deref())))
        }
        _ => Ok(Answer::NotFound),
    }
}

async fn post(api: &Api, path: &str, form: &Form) -> Answered {
    match path {
        "/login" => log_in(api, form.field("name")).await,
        "/logout" => {
            api.destroy().await?;
            Ok(Answer::SeeOther("/"))
        }
        "/flush" => {
            api.destroy().await?;
            say(api, "The session was flushed; this is a new one.").await?;
            Ok(Answer::SeeOther("/"))
        }
        "/rotate" => {
            api.rotate().await?;
            say(api, "The cookie has a new token; the old one opens nothing.").await?;
            Ok(Answer::SeeOther("/"))
        }
        "/set" => {
            if form.field("key").is_empty() {
                say(api, "A value needs a key.").await?;
            } else {
                api.set(form.field("key"), &json_or_text(form.field("value"))).await?;
            }
            Ok(Answer::SeeOther("/"))
        }
        "/pop" => {
            let was = api.pop(form.field("key")).await?;
            let text = match was {
                Some(value) => format!("Removed; it was {value}."),
                None => "There was no such value.".to_owned(),
            };
            say(api, &text).await?;
            Ok(Answer::SeeOther("/"))
        }
        "/expiry" => set_expiry(api, form).await,
        "/devices/logout" => {
            api.log_device_out(form.field("id")).await?;
            Ok(Answer::SeeOther("/devices"))
        }
        "/devices/logout-others" => {
            let count = api.log_others_out().await?;
            say(api, &format!("{count} others were logged out.")).await?;
            Ok(Answer::SeeOther("/devices"))
        }
        _ => Ok(Answer::NotFound),
    }
}

/// Counts the visit and notes its time; the message of the page before is shown once.
async fn home(api: &Api) -> Answered {
    let before = api.session().await?.text("last_visit");
    let now = Clock::System.now().to_string();
    api.patch(&json!({"increment": {"visits": 1}, "values": {"last_visit": now}})).await?;
    let flash = flash(api).await?;
    Ok(Answer::Page(pages::home(&api.session().await?, before.as_deref(), flash.as_deref())))
}

async fn log_in(api: &Api, name: &str) -> Answered {
    if name.is_empty() {
        say(api, "Any name will do, but a name it takes.").await?;
        return Ok(Answer::SeeOther("/"));
    }
    let flash = format!(
        "Welcome, {name}. Your cookie has changed, what you had in your session is still there."
    );
    api.patch(&json!({"principal": name, "values": {"flash": flash}})).await?;
    Ok(Answer::SeeOther("/"))
}

async fn set_expiry(api: &Api, form: &Form) -> Answered {
    let expiry = match form.field("kind") {
        "idle" => json!({"idle": json_or_text(form.field("seconds"))}),
        "at" => json!({"at": format!("{}:00Z", form.field("date"))}),
        "browser_close" => json!({"browser_close": true}),
        _ => Value::Null,
    };
    match api.set_expiry(&expiry).await {
        Err(Error::Refused(problem)) if problem.status == 422 => say(api, &problem.detail).await?,
        set => set?,
    }
    Ok(Answer::SeeOther("/expiry"))
}

/// Leaves a message for the next page.
async fn say(api: &Api, text: &str) -> Result<(), Error> {
    api.set("flash", &json!(text)).await
}

/// Takes the message that the page before has left. Through a cookie that another response has just
/// replaced nothing can be taken; the page is shown without.
async fn flash(api: &Api) -> Result<Option<String>, Error> {
    let text = match api.pop("flash").await {
        Err(Error::Refused(problem)) if problem.status == 409 => None,
        popped => popped?,
    };
    Ok(text.and_then(|text| serde_json::from_str(text.get()).ok()))
}

/// A page without an HTTP client: it reads the session from a header, and answers with a patch.
fn exchange(headers: &HeaderMap) -> Response<Body> {
    let data = headers.get("x-session-data").and_then(|data| data.to_str().ok()).unwrap_or("{}");
    let values: Value = serde_json::from_str(data).unwrap_or_default();
    let visits = values.get("exchange_visits").and_then(Value::as_i64).unwrap_or(0) + 1;
    let mut response = html(StatusCode::OK, pages::exchange(visits, data));
    let patch = HeaderValue::from_static("{\"increment\":{\"exchange_visits\":1}}");
    response.headers_mut().insert("x-session-patch", patch);
    response
}

fn html(status: StatusCode, page: String) -> Response<Body> {
    let mut response = Response::new(Body::full(page));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

fn see_other(place: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(LOCATION, HeaderValue::from_static(place));
    response
}
