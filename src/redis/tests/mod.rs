//! The client on real servers: connecting, reconnecting, failover.

mod failover;
#[path = "../../../tests/it/support/redis/mod.rs"]
#[expect(dead_code, unused_imports, reason = "other tests use the rest")]
pub(crate) mod kit;
mod login;
mod reconnect;
#[path = "../../../tests/it/support/tools.rs"]
pub(crate) mod tools;

use std::time::Duration;

use redis::{Cmd, FromRedisValue, Value, from_redis_value};
use tokio::time::Instant;

use super::config::{Address, Config, Topology};
use super::{CallError, CallMode, Deployment, Script, Servers};
use crate::tasks::Tasks;

/// Deadline of calls that are expected to succeed, and of every wait.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the settings of this topology, without a user.
fn config(topology: Topology) -> Config {
    Config { topology, user: None, password: None, sentinel_password: None, database: 0, tls: None }
}

fn single(address: Address) -> Config {
    config(Topology::Server(address))
}

fn local(port: u16) -> Address {
    Address::Tcp { host: "127.0.0.1".to_owned(), port }
}

/// The client of one worker.
#[derive(Debug)]
struct Client {
    servers: Servers,
    /// The deadline of a call.
    timeout: Duration,
    /// Adds one to a number, and returns it.
    increment: Script,
}

impl Client {
    fn new(config: &Config, timeout: Duration) -> Self {
        crate::log::begin_for_tests();
        Self {
            servers: Servers::new(&Deployment::new(config), Tasks::new()),
            timeout,
            increment: Script::new("return redis.call('INCR', KEYS[1])"),
        }
    }

    fn at(port: u16, timeout: Duration) -> Self {
        Self::new(&single(local(port)), timeout)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Sends a command to the server that has `key`; again if the connection closed.
    async fn ask<T: FromRedisValue>(&self, key: &str, words: &[&str]) -> Result<T, CallError> {
        let mut command = Cmd::new();
        command.arg(words);
        let value = self.servers.ask(key, &command, self.deadline()).await?;
        Ok(from_redis_value(value).expect("a reply of this type"))
    }

    async fn ping(&self) -> Result<(), CallError> {
        self.ask::<Value>("", &["PING"]).await.map(drop)
    }

    async fn get(&self, key: &str) -> Result<Option<i64>, CallError> {
        self.ask(key, &["GET", key]).await
    }

    /// Adds one to the number at `key`, by a script.
    async fn increment(&self, key: &str) -> Result<i64, CallError> {
        let script = &self.increment;
        let call = script.on(key);
        let reply = self.servers.run(script, key, &call, CallMode::Shared, self.deadline()).await?;
        Ok(from_redis_value(reply.value).expect("a number"))
    }

    /// Returns the server's number of the connection.
    async fn connection_id(&self) -> i64 {
        self.ask("", &["CLIENT", "ID"]).await.expect("a number")
    }

    /// Waits until the server replies again.
    async fn wait_until_reconnected(&self) {
        let start = Instant::now();
        while let Err(error) = self.ping().await {
            assert!(start.elapsed() < TIMEOUT, "{error:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until this number of replicas has what the primary has.
    async fn wait_for_replicas(&self, replicas: i64) {
        let start = Instant::now();
        // The server's own time-out is shorter than that of the call.
        while self.ask::<i64>("", &["WAIT", &replicas.to_string(), "100"]).await.expect("a number")
            < replicas
        {
            assert!(start.elapsed() < TIMEOUT, "the replicas lag behind");
        }
    }

    /// Writes and reads.
    async fn check_calls(&self) {
        let count = self.increment("count").await.expect("incremented");
        assert_eq!(self.get("count").await.expect("a reply"), Some(count));
    }
}
