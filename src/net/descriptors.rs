//! The file descriptors of the process, and which of them are kept for what must go on when they run out:
//! the store, the session API, and the admin listener.
//!
//! The system gives out the lowest number that is free, so a number tells how many are taken.

use std::os::fd::{AsFd, AsRawFd as _};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most that are kept back from clients, and from upstreams.
const MOST_KEPT: u64 = 1024;

/// For what a descriptor is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A client. It may need an upstream too.
    Client,
    /// An upstream.
    Upstream,
}

/// Raises the limit as far as this process may; answers how many descriptors it can have.
pub(crate) fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    if current != maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        return maximum.unwrap_or(u64::MAX);
    }
    current.unwrap_or(u64::MAX)
}

/// Returns how many descriptors this process can have.
pub(crate) fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Whether a descriptor that was just opened leaves too few to others.
pub(crate) fn are_scarce(opened: impl AsFd, wanted: Use) -> bool {
    let number = u64::try_from(opened.as_fd().as_raw_fd()).unwrap_or(0);
    number >= bound(wanted, limit())
}

/// The same of the next one that will be opened.
pub(crate) fn will_be_scarce(open: impl AsFd, wanted: Use) -> bool {
    fcntl_dupfd_cloexec(open, 0).map_or(true, |next| are_scarce(next, wanted))
}

/// From which number on they are kept for others: of four quarters, two are for clients at least, one for
/// upstreams, and one for what remains.
fn bound(wanted: Use, limit: u64) -> u64 {
    let kept = (limit / 4).min(MOST_KEPT);
    match wanted {
        Use::Client => limit - 2 * kept,
        Use::Upstream => limit - kept,
    }
}

#[cfg(test)]
mod tests {
    use super::{Use, are_scarce, bound, will_be_scarce};

    #[test]
    fn the_last_are_not_for_clients() {
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
    fn a_first_few_are_not_scarce() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(!are_scarce(&file, Use::Client));
        assert!(!will_be_scarce(&file, Use::Client));
    }
}
