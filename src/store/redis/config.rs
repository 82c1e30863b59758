//! Which server, and how it is spoken to.

use redis::io::tcp::TcpSettings;
use redis::{Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};

use crate::store::config::RedisUrl;

/// The server cannot be spoken to as it is written. It does not repeat what is written, which may
/// hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Redis server's address is not one that can be dialled")]
pub struct InvalidServer;

/// A client of the server at `url`, which is not spoken to yet.
pub(super) fn client(url: &RedisUrl) -> Result<Client, InvalidServer> {
    // RESP3, because then the client tells when a connection is lost.
    let mut settings = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_skip_set_lib_name()
        .set_db(i64::from(url.database));
    if let Some(user) = &url.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &url.password {
        settings = settings.set_password(password.reveal());
    }
    let address = ConnectionAddr::Tcp(url.host.clone(), url.port);
    let info = address.into_connection_info().map_err(unsaid)?;
    let tcp = TcpSettings::default().set_nodelay(true);
    Client::open(info.set_redis_settings(settings).set_tcp_settings(tcp)).map_err(unsaid)
}

fn unsaid(_: redis::RedisError) -> InvalidServer {
    InvalidServer
}
