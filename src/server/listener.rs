//! Listening sockets: bound once by the process, and shared by its workers.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use listenfd::ListenFd;
use socket2::{Domain, SockAddr, Socket, Type};

use super::Address;

/// Connections that the kernel queues until a worker accepts them.
pub(super) const BACKLOG: u16 = 1024;

/// A listening socket. Connections wait in its backlog until it is served.
#[derive(Debug)]
pub struct BoundListener {
    socket: Socket,
    address: Address,
    origin: Origin,
}

/// Where a listening socket comes from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// This process has bound it. A Unix socket has a file.
    Bound(Option<Arc<SocketFile>>),
    /// The parent process has passed it in, and keeps it for the next process. A socket file is the parent's.
    Inherited,
}

/// Listens at `address`.
///
/// The stale socket file of a process that has exited is replaced. A Unix socket gets `socket_mode`, if there is one,
/// before anyone can connect.
///
/// # Errors
/// The port or the socket file is in use, or the system refuses.
pub fn bind(address: &Address, socket_mode: Option<u32>) -> io::Result<BoundListener> {
    let bound = match address {
        Address::Tcp(address) => {
            let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
            // For connections of a former process in TIME_WAIT. Linux still refuses a port on which another socket
            // listens. SO_REUSEPORT stays off: it would give half of the connections to a second process.
            socket.set_reuse_address(true)?;
            socket.bind(&(*address).into())?;
            listen(&socket)?;
            let local = socket.local_addr()?.as_socket().unwrap_or(*address);
            BoundListener { socket, address: Address::Tcp(local), origin: Origin::Bound(None) }
        }
        Address::Unix(path) => {
            remove_stale(path)?;
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&SockAddr::unix(path)?)?;
            // Before the steps that may fail: dropping it removes the file.
            let file = SocketFile::of(path)?;
            if let Some(mode) = socket_mode {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            }
            listen(&socket)?;
            let origin = Origin::Bound(Some(Arc::new(file)));
            BoundListener { socket, address: address.clone(), origin }
        }
    };
    Ok(bound)
}

/// Listening sockets passed in by the parent process, e.g. systemd (`sd_listen_fds(3)`). They outlive this process, so
/// connections wait while it restarts.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<BoundListener>);

impl Inherited {
    /// Takes the sockets passed to this process. A second call returns none.
    ///
    /// # Errors
    /// One of them is not a listening stream socket.
    pub(crate) fn of_process() -> io::Result<Self> {
        let mut given = ListenFd::from_env();
        let mut listeners = Vec::new();
        for index in 0..given.len() {
            let socket: Socket = match given.take_tcp_listener(index) {
                Ok(None) => continue,
                Ok(Some(listener)) => listener.into(),
                Err(_no_tcp) => match given.take_unix_listener(index)? {
                    None => continue,
                    Some(listener) => listener.into(),
                },
            };
            listeners.push(BoundListener::inherited(socket)?);
        }
        Ok(Self(listeners))
    }

    /// Returns the addresses of the sockets that were not taken.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.0.iter().map(BoundListener::local_address)
    }

    /// Takes the socket that listens at `address`.
    pub(crate) fn take(&mut self, address: &Address) -> Option<BoundListener> {
        let index = self.0.iter().position(|listener| listener.address == *address)?;
        Some(self.0.swap_remove(index))
    }
}

fn listen(socket: &Socket) -> io::Result<()> {
    socket.listen(BACKLOG.into())?;
    socket.set_nonblocking(true)
}

impl BoundListener {
    /// Wraps an inherited socket.
    pub(super) fn inherited(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        let address = match (local.as_socket(), local.as_pathname()) {
            (Some(address), _) => Address::Tcp(address),
            (None, Some(path)) => Address::Unix(path.to_owned()),
            (None, None) => return Err(io::ErrorKind::AddrNotAvailable.into()),
        };
        Ok(Self { socket, address, origin: Origin::Inherited })
    }

    /// Returns the same socket for another worker. Each connection goes to one of them.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            address: self.address.clone(),
            origin: self.origin.clone(),
        })
    }

    /// Returns the address, with the port that the system chose for port 0.
    pub fn local_address(&self) -> &Address {
        &self.address
    }

    pub(super) fn into_parts(self) -> (Socket, Address, Origin) {
        (self.socket, self.address, self.origin)
    }
}

/// The file of a Unix socket. It is removed with the last clone of its listener, unless another process has replaced it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: FileIdentity,
}

#[derive(Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "failed to remove the socket file");
        }
    }
}

fn identity(path: &Path) -> io::Result<FileIdentity> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok(FileIdentity { device: metadata.dev(), inode: metadata.ino() })
}

/// Removes a socket file on which no process listens. Any other file is left in place and is an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} exists and is not a socket", path.display()),
            ));
        }
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        // Connected, or the backlog is full: either way, a process listens.
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another process is listening on {}", path.display()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::fs::PermissionsExt as _;

    use super::{Address, bind};

    #[test]
    fn bound_port_is_exclusive() {
        let listener = bind(&"127.0.0.1:0".parse().unwrap(), None).unwrap();
        let taken = bind(listener.local_address(), None).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        let sibling = listener.try_clone().unwrap();
        assert_eq!(sibling.local_address(), listener.local_address());
    }

    #[test]
    fn socket_file_is_removed_with_its_last_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let address = Address::Unix(path.clone());
        let listener = bind(&address, Some(0o600)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind(&address, None).unwrap_err().kind(), ErrorKind::AddrInUse);
        let sibling = listener.try_clone().unwrap();
        drop(listener);
        assert!(path.exists());
        drop(sibling);
        assert!(!path.exists());
    }

    #[test]
    fn only_stale_socket_files_are_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = bind(&Address::Unix(path.clone()), None).unwrap();
        drop(listener);
        std::fs::write(&path, "mine").unwrap();
        let error = bind(&Address::Unix(path.clone()), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
