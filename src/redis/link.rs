//! The way to one server: one connection, shared by all calls, that heals itself.
//!
//! A connection that ends is replaced at once, and calls wait for the first attempt. Where that
//! fails, where several calls in a row have had no answer, and where the server takes no writes any
//! more, the link is *away*: calls fail at once, and one task goes on connecting, at most once a
//! second, until it stands again. Every attempt asks anew where the server is, and reads the
//! password anew. (redis-rs's own manager replaces no connection after time-outs or `READONLY`.)

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
use super::deployment::Place;
use super::dial::{CONNECT_TIMEOUT, Dialer, Role};
use super::error::{CallError, is_answer, is_demoted, whole};
use super::notices::Notices;
use super::replicate::{CallMode, Confirmed, confirm};
use super::request::Request;
use crate::random;
use crate::tasks::Tasks;

/// After so many waves of calls without an answer the server is away: where its path is dead, the
/// operating system finds out much later. Calls that were waiting together are one wave.
const SILENT_WAVES: u32 = 3;

/// Between two attempts to connect: at first, and at last.
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The way to one server.
pub(crate) struct Link {
    me: Weak<Self>,
    dialer: Arc<Dialer>,
    place: Place,
    role: Role,
    notices: Arc<Notices>,
    tasks: Tasks,
    stage: watch::Sender<Stage>,
    made: AtomicU64,
    /// Connections for one call at a time, for answers that are long in coming.
    spare: Mutex<Vec<Spare>>,
    /// How many calls may have one at a time.
    alone: Semaphore,
}

/// An answer, and whether a replica has what it is about.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) value: Value,
    pub(crate) confirmed: Confirmed,
}

#[derive(Clone)]
enum Stage {
    /// Nobody has called yet.
    Idle,
    /// Connecting, with reason to hope: calls wait.
    Connecting,
    Up(Line),
    /// Calls fail at once.
    Away(Arc<str>),
}

/// A connection, and how it does.
#[derive(Clone)]
struct Line {
    connection: MultiplexedConnection,
    address: Address,
    number: u64,
    silence: Arc<Silence>,
}

/// Waves of calls without an answer, since the last answer.
struct Silence {
    waves: AtomicU32,
    /// When the last of them was counted.
    counted_at: Mutex<Instant>,
}

struct Spare {
    connection: MultiplexedConnection,
    /// Of the line beside which it was made.
    number: u64,
}

/// The sentinels announce another primary than the one that was asked.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not the primary any more, as the sentinels say")]
struct Left(Address);

/// The server did not answer before, and is tried again by and by.
#[derive(Debug, thiserror::Error)]
#[error("Redis is away: {0}")]
struct IsAway(Arc<str>);

/// How many connections for one call at a time there may be, and how many of them are kept.
const ALONE: usize = 64;
const SPARES: usize = 8;

impl Link {
    /// The way to a server of this role.
    pub(crate) fn new(
        dialer: Arc<Dialer>,
        place: Place,
        role: Role,
        notices: Arc<Notices>,
        tasks: Tasks,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            dialer,
            place,
            role,
            notices,
            tasks,
            stage: watch::Sender::new(Stage::Idle),
            made: AtomicU64::new(0),
            spare: Mutex::default(),
            alone: Semaphore::new(ALONE),
        })
    }

    /// Sends a request, and waits for its answer until `deadline`.
    pub(crate) async fn call(
        &self,
        request: Request<'_>,
        mode: CallMode<'_>,
        deadline: Instant,
    ) -> Result<Told, CallError> {
        let started = Instant::now();
        let mut line = self.line(deadline).await.map_err(CallError::NotSent)?;
        // Where too many wait already, one more is done and not waited for.
        let alone = match mode {
            CallMode::Replicated(wait) => {
                self.alone.try_acquire().ok().map(|permit| (permit, wait))
            }
            CallMode::Shared => None,
        };
        let Some((_permit, wait)) = alone else {
            let answer = timeout_at(deadline, request.send(&mut line.connection)).await;
            let value = self.judge(&line, started, answer)?;
            let confirmed = match mode {
                CallMode::Replicated(wait) if wait.is_expected() => Confirmed::No,
                CallMode::Replicated(_) | CallMode::Shared => Confirmed::NotAsked,
            };
            return Ok(Told { value, confirmed });
        };
        let mut connection = self.spare(&line, deadline).await.map_err(CallError::NotSent)?;
        let answer = timeout_at(deadline, request.send(&mut connection)).await;
        let value = self.judge(&line, started, answer)?;
        let confirmed = confirm(&mut connection, wait, deadline).await;
        self.check(&line)?;
        self.keep(Spare { connection, number: line.number });
        Ok(Told { value, confirmed })
    }

    /// What an answer, or none, says about the connection.
    fn judge(
        &self,
        line: &Line,
        started: Instant,
        answer: Result<Result<Value, RedisError>, tokio::time::error::Elapsed>,
    ) -> Result<Value, CallError> {
        match answer {
            Ok(Ok(value)) => {
                line.silence.end();
                self.check(line)?;
                Ok(value)
            }
            Ok(Err(error)) if is_answer(&error) => {
                line.silence.end();
                if is_demoted(&error) {
                    self.lose(line.number, Stage::Away(error.to_string().into()));
                }
                Err(CallError::Refused(error))
            }
            Ok(Err(error)) => {
                self.lose(line.number, Stage::Connecting);
                Err(CallError::Closed(error.into()))
            }
            Err(elapsed) => {
                if line.silence.count(started) >= SILENT_WAVES {
                    self.lose(line.number, Stage::Away("it does not answer".into()));
                }
                Err(CallError::TimedOut(elapsed.into()))
            }
        }
    }

    /// Takes no answer from a primary of which the sentinels have announced the successor: what it
    /// has written is lost, and what it has read may be old.
    fn check(&self, line: &Line) -> Result<(), CallError> {
        if !self.place.is_left(&line.address) {
            return Ok(());
        }
        self.lose(line.number, Stage::Connecting);
        Err(CallError::Closed(Left(line.address.clone()).into()))
    }

    /// Lets go of the connection that stands.
    pub(crate) fn distrust(&self) {
        let number = match &*self.stage.borrow() {
            Stage::Up(line) => line.number,
            Stage::Idle | Stage::Connecting | Stage::Away(_) => return,
        };
        self.lose(number, Stage::Connecting);
    }

    /// Whether calls would not fail at once.
    pub(crate) fn is_hopeful(&self) -> bool {
        !matches!(*self.stage.borrow(), Stage::Away(_))
    }

    /// The connection that stands, or the next one if it comes soon.
    async fn line(&self, deadline: Instant) -> Result<Line, Cause> {
        let up = match &*self.stage.borrow() {
            Stage::Up(line) => Some(line.clone()),
            Stage::Idle | Stage::Connecting | Stage::Away(_) => None,
        };
        match up {
            Some(line) if !self.place.is_left(&line.address) => return Ok(line),
            Some(line) => self.lose(line.number, Stage::Connecting),
            None => {}
        }
        let mut stage = self.stage.subscribe();
        self.begin();
        let settled = |stage: &Stage| matches!(stage, Stage::Up(_) | Stage::Away(_));
        let stage = timeout_at(deadline, stage.wait_for(settled)).await??;
        match &*stage {
            Stage::Up(line) => Ok(line.clone()),
            Stage::Away(cause) => Err(IsAway(Arc::clone(cause)).into()),
            Stage::Idle | Stage::Connecting => Err("the connection is not settled".into()),
        }
    }

    /// Connects for the first time.
    fn begin(&self) {
        let begins = self.stage.send_if_modified(|stage| {
            let idle = matches!(stage, Stage::Idle);
            if idle {
                *stage = Stage::Connecting;
            }
            idle
        });
        if begins {
            self.heal();
            self.follow();
        }
    }

    /// Leaves a primary as soon as the sentinels announce another, calls or no calls.
    fn follow(&self) {
        if matches!(self.place, Place::Fixed(_)) {
            return;
        }
        let (me, place) = (self.me.clone(), self.place.clone());
        let (drain, mut stage) = (self.tasks.clone(), self.stage.subscribe());
        let following = async move {
            loop {
                let up = match &*stage.borrow_and_update() {
                    Stage::Up(line) => Some((line.number, line.address.clone())),
                    Stage::Idle | Stage::Connecting | Stage::Away(_) => None,
                };
                let left = async {
                    match &up {
                        Some((_, address)) => place.announced_other_than(Some(address)).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = left => {
                        let Some(link) = me.upgrade() else { return };
                        if let Some((number, _)) = up {
                            link.lose(number, Stage::Connecting);
                        }
                    }
                    changed = stage.changed() => if changed.is_err() { return },
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

    /// Lets go of a connection, unless another stands in its place already.
    fn lose(&self, number: u64, next: Stage) {
        let mut told = None;
        let lost = self.stage.send_if_modified(|stage| {
            let Stage::Up(line) = stage else { return false };
            if line.number != number {
                return false;
            }
            if let Stage::Away(cause) = &next {
                told = Some(Arc::clone(cause));
            }
            *stage = next;
            true
        });
        if let Some(cause) = told {
            self.notices.unreachable(&self.place, cause);
        }
        if lost {
            self.spares().clear();
            self.heal();
        }
    }

    /// Connects until a connection stands, or nobody has this link any more. An announcement ends a
    /// pause.
    fn heal(&self) {
        let (me, tasks, place) = (self.me.clone(), self.tasks.clone(), self.place.clone());
        let healing = async move {
            let mut pause = PAUSE;
            loop {
                let Some(link) = me.upgrade() else { return };
                let announced = place.announced();
                match link.connect().await {
                    // It has led back to where it must not go: the pauses grow.
                    Ok(line) if place.is_left(&line.address) => {
                        link.give_up(&Left(line.address).into());
                    }
                    Ok(line) => return link.stand(line),
                    Err(cause) => link.give_up(&cause),
                }
                drop(link);
                tokio::select! {
                    () = sleep(jittered(pause)) => {}
                    () = place.announced_other_than(announced.as_ref()) => {}
                    () = tasks.draining() => return,
                }
                pause = MAX_PAUSE.min(pause * 2);
            }
        };
        self.tasks.run(healing).detach();
    }

    fn stand(&self, line: Line) {
        self.stage.send_replace(Stage::Up(line));
        self.notices.reachable(&self.place);
    }

    fn give_up(&self, cause: &Cause) {
        let told: Arc<str> = whole(&**cause).into();
        let was = self.stage.send_replace(Stage::Away(Arc::clone(&told)));
        if !matches!(was, Stage::Away(_)) {
            self.notices.unreachable(&self.place, told);
        }
    }

    async fn connect(&self) -> Result<Line, Cause> {
        let address = self.place.find(&self.dialer).await?;
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let me = self.me.clone();
        let pushed = move |push: PushInfo| {
            if push.kind == PushKind::Disconnection
                && let Some(link) = me.upgrade()
            {
                link.lose(number, Stage::Connecting);
            }
            Ok::<_, SendError>(())
        };
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let connection = self.dialer.dial(&address, self.role, pushed, deadline).await?;
        self.place.found(&address);
        Ok(Line { connection, address, number, silence: Arc::default() })
    }

    async fn spare(&self, line: &Line, deadline: Instant) -> Result<MultiplexedConnection, Cause> {
        let kept = {
            let mut spare = self.spares();
            spare.retain(|spare| spare.number == line.number);
            spare.pop()
        };
        if let Some(spare) = kept {
            return Ok(spare.connection);
        }
        let unheard = |_: PushInfo| Ok::<_, SendError>(());
        self.dialer.dial(&line.address, self.role, unheard, deadline).await
    }

    /// Keeps a connection for the next call, unless the line has ended that it belongs to.
    fn keep(&self, spare: Spare) {
        let stage = self.stage.borrow();
        if !matches!(&*stage, Stage::Up(line) if line.number == spare.number) {
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

impl Default for Silence {
    fn default() -> Self {
        Self { waves: AtomicU32::new(0), counted_at: Mutex::new(Instant::now()) }
    }
}

impl Silence {
    fn end(&self) {
        if self.waves.load(Ordering::Relaxed) != 0 {
            self.waves.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a call that began at `started` and had no answer; how many waves there are by now.
    fn count(&self, started: Instant) -> u32 {
        let mut counted_at = self.counted_at.lock().unwrap_or_else(PoisonError::into_inner);
        if started < *counted_at {
            return self.waves.load(Ordering::Relaxed);
        }
        *counted_at = Instant::now();
        self.waves.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// From three quarters to five quarters of it, so that instances do not come back as one.
fn jittered(pause: Duration) -> Duration {
    let [byte] = random::bytes();
    pause * (192 + u32::from(byte) / 2) / 256
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("place", &self.place).finish_non_exhaustive()
    }
}
