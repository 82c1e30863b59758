//! Sockets that listen: bound once, by one process, and shared by its workers.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use listenfd::ListenFd;
use socket2::{Domain, SockAddr, Socket, Type};

use super::Address;

/// Connections that the kernel holds until a worker accepts them.
const BACKLOG: i32 = 1024;

/// A socket that listens. Connections come to it from now on, and wait until it is served.
#[derive(Debug)]
pub struct BoundListener {
    socket: Socket,
    address: Address,
    file: Option<Arc<SocketFile>>,
}

/// Listens at `address`, which nobody else may: a port or a socket file that is in use is an error.
///
/// The file that a dead process left of its Unix socket is replaced; the new one gets `socket_mode`, where
/// that is given, before anyone can connect. A TCP address has no mode.
pub fn bind(address: &Address, socket_mode: Option<u32>) -> io::Result<BoundListener> {
    let bound = match address {
        Address::Tcp(address) => {
            let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
            // Only for connections of a former process that linger: Linux refuses a port on which another
            // listens. SO_REUSEPORT, which would let a second process take half of ours, stays off.
            socket.set_reuse_address(true)?;
            socket.bind(&(*address).into())?;
            listen(&socket)?;
            let local = socket.local_addr()?.as_socket().unwrap_or(*address);
            BoundListener { socket, address: Address::Tcp(local), file: None }
        }
        Address::Unix(path) => {
            remove_stale(path)?;
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&SockAddr::unix(path)?)?;
            let file = SocketFile::of(path)?;
            if let Some(mode) = socket_mode {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            }
            listen(&socket)?;
            BoundListener { socket, address: address.clone(), file: Some(Arc::new(file)) }
        }
    };
    Ok(bound)
}

/// Sockets on which whoever started this process listens already, as systemd does for it
/// (`sd_listen_fds(3)`). They outlive it: what comes between two processes waits.
#[derive(Debug, Default)]
pub struct Inherited(Vec<BoundListener>);

impl Inherited {
    /// Those of this process. Asked again, there are none.
    ///
    /// # Errors
    /// One of them is no stream socket that listens.
    pub fn of_process() -> io::Result<Self> {
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

    /// Where they are.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.0.iter().map(BoundListener::local_address)
    }

    /// The one at `address`.
    pub fn take(&mut self, address: &Address) -> Option<BoundListener> {
        let index = self.0.iter().position(|listener| listener.address == *address)?;
        Some(self.0.swap_remove(index))
    }
}

fn listen(socket: &Socket) -> io::Result<()> {
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)
}

impl BoundListener {
    /// Its file, where it has one, is not ours to remove.
    fn inherited(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        let address = match (local.as_socket(), local.as_pathname()) {
            (Some(address), _) => Address::Tcp(address),
            (None, Some(path)) => Address::Unix(path.to_owned()),
            (None, None) => return Err(io::ErrorKind::AddrNotAvailable.into()),
        };
        Ok(Self { socket, address, file: None })
    }

    /// The same socket for another worker. Each connection goes to one of them.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            address: self.address.clone(),
            file: self.file.clone(),
        })
    }

    /// Where it listens, with the port that the system chose.
    pub fn local_address(&self) -> &Address {
        &self.address
    }

    pub(super) fn into_parts(self) -> (Socket, Address, Option<Arc<SocketFile>>) {
        (self.socket, self.address, self.file)
    }
}

/// The file of a Unix socket, removed with the last listener that has it, if it still is ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
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
            tracing::warn!(%error, path = %self.path.display(), "a socket file remains");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes a socket file on which nobody listens. Whatever else is there is left, and is an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} exists and is no socket", path.display()),
            ));
        }
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        // An answer, or a full backlog, which is somebody's too.
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another process listens on {}", path.display()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::fs::PermissionsExt as _;

    use super::{Address, bind};

    #[test]
    fn a_port_is_ours_alone() {
        let listener = bind(&"127.0.0.1:0".parse().unwrap(), None).unwrap();
        let taken = bind(listener.local_address(), None).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        let sibling = listener.try_clone().unwrap();
        assert_eq!(sibling.local_address(), listener.local_address());
    }

    #[test]
    fn a_socket_file_is_ours_alone_and_goes_with_its_last_listener() {
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
    fn a_stale_socket_file_is_replaced_but_no_other_file() {
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
