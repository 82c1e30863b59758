//! How sessions live.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::file::{self, File};
use super::super::value::{Timeout, write_duration};
use super::context::Context;
use crate::session::policy::Policy;

/// From a second to the longest that a browser keeps a cookie.
const LIFETIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Policy::MAX_COOKIE_AGE;
/// Likewise, or nothing.
const INTERVAL: RangeInclusive<Duration> = Duration::ZERO..=Policy::MAX_COOKIE_AGE;
/// A session is read as a whole.
const BYTES: RangeInclusive<usize> = 1024..=64 * 1024 * 1024;
const VALUES: RangeInclusive<usize> = 1..=100_000;
/// Each log-in reads them all.
const PER_PRINCIPAL: RangeInclusive<usize> = 1..=1000;

/// In a minute.
const NEW_SESSIONS: RangeInclusive<usize> = 1..=1_000_000;

/// The policy.
pub(super) fn policy(file: &File, context: &mut Context<'_>) -> Policy {
    let table = &file.session.0;
    let default = Policy::default();
    let idle_timeout = idle_timeout(table, default.idle_timeout, context);
    let policy = Policy {
        idle_timeout,
        absolute_timeout: context.duration_or_never(
            &table.absolute_timeout,
            default.absolute_timeout,
            &(Duration::from_secs(1)..=Duration::from_hours(24 * 3650)),
        ),
        unproven_timeout: context.duration_or_never(
            &table.unproven_timeout,
            default.unproven_timeout,
            &LIFETIME,
        ),
        rotate_every: context.duration_or_never(
            &table.rotate_every,
            default.rotate_every,
            &LIFETIME,
        ),
        rotation_grace: context.duration(&table.rotation_grace, default.rotation_grace, &INTERVAL),
        on_replay: table.on_replay.or(default.on_replay),
        expire_at_browser_close: table.expire_at_browser_close.or(default.expire_at_browser_close),
        create: table.create.or(default.create),
        touch: table.touch.or(default.touch),
        touch_interval: touch_interval(table, idle_timeout, context),
        max_bytes: context.size(&table.max_bytes, default.max_bytes, &BYTES),
        max_values: context.count(&table.max_values, default.max_values, &VALUES),
        max_per_principal: table
            .max_per_principal
            .found()
            .map(|_| context.count(&table.max_per_principal, 1, &PER_PRINCIPAL)),
        at_max_per_principal: table.at_max_per_principal.or(default.at_max_per_principal),
        record_client: table.record_client.or(default.record_client),
        new_sessions_per_address: new_sessions_per_address(&file.limits.0, context),
        request_token_linger: context.duration(
            &file.api.0.request_token_linger,
            default.request_token_linger,
            &(Duration::from_secs(1)..=Duration::from_hours(24)),
        ),
    };
    check_rotation(table, &policy, context);
    policy
}

fn new_sessions_per_address(table: &file::Limits, context: &mut Context<'_>) -> Option<u32> {
    table.new_sessions_per_address.found()?;
    let limit = context.count(&table.new_sessions_per_address, 1, &NEW_SESSIONS);
    u32::try_from(limit).ok()
}

fn idle_timeout(table: &file::Session, default: Duration, context: &mut Context<'_>) -> Duration {
    match table.idle_timeout.found() {
        Some((Timeout::Never, origin)) => {
            let message = "a session that never ends would fill the store; write one from 1s to 400d, \
                           which is the longest that a browser keeps a cookie";
            context.error(origin, message);
            default
        }
        _ => context.duration(&table.idle_timeout, default, &LIFETIME),
    }
}

/// A minute, or a tenth of the idle timeout where that is less.
fn touch_interval(table: &file::Session, idle: Duration, context: &mut Context<'_>) -> Duration {
    let tenth = idle / 10;
    let interval =
        context.duration(&table.touch_interval, tenth.min(Duration::from_mins(1)), &INTERVAL);
    if let Some((Timeout::After(asked), origin)) = table.touch_interval.found()
        && *asked > tenth
    {
        let tenth = write_duration(tenth);
        let message = format!("is more than a tenth of idle_timeout; the tenth counts: {tenth}");
        context.warn(origin, message);
    }
    interval
}

/// Else a token that is two generations old would be within the grace of the one after it.
fn check_rotation(table: &file::Session, policy: &Policy, context: &mut Context<'_>) {
    if let Some(every) = policy.rotate_every
        && every < policy.rotation_grace
    {
        let origin = match table.rotate_every.found() {
            Some((_, origin)) => origin.clone(),
            None => table.rotation_grace.origin("session.rotation_grace"),
        };
        let message = format!(
            "rotate_every ({}) is less than rotation_grace ({}), which would log people out; \
             rotate less often or shorten the grace",
            write_duration(every),
            write_duration(policy.rotation_grace),
        );
        context.error(&origin, message);
    }
}
