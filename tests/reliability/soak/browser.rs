//! The visitor's browser: how a request is made, and what is kept of its answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloakroom::body::Body;
use cookie::Cookie;
use http::{Request, Response};

use super::balancer::{Answer, Side};
use super::order::{Change, Order, Outcome, Step, Token};
use super::visitor::{COOKIE, Kind, To, Visitor};

/// After so long without a fault every request has to be served.
const PEACE: Duration = Duration::from_secs(12);

/// Tokens that a visitor's thief keeps.
const STOLEN: usize = 4;

impl Visitor {
    /// Makes a request, and judges and keeps what comes back. Returns whether it was served.
    pub(super) async fn ask(
        self: &Arc<Self>,
        kind: Kind,
        token: Option<Token>,
        steps: Vec<Step>,
        patch: Option<Change>,
        to: To,
    ) -> bool {
        let oracle = &self.site.oracle;
        let order = self.site.enter(self.number, token, steps, patch);
        let began = Instant::now();
        let build = |sent, cached| self.request(&order, kind, sent, cached);
        let answer = match to {
            To::Any => self.site.balancer.send(Side::Public, build).await,
            To::One(number) => self.site.balancer.send_to(number, Side::Public, build).await,
        };
        self.site.leave(&order).await;
        let status = answer.as_ref().map(|answer| answer.response.status().as_u16());
        let served = status == Ok(200);
        oracle.trace(&format!("v{} #{} {kind:?} -> {status:?}", self.number, order.number));
        // A header is refused with 502 if its session is gone.
        let failed = !served && !(status == Ok(502) && oracle.may_be_refused(&order, began));
        let in_peace = failed && oracle.is_quiet(PEACE);
        oracle.count(|tally| {
            tally.pages += 1;
            tally.failed += u64::from(failed);
            tally.failed_in_peace += u64::from(in_peace);
        });
        let pending = order.progress.lock().unwrap().pending.take();
        if let Some(pending) = pending {
            let outcome = if served { Outcome::Applied } else { Outcome::Unknown };
            let cookies =
                answer.as_ref().map(|answer| cookies(&answer.response)).unwrap_or_default();
            let granted = cookies.iter().find_map(|cookie| Token::parse(cookie.value()));
            // Through a token that is over, a log-in joins its session or makes another.
            let id = granted.filter(|_| order.logs_in()).map(|token| token.id);
            oracle.finish(&order, pending, outcome, id.as_deref(), false);
        }
        if let Ok(Answer { response, .. }) = answer {
            self.judge(&order, &response);
            self.keep(&order, &response, began);
        }
        let anonymous = order.progress.lock().unwrap().anonymous;
        if served && self.token().is_some_and(|own| order.token.as_ref() == Some(&own)) {
            self.known.store(!anonymous, Ordering::Relaxed);
        }
        served
    }

    fn request(&self, order: &Order, kind: Kind, sent: Instant, cached: bool) -> Request<Body> {
        let (method, mode, dest) = match kind {
            Kind::Navigate => ("GET", "navigate", "document"),
            Kind::Fetch => ("GET", "cors", "empty"),
            Kind::Submit => ("POST", "navigate", "document"),
            Kind::Post => ("POST", "cors", "empty"),
        };
        // Half of the pages are on a route without header exchange.
        let plain = order.patch.is_none() && order.number.is_multiple_of(2);
        let mut request = Request::builder()
            .method(method)
            .uri(if plain { "/plain/page" } else { "/page" })
            .header("host", "shop.test")
            .header("accept", if mode == "navigate" { "text/html" } else { "application/json" })
            .header("sec-fetch-site", "same-origin")
            .header("sec-fetch-mode", mode)
            .header("sec-fetch-dest", dest)
            .header("x-order", order.number)
            .header("x-sent", self.site.stamp(sent))
            .header("x-cached", if cached { "1" } else { "0" });
        if method == "POST" {
            request = request.header("origin", "http://shop.test");
        }
        if let Some(token) = &order.token {
            request = request.header("cookie", format!("theme=dark; {COOKIE}={}", token.text));
        }
        request.body(Body::empty()).unwrap()
    }

    /// Judges the page itself.
    fn judge(&self, order: &Order, response: &Response<Bytes>) {
        let status = response.status().as_u16();
        let code = String::from_utf8_lossy(response.body()).into_owned();
        let ours = order.number.to_string();
        let wrong = match status {
            200 if code == ours => return,
            200 => format!("the page of another request, {code:?}"),
            // A request without a cookie needs no session.
            503 if order.token.is_none() && order.patch.is_none() => {
                "a visitor without a cookie was turned away".to_owned()
            }
            502 | 503 | 504 => return,
            status => format!("a page with status {status}: {code}"),
        };
        self.site.oracle.wrong(self.number, &wrong);
    }

    /// Keeps the cookies of a response, as a browser does.
    fn keep(&self, order: &Order, response: &Response<Bytes>, sent: Instant) {
        for cookie in cookies(response) {
            self.site.oracle.trace(&format!("v{} #{} {cookie}", self.number, order.number));
            if cookie.max_age().is_some_and(|age| age.is_zero()) {
                self.site.oracle.cookie_deleted(order, sent);
                *self.jar.lock().unwrap() = None;
                self.known.store(false, Ordering::Relaxed);
                continue;
            }
            let Some(token) = Token::parse(cookie.value()) else {
                self.site.oracle.wrong(self.number, &format!("a cookie like {cookie}"));
                continue;
            };
            self.site.oracle.cookie_set(order, &token, sent);
            self.steal(&token);
            *self.jar.lock().unwrap() = Some(token);
            self.known.store(true, Ordering::Relaxed);
        }
    }

    fn steal(&self, token: &Token) {
        let mut stolen = self.stolen.lock().unwrap();
        if stolen.len() == STOLEN {
            // The oldest of all stays: it has been dead for longest.
            stolen.remove(1);
        }
        stolen.push(token.clone());
    }
}

/// The session cookies of a response.
fn cookies(response: &Response<Bytes>) -> Vec<Cookie<'static>> {
    let lines = response.headers().get_all("set-cookie").iter();
    let cookies = lines.map(|line| Cookie::parse(line.to_str().unwrap().to_owned()).unwrap());
    cookies.filter(|cookie| cookie.name() == COOKIE).collect()
}
