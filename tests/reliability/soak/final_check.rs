//! The final check of all sessions, and the row of the report.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use cloakroom::body::Body;
use http::Request;
use serde_json::Value;
use tokio::time::sleep;

use super::balancer::Side;
use super::faults::FaultCounts;
use super::oracle::{Oracle, Tally};
use super::site::Site;
use super::visitor::Visitor;
use crate::process::SERVICE_TOKEN;
use crate::report::Measurement;

/// Time after the last fault: longer than changes of unknown fate take to settle.
const SETTLE: Duration = Duration::from_secs(8);

/// Total time for which failed reads are retried.
const PATIENCE: Duration = Duration::from_mins(1);

/// Results of a soak. Pairs are the number of checked items and of all items.
pub struct FinalCheck {
    tally: Tally,
    faults: FaultCounts,
    panics: usize,
    visitors: (usize, usize),
    sessions: (usize, usize),
    values: usize,
    tokens: u64,
    listed: usize,
    unknown: usize,
    undecided: usize,
}

impl FinalCheck {
    /// Reads every session of the model at every instance.
    pub async fn run(
        site: &Arc<Site>,
        visitors: &[Arc<Visitor>],
        oracle: &Oracle,
        faults: FaultCounts,
        panics: usize,
    ) -> Self {
        sleep(SETTLE).await;
        let tally = oracle.tally();
        let mut check = Self {
            tally,
            faults,
            panics,
            visitors: (0, visitors.len()),
            sessions: (0, 0),
            values: 0,
            tokens: 0,
            listed: 0,
            unknown: 0,
            undecided: 0,
        };
        let instances = site.balancer.count();
        let mut patience = PATIENCE;
        for visitor in visitors {
            let mut checked = true;
            for instance in 0..instances {
                checked &= retry(&mut patience, async || visitor.check(instance).await).await;
            }
            check.visitors.0 += usize::from(checked);
            check.tokens += visitor.replay().await;
        }
        let sessions = oracle.sessions();
        check.sessions.1 = sessions.len();
        for (id, owner) in &sessions {
            let mut checked = true;
            for instance in 0..instances {
                checked &= retry(&mut patience, async || {
                    visitors[*owner].inspect(id, Some(instance)).await
                })
                .await;
            }
            check.sessions.0 += usize::from(checked);
            check.values += oracle.size(id);
        }
        check.list(site, oracle).await;
        check.undecided = oracle.undecided();
        check.tally = oracle.tally();
        check
    }

    /// Lists all sessions, and counts those that are not in the model: only changes of unknown fate
    /// can have created them.
    async fn list(&mut self, site: &Site, oracle: &Oracle) {
        let mut cursor = String::new();
        let mut found = HashSet::new();
        loop {
            let build = |_, _| {
                Request::get(format!("/_sessions?limit=500{cursor}"))
                    .header("authorization", format!("Bearer {SERVICE_TOKEN}"))
                    .body(Body::empty())
                    .unwrap()
            };
            let answer = site.balancer.send(Side::Api, build).await.ok();
            let Some(answer) = answer.filter(|answer| answer.response.status() == 200) else {
                return oracle.wrong(0, "the list of all sessions was not served");
            };
            let page: Value = serde_json::from_slice(answer.response.body()).unwrap();
            let ids = page["sessions"].as_array().into_iter().flatten();
            found.extend(ids.filter_map(|session| session["id"].as_str().map(str::to_owned)));
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        self.listed = found.len();
        self.unknown = found.iter().filter(|id| !oracle.knows(id)).count();
        let possible = oracle.tally().orphans;
        if self.unknown as u64 > possible {
            let text = format!("{} unexpected sessions; {possible} possible", self.unknown);
            oracle.wrong(0, &text);
        }
    }

    /// Returns the figures for the report.
    pub fn measurement(&self, seed: u64, duration: Duration) -> Measurement {
        let tally = &self.tally;
        let faults = self.faults.values().sum::<u64>();
        let kinds: Vec<_> =
            self.faults.iter().map(|(kind, count)| format!("{count}× {kind}")).collect();
        let mut text = format!(
            "{} wrong responses; {} requests, {} API calls, {} reads checked, {} cookies checked ({} of them undecidable); {} changes acknowledged ({} log-ins, {} log-outs, {} requested rotations), {} of unknown fate; {} cookies renewed, {} lost with their response; {} requests failed, {} of them after recovery; {faults} faults: {}",
            tally.wrong.len(),
            tally.pages,
            tally.calls,
            tally.reads,
            tally.opened,
            tally.undecided,
            tally.acknowledged,
            tally.logins,
            tally.logouts,
            tally.rotations,
            tally.unknown,
            tally.renewals,
            tally.cookies_lost,
            tally.failed,
            tally.failed_after_recovery,
            kinds.join(", "),
        );
        let lost: Vec<_> =
            tally.lost.iter().map(|(what, count)| format!("{count} {what}")).collect();
        let _ = if lost.is_empty() {
            write!(text, "; nothing lost")
        } else {
            write!(text, "; lost by failovers: {}", lost.join(", "))
        };
        let _ = write!(
            text,
            "; at the end {} of {} visitors and {} of {} sessions with {} values checked at both instances ({} still of unknown fate), {} invalid tokens replayed, {} sessions listed, {} of them created by changes of unknown fate; {} panics; seed {seed}",
            self.visitors.0,
            self.visitors.1,
            self.sessions.0,
            self.sessions.1,
            self.values,
            self.undecided,
            self.tokens,
            self.listed,
            self.unknown,
            self.panics
        );
        if let Some(first) = tally.wrong.first() {
            let _ = write!(text, "; first wrong: {first}");
        }
        let minutes = duration.as_secs() / 60;
        let enough = minutes < 30 || (tally.pages >= 100_000 && faults >= 50);
        let passed = tally.wrong.is_empty()
            && enough
            && self.panics == 0
            && self.visitors.0 == self.visitors.1
            && self.sessions.0 == self.sessions.1
            && tally.failed_after_recovery * 1000 <= tally.pages;
        Measurement { text: text.replace('|', "/"), passed }
    }
}

/// Repeats a check until it succeeds or `patience` is used up.
async fn retry(patience: &mut Duration, mut check: impl AsyncFnMut() -> bool) -> bool {
    let pause = Duration::from_millis(500);
    while !check().await {
        let Some(left) = patience.checked_sub(pause) else { return false };
        *patience = left;
        sleep(pause).await;
    }
    true
}
