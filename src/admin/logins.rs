//! Log-ins at the page: entries in this process, each named by a random id in a cookie.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::random;
use crate::secret::Secret;
use crate::time::Timestamp;

/// What an operator may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// See all pages.
    Read,
    /// See values too, and end sessions.
    Full,
}

/// The log-ins of all operators: at most [`Logins::MAX`].
#[derive(Debug, Default)]
pub(super) struct Logins(Mutex<Vec<Login>>);

/// A log-in.
#[derive(Clone, Debug)]
pub(super) struct Login {
    /// The value of its cookie.
    pub(super) id: Secret,
    pub(super) right: Right,
    /// The value of a field in every form, which pages of other origins cannot know.
    pub(super) form_token: Secret,
    pub(super) until: Timestamp,
}

impl Login {
    /// How long one lasts.
    pub(super) const LIFETIME: Duration = Duration::from_mins(15);

    fn is_valid(&self, now: Timestamp) -> bool {
        // The upper bound is for a clock that was set back: no log-in may last longer.
        now < self.until && self.until <= now + Self::LIFETIME
    }
}

impl Logins {
    /// Operators are few. The log-in that ends first makes room for one more.
    const MAX: usize = 100;

    /// Creates a log-in.
    pub(super) fn create(&self, right: Right, now: Timestamp) -> Login {
        let [id, form_token] = [random_text(), random_text()];
        let login = Login { id, right, form_token, until: now + Login::LIFETIME };
        let mut logins = self.logins();
        logins.retain(|login| login.is_valid(now));
        if logins.len() >= Self::MAX {
            logins.remove(0);
        }
        logins.push(login.clone());
        login
    }

    /// Finds the log-in of a cookie. Several may have the name, of which other hosts of the domain can set some.
    pub(super) fn find(&self, ids: &[Secret], now: Timestamp) -> Option<Login> {
        let logins = self.logins();
        let mut valid = logins.iter().filter(|login| login.is_valid(now));
        valid.find(|login| ids.contains(&login.id)).cloned()
    }

    pub(super) fn remove(&self, id: &Secret) {
        self.logins().retain(|login| login.id != *id);
    }

    /// Ends all log-ins, because the tokens have changed.
    pub(super) fn clear(&self) {
        self.logins().clear();
    }

    fn logins(&self) -> MutexGuard<'_, Vec<Login>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns 32 random bytes as text.
pub(super) fn random_text() -> Secret {
    Secret::new(URL_SAFE_NO_PAD.encode(random::bytes::<32>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_lasts_fifteen_minutes() {
        let logins = Logins::default();
        let start = Timestamp::from_millis(10_000_000);
        let login = logins.create(Right::Read, start);
        let ids = [random_text(), login.id.clone()];
        let before_end = start + Duration::from_secs(899);
        assert!(logins.find(&ids, before_end).is_some_and(|found| found.right == Right::Read));
        assert!(logins.find(&ids, start + Login::LIFETIME).is_none());
        assert!(logins.find(&ids, Timestamp::from_millis(0)).is_none(), "the clock was set back");
        assert!(logins.find(&ids[..1], start).is_none());
        logins.remove(&login.id);
        assert!(logins.find(&ids, start).is_none());
    }

    #[test]
    fn the_oldest_login_makes_room() {
        let logins = Logins::default();
        let now = Timestamp::from_millis(0);
        let ids: Vec<Secret> =
            (0..=Logins::MAX).map(|_| logins.create(Right::Full, now).id).collect();
        let found = ids.iter().filter(|id| logins.find(&[(*id).clone()], now).is_some());
        assert_eq!(found.count(), Logins::MAX);
        assert!(logins.find(&ids[..1], now).is_none());
    }
}
