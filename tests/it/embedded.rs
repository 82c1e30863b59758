//! What may happen to the files of the embedded stores while the program runs, and before.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use cloakroom::session::id::Id;
use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

use crate::support::raw::exchange;
use crate::support::{
    Browser, KEY, PATIENCE, Program, Script, Serving, Upstream, at_terminal, needs,
};

/// The program before a site, with its state in a directory that outlives it.
struct Site {
    upstream: Upstream,
    directory: TempDir,
    is_disk: bool,
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.is_disk {
            let unmounted = Command::new("umount").arg("-l").arg(self.directory.path()).status();
            assert!(unmounted.unwrap().success());
        }
    }
}

impl Site {
    fn new(tables: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let site = Self { upstream: Upstream::start(), directory, is_disk: false };
        site.configure(tables);
        site
    }

    /// On a disk of its own, of this size. These tests run as root, as they do everywhere else.
    fn on_disk(size: &str, tables: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(directory.path());
        assert!(mount.status().unwrap().success(), "a disk for a test needs the right to mount");
        let site = Self { upstream: Upstream::start(), directory, is_disk: true };
        site.configure(tables);
        site
    }

    fn filler(&self) -> PathBuf {
        self.directory.path().join("filler")
    }

    /// Takes all room that is left.
    fn fill(&self) {
        let mut filler =
            fs::OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        for chunk in [1 << 20, 4096, 1] {
            let error = loop {
                if let Err(error) = filler.write_all(&vec![0; chunk]) {
                    break error;
                }
            };
            assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        }
    }

    fn configure(&self, tables: &str) -> PathBuf {
        let name = format!("{}.toml", tables.len());
        let file = self.directory.path().join(&name);
        let toml = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[session]\nkeys = [\"{KEY}\"]\n{tables}\n\
             [[route]]\nupstream = \"{}\"\n",
            self.upstream.url()
        );
        fs::write(&file, toml).unwrap();
        file
    }

    fn database(&self) -> PathBuf {
        self.directory.path().join("cloakroom.db")
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.directory.path().join(format!("cloakroom.db{suffix}"))
    }

    async fn start(&self, tables: &str) -> (Program, Serving) {
        let program = Program::start(&self.configure(tables));
        let serving = program.serving().await;
        (program, serving)
    }

    fn clear_expired(&self, tables: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
        let file = self.configure(tables);
        command.args(["clear-expired", "--config", file.to_str().unwrap()]);
        command.env("STATE_DIRECTORY", self.directory.path());
        command
    }
}

async fn ready(serving: Serving, path: &str) -> u16 {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let answer = exchange(serving.admin, &request).await;
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn put(value: u32) -> Script {
    Script::new().call("PUT", "/values/n", value)
}

/// Visitors with a session each, in which their number is.
async fn visitors(serving: Serving, count: u32) -> Vec<Browser> {
    let mut visitors = Vec::new();
    for number in 0..count {
        let browser = Browser::to(serving.public);
        assert_eq!(browser.navigate("/", &put(number)).await.last().status, 200);
        visitors.push(browser);
    }
    visitors
}

/// Writes of new visitors and of one with a session; none may be acknowledged.
async fn nothing_is_acknowledged(serving: Serving, known: &Browser) {
    for number in 0..15 {
        let page = Browser::to(serving.public).navigate("/", &put(number)).await;
        assert_eq!(page.last().status, 503, "{:?}", page.last());
        assert_eq!(page.set_cookies(), [""; 0]);
        let page = known.navigate("/", &put(number)).await;
        assert_eq!((page.status.as_u16(), page.set_cookies().len()), (503, 0));
    }
    assert_eq!(ready(serving, "/ready").await, 503);
}

#[tokio::test]
async fn writes_to_deleted_database_are_refused() {
    let site = Site::new("");
    let (program, serving) = site.start("").await;
    let known = visitors(serving, 1).await.remove(0);
    for entry in fs::read_dir(site.directory.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().contains("cloakroom.db") {
            fs::remove_file(path).unwrap();
        }
    }
    nothing_is_acknowledged(serving, &known).await;
    program.wait_for_log("was deleted or replaced while in use").await;
}

#[tokio::test]
async fn writes_to_replaced_database_are_refused() {
    let site = Site::new("");
    let (program, serving) = site.start("").await;
    let known = visitors(serving, 1).await.remove(0);
    let backup = site.file(".backup");
    let connection = Connection::open(site.database()).unwrap();
    connection.execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
    drop(connection);
    fs::rename(&backup, site.database()).unwrap();
    nothing_is_acknowledged(serving, &known).await;
    program.wait_for_log("was deleted or replaced while in use").await;
}

#[tokio::test]
async fn deleted_log_loses_nothing_acknowledged() {
    for suffix in ["-wal", "-shm"] {
        let site = Site::new("");
        let (mut program, serving) = site.start("").await;
        let known = visitors(serving, 3).await;
        fs::remove_file(site.file(suffix)).unwrap();
        nothing_is_acknowledged(serving, &known[0]).await;
        program.signal("-TERM");
        program.ended().await;
        let (_program, serving) = site.start("").await;
        for (number, visitor) in known.iter().enumerate() {
            let visitor = visitor.at(serving.public);
            let page = visitor.navigate("/", &Script::new().get("/values/n")).await;
            assert_eq!(page.json(), json!(number), "{suffix}");
        }
    }
}

#[tokio::test]
async fn database_moved_back_serves_again() {
    let site = Site::new("");
    let (_program, serving) = site.start("").await;
    let known = visitors(serving, 1).await.remove(0);
    let away = site.file(".away");
    fs::rename(site.database(), &away).unwrap();
    nothing_is_acknowledged(serving, &known).await;
    fs::rename(&away, site.database()).unwrap();
    let page = known.navigate("/", &Script::new().get("/values/n")).await;
    assert_eq!(page.json(), json!(0));
    assert_eq!(known.navigate("/", &put(7)).await.last().status, 200);
}

/// Overwrites what makes the pages of a file, from the third on: every second of them.
fn damage(path: &Path) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    assert!(pages > 8, "{pages}");
    for page in (2..pages).step_by(2) {
        file.write_all_at(&[0xff; 200], page * 4096).unwrap();
    }
}

/// Nobody is logged out by damage: a visitor has their session, or 503 and their cookie.
async fn nobody_is_logged_out(serving: Serving, known: &[Browser]) -> usize {
    let mut refused = 0;
    for (number, visitor) in known.iter().enumerate() {
        let visitor = visitor.at(serving.public);
        let page = visitor.navigate("/", &Script::new().get("/values/n")).await;
        assert_eq!(page.set_cookies(), [""; 0], "{number}");
        match page.status.as_u16() {
            200 => assert_eq!(page.json(), json!(number)),
            status => {
                assert_eq!(status, 503, "{number}");
                refused += 1;
            }
        }
    }
    refused
}

#[tokio::test]
async fn damaged_database_logs_nobody_out() {
    let site = Site::new("");
    let (mut program, serving) = site.start("").await;
    let known = visitors(serving, 200).await;
    program.signal("-TERM");
    program.ended().await;
    let whole = fs::read(site.database()).unwrap();
    damage(&site.database());
    let (mut program, serving) = site.start("").await;
    assert_eq!(ready(serving, "/ready").await, 503);
    assert!(nobody_is_logged_out(serving, &known).await > 0);
    program.wait_for_log("the database is damaged").await;
    program.signal("-TERM");
    program.ended().await;
    // With a backup in its place all is as before.
    fs::write(site.database(), whole).unwrap();
    let (_program, serving) = site.start("").await;
    assert_eq!(ready(serving, "/ready").await, 200);
    assert_eq!(nobody_is_logged_out(serving, &known).await, 0);
}

#[tokio::test]
async fn damage_while_it_runs_logs_nobody_out() {
    let site = Site::new("");
    let (program, serving) = site.start("").await;
    let known = visitors(serving, 200).await;
    let connection = Connection::open(site.database()).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(connection);
    damage(&site.database());
    // What it has in memory is sound; a change makes it read anew.
    let other = Connection::open(site.database()).unwrap();
    other.execute_batch("PRAGMA user_version = 1").unwrap();
    assert!(nobody_is_logged_out(serving, &known).await > 0);
    assert_eq!(ready(serving, "/ready").await, 503);
    program.wait_for_log("the database is damaged").await;
}

#[tokio::test]
async fn unreadable_row_is_one_lost_record() {
    let site = Site::new("");
    let (_program, serving) = site.start("").await;
    let known = visitors(serving, 3).await;
    let connection = Connection::open(site.database()).unwrap();
    let spoilt = connection
        .execute("UPDATE sessions SET expiry = 'soon' WHERE json LIKE '%:1}'", [])
        .unwrap();
    assert_eq!(spoilt, 1);
    for (number, visitor) in known.iter().enumerate() {
        let page = visitor.navigate("/", &Script::new().get("/values/n")).await;
        assert_eq!(page.status.as_u16(), 200);
        assert_eq!(page.set_cookies().len(), usize::from(number == 1), "{number}");
    }
    assert_eq!(ready(serving, "/ready").await, 200);
}

const CACHED: &str = "[store]\ncache = { max_bytes = \"1MiB\" }";

#[tokio::test]
async fn caching_process_uses_database_alone() {
    let site = Site::new("");
    // Several without a cache share it.
    let (first, _) = site.start("").await;
    let (second, _) = site.start("").await;
    let mut caching = Program::start(&site.configure(CACHED));
    assert_eq!(caching.ended().await.code(), Some(1));
    caching.wait_for_log("in use by another process; [store.cache] requires exclusive use").await;
    for mut program in [first, second] {
        // No lock is left behind by a process that had no time to release it.
        program.signal("-KILL");
        program.ended().await;
    }
    let (_caching, _) = site.start(CACHED).await;
    for (tables, says) in [("", "with caching enabled"), (CACHED, "requires exclusive use")] {
        let mut refused = Program::start(&site.configure(tables));
        assert_eq!(refused.ended().await.code(), Some(1));
        refused.wait_for_log(says).await;
    }
    // What only removes expired sessions disturbs nobody.
    let cleared = site.clear_expired(CACHED).output().unwrap();
    assert!(cleared.status.success(), "{cleared:?}");
    assert_eq!(String::from_utf8_lossy(&cleared.stdout).trim(), "0");
}

/// Waits until `/ready` has this status; its probes are a second apart.
async fn until_ready(serving: Serving, status: u16) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while ready(serving, "/ready").await != status {
        assert!(std::time::Instant::now() < deadline, "not {status}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn lines(program: &Program, text: &str) -> usize {
    program.log().lines().filter(|line| line.contains(text)).count()
}

async fn log_outs_work_on_full_disk(size: &str, tables: &str, count: u32) {
    let site = Site::on_disk(size, tables);
    let (mut program, serving) = site.start(tables).await;
    until_ready(serving, 200).await;
    let known = visitors(serving, count).await;
    let stolen: Vec<Browser> = known.iter().map(Browser::copy).collect();
    site.fill();
    let refused = Script::new().call("PUT", "/values/n", format!("\"{}\"", "x".repeat(20_000)));
    for _ in 0..5 {
        let page = Browser::to(serving.public).navigate("/", &refused).await;
        assert_eq!((page.last().status, page.last().code().as_str()), (503, "store_full"));
        assert_eq!(page.set_cookies(), [""; 0]);
    }
    assert_eq!(ready(serving, "/ready").await, 503);
    assert_eq!(ready(serving, "/ready?store").await, 503);
    assert_eq!(ready(serving, "/live").await, 200);
    for visitor in &known {
        let page = visitor.navigate("/", &Script::new().call("DELETE", "", "")).await;
        assert_eq!((page.last().status, visitor.cookie()), (204, None), "{:?}", page.last());
        // What log-outs free, others take.
        site.fill();
    }
    for copy in &stolen {
        let page = copy.fetch("/", &Script::new().get("")).await;
        assert_eq!(page.json()["id"], json!(null));
    }
    assert_eq!(lines(&program, "session store failed"), 1, "{}", program.log());
    assert_eq!(lines(&program, "session store recovered"), 0, "{}", program.log());
    fs::remove_file(site.filler()).unwrap();
    until_ready(serving, 200).await;
    visitors(serving, 3).await;
    assert_eq!(lines(&program, "session store failed"), 1, "{}", program.log());
    assert_eq!(lines(&program, "session store recovered"), 1, "{}", program.log());
    program.signal("-TERM");
    program.ended().await;
    let (_program, serving) = site.start(tables).await;
    for copy in &stolen {
        let page = copy.at(serving.public).fetch("/", &Script::new().get("")).await;
        assert_eq!(page.json()["id"], json!(null));
    }
}

#[tokio::test]
async fn log_outs_work_on_full_disk_with_sqlite() {
    // With room for the reserve, and with room for less of it.
    log_outs_work_on_full_disk("32m", "", 60).await;
    log_outs_work_on_full_disk("2m", "", 20).await;
}

#[tokio::test]
async fn log_outs_work_on_full_disk_with_files() {
    log_outs_work_on_full_disk("2m", FILES, 50).await;
}

const FILES: &str = "[store]\nurl = \"file:sessions\"";

#[tokio::test]
async fn replaced_directory_acknowledges_nothing() {
    let site = Site::new(FILES);
    let (program, serving) = site.start(FILES).await;
    let known = visitors(serving, 1).await.remove(0);
    let directory = site.directory.path().join("sessions");
    fs::rename(&directory, site.directory.path().join("away")).unwrap();
    fs::create_dir(&directory).unwrap();
    nothing_is_acknowledged(serving, &known).await;
    program.wait_for_log("was replaced while in use").await;
}

/// The file of a session that ended long ago.
fn expired_session() -> String {
    let mut text = "cloakroom session 1\n".to_owned();
    let fields = [
        ("e", "2000"),
        ("v", "1"),
        ("g", "1"),
        ("gs", "1"),
        ("f", "0"),
        ("c", "1"),
        ("s", "1"),
        ("k", "1"),
    ];
    for (name, value) in fields {
        text += &format!("{} {}\n{name}\n{value}\n", name.len(), value.len());
    }
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let sum: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    text + &format!("sha256 {sum}\n")
}

/// Returns a directory of this number of expired sessions.
fn expired_sessions(site: &Site, count: u32) -> PathBuf {
    let directory = site.directory.path().join("sessions");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    let session = expired_session();
    for number in 0..count {
        let mut id = [0; Id::BYTES];
        id[..4].copy_from_slice(&number.to_le_bytes());
        fs::write(directory.join(Id::from_bytes(id).to_string()), &session).unwrap();
    }
    directory
}

/// Far more than one batch of a sweep.
const EXPIRED: u32 = 12_345;

#[tokio::test]
async fn clear_expired_removes_all_expired_files() {
    let site = Site::new(FILES);
    let directory = expired_sessions(&site, EXPIRED);
    let cleared = site.clear_expired(FILES).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&cleared.stdout).trim(), EXPIRED.to_string(), "{cleared:?}");
    let stderr = String::from_utf8_lossy(&cleared.stderr);
    assert!(!stderr.contains("expired entries"), "progress without a terminal: {stderr}");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "the lock");
}

#[tokio::test]
async fn clear_expired_shows_progress_at_a_terminal() {
    needs!("script");
    let site = Site::new(FILES);
    expired_sessions(&site, EXPIRED);
    let cleared = at_terminal(&site.clear_expired(FILES)).output().unwrap();
    let shown = String::from_utf8_lossy(&cleared.stdout);
    assert!(shown.contains(" of 12,345 expired entries ["), "{shown}");
    assert!(shown.contains("/s, ") && shown.contains(" left"), "{shown}");
    // The line is removed before the result.
    assert!(shown.ends_with(&format!("\u{1b}[2K{EXPIRED}\r\n")), "{shown:?}");
}

/// The first sweep begins with the program, and the next would follow a minute later.
#[tokio::test]
async fn sweep_removes_all_expired_files() {
    let tables = format!("{FILES}\n[log]\nlevel = \"debug\"");
    let site = Site::new(&tables);
    let directory = expired_sessions(&site, EXPIRED);
    let (program, _) = site.start(&tables).await;
    program.wait_for_log(&format!("removed expired sessions removed={EXPIRED}")).await;
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "the lock");
}
