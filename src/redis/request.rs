//! What is sent in one go.

use redis::aio::MultiplexedConnection;
use redis::{Arg, Cmd, Pipeline, RedisError, Value, cmd};

/// What to send: one command, or several in one go.
#[derive(Clone, Copy)]
pub(crate) enum Request<'a> {
    One(&'a Cmd),
    Several(&'a Pipeline),
    /// One command to a cluster's node that does not own its key yet.
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

    /// The same, sent to where a cluster is moving its key.
    pub(crate) fn asking(self) -> Self {
        match self {
            Self::One(command) | Self::Asking(command) => Self::Asking(command),
            // Keys of several slots do not move together.
            Self::Several(pipeline) => Self::Several(pipeline),
        }
    }
}

/// A script, which a server runs by its hash once it has seen it.
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

    /// A call of it on one key, to which arguments are to be added.
    pub(crate) fn on(&self, key: &str) -> Cmd {
        let mut command = cmd("EVALSHA");
        command.arg(&self.hash).arg(1).arg(key);
        command
    }

    /// The same call, for a server that does not know the script: it does afterwards.
    pub(crate) fn spelled_out(&self, call: &Cmd) -> Cmd {
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
