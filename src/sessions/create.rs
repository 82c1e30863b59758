//! Creating the session of a request.

use tracing::debug;

use super::failure::Failure;
use super::request::draw_id;
use super::request_session::{RequestSession, Storage};
use super::snapshot::ChangeRequest;
use crate::metrics::Event;
use crate::random;
use crate::session::id::Id;
use crate::session::patch::Authority;
use crate::session::record::{Meta, Record};
use crate::store::{Backend as _, Created, Error as StoreError, Unproven};

/// The effect of a new session on `new_sessions_per_address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressLimit {
    Counts,
    /// It replaces a session, so the number of sessions stays the same.
    Exempt,
}

impl RequestSession {
    /// Creates a session under `id` or, if that is taken, under another id.
    pub(super) async fn create(
        &self,
        mut id: Id,
        request: ChangeRequest<'_>,
        limit: AddressLimit,
    ) -> Result<(Id, Record), Failure> {
        let calls = self.calls()?;
        let change = request.to_change(id, Authority::Service(0), &self.shared);
        let mut meta = Meta::new(first_version(), change.now);
        meta.client = self.request.context.client.clone().map(Box::new);
        // The site's cookies would come back by the same requests, such as a log-in by POST from another site.
        meta.withheld = self.request.is_withheld() && request.patch.held.is_none();
        let unproven = match &self.storage {
            Storage::Store(store) => store.unproven(),
            Storage::Cookie(cookie) => cookie.unproven(),
        };
        meta.unproven = match unproven {
            Unproven::Kept => {
                change.policy.unproven_timeout.is_some() || request.patch.held.is_some()
            }
            Unproven::Evicted => true,
            Unproven::None => false,
        };
        let record = change.begin(meta)?;
        // Before the limit, so that a refused session does not count for its address.
        if let Storage::Cookie(cookie) = &self.storage {
            cookie.check_size(id, &record)?;
        }
        // The limit is against strangers, who have no credentials, so log-ins are exempt.
        if limit == AddressLimit::Counts && request.patch.log_in().is_none() {
            self.count_new()?;
        }
        // Two ids of 128 random bits are never equal. The bound is for a broken store.
        for _ in 0..3 {
            match calls.create(id, &record).await? {
                Created::Done => {
                    let meta = &record.meta;
                    self.record(Event::Created, meta.public_id(id), meta.principal.as_ref());
                    if meta.principal.is_some() {
                        self.record(Event::LoggedIn, meta.public_id(id), meta.principal.as_ref());
                    }
                    self.shared.metrics.session_used(id.part(), self.shared.clock.now());
                    debug!(session = %id, "session created");
                    return Ok((id, record));
                }
                Created::Exists => id = draw_id(),
            }
        }
        Err(StoreError::Corrupt("three random ids were taken".into()).into())
    }

    /// Counts a new session for its client's address. A client without a known address is not
    /// counted.
    fn count_new(&self) -> Result<(), Failure> {
        let shared = &self.shared;
        let address = self.request.context.address;
        let Some((limit, address)) = shared.policy.new_sessions_per_address.zip(address) else {
            return Ok(());
        };
        shared.new_sessions.count(address, limit, shared.clock.now()).map_err(|retry_after| {
            shared.metrics.event(Event::TooManyNewSessions);
            debug!(%address, limit, "too many new sessions from one address");
            Failure::TooManyNewSessions { retry_after }
        })
    }
}

/// Draws the first version: below 2^32, so that it stays exact in programs that read JSON numbers as
/// floating point (RFC 8259, section 6).
fn first_version() -> u64 {
    u64::from(u32::from_be_bytes(random::bytes()))
}
