//! The file descriptors of the process. Some are reserved for what must not fail when they run out: the store, the
//! session API and the admin listener.
//!
//! The system assigns the lowest free number, so the number of a new descriptor shows how many are in use.

use std::fs;
use std::os::fd::{AsFd, AsRawFd as _};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Maximum size of each reserve.
const MAX_RESERVE: u64 = 1024;

/// Use of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A client connection. Its requests may need one to an upstream as well.
    Client,
    /// An upstream connection.
    Upstream,
}

/// Raises the soft limit to the hard limit. Returns the limit that holds.
pub(crate) fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    if current != maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        return maximum.unwrap_or(u64::MAX);
    }
    current.unwrap_or(u64::MAX)
}

/// Returns the limit on the descriptors of this process.
pub(crate) fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Returns the number of open descriptors of this process; `None` on systems without `/proc`.
pub(crate) fn open() -> Option<u64> {
    const DIRECTORY: &str = "/proc/self/fd";
    // Since Linux 6.2 the size of the directory is the number of its entries; before, it is 0. Listing 100,000 of them
    // takes tens of milliseconds.
    let size = fs::metadata(DIRECTORY).ok()?.len();
    if size > 0 {
        return Some(size);
    }
    // Without the descriptor that lists them.
    u64::try_from(fs::read_dir(DIRECTORY).ok()?.count().saturating_sub(1)).ok()
}

/// Returns the number of descriptors up to which client connections are accepted, of a limit.
pub(crate) fn for_clients(limit: u64) -> u64 {
    bound(Use::Client, limit)
}

/// Returns whether a descriptor that was just opened leaves too few for other uses.
pub(crate) fn are_scarce(opened: impl AsFd, wanted: Use) -> bool {
    let number = u64::try_from(opened.as_fd().as_raw_fd()).unwrap_or(0);
    number >= bound(wanted, limit())
}

/// Returns whether the next descriptor to be opened will leave too few for other uses.
pub(crate) fn will_be_scarce(open: impl AsFd, wanted: Use) -> bool {
    // The duplicate takes the lowest free number, and is closed at once.
    fcntl_dupfd_cloexec(open, 0).map_or(true, |next| are_scarce(next, wanted))
}

/// Returns the first number that is reserved for other uses. Clients may use the first half, upstreams one more quarter,
/// and the last quarter is for all else. With a high limit, the reserves stay at [`MAX_RESERVE`].
fn bound(wanted: Use, limit: u64) -> u64 {
    let reserve = (limit / 4).min(MAX_RESERVE);
    match wanted {
        Use::Client => limit - 2 * reserve,
        Use::Upstream => limit - reserve,
    }
}

#[cfg(test)]
mod tests {
    use super::{Use, are_scarce, bound, will_be_scarce};

    #[test]
    fn last_descriptors_are_reserved() {
        for (limit, client, upstream) in
            [(256, 128, 192), (1024, 512, 768), (20_000, 17_952, 18_976), (0, 0, 0)]
        {
            assert_eq!(
                (bound(Use::Client, limit), bound(Use::Upstream, limit)),
                (client, upstream)
            );
        }
    }

    #[test]
    fn first_descriptors_are_not_scarce() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(!are_scarce(&file, Use::Client));
        assert!(!will_be_scarce(&file, Use::Client));
    }
}
