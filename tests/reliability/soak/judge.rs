//! Judgement of responses: compares them with the model, and settles changes of unknown fate.

use std::time::Instant;

use serde_json::{Map, Value};

use super::history::{Read, Verdict};
use super::job::{Job, Token};
use super::oracle::{Observation, Oracle, Tally};
use super::session::{Expected, Session};

impl Oracle {
    /// Returns true if a patch by header may be rejected because its session may be missing.
    pub fn may_be_rejected(&self, job: &Job, sent: Instant) -> bool {
        let observation = Observation { sent, received: Instant::now(), cached: true };
        job.patch.is_some()
            && job.token.as_ref().is_some_and(|token| {
                self.expected(&token.id, Some(token), observation) != Expected::Yes
            })
    }

    /// Returns true if a session has certainly been destroyed.
    pub fn is_destroyed(&self, id: &str) -> bool {
        let now = Instant::now();
        let observation = Observation { sent: now, received: now, cached: true };
        self.expected(id, None, observation) == Expected::No
    }

    /// Returns whether the token must open its session.
    pub(super) fn expected(
        &self,
        id: &str,
        token: Option<&Token>,
        observation: Observation,
    ) -> Expected {
        let model = self.model();
        let Some(session) = model.sessions.get(id) else { return Expected::Either };
        let read = observation.read(session.shard, &model.past);
        let opens = token.filter(|token| token.id == id);
        let opens = opens.map_or(Expected::Either, |token| session.opens(token.generation, &read));
        match (session.is_alive(&read), opens) {
            _ if session.reported => Expected::Either,
            (Expected::No, _) | (_, Expected::No) => Expected::No,
            (Expected::Yes, Expected::Yes) => Expected::Yes,
            _ => Expected::Either,
        }
    }

    /// Judges the session that a request was opened with, as the site received it.
    pub fn opened(&self, job: &Job, seen: Option<&str>, error: &str, observation: Observation) {
        let (visitor, token) = (job.visitor, job.token.as_ref());
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
        let expected = self.expected(&token.id, Some(token), observation);
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
                &format!("an invalid cookie of generation {generation} opened it"),
            ),
            _ => self.settle(token, seen.is_some(), observation),
        }
    }

    /// Settles changes of unknown fate by the fact that a token opened its session or did not.
    fn settle(&self, token: &Token, opened: bool, observation: Observation) {
        let model = &mut *self.model();
        let Some(session) = model.sessions.get_mut(&token.id) else { return };
        let read = observation.read(session.shard, &model.past);
        let (is_alive, opens) = (session.is_alive(&read), session.opens(token.generation, &read));
        let tally = &mut model.tally;
        if opened {
            count_loss(tally, "log-outs", session.found_alive(&read));
            count_loss(tally, "log-ins or rotations", session.opened_by(token.generation, &read));
            return;
        }
        match (is_alive, opens) {
            (Expected::Either, Expected::Yes) => {
                count_loss(tally, "new sessions", session.found_missing(&read));
            }
            (Expected::Yes, Expected::Either) => {
                if session.lost
                    || !session.rotations.iter().all(|rotation| rotation.is_settled(&read))
                {
                    return;
                }
                // Each is counted once, however many requests carry the token.
                let mut rotations = session.rotations.iter_mut();
                let Some(rotation) = rotations.rfind(|rotation| !rotation.reported) else { return };
                rotation.reported = true;
                let cause = rotation.loss(&read);
                count_loss(tally, "log-ins or rotations", cause);
                tally.cookies_lost += u64::from(cause.is_none());
            }
            _ => {}
        }
    }

    /// Judges a complete read of a session, or its absence.
    pub fn read(
        &self,
        visitor: usize,
        id: &str,
        values: Option<&Map<String, Value>>,
        principal: Option<&Value>,
        observation: Observation,
    ) {
        let mut wrong = None;
        {
            let model = &mut *self.model();
            model.tally.reads += 1;
            let Some(session) = model.sessions.get_mut(id) else { return };
            if session.reported {
                return;
            }
            let read = observation.read(session.shard, &model.past);
            let tally = &mut model.tally;
            match (session.is_alive(&read), values) {
                (Expected::Yes, None) => wrong = Some("is missing".to_owned()),
                (Expected::No, Some(_)) => wrong = Some("exists after it was destroyed".to_owned()),
                (_, None) => count_loss(tally, "new sessions", session.found_missing(&read)),
                (_, Some(values)) => {
                    count_loss(tally, "log-outs", session.found_alive(&read));
                    wrong = judge(session, values, principal, &read, tally).err();
                }
            }
        }
        if let Some(text) = wrong {
            self.wrong_of(id, visitor, &text);
        }
    }

    /// Judges the number that an increment returned.
    pub fn incremented(
        &self,
        visitor: usize,
        id: &str,
        key: &str,
        number: i64,
        observation: Observation,
    ) {
        let verdict = {
            let model = &mut *self.model();
            let Some(session) = model.sessions.get_mut(id) else { return };
            let read = observation.read(session.shard, &model.past);
            if session.lost { Verdict::Right } else { session.judge_counter(key, number, &read) }
        };
        match verdict {
            Verdict::Right => {}
            Verdict::Lost(count, cause) => {
                add_losses(&mut self.model().tally, count, "changes of values", cause);
            }
            Verdict::Wrong(text) => {
                self.wrong_of(id, visitor, &format!("increment of {key}: {text}"));
            }
        }
    }

    /// Judges a rejection with the reason that the session is missing or was rotated.
    pub fn rejected_as_missing(
        &self,
        job: &Job,
        target: &str,
        code: &str,
        observation: Observation,
    ) {
        if self.expected(target, job.token.as_ref(), observation) == Expected::Yes {
            self.wrong_of(target, job.visitor, &format!("a change was rejected: {code}"));
        }
    }

    /// Judges a list of the sessions of a principal.
    pub fn listed(&self, visitor: usize, principal: &str, ids: &[&str], observation: Observation) {
        let principal = Value::from(principal);
        let mut wrong = Vec::new();
        {
            let model = self.model();
            for (id, session) in &model.sessions {
                let read = observation.read(session.shard, &model.past);
                let listed = ids.contains(&id.as_str());
                let belongs = session.belongs_to(&principal, &read);
                let certain = session.is_indexed(&principal, &model.past);
                match (session.is_alive(&read), belongs) {
                    _ if session.reported => {}
                    (Expected::Yes, Expected::Yes) if !listed && certain => {
                        wrong.push((id.clone(), "is missing from the list of its principal"));
                    }
                    (Expected::No, _) | (_, Expected::No) if listed => {
                        wrong.push((id.clone(), "is in the list of a wrong principal"));
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
    pub fn cookie_deleted(&self, job: &Job, sent: Instant) {
        let Some(token) = &job.token else {
            self.wrong(job.visitor, "a cookie was deleted that did not come with the request");
            return;
        };
        let observation = Observation { sent, received: Instant::now(), cached: true };
        if self.expected(&token.id, Some(token), observation) == Expected::Yes {
            self.wrong_of(&token.id, job.visitor, "a valid cookie was deleted");
        }
    }

    /// Returns the number of sessions of unknown fate.
    pub fn undecided(&self) -> usize {
        let now = Instant::now();
        let observation = Observation { sent: now, received: now, cached: true };
        let model = self.model();
        let is_alive =
            |session: &Session| session.is_alive(&observation.read(session.shard, &model.past));
        let sessions = model.sessions.values();
        sessions
            .filter(|session| !session.reported && is_alive(session) == Expected::Either)
            .count()
    }

    /// Returns true if a token is certainly invalid.
    pub fn is_invalid(&self, token: &Token) -> bool {
        let now = Instant::now();
        let observation = Observation { sent: now, received: now, cached: true };
        self.expected(&token.id, Some(token), observation) == Expected::No
    }
}

fn judge(
    session: &mut Session,
    values: &Map<String, Value>,
    principal: Option<&Value>,
    read: &Read<'_>,
    tally: &mut Tally,
) -> Result<(), String> {
    if session.lost {
        return Ok(());
    }
    for (count, cause) in session.judge(values, read)? {
        add_losses(tally, count, "changes of values", cause);
    }
    match session.principal.judge(principal, read) {
        Verdict::Right => {}
        Verdict::Lost(count, cause) => add_losses(tally, count, "log-ins", cause),
        Verdict::Wrong(text) => return Err(format!("principal: {text}")),
    }
    Ok(())
}

fn count_loss(tally: &mut Tally, what: &str, cause: Option<&str>) {
    if let Some(cause) = cause {
        add_losses(tally, 1, what, cause);
    }
}

fn add_losses(tally: &mut Tally, count: u64, what: &str, cause: &str) {
    *tally.lost.entry(format!("{what} ({cause})")).or_default() += count;
}
