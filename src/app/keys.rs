//! Session keys: logged at startup and on reload, and compared with those of the other instances of a
//! shared store.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::admin;
use crate::server::Tasks;
use crate::session::key_ring::Fingerprint;
use crate::sessions::{KeyCheck, Sessions, Shared, lack};
use crate::store::Store;

/// Delay before another attempt if the store is unavailable.
const RETRY: Duration = Duration::from_secs(10);

/// Interval between readings of the keys that other instances have recorded in the meantime.
const READ_INTERVAL: Duration = Duration::from_secs(10);

/// The result of a comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Compared,
    /// The store cannot be used for comparisons, now or after a reload.
    Unsupported,
}

/// Logs the fingerprints of each key ring, and checks whether the other instances have its first key,
/// until the drain.
pub(super) async fn watch_keys(
    mut rings: watch::Receiver<Arc<Shared>>,
    store: Option<Arc<dyn Store>>,
    admin: Arc<admin::State>,
    tasks: Tasks,
) {
    let mut compares = true;
    let mut logged = Vec::new();
    loop {
        let shared = Arc::clone(&rings.borrow_and_update());
        let fingerprints: Vec<_> = shared.ring.fingerprints().collect();
        if fingerprints != logged {
            log_keys(&shared);
            logged = fingerprints;
        }
        let sessions = Sessions::new(store.clone(), shared);
        let checked = async {
            if compares {
                compares = check(&sessions, &admin).await == Outcome::Compared;
            }
            // Until the next reload or the drain.
            if compares {
                read_recorded(&sessions, &admin).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = tasks.draining() => return,
            changed = rings.changed() => if changed.is_err() { return },
            () = checked => {}
        }
    }
}

/// Keeps what other instances record, for as long as the store has it.
async fn read_recorded(sessions: &Sessions, admin: &admin::State) {
    let mut last = Vec::new();
    loop {
        sleep(READ_INTERVAL).await;
        match sessions.recorded_keys().await {
            Ok(Some(keys)) => {
                if keys != last {
                    warn_if_missing(sessions.shared(), &keys);
                    last.clone_from(&keys);
                }
                admin.keys_recorded(keys, sessions.shared().clock.now());
            }
            Ok(None) => return,
            Err(error) => debug!(%error, "failed to read the session keys of other instances"),
        }
    }
}

fn warn_if_missing(shared: &Shared, recorded: &[Fingerprint]) {
    let first = shared.ring.fingerprints().next();
    let Some(key) = first.filter(|first| lack(recorded, *first)) else { return };
    let others = recorded.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    warn!(
        %key,
        others,
        "first session key is missing from another instance, which logs out visitors of this one; give all \
         instances the same session.keys"
    );
}

fn log_keys(shared: &Shared) {
    let mut fingerprints = shared.ring.fingerprints().map(|one| one.to_string());
    let first = fingerprints.next().unwrap_or_default();
    let older = fingerprints.collect::<Vec<_>>().join(", ");
    info!(first, older, "session keys, by fingerprint");
}

/// Compares the keys, and retries until the store responds.
async fn check(sessions: &Sessions, admin: &admin::State) -> Outcome {
    loop {
        let compared = sessions.check_keys().await;
        if let Ok(compared) = &compared {
            admin.keys_compared(compared.clone(), sessions.shared().clock.now());
        }
        match compared.map(|compared| compared.check) {
            Ok(KeyCheck::Known) => return Outcome::Compared,
            Ok(KeyCheck::New(fingerprint)) => {
                warn!(
                    key = %fingerprint,
                    "first session key is new to other instances: those without it log visitors \
                     out; put a new key last in session.keys everywhere before it comes first"
                );
                return Outcome::Compared;
            }
            Ok(KeyCheck::NotKept) => return Outcome::Unsupported,
            Ok(KeyCheck::Denied(cause)) => {
                warn!(
                    cause,
                    "cannot compare session keys between instances: permission denied by the store"
                );
                return Outcome::Unsupported;
            }
            Err(error) => debug!(%error, "failed to compare session keys; will retry"),
        }
        sleep(RETRY).await;
    }
}
