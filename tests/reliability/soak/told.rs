//! The last check, and what is reported.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use cloakroom::body::Body;
use http::Request;
use serde_json::Value;
use tokio::time::sleep;

use super::balancer::Side;
use super::faults::Made;
use super::oracle::{Oracle, Tally};
use super::site::Site;
use super::visitor::Visitor;
use crate::process::SERVICE_TOKEN;
use crate::report::Counted;

/// After the last fault: longer than what is of unknown fate takes to settle.
const SETTLE: Duration = Duration::from_secs(8);

/// How long last reads are tried again that are not served, all together.
const PATIENCE: Duration = Duration::from_mins(1);

pub struct Told {
    tally: Tally,
    made: Made,
    panics: usize,
    visitors: (usize, usize),
    sessions: (usize, usize),
    values: usize,
    tokens: u64,
    listed: usize,
    strange: usize,
    undecided: usize,
}

impl Told {
    /// Reads everything that is in the model.
    pub async fn check(
        site: &Arc<Site>,
        visitors: &[Arc<Visitor>],
        oracle: &Oracle,
        made: Made,
        panics: usize,
    ) -> Self {
        sleep(SETTLE).await;
        let tally = oracle.tally();
        let mut told = Self {
            tally,
            made,
            panics,
            visitors: (0, visitors.len()),
            sessions: (0, 0),
            values: 0,
            tokens: 0,
            listed: 0,
            strange: 0,
            undecided: 0,
        };
        let instances = site.balancer.count();
        let mut patience = PATIENCE;
        for visitor in visitors {
            let mut checked = true;
            for instance in 0..instances {
                checked &= again(&mut patience, async || visitor.check(instance).await).await;
            }
            told.visitors.0 += usize::from(checked);
            told.tokens += visitor.replay().await;
        }
        let sessions = oracle.sessions();
        told.sessions.1 = sessions.len();
        for (id, owner) in &sessions {
            let mut checked = true;
            for instance in 0..instances {
                checked &= again(&mut patience, async || {
                    visitors[*owner].inspect(id, Some(instance)).await
                })
                .await;
            }
            told.sessions.0 += usize::from(checked);
            told.values += oracle.size(id);
        }
        told.list(site, oracle).await;
        told.undecided = oracle.undecided();
        told.tally = oracle.tally();
        told
    }

    /// Looks for sessions that are not in the model: only changes of unknown fate make such.
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
                return oracle.wrong(0, "the list of all sessions was not answered");
            };
            let page: Value = serde_json::from_slice(answer.response.body()).unwrap();
            let ids = page["sessions"].as_array().into_iter().flatten();
            found.extend(ids.filter_map(|session| session["id"].as_str().map(str::to_owned)));
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        self.listed = found.len();
        self.strange = found.iter().filter(|id| !oracle.knows(id)).count();
        let possible = oracle.tally().orphans;
        if self.strange as u64 > possible {
            let text = format!("{} sessions that nobody made; {possible} possible", self.strange);
            oracle.wrong(0, &text);
        }
    }

    /// The row of the report.
    pub fn counted(&self, seed: u64, lasts: Duration) -> Counted {
        let tally = &self.tally;
        let (faults, made) = (self.made.values().sum::<u64>(), &self.made);
        let kinds: Vec<_> = made.iter().map(|(kind, count)| format!("{count}× {kind}")).collect();
        let mut text = format!(
            "{} wrong answers; {} requests, {} calls of the API, {} reads compared, {} cookies judged ({} of them open by cause); {} changes acknowledged ({} log-ins, {} log-outs, {} rotations asked for), {} of unknown fate; {} cookies renewed, {} lost with their answer; {} requests failed, {} of them in peace; {faults} faults: {}",
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
            tally.failed_in_peace,
            kinds.join(", "),
        );
        let lost: Vec<_> =
            tally.lost.iter().map(|(what, count)| format!("{count} {what}")).collect();
        let _ = match lost.is_empty() {
            true => write!(text, "; nothing lost"),
            false => write!(text, "; lost by failovers: {}", lost.join(", ")),
        };
        let _ = write!(
            text,
            "; at the end {} of {} visitors and {} of {} sessions with {} values checked at both instances ({} of unknown fate until then remain so), {} dead tokens tried, {} sessions listed, {} of them made by changes of unknown fate; {} panics; seed {seed}",
            self.visitors.0,
            self.visitors.1,
            self.sessions.0,
            self.sessions.1,
            self.values,
            self.undecided,
            self.tokens,
            self.listed,
            self.strange,
            self.panics
        );
        if let Some(first) = tally.wrong.first() {
            let _ = write!(text, "; first wrong: {first}");
        }
        let minutes = lasts.as_secs() / 60;
        let enough = minutes < 30 || (tally.pages >= 100_000 && faults >= 50);
        let held = tally.wrong.is_empty()
            && enough
            && self.panics == 0
            && self.visitors.0 == self.visitors.1
            && self.sessions.0 == self.sessions.1
            && tally.failed_in_peace * 1000 <= tally.pages;
        Counted { text: text.replace('|', "/"), held }
    }
}

async fn again(patience: &mut Duration, mut check: impl AsyncFnMut() -> bool) -> bool {
    let pause = Duration::from_millis(500);
    while !check().await {
        let Some(left) = patience.checked_sub(pause) else { return false };
        *patience = left;
        sleep(pause).await;
    }
    true
}
