//! The oracle: what must be there, and what was found.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::history::{Past, Read, State, Window, Write};
use super::order::{Change, Order, Outcome, Pending, Token};
use super::session::{Expected, Session};

/// The bound of the cache, as `docs/redis.md` has it.
pub const CACHE_BOUND: Duration = Duration::from_millis(50);

/// Wrong answers that are printed.
const SHOWN: usize = 40;

pub struct Oracle {
    model: Mutex<Model>,
    trace: Mutex<std::io::BufWriter<std::fs::File>>,
    began: Instant,
    /// There is one replica, so that what it has survives a failover.
    one_replica: bool,
}

/// All that is known.
#[derive(Default)]
pub struct Model {
    pub(super) sessions: HashMap<String, Session>,
    pub(super) past: Past,
    next: u64,
    /// Calls that end all sessions of a principal, in flight: number, principal, spared session.
    everywhere: Vec<(u64, Value, Option<String>, Instant)>,
    pub(super) tally: Tally,
}

/// What was counted.
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
    /// Requests with a cookie, and those of them that might open a session or not.
    pub opened: u64,
    pub undecided: u64,
    /// Sessions that may have been made without anybody knowing their id.
    pub orphans: u64,
    pub pages: u64,
    pub calls: u64,
    /// Requests that were not served, and those of them long after the last fault.
    pub failed: u64,
    pub failed_in_peace: u64,
    /// Visitors that were anonymous because an answer that carried their new cookie was lost.
    pub cookies_lost: u64,
}

/// How a session was looked at.
#[derive(Clone, Copy)]
pub struct Look {
    pub sent: Instant,
    pub received: Instant,
    /// An instance with a cache took part.
    pub cached: bool,
}

impl Look {
    pub(super) fn read<'a>(self, shard: usize, past: &'a Past) -> Read<'a> {
        let leeway = if self.cached { CACHE_BOUND } else { Duration::ZERO };
        Read { sent: self.sent, received: self.received, leeway, shard, past }
    }
}

impl Oracle {
    /// Creates one that writes all that happens to `trace`.
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

    /// Reports an answer that may never be.
    pub fn wrong(&self, visitor: usize, text: &str) {
        let text =
            format!("{:.3} s, visitor {visitor}: {text}", self.began.elapsed().as_secs_f64());
        self.trace(&format!("WRONG {text}"));
        let mut model = self.model();
        if model.tally.wrong.len() < SHOWN {
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

    /// A failover begins now; what was acknowledged [`Window::BEFORE`] it, or since, may be lost.
    pub fn window_began(&self, cause: &'static str, shard: Option<usize>) {
        self.window_began_before(Window::BEFORE, cause, shard);
    }

    /// The same with another time before it.
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

    /// Notes that a change of `target` is on its way.
    pub fn begin(&self, order: &Order, target: Option<&str>, change: &Change) -> Pending {
        let mut model = self.model();
        model.next += 1;
        let (id, begun) = (model.next, Instant::now());
        let presented = order.token.as_ref().map_or(0, |token| token.generation);
        let everywhere = model.everywhere.clone();
        let session = target.and_then(|target| model.sessions.get_mut(target));
        if let Some(session) = session {
            session.begin(id, begun, State::InFlight, presented, change);
            // Who logs in while all are logged out may be one of them.
            if let Some(principal) = change.login.as_deref() {
                for (number, named, _, begun) in everywhere {
                    if named == principal
                        && !session.destroys.iter().any(|known| known.id == number)
                    {
                        session.destroys.push(Write::new(number, begun, State::InFlight, false));
                    }
                }
            }
        }
        if change.rotates() {
            order.progress.lock().unwrap().rotations.push(id);
        }
        let target = target.map(str::to_owned);
        Pending { id, begun, target, change: change.clone() }
    }

    /// Notes what became of a change. `answered` is the session that the answer names; without one
    /// it is the target's. A change that made a session without naming it is kept by its order until
    /// its cookie comes.
    pub fn finish(
        &self,
        order: &Order,
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
            self.made(order, id, &pending, State::Acknowledged(now));
        } else if let (None, Some(state)) = (&pending.target, state) {
            if pending.change.creates() {
                model.tally.orphans += 1;
                drop(model);
                order.progress.lock().unwrap().made.push((pending.change, state));
            }
        }
    }

    /// Notes a session that a change made instead of changing the one that it was meant for.
    fn made(&self, order: &Order, id: &str, pending: &Pending, state: State) {
        if let Some(target) = &pending.target {
            let look = Look { sent: pending.begun, received: Instant::now(), cached: true };
            let reachable = self.expected(target, order.token.as_ref(), look) == Expected::Yes;
            if reachable || pending.change.login.is_none() {
                self.wrong_of(
                    target,
                    order.visitor,
                    &format!("a change made another session, {id}"),
                );
            }
        }
        self.enter(order.visitor, id, pending.begun, &[(pending.change.clone(), state)]);
    }

    /// Enters a session of the program into the model.
    fn enter(&self, visitor: usize, id: &str, begun: Instant, changes: &[(Change, State)]) {
        let mut model = self.model();
        model.next += 1;
        let number = model.next;
        if let Some(known) = model.sessions.get(id) {
            // One that an answer named already: another change of the same request.
            let owner = known.visitor;
            if owner != visitor {
                drop(model);
                self.wrong(visitor, &format!("was given the session of {owner}: {id}"));
                return;
            }
        }
        let state =
            changes.first().map_or(State::Acknowledged(Instant::now()), |(_, state)| *state);
        let everywhere = model.everywhere.clone();
        let session = model.sessions.entry(id.to_owned()).or_insert_with(|| {
            let creation = Write::new(number, begun, state, ());
            Session::new(visitor, shard_of(id), creation)
        });
        for (change, state) in changes {
            session.begin(number, begun, *state, 0, change);
            // It begins with the generation that it is made with.
            session.rotations.clear();
            for (number, named, _, begun) in &everywhere {
                if change.login.as_deref().is_some_and(|principal| *named == principal) {
                    session.destroys.push(Write::new(*number, *begun, State::InFlight, false));
                }
            }
        }
    }

    /// Notes that all sessions of a principal, save one, are about to be ended.
    pub fn everywhere_began(&self, principal: &str, spared: Option<&str>) -> u64 {
        let mut model = self.model();
        model.next += 1;
        let (number, begun) = (model.next, Instant::now());
        let (principal, spared) = (Value::from(principal), spared.map(str::to_owned));
        let Model { sessions, past, everywhere, .. } = &mut *model;
        for (id, session) in sessions.iter_mut() {
            let look = Look { sent: begun, received: begun, cached: false };
            let read = look.read(session.shard, past);
            if spared.as_ref() != Some(id) && session.belongs_to(&principal, &read) != Expected::No
            {
                session.destroys.push(Write::new(number, begun, State::InFlight, false));
            }
        }
        everywhere.push((number, principal, spared, begun));
        number
    }

    /// Notes what became of that.
    pub fn everywhere_ended(&self, number: u64, outcome: Outcome) {
        let mut model = self.model();
        let now = Instant::now();
        let Model { sessions, past, everywhere, tally, .. } = &mut *model;
        let place = everywhere.iter().position(|(known, ..)| *known == number).unwrap();
        let (_, principal, _, begun) = everywhere.swap_remove(place);
        tally.logouts += u64::from(outcome == Outcome::Applied);
        for session in sessions.values_mut() {
            let read =
                Look { sent: begun, received: begun, cached: true }.read(session.shard, past);
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

    /// Judges the cookie that came with a page, and notes its token.
    pub fn cookie_set(&self, order: &Order, token: &Token, sent: Instant) {
        let known = self.model().sessions.get(&token.id).map(|session| session.visitor);
        if known.is_some_and(|owner| owner != order.visitor) {
            self.wrong(order.visitor, &format!("was given a cookie of visitor {known:?}"));
            return;
        }
        let made = std::mem::take(&mut order.progress.lock().unwrap().made);
        if known.is_none() {
            if made.is_empty() {
                self.wrong(order.visitor, &format!("a cookie of a new session {}", token.id));
            }
            self.enter(order.visitor, &token.id, sent, &made);
        }
        let mut model = self.model();
        model.tally.orphans -= made.len() as u64;
        let session = model.sessions.get_mut(&token.id).unwrap();
        // One of unknown fate may not have been done, and this may be a renewal.
        let rotations = &order.progress.lock().unwrap().rotations;
        let rotated = session.rotations.iter().filter(|rotation| {
            let done = matches!(rotation.state, State::Acknowledged(_))
                || token.generation > rotation.value.presented + 1;
            rotations.contains(&rotation.id) && done
        });
        match rotated.map(|rotation| rotation.id).max() {
            Some(id) => session.granted(id, token.generation),
            None if order.token.as_ref().is_some_and(|old| old.id == token.id) => {
                model.tally.renewals += 1;
            }
            None => {}
        }
    }

    /// Returns the ids of all sessions with their visitors, for the last check.
    pub fn sessions(&self) -> Vec<(String, usize)> {
        let model = self.model();
        model.sessions.iter().map(|(id, session)| (id.clone(), session.visitor)).collect()
    }

    pub fn knows(&self, id: &str) -> bool {
        self.model().sessions.contains_key(id)
    }

    /// How many values a session has in the model.
    pub fn size(&self, id: &str) -> usize {
        self.model().sessions.get(id).map_or(0, Session::size)
    }
}

/// The third of a cluster's slots that a session belongs to.
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
