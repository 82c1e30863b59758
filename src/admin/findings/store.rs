//! Problems of the session store.

use std::time::Instant;

use super::{Facts, Finding};
use crate::store::health::{Access, Report};

/// The failure of reads, or of writes.
#[derive(Debug)]
struct Failure<'a> {
    since: Instant,
    cause: &'a str,
}

impl<'a> Failure<'a> {
    fn of(access: &'a Access) -> Option<Self> {
        match access {
            Access::Fails { since, cause, .. } => Some(Self { since: *since, cause }),
            Access::NotUsed | Access::Works { .. } => None,
        }
    }

    /// Returns whether both have one cause. A server that does not reply exceeds the limit of a call or that of
    /// connecting, in turns.
    fn is_same_as(&self, other: &Self) -> bool {
        let fault = |cause: &'a str| cause.split_once(" within ").map_or(cause, |(fault, _)| fault);
        fault(self.cause) == fault(other.cause)
    }
}

impl Facts<'_> {
    pub(super) fn store(&self, found: &mut Vec<Finding>) {
        let Report { read, write } = self.store.1;
        match (Failure::of(read), Failure::of(write)) {
            (Some(read), Some(write)) if read.is_same_as(&write) => {
                let both = Failure { since: read.since.min(write.since), ..read };
                found.push(self.of_store(
                    "store_unreadable",
                    "can be neither read nor written",
                    &both,
                ));
            }
            (read, write) => {
                let unreadable = |read| self.of_store("store_unreadable", "cannot be read", &read);
                let refuses =
                    |write| self.of_store("store_refuses_writes", "cannot be written", &write);
                found.extend(read.map(unreadable).into_iter().chain(write.map(refuses)));
            }
        }
    }

    fn of_store(&self, problem: &'static str, can: &str, failure: &Failure<'_>) -> Finding {
        let Failure { since, cause } = failure;
        let detail = format!("{cause}; the session store ({}) {can}", self.store.0);
        Finding::new(problem, detail, Some(self.time(*since)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::Scene;
    use super::*;

    fn fails(since: Instant, cause: &str) -> Access {
        Access::Fails { age: Duration::ZERO, since, cause: cause.to_owned() }
    }

    /// Returns the problems with their details.
    fn found(scene: &Scene) -> Vec<(&'static str, String)> {
        scene.find().into_iter().map(|found| (found.problem, found.detail)).collect()
    }

    #[test]
    fn a_store_that_fails_is_named_with_its_cause() {
        let (mut scene, now) = (Scene::new(), Instant::now());
        assert_eq!(found(&scene), []);
        scene.store.write = fails(now, "OOM");
        let detail = "OOM; the session store (Redis) cannot be written".to_owned();
        let refuses = ("store_refuses_writes", detail);
        assert_eq!(found(&scene), std::slice::from_ref(&refuses));
        scene.store.read = fails(now, "a closed connection");
        let detail = "a closed connection; the session store (Redis) cannot be read".to_owned();
        assert_eq!(found(&scene), [("store_unreadable", detail), refuses]);
    }

    #[test]
    fn one_fault_is_one_problem() {
        let (mut scene, now) = (Scene::new(), Instant::now());
        let earlier = now.checked_sub(Duration::from_secs(1)).expect("after the epoch");
        for (read, write) in [(earlier, now), (now, earlier)] {
            scene.store.read = fails(read, "it did not reply within 500 ms");
            for cause in ["it did not reply within 500 ms", "it did not reply within 1000 ms"] {
                scene.store.write = fails(write, cause);
                let detail = "it did not reply within 500 ms; the session store (Redis) can be neither read nor \
                              written";
                assert_eq!(found(&scene), [("store_unreadable", detail.to_owned())]);
                let since = scene.find().remove(0).since.map(|since| since.0);
                assert_eq!(since, Some(scene.time(earlier)), "the first failure");
            }
        }
    }
}
