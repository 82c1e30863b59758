//! A blocking RESP 2 connection, so that tests can query a server without the client under test.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Timeout of one reply.
const PATIENCE: Duration = Duration::from_secs(5);

/// A reply of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// A status or a string.
    Text(String),
    Error(String),
    Number(i64),
    Nil,
    List(Vec<Self>),
}

impl Reply {
    /// Returns a text or an error, or a number as text; empty for anything else.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Text(text) | Self::Error(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Nil | Self::List(_) => String::new(),
        }
    }

    /// Returns a number, also one that was sent as text.
    pub(crate) fn number(&self) -> i64 {
        self.text().parse().unwrap_or_else(|_| panic!("{self:?} is not a number"))
    }

    /// Returns the members of a list; empty for anything else.
    pub(crate) fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            _ => &[],
        }
    }

    /// Returns the value that follows `key` in a list of pairs; empty if there is none.
    pub(crate) fn field(&self, key: &str) -> String {
        let pairs = self.list().chunks(2);
        let found = pairs.filter(|pair| pair[0].text() == key).find_map(|pair| pair.get(1));
        found.map(Self::text).unwrap_or_default()
    }

    /// Returns the reply, or panics if it is an error.
    pub(crate) fn done(self) -> Self {
        assert!(!matches!(self, Self::Error(_)), "{self:?}");
        self
    }
}

/// A connection to a server, or to a proxy in front of it.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: BufReader<Stream>,
}

impl Connection {
    /// Connects by TCP.
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        Self::over(Stream::Tcp(stream))
    }

    /// Connects to a unix socket.
    pub(crate) fn open_unix(path: &Path) -> io::Result<Self> {
        Self::over(Stream::Unix(UnixStream::connect(path)?))
    }

    fn over(stream: Stream) -> io::Result<Self> {
        let mut connection = Self { stream: BufReader::new(stream) };
        connection.patience(PATIENCE)?;
        Ok(connection)
    }

    /// Sets the timeout of a reply.
    pub(crate) fn patience(&mut self, patience: Duration) -> io::Result<()> {
        match self.stream.get_ref() {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(patience)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(patience)),
        }
    }

    /// Sends one command and reads one reply.
    pub(crate) fn command(&mut self, words: &[&str]) -> io::Result<Reply> {
        self.send(words)?;
        self.read()
    }

    /// Sends one command.
    pub(crate) fn send(&mut self, words: &[&str]) -> io::Result<()> {
        let mut request = Vec::new();
        write!(request, "*{}\r\n", words.len())?;
        for word in words {
            write!(request, "${}\r\n{word}\r\n", word.len())?;
        }
        self.stream.get_mut().write_all(&request)
    }

    /// Reads one reply.
    pub(crate) fn read(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end_matches("\r\n");
        let no_reply = || io::Error::new(io::ErrorKind::InvalidData, line.to_owned());
        let (kind, rest) = line.split_at_checked(1).ok_or_else(no_reply)?;
        match (kind, rest.parse::<i64>()) {
            ("+", _) => Ok(Reply::Text(rest.to_owned())),
            ("-", _) => Ok(Reply::Error(rest.to_owned())),
            (":", Ok(number)) => Ok(Reply::Number(number)),
            ("$" | "*", Ok(-1)) => Ok(Reply::Nil),
            ("$", Ok(length)) => {
                let length = usize::try_from(length).ok().ok_or_else(no_reply)?;
                let mut text = vec![0; length + 2];
                self.stream.read_exact(&mut text)?;
                text.truncate(length);
                Ok(Reply::Text(String::from_utf8_lossy(&text).into_owned()))
            }
            ("*", Ok(count)) => {
                (0..count).map(|_| self.read()).collect::<io::Result<_>>().map(Reply::List)
            }
            _ => Err(no_reply()),
        }
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
