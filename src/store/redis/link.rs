//! The connection: made at first use, shared by all calls, replaced when it is lost or silent.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, PushInfo, PushKind, RedisError,
    ServerErrorKind, Value,
};
use tokio::time::{Instant, timeout_at};

use crate::store::{Cause, Error};

/// After so many calls in a row without an answer the connection is replaced: where its path is
/// dead, the operating system finds out much later.
const SILENT_CALLS: u32 = 3;

/// How many commands may wait to be written.
const QUEUE: usize = 1024;

/// A server that has become a replica is asked anew where it is, but not by every call.
const DEMOTED_AGE: Duration = Duration::from_secs(1);

/// The way to one server.
pub(super) struct Link {
    client: Client,
    state: Mutex<State>,
    /// Held by the one call that connects, while others wait for it.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    line: Option<Line>,
    silent: u32,
    made: u64,
}

#[derive(Clone)]
struct Line {
    connection: MultiplexedConnection,
    lost: Arc<AtomicBool>,
    number: u64,
    since: Instant,
}

/// Why a command has no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It was not sent.
    NotSent(Cause),
    /// It was sent, perhaps, and no answer came.
    Unanswered(Cause),
    /// The server says no.
    Refused(RedisError),
}

/// What to send: one command, or several in one go.
#[derive(Clone, Copy)]
pub(super) enum Request<'a> {
    One(&'a Cmd),
    Several(&'a Pipeline),
}

impl Link {
    pub(super) fn new(client: Client) -> Self {
        Self { client, state: Mutex::default(), connecting: tokio::sync::Mutex::default() }
    }

    /// Sends a request, and waits for its answer until `deadline`.
    pub(super) async fn call(
        &self,
        request: Request<'_>,
        deadline: Instant,
    ) -> Result<Value, Trouble> {
        let mut line = match timeout_at(deadline, self.line(deadline)).await {
            Ok(Ok(line)) => line,
            Ok(Err(error)) => return Err(Trouble::NotSent(error.into())),
            Err(elapsed) => return Err(Trouble::NotSent(elapsed.into())),
        };
        let answer = timeout_at(deadline, request.send(&mut line.connection)).await;
        match answer {
            Ok(Ok(value)) => {
                self.state().silent = 0;
                Ok(value)
            }
            Ok(Err(error)) => {
                let answered = is_answer(&error);
                if !answered || (is_demoted(&error) && line.since.elapsed() > DEMOTED_AGE) {
                    self.replace(&line);
                }
                Err(if answered {
                    self.state().silent = 0;
                    Trouble::Refused(error)
                } else {
                    Trouble::Unanswered(error.into())
                })
            }
            Err(elapsed) => {
                self.silence(&line);
                Err(Trouble::Unanswered(elapsed.into()))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self) -> Option<Line> {
        let mut state = self.state();
        if state.line.as_ref().is_some_and(|line| line.lost.load(Ordering::Acquire)) {
            state.line = None;
        }
        state.line.clone()
    }

    /// The connection that stands, or a new one; of several calls that need one, one makes it.
    async fn line(&self, deadline: Instant) -> Result<Line, RedisError> {
        if let Some(line) = self.standing() {
            return Ok(line);
        }
        let _alone = self.connecting.lock().await;
        if let Some(line) = self.standing() {
            return Ok(line);
        }
        let lost = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&lost);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(deadline.saturating_duration_since(Instant::now())))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE)
            .set_push_sender(move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    told.store(true, Ordering::Release);
                }
                Ok::<_, redis::aio::SendError>(())
            });
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut state = self.state();
        state.made += 1;
        state.silent = 0;
        let line = Line { connection, lost, number: state.made, since: Instant::now() };
        state.line = Some(line.clone());
        Ok(line)
    }

    /// Lets go of `line`, unless another stands in its place already.
    fn replace(&self, line: &Line) {
        let mut state = self.state();
        if state.line.as_ref().map(|stands| stands.number) == Some(line.number) {
            state.line = None;
            state.silent = 0;
        }
    }

    fn silence(&self, line: &Line) {
        let silent = {
            let mut state = self.state();
            state.silent += 1;
            state.silent
        };
        if silent >= SILENT_CALLS {
            self.replace(line);
        }
    }
}

impl Request<'_> {
    async fn send(self, connection: &mut MultiplexedConnection) -> Result<Value, RedisError> {
        match self {
            Self::One(command) => command.query_async(connection).await,
            Self::Several(pipeline) => pipeline.query_async(connection).await,
        }
    }
}

fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

fn is_demoted(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
    )
}

/// Whether the server does not know the script.
pub(super) fn is_unknown_script(trouble: &Trouble) -> bool {
    matches!(trouble, Trouble::Refused(error)
        if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript))
}

impl Trouble {
    /// What it means to one who asked.
    pub(super) fn of_read(self) -> Error {
        match self {
            Self::NotSent(cause) | Self::Unanswered(cause) => Error::Unavailable(cause),
            Self::Refused(error) => refused(error),
        }
    }

    /// What it means to one who wanted a change.
    pub(super) fn of_write(self) -> Error {
        match self {
            Self::NotSent(cause) => Error::Unavailable(cause),
            Self::Unanswered(cause) => Error::OutcomeUnknown(cause),
            Self::Refused(error) => refused(error),
        }
    }
}

/// What an error that the server answered means. Before Redis 7 the error of a command in a script
/// is in the text of the script's own.
fn refused(error: RedisError) -> Error {
    let detail = error.detail().unwrap_or_default();
    let says = |code| error.code() == Some(code) || detail.contains(&format!(": -{code} "));
    // A script of ours fails by itself only over fields that it did not write.
    let script_failed = error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
        && detail.contains("user_script")
        && !detail.contains(": -");
    if says("OOM") {
        Error::Full
    } else if says("WRONGTYPE") || script_failed {
        Error::Corrupt(error.into())
    } else {
        Error::Unavailable(error.into())
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("server", self.client.get_connection_info())
            .finish_non_exhaustive()
    }
}
