//! What the tests share: [`Cloakroom`] is the proxy, [`Upstream`] the site behind it, [`Browser`]
//! a client with a cookie jar.
//!
//! The upstream does what the request's `X-Script` says: it makes the calls of the session API that
//! are listed there, and answers as told. So a test says in one place what a page does.

mod browser;
mod cloakroom;
mod curl;
pub mod duplex;
mod echo;
mod fake_clock;
mod fault_proxy;
pub mod frames;
mod instance;
mod program;
pub mod raw;
mod redis;
mod script;
mod upstream;
mod webdriver;

pub use self::browser::{Browser, COOKIE, Page};
pub use self::cloakroom::{Cloakroom, KEY};
pub use self::curl::{Curled, curl};
pub use self::echo::{Echo, Message, Socket, socket};
pub use self::fake_clock::FakeClock;
pub(crate) use self::fault_proxy::{End, Fault, FaultProxy, Way};
pub use self::instance::Instance;
pub use self::program::{Program, Serving};
pub(crate) use self::redis::{
    Authority, Cluster, Connection, Flaw, Identity, Migration, RedisServer, Reply, Sentinels,
    wait_until,
};
pub use self::script::{Call, Called, Script};
pub use self::upstream::{ANSWERED_AT, API, Seen, Upstream, call, elapsed};
pub use self::webdriver::{Driver, Window};

use std::time::Duration;

/// Longer than anything that is waited for here should take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something is so that nothing announces: a program listens, or has ended.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(std::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Begins the log of this process, once: at TRACE into the file that `TEST_LOG_DIRECTORY` names, or
/// nowhere. What it holds is searched for secrets when all tests are over.
pub fn log() {
    use std::sync::Once;
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
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
