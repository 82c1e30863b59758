//! The upstream of the benchmark: a minimal site on one thread.
//!
//! | path | response |
//! | --- | --- |
//! | `/begin` | creates a session by header exchange |
//! | `/increment` | 1 KiB; adds 1 to a value by header exchange |
//! | `/api/read` | 1 KiB, after a call of the session API that reads the values |
//! | `/api/increment` | 1 KiB, after a call of the session API that adds 1 to a value |
//! | `/counts` | the number of requests so far, and of those with a session |
//! | any other | 1 KiB |

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::LocalSet;

/// Number of requests, and of those with a session.
type Counts = Rc<(Cell<u64>, Cell<u64>)>;

/// A session such as that of a small shop: 189 bytes of JSON.
const PATCH: &str = concat!(
    r#"{"values":{"user_id":48213,"name":"Ada Example","roles":["customer","editor"],"#,
    r#""csrf":"0123456789abcdef0123456789abcdef","#,
    r#""pad":"................................................................","n":1}}"#
);
const INCREMENT: &str = r#"{"increment":{"n":1}}"#;

fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        // Proxies open a connection for each of wrk's at the same time. One that does not fit waits for a second.
        let listener = socket.listen(1024)?;
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
    let body = ".".repeat(1024);
    let page = response("200 OK", "", &body);
    let begin = response("200 OK", &format!("X-Session-Patch: {PATCH}\r\n"), "created");
    let increment = response("200 OK", &format!("X-Session-Patch: {INCREMENT}\r\n"), &body);
    let failed = response("500 Internal Server Error", "", "a call of the session API failed");
    let mut request = Vec::with_capacity(16 * 1024);
    let mut api = Api::default();
    let (requests, with_session) = &*counts;
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let path = request.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        let call = match path {
            b"/counts" => {
                let counted = format!("{} {}", requests.get(), with_session.get());
                stream.write_all(response("200 OK", "", &counted).as_bytes()).await?;
                continue;
            }
            b"/begin" => {
                stream.write_all(begin.as_bytes()).await?;
                continue;
            }
            b"/api/read" => Some(("GET", "/values")),
            b"/api/increment" => Some(("POST", "/values/n/increment")),
            _ => None,
        };
        requests.set(requests.get() + 1);
        let has_session = field(&request, "x-session-id").is_some();
        with_session.set(with_session.get() + u64::from(has_session));
        let answer = match call {
            Some((method, path)) if api.call(&request, method, path).await.is_err() => &failed,
            None if path == b"/increment" => &increment,
            _ => &page,
        };
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// A client of the session API with one kept-alive connection.
#[derive(Default)]
struct Api {
    connection: Option<TcpStream>,
    response: Vec<u8>,
}

impl Api {
    /// Calls the API for a request. Fails if the response is not a 200.
    async fn call(&mut self, request: &[u8], method: &str, path: &str) -> io::Result<()> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let url = field(request, "x-session-url").ok_or_else(invalid)?;
        let token = field(request, "x-session-token").ok_or_else(invalid)?;
        let (host, prefix) =
            url.strip_prefix("http://").ok_or_else(invalid)?.split_once('/').ok_or_else(invalid)?;
        // Taken, so that a call that fails leaves no connection behind.
        let mut stream = match self.connection.take() {
            Some(stream) => stream,
            None => TcpStream::connect(host).await?,
        };
        stream.set_nodelay(true)?;
        let call = format!(
            "{method} /{prefix}{path} HTTP/1.1\r\nHost: {host}\r\nX-Session-Token: {token}\r\n\
             Content-Length: 0\r\n\r\n"
        );
        stream.write_all(call.as_bytes()).await?;
        self.response.clear();
        while !is_complete(&self.response) {
            if stream.read_buf(&mut self.response).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if !self.response.starts_with(b"HTTP/1.1 200 ") {
            return Err(invalid());
        }
        self.connection = Some(stream);
        Ok(())
    }
}

/// Reports whether a response with a Content-Length is complete.
fn is_complete(response: &[u8]) -> bool {
    let Some(head) = response.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let length = field(response, "content-length").and_then(|length| length.parse().ok());
    response.len() >= head + 4 + length.unwrap_or(0usize)
}

/// Returns the value of a field in a head as Cloakroom writes it, with names in lower case.
fn field<'head>(head: &'head [u8], name: &str) -> Option<&'head str> {
    let start = format!("\r\n{name}: ");
    let at = head.windows(start.len()).position(|window| window == start.as_bytes())?;
    let value = head.get(at + start.len()..)?;
    let end = value.iter().position(|byte| *byte == b'\r')?;
    str::from_utf8(value.get(..end)?).ok()
}

fn response(status: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
    )
}
