//! A TCP proxy on loopback whose faults are switched while it runs.
//!
//! It knows no protocol: what a client sends is a request, what comes back is a reply. It has
//! threads of its own, two a connection, so that a test may block or not as it likes.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

/// More connections than any test makes; those beyond are reset.
const MOST: usize = 512;

/// How soon a fault takes hold where nothing moves.
const TICK: Duration = Duration::from_millis(5);

/// What lasts until it is set to something else, for all connections, those that are there too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Each piece, either way, is late by `fixed`, and by up to `jitter` more.
    Delay {
        fixed: Duration,
        jitter: Duration,
    },
    /// Connections are taken, and nothing passes this way. It is not lost: it passes afterwards.
    Stall(Way),
    /// Nobody listens: new connections are refused. Those that are there go on.
    Refuse,
    /// New connections are taken and reset at once. Those that are there go on.
    ResetNew,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Requests,
    Replies,
    Both,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// FIN, to both sides.
    Close,
    /// RST, to both sides.
    Reset,
}

/// What happens once, to the connection whose reply is next.
#[derive(Debug)]
enum Once {
    /// After so many bytes of reply the connection ends, and the rest is lost.
    Cut {
        after: usize,
        how: End,
    },
    Before(Vec<u8>),
    After(Vec<u8>),
}

/// The proxy. It and its connections end when it is dropped.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// Stands before `target`, at a free port.
    pub(crate) fn before(target: SocketAddr) -> Self {
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

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has taken since it began.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.state().accepted
    }

    /// How many connections go through it now, blackholed ones too.
    pub(crate) fn connections(&self) -> usize {
        self.shared.state().links().len()
    }

    /// Connections to come go to another target.
    pub(crate) fn point_at(&self, target: SocketAddr) {
        self.shared.state().target = target;
    }

    /// Sets what lasts. It holds when this returns.
    pub(crate) fn set(&self, fault: Fault) {
        self.shared.state().fault = fault;
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.shared.state().listens == (fault == Fault::Refuse) {
            assert!(Instant::now() < deadline, "the listener follows");
            pause(TICK);
        }
    }

    /// Ends all connections that are there.
    pub(crate) fn end(&self, how: End) {
        let links = self.shared.state().links();
        for link in links {
            link.end(how);
        }
    }

    /// Nothing passes any more on the connections that are there, nor are they closed; new ones
    /// work.
    pub(crate) fn blackhole(&self) {
        let links = self.shared.state().links();
        for link in links {
            *link.fate() = Fate::Blackholed;
        }
    }

    /// Once: after so many more bytes of reply, the connection that they are on ends, and the rest
    /// is lost. With 0 the request is carried out and its reply is lost.
    pub(crate) fn end_after(&self, bytes: usize, how: End) {
        self.shared.state().once.push_back(Once::Cut { after: bytes, how });
    }

    /// Once: these bytes come before the next reply.
    pub(crate) fn garbage(&self, bytes: &[u8]) {
        self.shared.state().once.push_back(Once::Before(bytes.to_vec()));
    }

    /// Once: these bytes come after the next reply, such as an answer to no question.
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

    fn stalls(&self, way: Way) -> bool {
        matches!(self.fault, Fault::Stall(stalled) if stalled == way || stalled == Way::Both)
    }

    /// What becomes of a piece of reply.
    fn disturb(&mut self, piece: Vec<u8>) -> (Vec<u8>, Option<End>) {
        let mut before = Vec::new();
        loop {
            match self.once.pop_front() {
                Some(Once::Before(bytes)) => before.extend(bytes),
                Some(Once::After(bytes)) => return ([before, piece, bytes].concat(), None),
                Some(Once::Cut { after, how }) if after <= piece.len() => {
                    before.extend(piece.into_iter().take(after));
                    return (before, Some(how));
                }
                Some(Once::Cut { after, how }) => {
                    self.once.push_front(Once::Cut { after: after - piece.len(), how });
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

    /// Takes connections until the proxy ends, save while it refuses them.
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
                listener = TcpListener::bind(address).ok().inspect(does_not_block);
            }
            self.state().listens = listener.is_some();
            match listener.as_ref().map(TcpListener::accept) {
                Some(Ok((client, _))) => self.take(client),
                _ => pause(TICK),
            }
        }
    }

    fn take(self: &Arc<Self>, client: TcpStream) {
        let (target, takes) = {
            let mut state = self.state();
            state.accepted += 1;
            (state.target, state.fault != Fault::ResetNew && state.links().len() < MOST)
        };
        if !takes {
            // Closing it resets it.
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
        let link = Arc::new(Link { client, server, fate: Mutex::new(Fate::Lives) });
        {
            let mut state = self.state();
            if state.ended {
                return;
            }
            state.links.push(Arc::downgrade(&link));
        }
        let replies = thread::spawn({
            let (shared, link) = (Arc::clone(&self), Arc::clone(&link));
            move || link.pump(&shared, Way::Replies)
        });
        link.pump(&self, Way::Requests);
        drop(link);
        let _ = replies.join();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lives,
    Blackholed,
    Ended,
}

/// One connection through the proxy. It is closed when both of its threads have let go.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: TcpStream,
    fate: Mutex<Fate>,
}

impl Link {
    fn fate(&self) -> MutexGuard<'_, Fate> {
        self.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, how: End) {
        *self.fate() = Fate::Ended;
        for stream in [&self.client, &self.server] {
            // A peer may have gone already. Ending the reading side wakes our thread, and sends
            // nothing.
            let _ = match how {
                End::Close => stream.shutdown(Shutdown::Both),
                End::Reset => SockRef::from(stream)
                    .set_linger(Some(Duration::ZERO))
                    .and_then(|()| stream.shutdown(Shutdown::Read)),
            };
        }
    }

    /// Passes one way what comes, until it ends.
    fn pump(&self, shared: &Shared, way: Way) {
        let (mut from, mut to) = match way {
            Way::Replies => (&self.server, &self.client),
            Way::Requests | Way::Both => (&self.client, &self.server),
        };
        let mut buffer = vec![0; 16 * 1024];
        while self.may_pass(shared, way) {
            let length = match from.read(&mut buffer) {
                // Half of it is closed; the other may go on.
                Ok(0) if *self.fate() == Fate::Lives => {
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
                Ok(0) => continue,
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return self.end(End::Reset),
            };
            self.wait(shared);
            if !self.may_pass(shared, way) {
                return;
            }
            let piece = buffer.iter().copied().take(length).collect();
            let (piece, end) = match way {
                Way::Replies => shared.state().disturb(piece),
                Way::Requests | Way::Both => (piece, None),
            };
            if !self.write(&mut to, &piece) {
                return self.end(End::Reset);
            }
            if let Some(how) = end {
                return self.end(how);
            }
        }
    }

    /// Waits while this way is stalled; answers whether the connection lives.
    fn may_pass(&self, shared: &Shared, way: Way) -> bool {
        loop {
            let fate = *self.fate();
            let stalls = fate == Fate::Blackholed || shared.state().stalls(way);
            if fate == Fate::Ended || !stalls {
                return fate != Fate::Ended;
            }
            pause(TICK);
        }
    }

    /// Holds a piece back for as long as the delay says.
    fn wait(&self, shared: &Shared) {
        let Fault::Delay { fixed, jitter } = shared.state().fault else { return };
        let share = f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX);
        let until = Instant::now() + fixed + jitter.mul_f64(share);
        while *self.fate() != Fate::Ended
            && let Some(left) = until.checked_duration_since(Instant::now())
        {
            pause(left.min(Duration::from_millis(50)));
        }
    }

    /// Writes all of it, unless the connection ends first.
    fn write(&self, to: &mut impl Write, mut piece: &[u8]) -> bool {
        while !piece.is_empty() {
            match to.write(piece) {
                Ok(written) => piece = piece.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if *self.fate() == Fate::Ended {
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

/// At a port below those that outgoing connections take, so that it can be taken again.
fn listener() -> TcpListener {
    loop {
        let number = getrandom::u32().expect("a random number") % 10_000;
        let port = 10_000 + u16::try_from(number).expect("a port");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            does_not_block(&listener);
            return listener;
        }
    }
}

fn does_not_block(listener: &TcpListener) {
    listener.set_nonblocking(true).expect("an option");
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own may sleep")]
fn pause(duration: Duration) {
    thread::sleep(duration);
}
