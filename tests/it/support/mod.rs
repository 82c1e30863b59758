//! Test kit: [`Cloakroom`] is the proxy, [`Upstream`] the site behind it, and [`Browser`] a client
//! with a cookie jar.
//!
//! The upstream runs the script in the request's `X-Script` header: it makes the listed calls of
//! the session API, then sends the given response. A test therefore says in one place what a page
//! does.

mod browser;
mod cloakroom;
mod curl;
pub mod duplex;
mod echo;
mod fake_clock;
mod fault_proxy;
mod fixation;
pub mod frames;
mod instance;
mod program;
pub mod raw;
mod redis;
mod script;
mod tools;
mod upstream;
mod webdriver;

pub use self::browser::{Browser, COOKIE, Page};
pub use self::cloakroom::{Cloakroom, KEY};
pub use self::curl::{CurlResponse, curl};
pub use self::echo::{Echo, Message, Socket, socket};
pub use self::fake_clock::FakeClock;
pub(crate) use self::fault_proxy::{Direction, End, Fault, FaultProxy};
pub use self::fixation::{Polls, fixation};
pub use self::instance::Instance;
pub use self::program::{Program, Serving, at_terminal};
pub(crate) use self::redis::{
    Authority, Cluster, Connection, Flaw, Identity, Migration, RedisServer, Reply, Sentinels,
    wait_until,
};
pub use self::script::{ApiResponse, Call, Script};
pub(crate) use self::tools::needs;
pub use self::upstream::{ANSWERED_AT, API, Seen, Upstream, call, elapsed};
pub use self::webdriver::{Driver, Window};

use std::time::Duration;

/// Timeout of every wait; nothing that the tests wait for should take longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `done` returns true, for conditions without a notification: a program listens or has
/// exited. Panics with `what` after [`PATIENCE`].
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(std::time::Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Starts logging in this process, once: at TRACE into a file in `TEST_LOG_DIRECTORY`, or not at
/// all if that variable is not set. `tests/run` searches the files for secrets after all tests.
pub fn init_log() {
    use std::sync::Once;
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        let Some(directory) = std::env::var_os("TEST_LOG_DIRECTORY") else { return };
        let path = std::path::Path::new(&directory).join(format!("it-{}.log", std::process::id()));
        let file = std::fs::File::create(path).unwrap();
        let lines = tracing_subscriber::fmt()
            .with_max_level(tracing::level_filters::LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(std::sync::Mutex::new(file));
        lines.init();
    });
}
