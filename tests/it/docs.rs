//! README and docs: links lead somewhere, snippets work, and tables say what the program does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Program, needs};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// README, the other pages at the top, and all of docs and clients.
pub(crate) fn markdown() -> Vec<(PathBuf, String)> {
    let mut pages = Vec::new();
    let mut folders = ["docs", "clients"].map(|name| root().join(name)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.extend((!path.ends_with("build")).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root().join(name)));
    pages.sort();
    let read = |path: PathBuf| fs::read_to_string(&path).ok().map(|text| (path, text));
    let pages: Vec<_> = pages.into_iter().filter_map(read).collect();
    assert!(pages.len() > 10);
    pages
}

/// A fenced block: its language, and its text.
pub(crate) fn blocks(text: &str) -> Vec<(&str, &str)> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("\n```") {
        let (language, after) = after.split_once('\n').unwrap();
        let end = after.find("```").unwrap();
        let (block, after) = after.split_at(end);
        blocks.push((language, block));
        rest = after.trim_start_matches('`');
    }
    blocks
}

/// The page's text outside fenced blocks.
fn prose(text: &str) -> String {
    let mut is_code = false;
    let lines = text.lines().filter(|line| {
        is_code ^= line.trim_start().starts_with("```");
        !is_code
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The anchors of a page's headings, as GitHub forms them.
fn anchors(text: &str) -> BTreeSet<String> {
    let prose = prose(text);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    for (page, text) in markdown() {
        let prose = prose(&text);
        for link in prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", page.display());
            if !anchor.is_empty() {
                let known = anchors(&fs::read_to_string(&target).unwrap());
                assert!(known.contains(anchor), "{}: {link}; {known:?}", page.display());
            }
        }
    }
}

#[test]
fn every_page_is_in_the_index() {
    let index = fs::read_to_string(root().join("docs/README.md")).unwrap();
    for (page, _) in markdown() {
        if let Ok(name) = page.strip_prefix(root().join("docs")) {
            let name = name.to_str().unwrap();
            assert!(name == "README.md" || index.contains(&format!("({name})")), "{name}");
        }
    }
}

fn cloakroom() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
    command.env("STATE_DIRECTORY", "/nowhere/state").env("KEY", "A".repeat(43));
    command
}

/// A certificate and its key, under the names that the snippets use.
fn write_files(directory: &Path) {
    let key = cloakroom().arg("generate-key").output().unwrap().stdout;
    for name in [
        "session-key",
        "shared-secret",
        "service-token",
        "client-secret",
        "redis-password",
        "sentinel-password",
    ] {
        fs::write(directory.join(name), &key).unwrap();
    }
    let names = ["localhost".to_owned()];
    let signed = rcgen::generate_simple_self_signed(names).unwrap();
    for name in ["fullchain.pem", "api.pem", "ca.pem", "client.pem"] {
        fs::write(directory.join(name), signed.cert.pem()).unwrap();
    }
    for name in ["key.pem", "api-key.pem", "client-key.pem"] {
        fs::write(directory.join(name), signed.signing_key.serialize_pem()).unwrap();
    }
}

/// Every TOML block is a valid configuration, with an upstream and keys if it has none.
#[test]
fn configurations_are_valid() {
    let mut count = 0;
    for (page, text) in markdown() {
        for (_, block) in blocks(&text).into_iter().filter(|(language, _)| *language == "toml") {
            let directory = tempfile::tempdir().unwrap();
            write_files(directory.path());
            // Secrets that a guide keeps elsewhere.
            let mut block = block
                .replace("/etc/cloakroom/", "")
                .replace("/run/credentials/cloakroom.service/", "");
            if block.contains("[store") && !block.contains("keys =") {
                let url = if block.contains("url =") { "" } else { "url = \"redis://a\"" };
                let store = if block.contains("[store]") { "" } else { "[store]" };
                block = format!("session.keys = [{{ env = \"KEY\" }}]\n{block}\n{store}\n{url}\n");
            }
            let path = directory.path().join("cloakroom.toml");
            fs::write(&path, &block).unwrap();
            let mut command = cloakroom();
            if !block.contains("[[route]]") {
                command.env("CLOAKROOM_UPSTREAM", "http://127.0.0.1:3000");
            }
            let output = command.args(["check", path.to_str().unwrap()]).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{}:\n{block}{errors}", page.display());
            count += 1;
        }
    }
    assert!(count > 10, "{count}");
}

#[test]
fn json_is_valid() {
    let mut count = 0;
    for (page, text) in markdown() {
        for (_, block) in blocks(&text).into_iter().filter(|(language, _)| *language == "json") {
            let value = serde_json::from_str::<serde_json::Value>(block);
            assert!(value.is_ok(), "{}: {block}", page.display());
            count += 1;
        }
    }
    assert!(count > 1, "{count}");
}

/// Whether the snippets of a page are run by the tests of a client, such as `clients/python/tests/test_guides.py`.
fn is_of_client(page: &Path) -> bool {
    let guides = ["php", "django", "flask", "starlette", "express", "cgi"];
    let is_guide = |name: &str| page.ends_with(format!("docs/guides/{name}.md"));
    guides.into_iter().any(is_guide) || page.starts_with(root().join("clients"))
}

/// Blocks in other languages are run by these tests.
#[test]
fn every_block_has_a_test() {
    let names = [
        "site.php",
        "site.py",
        "site.mjs",
        "site.cgi",
        "exchange.cgi",
        "proof.php",
        "proof.py",
        "proof.mjs",
    ];
    let examples =
        names.map(|name| fs::read_to_string(root().join("tests/examples").join(name)).unwrap());
    for (page, text) in markdown() {
        for (language, block) in blocks(&text) {
            let is_tested = match language {
                // `configurations_are_valid`, `json_is_valid`
                "toml" | "json" => true,
                // `tutorial_works`
                _ if page.ends_with("docs/tutorial.md") || is_of_client(&page) => true,
                // `commands_are_accepted`
                "sh" if !block.starts_with("#!") => true,
                // `examples.rs`
                "php" | "python" | "js" | "sh" => examples.iter().any(|example| example == block),
                // `packaging/debian/test`
                "ini" => page.ends_with("install.md"),
                // `log_lines.rs`
                "text" => page.ends_with("logs.md"),
                // `behind_a_proxy.rs`, `rolling_restart.rs`
                "nginx" | "haproxy" | "caddyfile" => {
                    page.ends_with("behind-a-proxy.md") || page.ends_with("upgrade.md")
                }
                // The page says that no test runs its settings for Traefik.
                "yaml" if page.ends_with("behind-a-proxy.md") => true,
                // The access rules, by `redis` tests; scrape settings and alerts, by `metrics.rs`.
                "" | "yaml" | "promql" => {
                    page.ends_with("redis.md") || page.ends_with("metrics.md")
                }
                _ => false,
            };
            assert!(is_tested, "{}: no test of a {language} block:\n{block}", page.display());
        }
    }
}

/// Runs every command of Cloakroom in the `sh` blocks; those of Docker are run by `docker/check`, and those
/// of the tests and benches are the tests and benches, and `packaging/debian/test` runs those of install.md.
#[tokio::test]
async fn commands_are_accepted() {
    const OTHERS: [&str; 12] = [
        "cargo",
        "tests/",
        "benches/",
        "docker",
        "mkdir -m 700 docker",
        "for ",
        "done",
        "-e ",
        "(umask 077 && cloakroom generate-key",
        "sudo",
        "packaging/",
        "curl http://localhost:8080",
    ];
    let mut count = 0;
    for (page, text) in markdown() {
        if page.ends_with("docs/tutorial.md") {
            continue;
        }
        let blocks = blocks(&text).into_iter();
        let blocks = blocks.filter(|(language, text)| *language == "sh" && !text.starts_with("#!"));
        for line in blocks.flat_map(|(_, block)| block.lines()) {
            let line = line.split(['#', '>']).next().unwrap().trim();
            let line = line.trim_start_matches("target/release/");
            let Some(arguments) = line.strip_prefix("cloakroom ") else {
                let is_known =
                    line.is_empty() || OTHERS.iter().any(|other| line.starts_with(other));
                // `backup.rs`, `rolling_restart.rs` and `packaging/debian/test` run all lines.
                let is_run = ["backup.md", "upgrade.md"].iter().any(|name| page.ends_with(name));
                let is_known = is_known || is_of_client(&page) || is_run;
                assert!(is_known, "{}: {line}", page.display());
                continue;
            };
            accept(arguments.split(' ').collect()).await;
            count += 1;
        }
    }
    assert!(count >= 3, "{count}");
}

/// Runs a command; one that serves is stopped as soon as it does.
async fn accept(arguments: Vec<&str>) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let listeners = "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
                     [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n\
                     [[route]]\nupstream = \"http://127.0.0.1:3000\"\n";
    fs::write(&file, listeners).unwrap();
    if arguments[0] == "run" {
        let program = Program::start(&file);
        program.serving().await;
        return;
    }
    let mut command = cloakroom();
    command.current_dir(directory.path()).args(&arguments).stdout(Stdio::null());
    if arguments[0] == "sessions" {
        let program = Program::start(&file);
        let admin = format!("[admin]\naddress = \"{}\"", program.serving().await.admin);
        fs::write(&file, listeners.replace("[admin]\naddress = \"127.0.0.1:0\"", &admin)).unwrap();
        command.env("STATE_DIRECTORY", directory.path());
        assert!(command.status().unwrap().success(), "{arguments:?}");
        return;
    }
    if arguments[0].starts_with("--") {
        // The arguments are checked, and a listener that is taken ends the start.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        command.env("CLOAKROOM_LISTEN_ADDRESS", taken.local_addr().unwrap().to_string());
        command.env("CLOAKROOM_STORE_URL", "memory:");
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains("in use"), "{arguments:?}: {errors}");
        return;
    }
    assert!(command.status().unwrap().success(), "{arguments:?}");
}

/// Runs the tutorial's commands in order, on free ports, and finds what it says is printed.
#[test]
fn tutorial_works() {
    needs!("php", "curl");
    let text = fs::read_to_string(root().join("docs/tutorial.md")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    // Below the range from which other tests get their ports, so that none takes these in between.
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = (first..32_000).filter(is_free);
    let [site, public, api, admin] = std::array::from_fn(|_| ports.next().unwrap());
    let mut script = String::from("set -e\ntrap 'kill $(jobs -p)' EXIT\n");
    for (language, block) in blocks(&text) {
        match language {
            "php" => script += &format!("cat >site.php <<'END'\n{block}END\n"),
            "sh" => script += block,
            _ => {}
        }
    }
    // A server has started when it responds.
    let wait = |url: &str| {
        format!("&\nfor _ in $(seq 600); do curl -s -o /dev/null {url} && break; sleep 0.1; done\n")
    };
    let script =
        script.replace("site.php &\n", &format!("site.php {}", wait("http://127.0.0.1:3000/")));
    let script = script.replace(":3000 &\n", &format!(":3000 {}", wait("http://localhost:8080/")));
    let script = script
        .replace("cargo build --release\n", "")
        .replace("target/release/cloakroom", env!("CARGO_BIN_EXE_cloakroom"))
        .replace("127.0.0.1:3000", &format!("127.0.0.1:{site}"))
        .replace("localhost:8080", &format!("localhost:{public}"));
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(directory.path())
        .env("STATE_DIRECTORY", directory.path())
        .env("CLOAKROOM_LISTEN_ADDRESS", format!("127.0.0.1:{public}"))
        .env("CLOAKROOM_API_ADDRESS", format!("127.0.0.1:{api}"))
        .env("CLOAKROOM_ADMIN_ADDRESS", format!("127.0.0.1:{admin}"))
        .env("CLOAKROOM_COOKIE_SECURE", "false")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}{printed}{errors}");
    for line in
        ["Hello", "Hello stranger, visit 1", "Hello stranger, visit 2", "Hello ada, visit 4"]
    {
        assert!(printed.lines().any(|found| found == line), "{line}: {printed}{errors}");
        assert!(text.contains(&format!("`{line}`")), "the tutorial does not announce {line}");
    }
}

/// The codes in a table of errors.md are those in the sources.
#[test]
fn errors_reference_is_complete() {
    let text = fs::read_to_string(root().join("docs/reference/errors.md")).unwrap();
    let cells = text.lines().filter(|line| line.starts_with("| "));
    let documented: BTreeSet<&str> = cells.filter_map(|line| line.split('`').nth(1)).collect();
    let sources = ["src/api", "src/proxy", "src/sessions", "src/wire"];
    let mut text = String::new();
    for source in sources {
        for folder in [root().join(source), root().join(format!("{source}.rs"))] {
            text += &read_all(&folder);
        }
    }
    for code in &documented {
        assert!(text.contains(&format!("\"{code}\"")), "{code} is not in the sources");
    }
    let mut count = 0;
    // `problem(404, "not_found", …)`
    for call in text.split("problem(").skip(1) {
        let mut arguments = call.split(',').map(str::trim);
        let (status, code) = (arguments.next().unwrap(), arguments.next().unwrap_or_default());
        if status.parse::<u16>().is_ok() && code.starts_with('"') {
            let code = code.trim_matches('"');
            assert!(documented.contains(code), "{code} is not in errors.md");
            count += 1;
        }
    }
    assert!(count > 20, "{count} problems were found in the sources");
}

fn read_all(path: &Path) -> String {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        return entries.map(|path| read_all(&path)).collect();
    }
    fs::read_to_string(path).unwrap_or_default()
}

/// headers.md has every name of `proxy/names.rs` that the proxy adds or reads.
#[test]
fn headers_reference_is_complete() {
    let text = fs::read_to_string(root().join("docs/reference/headers.md")).unwrap().to_lowercase();
    let names = fs::read_to_string(root().join("src/proxy/names.rs")).unwrap();
    let constants =
        names.split("from_static(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let is_ours =
        |name: &str| name.starts_with("x-session") || matches!(name, "forwarded" | "x-request-id");
    for name in constants.filter(|name| is_ours(name)) {
        assert!(text.contains(&format!("`{name}")), "{name} is not in headers.md");
    }
}
