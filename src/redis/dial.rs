//! Dialling: address, TLS, log-in, and the check of a server's role.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Duration;

use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo,
    ProtocolVersion, RedisConnectionInfo, TlsCertificates, Value, cmd,
};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::Cause;
use super::config::{Address, Config, Password, Tls};
use super::replicate::Replicas;
use super::unusable::Unusable;

/// Deadline for one server: TCP, TLS, log-in and the check of its role.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Deadline for a plain connection that shows why another one was not open in time.
const ACCEPT_TIMEOUT: Duration = Duration::from_millis(200);

/// Number of commands that may wait to be written.
const QUEUE: usize = 1024;

/// Time after which a silent path is probed, and given up after the same time again.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Opens connections. Passwords and certificates are read for each.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    user: Option<String>,
    password: Option<Password>,
    sentinel_password: Option<Password>,
    database: u32,
    tls: Option<Tls>,
    replicas: Arc<Replicas>,
}

/// The role that a server must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It accepts writes.
    Primary,
    /// A node of a cluster, whatever its role: a replica redirects commands, and reports the slot map.
    Node,
    /// It knows the primary.
    Sentinel,
}

/// A password or a certificate cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unreadable(String);

impl Dialer {
    /// Creates a dialler that records in `replicas` what primaries report.
    pub(crate) fn new(config: &Config, replicas: Arc<Replicas>) -> Self {
        Self {
            user: config.user.clone(),
            password: config.password.clone(),
            sentinel_password: config.sentinel_password.clone(),
            database: config.database,
            tls: config.tls.clone(),
            replicas,
        }
    }

    /// Opens a connection to a server of this role, and logs in. Push messages, and the end of the connection, go to
    /// `pushes`.
    pub(crate) async fn dial(
        &self,
        address: &Address,
        role: Role,
        pushes: impl AsyncPushSender,
        deadline: Instant,
    ) -> Result<MultiplexedConnection, Cause> {
        let started = Instant::now();
        let deadline = deadline.min(started + CONNECT_TIMEOUT);
        let client = self.client(address, role)?;
        let config = AsyncConnectionConfig::new()
            // Every call has a deadline of its own.
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE)
            .set_push_sender(pushes);
        let connect = async {
            let connect = client.get_multiplexed_async_connection_with_config(&config);
            let mut connection = connect.await?;
            match role {
                Role::Primary => self.check_primary(&mut connection, address).await?,
                Role::Node => self.check_node(&mut connection, address).await?,
                Role::Sentinel => {}
            }
            Ok(connection)
        };
        timeout_at(deadline, connect).await.unwrap_or_else(|_elapsed| {
            let (server, within) = (address.to_string(), deadline.duration_since(started));
            Err(Unusable::NotConnected { server, within }.into())
        })
    }

    /// Returns whether a server accepts connections: one that is stopped does so and does not reply.
    pub(crate) async fn accepts(&self, address: &Address) -> bool {
        let connected = async {
            match address {
                Address::Tcp { host, port } => {
                    TcpStream::connect((host.as_str(), *port)).await.is_ok()
                }
                Address::Unix(path) => UnixStream::connect(path).await.is_ok(),
            }
        };
        timeout(ACCEPT_TIMEOUT, connected).await.unwrap_or(false)
    }

    /// Creates a client for each connection, because passwords and certificates may have changed.
    fn client(&self, address: &Address, role: Role) -> Result<Client, Cause> {
        // RESP3 reports the end of a connection at once.
        let settings = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_skip_set_lib_name();
        let settings = match role {
            Role::Primary | Role::Node => self.log_in(settings.set_db(i64::from(self.database)))?,
            Role::Sentinel => with_password(settings, self.sentinel_password.as_ref())?,
        };
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE));
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(KEEPALIVE * 2);
        let info = self.connection_address(address).into_connection_info()?;
        let info = info.set_redis_settings(settings).set_tcp_settings(tcp);
        Ok(match &self.tls {
            None => Client::open(info)?,
            Some(tls) => {
                set_crypto_provider();
                Client::build_with_tls(info, certificates(tls)?)?
            }
        })
    }

    fn connection_address(&self, address: &Address) -> ConnectionAddr {
        match address {
            Address::Unix(path) => ConnectionAddr::Unix(path.clone()),
            Address::Tcp { host, port } if self.tls.is_some() => ConnectionAddr::TcpTls {
                host: host.clone(),
                port: *port,
                insecure: false,
                tls_params: None,
            },
            Address::Tcp { host, port } => ConnectionAddr::Tcp(host.clone(), *port),
        }
    }

    /// Checks the role. A server whose access list refuses `ROLE` counts as primary until it refuses a write.
    async fn check_primary(
        &self,
        connection: &mut MultiplexedConnection,
        address: &Address,
    ) -> Result<(), Cause> {
        check_loaded(connection).await?;
        match cmd("ROLE").query_async::<Value>(connection).await {
            Ok(answer) => match Unusable::of_role(address, &answer) {
                Some(replica) => return Err(replica.into()),
                None => self.replicas.learn(&answer),
            },
            Err(error) if error.is_io_error() => return Err(error.into()),
            Err(_) => {}
        }
        Ok(())
    }

    /// Records the replicas of a primary. A node may have any role.
    async fn check_node(
        &self,
        connection: &mut MultiplexedConnection,
        address: &Address,
    ) -> Result<(), Cause> {
        check_loaded(connection).await?;
        match cmd("ROLE").query_async::<Value>(connection).await {
            Ok(answer) => self.replicas.learn_of_node(address, &answer),
            Err(error) if error.is_io_error() => return Err(error.into()),
            Err(_) => {}
        }
        Ok(())
    }

    fn log_in(&self, settings: RedisConnectionInfo) -> Result<RedisConnectionInfo, Cause> {
        let settings = with_password(settings, self.password.as_ref())?;
        Ok(match &self.user {
            Some(user) => settings.set_username(user),
            None => settings,
        })
    }
}

fn with_password(
    settings: RedisConnectionInfo,
    password: Option<&Password>,
) -> Result<RedisConnectionInfo, Cause> {
    Ok(match password {
        Some(password) => settings.set_password(password.read().map_err(Unreadable)?.reveal()),
        None => settings,
    })
}

/// Checks that a server has loaded its data; until then it refuses the `PING`.
async fn check_loaded(connection: &mut MultiplexedConnection) -> Result<(), Cause> {
    let _: Value = cmd("PING").query_async(connection).await?;
    Ok(())
}

fn certificates(tls: &Tls) -> Result<TlsCertificates, Cause> {
    let client_tls = match &tls.client {
        None => None,
        Some(client) => Some(ClientTlsConfig {
            client_cert: read(&client.certificate)?,
            client_key: read(&client.key)?,
        }),
    };
    let root_cert = tls.ca.as_deref().map(read).transpose()?;
    Ok(TlsCertificates { client_tls, root_cert })
}

fn read(path: &Path) -> Result<Vec<u8>, Cause> {
    let unreadable =
        |error: io::Error| Unreadable(format!("{} cannot be read: {error}", path.display()));
    Ok(fs::read(path).map_err(unreadable)?)
}

/// Sets the cryptography provider of rustls, once in a process.
fn set_crypto_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // A provider that is set already stays.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
}
