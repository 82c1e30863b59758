//! Which server, and how it is spoken to.

use std::time::Duration;

use redis::{Client, ConnectionAddr, ConnectionInfo, ProtocolVersion, io::tcp::TcpSettings};

/// What the store needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server.
    pub server: Server,
    /// What the names of all its keys begin with.
    pub prefix: String,
    /// How long a call may take, connecting included.
    pub timeout: Duration,
}

/// One server: where it is, and as whom to log in. `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct Server(ConnectionInfo);

/// Why a URL names no server. It does not repeat the URL, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// The scheme is another.
    #[error("the URL of a Redis server begins with redis://")]
    Scheme,
    /// The rest cannot be read.
    #[error("a Redis server is written redis://[user[:password]@]host[:port][/database]")]
    Form,
}

impl Server {
    /// Parses `redis://[user[:password]@]host[:port][/database]`.
    pub fn parse(url: &str) -> Result<Self, ServerError> {
        if !url.starts_with("redis://") {
            return Err(ServerError::Scheme);
        }
        let info: ConnectionInfo = url.parse().map_err(without_url)?;
        // A `?` chooses among protocols, which is not for the configuration to do.
        if !matches!(info.addr(), ConnectionAddr::Tcp(..)) || url.contains(['?', '#']) {
            return Err(ServerError::Form);
        }
        // RESP3, because then the client tells when a connection is lost.
        let settings = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3)
            .set_skip_set_lib_name();
        let tcp = TcpSettings::default().set_nodelay(true);
        Ok(Self(
            info.set_redis_settings(settings).set_tcp_settings(tcp),
        ))
    }

    pub(super) fn client(&self) -> Result<Client, ServerError> {
        Client::open(self.0.clone()).map_err(without_url)
    }
}

fn without_url(_: redis::RedisError) -> ServerError {
    ServerError::Form
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_shows_no_password() {
        let server = Server::parse("redis://ada:hunter2@127.0.0.1:6380/3").expect("parsed");
        assert!(!format!("{server:?}").contains("hunter2"));
        let info = server.0;
        assert_eq!(info.redis_settings().password(), Some("hunter2"));
        assert_eq!(info.redis_settings().db(), 3);
        assert_eq!(
            *info.addr(),
            ConnectionAddr::Tcp("127.0.0.1".to_owned(), 6380)
        );
    }

    #[test]
    fn other_urls_are_refused_and_not_repeated() {
        for (url, error) in [
            ("rediss://:hunter2@h", ServerError::Scheme),
            ("unix:///run/redis.sock", ServerError::Scheme),
            ("redis+sentinel://h", ServerError::Scheme),
            ("redis://:hunter2@h:99999", ServerError::Form),
            ("redis://:hunter2@h/x", ServerError::Form),
            ("redis://h?protocol=resp2", ServerError::Form),
            ("redis://", ServerError::Form),
        ] {
            let refused = Server::parse(url).expect_err(url);
            assert_eq!(refused, error, "{url}");
            assert!(!refused.to_string().contains("hunter2"));
        }
    }
}
