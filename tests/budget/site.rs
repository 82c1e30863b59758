//! The site behind the proxy, and the browser in front of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

/// A site whose pages have 1 KiB. `/start` also sets a value of the session, and a cookie of its own.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
}

impl Site {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                thread::spawn(move || serve(stream.unwrap()));
            }
        });
        Self { address }
    }
}

fn serve(stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    let page = "x".repeat(1024);
    while let Some(head) = Head::read(&mut reader) {
        let mut own = "";
        if head.first_line.starts_with("GET /start ") {
            set_value(&head);
            own = "Set-Cookie: SID=0123456789abcdef0123456789; Path=/; HttpOnly\r\n";
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\n{own}Content-Type: text/html\r\nContent-Length: {}\r\n\r\n{page}",
            page.len()
        );
        writer.write_all(answer.as_bytes()).unwrap();
    }
}

/// Sets a value by the session API, so that the visitor gets a session.
fn set_value(head: &Head) {
    let (url, token) = (head.field("x-session-url"), head.field("x-session-token"));
    let (Some(url), Some(token)) = (url, token) else { return };
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut api = TcpStream::connect(host).unwrap();
    let call = format!(
        "PUT /{path}/values/a HTTP/1.1\r\nHost: {host}\r\nX-Session-Token: {token}\r\n\
         Content-Length: 1\r\nConnection: close\r\n\r\n1"
    );
    api.write_all(call.as_bytes()).unwrap();
    let mut answer = String::new();
    api.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
}

/// The head of a message.
struct Head {
    first_line: String,
    fields: Vec<(String, String)>,
}

impl Head {
    /// Reads a head; `None` if the connection has closed.
    fn read(reader: &mut impl std::io::BufRead) -> Option<Self> {
        let mut lines = reader.lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        let first_line = lines.next()?;
        let field = |line: String| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        };
        Some(Self { first_line, fields: lines.map(field).collect() })
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// A browser on one connection, with the cookie of its session if it has one.
pub(crate) struct Browser {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
    cookie: Option<String>,
}

impl Browser {
    /// Connects, and opens the page that starts a session.
    pub(crate) fn start(address: SocketAddr) -> Self {
        let stream = BufReader::new(TcpStream::connect(address).unwrap());
        let mut browser = Self { stream, address, cookie: None };
        browser.cookie = browser.get("/start");
        browser
    }

    /// Opens a page `count` times, one after the other.
    pub(crate) fn open_pages(&mut self, count: u64) {
        for _ in 0..count {
            assert_eq!(self.get("/page"), None, "a cookie was set");
        }
    }

    /// Opens a page, and returns the cookie that was set.
    fn get(&mut self, path: &str) -> Option<String> {
        let own = self.cookie.as_ref().map(|cookie| format!("; {cookie}")).unwrap_or_default();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
             Accept: text/html,*/*;q=0.8\r\nAccept-Encoding: gzip\r\nCookie: lang=en{own}\r\n\r\n",
            self.address
        );
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        let head = Head::read(&mut self.stream).unwrap();
        assert_eq!(head.first_line, "HTTP/1.1 200 OK");
        let mut body = vec![0; head.field("content-length").unwrap().parse().unwrap()];
        self.stream.read_exact(&mut body).unwrap();
        let sets = head.fields.iter().filter(|(name, _)| name == "set-cookie");
        // The site's own cookie plays no part.
        let (_, set) = sets.into_iter().find(|(_, line)| !line.starts_with("SID="))?;
        Some(set.split(';').next().unwrap().to_owned())
    }
}
