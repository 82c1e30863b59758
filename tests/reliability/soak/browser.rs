//! The browser of a visitor: builds requests and handles their responses.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloakroom::body::Body;
use cookie::Cookie;
use http::{Request, Response};

use super::balancer::{Answer, Side};
use super::job::{Change, Job, Outcome, Step, Token};
use super::visitor::{COOKIE, RequestKind, Route, Visitor};

/// Time after a fault from which on every request must be served.
const RECOVERY: Duration = Duration::from_secs(12);

/// Number of stolen tokens that are kept for replays.
const STOLEN: usize = 4;

impl Visitor {
    /// Sends a request, judges the response and stores its cookies. Returns true if it was served.
    pub(super) async fn ask(
        self: &Arc<Self>,
        kind: RequestKind,
        token: Option<Token>,
        steps: Vec<Step>,
        patch: Option<Change>,
        route: Route,
    ) -> bool {
        let oracle = &self.site.oracle;
        let job = self.site.register(self.number, token, steps, patch);
        let began = Instant::now();
        let build = |sent, cached| self.request(&job, kind, sent, cached);
        let answer = match route {
            Route::Any => self.site.balancer.send(Side::Public, build).await,
            Route::One(number) => self.site.balancer.send_to(number, Side::Public, build).await,
        };
        self.site.unregister(&job).await;
        let status = answer.as_ref().map(|answer| answer.response.status().as_u16());
        let served = status == Ok(200);
        oracle.trace(&format!("v{} #{} {kind:?} -> {status:?}", self.number, job.number));
        // A patch by header is rejected with 502 if its session is missing.
        let rejected = status == Ok(502) && oracle.may_be_rejected(&job, began);
        let failed = !served && !rejected;
        let after_recovery = failed && oracle.is_quiet(RECOVERY);
        oracle.count(|tally| {
            tally.pages += 1;
            tally.failed += u64::from(failed);
            tally.failed_after_recovery += u64::from(after_recovery);
        });
        let pending = job.progress.lock().unwrap().pending.take();
        if let Some(pending) = pending {
            let outcome = if served { Outcome::Applied } else { Outcome::Unknown };
            let cookies =
                answer.as_ref().map(|answer| cookies(&answer.response)).unwrap_or_default();
            let granted = cookies.iter().find_map(|cookie| Token::parse(cookie.value()));
            // With a rotated token, a log-in joins its session or creates another one.
            let id = granted.filter(|_| job.logs_in()).map(|token| token.id);
            oracle.finish(&job, pending, outcome, id.as_deref(), false);
        }
        if let Ok(Answer { response, .. }) = answer {
            self.judge(&job, &response);
            self.keep(&job, &response, began);
        }
        let anonymous = job.progress.lock().unwrap().anonymous;
        if served && self.token().is_some_and(|own| job.token.as_ref() == Some(&own)) {
            self.known.store(!anonymous, Ordering::Relaxed);
        }
        served
    }

    fn request(&self, job: &Job, kind: RequestKind, sent: Instant, cached: bool) -> Request<Body> {
        let (method, mode, dest) = match kind {
            RequestKind::Navigate => ("GET", "navigate", "document"),
            RequestKind::Fetch => ("GET", "cors", "empty"),
            RequestKind::Submit => ("POST", "navigate", "document"),
            RequestKind::Post => ("POST", "cors", "empty"),
        };
        // Half of the requests without a patch use the route without header exchange.
        let plain = job.patch.is_none() && job.number.is_multiple_of(2);
        let mut request = Request::builder()
            .method(method)
            .uri(if plain { "/plain/page" } else { "/page" })
            .header("host", "shop.test")
            .header("accept", if mode == "navigate" { "text/html" } else { "application/json" })
            .header("sec-fetch-site", "same-origin")
            .header("sec-fetch-mode", mode)
            .header("sec-fetch-dest", dest)
            .header("x-job", job.number)
            .header("x-sent", self.site.stamp(sent))
            .header("x-cached", if cached { "1" } else { "0" });
        if method == "POST" {
            request = request.header("origin", "http://shop.test");
        }
        if let Some(token) = &job.token {
            request = request.header("cookie", format!("theme=dark; {COOKIE}={}", token.text));
        }
        request.body(Body::empty()).unwrap()
    }

    /// Judges status and body of the page.
    fn judge(&self, job: &Job, response: &Response<Bytes>) {
        let status = response.status().as_u16();
        let code = String::from_utf8_lossy(response.body()).into_owned();
        let ours = job.number.to_string();
        let wrong = match status {
            200 if code == ours => return,
            200 => format!("the page of another request, {code:?}"),
            // A request without a cookie needs no session.
            503 if job.token.is_none() && job.patch.is_none() => {
                "a visitor without a cookie was rejected".to_owned()
            }
            502..=504 => return,
            status => format!("a page with status {status}: {code}"),
        };
        self.site.oracle.wrong(self.number, &wrong);
    }

    /// Stores the cookies of a response, as a browser does.
    fn keep(&self, job: &Job, response: &Response<Bytes>, sent: Instant) {
        for cookie in cookies(response) {
            self.site.oracle.trace(&format!("v{} #{} {cookie}", self.number, job.number));
            if cookie.max_age().is_some_and(time::SignedDuration::is_zero) {
                self.site.oracle.cookie_deleted(job, sent);
                *self.jar.lock().unwrap() = None;
                self.known.store(false, Ordering::Relaxed);
                continue;
            }
            let Some(token) = Token::parse(cookie.value()) else {
                self.site
                    .oracle
                    .wrong(self.number, &format!("an invalid session cookie: {cookie}"));
                continue;
            };
            self.site.oracle.cookie_set(job, &token, sent);
            self.steal(&token);
            *self.jar.lock().unwrap() = Some(token);
            self.known.store(true, Ordering::Relaxed);
        }
    }

    fn steal(&self, token: &Token) {
        let mut stolen = self.stolen.lock().unwrap();
        if stolen.len() == STOLEN {
            // The first one stays: it has been invalid for the longest time.
            stolen.remove(1);
        }
        stolen.push(token.clone());
    }
}

/// Returns the session cookies of a response.
fn cookies(response: &Response<Bytes>) -> Vec<Cookie<'static>> {
    let lines = response.headers().get_all("set-cookie").iter();
    let cookies = lines.map(|line| Cookie::parse(line.to_str().unwrap().to_owned()).unwrap());
    cookies.filter(|cookie| cookie.name() == COOKIE).collect()
}
