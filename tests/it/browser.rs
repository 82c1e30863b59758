//! The demo in a real browser.

use cloakroom::demo::{Demo, Options};
use serde_json::{Value, json};

use crate::support::{Driver, Window, needs};

fn start() -> Demo {
    crate::support::init_log();
    Demo::start(Options { port: Some(0) }).unwrap()
}

async fn log_in(window: &Window<'_>, demo: &Demo, name: &str) {
    window.open(&format!("{}account", demo.url())).await;
    window.write("#name", name).await;
    window.click("#log-in").await;
    assert_eq!(window.text("#who").await, name);
}

async fn cookie(window: &Window<'_>) -> Value {
    window.cookie().await.expect("a session cookie")
}

#[tokio::test]
async fn localhost_gets_the_default_cookie_without_tls() {
    needs!("chromium", "chromedriver");
    let demo = start();
    let driver = Driver::start().await;
    let window = driver.window().await;
    window.open(&demo.url()).await;
    for visits in 1..=5 {
        assert_eq!(window.text("#visits").await, visits.to_string());
        window.click("#again").await;
    }
    assert!(window.text("#last-visit").await.starts_with("Your last visit was "));
    let cookie = cookie(&window).await;
    for (attribute, value) in [
        ("name", json!("__Host-id")),
        ("domain", json!("localhost")),
        ("path", json!("/")),
        ("secure", json!(true)),
        ("httpOnly", json!(true)),
        ("sameSite", json!("Lax")),
    ] {
        assert_eq!(cookie[attribute], value, "{attribute}");
    }
    assert!(cookie["expiry"].is_number());

    window.delete_cookie().await;
    window.open(&demo.url()).await;
    assert_eq!(window.text("#visits").await, "1");
    drop(driver);
    assert!(demo.stop().await, "requests in flight were aborted");
}

#[tokio::test]
async fn login_rotates_the_cookie_and_logout_deletes_it() {
    needs!("chromium", "chromedriver");
    let demo = start();
    let account = format!("{}account", demo.url());
    let driver = Driver::start().await;
    let window = driver.window().await;
    window.open(&account).await;
    assert!(window.cookie().await.is_none(), "reading creates no session");
    window.write("#item", "<b>hat</b>").await;
    window.click("#put").await;
    let before = cookie(&window).await;

    log_in(&window, &demo, "ada").await;
    assert_eq!(window.text("#basket").await, "<b>hat</b>");
    assert_eq!(window.text("#principal").await, "ada");
    let after = cookie(&window).await;
    assert_ne!(before["value"], after["value"]);
    assert!(after["expiry"].is_null(), "ends with the browser");

    window.put_cookie(&before).await;
    window.open(&account).await;
    assert!(window.text("#session").await.starts_with("No session"));
    assert_eq!(window.text("#session-error code").await, "session_rotated");
    assert_eq!(
        cookie(&window).await["value"],
        before["value"],
        "the stale cookie is left as it is"
    );
    window.open(&demo.url()).await;
    assert_eq!(window.text("#code").await, "409 session_rotated");

    window.put_cookie(&after).await;
    window.open(&account).await;
    assert_eq!(window.text("#who").await, "ada");
    window.click("#log-out").await;
    assert_eq!(window.count("#ended").await, 1);
    assert!(window.cookie().await.is_none());

    window.click_only("#remember").await;
    window.write("#name", "ada").await;
    window.click("#log-in").await;
    assert!(cookie(&window).await["expiry"].is_number(), "remembered");
}

#[tokio::test]
async fn messages_are_shown_once_and_values_removed_once() {
    needs!("chromium", "chromedriver");
    let demo = start();
    let driver = Driver::start().await;
    let window = driver.window().await;
    window.open(&format!("{}message", demo.url())).await;
    window.write("#text", "Grüße & <i>more</i>").await;
    window.click("#say").await;
    assert_eq!(window.text("#flash").await, "Grüße & <i>more</i>");
    window.open(&format!("{}message", demo.url())).await;
    assert_eq!(window.count("#flash").await, 0);

    window.open(&format!("{}values", demo.url())).await;
    window.write("#key", "a/b c").await;
    window.write("#value", "[1, 2.50]").await;
    window.click("#set").await;
    assert_eq!(window.text("#values td.json").await, "[1,2.50]");
    window.click("button[aria-label='Remove a/b c']").await;
    assert_eq!(window.text("#flash").await, "Removed “a/b c”; it was [1,2.50]");
    assert_eq!(window.text("#values tbody").await, "There are none.");

    window.click("#flush").await;
    assert_eq!(window.count("#ended").await, 1);
    assert!(window.cookie().await.is_none());
}

#[tokio::test]
async fn browser_close_removes_the_cookies_expiry() {
    needs!("chromium", "chromedriver");
    let demo = start();
    let driver = Driver::start().await;
    let window = driver.window().await;
    window.open(&demo.url()).await;
    window.open(&format!("{}lifetime", demo.url())).await;
    let expiry = |cookie: Value| cookie["expiry"].as_i64();
    let default = expiry(cookie(&window).await).unwrap();

    window.click("#set-browser-close").await;
    assert_eq!(window.text("#browser-close").await, "yes");
    assert_eq!(expiry(cookie(&window).await), None);
    window.click("#set-idle").await;
    assert_eq!(window.text("#own").await, "{\"idle\":3600}");
    assert!(window.text("#age").await.contains("(3"));
    assert!(expiry(cookie(&window).await).unwrap() < default);
    window.click("#set-policy").await;
    assert_eq!(window.text("#own").await, "none: the policy applies");
    assert!(expiry(cookie(&window).await).unwrap() >= default);
}

#[tokio::test]
async fn the_test_cookie_shows_if_cookies_work() {
    needs!("chromium", "chromedriver");
    let demo = start();
    let driver = Driver::start().await;
    for (window, verdict) in [
        (driver.window().await, "The cookie came back"),
        (driver.window_without_cookies().await, "The cookie did not come back"),
    ] {
        window.open(&format!("{}cookie", demo.url())).await;
        assert_eq!(window.count("#test-cookie").await, 0);
        window.click("#test").await;
        let text = window.text("#test-cookie").await;
        assert!(text.starts_with(verdict), "{text}");
    }
}

#[tokio::test]
async fn one_browser_logs_another_out() {
    needs!("chromium", "chromedriver");
    let demo = start();
    let driver = Driver::start().await;
    let (mine, other) = (driver.window().await, driver.window().await);
    let devices = format!("{}devices", demo.url());
    for window in [&mine, &other] {
        log_in(window, &demo, "ada").await;
    }
    mine.open(&devices).await;
    assert_eq!(mine.count("#devices tr").await, 2);
    mine.click("#devices tr:not(:has(strong)) button").await;
    assert_eq!(mine.count("#devices tr").await, 1);
    other.open(&devices).await;
    assert_eq!(other.count("#not-logged-in").await, 1);
    assert!(other.cookie().await.is_none());

    log_in(&other, &demo, "ada").await;
    mine.open(&devices).await;
    mine.click("#log-others-out").await;
    assert_eq!(mine.text("#flash").await, "Logged out elsewhere: 1");
    other.open(&devices).await;
    assert_eq!(other.count("#not-logged-in").await, 1);
}

#[tokio::test]
async fn header_exchange_counts_visits_across_a_rotation() {
    needs!("chromium", "chromedriver");
    let demo = start();
    let driver = Driver::start().await;
    let window = driver.window().await;
    window.open(&format!("{}exchange", demo.url())).await;
    for visits in 1..=3 {
        assert_eq!(window.text("#count").await, visits.to_string());
        window.click("#again").await;
    }
    let before = cookie(&window).await;
    window.open(&format!("{}cookie", demo.url())).await;
    window.click("#rotate").await;
    assert_eq!(window.text("#flash").await, "The cookie has a new value");
    assert_ne!(cookie(&window).await["value"], before["value"]);
    window.open(&format!("{}exchange", demo.url())).await;
    assert_eq!(window.text("#count").await, "5");
    window.click("#restart").await;
    assert_eq!(window.text("#count").await, "1");
}

#[tokio::test]
async fn atomic_increments_survive_20_requests_at_once() {
    needs!("chromium", "chromedriver");
    let demo = start();
    let driver = Driver::start().await;
    let window = driver.window().await;
    window.open(&format!("{}parallel", demo.url())).await;
    for total in [20, 40] {
        window.click_only("#burst button").await;
        // The script marks the form when it has loaded the counters of the session.
        window.text("#burst[data-finished='20']").await;
        assert_eq!(window.text("#answered").await, "20");
        assert_eq!(window.text("#atomic").await, total.to_string());
        let overwritten: u64 = window.text("#overwritten").await.parse().unwrap();
        assert!((1..=total).contains(&overwritten), "{overwritten}");
    }
    window.click("#reset").await;
    assert_eq!(window.text("#atomic").await, "0");
}
