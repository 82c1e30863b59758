//! The accept loop of one worker on one listener.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::OwnedSemaphorePermit;

use super::connection::Server;
use super::{Address, BoundListener, ConnectionLimit, Handler, Peer, Settings};
use crate::net::descriptors::{self, Use};
use crate::net::socket::Socket;
use crate::tasks::Tasks;

/// How long accepting rests after an error that the next attempt would meet again.
const REST: Duration = Duration::from_millis(100);

/// Serves `listener` on the current runtime, until the drain begins; then it stops listening and returns, while
/// the tasks of its connections go on for no longer than the drain's deadline.
///
/// `room` bounds the open connections of all listeners that share it; beyond it, new ones wait in the backlog.
/// One from an address that has as many as it may have is closed at once. An error is one of taking the socket into the runtime; those of single connections are not.
pub async fn serve<H: Handler>(
    listener: BoundListener,
    settings: Settings,
    room: ConnectionLimit,
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
    let server = Arc::new(Server::new(settings, handler, tasks.clone(), &room));
    loop {
        let accepted = tokio::select! {
            biased;
            () = tasks.draining() => return Ok(()),
            accepted = accept(&listener, &room) => accepted,
        };
        match accepted {
            Ok((socket, client, permit)) => {
                if server.leaves_descriptors() && descriptors::are_scarce(&socket, Use::Client) {
                    descriptors_to_spare(&socket, &tasks).await;
                }
                let peer = Peer::new(client, Arc::clone(&address), scheme);
                let (server, room) = (Arc::clone(&server), room.clone());
                tasks
                    .run(async move {
                        let _open = server.metrics().connection_opened();
                        let (mut socket, mut peer) = (socket, peer);
                        if !server.learn_of_client(&mut socket, &mut peer).await {
                            return;
                        }
                        match room.seat(permit, peer.address.map(|client| client.ip())) {
                            Some(_seat) => server.connection(socket, peer).await,
                            None => server.turn_away(&socket, &peer),
                        }
                    })
                    .detach();
                // The other workers woke as well: each takes its part of a burst.
                tokio::task::yield_now().await;
            }
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, %address, "connections cannot be accepted");
                rest(&tasks).await;
            }
        }
    }
}

/// Waits until others have ended. The one connection that waits here holds the rest in the backlog.
async fn descriptors_to_spare(socket: &Socket, tasks: &Tasks) {
    tracing::warn!("descriptors run out; new connections wait");
    while !tasks.is_draining() && descriptors::will_be_scarce(socket, Use::Client) {
        rest(tasks).await;
    }
}

async fn rest(tasks: &Tasks) {
    tokio::select! {
        () = tasks.draining() => {}
        () = tokio::time::sleep(REST) => {}
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Waits for room, then for a connection. Without room nothing is accepted, so that what is beyond the bound
/// costs the process nothing.
async fn accept(
    listener: &Listener,
    room: &ConnectionLimit,
) -> io::Result<(Socket, Option<SocketAddr>, OwnedSemaphorePermit)> {
    let permit = room.permit().await.map_err(io::Error::other)?;
    match listener {
        Listener::Tcp(listener) => {
            let (stream, client) = listener.accept().await?;
            let client = SocketAddr::new(client.ip().to_canonical(), client.port());
            Ok((Socket::from(stream), Some(client), permit))
        }
        Listener::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            Ok((Socket::from(stream), None, permit))
        }
    }
}

/// Whether an accept failed because its connection was already over, which accept(2) reports as its own error.
/// All else (no descriptors or memory left) would come again at once.
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
