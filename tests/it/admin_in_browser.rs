//! The admin page in a real browser: for axe-core, on a phone, in the dark, enlarged, and by keyboard.
//!
//! With `TEST_SCREENSHOTS`, a directory, each page is kept as an image.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::raw::exchange;
use crate::support::{Browser, Cloakroom, Driver, PATIENCE, Script, Upstream, Window, needs};

const AXE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/target/node/node_modules/axe-core/axe.min.js");

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

/// Reads axe-core, which `tests/run` installs.
fn axe() -> Option<String> {
    let script = std::fs::read_to_string(AXE).ok();
    let required = std::env::var_os("TESTS_NEED_TOOLS").is_some();
    assert!(script.is_some() || !required, "axe-core is not installed");
    script
}

/// A proxy with sessions whose texts are long and odd.
async fn start(upstream: &Upstream) -> (Cloakroom, String) {
    let toml = "[session]\nrecord_client = true\n";
    let cloakroom = Cloakroom::with(upstream, toml).await;
    let long = "a.very.long.name.of.a.principal.without.any.space.in.it@department.example.org";
    let mut last = String::new();
    for name in [None, Some("ada"), Some("<b>Łukasz & Søn</b>"), Some(long), Some("ada")] {
        let browser = Browser::new(&cloakroom);
        let mut script = Script::new();
        for key in ["basket", "language", "a-key-with-a-long-name-and-without-space", "csrf"] {
            script = script.call("PUT", &format!("/values/{key}"), "{\"a\":[1,2,\"three\"]}");
        }
        if let Some(name) = name {
            script = script.call("PATCH", "", json!({"principal": name}).to_string());
        }
        let agent =
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0";
        let page = browser.send("GET", "/", &[("user-agent", agent)], &script).await;
        page.json()["id"].as_str().unwrap().clone_into(&mut last);
    }
    // A connection that was closed early has a row of its own.
    exchange(cloakroom.public(), "nonsense\r\n\r\n").await;
    (cloakroom, last)
}

fn token(cloakroom: &Cloakroom) -> String {
    let text = std::fs::read_to_string(cloakroom.directory().join("admin-token")).unwrap();
    text.trim_end().to_owned()
}

async fn log_in(window: &Window<'_>, cloakroom: &Cloakroom) {
    window.open(&format!("http://{}/sessions", cloakroom.admin())).await;
    window.write("input[name=token]", &token(cloakroom)).await;
    window.click("main button").await;
}

/// Fails for each violation that axe-core finds, and if the page is wider than the window.
async fn check(window: &Window<'_>, axe: &str, name: &str) {
    let script = format!("{axe};\nreturn (await axe.run(document)).violations");
    let violations = window.run(&script).await;
    let found: Vec<_> = violations
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (&one["id"], one["nodes"].as_array().unwrap().iter().map(|node| &node["html"])))
        .map(|(id, nodes)| (id, nodes.collect::<Vec<_>>()))
        .collect();
    assert!(found.is_empty(), "{name}: {found:#?}");
    let wide = "const {scrollWidth, clientWidth} = document.documentElement;
                const sticksOut = one =>
                    one.getBoundingClientRect().right > clientWidth && !one.closest('.wide');
                const elements = [...document.querySelectorAll('main *')].filter(sticksOut);
                return scrollWidth > clientWidth ? elements.map(one => one.outerHTML) : null";
    assert_eq!(window.run(wide).await, Value::Null, "{name} is wider than the window");
}

async fn keep(window: &Window<'_>, name: &str) {
    if let Some(directory) = std::env::var_os("TEST_SCREENSHOTS") {
        let path = Path::new(&directory).join(format!("{name}.png"));
        std::fs::write(path, window.screenshot().await).unwrap();
    }
}

async fn show_as(window: &Window<'_>, (width, scale): (u32, u32), scheme: &str) {
    let size = json!({"width": width, "height": 900, "deviceScaleFactor": scale, "mobile": false});
    window.devtools("Emulation.setDeviceMetricsOverride", size).await;
    let feature = json!({"name": "prefers-color-scheme", "value": scheme});
    window.devtools("Emulation.setEmulatedMedia", json!({"features": [feature]})).await;
}

#[tokio::test]
async fn pages_are_accessible_on_every_screen() {
    needs!("chromium", "chromedriver");
    let Some(axe) = axe() else { return };
    let upstream = Upstream::start();
    let (cloakroom, id) = start(&upstream).await;
    let driver = Driver::start().await;
    let window = driver.window().await;
    let url = |path: &str| format!("http://{}{path}", cloakroom.admin());
    let screens = [("desktop", (1280, 1)), ("phone", (360, 2)), ("zoomed", (640, 2))];
    window.open(&url("/sessions")).await;
    for (screen, size) in screens {
        for scheme in ["light", "dark"] {
            show_as(&window, size, scheme).await;
            let name = format!("login-{screen}-{scheme}");
            check(&window, &axe, &name).await;
            keep(&window, &name).await;
        }
    }
    log_in(&window, &cloakroom).await;
    let pages = [
        ("now", "/".to_owned()),
        ("list", "/sessions".to_owned()),
        ("paged", "/sessions?principal=ada&limit=1".to_owned()),
        ("session", format!("/sessions/{id}")),
        ("end", format!("/sessions/{id}/end")),
        ("end-all", "/sessions/end?principal=ada".to_owned()),
        ("audit", "/audit".to_owned()),
        ("missing", "/sessions/AAAAAAAAAAAAAAAAAAAAAA".to_owned()),
    ];
    for (page, path) in pages {
        window.open(&url(&path)).await;
        for (screen, size) in screens {
            for scheme in ["light", "dark"] {
                show_as(&window, size, scheme).await;
                let name = format!("{page}-{screen}-{scheme}");
                check(&window, &axe, &name).await;
                keep(&window, &name).await;
            }
        }
    }
    window.open(&url(&format!("/sessions/{id}"))).await;
    window.click("#values").await;
    check(&window, &axe, "values").await;
    keep(&window, "values").await;
}

/// Presses Tab until an element has the focus.
async fn tab_to(window: &Window<'_>, css: &str) {
    let script = format!("return document.activeElement.matches({})", Value::from(css));
    for _ in 0..60 {
        window.press(TAB).await;
        if window.run(&script).await == true {
            return;
        }
    }
    panic!("Tab does not reach {css}");
}

/// Waits until a page has a text as its heading.
async fn heading(window: &Window<'_>, text: &str) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while window.run("return document.querySelector('h1')?.textContent").await != text {
        assert!(std::time::Instant::now() < deadline, "no page {text}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_session_ends_by_keyboard_alone() {
    needs!("chromium", "chromedriver");
    let upstream = Upstream::start();
    let (cloakroom, id) = start(&upstream).await;
    let driver = Driver::start().await;
    let window = driver.window().await;
    window.open(&format!("http://{}/sessions/{id}", cloakroom.admin())).await;
    heading(&window, "Log in").await;
    // The field of the token has the focus.
    window.press(&format!("{}{ENTER}", token(&cloakroom))).await;
    heading(&window, "Session").await;
    tab_to(&window, ".skip").await;
    tab_to(&window, "#end").await;
    let outline = "return getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(window.run(outline).await, "solid", "the focus can be seen");
    window.press(ENTER).await;
    heading(&window, "End 1 session?").await;
    tab_to(&window, "#confirm").await;
    window.press(ENTER).await;
    heading(&window, "1 session ended").await;
    tab_to(&window, "header button").await;
    window.press(ENTER).await;
    heading(&window, "Now").await;
    assert_eq!(window.cookie_names().await, [""; 0]);
}
