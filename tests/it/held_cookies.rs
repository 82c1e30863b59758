//! Held cookies: the session cookies of a site, which the browser never sees.

use std::time::Duration;

use cloakroom::metrics::Event;
use serde_json::{Value, json};

use crate::support::{Browser, Cloakroom, Page, Script, Upstream};

const ROUTES: &str = "[[route]]\nupstream = \"UPSTREAM\"\nheader_exchange = true\n\
    hold_cookies = [\"SID\", { name = \"flash\", rotate = false }]\nrotate_on = [\"POST /login\"]\n\
    [[route]]\npath = \"/static\"\nupstream = \"UPSTREAM\"\nsession = \"off\"\n";

struct World {
    upstream: Upstream,
    cloakroom: Cloakroom,
    browser: Browser,
}

impl World {
    async fn new() -> Self {
        let upstream = Upstream::start();
        let cloakroom = Cloakroom::with(&upstream, ROUTES).await;
        let browser = Browser::new(&cloakroom);
        Self { upstream, cloakroom, browser }
    }

    fn dropped(&self) -> u64 {
        self.cloakroom.metrics().event_count(Event::HeldCookieDropped)
    }
}

fn sets(line: &str) -> Script {
    Script::new().header("Set-Cookie", line)
}

/// Returns the Cookie header that the site got.
fn got(page: &Page) -> String {
    page.saw("cookie").unwrap_or_default()
}

async fn post(browser: &Browser, path: &str, script: &Script) -> Page {
    let headers = [
        ("sec-fetch-dest", "document"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-site", "same-origin"),
    ];
    browser.send("POST", path, &headers, script).await
}

#[tokio::test]
async fn browser_never_sees_the_sites_cookie() {
    let world = World::new().await;
    let page = world.browser.navigate("/", &sets("SID=anonymous; HttpOnly")).await;
    assert_eq!(page.set_cookies().len(), 1);
    assert!(!page.set_cookies()[0].contains("SID"), "{:?}", page.set_cookies());
    assert!(
        !page.set_cookies()[0].contains("Max-Age"),
        "it ends with the browser, as the site's does"
    );
    assert_eq!(page.header("cache-control"), Some("no-store"));
    let page = world.browser.navigate("/a?b", &Script::new().get("")).await;
    assert_eq!(got(&page), "SID=anonymous");
    assert_eq!(page.json()["held_cookies"], json!(["SID"]));
    assert_eq!(page.json()["values"], json!({}));
    assert_eq!(page.header("cache-control"), Some("private"));
    // Other cookies of the client come first, and its copies of held ones are removed.
    let headers = [("cookie", "a=1; SID=planted; b=2")];
    let page = world.browser.send("GET", "/", &headers, &Script::new()).await;
    assert_eq!(got(&page), "a=1; b=2; SID=anonymous");
    // On the routes without sessions they pass in neither direction.
    let page = world.browser.send("GET", "/static/x", &headers, &sets("SID=other")).await;
    assert_eq!((got(&page).contains("SID"), page.set_cookies().len()), (false, 0));
    let removed = world.cloakroom.metrics().event_count(Event::HeldCookieRemoved);
    assert_eq!(removed, 2);
}

#[tokio::test]
async fn cookies_have_a_path_and_an_end() {
    let world = World::new().await;
    let script = sets("SID=short; Path=/shop/; Max-Age=60")
        .header("Set-Cookie", "flash=long; Path=/; Max-Age=31536000");
    let page = world.browser.navigate("/shop/a", &script).await;
    assert!(page.set_cookies()[0].contains("Max-Age"), "{:?}", page.set_cookies());
    assert_eq!(
        got(&world.browser.navigate("/shop/b", &Script::new()).await),
        "SID=short; flash=long"
    );
    assert_eq!(got(&world.browser.navigate("/shop", &Script::new()).await), "flash=long");
    world.cloakroom.advance(Duration::from_secs(61));
    assert_eq!(got(&world.browser.navigate("/shop/b", &Script::new()).await), "flash=long");
}

#[tokio::test]
async fn changed_value_rotates_once() {
    let world = World::new().await;
    world.browser.navigate("/", &sets("SID=anonymous")).await;
    let old = world.browser.copy();
    let page =
        post(&world.browser, "/sign-in", &sets("SID=ada").header("Set-Cookie", "SID=ada")).await;
    assert_eq!(page.set_cookies().len(), 1);
    assert_eq!(world.cloakroom.metrics().event_count(Event::Rotated), 1);
    assert_eq!(got(&world.browser.navigate("/", &Script::new()).await), "SID=ada");
    // A request of before gets what the browser had then, is anonymous for the API, and its cookies are dropped.
    let page = old.fetch("/", &sets("SID=late").get("")).await;
    assert_eq!((got(&page).as_str(), page.json()["id"].clone()), ("SID=anonymous", Value::Null));
    assert_eq!((page.set_cookies().len(), world.dropped()), (0, 1));
    assert_eq!(got(&world.browser.navigate("/", &Script::new()).await), "SID=ada");
    // The same value again changes nothing.
    let page = world.browser.navigate("/", &sets("SID=ada")).await;
    assert_eq!(
        (page.set_cookies().len(), world.cloakroom.metrics().event_count(Event::Rotated)),
        (0, 1)
    );
    // After the grace period the old token opens nothing.
    world.cloakroom.advance(Duration::from_secs(181));
    assert_eq!(got(&old.fetch("/", &Script::new()).await), "");
}

#[tokio::test]
async fn value_that_always_changes_does_not_rotate() {
    let world = World::new().await;
    world.browser.navigate("/", &sets("flash=1")).await;
    let token = world.browser.cookie();
    for n in 2..5 {
        let page = world.browser.navigate("/", &sets(&format!("flash={n}"))).await;
        assert_eq!((got(&page), page.set_cookies().len()), (format!("flash={}", n - 1), 0));
    }
    assert_eq!(world.browser.cookie(), token);
    // A request of rotate_on does, if it succeeds.
    for (status, rotated) in [(500, 0), (200, 1), (302, 2)] {
        let page = post(&world.browser, "/login", &Script::new().status(status)).await;
        assert_eq!(page.status, status);
        assert_eq!(world.cloakroom.metrics().event_count(Event::Rotated), rotated, "{status}");
    }
    assert_eq!(got(&world.browser.navigate("/", &Script::new()).await), "flash=4");
}

/// The attacker plants a token and polls with it; the log-in is seen in each of the ways.
#[tokio::test]
async fn planted_token_opens_nothing_of_the_log_in() {
    let planted = [
        sets("SID=planted"),
        sets("flash=planted"),
        Script::new().patch(&json!({"set": {"a": 1}})),
    ];
    let log_ins = [
        ("/login", sets("SID=ada")),
        ("/sign-in", sets("SID=ada")),
        ("/login", sets("SID=planted")),
        ("/login", sets("flash=ada")),
        ("/sign-in", Script::new().patch(&json!({"principal": "ada"}))),
        (
            "/sign-in",
            Script::new()
                .header("X-Session-Patch", "{\"principal\": \"ada\"}")
                .header("Set-Cookie", "SID=ada"),
        ),
    ];
    for first in &planted {
        for (path, log_in) in &log_ins {
            let world = World::new().await;
            world.browser.navigate("/", first).await;
            let attacker = world.browser.copy();
            let page = post(&world.browser, path, log_in).await;
            assert_eq!(page.status, 200, "{path} {log_in:?}");
            assert_eq!(
                world.cloakroom.metrics().event_count(Event::Rotated),
                1,
                "{first:?} {path} {log_in:?}"
            );
            for seconds in [0, 1, 130, 200] {
                world.cloakroom.advance(Duration::from_secs(seconds));
                let page = attacker.fetch("/", &Script::new().get("")).await;
                assert!(!got(&page).contains("ada"), "{first:?} {path} {log_in:?}");
                assert_eq!(page.json()["id"], Value::Null);
                if seconds > 120 {
                    assert_eq!(got(&page), "", "after the grace period");
                }
            }
        }
    }
}

#[tokio::test]
async fn lost_answer_locks_nobody_out() {
    // By a form, at once.
    let world = World::new().await;
    world.browser.navigate("/", &sets("SID=anonymous")).await;
    let lost = world.browser.send_without_keeping("POST", "/login", &[], &sets("SID=ada1")).await;
    assert_eq!(lost.set_cookies().len(), 1);
    let page = world.browser.navigate("/", &Script::new()).await;
    assert_eq!((got(&page).as_str(), page.set_cookies().len()), ("SID=anonymous", 0));
    let page = post(&world.browser, "/login", &sets("SID=ada2")).await;
    assert_eq!((got(&page).as_str(), page.set_cookies().len()), ("SID=anonymous", 1));
    let page = world.browser.navigate("/", &Script::new()).await;
    assert_eq!(got(&page), "SID=ada2");

    // By a page, after ten seconds, if the new token was not presented.
    for (is_presented, made) in [(false, 1), (true, 0)] {
        let world = World::new().await;
        world.browser.navigate("/", &sets("SID=anonymous; Path=/")).await;
        let second = world.browser.copy();
        post(&world.browser, "/login", &sets("SID=ada; Path=/")).await;
        if is_presented {
            world.browser.navigate("/", &Script::new()).await;
        }
        world.cloakroom.advance(Duration::from_secs(11));
        let page = second.navigate("/", &Script::new()).await;
        assert_eq!(
            (got(&page).as_str(), page.set_cookies().len()),
            ("SID=anonymous", made),
            "{is_presented}"
        );
        if !is_presented {
            assert_eq!(got(&second.navigate("/", &Script::new()).await), "SID=anonymous");
        }
    }
}

/// A page that was requested before the answer to a log-in arrived, and is answered long after it, is not a visitor
/// whose answer was lost.
#[tokio::test]
async fn slow_page_replaces_no_log_in() {
    for is_sent_before in [true, false] {
        let world = World::new().await;
        world.browser.navigate("/", &sets("SID=anonymous")).await;
        let (tab, slow) = (world.browser.copy(), sets("SID=late").wait("slow"));
        let send = || tokio::spawn(async move { tab.navigate("/", &slow).await });
        let log_in = sets("SID=ada");
        let late = if is_sent_before {
            let late = send();
            world.upstream.arrived("slow", 1).await;
            // The visitor logs in by a second form, since the answer to the first one is lost.
            world.browser.send_without_keeping("POST", "/login", &[], &log_in).await;
            post(&world.browser, "/login", &log_in).await;
            late
        } else {
            post(&world.browser, "/login", &log_in).await;
            let late = send();
            world.upstream.arrived("slow", 1).await;
            late
        };
        assert_eq!(got(&world.browser.navigate("/", &Script::new()).await), "SID=ada");
        world.cloakroom.advance(Duration::from_secs(11));
        world.upstream.open("slow");
        assert_eq!(late.await.unwrap().set_cookies(), Vec::<String>::new(), "{is_sent_before}");
    }
}

#[tokio::test]
async fn log_in_during_a_log_out_is_kept() {
    let world = World::new().await;
    world.browser.navigate("/", &sets("SID=anonymous")).await;
    let (tab, log_in) = (world.browser.copy(), sets("SID=ada").wait("late"));
    let late = tokio::spawn(async move {
        let page = post(&tab, "/sign-in", &log_in).await;
        (tab, page)
    });
    world.upstream.arrived("late", 1).await;
    post(&world.browser, "/sign-out", &sets("SID=; Max-Age=0")).await;
    assert_eq!(world.cloakroom.metrics().event_count(Event::Destroyed), 1);
    world.upstream.open("late");
    let (tab, page) = late.await.unwrap();
    assert_eq!(page.set_cookies().len(), 1);
    assert_eq!(got(&tab.navigate("/", &Script::new()).await), "SID=ada");
}

#[tokio::test]
async fn last_deletion_ends_the_session() {
    for deletion in ["SID=; Max-Age=0", "SID=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT"] {
        let world = World::new().await;
        world.browser.navigate("/", &sets("SID=ada")).await;
        let page = world.browser.navigate("/", &sets(deletion)).await;
        assert_eq!((page.set_cookies().len(), world.browser.cookie()), (1, None), "{deletion}");
        assert_eq!(world.cloakroom.metrics().event_count(Event::Destroyed), 1);
    }
    let world = World::new().await;
    world.browser.navigate("/", &sets("SID=ada").call("PUT", "/values/a", "1")).await;
    world.browser.navigate("/", &Script::new().header("Clear-Site-Data", "\"cookies\"")).await;
    let page = world.browser.navigate("/", &Script::new().get("")).await;
    assert_eq!((got(&page).as_str(), page.json()["values"].clone()), ("", json!({"a": 1})));
    assert_eq!(page.json().get("held_cookies"), None);
    assert_eq!(
        world.cloakroom.metrics().event_count(Event::Rotated),
        0,
        "a deletion does not rotate"
    );
}

#[tokio::test]
async fn revocation_leaves_nothing_in_the_jar() {
    let world = World::new().await;
    world
        .browser
        .navigate("/", &sets("SID=ada").header("Set-Cookie", "flash=remember; Max-Age=99999"))
        .await;
    let id = world.browser.navigate("/", &Script::new().get("")).await.json()["id"].clone();
    let path = format!("/{}", id.as_str().unwrap());
    assert_eq!(world.cloakroom.service("DELETE", &path, "").await.status, 204);
    let page = world.browser.navigate("/", &Script::new()).await;
    assert_eq!(got(&page), "");
    // The store never had the values.
    assert!(world.upstream.seen().len() > 2);
}

#[tokio::test]
async fn sessions_of_robots_end_after_a_day() {
    let world = World::new().await;
    let robot = world.browser.copy();
    robot.send_without_keeping("GET", "/", &[], &sets("SID=robot")).await;
    world.browser.navigate("/", &sets("SID=visitor")).await;
    world.browser.navigate("/", &Script::new()).await;
    let listed = async |world: &World| {
        let listed: Value =
            serde_json::from_str(&world.cloakroom.service("GET", "", "").await.body).unwrap();
        listed["sessions"].as_array().unwrap().len()
    };
    assert_eq!(listed(&world).await, 2);
    world.cloakroom.advance(Duration::from_hours(25));
    assert_eq!(listed(&world).await, 1);
    assert_eq!(got(&world.browser.navigate("/", &Script::new()).await), "SID=visitor");
}

#[tokio::test]
async fn values_share_the_limit_and_survive_a_clear() {
    let world = World::new().await;
    world.browser.navigate("/", &sets("SID=ada").patch(&json!({"set": {"a": 1}}))).await;
    let page =
        world.browser.navigate("/", &Script::new().patch(&json!({"clear": true})).get("")).await;
    assert_eq!(page.json()["values"], json!({}));
    assert_eq!(got(&world.browser.navigate("/", &Script::new()).await), "SID=ada");
    let mut many = Script::new();
    for n in 0..20 {
        many = many.header("Set-Cookie", format!("flash=1; Path=/{n}"));
    }
    world.browser.navigate("/", &many).await;
    let page = world.browser.navigate("/", &Script::new().get("")).await;
    assert_eq!(page.json()["held_cookies"].as_array().unwrap().len(), 16);
}

/// Both requests of a double click log in; what the second one replaces is of the log-in.
#[tokio::test]
async fn double_log_in_gives_nothing_to_the_planted_token() {
    let world = World::new().await;
    world.browser.navigate("/", &sets("SID=planted")).await;
    let (attacker, second) = (world.browser.copy(), world.browser.copy());
    let log_in = |sid: &str, gate: &str| {
        Script::new()
            .patch(&json!({"principal": "ada"}))
            .wait(gate)
            .header("Set-Cookie", format!("SID={sid}"))
    };
    let late = log_in("ada2", "late");
    let late = tokio::spawn(async move { post(&second, "/sign-in", &late).await });
    world.upstream.arrived("late", 1).await;
    world.upstream.open("early");
    let page = post(&world.browser, "/sign-in", &log_in("ada1", "early")).await;
    assert_eq!(page.status, 200);
    world.upstream.open("late");
    assert_eq!(late.await.unwrap().status, 200);
    let page = attacker.fetch("/", &Script::new()).await;
    assert!(!got(&page).contains("ada"), "{}", got(&page));
    // Nor a value that was only set in between.
    let world = World::new().await;
    world.browser.navigate("/", &sets("SID=planted")).await;
    let attacker = world.browser.copy();
    let twice = sets("SID=ada1").header("Set-Cookie", "SID=ada2");
    post(&world.browser, "/sign-in", &twice).await;
    assert_eq!(got(&attacker.fetch("/", &Script::new()).await), "SID=planted");
}

#[tokio::test]
async fn double_click_on_the_form_is_logged_in() {
    let world = World::new().await;
    world.browser.navigate("/", &sets("SID=anonymous")).await;
    let first = world.browser.copy();
    let early = sets("SID=ada1").wait("early");
    let early = tokio::spawn(async move { post(&first, "/sign-in", &early).await });
    world.upstream.arrived("early", 1).await;
    // The second answer, which the browser shows, comes after the first one has rotated.
    let second = world.browser.copy();
    let late = sets("SID=ada2").wait("late");
    let late = tokio::spawn(async move {
        let page = post(&second, "/sign-in", &late).await;
        (second, page)
    });
    world.upstream.arrived("late", 1).await;
    world.upstream.open("early");
    early.await.unwrap();
    world.upstream.open("late");
    let (second, page) = late.await.unwrap();
    assert_eq!(page.set_cookies().len(), 1);
    assert_eq!(got(&second.navigate("/", &Script::new()).await), "SID=ada2");
}

#[tokio::test]
async fn log_in_by_a_post_of_another_site_gets_a_cookie() {
    let headers = [
        ("sec-fetch-dest", "document"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-site", "cross-site"),
    ];
    for (path, script, sets_cookie) in [
        ("/login", sets("SID=ada"), true),
        ("/login", sets("SID=ada").patch(&json!({"set": {"a": 1}})), true),
        ("/other", sets("SID=ada"), false),
    ] {
        let world = World::new().await;
        let page = world.browser.send("POST", path, &headers, &script).await;
        assert_eq!(page.set_cookies().len(), usize::from(sets_cookie), "{path}");
        let page = world.browser.navigate("/", &Script::new()).await;
        assert_eq!(got(&page), if sets_cookie { "SID=ada" } else { "" }, "{path}");
    }
}

#[tokio::test]
async fn responses_without_their_cookie_are_not_cached() {
    let world = World::new().await;
    let public = |line: &str| sets(line).header("Cache-Control", "public, max-age=60");
    let page = world.browser.navigate("/", &public("SID=x; Domain=other.org")).await;
    assert_eq!((page.header("cache-control"), page.set_cookies().len()), (Some("no-store"), 0));
    let page = world.browser.navigate("/static/x", &public("SID=x")).await;
    assert_eq!((page.header("cache-control"), page.set_cookies().len()), (Some("no-store"), 0));
}

#[tokio::test]
async fn last_value_that_does_not_rotate_wins() {
    let world = World::new().await;
    world.browser.navigate("/", &sets("flash=a")).await;
    let slow = world.browser.copy();
    let back = sets("flash=a").wait("slow");
    let slow = tokio::spawn(async move { slow.navigate("/", &back).await });
    world.upstream.arrived("slow", 1).await;
    world.browser.navigate("/", &sets("flash=b")).await;
    world.upstream.open("slow");
    slow.await.unwrap();
    assert_eq!(got(&world.browser.navigate("/", &Script::new()).await), "flash=a");
}
