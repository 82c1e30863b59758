//! What the oracle says to answers: whether they may be, and what they tell of changes whose fate was
//! open.

use std::time::Instant;

use serde_json::{Map, Value};

use super::history::{Read, Verdict};
use super::oracle::{Look, Oracle, Tally};
use super::order::{Order, Token};
use super::session::{Expected, Session};

impl Oracle {
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
    pub(super) fn expected(&self, id: &str, token: Option<&Token>, look: Look) -> Expected {
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
        let expected = self.expected(&token.id, Some(token), look);
        self.count(|tally| {
            tally.opened += 1;
            tally.undecided += u64::from(expected == Expected::Either);
        });
        match (expected, seen) {
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
                if session.lost || !session.rotations.iter().all(|rotation| rotation.rests(&read)) {
                    return;
                }
                // Each is counted once, however many requests bring the token.
                let mut rotations = session.rotations.iter_mut();
                let Some(rotation) = rotations.rfind(|rotation| !rotation.reported) else { return };
                rotation.reported = true;
                let cause = rotation.loss(&read);
                note(tally, "log-ins or rotations", cause);
                tally.cookies_lost += u64::from(cause.is_none());
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

    /// How many sessions may be there or not.
    pub fn undecided(&self) -> usize {
        let now = Instant::now();
        let look = Look { sent: now, received: now, cached: true };
        let model = self.model();
        let lives = |session: &Session| session.lives(&look.read(session.shard, &model.past));
        let sessions = model.sessions.values();
        sessions.filter(|session| !session.reported && lives(session) == Expected::Either).count()
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
