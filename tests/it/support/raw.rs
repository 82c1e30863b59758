//! Clients and upstreams that read and write raw bytes.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::PATIENCE;

/// Sends a request and reads until the peer closes the connection.
pub async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(request.as_bytes()).await.unwrap();
    read_all(&mut connection).await
}

/// Reads until the peer closes or resets the connection.
pub async fn read_all(connection: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, connection.read_to_end(&mut answer))
        .await
        .expect("the connection closes");
    drop(read);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads byte by byte until `text` has arrived, so that nothing after it is consumed.
pub async fn read_until(connection: &mut TcpStream, text: &str) -> String {
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains(text) {
        let mut byte = [0];
        let read = timeout(PATIENCE, connection.read(&mut byte))
            .await
            .expect("more data in time")
            .unwrap();
        assert!(
            read == 1,
            "closed before {text:?} arrived: {:?}",
            String::from_utf8_lossy(&answer)
        );
        answer.push(byte[0]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// An upstream whose connections the test accepts one by one.
pub struct RawUpstream {
    listener: TcpListener,
    pub address: SocketAddr,
}

impl RawUpstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    /// Accepts the next connection and reads the head of a request from it.
    pub async fn head(&self) -> (TcpStream, String) {
        let (mut connection, _) =
            timeout(PATIENCE, self.listener.accept()).await.expect("a connection in time").unwrap();
        let head = read_until(&mut connection, "\r\n\r\n").await;
        (connection, head)
    }
}
