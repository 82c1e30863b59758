//! The demo, clicked through in a real browser.

use cloakroom::demo::Demo;
use serde_json::json;

use crate::support::{Driver, Window};

async fn log_in(window: &Window<'_>, name: &str) {
    window.write("input[name=name]", name).await;
    window.click("#login").await;
}

#[tokio::test]
async fn the_demo_works_in_a_real_browser() {
    crate::support::log();
    let demo = Demo::start(8080).unwrap();
    let url = demo.url();
    assert!(url.starts_with("http://localhost:"), "{url}");
    let driver = Driver::start().await;
    let window = driver.window().await;

    // Count to 5; without the cookie it begins again.
    for visit in 1..=5 {
        window.open(&url).await;
        assert_eq!(window.text("#visits").await, visit.to_string());
    }
    let cookie = window.cookie().await.unwrap();
    assert_eq!(cookie["name"], "__Host-id");
    for (attribute, value) in [
        ("secure", json!(true)),
        ("httpOnly", json!(true)),
        ("sameSite", json!("Lax")),
        ("path", json!("/")),
    ] {
        assert_eq!(cookie[attribute], value, "{attribute}");
    }
    window.delete_cookie().await;
    window.open(&url).await;
    assert_eq!(window.text("#visits").await, "1");

    log_in_changes_the_cookie(&window, &url).await;
    values_flash_and_expiry(&window, &url).await;
    devices(&driver, &window, &url).await;

    // Log out deletes the cookie; the page that follows is the first of a new session.
    window.open(&url).await;
    let before = window.cookie().await.unwrap();
    window.click("form[action='/logout'] button").await;
    assert_eq!(window.text("#principal").await, "Nobody yet");
    assert_eq!(window.text("#visits").await, "1");
    assert_ne!(window.cookie().await.unwrap()["value"], before["value"]);

    drop(window);
    drop(driver);
    assert!(demo.stop().await, "the drain was cut short");
}

async fn log_in_changes_the_cookie(window: &Window<'_>, url: &str) {
    let before = window.cookie().await.unwrap();
    log_in(window, "ada").await;
    assert_eq!(window.text("#principal").await, "ada");
    assert!(window.text("#flash").await.starts_with("Welcome, ada"));
    let after = window.cookie().await.unwrap();
    assert_ne!(before["value"], after["value"]);
    // The flash message is shown once.
    window.open(url).await;
    assert_eq!(window.count("#flash").await, 0);
    // The old cookie is anonymous, and its request neither sets nor deletes one.
    window.put_cookie(&before).await;
    window.open(&format!("{url}devices")).await;
    assert!(window.text("main p").await.starts_with("Log in on the first page"));
    assert_eq!(window.cookie().await.unwrap()["value"], before["value"]);
    window.open(url).await;
    assert_eq!(window.text("p code").await, "409 session_rotated");
    window.put_cookie(&after).await;
    window.open(url).await;
    assert_eq!(window.text("#principal").await, "ada");
}

async fn values_flash_and_expiry(window: &Window<'_>, url: &str) {
    window.write("input[name=key]:not([type=hidden])", "cart").await;
    window.write("input[name=value]", "[1, 2]").await;
    window.click("#set").await;
    assert_eq!(window.count("input[name=key][value=cart]").await, 1);
    window.click("form:has(input[name=key][value=cart]) button").await;
    assert_eq!(window.text("#flash").await, "Removed; it was [1,2].");
    assert_eq!(window.count("input[name=key][value=cart]").await, 0);

    window.open(&format!("{url}expiry")).await;
    assert!(window.cookie().await.unwrap()["expiry"].is_number());
    window.click("form:has(input[value=browser_close]) button").await;
    assert_eq!(window.text("#browser-close").await, "yes");
    assert!(window.cookie().await.unwrap()["expiry"].is_null());
    window.click("form:has(input[value=idle]) button").await;
    assert_eq!(window.text("#own").await, "{\"idle\":3600}");
    assert!(window.text("#age").await.parse::<u64>().unwrap() <= 3600);
    window.click("form:has(input[value=policy]) button").await;
    assert_eq!(window.text("#own").await, "no");

    window.open(&format!("{url}test-cookie")).await;
    assert!(window.text("#test-cookie").await.contains("came back"));
    window.open(&format!("{url}test-cookie/check")).await;
    assert!(window.text("#test-cookie").await.contains("did not come back"));

    for visit in 1..=2 {
        window.open(&format!("{url}exchange")).await;
        assert_eq!(window.text("#exchange-visits").await, visit.to_string());
    }
}

async fn devices(driver: &Driver, window: &Window<'_>, url: &str) {
    let other = driver.window().await;
    other.open(url).await;
    log_in(&other, "ada").await;
    assert_eq!(other.text("#principal").await, "ada");
    window.open(&format!("{url}devices")).await;
    assert_eq!(window.count(".device").await, 2);
    window.click("form[action='/devices/logout'] button").await;
    assert_eq!(window.text("h1").await, "Your devices", "{}", window.text("main").await);
    assert_eq!(window.count(".device").await, 1);
    other.open(url).await;
    assert_eq!(other.text("#principal").await, "Nobody yet");
}
