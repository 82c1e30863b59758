//! A WebSocket server that echoes its messages, and a WebSocket client.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use cloakroom::server::Tasks;
use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderMap;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async, client_async};

pub use tokio_tungstenite::tungstenite::Message;

use super::PATIENCE;

/// A site that echoes messages until it is dropped.
pub struct Echo {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
    closed: Arc<Mutex<Vec<Option<CloseFrame>>>>,
    tasks: Tasks,
}

impl Echo {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, closed, tasks) = (Arc::default(), Arc::default(), Tasks::new());
        let echo = Self { address, seen, closed, tasks };
        let (seen, closed) = (Arc::clone(&echo.seen), Arc::clone(&echo.closed));
        let tasks = echo.tasks.clone();
        let serve = async move {
            loop {
                let (stream, _) = tokio::select! {
                    () = tasks.draining() => return,
                    accepted = listener.accept() => accepted.unwrap(),
                };
                tasks.run(converse(stream, Arc::clone(&seen), Arc::clone(&closed))).detach();
            }
        };
        echo.tasks.run(serve).detach();
        echo
    }

    /// Returns the headers of the handshakes.
    pub fn seen(&self) -> Vec<HeaderMap> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns the code of the close frame of each connection that has ended.
    pub fn closed(&self) -> Vec<Option<u16>> {
        let closed = self.closed.lock().unwrap();
        closed.iter().map(|frame| frame.as_ref().map(|frame| frame.code.into())).collect()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.tasks.drain();
    }
}

async fn converse(
    stream: TcpStream,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
    closed: Arc<Mutex<Vec<Option<CloseFrame>>>>,
) {
    #[expect(clippy::result_large_err, reason = "the library's own type")]
    let note = |request: &Request, mut response: Response| {
        seen.lock().unwrap().push(request.headers().clone());
        response
            .headers_mut()
            .insert("x-session-patch", "{\"values\":{\"ws\":1}}".parse().unwrap());
        Ok(response)
    };
    let Ok(mut socket) = accept_hdr_async(stream, note).await else { return };
    let mut last = None;
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Close(frame) => last = frame,
            Message::Text(_) | Message::Binary(_) => socket.send(message).await.unwrap_or_default(),
            _ => {}
        }
    }
    closed.lock().unwrap().push(last);
}

/// The client's end of a WebSocket.
pub struct Socket(pub WebSocketStream<TcpStream>);

/// Opens a WebSocket with these headers in its handshake.
pub async fn socket(
    address: SocketAddr,
    path: &str,
    fields: &[(&str, &str)],
) -> Result<Socket, Error> {
    let mut request = format!("ws://{address}{path}").into_client_request()?;
    for (name, value) in fields {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    let opened = timeout(PATIENCE, client_async(request, stream));
    opened.await.expect("an answer").map(|(socket, _response)| Socket(socket))
}

impl Socket {
    pub async fn send(&mut self, message: Message) {
        self.0.send(message).await.unwrap();
    }

    /// Waits for the next message; `None` if the connection has ended.
    pub async fn next(&mut self) -> Option<Message> {
        timeout(PATIENCE, self.0.next()).await.expect("a message").and_then(Result::ok)
    }

    /// Sends a message. Returns true if it is echoed.
    pub async fn echoes(&mut self, text: &str) -> bool {
        self.send(Message::text(text)).await;
        self.next().await == Some(Message::text(text))
    }

    /// Waits for the close frame and returns its code; `None` if there is no frame or no code.
    pub async fn closed_with(&mut self) -> Option<u16> {
        loop {
            if let Message::Close(frame) = self.next().await? {
                return frame.map(|frame| frame.code.into());
            }
        }
    }
}
