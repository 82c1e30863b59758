//! `X-Session-Proof`, verified as a site does it.

use std::path::Path;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::support::raw::exchange;
use crate::support::{Browser, Cloakroom, Page, Program, Script, Seen, Upstream};

const SECRET: &str = "the secret of the proxy and its sites";

const ROUTES: &str = "[[route]]\nupstream = \"UPSTREAM\"\n\
     [[route]]\npath = \"/exchange\"\nupstream = \"UPSTREAM\"\nheader_exchange = \"partial\"\nheader_exchange_max_bytes = \"64\"\n\
     [[route]]\npath = \"/off\"\nupstream = \"UPSTREAM\"\nsession = \"off\"\n";

/// Returns the values of a header, in any spelling that sites may take for it.
fn all<'a>(seen: &'a Seen, name: &str) -> Vec<&'a str> {
    let headers = seen.headers.iter().filter(|(known, _)| known.replace(['_', '.'], "-") == name);
    headers.map(|(_, value)| value.as_str()).collect()
}

/// Returns the time of a proof that verifies: the text is written out as the reference says.
fn verify(seen: &Seen, secret: &str) -> Option<i64> {
    let [proof] = all(seen, "x-session-proof")[..] else { return None };
    let (seconds, mac) = proof.strip_prefix("v1 t=")?.split_once(" m=")?;
    let mut text = format!("cloakroom-proof-v1\n{seconds}");
    for name in
        ["url", "token", "id", "next-id", "principal", "version", "data", "data-omitted", "error"]
    {
        match all(seen, &format!("x-session-{name}"))[..] {
            [] => {}
            [value] => text += &format!("\nx-session-{name}:{value}"),
            _ => return None,
        }
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hmac::verify(&key, text.as_bytes(), &URL_SAFE_NO_PAD.decode(mac).ok()?).ok()?;
    seconds.parse().ok()
}

async fn started(api: &str) -> (Upstream, Cloakroom, Browser) {
    let upstream = Upstream::start();
    let cloakroom =
        Cloakroom::with(&upstream, &format!("[api]\naddress = \"127.0.0.1:0\"\n{api}\n{ROUTES}"))
            .await;
    let browser = Browser::new(&cloakroom);
    (upstream, cloakroom, browser)
}

#[tokio::test]
async fn every_request_is_proven() {
    let (_upstream, cloakroom, browser) = started(&format!("client_secret = \"{SECRET}\"")).await;
    let proven = |page: &Page, has: &[&str]| {
        let seen = page.seen();
        let now = cloakroom.now().as_millis() / 1000;
        assert_eq!(verify(&seen, SECRET), Some(now), "{seen:?}");
        assert_eq!(verify(&seen, "another secret of the proxy and its sites"), None);
        for name in has {
            assert_eq!(all(&seen, name).len(), 1, "{name}: {seen:?}");
            let mut changed = seen.clone();
            let value = changed.headers.iter_mut().find(|(known, _)| known == name);
            value.unwrap().1 += "x";
            assert_eq!(verify(&changed, SECRET), None, "{name}");
            changed.headers.retain(|(known, _)| known != name);
            assert_eq!(verify(&changed, SECRET), None, "{name}");
        }
    };
    let page = browser.navigate("/", &Script::new()).await;
    proven(&page, &["x-session-url", "x-session-token", "x-session-next-id"]);
    let values = json!({"principal": "Zo\u{eb}", "values": {"a": 1, "b c": "x".repeat(50)}});
    browser.navigate("/", &Script::new().patch(&values)).await;
    cloakroom.advance(std::time::Duration::from_secs(7));
    let page = browser.navigate("/exchange", &Script::new()).await;
    let exchanged = [
        "x-session-id",
        "x-session-principal",
        "x-session-version",
        "x-session-data",
        "x-session-data-omitted",
    ];
    proven(&page, &exchanged);
    let stale = browser.copy();
    browser.navigate("/", &Script::new().call("POST", "/rotate", "")).await;
    proven(&stale.navigate("/", &Script::new()).await, &["x-session-error"]);
    let page = browser.navigate("/off", &Script::new()).await;
    proven(&page, &[]);
    assert_eq!(all(&page.seen(), "x-session-token"), [""; 0]);
}

#[tokio::test]
async fn forged_proofs_never_arrive() {
    let forged = [
        ("x-session-proof", "v1 t=0 m=forged"),
        ("x_session_proof", "v1 t=0 m=forged"),
        ("x.session.proof", "v1 t=0 m=forged"),
    ];
    for api in ["", &format!("client_secret = \"{SECRET}\"")] {
        let (_upstream, _cloakroom, browser) = started(api).await;
        for path in ["/", "/exchange", "/off"] {
            let seen = browser.send("GET", path, &forged, &Script::new()).await.seen();
            assert!(!format!("{seen:?}").contains("forged"), "{seen:?}");
            let is_proven = !api.is_empty();
            assert_eq!(verify(&seen, SECRET).is_some(), is_proven, "{path} {seen:?}");
            assert_eq!(all(&seen, "x-session-proof").len(), usize::from(is_proven));
        }
    }
}

fn write_configuration(directory: &Path, upstream: &Upstream) -> std::path::PathBuf {
    let file = directory.join("cloakroom.toml");
    let text = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
         client_secret = {{ file = \"client-secret\" }}\n\
         [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n[log]\nlevel = \"trace\"\n\
         [[route]]\nupstream = \"{}\"\n",
        upstream.url()
    );
    std::fs::write(&file, text).unwrap();
    file
}

#[tokio::test]
async fn secret_is_replaced_on_sighup() {
    let upstream = Upstream::start();
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("client-secret");
    let file = write_configuration(directory.path(), &upstream);
    // One line end is not part of the secret.
    let first = format!("{SECRET}\n");
    std::fs::write(&secret, format!("{first}\r\n")).unwrap();
    let program = Program::start(&file);
    let public = program.serving().await.public;
    let get = "GET / HTTP/1.1\r\nHost: a\r\nX-Session-Proof: v1 t=0 m=forged\r\nConnection: close\r\n\r\n";
    let seen = async || {
        exchange(public, get).await;
        upstream.take_seen().pop().unwrap()
    };
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let before = i64::try_from(now().as_secs()).unwrap();
    let time = verify(&seen().await, &first).expect("a proof");
    assert!((before..=i64::try_from(now().as_secs()).unwrap()).contains(&time), "{time}");
    // A short one is refused, and the old one stays.
    std::fs::write(&secret, "short").unwrap();
    program.signal("-HUP");
    program.wait_for_log("api.client_secret: is too short (5 bytes)").await;
    assert!(verify(&seen().await, &first).is_some());
    let second = "0123456789abcdef0123456789abcdef";
    std::fs::write(&secret, second).unwrap();
    program.signal("-HUP");
    program.wait_for_log("configuration reloaded").await;
    let seen = seen().await;
    assert!(verify(&seen, second).is_some() && verify(&seen, &first).is_none(), "{seen:?}");
    let log = program.log();
    let proof = all(&seen, "x-session-proof")[0].split("m=").nth(1).unwrap();
    for hidden in [SECRET, second, proof] {
        assert!(!log.contains(hidden), "{hidden}");
    }
}
