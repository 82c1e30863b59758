//! Clients that abort at any moment, while no other client may get their responses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cloakroom::time::Clock;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::report::Measurement;
use crate::stores::directory;
use crate::support::{Browser, Cloakroom, RedisServer, Script, Upstream};

const ABORTING: usize = 4000;
const OTHERS: usize = 2000;
const AT_ONCE: usize = 200;

pub fn no_crossed_responses() -> Measurement {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(count())
}

async fn count() -> Measurement {
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let store = format!("[store]\nurl = \"{}\"\ntimeout = \"5s\"\n", server.url());
    let proxy = Cloakroom::at(&upstream, &store, Clock::System, directory()).await;
    // Copies share its connections, but each has its own cookie jar.
    let first = Browser::new(&proxy);
    let visitors: Arc<Vec<Browser>> = Arc::new((0..OTHERS).map(|_| first.copy()).collect());
    for (number, visitor) in visitors.iter().enumerate() {
        let patch = json!({"values": {"marker": number}});
        visitor.navigate("/", &Script::new().patch(&patch)).await;
    }
    let (done, aborted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (requested, wrong) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut others = JoinSet::new();
    for lane in 0..32 {
        let (visitors, done) = (Arc::clone(&visitors), Arc::clone(&done));
        let (requested, wrong) = (Arc::clone(&requested), Arc::clone(&wrong));
        others.spawn(async move {
            let mut number = lane;
            // Each visitor at least once.
            while number < OTHERS || !done.load(Ordering::Relaxed) {
                let visitor = number % OTHERS;
                let page = visitors[visitor].fetch("/", &Script::new().get("/values/marker")).await;
                let right = page.status == 200 && page.json() == json!(visitor);
                requested.fetch_add(1, Ordering::Relaxed);
                wrong.fetch_add(usize::from(!right), Ordering::Relaxed);
                number += 32;
            }
        });
    }
    let limit = Arc::new(Semaphore::new(AT_ONCE));
    let mut aborting = JoinSet::new();
    for number in 0..ABORTING {
        let permit = Arc::clone(&limit).acquire_owned().await.unwrap();
        let cookie = visitors[number % OTHERS].cookie().unwrap();
        let (public, aborted) = (proxy.public(), Arc::clone(&aborted));
        aborting.spawn(async move {
            abort(public, &cookie).await;
            aborted.fetch_add(1, Ordering::Relaxed);
            drop(permit);
        });
    }
    aborting.join_all().await;
    done.store(true, Ordering::Relaxed);
    others.join_all().await;
    let (requested, wrong) = (requested.load(Ordering::Relaxed), wrong.load(Ordering::Relaxed));
    let aborted = aborted.load(Ordering::Relaxed);
    Measurement {
        text: format!(
            "{aborted} aborted; {requested} markers read by {OTHERS} others, {wrong} wrong or failed"
        ),
        passed: wrong == 0 && aborted == ABORTING && requested >= OTHERS,
    }
}

/// Requests a page that reads and changes its session, and aborts within 20 ms.
async fn abort(public: SocketAddr, cookie: &str) {
    let script = Script::new().get("").patch(&json!({"increment": {"aborted": 1}})).get("/values");
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {public}\r\nCookie: __Host-id={cookie}\r\nX-Script: {}\r\n\r\n",
        script.to_header()
    );
    let mut stream = TcpStream::connect(public).await.unwrap();
    // A quarter of the clients abort within the request.
    let moment = u64::from(u16::from_be_bytes(cloakroom::random::bytes()));
    let part = if moment % 4 == 0 { request.len() / 2 } else { request.len() };
    stream.write_all(&request.as_bytes()[..part]).await.unwrap();
    let mut answer = [0; 200];
    let delay = Duration::from_micros(moment % 20_000);
    let _ = tokio::time::timeout(delay, stream.read(&mut answer)).await;
    // With a linger time of zero, closing sends RST instead of FIN.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}
