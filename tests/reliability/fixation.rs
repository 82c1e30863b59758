//! Session fixation with the default grace period, on the clock of the system.

use std::time::Duration;

use crate::report::{Measurement, Report};
use crate::support::fixation;

/// The default of `rotation_grace`.
const GRACE: Duration = Duration::from_mins(2);

pub async fn run(report: &mut Report) {
    report
        .row(
            "an attacker polls every 200 ms with a token that it has planted, from before the log-in until after the grace period of 2 min; by the session API, by header, by a changed and a first held cookie, by an unchanged one and one with rotate = false on a path of rotate_on; memory",
            "6 log-ins",
            "no poll opens anything of a log-in; the replaced value of a held cookie is given within the grace period only",
            measure(),
        )
        .await;
}

async fn measure() -> Measurement {
    let all = fixation(GRACE).await;
    let sum = |count: fn(&crate::support::Polls) -> usize| all.iter().map(count).sum::<usize>();
    let stolen = sum(|polls| polls.stolen.len());
    let replaced = sum(|polls| polls.replaced);
    let is_used = all.iter().all(|polls| polls.opened_before > 0 && polls.after > 0);
    Measurement {
        text: format!(
            "{stolen} of {} polls opened more; {} before the log-in opened the planted session, {replaced} within the grace period gave the replaced value, {} came after it",
            sum(|polls| polls.total),
            sum(|polls| polls.opened_before),
            sum(|polls| polls.after),
        ),
        passed: stolen == 0 && replaced > 0 && is_used,
    }
}
