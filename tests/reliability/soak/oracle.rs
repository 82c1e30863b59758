//! The oracle: a model of all sessions, and the violations that were found.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::history::{Past, Read, State, Window, Write};
use super::job::{Change, Job, Outcome, Pending, Token};
use super::session::{Expected, Session};

/// Documented bound of the cache's staleness.
pub const CACHE_BOUND: Duration = Duration::from_millis(50);

/// Number of wrong responses that are printed.
const MAX_PRINTED: usize = 40;

pub struct Oracle {
    model: Mutex<Model>,
    trace: Mutex<std::io::BufWriter<std::fs::File>>,
    began: Instant,
    /// True if there is only one replica, so that writes which it has survive a failover.
    one_replica: bool,
}

/// The state that the oracle knows.
#[derive(Default)]
pub struct Model {
    pub(super) sessions: HashMap<String, Session>,
    pub(super) past: Past,
    next: u64,
    /// Calls in flight that destroy all sessions of a principal: number, principal, excluded
    /// session, start.
    log_outs: Vec<(u64, Value, Option<String>, Instant)>,
    pub(super) tally: Tally,
}

/// Counters of a soak.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub wrong: Vec<String>,
    /// Acknowledged changes that a failover lost, by cause.
    pub lost: BTreeMap<String, u64>,
    /// Changes of unknown fate.
    pub unknown: u64,
    pub acknowledged: u64,
    pub logins: u64,
    pub logouts: u64,
    pub rotations: u64,
    pub renewals: u64,
    pub reads: u64,
    /// Requests with a cookie, and those of them of which it is unknown if they open a session.
    pub opened: u64,
    pub undecided: u64,
    /// Sessions that may have been created although no response named their id.
    pub orphans: u64,
    pub pages: u64,
    pub calls: u64,
    /// Requests that were not served, and those of them after recovery from the last fault.
    pub failed: u64,
    pub failed_after_recovery: u64,
    /// Visitors that were anonymous because the response with their new cookie was lost.
    pub cookies_lost: u64,
}

/// Times of a read, and if a cache may have served it.
#[derive(Clone, Copy)]
pub struct Observation {
    pub sent: Instant,
    pub received: Instant,
    /// True if an instance with a cache took part.
    pub cached: bool,
}

impl Observation {
    pub(super) fn read(self, shard: usize, past: &Past) -> Read<'_> {
        let staleness = if self.cached { CACHE_BOUND } else { Duration::ZERO };
        Read { sent: self.sent, received: self.received, staleness, shard, past }
    }
}

impl Oracle {
    /// Creates an oracle that writes all events to `trace`.
    pub fn new(trace: std::fs::File, one_replica: bool) -> Self {
        let trace = Mutex::new(std::io::BufWriter::new(trace));
        Self { model: Mutex::default(), trace, began: Instant::now(), one_replica }
    }

    pub(super) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }

    /// Writes a line to the trace.
    pub fn trace(&self, text: &str) {
        let at = self.began.elapsed().as_secs_f64();
        writeln!(self.trace.lock().unwrap(), "{at:.3} {text}").unwrap();
    }

    pub fn tally(&self) -> Tally {
        self.trace.lock().unwrap().flush().unwrap();
        self.model().tally.clone()
    }

    pub fn count(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut self.model().tally);
    }

    /// Reports a violation.
    pub fn wrong(&self, visitor: usize, text: &str) {
        let text =
            format!("{:.3} s, visitor {visitor}: {text}", self.began.elapsed().as_secs_f64());
        self.trace(&format!("WRONG {text}"));
        let mut model = self.model();
        if model.tally.wrong.len() < MAX_PRINTED {
            println!("wrong: {text}");
        }
        model.tally.wrong.push(text);
    }

    pub(super) fn wrong_of(&self, session: &str, visitor: usize, text: &str) {
        if let Some(session) = self.model().sessions.get_mut(session) {
            if session.reported {
                return;
            }
            session.reported = true;
        }
        self.wrong(visitor, &format!("session {session}: {text}"));
    }

    pub fn fault_began(&self, what: &str) {
        self.trace(&format!("FAULT {what}"));
        self.model().past.faults.push((Instant::now(), None));
    }

    pub fn fault_ended(&self) {
        self.trace("FAULT ended");
        let mut model = self.model();
        model.past.faults.last_mut().unwrap().1 = Some(Instant::now());
    }

    /// Records that a failover begins: writes acknowledged from [`Window::BEFORE`] it on may be
    /// lost.
    pub fn window_began(&self, cause: &'static str, shard: Option<usize>) {
        self.window_began_before(Window::BEFORE, cause, shard);
    }

    /// Records that a failover begins, with another time before it.
    pub fn window_began_before(&self, before: Duration, cause: &'static str, shard: Option<usize>) {
        self.trace(&format!("WINDOW {cause} {shard:?}"));
        let began = Instant::now().checked_sub(before).unwrap();
        self.model().past.windows.push(Window { began, ended: None, cause, shard });
    }

    pub fn window_ended(&self) {
        self.trace("WINDOW ended");
        self.model().past.windows.last_mut().unwrap().ended = Some(Instant::now());
    }

    pub fn is_quiet(&self, rest: Duration) -> bool {
        self.model().past.is_quiet(Instant::now(), rest)
    }

    /// Records a change of `target` that is in flight.
    pub fn begin(&self, job: &Job, target: Option<&str>, change: &Change) -> Pending {
        let mut model = self.model();
        model.next += 1;
        let (id, started) = (model.next, Instant::now());
        let presented = job.token.as_ref().map_or(0, |token| token.generation);
        let log_outs = model.log_outs.clone();
        let session = target.and_then(|target| model.sessions.get_mut(target));
        if let Some(session) = session {
            session.begin(id, started, State::InFlight, presented, change);
            // A session that logs in while all of its principal are logged out may be destroyed
            // too.
            if let Some(principal) = change.login.as_deref() {
                for (number, named, _, started) in log_outs {
                    if named == principal
                        && !session.destroys.iter().any(|known| known.id == number)
                    {
                        session.destroys.push(Write::new(number, started, State::InFlight, false));
                    }
                }
            }
        }
        if change.rotates() {
            job.progress.lock().unwrap().rotations.push(id);
        }
        let target = target.map(str::to_owned);
        Pending { id, started, target, change: change.clone() }
    }

    /// Records the outcome of a change. `answered` is the session that the response names; without
    /// one it is the target. If a change created a session without naming it, its job keeps the
    /// change until the cookie arrives.
    pub fn finish(
        &self,
        job: &Job,
        pending: Pending,
        outcome: Outcome,
        answered: Option<&str>,
        replicated: bool,
    ) {
        let now = Instant::now();
        let state = match outcome {
            Outcome::Applied => Some(State::Acknowledged(now)),
            Outcome::Unknown => Some(State::Unknown(now)),
            Outcome::Refused => None,
        };
        let mut model = self.model();
        match outcome {
            Outcome::Applied => {
                let tally = &mut model.tally;
                tally.acknowledged += 1;
                tally.logins += u64::from(pending.change.login.is_some());
                tally.logouts += u64::from(pending.change.destroy);
                tally.rotations += u64::from(pending.change.rotate);
            }
            Outcome::Unknown => model.tally.unknown += 1,
            Outcome::Refused => {}
        }
        let elsewhere = outcome == Outcome::Applied
            && answered.is_some_and(|answered| pending.target.as_deref() != Some(answered));
        if let Some(session) = pending.target.as_ref().and_then(|id| model.sessions.get_mut(id)) {
            let durable = replicated && self.one_replica;
            session.finish(pending.id, state.filter(|_| !elsewhere), durable);
        }
        if elsewhere && let Some(id) = answered {
            drop(model);
            self.created_another(job, id, &pending, State::Acknowledged(now));
        } else if let (None, Some(state)) = (&pending.target, state)
            && pending.change.creates()
        {
            model.tally.orphans += 1;
            drop(model);
            job.progress.lock().unwrap().created.push((pending.change, state));
        }
    }

    /// Records a session that a change created instead of changing its target.
    fn created_another(&self, job: &Job, id: &str, pending: &Pending, state: State) {
        if let Some(target) = &pending.target {
            let observation =
                Observation { sent: pending.started, received: Instant::now(), cached: true };
            let reachable = self.expected(target, job.token.as_ref(), observation) == Expected::Yes;
            if reachable || pending.change.login.is_none() {
                self.wrong_of(
                    target,
                    job.visitor,
                    &format!("a change created another session, {id}"),
                );
            }
        }
        self.add_session(job.visitor, id, pending.started, &[(pending.change.clone(), state)]);
    }

    /// Adds a session to the model.
    fn add_session(&self, visitor: usize, id: &str, started: Instant, changes: &[(Change, State)]) {
        let mut model = self.model();
        model.next += 1;
        let number = model.next;
        if let Some(known) = model.sessions.get(id) {
            // A response has named it already, for another change of the same request.
            let owner = known.visitor;
            if owner != visitor {
                drop(model);
                self.wrong(visitor, &format!("was given the session of {owner}: {id}"));
                return;
            }
        }
        let state = changes
            .first()
            .map_or_else(|| State::Acknowledged(Instant::now()), |(_, state)| *state);
        let log_outs = model.log_outs.clone();
        let session = model.sessions.entry(id.to_owned()).or_insert_with(|| {
            let creation = Write::new(number, started, state, ());
            Session::new(visitor, shard_of(id), creation)
        });
        for (change, state) in changes {
            session.begin(number, started, *state, 0, change);
            // A new session starts with the generation of its first token.
            session.rotations.clear();
            for (number, named, _, started) in &log_outs {
                if change.login.as_deref().is_some_and(|principal| *named == principal) {
                    session.destroys.push(Write::new(*number, *started, State::InFlight, false));
                }
            }
        }
    }

    /// Records a call in flight that destroys all sessions of a principal except one.
    pub fn log_out_all_began(&self, principal: &str, excluded: Option<&str>) -> u64 {
        let mut model = self.model();
        model.next += 1;
        let (number, started) = (model.next, Instant::now());
        let (principal, excluded) = (Value::from(principal), excluded.map(str::to_owned));
        let Model { sessions, past, log_outs, .. } = &mut *model;
        for (id, session) in sessions.iter_mut() {
            let observation = Observation { sent: started, received: started, cached: false };
            let read = observation.read(session.shard, past);
            if excluded.as_ref() != Some(id)
                && session.belongs_to(&principal, &read) != Expected::No
            {
                session.destroys.push(Write::new(number, started, State::InFlight, false));
            }
        }
        log_outs.push((number, principal, excluded, started));
        number
    }

    /// Records the outcome of such a call.
    pub fn log_out_all_ended(&self, number: u64, outcome: Outcome) {
        let mut model = self.model();
        let now = Instant::now();
        let Model { sessions, past, log_outs, tally, .. } = &mut *model;
        let place = log_outs.iter().position(|(known, ..)| *known == number).unwrap();
        let (_, principal, _, started) = log_outs.swap_remove(place);
        tally.logouts += u64::from(outcome == Outcome::Applied);
        for session in sessions.values_mut() {
            let read = Observation { sent: started, received: started, cached: true }
                .read(session.shard, past);
            let certain = session.belongs_to(&principal, &read) == Expected::Yes
                && session.is_indexed(&principal, past);
            let state = match outcome {
                Outcome::Refused => None,
                Outcome::Applied if certain => Some(State::Acknowledged(now)),
                Outcome::Applied | Outcome::Unknown => Some(State::Unknown(now)),
            };
            session.finish(number, state, false);
        }
    }

    /// Judges the cookie of a response, and records its token.
    pub fn cookie_set(&self, job: &Job, token: &Token, sent: Instant) {
        let known = self.model().sessions.get(&token.id).map(|session| session.visitor);
        if known.is_some_and(|owner| owner != job.visitor) {
            self.wrong(job.visitor, &format!("was given a cookie of visitor {known:?}"));
            return;
        }
        let created = std::mem::take(&mut job.progress.lock().unwrap().created);
        if known.is_none() {
            if created.is_empty() {
                self.wrong(job.visitor, &format!("a cookie of an unknown session {}", token.id));
            }
            self.add_session(job.visitor, &token.id, sent, &created);
        }
        let mut model = self.model();
        model.tally.orphans -= created.len() as u64;
        let session = model.sessions.get_mut(&token.id).unwrap();
        // A rotation of unknown fate may not have happened, and this cookie may be a renewal.
        let rotations = &job.progress.lock().unwrap().rotations;
        let rotated = session.rotations.iter().filter(|rotation| {
            let done = matches!(rotation.state, State::Acknowledged(_))
                || token.generation > rotation.value.presented + 1;
            rotations.contains(&rotation.id) && done
        });
        match rotated.map(|rotation| rotation.id).max() {
            Some(id) => session.granted(id, token.generation),
            None if job.token.as_ref().is_some_and(|old| old.id == token.id) => {
                model.tally.renewals += 1;
            }
            None => {}
        }
    }

    /// Returns the ids of all sessions with their visitors, for the final check.
    pub fn sessions(&self) -> Vec<(String, usize)> {
        let model = self.model();
        model.sessions.iter().map(|(id, session)| (id.clone(), session.visitor)).collect()
    }

    pub fn knows(&self, id: &str) -> bool {
        self.model().sessions.contains_key(id)
    }

    /// Returns the number of values that a session has in the model.
    pub fn size(&self, id: &str) -> usize {
        self.model().sessions.get(id).map_or(0, Session::size)
    }
}

/// Returns the third of a cluster's slots that a session belongs to (CRC-16/XMODEM, as Redis
/// computes it).
fn shard_of(id: &str) -> usize {
    let mut crc: u16 = 0;
    for byte in id.bytes() {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
        }
    }
    usize::from(crc % 16384 / 5461).min(2)
}
