//! Changes in the environment of a running process: the system clock and the addresses of
//! upstreams.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cloakroom::body::Body;
use cloakroom::server::{ConnectionLimit, Peer, Settings, Tasks, bind, serve};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::sleep;

use crate::process::{Addresses, Process};
use crate::report::{Measurement, Report};
use crate::stores::directory;
use crate::support::raw::exchange;
use crate::support::{Browser, Script, Upstream};

pub async fn run(report: &mut Report) {
    report
        .row(
            "the system clock jumps by +1 day, −1 day, +10 years and back, while a process has sessions in SQLite (libfaketime)",
            "once",
            "pages are served; the session expires at +10 years only, and does not come back; no panics",
            clock(),
        )
        .await;
    report
        .row(
            "the address of an upstream's host name changes, the name disappears and comes back (in an /etc/hosts of its own)",
            "once",
            "the new address is used once idle connections have expired (4 s), without an error; 502 within the connect timeout while there is no name; then pages again",
            names(),
        )
        .await;
}

fn configure(directory: &Path, addresses: &Addresses, upstream: &str) {
    let Addresses { public, api, admin } = addresses;
    let text = format!(
        "[[listen]]\naddress = \"{public}\"\n[api]\naddress = \"{api}\"\n[admin]\naddress = \"{admin}\"\n\
         [session]\nidle_timeout = \"14d\"\n[store]\nurl = \"sqlite:cloakroom.db\"\n[[route]]\nupstream = \"{upstream}\"\n"
    );
    fs::write(directory.join("cloakroom.toml"), text).unwrap();
}

async fn clock() -> Measurement {
    let (upstream, directory, addresses) = (Upstream::start(), directory(), Addresses::free());
    configure(directory.path(), &addresses, &upstream.url());
    let now = directory.path().join("now");
    let set = |offset: &str| {
        let new = directory.path().join("now.new");
        fs::write(&new, format!("{offset}\n")).unwrap();
        fs::rename(new, &now).unwrap();
    };
    set("+0");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
    faketime(&mut command, &now);
    let process = Process::start_with_command(command, directory.path(), &addresses).await;
    let browser = Browser::to(addresses.public);
    let begin = Script::new().call("PUT", "/values/a", "1");
    assert_eq!(browser.navigate("/", &begin).await.status.as_u16(), 200);
    let mut figures = Vec::new();
    for (offset, is_alive) in
        [("+1d", true), ("-1d", true), ("+0", true), ("+3650d", false), ("+0", false)]
    {
        set(offset);
        let (mut pages, mut with_session) = (0, 0);
        for _ in 0..20 {
            let page = browser.navigate("/", &Script::new()).await;
            pages += usize::from(page.status == 200);
            with_session += usize::from(page.saw("x-session-id").is_some());
        }
        let expected = if is_alive { 20 } else { 0 };
        figures.push((
            format!("{offset}: {pages} of 20 pages, {with_session} with the session"),
            pages == 20 && with_session == expected,
        ));
    }
    let log = fs::read_to_string(directory.path().join("log")).unwrap();
    let panics = log.matches("panicked").count();
    drop(process);
    let passed = panics == 0 && figures.iter().all(|(_, passed)| *passed);
    let figures: Vec<String> = figures.into_iter().map(|(text, _)| text).collect();
    Measurement { text: format!("{}; {panics} panics", figures.join("; ")), passed }
}

/// Makes a command read the offset of its system clock from the file `now`. Its monotonic clock is
/// unchanged.
pub fn faketime(command: &mut Command, now: &Path) {
    command
        .env("LD_PRELOAD", library())
        .env("FAKETIME_TIMESTAMP_FILE", now)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// Finds libfaketime in Debian's directory of libraries for the machine's architecture.
fn library() -> String {
    let found =
        Command::new("sh").args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"]).output();
    let found = String::from_utf8(found.unwrap().stdout).unwrap();
    found.lines().next().expect("faketime is installed").to_owned()
}

/// Starts a site that responds with its name.
fn start_site(address: SocketAddr, name: &'static str, tasks: &Tasks) {
    let listener = bind(&address.to_string().parse().unwrap(), None).unwrap();
    let page = move |_: Request<Incoming>, _: Peer| async move { Response::new(Body::full(name)) };
    let handler = std::sync::Arc::new(page);
    let serving =
        serve(listener, Settings::default(), ConnectionLimit::new(1000), handler, tasks.clone());
    tasks.run(serving).detach();
}

async fn names() -> Measurement {
    let (tasks, directory, addresses) = (Tasks::new(), directory(), Addresses::free());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    start_site(SocketAddr::from(([127, 0, 0, 1], port)), "one", &tasks);
    start_site(SocketAddr::from(([127, 0, 0, 2], port)), "two", &tasks);
    configure(directory.path(), &addresses, &format!("http://site.test:{port}"));
    let hosts = directory.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost site.test\n").unwrap();
    // A private mount namespace in which another file is mounted at /etc/hosts.
    let mut command = Command::new("unshare");
    let mount = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", mount]);
    command.arg(&hosts).arg(env!("CARGO_BIN_EXE_cloakroom"));
    let process = Process::start_with_command(command, directory.path(), &addresses).await;
    let ask = async || {
        let get =
            "GET / HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\nConnection: close\r\n\r\n";
        let answer = exchange(addresses.public, get).await;
        match answer.get(9..12) {
            Some("200") if answer.ends_with("one") => "one",
            Some("200") if answer.ends_with("two") => "two",
            Some("502") => "502",
            _ => "other",
        }
    };
    let mut passed = ask().await == "one";
    fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.2 site.test\n").unwrap();
    let (began, mut changed, mut errors) = (Instant::now(), None, 0);
    while changed.is_none() && began.elapsed() < Duration::from_secs(20) {
        match ask().await {
            "two" => changed = Some(began.elapsed()),
            "one" => {}
            _ => errors += 1,
        }
        // Longer than idle connections are kept, so that each request opens a new one.
        sleep(Duration::from_millis(4500)).await;
    }
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    sleep(Duration::from_secs(5)).await;
    let without = Instant::now();
    let unnamed = ask().await;
    let took = without.elapsed();
    fs::write(&hosts, "127.0.0.1 localhost site.test\n").unwrap();
    let again = ask().await;
    drop(process);
    tasks.drain();
    passed &= changed.is_some()
        && errors == 0
        && unnamed == "502"
        && took < Duration::from_secs(3)
        && again == "one";
    Measurement {
        text: format!(
            "new address after {} ms, {errors} errors; without a name {unnamed} after {} ms; then \"{again}\"",
            changed.unwrap_or_default().as_millis(),
            took.as_millis()
        ),
        passed,
    }
}
