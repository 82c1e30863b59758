//! A TCP proxy on loopback that injects faults; they are switched while it runs.
//!
//! It parses no protocol: bytes from the client are requests, bytes to the client are replies. It
//! uses two threads for each connection, so that it works from blocking and from async tests.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

/// Connection limit, above what any test opens; connections beyond it are reset.
const MAX_CONNECTIONS: usize = 512;

/// Interval at which idle threads check for a new fault.
const TICK: Duration = Duration::from_millis(5);

/// A fault that applies to all connections, existing ones included, until another one is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Delays each piece, in both directions, by `fixed` and up to `jitter` more.
    Delay {
        fixed: Duration,
        jitter: Duration,
    },
    /// Accepts connections but holds back all data in this direction until the fault is cleared.
    Stall(Direction),
    /// Closes the listener, so that new connections are refused. Existing ones go on.
    Refuse,
    /// Accepts new connections and resets them at once. Existing ones go on.
    ResetNew,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Requests,
    Replies,
    Both,
}

/// Way in which a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// FIN, to both sides.
    Close,
    /// RST, to both sides.
    Reset,
}

/// A fault that happens once, to the connection with the next reply.
#[derive(Debug)]
enum Once {
    /// Closes the connection after this number of reply bytes; the rest is lost.
    Truncate {
        after: usize,
        how: End,
    },
    Before(Vec<u8>),
    After(Vec<u8>),
}

/// The proxy. Dropping it closes its listener and its connections.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// Starts a proxy for `target` on a free port.
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = listener();
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared(Mutex::new(State {
            target,
            fault: Fault::None,
            once: VecDeque::new(),
            links: Vec::new(),
            accepted: 0,
            listens: true,
            ended: false,
        })));
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(address, listener)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// Returns the address that it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the number of connections accepted since the start.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.state().accepted
    }

    /// Returns the number of open connections, including blackholed ones.
    pub(crate) fn connections(&self) -> usize {
        self.shared.state().links().len()
    }

    /// Sends new connections to another target.
    pub(crate) fn set_target(&self, target: SocketAddr) {
        self.shared.state().target = target;
    }

    /// Sets the lasting fault. It is in effect when this returns.
    pub(crate) fn set(&self, fault: Fault) {
        self.shared.state().fault = fault;
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.shared.state().listens == (fault == Fault::Refuse) {
            assert!(Instant::now() < deadline, "the listener is opened or closed in time");
            pause(TICK);
        }
    }

    /// Closes all existing connections.
    pub(crate) fn end(&self, how: End) {
        let links = self.shared.state().links();
        for link in links {
            link.end(how);
        }
    }

    /// Drops all further data of the existing connections without closing them; new ones work.
    pub(crate) fn blackhole(&self) {
        let links = self.shared.state().links();
        for link in links {
            *link.state() = LinkState::Blackholed;
        }
    }

    /// Closes, once, the connection with the next reply after this number of reply bytes; the rest
    /// is lost. With 0 the request is executed and its whole reply is lost.
    pub(crate) fn end_after(&self, bytes: usize, how: End) {
        self.shared.state().once.push_back(Once::Truncate { after: bytes, how });
    }

    /// Inserts, once, these bytes ahead of the next reply.
    pub(crate) fn garbage(&self, bytes: &[u8]) {
        self.shared.state().once.push_back(Once::Before(bytes.to_vec()));
    }

    /// Inserts, once, these bytes after the next reply, e.g. a reply that matches no request.
    pub(crate) fn extra_reply(&self, bytes: &[u8]) {
        self.shared.state().once.push_back(Once::After(bytes.to_vec()));
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.end(End::Close);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

#[derive(Debug)]
struct Shared(Mutex<State>);

#[derive(Debug)]
struct State {
    target: SocketAddr,
    fault: Fault,
    once: VecDeque<Once>,
    links: Vec<Weak<Link>>,
    accepted: usize,
    listens: bool,
    ended: bool,
}

impl State {
    fn links(&mut self) -> Vec<Arc<Link>> {
        self.links.retain(|link| link.strong_count() > 0);
        self.links.iter().filter_map(Weak::upgrade).collect()
    }

    fn stalls(&self, direction: Direction) -> bool {
        matches!(self.fault, Fault::Stall(stalled) if stalled == direction || stalled == Direction::Both)
    }

    /// Applies the one-time faults to a piece of a reply.
    fn apply_once(&mut self, piece: Vec<u8>) -> (Vec<u8>, Option<End>) {
        let mut before = Vec::new();
        loop {
            match self.once.pop_front() {
                Some(Once::Before(bytes)) => before.extend(bytes),
                Some(Once::After(bytes)) => return ([before, piece, bytes].concat(), None),
                Some(Once::Truncate { after, how }) if after <= piece.len() => {
                    before.extend(piece.into_iter().take(after));
                    return (before, Some(how));
                }
                Some(Once::Truncate { after, how }) => {
                    self.once.push_front(Once::Truncate { after: after - piece.len(), how });
                    return ([before, piece].concat(), None);
                }
                None => return ([before, piece].concat(), None),
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts connections until the proxy is dropped, except while it refuses them.
    fn accept(self: &Arc<Self>, address: SocketAddr, listener: TcpListener) {
        let mut listener = Some(listener);
        loop {
            let (ended, refuses) = {
                let state = self.state();
                (state.ended, state.fault == Fault::Refuse)
            };
            if ended {
                return;
            }
            if refuses {
                listener = None;
            } else if listener.is_none() {
                listener = TcpListener::bind(address).ok().inspect(set_nonblocking);
            }
            self.state().listens = listener.is_some();
            match listener.as_ref().map(TcpListener::accept) {
                Some(Ok((client, _))) => self.handle(client),
                _ => pause(TICK),
            }
        }
    }

    fn handle(self: &Arc<Self>, client: TcpStream) {
        let (target, takes) = {
            let mut state = self.state();
            state.accepted += 1;
            (state.target, state.fault != Fault::ResetNew && state.links().len() < MAX_CONNECTIONS)
        };
        if !takes {
            // With a linger time of zero, closing sends RST.
            let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
            return;
        }
        let shared = Arc::clone(self);
        thread::spawn(move || shared.connect(client, target));
    }

    fn connect(self: Arc<Self>, client: TcpStream, target: SocketAddr) {
        let Ok(server) = TcpStream::connect_timeout(&target, Duration::from_secs(5)) else {
            let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
            return;
        };
        for stream in [&client, &server] {
            stream.set_nonblocking(false).expect("a blocking socket");
            stream.set_nodelay(true).expect("an option");
            stream.set_write_timeout(Some(TICK)).expect("an option");
        }
        let link = Arc::new(Link { client, server, state: Mutex::new(LinkState::Open) });
        {
            let mut state = self.state();
            if state.ended {
                return;
            }
            state.links.push(Arc::downgrade(&link));
        }
        let replies = thread::spawn({
            let (shared, link) = (Arc::clone(&self), Arc::clone(&link));
            move || link.pump(&shared, Direction::Replies)
        });
        link.pump(&self, Direction::Requests);
        drop(link);
        let _ = replies.join();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    Open,
    Blackholed,
    Closed,
}

/// One connection through the proxy. Its sockets are closed when both of its threads have ended.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: TcpStream,
    state: Mutex<LinkState>,
}

impl Link {
    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, how: End) {
        *self.state() = LinkState::Closed;
        for stream in [&self.client, &self.server] {
            // The peer may have closed already. Shutting down the reading side wakes our thread and
            // sends nothing, so that the peer sees the RST only.
            let _ = match how {
                End::Close => stream.shutdown(Shutdown::Both),
                End::Reset => SockRef::from(stream)
                    .set_linger(Some(Duration::ZERO))
                    .and_then(|()| stream.shutdown(Shutdown::Read)),
            };
        }
    }

    /// Copies data in one direction until the connection ends.
    fn pump(&self, shared: &Shared, direction: Direction) {
        let (mut from, mut to) = match direction {
            Direction::Replies => (&self.server, &self.client),
            Direction::Requests | Direction::Both => (&self.client, &self.server),
        };
        let mut buffer = vec![0; 16 * 1024];
        while self.may_pass(shared, direction) {
            let length = match from.read(&mut buffer) {
                // The other direction of a half-closed connection may go on.
                Ok(0) if *self.state() == LinkState::Open => {
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
                Ok(0) => continue,
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return self.end(End::Reset),
            };
            self.wait(shared);
            if !self.may_pass(shared, direction) {
                return;
            }
            let piece = buffer.iter().copied().take(length).collect();
            let (piece, end) = match direction {
                Direction::Replies => shared.state().apply_once(piece),
                Direction::Requests | Direction::Both => (piece, None),
            };
            if !self.write(&mut to, &piece) {
                return self.end(End::Reset);
            }
            if let Some(how) = end {
                return self.end(how);
            }
        }
    }

    /// Waits while this direction is stalled. Returns false if the connection was closed.
    fn may_pass(&self, shared: &Shared, direction: Direction) -> bool {
        loop {
            let state = *self.state();
            let stalls = state == LinkState::Blackholed || shared.state().stalls(direction);
            if state == LinkState::Closed || !stalls {
                return state != LinkState::Closed;
            }
            pause(TICK);
        }
    }

    /// Waits for the duration of [`Fault::Delay`].
    fn wait(&self, shared: &Shared) {
        let Fault::Delay { fixed, jitter } = shared.state().fault else { return };
        let share = f64::from(rand::random::<u32>()) / f64::from(u32::MAX);
        let until = Instant::now() + fixed + jitter.mul_f64(share);
        while *self.state() != LinkState::Closed
            && let Some(left) = until.checked_duration_since(Instant::now())
        {
            pause(left.min(Duration::from_millis(50)));
        }
    }

    /// Writes all of `piece`. Returns false if the connection ends first.
    fn write(&self, to: &mut impl Write, mut piece: &[u8]) -> bool {
        while !piece.is_empty() {
            match to.write(piece) {
                Ok(written) => piece = piece.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if *self.state() == LinkState::Closed {
                        return false;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// Binds a random port below the ephemeral range: no outgoing connection can take it while
/// [`Fault::Refuse`] has closed the listener.
fn listener() -> TcpListener {
    loop {
        let number = rand::random::<u32>() % 10_000;
        let port = 10_000 + u16::try_from(number).expect("a port");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            set_nonblocking(&listener);
            return listener;
        }
    }
}

fn set_nonblocking(listener: &TcpListener) {
    listener.set_nonblocking(true).expect("an option");
}

#[expect(clippy::disallowed_methods, reason = "a dedicated thread may sleep")]
fn pause(duration: Duration) {
    thread::sleep(duration);
}
