//! Servers that restart, hang or never reply.

use super::kit::RedisServer;
use super::tools::needs;
use super::*;

#[tokio::test]
async fn client_reconnects_to_a_restarted_server() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let client = Client::at(server.port(), TIMEOUT);
    assert_eq!(client.increment("n").await.expect("incremented"), 1);
    server.kill();
    // The connection notices a moment later.
    while client.get("n").await.is_ok() {}
    let read = client.get("n").await;
    assert!(matches!(read, Err(CallError::NotSent(_))), "{read:?}");
    let written = client.increment("n").await;
    assert!(matches!(written, Err(CallError::NotSent(_))), "{written:?}");
    server.restart();
    client.wait_until_reconnected().await;
    // The new process has neither the number nor the script.
    assert_eq!(client.increment("n").await.expect("incremented"), 1);
}

#[tokio::test]
async fn third_timeout_replaces_the_connection() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let client = Client::at(server.port(), Duration::from_millis(300));
    client.increment("n").await.expect("incremented");
    let connection = client.connection_id().await;
    server.command(&["CLIENT", "PAUSE", "600000", "WRITE"]).done();
    for _ in 0..3 {
        let written = client.increment("n").await;
        assert!(matches!(written, Err(CallError::TimedOut(_))), "{written:?}");
    }
    let written = client.increment("n").await;
    assert!(matches!(written, Err(CallError::NotSent(_))), "{written:?}");
    client.wait_until_reconnected().await;
    assert!(client.connection_id().await > connection);
    server.command(&["CLIENT", "UNPAUSE"]).done();
    client.increment("n").await.expect("incremented");
}

#[tokio::test]
async fn silent_server_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let client = Client::at(port, Duration::from_millis(100));
    let (first, second) = tokio::join!(client.increment("n"), client.increment("n"));
    for written in [first, second] {
        assert!(matches!(written, Err(CallError::NotSent(_))), "{written:?}");
    }
}
