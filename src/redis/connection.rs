//! The connection to one server, shared by all calls, which reconnects by itself.
//!
//! A connection that closes is replaced at once, and calls wait for the first attempt. If that fails, if several
//! calls in a row time out, or if the server no longer accepts writes, it is *unusable*: calls fail at once,
//! and one task reconnects, after pauses that grow from 100 ms to 1 s. An announcement of sentinels ends a pause, and so
//! does the connection of another worker that is open again.
//! Every attempt looks up the address and reads the password again. (The connection manager of the `redis` crate does not reconnect after time-outs or `READONLY`.)

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, SendError};
use redis::{PushInfo, PushKind, RedisError, Value};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::Cause;
use super::config::Address;
use super::deployment::Locator;
use super::dial::{CONNECT_TIMEOUT, Dialer, Role};
use super::error::{CallError, ErrorReply, is_answer};
use super::notices::Notices;
use super::replicate::{CallMode, Confirmed, confirm};
use super::request::Request;
use super::unusable::Unusable;
use crate::random;
use crate::tasks::Tasks;

/// Number of time-outs in a row after which the server is unusable; the operating system notices a dead path
/// much later. Calls that waited at the same time count once.
const TIMEOUTS: u32 = 3;

/// Pause between two attempts to connect: the first, and the longest.
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The connection to one server.
pub(crate) struct Connection {
    me: Weak<Self>,
    dialer: Arc<Dialer>,
    locator: Locator,
    role: Role,
    notices: Arc<Notices>,
    tasks: Tasks,
    state: watch::Sender<State>,
    made: AtomicU64,
    /// Connections for a single call at a time, whose replies take long.
    spare: Mutex<Vec<Spare>>,
    /// Limits the number of such calls.
    dedicated: Semaphore,
}

/// A reply, and whether a replica has confirmed the change.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) value: Value,
    pub(crate) confirmed: Confirmed,
}

#[derive(Clone)]
enum State {
    /// Before the first call.
    Idle,
    /// Calls wait.
    Connecting,
    Live(Arc<Live>),
    /// Calls fail at once.
    Unusable(Arc<Unusable>),
}

/// An open connection.
struct Live {
    connection: MultiplexedConnection,
    address: Address,
    number: u64,
    timeouts: TimeoutStreak,
}

/// Time-outs since the last reply.
struct TimeoutStreak {
    count: AtomicU32,
    /// The time of the last one.
    counted_at: Mutex<Instant>,
}

/// The time that a call may take.
#[derive(Clone, Copy)]
struct Period {
    started: Instant,
    deadline: Instant,
}

struct Spare {
    connection: MultiplexedConnection,
    /// The number of the open connection at its creation.
    number: u64,
}

/// The reply came from a primary that the sentinels have replaced.
#[derive(Debug, thiserror::Error)]
#[error("the sentinels have replaced the primary {0}")]
struct Superseded(Address);

/// Number of connections for a single call at a time, and how many of them are kept.
const DEDICATED: usize = 64;
const SPARES: usize = 8;

impl Connection {
    /// Creates a connection to a server of this role, without connecting.
    pub(crate) fn new(
        dialer: Arc<Dialer>,
        locator: Locator,
        role: Role,
        notices: Arc<Notices>,
        tasks: Tasks,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            dialer,
            locator,
            role,
            notices,
            tasks,
            state: watch::Sender::new(State::Idle),
            made: AtomicU64::new(0),
            spare: Mutex::default(),
            dedicated: Semaphore::new(DEDICATED),
        })
    }

    /// Sends a request, and waits for its reply until `deadline`.
    pub(crate) async fn call(
        &self,
        request: Request<'_>,
        mode: CallMode<'_>,
        deadline: Instant,
    ) -> Result<Reply, CallError> {
        let sent = Period { started: Instant::now(), deadline };
        let live = self.live(sent).await.map_err(CallError::NotSent)?;
        // If too many wait already, this change does not wait for a replica.
        let dedicated = match mode {
            CallMode::Replicated(wait) => {
                self.dedicated.try_acquire().ok().map(|permit| (permit, wait))
            }
            CallMode::Shared => None,
        };
        let Some((_permit, wait)) = dedicated else {
            let answer = timeout_at(deadline, request.send(&mut live.connection.clone())).await;
            let value = self.conclude(&live, sent, answer)?;
            let confirmed = match mode {
                CallMode::Replicated(wait) if wait.is_expected() => Confirmed::No,
                CallMode::Replicated(_) | CallMode::Shared => Confirmed::NotAsked,
            };
            return Ok(Reply { value, confirmed });
        };
        let mut connection = self.spare(&live, deadline).await.map_err(CallError::NotSent)?;
        let answer = timeout_at(deadline, request.send(&mut connection)).await;
        let value = self.conclude(&live, sent, answer)?;
        let confirmed = confirm(&mut connection, wait, deadline).await;
        self.refuse_superseded(&live)?;
        self.keep(Spare { connection, number: live.number });
        Ok(Reply { value, confirmed })
    }

    /// Draws the conclusions from a reply, an error or a time-out.
    fn conclude(
        &self,
        live: &Live,
        sent: Period,
        answer: Result<Result<Value, RedisError>, tokio::time::error::Elapsed>,
    ) -> Result<Value, CallError> {
        match answer {
            Ok(Ok(value)) => {
                live.timeouts.end();
                self.refuse_superseded(live)?;
                Ok(value)
            }
            Ok(Err(error)) if is_answer(&error) => {
                live.timeouts.end();
                if let Some(unusable) = Unusable::of_reply(&live.address, &error) {
                    self.close(live.number, State::Unusable(unusable.into()));
                }
                Err(CallError::Refused(ErrorReply { server: live.address.clone(), error }.into()))
            }
            Ok(Err(error)) => {
                self.close(live.number, State::Connecting);
                Err(CallError::Closed(error.into()))
            }
            Err(_elapsed) => {
                let server = live.address.to_string();
                let silent = Unusable::Silent { server, within: sent.length() };
                if live.timeouts.count(sent.started) >= TIMEOUTS {
                    self.close(live.number, State::Unusable(silent.clone().into()));
                }
                Err(CallError::TimedOut(silent.into()))
            }
        }
    }

    /// Refuses the reply of a primary whose successor has been announced: what it wrote is lost, and what it read
    /// may be outdated.
    fn refuse_superseded(&self, live: &Live) -> Result<(), CallError> {
        if !self.locator.is_superseded(&live.address) {
            return Ok(());
        }
        self.close(live.number, State::Connecting);
        Err(CallError::Closed(Superseded(live.address.clone()).into()))
    }

    /// Closes the open connection.
    pub(crate) fn discard(&self) {
        let number = match &*self.state.borrow() {
            State::Live(live) => live.number,
            State::Idle | State::Connecting | State::Unusable(_) => return,
        };
        self.close(number, State::Connecting);
    }

    /// Returns whether calls would not fail at once.
    pub(crate) fn is_reachable(&self) -> bool {
        !matches!(*self.state.borrow(), State::Unusable(_))
    }

    /// Returns the open connection, or waits for the next one.
    async fn live(&self, sent: Period) -> Result<Arc<Live>, Cause> {
        let up = match &*self.state.borrow() {
            State::Live(live) => Some(Arc::clone(live)),
            State::Idle | State::Connecting | State::Unusable(_) => None,
        };
        match up {
            Some(live) if !self.locator.is_superseded(&live.address) => return Ok(live),
            Some(live) => self.close(live.number, State::Connecting),
            None => {}
        }
        let mut state = self.state.subscribe();
        self.start();
        let settled = |state: &State| matches!(state, State::Live(_) | State::Unusable(_));
        let settled = timeout_at(sent.deadline, state.wait_for(settled)).await;
        let state = settled.map_err(|_elapsed| Unusable::NotConnected {
            server: self.locator.to_string(),
            within: sent.length(),
        })??;
        match &*state {
            State::Live(live) => Ok(Arc::clone(live)),
            State::Unusable(cause) => Err(Unusable::clone(cause).into()),
            State::Idle | State::Connecting => Err("the connection is not open".into()),
        }
    }

    /// Starts to connect, before the first call.
    fn start(&self) {
        let begins = self.state.send_if_modified(|state| {
            let idle = matches!(state, State::Idle);
            if idle {
                *state = State::Connecting;
            }
            idle
        });
        if begins {
            self.reconnect();
            self.follow();
        }
    }

    /// Leaves a primary as soon as the sentinels announce another, even without calls.
    fn follow(&self) {
        if matches!(self.locator, Locator::Fixed(_)) {
            return;
        }
        let (me, locator) = (self.me.clone(), self.locator.clone());
        let (drain, mut state) = (self.tasks.clone(), self.state.subscribe());
        let following = async move {
            loop {
                let up = match &*state.borrow_and_update() {
                    State::Live(live) => Some((live.number, live.address.clone())),
                    State::Idle | State::Connecting | State::Unusable(_) => None,
                };
                let left = async {
                    match &up {
                        Some((_, address)) => locator.announced_other_than(Some(address)).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = left => {
                        let Some(connection) = me.upgrade() else { return };
                        if let Some((number, _)) = up {
                            connection.close(number, State::Connecting);
                        }
                    }
                    changed = state.changed() => if changed.is_err() { return },
                }
            }
        };
        let until_drain = async move {
            tokio::select! {
                () = drain.draining() => {}
                () = following => {}
            }
        };
        self.tasks.run(until_drain).detach();
    }

    /// Closes an open connection, unless it was replaced already.
    fn close(&self, number: u64, next: State) {
        let mut unusable = None;
        let lost = self.state.send_if_modified(|state| {
            let State::Live(live) = state else { return false };
            if live.number != number {
                return false;
            }
            if let State::Unusable(cause) = &next {
                unusable = Some(Arc::clone(cause));
            }
            *state = next;
            true
        });
        // A replica names its primary when the next connection is opened, and is logged then.
        if let Some(unusable) = unusable.filter(|cause| !cause.is_replica()) {
            self.notices.unusable(&self.locator, &unusable);
        }
        if lost {
            self.spares().clear();
            self.reconnect();
        }
    }

    /// Connects until a connection is open, or this one is dropped. An announcement ends a pause, and so does a
    /// connection of another worker.
    fn reconnect(&self) {
        let (me, tasks, locator) = (self.me.clone(), self.tasks.clone(), self.locator.clone());
        let notices = Arc::clone(&self.notices);
        let reconnecting = async move {
            let mut pause = PAUSE;
            loop {
                let Some(connection) = me.upgrade() else { return };
                let announced = locator.announced();
                let reached = notices.reached(&locator);
                match connection.connect().await {
                    // An old primary again: the pauses grow.
                    Ok(live) if locator.is_superseded(&live.address) => {
                        connection.give_up(&Superseded(live.address).into());
                    }
                    Ok(live) => return connection.set_live(live),
                    Err(cause) => connection.give_up(&cause),
                }
                drop(connection);
                tokio::select! {
                    () = sleep(jittered(pause)) => {}
                    () = locator.announced_other_than(announced.as_ref()) => {}
                    () = reached => if let Some(connection) = me.upgrade() {
                        connection.expect();
                    },
                    () = tasks.draining() => return,
                }
                pause = MAX_PAUSE.min(pause * 2);
            }
        };
        self.tasks.run(reconnecting).detach();
    }

    /// Lets calls wait for the next attempt to connect.
    fn expect(&self) {
        self.state.send_if_modified(|state| {
            let fails = matches!(state, State::Unusable(_));
            if fails {
                *state = State::Connecting;
            }
            fails
        });
    }

    fn set_live(&self, live: Live) {
        let was = self.state.send_replace(State::Live(Arc::new(live)));
        // A server that refused a write, and whose access list refuses `ROLE`: no attempt has failed and logged it.
        if let State::Unusable(replica) = was
            && matches!(*replica, Unusable::Replica { primary: None, .. })
        {
            self.notices.unusable(&self.locator, &replica);
        }
        self.notices.reachable(&self.locator);
    }

    fn give_up(&self, cause: &Cause) {
        let unusable = Arc::new(Unusable::of_failure(&self.locator, cause));
        let was = self.state.send_replace(State::Unusable(Arc::clone(&unusable)));
        let is_logged = matches!(was, State::Unusable(was) if !was.is_replica());
        if !is_logged || unusable.is_replica() {
            self.notices.unusable(&self.locator, &unusable);
        }
    }

    async fn connect(&self) -> Result<Live, Cause> {
        let address = self.locator.find(&self.dialer).await?;
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let me = self.me.clone();
        let pushed = move |push: PushInfo| {
            if push.kind == PushKind::Disconnection
                && let Some(connection) = me.upgrade()
            {
                connection.close(number, State::Connecting);
            }
            Ok::<_, SendError>(())
        };
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let dialled = self.dialer.dial(&address, self.role, pushed, deadline).await;
        let connection = match dialled {
            Ok(connection) => connection,
            Err(cause) => return Err(self.silent(&address, cause).await),
        };
        self.locator.found(&address);
        Ok(Live { connection, address, number, timeouts: TimeoutStreak::default() })
    }

    /// Replaces the cause if no connection was open in time although the server accepts them.
    async fn silent(&self, address: &Address, cause: Cause) -> Cause {
        match cause.downcast_ref() {
            Some(&Unusable::NotConnected { within, .. }) if self.dialer.accepts(address).await => {
                Unusable::Silent { server: address.to_string(), within }.into()
            }
            _ => cause,
        }
    }

    async fn spare(&self, live: &Live, deadline: Instant) -> Result<MultiplexedConnection, Cause> {
        let kept = {
            let mut spare = self.spares();
            spare.retain(|spare| spare.number == live.number);
            spare.pop()
        };
        if let Some(spare) = kept {
            return Ok(spare.connection);
        }
        let ignore = |_: PushInfo| Ok::<_, SendError>(());
        self.dialer.dial(&live.address, self.role, ignore, deadline).await
    }

    /// Keeps a connection for the next call, unless the open connection of its time was closed.
    fn keep(&self, spare: Spare) {
        let state = self.state.borrow();
        if !matches!(&*state, State::Live(live) if live.number == spare.number) {
            return;
        }
        let mut kept = self.spares();
        if kept.len() < SPARES {
            kept.push(spare);
        }
    }

    fn spares(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Period {
    fn length(self) -> Duration {
        self.deadline.saturating_duration_since(self.started)
    }
}

impl Default for TimeoutStreak {
    fn default() -> Self {
        Self { count: AtomicU32::new(0), counted_at: Mutex::new(Instant::now()) }
    }
}

impl TimeoutStreak {
    fn end(&self) {
        if self.count.load(Ordering::Relaxed) != 0 {
            self.count.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a call that began at `started` and timed out. Returns the length of the streak.
    fn count(&self, started: Instant) -> u32 {
        let mut counted_at = self.counted_at.lock().unwrap_or_else(PoisonError::into_inner);
        if started < *counted_at {
            return self.count.load(Ordering::Relaxed);
        }
        *counted_at = Instant::now();
        self.count.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Returns three to five quarters of a pause, so that instances do not reconnect at the same moment.
fn jittered(pause: Duration) -> Duration {
    let [byte] = random::bytes();
    pause * (192 + u32::from(byte) / 2) / 256
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("locator", &self.locator).finish_non_exhaustive()
    }
}
