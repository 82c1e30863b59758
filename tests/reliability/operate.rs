//! Operations under load: reloads, restarts and short-lived connections.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use cloakroom::server::Tasks;
use http::Version;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::load::{Clients, Tally, start_site};
use crate::process::{Addresses, Process};
use crate::process_stats::{descriptors_of, resident_of};
use crate::report::{Measurement, Report};
use crate::stores::directory;
use crate::support::{PATIENCE, Program};

const CLIENTS: usize = 64;
const BOTH: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];
const MINUTE: Duration = Duration::from_mins(1);

pub async fn run(report: &mut Report, wanted: &str) {
    if "reload".contains(wanted) {
        report
            .row(
                format!("{CLIENTS} connections request pages, half over HTTP/2; every second a SIGHUP reloads a changed configuration"),
                "60 s",
                "0 requests failed, 0 responses truncated",
                reloads(),
            )
            .await;
    }
    if "restart".contains(wanted) {
        report
            .row(
                format!("{CLIENTS} connections request pages, half over HTTP/2; every 10 s the process is restarted on a socket that its service manager keeps open; predrain 1 s"),
                "60 s",
                "0 requests failed, 0 responses truncated",
                restarts(),
            )
            .await;
    }
    if "port-in-use".contains(wanted) {
        report
            .row(
                "a second process is started on the port of a running one",
                "once",
                "it reports the address and exits with code 1; the first goes on",
                port_in_use(),
            )
            .await;
    }
    if "churn".contains(wanted) {
        report
            .row(
                "a new connection for every request, 64 clients",
                "20 s",
                "0 requests failed; no file descriptor leaks; memory grows by less than 8 MiB",
                churn(),
            )
            .await;
    }
}

/// Writes a configuration that differs in each round: in the timeout of a route and in the path of
/// another one.
fn configure(directory: &Path, addresses: &Addresses, site: std::net::SocketAddr, round: u64) {
    let Addresses { public, api, admin } = addresses;
    let text = format!(
        "[[listen]]\naddress = \"{public}\"\nh2c = true\n[limits]\npredrain = \"1s\"\n[api]\naddress = \"{api}\"\n\
         [admin]\naddress = \"{admin}\"\n[log]\naccess = false\n[store]\nurl = \"sqlite:cloakroom.db\"\n\
         [[route]]\nupstream = \"http://{site}\"\nresponse_timeout = \"{}s\"\n\
         [[route]]\npath = \"/round-{round}\"\nupstream = \"http://{site}\"\n",
        10 + round % 10
    );
    let new = directory.join("cloakroom.new");
    fs::write(&new, text).unwrap();
    fs::rename(new, directory.join("cloakroom.toml")).unwrap();
}

async fn reloads() -> Measurement {
    let (tasks, directory, addresses) = (Tasks::new(), directory(), Addresses::free());
    let site = start_site(&tasks);
    configure(directory.path(), &addresses, site, 0);
    let mut process = Process::start(directory.path(), &addresses).await;
    let clients = Clients::start(addresses.public, CLIENTS, &BOTH, Duration::ZERO);
    let (began, mut rounds) = (Instant::now(), 0);
    while began.elapsed() < MINUTE {
        sleep(Duration::from_secs(1)).await;
        rounds += 1;
        configure(directory.path(), &addresses, site, rounds);
        process.reload();
    }
    let (tally, _) = clients.stop().await;
    let log = fs::read_to_string(directory.path().join("log")).unwrap();
    let reloaded = log.matches("configuration reloaded").count() as u64;
    process.terminate();
    let exited = process.ended().await.is_some_and(|status| status.success());
    tasks.drain();
    let (text, passed) = summarize(&tally);
    Measurement {
        text: format!("{text}; {reloaded} of {rounds} reloads"),
        passed: passed && exited && reloaded == rounds,
    }
}

async fn restarts() -> Measurement {
    let (tasks, directory) = (Tasks::new(), directory());
    let site = start_site(&tasks);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = Addresses { public: socket.local_addr().unwrap(), ..Addresses::free() };
    configure(directory.path(), &addresses, site, 0);
    let notify = directory.path().join("notify");
    let states = UnixDatagram::bind(&notify).unwrap();
    states.set_read_timeout(Some(PATIENCE)).unwrap();
    let start = || {
        let program =
            Program::start_with_socket(&socket, &directory.path().join("cloakroom.toml"), &notify);
        // The socket also has the last states of the previous process.
        let mut state = [0; 256];
        while !state.starts_with(b"READY=1") {
            states.recv(&mut state).unwrap();
        }
        program
    };
    let mut program = start();
    let clients = Clients::start(addresses.public, CLIENTS, &BOTH, Duration::ZERO);
    let (began, mut restarted, mut exits, mut longest) = (Instant::now(), 0, 0, Duration::ZERO);
    while began.elapsed() < MINUTE {
        sleep(Duration::from_secs(10)).await;
        let ended = Instant::now();
        program.signal("-TERM");
        exits += usize::from(program.ended().await.success());
        program = start();
        restarted += 1;
        longest = longest.max(ended.elapsed());
    }
    sleep(Duration::from_secs(1)).await;
    let (tally, took) = clients.stop().await;
    program.signal("-TERM");
    let exited = program.ended().await.success();
    tasks.drain();
    let (text, passed) = summarize(&tally);
    Measurement {
        text: format!(
            "{text}; {restarted} restarts with exit code 0, at most {} ms from the signal until the next process is ready; longest request {} ms",
            longest.as_millis(),
            took.last().copied().unwrap_or_default().as_millis()
        ),
        passed: passed && exited && exits == restarted,
    }
}

fn summarize(tally: &Tally) -> (String, bool) {
    let Tally { whole, failed, truncated, unanswered, refused, unsent } = tally;
    let text = format!(
        "{} of {} requests failed ({} with an error, {} truncated, {} without a response on a kept-alive connection, {} on a new one); {} retried that HTTP/2 reported as not processed",
        tally.lost(),
        Tally::of(whole) + tally.lost(),
        Tally::of(failed),
        Tally::of(truncated),
        Tally::of(unanswered),
        Tally::of(refused),
        Tally::of(unsent)
    );
    (text, tally.lost() == 0 && Tally::of(whole) > 10_000)
}

async fn port_in_use() -> Measurement {
    let (tasks, directory, addresses) = (Tasks::new(), directory(), Addresses::free());
    let site = start_site(&tasks);
    configure(directory.path(), &addresses, site, 0);
    let first = Process::start(directory.path(), &addresses).await;
    let (other, free) = (crate::stores::directory(), Addresses::free());
    configure(other.path(), &Addresses { public: addresses.public, ..free }, site, 0);
    let mut second = Program::start(&other.path().join("cloakroom.toml"));
    let status = second.ended().await.code();
    let message = format!("cannot listen on {}", addresses.public);
    second.wait_for_log(&message).await;
    let clients = Clients::start(addresses.public, 4, &BOTH, Duration::ZERO);
    sleep(Duration::from_millis(200)).await;
    let (tally, _) = clients.stop().await;
    drop(first);
    tasks.drain();
    Measurement {
        text: format!(
            "\"{message}\", exit code {}; the first served {} pages, {} failed",
            status.unwrap_or(-1),
            Tally::of(&tally.whole),
            tally.lost()
        ),
        passed: status == Some(1) && tally.lost() == 0 && Tally::of(&tally.whole) > 0,
    }
}

async fn churn() -> Measurement {
    let (tasks, directory, addresses) = (Tasks::new(), directory(), Addresses::free());
    let site = start_site(&tasks);
    configure(directory.path(), &addresses, site, 0);
    let process = Process::start(directory.path(), &addresses).await;
    connection_per_request(addresses.public, Duration::from_secs(2)).await;
    sleep(Duration::from_secs(6)).await;
    let before = (descriptors_of(process.id()), resident_of(process.id()));
    let (served, failed) = connection_per_request(addresses.public, Duration::from_secs(20)).await;
    sleep(Duration::from_secs(6)).await;
    let after = (descriptors_of(process.id()), resident_of(process.id()));
    drop(process);
    tasks.drain();
    let grown = after.1 - before.1;
    Measurement {
        text: format!(
            "{} connections per second, {failed} of {served} requests failed; descriptors {} before, {} after; memory grew by {} KiB",
            served / 20,
            before.0,
            after.0,
            grown
        ),
        passed: failed == 0 && after.0 <= before.0 + 5 && grown < 8 << 10,
    }
}

/// Sends each request on a new connection. Returns the numbers of served and of failed requests.
async fn connection_per_request(
    address: std::net::SocketAddr,
    duration: Duration,
) -> (usize, usize) {
    let mut clients = tokio::task::JoinSet::new();
    let end = Instant::now() + duration;
    for _ in 0..CLIENTS {
        clients.spawn(async move {
            let (mut served, mut failed) = (0, 0);
            while Instant::now() < end {
                let once = async {
                    let mut stream = TcpStream::connect(address).await.ok()?;
                    let ask = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
                    stream.write_all(ask).await.ok()?;
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).await.ok()?;
                    let page = answer.len().checked_sub(crate::load::PAGE)?;
                    (answer.starts_with(b"HTTP/1.1 200")
                        && answer.get(page - 4..page)? == b"\r\n\r\n")
                        .then_some(())
                };
                match tokio::time::timeout(PATIENCE, once).await {
                    Ok(Some(())) => served += 1,
                    _ => failed += 1,
                }
            }
            (served, failed)
        });
    }
    let counts = clients.join_all().await;
    counts.into_iter().fold((0, 0), |(served, failed), (s, f)| (served + s, failed + f))
}
