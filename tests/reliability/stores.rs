//! Scenarios on each store.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use tempfile::TempDir;

use crate::support::{Cloakroom, RedisServer, Upstream};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Memory,
    Sqlite,
    Redis,
}

pub const ALL: [Kind; 3] = [Kind::Memory, Kind::Sqlite, Kind::Redis];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Sqlite => "SQLite",
            Self::Redis => "Redis",
        }
    }
}

/// A proxy with a fresh store and its upstream.
pub struct TestBed {
    pub upstream: Upstream,
    pub cloakroom: Cloakroom,
    pub redis: Option<RedisServer>,
}

impl TestBed {
    /// Starts a proxy with these tables of configuration in addition to `[store]`.
    pub async fn new(kind: Kind, toml: &str) -> Self {
        let redis = (kind == Kind::Redis).then(|| RedisServer::start(&[]));
        let url = match &redis {
            Some(redis) => redis.url(),
            None if kind == Kind::Sqlite => "sqlite:cloakroom.db".to_owned(),
            None => "memory:".to_owned(),
        };
        let upstream = Upstream::start();
        let toml = format!("{toml}\n[store]\nurl = \"{url}\"\n");
        let cloakroom = Cloakroom::with(&upstream, &toml).await;
        Self { upstream, cloakroom, redis }
    }

    /// Returns the number of store calls made for requests.
    pub fn store_calls(&self) -> u64 {
        let operations = ["load", "create", "patch", "use", "remove", "list"];
        operations.iter().map(|operation| self.cloakroom.metrics().store_calls(operation)).sum()
    }

    /// Returns the number of those that write.
    pub fn store_writes(&self) -> u64 {
        let operations = ["create", "patch", "use", "remove"];
        operations.iter().map(|operation| self.cloakroom.metrics().store_calls(operation)).sum()
    }

    /// Returns the number of records according to the store itself; `None` for the memory store.
    pub fn records(&self) -> Option<u64> {
        if let Some(redis) = &self.redis {
            return Some(ask(redis, "DBSIZE").trim_start_matches(':').trim().parse().unwrap());
        }
        let file = self.cloakroom.directory().join("cloakroom.db");
        file.exists().then(|| {
            let connection = rusqlite::Connection::open(file).unwrap();
            let count = "SELECT count(*) FROM sessions";
            connection.query_row(count, (), |row| row.get::<_, i64>(0)).unwrap().try_into().unwrap()
        })
    }

    /// Returns the number of commands that Redis has executed, except those of this test kit.
    pub fn redis_commands(&self) -> u64 {
        let Some(redis) = &self.redis else { return 0 };
        let text = ask(redis, "INFO commandstats");
        text.lines()
            .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="))
            .filter(|(name, _)| !["info", "dbsize", "quit"].contains(name))
            .map(|(_, rest)| rest.split(',').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }
}

fn ask(redis: &RedisServer, command: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.trim_end_matches("+OK\r\n").to_owned()
}

/// Returns a directory that is removed when it is dropped.
pub fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}
