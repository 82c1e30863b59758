//! The guard that ends a request.

use super::in_flight::SLACK;
use super::request_session::{RequestSession, Storage};

/// Keeps a request in the table of requests in flight. Dropping it ends the request.
#[derive(Debug)]
pub(crate) struct RequestGuard(RequestSession);

impl RequestGuard {
    /// Puts a request into the table.
    pub(super) fn new(session: RequestSession) -> Self {
        session.shared.in_flight.insert(&session.request);
        session.shared.metrics.requests_in_flight().inc();
        Self(session)
    }

    pub(crate) fn session(&self) -> &RequestSession {
        &self.0
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let RequestSession { request, storage, shared } = &self.0;
        shared.metrics.requests_in_flight().dec();
        let now = shared.clock.now();
        request.end(now);
        // A call that still runs holds the state, and may still move the binding.
        let moved =
            request.state.try_read().map_or(true, |state| state.has_moved(request.token.bound));
        let is_long = now > request.token.forwarded_at + SLACK;
        match storage {
            Storage::Store(_) if moved || is_long => {
                // A token that nothing is kept of is accepted this long after it was forwarded.
                let linger = shared.policy.request_token_linger + SLACK;
                shared.in_flight.keep(request, now + linger);
            }
            // A session in a cookie takes no calls after its request.
            Storage::Store(_) | Storage::Cookie(_) => {
                shared.in_flight.remove(request.token.number);
            }
        }
    }
}
