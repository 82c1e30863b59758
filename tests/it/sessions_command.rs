//! `cloakroom sessions`: the admin pages on the command line.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Browser, Program, Script, Upstream, at_terminal, needs, until};

/// The program, and the command line that finds it by its configuration.
struct Scene {
    _upstream: Upstream,
    directory: tempfile::TempDir,
    program: Program,
    public: SocketAddr,
}

impl Scene {
    async fn new(more: &str) -> Self {
        let upstream = Upstream::start();
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n{more}[store]\nurl = \"sqlite:sessions.db\"\n\
             [[route]]\nupstream = \"{}\"\n",
            upstream.url()
        );
        let file = directory.path().join("cloakroom.toml");
        std::fs::write(&file, &text).unwrap();
        let program = Program::start(&file);
        let serving = program.serving().await;
        // The command finds the port as it would in a file that names it.
        let text = text.replace(
            "[admin]\naddress = \"127.0.0.1:0\"",
            &format!("[admin]\naddress = \"{}\"", serving.admin),
        );
        std::fs::write(&file, text).unwrap();
        Self { _upstream: upstream, directory, program, public: serving.public }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        command(self.directory.path(), arguments)
    }

    /// Runs a command; returns whether it succeeded, and its output.
    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.command(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let (succeeded, text) = self.run(arguments);
        assert!(succeeded, "{arguments:?}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn log_in(&self, name: &str) -> (Browser, String) {
        let browser = Browser::to(self.public);
        let script = Script::new().patch(&json!({"principal": name, "set": {"cart": "a value"}}));
        let id = browser.navigate("/", &script).await.json()["id"].as_str().unwrap().to_owned();
        (browser, id)
    }
}

fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
    command.arg("sessions").args(arguments).arg("--config").arg(directory.join("cloakroom.toml"));
    command.env("STATE_DIRECTORY", directory);
    command
}

async fn is_logged_in(browser: &Browser) -> bool {
    browser.navigate("/", &Script::new()).await.saw("x-session-principal").is_some()
}

#[tokio::test]
async fn sessions_are_listed_shown_and_ended() {
    let scene = Scene::new("").await;
    let [(ada, first), (_, second), (bob, third)] =
        [scene.log_in("ada").await, scene.log_in("ada").await, scene.log_in("bob").await];

    let (_, text) = scene.run(&["list"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("ID ") && lines.len() == 4, "{text}");
    assert!([&first, &second, &third].iter().all(|id| text.contains(id.as_str())), "{text}");
    assert!(text.contains("cart") && !text.contains("a value"), "{text}");
    let listed = scene.json(&["list", "--principal", "ada", "--json"]);
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 2, "{listed}");
    let listed = scene.json(&["list", "--id", third.split_at(6).0, "--json"]);
    assert_eq!(listed["sessions"][0]["principal"], "bob");

    let (_, text) = scene.run(&["show", &first]);
    assert!(text.contains("principal: ada") && text.contains("logged_in"), "{text}");
    assert!(!text.contains("a value"), "{text}");
    let (_, text) = scene.run(&["show", &first, "--values"]);
    assert!(text.contains("cart: \"a value\""), "{text}");

    assert_eq!(scene.run(&["end", &third]), (true, "ended 1 session\n".to_owned()));
    assert!(!is_logged_in(&bob).await);
    let (succeeded, text) = scene.run(&["end", &third]);
    assert!(!succeeded && text.contains("404"), "{text}");
    let ended = scene.run(&["end", "--principal", "ada", "--except", &first]);
    assert_eq!(ended, (true, "ended 1 session\n".to_owned()));
    assert!(is_logged_in(&ada).await);

    let stats = scene.json(&["stats", "--json"]);
    assert_eq!(stats["sessions"]["created"], 3);
    assert_eq!(stats["sessions"]["ended"]["destroyed_by_service"], 2);
    let (_, text) = scene.run(&["stats"]);
    assert!(text.contains("sessions.created: 3"), "{text}");
}

#[tokio::test]
async fn failures_say_what_to_do() {
    let scene = Scene::new("token = \"a-token-of-an-operator-for-the-tests\"\n").await;
    let mut wrong = scene.command(&["list"]);
    let output =
        wrong.env("CLOAKROOM_ADMIN_TOKEN", "another-token-that-is-wrong-here").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && text.contains("the token is wrong"), "{text}");
    assert!(!text.contains("another-token"), "{text}");
    let (succeeded, text) = scene.run(&["end"]);
    assert!(!succeeded && text.contains("--principal"), "{text}");
    let (succeeded, text) = scene.run(&["list", "--url", "http://127.0.0.1:1"]);
    assert!(!succeeded && text.contains("http://127.0.0.1:1"), "{text}");
}

/// What a terminal sends for Ctrl+C.
const CONTROL_C: &[u8] = b"\x03";

/// A line a second at a terminal, until Ctrl+C; the program is gone in between.
#[tokio::test]
async fn watch_prints_a_line_a_second() {
    needs!("script");
    let scene = Scene::new("").await;
    let file = scene.directory.path().join("watched");
    let mut watch = at_terminal(&scene.command(&["watch"]))
        .stdin(Stdio::piped())
        .stdout(Stdio::from(std::fs::File::create(&file).unwrap()))
        .spawn()
        .unwrap();
    let lines = || std::fs::read_to_string(&file).unwrap().lines().count();
    until("the first line", || lines() >= 2).await;
    scene.log_in("ada").await;
    until("more lines", || lines() >= 4).await;
    scene.program.signal("-KILL");
    until("the loss is reported", || std::fs::read_to_string(&file).unwrap().contains("no answer"))
        .await;
    watch.stdin.as_mut().unwrap().write_all(CONTROL_C).unwrap();
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    let text = std::fs::read_to_string(&file).unwrap();
    let created =
        |line: &str| line.split_whitespace().nth(6).and_then(|word| word.parse::<u64>().ok());
    assert_eq!(text.lines().filter_map(created).sum::<u64>(), 1, "{text}");
}
