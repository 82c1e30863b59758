//! Clients who go at any moment, and others who must not get their answers.

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

use crate::report::Counted;
use crate::stores::directory;
use crate::support::{Browser, Cloakroom, RedisServer, Script, Upstream};

const ABORTING: usize = 4000;
const OTHERS: usize = 2000;
const AT_ONCE: usize = 200;

pub fn crossed() -> Counted {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(count())
}

async fn count() -> Counted {
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let store = format!("[store]\nurl = \"{}\"\ntimeout = \"5s\"\n", server.url());
    let proxy = Cloakroom::at(&upstream, &store, Clock::System, directory()).await;
    // Copies share its connections, and have jars of their own.
    let first = Browser::new(&proxy);
    let visitors: Arc<Vec<Browser>> = Arc::new((0..OTHERS).map(|_| first.copy()).collect());
    for (number, visitor) in visitors.iter().enumerate() {
        let patch = json!({"values": {"marker": number}});
        visitor.navigate("/", &Script::new().patch(&patch)).await;
    }
    let (over, aborted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (asked, wrong) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut others = JoinSet::new();
    for lane in 0..32 {
        let (visitors, over) = (Arc::clone(&visitors), Arc::clone(&over));
        let (asked, wrong) = (Arc::clone(&asked), Arc::clone(&wrong));
        others.spawn(async move {
            let mut number = lane;
            // Everybody once at least.
            while number < OTHERS || !over.load(Ordering::Relaxed) {
                let visitor = number % OTHERS;
                let page = visitors[visitor].fetch("/", &Script::new().get("/values/marker")).await;
                let right = page.status == 200 && page.json() == json!(visitor);
                asked.fetch_add(1, Ordering::Relaxed);
                wrong.fetch_add(usize::from(!right), Ordering::Relaxed);
                number += 32;
            }
        });
    }
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut aborting = JoinSet::new();
    for number in 0..ABORTING {
        let permit = Arc::clone(&room).acquire_owned().await.unwrap();
        let cookie = visitors[number % OTHERS].cookie().unwrap();
        let (public, aborted) = (proxy.public(), Arc::clone(&aborted));
        aborting.spawn(async move {
            abort(public, &cookie).await;
            aborted.fetch_add(1, Ordering::Relaxed);
            drop(permit);
        });
    }
    aborting.join_all().await;
    over.store(true, Ordering::Relaxed);
    others.join_all().await;
    let (asked, wrong) = (asked.load(Ordering::Relaxed), wrong.load(Ordering::Relaxed));
    let aborted = aborted.load(Ordering::Relaxed);
    Counted {
        text: format!(
            "{aborted} aborted; {asked} markers asked for by {OTHERS} others, {wrong} wrong or without an answer"
        ),
        held: wrong == 0 && aborted == ABORTING && asked >= OTHERS,
    }
}

/// Asks for a page that reads and changes its session, and is gone within 20 ms.
async fn abort(public: SocketAddr, cookie: &str) {
    let script = Script::new().get("").patch(&json!({"increment": {"aborted": 1}})).get("/values");
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {public}\r\nCookie: __Host-id={cookie}\r\nX-Script: {}\r\n\r\n",
        script.to_header()
    );
    let mut stream = TcpStream::connect(public).await.unwrap();
    // The whole of it, or a part.
    let moment = u64::from(u16::from_be_bytes(cloakroom::random::bytes()));
    let part = if moment % 4 == 0 { request.len() / 2 } else { request.len() };
    stream.write_all(&request.as_bytes()[..part]).await.unwrap();
    let mut answer = [0; 200];
    let gone = Duration::from_micros(moment % 20_000);
    let _ = tokio::time::timeout(gone, stream.read(&mut answer)).await;
    // RST, not FIN.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}
