//! The oracle: what must be there, and what was found.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::history::{Past, Read, State, Verdict, Window, Write};
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

#[derive(Default)]
struct Model {
    sessions: HashMap<String, Session>,
    past: Past,
    next: u64,
    /// Calls that end all sessions of a principal, in flight: number, principal, spared session.
    everywhere: Vec<(u64, Value, Option<String>, Instant)>,
    tally: Tally,
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
    fn read<'a>(self, shard: usize, past: &'a Past) -> Read<'a> {
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

    fn model(&self) -> MutexGuard<'_, Model> {
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

    fn wrong_of(&self, session: &str, visitor: usize, text: &str) {
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
        self.trace(&format!("WINDOW {cause} {shard:?}"));
        let began = Instant::now().checked_sub(Window::BEFORE).unwrap();
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

    /// Whether a change by the header of an answer may be refused, as its session may be gone.
    pub fn may_be_refused(&self, order: &Order, sent: Instant) -> bool {
        let look = Look { sent, received: Instant::now(), cached: true };
        order.patch.is_some()
            && order
                .token
                .as_ref()
                .is_some_and(|token| self.expected(&token.id, Some(token), look) != Expected::Yes)
    }

    /// Whether a session has certainly been ended.
    pub fn is_gone(&self, id: &str) -> bool {
        let now = Instant::now();
        let look = Look { sent: now, received: now, cached: true };
        self.expected(id, None, look) == Expected::No
    }

    /// Whether the token has to open its session.
    fn expected(&self, id: &str, token: Option<&Token>, look: Look) -> Expected {
        let model = self.model();
        let Some(session) = model.sessions.get(id) else { return Expected::Either };
        let read = look.read(session.shard, &model.past);
        let opens = token.filter(|token| token.id == id);
        let opens = opens.map_or(Expected::Either, |token| session.opens(token.generation, &read));
        match (session.lives(&read), opens) {
            _ if session.reported => Expected::Either,
            (Expected::No, _) | (_, Expected::No) => Expected::No,
            (Expected::Yes, Expected::Yes) => Expected::Yes,
            _ => Expected::Either,
        }
    }

    /// Judges whom a request was opened as: the session that the site was told of, if any.
    pub fn opened(&self, order: &Order, seen: Option<&str>, error: &str, look: Look) {
        let (visitor, token) = (order.visitor, order.token.as_ref());
        let Some(token) = token else {
            if let Some(seen) = seen {
                self.wrong(
                    visitor,
                    &format!("a request without a cookie was given session {seen}"),
                );
            }
            return;
        };
        if let Some(seen) = seen.filter(|seen| *seen != token.id) {
            self.wrong(visitor, &format!("was given session {seen} for a cookie of {}", token.id));
            return;
        }
        let generation = token.generation;
        match (self.expected(&token.id, Some(token), look), seen) {
            (Expected::Yes, None) => self.wrong_of(
                &token.id,
                visitor,
                &format!("lost: anonymous with generation {generation}, error {error:?}"),
            ),
            (Expected::No, Some(_)) => self.wrong_of(
                &token.id,
                visitor,
                &format!("a cookie of generation {generation} that is over opened it"),
            ),
            _ => self.learn(token, seen.is_some(), look),
        }
    }

    /// Settles what was open about a session by whether its token opened it.
    fn learn(&self, token: &Token, opened: bool, look: Look) {
        let model = &mut *self.model();
        let Some(session) = model.sessions.get_mut(&token.id) else { return };
        let read = look.read(session.shard, &model.past);
        let (lives, opens) = (session.lives(&read), session.opens(token.generation, &read));
        let tally = &mut model.tally;
        if opened {
            note(tally, "log-outs", session.found_alive(&read));
            note(tally, "log-ins or rotations", session.opened_by(token.generation, &read));
            return;
        }
        match (lives, opens) {
            (Expected::Either, Expected::Yes) => {
                note(tally, "new sessions", session.found_gone(&read));
            }
            (Expected::Yes, Expected::Either) => {
                let rests = session.rotations.iter().all(|rotation| rotation.rests(&read));
                let rotations = session.rotations.iter_mut();
                let cause = rotations.rev().find_map(|rotation| {
                    let cause = rotation.loss(&read).filter(|_| !rotation.reported);
                    rotation.reported |= cause.is_some();
                    cause
                });
                note(tally, "log-ins or rotations", cause);
                tally.cookies_lost += u64::from(cause.is_none() && rests && !session.lost);
            }
            _ => {}
        }
    }

    /// Judges a session that was read whole, or its absence.
    pub fn read(
        &self,
        visitor: usize,
        id: &str,
        values: Option<&Map<String, Value>>,
        principal: Option<Option<&Value>>,
        look: Look,
    ) {
        let mut wrong = None;
        {
            let model = &mut *self.model();
            model.tally.reads += 1;
            let Some(session) = model.sessions.get_mut(id) else { return };
            if session.reported {
                return;
            }
            let read = look.read(session.shard, &model.past);
            let tally = &mut model.tally;
            match (session.lives(&read), values) {
                (Expected::Yes, None) => wrong = Some("is gone".to_owned()),
                (Expected::No, Some(_)) => wrong = Some("is back".to_owned()),
                (_, None) => note(tally, "new sessions", session.found_gone(&read)),
                (_, Some(values)) => {
                    note(tally, "log-outs", session.found_alive(&read));
                    wrong = judge(session, values, principal, &read, tally).err();
                }
            }
        }
        if let Some(text) = wrong {
            self.wrong_of(id, visitor, &text);
        }
    }

    /// Judges the number that an increment answered.
    pub fn counted(&self, visitor: usize, id: &str, key: &str, number: i64, look: Look) {
        let verdict = {
            let model = &mut *self.model();
            let Some(session) = model.sessions.get_mut(id) else { return };
            let read = look.read(session.shard, &model.past);
            if session.lost { Verdict::Right } else { session.judge_counter(key, number, &read) }
        };
        match verdict {
            Verdict::Right => {}
            Verdict::Lost(count, cause) => {
                lose(&mut self.model().tally, count, "changes of values", cause);
            }
            Verdict::Wrong(text) => {
                self.wrong_of(id, visitor, &format!("increment of {key}: {text}"))
            }
        }
    }

    /// Judges a refusal that says that the session is gone or rotated away.
    pub fn refused_as_gone(&self, order: &Order, target: &str, code: &str, look: Look) {
        if self.expected(target, order.token.as_ref(), look) == Expected::Yes {
            self.wrong_of(target, order.visitor, &format!("a change was refused: {code}"));
        }
    }

    /// Judges a list of the sessions of a principal.
    pub fn listed(&self, visitor: usize, principal: &str, ids: &[&str], look: Look) {
        let principal = Value::from(principal);
        let mut wrong = Vec::new();
        {
            let model = self.model();
            for (id, session) in &model.sessions {
                let read = look.read(session.shard, &model.past);
                let listed = ids.contains(&id.as_str());
                let belongs = session.belongs_to(&principal, &read);
                let certain = session.is_indexed(&principal, &model.past);
                match (session.lives(&read), belongs) {
                    _ if session.reported => {}
                    (Expected::Yes, Expected::Yes) if !listed && certain => {
                        wrong.push((id.clone(), "is missing in the list of its principal"));
                    }
                    (Expected::No, _) | (_, Expected::No) if listed => {
                        wrong.push((id.clone(), "is in the list of a principal by mistake"));
                    }
                    _ => {}
                }
            }
        }
        for (id, text) in wrong {
            self.wrong_of(&id, visitor, text);
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

    /// Judges the deletion of the cookie that came with a request.
    pub fn cookie_deleted(&self, order: &Order, sent: Instant) {
        let Some(token) = &order.token else {
            self.wrong(order.visitor, "a cookie was deleted that did not come with the request");
            return;
        };
        let look = Look { sent, received: Instant::now(), cached: true };
        if self.expected(&token.id, Some(token), look) == Expected::Yes {
            self.wrong_of(&token.id, order.visitor, "the good cookie was deleted");
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

    /// Whether a token certainly opens nothing any more.
    pub fn is_dead(&self, token: &Token) -> bool {
        let now = Instant::now();
        let look = Look { sent: now, received: now, cached: true };
        self.expected(&token.id, Some(token), look) == Expected::No
    }
}

fn judge(
    session: &mut Session,
    values: &Map<String, Value>,
    principal: Option<Option<&Value>>,
    read: &Read<'_>,
    tally: &mut Tally,
) -> Result<(), String> {
    if session.lost {
        return Ok(());
    }
    for (count, cause) in session.judge(values, read)? {
        lose(tally, count, "changes of values", cause);
    }
    match principal.map(|principal| session.principal.judge(principal, read)) {
        None | Some(Verdict::Right) => {}
        Some(Verdict::Lost(count, cause)) => lose(tally, count, "log-ins", cause),
        Some(Verdict::Wrong(text)) => return Err(format!("principal: {text}")),
    }
    Ok(())
}

fn note(tally: &mut Tally, what: &str, cause: Option<&str>) {
    if let Some(cause) = cause {
        lose(tally, 1, what, cause);
    }
}

fn lose(tally: &mut Tally, count: u64, what: &str, cause: &str) {
    *tally.lost.entry(format!("{what} ({cause})")).or_default() += count;
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
