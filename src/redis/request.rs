//! Requests and scripts.

use redis::aio::MultiplexedConnection;
use redis::{Arg, Cmd, Pipeline, RedisError, Value, cmd};

/// A command, or several in one round trip.
#[derive(Clone, Copy)]
pub(crate) enum Request<'a> {
    One(&'a Cmd),
    Several(&'a Pipeline),
    /// One command, to a node of a cluster that imports its slot.
    Asking(&'a Cmd),
}

impl Request<'_> {
    pub(crate) async fn send(
        self,
        connection: &mut MultiplexedConnection,
    ) -> Result<Value, RedisError> {
        match self {
            Self::One(command) => command.query_async(connection).await,
            Self::Several(pipeline) => pipeline.query_async(connection).await,
            Self::Asking(command) => {
                let mut pair = Pipeline::with_capacity(2);
                pair.add_command(cmd("ASKING")).ignore().add_command(command.clone());
                let (answer,) = pair.query_async(connection).await?;
                Ok(answer)
            }
        }
    }

    /// Returns the same request for the node that imports its slot.
    pub(crate) fn asking(self) -> Self {
        match self {
            Self::One(command) | Self::Asking(command) => Self::Asking(command),
            // Keys of several slots are not redirected together.
            Self::Several(pipeline) => Self::Several(pipeline),
        }
    }
}

/// A script, which a server runs by its hash once it is loaded.
#[derive(Debug)]
pub(crate) struct Script {
    code: String,
    hash: String,
}

impl Script {
    pub(crate) fn new(code: impl Into<String>) -> Self {
        let code = code.into();
        let hash = redis::Script::new(&code).get_hash().to_owned();
        Self { code, hash }
    }

    /// Starts a call on one key; the caller adds the arguments.
    pub(crate) fn on(&self, key: &str) -> Cmd {
        // Room for most calls.
        let mut command = Cmd::with_capacity(32, 512);
        command.arg("EVALSHA").arg(&self.hash).arg(1).arg(key);
        command
    }

    /// Returns the same call with the script's text, which loads it.
    pub(crate) fn with_text(&self, call: &Cmd) -> Cmd {
        let mut command = cmd("EVAL");
        command.arg(&self.code);
        for argument in call.args_iter().skip(2) {
            if let Arg::Simple(bytes) = argument {
                command.arg(bytes);
            }
        }
        command
    }
}
