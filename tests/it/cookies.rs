//! The session cookie: when it is set, renewed and deleted.

use std::time::Duration;

use cloakroom::metrics::Event;
use serde_json::{Value, json};

use crate::support::{Browser, Cloakroom, Script, Upstream};

const DAY: Duration = Duration::from_hours(24);

fn write() -> Script {
    Script::new().call("PUT", "/values/x", "1")
}

fn read() -> Script {
    Script::new().get("")
}

async fn started(toml: &str) -> (Upstream, Cloakroom, Browser) {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, toml).await;
    let browser = Browser::new(&cloakroom);
    (upstream, cloakroom, browser)
}

#[tokio::test]
async fn cookie_attributes_follow_configuration() {
    for (toml, expected) in [
        ("", "__Host-id=TOKEN; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=1209600"),
        (
            "[session]\nexpire_at_browser_close = true\n",
            "__Host-id=TOKEN; HttpOnly; SameSite=Lax; Secure; Path=/",
        ),
        (
            "[session]\nidle_timeout = \"10m\"\nabsolute_timeout = \"5m\"\n",
            "__Host-id=TOKEN; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=300",
        ),
        (
            "[cookie]\nsecure = false\nname = \"s\"\nsame_site = \"Strict\"\n",
            "s=TOKEN; HttpOnly; SameSite=Strict; Path=/; Max-Age=1209600",
        ),
    ] {
        let (_upstream, _cloakroom, browser) = started(toml).await;
        let page = browser.navigate("/", &write()).await;
        let line = page.header("set-cookie").unwrap();
        let token = line.split_once('=').unwrap().1.split(';').next().unwrap();
        assert_eq!(token.len(), 48);
        assert_eq!(line.replace(token, "TOKEN"), expected);
    }
}

#[tokio::test]
async fn many_pages_cost_few_writes() {
    let (_upstream, cloakroom, browser) = started("").await;
    browser.navigate("/", &write()).await;
    cloakroom.advance(Duration::from_secs(61));
    let mut cookies = 0;
    for _ in 0..100 {
        cookies += browser.navigate("/", &Script::new()).await.set_cookies().len();
        cloakroom.advance(Duration::from_millis(600));
    }
    let writes = cloakroom.metrics().store_calls("use") + cloakroom.metrics().store_calls("patch");
    assert!(writes <= 2, "{writes} writes");
    assert!(cookies <= 1, "{cookies} cookies");
}

#[tokio::test]
async fn max_age_slides_with_the_session() {
    let (_upstream, cloakroom, browser) = started("[session]\nrotate_every = \"never\"\n").await;
    browser.navigate("/", &write()).await;
    let cookie = browser.cookie();
    cloakroom.advance(Duration::from_secs(86_399));
    assert_eq!(browser.navigate("/", &read()).await.set_cookies(), [""; 0]);
    cloakroom.advance(Duration::from_secs(61));
    let page = browser.navigate("/", &read()).await;
    assert!(page.set_cookies()[0].ends_with("Max-Age=1209600"));
    assert_eq!(browser.cookie(), cookie);
    // Used every ten days, the session never expires; unused for the idle timeout, it does.
    for _ in 0..5 {
        cloakroom.advance(DAY * 10);
        assert_eq!(browser.navigate("/", &read()).await.json()["values"], json!({"x": 1}));
    }
    cloakroom.advance(DAY * 15);
    assert_eq!(browser.navigate("/", &read()).await.json()["id"], Value::Null);
}

#[tokio::test]
async fn forged_cookies_never_reach_the_store() {
    let (_upstream, cloakroom, browser) = started("").await;
    for index in 0..200_u32 {
        browser.set_cookie(Some(&format!("{index:048}")));
        assert_eq!(browser.navigate("/", &Script::new()).await.set_cookies(), [""; 0]);
    }
    for operation in ["load", "create", "patch", "use", "remove"] {
        assert_eq!(cloakroom.metrics().store_calls(operation), 0, "{operation}");
    }
    assert_eq!(cloakroom.metrics().event_count(Event::InvalidCookie), 200);
}

#[tokio::test]
async fn only_navigations_delete_unknown_cookies() {
    let (_upstream, cloakroom, browser) = started("").await;
    browser.navigate("/", &write()).await;
    cloakroom
        .service(
            "DELETE",
            &format!("/{}", browser.navigate("/", &read()).await.json()["id"].as_str().unwrap()),
            "",
        )
        .await;
    for (headers, deleted) in [
        (&[("sec-fetch-dest", "image"), ("sec-fetch-site", "same-origin")][..], false),
        (&[("sec-fetch-dest", "document"), ("sec-purpose", "prefetch")], false),
        (&[("accept", "*/*")], false),
        (&[("accept", "text/html")], true),
        (&[("sec-fetch-dest", "document")], true),
    ] {
        let page = browser.send_without_keeping("GET", "/", headers, &read()).await;
        assert_eq!(page.set_cookies().len(), usize::from(deleted), "{headers:?}");
        assert!(page.set_cookies().iter().all(|line| line.ends_with("Max-Age=0")));
    }
}

#[tokio::test]
async fn cookies_of_two_sessions_are_ignored() {
    let (_upstream, cloakroom, one) = started("").await;
    let other = Browser::new(&cloakroom);
    one.navigate("/", &write()).await;
    other.navigate("/", &write()).await;
    let (first, second) = (one.cookie().unwrap(), other.cookie().unwrap());
    let both = Browser::new(&cloakroom);
    for lines in
        [format!("{first}; __Host-id={second}"), format!("{second}; a=b; __Host-id={first}")]
    {
        both.set_cookie(Some(&lines));
        let page = both
            .navigate(
                "/",
                &read().call("PUT", "/values/x", "2").patch(&json!({"principal": "ada"})),
            )
            .await;
        assert_eq!(page.calls()[0].json()["id"], Value::Null);
        assert_eq!(
            (page.calls()[1].code().as_str(), page.last().code().as_str()),
            ("ambiguous_cookie", "ambiguous_cookie")
        );
        assert_eq!(
            (page.saw("x-session-error").as_deref(), page.set_cookies().len()),
            (Some("ambiguous_cookie"), 0)
        );
    }
    // A stale token identifies its session too; a forged one identifies none.
    one.navigate("/", &Script::new().call("POST", "/rotate", "")).await;
    both.set_cookie(Some(&format!("{first}; __Host-id={second}")));
    assert_eq!(
        both.navigate("/", &read()).await.saw("x-session-error").as_deref(),
        Some("ambiguous_cookie")
    );
    both.set_cookie(Some(&format!("{}; __Host-id={second}", "A".repeat(48))));
    assert_eq!(both.navigate("/", &read()).await.json()["values"], json!({"x": 1}));
    // Of several tokens of one session, the newest counts.
    both.set_cookie(Some(&format!("{first}; __Host-id={}", one.cookie().unwrap())));
    assert_eq!(both.navigate("/", &read()).await.json()["values"], json!({"x": 1}));
}

/// Browsers send cookies with longer paths first, even those that another host of the domain has set
/// (RFC 6265, section 5.4).
#[tokio::test]
async fn tossed_cookies_do_not_hide_sessions() {
    let (_upstream, cloakroom, visitor) = started("").await;
    let log_in = Script::new().patch(&json!({"principal": "ada"}));
    visitor.navigate("/", &log_in).await;
    let own = visitor.cookie().unwrap();
    let mut others = Vec::new();
    for _ in 0..5 {
        let other = Browser::new(&cloakroom);
        other.navigate("/", &log_in).await;
        others.push(other.cookie().unwrap());
    }
    let victim = Browser::new(&cloakroom);
    let ask = async |tossed: &[String]| {
        let all: Vec<&str> = tossed.iter().chain([&own]).map(String::as_str).collect();
        victim.set_cookie(Some(&all.join("; __Host-id=")));
        victim.navigate("/", &write()).await
    };
    for count in [4, 5, 100] {
        let page = ask(&vec!["x".to_owned(); count]).await;
        assert_eq!(page.saw("x-session-principal").as_deref(), Some("ada"), "{count} bad ones");
        assert_eq!((page.last().status, page.set_cookies().len()), (200, 0), "{count} bad ones");
    }
    let older = vec![own.clone(); 100];
    assert_eq!(ask(&older).await.saw("x-session-principal").as_deref(), Some("ada"));
    for tossed in [vec![others[0].clone(); 4], vec![others[0].clone(); 100], others.clone()] {
        let loads = cloakroom.metrics().store_calls("load");
        let page = ask(&tossed).await;
        assert_eq!(page.saw("x-session-error").as_deref(), Some("ambiguous_cookie"));
        assert_eq!((&*page.last().code(), page.set_cookies().len()), ("ambiguous_cookie", 0));
        // Six sessions exceed the number of lookups for one request.
        let looked_up = if tossed.len() == others.len() { 0 } else { 2 };
        assert_eq!(cloakroom.metrics().store_calls("load"), loads + looked_up);
    }
}

/// Like the previous test, with sealed sessions.
#[tokio::test]
async fn tossed_cookies_do_not_hide_sealed_sessions() {
    let (_upstream, cloakroom, visitor) =
        started("[store]\nurl = \"cookie:\"\naccept_no_revocation = true\n").await;
    let log_in = Script::new().patch(&json!({"principal": "ada"}));
    visitor.navigate("/", &log_in).await;
    let own = visitor.cookie().unwrap();
    let victim = Browser::new(&cloakroom);
    victim.set_cookie(Some(&format!("{}{own}", "x; __Host-id=".repeat(50))));
    let page = victim.navigate("/", &Script::new()).await;
    assert_eq!(page.saw("x-session-principal").as_deref(), Some("ada"));
    let other = Browser::new(&cloakroom);
    other.navigate("/", &log_in).await;
    let tossed = format!("{}; __Host-id=", other.cookie().unwrap()).repeat(4);
    victim.set_cookie(Some(&format!("{tossed}{own}")));
    let page = victim.navigate("/", &Script::new()).await;
    assert_eq!(page.saw("x-session-error").as_deref(), Some("ambiguous_cookie"));
}

#[tokio::test]
async fn cross_site_forms_keep_the_session() {
    let (_upstream, cloakroom, visitor) = started("").await;
    let from_bank: &[_] = &[("sec-fetch-site", "cross-site"), ("sec-fetch-dest", "document")];
    // The browser does not send the SameSite cookie. A session created now gets no cookie, and ends
    // soon.
    let page = visitor.send("POST", "/paid", from_bank, &write()).await;
    assert_eq!(
        (page.saw("x-session-error").as_deref(), page.set_cookies().len()),
        (Some("cookie_withheld"), 0)
    );
    let id = page.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(cloakroom.service("GET", &format!("/{id}"), "").await.status, 200);
    cloakroom.advance(Duration::from_secs(61));
    assert_eq!(cloakroom.service("GET", &format!("/{id}"), "").await.status, 404);
    // A login by such a form is intended: it gets its cookie, and the usual lifetime.
    let page =
        visitor.send("POST", "/sso", from_bank, &write().patch(&json!({"principal": "ada"}))).await;
    assert_eq!(
        (page.set_cookies().len(), page.json()["expires_in"].clone()),
        (1, json!(1_209_600))
    );
    // With the cookie, as for a link by GET, the session is used.
    let page = visitor.send("GET", "/", from_bank, &read()).await;
    assert_eq!(
        (page.saw("x-session-error"), page.json()["principal"].clone()),
        (None, json!("ada"))
    );
    // Without Fetch metadata, Origin decides.
    let other = Browser::new(&cloakroom);
    let page = other.send("POST", "/", &[("origin", "https://bank.example")], &read()).await;
    assert_eq!(page.saw("x-session-error").as_deref(), Some("cookie_withheld"));
    let page = other.send("POST", "/", &[("origin", "https://localhost:9")], &read()).await;
    assert_eq!(page.saw("x-session-error"), None);
}

#[tokio::test]
async fn origin_is_compared_with_forwarded_host() {
    let form = |more: &[(&'static str, &'static str)]| {
        [&[("origin", "https://shop.example"), ("x-forwarded-for", "203.0.113.9")], more].concat()
    };
    let x_forwarded = [("x-forwarded-host", "shop.example")];
    let forwarded = [("forwarded", "for=203.0.113.9;host=\"shop.example:443\";proto=https")];
    let trusted = "[limits]\ntrusted_proxies = [\"127.0.0.1\"]\n";
    // The Host is that of the test client, as behind a proxy that changes it.
    for (toml, headers, withheld) in [
        (trusted, form(&x_forwarded), false),
        (trusted, form(&[("x-forwarded-host", "bank.example")]), true),
        (trusted, form(&[]), true),
        (trusted, [&form(&[])[..1], &forwarded].concat(), false),
        ("", form(&x_forwarded), true),
    ] {
        let (_upstream, _cloakroom, browser) = started(toml).await;
        let page = browser.send("POST", "/buy", &headers, &write()).await;
        assert_eq!(page.set_cookies().is_empty(), withheld, "{toml} {headers:?}");
        assert_eq!(page.saw("x-session-error").is_some(), withheld, "{toml} {headers:?}");
    }
}

#[tokio::test]
async fn first_page_can_create_a_session() {
    let (_upstream, _cloakroom, browser) = started("[session]\ncreate = \"navigation\"\n").await;
    assert_eq!(browser.fetch("/", &read()).await.set_cookies(), [""; 0]);
    assert_eq!(browser.navigate("/", &Script::new().status(500)).await.set_cookies(), [""; 0]);
    assert_eq!(browser.navigate("/", &read()).await.set_cookies().len(), 1);
    assert!(browser.navigate("/", &read()).await.json()["id"].is_string());
}

#[tokio::test]
async fn touch_settings_limit_extension() {
    let routes = "[session]\nidle_timeout = \"10m\"\n[[route]]\nupstream = \"UPSTREAM\"\n[[route]]\npath = \"/poll\"\nupstream = \"UPSTREAM\"\nsession = \"no-touch\"\n[[route]]\npath = \"/static\"\nupstream = \"UPSTREAM\"\nsession = \"off\"\n";
    let (_upstream, cloakroom, browser) = started(routes).await;
    browser.navigate("/", &write()).await;
    for _ in 0..12 {
        cloakroom.advance(Duration::from_secs(50));
        browser.fetch("/poll", &read()).await;
    }
    let page = browser.fetch("/static/logo.png", &Script::new()).await;
    assert_eq!(
        (page.saw("x-session-token"), page.saw("cookie"), page.header("vary")),
        (None, None, None)
    );
    cloakroom.advance(Duration::from_mins(1));
    assert_eq!(browser.navigate("/", &read()).await.json()["id"], Value::Null);
    // The default of Django: only a change extends the session.
    let (_upstream, cloakroom, browser) =
        started("[session]\nidle_timeout = \"10m\"\ntouch = \"write\"\n").await;
    browser.navigate("/", &write()).await;
    for _ in 0..3 {
        cloakroom.advance(Duration::from_mins(5));
        browser.navigate("/", &Script::new().call("PUT", "/values/x", "2")).await;
    }
    assert!(browser.navigate("/", &read()).await.json()["id"].is_string());
    for _ in 0..3 {
        cloakroom.advance(Duration::from_mins(5));
        browser.navigate("/", &read()).await;
    }
    assert_eq!(browser.navigate("/", &read()).await.json()["id"], Value::Null);
}

#[tokio::test]
async fn client_details_are_stored_if_configured() {
    let (_upstream, _cloakroom, browser) = started("[session]\nrecord_client = true\n").await;
    let page = browser.send("GET", "/", &[("user-agent", "a browser")], &write()).await;
    assert_eq!(page.json()["client"], json!({"address": "127.0.0.1", "user_agent": "a browser"}));
}
