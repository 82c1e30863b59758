//! The accept loop of one worker on one listener.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;

use super::connection::Server;
use super::{Address, BoundListener, ConnectionLimit, Handler, Peer, Settings};
use crate::log::limited;
use crate::net::descriptors::{self, Use};
use crate::net::socket::Socket;
use crate::tasks::Tasks;

/// Pause after an error that the next accept would meet again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Serves `listener` on the current runtime until the drain begins. It then stops listening and returns, while the tasks
/// of its connections run on, at most until the drain's deadline.
///
/// Connections beyond `limit` wait in the backlog; one whose address has reached its own limit is reset at once.
///
/// # Errors
/// The socket cannot be registered with the runtime. Errors of single connections do not end the loop.
pub async fn serve<H: Handler>(
    listener: BoundListener,
    settings: Settings,
    limit: ConnectionLimit,
    handler: Arc<H>,
    tasks: Tasks,
) -> io::Result<()> {
    let (socket, address, _file) = listener.into_parts();
    let listener = match address {
        Address::Tcp(_) => Listener::Tcp(TcpListener::from_std(socket.into())?),
        Address::Unix(_) => Listener::Unix(UnixListener::from_std(socket.into())?),
    };
    let (address, scheme) = (Arc::new(address), settings.protocol.scheme());
    let tasks = tasks.sibling();
    let server = Arc::new(Server::new(settings, handler, tasks.clone(), &limit));
    loop {
        let accepted = tokio::select! {
            // In this order, so that no connection is accepted once the drain has begun.
            biased;
            () = tasks.draining() => return Ok(()),
            accepted = accept(&listener, &limit) => accepted,
        };
        match accepted {
            Ok(Accepted { mut socket, client, open }) => {
                if server.leaves_descriptors() && descriptors::are_scarce(&socket, Use::Client) {
                    let _paused = server.metrics().accept_paused();
                    wait_for_descriptors(&socket, &address, &tasks).await;
                }
                let mut peer = Peer::new(client, Arc::clone(&address), scheme);
                let (server, limit) = (Arc::clone(&server), limit.clone());
                tasks
                    .run(async move {
                        let _counted = server.metrics().connection_opened();
                        if !server.read_proxy_header(&mut socket, &mut peer).await {
                            return;
                        }
                        // Only now: the PROXY header may have replaced the proxy's address by the
                        // client's.
                        match limit.admit(open, peer.address.map(|client| client.ip())) {
                            Some(_permit) => server.serve(socket, peer).await,
                            None => server.reject(&socket, &peer),
                        }
                    })
                    .detach();
                // A burst wakes all workers. Yielding leaves each of them its share.
                tokio::task::yield_now().await;
            }
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, %address, "failed to accept connections");
                pause(&tasks).await;
            }
        }
    }
}

/// Waits until other descriptors were closed. All other connections stay in the backlog.
async fn wait_for_descriptors(socket: &Socket, address: &Address, tasks: &Tasks) {
    let limit = descriptors::limit();
    limited!(
        warn,
        "accept_paused",
        %address,
        limit,
        "out of file descriptors; accepting no connections until some are closed; raise the limit (LimitNOFILE, ulimit -n)"
    );
    while !tasks.is_draining() && descriptors::will_be_scarce(socket, Use::Client) {
        pause(tasks).await;
    }
    limited!(info, "accept_resumed", %address, "accepting connections again");
}

async fn pause(tasks: &Tasks) {
    tokio::select! {
        () = tasks.draining() => {}
        () = sleep(RETRY_AFTER) => {}
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection that was just accepted.
struct Accepted {
    socket: Socket,
    /// `None` over a Unix socket.
    client: Option<SocketAddr>,
    open: OwnedSemaphorePermit,
}

/// Waits until one more connection may be open, then for a connection: those beyond the limit stay in the backlog and
/// cost the process nothing.
async fn accept(listener: &Listener, limit: &ConnectionLimit) -> io::Result<Accepted> {
    let open = limit.ready().await.map_err(io::Error::other)?;
    match listener {
        Listener::Tcp(listener) => {
            let (stream, client) = listener.accept().await?;
            let client = SocketAddr::new(client.ip().to_canonical(), client.port());
            Ok(Accepted { socket: stream.into(), client: Some(client), open })
        }
        Listener::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            Ok(Accepted { socket: stream.into(), client: None, open })
        }
    }
}

/// Returns whether an accept failed because its connection has already failed, which accept(2) reports as an error of its
/// own. Any other error, such as a lack of descriptors or memory, would occur again at once.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::Interrupted
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::TimedOut
    )
}
