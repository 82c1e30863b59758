//! An upstream that closes kept-alive connections just as the next request arrives (RFC 9112,
//! section 9.3.1).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::report::{Measurement, Report};
use crate::support::raw::{read_all, read_until};
use crate::support::{Cloakroom, Upstream};

const REQUESTS: usize = 10_000;

pub async fn run(report: &mut Report) {
    for method in [Method::GET, Method::POST] {
        let demanded = if method == Method::GET {
            "0 errors; no request is processed twice"
        } else {
            "no request reaches the site twice; an error only if it may have reached the site"
        };
        report
            .row(
                format!("{method} to a site that closes each kept-alive connection at about the moment of the next request"),
                format!("{REQUESTS} requests"),
                demanded,
                races(method),
            )
            .await;
    }
}

/// Responds to one request of a connection, waits for a varying time, and closes it. Counts
/// received requests.
async fn site(listener: TcpListener, heads: Arc<AtomicUsize>) {
    for round in 0_u64.. {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        let heads = Arc::clone(&heads);
        tokio::spawn(async move {
            let Some(()) = head(&mut stream).await else { return };
            heads.fetch_add(1, Ordering::SeqCst);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            let _ = stream.write_all(answer).await;
            // The client's next request arrives about 300 µs later.
            sleep(Duration::from_micros(round * 7 % 600)).await;
            // Data that arrived in the meantime is never read.
        });
    }
}

async fn head(stream: &mut TcpStream) -> Option<()> {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        (stream.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
    }
    Some(())
}

async fn races(method: Method) -> Measurement {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, heads) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let serving = tokio::spawn(site(listener, Arc::clone(&heads)));
    let toml = format!("[[route]]\nupstream = \"http://{address}\"\n");
    let proxy = Cloakroom::with(&Upstream::start(), &toml).await;
    let (mut whole, mut errors) = (0, 0);
    let mut client = TcpStream::connect(proxy.public()).await.unwrap();
    for _ in 0..REQUESTS {
        if ask(&mut client, &method, proxy.public()).await {
            whole += 1;
        } else {
            errors += 1;
        }
        sleep(Duration::from_micros(300)).await;
    }
    serving.abort();
    let heads = heads.load(Ordering::SeqCst);
    let passed = whole + errors == REQUESTS
        && heads >= whole
        && heads <= REQUESTS
        && (method != Method::GET || (errors == 0 && heads == REQUESTS));
    Measurement {
        text: format!("{whole} served, {errors} with 502; the site received {heads}"),
        passed,
    }
}

/// Requests the page. Returns false for a 502.
async fn ask(client: &mut TcpStream, method: &Method, address: SocketAddr) -> bool {
    let length = if method == Method::POST { "Content-Length: 0\r\n" } else { "" };
    let request =
        format!("{method} / HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n{length}\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let head = read_until(client, "\r\n\r\n").await;
    let bytes = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
    client.read_exact(&mut vec![0; bytes.parse().unwrap()]).await.unwrap();
    if head.contains("connection: close") {
        read_all(client).await;
        *client = TcpStream::connect(address).await.unwrap();
    }
    head.starts_with("HTTP/1.1 200")
}
