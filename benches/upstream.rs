//! The upstream of the benchmark: a minimal site on one thread.
//!
//! `/` returns 1 KiB and counts the requests with a session. `/begin` creates a session by header
//! exchange. `/counts` returns the number of requests so far, and of those with a session.
#![expect(clippy::print_stdout, reason = "it prints its port")]

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

/// Number of requests, and of those with a session.
type Counts = Rc<(Cell<u64>, Cell<u64>)>;

/// A session such as that of a small shop: 189 bytes of JSON.
const PATCH: &str = concat!(
    r#"{"values":{"user_id":48213,"name":"Ada Example","roles":["customer","editor"],"#,
    r#""csrf":"0123456789abcdef0123456789abcdef","#,
    r#""pad":"................................................................","n":1}}"#
);

fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?.port());
        let counts = Counts::default();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::task::spawn_local(connection(stream, Rc::clone(&counts)));
        }
    })
}

/// Serves requests without bodies, one after another, until the client closes the connection.
async fn connection(mut stream: TcpStream, counts: Counts) -> io::Result<()> {
    let page = response("", &".".repeat(1024));
    let begin = response(&format!("X-Session-Patch: {PATCH}\r\n"), "created");
    let mut request = Vec::with_capacity(16 * 1024);
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let (requests, with_session) = &*counts;
        if request.starts_with(b"GET /counts ") {
            let counted = format!("{} {}", requests.get(), with_session.get());
            stream.write_all(response("", &counted).as_bytes()).await?;
        } else if request.starts_with(b"GET /begin ") {
            stream.write_all(begin.as_bytes()).await?;
        } else {
            requests.set(requests.get() + 1);
            with_session.set(with_session.get() + u64::from(has_session(&request)));
            stream.write_all(page.as_bytes()).await?;
        }
    }
}

fn has_session(request: &[u8]) -> bool {
    let name = b"\r\nx-session-id: ";
    request.windows(name.len()).any(|window| window == name)
}

fn response(fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
    )
}
