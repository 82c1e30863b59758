//! Why a server cannot be used.

use std::fmt::Display;
use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind, Value, from_redis_value};

use super::Cause;
use super::config::Address;
use super::error::{is_demoted, whole};

/// Why a server cannot be used at present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    /// Connections to it are refused or close, or its address is not known.
    #[error("Redis is unreachable ({server}): {cause}")]
    Unreachable { server: String, cause: String },
    /// No connection was open in time.
    #[error("no connection to {server} within {}", milliseconds(*within))]
    NotConnected { server: String, within: Duration },
    /// It accepts connections, and has not replied in time.
    #[error("Redis server {server} did not reply within {}", milliseconds(*within))]
    Silent { server: String, within: Duration },
    /// It replies, and takes no calls yet.
    #[error("Redis server {server} is not ready: {cause}")]
    NotReady { server: String, cause: String },
    /// It replies, and accepts no writes.
    #[error("Redis server {server} is a read-only replica{}", of(primary.as_deref()))]
    Replica {
        server: String,
        /// Its primary, if it has named it.
        primary: Option<String>,
    },
}

impl Unusable {
    /// Returns why no connection could be opened to `server`.
    pub(super) fn of_failure(server: &impl Display, cause: &Cause) -> Self {
        if let Some(unusable) = cause.downcast_ref::<Self>() {
            return unusable.clone();
        }
        let unready = cause.downcast_ref().and_then(|error| Self::of_reply(server, error));
        unready.unwrap_or_else(|| Self::Unreachable {
            server: server.to_string(),
            cause: whole(&**cause),
        })
    }

    /// Returns why `server` accepts no calls, if its reply says so.
    pub(super) fn of_reply(server: &impl Display, error: &RedisError) -> Option<Self> {
        let server = server.to_string();
        if error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
            return Some(Self::Replica { server, primary: None });
        }
        is_demoted(error).then(|| Self::NotReady { server, cause: whole(error) })
    }

    /// Returns the replica at `server`, if the reply to `ROLE` is a replica's.
    pub(super) fn of_role(server: &Address, reply: &Value) -> Option<Self> {
        let Value::Array(parts) = reply else { return None };
        let text = |at: usize| parts.get(at).cloned().and_then(|part| from_redis_value(part).ok());
        let role: String = text(0)?;
        if role == "master" {
            return None;
        }
        let port = parts.get(2).cloned().and_then(|part| from_redis_value(part).ok());
        let primary = text(1).zip(port).map(|(host, port)| Address::Tcp { host, port }.to_string());
        Some(Self::Replica { server: server.to_string(), primary })
    }

    pub(super) fn is_replica(&self) -> bool {
        matches!(self, Self::Replica { .. })
    }

    /// Returns the cause, without the server.
    pub(super) fn cause(&self) -> String {
        match self {
            Self::Unreachable { cause, .. } | Self::NotReady { cause, .. } => cause.clone(),
            Self::NotConnected { within, .. } => {
                format!("no connection within {}", milliseconds(*within))
            }
            Self::Silent { within, .. } => {
                format!("did not reply within {}", milliseconds(*within))
            }
            Self::Replica { primary, .. } => {
                format!("it is a read-only replica{}", of(primary.as_deref()))
            }
        }
    }
}

/// Rounds to milliseconds, because the deadline is set a moment before the call.
fn milliseconds(duration: Duration) -> String {
    format!("{} ms", (duration + Duration::from_micros(500)).as_millis())
}

fn of(primary: Option<&str>) -> String {
    primary.map(|primary| format!(" of {primary}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(role: &str) -> Value {
        let text = |text: &str| Value::BulkString(text.into());
        Value::Array(vec![text(role), text("10.0.0.2"), Value::Int(6379), text("connected")])
    }

    #[test]
    fn replica_names_its_primary() {
        let server = Address::Tcp { host: "10.0.0.1".to_owned(), port: 6379 };
        assert_eq!(Unusable::of_role(&server, &reply("master")), None);
        let replica = Unusable::of_role(&server, &reply("slave")).expect("a replica");
        let text = "Redis server 10.0.0.1:6379 is a read-only replica of 10.0.0.2:6379";
        assert_eq!(replica.to_string(), text);
        let cause: Cause = replica.clone().into();
        assert_eq!(Unusable::of_failure(&"another", &cause), replica);
    }

    #[test]
    fn silent_and_unconnected_servers_differ() {
        let (server, within) = ("10.0.0.1:6379".to_owned(), Duration::from_micros(499_600));
        let silent = Unusable::Silent { server: server.clone(), within };
        assert_eq!(silent.to_string(), "Redis server 10.0.0.1:6379 did not reply within 500 ms");
        let cause: Cause = std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into();
        let refused = Unusable::of_failure(&server, &cause);
        let text = "Redis is unreachable (10.0.0.1:6379): connection refused";
        assert_eq!(refused.to_string(), text);
        assert_eq!(refused.cause(), "connection refused");
    }
}
