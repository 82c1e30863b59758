//! The session policy.

use std::time::Duration;

use super::super::file::File;
use super::super::value::{Span, Value as _};
use super::context::Context;
use crate::session::policy::Policy;

/// Builds the policy.
pub(super) fn policy(file: &mut File, context: &mut Context<'_>) -> Policy {
    let idle_timeout = file.session.idle_timeout.0;
    let tenth = idle_timeout / 10;
    if file.session.touch_interval.is_some_and(|interval| interval.0 > tenth) {
        let tenth = Span(tenth);
        let message =
            format!("is more than a tenth of idle_timeout; {} is used instead", tenth.write());
        context.warn("session.touch_interval", message);
    }
    let default_interval = Span(tenth.min(Duration::from_mins(1)));
    let touch_interval = *file.session.touch_interval.get_or_insert(default_interval);
    let session = &file.session;
    let policy = Policy {
        idle_timeout,
        absolute_timeout: session.absolute_timeout.0,
        unproven_timeout: session.unproven_timeout.0,
        rotate_every: session.rotate_every.0,
        rotation_grace: session.rotation_grace.0,
        on_replay: session.on_replay,
        expire_at_browser_close: session.expire_at_browser_close,
        create: session.create,
        touch: session.touch,
        touch_interval: touch_interval.0,
        max_bytes: session.max_bytes.0,
        max_values: session.max_values.0,
        max_per_principal: session.max_per_principal.map(|count| count.0),
        at_max_per_principal: session.at_max_per_principal,
        record_client: session.record_client,
        new_sessions_per_address: file
            .limits
            .new_sessions_per_address
            .and_then(|count| u32::try_from(count.0).ok()),
        request_token_linger: file.api.request_token_linger.0,
    };
    check_rotation(&policy, context);
    policy
}

/// Otherwise a token that is two generations old would be within the grace of the one after it.
fn check_rotation(policy: &Policy, context: &mut Context<'_>) {
    if let Some(every) = policy.rotate_every
        && every < policy.rotation_grace
    {
        let key = ["session.rotate_every", "session.rotation_grace"]
            .into_iter()
            .find(|key| context.is_set(key))
            .unwrap_or_default();
        let message = format!(
            "rotate_every ({}) is less than rotation_grace ({}), which would log people out; \
             rotate less often or shorten the grace",
            Span(every).write(),
            Span(policy.rotation_grace).write(),
        );
        context.error(key, message);
    }
}
