//! Upgrades: sessions that commit 478531f has written into each store are read and changed, without
//! logouts or lost values. `tests/fixtures/478531f/make.py` wrote the fixtures.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use cloakroom::time::{Clock, Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Browser, FakeClock, KEY, Program, RedisServer, Script, Upstream, needs};

/// The fixture of one store, served by the current program.
struct World {
    name: &'static str,
    written: Value,
    program: Program,
    browser: Browser,
    _upstream: Upstream,
    _directory: TempDir,
}

impl World {
    /// Starts the program on a copy of the fixture, with the fixture's clock or that of the machine.
    async fn new(name: &'static str, store: &str, clock: Option<&FakeClock>) -> Self {
        let (upstream, directory) = (Upstream::start(), tempfile::tempdir().unwrap());
        if fixture(name).is_dir() {
            copy(&fixture(name), directory.path());
        }
        let has_key = directory.path().join("session-key").exists();
        let key = if has_key { String::new() } else { format!("keys = [\"{KEY}\"]\n") };
        let file = directory.path().join("cloakroom.toml");
        let text = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n\
             [api]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n\
             [session]\nrecord_client = true\nrotate_every = \"never\"\nrotation_grace = \"1h\"\n{key}\
             [cookie]\nname = \"id\"\nsecure = false\n[store]\n{store}\n\
             [[route]]\nupstream = \"{}\"\n",
            upstream.url()
        );
        fs::write(&file, text).unwrap();
        let program = match clock {
            Some(clock) => Program::start_with_clock(clock, &file),
            None => Program::start(&file),
        };
        let browser = Browser::to(program.serving().await.public);
        let written = written(name);
        Self { name, written, program, browser, _upstream: upstream, _directory: directory }
    }

    /// Returns a browser with the cookie of a visitor of the fixture.
    fn visitor(&self, kind: &str) -> Browser {
        let browser = self.browser.copy();
        let cookie = self.written["visitors"][kind]["cookie"].as_str().unwrap().to_owned();
        browser.jar.lock().unwrap().insert("id".to_owned(), cookie);
        browser
    }

    /// Checks that every session opens with its cookie, has its values, and can be changed.
    async fn opens_every_session(&self) {
        let visitors = self.written["visitors"].as_object().unwrap();
        assert!(visitors.len() >= 7, "{}", self.name);
        for (kind, visitor) in visitors {
            let Some(then) = visitor.get("session") else { continue };
            let browser = self.visitor(kind);
            let page = browser.navigate("/", &Script::new().get("")).await;
            let now = page.json();
            assert!(now["expires_in"].as_u64().unwrap() > 0, "{} {kind}", self.name);
            // The visit itself updates the time of last use, and with it the expiry.
            let moves = ["last_seen_at", "expires_at"];
            let kept = |(name, _): &(&String, &Value)| !moves.contains(&name.as_str());
            for (name, then) in then.as_object().unwrap().iter().filter(kept) {
                assert_eq!(now[name], *then, "{}: {name} of {kind}", self.name);
            }
            for n in 1..=2 {
                let script = Script::new().call("POST", "/values/upgraded/increment", "");
                assert_eq!(browser.fetch("/", &script).await.json(), json!(n), "{kind}");
            }
            let rotate = Script::new().call("POST", "/rotate", "").get("/values/upgraded");
            assert_eq!(browser.fetch("/", &rotate).await.json(), json!(2), "{kind}");
            let read = Script::new().get("/values/upgraded");
            assert_eq!(browser.navigate("/", &read).await.json(), json!(2), "{kind}");
        }
    }

    /// Checks that the marker of a recently destroyed session is recognized.
    async fn remembers_the_ended(&self) {
        let page = self.visitor("ended").fetch("/", &Script::new()).await;
        assert_eq!(page.saw("x-session-error").as_deref(), Some("session_ended"), "{}", self.name);
    }

    /// Checks that logout everywhere finds a session of the fixture.
    async fn logs_out_everywhere(&self) {
        let browser = self.visitor("logged_in");
        let again = Script::new().patch(&json!({"principal": "ada"}));
        assert_eq!(browser.fetch("/", &again).await.last().status, 200);
        let devices = Script::new().get("/principal/sessions");
        let devices = browser.fetch("/", &devices).await.json();
        assert_eq!(devices["sessions"].as_array().unwrap().len(), 1, "{}", self.name);
        let everywhere = Script::new().call("DELETE", "?everywhere=true", "");
        assert_eq!(browser.copy().fetch("/", &everywhere).await.last().status, 204);
        assert_eq!(browser.fetch("/", &Script::new()).await.saw("x-session-id"), None);
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/478531f").join(name)
}

fn written(name: &str) -> Value {
    let text = fs::read_to_string(fixture(&format!("{name}.visitors.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Returns a clock at the time at which a fixture was written.
fn clock_of(name: &str) -> FakeClock {
    FakeClock::at(written(name)["written_at"].as_str().unwrap())
}

/// Copies a state directory with its permissions: accessible to the owner only.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
            fs::set_permissions(&to, Permissions::from_mode(0o600)).unwrap();
        }
    }
}

/// Restores the keys of the fixture into a server, which uses the clock of the machine: all times are
/// shifted by the time that has passed since.
fn restore(server: &RedisServer, now: Timestamp) {
    let keys: Value = serde_json::from_slice(&fs::read(fixture("redis.json")).unwrap()).unwrap();
    let keys = keys.as_array().unwrap();
    let created = |entry: &Value| entry["content"]["c"].as_str()?.parse::<i64>().ok();
    let passed = now.as_millis() - keys.iter().filter_map(created).max().unwrap();
    let later = |time: i64| (time + passed).to_string();
    for entry in keys {
        let key = entry["key"].as_str().unwrap();
        let mut words = Vec::new();
        if let Some(fields) = entry["content"].as_object() {
            words.extend(["HSET".to_owned(), key.to_owned()]);
            for (name, value) in fields {
                let value = value.as_str().unwrap();
                let is_time = ["m", "gs", "pu", "l", "c", "s", "k", "e", "i"].contains(&&**name);
                let moved = if is_time { later(value.parse().unwrap()) } else { value.to_owned() };
                words.extend([name.clone(), moved]);
            }
        } else {
            words.extend(["ZADD".to_owned(), key.to_owned()]);
            for member in entry["content"].as_array().unwrap() {
                let until = later(member[1].as_i64().unwrap());
                words.extend([until, member[0].as_str().unwrap().to_owned()]);
            }
        }
        server.command(&words.iter().map(String::as_str).collect::<Vec<_>>()).done();
        let until = later(entry["until"].as_i64().unwrap());
        server.command(&["PEXPIREAT", key, &until]).done();
    }
}

#[tokio::test]
async fn reads_sqlite_of_the_previous_release() {
    needs!("faketime");
    let world =
        World::new("sqlite", "url = \"sqlite:cloakroom.db\"", Some(&clock_of("sqlite"))).await;
    world.opens_every_session().await;
    world.remembers_the_ended().await;
    world.logs_out_everywhere().await;
}

#[tokio::test]
async fn reads_files_of_the_previous_release() {
    needs!("faketime");
    let world = World::new("file", "url = \"file:sessions\"", Some(&clock_of("file"))).await;
    world.opens_every_session().await;
    world.remembers_the_ended().await;
    world.logs_out_everywhere().await;
}

#[tokio::test]
async fn reads_redis_of_the_previous_release() {
    needs!("redis-server", "faketime");
    // The allocator of redis-server does not work with faketime.
    let server = RedisServer::start(&[]);
    restore(&server, Clock::System.now());
    let store = format!("url = \"{}\"", server.url());
    let mut world = World::new("redis", &store, None).await;
    let visitors = world.written["visitors"].as_object_mut().unwrap();
    for session in visitors.values_mut().filter_map(|visitor| visitor.get_mut("session")) {
        session.as_object_mut().unwrap().remove("created_at");
    }
    world.opens_every_session().await;
    world.remembers_the_ended().await;
    world.logs_out_everywhere().await;
}

#[tokio::test]
async fn opens_sealed_cookies_of_the_previous_release() {
    needs!("faketime");
    let store = "url = \"cookie:\"\naccept_no_revocation = true";
    let world = World::new("cookie", store, Some(&clock_of("cookie"))).await;
    world.opens_every_session().await;
}
