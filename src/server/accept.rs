//! The accept loop of one worker on one listener.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;

use super::connection::Server;
use super::listener::{BACKLOG, Origin};
use super::{Address, BoundListener, ConnectionLimit, Handler, Peer, Scheme, Settings};
use crate::log::limited;
use crate::net::descriptors::{self, Use};
use crate::net::socket::Socket;
use crate::tasks::Tasks;

/// Pause after an error that the next accept would meet again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Serves `listener` on the current runtime until the drain begins. It then accepts what waits in the backlog, stops
/// listening and returns, while the tasks of its connections run on, at most until the drain's deadline. The backlog of
/// an inherited socket is left to the next process.
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
    let (socket, address, origin) = listener.into_parts();
    let listener = match address {
        Address::Tcp(_) => Listener::Tcp(TcpListener::from_std(socket.into())?),
        Address::Unix(_) => Listener::Unix(UnixListener::from_std(socket.into())?),
    };
    let scheme = settings.protocol.scheme();
    let tasks = tasks.sibling();
    let server = Arc::new(Server::new(settings, handler, tasks.clone(), &limit));
    let acceptor = Acceptor { server, address: Arc::new(address), scheme, limit, tasks };
    acceptor.serve_until_drain(&listener).await;
    match origin {
        Origin::Bound(_file) => acceptor.serve_backlog(listener),
        Origin::Inherited => Ok(()),
    }
}

/// What every connection of a listener needs.
struct Acceptor<H> {
    server: Arc<Server<H>>,
    address: Arc<Address>,
    scheme: Scheme,
    limit: ConnectionLimit,
    tasks: Tasks,
}

impl<H: Handler> Acceptor<H> {
    async fn serve_until_drain(&self, listener: &Listener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.tasks.draining() => return,
                accepted = listener.accept(&self.limit) => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    self.wait_for_descriptors(&accepted.socket).await;
                    self.serve(accepted);
                    // A burst wakes all workers. Yielding leaves each of them its share.
                    tokio::task::yield_now().await;
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    tracing::error!(%error, address = %self.address, "failed to accept connections");
                    pause(&self.tasks).await;
                }
            }
        }
    }

    /// Serves the connections that wait in the backlog, and closes the listener, which would reset them: for their
    /// clients they are open, and a request may have been sent. Those beyond the limit are reset.
    fn serve_backlog(&self, listener: Listener) -> io::Result<()> {
        let backlog = listener.into_backlog()?;
        // Bounded, for clients that connect faster than they are accepted.
        for _ in 0..BACKLOG {
            let Some(open) = self.limit.try_ready() else { break };
            match backlog.accept(open) {
                Ok(accepted) => self.serve(accepted),
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Serves a connection in a task of its own.
    fn serve(&self, Accepted { mut socket, client, open }: Accepted) {
        let mut peer = Peer::new(client, Arc::clone(&self.address), self.scheme);
        let (server, limit) = (Arc::clone(&self.server), self.limit.clone());
        self.tasks
            .run(async move {
                let _counted = server.metrics().connection_opened();
                if !server.read_proxy_header(&mut socket, &mut peer).await {
                    return;
                }
                // Only now: the PROXY header may have replaced the proxy's address by the client's.
                match limit.admit(open, peer.address.map(|client| client.ip())) {
                    Some(_permit) => server.serve(socket, peer).await,
                    None => server.reject(&socket, &peer),
                }
            })
            .detach();
    }

    /// Waits until others have closed descriptors, if they are scarce. All other connections stay in the backlog.
    async fn wait_for_descriptors(&self, socket: &Socket) {
        if !self.server.leaves_descriptors() || !descriptors::are_scarce(socket, Use::Client) {
            return;
        }
        let _paused = self.server.metrics().accept_paused();
        let (address, limit) = (&self.address, descriptors::limit());
        limited!(
            warn,
            "accept_paused",
            %address,
            limit,
            "out of file descriptors; accepting no connections until some are closed; raise the limit (LimitNOFILE, ulimit -n)"
        );
        while !self.tasks.is_draining() && descriptors::will_be_scarce(socket, Use::Client) {
            pause(&self.tasks).await;
        }
        limited!(info, "accept_resumed", %address, "accepting connections again");
    }
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

impl Listener {
    /// Waits until one more connection may be open, then for a connection: those beyond the limit stay in the backlog
    /// and cost the process nothing.
    async fn accept(&self, limit: &ConnectionLimit) -> io::Result<Accepted> {
        let open = limit.ready().await.map_err(io::Error::other)?;
        match self {
            Self::Tcp(listener) => {
                let (stream, client) = listener.accept().await?;
                Ok(Accepted::tcp(stream, client, open))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted { socket: stream.into(), client: None, open })
            }
        }
    }

    fn into_backlog(self) -> io::Result<Backlog> {
        Ok(match self {
            Self::Tcp(listener) => Backlog::Tcp(listener.into_std()?),
            Self::Unix(listener) => Backlog::Unix(listener.into_std()?),
        })
    }
}

/// A listener whose accept does not wait. tokio's reports a connection only once the runtime has learned of it.
enum Backlog {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Backlog {
    fn accept(&self, open: OwnedSemaphorePermit) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, client) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Accepted::tcp(TcpStream::from_std(stream)?, client, open))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Accepted { socket: UnixStream::from_std(stream)?.into(), client: None, open })
            }
        }
    }
}

impl Accepted {
    fn tcp(stream: TcpStream, client: SocketAddr, open: OwnedSemaphorePermit) -> Self {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        Self { socket: stream.into(), client: Some(client), open }
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
