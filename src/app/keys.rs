//! The session keys: shown at the start and at each reload, and compared with what the other
//! instances of a shared store have.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::server::Tasks;
use crate::sessions::{KeyCheck, Sessions, Shared};
use crate::store::Store;

/// Between two attempts to reach a store that does not answer.
const RETRY: Duration = Duration::from_secs(10);

/// What became of a check.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Compared,
    /// There is nothing to compare with, now or after a reload.
    Off,
}

/// Logs the fingerprints of each key ring, and checks whether the other instances know the first
/// key, until the drain.
pub(super) async fn watch_keys(
    mut rings: watch::Receiver<Arc<Shared>>,
    store: Option<Arc<dyn Store>>,
    tasks: Tasks,
) {
    let mut compares = true;
    let mut shown = Vec::new();
    loop {
        let shared = Arc::clone(&rings.borrow_and_update());
        let fingerprints: Vec<_> = shared.ring.fingerprints().collect();
        if fingerprints != shown {
            show(&shared);
            shown = fingerprints;
        }
        let sessions = Sessions::new(store.clone(), shared);
        let checked = async {
            if compares {
                compares = check(&sessions).await == Outcome::Compared;
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

fn show(shared: &Shared) {
    let mut fingerprints = shared.ring.fingerprints().map(|one| one.to_string());
    let first = fingerprints.next().unwrap_or_default();
    let older = fingerprints.collect::<Vec<_>>().join(", ");
    info!(first, older, "session keys, by fingerprint");
}

/// Asks until the store answers.
async fn check(sessions: &Sessions) -> Outcome {
    loop {
        match sessions.check_keys().await {
            Ok(KeyCheck::Known) => return Outcome::Compared,
            Ok(KeyCheck::New(fingerprint)) => {
                warn!(
                    key = %fingerprint,
                    "first session key is new to other instances: those without it log visitors \
                     out; put a new key last in session.keys everywhere before it comes first"
                );
                return Outcome::Compared;
            }
            Ok(KeyCheck::NotKept) => return Outcome::Off,
            Ok(KeyCheck::Denied(cause)) => {
                warn!(
                    cause,
                    "session keys are not compared between instances: the store refuses it"
                );
                return Outcome::Off;
            }
            Err(error) => debug!(%error, "session keys not compared; will retry"),
        }
        sleep(RETRY).await;
    }
}
