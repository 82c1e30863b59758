//! A site with sessions of its own, whose cookie is held, in a real browser.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloakroom::body::{Body, collect};
use cloakroom::metrics::Event;
use cloakroom::server::{Address, ConnectionLimit, Peer, Settings, Tasks, bind, serve};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::sync::watch;

use crate::support::{
    COOKIE, Cloakroom, Direction, Driver, End, Fault, FaultProxy, PATIENCE, Window, needs, until,
};

/// A site that draws another session id at the log-in and deletes the one from before, as PHP's sites do. So a slow
/// answer to a request from before the log-in sets a new anonymous one, which undoes the log-in in a browser. It sets
/// its cookie with every answer, as Express does with `rolling`.
struct Site {
    address: SocketAddr,
    state: Arc<State>,
    tasks: Tasks,
}

#[derive(Default)]
struct State {
    /// The user of each session, if it is logged in.
    sessions: Mutex<HashMap<String, Option<String>>>,
    /// The number of requests that have arrived at `/slow`, and whether they are answered.
    slow: watch::Sender<(usize, bool)>,
    /// The queries of the pages that were requested.
    places: Mutex<Vec<String>>,
}

impl Site {
    fn start() -> Self {
        let listener = bind(&"127.0.0.1:0".parse().unwrap(), None).unwrap();
        let Address::Tcp(address) = *listener.local_address() else {
            panic!("an address over TCP")
        };
        let (tasks, state) = (Tasks::new(), Arc::<State>::default());
        let handler = {
            let state = Arc::clone(&state);
            move |request: Request<Incoming>, _: Peer| respond(Arc::clone(&state), request)
        };
        let limit = ConnectionLimit::new(1000);
        let serving = serve(listener, Settings::default(), limit, Arc::new(handler), tasks.clone());
        tasks.run(serving).detach();
        Self { address, state, tasks }
    }

    fn url(&self) -> String {
        format!("http://localhost:{}/", self.address.port())
    }

    /// Waits until a request has arrived at `/slow`.
    async fn slow_arrived(&self) {
        let mut arrivals = self.state.slow.subscribe();
        let arrived = arrivals.wait_for(|(arrived, _)| *arrived > 0);
        drop(tokio::time::timeout(PATIENCE, arrived).await.expect("a request").unwrap());
    }

    /// Returns whether the page of this query was requested.
    fn was_asked_for(&self, place: &str) -> bool {
        self.state.places.lock().unwrap().iter().any(|known| known == place)
    }

    fn answer_slow(&self) {
        self.state.slow.send_modify(|(_, is_answered)| *is_answered = true);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.answer_slow();
        self.tasks.drain();
    }
}

impl State {
    fn create(&self, user: Option<&str>) -> String {
        let id = format!("{:032x}", u128::from_be_bytes(cloakroom::random::bytes()));
        self.sessions.lock().unwrap().insert(id.clone(), user.map(str::to_owned));
        id
    }

    async fn wait(&self) {
        self.slow.send_modify(|(arrived, _)| *arrived += 1);
        drop(self.slow.subscribe().wait_for(|(_, is_answered)| *is_answered).await.unwrap());
    }

    fn user(&self, id: &str) -> String {
        let user = self.sessions.lock().unwrap().get(id).cloned().flatten();
        user.unwrap_or_else(|| "anonymous".to_owned())
    }
}

async fn respond(state: Arc<State>, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = collect(Body::streaming(body, None), 4096, PATIENCE).await.unwrap();
    let presented = presented(&parts.headers);
    if parts.uri.path() == "/slow" {
        state.wait().await;
    }
    let user = std::str::from_utf8(&body).unwrap().strip_prefix("name=");
    let known = presented.filter(|id| state.sessions.lock().unwrap().contains_key(id));
    let (path, place) = (parts.uri.path(), parts.uri.query().unwrap_or("home"));
    state.places.lock().unwrap().push(place.to_owned());
    let is_form = parts.method == Method::POST;
    if is_form && let Some(id) = &known {
        state.sessions.lock().unwrap().remove(id);
    }
    let id = match (is_form, known) {
        (false, Some(id)) => id,
        _ => state.create(user.filter(|_| path == "/log-in")),
    };
    let shown = match (path, is_form) {
        ("/data", _) => state.user(&id),
        (_, true) => String::new(),
        _ => page(place, &state.user(&id)),
    };
    let response = Response::builder()
        .status(if is_form { 303 } else { 200 })
        .header("content-type", "text/html; charset=utf-8")
        .header("set-cookie", format!("PHPSESSID={id}; Path=/"))
        .header("set-cookie", "theme=dark; Path=/")
        .header("location", "/");
    response.body(Body::full(shown)).unwrap()
}

fn presented(headers: &http::HeaderMap) -> Option<String> {
    let lines = headers.get_all("cookie").iter().map(|line| line.to_str().unwrap());
    let mut pairs = lines.flat_map(|line| line.split("; "));
    pairs.find_map(|pair| pair.strip_prefix("PHPSESSID=")).map(str::to_owned)
}

/// Returns a page; `place` tells apart those of one path.
fn page(place: &str, user: &str) -> String {
    format!(
        "<!doctype html><html lang=en><title>Site</title><link rel=icon href=data:,>\
         <body id={place}><p id=who>{user}</p>\
         <form method=post action=/log-in><input id=name name=name><button id=log-in>In</button></form>\
         <form method=post action=/log-out><button id=log-out>Out</button></form>"
    )
}

struct World {
    site: Site,
    cloakroom: Cloakroom,
    driver: Driver,
}

impl World {
    async fn start() -> Self {
        let site = Site::start();
        let route = "hold_cookies = [\"PHPSESSID\"]\n";
        let cloakroom = Cloakroom::for_site(site.address, route, "").await;
        Self { site, cloakroom, driver: Driver::start().await }
    }

    fn url(&self) -> String {
        format!("http://localhost:{}/", self.cloakroom.public().port())
    }

    fn rotations(&self) -> u64 {
        self.cloakroom.metrics().event_count(Event::Rotated)
    }
}

/// Opens a page, and returns who is logged in there.
async fn visit(window: &Window<'_>, url: &str, place: &str) -> String {
    window.open(&format!("{url}?{place}")).await;
    window.text(&format!("#{place} #who")).await
}

async fn log_in(window: &Window<'_>) {
    window.write("#name", "ada").await;
    window.click("#log-in").await;
    assert_eq!(window.text("#who").await, "ada");
}

/// Asserts that the browser has our cookie and those that are not held, and returns the value of ours.
async fn only_our_cookie(window: &Window<'_>) -> String {
    assert_eq!(window.cookie_names().await, [COOKIE, "theme"]);
    // A script sees what is not HttpOnly: the site's session cookie would be there.
    assert_eq!(window.run("return document.cookie").await, "theme=dark");
    let cookie = window.cookie().await.expect("a session cookie");
    assert_eq!(cookie["expiry"], Value::Null, "it ends with the browser, as the site's does");
    cookie["value"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn parallel_tabs_are_logged_in_and_out() {
    needs!("chromium", "chromedriver");
    let world = World::start().await;
    let window = world.driver.window().await;
    assert_eq!(visit(&window, &world.url(), "first").await, "anonymous");
    let before = only_our_cookie(&window).await;
    log_in(&window).await;
    let after = only_our_cookie(&window).await;
    assert_ne!(before, after);
    // Both tabs load, and each sends its requests at once.
    let script = "const other = window.open('/?second');\
        await new Promise(loaded => { other.onload = loaded; });\
        const data = tab => tab.fetch('/data').then(answer => answer.text());\
        const tabs = Array.from({length: 40}, (_, n) => n % 2 ? window : other);\
        return Promise.all(tabs.map(data))";
    let answers = window.run(script).await;
    assert_eq!(answers, serde_json::json!(vec!["ada"; 40]));
    assert_eq!(only_our_cookie(&window).await, after, "nothing rotates");
    assert_eq!(world.rotations(), 1);

    window.click("#log-out").await;
    assert_eq!(window.text("#home #who").await, "anonymous");
    assert_ne!(only_our_cookie(&window).await, after);
    window.switch_tab().await;
    assert_eq!(window.text("#second #who").await, "ada", "what it showed before");
    assert_eq!(visit(&window, &world.url(), "third").await, "anonymous");
}

/// Logs in while another tab waits for an answer, which then arrives. Returns who is logged in afterwards.
async fn log_in_during_a_slow_request(site: &Site, window: &Window<'_>, url: &str) -> String {
    assert_eq!(visit(window, url, "first").await, "anonymous");
    window.run("window.open('/slow?late')").await;
    site.slow_arrived().await;
    log_in(window).await;
    site.answer_slow();
    window.switch_tab().await;
    assert_eq!(window.text("#late #who").await, "anonymous");
    visit(window, url, "last").await
}

#[tokio::test]
async fn late_answer_undoes_no_log_in() {
    needs!("chromium", "chromedriver");
    let world = World::start().await;
    let window = world.driver.window().await;
    assert_eq!(log_in_during_a_slow_request(&world.site, &window, &world.url()).await, "ada");
    only_our_cookie(&window).await;
    assert_eq!(world.cloakroom.metrics().event_count(Event::HeldCookieDropped), 1);

    // Without the proxy the browser obeys the late answer, and has the site's cookie.
    let (site, window) = (Site::start(), world.driver.window().await);
    assert_eq!(log_in_during_a_slow_request(&site, &window, &site.url()).await, "anonymous");
    assert_eq!(window.cookie_names().await, ["PHPSESSID", "theme"]);
}

#[tokio::test]
async fn revocation_makes_the_browser_anonymous() {
    needs!("chromium", "chromedriver");
    let world = World::start().await;
    let window = world.driver.window().await;
    visit(&window, &world.url(), "first").await;
    log_in(&window).await;
    let revoked = only_our_cookie(&window).await;
    let listed = world.cloakroom.service("GET", "", "").await.json();
    let [session] = &listed["sessions"].as_array().unwrap()[..] else {
        panic!("not one session: {listed}")
    };
    let path = format!("/{}", session["id"].as_str().unwrap());
    assert_eq!(world.cloakroom.service("DELETE", &path, "").await.status, 204);
    assert_eq!(visit(&window, &world.url(), "next").await, "anonymous");
    assert_ne!(only_our_cookie(&window).await, revoked);
    log_in(&window).await;
}

/// The ways in which the answer to a log-in does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// The connection is closed.
    Closed,
    /// The visitor opens another page before it arrives.
    Left,
}

/// Logs in through a front that loses the answer, and returns once the session has rotated and the browser has the
/// token from before.
async fn lose_the_log_in(world: &World, front: &FaultProxy, window: &Window<'_>, lost: Lost) {
    let url = format!("http://localhost:{}/", front.address().port());
    assert_eq!(visit(window, &url, "first").await, "anonymous");
    let before = only_our_cookie(window).await;
    window.write("#name", "ada").await;
    front.set(Fault::Stall(Direction::Replies));
    window.click_only("#log-in").await;
    until("the log-in rotates", || world.rotations() == 1).await;
    match lost {
        Lost::Closed => {
            // The browser would send the form again by itself if nothing of an answer had arrived.
            front.end_after(20, End::Close);
            let open = front.connections();
            front.set(Fault::None);
            until("the connection is closed", || front.connections() < open).await;
        }
        Lost::Left => {
            window.open(&format!("{url}?left")).await;
            // The browser has given up the form before it sends this.
            until("the next page is requested", || world.site.was_asked_for("left")).await;
            front.set(Fault::None);
        }
    }
    assert_eq!(visit(window, &url, "away").await, "anonymous");
    assert_eq!(only_our_cookie(window).await, before, "the answer is lost");
}

#[tokio::test]
async fn form_logs_in_after_a_lost_answer() {
    needs!("chromium", "chromedriver");
    for lost in [Lost::Closed, Lost::Left] {
        let world = World::start().await;
        let front = FaultProxy::to(world.cloakroom.public());
        let window = world.driver.window_without_waiting().await;
        lose_the_log_in(&world, &front, &window, lost).await;
        log_in(&window).await;
        only_our_cookie(&window).await;
    }
}

#[tokio::test]
async fn page_starts_again_after_a_lost_answer() {
    needs!("chromium", "chromedriver");
    let world = World::start().await;
    let front = FaultProxy::to(world.cloakroom.public());
    let window = world.driver.window_without_waiting().await;
    lose_the_log_in(&world, &front, &window, Lost::Left).await;
    let before = only_our_cookie(&window).await;
    // The clock of the proxy alone decides; the browser's cookie has no expiry.
    world.cloakroom.advance(Duration::from_secs(11));
    let url = format!("http://localhost:{}/", front.address().port());
    assert_eq!(visit(&window, &url, "later").await, "anonymous");
    assert_ne!(only_our_cookie(&window).await, before, "a session of its own");
    log_in(&window).await;
    assert_eq!(visit(&window, &url, "last").await, "ada");
}
