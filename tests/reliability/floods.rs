//! HTTP/2 floods, while regular clients go on.

use std::net::SocketAddr;
use std::time::Duration;

use cloakroom::server::Tasks;
use http::Version;
use tokio::time::{Instant, sleep};

use crate::load::{Clients, Tally, quantile, start_site};
use crate::process::{Addresses, Process};
use crate::process_stats::{descriptors_of, resident_of};
use crate::report::{Measurement, Report};
use crate::stores::directory;
use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, RST_STREAM, SETTINGS,
    block, frame,
};

const CLIENTS: usize = 20;
const DURATION: Duration = Duration::from_secs(5);
/// Limit of memory growth, in KiB.
const MAX_GROWTH: i64 = 16 << 10;

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

/// A flood: `bytes` returns what an attacker sends next, given the number of streams that it has
/// opened.
struct Flood {
    name: &'static str,
    bytes: fn(u32) -> Vec<u8>,
    streams: u32,
}

const FLOODS: [Flood; 6] = [
    Flood { name: "requests that are reset at once (Rapid Reset)", bytes: resets, streams: 100 },
    Flood { name: "endless CONTINUATION frames", bytes: continuations, streams: 1 },
    Flood { name: "empty DATA frames", bytes: empty_data, streams: 1 },
    Flood {
        name: "PING frames",
        bytes: |_| frame(PING, 0, 0, b"12345678").repeat(1000),
        streams: 0,
    },
    Flood {
        name: "SETTINGS frames",
        bytes: |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(1000),
        streams: 0,
    },
    Flood {
        name: "stream errors that make the server reset streams (MadeYouReset)",
        bytes: stream_errors,
        streams: 100,
    },
];

fn resets(from: u32) -> Vec<u8> {
    (0..100)
        .flat_map(|index| {
            let stream = (from + index) * 2 + 1;
            let opened = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GET));
            [opened, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
        })
        .collect()
}

/// A window update of 0 is a stream error (RFC 9113, section 6.9).
fn stream_errors(from: u32) -> Vec<u8> {
    (0..100)
        .flat_map(|index| {
            let stream = (from + index) * 2 + 1;
            let opened = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GET));
            [opened, frame(8, 0, stream, &[0; 4])].concat()
        })
        .collect()
}

fn continuations(from: u32) -> Vec<u8> {
    let mut bytes = frame(HEADERS, END_STREAM, from * 2 + 1, &block(&GET));
    for _ in 0..1000 {
        bytes.extend(frame(CONTINUATION, 0, from * 2 + 1, &block(&[("x-a", "b")])));
    }
    bytes
}

fn empty_data(from: u32) -> Vec<u8> {
    let mut post = GET;
    post[0] = (":method", "POST");
    let mut bytes = frame(HEADERS, END_HEADERS, from * 2 + 1, &block(&post));
    bytes.extend(frame(DATA, 0, from * 2 + 1, &[]).repeat(1000));
    bytes
}

pub async fn run(report: &mut Report) {
    for flood in &FLOODS {
        report
            .row(
                format!("a flood of {} on 4 HTTP/2 connections, each reopened when it is closed, while {CLIENTS} clients request pages", flood.name),
                format!("{} s without, {} s with the flood", DURATION.as_secs(), DURATION.as_secs()),
                "no regular request fails; memory grows by less than 16 MiB; no connection stays open",
                resists(flood),
            )
            .await;
    }
}

async fn resists(flood: &'static Flood) -> Measurement {
    let (tasks, directory, addresses) = (Tasks::new(), directory(), Addresses::free());
    let site = start_site(&tasks);
    let Addresses { public, api, admin } = &addresses;
    let text = format!(
        "[[listen]]\naddress = \"{public}\"\nh2c = true\n[api]\naddress = \"{api}\"\n[admin]\naddress = \"{admin}\"\n\
         [log]\naccess = false\n[store]\nurl = \"memory:\"\n[[route]]\nupstream = \"http://{site}\"\n"
    );
    std::fs::write(directory.path().join("cloakroom.toml"), text).unwrap();
    let process = Process::start(directory.path(), &addresses).await;
    drop(measure(addresses.public, Duration::from_secs(2)).await);
    let (calm, without) = measure(addresses.public, DURATION).await;
    sleep(Duration::from_secs(5)).await;
    let (open, memory) = (descriptors_of(process.id()), resident_of(process.id()));
    let attackers = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let attacks = (0..4).map(|_| attack(addresses.public, flood, DURATION));
            futures_util::future::join_all(attacks).await
        })
    });
    let (attacked, with) = measure(addresses.public, DURATION).await;
    let grown = resident_of(process.id()) - memory;
    let (mut sent, mut closed) = (0, 0);
    for (bytes, ended) in attackers.join().unwrap() {
        sent += bytes;
        closed += ended;
    }
    sleep(Duration::from_secs(6)).await;
    let left = descriptors_of(process.id());
    tasks.drain();
    let lost = calm.lost() + attacked.lost();
    let [before, after] = [&without, &with].map(|took| quantile(took, 0.99).as_secs_f64() * 1000.0);
    Measurement {
        text: format!(
            "{lost} failed of {} and {}; p99 {before:.1} ms without, {after:.1} ms with the flood; the attackers sent {} KiB, and their connections were closed {closed} times; memory grew by {grown} KiB; descriptors {open} before, {left} after",
            Tally::of(&calm.whole),
            Tally::of(&attacked.whole),
            sent / 1024,
        ),
        passed: lost == 0 && grown < MAX_GROWTH && left <= open + 5 && sent > 0,
    }
}

async fn measure(
    address: SocketAddr,
    duration: Duration,
) -> (std::sync::Arc<Tally>, Vec<Duration>) {
    let both = [Version::HTTP_11, Version::HTTP_2];
    let clients = Clients::start(address, CLIENTS, &both, Duration::from_millis(20));
    sleep(duration).await;
    clients.stop().await
}

/// Sends the flood. Returns the number of bytes sent and of connections closed by the server.
async fn attack(address: SocketAddr, flood: &Flood, duration: Duration) -> (usize, usize) {
    let (end, mut sent, mut closed) = (Instant::now() + duration, 0, 0);
    while Instant::now() < end {
        let mut connection = Frames::connect(address).await;
        let mut streams = 0;
        while Instant::now() < end && streams < 1 << 29 {
            let bytes = (flood.bytes)(streams);
            streams += flood.streams;
            let result = tokio::time::timeout_at(end, connection.send_bytes(&bytes)).await;
            if result != Ok(true) {
                closed += usize::from(result == Ok(false));
                break;
            }
            sent += bytes.len();
        }
    }
    (sent, closed)
}
